from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.errors import UserError
from evolve.generate.blocks import VerifyBlock
from evolve.generate.split import final_answer, split
from evolve.generate.verifiers.base import Case
from evolve.generate.verifiers.numeric import last_number
from evolve.registry import VERIFIERS
from tests.generate.kit import jsonl, questions, rows, run
from tests.generate.server import prompt_of, serving

if TYPE_CHECKING:
    from pathlib import Path


def judge(kind: str, pairs: list[tuple[str, Any]], **keys: Any) -> list[bool]:
    block = VerifyBlock.model_validate({"kind": kind, "field": "answer", **keys})
    cases = [Case(answer, reference, {"x": 1}) for answer, reference in pairs]
    return [verdict.right for verdict in VERIFIERS.load(kind).judge(block, cases)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 1,234.50 dollars.", Fraction("1234.5")),
        ("so -7", Fraction(-7)),
        ("5-3", Fraction(3)),
        ("\u22127", Fraction(-7)),
        ("3/4", Fraction(3, 4)),
        ("50%", Fraction(1, 2)),
        ("1e-3", Fraction(1, 1000)),
        (".5", Fraction(1, 2)),
        ("1,2,3", Fraction(3)),
        ("\\boxed{42} and then 7", Fraction(42)),
        ("12 + 3 = 15 #### 15", Fraction(15)),
        ("1/0", None),
        ("none", None),
        ("", None),
        ("9" * 500, None),
    ],
)
def test_numbers_in_texts(text: str, number: Fraction | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_are_exact(number: int) -> None:
    assert last_number(f"The answer is {number:,}.") == number
    assert judge("numeric", [(f"{number}", number + 1)], tolerance=0.0) == [False]


def test_numeric_and_exact() -> None:
    pairs = [("0.3333333", "1/3"), ("0.33", "1/3"), ("7", 7), ("x", 7), ("7", "x")]
    assert judge("numeric", pairs) == [True, False, True, False, False]
    exact = [("Final answer: New  York", "New York"), ("new york", "New York"), ("York", "New York")]
    assert judge("exact", exact) == [True, False, False]
    assert judge("exact", exact, ignore_case=True) == [True, True, False]


def test_mathematics() -> None:
    pytest.importorskip("math_verify")
    pairs = [
        ("$\\frac{1}{2}$", "0.5"),
        ("\\boxed{x^2 + 2x + 1}", "$(x+1)^2$"),
        ("$\\{1, 2\\}$", "\\{2, 1\\}"),
        ("$\\frac{1}{3}$", "0.5"),
        ("no idea", "0.5"),
    ]
    assert judge("math", pairs, timeout=60.0) == [True, True, True, False, False]


def test_a_regular_expression() -> None:
    pairs = [("I say: (b)", "b"), ("I say: (c)", "b"), ("b", "b"), ("I say: (B)", "b")]
    assert judge("regex", pairs, pattern=r"\((\w)\)") == [True, False, False, False]
    assert judge("regex", pairs, pattern=r"\((\w)\)", ignore_case=True) == [True, False, False, True]
    assert judge("regex", [("a1", None), ("a", None)], pattern=r"\d") == [True, False]


def test_what_takes_for_ever_is_wrong_and_the_next_goes_on() -> None:
    pairs = [("a" * 40 + "!", "a"), ("aa", "aa"), ("a" * 40 + "!", "a")]
    block = VerifyBlock(kind="regex", field="x", pattern="^((?:a+)+)$", timeout=0.5)
    verdicts = VERIFIERS.load("regex").judge(block, [Case(*pair, {}) for pair in pairs])
    assert [verdict.right for verdict in verdicts] == [False, True, False]
    assert "longer than 0.5 s" in verdicts[0].trouble and not verdicts[1].trouble


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "secret")
    file = tmp_path / "checks.py"
    file.write_text(
        "import os, sys\n"
        "def verify(answer, reference, row):\n"
        "    print('said something', flush=True)\n"
        "    if answer == 'die': os._exit(3)\n"
        "    if answer == 'raise': raise ValueError('no')\n"
        "    return answer == reference + str(row['x']) and 'TEACHER_API_KEY' not in os.environ\n"
        "def broken(answer, reference, row):\n"
        "    raise ValueError('never')\n"
    )
    pairs = [("a1", "a"), ("die", "a"), ("raise", "a"), ("a1", "a"), ("a2", "a")]
    assert judge("python", pairs, file=str(file)) == [True, False, False, True, False]
    with pytest.raises(UserError, match="no function 'nothing'"):
        judge("python", pairs, file=str(file), function="nothing")
    with pytest.raises(UserError, match="failed on every answer: ValueError: never"):
        judge("python", pairs, file=str(file), function="broken")
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="nothing_of_this_name"):
        judge("python", pairs, file=str(file))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a <think> b </think> c", ("a  b", "c")),
        ("2 + 2 = 4\n#### 4", ("2 + 2 = 4", "4")),
        ("The first answer: 3. No. The answer is: 4", ("The first answer: 3. No.", "4")),
        ("Answer: 4", (None, "Answer: 4")),
        ("No marker.", (None, "No marker.")),
        ("x\nAnswer:", (None, "x\nAnswer:")),
        ("", (None, "")),
    ],
)
def test_reasons_and_answers(text: str, parts: tuple[str | None, str]) -> None:
    assert split(text) == parts


def test_final_answers() -> None:
    assert final_answer("Answer: 4") == "4"
    assert final_answer("\\boxed{\\frac{1}{2}} or \\boxed{\\sqrt{3}}") == "\\sqrt{3}"
    assert final_answer("\\boxed{never closed") == "\\boxed{never closed"
    assert split("because so: 5", None, r"(?P<reasoning>.*): (?P<answer>.*)") == ("because so", "5")


def reply(right: dict[str, int]) -> Any:
    """Answer a question right so many times: longer each time."""
    given: dict[str, int] = {}

    def of(body: dict[str, Any]) -> Any:
        asked = prompt_of(body).split("\n")[0]
        number = given[asked] = given.get(asked, 0) + 1
        word = asked[1:-1] if number <= right[asked] else "999"
        if right[asked] < 0:
            return {"message": {"content": "so"}, "finish_reason": "length"}
        return f"{'well ' * (9 - number)}so. Answer: {word}"

    return of


def test_rejection_sampling_keeps_the_shortest_and_records_the_rate(tmp_path: Path) -> None:
    right = {"q0?": 0, "q1?": 1, "q2?": 2, "q3?": 4, "q4?": -1}
    keys = {"style": "reasoning", "n": 4, "concurrency": 1, "max_attempts": 1, "temperature": 0.5}
    verify: dict[str, Any] = {"kind": "numeric", "field": "answer", "max_per_prompt": 2}
    with serving(reply=reply(right)) as server:
        made = run(tmp_path, server.url, verify=verify, **keys)
        hard = run(
            tmp_path, server.url, verify={**verify, "min_pass_rate": 0.3, "max_pass_rate": 0.9}, **keys
        )
        every = run(
            tmp_path, server.url, verify={"kind": "numeric", "field": "answer", "keep": "all"}, **keys
        )
        first = run(tmp_path, server.url, verify={"kind": "numeric", "field": "answer"}, **keys)
    rates = {row["messages"][0]["content"]: row["metadata"]["pass_rate"] for row in rows(made)}
    assert rates == {"q1?": 0.25, "q2?": 0.5, "q3?": 1.0}
    assert (made.rows, every.rows, first.rows) == (5, 7, 3)
    assert made.counts["removed_wrong"] == 16 - 7 and made.counts["removed_surplus"] == 2
    assert made.counts["truncated"] == 4
    assert [row["messages"][0]["content"] for row in rows(hard)] == ["q2?"] * 2
    assert hard.counts["removed_pass_rate"] == 5
    kept = [len(row["messages"][1]["reasoning_content"]) for row in rows(made) if "q3?" in str(row)]
    assert max(kept) < min(
        {len(row["messages"][1]["reasoning_content"]) for row in rows(every) if "q3?" in str(row)} - set(kept)
    )


def test_references_of_every_place(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "completion": "7"},
        {"prompt": "b", "deep": {"gold": 7}},
        {"question": "c", "answer": "2 + 5 #### 7"},
    ]
    for index, field in ((0, "completion"), (1, "deep.gold"), (2, "answer")):
        prompts = jsonl(tmp_path / f"{index}.jsonl", [lines[index]])
        verify = {"kind": "numeric", "field": field}
        with serving(reply=lambda body: "It is 7") as server:
            assert run(tmp_path, server.url, prompts=str(prompts), verify=verify).rows == 1
    assert questions(tmp_path).exists()
