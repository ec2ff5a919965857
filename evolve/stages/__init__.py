"""The stages of a recipe, one folder each, and the pipeline that runs them."""
