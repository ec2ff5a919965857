"""The oracle of the hash is the same arithmetic by hand; of the cache, which files are read again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.errors import ModelError
from evolve.weights import content
from evolve.weights.content import content_of
from tests.tiny import make_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"), layers=1)


@pytest.fixture
def folder(llama, tmp_path):
    copied = Path(shutil.copytree(llama, tmp_path / "model ü"))
    age(copied)
    return copied


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evolve"


@pytest.fixture
def reads(monkeypatch):
    """Names of files whose bytes are hashed."""
    seen = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, a: seen.append(Path(f.name).name) or original(f, a))
    return seen


def age(folder):
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


def by_hand(folder):
    total = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def test_hash_is_over_names_and_bytes_and_no_path(folder, tmp_path):
    assert content_of(folder) == by_hand(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert content_of(moved) == by_hand(moved)
    relative = os.path.relpath(moved)
    assert content_of(relative) == by_hand(moved)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_every_byte_counts(name, folder):
    before = content_of(folder)
    raw = bytearray((folder / name).read_bytes())
    if name.endswith(".json"):
        raw += b"\n"
    else:
        raw[-1] ^= 1
    (folder / name).write_bytes(raw)
    assert content_of(folder) != before


def test_what_is_no_part_of_the_model_does_not_count(folder):
    before = content_of(folder)
    for name in ("README.md", "optimizer.pt", "trainer_state.json", "other.safetensors"):
        (folder / name).write_text("x")
    assert content_of(folder) == before
    (folder / "chat_template.jinja").write_text("x")
    assert content_of(folder) != before


def test_a_second_look_reads_nothing(folder, reads):
    first = content_of(folder)
    assert "model.safetensors" in reads
    reads.clear()
    assert content_of(folder) == first
    assert reads == []
    other = shutil.copytree(folder, folder.parent / "copy")
    age(other)
    assert content_of(other) == first
    assert "model.safetensors" in reads


@pytest.mark.parametrize("change", ["mtime", "size", "inode"])
def test_size_time_and_inode_each_invalidate(change, folder, reads):
    content_of(folder)
    reads.clear()
    path = folder / "tokenizer_config.json"
    stat = path.stat()
    if change == "mtime":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "size":
        path.write_bytes(path.read_bytes() + b" ")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes().swapcase())
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(path)
    assert content_of(folder) == by_hand(folder)
    assert reads == ["tokenizer_config.json"]


def test_a_file_of_this_moment_is_not_cached(folder, reads):
    path = folder / "tokenizer_config.json"
    for text in ("[1]", "[2]", "[3]"):
        path.write_text(text)
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, time.time_ns()))
        assert content_of(folder) == by_hand(folder)
    assert reads.count("tokenizer_config.json") == 3


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"size": 1}', b"\xff"])
def test_a_damaged_cache_is_ignored(junk, folder, cache):
    first = content_of(folder)
    entries = [path for path in cache.rglob("*") if path.is_file()]
    assert len(entries) == len(list(folder.iterdir()))
    for entry in entries:
        entry.write_bytes(junk)
    assert content_of(folder) == first
    for entry in entries:
        assert json.loads(entry.read_text())["sha256"]


def test_no_cache_folder_is_no_error(folder, monkeypatch, tmp_path):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert content_of(folder) == by_hand(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "blocked"))
    assert content_of(folder) == by_hand(folder)


def test_nothing_half_written_stays_in_the_cache(folder, cache, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert content_of(folder) == by_hand(folder)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_processes_at_once_agree(folder):
    code = "import sys; from evolve.weights.content import content_of; print(content_of(sys.argv[1]))"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert {process.communicate()[0].strip() for process in running} == {by_hand(folder)}


def test_a_file_that_changes_meanwhile(folder, monkeypatch):
    original = hashlib.file_digest

    def slow(file, name):
        digest = original(file, name)
        with Path(file.name).open("ab") as other:
            other.write(b" ")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slow)
    with pytest.raises(ModelError, match="changed while it was read"):
        content_of(folder)


def test_a_tied_head_is_compared_before_the_hash_is_trusted(folder):
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    assert content_of(folder).startswith("sha256:")
    head[0, 0] = torch.tensor(9.0)
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    age(folder)
    for _ in range(2):
        with pytest.raises(ModelError, match="differs from"):
            content_of(folder)


def test_no_model(tmp_path):
    with pytest.raises(ModelError):
        content_of(tmp_path / "nowhere")
    with pytest.raises(ModelError):
        content_of(tmp_path)


def test_cached_entries_hold_no_content(folder, cache):
    content_of(folder)
    keys = {tuple(json.loads(path.read_text())) for path in cache.rglob("*") if path.is_file()}
    assert keys == {("size", "mtime_ns", "inode", "sha256")}
    assert (
        content._cached(folder / "config.json")
        == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    )
