"""A config with ranges becomes genes; genes become a recipe."""
