"""Evaluators, and where they run: in this process or as Ray actors."""
