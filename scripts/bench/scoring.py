"""What scoring one candidate costs beside the bare model, and beside plain lm-eval on the same model.

    python scripts/bench/scoring.py --model models/smollm2/base --backend hf [--items 200] [--json FILE]

Two tasks are made up from a seed: four-way questions about a short passage, and texts to go on with. The
engine holds the model all the time, as in a search. *Ours* is one call of the scorer, tasks and prompts
ready. *Bare* is what the engine cannot do without: the same batches through the model (hf), or one
``generate`` with the same prompts (vllm), nothing before and nothing after. *Peer* is
``lm_eval.simple_evaluate`` on lm-eval's own model class around the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bare import bare_for
from report import Row, table, write

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT = (
    "the river a house of stone and wood near old bridge where people come in spring to sell bread wool salt "
    "they say that one winter wind took roof from mill so miller went down valley with his three sons asked "
    "king for help but no answer came until summer when trees were green again"
)
WORDS = _TEXT.split()
_MEAN = {"aggregation": "mean", "higher_is_better": True}
_TASK = "benchmark_{}"


class Seconds(NamedTuple):
    """How long something took; CPU seconds of all threads do not count the waiting for other programs."""

    clock: float
    cpu: float


def passage(draw: random.Random, words: int) -> str:
    """Return so many words as sentences."""
    text = " ".join(draw.choice(WORDS) for _ in range(words))
    return text[0].upper() + text[1:] + "."


def choice_items(count: int) -> list[dict[str, Any]]:
    """Return four-way questions: a passage of 10 to 30 words, answers of 1 to 6."""
    draw = random.Random(0)
    return [
        {
            "question": f"{passage(draw, draw.randint(10, 30))}\nQuestion {number}: what is next?\nAnswer:",
            "choices": [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(4)],
            "answer": draw.randrange(4),
        }
        for number in range(count)
    ]


def text_items(count: int) -> list[dict[str, Any]]:
    """Return texts of 10 to 60 words to go on with."""
    draw = random.Random(1)
    return [
        {"question": f"Text {number}: {passage(draw, draw.randint(10, 60))[:-1]} and", "answer": ""}
        for number in range(count)
    ]


def write_tasks(folder: Path, items: int, texts: int, new_tokens: int) -> None:
    """Write both tasks as lm-eval wants them; JSON is YAML."""
    blocks: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "choices": (
            choice_items(items),
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "choices",
                "metric_list": [{"metric": "acc", **_MEAN}],
            },
        ),
        "generation": (
            text_items(texts),
            {
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": new_tokens, "do_sample": False},
                "metric_list": [{"metric": "exact_match", **_MEAN}],
            },
        ),
    }
    for kind, (docs, block) in blocks.items():
        data = folder / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        common = {
            "task": _TASK.format(kind),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_target": "{{answer}}" if kind == "generation" else "answer",
        }
        (folder / f"{kind}.yaml").write_text(json.dumps(common | block), encoding="utf-8")


def plain_lm(engine: Any, backend: str, batch_size: int) -> Any:
    """Return lm-eval's own model class around the engine's weights."""
    if backend == "hf":
        from lm_eval.models.huggingface import HFLM

        ours = engine.lm
        return HFLM(
            ours.model,
            tokenizer=ours.tokenizer,
            batch_size=batch_size,
            max_length=ours.max_length,
            softmax_dtype="float32",
        )
    from evolve.score.engines.vllm_lm import import_lm_eval_vllm

    kind = import_lm_eval_vllm().VLLM
    plain = kind.__new__(kind)
    vars(plain).update(vars(engine.lm))  # the engine that runs already
    plain.batch_size = 10**9  # everything at once as with "auto", which also draws a progress bar
    return plain


def clocked(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """Return the seconds of ``work`` and its result."""
    began, worked = time.perf_counter(), time.process_time()
    result = work()
    return Seconds(time.perf_counter() - began, time.process_time() - worked), result


def middle(values: list[Seconds], which: str) -> float | None:
    """Return the median of one kind of seconds."""
    return statistics.median(getattr(one, which) for one in values) if values else None


def figures(kind: str, times: dict[str, list[Seconds]], others: dict[str, float]) -> list[Row]:
    """Return the rows of one task."""
    rows = []
    for which, unit in (("cpu", "CPU seconds"), ("clock", "by the clock")):
        ours, limit = middle(times["ours"], which), middle(times["bare"], which)
        rows.append(Row(f"{kind}: one candidate, {unit}", ours, middle(times["peer"], which), limit))
        if ours and limit:
            rows.append(Row(f"{kind}: ours by bare, {unit} (at most 1.15)", ours / limit))
        rows.append(Row(f"{kind}: bare, every prompt whole, {unit}", middle(times["unshared"], which)))
    return rows + [Row(f"{kind}: {figure}", value) for figure, value in others.items()]


def measure(kind: str, options: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Score one task in turns with the bare model and the peer; return medians and what was measured."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from evolve.config.schema import ScoreConfig
    from evolve.registry import ENGINES
    from evolve.score.scorer import Scorer
    from evolve.weights.reader import open_model

    name, metric = _TASK.format(kind), "acc" if kind == "choices" else "exact_match"
    config = ScoreConfig.model_validate(
        {
            "backend": options.backend,
            "tasks": [{"task": name, "metric": metric}],
            "holdout": {"items": 0},
            "include_path": str(folder),
            "dtype": options.dtype,
            "batch_size": options.batch_size,
            "max_length": 512,
        }
    )
    scorer = Scorer(config)
    preparing, _ = clocked(scorer.prepare)
    catalog = TaskManager(include_path=str(folder), include_defaults=False)
    model = open_model(options.model)
    with closing(ENGINES.load(options.backend)(config, model, options.threads)) as engine:
        loading, _ = clocked(lambda: engine.load(model))
        bare = bare_for(options.backend, engine.lm)
        with bare.watching():
            first, _ = clocked(lambda: scorer.score(engine, "search"))
        peer = plain_lm(engine, options.backend, options.batch_size)
        times: dict[str, list[Seconds]] = {"ours": [], "bare": [], "peer": [], "unshared": []}
        scores: dict[str, float] = {}
        for number in range(options.rounds):
            seconds, found = clocked(lambda: scorer.score(engine, "search"))
            times["ours"].append(seconds)
            times["bare"].append(clocked(bare.run)[0])
            scores["ours"] = found[name].value
            if number < options.peer_rounds:
                times["unshared"].append(clocked(bare.run_unshared)[0])
                bare.forget()
                seconds, results = clocked(
                    lambda: simple_evaluate(peer, tasks=[name], task_manager=catalog, bootstrap_iters=0)
                )
                times["peer"].append(seconds)
                scores["peer"] = results["results"][name][f"{metric},none"]
        shares = bare.shares()
        work = getattr(engine.lm, "work", {})
    once = {
        "once: tasks and prompts": preparing.clock,
        "first candidate, CPU seconds": first.cpu,
        "load of the weights": loading.clock,
    }
    return figures(kind, times, {**once, **shares, **work}), {"times": times, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a model folder, such as SmolLM2-135M")
    parser.add_argument("--backend", choices=("hf", "vllm"), required=True)
    parser.add_argument("--kind", choices=("choices", "generation"), action="append", help="default: both")
    parser.add_argument("--items", type=int, default=200, help="four-way items (default 200)")
    parser.add_argument("--texts", type=int, default=48, help="texts to go on with (default 48)")
    parser.add_argument("--new-tokens", type=int, default=24, help="longest reply (default 24)")
    parser.add_argument("--rounds", type=int, default=3, help="times that ours and bare run (default 3)")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of these, with lm-eval (default 1)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    rows: list[Row] = []
    document: dict[str, Any] = {"benchmark": "scoring", "backend": options.backend, "items": options.items}
    with tempfile.TemporaryDirectory(prefix="evolve-bench-") as folder:
        write_tasks(Path(folder), options.items, options.texts, options.new_tokens)
        for kind in options.kind or ("choices", "generation"):
            found, document[kind] = measure(kind, options, Path(folder))
            rows += found
    document["load_average"] = os.getloadavg()
    print(table(rows))
    for kind in options.kind or ("choices", "generation"):
        print(f"{kind}: scores {document[kind]['scores']}")
    print("load average", *(f"{value:.1f}" for value in document["load_average"]))
    write(options.json, document, rows)


if __name__ == "__main__":
    main()
