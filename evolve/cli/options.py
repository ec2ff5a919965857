"""Options and arguments that several verbs share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evolve.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evolve.config.load import Loaded
    from evolve.store.rundir import RunDir

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

runs_option = click.option(
    "--runs",
    type=FOLDER,
    default=Path("runs"),
    show_default=True,
    envvar="EVOLVE_RUNS",
    help="Folder that holds the runs.",
)

format_option = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How to print.",
)

display_option = click.option(
    "--display",
    type=click.Choice(["auto", "rich", "plain", "none"]),
    default="auto",
    show_default=True,
    envvar="EVOLVE_DISPLAY",
    help="Progress: redrawn in place, as lines, or not at all.",
)

run_argument = click.argument("run", metavar="RUN")
config_argument = click.argument("config", type=click.Path(path_type=Path))


def byte_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Return the bytes of 5GB, 512MiB or 2000000: units of a thousand, or of 1024 with an i."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i)?)?B?", value.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{value!r} is no size: write 5GB, 512MiB or a number of bytes", ctx, param)
    number, unit, binary = match.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    size = int(float(number) * (1024 if binary else 1000) ** power)
    if size < 1:
        raise click.BadParameter("must be at least one byte", ctx, param)
    return size


shard_option = click.option(
    "--max-shard-size",
    "shard_bytes",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    callback=byte_size,
    help="Largest file of weights; a tensor that is larger gets a file of its own.",
)

force_option = click.option(
    "--force",
    is_flag=True,
    help="Replace the model's folder, or the file, that is in the way, once the new one is finished.",
)


def overrides_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``[key.path=value ...]`` to a command."""
    return click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")(command)


def warn(message: str) -> None:
    """Print a warning."""
    click.echo(f"{click.style('Warning:', fg='yellow', bold=True)} {message}", err=True)


def load_config(config: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load a config file."""
    from evolve.config.load import load

    return load(config, overrides)


def find_run(run: str, runs: Path) -> RunDir:
    """Open a run by its name below ``runs`` or by its path.

    Raises:
        RunError: There is no such run; the message suggests the closest name.
    """
    from evolve.registry import did_you_mean
    from evolve.store.rundir import RunDir

    named, path = runs / run, Path(run)
    if (named / "run.json").exists() or (named.is_dir() and not path.is_dir()):
        return RunDir.open(named)
    if path.is_dir():
        return RunDir.open(path)
    known = run_names(runs)
    if known:
        raise RunError(f"no run {run!r} in {runs}{did_you_mean(run, known)}")
    raise RunError(f"no run {run!r}: {runs} holds no runs. Name another folder with --runs, or give a path")


def run_names(runs: Path) -> list[str]:
    """Return the names of the runs in a folder, sorted."""
    if not runs.is_dir():
        return []
    return sorted(folder.name for folder in runs.iterdir() if (folder / "run.json").is_file())


def load_run_config(run: RunDir) -> Loaded:
    """Load the config of a run, under the name of its folder."""
    from evolve.config.load import load_text

    source = str(run.path / "config.yaml")
    # Quoted as JSON, since a name such as 2024 must stay a text.
    return load_text(run.config_text(), source, [f"name={json.dumps(run.path.name, ensure_ascii=False)}"])
