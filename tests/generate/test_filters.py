from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolve.conversations import Conversation, Message
from evolve.generate.blocks import FiltersBlock, QualityBlock
from evolve.generate.exchange import Answer
from evolve.generate.filters.base import Context, Filtered, words
from evolve.generate.filters.ngram_overlap import banned_ngrams
from evolve.generate.filters.quality import points_of, question
from evolve.generate.filters.refusals import refuses
from evolve.generate.prompts import Prompt
from evolve.generate.styles.base import Draft
from evolve.registry import FILTERS
from evolve.score.overlap import Index, Place
from tests.generate.kit import teacher


def draft(answer: str, *, asked: str = "q", reasons: str | None = None, tokens: int = 1) -> Draft:
    turns = (Message("user", asked), Message("assistant", answer, reasons))
    return Draft(Prompt(asked, turns[:1], turns[:1]), 0, 0, Conversation(turns), tokens)


def apply(name: str, drafts: list[Draft], banned: Any = None, **keys: Any) -> Filtered:
    return FILTERS.load(name).apply(FiltersBlock.model_validate(keys), drafts, Context(banned))


def texts(filtered: Filtered) -> list[str]:
    return [one.answer.content for one in filtered.drafts]


def test_length() -> None:
    drafts = [
        draft("a", tokens=1),
        draft("b b", tokens=5),
        draft("c c c", tokens=9),
        draft("d", reasons="e f"),
    ]
    found = apply("length", drafts, min_tokens=1, max_tokens=8, min_words=2)
    assert texts(found) == ["b b", "d"]
    assert found.removed == {"min_tokens": 0, "max_tokens": 1, "min_words": 1}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "I am very sorry but I cannot provide this.",
        "Sorry, I can't do that.",
        "I cannot help with this request.",
        "I can't answer that question.",
        "Unfortunately, I am unable to provide medical advice.",
        "I apologize, but I will not write this.",
        "As an AI language model, I cannot have opinions.",
        "I must respectfully decline.",
        "I'm unable to assist with that.",
        "  **I'm not able to comply.**",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)
    assert texts(apply("refusals", [draft(text), draft("Yes.")])) == ["Yes."]


@pytest.mark.parametrize(
    "text",
    [
        "Sorry is a word of five letters.",
        "I can help with that.",
        "The pump cannot help with this.",
        "She said: I can't help with that.",
        "I cannot see how 7 could divide 10, so the answer is no.",
        "As an AI pioneer, Turing asked whether machines think.",
        "The answer is 4. I'm sorry, but I can't help with more.",
        "",
    ],
)
def test_what_only_sounds_like_one(text: str) -> None:
    assert not refuses(text)


def test_exact_duplicates() -> None:
    drafts = [draft("3 - 4"), draft("3  -\n4"), draft("3 + 4"), draft("3 - 4", asked="other")]
    found = apply("exact_duplicates", drafts)
    assert [(one.prompt.name, one.answer.content) for one in found.drafts] == [
        ("q", "3 - 4"),
        ("q", "3 + 4"),
        ("other", "3 - 4"),
    ]
    assert found.removed == {"exact_duplicates": 1}


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=25)
@given(st.lists(WORDS, max_size=8), st.sampled_from([0.3, 0.6, 0.8, 1.0]))
def test_near_duplicates_are_those_of_brute_force(answers: list[str], threshold: float) -> None:
    """What MinHash proposes is checked, so a row that is left out has its like; nearly none is missed."""
    found = apply("near_duplicate", [draft(text) for text in answers], near_duplicate=threshold)

    def runs(text: str) -> set[tuple[str, ...]]:
        found = words(f"q\n{text}")
        return {tuple(found[at : at + 3]) for at in range(max(len(found) - 2, 1))}

    kept: list[str] = []
    for text in answers:
        alike = [len(runs(text) & runs(other)) / len(runs(text) | runs(other)) for other in kept]
        if not any(value >= threshold for value in alike):
            kept.append(text)
    assert texts(found) == kept
    assert found.removed["near_duplicate"] == len(answers) - len(kept)


def test_overlap_counts_as_the_score_does() -> None:
    items = [f"Word{n} " + " ".join(f"w{n}x{at}" for at in range(15)) for n in range(3)]
    items += ["one two three four five six", "too short"]
    items += [f"this is the template of every item in the whole of this task {n}" for n in range(12)]
    index = Index({Place("t", "search", str(n)): text for n, text in enumerate(items)})
    banned = banned_ngrams(items, 13)
    for text in [
        items[0].upper() + "!",
        "so: one, two three FOUR five six.",
        "one two three four five",
        "too short",
        "this is the template of every item in the whole of this task",
        " ".join(items[1].split()[:12]),
        " ".join(items[1].split()[2:15]),
    ]:
        (overlap,) = index.overlaps([("x", [text])])
        found = apply("ngram_overlap", [draft("yes", asked=text)], banned, ngram_overlap=13)
        assert len(found.drafts) == (0 if overlap.shared else 1), text


def test_overlap_in_reasons_and_none_known() -> None:
    banned = banned_ngrams(["a b c d e f"], 4)
    assert not apply("ngram_overlap", [draft("x", reasons="so B, C d E then")], banned).drafts
    assert apply("ngram_overlap", [draft("x", reasons="so B, C d E then")], None).drafts


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("Rating: 4", 4),
        ("**Rating:** 5", 5),
        ("3", 3),
        (" 2/5. ", 2),
        ("I gave it 3 before. Rating: 2\nRating: 1", 1),
        ("<think>Rating: 5?</think>Rating: 2", 2),
        ("Rating: 45", None),
        ("Rating: 4.5", None),
        ("Rating: 0", None),
        ("It has 5 sentences.", None),
        ("", None),
    ],
)
def test_points(text: str, points: int | None) -> None:
    assert points_of(Answer(text)) == points


def test_a_judge_sees_the_reasons_and_is_greedy() -> None:
    asked = question(
        QualityBlock(), draft("4", asked="2+2?", reasons="two {and} two"), teacher("http://a/v1")
    )
    text = asked.messages[0].content
    assert "user: 2+2?" in text and "two {and} two\n4" in text
    assert asked.sampling.temperature == 0
