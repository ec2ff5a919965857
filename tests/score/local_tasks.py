"""Local lm-eval tasks written in code, and a model whose answers are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml
from lm_eval.api.model import LM

from evolve.config.schema import ScoreConfig

if TYPE_CHECKING:
    from pathlib import Path

METRIC = {"aggregation": "mean", "higher_is_better": True}


def write_task(folder: Path, name: str, docs: list[dict[str, Any]], **changes: Any) -> None:
    """Write ``name.yaml`` and its JSONL; ``train`` among the changes is a list of few-shot documents."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"test": f"{name}.jsonl"}
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    train = changes.pop("train", None)
    block: dict[str, Any] = {"task": name, "dataset_path": "json", "test_split": "test"}
    if train is not None:
        files["train"] = f"{name}.train.jsonl"
        (folder / files["train"]).write_text("".join(json.dumps(doc) + "\n" for doc in train))
        block["fewshot_split"] = "train"
    block["dataset_kwargs"] = {"data_files": files}
    block |= changes
    block = {key: value for key, value in block.items() if value is not None}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(block))


def choice_docs(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Four-way questions; the right answer of question i is choice i % 4."""
    return [
        {"question": f"What comes after {i}?", "choices": [f"{i} {c}" for c in "abcd"], "answer": i % 4}
        for i in range(start, start + count)
    ]


CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", **METRIC}, {"metric": "acc_norm", **METRIC}],
}

GENERATE: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{reply}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", **METRIC}],
    "filter_list": [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {
            "name": "number",
            "filter": [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}],
        },
    ],
}

ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
    ],
}


def generate_docs(count: int) -> list[dict[str, Any]]:
    return [{"question": f"{i} plus 1", "reply": str(i + 1)} for i in range(count)]


def rolling_docs(count: int) -> list[dict[str, Any]]:
    return [{"text": f"line {i} " + "and more words " * (i % 5)} for i in range(count)]


def config(folder: Path, *tasks: dict[str, Any], holdout: int = 0, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"backend": "hf", "tasks": list(tasks), "holdout": {"items": holdout}, "include_path": str(folder)}
        | changes
    )


class KnownModel(LM):
    """Knows the answers to a share of the questions, told apart by their number; counts its calls."""

    def __init__(self, knows: Any = lambda number: True, *, loglikelihood: float = -1.0) -> None:
        super().__init__()
        self.knows = knows
        self.value = loglikelihood
        self.prompts: list[str] = []
        self.calls = 0

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.calls += 1
        answers = []
        for request in requests:
            context, continuation = request.args
            self.prompts.append(context)
            number = int(continuation.split()[0])
            right = "abcd"[number % 4] if self.knows(number) else "abcd"[(number + 1) % 4]
            answers.append((self.value if continuation.endswith(right) else 4 * self.value, False))
        return answers

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        replies = []
        for request in requests:
            context, arguments = request.args
            assert arguments.pop("until") == ["\n"]  # a careless engine: the next call must see it again
            self.prompts.append(context)
            number = int(context.split()[-4])
            replies.append(f"{number + 1}" if self.knows(number) else f"it is {number + 1}")
        return replies

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        return [self.value * len(request.args[0].split()) ** 1.5 for request in requests]


class Holder:
    """An engine that only holds a model."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm

    def load(self, model: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass
