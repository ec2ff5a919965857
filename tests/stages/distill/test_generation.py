"""What models write: against the distribution itself, and whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from evolve.stages.distill.generation import Generation, complete, ends_of, student_rollouts
from evolve.stages.distill.sequence import teacher_rows
from evolve.training.rows import IGNORED
from tests.tiny import make_model

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[5, 6, 7], [9], [8] * 20, [11, 12], [30, 31, 32, 33]]


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def network(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    folder = make_model(tmp_path_factory.mktemp("m") / "m", request.param, seed=2)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def after(network: Any, tokens: Any) -> Any:
    with torch.no_grad():
        return network(torch.tensor([list(tokens)])).logits[0, -1].double()


def test_a_prompts_text_does_not_depend_on_its_batch(network: Any) -> None:
    settings = Generation(max_new_tokens=12)
    whole = complete(network, PROMPTS, settings, seed=4)
    assert whole == [complete(network, [one], settings, seed=4)[0] for one in PROMPTS]
    assert whole[::-1] == complete(network, PROMPTS[::-1], settings, seed=4)
    assert whole != complete(network, PROMPTS, settings, seed=5)
    [one, two] = complete(network, [PROMPTS[0]] * 2, settings, seed=4)
    assert one == whole[0] and one != two, "the same prompt again gets another text"


def test_the_most_likely_tokens(network: Any) -> None:
    for prompt, found in zip(
        PROMPTS, complete(network, PROMPTS, Generation(temperature=0, max_new_tokens=6), seed=0), strict=True
    ):
        text = list(prompt)
        for token in found.tokens:
            assert token == int(after(network, text).argmax())
            text.append(token)


@pytest.mark.parametrize(
    "settings",
    [
        Generation(0.6),
        Generation(1.3, top_k=5, top_p=0.7),
        pytest.param(Generation(1.0), marks=pytest.mark.slow),
        pytest.param(Generation(1.0, top_p=0.4), marks=pytest.mark.slow),
    ],
)
def test_draws_are_of_the_distribution(network: Any, settings: Generation) -> None:
    settings = Generation(settings.temperature, settings.top_p, settings.top_k, max_new_tokens=1)
    count = 600
    found = Counter(one.tokens[0] for one in complete(network, [[5, 6]] * count, settings, seed=1))
    p = (after(network, [5, 6]) / settings.temperature).softmax(-1)
    order = p.argsort(descending=True)
    keep = settings.top_k or len(p)
    # The share of top_p is of what top_k has left.
    kept = p[order[:keep]] / p[order[:keep]].sum()
    if settings.top_p < 1:
        keep = int((kept.cumsum(0) < settings.top_p).sum()) + 1
    allowed = set(order[:keep].tolist())
    assert set(found) <= allowed
    p = torch.where(torch.isin(torch.arange(len(p)), order[:keep]), p, 0.0)
    p = (p / p.sum()).numpy()
    seen = np.array([found[token] for token in range(len(p))])
    error = np.sqrt(count * p * (1 - p)) + 1e-9
    assert (np.abs(seen - count * p) <= 5 * error + 1).all()


def test_an_end_token_ends_and_counts_also_where_it_pads(network: Any) -> None:
    greedy = Generation(temperature=0, max_new_tokens=6)
    [free] = complete(network, [PROMPTS[3]], greedy, seed=0, eos=())
    assert len(free.tokens) == 6 and not free.finished
    end = free.tokens[2]
    cut = free.tokens.index(end) + 1
    rows = student_rollouts(network, PROMPTS, greedy, seed=0, eos=[end])
    row = rows[3]
    assert row.tokens.tolist() == [*PROMPTS[3], *free.tokens[:cut]]
    assert row.labels.tolist() == [IGNORED, IGNORED, *free.tokens[:cut]], "the end token is learned"
    assert row.lengths == (len(row.tokens),)
    assert all(
        (one.labels != IGNORED).sum() == len(one) - len(p) for one, p in zip(rows, PROMPTS, strict=True)
    )


def test_the_networks_own_settings_do_not_leak_and_are_kept(network: Any) -> None:
    settings = Generation(temperature=0.8, max_new_tokens=8)
    plain = complete(network, PROMPTS, settings, seed=0, eos=())
    own = GenerationConfig(
        repetition_penalty=5.0, top_k=1, do_sample=True, min_new_tokens=3, eos_token_id=[2, 7], pad_token_id=2
    )
    before, network.generation_config = network.generation_config, own
    network.train()
    try:
        assert complete(network, PROMPTS, settings, seed=0, eos=()) == plain
        assert network.training and network.generation_config is own
        assert ends_of(network) == (2, 7)
    finally:
        network.generation_config = before
        network.eval()


def test_room_and_empty_prompts(network: Any) -> None:
    settings = Generation(temperature=0, max_new_tokens=9)
    rows = student_rollouts(network, PROMPTS, settings, seed=0, eos=(), room=22)
    assert [len(row) for row in rows] == [12, 10, 22, 11, 13]
    with pytest.raises(ValueError, match="leaves no room in 20"):
        complete(network, PROMPTS, settings, seed=0, room=20)
    with pytest.raises(ValueError, match="empty prompt"):
        complete(network, [[]], settings, seed=0)
    assert complete(network, [], settings, seed=0) == []


class Writer:
    """A teacher that writes with a network and counts."""

    def __init__(self, network: Any, *, dies_at: int = 10**9) -> None:
        self.network, self.dies_at = network, dies_at
        self.prompts = self.closed = 0

    def complete(self, prompts: Any, settings: Generation, *, seed: int) -> Any:
        if self.prompts >= self.dies_at:
            raise KeyboardInterrupt
        self.prompts += len(prompts)
        return complete(self.network, prompts, settings, seed=seed)

    def close(self) -> None:
        self.closed += 1


def test_a_teachers_texts_are_asked_for_once(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    prompts = [[5 + number % 40, 6] for number in range(70)]
    settings = Generation(max_new_tokens=2)

    def rows(writer: Any, **more: Any) -> Any:
        found = teacher_rows(lambda: writer, "sha256:t", prompts, settings, **{"seed": 3, **more})
        return [row.tokens.tolist() for row in found]

    killed, rest = Writer(network, dies_at=64), Writer(network)
    with pytest.raises(KeyboardInterrupt):
        rows(killed)
    first = rows(rest)
    assert killed.prompts == 64 and rest.prompts == 6 and killed.closed == rest.closed == 1
    assert rows(None) == first, "nobody is asked"
    assert first[0][:2] == first[40][:2] and first[0] != first[40]
    other = Writer(network)
    assert rows(other, seed=4) != first and other.prompts == 70
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    assert rows(Writer(network)) == first, "what was kept before changes nothing"
    for file in (tmp_path / "two" / "evolve" / "completions").iterdir():
        file.write_text("[")
    assert rows(Writer(network)) == first
