"""Runs of test-time training: settings, choice of a method, adaptation, export."""
