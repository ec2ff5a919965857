"""Can these models be merged? Says every reason why not, from headers and tokenizer files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError, some
from evolve.weights.tied import HEADS
from evolve.weights.vocabulary import vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.weights.model import Model

# Same shapes, other arithmetic: keys whose values must agree although the weights would fit.
_ARITHMETIC = (
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "activation_function",
    "hidden_activation",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
    "num_experts_per_tok",
    "use_parallel_residual",
    "rotary_pct",
    "rotary_emb_base",
    "partial_rotary_factor",
)
_DEPTH = ("num_hidden_layers", "n_layer", "num_layers")
_SIBLINGS = "use models that were fine-tuned from one base"
_UNION = "set tokenizer: {source: union}"
_SHOWN = 3


def differences(models: Mapping[str, Model]) -> list[str]:
    """Return why ``models`` cannot be merged with each other, each reason with its mend; empty if they can.

    Every model is compared with the first. Reads headers and tokenizer files only.
    """
    if len(models) < 2:
        return []
    (first, one), *others = models.items()
    found: list[str] = []
    vocabularies: dict[str, dict[str, int] | str | None] = {}
    for name, model in models.items():
        try:
            vocabularies[name] = vocabulary(model.files)
        except ModelError as error:
            found.append(f"model {name!r}: {error}")
    for name, model in others:
        pair = f"model {name!r} against {first!r}"
        known = first in vocabularies and name in vocabularies
        unlike = _unlike(vocabularies[first], vocabularies[name]) if known else ""
        reasons = _class(one, model) or [
            *_shapes(one, model, unlike),
            *_tied(one, model),
            *_arithmetic(one, model),
            *_rope(one, model),
        ]
        if unlike and _vocab_size(one) == _vocab_size(model):
            reasons.append(f"another {unlike}; {_UNION}, or {_SIBLINGS}")
        found += [f"{pair}: {reason}" for reason in reasons]
    return found


def _class(one: Model, other: Model) -> list[str]:
    ours, theirs = (_architecture(model) for model in (other, one))
    return [] if ours == theirs else [f"architecture {ours}, not {theirs}; {_SIBLINGS}"]


def _architecture(model: Model) -> str:
    names = model.config.get("architectures") or [f"model_type {model.config.get('model_type', 'unknown')}"]
    return ", ".join(map(str, names))


def _shapes(one: Model, other: Model, tokens: str) -> list[str]:
    depths = [
        next((model.config[key] for key in _DEPTH if key in model.config), None) for model in (other, one)
    ]
    if depths[0] != depths[1]:
        return [f"{depths[0]} layers, not {depths[1]}; use models of one depth"]
    sizes = [_vocab_size(model) for model in (other, one)]
    if sizes[0] != sizes[1]:
        listed = f" (another {tokens})" if tokens else ""
        return [f"a vocabulary of {sizes[0]} tokens, not {sizes[1]}{listed}; {_UNION}, or {_SIBLINGS}"]
    # A head that one of them lacks is a matter of the tied state, which has a message of its own.
    skipped = set(HEADS) if one.tied != other.tied else set()
    found = []
    if missing := [name for name in one.specs if name not in other.specs and name not in skipped]:
        found.append(f"lacks {some(missing)}; copy or convert the model again, or {_SIBLINGS}")
    if extra := [name for name in other.specs if name not in one.specs and name not in skipped]:
        found.append(f"has {some(extra)} besides; {_SIBLINGS}, and write an adapter as base+adapter")
    unlike = [
        f"{name} {list(other.specs[name].shape)} instead of {list(spec.shape)}"
        for name, spec in one.specs.items()
        if name in other.specs and other.specs[name].shape != spec.shape
    ]
    if unlike:
        found.append(f"other shapes: {some(unlike)}; {_SIBLINGS}")
    return found


def _tied(one: Model, other: Model) -> list[str]:
    if one.tied == other.tied:
        return []
    states = [
        "ties its head to the embedding" if model.tied else "has its own head" for model in (other, one)
    ]
    return [
        f"it {states[0]}, the other {states[1]}; save the tied one with tie_word_embeddings false and the "
        f"embedding copied to the head, or {_SIBLINGS}"
    ]


def _arithmetic(one: Model, other: Model) -> list[str]:
    return [
        f"{key} {other.config[key]}, not {one.config[key]}: the same weights mean something else; {_SIBLINGS}"
        for key in _ARITHMETIC
        if key in one.config and key in other.config and one.config[key] != other.config[key]
    ]


def _rope(one: Model, other: Model) -> list[str]:
    (theta, scaling), (other_theta, other_scaling) = _rope_of(one.config), _rope_of(other.config)
    found = []
    if theta != other_theta:
        found.append(f"rope_theta {other_theta:g}, not {theta:g}: their positions differ; {_SIBLINGS}")
    if scaling != other_scaling:
        found.append(
            f"rope scaling {other_scaling or 'none'}, not {scaling or 'none'}: their positions differ; "
            f"{_SIBLINGS}"
        )
    return found


def _rope_of(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return theta and scaling, whether written by transformers 4 (rope_theta, rope_scaling) or 5."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", config.get("rope_theta", 10000.0))
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind == "default" and not scaling:
        return theta, {}
    return theta, {"rope_type": kind, **scaling}


def _unlike(one: dict[str, int] | str | None, other: dict[str, int] | str | None) -> str:
    """Return what differs, or an empty text."""
    # Two kinds of tokenizer files, or none: nothing to compare but the sizes, which the shapes show.
    if one == other or type(one) is not type(other):
        return ""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return "tokenizer"
    unlike = sorted(
        (token for token in one.keys() | other.keys() if one.get(token) != other.get(token)),
        key=lambda token: (min(one.get(token, len(one)), other.get(token, len(other))), token),
    )
    shown = [
        f"{token!r} is {other.get(token, 'absent')} and not {one.get(token, 'there')}"
        for token in unlike[:_SHOWN]
    ]
    return f"vocabulary, {len(unlike)} tokens differ: {', '.join(shown)}"


def _vocab_size(model: Model) -> Any:
    return model.config.get("vocab_size")
