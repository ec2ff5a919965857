"""Knowledge distillation: losses, teachers, data, and the stage that trains with them."""

from evolve.stages.distill.stage import DistillStage

__all__ = ["DistillStage"]
