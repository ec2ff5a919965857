"""What an inference engine is: it holds one model at a time and answers lm-eval's requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from evolve.config.schema import ScoreConfig
    from evolve.weights.model import Model


class Engine(Protocol):
    """A hot engine. One process, one engine, one model at a time."""

    starts: int
    """How often it was built: more than once where the architecture or the tokenizer changed."""

    @property
    def lm(self) -> Any:
        """The ``lm_eval.api.model.LM`` that answers for the model that is loaded now."""
        ...

    @property
    def model(self) -> Model:
        """The model that is loaded now."""
        ...

    def load(self, model: Model) -> None:
        """Replace the weights by those of ``model``, streamed; restart only where the architecture changes.

        Names and shapes are checked before the first tensor. When it raises, the engine still works with
        the next ``load``.

        Raises:
            CandidateError: The model does not fit, or the engine broke on it.
        """
        ...

    def sleep(self, *, short: bool = False) -> None:
        """Make room for training: hold no memory of an accelerator, and no model that answers.

        ``lm`` and ``model`` cannot be used until the next ``load``. Safe to call twice.

        Args:
            short: The machine's own memory is short too: give back all of it; the next ``load`` is slower.
        """
        ...

    def wake(self) -> None:
        """Take back what :meth:`sleep` gave, as far as it was no ``short`` sleep; the next call is ``load``.

        ``load`` wakes a sleeping engine by itself. Does nothing to one that is awake.
        """
        ...

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        ...


EngineFactory: TypeAlias = "Callable[[ScoreConfig, Model, int], Engine]"
"""``open_engine(config, first model, threads)``: start an engine with a first model loaded."""
