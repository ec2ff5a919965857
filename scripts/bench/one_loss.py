"""One loss and its gradient in a process of its own: CPU seconds and peak memory. Run by losses.py.

    python scripts/bench/one_loss.py '{"way", "function", "tokens", "vocabulary", "width", "repeats"}'

Runs in our environment (ways ``heads``, ``logits``, ``naive``) or TRL's (``trl-gkd``, ``trl-chunked``), and
prints JSON: ``peak``, the bytes of resident memory above the inputs in the first call; the CPU ``seconds``
of each call; ``loss``. Every way begins with hidden states and ends with their gradient and the head's.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BETA = {"kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}


def inputs(tokens: int, vocabulary: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = drawn(vocabulary, width) * width**-0.5
    hidden = drawn(1, tokens + 1, width)
    return {
        "hidden": (hidden + 0.5 * drawn(1, tokens + 1, width)).requires_grad_(),
        "weight": weight.clone().requires_grad_(),
        "teacher_hidden": 2 * hidden,
        "teacher_weight": weight,
        "labels": torch.zeros(1, tokens + 1, dtype=torch.int64),
    }


def ours(function: str, given: dict[str, Tensor], whole: bool) -> Tensor:
    from evolve.stages.distill.objective import distillation_loss
    from evolve.stages.distill.signals import Signals, count_items
    from evolve.stages.distill.terms import make_terms
    from evolve.tensors.logits import Head, Logits

    student: Head | Logits = Head(given["hidden"], given["weight"])
    teacher: Head | Logits = Head(given["teacher_hidden"], given["teacher_weight"])
    if whole:
        student = Logits(given["hidden"] @ given["weight"].T)
        teacher = Logits(given["teacher_hidden"] @ given["teacher_weight"].T)
    terms = make_terms([{"function": function}])
    labels = given["labels"]
    return distillation_loss(
        terms, Signals(student), Signals(teacher), labels, num_items=count_items(labels)
    ).total


def naive(function: str, given: dict[str, Tensor]) -> Tensor:
    """As one writes it down: all logits, two softmaxes, `kl_div`."""
    student = F.log_softmax((given["hidden"] @ given["weight"].T)[:, :-1], dim=-1)
    teacher = F.log_softmax((given["teacher_hidden"] @ given["teacher_weight"].T)[:, :-1], dim=-1)

    def kl(of: Tensor, to: Tensor) -> Tensor:
        return F.kl_div(to, of, reduction="none", log_target=True)

    if function == "kl":
        found = kl(teacher, student)
    elif function == "reverse_kl":
        found = kl(student, teacher)
    else:
        middle = torch.logsumexp(torch.stack([student, teacher]), 0) - torch.tensor(2.0).log()
        found = 0.5 * kl(teacher, middle) + 0.5 * kl(student, middle)
    mask = given["labels"][:, 1:] != -100
    return found.sum(-1)[mask].sum() / mask.sum()


def trl_gkd(function: str, given: dict[str, Tensor]) -> Tensor:
    from trl.experimental.gkd import GKDTrainer

    student = given["hidden"] @ given["weight"].T
    teacher = given["teacher_hidden"] @ given["teacher_weight"].T
    labels = given["labels"][:, 1:]
    items = (labels != -100).sum()
    found: Tensor = GKDTrainer.generalized_jsd_loss(
        student[:, :-1], teacher[:, :-1], labels=labels, beta=BETA[function], num_items_in_batch=items
    )
    return found


def trl_chunked(function: str, given: dict[str, Tensor]) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    mask = given["labels"][0, 1:] != -100
    student, teacher = (given[name][0, :-1][mask] for name in ("hidden", "teacher_hidden"))
    weights = given["weight"], given["teacher_weight"]
    each, _ = ChunkedDivergenceFunction.apply(
        student, weights[0], None, teacher, weights[1], None, BETA[function]
    )
    return each.sum() / mask.sum()


WAYS: dict[str, Callable[[str, dict[str, Tensor]], Tensor]] = {
    "heads": lambda function, given: ours(function, given, whole=False),
    "logits": lambda function, given: ours(function, given, whole=True),
    "naive": naive,
    "trl-gkd": trl_gkd,
    "trl-chunked": trl_chunked,
}


def status(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def call(way: str, function: str, given: dict[str, Tensor]) -> float:
    for name in ("hidden", "weight"):
        given[name].grad = None
    loss = WAYS[way](function, given)
    loss.backward()
    return loss.item()


def main() -> None:
    torch.set_num_threads(1)
    job: dict[str, Any] = json.loads(sys.argv[1])
    way, function = job["way"], job["function"]
    call(way, function, inputs(4, 64, 8))  # what is loaded at the first call
    given = inputs(job["tokens"], job["vocabulary"], job["width"])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, loss, seconds = status("VmRSS"), 0.0, []
    peak = 0
    for turn in range(job["repeats"]):
        began = time.process_time()
        loss = call(way, function, given)
        seconds.append(time.process_time() - began)
        if turn == 0:
            peak = status("VmHWM") - before
    print(json.dumps({"peak": peak, "seconds": seconds, "loss": loss}))


if __name__ == "__main__":
    main()
