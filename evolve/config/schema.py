"""The one schema. With every value fixed a config is a recipe; with a range in it, a search space."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from evolve.config.values import Block
from evolve.registry import ENGINES, SAMPLERS, SCORERS, did_you_mean
from evolve.types import Role

if TYPE_CHECKING:
    from collections.abc import Callable

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]


def _known(kind: str, names: Callable[[], tuple[str, ...]]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names():
            raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, names())}")
        return name

    return AfterValidator(check)


def safe_name(name: str) -> str:
    """Return a run's name if it can be the name of a folder.

    Raises:
        ValueError: It cannot; the message says why.
    """
    if re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise ValueError(f"the name of a run is the name of its folder: no slash in it, got {name!r}")
    if name != name.strip() or name.startswith((".", "-")) or not name:
        raise ValueError(f"the name of a run must not begin with a dot, a dash or a space, got {name!r}")
    if len(name.encode()) > 200:
        raise ValueError("the name of a run has at most 200 bytes")
    return name


def _no_password(url: str) -> str:
    # In the place of the user, or as an option of the query. `evolve.store.url` reads both.
    user = re.match(r"[\w+]+://[^/?#:]*:([^/?#]*)@", url)
    found = user, re.search(r"[?&](?:ssl)?password=([^&]*)", url, re.IGNORECASE)
    for secret in found:
        if secret and not re.fullmatch(r"(\$\{\w+\})*", secret[1]):
            raise ValueError(
                "a password must not stand in a config: write ${NAME}, taken from the environment"
            )
    return url


def _engine_block(engine: Any) -> Any:
    return {"kind": engine} if isinstance(engine, str) else engine


class TaskConfig(Block):
    """One lm-eval task and how it counts."""

    task: Text
    """Name of an lm-eval task, or of a local one below ``include_path``."""
    metric: Text
    """Metric of the task, such as ``acc`` or ``exact_match``; ``exact_match,strict-match`` names a filter."""
    weight: float = Field(default=1.0, ge=0)
    """Weight in the objective; 0: only reported."""
    items: int | None = Field(default=None, ge=1)
    """Number of items for the search, drawn by seed; absent: all that the holdout leaves."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Few-shot examples; absent: what the task says."""
    role: Role | None = None
    """``gain``: a model is to become better here; ``retention``: it is to lose nothing here. For the picture
    of gain against forgetting alone, whatever the weight. Tasks of one role count alike."""


class Counted(NamedTuple):
    """A task or another scorer, as the objective and the tables see it."""

    task: str
    metric: str
    weight: float
    role: Role | None = None


class HoldoutConfig(Block):
    """Items that the search never sees; only the report uses them."""

    items: int = Field(default=200, ge=0)
    """Items per task. 0 turns the holdout off."""
    top: int = Field(default=5, ge=1)
    """So many of the best candidates are scored on it. With more than one, the winner is chosen on one half
    of the items and reported on the other."""
    seeds: int = Field(default=3, ge=1)
    """A winner that draws at random (masks, training) is built with so many seeds, its own among them: the
    interval over items describes one draw. 1: its own alone."""
    ablations: bool = False
    """Whether a winner of several stages is built again without each of them, to show which stages pay."""

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if self.items == 0 and self.ablations:
            raise ValueError("ablations need items of the holdout, and items is 0: remove one of them")
        return self


class RetentionConfig(Block):
    """A candidate must not lose what a model can do."""

    model: Text
    """Name of one of the ``models``."""
    loss: float = Field(default=0.01, ge=0)
    """How far below that model a candidate may be on any task, in the unit of the task's metric."""


class ScoreConfig(Block):
    """How a candidate is scored."""

    backend: Annotated[str, _known("backend", lambda: ("auto", *ENGINES.names()))] = "auto"
    """Engine: ``vllm``, ``hf``, or ``auto`` (vllm where it can be imported, else hf)."""
    tasks: list[TaskConfig] = Field(default_factory=list)
    """The tasks that the objective is made of, together with the scorers."""
    scorers: list[dict[str, Any]] = Field(default_factory=list)
    """Further scorers, each ``{kind: block}``, such as ``bits_per_byte`` or ``size``."""
    objective: Literal["weighted", "normalised", "worst"] = "weighted"
    """``weighted``: the weighted mean of the metrics. ``normalised``: the weighted mean of the tasks on a
    scale where the worst parent is 0 and the best parent is 1. ``worst``: the lowest task on that scale."""
    retention: RetentionConfig | None = None
    """A candidate that loses more than this ranks below every one that does not; absent: no limit."""
    start: Text | None = None
    """Name of the one of the ``models`` that gain and forgetting are counted from; it sets no limit. Absent:
    that of ``retention``, else the one that the first stage starts from, else the first model."""
    shared_text: Literal["error", "report"] = "error"
    """What to do where items of search and holdout share text, as questions on one passage do."""
    holdout: HoldoutConfig = HoldoutConfig()
    """The items that only the report uses."""
    include_path: str | None = None
    """Folder with local lm-eval task YAML files."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the engine; auto: float32 on a CPU without bf16 units, else the model's own."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per batch of the hf engine."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest sequence in tokens; absent: what the model allows."""
    apply_chat_template: bool = False
    """Wrap prompts in the chat template of the tokenizer."""
    system_instruction: str | None = None
    """System prompt, used together with a chat template."""
    seed: Seed = 0
    """Seed that draws the items; part of what makes two runs comparable."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to vLLM's ``LLM`` or to transformers' ``from_pretrained``."""
    eval_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to lm-eval's ``evaluate``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [entry.task for entry in self.counted]
        if not names:
            raise ValueError("there is nothing to score: list at least one task")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice and names[len(self.tasks) :].count(twice[0]):
            raise ValueError(f"two entries are named {twice[0]!r}: give the scorer a name of its own")
        if twice:
            raise ValueError(f"the task {twice[0]!r} is listed twice: a task has one metric and one weight")
        if not any(entry.weight for entry in self.counted):
            raise ValueError("every task has weight 0: give at least one a weight above 0")
        if len(roles := {entry.role for entry in self.counted if entry.role}) == 1:
            (given,) = roles
            lacking = "retention" if given == "gain" else "gain"
            raise ValueError(
                f"role: {given} is given and role: {lacking} is not: gain is held against forgetting, so "
                f"give at least one task or scorer role: {lacking}, or remove the roles"
            )
        if self.start is not None and not roles:
            raise ValueError(
                "start is what gain and forgetting are counted from, and nothing has a role: give tasks or "
                "scorers role: gain and role: retention, or remove start"
            )
        return self

    @property
    def counted(self) -> tuple[Counted, ...]:
        """Everything that has a score: the tasks, then the other scorers."""
        return (
            *(Counted(task.task, task.metric, task.weight, task.role) for task in self.tasks),
            *(_counted(entry) for entry in self.scorers),
        )


def _counted(entry: dict[str, Any]) -> Counted:
    if len(entry) != 1:
        raise ValueError(f"expected one scorer, such as {{size: {{...}}}}, got {sorted(entry)}")
    [(kind, raw)] = entry.items()
    if kind not in SCORERS:
        raise ValueError(f"unknown scorer {kind!r}{did_you_mean(kind, SCORERS.names())}")
    block = SCORERS.load(kind).block.model_validate(raw)
    return Counted(block.name or kind, block.metric_name, block.weight, block.role)


class RacingConfig(Block):
    """Within a generation, candidates are compared on growing subsets; those that are settled stop."""

    first: float = Field(default=0.25, gt=0, le=1)
    """Share of the items that every candidate is asked first."""
    growth: float = Field(default=2.0, ge=1.1)
    """Factor by which the items grow from one comparison to the next; each costs a candidate a load."""
    error: float = Field(default=0.05, gt=0, lt=1)
    """Largest expected share of settled candidates that are on the wrong side of the selected half; and the
    probability of beating the best below which the leader of a generation is asked no more."""
    order: Literal["random", "discriminative"] = "random"
    """``random``: a seeded order. ``discriminative``: items on which the parents differ are three times as
    dense at its front, and count less each; scores stay unbiased."""


class ItemsGrowthConfig(Block):
    """Over the generations the number of items grows, as the differences between candidates shrink."""

    first: float = Field(default=0.05, gt=0, le=1)
    """Share of the items in the first generation."""
    growth: float = Field(default=1.5, ge=1.1)
    """Factor by which they grow when they are too few."""
    error: float = Field(default=0.35, gt=0, lt=0.5)
    """They are too few where more than this share of the pairs across the selected half is expected to
    stand in the wrong order; by chance alone it would be 0.5."""


class EstimatorConfig(Block):
    """An item-response model predicts the items that were not asked."""

    anchors: float = Field(default=0.1, gt=0, le=1)
    """Share of the items that are asked where neither racing nor items_growth says."""
    dimensions: int = Field(default=2, ge=1, le=16)
    """Dimensions of a model's ability."""
    correction: float = Field(default=0.5, ge=0, le=1)
    """How much of the error on the asked items is added: 0 trusts the model, 1 is unbiased without it."""


class SearchConfig(Block):
    """How recipes are proposed, and when to stop."""

    sampler: Annotated[str, _known("sampler", SAMPLERS.names)] = "cmaes"
    """Name of a sampler; `evolve ls samplers` lists them."""
    trials: int = Field(default=100, ge=1)
    """Total number of scored candidates, over all starts; failed ones are replaced and not counted."""
    population: int | None = Field(default=None, ge=2)
    """Candidates per generation; absent: 4 + floor(3 ln genes)."""
    seed: Seed = 0
    """Seed of the search and of the random merge methods."""
    timeout: float | None = Field(default=None, gt=0)
    """Stop after this many seconds of this start."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many generations without improvement."""
    target: float | None = None
    """Stop when the objective reaches this value."""
    storage: Annotated[Text, AfterValidator(_no_password)] | None = None
    """Optuna storage URL (``sqlite:///...``, ``postgresql://...``); absent: a journal file in the run's
    folder. ``${NAME}`` is taken from the environment."""
    racing: RacingConfig | None = None
    """Stop settled candidates early; absent: off. These three need ``sampler: cmaes``."""
    items_growth: ItemsGrowthConfig | None = None
    """Ask fewer items in early generations; absent: off."""
    estimator: EstimatorConfig | None = None
    """Predict the items that were not asked; absent: off."""

    @property
    def partial(self) -> bool:
        """Whether candidates may be scored on a part of the items."""
        return any(block is not None for block in (self.racing, self.items_growth, self.estimator))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.partial and self.sampler != "cmaes":
            raise ValueError(
                f"racing, items_growth and estimator need sampler: cmaes, which looks at ranks within a "
                f"generation; {self.sampler} compares values across generations"
            )
        return self


class EngineConfig(Block):
    """Where candidates are evaluated."""

    kind: Literal["ray", "inline"] = "ray"
    """``ray``: actors that run side by side; ``inline``: one after another in this process."""
    evaluators: int | None = Field(default=None, ge=1)
    """Number of evaluators; absent: one per GPU, or on CPUs one per ``cpus`` cores."""
    cpus: float = Field(default=1.0, gt=0)
    """CPU cores (and threads) of one evaluator."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of one evaluator; absent: 1 where the cluster has GPUs, else 0."""
    cache_gib: float | None = Field(default=None, ge=0)
    """Most GiB of memory that one evaluator keeps of the parents between merges: thresholds, ranks, norms.
    Absent: as much as their weights take, which is what DELLA wants, but at most the evaluator's share of a
    quarter of the free memory; 1 GiB where that is less, and on a GPU."""
    candidate_timeout: float = Field(default=3600.0, gt=0)
    """Seconds after which a candidate is stopped and counts as failed."""


class Config(Block):
    """A whole config file."""

    name: Annotated[str, AfterValidator(safe_name)] | None = None
    """Name of the run; absent: the stem of the config file."""
    models: dict[Text, Text] = Field(min_length=1)
    """Name to folder, ``.gguf`` file or ``hub/id[@revision]``; ``+adapter`` behind it adds a LoRA adapter.
    Folders are relative to the working directory."""
    pipeline: list[dict[str, Any]] = Field(min_length=1)
    """Stages in order, each ``{kind: block}``. Each block is checked by the schema of its stage."""
    score: ScoreConfig | None = None
    """Tasks and engine; needed to search, not to build."""
    search: SearchConfig = SearchConfig()
    """The search."""
    engine: Annotated[EngineConfig, BeforeValidator(_engine_block)] = EngineConfig()
    """``ray`` or ``inline``, or a block."""
