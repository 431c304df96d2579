"""Low-rank adapters trained on the examples of a request."""
