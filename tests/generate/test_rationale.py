from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from evolve.config.messages import complaints
from evolve.config.plain import plain, ranges
from evolve.conversations import Conversation, Message
from evolve.generate.blocks import RationaleBlock
from evolve.generate.rationale import with_rationale


def row(question: str, answer: str, reasons: str | None) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer, reasons)))


def block(mode: str, **keys: str) -> RationaleBlock:
    found = RationaleBlock.model_validate({"mode": mode, **keys})
    assert found.problems() == []
    return found


def test_inline_marks_the_reasons_with_their_tags() -> None:
    made, counts = with_rationale(
        block("inline"), [row("q", "{4}", "2 {reasoning} 2"), row("r", "5", None)], seed=0
    )
    first, second = made
    content = first.conversation.messages[-1].content
    assert content == "<think>\n2 {reasoning} 2\n</think>\n{4}"
    ((message, start, end),) = first.reasons
    assert (message, content[start:end]) == (1, "<think>\n2 {reasoning} 2\n</think>\n")
    assert second.conversation.messages[-1] == Message("assistant", "5") and second.reasons == ()
    assert counts == {"without_reasons": 1}


def test_what_is_done_may_be_a_gene() -> None:
    choice = {"choices": ["none", "inline", "second_task"]}
    found = RationaleBlock.model_validate({"mode": choice})
    assert found.problems() == []
    [(path, _)] = ranges(found)
    assert path == ("mode",)
    filled = plain(found, fill=lambda _, value: value.choices[1])
    assert RationaleBlock.model_validate(filled) == block("inline")
    same = RationaleBlock.model_validate({"mode": choice, "answer_marker": "x", "rationale_marker": "x"})
    assert [path for path, _ in same.problems()] == [("rationale_marker",)]
    for wrong in ("inlin", 3, {"choices": ["inline", 1]}, {"low": 0, "high": 1}):
        [complaint] = complaints(RationaleBlock, {"mode": wrong})
        assert complaint.path[0] == "mode" and "second_task" in complaint.message


def test_none_leaves_the_answer() -> None:
    made, _ = with_rationale(block("none"), [row("q", "4", "2 + 2")], seed=0)
    assert made[0].conversation.messages == (Message("user", "q"), Message("assistant", "4"))
    assert made[0].reasons == ()


def test_second_task_asks_for_each_apart() -> None:
    made, _ = with_rationale(block("second_task"), [row("q", "4", "2 + 2"), row("r", "5", None)], seed=0)
    texts = [tuple(turn.content for turn in one.conversation.messages) for one in made]
    assert texts == [("[answer] q", "4"), ("[reasons] q", "2 + 2"), ("[answer] r", "5")]
    assert [one.reasons for one in made] == [(), ((1, 0, 5),), ()]


QUESTIONS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=25)


@given(QUESTIONS, st.integers(0, 3))
def test_shuffled_reasons_are_of_another_question_of_the_same_answer(
    made: list[tuple[int, int]], seed: int
) -> None:
    rows = [row(f"q{q}", f"a{a}", f"r{n} of q{q} for a{a}") for n, (q, a) in enumerate(made)]
    found, counts = with_rationale(block("shuffled", template="{reasoning}|{answer}"), rows, seed=seed)
    used = Counter()
    for one in found:
        question, last = (turn.content for turn in one.conversation.messages)
        reasons, answer = last.split("|")
        assert f" of {question} " not in reasons
        assert reasons.endswith(f"for {answer}")
        used[reasons] += 1
    assert set(used.values()) <= {1}
    assert counts["lone"] == len(rows) - len(found)
    # As many as there can be: of a question at most as many as all others of that answer have.
    most = 0
    for answer in {a for _, a in made}:
        sizes = Counter(q for q, a in made if a == answer)
        total = sum(sizes.values())
        most += total - max(0, 2 * max(sizes.values()) - total)
    assert len(found) == most


def test_shuffled_keeps_the_order_and_what_has_no_reasons() -> None:
    rows = [row("q0", "a", "r0"), row("q1", "b", None), row("q2", "a", "r2")]
    found, _ = with_rationale(block("shuffled"), rows, seed=0)
    assert [one.conversation.messages[0].content for one in found] == ["q0", "q1", "q2"]
    assert "r2" in found[0].conversation.messages[1].content


def test_what_has_no_effect() -> None:
    plain = block("none").model_dump()
    assert RationaleBlock.effective({**plain, "weight": 0.3}) == RationaleBlock.effective(plain)
    assert "weight" in RationaleBlock.effective(block("inline").model_dump())
    assert RationaleBlock(template="{answer}{reasoning}").problems()
    assert RationaleBlock(weight=-1.0).problems()
