"""The whole way with the real merge stage: parents on disk, recipe, folder, transformers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from evolve.errors import CandidateError
from evolve.stages.pipeline import build, check
from evolve.types import Recipe
from evolve.weights.compat import differences
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.tiny import make_model


def parents(tmp_path, arch="llama", **options):
    return {name: make_model(tmp_path / name, arch, seed=seed, **options) for seed, name in enumerate("abc")}


def merge(folders, **block):
    contents = {name: content_of(folder) for name, folder in folders.items()}
    return Recipe.make(contents, [{"merge": block}])


def linear(**weights):
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": "linear", "models": models}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_average_of_three(arch, tied, tmp_path):
    from transformers import AutoModelForCausalLM

    folders = parents(tmp_path, arch, tied=tied, dtype="bfloat16")
    models = {name: open_model(folder) for name, folder in folders.items()}
    assert differences(models) == []
    model = build(merge(folders, **linear(a=1, b=2, c=1)), models)
    out = tmp_path / "out"
    write_model(model, out)
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    raw = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    written = load_file(out / "model.safetensors")
    assert written.keys() == raw["a"].keys()
    for name, tensor in written.items():
        a, b, c = (raw[parent][name].double() for parent in "abc")
        assert torch.equal(tensor, ((a + 2 * b + c) / 4).float().to(torch.bfloat16)), name
    assert content_of(out) == content_of(out)
    assert open_model(out).architecture == models["a"].architecture


def test_two_stages(tmp_path):
    folders = parents(tmp_path)
    contents = {name: content_of(folder) for name, folder in folders.items()}
    first = {"name": "ab", **linear(a=1, b=1)}
    second = linear(ab=1, c=1)
    model = build(
        Recipe.make(contents, [{"merge": first}, {"merge": second}]),
        {name: open_model(folder) for name, folder in folders.items()},
    )
    raw = {name: load_file(folder / "model.safetensors") for name, folder in folders.items()}
    name = "model.norm.weight"
    want = (raw["a"][name] + raw["b"][name]) / 4 + raw["c"][name] / 2
    assert torch.allclose(model.tensor(name), want, atol=1e-6)


def test_check_speaks_of_parents_that_do_not_fit(tmp_path):
    from evolve.registry import STAGES

    models = {
        "a": open_model(make_model(tmp_path / "a")),
        "deep": open_model(make_model(tmp_path / "deep", layers=3)),
    }
    block = STAGES.load("merge").block.model_validate(linear(a=1, deep=1))
    problems = check([("merge", block)], models)
    assert problems
    assert all(path.startswith("pipeline.0.merge") for path, _ in problems)


def test_a_nan_parent_fails_its_candidates_and_its_baseline(tmp_path):
    folders = parents(tmp_path)
    file = folders["b"] / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"][5] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    models = {name: open_model(folder) for name, folder in folders.items()}
    for recipe in (merge(folders, **linear(a=1, b=1)), Recipe.make({"b": content_of(folders["b"])}, [])):
        with pytest.raises(CandidateError, match=r"model\.norm\.weight.* model 'b'") as caught:
            write_model(build(recipe, models), tmp_path / "out")
        assert caught.value.kind == "non_finite"
        assert not (tmp_path / "out").exists()


def test_what_is_kept_of_the_parents_serves_the_next_candidate(tmp_path):
    from dataclasses import replace

    from evolve.stages.memo import Memo

    folders = parents(tmp_path)
    contents = {name: content_of(folder) for name, folder in folders.items()}
    models = {name: replace(open_model(folder), content=contents[name]) for name, folder in folders.items()}
    memo, kept = Memo(), []
    for weight in (0.5, 0.7):
        block = {"merge_method": "ties", "base_model": "a", "models": [{"model": "b"}, {"model": "c"}]}
        block["parameters"] = {"weight": weight, "density": 0.5}
        dict(build(Recipe.make(contents, [{"merge": block}]), models, memo=memo).tensors())
        kept.append(memo.nbytes)
    assert kept[0] == kept[1] > 0
