"""The distill stage: a student, a teacher and a text become a trained model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from evolve.errors import CandidateError, ModelError, UserError
from evolve.generate.checks import fixed
from evolve.registry import LOSSES
from evolve.stages.distill.block import DistillBlock
from evolve.stages.distill.checks import captured_problems, depth_problems
from evolve.stages.distill.student import made_student
from evolve.stages.distill.teachers.dataset import DatasetTeacherBlock
from evolve.stages.distill.teachers.vllm import VllmTeacherBlock
from evolve.stages.distill.terms import Term
from evolve.stages.distill.text import text_of
from evolve.stages.kept import LOG, stage_key, trained
from evolve.stages.merge.layers import layer_count
from evolve.training.adapters import adapter_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from evolve.config.values import DataFile, StageBlock
    from evolve.stages.distill.block import LengthCurriculumBlock
    from evolve.stages.distill.data import Document
    from evolve.stages.distill.learner import Learner
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.stages.distill.text import Text
    from evolve.stages.memo import Memo
    from evolve.training.rows import Rows
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_VERSION = 2
"""Changes with the arithmetic: what was trained before is then trained again."""


class DistillStage:
    """Trains a student on a text with a teacher."""

    block: ClassVar[type[StageBlock]] = DistillBlock

    @staticmethod
    def trains(block: StageBlock) -> bool:
        """Return True: it takes minutes and memory."""
        return True

    @staticmethod
    def spreads(block: StageBlock) -> bool:
        """Return False where vLLM teaches: each process would start an engine of its own."""
        return not isinstance(cast("DistillBlock", block).teacher, VllmTeacherBlock)

    @staticmethod
    def extra_training_bytes(block: StageBlock, models: Mapping[str, Model]) -> int:
        """Return the bytes of the frozen teacher, in the type that it is read in."""
        from evolve.weights.header import nbytes

        distill = cast("DistillBlock", block)
        asked = distill.seq_kd is True or any(
            LOSSES.load(entry.function).teacher for entry in distill.loss_functions if entry.weight != 0
        )
        if distill.named_teacher is None or not asked:
            return 0
        teacher = models[distill.named_teacher]
        specs = [spec for name, spec in teacher.specs.items() if name not in teacher.same]
        return sum(4 * spec.numel if _device() == "cpu" else nbytes(spec) for spec in specs)

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the student, then the teacher where it is a model."""
        distill = cast("DistillBlock", block)
        names = [distill.model, distill.named_teacher]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """Compare the vocabularies, and see that the text can be read."""
        distill = cast("DistillBlock", block)
        found: list[tuple[str, str]] = []
        student = models[str(distill.model)]
        name = distill.named_teacher
        if distill.student is not None:
            found += [(f"student.{key}", message) for key, message in distill.student.misfits(student)]
        found += adapter_problems(distill.peft_config, student)
        found += _teacher_problems(distill, models)
        try:
            tokenizer = _tokenizer(student)
            if name is not None:
                found += _meeting_problems(distill, tokenizer, _tokenizer(models[name]))
        except ModelError as error:
            found.append(("model", str(error)))
        return [*found, *(_data_problems(distill.dataset.path) if distill.dataset else [])]

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return the student's headers, in the type of the result."""
        distill = cast("DistillBlock", block)
        student = made_student(distill.student, models[str(distill.model)], whole=True)
        specs = {
            name: replace(spec, dtype=distill.dtype) if distill.dtype and "float" in spec.dtype else spec
            for name, spec in student.specs.items()
        }
        return replace(student, specs=specs, content="", exact=None, same={})

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Do nothing: what is trained is kept by the recipe that asks for it first."""

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Return the trained student, or the one that was trained before by the same values."""
        distill = cast("DistillBlock", block)
        plain = type(distill).effective(distill.model_dump(exclude_none=True))
        inputs = {name: models[name] for name in DistillStage.inputs(block)}
        own = seed if distill.seed is None else distill.seed
        try:
            text = text_of(distill)
            if distill.generate is None:
                plain["dataset"] = {**plain["dataset"], "content": text.file.content}
            else:
                # What was written decides, not who was asked and how.
                plain = {key: value for key, value in plain.items() if key not in ("generate", "teacher")}
                plain["written"] = text.file.content
            key = stage_key("distill", _VERSION, plain, inputs, seed)
            found = trained(key, lambda work: _train(distill, models, text, own, work))
            return replace(found, new_tokens=models[str(distill.model)].new_tokens)
        except (UserError, ValueError) as error:
            raise CandidateError("build", f"distill: {error}") from error


def _train(
    block: DistillBlock, models: Mapping[str, Model], text: Text, seed: int, work: Path
) -> tuple[Model, Mapping[str, str]]:
    from evolve.stages.distill.learner import SPANS
    from evolve.stages.distill.opening import open_teacher
    from evolve.stages.distill.terms import make_terms
    from evolve.training.control import control_of
    from evolve.training.network import open_trainee, trained_model
    from evolve.training.seeds import seed_of
    from evolve.training.trainer import Settings, train

    start = models[str(block.model)]
    tokenizer = _tokenizer(start)
    student, shape = _student(block, start, text.file, tokenizer, seed)
    rows = _rows(block, text.file, tokenizer, seed)
    logger.info("distill: %s", ", ".join(f"{value} {key}" for key, value in rows.counts.items()))
    terms = make_terms([entry.plain() for entry in block.loss_functions])
    device = _device()
    adapters = seed_of(seed, "adapters")
    trainee = open_trainee(
        student, peft=block.peft_config, frozen=block.frozen_res, seed=adapters, device=device
    )
    if any(term.loss.reads == "attentions" for term in terms):
        trainee.network.set_attn_implementation("eager")
    teacher = open_teacher(block, models, terms, tokenizer, device)
    try:
        learner = _learner(block, models, terms, teacher, trainee.network, seed)
        settings = Settings(
            block.training_args,
            seed_of(seed, "training"),
            work,
            block.name or "distill",
            control=control_of(trainee.network, block.training_args),
        )
        history = train(trainee.network, rows.rows, learner, settings)
    finally:
        if teacher is not None:
            teacher.close()
    if learner.crossing is not None and not any(line.get(SPANS, 0.0) for line in history.log):
        raise CandidateError(
            "build", f"distill: no document could be aligned with the teacher's tokens: {learner.reason}"
        )
    if learner.projections:
        del trainee.network.evolve_projections
    report = {"stage": "distill", "data": dict(rows.counts), **shape, **text.about, **history.as_plain()}
    return trained_model(trainee, block.dtype), {LOG: json.dumps(report)}


def _student(
    block: DistillBlock, start: Model, text: DataFile, tokenizer: Tokenizer, seed: int
) -> tuple[Model, dict[str, Any]]:
    """Return the student before training, and what is told of the layers that were chosen by damage."""
    if block.student is None or block.student.keep_by != "damage":
        return made_student(block.student, start), {}
    from evolve.stages.distill.damage import least_damaging

    documents, _ = _documents(block, text, tokenizer, seed)
    layers = least_damaging(start, documents, fixed(block.student.keep_layers))
    return made_student(block.student, start, layers=layers), {"layers": list(layers)}


def _documents(
    block: DistillBlock, text: DataFile, tokenizer: Tokenizer, seed: int
) -> tuple[list[Document], int]:
    from evolve.stages.distill.data import read
    from evolve.training.seeds import seed_of

    return read(
        text.path,
        tokenizer,
        block.layout.max_length,
        content=text.content,
        rationale=block.rationale,
        seed=seed_of(seed, "reasons"),
    )


def _rows(block: DistillBlock, text: DataFile, tokenizer: Tokenizer, seed: int) -> Rows:
    from evolve.stages.distill.data import Layout, rows_of

    data = block.layout
    documents, left_out = _documents(block, text, tokenizer, seed)
    epochs = fixed(block.training_args.num_train_epochs)
    order = _order(block.curriculum) if block.curriculum else None
    most = None if data.max_tokens is None else fixed(data.max_tokens)
    layout = Layout(data.max_length, most, data.packing, epochs, seed, order)
    return rows_of(documents, layout, left_out=left_out)


def _order(block: LengthCurriculumBlock) -> Callable[[Sequence[int], int], Sequence[int]]:
    from evolve.training.order import curriculum

    def order(lengths: Sequence[int], seed: int) -> Sequence[int]:
        pacing = None if block.pacing is None else float(cast("float", block.pacing))
        found = curriculum(lengths, pacing=pacing, reverse=block.reverse is True, seed=seed)
        return [int(place) for place in found]

    return order


def _learner(
    block: DistillBlock,
    models: Mapping[str, Model],
    terms: tuple[Term, ...],
    teacher: Teacher | None,
    network: Any,
    seed: int,
) -> Learner:
    """Return the objective; projections that it needs become a part of the network."""
    from evolve.stages.distill.forward import head_rule
    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.learner import Learner, Writing
    from evolve.stages.distill.opening import crossing, open_projections

    tokenizer = _tokenizer(models[str(block.model)])
    known = models.get(block.named_teacher or "") if teacher is not None else None
    settings = Generation(**dict(block.generation))
    lmbda = float(cast("float", block.lmbda))
    return Learner(
        terms,
        teacher,
        head_rule(network),
        max(tokenizer.size, 1),
        Writing(lmbda, bool(block.seq_kd), settings, block.layout.max_length, seed),
        open_projections(network, teacher, terms, seed),
        None if known is None else crossing(block, terms, tokenizer, _tokenizer(known)),
        1.0 if block.rationale is None else float(cast("float", block.rationale.weight)),
    )


def _tokenizer(model: Model) -> Tokenizer:
    from evolve.weights.tokenizer import load_tokenizer

    return load_tokenizer(model.files, model.config)


def _meeting_problems(block: DistillBlock, student: Tokenizer, teacher: Tokenizer) -> list[tuple[str, str]]:
    """Return why a teacher with another tokenizer cannot teach; nothing where it can."""
    from evolve.stages.distill.opening import crossing

    if student.ids == teacher.ids:
        return []
    if block.seq_kd is not False:
        return [("seq_kd", "a teacher with another tokenizer cannot write the student's tokens")]
    terms = tuple(
        Term(LOSSES.load(entry.function)) for entry in block.loss_functions if entry.function in LOSSES
    )
    try:
        crossing(block, terms, student, teacher)
    except (CandidateError, ModelError) as error:
        return [("teacher.model", str(error))]
    return []


def _teacher_problems(block: DistillBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
    """Return what a teacher's headers, or the head of a capture, say against the losses."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    if isinstance(block.teacher, DatasetTeacherBlock):
        found += captured_problems(block.teacher.path, block.loss_functions)
    elif block.named_teacher is not None:
        whole = layer_count(models[str(block.model)])
        depths = (whole, whole) if block.student is None else block.student.depths(whole)
        theirs = layer_count(models[block.named_teacher])
        found += depth_problems(block.loss_functions, depths, theirs)
    return [(".".join(map(str, path)), message) for path, message in found]


def _data_problems(path: str) -> list[tuple[str, str]]:
    if not Path(path).expanduser().is_file():
        return [("dataset.path", f"{path}: no such file")]
    return []


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
