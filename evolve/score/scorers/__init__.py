"""Scorers beside lm-eval's tasks: one small file each, and one line in ``evolve/registry.py``."""
