"""Speculative decoding in vLLM beside what the scorer `speculative` predicts of it.

    python scripts/bench/draft.py TARGET DRAFT PROMPTS.jsonl --num-speculative-tokens 4

TARGET and DRAFT are folders of models with one vocabulary; PROMPTS has a `text` a line. Three processes, one
after the other: the target alone, the target with the draft, and the prediction. The engines decode one
request at a time, as a person who waits does. Times are of the whole list of prompts after one warm-up; each
is run several times, and the median with the extremes is shown. The draft's pass is timed alone as well, so
that the predicted speed-up has a measured cost ratio beside the ratio of the parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("prompts")
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--method", choices=["greedy", "probabilistic"], default="greedy")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--max-prompt-length", type=int, default=64)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Write the numbers as JSON.")
    parser.add_argument("--part", choices=["target", "draft", "both", "predicted"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print("RESULT " + json.dumps(PARTS[options.part](options)), flush=True)
        return
    found = {part: run(part) for part in PARTS}
    show(found, options)
    if options.out:
        options.out.write_text(json.dumps({"options": vars(options) | {"out": None}, **found}, indent=1))


def run(part: str) -> dict[str, Any]:
    """Run a part in a process of its own, since an engine leaves things behind."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{part} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
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
            temperature=options.temperature, max_tokens=options.max_new_tokens, seed=place, detokenize=False
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

    target, draft = (open_model(place) for place in (options.target, options.draft))
    size = load_tokenizer(target.files, target.config).size
    texts = target_texts(
        target,
        content_of(options.target),
        prompts_of(options),
        Generation(options.temperature, max_new_tokens=options.max_new_tokens),
        seed=0,
        vocabulary=size,
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


def show(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    from evolve.tensors.speculative import break_even, speed_up

    both, alone, small, said = (found[part] for part in ("both", "target", "draft", "predicted"))
    k = options.num_speculative_tokens
    length = 1 + both["num_accepted_tokens"] / both["num_drafts"]
    # The mean of what the engine drafted, which may be fewer at the end of a text.
    rate = both["num_accepted_tokens"] / both["num_draft_tokens"]
    medians = {part: statistics.median(found[part]["seconds"]) for part in ("target", "draft", "both")}
    per_token = {part: medians[part] / found[part]["tokens"] for part in medians}
    cost = per_token["draft"] / per_token["target"]
    print(f"{alone['prompts']} prompts, {alone['tokens']} and {both['tokens']} tokens, k = {k}")
    print(f"{'':34}{'predicted':>12}{'measured':>12}")
    print(f"{'tokens of a cycle':34}{said['length']:12.3f}{length:12.3f}")
    print(f"{'accepted of the drafted':34}{said['rate']:12.3f}{rate:12.3f}")
    print(f"{'cost of a pass, draft over target':34}{said['cost']:12.3f}{cost:12.3f}")
    measured = per_token["target"] / per_token["both"]
    for name, ratio in (("parameters", said["cost"]), ("passes as measured", cost)):
        faster = speed_up(said["length"], k, ratio)
        print(f"{'speed-up, cost by ' + name:34}{faster:12.3f}{measured:12.3f}")
    print(f"rate that would pay, at this cost: {break_even(k, cost):.3f}")
    for part in ("target", "draft", "both"):
        low, high = min(found[part]["seconds"]), max(found[part]["seconds"])
        print(f"{part:8}{1000 * per_token[part]:8.2f} ms a token; {low:.2f} to {high:.2f} s a run")
    assert small["tokens"]


PARTS = {
    "target": lambda options: engine(options, options.target, None),
    "draft": lambda options: engine(options, options.draft, None),
    "both": lambda options: engine(options, options.target, options.draft),
    "predicted": predicted,
}

if __name__ == "__main__":
    main()
