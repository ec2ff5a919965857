"""Budgets, counts, order, and what decides the rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import UserError
from evolve.generate.blocks import GenerateBlock
from evolve.generate.filters.ngram_overlap import banned_ngrams
from evolve.generate.run import generate, identity
from tests.generate.kit import block, jsonl, questions, rows, run, teacher
from tests.generate.server import Fault, prompt_of, serving

if TYPE_CHECKING:
    from pathlib import Path

    from evolve.generate.progress import Status


def test_a_budget_of_tokens_is_never_exceeded_and_more_goes_on(tmp_path: Path) -> None:
    prompts = str(questions(tmp_path, 40))
    keys = {"prompts": prompts, "max_completion_tokens": 3}
    with serving() as server:
        made = run(tmp_path, server.url, budget={"tokens": 150}, **keys)
        assert not made.complete and 0 < made.rows < 40
        assert made.spent.tokens <= 150 and "budget" in made.warnings[0]
        assert made.rows == made.spent.answers == len(server.bodies)
        again = run(tmp_path, server.url, budget={"tokens": 150}, **keys)
        assert again.content == made.content and again.asked == 0
        # Another candidate spends from the same budget.
        other = run(tmp_path, server.url, budget={"tokens": 150}, temperature=0.9, **keys)
        assert other.asked <= made.rows and other.spent.tokens <= 150
        whole = run(tmp_path, server.url, **keys)
    assert whole.complete and whole.rows == 40
    assert set(map(str, rows(made))) <= set(map(str, rows(whole)))


def test_a_budget_of_money(tmp_path: Path) -> None:
    prices = {"usd_per_million_input_tokens": 100.0, "usd_per_million_output_tokens": 1000.0}
    keys = {"prompts": str(questions(tmp_path, 30)), "max_completion_tokens": 4, "concurrency": 2}
    with serving() as server:
        made = run(tmp_path, server.url, prices, budget={"usd": 0.05}, **keys)
        assert not made.complete and made.spent.usd <= 0.05
        answers, prompt, completion, usd = made.spent
        assert usd == pytest.approx((100 * prompt + 1000 * completion) / 1e6)
        assert answers > 5
        with pytest.raises(UserError, match="no price is known"):
            run(tmp_path, server.url, budget={"usd": 1.0}, **keys)
        free = run(tmp_path, server.url, budget={"tokens": 0}, **keys)
    # What is there costs nothing.
    assert free.asked == 0 and free.rows == made.rows


def test_the_order_of_the_file_does_not_count_and_limits_are_nested(tmp_path: Path) -> None:
    lines = [{"question": f"q{n}?"} for n in range(12)]
    one, other = jsonl(tmp_path / "a.jsonl", lines), jsonl(tmp_path / "b.jsonl", [*lines[::-1], lines[3]])
    with serving() as server:
        first = run(tmp_path, server.url, prompts=str(one))
        second = run(tmp_path, server.url, prompts=str(other))
        few = run(tmp_path, server.url, prompts=str(one), limit=4)
        fewer = run(tmp_path, server.url, prompts=str(one), limit=2)
    assert first.content == second.content
    assert (second.counts["prompts"], second.counts["repeated_prompts"]) == (13, 1)
    assert rows(first)[:4] == rows(few) and rows(few)[:2] == rows(fewer)
    assert len(server.bodies) == 12


def test_more_answers_ask_only_for_those_that_are_missing(tmp_path: Path) -> None:
    with serving() as server:
        run(tmp_path, server.url, n=2)
        made = run(tmp_path, server.url, n=5)
    assert made.asked == 15 and made.rows == 25


def test_another_address_of_the_same_model_asks_nothing(tmp_path: Path) -> None:
    with serving() as server, serving() as elsewhere:
        first = run(tmp_path, server.url)
        second = run(tmp_path, elsewhere.url)
    assert first.content == second.content and not elsewhere.bodies


def test_concurrency_is_bounded(tmp_path: Path) -> None:
    with serving(delay=0.05) as server:
        run(tmp_path, server.url, prompts=str(questions(tmp_path, 20)), concurrency=3)
    assert server.most_at_once == 3


def test_identity_holds_what_decides_the_rows_and_nothing_else(tmp_path: Path) -> None:
    prompts = str(questions(tmp_path))
    content = f"sha256:{'0' * 64}"
    base = block(prompts={"path": prompts, "content": content})

    def same(changed: GenerateBlock, **keys: Any) -> bool:
        return identity(changed, teacher("http://b/v1", **keys)) == identity(base, teacher("http://a/v1"))

    plain: dict[str, Any] = {"prompts": {"path": "elsewhere", "content": content}}
    assert same(block(**plain, concurrency=3, budget={"tokens": 5}), api_key_env="X", timeout=3.0)
    assert not same(block(**plain, n=2))
    assert not same(block(**plain, filters={"min_words": 2}))
    assert not same(block(**plain), model="other")
    assert not same(block(**plain), extra_body={"top_k": 3})


def test_progress_says_what_is_done(tmp_path: Path) -> None:
    seen: list[Status] = []
    asked = block(prompts=str(questions(tmp_path)), budget={"tokens": 100_000})
    with serving() as server:
        generate(asked, teacher(server.url), folder=tmp_path / "s", progress=seen.append)
    asking = [status for status in seen if status.phase == "asking"]
    assert [status.done for status in asking] == [1, 2, 3, 4, 5, 5]
    assert asking[-1].total == 5 and asking[-1].tokens == 20 and asking[-1].tokens_limit == 100_000
    assert seen[-1].phase == "done" and asking[-1].per_second is not None
    with serving() as server:
        generate(asked, teacher(server.url), folder=tmp_path / "s", progress=seen.append)
    assert max(status.known for status in seen) == 5


def test_ranges_and_wrong_blocks_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    prompts = str(questions(tmp_path))
    with serving() as server:
        ranged = GenerateBlock.model_validate({"prompts": prompts, "n": {"low": 1, "high": 4}})
        with pytest.raises(UserError, match=r"generate.n: a range is left"):
            generate(ranged, teacher(server.url), folder=tmp_path)
        with pytest.raises(UserError, match=r"questions.jsonl:1: no 'gold'"):
            run(tmp_path, server.url, verify={"kind": "exact", "field": "gold"})
        changed = block(prompts={"path": prompts, "content": f"sha256:{'0' * 64}"})
        with pytest.raises(UserError, match="bring back the file that was meant"):
            generate(changed, teacher(server.url), folder=tmp_path)
    assert not server.bodies


def test_rows_that_hold_an_items_words_are_left_out(tmp_path: Path) -> None:
    asked = block(prompts=str(questions(tmp_path)), filters={"ngram_overlap": 5})
    secret = "the quick brown fox jumps over the lazy dog"
    with serving(reply=lambda body: f"So {secret.upper()}!" if "q3" in prompt_of(body) else "No.") as server:
        made = generate(asked, teacher(server.url), folder=tmp_path / "s", banned=banned_ngrams([secret], 5))
        unknown = generate(asked, teacher(server.url), folder=tmp_path / "s")
    assert made.rows == 4 and made.counts["removed_ngram_overlap"] == 1
    assert unknown.rows == 5 and "no items of a score" in unknown.warnings[0]


def test_the_items_of_a_file_are_held_against_rows_and_decide_which_file_is_written(tmp_path: Path) -> None:
    secret, other = "the quick brown fox jumps over the lazy dog", "five red hens sat on the wall today"
    items = tmp_path / "items.jsonl"
    items.write_text(f'{{"question": "{secret}", "choices": ["a", "b"], "answer": 1}}\n')
    asked = block(
        prompts=str(questions(tmp_path)), filters={"ngram_overlap": 5, "banned": str(items)}, temperature=0
    )
    texts = {"q3": f"So {secret.upper()}!", "q1": other}

    def reply(body: dict[str, Any]) -> str:
        return next((text for name, text in texts.items() if name in prompt_of(body)), "No.")

    with serving(reply=reply) as server:
        first = generate(asked, teacher(server.url), folder=tmp_path / "s")
        both = generate(
            asked,
            teacher(server.url),
            folder=tmp_path / "s",
            banned=banned_ngrams([other], 5),
            out=items.with_name("o"),
        )
        items.write_text(f'{{"question": "{other}", "choices": ["a", "b"], "answer": 1}}\n')
        second = generate(asked, teacher(server.url), folder=tmp_path / "s")
    assert (first.rows, both.rows, second.rows) == (4, 3, 4)
    assert not first.warnings and first.path != second.path
    assert secret.upper() not in first.path.read_text() and secret.upper() in second.path.read_text()


def test_a_judge_is_asked_once_and_pays_from_the_same_budget(tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> str:
        text = prompt_of(body)
        if "<example>" not in text:
            return f"The answer to {text} is here."
        return {"q0?": "Rating: 5", "q1?": "2", "q2?": "Score: **4**/5", "q3?": "Rating: 9"}.get(
            next(word for word in text.split() if word.startswith("q") and word.endswith("?")), "nice"
        )

    keys = {"filters": {"quality": {"judge": "critic", "min": 4}}}
    with serving(reply=reply) as server:
        made = run(tmp_path, server.url, **keys)
        again = run(tmp_path, server.url, **keys)
        assert len(server.bodies) == 10
        assert {body["model"] for body in server.bodies[5:]} == {"critic"}
    assert again.content == made.content
    assert sorted(row["metadata"]["quality"] for row in rows(made)) == [4, 5]
    assert (made.counts["removed_quality"], made.counts["removed_quality_unrated"]) == (1, 2)
    assert made.spent.answers == 10


def test_a_file_that_somebody_reads_is_never_another_one(tmp_path: Path) -> None:
    asked = block(prompts=str(questions(tmp_path)))

    def fault(body: dict[str, Any], number: int) -> Fault | None:
        return Fault("status") if "q3" in str(body) else None

    with serving(fault=fault) as server:
        less = generate(asked, teacher(server.url, max_tries=1), folder=tmp_path / "s")
    before = less.path.read_bytes()
    with serving() as server:
        whole = generate(asked, teacher(server.url), folder=tmp_path / "s")
        again = generate(asked, teacher(server.url), folder=tmp_path / "s")
    assert (less.rows, whole.rows) == (4, 5)
    assert less.path.read_bytes() == before
    assert whole.path == again.path != less.path
    for made in (less, whole):
        assert made.content == f"sha256:{hashlib.sha256(made.path.read_bytes()).hexdigest()}"
    assert len(list((tmp_path / "s").glob("*.jsonl"))) == 2
