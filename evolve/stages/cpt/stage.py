"""The stage of continual pre-training: a model goes on with a corpus."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from evolve.errors import CandidateError, UserError
from evolve.registry import REGULARIZERS
from evolve.stages.cpt.block import CptBlock
from evolve.stages.cpt.wise_ft import interpolated
from evolve.training.adapters import adapter_problems
from evolve.types import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from evolve.config.values import StageBlock
    from evolve.stages.memo import Memo
    from evolve.training.trainer import Control
    from evolve.weights.model import Model

_VERSION = 2
"""Changes with the arithmetic of training: outputs of another version are not used."""
logger = logging.getLogger(__name__)
_LONGEST = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


class CptStage:
    """Continual pre-training with replay, regularisers, a curriculum, phases, and interpolation back."""

    block: ClassVar[type[StageBlock]] = CptBlock

    @staticmethod
    def inputs(block: StageBlock) -> tuple[str, ...]:
        """Return the start."""
        model = cast("CptBlock", block).model
        return () if model is None else (model,)

    @staticmethod
    def check(block: StageBlock, models: Mapping[str, Model]) -> list[tuple[str, str]]:
        """See that the texts are there and that a row fits the model."""
        from evolve.config.files import files
        from evolve.weights.content import data_files

        cpt = cast("CptBlock", block)
        found = []
        for path, file in files(cpt):
            try:
                data_files(file.path)
            except UserError as error:
                found.append((".".join(map(str, (*path, "path"))), str(error)))
        config = models[str(cpt.model)].config
        longest = next((config[key] for key in _LONGEST if isinstance(config.get(key), int)), None)
        if longest is not None and cpt.dataset.max_length > longest:
            message = f"max_length is more than the {longest} tokens that the model can read: lower it"
            found.append(("dataset.max_length", message))
        found += _rate_problems(cpt, models[str(cpt.model)])
        return [*found, *adapter_problems(cpt.peft_config, models[str(cpt.model)])]

    @staticmethod
    def outline(block: StageBlock, models: Mapping[str, Model]) -> Model:
        """Return the headers of the start: training changes values only."""
        start = models[str(cast("CptBlock", block).model)]
        return replace(start, tensor=_refuse, exact=None, content="", same={})

    @staticmethod
    def prepare(block: StageBlock, models: Mapping[str, Model]) -> None:
        """Do nothing: what candidates share is kept when the first one asks for it."""

    @staticmethod
    def trains(block: StageBlock) -> bool:
        """Whether it trains: always, unless everything goes back to the start."""
        return cast("CptBlock", block).wise_ft.alpha != 0

    @staticmethod
    def extra_training_bytes(block: StageBlock, models: Mapping[str, Model]) -> int:
        """Return the bytes that the regularisers that are on hold; none holds any with an adapter."""
        from evolve.stages.memory import numbers

        cpt = cast("CptBlock", block)
        if cpt.peft_config is not None:
            return 0
        blocks = {name: getattr(cpt.regularizers, name, None) for name in REGULARIZERS.names()}
        held = sum(REGULARIZERS.load(name).held for name, one in blocks.items() if one and one.weight)
        return held * numbers(models[str(cpt.model)])

    @staticmethod
    def run(block: StageBlock, models: Mapping[str, Model], *, seed: int, memo: Memo | None = None) -> Model:
        """Train, or find what was trained, and interpolate back to the start."""
        cpt = cast("CptBlock", block)
        start = models[str(cpt.model)]
        if not start.new_tokens and any(phase.train == "new_embeddings" for phase in cpt.phases):
            message = "phases: new_embeddings are rows that a stage vocab has added, and the start has none"
            raise CandidateError("build", message)
        alpha = float(cast("float", cpt.wise_ft.alpha))
        if alpha == 0:
            return start
        known = start if start.content else replace(start, content=_content(start))
        return interpolated(known, trained(cpt, known, seed), alpha)


def trained(block: CptBlock, start: Model, seed: int) -> Model:
    """Return the trained model, out of the cache where it is there.

    A training that was killed goes on from its last checkpoint. The interpolation is not in the key: a sweep
    over it trains once.

    Args:
        block: With every value fixed.
        start: The start, with its content.
        seed: Of the training, where the block has none.

    Raises:
        CandidateError: It cannot be trained.
    """
    from evolve.stages import kept

    plain = CptBlock.effective(block.model_dump(mode="json", exclude_none=True))
    plain.pop("wise_ft", None)
    own = seed if block.seed is None else block.seed
    key = kept.stage_key("cpt", _VERSION, plain, {str(block.model): start}, own)
    try:
        found = kept.trained(key, lambda work: _train(block, start, own, work))
    except (UserError, ValueError) as error:
        raise CandidateError("build", f"cpt: {error}") from error

    def tensor(name: str) -> Tensor:
        import torch

        value: Tensor = found.tensor(name).to(getattr(torch, start.specs[name].dtype))
        return value

    # Kept in float32: what comes next starts from that, and is rounded once.
    return replace(found, specs=start.specs, tensor=tensor, exact=found.tensor, new_tokens=start.new_tokens)


def _train(block: CptBlock, start: Model, seed: int, work: Path) -> tuple[Model, Mapping[str, str]]:
    """Return the trained model, float32, and what the training showed."""
    from evolve.stages.cpt.data import rows_of
    from evolve.stages.cpt.objective import Objective
    from evolve.stages.kept import LOG
    from evolve.training.collate import require_isolation
    from evolve.training.network import open_trainee, trained_model
    from evolve.training.regularizers.base import Anchor
    from evolve.training.seeds import seed_of
    from evolve.training.trainer import Settings, train

    # A fresh adapter changes nothing, so the network is the start in any case.
    trainee = open_trainee(start, peft=block.peft_config, seed=seed_of(seed, "adapters"), device=_device())
    if block.dataset.packing:
        require_isolation(trainee.network)
    anchor = Anchor(start, trainee.network, trainee.names, block.dataset.max_length, seed)
    rows = rows_of(block, anchor, epochs=int(cast("int", block.training_args.num_train_epochs)))
    logger.info("cpt: %s", ", ".join(f"{value} {name}" for name, value in rows.counts.items()))
    penalties = {}
    for name in REGULARIZERS.names():
        regularizer = getattr(block.regularizers, name, None)
        if regularizer is not None and regularizer.weight:
            ready = REGULARIZERS.load(name).prepare(regularizer, anchor)
            penalties[name] = (float(regularizer.weight), ready)
    settings = Settings(
        block.training_args,
        seed_of(seed, "training"),
        work,
        name=block.name or "cpt",
        control=_control(block, start, trainee.network),
    )
    history = train(trainee.network, rows.rows, Objective(0, penalties), settings)
    report = {"stage": "cpt", "data": dict(rows.counts), **history.as_plain()}
    return trained_model(trainee, "float32"), {LOG: json.dumps(report)}


def _control(block: CptBlock, start: Model, network: Any) -> Control:
    from evolve.stages.cpt.data import phases_of
    from evolve.training.control import control_of

    return control_of(network, block.training_args, phases_of(block), start.new_tokens)


def _rate_problems(block: CptBlock, model: Model) -> list[tuple[str, str]]:
    """Return the patterns of learning rates that match no tensor: a misspelt one would change nothing.

    An adapter's parameters have names of their own, which are not known here.
    """
    from evolve.training.phases import matches

    if block.peft_config is not None:
        return []
    return [
        (
            f"phases.{number}.learning_rate_scale",
            f"no tensor of the model matches {pattern!r}; one is {next(iter(model.specs), '')}",
        )
        for number, phase in enumerate(block.phases)
        for pattern in phase.learning_rate_scale
        if not any(matches(pattern, name) for name in model.specs)
    ]


def _content(model: Model) -> str:
    """Return a hash of what a computed model is: config, tokenizer and every tensor."""
    from evolve.weights.files import read_side_files

    new = [model.new_tokens.start, model.new_tokens.stop]
    total = hashlib.sha256(content_hash({"architecture": model.architecture, "new": new}).encode())
    for name, content in read_side_files(model.files).items():
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    for name, tensor in model.tensors():
        total.update(f"{name}\0".encode())
        total.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _refuse(name: str) -> NoReturn:
    raise TypeError(f"{name} was asked for, but only the headers of this model are known")
