"""The command line: one file per command that parses, calls the library and prints."""
