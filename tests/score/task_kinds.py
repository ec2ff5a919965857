"""One local task of every kind that lm-eval knows and evolve scores, small enough for a tiny random model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from tests.score.local_tasks import (
    CHOICE,
    GENERATE,
    METRIC,
    ROLLING,
    choice_docs,
    generate_docs,
    write_task,
)

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["the", "hen", "and", "rat", "one", "ten", "red", "sea", "tie", "net", "ore", "ant", "end", "tan"]

KINDS = {
    "choice": "acc_norm",
    "letters": "acc",
    "contexts": "acc",
    "long": "acc",
    "mutual": "acc_mutual_info",
    "shots": "acc",
    "generate": "exact_match,all",
    "stops": "exact_match",
    "prefix": "exact_match,all",
    "plain": "perplexity",
    "empty": "perplexity",
    "rolling": "bits_per_byte",
}
"""Task to its metric."""

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sentence(number: int, count: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(count))


def write_kinds(folder: Path) -> None:
    """Write every task of ``KINDS``, and a group of two of them."""
    write_task(folder, "choice", choice_docs(8), **CHOICE)
    letters = [doc | {"choices": list("ABCD")} for doc in choice_docs(8)]
    write_task(folder, "letters", letters, **CHOICE)
    write_task(
        folder,
        "contexts",
        [{"text": sentence(i, 6), "options": WORDS[i : i + 2], "answer": i % 2} for i in range(8)],
        output_type="multiple_choice",
        doc_to_text="answer",
        doc_to_choice="{{[text + ' ' + options[0], text + ' ' + options[1]]}}",
        doc_to_target="and so on, to the end",
        metric_list=[{"metric": "acc", **METRIC}],
    )
    long = [doc | {"question": sentence(i, 40)} for i, doc in enumerate(choice_docs(6))]
    write_task(folder, "long", long, **CHOICE)
    write_task(
        folder,
        "mutual",
        choice_docs(8),
        **CHOICE | {"metric_list": [{"metric": "acc_mutual_info", **METRIC}]},
    )
    shots = {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}, "description": "Pick one.\n\n"}
    write_task(folder, "shots", choice_docs(8), train=choice_docs(4, start=50), **CHOICE | shots)
    _write_generation(folder)
    _write_likelihoods(folder)
    group = {"group": "both", "task": ["choice", "generate"]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    inner = {"group": "inner", "task": ["shots", "long"]}
    for name, by_size in (("sized", True), ("alike", False)):
        rule = [{"metric": "acc", "weight_by_size": by_size}]
        group = {"group": name, "task": ["choice", inner], "aggregate_metric_list": rule}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))


def _write_generation(folder: Path) -> None:
    all_of_it = [{"name": "all", "filter": [{"function": "take_first"}]}]
    first_letter = {"doc_to_target": "{{reply[:0]}}", "filter_list": all_of_it}
    write_task(folder, "generate", generate_docs(8), **GENERATE | first_letter)
    rules = {"until": ["e", " t"], "do_sample": False, "max_gen_toks": 12}
    write_task(
        folder,
        "stops",
        generate_docs(8),
        train=[{"question": f"{i} less 1", "reply": str(i - 1)} for i in range(20, 24)],
        **GENERATE
        | {"generation_kwargs": rules, "filter_list": None, "num_fewshot": 2}
        | {"fewshot_config": {"sampler": "first_n"}},
    )
    write_task(folder, "prefix", generate_docs(6), **GENERATE | first_letter, gen_prefix="It is")


def _write_likelihoods(folder: Path) -> None:
    plain = {
        "output_type": "loglikelihood",
        "doc_to_text": "question",
        "doc_to_target": "reply",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", **METRIC},
        ],
    }
    write_task(
        folder, "plain", [{"question": f"{i} and", "reply": sentence(i, 3)} for i in range(8)], **plain
    )
    write_task(
        folder,
        "empty",
        [{"question": "", "reply": sentence(i, 4)} for i in range(6)],
        **plain | {"target_delimiter": ""},
    )
    # The longest texts fill several windows of a model that reads 256 tokens.
    write_task(
        folder, "rolling", [{"text": f"{i}: {sentence(i, 3 + 50 * (i % 4))}"} for i in range(6)], **ROLLING
    )
