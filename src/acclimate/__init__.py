"""Make a trained model better on the data in front of it, at test time, and prove that it did."""

__version__ = "0.1.0"
