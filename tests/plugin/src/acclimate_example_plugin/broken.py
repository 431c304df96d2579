"""A module that cannot be imported."""

raise ImportError("it needs a library that is not there")
