"""The keys of ``teacher: {kind: api}`` and ``generate:``. Numbers that decide the rows may be ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from evolve.config.values import (
    Block,
    Choices,
    DataFile,
    ItemsFile,
    SearchInt,
    SearchNumber,
    SearchSwitch,
)
from evolve.generate.checks import (
    check_generate,
    check_rationale,
    check_teacher,
    without_effect,
    without_effect_of_rationale,
)

if TYPE_CHECKING:
    from evolve.config.yaml import Path


def _file(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


TextFile: TypeAlias = Annotated[DataFile, BeforeValidator(_file, json_schema_input_type=str | DataFile)]
"""A data file, also as its path alone."""

BannedFile: TypeAlias = Annotated[ItemsFile, BeforeValidator(_file, json_schema_input_type=str | ItemsFile)]
"""The same, of what no row may hold."""


class ApiTeacher(Block):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["api"] = "api"
    """A teacher that only gives text."""
    base_url: str = Field(min_length=1)
    """Such as ``http://127.0.0.1:8000/v1``. Not part of what answers are kept under: the model's name is."""
    model: str = Field(min_length=1)
    """The model's name at the server."""
    api_key_env: str | None = Field(default=None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; absent: the server asks for none."""
    endpoint: Literal["chat", "completions"] = "chat"
    """``completions`` for models without a chat template: the turns are joined by empty lines."""
    max_tokens_key: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """What the server calls the limit of an answer. ``endpoint: completions`` always says ``max_tokens``."""
    send_seed: bool = True
    """Whether a seed goes with each request, for servers that draw by it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of each request, such as ``{chat_template_kwargs: {enable_thinking: false}}``."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds for one answer; then it is asked for again."""
    max_tries: int = Field(default=20, ge=1)
    """How often a request is sent where the server or the network fails."""
    max_wait: float = Field(default=900.0, ge=0)
    """Seconds after which a request is given up that fails again and again."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests in a minute, of all processes on one store together."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Most tokens in a minute, prompts and answers, of all processes on one store together."""
    usd_per_million_input_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens of prompts."""
    usd_per_million_output_tokens: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""

    def problems(self) -> list[tuple[Path, str]]:
        """Return what the types cannot say, as ``(path inside the block, message with the mend)``."""
        return check_teacher(self)


class TextbookBlock(Block):
    """What textbook-style texts are about: every topic, each with a draw of audience, form and words."""

    topics: TextFile
    """A text file with a topic a line."""
    audiences: list[str] = Field(
        default=["a pupil of ten years", "a student in the first year", "an engineer of another field"],
        min_length=1,
    )
    """For whom."""
    forms: list[str] = Field(
        default=[
            "a section of a textbook",
            "a worked example with every step",
            "a dialogue between a teacher and a pupil",
            "questions and answers",
        ],
        min_length=1,
    )
    """As what."""
    words: TextFile | None = None
    """A text file with a word or phrase a line; each text must use some, so that no two are alike."""
    words_per_text: SearchInt = 3
    """How many of the words."""
    texts_per_topic: SearchInt = 4
    """How many combinations of audience and form are drawn for each topic."""
    exercises: SearchInt = 0
    """How many exercises with solutions are asked for, for each topic and audience drawn."""


class VerifyBlock(Block):
    """Which answers are right, and which of those are kept."""

    kind: str
    """``exact``, ``numeric``, ``math``, ``regex`` or ``python``."""
    field: str | None = None
    """Key of the prompt's line that holds the right answer."""
    keep: Literal["shortest", "all"] = "shortest"
    """Which of the right answers come first: the shortest, or the first."""
    max_per_prompt: SearchInt | None = None
    """Most right answers of one prompt that are kept; absent: 1 for ``shortest``, else all."""
    min_pass_rate: SearchNumber = 0.0
    """Prompts with a smaller share of right answers are left out: too hard, or the reference is wrong."""
    max_pass_rate: SearchNumber = 1.0
    """Prompts with a larger share of right answers are left out: too easy to learn from."""
    ignore_case: bool = False
    """``exact`` and ``regex``: whether case does not count."""
    tolerance: float = Field(default=1e-6, ge=0)
    """``numeric``: the largest difference, relative to the right answer."""
    pattern: str | None = None
    """``regex``: must be found in the answer; with ``field``, its first group must be the right answer."""
    file: TextFile | None = None
    """``python``: a Python file of yours. It is run."""
    function: str = Field(default="verify", pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """``python``: its function ``(answer, reference, row) -> bool``."""
    timeout: float = Field(default=5.0, gt=0)
    """``math``, ``regex``, ``python``: seconds for one answer; then it counts as wrong."""


class QualityBlock(Block):
    """A model that gives each row 1 to 5 points."""

    judge: str | ApiTeacher | None = None
    """Name of a model at the teacher's server, or a teacher of its own; absent: the teacher."""
    min: SearchNumber = 3
    """Fewest points of a row that stays."""
    criteria: str = "correct, clear, complete, and useful to learn from"
    """What the points are for."""
    max_completion_tokens: int = Field(default=256, ge=1)
    """Most tokens of a judgement; a model that reasons needs more."""


class FiltersBlock(Block):
    """Which rows are left out. They run in this order, and what each removes is counted."""

    min_tokens: SearchInt | None = None
    """Fewest tokens of an answer, as the teacher counts them."""
    max_tokens: SearchInt | None = None
    """Most tokens of an answer, as the teacher counts them."""
    min_words: SearchInt | None = None
    """Fewest words of an answer, reasons included."""
    max_words: SearchInt | None = None
    """Most words of an answer, reasons included."""
    refusals: SearchSwitch = True
    """Whether answers that decline to answer are asked for again and never kept."""
    exact_duplicates: SearchSwitch = True
    """Whether of rows with the same words one stays."""
    ngram_overlap: int | None = Field(default=None, ge=3)
    """Rows that share so many words in a row with an item of the score are left out."""
    banned: BannedFile | None = None
    """The items for ``ngram_overlap``: JSONL of questions or conversations, or text with one a line."""
    near_duplicate: SearchNumber | None = None
    """Of rows whose runs of three words are at least this similar (Jaccard), the first stays."""
    quality: QualityBlock | None = None
    """A judge, which costs tokens: it comes last."""


class BudgetBlock(Block):
    """What all answers in one store may cost, those of all candidates and of earlier searches together."""

    tokens: int | None = Field(default=None, ge=0)
    """Most tokens, prompts and answers."""
    usd: float | None = Field(default=None, ge=0)
    """Most money, by the prices that the teacher's block gives."""


class GenerateBlock(Block):
    """What the teacher writes, and what of it stays."""

    style: str = "completion"
    """``completion``, ``explanation`` (Orca), ``textbook`` (Phi) or ``reasoning`` (R1)."""
    prompts: TextFile | None = None
    """A JSONL file of prompts; answers in it are not shown to the teacher."""
    limit: SearchInt | None = None
    """Most prompts; the same ones for the same limit, and those of a smaller one among them."""
    system: str | None = None
    """A system message for every prompt that has none."""
    system_prompts: TextFile | None = None
    """``explanation``: a text file with a system message a line; each prompt draws one by seed."""
    keep_system: bool = True
    """Whether the rows have the system message too."""
    instruction: str | None = None
    """Text behind each prompt that only the teacher sees; absent: the style's own."""
    textbook: TextbookBlock | None = None
    """``textbook``: what about."""
    n: SearchInt = 1
    """Answers to each prompt. More of them later ask only for those that are missing."""
    temperature: SearchNumber = 0.7
    """0 takes the likeliest token always."""
    top_p: SearchNumber = 1.0
    """Share of the probability that tokens are drawn from."""
    max_completion_tokens: SearchInt = 1024
    """Most tokens of an answer. One that is cut off there is no answer."""
    stop: list[str] = Field(default_factory=list, max_length=4)
    """Texts that end an answer."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the teacher's draws and of what is drawn for prompts. Not the stage's: runs share their answers."""
    answer_pattern: str | None = None
    """With the groups ``reasoning`` and ``answer``; absent: ``<think>`` tags, ``Answer:``, ``####``."""
    max_attempts: int = Field(default=3, ge=1)
    """How often an answer is asked for that is refused, cut off or empty."""
    verify: VerifyBlock | None = None
    """Keep right answers only."""
    filters: FiltersBlock = Field(default_factory=FiltersBlock)
    """Rows that are left out."""
    budget: BudgetBlock = Field(default_factory=BudgetBlock)
    """When to stop asking."""
    concurrency: int = Field(default=8, ge=1, le=1000)
    """Requests at a time."""
    content: str | None = Field(default=None, pattern="^sha256:[0-9a-f]{64}$")
    """What the rows must be. An exported recipe says it: who is asked again may answer something else."""

    def problems(self) -> list[tuple[Path, str]]:
        """Return what the types cannot say, as ``(path inside the block, message with the mend)``."""
        return check_generate(self)

    @classmethod
    def effective(cls, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return a plain block without what its style and its verifier do not use."""
        return without_effect(plain)


Rationale = Literal["inline", "second_task", "none", "shuffled"]
_MODES = "'inline', 'second_task', 'none', 'shuffled', or {choices: [...]} of these"


def _only_modes(value: Any) -> Any:
    if any(choice not in get_args(Rationale) for choice in value.choices):
        raise ValueError(f"expected {_MODES}")
    return value


def _mode_shape(value: Any) -> str | None:
    if isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value):
        return "choices"
    return "word" if isinstance(value, str) else None


SearchRationale: TypeAlias = Annotated[
    Annotated[Rationale, Tag("word")] | Annotated[Choices, AfterValidator(_only_modes), Tag("choices")],
    Discriminator(_mode_shape, "wrong_shape", f"expected {_MODES}"),
]
"""What is done with reasons, or a choice: one gene for all of them."""


class RationaleBlock(Block):
    """What the student does with the reasons in the rows."""

    mode: SearchRationale = "inline"
    """``inline``, ``second_task`` (step by step), ``none``; ``shuffled``, the control: others' reasons."""
    weight: SearchNumber = 1.0
    """Weight of the reasons' tokens in the loss; those of the answers weigh 1."""
    template: str = "<think>\n{reasoning}\n</think>\n{answer}"
    """``inline`` and ``shuffled``: how reasons and answer stand together."""
    answer_marker: str = "[answer] "
    """``second_task``: before the prompt, where the answer is asked."""
    rationale_marker: str = "[reasons] "
    """``second_task``: before the prompt, where the reasons are asked."""

    def problems(self) -> list[tuple[Path, str]]:
        """Return what the types cannot say, as ``(path inside the block, message with the mend)``."""
        return check_rationale(self)

    @classmethod
    def effective(cls, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return a plain block without what its mode does not use."""
        return without_effect_of_rationale(plain)
