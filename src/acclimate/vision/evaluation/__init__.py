"""Scores, comparison of methods, and pictures of predictions."""
