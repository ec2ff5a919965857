"""Vocabulary extension: tokens of a domain become single tokens of a model."""

from evolve.stages.vocab.stage import VocabStage

__all__ = ["VocabStage"]
