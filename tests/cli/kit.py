"""Calls verbs in this process and reads what they print."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from click.testing import CliRunner, Result

from evolve.cli.main import cli


def call(*args: object, code: int = 0) -> Result:
    """Run ``evolve ARGS`` and check the exit code."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == code, (
        f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception}"
    )
    return result


def read_json(*args: object) -> Any:
    """Return what a verb prints as JSON; NaN is not JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.loads(call(*args, "--format", "json").stdout, parse_constant=refuse)


def read_csv(*args: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(call(*args, "--format", "csv").stdout)))
