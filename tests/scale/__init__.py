"""Exports of sharded data sets."""
