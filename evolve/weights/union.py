"""A tokenizer with the tokens of others added to it: a change of tokenizer.json.

The tokenizer that is extended keeps all its ids, and every text without a new token keeps its own. A token
that is an added one in its own tokenizer stays one. An ordinary token of a BPE tokenizer gets merges below
all others, so that no text is cut in a new place, only joined further.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from evolve.errors import ModelError
from evolve.weights.files import contents, parse_json, read_content, with_changes
from evolve.weights.tokenizer import DEFINITION, FLAGS, definition, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from evolve.weights.files import Files
    from evolve.weights.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_LEGACY_ADDED = "added_tokens.json"
# They describe the tokenizer without the new ordinary tokens.
_STALE = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json")
_NEW_FLAGS = dict.fromkeys(FLAGS, False)
_SHOWN = 3
_MEND = "Set tokenizer: {source: NAME} to the model whose tokenizer the result shall have"


class Owner(NamedTuple):
    """A tokenizer whose tokens are added.

    Attributes:
        name: What messages call it.
        files: Its side files.
        tokenizer: The same, loaded.
        tokens: The tokens that it gives, by id; those that are known already are passed over.
    """

    name: str
    files: Files
    tokenizer: Tokenizer
    tokens: Sequence[str]


@dataclass(frozen=True)
class Union:
    """An extended tokenizer.

    Attributes:
        files: The side files that hold it.
        tokenizer: The same, loaded.
    """

    files: Files
    tokenizer: Tokenizer


@dataclass
class Plan:
    """What is added, in the order of the new ids.

    Attributes:
        ids: Every token of the result to its id.
        added: New added tokens, with their flags.
        ordinary: New ordinary tokens, with their ids.
    """

    ids: dict[str, int]
    added: dict[str, Mapping[str, bool]]
    ordinary: dict[str, int]


def union(
    files: Files,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    owners: Sequence[Owner],
    extra: Iterable[str],
) -> Union:
    """Add the tokens of ``owners``, then ``extra``, to a tokenizer.

    Args:
        files: The side files of the tokenizer that is extended.
        tokenizer: The same, loaded.
        config: The config.json beside them.
        owners: Where tokens come from.
        extra: Texts that become added tokens where no tokenizer has them.

    Raises:
        ModelError: The tokenizers are of different kinds, or what comes out does not load as it should.
    """
    plan = _plan(tokenizer, owners, extra)
    if not plan.added and not plan.ordinary:
        return Union(files, tokenizer)
    require_distinct(tokenizer)
    data = definition(files, tokenizer)
    if plan.ordinary:
        _add_ordinary(data, plan, tokenizer, owners)
    return completed(files, config, data, plan)


def completed(
    files: Files, config: Mapping[str, Any], data: dict[str, Any], plan: Plan, mend: str = _MEND
) -> Union:
    """Return side files with a changed tokenizer.json, after loading them to see that ids are as planned.

    Args:
        files: The side files before.
        config: The config.json beside them.
        data: The new content of tokenizer.json, all but the added tokens. It is changed.
        plan: What is added.
        mend: Ends the message where it fails.

    Raises:
        ModelError: What comes out does not load as it should.
    """
    changes = _legacy_files(files, plan)
    _add_added(data, plan)
    result = with_changes(files, {**changes, DEFINITION: _json(data)})
    return Union(result, _checked(result, config, plan, mend))


def require_distinct(tokenizer: Tokenizer) -> None:
    """Refuse two tokens of one id: loaders number added tokens from the vocabulary's size on, into its holes.

    Raises:
        ModelError: There are two.
    """
    first: dict[int, str] = {}
    for token, number in tokenizer.ids.items():
        other = first.setdefault(number, token)
        if other != token:
            raise ModelError(
                f"the tokenizer that is extended gives the id {number} to {other!r} and to {token!r}: mend "
                "its tokenizer.json, whose vocabulary has holes"
            )


def _plan(tokenizer: Tokenizer, owners: Sequence[Owner], extra: Iterable[str]) -> Plan:
    plan = Plan(dict(tokenizer.ids), {}, {})
    flags = {token: found for owner in reversed(owners) for token, found in owner.tokenizer.added.items()}
    fresh = tokenizer.size
    for token in [*(token for owner in owners for token in owner.tokens), *extra]:
        if token in plan.ids:
            continue
        plan.ids[token] = fresh
        fresh += 1
        if token in flags or not any(token in owner.tokenizer.ids for owner in owners):
            plan.added[token] = flags.get(token, _NEW_FLAGS)
        else:
            plan.ordinary[token] = plan.ids[token]
    # An ordinary token here that is an added one elsewhere, such as a reserved token without merges.
    doubtful = [token for token in flags if token in tokenizer.ids and token not in tokenizer.added]
    for token, ids in zip(doubtful, tokenizer.encode(doubtful), strict=True):
        if ids != [tokenizer.ids[token]]:
            plan.added[token] = flags[token]
    return plan


def _add_added(data: dict[str, Any], plan: Plan) -> None:
    """Add added tokens, and see to it that every one keeps its id.

    Loaders number added tokens that are not in the vocabulary from its size on, in the order of the list.
    Where that does not give the ids they are to have, they go into the vocabulary too, which fixes their ids.
    """
    from tokenizers import Tokenizer as Backend

    entries = [entry for entry in data.get("added_tokens") or [] if entry["content"] not in plan.added]
    entries += [{"id": plan.ids[token], "content": token, **flags} for token, flags in plan.added.items()]
    data["added_tokens"] = sorted(entries, key=lambda entry: plan.ids[entry["content"]])
    vocab = data["model"]["vocab"]
    known = {**plan.ids} if isinstance(vocab, dict) else {}
    if Backend.from_str(json.dumps(data)).get_vocab(with_added_tokens=True) == plan.ids or not known:
        return
    for entry in data["added_tokens"]:
        entry["id"] = known[entry["content"]]
        vocab.setdefault(entry["content"], entry["id"])


def _add_ordinary(data: dict[str, Any], plan: Plan, tokenizer: Tokenizer, owners: Sequence[Owner]) -> None:
    """Add ordinary tokens to the vocabulary of a BPE tokenizer, with merges that lead to them."""
    merges = [pair_of(merge) for merge in data["model"].get("merges") or []]
    known = set(merges)
    kind = kind_of(data)
    vocab: dict[str, int] = data["model"]["vocab"]
    if kind is not None:
        vocab.update(plan.ordinary)
    for owner in owners:
        given = [token for token in owner.tokens if token in plan.ordinary]
        if not given:
            continue
        theirs = definition(owner.files, owner.tokenizer)
        if kind is None or kind_of(theirs) != kind:
            shown = ", ".join(map(repr, given[:_SHOWN]))
            raise ModelError(
                f"model {owner.name!r} has {len(given)} ordinary tokens of its own ({shown}), and its "
                f"tokenizer is of another kind, or not a BPE: such tokenizers have no union. {_MEND}"
            )
        for pair in (pair_of(merge) for merge in theirs["model"].get("merges") or []):
            if pair not in known and "".join(pair) in plan.ordinary and pair[0] in vocab and pair[1] in vocab:
                merges.append(pair)
                known.add(pair)
    unreached = _join(vocab, merges, sorted(plan.ordinary, key=len))
    split = _split(data, tokenizer, [token for token in plan.ordinary if token not in unreached])
    if missed := [*unreached, *split]:
        logger.warning(
            "%d of %d ordinary tokens are new to the tokenizer and never come out of a text, because it cuts "
            "texts in other places: %s",
            len(missed),
            len(plan.ordinary),
            ", ".join(map(repr, missed[:_SHOWN])),
        )
    data["model"]["merges"] = [list(pair) for pair in merges]


def _join(vocab: Mapping[str, int], merges: list[tuple[str, str]], tokens: Sequence[str]) -> list[str]:
    """Append merges for the tokens that are cut into two by those there are; return those out of reach."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    left = list(tokens)
    while left:
        cut = Backend(BPE(vocab=dict(vocab), merges=merges)).encode_batch(left, add_special_tokens=False)
        pieces = dict(zip(left, (found.tokens for found in cut), strict=True))
        left = [token for token in left if pieces[token] != [token]]
        pairs = [
            (pieces[token][0], pieces[token][1])
            for token in left
            if len(pieces[token]) == 2 and "".join(pieces[token]) == token
        ]
        if not pairs:
            break
        # Each is the last step of its token, so that none comes in the way of another.
        merges += pairs
    return left


def _split(data: Mapping[str, Any], tokenizer: Tokenizer, tokens: Sequence[str]) -> list[str]:
    """Return the tokens whose text is cut into words before any merge."""
    cutter = tokenizer.backend.pre_tokenizer
    if cutter is None:
        return []
    texts = {token: text_of(token, kind_of(data)) for token in tokens}
    return [token for token, text in texts.items() if text and len(cutter.pre_tokenize_str(text)) > 1]


def text_of(token: str, kind: str | None) -> str | None:
    """Return the text that an ordinary token stands for, or None for a part of a character.

    Args:
        token: As it is in the vocabulary.
        kind: ``bytes``: characters stand for bytes, as in GPT-2; ``words``: ▁ stands for a space.
    """
    if kind != "bytes":
        return token.replace("▁", " ") if kind == "words" else token
    from tokenizers.decoders import ByteLevel

    text: str = ByteLevel().decode([token])
    return None if "\ufffd" in text else text


def kind_of(data: Mapping[str, Any]) -> str | None:
    """Return how a BPE tokenizer writes spaces in its tokens, or None for another kind of tokenizer."""
    model = data["model"]
    if (
        model.get("type") != "BPE"
        or model.get("end_of_word_suffix")
        or model.get("continuing_subword_prefix")
    ):
        return None
    around = json.dumps(
        [data.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False
    )
    if '"ByteLevel"' in around:
        return "bytes"
    return "words" if "▁" in around else "plain"


def pair_of(merge: Any) -> tuple[str, str]:
    """Return a merge, which older files write as one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _legacy_files(files: Files, plan: Plan) -> dict[str, bytes | None]:
    """Return the changes of the files that repeat a part of tokenizer.json for older readers."""
    found = contents(files)
    changes: dict[str, bytes | None] = {}
    if plan.ordinary:
        changes.update(
            {name: None for name in found if name in _STALE or name.endswith((".model", ".tiktoken"))}
        )
    new = {token: plan.ids[token] for token in plan.added}
    if _LEGACY_ADDED in found and new:
        data = parse_json(read_content(found[_LEGACY_ADDED]), _LEGACY_ADDED)
        changes[_LEGACY_ADDED] = _json({**data, **new})
    if _CONFIG in found and new:
        data = parse_json(read_content(found[_CONFIG]), _CONFIG)
        if isinstance(decoder := data.get("added_tokens_decoder"), dict):
            entries = {
                str(plan.ids[token]): {"content": token, **flags} for token, flags in plan.added.items()
            }
            data["added_tokens_decoder"] = {**decoder, **entries}
            changes[_CONFIG] = _json(data)
    return changes


def _checked(files: Files, config: Mapping[str, Any], plan: Plan, mend: str) -> Tokenizer:
    """Load what was made, and compare it with what was meant."""
    loaded = load_tokenizer(files, config)
    if loaded.ids != plan.ids:
        unlike = sorted(
            (
                token
                for token in loaded.ids.keys() | plan.ids.keys()
                if loaded.ids.get(token) != plan.ids.get(token)
            ),
            key=lambda token: (plan.ids.get(token, -1), token),
        )
        shown = ", ".join(
            f"{token!r} is {loaded.ids.get(token)}, not {plan.ids.get(token)}" for token in unlike[:_SHOWN]
        )
        raise ModelError(f"transformers gives other ids to the extended tokenizer ({shown}). {mend}")
    new = list(plan.added)
    for token, ids in zip(new, loaded.encode(new), strict=True):
        if ids != [plan.ids[token]]:
            raise ModelError(
                f"the added token {token!r} is encoded as {ids}, not as {[plan.ids[token]]}. {mend}"
            )
    return loaded


def _json(data: Any) -> bytes:
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
