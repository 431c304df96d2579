"""The server: many users, one copy of a model, each request with its own adapter or none."""
