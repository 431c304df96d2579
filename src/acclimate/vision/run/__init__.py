"""Runs: settings, test-time training, export."""
