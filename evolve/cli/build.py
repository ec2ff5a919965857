"""``evolve build``: a fixed recipe becomes a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evolve.cli.options import config_argument, force_option, load_config, shard_option, warn
from evolve.cli.paths import shown
from evolve.errors import ConfigError

if TYPE_CHECKING:
    from evolve.config.load import Loaded
    from evolve.types import Parent


@click.command()
@config_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@shard_option
@force_option
def build(config: Path, out: Path, overrides: tuple[str, ...], shard_bytes: int, force: bool) -> None:
    """Build the model of CONFIG into the new folder OUT.

    CONFIG is a recipe, that is a config without ranges, or a plain mergekit YAML. A range may be filled in
    by KEY.PATH=VALUE.
    """
    from evolve.cli.progress import bar
    from evolve.config.files import pinned
    from evolve.export.model import About, export_model
    from evolve.space.space import derive_recipe
    from evolve.weights.writer import Target, require_free

    loaded = load_config(config, overrides)
    derive_recipe(loaded)
    require_free(out, replace=force)
    parents = open_contents(loaded)
    space = derive_recipe(pinned(loaded))
    recipe = space.recipe({}, {name: parent.content for name, parent in parents.items()})
    with bar("building") as progress:
        export_model(
            recipe,
            parents,
            Target(out, shard_bytes, force),
            about=About(loaded.config.name or config.stem, loaded.config.score),
            progress=progress,
        )
    click.echo(f"recipe {recipe.hash}: {shown(out.absolute())}")


def open_contents(loaded: Loaded) -> dict[str, Parent]:
    """Check the parents and the stages of a config, and hash the parents' content.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    from evolve.score.handed import without_items
    from evolve.validation import open_parents, stage_problems
    from evolve.weights.content import content_of
    from evolve.weights.remarks import remarks

    parents, models, problems = open_parents(loaded)
    problems = problems or [*stage_problems(loaded, models), *without_items(loaded)]
    if problems:
        raise ConfigError(problems)
    for remark in remarks(parents, models):
        warn(remark)
    return {name: replace(parent, content=content_of(parent.path)) for name, parent in parents.items()}
