"""The metric of every item of every candidate: one columnar file for all candidates of one scoring.

An Arrow IPC stream, which only grows: a schema, then one compressed record batch for each scored job. Any
Arrow library reads it: ``pyarrow.ipc.open_stream(path).read_pandas()``. Columns:

=======  ==============  ====================================================================
job      string          the job's key, ``HASH-search`` or ``HASH-holdout``
task     string          name of the task
set      string          hash of the items' keys; equal where two rows are about the same items
keys     list<string>    the items' keys, in the first row of each set only
values   list<float64>   the metric of each item, in the order of the keys
=======  ==============  ====================================================================

A batch is on the disk before the record that counts on it, so a batch without a record is one of a job that
was killed and is done again; of two rows about one job and task the later one counts. A batch that was cut
off by a kill is cut away before the next one is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from array import array
from typing import TYPE_CHECKING, Any

from evolve.store.atomic import explained, make_folder, sync_folder, write_bytes
from evolve.types import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "items.arrow"

_END_OF_STREAM = 8
"""Bytes with which Arrow ends a stream; ours is never ended."""


class ItemTable:
    """Items of one scoring. One writer at a time, any number of readers.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._inode = -1
        self._position = 0
        self._schema: Any = None
        self._sets: dict[str, tuple[str, ...]] = {}
        self._rows: dict[tuple[str, str], tuple[str, array[float]]] = {}

    def get(self, job: str, task: str) -> dict[str, float] | None:
        """Return key to metric of the items of a job's task, or None: nothing is known of it."""
        if (job, task) not in self._rows:
            self._read_on()
        if (job, task) not in self._rows:
            return None
        name, values = self._rows[job, task]
        keys = self._sets.get(name, ())
        return dict(zip(keys, values, strict=True)) if len(keys) == len(values) else None

    def append(self, job: str, tasks: Mapping[str, Mapping[str, float]]) -> None:
        """Write the items of a job; they are on the disk when this returns.

        Raises:
            RunError: The disk is full or cannot be written.
        """
        if not tasks:
            return
        make_folder(self._path.parent)
        with _locked(self._path) as descriptor:
            self._read_on()
            size = os.fstat(descriptor).st_size
            if size > self._position:
                self._cut(descriptor, size)
            new = self._position == 0
            data = self._encoded(job, tasks)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, self._position)
                raise
            if new:
                sync_folder(self._path.parent)
            self._read_on()

    def _encoded(self, job: str, tasks: Mapping[str, Mapping[str, float]]) -> bytes:
        """Return a batch, behind the schema where the file is empty."""
        import pyarrow as pa

        rows: dict[str, list[Any]] = {"job": [], "task": [], "set": [], "keys": [], "values": []}
        known = set(self._sets)
        for task, items in tasks.items():
            keys = list(items)
            name = content_hash(keys)
            rows["job"].append(job)
            rows["task"].append(task)
            rows["set"].append(name)
            rows["keys"].append(None if name in known else keys)
            rows["values"].append([float(value) for value in items.values()])
            known.add(name)
        schema = _schema()
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(sink, schema, options=options) as stream:
            stream.write_batch(pa.RecordBatch.from_pydict(rows, schema=schema))
        whole: bytes = sink.getvalue().to_pybytes()[:-_END_OF_STREAM]
        return whole if self._position == 0 else whole[len(schema.serialize()) :]

    def _read_on(self) -> None:
        """Read the batches that were added; one that is being written is left for the next call."""
        import pyarrow as pa

        with explained(self._path, "read"):
            try:
                with self._path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    if status.st_ino != self._inode or status.st_size < self._position:
                        self._forget()
                        self._inode = status.st_ino
                    file.seek(self._position)
                    reader = pa.BufferReader(file.read())
            except FileNotFoundError:
                self._forget()
                return
            start = self._position
            while reader.tell() < reader.size():
                try:
                    message = pa.ipc.read_message(reader)
                    if self._schema is None:
                        self._schema = pa.ipc.read_schema(message)
                    else:
                        self._learn(pa.ipc.read_record_batch(message, self._schema))
                except (pa.ArrowException, EOFError, OSError):
                    return
                self._position = start + reader.tell()

    def _learn(self, batch: Any) -> None:
        for row in batch.to_pylist():
            if row["keys"] is not None:
                self._sets[row["set"]] = tuple(row["keys"])
            self._rows[row["job"], row["task"]] = (row["set"], array("d", row["values"]))

    def _cut(self, descriptor: int, size: int) -> None:
        """Cut off what is no whole batch, and keep it beside the file."""
        number = 1
        while (kept := self._path.with_name(f"items.torn-{number}")).exists():
            number += 1
        write_bytes(kept, os.pread(descriptor, size - self._position, self._position))
        os.ftruncate(descriptor, self._position)
        logger.warning("%s: the last batch was not whole; its bytes are now in %s", self._path, kept.name)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("job", pa.string(), nullable=False),
            pa.field("task", pa.string(), nullable=False),
            pa.field("set", pa.string(), nullable=False),
            pa.field("keys", pa.list_(pa.string())),
            pa.field("values", pa.list_(pa.float64()), nullable=False),
        ]
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
