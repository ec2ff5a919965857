"""Folders are real; the hub is huggingface_hub itself, offline, on a cache that the test lays out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from evolve.errors import ModelError
from evolve.types import Parent
from evolve.weights.hub import resolve
from evolve.weights.location import join_revisions, parts, revisions
from evolve.weights.reader import open_model
from tests.tiny import make_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"

IN_CACHE = """
import json, sys
from evolve.errors import ModelError
from evolve.weights.hub import resolve
from evolve.weights.reader import open_model
try:
    parent = resolve("math", sys.argv[1])
    # Opening one with an adapter imports torch.
    tensors = 0 if "+" in sys.argv[1] else len(open_model(parent.path).specs)
    print(json.dumps([parent.path, parent.revision, parent.source, tensors]))
except ModelError as error:
    print("ModelError", error)
"""


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """Return the environment of a process whose hub cache holds ``org/tiny``."""
    home = tmp_path_factory.mktemp("hub")
    repo = home / "hub" / "models--org--tiny"
    make_model(repo / "snapshots" / COMMIT, layers=1)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def in_cache(source, env, cwd):
    done = subprocess.run(
        [sys.executable, "-c", IN_CACHE, source], env=env, cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_hub_id_is_pinned_to_its_commit(hub, tmp_path):
    for source in ("org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"):
        path, revision, kept, tensors = json.loads(in_cache(source, hub, tmp_path))
        assert (revision, kept, tensors) == (COMMIT, source, 11)
        assert Path(path).is_absolute()


def test_not_in_the_hub(hub, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    message = in_cache("org/absent", hub, tmp_path)
    assert message.startswith("ModelError models.math: org/absent: no such folder (")
    assert "not in the hub" in message
    assert "did you mean 'base'" in in_cache("bsae", hub, tmp_path)
    assert "not in the hub" in in_cache("org/tiny@v9", hub, tmp_path)


def test_a_folder_becomes_absolute(tmp_path, monkeypatch):
    folder = tmp_path / "modèles mit Raum" / "a b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    source = "modèles mit Raum/a b"
    assert resolve("x", source) == Parent("x", source, str(folder))
    assert resolve("x", str(folder)).path == str(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("x", f"~/{source}").path == str(folder)


def test_a_typo_beside_models_is_a_path_and_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = tmp_path / "models" / "base"
    make.mkdir(parents=True)
    shutil.copy(Path(__file__), make / "config.json")
    (tmp_path / "models" / "notes").mkdir()
    with pytest.raises(ModelError, match=r"no such folder: .*/models/bsae \(did you mean 'base'\?\)"):
        resolve("base", "models/bsae")
    with pytest.raises(ModelError, match=r"no such folder: .*/no/such/deep"):
        resolve("base", "./no/such/deep")
    with pytest.raises(ModelError, match="is a file"):
        resolve("base", "models/base/config.json")
    with pytest.raises(ModelError, match=r"adapter: no such folder .* not in the hub"):
        resolve("base", "models/base+adapter")
    with pytest.raises(ModelError, match=r"no such folder: .*/models/adapter"):
        resolve("base", "models/base+models/adapter")
    for half in ("models/base+", "+models/base"):
        with pytest.raises(ModelError, match=r"missing beside a \+"):
            resolve("base", half)
    for empty in ("", " "):
        with pytest.raises(ModelError):
            resolve("base", empty)


def make_adapter(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"model.norm.weight": torch.full((64,), 7.0)}, folder / "adapter_model.safetensors")
    return folder


def test_a_base_and_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = make_model(tmp_path / "models" / "base+v2", layers=1)
    adapters = [make_adapter(tmp_path / "adapters" / name) for name in ("c++", "math")]
    source = "models/base+v2+adapters/c++" + "+adapters/math"
    parent = resolve("x", source)
    assert parent == Parent("x", source, f"{base}+{adapters[0]}+{adapters[1]}")
    assert parts(parent.path) == (str(base), str(adapters[0]), str(adapters[1]))
    assert float(open_model(parent.path).tensor("model.norm.weight")[0]) == 7.0
    # A folder of the whole name is that folder.
    make_model(tmp_path / "models" / "base+v2+adapters", layers=1)
    assert parts("models/base+v2+adapters") == ("models/base+v2+adapters",)


def test_a_base_in_the_hub_with_an_adapter_in_the_hub(hub, tmp_path):
    other = "f" * 40
    repo = Path(hub["HF_HOME"]) / "hub" / "models--org--lora"
    if not repo.exists():
        make_adapter(repo / "snapshots" / other)
        (repo / "refs").mkdir()
        (repo / "refs" / "v1").write_text(other)
    make_adapter(tmp_path / "mine")
    cases = {
        "org/tiny+org/lora@v1": f"{COMMIT}+{other}",
        "org/tiny@main+mine": f"{COMMIT}+",
        "org/tiny+mine+org/lora@v1": f"{COMMIT}++{other}",
    }
    for source, revision in cases.items():
        path, found, kept, _ = json.loads(in_cache(source, hub, tmp_path))
        assert (found, kept) == (revision, source)
        assert len(parts(path)) == source.count("+") + 1
    assert "not in the hub" in in_cache("org/tiny+org/lora@v2", hub, tmp_path)


@given(st.lists(st.sampled_from(["a" * 40, "b" * 40, None]), min_size=1, max_size=4))
def test_revisions_round_trip(found):
    joined = join_revisions(tuple(found))
    assert (joined is None) == (not any(found))
    if joined is not None:
        assert revisions(joined) == tuple(found)
