"""Training data that a teacher behind an API writes: asked once, kept, verified, filtered."""
