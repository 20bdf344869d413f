"""What things cost, measured on randomly initialised weights of exact shapes: no download."""
