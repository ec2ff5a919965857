"""From what the user wrote to a folder: a local path, or a hub id that is pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path

from evolve.errors import ModelError
from evolve.registry import did_you_mean
from evolve.types import Parent

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
_ALLOWED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
# Second copies of the weights in other formats, several GB each.
_IGNORED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"]


def resolve(name: str, source: str) -> Parent:
    """Resolve the model ``name``, which the config says is ``source``, to a local folder.

    A folder is taken relative to the working directory. What is no folder and reads like
    ``id`` or ``organisation/id``, with ``@revision`` or without, is looked up in the hub and downloaded;
    the revision becomes that of the commit. ``content`` stays empty.

    Raises:
        ModelError: There is no such folder, and the hub does not have it or cannot be reached.
    """
    if not source.strip():
        raise ModelError(f"models.{name} is empty: give a folder or a hub id")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Parent(name, source, str(folder.absolute()))
    if folder.exists():
        raise ModelError(f"models.{name}: {source} is a file: give the folder that holds it")
    if "+" in source and Path(source.partition("+")[0]).expanduser().is_dir():
        raise ModelError(
            f"models.{name}: {source}: LoRA parents (+adapter) are not supported yet: merge the adapter into "
            "its base with peft's merge_and_unload, save that, and name its folder"
        )
    match = _HUB_ID.fullmatch(source)
    # models/typo beside models/base is a path: asking the hub would cost a timeout and a worse message.
    if match is None or (match["revision"] is None and "/" in source and folder.parent.is_dir()):
        raise ModelError(f"models.{name}: no such folder: {folder.absolute()}{_siblings(folder)}")
    return _from_hub(name, source, match["id"], match["revision"])


def _from_hub(name: str, source: str, repo: str, revision: str | None) -> Parent:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=_ALLOWED, ignore_patterns=_IGNORED)
        )
    # The client raises its own errors, those of its HTTP library and the system's: the model is not there.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"models.{name}: {source}: no such folder ({Path(source).absolute()}) and not in the hub "
            f"({reason}){_siblings(Path(source))}"
        ) from error
    return Parent(name, source, str(folder), revision=folder.name)


def _siblings(folder: Path) -> str:
    try:
        known = [path.name for path in folder.parent.iterdir() if (path / "config.json").is_file()]
    except OSError:
        return ""
    return did_you_mean(folder.name, known)
