"""A model in the place of another: one of the two is there, and nothing else is ever removed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evolve.errors import UserError
from evolve.weights import partial
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model

# Without torch: about forty of these processes are started. Each dies at one of the steps of a replacement.
REPLACES = """
import os, signal, sys
from pathlib import Path
from evolve.weights import partial
out, step, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
if not exchange:
    partial._exchange = lambda one, other: False
seen = []
def count(event, arguments):
    if event in {"os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open", "os.listdir", "os.scandir",
                 "fcntl.flock"}:
        seen.append(event)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
with partial.partial_folder(out) as folder:
    for name in ("model.safetensors", "config.json"):
        partial.write_text(folder / name, "new")
    sys.addaudithook(count)
    partial.move_in(folder, out, replace=True)
"""


def fill(folder, text, names=("model.safetensors", "config.json")):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(text)


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def whole(folder):
    return texts(folder) in [dict.fromkeys(("model.safetensors", "config.json"), t) for t in ("old", "new")]


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_every_step(exchange, tmp_path):
    """One of the two is under the name at any instant; without an exchange, after the next write."""
    absent = 0
    for step in range(1, 100):
        parent = tmp_path / str(step)
        parent.mkdir()
        out = parent / "out"
        fill(out, "old")
        command = [sys.executable, "-c", REPLACES, str(out), str(step), str(exchange)]
        code = subprocess.run(command, check=False).returncode
        assert code in {0, -signal.SIGKILL}
        absent += not out.exists()
        assert whole(out) if exchange else not out.exists() or whole(out)
        with partial.partial_folder(parent / "another"):
            pass
        assert whole(out)
        assert list(parent.iterdir()) == [out]
        if code == 0:
            break
    assert step > 5
    assert code == 0
    assert absent == 0 if exchange else absent > 0


def test_what_is_half_removed_gets_no_name_back(tmp_path):
    """The folder of an old model that a killed writer began to remove, and whose successor was moved away."""
    fill(tmp_path / ".out.a1b2c3d4.replaced", "old", ["model.safetensors"])
    fill(tmp_path / ".whole.a1b2c3d4.replaced", "old")
    with partial.partial_folder(tmp_path / "another"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert whole(tmp_path / "whole")


@pytest.mark.parametrize("suffix", ["partial", "replaced"])
def test_the_config_is_the_first_to_be_removed(suffix, tmp_path, monkeypatch):
    """So that what is left of a removal that is killed does not look complete."""
    fill(tmp_path / f".out.a1b2c3d4.{suffix}", "old")
    fill(tmp_path / "out", "new")

    def killed(folder, **options):
        assert [path.name for path in Path(folder).iterdir()] == ["model.safetensors"]
        raise KeyboardInterrupt

    monkeypatch.setattr(partial.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), partial.partial_folder(tmp_path / "out"):
        pass


def test_without_an_exchange_no_other_writer_comes_between(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    monkeypatch.setattr(partial, "_exchange", lambda one, other: False)
    original, calls = Path.rename, []

    def rename(self, target):
        calls.append(self)
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), partial.partial_folder(out) as folder:
        (folder / "config.json").write_text("new")
        partial.move_in(folder, out, replace=True)
    assert len(calls) == 3
    assert texts(out) == dict.fromkeys(("model.safetensors", "config.json"), "old")
    assert list(tmp_path.iterdir()) == [out]


def test_where_the_file_system_cannot_exchange(tmp_path, monkeypatch):
    """What Linux answers for a file system without RENAME_EXCHANGE, and what is an error."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    with pytest.raises(FileNotFoundError):
        partial._exchange(one, other)
    other.mkdir()
    monkeypatch.setattr(partial, "_RENAME_EXCHANGE", 1 << 20)
    assert not partial._exchange(one, other)
    monkeypatch.setattr(partial.ctypes, "CDLL", lambda *a, **k: object())
    assert not partial._exchange(one, other)


@pytest.mark.parametrize("replace", [True, False])
def test_a_model_that_is_put_back_at_the_start_is_seen(replace, llama, tmp_path):
    """The target was absent when the command started: the killed one had put it away."""
    model, out = open_model(llama), tmp_path / "out"
    write_model(model, out)
    out.rename(tmp_path / ".out.a1b2c3d4.replaced")
    computed = []
    if replace:
        write_model(model, out, replace=True)
    else:
        with pytest.raises(UserError, match="is not empty"):
            write_model(counting(model, computed), out)
        assert computed == []
    assert list(tmp_path.iterdir()) == [out]
    assert json.loads((out / "config.json").read_text())


def counting(model, computed, more=lambda: None):
    from dataclasses import replace

    def tensor(name):
        computed.append(name)
        more()
        return model.tensor(name)

    return replace(model, tensor=tensor)


def test_what_came_into_the_folder_meanwhile_stays(llama, tmp_path):
    model, out = open_model(llama), tmp_path / "out"
    write_model(model, out)
    with pytest.raises(UserError, match=r"more than a model \(notes.txt\)"):
        write_model(counting(model, [], lambda: (out / "notes.txt").write_text("x")), out, replace=True)
    assert (out / "notes.txt").exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "consolidated.safetensors",
        "optimizer.pt",
        "checkpoint-500/model.safetensors",
        "additional_chat_templates/notes.txt",
        ".git/HEAD",
    ],
)
def test_what_a_writer_would_not_have_written_is_named(name, llama, tmp_path):
    out = tmp_path / "out"
    write_model(open_model(llama), out, extra={"README.md": "card", "evolve_recipe.yaml": "recipe"})
    (out / "additional_chat_templates").mkdir()
    (out / "additional_chat_templates" / "tool.jinja").write_text("x")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("x")
    shown = name if "templates" in name else name.partition("/")[0]
    with pytest.raises(UserError, match=rf"more than a model \({shown}\).* move these away first"):
        write_model(open_model(llama), out, replace=True)
    (out / name).unlink()
    if not any((out / name).parent.iterdir()):
        (out / name).parent.rmdir()
    write_model(open_model(llama), out, replace=True)
    assert list(tmp_path.iterdir()) == [out]


def test_shards_are_replaced(llama, tmp_path):
    out = tmp_path / "out"
    write_model(open_model(llama), out, shard_bytes=60_000)
    write_model(open_model(llama), out, replace=True)
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def test_everything_is_on_the_disk_before_the_name(llama, tmp_path, monkeypatch):
    source = tmp_path / "source"
    write_model(open_model(llama), source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("x")
    synced, renamed = set(), []
    fsync, rename = os.fsync, Path.rename

    def noted(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(self, target):
        renamed.append(target)
        missing = [path.name for path in (self, *self.rglob("*")) if path.stat().st_ino not in synced]
        assert missing == []
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    write_model(open_model(source), tmp_path / "out", extra={"README.md": "card"})
    assert renamed == [tmp_path / "out"]
    assert (tmp_path / "out/additional_chat_templates/tool.jinja").exists()
    assert tmp_path.stat().st_ino in synced
