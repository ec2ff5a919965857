"""Models with different vocabularies, and what each row of their merge must be, by the text of tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoTokenizer

from evolve.weights.files import read_side_files
from evolve.weights.model import Model, TensorSpec
from evolve.weights.vocabulary import vocabulary
from tests.stages.merge.memory import block
from tests.tokenizers import gpt2_style

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from evolve.weights.files import Files

EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
WIDTH = 4
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the")]
MORE = [*MERGES, ("a", "n"), ("an", "d")]
WEIGHTS = {"base": 0.5, "one": 0.3, "two": 0.2}


def three_tokenizers(root: Path) -> dict[str, Path]:
    """Write tokenizers that share most tokens, in different orders."""
    return {
        "base": gpt2_style(root / "base", MERGES, added=["<|im_end|>", "<base>"]),
        "one": gpt2_style(root / "one", MORE, added=["<|im_start|>", "<|im_end|>", "<one>"], shuffle=1),
        "two": gpt2_style(root / "two", MERGES, added=["<|im_start|>", "<two>"], shuffle=2),
    }


def sizes(folder: Path) -> int:
    """Return how many rows the tokenizer in a folder needs."""
    return 1 + max(vocabulary(folder).values())


def table_models(folders: dict[str, Path], **options: Any) -> dict[str, Model]:
    """Return a model for each tokenizer, some with more rows than they need."""
    extra = {"base": 7, "one": 0, "two": 1}
    return {
        name: table_model(folder, sizes(folder) + extra.get(name, 0), seed=seed, **options)
        for seed, (name, folder) in enumerate(folders.items())
    }


def linear(**keys: Any) -> Any:
    """Return a merge of the three with ``WEIGHTS``."""
    return block("linear", {name: {"weight": weight} for name, weight in WEIGHTS.items()}, **keys)


def table_model(
    folder: Path,
    rows: int,
    *,
    seed: int,
    tied: bool = True,
    bias: bool = False,
    dtype: str = "float32",
    **config: Any,
) -> Model:
    """Return a model of nothing but tables with ``rows`` rows, whose tokenizer is in ``folder``."""
    names = [EMBEDDING, *([] if tied else [HEAD]), *([BIAS] if bias else [])]
    generator = torch.Generator().manual_seed(seed)
    kind: torch.dtype = getattr(torch, dtype)
    shapes = {name: (rows,) if name == BIAS else (rows, WIDTH) for name in names}
    tensors = {name: torch.randn(shape, generator=generator).to(kind) for name, shape in shapes.items()}
    arch = "phi" if bias else "llama"
    whole = {
        "architectures": [{"phi": "PhiForCausalLM", "llama": "LlamaForCausalLM"}[arch]],
        "model_type": arch,
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        **config,
    }
    specs = {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
    return Model(whole, specs, lambda name: tensors[name], folder)


def transformers_tokenizer(files: Files, folder: Path) -> Any:
    """Write side files into a new folder, and return what transformers makes of them."""
    folder.mkdir(parents=True)
    for name, content in read_side_files(files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(folder)


def tokens_of(model: Model) -> dict[str, int]:
    """Return the tokens of a model that its tables have a row for, as transformers numbers them."""
    found = AutoTokenizer.from_pretrained(model.files).get_vocab()
    return {token: number for token, number in found.items() if number < model.config["vocab_size"]}


def aligned_rows(
    models: Mapping[str, Model],
    table: str,
    ids: Mapping[str, int],
    size: int,
    *,
    base: str | None = None,
    choices: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, np.ndarray]:
    """Return each model's table in the result's vocabulary, in float64, token text by token text.

    The rule: a model's own row; for one without, what the config chooses; else the base's row; else the mean
    of all rows that there are. A chosen row that is forced replaces everybody's own. Rows without a token,
    and tokens that nobody has a row for, are the mean of all rows that have one.
    """
    numbers = {name: model.tensor(table).double().numpy() for name, model in models.items()}
    known = {name: tokens_of(model) for name, model in models.items()}
    result = {name: np.full((size, *numbers[name].shape[1:]), np.nan) for name in models}
    for token, place in ids.items():
        owners = [name for name in models if token in known[name]]
        rows = {name: numbers[name][known[name][token]] for name in owners}
        choice = (choices or {}).get(token)
        if choice is not None:
            source = choice["source"]
            if isinstance(source, str):
                given = numbers[source][known[source][token]]
            elif source["kind"] == "zero":
                given = np.zeros(numbers[next(iter(models))].shape[1:])
            else:
                row = source["token_id"] if "token_id" in source else known[source["model"]][source["token"]]
                given = numbers[source["model"]][row]
        elif not owners:
            continue
        elif base in owners:
            given = rows[base]
        else:
            given = sum(rows.values()) / len(rows)
        forced = choice is not None and choice.get("force", False)
        for name in models:
            result[name][place] = rows[name] if name in owners and not forced else given
    for found in result.values():
        flat = found.reshape(size, -1)
        missing = np.isnan(flat).any(axis=1)
        flat[missing] = flat[~missing].mean(axis=0)
    return result


def read_config(files: Files, name: str) -> Any:
    """Return a JSON side file."""
    return json.loads(read_side_files(files)[name])
