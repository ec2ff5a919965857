"""Searchers: ask for candidates, be told their values."""
