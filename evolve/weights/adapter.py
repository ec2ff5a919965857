"""A LoRA adapter's folder, as peft writes it: what it does to which tensor, before any weight is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.files import ADAPTER_CONFIG as CONFIG
from evolve.weights.files import read_json
from evolve.weights.header import Header, read_header
from evolve.weights.pickles import convert_tensors, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WEIGHTS = "adapter_model.safetensors"

MERGE_COMMAND = (
    'python -c "import sys, peft, transformers as t; a, b, c = sys.argv[1:]; '
    "m = t.AutoModelForCausalLM.from_pretrained(a, dtype='auto'); "
    "peft.PeftModel.from_pretrained(m, b).merge_and_unload().save_pretrained(c); "
    't.AutoTokenizer.from_pretrained(a).save_pretrained(c)" BASE ADAPTER NEW'
)
"""Merges with peft what evolve does not."""
_MEND = f"merge it with peft and name that folder: {MERGE_COMMAND}"

# Methods of peft that add prompts or layers: no weight of the base changes, so there is nothing to merge.
_NO_WEIGHTS = {
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
    "XLORA",
}
# Settings of LoRA under which W + scale B A is not what the adapter computes, and what they are.
_OTHER_ARITHMETIC = {
    "alora_invocation_tokens": "activated LoRA works on some tokens only",
    "arrow_config": "Arrow chooses among adapters for each token",
    "kasa_config": "KaSA changes the base's weights first",
    "monteclora_config": "MonteCLoRA samples its weights",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "layer_replication": "it repeats layers (layer_replication)",
    "megatron_config": "it splits layers as Megatron does",
}
# These take the factors out of the base's weights when training begins: the base is no longer the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])(\.default)?\.(?P<what>weight|bias)")
_EMBEDDING = re.compile(r"(?P<module>.+)\.(?P<part>lora_embedding_[AB])(\.default)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.default)?(\.weight)?")
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")
_WHOLE = re.compile(
    r"(?P<module>.+?)(?P<kind>\.base_layer|\.modules_to_save(\.default)?|\.original_module)?\.(?P<what>[^.]+)"
)


@dataclass
class Factors:
    """The low-rank change of one module, by names of tensors in the adapter's file.

    Attributes:
        down: ``lora_A``: (r, inputs).
        up: ``lora_B``: (outputs, r).
        bias: Added to the module's bias with the same scale, or None.
        magnitude: DoRA's lengths, or None.
        lookup: Whether they are those of an embedding: (r, tokens) and (width, r).
    """

    down: str | None = None
    up: str | None = None
    bias: str | None = None
    magnitude: str | None = None
    lookup: bool = False


@dataclass
class Adapter:
    """What an adapter holds, by modules of the base in transformers' memory.

    Attributes:
        folder: Where it is.
        config: adapter_config.json.
        header: What its weights' file holds.
        factors: Module to its low-rank change.
        tokens: Module to (token ids, name of the tensor with their new vectors).
        saved: Parameter to the tensor that replaces it for this module alone (``modules_to_save``).
        values: Parameter to the tensor that the base has instead (``bias``, resized embeddings).
    """

    folder: Path
    config: Mapping[str, Any]
    header: Header
    factors: dict[str, Factors] = field(default_factory=dict)
    tokens: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """What it says that it was trained on; "" where it does not say."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def keeps_tied(self) -> bool:
        """Whether what it does to the embedding is also done to a head that is tied to it."""
        return bool(self.config.get("ensure_weight_tying"))

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor of the file."""
        return self.header.specs[tensor].shape

    def scale(self, module: str) -> float:
        """Return the factor before B A: alpha / r, or alpha / sqrt(r) where the rank is stabilised.

        Raises:
            ModelError: The rank in the config is not that of the factors, or it has no numbers.
        """
        try:
            alpha = float(self._patterned("alpha_pattern", module, self.config.get("lora_alpha", 8)))
            rank = int(self._patterned("rank_pattern", module, self.config.get("r", 8)))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            raise ModelError(f"{self.folder}: {CONFIG} gives no rank or no alpha: {error}") from error
        if rank < 1 or not math.isfinite(alpha):
            raise ModelError(f"{self.folder}: {CONFIG} gives {module} rank {rank} and alpha {alpha}")
        down = self.factors[module].down
        if down is not None and self.shape(down)[0] != rank:
            raise ModelError(
                f"{self.folder}: {CONFIG} gives {module} rank {rank}, its factors have "
                f"{self.shape(down)[0]}. Take both files from one training"
            )
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _patterned(self, key: str, module: str, default: Any) -> Any:
        """Return the value of the first pattern that fits the end of a module's path, as peft matches it."""
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


def read_adapter(folder: Path) -> Adapter:
    """Read the config and the header of the adapter in ``folder``.

    Raises:
        ModelError: It is no adapter, is damaged, or is of a kind that cannot be merged tensor by tensor.
    """
    if not (folder / CONFIG).is_file():
        what = "has no" if folder.is_dir() else "does not exist, or is a file, so there is no"
        raise ModelError(
            f"{folder} {what} {CONFIG}: after the + must stand the folder or hub id of a LoRA adapter"
        )
    config = read_json(folder / CONFIG)
    if reason := _refusal(config):
        raise ModelError(f"{folder}: {reason}")
    adapter = Adapter(folder, config, read_header(_weights(folder)))
    for name in adapter.header.specs:
        _sort_in(adapter, name)
    for module, factors in adapter.factors.items():
        if _EXPERTS.search(module):
            raise ModelError(
                f"{folder} adapts {module}, experts that are fused in memory and single in files, which "
                f"evolve does not merge; {_MEND}"
            )
        if factors.down is None or factors.up is None:
            lacking = "lora_A" if factors.down is None else "lora_B"
            raise ModelError(f"{folder}: {module} has no {lacking}. Copy or download the adapter again")
        if config.get("use_dora") and factors.magnitude is None:
            raise ModelError(f"{folder}: {module} has no magnitude vector, although {CONFIG} says use_dora")
    return adapter


def _weights(folder: Path) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (pickle := folder / "adapter_model.bin").is_file():
        raise ModelError(refusal(folder, [pickle], convert_tensors(pickle, folder / WEIGHTS)))
    raise ModelError(f"{folder} has no {WEIGHTS}: copy or download it")


def _refusal(config: Mapping[str, Any]) -> str:
    kind = str(config.get("peft_type", "LORA"))
    if kind in _NO_WEIGHTS:
        return (
            f"an adapter of type {kind} changes no weights of its base, so it cannot be merged: use a LoRA "
            "adapter or a whole fine-tune instead"
        )
    if kind != "LORA":
        return f"only LoRA adapters are merged here, and this one is {kind}; if peft can, {_MEND}"
    for key, reason in _OTHER_ARITHMETIC.items():
        if config.get(key):
            return f"{reason}, which evolve does not merge; if peft can, {_MEND}"
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights is {start}: the adapter belongs to a changed base. Save it with "
            f"peft's path_initial_model_for_weight_conversion, or {_MEND}"
        )
    return ""


def _sort_in(adapter: Adapter, name: str) -> None:
    """File one tensor of the adapter by what it is."""
    inner = name.removeprefix(_PREFIX)
    if found := _FACTOR.fullmatch(inner):
        factors = adapter.factors.setdefault(found["module"], Factors())
        if found["what"] == "bias":
            factors.bias = name
        elif found["part"] == "lora_A":
            factors.down = name
        else:
            factors.up = name
    elif found := _EMBEDDING.fullmatch(inner):
        factors = adapter.factors.setdefault(found["module"], Factors())
        factors.lookup = True
        if found["part"] == "lora_embedding_A":
            factors.down = name
        else:
            factors.up = name
    elif found := _MAGNITUDE.fullmatch(inner):
        adapter.factors.setdefault(found["module"], Factors()).magnitude = name
    elif found := _TOKENS.fullmatch(inner):
        adapter.tokens[found["module"]] = (_indices(adapter, found["module"]), name)
    elif (found := _WHOLE.fullmatch(inner)) and "lora_" not in inner:
        parameter = f"{found['module']}.{found['what']}"
        kind = found["kind"] or ""
        if kind == ".original_module":
            return  # an old peft's copy of what it replaces
        saved = kind.startswith(".modules_to_save") or (not kind and _is_saved(adapter, found["module"]))
        (adapter.saved if saved else adapter.values)[parameter] = name
    else:
        raise ModelError(f"{adapter.folder}: evolve does not know what tensor {name!r} is for")


def _is_saved(adapter: Adapter, module: str) -> bool:
    """Whether the module, or one that it is in, is listed in ``modules_to_save``."""
    given = adapter.config.get("modules_to_save") or ()
    listed = (given,) if isinstance(given, str) else tuple(map(str, given))
    pieces = module.split(".")
    above = (".".join(pieces[: end + 1]) for end in range(len(pieces)))
    return bool(listed) and any(path.endswith(listed) for path in above)


def _indices(adapter: Adapter, module: str) -> tuple[int, ...]:
    """Return the ids of the tokens that have vectors of their own."""
    given = adapter.config.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next((ids for name, ids in given.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(given, list) or not all(isinstance(index, int) for index in given):
        raise ModelError(
            f"{adapter.folder}: {CONFIG} does not say which tokens the vectors of {module} are for "
            "(trainable_token_indices). Take both files from one training"
        )
    return tuple(given)
