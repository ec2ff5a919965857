"""Which rows stay: one filter a file."""
