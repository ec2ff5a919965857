import hashlib

import pytest
import yaml

from evolve.cli.options import load_run_config
from evolve.config.files import pinned
from evolve.config.load import load, load_text
from evolve.errors import UserError
from evolve.export.mergekit import mergekit_document, mergekit_yaml
from evolve.export.model import About, export_model
from evolve.export.recipe import recipe_yaml, source_of
from evolve.report.collect import collect
from evolve.space.space import derive, derive_recipe
from evolve.stages.distill.block import DistillBlock
from evolve.store.rundir import RunDir
from evolve.types import Parent, Recipe, Training
from evolve.weights.content import content_of
from evolve.weights.files import RECIPE
from evolve.weights.writer import Target
from tests.generate.server import serving
from tests.tiny import make_model


@pytest.fixture(scope="module")
def material(made):
    run = RunDir.open(made[1] / "small")
    return collect(run, load_run_config(run))


def contents(material):
    return {name: parent.content for name, parent in material.parents.items()}


def test_an_exported_recipe_is_the_same_recipe(material):
    """The file loads as a config without ranges whose recipe has the hash of the trial."""
    for trial in material.trials:
        text = recipe_yaml(trial.recipe, material.parents, name="x", score=material.loaded.config.score)
        loaded = load_text(text, "best.yaml")
        assert derive_recipe(loaded).recipe({}, contents(material)).hash == trial.recipe.hash


def test_the_average_round_trips_and_leaves_the_base_out(material):
    recipe = material.baselines["average"]
    loaded = load_text(recipe_yaml(recipe, material.parents), "average.yaml")
    assert derive_recipe(loaded).recipe({}, contents(material)).hash == recipe.hash
    assert "base" not in loaded.config.models


def test_a_parent_alone_becomes_a_config_that_builds(material):
    loaded = load_text(recipe_yaml(material.baselines["one"], material.parents), "one.yaml")
    assert list(loaded.config.models) == ["one"]
    assert derive(loaded).genes == ()


def test_a_stage_that_is_off_is_not_exported(made, tmp_path):
    config = yaml.safe_load(made[0].read_text())
    config["pipeline"][0]["merge"]["enabled"] = {"choices": [False, True]}
    file = tmp_path / "switch.yaml"
    file.write_text(yaml.safe_dump(config))
    space = derive(load(file))
    (switch,) = [gene.name for gene in space.genes if gene.choices == (False, True)]
    parents = {
        name: Parent(name, source, source, None, f"sha256:{name}")
        for name, source in config["models"].items()
    }
    hashes = {name: parent.content for name, parent in parents.items()}
    recipe = space.recipe({**space.centre(), switch: 0.0}, hashes)
    assert recipe.pipeline == []
    loaded = load_text(recipe_yaml(recipe, parents), "off.yaml")
    assert list(loaded.config.models) == list(recipe.models)


def test_the_comment_cannot_be_left(material):
    text = recipe_yaml(material.trials[0].recipe, material.parents, notes=["a\nmodels: {evil: x}", "b"])
    assert "evil" not in yaml.safe_load(text)["models"]
    assert f"recipe {material.trials[0].recipe.hash}" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("source", "revision", "expected"),
    [
        ("org/model", "abc", "org/model@abc"),
        ("org/model@main", "abc", "org/model@abc"),
        ("org/model@main+org/lora", "abc+def", "org/model@abc+org/lora@def"),
        ("org/model@main+mine/lora", "abc+", "org/model@abc+mine/lora"),
        ("mine/model+org/lora@v1+mine/x", "+def+", "mine/model+org/lora@def+mine/x"),
        ("org/model/q4/file.gguf@main", "abc", "org/model/q4/file.gguf@abc"),
        ("models/a@b+c", None, "models/a@b+c"),
    ],
)
def test_sources_have_their_revision(source, revision, expected):
    path = "+".join("/x" for _ in (revision or "").split("+"))
    assert source_of(Parent("m", source, path, revision)) == expected


def merge_recipe(**block):
    models = [
        {"model": "a", "parameters": {"weight": [0.25, 0.5]}},
        {"model": "b", "parameters": {"weight": 1.0}},
    ]
    stage = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": models,
        "seed": 3,
        "name": "out",
        **block,
    }
    return Recipe.make({"a": "sha256:1", "b": "sha256:2", "base": "sha256:3"}, [{"merge": stage}])


PARENTS = {
    "a": Parent("a", "org/a@main", "/cache/a", "f00"),
    "b": Parent("b", "models/b+c@d", "/somewhere/b"),
    "base": Parent("base", "models/base", "/somewhere/base"),
}


def test_mergekit_document():
    found = mergekit_document(merge_recipe(tokenizer_source="a"), PARENTS)
    assert found == {
        "merge_method": "task_arithmetic",
        "base_model": "models/base",
        "models": [
            {"model": "org/a@f00", "parameters": {"weight": [0.25, 0.5]}},
            {"model": {"model": {"path": "models/b+c@d"}}, "parameters": {"weight": 1.0}},
        ],
        "tokenizer_source": "org/a@f00",
    }


def test_mergekit_document_with_adapters():
    places = {
        "a": Parent("a", "org/a@main+org/lora", "/cache/a+/cache/lora", "f00+ba5"),
        "b": Parent("b", "models/b@c+adapters/d", "/somewhere/b+/somewhere/d"),
        "base": Parent("base", "models/base+adapters/d", "/somewhere/base+/somewhere/d"),
    }
    found = mergekit_document(merge_recipe(), places)
    assert found["base_model"] == "models/base+adapters/d"
    assert found["models"][0]["model"] == "org/a@f00+org/lora@ba5"
    lora = {"model": {"path": "models/b@c"}, "lora": {"path": "adapters/d"}}
    assert found["models"][1]["model"] == lora
    assert "--lora-merge-cache" in mergekit_yaml(merge_recipe(), places)
    assert "--lora-merge-cache" not in mergekit_yaml(merge_recipe(), PARENTS)
    two = {**places, "a": Parent("a", "a+b+c", "/a+/b+/c")}
    with pytest.raises(UserError, match=r"'a' has 2 adapters, mergekit takes one: .*--to recipe"):
        mergekit_document(merge_recipe(), two)
    for source in ("org/x/y.gguf@main", "models/y.GGUF", "models/y.gguf+adapters/d"):
        gguf = {**places, "a": Parent("a", source, "/y+/d" if "+" in source else "/y")}
        with pytest.raises(UserError, match="'a' is a GGUF file"):
            mergekit_document(merge_recipe(), gguf)


def test_mergekit_s_own_word_for_the_base_s_tokenizer_stays():
    assert mergekit_document(merge_recipe(tokenizer_source="base"), PARENTS)["tokenizer_source"] == "base"


def test_the_models_of_a_mergekit_tokenizer():
    tokens = {
        "<x>": {"source": "a", "force": True},
        "model": {"source": {"kind": "model_token", "model": "b", "token": "a"}},
        "a": {"source": {"kind": "zero"}},
    }
    tokenizer = {"source": "b", "tokens": tokens, "pad_to_multiple_of": 8}
    found = mergekit_document(merge_recipe(tokenizer=tokenizer, chat_template="auto"), PARENTS)
    b = {"model": {"path": "models/b+c@d"}}
    assert found["tokenizer"] == {
        "source": b,
        "tokens": {
            "<x>": {"source": "org/a@f00", "force": True},
            "model": {"source": {"kind": "model_token", "model": b, "token": "a"}},
            "a": {"source": {"kind": "zero"}},
        },
        "pad_to_multiple_of": 8,
    }
    assert found["chat_template"] == "auto"
    for word in ("base", "union"):
        assert mergekit_document(merge_recipe(tokenizer={"source": word}), PARENTS)["tokenizer"] == {
            "source": word
        }
    assert mergekit_document(merge_recipe(tokenizer={}), PARENTS)["tokenizer"] == {}
    assert "special token ids" in mergekit_yaml(merge_recipe(tokenizer={}), PARENTS)


def test_mergekit_gets_the_text_of_a_named_template():
    found = mergekit_document(merge_recipe(chat_template="chatml"), PARENTS)["chat_template"]
    assert found.startswith("{%")
    assert "<|im_start|>" in found


def test_mergekit_refuses_what_it_cannot_hold():
    recipe = merge_recipe()
    two = Recipe.make(recipe.models, [*recipe.pipeline, {"merge": {"merge_method": "linear"}}])
    with pytest.raises(UserError, match=r"2 stages \(merge, merge\).*--to recipe"):
        mergekit_document(two, PARENTS)
    other = Recipe.make({"a": "sha256:1"}, [{"cpt": {"model": "a"}}])
    with pytest.raises(UserError, match=r"1 stages \(cpt\)"):
        mergekit_document(other, PARENTS)


def test_random_methods_say_that_mergekit_draws_anew(material):
    assert "drops weights at random" in mergekit_yaml(material.trials[0].recipe, material.parents)
    assert "drops weights at random" not in mergekit_yaml(merge_recipe(), PARENTS)
    assert "relative to the working directory" in mergekit_yaml(merge_recipe(), PARENTS)


def test_nuslerp_says_that_mergekit_takes_columns_for_rows():
    stage = merge_recipe().pipeline[0]["merge"]
    for parameters, warned in (({"nuslerp_flatten": False, "nuslerp_row_wise": True}, True), ({}, False)):
        nuslerp = {**stage, "merge_method": "nuslerp", "parameters": parameters}
        text = mergekit_yaml(Recipe.make(merge_recipe().models, [{"merge": nuslerp}]), PARENTS)
        assert ("columns" in text) == warned


def test_a_bare_mergekit_file_builds_what_was_exported(material):
    """What we write for mergekit, we read too; names of models become others, so the hash does."""
    recipe = material.baselines["average"]
    loaded = load_text(mergekit_yaml(recipe, material.parents), "mergekit.yml")
    assert derive(loaded).genes == ()
    sources = {parent.source for name, parent in material.parents.items() if name in recipe.models}
    assert set(loaded.config.models.values()) == sources
    again = loaded.stages[0][1].model_dump()
    written = recipe.pipeline[0]["merge"]
    assert [entry["parameters"] for entry in again["models"]] == [
        entry["parameters"] for entry in written["models"]
    ]


WRITTEN = f"sha256:{'a' * 64}"


def test_what_a_teacher_wrote_is_named_by_its_content():
    """Only where it is known which stage read it, and the loaded file asks for just this text."""
    block = {
        "model": "a",
        "teacher": {"kind": "api", "base_url": "http://127.0.0.1:1/v1", "model": "big"},
        "generate": {"prompts": {"path": "prompts.jsonl", "content": f"sha256:{'b' * 64}"}},
        "loss_functions": [{"function": "cross_entropy"}],
    }
    recipe = Recipe.make({"a": "sha256:1"}, [{"distill": {**block, "name": "x"}}, {"distill": block}])
    shown = [Training("x", 1, 1, 1.0, written=WRITTEN), Training("distill", 1, 1, 1.0)]
    text = recipe_yaml(recipe, PARENTS, training=shown)
    first, second = (stage["distill"] for stage in yaml.safe_load(text)["pipeline"])
    assert first["generate"].pop("content") == WRITTEN
    assert "content" not in second["generate"]
    assert [first, second] == [{**block, "name": "x"}, block]
    [_, _], plain = recipe.pipeline, yaml.safe_load(recipe_yaml(recipe, PARENTS))
    assert plain["pipeline"] == recipe.pipeline
    # Two stages of one label, one of which has shown nothing: nobody knows which.
    twins = Recipe.make({"a": "sha256:1"}, [{"distill": block}, {"distill": block}])
    alone = [Training("distill", 1, 1, 1.0, written=WRITTEN)]
    assert yaml.safe_load(recipe_yaml(twins, PARENTS, training=alone))["pipeline"] == twins.pipeline
    assert DistillBlock.model_validate({**block, "generate": {**block["generate"], "content": WRITTEN}})


def test_another_text_than_the_exported_one_is_refused_by_name(tmp_path, monkeypatch):
    """A built model says what its teacher wrote; its recipe trains on that, and on nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_model(tmp_path / "student", layers=1)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "say the hen"}\n{"prompt": "say the rat"}\n')
    parents = {"a": Parent("a", str(tmp_path / "student"), str(tmp_path / "student"))}
    answers = iter(["the red sea", "one ant", "ten", "no end"])
    with serving(reply=lambda _: next(answers)) as server:
        block = {
            "model": "a",
            "teacher": {"kind": "api", "base_url": server.url, "model": "big", "endpoint": "completions"},
            "generate": {"prompts": str(tmp_path / "prompts.jsonl")},
            "loss_functions": [{"function": "cross_entropy"}],
            "training_args": {"per_device_train_batch_size": 2},
        }
        recipe = Recipe.make({"a": content_of(parents["a"].path)}, [{"distill": block}])
        export_model(recipe, parents, Target(tmp_path / "one"), about=About("one"))
        exported = load(tmp_path / "one" / RECIPE)
        again = derive_recipe(pinned(exported)).recipe({}, recipe.models)
        told = again.pipeline[0]["distill"]["generate"]["content"]
        [rows] = (tmp_path / "cache").glob("**/generated/*.jsonl")
        assert told == f"sha256:{hashlib.sha256(rows.read_bytes()).hexdigest()}"
        export_model(again, parents, Target(tmp_path / "two"), about=About("two"))
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
        assert weights[0] == weights[1] and len(server.bodies) == 2
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        with pytest.raises(UserError, match=rf"generate.content: .* not {told}: what the teacher wrote"):
            export_model(again, parents, Target(tmp_path / "three"), about=About("three"))
    assert not (tmp_path / "three").exists()
