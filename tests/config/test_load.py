from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from evolve.config.dump import resolved_yaml
from evolve.config.load import load, load_text
from evolve.config.yaml import MOST_BYTES
from evolve.errors import ConfigError
from tests.config.text import MERGE, at, only_problem, problems

if TYPE_CHECKING:
    from pathlib import Path

BAD = """\
nam: x
models:
  base: models/base
  math: 7
  average: models/avg
pipeline:
  - merge:
      name: base
      merge_method: linear
      models:
        - {model: math, parameters: {weight: {low: 2.0, high: 1.0}}}
  - merg: {}
  - merge:
      name: mixed
      enabled: "yes"
      merge_method: ties
      base_model: bas
      models:
        - model: math
          paramters: {weight: 1}
        - model: late
          parameters: {weight: abc, density: {lo: 0.1, high: 1}}
      parameters: {lambda: {choices: []}}
  - merge:
      name: late
      merge_method: ties
      base_model: base
      chat_template: chatlm
      models:
        - {model: mixed, parameters: {wieght: 1, density: 2.25}}
  - just text
search: {trails: 5, trials: 0, sampler: cmeas, seed: 1, seed: 2, population: "8"}
score:
  tasks:
    - {task: a, metric: acc, items: 1.5}
    - {task: b}
  batch_size: .inf
  dtype: float8
engine: lokal
"""


def test_reports_everything_at_once_each_at_its_place() -> None:
    found = {(problem.where, problem.path): problem.message for problem in problems(BAD)}
    stage = "pipeline.{}.merge.{}".format
    expected = {
        ("nam: x", 0, "nam"): "did you mean 'name'",
        ("math: 7", 6, "models.math"): "expected text, got 7",
        ("average:", 0, "models.average"): "taken by the plain average",
        ("name: base", 6, stage(0, "name")): "taken by a model",
        ("{low: 2.0", 0, stage(0, "models.0.parameters.weight")): "low must be smaller than high",
        ("merg: {}", 0, "pipeline.1.merg"): "did you mean 'merge'",
        ('"yes"', 0, stage(2, "enabled")): "write true, without quotes",
        ("base_model: bas\n", 12, stage(2, "base_model")): "did you mean 'base'",
        ("paramters:", 0, stage(2, "models.0.paramters")): "did you mean 'parameters'",
        ("model: late", 7, stage(2, "models.1.model")): "comes later: move it",
        ("abc", 0, stage(2, "models.1.parameters.weight")): "a range {low: ..., high: ...}",
        ("lo: 0.1", 0, stage(2, "models.1.parameters.density.lo")): "did you mean 'low'",
        ("{lo: 0.1", 0, stage(2, "models.1.parameters.density.low")): "missing",
        ("[]", 0, stage(2, "parameters.lambda.choices")): "must not be empty",
        ("chatlm", 0, stage(3, "chat_template")): "did you mean 'chatml'",
        ("wieght", 0, stage(3, "models.0.parameters.wieght")): "did you mean 'weight'",
        ("2.25", 0, stage(3, "models.0.parameters.density")): "from 0 to 1",
        ("just text", 0, "pipeline.4"): "expected one stage",
        ("trails", 0, "search.trails"): "did you mean 'trials'",
        ("trials: 0", 8, "search.trials"): "at least 1, got 0",
        ("cmeas", 0, "search.sampler"): "did you mean 'cmaes'",
        ("seed: 2", 0, "search.seed"): "twice",
        ('"8"', 0, "search.population"): "expected a whole number, got the text '8': write it without quotes",
        ("1.5}", 0, "score.tasks.0.items"): "expected a whole number, got 1.5",
        ("{task: b}", 0, "score.tasks.1.metric"): "missing",
        (".inf", 0, "score.batch_size"): "must be finite",
        ("float8", 0, "score.dtype"): "did you mean 'float32'",
        ("lokal", 0, "engine"): "expected 'ray' or 'inline'",
    }
    for (word, offset, path), words in expected.items():
        place = (at(BAD, word, offset=offset), path)
        assert place in found, f"{place} is not reported"
        assert words in found[place]
    rest = {
        place: message for place, message in found.items() if place[1] not in {key[2] for key in expected}
    }
    # What follows from another mistake: the misspelt weight is missing too.
    assert {path for _, path in rest} <= {"pipeline.3.merge.models.0.parameters"}


def test_problems_are_in_the_order_of_the_file() -> None:
    places = [tuple(map(int, problem.where.split(":")[1:])) for problem in problems(BAD)]
    assert places == sorted(places)
    assert len(places) >= 28


def test_a_message_is_file_place_path_and_what() -> None:
    text = MERGE + "search: {trails: 5}\n"
    assert str(only_problem(text)) == "c.yaml:12:10: search.trails: unknown key (did you mean 'trials'?)"


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("yes", "true, without quotes"),
        ("'0.5'", "without quotes"),
        ("null", "got nothing"),
        ("[0.5, x]", "expected a number, a range"),
        ("[]", "must not be empty"),
        ("[0.1, {low: 0, high: 1, knots: 3}]", "knots"),
        ("{low: 0}", "missing"),
        ("{low: 0, high: 1, log: true}", "log range needs low > 0"),
        ("{low: 1, high: 2, log: true, step: 0.1}", "exclude each other"),
        ("{low: 0, high: 1, step: 2}", "larger than the range"),
        ("{low: 0, high: 1, knots: 0}", "at least 1"),
        ("{low: 0, high: 1, knots: 2.5}", "whole number"),
        ("{low: 0, high: '1'}", "expected a number"),
        ("{low: true, high: 1}", "expected a number, got true"),
        ("{choices: [1, 1.0]}", "differ"),
        ("{choices: [null]}", "expected true or false or a number or text, got nothing"),
        ("[{filter: q, value: {low: 1, high: 0}}]", "smaller"),
        ("[{filter: q}]", "missing"),
    ],
)
def test_a_wrong_parameter_is_one_message(parameter: str, words: str) -> None:
    text = MERGE.replace("weight: 1.0", f"weight: {parameter}")
    problem = only_problem(text)
    assert words in problem.message
    assert problem.path.startswith("pipeline.0.merge.models.0.parameters.weight")
    assert problem.where.startswith("c.yaml:9:")


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("name: demo", "name: a/b", "name", "slash"),
        ("name: demo", "name: .hidden", "name", "dot"),
        ("name: demo", "name: 5", "name", "expected text"),
        ("base: models/base", "base: ''", "models.base", "must not be empty"),
        ("base: models/base", "'': models/base, base: x", "models.", "the key must not be empty"),
        ("merge_method: ties", "merge_method: tise", "pipeline.0.merge.merge_method", "did you mean 'ties'"),
        ("      base_model: base\n", "", "pipeline.0.merge.merge_method", "base_model"),
        ("models: {base", "modles: {}\nmodels: {base", "modles", "did you mean 'models'"),
    ],
)
def test_single_mistakes(old: str, new: str, path: str, words: str) -> None:
    problem = only_problem(MERGE.replace(old, new, 1))
    assert problem.path == path
    assert words in problem.message


def test_unused_output_and_taken_names() -> None:
    second = MERGE.partition("pipeline:\n")[2]
    text = MERGE + second
    problem = only_problem(text)
    assert (problem.where, problem.path) == ("c.yaml:4:5", "pipeline.0.merge")
    assert "nobody uses the output" in problem.message
    named = MERGE.replace("- merge:\n", "- merge:\n      name: one\n") + second.replace(
        "- model: math", "- model: one"
    )
    assert [kind for kind, _ in load_text(named, "c.yaml").stages] == ["merge", "merge"]
    twice = named + second.replace("- merge:\n", "- merge:\n      name: one\n", 1)
    assert any("taken by an earlier stage" in problem.message for problem in problems(twice))
    own = named.replace("- model: math", "- model: one", 1)
    assert any("cannot read its own output" in problem.message for problem in problems(own))


def test_wrong_names_in_a_stage_that_is_wrong_otherwise_are_reported_too() -> None:
    text = MERGE.replace("weight: 1.0", "weight: abc").replace("- model: prose", "- model: prosa")
    assert [problem.path.rpartition(".")[2] for problem in problems(text)] == ["weight", "model"]


def test_defaults_and_the_name() -> None:
    loaded = load_text(MERGE, "some folder/ä b.yaml")
    assert loaded.config.name == "demo"
    assert loaded.config.search.trials == 100
    assert loaded.where("pipeline.0.merge.models.1.model") == at(
        MERGE, "model: prose", offset=7, source="some folder/ä b.yaml"
    )
    assert loaded.where(("models", "math")) == at(MERGE, "models/math", source=loaded.source)
    assert loaded.where("models.nobody").endswith(":2:9")
    assert load_text(MERGE.replace("name: demo\n", ""), "some folder/ä b.yaml").config.name == "ä b"


def test_a_file_name_that_cannot_name_a_folder_needs_a_name() -> None:
    text = MERGE.replace("name: demo\n", "")
    found = problems(text, source="-x.yaml")
    assert len(found) == 1 and "add `name: ...`" in found[0].message


def test_engine_in_short() -> None:
    assert load_text(MERGE + "engine: inline\n", "c.yaml").config.engine.kind == "inline"
    assert load_text(MERGE + "engine: {kind: inline, cpus: 2}\n", "c.yaml").config.engine.cpus == 2


def test_passwords_do_not_belong_in_a_config() -> None:
    def storage(url: str) -> str:
        return MERGE + f"search: {{storage: '{url}'}}\n"

    problem = only_problem(storage("postgresql://me:geheim@host/db"))
    assert "geheim" not in str(problem) and "${NAME}" in problem.message
    for option in ("?user=me&password=geheim", "?sslpassword=geheim"):
        assert "geheim" not in str(only_problem(storage(f"postgresql://host/db{option}")))
    for url in (
        "postgresql://host/db?password=${PW}",
        "postgresql://me:${PW}@host/db",
        "postgresql://me@host/db",
        "sqlite:///a:b@c.db",
        "${URL}",
    ):
        assert load_text(storage(url), "c.yaml").config.search.storage == url


# Bare mergekit files, and references by path.

MERGEKIT = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/math@v1
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1]
  - model: {folder}
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
parameters:
  normalize: true
  lambda: 1e-1
dtype: float16
"""


def test_a_bare_mergekit_file_is_a_config(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "prose"
    folder.mkdir(parents=True)
    file = tmp_path / "mergekit config.yml"
    file.write_text(MERGEKIT.replace("{folder}", str(folder)))
    loaded = load(file)
    assert loaded.config.name == "mergekit config"
    # A folder goes by its last part: no path of the machine may enter a recipe.
    assert loaded.config.models == {
        "org/base": "org/base",
        "org/math@v1": "org/math@v1",
        "prose": str(folder),
    }
    block = loaded.config.pipeline[0]["merge"]
    assert [entry["model"] for entry in block["models"]] == ["org/base", "org/math@v1", "prose"]
    assert block["parameters"] == {"normalize": True, "lambda": 0.1}
    text = file.read_text()
    assert loaded.where("pipeline.0.merge.parameters.lambda") == at(text, "1e-1", source=str(file))
    problem = loaded.problem("pipeline.0.merge.parameters.lambda", "x")
    assert str(problem) == f"{at(text, '1e-1', source=str(file))}: parameters.lambda: x"
    assert load_text(resolved_yaml(loaded), "resolved.yaml").config == loaded.config
    assert load(file, ["parameters.lambda=0.3"]).config.pipeline[0]["merge"]["parameters"]["lambda"] == 0.3


def test_a_bare_file_with_unknown_names() -> None:
    text = "merge_method: linear\nmodels:\n  - {model: nobody, parameters: {weight: 1}}\n"
    problem = only_problem(text)
    assert problem.where == at(text, "nobody")
    assert problem.path == "models.0.model"


def test_a_merge_on_the_top_level_of_a_config_is_explained() -> None:
    assert "belongs into the pipeline" in only_problem(MERGE + "merge_method: ties\n").message


def test_paths_in_a_merge_become_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/x", "b/x", "plain"):
        (tmp_path / name).mkdir(parents=True)
    text = MERGE.replace("base_model: base", "base_model: models/base")
    text = text.replace("- model: math", "- model: a/x").replace("- model: prose", "- model: ./b/x")
    loaded = load_text(text, "c.yaml")
    block = loaded.config.pipeline[0]["merge"]
    # A path that a model has already is that model.
    assert block["base_model"] == "base"
    assert [entry["model"] for entry in block["models"]] == ["x", "b-x"]
    assert loaded.config.models["x"] == "a/x" and loaded.config.models["b-x"] == "./b/x"
    folder = load_text(MERGE.replace("- model: math", "- model: plain"), "c.yaml")
    assert folder.config.models["plain"] == "plain"


# Files that cannot be read.


def fails(path: Path, words: str) -> ConfigError:
    with pytest.raises(ConfigError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_files_that_are_no_config(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere.yaml", "no such file")
    fails(tmp_path, "is a folder")
    for name, content, words in [
        ("empty", b"", "empty"),
        ("comment", b"# nothing\n", "empty"),
        ("list", b"- 1\n", "expected a mapping"),
        ("text", b"hello\n", "expected a mapping"),
        ("utf16", "a: 1".encode("utf-16"), "UTF-8"),
        ("control", b"a: \x00\n", "not valid YAML"),
    ]:
        file = tmp_path / f"{name}.yaml"
        file.write_bytes(content)
        fails(file, words)
    latin = tmp_path / "latin 1 ü.yaml"
    latin.write_bytes("a: 1\nb: grün\n".encode("latin-1"))
    assert ":2:6: not UTF-8" in str(fails(latin, "UTF-8"))


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    file = tmp_path / "ü ñ.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MERGE.replace("\n", "\r\n").encode())
    assert load(file).config == load_text(MERGE, str(file)).config


def test_five_megabytes_end_at_once(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    line = "k{}: {{a: 1.5, b: [1, 2, 3]}}\n"
    file.write_text("".join(line.format(number) for number in range(170_000)))
    assert file.stat().st_size > 5_000_000
    start = time.monotonic()
    fails(file, "longer than")
    assert time.monotonic() - start < 2


def test_the_largest_file_with_nothing_right_takes_seconds() -> None:
    text = "".join(f"key{number}: {{a: 1.5, b: [1, 2, 3]}}\n" for number in range(MOST_BYTES // 40))
    start = time.process_time()
    found = problems(text)
    assert time.process_time() - start < 15
    assert found[-1].message.startswith("and ")
    assert len(found) <= 201


def test_long_values_do_not_flood_the_message() -> None:
    problem = only_problem(MERGE.replace("weight: 1.0", "weight: " + "x" * 100_000))
    assert len(str(problem)) < 400


def test_loading_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from evolve.config.load import load_text\n"
        "from evolve.config.dump import resolved_yaml\n"
        "from evolve.config.json_schema import json_schema\n"
        "from evolve.space.space import derive\n"
        "from evolve.space.baselines import baselines\n"
        f"loaded = load_text({MERGE!r}, 'c.yaml')\n"
        "resolved_yaml(loaded), json_schema(), derive(loaded)\n"
        "baselines(loaded, dict.fromkeys(loaded.config.models, 'sha256:0'))\n"
        "heavy = {'torch', 'optuna', 'ray', 'transformers', 'vllm', 'lm_eval', 'numpy', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_search_over_layers_is_told_from_others() -> None:
    for name, stacked in (("layer_stacking", True), ("ties", False), ("vocab_extend", False)):
        assert load(f"search_spaces/{name}.yaml").stacked is stacked
