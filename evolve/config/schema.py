"""The one schema. With every value fixed a config is a recipe; with a range in it, a search space."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from evolve.config.values import Block


class TaskConfig(Block):
    """One lm-eval task and how it counts."""

    task: str
    """Name of an lm-eval task, or of a local one below ``include_path``."""
    metric: str
    """Metric of the task, such as ``acc`` or ``exact_match``; ``exact_match,strict-match`` names a filter."""
    weight: float = 1.0
    """Weight in the objective."""
    items: int | None = Field(default=None, ge=1)
    """Number of items for the search, drawn by seed; absent: all that the holdout leaves."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Few-shot examples; absent: what the task says."""


class HoldoutConfig(Block):
    """Items that the search never sees; only the report uses them."""

    items: int = Field(default=200, ge=0)
    """Items per task. 0 turns the holdout off."""


class ScoreConfig(Block):
    """How a candidate is scored."""

    backend: str = "auto"
    """Engine: ``vllm``, ``hf``, or ``auto`` (vllm where it can be imported, else hf)."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """The tasks; the objective is the weighted mean of their metrics."""
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
    seed: int = 0
    """Seed that draws the items; part of what makes two runs comparable."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to vLLM's ``LLM`` or to transformers' ``from_pretrained``."""
    eval_args: dict[str, Any] = Field(default_factory=dict)
    """Passed through to lm-eval's ``evaluate``."""


class SearchConfig(Block):
    """How recipes are proposed, and when to stop."""

    sampler: str = "cmaes"
    """``cmaes``, ``tpe`` or ``random``."""
    trials: int = Field(default=100, ge=1)
    """Total number of scored candidates, over all starts; failed ones are replaced and not counted."""
    population: int | None = Field(default=None, ge=2)
    """Candidates per generation; absent: 4 + floor(3 ln genes)."""
    seed: int = 0
    """Seed of the search and of the random merge methods."""
    timeout: float | None = Field(default=None, gt=0)
    """Stop after this many seconds of this start."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many generations without improvement."""
    target: float | None = None
    """Stop when the objective reaches this value."""
    storage: str | None = None
    """Optuna storage URL (``sqlite:///...``, ``postgresql://...``); absent: a journal file in the run's
    folder. ``${NAME}`` is taken from the environment."""


class EngineConfig(Block):
    """Where candidates are evaluated."""

    kind: Literal["ray", "inline"] = "ray"
    """``ray``: actors that run side by side; ``inline``: one after another in this process."""
    evaluators: int | None = Field(default=None, ge=1)
    """Number of evaluators; absent: one per GPU, or on CPUs one per ``cpus`` cores."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores (and threads) of one evaluator."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of one evaluator; absent: 1 where the cluster has GPUs, else 0."""
    candidate_timeout: float = Field(default=3600, gt=0)
    """Seconds after which a candidate is stopped and counts as failed."""


class Config(Block):
    """A whole config file."""

    name: str | None = None
    """Name of the run; absent: the stem of the config file."""
    models: dict[str, str] = Field(min_length=1)
    """Name to folder or ``hub/id[@revision]``. Folders are relative to the working directory."""
    pipeline: list[dict[str, Any]] = Field(min_length=1)
    """Stages in order, each ``{kind: block}``. Each block is checked by the schema of its stage."""
    score: ScoreConfig | None = None
    """Tasks and engine; needed to search, not to build."""
    search: SearchConfig = SearchConfig()
    """The search."""
    engine: EngineConfig = EngineConfig()
    """``ray`` or ``inline``, or a block."""
