"""The peers' half of candidate.py: lm-eval with its own vLLM model, in a process of its own.

    python scripts/bench/peer_eval.py JOB.json

JOB.json has "evaluate" (arguments of lm_eval.simple_evaluate), "include_path", and "out", the file for the
marks (instants of the system's monotonic clock), the seconds of the forward passes, and the results.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    marks = {"started": time.perf_counter()}
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from spy import Spy, cpu_seconds

    from evolve.score.engines.vllm_lm import import_lm_eval_vllm

    spy = Spy(import_lm_eval_vllm().VLLM)
    marks["imported"] = time.perf_counter()
    catalog = TaskManager(include_path=job["include_path"])
    marks["catalog"] = time.perf_counter()
    results = simple_evaluate(model="vllm", task_manager=catalog, **job["evaluate"])
    marks["evaluated"] = time.perf_counter()
    marks["ready"] = spy.ready
    worked = cpu_seconds()
    written = {
        "marks": marks,
        "prompts": len(spy.asked),
        "forward": spy.forward,
        "cpu": worked,
        "bare": spy.bare(),
        "results": results["results"],
    }
    Path(job["out"]).write_text(json.dumps(written, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
