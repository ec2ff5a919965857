"""Pure tensor maths. Knows nothing of evolve."""
