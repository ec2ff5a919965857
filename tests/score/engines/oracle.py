"""What the engines must say, computed from plain transformers models, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from evolve.config.schema import ScoreConfig
from evolve.weights.reader import open_model
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from evolve.weights.model import Model

CONTEXT = (
    "the reader of the other end in the hen and the tin ran on and on to the red hen in the tent " * 2 + "on"
)
LONG = " one and then another one and then the other ones, in order"
PAIRS = (
    ("the cat and the", " hen on the red"),
    ("", "an hour"),
    (CONTEXT, " no"),
    (CONTEXT, " yes, there"),
    (CONTEXT, LONG + " a"),
    (CONTEXT, LONG + " b"),
    (CONTEXT, LONG + " b"),
    (CONTEXT, " yes, there"),
)
"""Shared contexts, a continuation shared over more than a KV block, and repeated requests."""
TEXTS = ("the end of the tent", CONTEXT, CONTEXT)
PROMPTS = ("the cat and", CONTEXT, "on the")


def config(**changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate(
        {"tasks": [{"task": "any", "metric": "acc"}], "dtype": "float32", **changes}
    )


def make(root: Path, arch: str, *, tied: bool, seed: int, layers: int = 2, dtype: str = "float32") -> Model:
    folder = root / f"{arch}-{tied}-{seed}-{layers}-{dtype}"
    if not folder.exists():
        with patch.object(tiny, "make_config", _with_qwen3(tiny.make_config)):
            tiny.make_model(folder, arch, tied=tied, seed=seed, layers=layers, dtype=dtype)
    return open_model(folder)


def _with_qwen3(known: Callable[..., Any]) -> Callable[..., Any]:
    def make_config(arch: str, **more: Any) -> Any:
        if arch != "qwen3":
            return known(arch, **more)
        from transformers import Qwen3Config

        return Qwen3Config.from_dict(
            {**known("qwen2", **more).to_dict(), "model_type": "qwen3", "head_dim": 32}
        )

    return make_config


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def scores(lm: Any) -> list[tuple[float, bool]]:
    return [(value, bool(greedy)) for value, greedy in lm.loglikelihood(instances("loglikelihood", [*PAIRS]))]


def rolling(lm: Any) -> list[float]:
    return list(lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in TEXTS])))


def generated(lm: Any) -> list[str]:
    rules = {"until": ["\n\n"], "max_gen_toks": 10, "do_sample": False}
    return list(lm.generate_until(instances("generate_until", [(prompt, rules) for prompt in PROMPTS])))


class Oracle:
    """A plain transformers model read from the folder of ``model``, and its answers in float64."""

    def __init__(self, model: Model) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model.files)
        network = AutoModelForCausalLM.from_pretrained(model.files, dtype=torch.float64).eval()
        self.network = network
        self.scores = [self._score(self._ids(a), self._ids(a + b)) for a, b in PAIRS]
        self.rolling = [self._score([], self._ids(text))[0] for text in TEXTS]
        self.generated = [self._generate(self._ids(prompt)) for prompt in PROMPTS]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _logits(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.network(torch.tensor([ids])).logits[0].double()

    def _score(self, context: list[int], whole: list[int]) -> tuple[float, bool]:
        import torch

        if not context:
            context, whole = [1], [1, *whole]
        logits = torch.log_softmax(self._logits(whole), dim=-1)
        places = range(len(context), len(whole))
        value = sum(logits[i - 1, whole[i]].item() for i in places)
        return value, all(int(logits[i - 1].argmax()) == whole[i] for i in places)

    def _generate(self, ids: list[int]) -> str:
        new: list[int] = []
        while len(new) < 10:
            token = int(self._logits(ids + new)[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            new.append(token)
        return str(self.tokenizer.decode(new)).split("\n\n")[0]


def agree(found: list[Any], wanted: list[Any], tolerance: float = 1e-4) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, tuple):
            assert one[1] == other[1], (found, wanted)
            one, other = one[0], other[0]
        assert abs(one - other) <= tolerance, (found, wanted)


def differ(some: list[Any], others: list[Any]) -> None:
    """Every value moved by far more than the tolerance, so that agreement with one of them says something."""
    for one, other in zip(some, others, strict=True):
        one, other = (one[0], other[0]) if isinstance(one, tuple) else (one, other)
        assert abs(one - other) > 0.01, (some, others)


def changed(model: Model, name_part: str, edit: Callable[[Tensor], Tensor]) -> Model:
    """Return ``model`` with the tensors whose names contain ``name_part`` edited as they are read."""

    def tensor(name: str) -> Tensor:
        value = model.tensor(name)
        return edit(value.clone()) if name_part in name else value

    return replace(model, tensor=tensor)


def failing(model: Model, after: int) -> Model:
    """Return ``model`` that raises at the tensor number ``after``."""
    names = list(model.specs)

    def tensor(name: str) -> Tensor:
        if names.index(name) >= after:
            raise RuntimeError("no such luck")
        return model.tensor(name)

    return replace(model, tensor=tensor)


def without(model: Model, name: str) -> Model:
    return replace(model, specs={key: spec for key, spec in model.specs.items() if key != name})


def misshapen(model: Model, name: str) -> Model:
    specs = dict(model.specs)
    specs[name] = replace(specs[name], shape=(specs[name].shape[0] + 1, *specs[name].shape[1:]))
    return replace(model, specs=specs)
