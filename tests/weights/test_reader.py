"""Oracles: transformers' own save and load, the safetensors library, and damage done byte by byte."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evolve.errors import ModelError
from evolve.weights.reader import is_computed_buffer, open_model
from tests.tiny import make_model

ARCHS = ["llama", "qwen2", "mistral", "gpt2", "gpt_neox"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(llama, tmp_path):
    return Path(shutil.copytree(llama, tmp_path / "modèle mit Leerzeichen"))


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, **changes):
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: value.clone() for name, value in tensors.items()}
    tensors.update({name.replace("__", "."): value for name, value in changes.items()})
    save_file(
        {name: value for name, value in tensors.items() if value is not None}, folder / "model.safetensors"
    )


def shard(folder, count=3):
    """Split into shards as transformers names them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {}
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = names[number::count]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(part, file))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def mapped_ranges(folder):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [
        tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines if str(folder) in line
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_reads_what_transformers_saved(arch, tied, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path, arch, tied=tied, dtype=dtype, layers=1)
    model = open_model(folder)
    assert model.tied is tied
    stored = load_file(folder / "model.safetensors")
    assert set(model.specs) == set(stored)
    for name, tensor in model.tensors():
        assert model.specs[name].shape == tuple(tensor.shape)
        assert f"torch.{model.specs[name].dtype}" == str(tensor.dtype) == f"torch.{dtype}"
        assert torch.equal(tensor, stored[name])
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert sum(spec.numel for spec in model.specs.values()) == parameters


def test_shards_read_like_one_file(copy):
    whole = {name: tensor.clone() for name, tensor in open_model(copy).tensors()}
    shard(copy)
    model = open_model(copy)
    assert set(model.specs) == set(whole)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.tensors())


def test_opening_maps_nothing_and_reading_copies_nothing(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "fresh")
    model = open_model(folder)
    assert mapped_ranges(folder) == []
    tensors = [model.tensor("model.embed_tokens.weight") for _ in range(3)]
    for tensor in tensors:
        assert any(low <= tensor.data_ptr() < high for low, high in mapped_ranges(folder))


def test_opening_needs_no_torch(llama):
    code = "import sys; from evolve.weights import reader; reader.open_model(sys.argv[1])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, llama], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_many_threads_read_the_same(copy):
    shard(copy)
    want = {name: tensor.clone() for name, tensor in open_model(copy).tensors()}
    for seed in range(5):
        model = open_model(copy)
        names = list(model.specs) * 8
        random.Random(seed).shuffle(names)
        with ThreadPoolExecutor(8) as pool:
            for name, tensor in zip(names, pool.map(model.tensor, names), strict=True):
                assert torch.equal(tensor, want[name])


# --- the tied state


def test_a_stored_tied_head_is_left_out(copy):
    embedding = open_model(copy).tensor("model.embed_tokens.weight").clone()
    edit_weights(copy, lm_head__weight=embedding)
    model = open_model(copy)
    assert model.tied
    assert "lm_head.weight" not in model.specs
    assert torch.equal(model.tensor("model.embed_tokens.weight"), embedding)
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'"):
        model.tensor("lm_head.weight")


def test_a_tied_head_with_other_values_is_an_error_with_a_mend(copy):
    embedding = open_model(copy).tensor("model.embed_tokens.weight").clone()
    embedding[3, 3] += 1e-3
    edit_weights(copy, lm_head__weight=embedding)
    model = open_model(copy)
    model.tensor("model.norm.weight")
    with pytest.raises(ModelError, match=r'"tie_word_embeddings": false'):
        model.tensor("model.embed_tokens.weight")
    edit_config(copy, tie_word_embeddings=False)
    assert "lm_head.weight" in open_model(copy).specs


def test_a_tied_head_of_another_shape_is_found_in_the_headers(copy):
    edit_weights(copy, lm_head__weight=torch.zeros(130, 64))
    with pytest.raises(ModelError, match="differs"):
        open_model(copy)


@pytest.mark.parametrize(("arch", "default"), [("gpt2", True), ("llama", False), ("qwen2", False)])
def test_an_unstated_tied_state_is_that_of_transformers(arch, default, tmp_path):
    from transformers import AutoConfig

    folder = make_model(tmp_path, arch, tied=default, layers=1)
    edit_config(folder, tie_word_embeddings=...)
    model = open_model(folder)
    assert model.tied is default is AutoConfig.from_pretrained(folder).tie_word_embeddings
    assert model.config["tie_word_embeddings"] is default


def test_an_unstated_tied_state_of_an_unknown_class_follows_the_tensors(copy):
    edit_config(copy, tie_word_embeddings=..., model_type="nobody-knows")
    assert open_model(copy).tied
    edit_weights(copy, lm_head__weight=torch.ones(128, 64))
    assert not open_model(copy).tied


def test_an_untied_model_without_a_head_is_an_error(copy):
    edit_config(copy, tie_word_embeddings=False)
    with pytest.raises(ModelError, match="no output head"):
        open_model(copy)


def test_a_head_in_place_of_the_embedding_is_an_error(copy):
    embedding = open_model(copy).tensor("model.embed_tokens.weight").clone()
    edit_weights(copy, lm_head__weight=embedding, model__embed_tokens__weight=None)
    with pytest.raises(ModelError, match="instead of the embedding"):
        open_model(copy)


# --- buffers


def test_buffers_that_loaders_compute_are_left_out_and_the_rest_stays(tmp_path):
    folder = make_model(tmp_path, "gpt2", layers=1)
    before = set(open_model(folder).specs)
    edit_weights(
        folder,
        transformer__h__0__attn__bias=torch.tril(torch.ones(1, 1, 256, 256)),
        transformer__h__0__attn__masked_bias=torch.tensor(-1e4),
        transformer__h__0__attn__rotary_emb__inv_freq=torch.ones(16),
    )
    assert set(open_model(folder).specs) == before
    assert "transformer.h.0.attn.c_attn.bias" in before


def test_a_real_bias_is_no_buffer(llama):
    from evolve.weights.model import TensorSpec

    assert not is_computed_buffer("blocks.0.attn.bias", TensorSpec((64,), "float32"))
    assert not is_computed_buffer("blocks.0.attn.bias", TensorSpec((1, 2, 4, 4), "float32"))
    assert is_computed_buffer("gpt_neox.layers.0.attention.bias", TensorSpec((1, 1, 8, 8), "bool"))


# --- bad folders: each message names the file and the mend


def test_bad_folders(llama, tmp_path):
    with pytest.raises(ModelError, match="nowhere does not exist"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="is a file"):
        open_model(llama / "config.json")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no safetensors files"):
        open_model(tmp_path)
    shutil.copy(llama / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"only model-00001-of-00002\.safetensors"):
        open_model(tmp_path)


def test_an_adapter_alone_is_refused_with_the_way_to_name_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match=rf"name its base and it, as org/base\+{tmp_path}"):
        open_model(tmp_path)


def test_pickled_weights_are_never_opened_and_the_command_converts_them(copy):
    want = {name: tensor.clone() for name, tensor in open_model(copy).tensors()}
    torch.save(want, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="never unpickles") as caught:
        open_model(copy)
    command = str(caught.value).partition("Convert it: ")[2].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True, capture_output=True)
    converted = open_model(f"{copy}-safetensors")
    assert {name: tensor.tolist() for name, tensor in converted.tensors()} == {
        name: tensor.tolist() for name, tensor in want.items()
    }


@pytest.mark.parametrize(
    "name",
    ["weights.pt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("model.pth", "state.bin"))],
)
def test_a_bare_pickle_is_converted_by_its_command(name, copy):
    want = {name: tensor.clone() for name, tensor in open_model(copy).tensors()}
    embedding = want["model.embed_tokens.weight"]
    torch.save({**want, "lm_head.weight": embedding}, copy / name)  # tied: one storage, two names
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "training_args.bin")
    with pytest.raises(ModelError, match=rf"only \({name}\), and evolve never unpickles") as caught:
        open_model(copy)
    command = str(caught.value).partition("Convert it: ")[2].replace("python ", f"{sys.executable} ", 1)
    assert "weights_only=True" in command
    subprocess.run(command, shell=True, check=True, capture_output=True)
    converted = open_model(copy)
    assert all(torch.equal(converted.tensor(name), tensor) for name, tensor in want.items())


@pytest.mark.parametrize("name", ["weights.pt", pytest.param("pytorch_model.bin", marks=pytest.mark.slow)])
def test_the_command_runs_no_code_of_a_pickle(name, copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model.norm.weight": Evil()}, copy / name)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        open_model(copy)
    command = str(caught.value).partition("Convert it: ")[2].replace("python ", f"{sys.executable} ", 1)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode != 0
    assert "weights_only" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("model_type", "mend"), [("llama", "delete auto_map"), ("own", "built in")])
def test_code_of_the_model_is_refused(copy, model_type, mend):
    edit_config(copy, auto_map={"AutoConfig": "x.Y"}, model_type=model_type)
    with pytest.raises(ModelError, match=mend):
        open_model(copy)


def test_quantized_models_are_refused(copy):
    edit_config(copy, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantized"):
        open_model(copy)


def test_git_lfs_pointer(copy):
    (copy / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(ModelError, match="git lfs pull"):
        open_model(copy)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_found_without_reading_weights(data, llama):
    raw = (llama / "model.safetensors").read_bytes()
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    cut = data.draw(st.one_of(st.integers(0, header + 8), st.integers(0, len(raw) - 1)))
    folder = llama.parent / "cut"
    folder.mkdir(exist_ok=True)
    shutil.copy(llama / "config.json", folder)
    (folder / "model.safetensors").write_bytes(raw[:cut])
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or damaged"):
        open_model(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "two", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        7,
    ],
)
def test_a_header_that_lies_is_found(entry, copy):
    raw = json.dumps({"w": entry}).encode()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 8)
    with pytest.raises(ModelError, match="truncated or damaged"):
        open_model(copy)


def test_index_and_shards_that_disagree(copy):
    places = shard(copy)
    index = copy / "model.safetensors.index.json"

    def write(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))

    name = "model.norm.weight"
    other = next(file for file in places.values() if file != places[name])
    write({**places, name: "model-00009-of-00003.safetensors"})
    with pytest.raises(ModelError, match=r"names model-00009-of-00003\.safetensors, which is missing"):
        open_model(copy)
    write({**places, name: other})
    with pytest.raises(ModelError, match=r"places tensor 'model\.norm\.weight' in"):
        open_model(copy)
    write({**places, "model.ghost": other})
    with pytest.raises(ModelError, match=r"places tensor 'model\.ghost'"):
        open_model(copy)
    write({key: file for key, file in places.items() if key != name})
    with pytest.raises(ModelError, match="does not name"):
        open_model(copy)
    write({**places, name: "../../etc/passwd"})
    with pytest.raises(ModelError, match="not a file beside it"):
        open_model(copy)
    index.write_text("{}")
    with pytest.raises(ModelError, match="no weight_map"):
        open_model(copy)
    write(places)
    tensors = load_file(copy / other)
    save_file({**tensors, name: torch.ones(64)}, copy / other)
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' twice"):
        open_model(copy)


def test_a_stale_index_beside_a_whole_file(copy, llama):
    shard(copy)
    shutil.copy(llama / "model.safetensors", copy)
    assert set(open_model(copy).specs) == set(open_model(llama).specs)
    edit_weights(copy, model__extra__weight=torch.ones(2))
    with pytest.raises(ModelError, match="delete the stale one"):
        open_model(copy)


def test_a_file_that_is_replaced_after_opening_is_noticed(copy):
    model = open_model(copy)
    edit_weights(copy, model__extra__weight=torch.ones(2))
    with pytest.raises(ModelError, match="changed after it was opened"):
        model.tensor("model.norm.weight")
