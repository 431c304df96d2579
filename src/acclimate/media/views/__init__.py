"""Changed copies of the examples."""
