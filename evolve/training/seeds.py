"""Seeds of the parts of a training, from one seed and a name each."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, *names: str | int) -> int:
    """Return a seed of 63 bits for a part: other names, other seeds, on any machine."""
    text = "\0".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
