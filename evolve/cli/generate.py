"""``evolve generate``: training data that a teacher behind an API writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evolve.cli.options import FILE, FOLDER, config_argument, display_option, overrides_argument, warn
from evolve.cli.paths import shown
from evolve.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from evolve.display.watch import Mode
    from evolve.generate.config import GenerateConfig
    from evolve.generate.run import Generated


@click.command()
@config_argument
@click.argument("out", type=FILE)
@overrides_argument
@click.option(
    "--store",
    type=FOLDER,
    help="Folder of the answers, on a disk of this machine.  [default: OUT without its ending, .answers]",
)
@click.option(
    "--banned",
    type=FILE,
    multiple=True,
    help="Text or JSONL file with items that no row may share words with (filters.ngram_overlap).",
)
@click.option("--force", is_flag=True, help="Replace OUT where it exists with other rows.")
@display_option
def generate(
    config: Path,
    out: Path,
    overrides: tuple[str, ...],
    store: Path | None,
    banned: tuple[Path, ...],
    force: bool,
    display: Mode,
) -> None:
    """Ask a teacher behind an API for training data.

    CONFIG is a YAML file with `teacher:` and `generate:`; the rows go to OUT, a JSONL file of messages. Every
    answer is kept as it comes: the same command goes on where it stopped, and asks nothing twice.
    """
    from evolve.display.asking import showing
    from evolve.generate.config import load
    from evolve.generate.run import generate as generate_rows

    loaded = load(config, overrides)
    folder = store or out.with_suffix(".answers")
    if out.exists() and not folder.exists() and not force:
        raise UserError(f"{shown(out)} exists, and no answers of it: choose another OUT, or --force")
    with showing(display) as show:
        made = generate_rows(
            loaded.generate,
            loaded.teacher,
            folder=folder,
            out=out,
            progress=show,
            banned=_banned(loaded, banned),
        )
    _report(made)
    made.require(loaded.generate.content)
    if not made.rows:
        raise UserError("no row is left: see above what removed them")


def _banned(config: GenerateConfig, files: tuple[Path, ...]) -> AbstractSet[tuple[str, ...]] | None:
    from evolve.generate.filters.ngram_overlap import banned_ngrams
    from evolve.generate.prompts import item_texts

    length = config.generate.filters.ngram_overlap
    if length is None and files:
        raise UserError("--banned needs generate.filters.ngram_overlap, such as 8")
    if length is None or not files:
        return None
    return banned_ngrams((text for file in files for text in item_texts(file)), length)


def _report(made: Generated) -> None:
    from evolve.cli.output import print_table

    rows: list[tuple[Any, ...]] = [
        (name.replace("_", " "), f"{count:,}")
        for name, count in made.counts.items()
        if count or name in {"rows", "prompts"}
    ]
    rows.append(("tokens so far", f"{made.spent.tokens:,}"))
    if made.spent.usd:
        rows.append(("USD so far", f"{made.spent.usd:.4f}"))
    print_table(("", ""), rows)
    for warning in made.warnings:
        warn(warning)
    click.echo(f"{shown(made.path.absolute())}: {made.rows:,} rows, {made.content}")
