"""The SmolLM2 tasks ask nothing that training states, over invented sources of the packages' form."""

from __future__ import annotations

import json
import sqlite3

import pytest
import yaml

from tests.scripts.loading import ROOT, load_script

smollm2 = load_script("smollm2_experts")


def _term(key, name, parents, extra=""):
    above = "".join(f"is_a: {parent} ! whatever\n" for parent in parents)
    return f"[Term]\nid: {key}\nname: {name}\n{extra}{above}\n"


def _ontology():
    text = "format-version: 1.2\n\n" + _term("HP:0000118", "Phenotypic abnormality", [])
    for place, branch in enumerate(smollm2.SYSTEMS):
        text += _term(f"HP:1{place:02}", branch, ["HP:0000118"])
        text += "".join(
            _term(f"HP:2{place:02}{n}", f"Sign {place} {n}", [f"HP:1{place:02}"]) for n in range(60)
        )
    return text


def test_terms_are_sorted_by_the_branch_above_them():
    text = _ontology()
    text += _term("HP:90", "Squint", ["HP:91"]) + _term("HP:91", "Gaze trouble", ["HP:103"])
    text += _term("HP:92", "Eye pain", ["HP:103"])
    text += _term("HP:93", "Both at once", ["HP:103", "HP:100"])
    text += _term("HP:94", "Gone", ["HP:103"], "is_obsolete: true\n")
    found = smollm2.medical_terms(text)
    assert "Squint" in found["eye"] and "Gaze trouble" in found["eye"]
    everything = {term for terms in found.values() for term in terms}
    # Names its system; lies below two; obsolete; the branch itself.
    assert not everything & {"Eye pain", "Both at once", "Gone", "Abnormality of the eye"}


def test_no_medical_term_is_both_trained_and_asked():
    field = smollm2.medicine(_ontology())
    asked = {one["question"] for one in field.items}
    trained = {prompt for prompt, _ in field.sentences}
    assert len(asked) == len(field.items) > 100 and len(trained) > 400
    assert not asked & trained
    for one in field.items:
        place = int(one["question"].split("Sign ")[1].split()[0])
        assert one["choices"][one["answer"]] == list(smollm2.SYSTEMS.values())[place]


@pytest.fixture
def rows(tmp_path):
    database = tmp_path / "elements.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table series (id integer, name text, color text)")
        connection.executemany("insert into series values (?, ?, '')", [(n, f"Series {n}") for n in range(5)])
        connection.execute("create table elements (name, symbol, atomic_number, period, block, series_id)")
        connection.executemany(
            "insert into elements values (?, ?, ?, ?, ?, ?)",
            [
                (f"El{n}", f"E{chr(96 + n)}", n, n % 7 + 1, "spdf"[n % 4], n if n < 5 else None)
                for n in range(1, 21)
            ],
        )
    return smollm2.elements(database)


def test_each_fact_of_an_element_is_asked_in_the_one_wording_that_is_not_trained(rows):
    field = smollm2.chemistry(rows)
    asked = {one["question"]: one["choices"][one["answer"]] for one in field.items}
    trained = dict(field.sentences)
    # Of the 20 elements 4 have a series.
    assert len(field.items) == 20 * (len(smollm2.WAYS) - 1) + 4
    assert len(field.sentences) == 3 * len(field.items)
    assert not asked.keys() & trained.keys()
    for question, answer in asked.items():
        (key, name) = next(
            (key, row["name"])
            for key, ways in smollm2.WAYS.items()
            for row in rows
            if question in [way.format(row["name"]) for way in ways]
        )
        stated = [way.format(name) for way in smollm2.WAYS[key] if way.format(name) != question]
        assert [trained[one] for one in stated] == [" " + answer] * 3


def test_wrong_answers_differ_from_the_answer_and_from_each_other(rows):
    items = smollm2.chemistry(rows).items + smollm2.medicine(_ontology()).items
    items += smollm2.trivia([[f"Who is {n}?", f"Name {n}."] for n in range(9)]).items
    for one in items:
        assert len(set(one["choices"])) == 4
        assert 0 <= one["answer"] < 4
    places = [one["answer"] for one in items]
    assert all(0.18 < places.count(place) / len(places) < 0.32 for place in range(4))


def test_trivia_offers_numbers_for_numbers_and_takes_each_question_once():
    pairs = [[f"Year {n}?", str(1900 + n)] for n in range(8)] + [
        [f"Who {n}?", f"Person {n}"] for n in range(8)
    ]
    pairs += [["Year 1?", "1850"], ["Long?", "an answer of more than five words"], ["Odd"]]
    items = smollm2.trivia(pairs).items
    assert len(items) == 16
    for one in items:
        assert all(
            choice.isdigit() == one["question"].startswith("Question: Year") for choice in one["choices"]
        )


def test_the_tasks_of_the_search_space_are_those_that_are_written(tmp_path, rows):
    field = smollm2.chemistry(rows)
    smollm2.save_tasks({"medicine": field, "chemistry": field, "trivia": field}, tmp_path / "tasks")
    config = yaml.safe_load((ROOT / "search_spaces" / "smollm2_experts.yaml").read_text())
    written = {}
    for file in (tmp_path / "tasks").glob("*.yaml"):
        task = yaml.safe_load(file.read_text())
        lines = (file.parent / task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        written[task["task"]] = [json.loads(line) for line in lines]
    assert {task["task"] for task in config["score"]["tasks"]} == written.keys()
    assert written["smollm2_chemistry"] == field.items


def test_a_missing_package_is_named_with_the_mend():
    with pytest.raises(SystemExit, match="no_such_package is missing: pip install"):
        smollm2._package("no_such_package")
