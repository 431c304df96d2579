"""The import paths and scripts of the TTT deployment guidelines, over acclimate."""
