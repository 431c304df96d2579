"""Skills that reason."""
