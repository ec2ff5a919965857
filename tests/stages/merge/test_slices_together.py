"""Slices with what else a merge may have: memory between candidates, vocabularies, statistics, types."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.stages.memo import Memo
from evolve.stages.merge import MergeStage
from evolve.stages.merge import stage as merge_stage
from evolve.stages.merge.block import MergeBlock
from tests.stages.merge.memory import memory_model
from tests.stages.merge.vocabularies import (
    EMBEDDING,
    HEAD,
    aligned_rows,
    table_models,
    three_tokenizers,
    transformers_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

INNER = "self_attn.q_proj.weight"


def make(seed: int, layers: int, dtype: torch.dtype = torch.float32) -> Model:
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.{INNER}" for i in range(layers))]
    tensors = {
        name: torch.randn(300, generator=generator).to(dtype) for name in [*names, "model.norm.weight"]
    }
    return memory_model(tensors, files=f"files{seed}", num_hidden_layers=layers, tie_word_embeddings=True)


def sliced(method: str, *pieces: dict[str, tuple[int, int]], **keys: Any) -> MergeBlock:
    slices = [
        {"sources": [{"model": model, "layer_range": list(layers)} for model, layers in piece.items()]}
        for piece in pieces
    ]
    block = MergeBlock.model_validate({"merge_method": method, "slices": slices, **keys})
    assert block.problems() == []
    return block


TWICE = ({"b": (0, 2), "a": (0, 2), "c": (2, 4)}, {"b": (0, 2), "a": (0, 2), "c": (2, 4)})


@pytest.mark.parametrize("method", ["ties", "della", "breadcrumbs", "sce", "dare_ties", "karcher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_between_candidates_changes_nothing(method: str, dtype: torch.dtype) -> None:
    """Tables are kept by the names in the parents: one layer in two places, and two layers in one place."""
    models = {name: make(seed, 4, dtype) for seed, name in enumerate("abc")}
    extra: dict[str, Any] = {} if method == "karcher" else {"base_model": "b"}
    shifted = ({"b": (1, 3), "a": (1, 3), "c": (0, 2)},)
    density = {"density": 0.3} if method in {"ties", "della", "breadcrumbs", "dare_ties"} else {}
    weight = {"weight": 0.7} if method != "karcher" and method != "sce" else {}
    memo = Memo()
    for pieces in (TWICE, shifted, TWICE, (*shifted, *TWICE)):
        block = sliced(method, *pieces, parameters={**density, **weight}, **extra)
        kept = dict(MergeStage.run(block, models, seed=0, memo=memo).tensors())
        plain = dict(MergeStage.run(block, models, seed=0).tensors())
        assert kept.keys() == plain.keys()
        assert all(torch.equal(kept[name], plain[name]) for name in plain)


def test_random_layers_are_drawn_once_more_and_others_are_shared() -> None:
    models = {name: make(seed, 4) for seed, name in enumerate("abc")}
    shared = {f"model.layers.{i + 2}.{INNER}": f"model.layers.{i}.{INNER}" for i in range(2)}
    for method, expected in (("ties", shared), ("dare_ties", {}), ("della", {})):
        parameters = {"density": 0.3, "weight": 0.7}
        result = MergeStage.run(sliced(method, *TWICE, base_model="b", parameters=parameters), models, seed=0)
        assert result.same == expected
        for i in range(2):
            pair = [result.tensor(f"model.layers.{n}.{INNER}") for n in (i, i + 2)]
            assert torch.equal(*pair) == bool(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_is_applied_before_the_one_rounding(dtype: torch.dtype) -> None:
    name = "self_attn.o_proj.weight"
    models = {}
    for seed, model in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: torch.randn(500, generator=generator).to(dtype)
            for key in ("model.embed_tokens.weight", f"model.layers.0.{name}", "model.norm.weight")
        }
        models[model] = memory_model(
            tensors, files="files", num_hidden_layers=1, model_type="llama", tie_word_embeddings=True
        )
    block = MergeBlock.model_validate(
        {
            "merge_method": "task_arithmetic",
            "base_model": "b",
            "slices": [
                {"scale": 3.0, "sources": [{"model": model, "layer_range": [0, 1]} for model in "ab"]}
            ],
            "parameters": {"weight": 0.37},
        }
    )
    result = MergeStage.run(block, models, seed=0).tensor(f"model.layers.0.{name}")
    a, b = (models[model].tensor(f"model.layers.0.{name}").double() for model in "ab")
    exact = (b + 0.37 * (a - b)) / 3.0
    spacing = exact.to(dtype).double().abs() * torch.finfo(dtype).eps
    assert result.dtype == dtype
    assert ((result.double() - exact).abs() <= spacing * 0.5001 + 1e-7).all()


def with_layers(model: Model, layers: int, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    more = memory_model(
        {f"model.layers.{i}.{INNER}": torch.randn(5, generator=generator) for i in range(layers)}
    )
    config = {**model.config, "num_hidden_layers": layers}
    specs = {**model.specs, **more.specs}

    def tensor(name: str) -> torch.Tensor:
        return more.tensor(name) if name in more.specs else model.tensor(name)

    return replace(model, config=config, specs=specs, tensor=tensor)


def test_slices_of_models_with_different_vocabularies(tmp_path: Path) -> None:
    """Embeddings are those of the first slice's models, heads those of the last's, in the common rows."""
    plain = table_models(three_tokenizers(tmp_path), tied=False)
    models = {name: with_layers(model, 3, seed) for seed, (name, model) in enumerate(plain.items())}
    config = sliced(
        "linear",
        {"base": (0, 1), "one": (2, 3)},
        {"two": (0, 2)},
        parameters={"weight": 0.5},
        tokenizer={"source": "union"},
    )
    assert MergeStage.check(config, models) == []
    result = MergeStage.run(config, models, seed=0)
    outline = MergeStage.outline(config, models)
    assert (result.config, result.specs, result.files) == (outline.config, outline.specs, outline.files)
    ids = transformers_tokenizer(result.files, tmp_path / "tokenizer").get_vocab()
    size = result.config["vocab_size"]
    for table, names in ((EMBEDDING, ("base", "one")), (HEAD, ("two",))):
        rows = aligned_rows(models, table, ids, size, base=None)
        wanted = sum(np.asarray(rows[name]) for name in names) / len(names)
        assert np.allclose(result.tensor(table).double().numpy(), wanted, rtol=0, atol=5e-7), table
    assert torch.equal(
        result.tensor(f"model.layers.2.{INNER}"), models["two"].tensor(f"model.layers.1.{INNER}")
    )


class Gathered:
    """Fisher information that says which tensor it was asked for."""

    mean = 1.0

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        self.values = values

    def get(self, name: str) -> tuple[torch.Tensor, int] | None:
        found = self.values.get(name)
        return None if found is None else (found, 1)


def test_statistics_belong_to_the_layer_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: make(seed, 4) for seed, name in enumerate("ab")}
    generator = torch.Generator().manual_seed(7)
    known = {
        name: Gathered({key: torch.rand(300, generator=generator) + 0.1 for key in model.specs})
        for name, model in models.items()
    }
    monkeypatch.setattr(merge_stage, "gathered", lambda block, given: known)
    slices = [{"sources": [{"model": "a", "layer_range": [2, 3]}, {"model": "b", "layer_range": [0, 1]}]}]
    block = MergeBlock.model_validate(
        {"merge_method": "fisher", "slices": slices, "parameters": {"floor": 0.0, "normalize": False}}
    )
    result = MergeStage.run(block, models, seed=0).tensor(f"model.layers.0.{INNER}").double()
    pairs = [("a", f"model.layers.2.{INNER}"), ("b", f"model.layers.0.{INNER}")]
    weights = [known[model].values[name].double() for model, name in pairs]
    tensors = [models[model].tensor(name).double() for model, name in pairs]
    exact = sum(w * t for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    assert torch.allclose(result, exact, atol=1e-6)
