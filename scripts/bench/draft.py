"""Speculative decoding in vLLM beside what the scorer `speculative` predicts of it.

    python scripts/bench/draft.py TARGET DRAFT [DRAFT ...] PROMPTS.jsonl --num-speculative-tokens 4

TARGET and DRAFTs are folders of models with one vocabulary, such as one draft before and after distilling;
PROMPTS has a `text` a line. Processes of their own, one after the other: the target alone, and for each draft
the draft alone, the target with it, and the prediction. The engines decode one request at a time, as a person
who waits does. Times are of the whole list of prompts after one warm-up; each is run several times, and the
median with the extremes is shown. The draft's pass is timed alone, so that the predicted speed-up has a
measured cost ratio beside the ratio of the parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("drafts", nargs="+", metavar="draft")
    parser.add_argument("prompts")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--method", choices=["greedy", "probabilistic"], default="greedy")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-prompt-length", type=int, default=64)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument(
        "--ignore-eos", action="store_true", help="Write --max-new-tokens, whatever they are."
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Write the numbers as JSON.")
    parser.add_argument("--part", choices=["target", *PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        options.drafts = [options.of]
        result = PARTS.get(options.part, alone)(options)
        print("RESULT " + json.dumps(result), flush=True)
        return
    target = run("target", "")
    found = {draft: {part: run(part, draft) for part in PARTS} for draft in options.drafts}
    print(show(target, found, options))
    if options.out:
        plain = {"options": vars(options) | {"out": None}, "target": target, "drafts": found}
        options.out.write_text(json.dumps(plain, indent=1))


def run(part: str, draft: str) -> dict[str, Any]:
    """Run a part in a process of its own, since an engine leaves things behind."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--of", draft]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{part} {draft} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(lines[-1].removeprefix("RESULT ")))


def prompts_of(options: argparse.Namespace) -> list[list[int]]:
    from evolve.score.scorers.texts import read_texts
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    model = open_model(options.target)
    texts = read_texts(options.prompts, "text")[: options.items]
    ids = load_tokenizer(model.files, model.config).encode(texts)
    return [one[: options.max_prompt_length] for one in ids if one]


def engine(options: argparse.Namespace, model: str, draft: str | None) -> dict[str, Any]:
    from evolve.stages.distill.teachers.vllm import _environment, _on_cpu

    more: dict[str, Any] = {}
    if draft is not None:
        more["speculative_config"] = {
            "method": "draft_model",
            "model": draft,
            "num_speculative_tokens": options.num_speculative_tokens,
            "draft_sample_method": options.method,
        }
    if _on_cpu():
        more |= {"dtype": "float32", "enforce_eager": True, "block_size": 32}
        more["kv_cache_memory_bytes"] = 1 << 28
    with _environment(1):
        from vllm import LLM, SamplingParams, TokensPrompt

        length = options.max_prompt_length + options.max_new_tokens + options.num_speculative_tokens + 1
        llm = LLM(model=model, max_model_len=length, max_num_seqs=1, disable_log_stats=False, seed=0, **more)
    asked = [TokensPrompt(prompt_token_ids=one) for one in prompts_of(options)]
    rules = [
        SamplingParams(
            temperature=options.temperature,
            max_tokens=options.max_new_tokens,
            seed=place,
            detokenize=False,
            ignore_eos=options.ignore_eos,
        )
        for place in range(len(asked))
    ]
    llm.generate(asked[:2], rules[:2], use_tqdm=False)
    before, seconds, tokens = counters(llm), [], 0
    for _ in range(options.repeats):
        start = time.perf_counter()
        outputs = llm.generate(asked, rules, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    after = counters(llm)
    llm.llm_engine.engine_core.shutdown()
    return {
        "seconds": seconds,
        "tokens": tokens,
        "prompts": len(asked),
        **{name: after[name] - before.get(name, 0) for name in after},
    }


def counters(llm: Any) -> dict[str, float]:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    wanted = {f"vllm:spec_decode_{name}": name for name in names}
    found: dict[str, float] = {}
    for metric in llm.get_metrics():
        if metric.name in wanted:
            name = wanted[metric.name]
            found[name] = found.get(name, 0) + metric.value
    return found


def predicted(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from evolve.stages.distill.drafts import said_of, target_texts
    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.teachers.hf import open_frozen
    from evolve.tensors.speculative import accepted_share, along
    from evolve.weights.content import content_of
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    target, draft = (open_model(place) for place in (options.target, options.drafts[0]))
    size = load_tokenizer(target.files, target.config).size
    texts = target_texts(
        target,
        content_of(options.target),
        prompts_of(options),
        Generation(options.temperature, max_new_tokens=options.max_new_tokens),
        seed=0,
        vocabulary=size,
        eos=() if options.ignore_eos else None,
    )
    said = said_of(open_frozen(draft, "cpu"), texts, options.temperature or 1.0, size)
    sure = options.temperature == 0 or options.method == "greedy"
    found = []
    for text, (log_q, best) in zip(texts, said, strict=True):
        tokens = torch.tensor(text.completion)
        shares = (best == tokens).float() if sure else accepted_share(torch.tensor(text.log_p), log_q)
        found.append(along(shares[1:].tolist(), options.num_speculative_tokens))
    cycles = sum(one.cycles for one in found)
    sizes = [sum(spec.numel for spec in model.specs.values()) for model in (draft, target)]
    return {
        "length": sum(one.tokens for one in found) / cycles,
        "rate": sum(one.accepted for one in found) / (options.num_speculative_tokens * cycles),
        "cost": sizes[0] / sizes[1],
    }


class Figures(NamedTuple):
    """What is predicted of a draft, and what was measured.

    Attributes:
        said_length: Tokens of a cycle, the target's own among them.
        length: The same, measured.
        counted: The same as the engine's counters have it, with what it accepts behind the end of a text.
        said_rate: Accepted tokens over drafted ones.
        rate: The same, measured.
        said_cost: Time of the draft's pass over the target's, by the parameters.
        cost: The same, measured with each alone.
        said_faster: Speed-up by the predicted length and the measured cost.
        faster: Speed-up, measured.
    """

    said_length: float
    length: float
    counted: float
    said_rate: float
    rate: float
    said_cost: float
    cost: float
    said_faster: float
    faster: float


def figures(target: dict[str, Any], parts: dict[str, dict[str, Any]], k: int, repeats: int) -> Figures:
    """Return the figures of a draft from what its processes and the target's said."""
    from evolve.tensors.speculative import speed_up

    both, small, said = (parts[part] for part in ("both", "draft", "predicted"))
    each = {name: per_token(one) for name, one in (("target", target), ("draft", small), ("both", both))}
    cost = each["draft"] / each["target"]
    return Figures(
        said["length"],
        # The prompt's pass gives the first token of a text, without a draft.
        (both["tokens"] - both["prompts"]) * repeats / both["num_drafts"],
        1 + both["num_accepted_tokens"] / both["num_drafts"],
        said["rate"],
        # The mean of what the engine drafted, which may be fewer at the end of a text.
        both["num_accepted_tokens"] / both["num_draft_tokens"],
        said["cost"],
        cost,
        speed_up(said["length"], k, cost),
        each["target"] / each["both"],
    )


def per_token(part: dict[str, Any]) -> float:
    """Return the seconds of a token, by the median run."""
    return float(statistics.median(part["seconds"]) / part["tokens"])


HEAD = (
    "draft",
    "tokens of a cycle, predicted",
    "measured",
    "accepted of the drafted, predicted",
    "measured",
    "cost of a pass, by parameters",
    "measured",
    "speed-up, predicted at that cost",
    "measured",
)


def show(target: dict[str, Any], drafts: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the table of the drafts, and the times behind it."""
    from evolve.tensors.speculative import break_even

    k = options.num_speculative_tokens
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    notes = [f"{target['prompts']} prompts, {target['tokens']} tokens, k = {k}", _times("target", target)]
    for draft, parts in drafts.items():
        one = figures(target, parts, k, options.repeats)
        shown = [f"{value:.3f}" for name, value in one._asdict().items() if name != "counted"]
        lines.append(f"| {Path(draft).name} | {' | '.join(shown)} |")
        notes += [_times(Path(draft).name, parts["draft"]), _times("  with the target", parts["both"])]
        notes.append(
            f"  {one.counted:.3f} tokens of a cycle by the counters; at this cost a rate of "
            f"{break_even(k, one.cost):.3f} would pay"
        )
    return "\n".join([*lines, "", *notes])


def _times(name: str, part: dict[str, Any]) -> str:
    low, high = min(part["seconds"]), max(part["seconds"])
    return f"{name}: {1000 * per_token(part):.2f} ms a token; {low:.2f} to {high:.2f} s a run"


def alone(options: argparse.Namespace) -> dict[str, Any]:
    return engine(options, options.target, None)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "draft": lambda options: engine(options, options.drafts[0], None),
    "both": lambda options: engine(options, options.target, options.drafts[0]),
    "predicted": predicted,
}

if __name__ == "__main__":
    main()
