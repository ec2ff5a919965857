"""The keys of a distill stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from evolve.config.values import Block, DataFile, Range, SearchInt, SearchNumber, SearchSwitch, StageBlock
from evolve.generate.blocks import ApiTeacher, GenerateBlock, RationaleBlock
from evolve.generate.checks import check_pair
from evolve.registry import LOSSES
from evolve.stages.distill.checks import (
    generation_problems,
    mapping_problems,
    pattern_problems,
    temperature_problems,
)
from evolve.stages.distill.student import StudentBlock
from evolve.stages.distill.teachers.dataset import DatasetTeacherBlock
from evolve.stages.distill.teachers.hf import HfTeacherBlock
from evolve.stages.distill.teachers.vllm import VllmTeacherBlock
from evolve.stages.distill.terms import check_terms
from evolve.training.arguments import PeftConfig, TrainingArgs, ends

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class ApiTeacherBlock(ApiTeacher):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["api"]  # Without a default, which a recipe leaves out.
    """A teacher that only gives text."""


TeacherKinds = Annotated[
    HfTeacherBlock | VllmTeacherBlock | DatasetTeacherBlock | ApiTeacherBlock, Field(discriminator="kind")
]


class RowsBlock(Block):
    """How text becomes rows."""

    max_tokens: SearchInt | None = None
    """Most tokens of one time over the data, drawn by seed; absent: all of it. In a search each budget is a
    training of its own, with the whole schedule of the learning rate."""
    max_length: int = Field(default=512, ge=2)
    """Most tokens of a row. Longer documents are cut at their end."""
    packing: bool = True
    """Several documents in a row, which do not see each other."""


class DistillData(DataFile, RowsBlock):
    """The data: conversations in JSONL, or text."""


class LengthCurriculumBlock(Block):
    """The order of the documents, from short to long."""

    order: Literal["length"] = "length"
    """Tokens of a document."""
    reverse: SearchSwitch = False
    """From long to short."""
    pacing: SearchNumber | None = None
    """The share of the shortest documents that may come at the start; it grows to all of them. 1: no
    curriculum; absent: strictly in order."""


class GenerationBlock(Block):
    """How the student or the teacher samples what it writes."""

    temperature: SearchNumber = 1.0
    """0: always the most likely token."""
    top_p: SearchNumber = 1.0
    """Smallest set of tokens with this much probability."""
    top_k: SearchInt = 0
    """Most likely tokens; 0: all."""
    max_new_tokens: SearchInt = 128
    """Most tokens of a completion."""


class LossEntry(Block):
    """One loss and how it counts."""

    function: str
    """Name of a loss; `evolve ls losses` lists them."""
    weight: SearchNumber = 1.0
    """Share in the sum, which is divided by the sum of all weights; 0: not computed."""
    temperature: SearchNumber | None = None
    """Of both models' logits, for a loss over the vocabulary; absent: 1."""
    beta: SearchNumber | None = None
    """Of ``jsd``."""
    alpha: SearchNumber | None = None
    """Of the skew losses."""
    layer_mapping: str | list[list[int]] | None = None
    """``even``, ``all``, ``last``, or pairs [student's, teacher's], for a loss between layers."""

    def plain(self) -> dict[str, Any]:
        """Return what the config says of it."""
        return self.model_dump(exclude_none=True)


class DistillBlock(StageBlock):
    """Turns a model into a better one with a teacher."""

    model: str | None = Field(default=None, min_length=1)
    """The student: a stage before, or any of ``models``; absent: the output of the stage before."""
    student: StudentBlock | None = None
    """Which of its layers are trained; absent: all."""
    teacher: TeacherKinds | None = None
    """Who is learned from; absent: the text alone (``cross_entropy``)."""
    alignment: Literal["auto", "spans", "sorted", "pieces"] = "auto"
    """Where the teacher has another tokenizer: ``spans`` of the same text, ``sorted`` probabilities (ULD), or
    ``pieces`` of an extended vocabulary. ``auto``: pieces where most tokens are shared, else spans."""
    dataset: DistillData | None = None
    """The text; absent where the teacher writes it (``generate``)."""
    generate: GenerateBlock | None = None
    """What a teacher of ``kind: api`` is asked to write."""
    rows: RowsBlock | None = None
    """How what the teacher has written becomes rows."""
    rationale: RationaleBlock | None = None
    """What is done with reasons in the data; absent: they are left out."""
    curriculum: LengthCurriculumBlock | None = None
    """The order of the documents in each time over the data; absent: shuffled."""
    lmbda: SearchNumber = 0.0
    """Share of the steps whose text the student writes itself. Losses without a teacher rest there."""
    seq_kd: SearchSwitch = False
    """Whether the teacher writes the text of the other steps."""
    generation: GenerationBlock = GenerationBlock()
    """How text is sampled, for ``lmbda`` and ``seq_kd``."""
    loss_functions: list[LossEntry] = Field(min_length=1)
    """What is minimised: the weighted mean of these losses."""
    peft_config: PeftConfig | None = None
    """Low-rank adapters, merged afterwards; absent: full training."""
    frozen_res: list[str] = Field(default_factory=list)
    """Regular expressions: parameters in whose name one is found rest."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the result; absent: that of the student's tensors."""
    training_args: TrainingArgs = TrainingArgs()
    """Keys of transformers' ``TrainingArguments``."""

    def problems(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Return what the types cannot say."""
        found: list[tuple[tuple[str | int, ...], str]] = []
        found += [
            (("lmbda",), f"lmbda is a share: it must be between 0 and 1, got {value:g}")
            for value in ends(self.lmbda)
            if not 0 <= value <= 1
        ]
        found += [
            (
                ("rows" if self.dataset is None else "dataset", "max_tokens"),
                f"must be at least 2, got {value:g}",
            )
            for value in ends(self.layout.max_tokens)
            if value < 2
        ]
        if self.curriculum is not None and self.curriculum.pacing is not None:
            found += [
                (("curriculum", "pacing"), f"pacing is a share: above 0, up to 1, got {value:g}")
                for value in ends(self.curriculum.pacing)
                if not 0 < value <= 1
            ]
        found += [(("training_args", *path), message) for path, message in self.training_args.problems()]
        if self.peft_config is not None:
            found += [(("peft_config", *path), message) for path, message in self.peft_config.problems()]
        if self.student is not None:
            found += [(("student", *path), message) for path, message in self.student.problems()]
        found += list(self._losses())
        found += [(("generation", *path), message) for path, message in generation_problems(self.generation)]
        found += [(("frozen_res", *path), message) for path, message in pattern_problems(self.frozen_res)]
        found += [
            (("loss_functions", *path), message) for path, message in mapping_problems(self.loss_functions)
        ]
        if isinstance(self.teacher, VllmTeacherBlock | DatasetTeacherBlock):
            wrong = temperature_problems(self.teacher.kind, self.loss_functions)
            found += [(("loss_functions", *path), message) for path, message in wrong]
        if isinstance(self.teacher, VllmTeacherBlock) and min(ends(self.teacher.top_k)) < 1:
            found.append((("teacher", "top_k"), "top_k must be at least 1: so many tokens are compared"))
        if all(value > 0 for value in ends(self.lmbda)) and not any(
            entry.function not in LOSSES or LOSSES.load(entry.function).teacher
            for entry in self.loss_functions
        ):
            message = (
                "what the student writes is worth learning by a loss with a teacher alone: set lmbda to 0"
            )
            found.append((("lmbda",), message))
        found += list(self._texts())
        written = self.seq_kd is not False or any(value > 0 for value in ends(self.lmbda))
        if written and self.layout.packing:
            message = (
                "packing: true has no place where a model writes completions: its prompts are documents of "
                "their own; set packing: false"
            )
            found.append((("rows" if self.dataset is None else "dataset", "packing"), message))
        if isinstance(self.teacher, DatasetTeacherBlock) and written:
            found.append((("teacher", "kind"), "kind: dataset was captured for fixed text; set lmbda to 0"))
        return list(dict.fromkeys(found))

    @property
    def reshapes(self) -> bool:
        """Whether the search decides on the number of layers."""
        return self.student is not None and self.student.searched

    @property
    def layout(self) -> RowsBlock:
        """How the text becomes rows."""
        return self.dataset or self.rows or RowsBlock()

    @property
    def named_teacher(self) -> str | None:
        """Name of the teacher among the models; None: it is none of them."""
        return None if isinstance(self.teacher, ApiTeacher) else getattr(self.teacher, "model", None)

    def _texts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield what is wrong with where the text comes from."""
        api = isinstance(self.teacher, ApiTeacher)
        if (self.dataset is None) == (self.generate is None):
            yield (("dataset",), "give either dataset, a text, or generate, what a teacher is to write")
        if self.generate is not None and not api:
            yield (("generate",), "the teacher that writes has kind: api")
        if api and self.generate is None:
            yield (("teacher",), "a teacher of kind: api gives text alone: say in generate what it writes")
        if self.rows is not None and self.dataset is not None:
            yield (("rows",), "rows belong to generate: write these keys into dataset")
        if self.generate is not None and isinstance(self.teacher, ApiTeacher):
            yield from ((("teacher", *path), message) for path, message in self.teacher.problems())
            yield from ((("generate", *path), message) for path, message in self.generate.problems())
            yield from (
                (("generate", *path), message) for path, message in check_pair(self.generate, self.teacher)
            )
        if self.rationale is not None:
            yield from ((("rationale", *path), message) for path, message in self.rationale.problems())

    def _losses(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        entries = [entry.plain() for entry in self.loss_functions]
        for corner in _corners(entries):
            for path, message in check_terms(corner):
                parts = path.split(".") if path else []
                yield (
                    ("loss_functions", *(int(part) if part.isdigit() else part for part in parts)),
                    message,
                )
        for index, entry in enumerate(self.loss_functions):
            if entry.function not in LOSSES:
                continue
            loss = LOSSES.load(entry.function)
            if loss.teacher and (self.teacher is None or self.teacher.kind == "api"):
                yield (
                    ("loss_functions", index, "function"),
                    f"{entry.function} compares with a teacher's distribution: give a teacher of kind hf, "
                    "vllm or dataset, or use cross_entropy",
                )
            elif loss.reads != "scores" and self.teacher is not None and self.teacher.kind != "hf":
                yield (
                    ("loss_functions", index, "function"),
                    f"{entry.function} looks into the teacher, so teacher.kind must be hf",
                )

    @classmethod
    def effective(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the block without losses of weight 0, and without what nobody writes with."""
        kept = [entry for entry in plain.get("loss_functions", []) if entry.get("weight", 1.0) != 0]
        found = {**plain, "loss_functions": kept or plain.get("loss_functions", [])}
        if (found.get("curriculum") or {}).get("pacing") == 1:
            del found["curriculum"]
        names = [str(entry.get("function")) for entry in found["loss_functions"]]
        if not any(name in LOSSES and LOSSES.load(name).teacher for name in names):
            found.pop("lmbda", None)
        if not found.get("lmbda", 0.0) and not found.get("seq_kd", False):
            found.pop("generation", None)
        if isinstance(found.get("generate"), dict):
            found["generate"] = GenerateBlock.effective(found["generate"])
        if isinstance(found.get("rationale"), dict):
            found["rationale"] = RationaleBlock.effective(found["rationale"])
        if isinstance(found.get("training_args"), dict):
            found["training_args"] = TrainingArgs.effective(found["training_args"])
        return found


def _corners(entries: list[dict[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the entries with every range at its largest value, then with one of them at another value.

    A weight whose range reaches 0 says nothing about all weights being 0, so that end is left out.
    """
    top = [
        {**entry, **{key: max(ends_of(value)) for key, value in entry.items() if ends_of(value)}}
        for entry in entries
    ]
    yield list(top)
    for index, entry in enumerate(entries):
        for key, value in entry.items():
            for end in ends_of(value):
                if not (key == "weight" and end == 0):
                    yield [*top[:index], {**top[index], key: end}, *top[index + 1 :]]


def ends_of(value: Any) -> list[float]:
    """Return the numbers that a plain number, range or choice stands for; none for anything else."""
    if isinstance(value, dict):
        if "choices" in value:
            return [one for one in value["choices"] if isinstance(one, int | float)]
        if not {"low", "high"} <= value.keys():
            return []
        return list(Range.model_validate(value).ends)
    return [] if isinstance(value, bool | str | list) or value is None else [value]
