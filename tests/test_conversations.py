from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve.conversations import Conversation, Message, read_conversations, write_conversations
from evolve.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

Q, A = Message("user", "How many?"), Message("assistant", "Four.")

FORMATS: dict[str, tuple[dict[str, Any], bool]] = {
    "messages": (
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Four."}]},
        False,
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Four."}]},
        False,
    ),
    "texts": ({"prompt": "How many?", "completion": "Four."}, True),
    "lists": (
        {
            "prompt": [{"role": "user", "content": "How many?"}],
            "completion": [{"role": "assistant", "content": "Four."}],
        },
        False,
    ),
    "question": ({"question": "How many?", "answer": "Four."}, False),
    "alpaca": ({"instruction": "How many?", "input": "", "output": "Four."}, False),
    "parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}],
                },
                {"role": "assistant", "content": "Four."},
            ]
        },
        False,
    ),
}


def read(path: Path, *lines: Any, answered: bool = True) -> list[Conversation]:
    file = path / "data.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_bytes("".join(text + "\n" for text in texts).encode(errors="surrogatepass"))
    return list(read_conversations(file, answered=answered))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_turns(name: str, tmp_path: Path) -> None:
    row, plain = FORMATS[name]
    (found,) = read(tmp_path, {**row, "id": 7})
    assert found.messages == (Q, A)
    assert found.plain is plain
    assert found.rest == {"id": 7}
    assert found.place.endswith("data.jsonl:1")
    assert found.prompt == (Q,)


def test_other_turns(tmp_path: Path) -> None:
    text, input_, system, think, plain = read(
        tmp_path,
        {"text": " Once. "},
        {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Short."},
        {"system": "Be kind.", "conversations": FORMATS["sharegpt"][0]["conversations"]},
        {"messages": [{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}]},
        {"prompt": "2+2=", "completion": "4", "reasoning_content": "two and two"},
    )
    assert text.messages == (Message("assistant", " Once. "),) and text.plain and text.prompt == ()
    assert [turn.content for turn in input_.messages] == ["Short.", "Add.\n\n1, 2", "3"]
    assert system.messages == (Message("system", "Be kind."), Q, A)
    assert think.messages[0].reasoning == "2 + 2"
    assert plain.messages[1].reasoning == "two and two" and plain.plain


def test_mark_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    found = read(tmp_path, "\ufeff" + json.dumps(FORMATS["texts"][0]), "", "  ", FORMATS["texts"][0])
    assert [one.place.rpartition(":")[2] for one in found] == ["1", "4"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [', "one JSON object a line"),
        ("[", "jq -c"),
        ('[{"text": "a"}]', "got a list"),
        ("7", "got a number"),
        ({"titel": "x"}, "none of the keys messages"),
        ({"messages": []}, "an empty list"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "role 'alien'"),
        ({"messages": [{"role": "assistant", "content": None}]}, "must be text, not null"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "calls tools"),
        ({"messages": [{"role": "user", "content": "x"}]}, "without an answer"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "rename chosen"),
        ({"instruction": 3}, "instruction must be text, not a number"),
        ('{"text": "a", "n": NaN}', "NaN is no JSON"),
        ('{"text": "a", "n": 1e999}', "larger than any number"),
        ('{"text": "\\ud800"}', "half of a character"),
        ('{"text": "a", "rest": {"deep": "\\udfff"}}', "half of a character"),
        ("[" * 100_000, ""),
    ],
)
def test_what_is_wrong_names_its_line(line: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, {"text": "fine"}, line)
    assert "data.jsonl:2: " in str(error.value)
    assert words in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"data.jsonl:1: not UTF-8"):
        list(read_conversations(file))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_conversations(tmp_path / "none.jsonl"))


def test_a_prompt_needs_no_answer(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": "How many?"}, answered=False)
    assert found.prompt == found.messages == (Q,)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TURN = st.builds(Message, st.sampled_from(["system", "user"]), TEXT)
LAST = st.builds(Message, st.just("assistant"), TEXT, st.none() | TEXT.filter(bool))
CONVERSATIONS = st.builds(
    lambda turns, last, rest: Conversation((*turns, last), rest=rest),
    st.lists(TURN, max_size=3),
    LAST,
    st.dictionaries(st.sampled_from(["metadata", "id"]), TEXT | st.integers() | st.lists(TEXT, max_size=2)),
) | st.builds(
    lambda prompt, last: Conversation((*([Message("user", prompt)] if prompt else []), last), plain=True),
    TEXT,
    LAST,
).filter(lambda one: len(one.messages) == 2 or one.messages[0].reasoning is None)


@given(st.lists(CONVERSATIONS, max_size=4))
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, made: list[Conversation]
) -> None:
    file = tmp_path_factory.mktemp("written") / "rows.jsonl"
    content = write_conversations(file, made)
    assert list(read_conversations(file)) == made
    assert content == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_conversations(file, [Conversation((Q, A))])
    before = file.read_bytes()

    def broken() -> Any:
        yield Conversation((A,))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_conversations(file, broken())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError, match="cannot be written"):
        write_conversations(file / "below", [])
