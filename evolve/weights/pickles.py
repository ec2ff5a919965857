"""Pickled weights: never opened, since loading a pickle runs what it says. The refusal has the way out.

The commands load with ``weights_only``, which admits tensors and refuses code.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from evolve.weights.files import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MODEL = (
    "import sys, transformers as t; a, b = sys.argv[1:]; "
    "t.AutoModelForCausalLM.from_pretrained(a, dtype='auto', weights_only=True).save_pretrained(b); "
    "t.AutoTokenizer.from_pretrained(a).save_pretrained(b)"
)
_TENSORS = (
    "import sys, torch, safetensors.torch as s; a, b = sys.argv[1:]; "
    "w = torch.load(a, map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in w.items()}, b, {'format': 'pt'})"
)


def pickled(folder: Path) -> str:
    """Return the refusal of a folder whose weights are pickles, or "" where there are none."""
    files = sorted(path for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}"))
    files = [path for path in files if path.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    if not files:
        return ""
    transformers_reads = any(path.name.startswith("pytorch_model") for path in files)
    if (folder / CONFIG).is_file() and (transformers_reads or len(files) > 1):
        return refusal(folder, files, convert_model(folder))
    return refusal(folder, files, convert_tensors(files[0], folder / WEIGHTS))


def refusal(folder: Path, files: Sequence[Path], command: str) -> str:
    """Return the message for pickles, with the command that converts them."""
    return (
        f"{folder} has pickled weights only ({files[0].name}), and evolve never unpickles. "
        f"Convert it: {command}"
    )


def convert_model(folder: Path) -> str:
    """Return the command that writes a model's folder anew, beside it."""
    return f'python -c "{_MODEL}" {shlex.quote(str(folder))} {shlex.quote(f"{folder}-safetensors")}'


def convert_tensors(file: Path, target: Path) -> str:
    """Return the command that writes the tensors of one pickle as safetensors."""
    return f'python -c "{_TENSORS}" {shlex.quote(str(file))} {shlex.quote(str(target))}'
