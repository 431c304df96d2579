"""Adapters, which load and run a model, and the networks that ship."""
