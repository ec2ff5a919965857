"""vLLM's transformers backend changes classes of transformers; here they work as before for everyone else.

For an architecture without a model of its own, such as GPT-NeoX, vLLM replaces ``__init__`` of transformers'
class in the whole process, and from then on nothing but vLLM can make such a model: a stage that trains in
the same process fails with "Current vLLM config is not set".
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARK = "_evolve_given_back"


def give_classes_back() -> None:
    """Let transformers' classes that vLLM has changed be used outside of vLLM again."""
    from transformers import PreTrainedModel

    for kind in _kinds(PreTrainedModel):
        changed: Any = kind.__dict__.get("__init__")
        if getattr(changed, "__module__", "") != "vllm.compilation.decorators" or hasattr(changed, _MARK):
            continue
        original = inspect.getclosurevars(changed).nonlocals.get("old_init")
        if original is not None:
            setattr(kind, "__init__", _either(changed, original))  # noqa: B010 (mypy: unsound on instances)


def _either(changed: Callable[..., None], original: Callable[..., None]) -> Callable[..., None]:
    """Return an ``__init__`` that is vLLM's where vLLM makes the model, and transformers' own elsewhere."""
    from vllm.config import get_current_vllm_config_or_none

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "vllm_config" in kwargs or get_current_vllm_config_or_none() is not None:
            changed(self, *args, **kwargs)
            return
        original(self, *args, **kwargs)
        # What vLLM's __call__ asks for before it hands over to forward.
        self.do_not_compile = True

    setattr(init, _MARK, True)
    return init


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)
