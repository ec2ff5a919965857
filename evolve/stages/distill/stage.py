"""The distill stage: a student, a teacher and a text become a trained model."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from evolve.errors import CandidateError, ModelError, UserError
from evolve.registry import TEACHERS
from evolve.stages.distill.block import DistillBlock
from evolve.stages.kept import LOG, stage_key, trained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evolve.config.values import StageBlock
    from evolve.stages.distill.layers import Pair
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.stages.distill.terms import Term
    from evolve.stages.memo import Memo
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_VERSION = 1
"""Changes with the arithmetic: what was trained before is then trained again."""


class DistillStage:
    """Trains a student on a text with a teacher."""

    block: ClassVar[type[StageBlock]] = DistillBlock

    @staticmethod
    def trains(block: StageBlock) -> bool:
        """Return True: it takes minutes and memory."""
        return True

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the student, then the teacher where it is a model."""
        distill = cast("DistillBlock", block)
        names = [distill.model, getattr(distill.teacher, "model", None)]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """Compare the vocabularies, and see that the text can be read."""
        distill = cast("DistillBlock", block)
        found: list[tuple[str, str]] = []
        student = models[str(distill.model)]
        name = getattr(distill.teacher, "model", None)
        try:
            tokenizer = _tokenizer(student)
            if name is not None and _tokenizer(models[name]).ids != tokenizer.ids:
                found.append(("teacher.model", _other_tokenizer(name)))
        except ModelError as error:
            found.append(("model", str(error)))
        return [*found, *_data_problems(distill.dataset.path)]

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return the student's headers, in the type of the result."""
        distill = cast("DistillBlock", block)
        student = models[str(distill.model)]
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
        key = stage_key("distill", _VERSION, plain, inputs, seed)
        own = seed if distill.seed is None else distill.seed
        try:
            return trained(key, lambda work: _train(distill, models, own, work))
        except (UserError, ValueError) as error:
            raise CandidateError("build", f"distill: {error}") from error


def _train(
    block: DistillBlock, models: Mapping[str, Model], seed: int, work: Path
) -> tuple[Model, Mapping[str, str]]:
    from evolve.stages.distill.data import Layout, read, rows_of
    from evolve.stages.distill.forward import head_rule
    from evolve.stages.distill.generation import Generation
    from evolve.stages.distill.learner import Learner, Writing
    from evolve.stages.distill.terms import make_terms
    from evolve.training.network import open_trainee, trained_model
    from evolve.training.seeds import seed_of
    from evolve.training.trainer import Settings, train

    student = models[str(block.model)]
    tokenizer = _tokenizer(student)
    data = block.dataset
    documents, left_out = read(data.path, tokenizer, data.max_length)
    layout = Layout(
        data.max_length, data.max_tokens, data.packing, _whole(block.training_args.num_train_epochs), seed
    )
    rows = rows_of(documents, layout, left_out=left_out)
    logger.info("distill: %s", ", ".join(f"{value} {key}" for key, value in rows.counts.items()))
    terms = make_terms([entry.plain() for entry in block.loss_functions])
    device = _device()
    trainee = open_trainee(
        student,
        peft=block.peft_config,
        frozen=block.frozen_res,
        seed=seed_of(seed, "adapters"),
        device=device,
    )
    if any(term.loss.reads == "attentions" for term in terms):
        trainee.network.set_attn_implementation("eager")
    teacher = _teacher(block, models, terms, tokenizer, device)
    try:
        settings = Generation(**dict(block.generation))
        writing = Writing(
            float(cast("float", block.lmbda)), bool(block.seq_kd), settings, data.max_length, seed
        )
        projections = _projections(trainee.network, teacher, terms, seed)
        size = max(tokenizer.size, 1)
        learner = Learner(terms, teacher, head_rule(trainee.network), size, writing, projections)
        history = train(
            trainee.network,
            rows.rows,
            learner,
            Settings(block.training_args, seed_of(seed, "training"), work, block.name or "distill"),
        )
    finally:
        if teacher is not None:
            teacher.close()
    if projections:
        del trainee.network.evolve_projections
    report = {"stage": "distill", "data": dict(rows.counts), **history.as_plain()}
    return trained_model(trainee, block.dtype), {LOG: json.dumps(report)}


def _teacher(
    block: DistillBlock,
    models: Mapping[str, Model],
    terms: tuple[Term, ...],
    tokenizer: Tokenizer,
    device: str,
) -> Teacher | None:
    from evolve.stages.distill.teachers.base import Opening

    needed = any(term.loss.teacher for term in terms) or block.seq_kd
    if block.teacher is None or not needed:
        return None
    temperatures = {term.temperature for term in terms if term.loss.teacher and term.loss.reads == "scores"}
    if len(temperatures) > 1 and block.teacher.kind != "hf":
        raise CandidateError(
            "invalid_recipe",
            f"teacher.kind {block.teacher.kind}: the losses have {len(temperatures)} temperatures, and a "
            "teacher's k best tokens have one; use one temperature, or kind: hf",
        )
    import torch

    opening = Opening(
        models.get(getattr(block.teacher, "model", "")),
        tokenizer,
        temperature=temperatures.pop() if len(temperatures) == 1 else 1.0,
        device=device,
        threads=torch.get_num_threads(),
        max_length=block.dataset.max_length,
    )
    return TEACHERS.load(block.teacher.kind)(block.teacher, opening)


def _projections(
    network: Any, teacher: Teacher | None, terms: tuple[Term, ...], seed: int
) -> dict[Pair, Any]:
    """Return trained matrices between hidden states of different widths, as part of the student."""
    import torch

    from evolve.stages.distill.layers import layer_pairs, make_projections
    from evolve.training.seeds import seed_of

    theirs = getattr(teacher, "network", None)
    between = [term for term in terms if term.loss.reads == "hidden"]
    if theirs is None or not between:
        return {}
    ours, other = network.config.get_text_config(), theirs.config.get_text_config()
    pairs = [
        pair
        for term in between
        for pair in layer_pairs(term.layers, ours.num_hidden_layers, other.num_hidden_layers)
    ]
    made = make_projections(pairs, ours.hidden_size, other.hidden_size, seed=seed_of(seed, "projections"))
    if not made:
        return {}
    if hasattr(network, "merge_and_unload"):
        raise CandidateError(
            "invalid_recipe",
            "loss_functions: hidden states of different widths need trained projections, which adapters do "
            "not have: leave out peft_config",
        )
    device = network.get_input_embeddings().weight.device
    kept = {pair: torch.nn.Parameter(matrix.detach().to(device)) for pair, matrix in made.items()}
    network.evolve_projections = torch.nn.ParameterDict(
        {f"{one}_{two}": matrix for (one, two), matrix in kept.items()}
    )
    return dict(kept)


def _tokenizer(model: Model) -> Tokenizer:
    from evolve.weights.tokenizer import load_tokenizer

    return load_tokenizer(model.files, model.config)


def _other_tokenizer(name: str) -> str:
    return (
        f"model {name!r} has another tokenizer than the student, so their distributions are over different "
        "tokens: choose a teacher of the same family, or a student with the teacher's vocabulary"
    )


def _data_problems(path: str) -> list[tuple[str, str]]:
    from pathlib import Path

    if not Path(path).expanduser().is_file():
        return [("dataset.path", f"{path}: no such file")]
    return []


def _whole(value: Any) -> int:
    if isinstance(value, int):
        return value
    raise ValueError("num_train_epochs must be fixed")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
