"""How new tokens are chosen: one file a method."""
