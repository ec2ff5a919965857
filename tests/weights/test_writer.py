"""Oracles: transformers loads it and computes the same logits; the bytes equal those that were read."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from evolve.errors import UserError
from evolve.weights.model import Model, TensorSpec
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.tiny import make_model


def logits(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    with torch.no_grad():
        return model(torch.arange(3, 60).reshape(1, -1)).logits


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


def test_mixed_types_are_computed_once_each(tmp_path):
    """The writer reads wide types first; what is computed ahead must follow that order."""
    kinds = ["bfloat16", "bfloat16", "float32", "bfloat16", "float32"] * 6
    specs = {f"w{number}": TensorSpec((64, 64), kind) for number, kind in enumerate(kinds)}
    computed = Counter()

    def tensor(name):
        computed[name] += 1
        return torch.zeros(64, 64, dtype=getattr(torch, specs[name].dtype))

    write_model(synthetic(specs, tensor, tmp_path), tmp_path / "out", shard_bytes=60_000)
    assert computed == dict.fromkeys(specs, 1)
