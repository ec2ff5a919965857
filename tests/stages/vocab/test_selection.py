"""The chosen tokens: against brute force over whole texts, and what holds for every method."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from evolve.registry import SELECTORS
from evolve.stages.vocab import choice
from evolve.stages.vocab.choice import Chosen, Request, Source, choose
from evolve.stages.vocab.counts import Keyness
from evolve.stages.vocab.draft import Draft
from evolve.stages.vocab.text import merged, read
from evolve.weights.bpe import Bpe, bpe_of, extended
from evolve.weights.files import cache_folder
from tests.stages.vocab.kit import CONFIG, STYLES, block, domain, save, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.config.values import DataFile


def request(vocab: Any) -> Request:
    def source(file: DataFile | None) -> Source | None:
        return Source.of(file)

    selection = vocab.selection
    return Request(
        source(vocab.dataset),
        source(vocab.terms),
        source(selection.contrast),
        selection.method,
        selection.min_frequency,
    )


def draft(bpe: Bpe, texts: list[str], floor: int) -> Draft:
    text = read(texts, bpe)
    return Draft(bpe, merged(text, None), Keyness(text.size), floor=floor)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", SELECTORS.names())
def test_the_saved_tokens_are_those_that_the_library_saves(method: str, style: str, tmp_path: Path) -> None:
    old = tokenizer(tmp_path / "t", style)
    bpe = bpe_of(old)
    texts = domain()
    made = draft(bpe, texts, 5)
    SELECTORS.load(method).select(made, 30)
    assert 8 < len(made.merges) <= 30
    before = sum(map(len, old.encode(texts)))
    for count in (1, 7, len(made.merges)):
        merges = [(one.left, one.right) for one in made.merges[:count]]
        new = extended(tmp_path / "t", old, CONFIG, merges).tokenizer
        now = sum(map(len, new.encode(texts)))
        assert before - now == sum(one.domain for one in made.merges[:count])


@pytest.mark.parametrize("style", STYLES)
def test_continued_bpe_against_brute_force(style: str, tmp_path: Path) -> None:
    """Each step: encode everything with the library and count the pairs that do not cross a word."""
    old = tokenizer(tmp_path / "t", style)
    bpe = bpe_of(old)
    texts = domain(1, 40)
    made = draft(bpe, texts, 4)
    SELECTORS.load("continued_bpe").select(made, 12)
    merges: list[tuple[str, str]] = []
    now = old
    for one in made.merges:
        counts: Counter[tuple[str, str]] = Counter()
        for encoding in now.backend.encode_batch(texts, add_special_tokens=False):
            tokens, groups = encoding.tokens, encoding.word_ids
            last = None
            for place in range(len(tokens) - 1):
                pair = (tokens[place], tokens[place + 1])
                if groups[place] != groups[place + 1]:
                    last = None
                    continue
                if pair == last and pair[0] == pair[1]:
                    last = None
                    continue
                last = pair
                counts[pair] += 1
        space = bpe.space
        known = now.ids
        possible = {
            pair: count
            for pair, count in counts.items()
            if "".join(pair) not in known
            and space not in "".join(pair).lstrip(space)
            and not any(token in now.added or token.startswith("<0x") for token in pair)
        }
        assert possible[one.left, one.right] == one.domain == max(possible.values())
        merges.append((one.left, one.right))
        now = extended(tmp_path / "t", old, CONFIG, merges).tokenizer


@pytest.mark.parametrize("method", SELECTORS.names())
def test_more_tokens_begin_with_fewer(method: str, tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    found = []
    for most in (5, 12, 40):
        made = draft(bpe, domain(), 5)
        SELECTORS.load(method).select(made, most)
        found.append([one.token for one in made.merges])
    assert found[0] == found[2][:5]
    assert found[1] == found[2][:12]


def test_savings_takes_the_word_that_saves_most_first(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    texts = ["xyz " * 6 + "qvwxk " * 5]
    made = draft(bpe, texts, 2)
    SELECTORS.load("savings").select(made, 100)
    tokens = [one.token for one in made.merges]
    # 5 words of 6 tokens save 25, 5 of " xyz" save 15 and the first "xyz", seen once, is too rare.
    assert tokens[:5] == [*tokens[:4], "Ġqvwxk"]
    assert "Ġxyz" in tokens


def test_pair_merges_adds_only_units_of_the_domain(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    made, free = (draft(bpe, domain(), 5) for _ in range(2))
    SELECTORS.load("pair_merges").select(made, 100)
    SELECTORS.load("continued_bpe").select(free, 100)
    from evolve.stages.vocab.selectors.pair_merges import _domain_tokens

    units = set(_domain_tokens(draft(bpe, domain(), 5)))
    assert made.merges and {one.token for one in made.merges} <= units
    assert {one.token for one in free.merges} - units


def test_what_is_rare_or_common_elsewhere_is_left_out(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    data = save(tmp_path / "d.jsonl", ["zebra zebra common common rare"] * 20 + ["xxqq"])
    general = save(tmp_path / "g.jsonl", ["common common"] * 60)
    for method in SELECTORS.names():
        plain = choose(bpe, request(block(data, selection={"method": method, "min_frequency": 10})))
        keys = {"method": method, "min_frequency": 10, "contrast": str(general)}
        held = choose(bpe, request(block(data, selection=keys)))
        assert "Ġcommon" in {one.token for one in plain.merges}, method
        assert "Ġcommon" not in {one.token for one in held.merges}, method
        assert "Ġzebra" in {one.token for one in held.merges}, method
        assert not {"xx", "qq"} & {one.token for one in held.merges}


def test_terms_become_tokens_first_with_and_without_a_space(tmp_path: Path) -> None:
    for style in STYLES:
        old = tokenizer(tmp_path / style, style)
        bpe = bpe_of(old)
        data = save(tmp_path / "d.jsonl", domain())
        terms = tmp_path / "terms.txt"
        terms.write_text("\nquinine\n heart attack \nquinine\nthe\n")
        keys = {"min_frequency": 5}
        chosen = choose(bpe, request(block(data, terms=str(terms), selection=keys)))
        tokens = [one.token for one in chosen.merges[: chosen.from_terms]]
        wanted = {f"{bpe.space}{word}" for word in ("quinine", "heart", "attack")} | {"quinine"}
        assert wanted <= set(tokens)
        assert chosen.from_terms < len(chosen.merges)
        alone = choose(bpe, request(block(None, terms=str(terms))))
        assert alone.from_terms == len(alone.merges) == chosen.from_terms
        new = extended(tmp_path / style, old, CONFIG, [(m.left, m.right) for m in alone.merges]).tokenizer
        assert [len(ids) for ids in new.encode(["a quinine", "heart"])] == [2, 1]


def test_a_term_out_of_reach_is_told(tmp_path: Path) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "words"))
    terms = tmp_path / "terms.txt"
    terms.write_text("hen\n東京\n")
    assert choose(bpe, request(block(None, terms=str(terms)))).missed == ("東京",)


def test_it_is_chosen_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe = bpe_of(tokenizer(tmp_path / "t", "bytes"))
    data = save(tmp_path / "d.jsonl", domain())
    asked = request(block(data, selection={"min_frequency": 5}))
    first = choose(bpe, asked)
    choice._remembered.cache_clear()

    def never(*_: object) -> Chosen:
        raise AssertionError("chosen again")

    with monkeypatch.context() as patch:
        patch.setattr(choice, "_choose", never)
        assert choose(bpe, asked) == first
    (file,) = cache_folder("vocab").iterdir()
    choice._remembered.cache_clear()
    file.write_text(file.read_text()[:-30])
    assert choose(bpe, asked) == first
