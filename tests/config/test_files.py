"""Data files in a config: their content counts, and where they are does not."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from evolve.config.dump import resolved_yaml
from evolve.config.files import files, located, pinned
from evolve.config.load import Loaded, load_text
from evolve.errors import ConfigError
from evolve.space.space import derive, derive_recipe
from evolve.types import Recipe, content_hash

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS = {"a": "sha256:a", "b": "sha256:b"}


def text(path: Path | str, **settings: Any) -> str:
    block = {
        "merge_method": "fisher",
        "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": 2}}],
        "statistics": {"path": str(path), **settings},
    }
    return yaml.safe_dump(
        {"models": {"a": "x/a", "b": "x/b"}, "pipeline": [{"merge": block}]}, sort_keys=False
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("some text")
    return path


def digest(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def recipe(loaded: Loaded) -> Recipe:
    return derive_recipe(loaded).recipe({}, CONTENTS)


def test_pinning_fills_in_the_content(corpus: Path) -> None:
    loaded = load_text(text(corpus), "c.yaml")
    (path, file), *more = files(loaded.stages[0][1])
    assert not more
    assert (path, file.path, file.content) == (("statistics",), str(corpus), None)
    found = pinned(loaded)
    ((_, file),) = files(found.stages[0][1])
    assert file.content == digest("some text")
    assert found.config.pipeline[0]["merge"]["statistics"]["content"] == digest("some text")
    assert pinned(found) is found
    assert pinned(load_text(resolved_yaml(found), "c.yaml")).stages == found.stages, "a run's own config"


def test_a_recipe_needs_pinned_files(corpus: Path) -> None:
    with pytest.raises(ValueError, match="pinned"):
        recipe(load_text(text(corpus), "c.yaml"))


def test_the_content_of_a_file_counts_and_not_its_place(corpus: Path, tmp_path: Path) -> None:
    first = recipe(pinned(load_text(text(corpus), "c.yaml")))
    moved = tmp_path / "elsewhere" / "other.txt"
    moved.parent.mkdir()
    moved.write_bytes(corpus.read_bytes())
    second = recipe(pinned(load_text(text(moved), "c.yaml")))
    assert first.hash == second.hash
    assert str(tmp_path) in first.text, "an exported recipe says where it was"
    corpus.write_text("another text")
    assert recipe(pinned(load_text(text(corpus), "c.yaml"))).hash != first.hash


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 100}, {"sequence_length": 64}, {"seed": 1}, {"labels": "data"}]
)
def test_settings_count(corpus: Path, settings: dict[str, Any]) -> None:
    plain = recipe(pinned(load_text(text(corpus), "c.yaml")))
    assert recipe(pinned(load_text(text(corpus, **settings), "c.yaml"))).hash != plain.hash
    defaults = {"max_tokens": 200_000, "sequence_length": 512, "seed": 0, "labels": "sampled"}
    assert recipe(pinned(load_text(text(corpus, **defaults), "c.yaml"))) == plain


def test_a_content_that_is_given_must_be_there(corpus: Path) -> None:
    good = load_text(text(corpus, content=digest("some text")), "c.yaml")
    assert pinned(good) is good
    with pytest.raises(ConfigError, match=r"c\.yaml:\d+:\d+.*statistics\.content.*bring back the file"):
        pinned(load_text(text(corpus, content=digest("other")), "c.yaml"))
    with pytest.raises(ConfigError, match="pattern"):
        load_text(text(corpus, content="sha256:1"), "c.yaml")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"statistics\.path.*cannot be read"):
        pinned(load_text(text(tmp_path / "nothing"), "c.yaml"))


def test_hashes_of_recipes_without_files_stay_what_they_were() -> None:
    plain = Recipe.make(CONTENTS, [{"merge": {"merge_method": "linear"}}])
    assert plain.hash == content_hash(
        {"models": CONTENTS, "pipeline": [{"merge": {"merge_method": "linear"}}]}
    )
    odd = [Recipe.make({"path": "sha256:1", "content": f"sha256:{i}"}, []).hash for i in (2, 3)]
    odd += [Recipe.make({"path": "sha256:4", "content": "sha256:2"}, []).hash]
    assert len(set(odd)) == 3, "models may have any name"


def test_paths_are_found_from_where_the_run_was_started(tmp_path: Path) -> None:
    data = {"a": [{"path": "x/y.txt", "content": "sha256:1"}, {"path": "x"}], "path": "p"}
    found = located(data, tmp_path)
    assert found == {
        "a": [{"path": str(tmp_path / "x" / "y.txt"), "content": "sha256:1"}, {"path": "x"}],
        "path": "p",
    }
    absolute = {"path": "/x/y", "content": "sha256:1"}
    assert located(absolute, tmp_path) == absolute


def test_a_space_with_files(corpus: Path) -> None:
    source = text(corpus).replace("weight: 2", "weight: {low: 0.0, high: 1.0}")
    space = derive(pinned(load_text(source, "c.yaml")))
    values = space.centre()
    built = space.recipe(values, CONTENTS)
    assert built.pipeline[0]["merge"]["statistics"]["content"] == digest("some text")
    document = yaml.safe_dump(space.document(values))
    assert recipe(pinned(load_text(document, "c.yaml"))).hash == built.hash
