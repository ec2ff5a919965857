"""Model merging: a mergekit config in which any number may be a range."""
