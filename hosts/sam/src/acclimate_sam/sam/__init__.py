"""The package of the deployment guidelines, for hosts that have none of that name."""
