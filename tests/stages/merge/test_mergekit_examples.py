"""The structural features of mergekit's YAML: the example files load and build, and mergekit 0.1.5 agrees."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from evolve.config.load import Loaded, load
from evolve.errors import ConfigError
from evolve.space.space import derive_recipe
from evolve.stages.merge.layout import make_layout
from evolve.stages.merge.plan import tensor_seed
from evolve.stages.pipeline import build, check
from evolve.weights.reader import open_model
from tests.stages.merge import mergekit
from tests.tensors.rules import drop
from tests.tiny import make_model

if TYPE_CHECKING:
    from evolve.stages.merge.block import MergeBlock
    from evolve.weights.model import Model

EXAMPLES = sorted((Path(__file__).parent / "mergekit_examples").glob("*.yml"))
LAYERS = {"base": 4, "math": 4, "prose": 4, "deep": 6}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    return {
        name: make_model(folder / name, seed=seed, layers=layers, tied=False)
        for seed, (name, layers) in enumerate(LAYERS.items())
    }


def mapped(example: Path, models: dict[str, Path], folder: Path) -> Path:
    """Write an example with the paths of the tiny models in it."""
    text = example.read_text()
    for name, path in models.items():
        text = text.replace(f"example/{name}", str(path))
    target = folder / example.name
    target.write_text(text)
    return target


def loaded_example(example: Path, models: dict[str, Path], folder: Path) -> Loaded:
    try:
        return load(mapped(example, models, folder))
    except ConfigError as error:
        waits = all(
            "not supported" in one.message or "unknown merge method" in one.message for one in error.problems
        )
        if waits:  # another part of the merge stage brings it
            pytest.skip(str(error))
        raise


def built(loaded: Loaded, models: dict[str, Model]) -> Model:
    recipe = derive_recipe(loaded).recipe({}, dict.fromkeys(loaded.config.models, "sha256:0"))
    return build(recipe, {name: models[Path(path).name] for name, path in loaded.config.models.items()})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_builds(example: Path, models: dict[str, Path], tmp_path: Path) -> None:
    loaded = loaded_example(example, models, tmp_path)
    opened = {name: open_model(path) for name, path in models.items()}
    by_name = {name: opened[Path(path).name] for name, path in loaded.config.models.items()}
    assert check(loaded.stages, by_name) == []
    model = built(loaded, opened)
    assert all(tuple(tensor.shape) == model.specs[name].shape for name, tensor in model.tensors())
    if loaded.stages[-1][1].sliced:
        numbers = {int(name.split(".")[2]) for name in model.specs if name.startswith("model.layers.")}
        assert numbers == set(range(model.config["num_hidden_layers"]))


@pytest.fixture(scope="module")
def environment() -> None:
    reason = mergekit.make_environment()
    if reason:
        pytest.skip(f"no mergekit environment: {reason}")


def write_masks(target: Path, block: MergeBlock, models: dict[str, Model], paths: dict[str, Path]) -> str:
    """Write the masks of a DARE merge: one for each tensor of the result, and so two for a layer twice."""
    from safetensors.torch import save_file

    masks = {}
    for name, place in make_layout(block, models).places.items():
        shape = models[place.part.entries[0].model].specs[place.source(place.part.entries[0])].shape
        for entry in place.part.others:
            density = float(entry.parameters["density"])
            kept = drop(torch.ones(shape), density, tensor_seed(0, entry.model, name), rescale=False)
            masks[f"{paths[entry.model]}|{name}"] = kept > 0
    save_file(masks, target)
    return str(target)


def through_mergekit(config: Path, folder: Path, masks: str | None) -> dict[str, torch.Tensor]:
    if "\n---\n" not in config.read_text():
        mergekit.run([{"config": str(config), "out": str(folder / "out"), "masks": masks}], folder)
        return mergekit.read(folder / "out")
    options = ["-I", folder / "parts", "--out-path", folder / "out", "--no-copy-tokenizer"]
    command = [mergekit.PYTHON, "-m", "mergekit.scripts.multimerge", config, *options]
    subprocess.run(command, check=True, capture_output=True)
    out = folder / "out"
    return mergekit.read(out if out.is_dir() else folder / "parts" / "stacked")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, relative to the values and not to those that happen to be near zero."""
    scale = torch.maximum(theirs.double().abs(), theirs.double().square().mean().sqrt())
    return ((ours.double() - theirs.double()).abs() / scale).max().item()


IN_FLOAT64 = ("model_stock",)
"""Examples in which mergekit's float32 loses digits that its float64 has: of the cosine."""


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_through_mergekit(
    example: Path, models: dict[str, Path], tmp_path: Path, environment: None
) -> None:
    loaded = loaded_example(example, models, tmp_path)
    if example.stem == "tokenizer":
        pytest.skip("the tests of vocabularies compare these")
    opened = {name: open_model(path) for name, path in models.items()}
    block = loaded.stages[-1][1]
    masks = None
    if block.merge_method.startswith("dare"):
        masks = write_masks(tmp_path / "masks.safetensors", block, opened, models)
    config = tmp_path / example.name
    if example.stem in IN_FLOAT64:
        config.write_text(config.read_text().replace("dtype: float32", "dtype: float64"))
    theirs = through_mergekit(config, tmp_path, masks)
    ours = dict(built(loaded, opened).tensors())
    assert ours.keys() == theirs.keys()
    errors = {name: relative(tensor, theirs[name]) for name, tensor in ours.items()}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= 1e-6, (worst, errors[worst])
