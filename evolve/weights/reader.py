"""A model on disk, opened without reading its weights; tensors come from memory maps, without a copy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights import tied as tied_head
from evolve.weights.files import ADAPTER_CONFIG, CONFIG, INDEX, WEIGHTS, read_json
from evolve.weights.header import Header, read_header
from evolve.weights.location import parts
from evolve.weights.mapped import MappedTensors
from evolve.weights.model import Model
from evolve.weights.pickles import pickled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from evolve.weights.model import TensorSpec

# Buffers that old checkpoints store and every loader computes from the config instead.
_ROTARY = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_MASK = re.compile(r"\.(attn|attention)\.(bias|causal_mask)$")
_MASKED_BIAS = re.compile(r"\.(attn|attention)\.masked_bias$")


def open_model(path: Path | str) -> Model:
    """Open the model in the folder ``path``: config and safetensors headers now, weights when asked for.

    ``base+adapter`` is a base's folder and a LoRA adapter's, merged tensor by tensor; several adapters are
    merged in their order.

    ``specs`` leaves out a tied head and the buffers that loaders compute themselves (rotary frequencies,
    causal masks). ``config`` always states ``tie_word_embeddings``. Tensors are views of a memory map that
    all threads share; nobody may write to them.

    Raises:
        ModelError: The folder is missing, damaged, or of a kind that evolve does not read.
    """
    first, *adapters = parts(str(path))
    model = _open_folder(Path(first))
    for adapter in adapters:
        from evolve.weights.adapted import with_adapter
        from evolve.weights.adapter import read_adapter

        model = with_adapter(model, read_adapter(Path(adapter).absolute()))
    return model


def _open_folder(folder: Path) -> Model:
    # Weights are mapped later, and Ray Tune changes the working directory of its workers.
    folder = folder.absolute()
    config = _read_config(folder)
    headers = [read_header(shard) for shard in _shards(folder)]
    stored = _by_name(folder, headers)
    tied, head, embedding = tied_head.decide(
        config, {name: spec for name, (spec, _) in stored.items()}, folder
    )
    config["tie_word_embeddings"] = tied
    twin = (head, embedding) if tied and head else None
    specs = {
        name: spec
        for name, (spec, _) in stored.items()
        if not is_computed_buffer(name, spec) and not (twin and name == head)
    }
    reader = _Reader(folder, {name: header for name, (_, header) in stored.items()}, frozenset(specs), twin)
    return Model(config, specs, reader, folder)


def check_tied(path: Path | str) -> None:
    """Read the embedding of a tied model that also stores its head, and compare the two.

    Raises:
        ModelError: They differ, or the model cannot be opened.
    """
    reader = open_model(path).tensor
    if isinstance(reader, _Reader):
        reader.check_twin()


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that make up the model, sorted by name."""
    return sorted(_shards(folder))


def is_computed_buffer(name: str, spec: TensorSpec) -> bool:
    """Whether a stored tensor is a buffer that every loader computes itself, and ignores in files."""
    if _ROTARY.search(name):
        return True
    if _MASK.search(name):
        return len(spec.shape) == 4 and spec.shape[:2] == (1, 1)
    return bool(_MASKED_BIAS.search(name)) and spec.numel == 1


class _Reader:
    """The tensors of one model. Safe to call from any number of threads."""

    def __init__(
        self, folder: Path, where: Mapping[str, Header], names: frozenset[str], twin: tuple[str, str] | None
    ) -> None:
        self._folder = folder
        self._read = MappedTensors(where)
        self._names = names
        self._twin = twin

    def __call__(self, name: str) -> Tensor:
        if name not in self._names:
            raise ModelError(f"{self._folder} has no tensor {name!r}")
        if self._twin is not None and name == self._twin[1]:
            self.check_twin()
        return self._read(name)

    def check_twin(self) -> None:
        """Compare a stored tied head with the embedding, once."""
        import torch

        twin = self._twin
        if twin is None:
            return
        head, embedding = (self._read(name).view(torch.uint8) for name in twin)
        if not torch.equal(head, embedding):
            raise ModelError(tied_head.differ(self._folder, *twin))
        self._twin = None


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ModelError(f"{folder} {what}: a model is a folder with config.json and safetensors files")
    if not (folder / CONFIG).is_file():
        raise ModelError(_no_config(folder))
    config = read_json(folder / CONFIG)
    if "auto_map" in config:
        raise ModelError(_custom_code(folder, config))
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is quantized (quantization_config in {CONFIG}), and quantized weights cannot be "
            "merged: use the original model, or dequantize it in transformers and save it"
        )
    return config


def _no_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "BASE"
        return f"{folder} is an adapter, not a model: name its base and it, as {base}+{folder}"
    if files := sorted(folder.glob("*.gguf")):
        return f"{folder} holds a GGUF file: name the file itself, {files[0]}"
    return f"{folder} has no {CONFIG}: it must be a model in Hugging Face format"


def _custom_code(folder: Path, config: Mapping[str, Any]) -> str:
    from transformers import CONFIG_MAPPING

    start = f"{folder / CONFIG} names code of its own (auto_map), and evolve runs no code from models. "
    if config.get("model_type") in CONFIG_MAPPING:
        return f"{start}transformers knows {config['model_type']!r} without it: delete auto_map from {CONFIG}"
    return f"{start}Use a model of an architecture that transformers has built in"


def _shards(folder: Path) -> list[Path]:
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        if index.is_file() and set(_weight_map(index)) != set(read_header(single).specs):
            raise ModelError(
                f"{folder} holds both {WEIGHTS} and {INDEX}, and they differ: delete the stale one"
            )
        return [single]
    if index.is_file():
        return [folder / name for name in sorted(set(_weight_map(index).values()))]
    if pickles := pickled(folder):
        raise ModelError(pickles)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"only {', '.join(others[:3])}" if others else "no safetensors files"
    raise ModelError(f"{folder} has no {WEIGHTS} and no {INDEX}, {found}: copy or download the missing file")


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index).get("weight_map")
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(shard, str) for shard in names.values())
    ):
        raise ModelError(f"{index} has no weight_map of tensor names to files. Copy or download it again")
    for shard in set(names.values()):
        if Path(shard).name != shard:
            raise ModelError(f"{index} names {shard!r}, which is not a file beside it")
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index} names {shard}, which is missing: copy or download it")
    return names


def _by_name(folder: Path, headers: list[Header]) -> dict[str, tuple[TensorSpec, Header]]:
    found: dict[str, tuple[TensorSpec, Header]] = {}
    for header in headers:
        for name, spec in header.specs.items():
            if name in found:
                first = found[name][1].path.name
                raise ModelError(f"{folder} holds tensor {name!r} twice, in {first} and {header.path.name}")
            found[name] = (spec, header)
    if not found:
        raise ModelError(f"{folder} holds no tensors")
    if headers[0].path.name == WEIGHTS:
        return found
    index = folder / INDEX
    for name, shard in _weight_map(index).items():
        if name not in found or found[name][1].path.name != shard:
            raise ModelError(
                f"{index} places tensor {name!r} in {shard}, which does not hold it. Download it again"
            )

    if extra := sorted(set(found) - set(_weight_map(index))):
        raise ModelError(
            f"{folder} holds tensor {extra[0]!r}, which {INDEX} does not name. Download it again"
        )
    return found
