"""Skills and what passes between them."""
