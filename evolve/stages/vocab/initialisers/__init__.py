"""Where the rows of new tokens come from: one file a rule."""
