"""Who owns a claim: a process, told from every other of the machine, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple


class _Life(NamedTuple):
    """What /proc says of a process: its state, and when it started, in ticks since the machine did."""

    state: str
    started: str


def process() -> str:
    """Return what tells this process from every other of the machine, also after its id was given again."""
    try:
        space = Path("/proc/self/ns/pid").readlink()
        return f"{socket.gethostname()} {space} {os.getpid()} {_life(os.getpid()).started}"
    except (OSError, IndexError):
        return f"{socket.gethostname()} - {os.getpid()} -"


def _life(pid: int) -> _Life:
    # The name, in brackets, may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return _Life(fields[0], fields[19])


def dead(owner: str) -> bool:
    """Whether the owner of a claim has died; False where that cannot be told."""
    host, space, pid, started, *_ = owner.split(" ")
    mine = process().split(" ")
    if "-" in (started, mine[3]) or [host, space] != mine[:2]:
        return False
    try:
        life = _life(int(pid))
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, IndexError):
        return False
    return life.started != started or life.state in {"Z", "X"}
