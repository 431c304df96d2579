"""Adapters, which load and run models, and the networks that this package contains."""
