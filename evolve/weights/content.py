"""What a model is, as one hash: weights, config and side files, whatever folder they are in."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evolve.errors import ModelError
from evolve.types import canonical_json
from evolve.weights.adapter import read_adapter
from evolve.weights.files import CONFIG, cache_folder, side_files
from evolve.weights.location import parts
from evolve.weights.reader import check_tied, weight_files

# A file may change twice within one tick of a coarse clock, so a hash of a file this young is not kept.
_YOUNG_NS = 2_000_000_000


# What an adapter's config says of its training's place, and has no effect on the weights.
_NO_EFFECT = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode")


def content_of(path: Path | str) -> str:
    """Return ``sha256:...`` of the model at ``path``: a folder, or a base with adapters joined by ``+``.

    It covers config.json, the side files (tokenizer, chat template, generation config) and the weights,
    each with its name, and of an adapter its weights and its config. Hashes are cached per file by size,
    modification time and inode in ``$XDG_CACHE_HOME/evolve``; without a writable cache they are computed
    again. When weights are read anew, a tied head that is stored is also compared with the embedding.

    Raises:
        ModelError: The folder is no model, or a file changes while it is read.
    """
    first, *adapters = parts(str(path))
    base = _folder_content(Path(first))
    if not adapters:
        return f"sha256:{base}"
    total = hashlib.sha256(f"base\0{base}\n".encode())
    for place in adapters:
        adapter = read_adapter(Path(place))
        config = {key: value for key, value in adapter.config.items() if key not in _NO_EFFECT}
        weights = file_digest(adapter.header.path)
        total.update(f"adapter\0{canonical_json(config)}\0{weights}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _folder_content(folder: Path) -> str:
    files = {file.relative_to(folder).as_posix(): file for file in side_files(folder)}
    files.update({file.name: file for file in weight_files(folder)})
    files[CONFIG] = folder / CONFIG
    if any(_cached(file) is None for file in weight_files(folder)):
        check_tied(folder)
    names = sorted(files)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(file_digest, (files[name] for name in names)))
    total = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def file_content(path: Path | str) -> str:
    """Return ``sha256:...`` of one file, cached as that of a model's files is.

    Raises:
        ModelError: The file cannot be read, or changes while it is read.
    """
    return f"sha256:{file_digest(Path(path))}"


TEXT_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".rst")
"""Files of a folder that count as data."""


def data_files(path: Path | str) -> list[Path]:
    """Return a file itself, or the text files below a folder, sorted by their names in it.

    Raises:
        ModelError: There is no such file, or a folder has none. Hidden files and folders do not count.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        if not place.is_file():
            raise ModelError(f"{path}: no such file or folder")
        return [place]
    found = {
        file.relative_to(place).as_posix(): file
        for file in place.rglob("*")
        if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()
    }
    visible = [found[name] for name in sorted(found) if not any(part[0] == "." for part in name.split("/"))]
    if not visible:
        raise ModelError(f"{path} holds no text file: known are {', '.join(TEXT_SUFFIXES)}")
    return visible


def data_content(path: Path | str) -> str:
    """Return ``sha256:...`` of a data file, or of all text files of a folder with their names.

    Raises:
        ModelError: They cannot be read, or change meanwhile.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return file_content(place)
    total = hashlib.sha256()
    for file in data_files(place):
        total.update(f"{file.relative_to(place).as_posix()}\0{file_digest(file)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, out of the cache where the file is unchanged.

    Raises:
        ModelError: It cannot be read, or changes meanwhile.
    """
    known = _cached(file)
    if known is not None:
        return known
    try:
        with file.open("rb") as stream:
            before = os.fstat(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            after = os.fstat(stream.fileno())
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if _key(before) != _key(after):
        raise ModelError(f"{file} changed while it was read: start again when it is complete")
    if time.time_ns() - before.st_mtime_ns > _YOUNG_NS:
        _remember(file, {**_key(before), "sha256": digest})
    return digest


def _key(stat: os.stat_result) -> dict[str, int]:
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _entry(file: Path) -> Path:
    return cache_folder("content") / hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]


def _cached(file: Path) -> str | None:
    try:
        entry = json.loads(_entry(file).read_bytes())
        key = _key(file.stat())
    except (OSError, ValueError, RuntimeError):
        return None
    if not isinstance(entry, dict) or {name: entry.get(name) for name in key} != key:
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def _remember(file: Path, entry: dict[str, int | str]) -> None:
    # The cache only saves time: a read-only or full disk must not stop a run. RuntimeError: no home folder.
    with contextlib.suppress(OSError, RuntimeError):
        path = _entry(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{time.time_ns()}")
        try:
            partial.write_text(json.dumps(entry))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
