"""From what the user wrote to a folder: a local path, or a hub id that is pinned to a commit."""

from __future__ import annotations

import re
from pathlib import Path

from evolve.errors import ModelError
from evolve.registry import did_you_mean
from evolve.types import Parent
from evolve.weights.gguf import converted, is_gguf
from evolve.weights.location import PLUS, join_revisions, parts

_NAME = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"(?:@(?P<revision>[\w./-]+))?"
_HUB_ID = re.compile(rf"(?P<id>{_NAME}(?:/{_NAME})?){_REVISION}")
_HUB_FILE = re.compile(rf"(?P<id>{_NAME}/{_NAME})/(?P<file>[\w./-]+\.gguf){_REVISION}")
# Cards and licences are for the card of the result.
_ALLOWED = [
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "README.md",
    "LICEN[CS]E*",
]
# Second copies of the weights in other formats, several GB each.
_IGNORED = ["consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"]


def resolve(name: str, source: str) -> Parent:
    """Resolve the model ``name``, which the config says is ``source``, to what is on this machine.

    ``source`` is a base, and behind each ``+`` a LoRA adapter. A folder is taken relative to the working
    directory. What is no folder and reads like ``id`` or ``organisation/id``, with ``@revision`` or without,
    is looked up in the hub and downloaded; the revision becomes that of the commit. A base may also be a
    ``.gguf`` file, on disk or in the hub (``organisation/id/file.gguf@revision``): it is dequantised once,
    into the user's cache. Of several parts, ``path`` and ``revision`` are joined by ``+`` too. ``content``
    stays empty.

    Raises:
        ModelError: There is no such folder, and the hub does not have it or cannot be reached.
    """
    if not source.strip():
        raise ModelError(f"models.{name} is empty: give a folder or a hub id")
    found = [_resolve_part(name, part) for part in parts(source)]
    paths = PLUS.join(str(path) for path, _ in found)
    return Parent(name, source, paths, revision=join_revisions(tuple(revision for _, revision in found)))


def _resolve_part(name: str, source: str) -> tuple[Path, str | None]:
    """Return the folder of one part and its commit, None for what is not from the hub."""
    if not source.strip():
        raise ModelError(f"models.{name}: a folder or a hub id is missing beside a +")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute(), None
    if folder.exists():
        if is_gguf(source):
            return converted(folder.absolute()), None
        raise ModelError(f"models.{name}: {source} is a file: give the folder that holds it")
    file = _HUB_FILE.fullmatch(source)
    match = file or _HUB_ID.fullmatch(source)
    # models/typo beside models/base is a path: asking the hub would cost a timeout and a worse message.
    if match is None or (match["revision"] is None and "/" in source and folder.parent.is_dir()):
        raise ModelError(f"models.{name}: no such folder: {folder.absolute()}{_siblings(folder)}")
    path, commit = _download(name, source, match["id"], match["revision"], file["file"] if file else None)
    return (converted(path) if file else path), commit


def _download(name: str, source: str, repo: str, revision: str | None, file: str | None) -> tuple[Path, str]:
    """Return the folder or file of the hub's cache, and the commit."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if file is not None:
            path = Path(hf_hub_download(repo, file, revision=revision))
            return path, path.parents[file.count("/")].name
        path = Path(
            snapshot_download(repo, revision=revision, allow_patterns=_ALLOWED, ignore_patterns=_IGNORED)
        )
    # The client raises its own errors, those of its HTTP library and the system's: the model is not there.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"models.{name}: {source}: no such folder ({Path(source).absolute()}) and not in the hub "
            f"({reason}){_siblings(Path(source))}"
        ) from error
    return path, path.name


def _siblings(folder: Path) -> str:
    try:
        known = [path.name for path in folder.parent.iterdir() if (path / "config.json").is_file()]
    except OSError:
        return ""
    return did_you_mean(folder.name, known)
