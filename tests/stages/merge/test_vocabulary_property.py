"""Any vocabularies, with holes, added tokens, tokens that others lack, and tokens without a row."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.stages.merge import MergeStage
from tests.stages.merge.memory import block
from tests.stages.merge.vocabularies import HEAD, aligned_rows, table_model, tokens_of, transformers_tokenizer
from tests.tokenizers import SPECIAL, byte_level

NAMES = ("base", "one", "two")
ADDED = ("<|im_end|>", "<a>", "<b>", "two words")
PAIRS = (("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("Ġ", "a"), ("Ġa", "b"))


@st.composite
def tokenizers(draw: Any) -> dict[str, Any]:
    """A vocabulary of letters and merges, its ids drawn from a range with holes, and added tokens."""
    letters = draw(st.sets(st.sampled_from("abcdĠ"), min_size=1))
    tokens = [*SPECIAL, *sorted(letters)]
    merges = []
    for pair in draw(st.permutations(PAIRS)):
        if set(pair) <= set(tokens) and "".join(pair) not in tokens and draw(st.booleans()):
            merges.append(pair)
            tokens.append("".join(pair))
    added = draw(st.lists(st.sampled_from(ADDED), unique=True))
    if draw(st.booleans()):
        # Loaders number added tokens from the vocabulary's size on, so with holes they must be in it.
        tokens += added
        numbers = draw(st.lists(st.integers(0, 40), min_size=len(tokens), max_size=len(tokens), unique=True))
    else:
        numbers = draw(st.permutations(range(len(tokens))))
    return {"vocab": dict(zip(tokens, numbers, strict=True)), "merges": merges, "added": added}


@st.composite
def keys(draw: Any) -> dict[str, Any]:
    source = draw(st.sampled_from(["union", *NAMES]))
    chosen = st.one_of(
        st.just({"kind": "zero"}),
        st.builds(
            lambda model, row: {"kind": "model_token", "model": model, "token_id": row},
            st.sampled_from(NAMES),
            st.integers(0, 3),
        ),
    )
    entries = st.fixed_dictionaries({"source": chosen, "force": st.booleans()})
    tokens = draw(st.dictionaries(st.sampled_from(["<a>", "<new>", "ab", "<s>"]), entries, max_size=3))
    return {"source": source, "tokens": tokens, "pad_to_multiple_of": draw(st.sampled_from([None, 1, 8]))}


@settings(max_examples=30)
@given(st.lists(tokenizers(), min_size=3, max_size=3), keys(), st.booleans(), st.integers(-6, 4))
def test_every_row_is_that_of_its_token(given_: Any, tokenizer: Any, based: bool, spare: int) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        models = {}
        for seed, (name, parts) in enumerate(zip(NAMES, given_, strict=True)):
            folder = byte_level(
                root / name,
                parts["vocab"],
                parts["merges"],
                added=parts["added"],
                tokenizer_class="TokenizersBackend",
            )
            # Fewer rows than ids: the tokens beyond them have none.
            rows = max(8, 1 + max(parts["vocab"].values()) + spare)
            models[name] = table_model(folder, rows, seed=seed, tied=False)
        weights = {"base": 0.45, "one": 0.35, "two": 0.2}
        config = block(
            "linear",
            {name: {"weight": weight} for name, weight in weights.items()},
            tokenizer=tokenizer,
            **({"base_model": "base"} if based else {}),
        )
        assert config.problems() == []
        assert MergeStage.check(config, models) == []
        result = MergeStage.run(config, models, seed=0)
        loaded = transformers_tokenizer(result.files, root / "result")
        _check(loaded, result, models, tokenizer, "base" if based else None, weights)
    finally:
        shutil.rmtree(root)


def _check(loaded: Any, result: Any, models: Any, keys: Any, base: str | None, weights: Any) -> None:
    ids, size = loaded.get_vocab(), result.config["vocab_size"]
    donor = models["base" if keys["source"] == "union" else keys["source"]]
    first = transformers_tokenizer(donor.files, donor.files / "again")
    assert first.get_vocab().items() <= ids.items()
    known = (
        {token for model in models.values() for token in tokens_of(model)}
        if keys["source"] == "union"
        else set()
    )
    assert ids.keys() == first.get_vocab().keys() | known | keys["tokens"].keys()
    multiple = keys["pad_to_multiple_of"] or 1
    assert size == -(-(1 + max(ids.values())) // multiple) * multiple
    for table in result.specs:
        rows = aligned_rows(models, table, ids, size, base=base, choices=keys["tokens"])
        wanted = sum(weights[name] * found for name, found in rows.items())
        assert np.allclose(result.tensor(table).double().numpy(), wanted, rtol=0, atol=5e-7)
    assert HEAD in result.specs
    for token in loaded.get_added_vocab():
        assert loaded.encode(token, add_special_tokens=False) == [ids[token]]
    new = ids.keys() - first.get_vocab().keys()
    for letters in itertools.product("abc ", repeat=3):
        text = "".join(letters)
        if not new & set(loaded.tokenize(text)):
            assert loaded.encode(text) == first.encode(text)
