from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from evolve.errors import CandidateError
from evolve.score.engines.hf import open_engine
from tests.score.engines.oracle import (
    Oracle,
    agree,
    changed,
    config,
    differ,
    failing,
    generated,
    make,
    misshapen,
    rolling,
    scores,
    without,
)

if TYPE_CHECKING:
    from pathlib import Path

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(
    ("arch", "tied"),
    [
        ("llama", True),
        ("llama", False),
        ("qwen2", True),
        ("qwen3", True),
        ("mistral", False),
        ("gpt2", True),
        ("gpt_neox", False),
    ],
)
def test_a_swap_equals_plain_transformers(root: Path, arch: str, tied: bool) -> None:
    first, second = (make(root, arch, tied=tied, seed=seed) for seed in (0, 1))
    engine = open_engine(config(), first, 1)
    wanted = Oracle(first)
    before = scores(engine.lm)
    agree(before, wanted.scores)
    engine.load(second)
    other = Oracle(second)
    differ(wanted.scores, other.scores)
    agree(scores(engine.lm), other.scores)
    agree(rolling(engine.lm), other.rolling)
    assert generated(engine.lm) == other.generated
    engine.load(first)
    assert scores(engine.lm) == before
    engine.close()
    engine.close()


def test_a_swap_builds_nothing_again_and_a_new_architecture_does(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    deeper = make(root, "llama", tied=True, seed=0, layers=3)
    engine = open_engine(config(), model, 1)
    lm = engine.lm
    engine.load(make(root, "llama", tied=True, seed=1))
    assert engine.lm is lm
    engine.load(deeper)
    assert engine.lm is not lm
    agree(scores(engine.lm), Oracle(deeper).scores)


def test_a_model_that_does_not_fit_is_refused_and_the_old_one_stays(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    engine = open_engine(config(), model, 1)
    before = scores(engine.lm)
    for bad in (without(model, NORM), misshapen(model, NORM)):
        with pytest.raises(CandidateError):
            engine.load(bad)
        assert scores(engine.lm) == before


def test_after_an_error_on_the_way_the_engine_holds_nothing_and_takes_the_next(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    engine = open_engine(config(), model, 1)
    before = scores(engine.lm)
    with pytest.raises(CandidateError, match="no such luck"):
        engine.load(failing(make(root, "llama", tied=True, seed=1), 5))
    with pytest.raises(CandidateError, match="holds no model"):
        _ = engine.lm
    engine.load(model)
    assert scores(engine.lm) == before


def test_nan_weights_do_not_reach_the_next_candidate(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    engine = open_engine(config(), model, 1)
    before = scores(engine.lm)
    engine.load(changed(model, "layers.0", lambda tensor: tensor.fill_(float("nan"))))
    assert all(value != value for value, _ in scores(engine.lm))
    engine.load(model)
    assert scores(engine.lm) == before


def test_parents_are_never_written_to(root: Path) -> None:
    model = make(root, "llama", tied=True, seed=0)
    kept = {name: model.tensor(name).clone() for name in model.specs}
    engine = open_engine(config(), model, 1)
    engine.load(make(root, "llama", tied=True, seed=1))
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in kept.items())


def test_what_is_scored_is_what_is_exported(root: Path) -> None:
    exact = make(root, "llama", tied=True, seed=0)
    specs = {name: replace(spec, dtype="bfloat16") for name, spec in exact.specs.items()}
    engine = open_engine(config(), replace(exact, specs=specs), 1)
    exported = make(root, "llama", tied=True, seed=0, dtype="bfloat16")
    agree(scores(engine.lm), Oracle(exported).scores)
    assert max(abs(a[0] - b[0]) for a, b in zip(scores(engine.lm), Oracle(exact).scores, strict=True)) > 1e-3


def test_arguments_that_only_from_pretrained_knows_go_through_a_folder(root: Path) -> None:
    first, second = (make(root, "llama", tied=True, seed=seed) for seed in (0, 1))
    engine = open_engine(config(engine_args={"low_cpu_mem_usage": True}), first, 1)
    engine.load(second)
    agree(scores(engine.lm), Oracle(second).scores)


def test_sampling_gives_the_same_text_at_each_call(root: Path) -> None:
    from tests.score.engines.oracle import instances

    engine = open_engine(config(), make(root, "llama", tied=True, seed=0), 1)
    rules = {"until": ["\n\n"], "max_gen_toks": 10, "do_sample": True, "temperature": 1.0}
    ask = [("the cat", rules), ("on the", rules)]
    torch.manual_seed(1)
    some = engine.lm.generate_until(instances("generate_until", ask))
    torch.manual_seed(2)
    assert engine.lm.generate_until(instances("generate_until", ask)) == some


def test_it_prints_no_progress(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = open_engine(config(), make(root, "llama", tied=True, seed=0), 1)
    capsys.readouterr()
    scores(engine.lm)
    rolling(engine.lm)
    generated(engine.lm)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
