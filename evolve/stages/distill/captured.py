"""What a teacher said of a text, in a folder: its k best tokens at every place, and the weight of all others.

.. code-block:: text

    capture.json               written last: what was captured, and each shard with its checksum
    shard-00000.safetensors    documents in order, never changed once they have their name

A shard holds ``tokens`` (what was read), ``ends`` (where each document ends), ``best`` and ``log_p`` (n, k),
and ``odds`` (n, temperatures). A log-probability is an unsigned 16-bit number in steps of 1/2048 nat down
to -32: wrong by at most 2.5e-4. The weight of all other tokens is a float32, to which the k are scaled when
they are read, so that a small rest is not lost in their rounding.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.errors import ModelError, UserError
from evolve.types import canonical_json
from evolve.weights.content import file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from evolve.weights.tokenizer import Tokenizer

FORMAT = 1
MANIFEST = "capture.json"
STEPS = 2048
"""Steps of a stored log-probability to the nat."""
ABSENT = 65535

_NAMES = ("tokens", "ends", "best", "log_p", "odds")
_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64, "F32": np.float32}
_CODES = {np.dtype(kind): code for code, kind in _TYPES.items()}


@dataclass(frozen=True)
class CaptureKey:
    """What decides the content of a capture.

    Attributes:
        teacher: ``sha256:...`` of the teacher, weights and tokenizer.
        tokenizer: :func:`tokenizer_key` of the tokenizer whose ids are stored.
        data: ``sha256:...`` of the data file.
        top_k: Tokens a place.
        temperatures: At which the weight of all others is stored; 1 is among them.
        max_length: Most tokens of a document.
        vocabulary: Number of real tokens.
        max_tokens: Where the text was cut; None: nowhere.
        source: Who answered, ``hf`` or ``vllm``: their numbers differ in the last digits.
    """

    teacher: str
    tokenizer: str
    data: str
    top_k: int
    temperatures: tuple[float, ...]
    max_length: int
    vocabulary: int
    max_tokens: int | None = None
    source: str = "hf"

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()

    def differences(self, other: CaptureKey) -> list[str]:
        """Return what differs, as ``name: ours, not theirs``."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return [f"{name}: {ours}, not {theirs}" for (name, ours), theirs in pairs if ours != theirs]


class Document(NamedTuple):
    """What is stored of one document of n tokens.

    Attributes:
        tokens: (n,), unsigned.
        best: (n, k), unsigned.
        log_p: uint16, (n, k), in steps; see :func:`log_p_of`.
        odds: float32, (n, temperatures).
    """

    tokens: NDArray[Any]
    best: NDArray[Any]
    log_p: NDArray[np.uint16]
    odds: NDArray[np.float32]


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """Return ``sha256:...`` of a tokenizer's tokens with their ids: what ids mean."""
    text = json.dumps(sorted(tokenizer.ids.items()), ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def steps_of(log_p: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return log-probabilities as they are stored; -inf is absent."""
    with np.errstate(invalid="ignore"):
        steps = np.clip(np.rint(-log_p.astype(np.float64) * STEPS), 0, ABSENT - 1)
    return np.where(np.isneginf(log_p), ABSENT, steps).astype(np.uint16)


def log_p_of(steps: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return stored log-probabilities as float32, not yet scaled to the rest."""
    values = -(steps.astype(np.float32) / STEPS)
    return np.where(steps == ABSENT, np.float32(-np.inf), values).astype(np.float32)


def id_type(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """Return the smallest type for ids of a vocabulary."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


class Shard:
    """One file, memory-mapped.

    Raises:
        ModelError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrays, self.metadata = _mapped(path)
        if arrays.keys() != set(_NAMES):
            raise ModelError(f"{path} is no shard of a capture")
        self._arrays = arrays
        self._ends = np.asarray(arrays["ends"])

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def odds(self) -> NDArray[np.float32]:
        """Of all places."""
        return self._arrays["odds"]

    def tokens(self, number: int) -> NDArray[Any]:
        """Return the tokens of a document."""
        return self._arrays["tokens"][self._span(number)]

    def document(self, number: int) -> Document:
        """Return a document; the arrays are views of the file."""
        span = self._span(number)
        return Document(*(self._arrays[name][span] for name in ("tokens", "best", "log_p", "odds")))

    def _span(self, number: int) -> slice:
        return slice(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))


def shard_bytes(documents: Sequence[Document], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a shard: a safetensors file."""
    arrays = {
        "tokens": np.concatenate([one.tokens for one in documents]),
        "ends": np.cumsum([len(one.tokens) for one in documents], dtype=np.int64),
        "best": np.concatenate([one.best for one in documents]),
        "log_p": np.concatenate([one.log_p for one in documents]),
        "odds": np.concatenate([one.odds for one in documents]),
    }
    # By width, so that each begins at a multiple of its own.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, array in ordered:
        span = [position, position + array.nbytes]
        entries[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        position += array.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return b"".join([len(raw).to_bytes(8, "little"), raw, *(array.tobytes() for _, array in ordered)])


def _mapped(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the arrays of a safetensors file as views of it, and its metadata."""
    try:
        whole = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(whole[:8].tobytes(), "little")
        entries = json.loads(whole[8 : 8 + length].tobytes())
        metadata = entries.pop("__metadata__", {})
        data = whole[8 + length :]
        arrays = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            arrays[name] = data[begin:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is truncated or damaged ({error})") from error
    return arrays, metadata


class Captured:
    """A finished capture. Documents are found by their tokens, also by the beginning of them.

    Args:
        manifest: Path of ``capture.json``, or of its folder.

    Raises:
        UserError: There is no finished capture, or a shard is missing or damaged.
    """

    def __init__(self, manifest: Path | str) -> None:
        path = Path(manifest).expanduser()
        self.path = path / MANIFEST if path.is_dir() else path
        self._manifest = read_manifest(self.path)
        self.key = key_of(self._manifest)
        self.shards = [self._shard(entry) for entry in self._manifest["shards"]]
        self._order: list[tuple[int, int]] | None = None

    @property
    def summary(self) -> Mapping[str, Any]:
        """``documents``, ``tokens``, ``mass`` (``mean``, ``lowest_5_percent``), ``bytes_per_token``."""
        return {name: self._manifest[name] for name in ("documents", "tokens", "mass", "bytes_per_token")}

    def find(self, tokens: NDArray[Any]) -> Document | None:
        """Return what is known of a document: it, or the beginning of a longer one; None: nothing."""
        kind = id_type(self.key.vocabulary)
        if len(tokens) == 0 or tokens.min() < 0 or tokens.max() > np.iinfo(kind).max:
            return None
        wanted = tokens.astype(kind).tobytes()
        if self._order is None:
            places = [(s, n) for s, shard in enumerate(self.shards) for n in range(len(shard))]
            self._order = sorted(places, key=self._bytes)
        # What begins with the wanted bytes stands behind them, before anything else.
        place = bisect.bisect_left(self._order, wanted, key=self._bytes)
        if place == len(self._order) or not self._bytes(self._order[place]).startswith(wanted):
            return None
        shard, number = self._order[place]
        found = self.shards[shard].document(number)
        size = len(tokens)
        return Document(found.tokens[:size], found.best[:size], found.log_p[:size], found.odds[:size])

    def _bytes(self, place: tuple[int, int]) -> bytes:
        return self.shards[place[0]].tokens(place[1]).tobytes()

    def _shard(self, entry: Mapping[str, Any]) -> Shard:
        path = self.path.with_name(str(entry["name"]))
        try:
            digest = file_digest(path)
            if digest != entry["sha256"]:
                raise ModelError("its checksum is another one")
            return Shard(path)
        except ModelError as error:
            raise UserError(
                f"{path} is not what was captured ({error}): remove {self.path} and it, and run the same "
                "`evolve capture` again; the other shards are kept"
            ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a ``capture.json``.

    Raises:
        UserError: There is none, or it is of another kind or format.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise UserError(f"{path} has format {found['format']}; this version reads {FORMAT}")
        key_of(found)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file: a capture has it when it is finished; run its `evolve capture` again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what `evolve capture` writes ({error!r})") from error
    return dict(found)


def key_of(manifest: Mapping[str, Any]) -> CaptureKey:
    """Return the key that a manifest holds."""
    key = manifest["key"]
    return CaptureKey(**{**key, "temperatures": tuple(key["temperatures"])})
