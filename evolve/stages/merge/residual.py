"""The hidden state that enters a slice, times a factor: as tensors of an ordinary model.

In a pre-norm model a layer reads the hidden state through a norm and adds to it: x + F(norm(x)). A norm takes
the scale out of what it reads, so F sees the same whether or not x was multiplied by s, and

    s x + F(norm(s x)) = s (x + F(norm(x)) / s).

So instead of multiplying the hidden state, whatever this and all later layers add to it is divided by s. The
last norm takes out the factor that is left. What a layer adds comes out of one projection, or out of a norm
behind it, whose weight (and bias) is divided: the result is an ordinary model of its architecture, and does
exactly this. What differs from a hidden state that is really multiplied is the epsilon of the norms alone: it
counts as if the state had not been multiplied. Embedding and head, which may be tied, stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from evolve.errors import CandidateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.stages.merge.layout import Layout, Place
    from evolve.stages.merge.values import Path
    from evolve.weights.model import Model


class Output(NamedTuple):
    """Where the layers of an architecture write into the hidden state.

    Attributes:
        parts: What the names of these tensors contain, as mergekit's filters do.
        shift: What the model adds to the tensor before it multiplies by it: 1 for gemma's norms.
    """

    parts: tuple[str, ...]
    shift: float = 0.0

    def has(self, place: Place) -> bool:
        """Whether a tensor of the result is one of these."""
        return place.tensor is not None and any(part in place.tensor.rest for part in self.parts)


class Factor(NamedTuple):
    """What a tensor is multiplied by: ``(tensor + shift) * factor - shift``."""

    factor: float
    shift: float


_LLAMA = Output(("self_attn.o_proj", "mlp.down_proj"))
_EXPERTS = Output(("self_attn.o_proj", "down_proj", ".w2."))
_GEMMA = Output(("post_attention_layernorm", "post_feedforward_layernorm"), shift=1.0)

OUTPUTS: Mapping[str, Output] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "smollm3", "granite"), _LLAMA),
    **dict.fromkeys(("stablelm", "cohere", "olmo"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), _EXPERTS),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "starcoder2": Output(("self_attn.o_proj", "mlp.c_proj")),
    "phi": Output(("self_attn.dense", "mlp.fc2")),
    "gpt2": Output(("attn.c_proj", "mlp.c_proj")),
    "gpt_neox": Output(("attention.dense", "mlp.dense_4h_to_h")),
    "mamba": Output(("mixer.out_proj",)),
}
"""``model_type`` to where its layers write. All of them read through a norm, and tests show that they do."""


def scale_problem(model: Model) -> str:
    """Return why the hidden states of a model cannot be scaled, or an empty text."""
    kind = model.config.get("model_type")
    if kind in OUTPUTS:
        return ""
    return (
        f"no scale for models of type {kind!r}: it is not known that all of their layers read through a norm "
        f"(known: {', '.join(sorted(OUTPUTS))}); leave scale out"
    )


def factors(layout: Layout) -> dict[str, Factor]:
    """Return the tensors of the result that are multiplied for the scales of the slices, and by what.

    Raises:
        CandidateError: A scale is not 1, and the architecture has no place for it.
    """
    product = 1.0
    by_part: dict[Path, float] = {}
    for part in layout.parts:
        if not isinstance(part.scale, int | float):
            raise CandidateError("invalid_recipe", f"{part.label}: a range is left in scale")
        product *= part.scale
        if not 1e-30 < product < 1e30:
            raise CandidateError("invalid_recipe", f"{part.label}: the scales multiply to {product:g}")
        by_part[part.path] = product
    if all(value == 1.0 for value in by_part.values()):
        return {}
    if message := scale_problem(layout.reference):
        raise CandidateError("invalid_recipe", message)
    output = OUTPUTS[layout.reference.config["model_type"]]
    found = {}
    for name, place in layout.places.items():
        scale = by_part[place.part.path]
        if scale != 1.0 and output.has(place):
            found[name] = Factor(1.0 / scale, output.shift)
    return found
