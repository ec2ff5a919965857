from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import CandidateError, TaskError
from evolve.score import scorer as module
from evolve.score.items import item_key
from evolve.score.scorer import Scorer, no_means
from evolve.score.tasks import load_tasks
from tests.score.local_tasks import (
    CHOICE,
    GENERATE,
    ROLLING,
    Holder,
    KnownModel,
    choice_docs,
    config,
    generate_docs,
    rolling_docs,
    write_task,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "täsks [of mine] *"
    write_task(folder, "choice", choice_docs(40), **CHOICE)
    write_task(folder, "generate", generate_docs(30), **GENERATE)
    write_task(folder, "rolling", rolling_docs(20), **ROLLING)
    return folder


def test_known_answers_give_known_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    scorer = Scorer(
        config(
            folder,
            {"task": "choice", "metric": "acc", "items": 24},
            {"task": "generate", "metric": "exact_match", "items": 20},
            {"task": "rolling", "metric": "bits_per_byte"},
            holdout=10,
        )
    )
    model = KnownModel(lambda number: number % 3 != 0)
    for split in ("search", "holdout"):
        scores = scorer.score(Holder(model), split)
        docs = {item_key(doc): i for i, doc in enumerate(choice_docs(40))}
        assert scores["choice"].items == {key: float(docs[key] % 3 != 0) for key in scores["choice"].items}
        assert set(scores["choice"].items.values()) == {0.0, 1.0}
        shares = [docs[key] % 3 != 0 for key in scores["choice"].items]
        assert scores["choice"].value == pytest.approx(sum(shares) / len(shares))
        p, n = sum(shares) / len(shares), len(shares)
        assert scores["choice"].stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
        replies = {item_key(doc): i for i, doc in enumerate(generate_docs(30))}
        assert scores["generate"].items == {
            key: float(replies[key] % 3 != 0) for key in scores["generate"].items
        }
        texts = {item_key(doc): doc["text"] for doc in rolling_docs(20)}
        picked = [texts[key] for key in scores["rolling"].items]
        bits = sum(len(text.split()) ** 1.5 for text in picked) / math.log(2)
        assert scores["rolling"].value == pytest.approx(bits / sum(len(text) for text in picked))
        assert not scores["rolling"].higher_is_better
        assert sum(scores["rolling"].items.values()) / len(picked) == pytest.approx(scores["rolling"].value)


def test_splits_are_disjoint_and_sized(folder: Path) -> None:
    scorer = Scorer(config(folder, {"task": "choice", "metric": "acc", "items": 24}, holdout=10))
    sets = [set(scorer.score(Holder(KnownModel()), split)["choice"].items) for split in ("search", "holdout")]
    assert [len(part) for part in sets] == [24, 10]
    assert not sets[0] & sets[1]
    assert sets[0] | sets[1] <= {item_key(doc) for doc in choice_docs(40)}
    rest = Scorer(config(folder, {"task": "choice", "metric": "acc"}, holdout=10))
    assert rest.sizes == {"choice": {"search": 30, "holdout": 10}}


def test_a_filter_is_named_or_the_first(folder: Path) -> None:
    model = KnownModel(lambda number: False)
    values = []
    for metric in ("exact_match", "exact_match,strict", "exact_match,number"):
        scorer = Scorer(config(folder, {"task": "generate", "metric": metric}))
        values.append(scorer.score(Holder(model), "search")["generate"].value)
    assert values == [0.0, 0.0, 1.0]


def test_calls_agree_although_the_engine_spoils_its_requests(folder: Path) -> None:
    scorer = Scorer(config(folder, {"task": "generate", "metric": "exact_match"}, holdout=5))
    first = scorer.score(Holder(KnownModel()), "search")
    scorer.score(Holder(KnownModel()), "holdout")
    assert scorer.score(Holder(KnownModel()), "search") == first


def test_file_order_and_place_change_nothing(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    docs = choice_docs(40)
    random.Random(1).shuffle(docs)
    write_task(other, "choice", [{key: doc[key] for key in sorted(doc)} for doc in docs], **CHOICE)
    task = {"task": "choice", "metric": "acc", "items": 12}
    scorers = [Scorer(config(place, task, holdout=7)) for place in (folder, other)]
    assert scorers[0].fingerprint == scorers[1].fingerprint
    models = [KnownModel(), KnownModel()]
    scores = [scorer.score(Holder(model), "search") for scorer, model in zip(scorers, models, strict=True)]
    assert scores[0] == scores[1]
    assert models[0].prompts == models[1].prompts


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"metric": "acc_norm"}},
        {"task": {"items": 13}},
        {"task": {"num_fewshot": 1}},
        {"holdout": 8},
        {"seed": 1},
        {"max_length": 64},
        {"system_instruction": "Be brief."},
        {"engine_args": {"quantization": "fp8"}},
    ],
)
def test_what_decides_a_score_is_in_the_fingerprint(folder: Path, change: dict[str, Any]) -> None:
    task = {"task": "choice", "metric": "acc", "items": 12}
    base = Scorer(config(folder, task, holdout=7)).fingerprint
    task |= change.pop("task", {})
    assert Scorer(config(folder, task, holdout=change.pop("holdout", 7), **change)).fingerprint != base


def test_weights_batches_and_template_text(folder: Path) -> None:
    task = {"task": "choice", "metric": "acc", "items": 12}
    base = Scorer(config(folder, task, holdout=7)).fingerprint
    assert Scorer(config(folder, task | {"weight": 2.0}, holdout=7, batch_size=3)).fingerprint == base
    write_task(folder, "choice", choice_docs(40), **CHOICE | {"description": "Choose."})
    assert Scorer(config(folder, task, holdout=7)).fingerprint != base


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize(("task", "metric"), [("choice", "acc"), ("rolling", "bits_per_byte")])
def test_non_finite_answers_name_the_task(folder: Path, value: float, task: str, metric: str) -> None:
    scorer = Scorer(config(folder, {"task": task, "metric": metric}))
    with pytest.raises(CandidateError, match=task) as caught:
        scorer.score(Holder(KnownModel(loglikelihood=value)), "search")
    assert caught.value.kind == "non_finite"
    assert scorer.score(Holder(KnownModel()), "search")[task].items


def test_duplicates_collapse(tmp_path: Path) -> None:
    docs = choice_docs(20)
    twins = [{**doc, "id": f"copy {i}"} for i, doc in enumerate(docs)]
    write_task(tmp_path, "choice", [{**doc, "id": "same"} for doc in docs + docs[:5]] + twins, **CHOICE)
    scorer = Scorer(config(tmp_path, {"task": "choice", "metric": "acc"}, holdout=8))
    assert scorer.sizes == {"choice": {"search": 12, "holdout": 8}}
    assert scorer.duplicates == {"choice": 25}


def test_no_item_is_in_the_search_of_one_task_and_the_holdout_of_another(tmp_path: Path) -> None:
    write_task(tmp_path, "one", choice_docs(40), **CHOICE)
    write_task(tmp_path, "two", choice_docs(40, start=20), **CHOICE)
    scorer = Scorer(
        config(tmp_path, {"task": "one", "metric": "acc"}, {"task": "two", "metric": "acc"}, holdout=12)
    )
    search, holdout = (scorer.score(Holder(KnownModel()), split) for split in ("search", "holdout"))
    everything = {
        split: set(scores["one"].items) | set(scores["two"].items)
        for split, scores in (("search", search), ("holdout", holdout))
    }
    assert not everything["search"] & everything["holdout"]


def test_there_is_no_holdout_to_score(folder: Path) -> None:
    with pytest.raises(TaskError, match="no holdout"):
        Scorer(config(folder, {"task": "choice", "metric": "acc"})).score(Holder(KnownModel()), "holdout")


def test_an_engine_that_cannot_generate(folder: Path) -> None:
    class Mute(KnownModel):
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    with pytest.raises(TaskError, match="generate_until"):
        Scorer(config(folder, {"task": "generate", "metric": "exact_match"})).score(Holder(Mute()), "search")


def test_chat_template_follows_the_tokenizer(folder: Path) -> None:
    class Chatty(KnownModel):
        def __init__(self, mark: str) -> None:
            super().__init__()
            self.tokenizer = object()
            self.mark = mark

        def apply_chat_template(
            self, history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return "".join(f"{self.mark}{turn['role']}:{turn['content']}" for turn in history)

    scorer = Scorer(
        config(
            folder,
            {"task": "choice", "metric": "acc", "items": 4},
            apply_chat_template=True,
            system_instruction="Be brief.",
        )
    )
    for mark in ("<", "["):
        model = Chatty(mark)
        scorer.score(Holder(model), "search")
        assert all(prompt.startswith(f"{mark}system:Be brief.") for prompt in model.prompts)
        assert all(f"{mark}user:What comes after" in prompt for prompt in model.prompts)


def test_alternating_tokenizers_get_their_prompts_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As engines do: each restart makes new objects, and the key tells which tokenizer it is."""

    class Chatty(KnownModel):
        def __init__(self, key: str) -> None:
            super().__init__()
            self.tokenizer = object()
            self.tokenizer_key = key

        def apply_chat_template(self, history: Any, add_generation_prompt: bool = True) -> str:
            return "".join(f"{self.tokenizer_key}{turn['content']}" for turn in history)

    built: list[str] = []
    real = module.build_requests

    def counting(loaded: Any, items: Any, config: Any, lm: Any) -> Any:
        built.append(getattr(lm, "tokenizer_key", "plain"))
        return real(loaded, items, config, lm)

    monkeypatch.setattr(module, "build_requests", counting)
    task = {"task": "choice", "metric": "acc", "items": 4}
    scorer = Scorer(config(folder, task, apply_chat_template=True))
    for mark in "<[<[<":
        model = Chatty(mark)
        scorer.score(Holder(model), "search")
        assert len(model.prompts) == 16
        assert all(prompt.startswith(f"{mark}What comes after") for prompt in model.prompts)
    assert sorted(name for name in built if name != "plain") == ["<", "["]


class TestFewShot:
    def scored(self, model: KnownModel) -> set[str]:
        return {prompt.rsplit("\n\n", 1)[-1] for prompt in model.prompts}

    def shown(self, model: KnownModel) -> set[str]:
        return {
            line
            for prompt in model.prompts
            for shot in prompt.split("\n\n")[:-1]
            for line in [shot[: shot.index("?") + 1]]
        }

    def run(self, scorer: Scorer) -> KnownModel:
        model = KnownModel()
        scorer.score(Holder(model), "search")
        scorer.score(Holder(model), "holdout")
        return model

    def test_own_split_gives_examples_that_are_never_scored(self, tmp_path: Path) -> None:
        write_task(tmp_path, "choice", choice_docs(60), **CHOICE)
        task = {"task": "choice", "metric": "acc", "num_fewshot": 3}
        model = self.run(Scorer(config(tmp_path, task, holdout=20)))
        assert len(self.shown(model)) >= 3
        assert not self.shown(model) & self.scored(model)
        assert all(prompt.count("\n\n") == 3 for prompt in model.prompts)

    def test_train_split_with_copies_of_scored_items(self, tmp_path: Path) -> None:
        write_task(tmp_path, "choice", choice_docs(60), train=choice_docs(40, start=40), **CHOICE)
        model = self.run(
            Scorer(config(tmp_path, {"task": "choice", "metric": "acc", "num_fewshot": 4}, holdout=20))
        )
        assert len(self.shown(model)) > 10
        assert not self.shown(model) & self.scored(model)

    def test_examples_that_read_like_scored_items(self, tmp_path: Path) -> None:
        docs = [{**doc, "id": 0} for doc in choice_docs(60)]
        train = [{**doc, "id": 1} for doc in choice_docs(40, start=40)]
        write_task(tmp_path, "choice", docs, train=train, **CHOICE)
        task = {"task": "choice", "metric": "acc", "num_fewshot": 4}
        model = self.run(Scorer(config(tmp_path, task, holdout=20)))
        assert len(self.shown(model)) > 10
        assert not self.shown(model) & self.scored(model)

    def test_hand_picked_examples_stay(self, tmp_path: Path) -> None:
        picked = choice_docs(3)
        write_task(
            tmp_path,
            "choice",
            choice_docs(60),
            **CHOICE,
            fewshot_config={"sampler": "first_n", "samples": picked},
        )
        scorer = Scorer(config(tmp_path, {"task": "choice", "metric": "acc", "num_fewshot": 3}, holdout=20))
        model = self.run(scorer)
        assert self.shown(model) == {doc["question"] for doc in picked}
        assert scorer.sizes == {"choice": {"search": 37, "holdout": 20}}

    def test_prompts_do_not_change_with_the_subset(self, tmp_path: Path) -> None:
        write_task(tmp_path, "choice", choice_docs(80), **CHOICE)
        prompts = []
        for items in (10, 30):
            task = {"task": "choice", "metric": "acc", "num_fewshot": 2, "items": items}
            model = KnownModel()
            Scorer(config(tmp_path, task, holdout=20)).score(Holder(model), "search")
            prompts.append(set(model.prompts))
        assert len(prompts[0]) == 10
        assert prompts[0] < prompts[1]

    def test_too_few_examples(self, tmp_path: Path) -> None:
        write_task(tmp_path, "choice", choice_docs(30), train=choice_docs(3, start=90), **CHOICE)
        with pytest.raises(TaskError, match=r"score\.tasks\.0\.num_fewshot.*5 examples"):
            Scorer(config(tmp_path, {"task": "choice", "metric": "acc", "num_fewshot": 5})).prepare()


def test_prompts_are_kept_as_data_says(folder: Path) -> None:
    scorer = Scorer(config(folder, {"task": "choice", "metric": "acc", "items": 5}, holdout=5))
    requests = scorer.requests("search")
    assert len(requests) == 20
    assert {kind for _, kind, _ in requests} == {"loglikelihood"}
    assert all(arguments[1].startswith(" ") for _, _, arguments in requests)
    assert json.dumps(requests)


def test_parts_of_a_split_answer_as_the_whole_does(folder: Path) -> None:
    scorer = Scorer(
        config(
            folder,
            {"task": "choice", "metric": "acc", "items": 24},
            {"task": "generate", "metric": "exact_match", "items": 20},
        )
    )
    model = KnownModel(lambda number: number % 3 != 0)
    whole = scorer.score(Holder(model), "search")
    keys = {name: list(task.items) for name, task in whole.items()}
    asked = {"choice": [keys["choice"][place] for place in (20, 3, 7)], "generate": keys["generate"][5:6]}
    model.prompts.clear()
    part = scorer.score(Holder(model), "search", tuple((name, tuple(some)) for name, some in asked.items()))
    assert len(model.prompts) == 3 * 4 + 1
    for name, task in part.items():
        assert task.items == {key: whole[name].items[key] for key in asked[name]}
        assert task.value == pytest.approx(sum(task.items.values()) / len(task.items))
    only = scorer.score(Holder(model), "search", (("generate", tuple(keys["generate"][:2])),))
    assert list(only) == ["generate"]
    assert scorer.score(Holder(model), "search") == whole
    with pytest.raises(TaskError, match="has no item nowhere"):
        scorer.score(Holder(model), "search", (("choice", ("nowhere",)),))


def test_metrics_that_are_no_means_are_named(folder: Path) -> None:
    tasks = [{"task": "choice", "metric": "acc"}, {"task": "rolling", "metric": "bits_per_byte", "weight": 0}]
    assert no_means(load_tasks(config(folder, *tasks))[0], ["size"]) == ["rolling (bits_per_byte)", "size"]
