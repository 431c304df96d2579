"""One file for each version that was released."""
