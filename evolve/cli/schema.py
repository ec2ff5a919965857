"""``evolve schema``: the JSON Schema of configs, for editors."""

from __future__ import annotations

import click

from evolve.cli.output import print_json


@click.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors."""
    from evolve.config.json_schema import json_schema

    print_json(json_schema())
