"""The best recipe as a recipe, a mergekit config, or a model folder."""
