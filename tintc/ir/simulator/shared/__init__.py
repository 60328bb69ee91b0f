"""What the templates of several ops are made of."""
