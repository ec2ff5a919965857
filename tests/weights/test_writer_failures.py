"""Writes that fail, are killed, or find their target taken: nothing that looks finished is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evolve.errors import CandidateError, ModelError, UserError
from evolve.weights import partial
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.tiny import make_model


def logits(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        return model(torch.arange(3, 60).reshape(1, -1)).logits


def leftovers(parent):
    return sorted(path.name for path in parent.iterdir() if path.suffix in {".partial", ".replaced"})


def failing(model, after, error):
    seen = []

    def tensor(name):
        seen.append(name)
        if len(seen) > after:
            raise error
        return model.tensor(name)

    return replace(model, tensor=tensor)


@pytest.mark.parametrize(
    "error", [CandidateError("non_finite", "x"), KeyboardInterrupt(), ModelError("gone")]
)
@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_failure_leaves_nothing(error, after, llama, tmp_path):
    with pytest.raises(type(error)):
        write_model(failing(open_model(llama), after, error), tmp_path / "out", shard_bytes=50_000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_user_error_and_leaves_nothing(llama, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"No space left on device\. Delete something"):
        write_model(failing(open_model(llama), 3, full), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match="not enough space"):
        write_model(open_model(llama), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses(llama, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_model(open_model(llama), tmp_path / "file" / "out")
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    with pytest.raises(UserError, match=r"Read-only file system\. Choose a folder that you may write to"):
        write_model(failing(open_model(llama), 2, refusal), tmp_path / "out")


def test_a_tensor_that_is_not_what_the_specs_say(llama, tmp_path):
    model = open_model(llama)
    for wrong in (lambda t: t.double(), lambda t: t[:1]):
        broken = replace(model, tensor=lambda name, wrong=wrong: wrong(model.tensor(name)))
        with pytest.raises(CandidateError, match="expected"):
            write_model(broken, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys, time
from dataclasses import replace
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
model = open_model(sys.argv[1])
seen = []
def tensor(name):
    seen.append(name)
    if len(seen) == int(sys.argv[3]):
        print("here", flush=True)
        time.sleep(60)
    return model.tensor(name)
write_model(replace(model, tensor=tensor), sys.argv[2], shard_bytes=60_000)
"""


def test_a_killed_write_looks_unfinished_and_is_cleared_by_the_next(llama, tmp_path):
    out = tmp_path / "out"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(llama), str(out), str(at)], stdout=subprocess.PIPE, text=True
        )
        for at in (1, 1, 8, 18)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "here\n"
    # Busy writers that started at once: none takes the other's folder for a stale one.
    assert len(leftovers(tmp_path)) == 4
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert not out.exists()
    assert len(leftovers(tmp_path)) == 4
    for name in leftovers(tmp_path):
        with pytest.raises(ModelError):
            open_model(tmp_path / name)
    write_model(open_model(llama), out)
    assert leftovers(tmp_path) == []
    assert torch.equal(logits(out), logits(llama))


def test_a_folder_is_not_stale_before_it_is_locked(llama, tmp_path, monkeypatch):
    """Another writer starts between the making of a folder and its lock."""
    from evolve.weights import partial

    made = []
    original = partial.tempfile.mkdtemp

    def mkdtemp(**options):
        made.append(original(**options))
        other = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        return made[-1]

    monkeypatch.setattr(partial.tempfile, "mkdtemp", mkdtemp)
    write_model(open_model(llama), tmp_path / "out")
    assert len(made) == 1


def test_leftovers_of_other_targets_are_removed_too(llama, tmp_path):
    stale = tmp_path / ".another model.a1b2c3d4.partial"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    busy = tmp_path / ".third.z9y8x7w6.partial"
    busy.mkdir()
    kept = [tmp_path / name for name in (".hidden.partial", ".a.b.partial", "x.a1b2c3d4.partial", ".git")]
    for folder in kept:
        folder.mkdir()
    (tmp_path / ".file.a1b2c3d4.partial").write_text("not a folder")
    (tmp_path / ".link.a1b2c3d4.partial").symlink_to(kept[0], target_is_directory=True)
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_model(open_model(llama), tmp_path / "out")
    os.close(lock)
    assert not stale.exists()
    assert all(folder.is_dir() for folder in (busy, *kept))
    assert (tmp_path / ".file.a1b2c3d4.partial").exists()
    assert (tmp_path / ".link.a1b2c3d4.partial").exists()


def test_a_model_is_replaced_when_the_new_one_is_finished(llama, tmp_path):
    out = tmp_path / "out"
    write_model(open_model(llama), out)
    (out / "vocab.txt").write_text("of the old model")
    other = open_model(make_model(tmp_path / "other", seed=5))
    with pytest.raises(CandidateError):
        write_model(failing(other, 5, CandidateError("build", "x")), out, replace=True)
    assert (out / "vocab.txt").exists()
    assert torch.equal(logits(out), logits(llama))
    write_model(other, out, replace=True)
    assert not (out / "vocab.txt").exists()
    assert torch.equal(logits(out), logits(tmp_path / "other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_only_a_model_is_replaced(llama, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no model's folder, so it is not replaced"):
        write_model(open_model(llama), out, replace=True)
    (tmp_path / "link").symlink_to(llama, target_is_directory=True)
    with pytest.raises(UserError, match="is no model's folder"):
        write_model(open_model(llama), tmp_path / "link", replace=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_model(open_model(llama), tmp_path / "file", replace=True)
    assert (out / "thesis.tex").exists()


def test_a_folder_with_more_than_a_model_is_not_replaced(llama, tmp_path):
    out = tmp_path / "out"
    write_model(open_model(llama), out, extra={"README.md": "card", "evolve_recipe.yaml": "recipe"})
    for name in ("checkpoint-500", "notes.org"):
        (out / name).mkdir()
    with pytest.raises(UserError, match=r"more than a model \(checkpoint-500, notes.org\)"):
        write_model(open_model(llama), out, replace=True)
    assert (out / "notes.org").exists()


@pytest.fixture
def without_exchange(monkeypatch):
    monkeypatch.setattr(partial, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("without_exchange")
def test_without_an_exchange_the_next_write_gives_the_old_one_its_name_back(llama, tmp_path):
    """A kill between the two renames, where the system cannot exchange names."""
    out = tmp_path / "out"
    write_model(open_model(llama), out)
    out.rename(tmp_path / ".out.a1b2c3d4.replaced")
    write_model(open_model(llama), tmp_path / "elsewhere")
    assert torch.equal(logits(out), logits(llama))
    other = open_model(make_model(tmp_path / "other", seed=5))
    write_model(other, out, replace=True)
    assert torch.equal(logits(out), logits(tmp_path / "other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "other", "out"]
    shutil.copytree(llama, tmp_path / ".out.a1b2c3d4.replaced")
    write_model(other, tmp_path / "third")
    assert not (tmp_path / ".out.a1b2c3d4.replaced").exists(), "its place is taken"


@pytest.mark.usefixtures("without_exchange")
def test_a_replacement_that_fails_at_the_last_step_puts_the_old_one_back(llama, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_model(open_model(llama), out)
    original, calls = Path.rename, []

    def rename(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UserError, match="cannot write"):
        write_model(open_model(make_model(tmp_path / "other", seed=5)), out, replace=True)
    assert torch.equal(logits(out), logits(llama))
    assert leftovers(tmp_path) == []


LIMITED = """
import resource, signal, sys
from evolve.errors import UserError
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_model(open_model(sys.argv[1]), sys.argv[2])
except UserError as error:
    print(error)
"""


def test_a_system_that_takes_no_more_bytes(llama, tmp_path):
    """The write itself fails, in the middle of a file."""
    command = [sys.executable, "-c", LIMITED, str(llama), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full(llama, tmp_path):
    """A file system of its own, with room for a part of the model."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match="not enough space"):
            write_model(open_model(llama), disk / "out")
        code = LIMITED.replace("(100_000, 100_000)", "(-1, -1)").replace(
            "try:", "import evolve.weights.writer as w; w._require_space = lambda *a: None\ntry:"
        )
        command = [sys.executable, "-c", code, str(llama), str(disk / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "No space left on device. Delete something" in done.stdout
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


SLOWLY = """
import sys, time
from dataclasses import replace
from pathlib import Path
from evolve.weights import partial
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
model = open_model(sys.argv[1])
import torch
rename = Path.rename
def slow_rename(self, target):
    rename(self, target)
    time.sleep(0.1)
Path.rename = slow_rename
if sys.argv[3] == "renames":
    partial._exchange = lambda one, other: False
def tensor(name):
    time.sleep(0.02)
    return model.tensor(name)
print("here", flush=True)
write_model(replace(model, tensor=tensor), sys.argv[2], shard_bytes=60_000, replace=sys.argv[3] != "new")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["new", "exchange", "renames"])
def test_killed_at_random_instants(way, llama, tmp_path):
    """Whatever has the target's name is complete, and the next write clears what all the killed ones left."""
    old = make_model(tmp_path / "old", seed=5)
    whole = {"new": logits(llama), "old": logits(old)}
    out = tmp_path / "out"
    finished, left = 0, 0
    draw = random.Random(1)
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        if way != "new":
            shutil.copytree(old, out)
        command = [sys.executable, "-c", SLOWLY, str(llama), str(out), way]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(draw.uniform(0, 0.6))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        left += len(leftovers(tmp_path))
        if way == "renames":
            with partial.partial_folder(tmp_path / "another"):
                pass  # what the next write begins with
        assert out.exists() or way == "new", "a replacement leaves one of the two"
        if out.exists():
            found = logits(out)
            new = torch.equal(found, whole["new"])
            finished += new
            assert new or (way != "new" and torch.equal(found, whole["old"]))
    assert left > 0
    assert finished < 20
    write_model(open_model(llama), out, replace=True)
    assert leftovers(tmp_path) == []
    assert torch.equal(logits(out), whole["new"])


@pytest.mark.slow
def test_a_build_that_is_killed_and_built_again(llama, tmp_path):
    """The whole command: no folder of the target's name until it is complete."""
    config = tmp_path / "merge.yml"
    models = [llama, make_model(tmp_path / "other", seed=5)]
    entries = [{"model": str(model), "parameters": {"weight": 1 - at}} for at, model in enumerate(models)]
    config.write_text(json.dumps({"merge_method": "linear", "models": entries}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "evolve.cli", "build", str(config), str(out), "--max-shard-size", "50KB"]
    killed = 0
    for delay in (3.0, 5.0, 0.0):
        builder = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        while builder.poll() is None and not leftovers(tmp_path) and time.monotonic() - began < 60:
            time.sleep(0.001)
        time.sleep(delay / 1000)
        builder.send_signal(signal.SIGKILL)
        killed += builder.wait() == -signal.SIGKILL
        assert not out.exists() or torch.equal(logits(out), logits(llama))
        shutil.rmtree(out, ignore_errors=True)
    assert killed
    subprocess.run(command, check=True, capture_output=True)
    assert leftovers(tmp_path) == []
    assert torch.equal(logits(out), logits(llama))
    assert len(list(out.glob("*.safetensors"))) > 3
