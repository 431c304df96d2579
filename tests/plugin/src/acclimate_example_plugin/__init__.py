"""What somebody else adds to acclimate."""
