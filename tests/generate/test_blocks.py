from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from evolve.config.files import files
from evolve.config.messages import complaints
from evolve.config.plain import plain, ranges
from evolve.config.yaml import read_tree
from evolve.errors import ConfigError
from evolve.generate.blocks import ApiTeacher, GenerateBlock
from evolve.generate.checks import deciding
from evolve.generate.config import load

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = """
style: reasoning
prompts: data/questions.jsonl
n: 8
temperature: 0.7
max_completion_tokens: 512
verify: {kind: numeric, field: answer, keep: shortest, max_per_prompt: 2}
filters: {min_tokens: 8, near_duplicate: 0.8, ngram_overlap: 8, quality: {judge: expert, min: 3}}
budget: {tokens: 2_000_000, usd: 5.0}
concurrency: 8
"""


def block(**keys: Any) -> GenerateBlock:
    return GenerateBlock.model_validate({"prompts": "p.jsonl", **keys})


def test_the_block_of_the_reference_parses() -> None:
    tree, _ = read_tree(SHIPPED)
    assert tree is not None
    data = tree.plain()
    assert complaints(GenerateBlock, data) == []
    found = GenerateBlock.model_validate(data)
    assert found.problems() == []
    assert [file.path for _, file in files(found)] == ["data/questions.jsonl"]
    assert GenerateBlock.model_validate(plain(found)) == found
    assert GenerateBlock.model_json_schema()


def test_numbers_that_decide_rows_may_be_ranges() -> None:
    found = block(
        n={"choices": [1, 4]},
        temperature={"low": 0.1, "high": 1.0},
        verify={"kind": "exact", "field": "answer", "max_pass_rate": {"low": 0.5, "high": 1.0}},
        filters={"min_words": {"low": 1, "high": 9}, "refusals": {"choices": [False, True]}},
    )
    assert found.problems() == []
    assert len(list(ranges(found))) == 5


@pytest.mark.parametrize(
    ("keys", "path", "words"),
    [
        ({"style": "resoning"}, ("style",), "did you mean 'reasoning'"),
        ({"style": "explanation"}, (), "needs system_prompts"),
        ({"style": "textbook"}, (), "needs textbook"),
        ({"system_prompts": "s.txt"}, ("system_prompts",), "no use for 'system_prompts'"),
        ({"n": 2, "temperature": 0}, ("n",), "all the same"),
        ({"n": {"low": 0, "high": 4}}, ("n",), "at least 1, got 0"),
        ({"top_p": 1.5}, ("top_p",), "at most 1"),
        ({"answer_pattern": "(?P<answer>.*)"}, ("answer_pattern",), "reasoning"),
        ({"answer_pattern": "("}, ("answer_pattern",), "no regular expression"),
        ({"filters": {"min_words": 9, "max_words": 3}}, ("filters", "min_words"), "larger than"),
        ({"filters": {"banned": "items.jsonl"}}, ("filters", "banned"), "set ngram_overlap"),
        ({"filters": {"near_duplicate": 1.2}}, ("filters", "near_duplicate"), "at most 1"),
        ({"verify": {"kind": "numerc", "field": "a"}}, ("verify", "kind"), "did you mean 'numeric'"),
        ({"verify": {"kind": "exact"}}, ("verify",), "needs field"),
        ({"verify": {"kind": "regex", "pattern": "["}}, ("verify", "pattern"), "no regular expression"),
        (
            {"verify": {"kind": "exact", "field": "a", "tolerance": 0.1}},
            ("verify", "tolerance"),
            "has no 'tolerance'",
        ),
        (
            {"verify": {"kind": "exact", "field": "a", "min_pass_rate": 0.9, "max_pass_rate": 0.1}},
            ("verify", "min_pass_rate"),
            "larger than",
        ),
    ],
)
def test_problems(keys: dict[str, Any], path: tuple[str, ...], words: str) -> None:
    found = block(**keys).problems()
    assert any(at == path and words in message for at, message in found), found


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"base_url": "127.0.0.1:8000"}, ("base_url",)),
        ({"base_url": "http://"}, ("base_url",)),
        ({"base_url": "http://me:hunter2@host/v1"}, ("base_url",)),
        ({"base_url": "http://host/v1?key=hunter2"}, ("base_url",)),
        ({"base_url": "http://[broken/v1"}, ("base_url",)),
        ({"extra_body": {"n": 3}}, ("extra_body", "n")),
    ],
)
def test_problems_of_a_teacher(keys: dict[str, Any], path: tuple[str, ...]) -> None:
    teacher = ApiTeacher.model_validate({"base_url": "http://host/v1", "model": "m", **keys})
    assert [at for at, _ in teacher.problems()] == [path]
    assert "hunter2" not in str(teacher.problems())


def test_what_has_no_effect_is_no_part_of_a_recipe_and_what_is_needed_to_ask_is() -> None:
    def effect(**keys: Any) -> dict[str, Any]:
        return GenerateBlock.effective(plain(block(**keys), defaults=False))

    verify = {"kind": "exact", "field": "answer"}
    unused = {**verify, "pattern": "x", "function": "y"}
    assert effect(verify=unused) == effect(verify=verify)
    assert effect(textbook={"topics": "t.txt"}) == effect()
    for keys in ({"budget": {"tokens": 1}}, {"concurrency": 3}, {"n": 2}, {"verify": verify}):
        assert set(effect(**keys)) == {"prompts", *keys}
        assert block(**effect(**keys)) == block(**keys)


def test_what_decides_the_rows() -> None:
    def decides(**keys: Any) -> Any:
        return deciding(plain(block(**keys)))

    def judged(**keys: Any) -> Any:
        judge = {"base_url": "http://a/v1", "model": "critic", **keys}
        return decides(filters={"quality": {"judge": judge}})

    verify = {"kind": "regex", "pattern": "x"}
    assert decides(concurrency=3, budget={"tokens": 1}) == decides() != decides(n=2)
    assert decides(verify={**verify, "timeout": 9.0}) == decides(verify=verify)
    assert decides(verify={**verify, "ignore_case": True}) != decides(verify=verify)
    assert judged() == judged(base_url="http://b/v1", timeout=3.0) != judged(model="other")


def test_problems_have_a_place(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    teacher = "teacher: {base_url: 'http://h/v1', model: m}\n"
    config.write_text(f"{teacher}generate:\n  styl: reasoning\n  n: yes\n")
    with pytest.raises(ConfigError) as error:
        load(config)
    text = str(error.value)
    assert "c.yaml:3:3: generate.styl: unknown key (did you mean 'style'?)" in text
    assert "c.yaml:4:6: generate.n: " in text
    config.write_text(f"{teacher}generate:\n  prompts: none.jsonl\n")
    with pytest.raises(ConfigError, match=r"c.yaml:3:12: generate.prompts.*none.jsonl"):
        load(config)
    with pytest.raises(ConfigError, match="range has no place"):
        load(config, ["generate.n={low: 1, high: 3}"])
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.yaml")
