"""A config with ranges in it becomes genes, and values of the genes become a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evolve.config.dump import config_data
from evolve.config.files import files
from evolve.config.plain import plain, ranges
from evolve.config.values import Choices, IntRange, Range
from evolve.errors import ConfigError, Problem
from evolve.space.genes import ChoiceValue, Gene, on_grid
from evolve.space.names import label, prefixes, unique
from evolve.space.pipeline import Effect, Filled, effect
from evolve.types import Recipe, content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.config.load import Loaded
    from evolve.config.yaml import Path


@dataclass(frozen=True)
class Slot:
    """A place in the pipeline that genes fill.

    Attributes:
        stage: Position of the stage.
        path: Path inside its block.
        genes: The genes, several for a range with knots.
    """

    stage: int
    path: Path
    genes: tuple[Gene, ...]

    def value(self, values: Mapping[str, float]) -> ChoiceValue | list[ChoiceValue]:
        """Return what stands at the place for some values of all genes."""
        try:
            decoded = [gene.decode(values[gene.name]) for gene in self.genes]
        except KeyError as error:
            raise ValueError(f"no value for the gene {error}") from error
        return decoded if len(decoded) > 1 else decoded[0]


@dataclass(frozen=True)
class Space:
    """The flat, static space of a config: every range of every stage, also while its stage is off.

    Attributes:
        genes: The coordinates, in the order of the config. None for a config without ranges.
        slots: Where they belong.
        loaded: The config.
    """

    genes: tuple[Gene, ...]
    slots: tuple[Slot, ...]
    loaded: Loaded

    @property
    def key(self) -> str:
        """Hash of the genes: a study belongs to one."""
        return content_hash([gene.as_plain() for gene in self.genes])

    def centre(self) -> dict[str, float]:
        """Return the middle of every range, as the sampler sees it."""
        return {gene.name: gene.centre() for gene in self.genes}

    def params(self, values: Mapping[str, float]) -> dict[str, ChoiceValue]:
        """Return gene name to the value that it stands for."""
        return {gene.name: gene.decode(values[gene.name]) for gene in self.genes}

    def recipe(self, values: Mapping[str, float], contents: Mapping[str, str]) -> Recipe:
        """Return the recipe of a point.

        Two points of one effect give one recipe: what belongs to a stage that is off is not in it.

        Args:
            values: Gene name to value, as the sampler sees it; every gene has one.
            contents: Model name to ``sha256:...``.

        Raises:
            ValueError: A gene has no value, or one outside of its range; or a data file is not pinned.
        """
        if any(file.content is None for _, block in self.loaded.stages for _, file in files(block)):
            raise ValueError("a recipe is made of a config whose data files are pinned")
        models, pipeline = self._effect(values)
        return Recipe.make({name: contents[name] for name in models}, pipeline)

    def _effect(self, values: Mapping[str, float]) -> Effect:
        config = self.loaded.config
        stages = [
            Filled(kind, block, self._filled(index, values, defaults=False))
            for index, (kind, block) in enumerate(self.loaded.stages)
        ]
        return effect(stages, list(config.models), seed=config.search.seed)

    def switches(self) -> dict[str, Gene]:
        """Return the stages that genes switch on and off: what their genes' names begin with, to the gene."""
        names = prefixes(self.loaded.stages)
        return {
            names[slot.stage]: slot.genes[0]
            for slot in self.slots
            if slot.path == ("enabled",) and not slot.genes[0].single
        }

    def active(self, values: Mapping[str, float]) -> frozenset[str]:
        """Return the switched stages that are on at a point and that its result depends on.

        Args:
            values: Gene name to value, as for :meth:`recipe`.
        """
        whole = self._effect(values)
        found = set()
        for name, gene in self.switches().items():
            if gene.choices is not None and gene.decode(values[gene.name]):
                off = {**values, gene.name: float(gene.choices.index(False))}
                if self._effect(off) != whole:
                    found.add(name)
        return frozenset(found)

    def document(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Return the config with its ranges filled in, as plain data of the same schema.

        It loads as a config without ranges that gives the same recipe: seeds are written out.
        """
        data = config_data(self.loaded)
        seed = self.loaded.config.search.seed
        data["pipeline"] = [
            {kind: {**self._filled(index, values, defaults=True), "seed": seed if own is None else own}}
            for index, (kind, own) in enumerate((kind, block.seed) for kind, block in self.loaded.stages)
        ]
        return data

    def _filled(self, index: int, values: Mapping[str, float], *, defaults: bool) -> dict[str, Any]:
        slots = {slot.path: slot for slot in self.slots if slot.stage == index}
        block = self.loaded.stages[index][1]
        filled: dict[str, Any] = plain(
            block, fill=lambda path, _: slots[path].value(values), defaults=defaults
        )
        return filled


def derive(loaded: Loaded) -> Space:
    """Return the space of a config; one without genes for a config without ranges."""
    short: list[str] = []
    full: list[str] = []
    places: list[tuple[int, Path, Range | Choices]] = []
    names = prefixes(loaded.stages)
    for index, (prefix, (_, block)) in enumerate(zip(names, loaded.stages, strict=True)):
        for path, value in ranges(block):
            short.append(f"{prefix}.{label(block, path)}")
            full.append(".".join([prefix, *map(str, path)]))
            places.append((index, path, value))
    slots: tuple[Slot, ...] = ()
    genes: tuple[Gene, ...] = ()
    for chosen in (unique(short, full), full):
        slots = tuple(
            Slot(index, path, _genes(name, value))
            for name, (index, path, value) in zip(chosen, places, strict=True)
        )
        genes = tuple(gene for slot in slots for gene in slot.genes)
        if len({gene.name for gene in genes}) == len(genes):
            break
    return Space(genes, slots, loaded)


def _genes(name: str, value: Range | Choices) -> tuple[Gene, ...]:
    if isinstance(value, Choices):
        return (_choice(name, tuple(value.choices)),)
    if isinstance(value, IntRange):
        return (_choice(name, tuple(value.values)),)
    high = value.high
    if value.step is not None:
        # The last value that the steps reach, so that samplers and people see the same bounds.
        high = on_grid(value.low, value.step, int((value.high - value.low) / value.step + 1e-9))
    if value.knots is None or value.knots == 1:
        return (_interval(name, high, value),)
    return tuple(_interval(f"{name}.{knot}", high, value) for knot in range(value.knots))


def _interval(name: str, high: float, value: Range) -> Gene:
    return Gene(name, value.low, high, value.log, value.step, off_below=value.off_below)


def _choice(name: str, choices: tuple[ChoiceValue, ...]) -> Gene:
    return Gene(name, 0.0, float(len(choices) - 1), step=1.0, choices=choices)


def derive_search(loaded: Loaded) -> Space:
    """Return the space of a config that is to be searched.

    Raises:
        ConfigError: There is nothing to search, or nothing to score by.
    """
    space = derive(loaded)
    problems = []
    if not space.genes:
        message = (
            "no range anywhere: this is a recipe. `evolve build` makes a model of it; to search, write "
            "{low: 0.0, high: 1.0} or {choices: [...]} in place of a number"
        )
        problems.append(loaded.problem(("pipeline",), message))
    if loaded.config.score is None:
        problems.append(Problem(loaded.where(()), "score", "missing: a search needs tasks to score by"))
    if problems:
        raise ConfigError(problems)
    return space


def derive_recipe(loaded: Loaded) -> Space:
    """Return the space without genes of a config that is to be built.

    Raises:
        ConfigError: There are ranges in it; every one is listed.
    """
    space = derive(loaded)
    problems = [
        loaded.problem(
            ("pipeline", slot.stage, loaded.stages[slot.stage][0], *slot.path),
            "a range: to build, give a value (`evolve export` fills in the best of a run)",
        )
        for slot in space.slots
    ]
    if problems:
        raise ConfigError(problems)
    return space
