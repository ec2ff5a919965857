"""Finds the best way to build a language model out of models that exist."""

__version__ = "0.1.0"
