"""Causal language models: loading, reading, generating."""
