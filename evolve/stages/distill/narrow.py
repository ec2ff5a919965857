"""A student that is narrower than its model: the first dimensions, groups of heads, and units of each MLP.

All shrink by one factor. Neither dimensions of the residual stream nor heads nor units stand in an order, so
the first are as good as evenly spaced ones; taking the first makes a narrower student a part of every wider
one, so that widths of a search can be compared. Heads stay whole, since positions turn pairs of their
dimensions, and so do the groups that share keys and values; a single pair of keys and values stays.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.weights.model import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from evolve.weights.model import Model

_KINDS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"embed_tokens\.weight|lm_head\.weight", ("whole", "width")),
    (r"(?:^|\.)norm\.weight|(?:input|post_attention)_layernorm\.weight", ("width",)),
    (r"self_attn\.q_proj\.weight", ("heads", "width")),
    (r"self_attn\.[kv]_proj\.weight", ("pairs", "width")),
    (r"self_attn\.o_proj\.weight", ("width", "heads")),
    (r"self_attn\.q_proj\.bias", ("heads",)),
    (r"self_attn\.[kv]_proj\.bias", ("pairs",)),
    (r"self_attn\.[qk]_norm\.weight", ("whole",)),
    (r"mlp\.(?:gate|up)_proj\.weight", ("units", "width")),
    (r"mlp\.down_proj\.weight", ("width", "units")),
    (r"mlp\.(?:gate|up)_proj\.bias", ("units",)),
    (r"self_attn\.o_proj\.bias|mlp\.down_proj\.bias", ("width",)),
)
"""End of a tensor's name to what each of its sizes counts."""


class _Sizes(NamedTuple):
    width: int
    heads: int
    pairs: int
    units: int
    of_head: int


def narrow_problem(width: int, model: Model) -> str:
    """Return why a model cannot be made so narrow, or "" where it can.

    Args:
        width: The hidden size that is asked for.
        model: The model, or its headers.
    """
    kind = model.config.get("model_type")
    if kind not in _KINDS:
        return (
            f"a model of type {kind!r} cannot be narrowed: {', '.join(sorted(_KINDS))} can. Leave out "
            "hidden_size, and keep fewer layers"
        )
    whole = _sizes(model)
    good = [whole.width * heads // whole.heads for heads in range(1, whole.heads + 1)]
    good = [one for one in good if _cut(whole, one) is not None]
    if width not in good:
        return (
            f"hidden_size {width} would cut through the {whole.heads} heads, their {whole.pairs} keys and "
            f"values, or the {whole.units} units of the MLP: the model of width {whole.width} has the parts "
            f"{', '.join(map(str, good))}"
        )
    odd = [name for name in model.specs if _rule(name) is None]
    return f"nobody knows how to cut the tensor {odd[0]}: leave out hidden_size" if odd else ""


def narrowed(model: Model, width: int) -> Model:
    """Return a model's first ``width`` dimensions.

    Args:
        model: One without a :func:`narrow_problem`.
        width: Its hidden size is this afterwards; its own gives the model as it is.
    """
    whole = _sizes(model)
    part = _cut(whole, width)
    if part is None:
        raise ValueError(f"no part of width {width}")
    if part == whole:
        return model

    def shape(name: str) -> tuple[int, ...]:
        rule = _rule(name) or ()
        sizes = part._asdict()
        own = model.specs[name].shape
        return tuple(
            size if what == "whole" else sizes[what] * (part.of_head if what in ("heads", "pairs") else 1)
            for what, size in zip(rule, own, strict=True)
        )

    specs = {name: TensorSpec(shape(name), spec.dtype) for name, spec in model.specs.items()}

    def tensor(name: str) -> Tensor:
        found = model.tensor(name)
        return found[tuple(slice(size) for size in specs[name].shape)].contiguous()

    config: dict[str, Any] = {
        **model.config,
        "hidden_size": part.width,
        "num_attention_heads": part.heads,
        "num_key_value_heads": part.pairs,
        "intermediate_size": part.units,
        "head_dim": part.of_head,
    }
    return replace(model, config=config, specs=specs, tensor=tensor, exact=None, content="")


def _rule(name: str) -> tuple[str, ...] | None:
    return next((rule for end, rule in _RULES if re.search(f"(?:{end})$", name)), None)


def _sizes(model: Model) -> _Sizes:
    config = model.config
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return _Sizes(
        width,
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config["intermediate_size"]),
        int(config.get("head_dim") or width // heads),
    )


def _cut(whole: _Sizes, width: int) -> _Sizes | None:
    """Return the sizes of a part, or None where one of them would be no whole number."""
    factor = Fraction(width, whole.width)
    found = [factor * size for size in whole[:4]]
    if whole.pairs == 1:
        found[2] = Fraction(1)
    if not 0 < factor <= 1 or any(size.denominator != 1 for size in found):
        return None
    width, heads, pairs, units = map(int, found)
    return _Sizes(width, heads, pairs, units, whole.of_head)
