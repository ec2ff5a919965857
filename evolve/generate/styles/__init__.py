"""What the teacher is asked: one style a file."""
