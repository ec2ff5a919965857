"""A lock that one holds at a time, and that dies with its process."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from evolve.weights.locked import locked

if TYPE_CHECKING:
    from pathlib import Path

_CHILD = """
import sys, time
from pathlib import Path
from evolve.weights.locked import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holds_it_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with locked(path, wait=False) as held:
        assert not held
    child.kill()
    child.wait()
    with locked(path) as held, locked(path, wait=False) as again:
        assert held
        assert not again
    with locked(path, wait=False) as held:
        assert held
