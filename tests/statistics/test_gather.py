from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolve.errors import CandidateError
from evolve.statistics.corpus import Corpus, documents, sequences
from evolve.statistics.gather import statistics_of
from evolve.weights.reader import open_model
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model


def parent(folder: Path, arch: str = "llama", **options: Any) -> Model:
    return replace(open_model(make_model(folder, arch, **options)), content=f"sha256:{folder.name}")


def own(arch: str, name: str) -> str:
    """Return the name of a tensor in the network that transformers loads."""
    if arch == "gpt2":
        return name if name.startswith(("transformer.", "lm_head")) else f"transformer.{name}"
    return name.replace("embed_out.", "lm_head.")


def read(folder: Path, corpus: Corpus) -> tuple[Any, list[torch.Tensor]]:
    """Return the model as transformers loads it, and the text as its tokenizer cuts it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = list(sequences(corpus, lambda one: [*tokenizer.encode(one), tokenizer.eos_token_id]))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Padding is the end token here: without this torch would say that its row does not matter.
    network.get_input_embeddings().padding_idx = None
    return network, text


@pytest.mark.parametrize(
    ("arch", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("gpt_neox", False)]
)
def test_fisher_of_a_model_on_disk(tmp_path: Path, corpus: Corpus, arch: str, tied: bool) -> None:
    model = parent(tmp_path / "m", arch, tied=tied, dtype="bfloat16")
    found = statistics_of(model, "fisher", corpus, labels="data")
    network, text = read(tmp_path / "m", corpus)
    total: dict[str, torch.Tensor] = {}
    for one in text:
        network.zero_grad()
        network(input_ids=one[None], labels=one[None]).loss.mul(len(one) - 1).backward()
        for name, parameter in network.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad.double() ** 2
    tokens = sum(len(one) - 1 for one in text)
    assert sum(map(len, text)) == corpus.max_tokens
    for name, spec in model.specs.items():
        known = found.get(name)
        assert known is not None, name
        assert known[0].shape == spec.shape
        expected = total[own(arch, name)] / tokens
        assert torch.allclose(known[0].double(), expected, rtol=1e-3, atol=1e-12), name
    values = torch.cat([(one / tokens).reshape(-1) for one in total.values()])
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-4)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("tied", [True, False])
def test_grams_of_a_model_on_disk(tmp_path: Path, corpus: Corpus, arch: str, tied: bool) -> None:
    model = parent(tmp_path / "m", arch, tied=tied)
    found = statistics_of(model, "gram", corpus, max_bytes=2_000_000)
    network, text = read(tmp_path / "m", corpus)
    rows: dict[str, list[torch.Tensor]] = {}
    for name, module in network.named_modules():
        if type(module).__name__ in {"Linear", "Conv1D"}:
            module.register_forward_pre_hook(
                lambda _, args, name=name: rows.setdefault(f"{name}.weight", []).append(args[0].detach()[0])
            )
    with torch.no_grad():
        for one in text:
            network(input_ids=one[None])
    stored = {name for name in model.specs if found.get(name) is not None}
    linear = {name for name in model.specs if own(arch, name) in rows}
    assert stored == linear
    assert any(name.startswith(("lm_head", "embed_out")) for name in stored) == (not tied)
    for name in stored:
        values, axis = found.get(name) or (torch.empty(0), -1)
        inputs = torch.cat(rows[own(arch, name)]).double()
        assert model.specs[name].shape[axis] == inputs.shape[1]
        assert torch.allclose(values.double(), inputs.T @ inputs / len(inputs), rtol=1e-3, atol=1e-6), name


def test_it_is_gathered_once_for_a_text_and_its_settings(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evolve.statistics import gather

    calls = []
    for name in ("diagonal_fisher", "input_grams"):
        whole = getattr(gather, name)
        monkeypatch.setattr(gather, name, lambda *a, n=name, w=whole, **k: calls.append(n) or w(*a, **k))
    model = parent(tmp_path / "m")
    first = statistics_of(model, "fisher", corpus)
    assert statistics_of(model, "fisher", corpus).path == first.path
    assert statistics_of(model, "fisher", corpus, folder=tmp_path / "own").path.is_relative_to(
        tmp_path / "own"
    )
    assert len(calls) == 2
    for change in ({"max_tokens": 300}, {"sequence_length": 40}, {"seed": 1}):
        statistics_of(model, "fisher", replace(corpus, **change))
    statistics_of(model, "fisher", corpus, labels="data")
    statistics_of(replace(model, content="sha256:other"), "fisher", corpus)
    assert len(calls) == 7
    statistics_of(model, "gram", corpus)
    statistics_of(model, "gram", corpus, labels="data", max_bytes=500_000)
    assert len(calls) == 8


def test_the_file_is_enough_once_it_is_there(tmp_path: Path, corpus: Corpus, text: Path) -> None:
    model = parent(tmp_path / "m")
    first = statistics_of(model, "gram", corpus)
    text.unlink()
    again = statistics_of(replace(model, tensor=lambda name: pytest.fail(name)), "gram", corpus)
    assert again.path == first.path


def test_sampled_labels_are_the_same_in_every_process(tmp_path: Path, corpus: Corpus) -> None:
    model = parent(tmp_path / "m")
    one, two = (statistics_of(model, "fisher", corpus, folder=tmp_path / name) for name in "ab")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_what_cannot_be_gathered(tmp_path: Path, corpus: Corpus, text: Path) -> None:
    model = parent(tmp_path / "m")
    with pytest.raises(CandidateError, match="set it to 256 or lower"):
        statistics_of(model, "fisher", replace(corpus, sequence_length=257))
    with pytest.raises(CandidateError, match="tokenizer"):
        empty = tmp_path / "empty"
        empty.mkdir()
        statistics_of(replace(model, files=empty), "fisher", corpus)
    with pytest.raises(ValueError, match="content"):
        statistics_of(replace(model, content=""), "fisher", corpus)
    small = parent(tmp_path / "small", vocab=100)
    with pytest.raises(CandidateError, match=r"the tokenizer gives token \d+, the model has 100"):
        statistics_of(replace(small, files=model.files), "gram", corpus)
    assert not list((tmp_path / "cache" / "evolve" / "statistics").rglob("*.safetensors"))


def test_fused_experts_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, tie_word_embeddings=False,
    )  # fmt: skip
    folder = make_model(tmp_path / "m")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = replace(open_model(folder), content="sha256:m")
    with pytest.raises(CandidateError, match=r"mixtral.*without statistics"):
        statistics_of(model, "gram", corpus)


def test_a_text_of_one_token(tmp_path: Path, corpus: Corpus) -> None:
    from evolve.weights.content import file_content

    path = tmp_path / "one.txt"
    path.write_text("a")
    short = Corpus(str(path), file_content(path), max_tokens=2, sequence_length=9)
    assert list(documents(short)) == ["a"]
    model = parent(tmp_path / "m")
    assert statistics_of(model, "fisher", short).mean > 0, "it and the end of the document"
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text('{"text": ""}\n')
    for kind in ("fisher", "gram"):
        with pytest.raises(CandidateError, match="no two tokens"):
            statistics_of(model, kind, replace(short, path=str(nothing), content=file_content(nothing)))
