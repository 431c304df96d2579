"""Classifiers on the vectors of an encoder: one file each."""
