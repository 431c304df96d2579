"""The package of the guidelines, where the host has none of that name."""
