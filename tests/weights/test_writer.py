"""Oracles: transformers loads it and computes the same logits; the bytes equal those that were read."""

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
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evolve.errors import CandidateError, ModelError, UserError
from evolve.weights.model import Model, TensorSpec
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.tiny import make_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


def logits(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        return model(torch.arange(3, 60).reshape(1, -1)).logits


def leftovers(parent):
    return sorted(path.name for path in parent.iterdir() if path.name.endswith(".partial"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "mistral", "gpt2", "gpt_neox"])
def test_transformers_loads_what_we_write(arch, tied, dtype, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = make_model(tmp_path / "source", arch, tied=tied, dtype=dtype)
    out = tmp_path / "neu ünd" / "out"
    write_model(open_model(source), out)
    written, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert written.dtype == getattr(torch, dtype)
    assert torch.equal(logits(out), logits(source))
    text = "The end, of 12 + 3"
    assert (
        AutoTokenizer.from_pretrained(out)(text).input_ids
        == AutoTokenizer.from_pretrained(source)(text).input_ids
    )


def test_bytes_are_those_that_were_read(llama, tmp_path):
    write_model(open_model(llama), tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out/model.safetensors"), load_file(llama / "model.safetensors")
    assert {name: t.numpy().tobytes() for name, t in ours.items()} == {
        name: t.numpy().tobytes() for name, t in theirs.items()
    }
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards(llama, tmp_path):
    model = open_model(llama)
    limit = 60_000
    write_model(model, tmp_path / "out", shard_bytes=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(
        file.name == f"model-{i:05d}-of-{len(files):05d}.safetensors" for i, file in enumerate(files, 1)
    )
    data = [sum(t.nbytes for t in load_file(file).values()) for file in files]
    assert all(size <= limit for size in data)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(data)
    assert torch.equal(logits(tmp_path / "out"), logits(llama))
    assert dict(open_model(tmp_path / "out").specs).keys() == dict(model.specs).keys()
    write_model(model, tmp_path / "tiny", shard_bytes=1)
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) == len(model.specs)


def synthetic(specs, tensor, files):
    return Model({"model_type": "llama", "tie_word_embeddings": True}, specs, tensor, files)


def test_odd_shapes_and_mixed_types_survive(tmp_path):
    tensors = {
        "a": torch.tensor(2.5, dtype=torch.bfloat16),
        "b": torch.arange(3, dtype=torch.int8),
        "c": torch.randn(3, 5, dtype=torch.float64),
        "d": torch.empty(0, 4),
        "e": torch.randn(4, 6).t(),  # not contiguous
        "ü": torch.tensor([True, False, True]),
        "g": torch.randn(3).to(torch.float8_e4m3fn),
    }
    specs = {name: TensorSpec(tuple(t.shape), str(t.dtype)[6:]) for name, t in tensors.items()}
    write_model(synthetic(specs, tensors.__getitem__, tmp_path), tmp_path / "out")
    read = load_file(tmp_path / "out/model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(
            read[name].contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
        )
    again = open_model(tmp_path / "out")
    assert all(again.tensor(name).data_ptr() % t.element_size() == 0 for name, t in tensors.items())


@pytest.mark.parametrize("keys", [{"dtype": "float32"}, {"torch_dtype": "float32"}, {}])
def test_config_states_the_dtype_of_the_weights_and_no_path(keys, llama, tmp_path):
    from transformers import AutoConfig

    model = open_model(llama)
    config = {key: value for key, value in model.config.items() if key not in {"dtype", "torch_dtype"}}
    specs = {name: replace(spec, dtype="bfloat16") for name, spec in model.specs.items()}
    half = Model(
        {**config, **keys, "_name_or_path": "/secret/path"},
        specs,
        lambda name: model.tensor(name).bfloat16(),
        llama,
    )
    write_model(half, tmp_path / "out")
    text = (tmp_path / "out/config.json").read_text()
    assert "secret" not in text
    assert set(json.loads(text)) >= {"dtype", *keys}
    assert AutoConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert {key: v for key, v in json.loads(text).items() if "dtype" not in key} == config


def test_side_files_and_extras(llama, tmp_path):
    source = Path(shutil.copytree(llama, tmp_path / "source"))
    wanted = ["chat_template.jinja", "merges.txt", "spiece.model", "additional_chat_templates/tool.jinja"]
    (source / "additional_chat_templates").mkdir()
    for name in wanted:
        (source / name).write_text(name)
    for name in ("README.md", "modeling_x.py", "pytorch_model.bin", "old.safetensors", "trainer_state.json"):
        (source / name).write_text("no")
    write_model(open_model(source), tmp_path / "out", extra={"README.md": "# Ünser"})
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    always = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert found == {*always, "generation_config.json", "README.md", *wanted}
    assert (tmp_path / "out/README.md").read_text("utf-8") == "# Ünser"
    for name in ("config.json", "../x", "model.safetensors", "a/b"):
        with pytest.raises(ValueError, match="extra file"):
            write_model(open_model(source), tmp_path / "other", extra={name: ""})
    assert not (tmp_path / "other").exists()


def test_a_taken_target_is_left_alone(llama, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_model(open_model(llama), out)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(UserError, match="is not empty"):
        write_model(open_model(llama), out)
    assert sorted(path.name for path in out.iterdir()) == before
    with pytest.raises(UserError, match="is a file"):
        write_model(open_model(llama), out / "config.json")


def test_permissions_are_those_of_a_plain_folder(llama, tmp_path):
    write_model(open_model(llama), tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


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


def test_a_few_tensors_in_memory_at_a_time(tmp_path):
    count, shape = 40, (512, 512)
    specs = {f"w{number}": TensorSpec(shape, "float32") for number in range(count)}
    alive = []

    def tensor(name):
        import numpy as np

        # numpy's memory is what tracemalloc sees.
        alive.append(name)
        return torch.from_numpy(np.full(shape, float(name[1:]), dtype=np.float32))

    tracemalloc.start()
    write_model(synthetic(specs, tensor, tmp_path), tmp_path / "out", shard_bytes=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(alive) == count
    assert peak < 4 * 512 * 512 * 4
    assert load_file(tmp_path / "out/model.safetensors")["w7"].unique().tolist() == [7.0]


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
    write_model(open_model(llama), out, extra={"OLD.md": "old"})
    other = open_model(make_model(tmp_path / "other", seed=5))
    with pytest.raises(CandidateError):
        write_model(failing(other, 5, CandidateError("build", "x")), out, replace=True)
    assert (out / "OLD.md").exists()
    assert torch.equal(logits(out), logits(llama))
    write_model(other, out, replace=True)
    assert not (out / "OLD.md").exists()
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
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
model = open_model(sys.argv[1])
import torch
def tensor(name):
    time.sleep(0.02)
    return model.tensor(name)
print("here", flush=True)
write_model(replace(model, tensor=tensor), sys.argv[2], shard_bytes=60_000, replace="replace" in sys.argv)
"""


@pytest.mark.slow
@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_random_instants(replacing, llama, tmp_path):
    """Whatever has the target's name is complete, and the next write clears what all the killed ones left."""
    old = make_model(tmp_path / "old", seed=5)
    whole = {"new": logits(llama), "old": logits(old)}
    out = tmp_path / "out"
    finished, left = 0, 0
    draw = random.Random(1)
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        if replacing:
            shutil.copytree(old, out)
        command = [sys.executable, "-c", SLOWLY, str(llama), str(out), *(["replace"] if replacing else [])]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(draw.uniform(0, 0.4))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if out.exists():
            found = logits(out)
            new = torch.equal(found, whole["new"])
            finished += new
            assert new or (replacing and torch.equal(found, whole["old"]))
        left += len(leftovers(tmp_path))
        for name in leftovers(tmp_path):
            assert not (tmp_path / name / "config.json").exists() or replacing
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
