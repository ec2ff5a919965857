"""Whether an answer is right: one way to tell a file."""
