"""Data sets and models that ship, so that everything can be tried without a download."""
