"""The worth of a draft beside the real decoding: drafts that are drawn, accepted and rejected one by one."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from evolve.errors import CandidateError
from evolve.registry import ENGINES
from evolve.score.scorers.base import ScorerProblem
from evolve.score.scorers.speculative import Speculative, SpeculativeBlock
from evolve.stages.distill.drafts import target_texts
from evolve.stages.distill.generation import Generation
from evolve.weights.content import content_of
from evolve.weights.reader import open_model
from tests.score.scorers.held import config, score
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.score.engines.base import Engine

PROMPTS = ["the red hen", "and the rat", "a", "then on and on to the end ", "an ore, a net", "x" * 40]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evolve" / "drafts"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in PROMPTS))
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A model that is near the draft: its weights and a little noise."""
    from transformers import AutoModelForCausalLM

    path = make_model(tmp_path_factory.mktemp("target") / "m")
    network = AutoModelForCausalLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=draw))
    network.save_pretrained(path)
    return path


def block(target: Path, prompts: Path, **changes: Any) -> dict[str, Any]:
    data = {"target": str(target), "prompts": str(prompts), "num_speculative_tokens": 3}
    return {"speculative": {**data, "max_new_tokens": 20, "max_prompt_length": 12, **changes}}


def float64(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def after(network: Any, tokens: list[int]) -> Any:
    with torch.no_grad():
        return network(torch.tensor([tokens])).logits[0, -1]


def greedy_decoding(p: Any, q: Any, prompt: list[int], k: int, count: int) -> tuple[int, int, int]:
    """Tokens, cycles and accepted drafts of decoding with the most likely tokens, as an engine does it."""
    text = [*prompt, int(after(p, prompt).argmax())]
    cycles = accepted = 0
    first = len(prompt) + 1
    while len(text) < len(prompt) + count and text[-1] != 2:
        cycles += 1
        draft: list[int] = []
        for _ in range(k):
            draft.append(int(after(q, text + draft).argmax()))
        for token in [*draft, None]:
            best = int(after(p, text).argmax())
            text.append(best)
            accepted += token == best
            if token != best or len(text) == len(prompt) + count or best == 2:
                break
    return len(text) - first, cycles, accepted


def test_greedy_is_what_the_decoding_counts(
    engine: Engine, folder: Path, target: Path, prompts: Path
) -> None:
    found = {
        metric: score(engine, block(target, prompts, metric=metric, cost_ratio=0.2))["speculative"]
        for metric in ("mean_accepted_length", "acceptance_rate", "speed_up_predicted")
    }
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    p, q = float64(target), float64(folder)
    real = [
        greedy_decoding(p, q, tokenizer(one, add_special_tokens=False).input_ids[:12], 3, 20)
        for one in PROMPTS
    ]
    tokens, cycles, accepted = (sum(one) for one in zip(*real, strict=True))
    length = found["mean_accepted_length"]
    assert 1.0 < length.value < 4, "the models are near, and not the same"
    assert length.value == pytest.approx(tokens / cycles)
    assert found["acceptance_rate"].value == pytest.approx(accepted / (3 * cycles))
    assert found["speed_up_predicted"].value == pytest.approx(tokens / cycles / (3 * 0.2 + 1))
    assert len(length.items) == len(PROMPTS) and length.higher_is_better
    assert np.mean(list(length.items.values())) == pytest.approx(length.value)


@pytest.mark.parametrize("method", ["probabilistic", pytest.param("greedy", marks=pytest.mark.slow)])
def test_sampling_is_what_the_decoding_counts_in_the_mean(
    folder: Path, target: Path, prompts: Path, method: str
) -> None:
    """Many texts of the score against many runs of the algorithm, on one prompt."""
    k, count = 2, 5
    temperature = 0.7
    p, q = float64(target), float64(folder)
    prompt = [5, 40]
    from evolve.stages.distill.drafts import said_of
    from evolve.tensors.speculative import accepted_share, along

    texts = target_texts(
        open_model(target),
        content_of(target),
        [prompt] * 250,
        Generation(temperature=temperature, max_new_tokens=count),
        seed=0,
        vocabulary=128,
    )
    said = said_of(q.float(), texts, temperature, 128)
    q.double()
    cycles = []
    for text, (log_q, best) in zip(texts, said, strict=True):
        tokens = torch.tensor(text.completion)
        share = (
            (best == tokens).float()
            if method == "greedy"
            else accepted_share(torch.tensor(text.log_p), log_q)
        )
        cycles.append(along(share[1:].tolist(), k).cycles)

    draw = np.random.default_rng(0)
    known: dict[tuple[Any, ...], Any] = {}

    def distribution(network: Any, path: tuple[int, ...]) -> Any:
        key = (id(network), path)
        if key not in known:
            known[key] = torch.softmax(after(network, list(path)) / temperature, -1).numpy()
            if network is q and method == "greedy":
                known[key] = np.eye(128)[known[key].argmax()]
        return known[key]

    def sampled() -> int:
        path = (*prompt, int(draw.choice(128, p=distribution(p, tuple(prompt)))))
        done = 0
        while len(path) < len(prompt) + count and path[-1] != 2:
            done += 1
            draft: tuple[int, ...] = ()
            for _ in range(k):
                draft = (*draft, int(draw.choice(128, p=distribution(q, path + draft))))
            for token in (*draft, None):
                here = distribution(p, path)
                if token is None:
                    path = (*path, int(draw.choice(128, p=here)))
                    break
                theirs = distribution(q, path)
                if draw.random() < here[token] / theirs[token]:
                    path = (*path, token)
                    if token == 2 or len(path) == len(prompt) + count:
                        break
                    continue
                rest = np.maximum(here - theirs, 0)
                path = (*path, int(draw.choice(128, p=rest / rest.sum())))
                break
        return done

    real = [sampled() for _ in range(250)]
    error = np.hypot(np.std(real), np.std(cycles)) / np.sqrt(250)
    assert np.mean(cycles) == pytest.approx(np.mean(real), abs=4 * error)
    assert np.mean(cycles) < count - 1.1, "something is accepted"


def test_the_target_is_its_own_perfect_draft(target: Path, prompts: Path) -> None:
    for changes in (
        {},
        {"temperature": 1.0, "draft_sample_method": "probabilistic"},
    ):
        entry = block(target, prompts, metric="acceptance_rate", **changes)
        with closing(ENGINES.load("hf")(config(entry), open_model(target), 1)) as engine:
            found = score(engine, entry)["speculative"]
            # Ends of texts: a cycle that the end cuts had more drafts than it needed.
            assert found.value > 0.85
            entry = block(target, prompts, metric="speed_up_predicted", **changes)
            assert score(engine, entry)["speculative"].value == pytest.approx(
                score(engine, block(target, prompts, **changes))["speculative"].value / 4
            ), "as many parameters: a pass costs the same"


def test_the_target_writes_once(
    engine: Engine, target: Path, prompts: Path, cache: Path, monkeypatch: Any
) -> None:
    first = score(engine, block(target, prompts))
    [file] = cache.iterdir()
    import evolve.stages.distill.teachers.hf as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_frozen", lambda *_: pytest.fail("opened again"))
        assert score(engine, block(target, prompts)) == first
        patch.undo()
    file.write_text("[[")
    assert score(engine, block(target, prompts)) == first, "a damaged file is written again"
    assert json.loads(file.read_text())


def test_what_is_wrong_is_said(engine: Engine, target: Path, prompts: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "other", vocab=120)
    with pytest.raises(CandidateError, match="one tokenizer"):
        score(engine, block(tmp_path / "other", prompts))
    for changes, key in (({"target": str(tmp_path / "no")}, "target"), ({"prompts": "no"}, "prompts")):
        data = block(target, prompts)["speculative"] | changes
        with pytest.raises(ScorerProblem) as caught:
            Speculative(SpeculativeBlock.model_validate(data), config({"size": {}}))
        assert caught.value.key == key
