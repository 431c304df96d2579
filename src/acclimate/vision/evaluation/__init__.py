"""Evaluation: scores, comparison of methods, and pictures of predictions."""
