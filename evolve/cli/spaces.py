"""``evolve spaces``: the search spaces that are shipped with evolve."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from evolve.cli.output import print_table
from evolve.errors import UserError


@click.group()
def spaces() -> None:
    """List the shipped search spaces, and copy one to start from."""


@spaces.command("ls")
def ls() -> None:
    """List the shipped search spaces, each with what it is for."""
    print_table(["name", "for"], [(name, purpose(file)) for name, file in shipped().items()])


spaces.add_command(ls, "list")


@spaces.command("cp")
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path), required=False)
def cp(name: str, dest: Path | None) -> None:
    """Copy the search space NAME to DEST, a file or a folder (absent: NAME.yaml here)."""
    from evolve.registry import did_you_mean

    known = shipped()
    name = name.removesuffix(".yaml")
    if name not in known:
        raise UserError(f"no search space {name!r}{did_you_mean(name, known)}")
    target = dest or Path(f"{name}.yaml")
    if target.is_dir():
        target /= f"{name}.yaml"
    if target.exists():
        raise UserError(f"{target} exists: name another file, or delete it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known[name], target)
    click.echo(f"{target}: next, `evolve validate {target}`")


def shipped() -> dict[str, Path]:
    """Return name to file of the shipped search spaces: in the wheel inside the package, else beside it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        found = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
        if found:
            return {file.stem: file for file in found}
    return {}


def purpose(file: Path) -> str:
    """Return the first sentence of a file's leading comment."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("# ").split()
    sentence, dot, _ = " ".join(words).partition(". ")
    return sentence + ("." if dot else "")
