"""What a distillation opens before it trains: the teacher, how two tokenizers meet, projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.registry import TEACHERS
from evolve.stages.distill.learner import Crossing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evolve.stages.distill.block import DistillBlock
    from evolve.stages.distill.layers import Pair
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.stages.distill.terms import Term
    from evolve.weights.model import Model
    from evolve.weights.tokenizer import Tokenizer


def open_teacher(
    block: DistillBlock,
    models: Mapping[str, Model],
    terms: tuple[Term, ...],
    tokenizer: Tokenizer,
    device: str,
) -> Teacher | None:
    """Return the teacher, or None where nothing asks one.

    Raises:
        CandidateError: It cannot work with these losses.
    """
    from evolve.stages.distill.teachers.base import Opening

    needed = any(term.loss.teacher for term in terms) or block.seq_kd
    if block.teacher is None or block.teacher.kind == "api" or not needed:
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
        models.get(block.named_teacher or ""),
        tokenizer,
        temperature=temperatures.pop() if len(temperatures) == 1 else 1.0,
        device=device,
        threads=torch.get_num_threads(),
        max_length=block.layout.max_length,
    )
    return TEACHERS.load(block.teacher.kind)(block.teacher, opening)


def crossing(
    block: DistillBlock, terms: tuple[Term, ...], student: Tokenizer, teacher: Tokenizer
) -> Crossing | None:
    """Return how a teacher with another tokenizer is compared; None where it has the same.

    Raises:
        CandidateError: The losses or the teacher cannot be compared across tokenizers.
    """
    from evolve.stages.distill.across import Meeting
    from evolve.stages.distill.alignment import Translator
    from evolve.stages.distill.pieces import pieces_of
    from evolve.weights.token_bytes import TokenBytes

    if student.ids == teacher.ids:
        return None
    if block.teacher is None or block.teacher.kind != "hf":
        raise CandidateError("invalid_recipe", "teacher: one with another tokenizer must be of kind hf")
    for term in terms:
        if term.loss.reads != "scores":
            raise CandidateError(
                "invalid_recipe",
                f"{term.loss.name} compares the insides of two models at the same tokens, and the teacher "
                "has others: leave this loss out",
            )
    shared = len(student.ids.keys() & teacher.ids.keys())
    way = block.alignment
    if way == "auto":
        way = "pieces" if 2 * shared >= len(student.ids) else "spans"
    own = TokenBytes.of(student)
    ends = None if student.end is None or teacher.end is None else (student.end, teacher.end)
    begin = teacher.front[0] if teacher.front else None
    return Crossing(
        Translator(own, TokenBytes.of(teacher), teacher, ends, begin),
        Meeting(
            way,
            (student.size, teacher.size),
            pieces_of(student, teacher, own) if way == "pieces" else None,
        ),
    )


def open_projections(
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
