"""Hypothesis without a clock and with fixed examples: a busy machine must not fail a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
