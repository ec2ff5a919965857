"""Methods that know something of their models: keys, errors, the way to a folder and through a search."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evolve.config.load import load
from evolve.errors import UserError
from evolve.stages.merge.block import MergeBlock
from evolve.statistics.corpus import Corpus, sequences
from evolve.weights.content import file_content
from tests.cli.kit import call, read_json
from tests.small import make_search
from tests.stages.merge import reference_beyond as ref
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = [{"text": f"the hen {i} and ten red ants ate at the sea, {i * i} nets of ore"} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


SETTINGS = {"max_tokens": 600, "sequence_length": 50}


def block(method: str, **keys: Any) -> dict[str, Any]:
    models = [{"model": "a", "parameters": {"weight": 2.0}}, {"model": "b"}]
    return {"merge_method": method, "models": models, **keys}


def config(folder: Path, merge: dict[str, Any], **keys: Any) -> Path:
    models = {name: str(folder / name) for name in "ab"}
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"models": models, "pipeline": [{"merge": merge}], **keys}, sort_keys=False)
    )
    return path


def parents(folder: Path, arch: str, **options: Any) -> list[Path]:
    return [make_model(folder / name, arch, seed=seed, **options) for seed, name in enumerate("ab")]


def inputs_of(folder: Path, corpus: Path) -> dict[str, Any]:
    """Return ``X.T @ X`` per token of each linear layer, float64, with hooks and loading of our own."""
    network, text = network_and_text(folder, corpus)
    sums: dict[str, Any] = {}
    count = sum(map(len, text))

    def note(name: str) -> Any:
        def add(_: Any, args: Any) -> None:
            rows = args[0].detach()[0].double().numpy()
            sums[name] = sums.get(name, 0) + rows.T @ rows / count

        return add

    for name, module in network.named_modules():
        if type(module).__name__ in {"Linear", "Conv1D"}:
            module.register_forward_pre_hook(note(f"{name}.weight"))
    with torch.no_grad():
        for one in text:
            network(input_ids=one[None])
    return sums


def network_and_text(folder: Path, corpus: Path) -> tuple[Any, list[torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = Corpus(str(corpus), file_content(corpus), 600, 50)
    text = list(sequences(whole, lambda one: [*tokenizer.encode(one), tokenizer.eos_token_id]))
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Padding is the end token here: without this torch would say that its row does not matter.
    network.get_input_embeddings().padding_idx = None
    return network, text


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("gpt2", True)])
def test_build_regmean(tmp_path: Path, corpus: Path, arch: str, tied: bool) -> None:
    folders = parents(tmp_path, arch, tied=tied)
    recipe = config(tmp_path, block("regmean", statistics={"path": str(corpus), **SETTINGS}))
    call("build", recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    raw = [load_file(folder / "model.safetensors") for folder in folders]
    grams = [inputs_of(folder, corpus) for folder in folders]
    merged = 0
    for name, tensor in written.items():
        models = [one[name].double().numpy() for one in raw]
        own = name if name in grams[0] or arch == "llama" else f"transformer.{name}"
        if own in grams[0] and not (tied and name == "lm_head.weight"):
            sides = models if arch == "gpt2" and own != "lm_head.weight" else [m.T for m in models]
            expected = ref.regmean(sides, [one[own] for one in grams], [2.0, 1.0], 0.9)
            expected = expected if sides is models else expected.T
            merged += 1
            assert not np.allclose(expected, (2 * models[0] + models[1]) / 3, atol=1e-2)
        else:
            expected = (2 * models[0] + models[1]) / 3
        assert np.allclose(tensor.double().numpy(), expected, atol=2e-4), name
    assert merged == (2 * 7 + 1 if arch == "llama" else 2 * 4)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_build_fisher(tmp_path: Path, corpus: Path, tied: bool) -> None:
    folders = parents(tmp_path, "llama", tied=tied)
    settings = {"path": str(corpus), **SETTINGS, "labels": "data"}
    recipe = config(tmp_path, block("fisher", statistics=settings, parameters={"floor": 0.0}))
    call("build", recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    raw = [load_file(folder / "model.safetensors") for folder in folders]
    fishers = []
    for folder in folders:
        network, text = network_and_text(folder, corpus)
        total: dict[str, Any] = {}
        for one in text:
            network.zero_grad()
            (network(input_ids=one[None], labels=one[None]).loss * (len(one) - 1)).backward()
            for name, parameter in network.named_parameters():
                total[name] = total.get(name, 0) + parameter.grad.double().numpy() ** 2
        mean = np.concatenate([value.reshape(-1) for value in total.values()]).mean()
        fishers.append({name: value / mean for name, value in total.items()})
    assert written.keys() == fishers[0].keys()
    for name, tensor in written.items():
        models = [one[name].double().numpy() for one in raw]
        information = [one[name] for one in fishers]
        seen = (information[0] > 0) | (information[1] > 0)  # rows of tokens that never come have none
        with np.errstate(invalid="ignore"):
            expected = ref.fisher(models, information, [2.0, 1.0])
        expected = np.where(seen, expected, (2 * models[0] + models[1]) / 3)
        assert np.allclose(tensor.double().numpy(), expected, atol=2e-4), name


def test_an_exported_recipe_builds_the_same_model_and_says_which_text(tmp_path: Path, corpus: Path) -> None:
    parents(tmp_path, "llama")
    recipe = config(tmp_path, block("fisher", statistics={"path": str(corpus), **SETTINGS}))
    call("build", recipe, tmp_path / "one")
    call("build", tmp_path / "one" / "evolve_recipe.yaml", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    corpus.write_text(corpus.read_text() + '{"text": "more"}\n')
    message = call("build", tmp_path / "one" / "evolve_recipe.yaml", tmp_path / "three", code=2).stderr
    assert "bring back the file that was meant" in message


SCORE = {"backend": "hf", "tasks": [{"task": "tiny_choice", "metric": "acc"}]}


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (block("fisher"), "fisher needs `statistics: {path: FILE}`"),
        (block("regmean"), "regmean needs `statistics"),
        (block("geometric_median", statistics={"path": "text.jsonl"}), "geometric_median uses no statistics"),
        (
            block("regmean", statistics={"path": "text.jsonl", "labels": "data"}),
            "labels has no effect in regmean",
        ),
        (
            block("fisher", statistics={"path": "nothing.jsonl"}),
            "statistics.path: nothing.jsonl: no such file",
        ),
        (block("fisher", statistics={"path": "."}), "is a folder"),
        (block("fisher", statistics={"path": "recipe.yaml.jsonl"}), "no such file"),
        (block("fisher", statistics={"path": "bad.jsonl"}), "expected a JSON object"),
        (block("fisher", statistics={"path": "text.jsonl", "max_token": 3}), "max_token"),
        (block("fisher", statistics={"path": "text.jsonl", "max_tokens": 1}), "max_tokens"),
        (block("fisher", statistics={"path": "text.jsonl", "labels": "true"}), "labels"),
        (block("fisher", statistics={"path": "text.jsonl"}, base_model="c"), "fisher has no base"),
        (block("tsv", base_model="a", parameters={"rank": 2.0}), "must lie from 0 to 1"),
        (block("wise_ft", base_model="a", parameters={"alpha": -0.1}), "must lie from 0 to 1"),
        (block("geometric_median", parameters={"max_iter": 0.5}), "whole number"),
    ],
)
def test_what_is_wrong_with_the_keys(
    tmp_path: Path, corpus: Path, merge: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parents(tmp_path, "llama")
    (tmp_path / "bad.jsonl").write_text('{"txt": 1}\n')
    found = call("validate", config(tmp_path, merge), code=2).stderr
    assert message in found
    assert not (tmp_path / "cache" / "evolve" / "statistics").exists()


def test_validate_does_not_gather(tmp_path: Path, corpus: Path) -> None:
    parents(tmp_path, "llama")
    call("validate", config(tmp_path, block("fisher", statistics={"path": str(corpus), **SETTINGS})))
    assert not (tmp_path / "cache" / "evolve" / "statistics").exists()


def test_outputs_of_stages_have_no_statistics(tmp_path: Path, corpus: Path) -> None:
    parents(tmp_path, "llama")
    first = {"name": "b2", "merge_method": "uniform_soup", "models": [{"model": "a"}, {"model": "b"}]}
    second = block("fisher", statistics={"path": str(corpus), **SETTINGS})
    second["models"][1]["model"] = "b2"
    path = config(tmp_path, second)
    data = yaml.safe_load(path.read_text())
    data["pipeline"].insert(0, {"merge": first})
    path.write_text(yaml.safe_dump(data))
    for verb in (("validate",), ("build",)):
        out = (tmp_path / "out",) if verb == ("build",) else ()
        message = call(*verb, path, *out, code=2).stderr
        assert "'b2' is the output of a stage" in message
        assert "build that first" in message


def test_ranges_have_no_place_in_statistics() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        MergeBlock.model_validate(
            block("fisher", statistics={"path": "x", "max_tokens": {"low": 1, "high": 2}})
        )


def test_a_search_gathers_once_a_parent(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evolve.run import run
    from evolve.statistics import gather
    from evolve.store.rundir import RunDir

    calls = []
    whole = gather.diagonal_fisher
    monkeypatch.setattr(gather, "diagonal_fisher", lambda *a, **k: calls.append(1) or whole(*a, **k))
    models = [{"model": name, "parameters": {"weight": {"low": 0.1, "high": 1.0}}} for name in ("one", "two")]
    merge = {"merge_method": "fisher", "models": models, "dtype": "float32"}
    merge["statistics"] = {"path": "text.jsonl", **SETTINGS}
    monkeypatch.chdir(tmp_path)
    path = make_search(tmp_path, **{"pipeline": [{"merge": merge}], "search.trials": 3})
    folder = run(load(path), runs=tmp_path / "runs")
    assert len(calls) == 2, "the parents that are merged, not the base"
    records = list(folder.records())
    trials = [record for record in records if record.recipe.pipeline]
    assert all("value" in dir(record.outcome) for record in trials), "all scored"
    run(load(path), runs=tmp_path / "runs")
    assert len(calls) == 2
    kept = RunDir.open(folder.path).config_text()
    assert file_content(corpus) in kept
    call("export", "small", "--runs", tmp_path / "runs", "--to", "model", "--out", "export")
    assert len(calls) == 2
    message = call("export", "small", "--runs", tmp_path / "runs", "--to", "mergekit", "--out", "-", code=2)
    assert "mergekit has no method fisher" in message.stderr
    # From another folder the paths are still those of the run.
    monkeypatch.chdir(tmp_path / "runs")
    call("export", "small", "--runs", ".", "--to", "model", "--out", "here")
    assert (tmp_path / "runs" / "here" / "config.json").exists()
    monkeypatch.chdir(tmp_path)
    corpus.write_text(corpus.read_text() + '{"text": "more"}\n')
    with pytest.raises(UserError, match=r"(?s)the config differs.*content"):
        run(load(path), runs=tmp_path / "runs")


def test_methods_are_listed() -> None:
    rows = {row["method"]: row for row in read_json("ls", "methods")}
    listed = {one["parameter"]: one["default"] for one in rows["tsv"]["parameters"]}
    assert listed == {"rank": 0.0, "embeddings": False, "lambda": 1.0}
    assert "arXiv:2111.09832" in rows["fisher"]["paper"]
