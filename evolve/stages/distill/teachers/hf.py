"""A live teacher: a transformers network in this process, which can say everything about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from evolve.errors import CandidateError
from evolve.stages.distill.teachers.base import TeacherBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evolve.stages.distill.generation import Completion, Generation
    from evolve.stages.distill.signals import Signals
    from evolve.stages.distill.teachers.base import Batch, Opening
    from evolve.weights.model import Model


class HfTeacherBlock(TeacherBlock):
    """A model that answers live: the whole distribution, hidden states and attention maps."""

    kind: Literal["hf"]
    model: str = Field(min_length=1)
    """The teacher: a stage before, or any of ``models``."""


class HfTeacher:
    """See the text of the module. float32 on a CPU, the model's own type on a GPU; never in training mode."""

    block: ClassVar[type[TeacherBlock]] = HfTeacherBlock
    gives: ClassVar[frozenset[str]] = frozenset({"scores", "hidden", "attentions", "text"})

    def __init__(self, block: HfTeacherBlock, opening: Opening) -> None:
        from evolve.stages.distill.forward import head_rule

        if opening.model is None:
            raise CandidateError("invalid_recipe", f"teacher.model: there is no model {block.model!r}")
        self.network: Any = open_frozen(opening.model, opening.device)
        self._rule = head_rule(self.network)

    def signals(self, batch: Batch, *, hidden: bool = False, attentions: bool = False) -> Signals:
        """Return the last hidden states with the head, and what else is asked for."""
        import torch

        from evolve.stages.distill.forward import forward

        if attentions and self.network.config._attn_implementation != "eager":
            self.network.set_attn_implementation("eager")
        with torch.no_grad():
            return forward(self.network, batch, rule=self._rule, hidden=hidden, attentions=attentions)

    def complete(
        self, prompts: Sequence[Sequence[int]], settings: Generation, *, seed: int
    ) -> list[Completion]:
        """Return what the teacher writes behind each prompt."""
        from evolve.stages.distill.generation import complete

        return complete(self.network, prompts, settings, seed=seed)

    def close(self) -> None:
        """Drop the network."""
        import gc

        import torch

        self.network = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_frozen(model: Model, device: str) -> Any:
    """Return a model as a network that is only read: evaluating, without gradients, in a type that fits.

    Raises:
        CandidateError: The model does not fit transformers.
    """
    import torch

    from evolve.weights.network import open_network

    network, _ = open_network(model)
    own = next(iter(model.specs.values())).dtype
    if device != "cpu" and own in ("bfloat16", "float16"):
        network.to(getattr(torch, own))
    # transformers computes soft-capped attention in eager mode alone.
    if getattr(network.config.get_text_config(), "attn_logit_softcapping", None):
        network.set_attn_implementation("eager")
    return network.to(device).eval().requires_grad_(False)
