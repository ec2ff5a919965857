from __future__ import annotations

from typing import TYPE_CHECKING

from tests.generate.kit import jsonl, questions, rows, run
from tests.generate.server import prompt_of, serving

if TYPE_CHECKING:
    from pathlib import Path


def test_prompts_of_every_format_and_their_answers_stay_unseen(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "old"}]},
        {"prompt": "b", "completion": "old"},
        {"conversations": [{"from": "human", "value": "c"}, {"from": "gpt", "value": "old"}]},
        {"instruction": "d", "output": "old"},
        {"question": "e", "answer": "old"},
    ]
    with serving(reply=lambda body: f"new {prompt_of(body)}") as server:
        made = run(tmp_path, server.url, prompts=str(jsonl(tmp_path / "p.jsonl", lines)))
    assert sorted(server.asked) == ["a", "b", "c", "d", "e"]
    found = rows(made)
    assert all("old" not in str(row) for row in found)
    (plain,) = [row for row in found if "prompt" in row]
    assert plain["prompt"] == "b" and plain["completion"] == "new b"


def test_explanations_draw_a_system_message_by_prompt_and_seed(tmp_path: Path) -> None:
    systems = tmp_path / "why.txt"
    systems.write_text("# asks why\nExplain why.\n\nThink of a child.\nJustify each step.\n")
    keys = {"style": "explanation", "prompts": str(questions(tmp_path, 30)), "system_prompts": str(systems)}
    with serving() as server:
        made = run(tmp_path, server.url, **keys)
        other = run(tmp_path, server.url, seed=1, **keys)
        bare = run(tmp_path, server.url, keep_system=False, **keys)
    drawn = {row["messages"][1]["content"]: row["messages"][0]["content"] for row in rows(made)}
    assert set(drawn.values()) == {"Explain why.", "Think of a child.", "Justify each step."}
    assert drawn != {row["messages"][1]["content"]: row["messages"][0]["content"] for row in rows(other)}
    assert all(body["messages"][0]["role"] == "system" for body in server.bodies)
    assert {row["messages"][0]["role"] for row in rows(bare)} == {"user"} and bare.asked == 0


def test_textbooks_combine_topics_audiences_forms_and_words(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("fractions\ngravity\nfractions\n")
    (tmp_path / "words.txt").write_text("river\nclock\nshadow\nbread\n")
    book = {
        "topics": str(tmp_path / "topics.txt"),
        "words": str(tmp_path / "words.txt"),
        "audiences": ["a child", "a cook"],
        "forms": ["a letter", "a poem"],
        "texts_per_topic": 3,
        "words_per_text": 2,
    }
    with serving(reply=lambda body: f"Text {prompt_of(body)}") as server:
        made = run(tmp_path, server.url, style="textbook", textbook=book)
    assert made.rows == 6 and len(server.asked) == 6
    found = rows(made)
    assert all(set(row) == {"text", "metadata"} for row in found)
    combinations = {
        (row["metadata"]["topic"], row["metadata"]["audience"], row["metadata"]["form"]) for row in found
    }
    assert len(combinations) == 6
    assert all("Use these words" in asked for asked in server.asked)


def test_exercises_become_conversations(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("sums\n")
    book = {"topics": str(tmp_path / "topics.txt"), "texts_per_topic": 0, "exercises": 3}
    text = (
        "Here they are.\n\n**Exercise 1:** What is 1 + 1?\n**Solution:** Two.\n\n"
        "Exercise: -2 + 2\nand 4?\nSolution:\nFour.\nIt is even.\n\nExercise 3: No solution"
    )
    with serving(reply=lambda body: text) as server:
        made = run(tmp_path, server.url, style="textbook", textbook=book)
    pairs = [tuple(turn["content"] for turn in row["messages"]) for row in rows(made)]
    assert pairs == [("What is 1 + 1?", "Two."), ("-2 + 2\nand 4?", "Four.\nIt is even.")]


def test_the_student_never_sees_the_instruction(tmp_path: Path) -> None:
    with serving(reply=lambda body: "One and one.\nAnswer: 2") as server:
        made = run(tmp_path, server.url, style="reasoning")
        other = run(tmp_path, server.url, style="reasoning", instruction="")
    assert all("step by step" in prompt_of(body) for body in server.bodies[:5])
    assert all(len(prompt_of(body)) == 3 for body in server.bodies[5:])
    assert made.counts == other.counts
    assert all(row["messages"][0]["content"].startswith("q") for row in rows(made))
    assert all(len(row["messages"][0]["content"]) == 3 for row in rows(made))
    with serving(reply=lambda body: "2") as server:
        none = run(tmp_path, server.url, style="reasoning", temperature=0.5)
    assert none.rows == 0 and none.counts["without_rows"] == 5


def test_plain_prompts_keep_reasons(tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "p.jsonl", [{"prompt": "12+3=", "completion": "15"}])
    keys = {"prompts": str(prompts), "style": "reasoning", "instruction": ""}
    with serving(reply=lambda body: " 2+3=5, 1 #### 15") as server:
        made = run(tmp_path, server.url, {"endpoint": "completions"}, **keys)
    (row,) = rows(made)
    assert (row["prompt"], row["completion"], row["reasoning_content"]) == ("12+3=", "15", "2+3=5, 1")
