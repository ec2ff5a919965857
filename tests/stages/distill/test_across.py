"""Losses across tokenizers against float64 sums written out span by span, and against enumeration."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import CandidateError
from evolve.stages.distill.across import Meeting, across_loss
from evolve.stages.distill.alignment import Aligned, Side, Span, Translator, align, translate
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.pieces import Pieces, pieces_of
from evolve.stages.distill.signals import Signals, TopK, count_items
from evolve.stages.distill.teachers.base import batch_of
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Head, Logits
from evolve.training.rows import Row
from evolve.weights.token_bytes import NotItself, TokenBytes
from evolve.weights.tokenizer import load_tokenizer
from tests.tokenizers import gpt2_style, llama_style

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {"model_type": "llama"}
TEXT = "the hen in the tin: naïve 東京"


def tokenizer(folder: Path, merges: Any = (), style: Any = gpt2_style) -> Any:
    style(folder, merges)
    return load_tokenizer(folder, CONFIG)


def translator(student: Any, teacher: Any, **more: Any) -> Translator:
    return Translator(TokenBytes.of(student), TokenBytes.of(teacher), teacher, **more)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 10_000))
def test_spans_are_the_parts_between_common_ends(widths: list[int], seed: int) -> None:
    ours = list(itertools.accumulate(widths))
    inner = np.random.default_rng(seed).random(ours[-1]) < 0.5
    theirs = [*[end for end in range(1, ours[-1]) if inner[end]], ours[-1]]
    spans = align(ours, theirs)
    assert [span.student_start for span in spans] == [0, *[span.student_stop for span in spans[:-1]]]
    assert spans[-1].student_stop == len(ours) and spans[-1].teacher_stop == len(theirs)
    common = sorted(set(ours) & set(theirs))
    assert [ours[span.student_stop - 1] for span in spans] == common
    assert [theirs[span.teacher_stop - 1] for span in spans] == common


def test_texts_of_other_sizes_do_not_align() -> None:
    assert align([], []) == []
    assert align([0, 2, 2], [1, 2]) == [Span(0, 3, 0, 2)]
    for ours, theirs in (([3], [4]), ([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="different texts"):
            align(ours, theirs)


@pytest.mark.parametrize("style", [gpt2_style, llama_style])
def test_a_translation_covers_the_same_bytes(tmp_path: Path, style: Any) -> None:
    student = tokenizer(tmp_path / "s", [("t", "h"), ("th", "e"), ("h", "e")])
    space = "▁" if style is llama_style else "Ġ"
    teacher = tokenizer(tmp_path / "t", [("h", "e"), (space, "t"), ("i", "n")], style)
    both = translator(student, teacher, ends=(2, 1), begin=0)
    [ids] = student.encode([TEXT])
    theirs, spans = both.document([*ids, 2])
    assert theirs[0] == 0 and theirs[-1] == 1
    assert spans[-1] == Span(len(ids), len(ids) + 1, len(theirs) - 1, len(theirs))
    rebuilt = b""
    for span in spans[:-1]:
        ours = b"".join(both.student.table[id] for id in ids[span.student_start : span.student_stop])
        found = b"".join(both.teacher.table[id] for id in theirs[span.teacher_start : span.teacher_stop])
        assert ours == found.removeprefix(b" ") if not rebuilt else ours == found
        rebuilt += ours
    assert rebuilt == TEXT.encode()


def test_what_is_no_text_is_left_out_or_refused(tmp_path: Path) -> None:
    student, teacher = tokenizer(tmp_path / "s"), tokenizer(tmp_path / "t", [("t", "h")])
    both = translator(student, teacher)
    [cut] = student.encode(["東"])
    [good] = student.encode(["the th"])

    def batch(*documents: Any) -> Any:
        rows = [Row(np.array(one, np.int32), np.array(one, np.int32), (len(one),)) for one in documents]
        found = batch_of(rows)
        return found, found.tokens

    found = translate(*batch(cut[1:], good), both)
    assert found.left_out == 1 and len(found.aligned) == 3
    assert found.batch.lengths == ((4,),)
    for broken in (cut[1:], cut[:2], [good[0], *cut[1:], good[1]]):
        found = translate(*batch(broken), both)
        assert found.left_out == 1 and len(found.aligned) == 0
        assert "part of" in found.reason and found.batch.lengths == ((1,),)


def test_spans_go_to_the_device_of_the_logits(tmp_path: Path) -> None:
    student, teacher = tokenizer(tmp_path / "s"), tokenizer(tmp_path / "t", [("t", "h")])
    [ids] = student.encode(["the th"])
    batch = batch_of([Row(np.array(ids, np.int32), np.array(ids, np.int32), (len(ids),))])
    found = translate(batch, batch.tokens, translator(student, teacher)).aligned
    # `meta` stands for a GPU: it holds shapes alone.
    moved = found.to("meta")
    assert len(moved) == len(found) > 0
    for side, here in zip(moved, found, strict=True):
        assert [part.device.type for part in side] == ["meta"] * 3
        assert [part.shape for part in side] == [part.shape for part in here]


def test_a_document_that_ends_within_a_character_counts_up_to_it(tmp_path: Path) -> None:
    student, teacher = tokenizer(tmp_path / "s"), tokenizer(tmp_path / "t", [("t", "h")])
    both = translator(student, teacher, ends=(2, 1))
    [whole] = student.encode(["the 東"])
    [text] = student.encode(["the "])
    for tokens in (whole[:-1], whole[:-2]):
        assert both.document(tokens) == both.document(text)
    with pytest.raises(NotItself, match="part of"):
        both.document([*whole[:-1], 2])


def case(seed: int = 0, *, scale: float = 1.0) -> Any:
    """Two batches with random scores, and spans of 1 to 3 tokens on each side."""
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = 7, 5
    student = (scale * torch.randn((2, 9, ours), generator=draw, dtype=torch.float64)).requires_grad_()
    teacher = scale * torch.randn((3, 8, theirs), generator=draw, dtype=torch.float64)
    spans = [((0, 1), (0,)), ((2,), (1, 2, 3)), ((3, 4, 5), (4,)), ((9, 10), (9, 10)), ((12,), (17,))]

    def side(index: int, size: int) -> Side:
        rows = torch.tensor([row for span in spans for row in span[index]])
        lengths = torch.tensor([0, *[len(span[index]) for span in spans]])
        return Side(rows, torch.randint(0, size, (len(rows),), generator=draw), lengths.cumsum(0))

    labels = torch.full((2, 9), 1)
    return student, teacher, labels, Aligned(side(0, ours), side(1, theirs)), (ours, theirs)


def segments(side: Side) -> list[tuple[list[int], list[int]]]:
    ends = side.offsets.tolist()
    return [(side.rows[a:b].tolist(), side.tokens[a:b].tolist()) for a, b in itertools.pairwise(ends)]


def probabilities(logits: Any, temperature: float) -> Any:
    return (logits.detach().flatten(0, 1) / temperature).softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_spans_are_products_against_all_else(temperature: float) -> None:
    student, teacher, labels, aligned, sizes = case()
    terms = make_terms([{"function": "kl", "temperature": temperature}])
    loss = across_loss(
        terms,
        Signals(Logits(student)),
        Signals(Logits(teacher)),
        labels,
        aligned,
        meeting=Meeting("spans", sizes),
        num_items=11,
    )
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    total = 0.0
    for ours, theirs in zip(segments(aligned.student), segments(aligned.teacher), strict=True):
        a = math.prod(float(q[row, token]) for row, token in zip(*ours, strict=True))
        b = math.prod(float(p[row, token]) for row, token in zip(*theirs, strict=True))
        total += b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a))
    assert loss.total.item() == pytest.approx(total * temperature**2 / 11, rel=1e-9)


def test_sorted_is_the_papers_distance() -> None:
    student, teacher, labels, aligned, sizes = case(3)
    loss = across_loss(
        make_terms([{"function": "tvd"}]),
        Signals(Logits(student)),
        Signals(Logits(teacher)),
        labels,
        aligned,
        meeting=Meeting("sorted", sizes),
        num_items=4,
    )
    q, p = probabilities(student, 1), probabilities(teacher, 1)
    total = 0.0
    for ours, theirs in zip(segments(aligned.student), segments(aligned.teacher), strict=True):
        merged = []
        for table, (rows, tokens) in ((q, ours), (p, theirs)):
            before = math.prod(float(table[r, t]) for r, t in zip(rows[:-1], tokens[:-1], strict=True))
            merged.append(sorted((before * table[rows[-1]]).tolist(), reverse=True))
        for a, b in itertools.zip_longest(*merged, fillvalue=0.0):
            total += abs(a - b)
    assert loss.total.item() == pytest.approx(0.5 * total / 4, rel=1e-9)


@pytest.mark.parametrize("way", ["spans", "sorted"])
def test_chunks_and_heads_give_the_same_value_and_gradient(way: Any) -> None:
    draw = torch.Generator().manual_seed(5)
    _, teacher, labels, aligned, sizes = case()
    hidden = torch.randn((2, 9, 4), generator=draw, dtype=torch.float64)
    weight = torch.randn((sizes[0] + 2, 4), generator=draw, dtype=torch.float64)
    padded = torch.cat([teacher, torch.full((3, 8, 3), 40.0)], -1)
    terms = make_terms(
        [{"function": "tvd", "weight": 2.0, "temperature": 1.5}, {"function": "cross_entropy"}]
    )
    found = []
    for chunk in (1, 3, None):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss = across_loss(
            terms,
            Signals(Head(inputs[0], inputs[1], softcap=3.0)),
            Signals(Logits(padded)),
            labels,
            aligned,
            meeting=Meeting(way, sizes),
            num_items=16,
            chunk=chunk,
        )
        loss.total.backward()
        found.append([loss.total.detach(), *loss.terms, *(one.grad for one in inputs)])
    for one in found[1:]:
        for a, b in zip(one, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    total, first, second = (float(value) for value in found[0][:3])
    assert total == pytest.approx((2 * first + second) / 3)

    def value(inner: Any) -> Any:
        loss = across_loss(
            terms,
            Signals(Head(inner, weight, softcap=3.0)),
            Signals(Logits(padded)),
            labels,
            aligned,
            meeting=Meeting(way, sizes),
            num_items=16,
        )
        return loss.total

    step = torch.zeros_like(hidden)
    step[0, 2, 1] = 1e-6
    slope = (value(hidden + step) - value(hidden - step)).item() / 2e-6
    assert found[0][3][0, 2, 1].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_equal_tokenizers_are_the_plain_loss() -> None:
    """With the student's vocabulary as its own pieces, first pieces are the whole distribution."""
    draw = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn((1, 6, 5), generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, 1, 4, 2, 0, 3]])
    side = Side(torch.arange(5), labels[0, 1:], torch.arange(6))
    terms = make_terms([{"function": "kl", "temperature": 2.0}, {"function": "reverse_kl"}])
    pieces = Pieces.make({token: [token] for token in range(5)}, 5, 5)
    across = across_loss(
        terms,
        Signals(Logits(student)),
        Signals(Logits(teacher)),
        labels,
        Aligned(side, side),
        meeting=Meeting("pieces", (5, 5), pieces),
        num_items=count_items(labels),
    )
    plain = distillation_loss(
        terms, Signals(Logits(student)), Signals(Logits(teacher)), labels, num_items=count_items(labels)
    )
    torch.testing.assert_close(across.terms, plain.terms)


def test_an_extension_that_says_the_same_has_no_distance() -> None:
    """A student whose new tokens have just the probability of their pieces, by enumeration.

    Old tokens a, b, c; new tokens ab, abc and bc. The old model's next tokens depend on what came; the
    student gives to each of its tokens what the old model gives to the pieces, longest token first.
    """
    old = 3
    of = {0: (0,), 1: (1,), 2: (2,), 3: (0, 1), 4: (0, 1, 2), 5: (1, 2)}
    pieces = Pieces.make(of, 6, old)
    assert pieces.first.tolist() == [0, 1, 2, 0, 0, 1]
    assert set(pieces.beginning_with(3)) == {3, 4} and pieces.beginning_with(1) == (1, 5)

    def after(path: tuple[int, ...]) -> Any:
        return np.random.default_rng([7, *[x + 1 for x in path]]).dirichlet(np.ones(old))

    def chain(path: tuple[int, ...], more: tuple[int, ...]) -> float:
        return math.prod(float(after(path + more[:i])[more[i]]) for i in range(len(more)))

    def student(path: tuple[int, ...]) -> Any:
        ab, abc, bc = chain(path, (0, 1)), chain(path, (0, 1, 2)), chain(path, (1, 2))
        first = after(path)
        return np.array([first[0] - ab, first[1] - bc, first[2], ab - abc, abc, bc])

    start = (2,)
    q = student(start)
    assert q.sum() == pytest.approx(1) and (q > 0).all()
    for token, expected in ((3, (0, 1)), (4, (0, 1, 2)), (5, (1, 2)), (2, (2,))):
        teacher = np.array([after(start + expected[:i]) for i in range(len(expected))])
        aligned = Aligned(
            Side(torch.tensor([0]), torch.tensor([token]), torch.tensor([0, 1])),
            Side(torch.arange(len(expected)), torch.tensor(expected), torch.tensor([0, len(expected)])),
        )

        def loss(values: Any, teacher: Any = teacher, aligned: Any = aligned) -> Any:
            return across_loss(
                make_terms([{"function": "kl"}]),
                Signals(Logits(torch.tensor(values).log()[None, None])),
                Signals(Logits(torch.tensor(teacher).log()[None])),
                torch.tensor([[1]]),
                aligned,
                meeting=Meeting("pieces", (6, old), pieces),
                num_items=1,
            ).total.item()

        assert loss(q) == pytest.approx(0, abs=1e-12)
        other = np.roll(q, 1)
        sums = np.bincount(pieces.first.numpy(), weights=other, minlength=old)
        p = teacher[0]
        expected_loss = float((p * np.log(p / sums)).sum())
        if len(expected) > 1:
            b = math.prod(float(teacher[i][expected[i]]) for i in range(1, len(expected)))
            a = sum(other[w] for w in pieces.beginning_with(token)) / sums[expected[0]]
            expected_loss += b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a))
        assert loss(other) == pytest.approx(expected_loss, rel=1e-9)


def test_pieces_of_an_extended_tokenizer(tmp_path: Path) -> None:
    old = tokenizer(tmp_path / "old", [("t", "h"), ("th", "e")])
    new = tokenizer(tmp_path / "new", [("t", "h"), ("th", "e"), ("the", "n"), ("i", "n")])
    pieces = pieces_of(new, old, TokenBytes.of(new))
    assert pieces.of[new.ids["then"]] == (old.ids["the"], old.ids["n"])
    assert pieces.of[new.ids["in"]] == (old.ids["i"], old.ids["n"])
    assert all(pieces.of[new.ids[token]] == (number,) for token, number in old.ids.items())
    other = tokenizer(tmp_path / "other", style=llama_style)
    with pytest.raises(CandidateError, match="no extended vocabulary"):
        pieces_of(new, other, TokenBytes.of(new))


def test_what_cannot_be_compared() -> None:
    student, teacher, labels, aligned, sizes = case()

    def loss(function: str, meeting: Meeting, scores: Any = None) -> Any:
        theirs = Signals(Logits(teacher)) if scores is None else scores
        terms = make_terms([{"function": function}])
        return across_loss(
            terms, Signals(Logits(student)), theirs, labels, aligned, meeting=meeting, num_items=1
        )

    with pytest.raises(ValueError, match="use tvd, or spans"):
        loss("kl", Meeting("sorted", sizes))
    with pytest.raises(ValueError, match="layers of models"):
        loss("hs_mse", Meeting("spans", sizes))
    with pytest.raises(ValueError, match="say which old tokens"):
        loss("kl", Meeting("pieces", sizes))
    with pytest.raises(ValueError, match="pieces of 2 and 2"):
        loss("kl", Meeting("pieces", sizes, Pieces.make({0: (0,), 1: (1,)}, 2, 2)))
    best = TopK(torch.zeros((3, 8, 2), dtype=torch.int64), torch.zeros((3, 8, 2)))
    with pytest.raises(ValueError, match="whole distribution"):
        loss("kl", Meeting("spans", sizes), Signals(best))


@pytest.mark.parametrize("losses", [["kl", "cross_entropy"], ["kl"]])
def test_no_span_gives_zero_and_a_gradient_of_zero(losses: list[str]) -> None:
    student, teacher, labels, _, sizes = case()
    none = Side(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.tensor([0]))
    loss = across_loss(
        make_terms([{"function": name} for name in losses]),
        Signals(Logits(student)),
        Signals(Logits(teacher)),
        labels,
        Aligned(none, none),
        meeting=Meeting("spans", sizes),
        num_items=0,
    )
    assert loss.terms[0] == 0 and loss.total.isfinite()
    loss.total.backward()
    assert student.grad is not None and student.grad.isfinite().all()
