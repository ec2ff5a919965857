"""Files of several mergekit configs that use each other by name, and models that are written as mappings."""

from __future__ import annotations

import pytest

from evolve.config.load import load_text
from evolve.config.yaml import YamlError, read_documents
from tests.config.text import at, only_problem, problems

FIRST = """\
name: first
merge_method: linear
models:
  - {model: org/a, parameters: {weight: 1}}
  - {model: org/b, parameters: {weight: 1}}
"""
LAST = """\
merge_method: ties
base_model: org/base
models:
  - {model: first, parameters: {weight: 0.25}}
  - {model: second, parameters: {weight: 0.75}}
dtype: float16
"""
SECOND = """\
name: second
merge_method: linear
models:
  - {model: first, parameters: {weight: 1}}
  - {model: org/c, parameters: {weight: 2}}
"""


def joined(*documents: str) -> str:
    return "---\n".join(documents)


def names(text: str) -> list[str | None]:
    return [block.name for _, block in load_text(text, "c.yaml").stages]


@pytest.mark.parametrize(
    "text",
    [
        joined(FIRST, SECOND, LAST),
        joined(LAST, SECOND, FIRST),
        joined(SECOND, LAST, FIRST),
        "---\n" + joined(FIRST, SECOND, LAST) + "---\n",
        joined(FIRST, "# nothing but a comment\n", SECOND, LAST) + "...\n",
    ],
)
def test_documents_become_stages_in_the_order_of_need(text: str) -> None:
    loaded = load_text(text, "some folder/c.yaml")
    assert [block.name for _, block in loaded.stages] == ["first", "second", None]
    assert loaded.config.models == {name: name for name in ("org/a", "org/b", "org/c", "org/base")}
    assert loaded.config.name == "c"
    last = loaded.config.pipeline[-1]["merge"]
    assert last["dtype"] == "float16" and last["models"][1]["model"] == "second"
    place = loaded.where("pipeline.2.merge.models.0.parameters.weight")
    assert place == at(text, "0.25", source="some folder/c.yaml")


def test_where_all_have_names_the_last_that_nobody_uses_is_the_result() -> None:
    third = LAST.replace("merge_method", "name: third\nmerge_method")
    assert names(joined(FIRST, SECOND, third)) == ["first", "second", "third"]
    assert names(joined(third, FIRST, SECOND)) == ["first", "second", "third"]


def test_a_file_of_several_can_be_searched() -> None:
    text = joined(FIRST.replace("weight: 1", "weight: {low: 0, high: 1}", 1), SECOND, LAST)
    text += "score: {tasks: [{task: x, metric: acc}]}\nsearch: {trials: 7}\n"
    loaded = load_text(text, "c.yaml")
    assert loaded.config.search.trials == 7 and loaded.config.score is not None
    assert (
        load_text(text, "c.yaml", ["search.trials=9", "pipeline.2.merge.dtype=bfloat16"]).config.search.trials
        == 9
    )


def test_anchors_end_with_their_document() -> None:
    text = joined(
        FIRST.replace("weight: 1", "weight: &w 1", 1), SECOND.replace("weight: 2", "weight: *w"), LAST
    )
    assert "no anchor &w" in only_problem(text).message
    with pytest.raises(YamlError, match="no anchor"):
        read_documents("a: &x 1\n---\nb: *x\n")


def test_a_document_may_be_called_like_a_method() -> None:
    text = joined(
        FIRST.replace("name: first", "name: linear"),
        LAST.replace("first", "linear").replace("second", "org/c"),
    )
    loaded = load_text(text, "c.yaml")
    assert [block.name for _, block in loaded.stages] == ["linear", None]
    assert loaded.config.pipeline[0]["merge"]["merge_method"] == "linear"


def test_a_name_that_is_taken() -> None:
    text = joined(FIRST, SECOND.replace("name: second", "name: first"), LAST.replace("second", "org/d"))
    found = problems(text)
    (taken,) = [problem for problem in found if problem.message.endswith("in line 1")]
    assert taken.where == "c.yaml:7:7"
    assert "the name 'first' is taken" in taken.message


def test_two_documents_without_a_name() -> None:
    text = joined(FIRST, SECOND.replace("name: second\n", ""), LAST)
    found = [problem.message for problem in problems(text) if problem.where == "c.yaml:12:1"]
    assert any("only one document has no name, and one begins in line 7" in message for message in found)


def test_a_chain_of_very_many_documents_ends_at_once() -> None:
    text = joined(*(FIRST.replace("first", f"d{n}").replace("org/a", f"d{n + 1}") for n in range(2000)))
    assert "more than 100 documents" in only_problem(text).message


def test_a_name_that_is_not_there() -> None:
    text = joined(FIRST, LAST.replace("model: second", "model: secand"), SECOND)
    found = {problem.where: problem.message for problem in problems(text)}
    assert "did you mean 'second'" in found[at(text, "secand")]
    unused = [message for message in found.values() if "nobody uses the output" in message]
    assert len(unused) == 1


@pytest.mark.parametrize("name", ["second", "third"])
def test_documents_that_need_each_other(name: str) -> None:
    third = FIRST.replace("name: first", "name: third").replace("org/a", "second")
    circular = FIRST.replace("org/a", name)
    text = joined(circular, SECOND, third, LAST.replace("base_model: org/base", "base_model: third"))
    found = [problem for problem in problems(text) if "need each other" in problem.message]
    assert len(found) == 1
    circle = (
        "first needs second needs first" if name == "second" else "first needs third needs second needs first"
    )
    assert found[0].message.endswith(circle)
    assert found[0].where.startswith("c.yaml:")
    assert found[0].path.endswith("models.0.model")


def test_a_document_that_needs_itself() -> None:
    found = [problem.message for problem in problems(joined(FIRST.replace("org/a", "first"), SECOND, LAST))]
    assert any("first needs first" in message for message in found)


def test_mistakes_are_shown_in_their_own_document() -> None:
    text = joined(FIRST, SECOND.replace("parameters: {weight: 2}", "paramters: {weight: 2}"), LAST)
    found = {problem.where: problem for problem in problems(text)}
    problem = found[at(text, "paramters")]
    assert problem.path == "pipeline.1.merge.models.1.paramters"
    assert "did you mean 'parameters'" in problem.message
    flawed = joined(FIRST, SECOND.replace("weight: 2", "weight: .inf"), LAST)
    assert "must be finite" in only_problem(flawed).message
    assert only_problem(flawed).where == at(flawed, ".inf")


def test_only_mergekit_configs_may_be_several() -> None:
    text = joined(FIRST, "models: {a: x}\n")
    assert "a second document begins" in only_problem(text).message
    assert only_problem(text).where == "c.yaml:6:1"
    ours = "models: {a: x}\npipeline:\n  - merge: {merge_method: passthrough, models: [{model: a}]}\n"
    assert "a second document begins" in only_problem(joined(ours, ours)).message
    assert load_text("---\n" + ours + "---\n", "c.yaml").config.models == {"a": "x"}


# Models as mappings.

MAPPED = """\
merge_method: linear
base_model: {model: {path: org/a}, lora: null, override_architecture: null}
models:
  - model: {model: {path: org/a, revision: null}}
    parameters: {weight: 1}
  - model:
      model: {path: org/b, revision: v2}
      lora: {path: org/c, revision: v3}
    parameters: {weight: 1}
  - model: {model: org/d@v4, lora: org/e}
    parameters: {weight: 1}
"""


def test_mappings_are_the_texts_that_mean_the_same() -> None:
    block = load_text(MAPPED, "c.yaml").config.pipeline[0]["merge"]
    assert block["base_model"] == "org/a"
    assert [entry["model"] for entry in block["models"]] == ["org/a", "org/b@v2+org/c@v3", "org/d@v4+org/e"]


def test_mappings_in_a_config_and_among_documents() -> None:
    inside = "models: {a: models/a}\npipeline:\n  - merge:\n"
    inside += "".join(f"      {line}\n" for line in MAPPED.splitlines())
    text = inside.replace("{path: org/a, revision: null}", "models/a").replace("{path: org/a}", "a")
    loaded = load_text(text, "c.yaml")
    assert loaded.config.pipeline[0]["merge"]["models"][0]["model"] == "a"
    mapped = LAST.replace("{model: first,", "{model: {model: {path: first}},")
    assert names(joined(mapped, SECOND, FIRST)) == ["first", "second", None]


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        (
            "{model: {path: org/a}, §lora: null",
            "{model: {path: org/a}, lore: null",
            "base_model.lore",
            "'lora'?",
        ),
        (
            "lora: null, §override_architecture: null",
            "lora: null, override_architecture: X",
            "base_model.override_architecture",
            "not supported",
        ),
        ("§{path: org/b, revision: v2}", "{path: 7}", "models.1.model.model", "expected a text or {path"),
        (
            "§{path: org/b, revision: v2}",
            "{revision: v2}",
            "models.1.model.model",
            "expected a text or {path",
        ),
        ("§{model: org/d@v4, lora", "{lora", "models.2.model", "missing"),
    ],
)
def test_wrong_mappings(old: str, new: str, path: str, words: str) -> None:
    """The mark § stands where the message must point."""
    before, after = old.split("§")
    place = at(MAPPED, before + after, offset=len(before))
    found = {problem.where: problem for problem in problems(MAPPED.replace(before + after, new))}
    assert words in found[place].message
    assert found[place].path.startswith(path)


def test_a_folder_whose_name_would_be_misread(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "c@d"):
        (tmp_path / "x" / name).mkdir(parents=True)
    text = MAPPED.replace("path: org/a", "path: x/a+b").replace("path: org/b, revision: v2", "path: x/c@d")
    text = text.replace("      lora: {path: org/c, revision: v3}\n", "")
    config = load_text(text, "c.yaml").config
    assert {"x/a+b", "x/c@d"} <= set(config.models.values())
