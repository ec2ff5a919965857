"""Capturing a teacher: shards that are written once each, so that a kill at any instant loses at most one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evolve.errors import ModelError, UserError
from evolve.stages.distill.captured import (
    FORMAT,
    MANIFEST,
    CaptureKey,
    Document,
    Shard,
    id_type,
    key_of,
    read_manifest,
    shard_bytes,
    steps_of,
)
from evolve.stages.distill.teachers.base import batch_of
from evolve.training.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evolve.stages.distill.teachers.base import Teacher

SHARD_TOKENS = 32_768
_BATCH_TOKENS = 8192
_LOCK = ".lock"
_PARTIAL = ".partial"


class Progress(NamedTuple):
    """How far a capture is.

    Attributes:
        documents: Captured so far, earlier runs included.
        tokens: The same of tokens.
        mass: Mean probability of the k best tokens in the last shard.
        tokens_per_second: Of this run; 0 before its first shard.
    """

    documents: int
    tokens: int
    mass: float
    tokens_per_second: float


def capture(
    open_teacher: Callable[[], Teacher],
    documents: Iterable[NDArray[np.int32]],
    folder: Path,
    key: CaptureKey,
    *,
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Capture a teacher on documents; go on where an earlier call was stopped.

    Args:
        open_teacher: Called where something is left to do.
        documents: Token ids in an order that is the same at every call; each at least one token and at most
            ``key.max_length``.
        folder: May exist, with a part of the same capture.
        key: What decides the content.
        shard_tokens: A shard is written once it has so many tokens.
        progress: Told after every shard.

    Returns:
        The path of ``capture.json``.

    Raises:
        UserError: The folder holds another capture, is written by another process, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _captured(open_teacher, documents, folder, key, shard_tokens, progress)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}. Mend that and run the same command "
            "again: what was captured is kept"
        ) from error


def _captured(
    open_teacher: Callable[[], Teacher],
    documents: Iterable[NDArray[np.int32]],
    folder: Path,
    key: CaptureKey,
    shard_tokens: int,
    progress: Callable[[Progress], None],
) -> Path:
    manifest = folder / MANIFEST
    if manifest.exists():
        _same(key_of(read_manifest(manifest)), key, folder)
        return manifest
    for stale in folder.glob(f".*{_PARTIAL}"):
        stale.unlink(missing_ok=True)
    shards = _finished(folder, key)
    done = sum(len(shard) for shard in shards)
    tokens = sum(len(shard.odds) for shard in shards)
    left = iter(documents)
    skipped = sum(1 for _ in zip(range(done), left, strict=False))
    if skipped < done:
        raise UserError(f"{folder} has {done} documents, the data {skipped}: it is another text")
    start, fresh = time.monotonic(), 0
    teacher: Teacher | None = None
    try:
        for group in _shards(left, shard_tokens):
            teacher = teacher or open_teacher()
            answered = [one for part in _batches(group) for one in answers(teacher, part, key)]
            shards.append(_write(folder / _name(len(shards)), answered, key))
            read = sum(len(one.tokens) for one in answered)
            done, tokens, fresh = done + len(answered), tokens + read, fresh + read
            speed = fresh / max(time.monotonic() - start, 1e-9)
            progress(Progress(done, tokens, _mass([shards[-1]])["mean"], speed))
    finally:
        if teacher is not None:
            teacher.close()
    if not shards:
        raise UserError("there is no document to capture")
    _replace(manifest, _manifest(shards, key))
    return manifest


def answers(teacher: Teacher, documents: Sequence[NDArray[np.int32]], key: CaptureKey) -> list[Document]:
    """Return what a teacher says of some documents, as it is stored."""
    import torch

    from evolve.stages.distill.top_k import best_of

    rows = [Row(tokens, tokens, (len(tokens),)) for tokens in documents]
    batch = batch_of(rows)
    signals = teacher.signals(batch)
    assert signals.scores is not None
    places = torch.cat([torch.arange(len(row)) + number * batch.shape[1] for number, row in enumerate(rows)])
    device = signals.scores.tensors[0].device if hasattr(signals.scores, "tensors") else torch.device("cpu")
    best = best_of(signals.scores, places.to(device), key.top_k, key.temperatures, key.vocabulary)
    if bool(best.log_p.isnan().any()) or bool(best.odds.isnan().any()):
        raise UserError(
            "the teacher's log-probabilities are NaN: its weights are damaged, or its type is too narrow"
        )
    kind = id_type(key.vocabulary)
    tokens = best.tokens.cpu().numpy().astype(kind)
    steps = steps_of(best.log_p.cpu().numpy())
    odds = best.odds.cpu().numpy()
    ends = np.cumsum([len(one) for one in documents])
    return [
        Document(
            one.astype(kind),
            tokens[end - len(one) : end],
            steps[end - len(one) : end],
            odds[end - len(one) : end],
        )
        for one, end in zip(documents, ends, strict=True)
    ]


def _shards(documents: Iterator[NDArray[np.int32]], most: int) -> Iterator[list[NDArray[np.int32]]]:
    group: list[NDArray[np.int32]] = []
    count = 0
    for tokens in documents:
        group.append(tokens)
        count += len(tokens)
        if count >= most:
            yield group
            group, count = [], 0
    if group:
        yield group


def _batches(documents: Sequence[NDArray[np.int32]]) -> Iterator[list[NDArray[np.int32]]]:
    group: list[NDArray[np.int32]] = []
    for tokens in documents:
        if group and (len(group) + 1) * max(len(tokens), *map(len, group)) > _BATCH_TOKENS:
            yield group
            group = []
        group.append(tokens)
    if group:
        yield group


def _finished(folder: Path, key: CaptureKey) -> list[Shard]:
    """Return the shards that an earlier call wrote; what is damaged, and all behind it, is removed."""
    found: list[Shard] = []
    names = sorted(path.name for path in folder.glob("shard-*.safetensors"))
    good = True
    for number, name in enumerate(names):
        path = folder / name
        good = good and name == _name(number)
        try:
            shard = Shard(path) if good else None
        except ModelError:
            shard = None
        if shard is not None and shard.metadata.get("key") != key.digest:
            raise UserError(
                f"{folder} holds a part of another capture (other model, data, tokenizer or settings): name "
                "another folder, or remove this one"
            )
        good = shard is not None and shard.metadata.get("sha256") == _digest(path)
        if good and shard is not None:
            found.append(shard)
        else:
            path.unlink(missing_ok=True)
    return found


def _write(path: Path, documents: Sequence[Document], key: CaptureKey) -> Shard:
    content = shard_bytes(documents, {"key": key.digest, "sha256": "0" * 64})
    # The checksum is that of the data, and stands in the header, whose length is the same with any checksum.
    begin = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[begin:]).hexdigest()
    _replace(path, content[:begin].replace(b"0" * 64, digest.encode(), 1) + content[begin:])
    return Shard(path)


def _digest(path: Path) -> str:
    """Return the checksum of a shard's data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(shards: Sequence[Shard], key: CaptureKey) -> bytes:
    tokens = sum(len(shard.odds) for shard in shards)
    sizes = [shard.path.stat().st_size for shard in shards]
    entries = []
    for shard in shards:
        with shard.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries.append(
            {"name": shard.path.name, "sha256": digest, "documents": len(shard), "tokens": len(shard.odds)}
        )
    found = {
        "format": FORMAT,
        "key": asdict(key),
        "documents": sum(len(shard) for shard in shards),
        "tokens": tokens,
        "mass": _mass(shards),
        "bytes_per_token": round(sum(sizes) / tokens, 1),
        "shards": entries,
    }
    return (json.dumps(found, indent=1) + "\n").encode()


def _mass(shards: Sequence[Shard]) -> dict[str, float]:
    """Return the mean probability of the k best tokens at temperature 1, and its 5 % quantile over places."""
    odds = np.concatenate([shard.odds[:, 0] for shard in shards]).astype(np.float64)
    # 1 / (1 + e^odds) without an overflow.
    mass = np.exp(-np.logaddexp(0.0, odds))
    return {
        "mean": round(float(mass.mean()), 6),
        "lowest_5_percent": round(float(np.quantile(mass, 0.05)), 6),
    }


def _same(known: CaptureKey, wanted: CaptureKey, folder: Path) -> None:
    if different := known.differences(wanted):
        raise UserError(
            f"{folder} holds another capture ({'; '.join(different)}): name another folder, or remove this "
            "one"
        )


def _replace(path: Path, content: bytes) -> None:
    """Give a file its name when it is whole and on the disk."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that dies with its process."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is capturing into {folder}: wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
