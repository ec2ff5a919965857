"""mergekit's in-memory API on request, in its own environment: a JSON request a line, an answer a line.

.venv-mergekit/bin/python scripts/bench/peer_merge.py FOLDER...     the base first
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_state_dicts
from safetensors.torch import load_file


def main() -> None:
    folders = sys.argv[1:]
    models = [load_file(Path(folder) / "model.safetensors") for folder in folders]
    print(json.dumps({"ready": len(models)}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        used = models if request["base"] else models[1:]
        began = time.perf_counter()
        with torch.no_grad():
            result = merge_state_dicts(
                used, request["method"], parameters=request["parameters"], base=0 if request["base"] else None
            )
        seconds = time.perf_counter() - began
        del result
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
