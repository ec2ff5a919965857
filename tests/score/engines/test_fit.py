from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from evolve.errors import CandidateError
from evolve.score.engines.fit import (
    Stream,
    as_candidate_error,
    parameter_names,
    rounded,
    side_files,
    side_key,
)
from evolve.weights.model import TensorSpec
from tests.score.engines.oracle import changed, failing, make, misshapen, without

if TYPE_CHECKING:
    from pathlib import Path

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    ("arch", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("mistral", False), ("gpt2", True)]
)
def test_a_saved_model_fits_its_config(root: Path, arch: str, tied: bool) -> None:
    model = make(root, arch, tied=tied, seed=0)
    assert parameter_names(model) == {name: name for name in model.specs}


def test_names_may_lack_the_prefix_and_known_buffers_are_left_out(root: Path) -> None:
    model = make(root, "gpt2", tied=True, seed=0)
    short = {name.removeprefix("transformer."): spec for name, spec in model.specs.items()}
    names = parameter_names(
        replace(model, specs={**short, "h.0.attn.bias": TensorSpec((1, 1, 256, 256), "bool")})
    )
    assert names == {name: f"transformer.{name}" for name in short}


def test_an_architecture_that_transformers_converts_is_left_to_it(root: Path) -> None:
    assert parameter_names(make(root, "gpt_neox", tied=False, seed=0)) is None


def test_missing_unknown_and_misshapen_tensors_are_named(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    with pytest.raises(CandidateError, match=f"missing: {NORM}"):
        parameter_names(without(model, NORM))
    with pytest.raises(CandidateError, match=r"wrong shape: .*input_layernorm.weight is \[65\], not \[64\]"):
        parameter_names(misshapen(model, NORM))
    extra = {**model.specs, "lm_head.weight": model.specs["model.embed_tokens.weight"]}
    with pytest.raises(CandidateError, match=r"unknown: lm_head.weight"):
        parameter_names(replace(model, specs=extra))
    with pytest.raises(CandidateError, match="model_type 'nosuch'"):
        parameter_names(replace(model, config={"model_type": "nosuch"}))


def test_a_tensor_is_rounded_to_what_is_exported(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    half = replace(model, specs={name: replace(spec, dtype="bfloat16") for name, spec in model.specs.items()})
    found = rounded(half, NORM, torch.float32)
    exact = model.tensor(NORM)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.to(torch.bfloat16).float())
    assert not torch.equal(found, exact)


def test_a_stream_goes_on_with_zeros_after_an_error(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    stream = Stream(failing(model, 3), model.specs, torch.float32)
    found = dict(stream)
    assert list(found) == list(model.specs)
    for i, (name, tensor) in enumerate(found.items()):
        assert tuple(tensor.shape) == model.specs[name].shape
        assert torch.equal(tensor, model.tensor(name) if i < 3 else torch.zeros_like(tensor))
    with pytest.raises(CandidateError, match="RuntimeError: no such luck") as caught:
        stream.check()
    assert caught.value.kind == "build"


def test_a_tensor_of_another_shape_than_its_spec_is_an_error(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    stream = Stream(changed(model, NORM, lambda tensor: tensor[:-1]), model.specs, torch.float32)
    assert dict(stream)[NORM].shape == (64,)
    with pytest.raises(CandidateError, match=r"came out as \[63\], not \[64\]"):
        stream.check()


def test_errors_keep_their_kind() -> None:
    assert as_candidate_error(MemoryError("x"), "build").kind == "oom"
    own = CandidateError("non_finite", "x")
    assert as_candidate_error(own, "build") is own
    assert str(as_candidate_error(ValueError("two\n lines"), "build")) == "ValueError: two lines"


def test_another_tokenizer_is_another_key(root: Path, tmp_path: Path) -> None:
    files = side_files(make(root, "llama", tied=True, seed=0))
    assert "tokenizer.json" in files
    assert not any(name.endswith((".safetensors",)) or name == "config.json" for name in files)
    assert side_key(files) == side_key(dict(reversed(files.items())))
    assert side_key(files) != side_key({**files, "tokenizer.json": files["tokenizer.json"] + b" "})
