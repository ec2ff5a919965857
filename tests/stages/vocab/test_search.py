"""The stage in a whole search and in the commands: switched by a gene, with the restarts that this costs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from evolve.config.load import load
from evolve.space.space import derive
from evolve.stages.vocab import VocabStage
from evolve.stages.vocab.block import VocabBlock
from evolve.weights.reader import open_model
from tests.cli.kit import call
from tests.small import make_search
from tests.stages.vocab.kit import save

if TYPE_CHECKING:
    from evolve.config.values import StageBlock
    from evolve.types import Recipe

TEXTS = ["the zebra and the quagga met a zebra near the quagga river"] * 12


def stage(data: Path, **keys: Any) -> dict[str, Any]:
    found = {
        "model": "base",
        "dataset": {"path": str(data)},
        "num_new_tokens": {"choices": [4, 16]},
        "selection": {"min_frequency": 4},
        "pad_to_multiple_of": 16,
    }
    return {"vocab": {**found, **keys}}


def recipe(config: Path) -> Recipe:
    from evolve.config.files import pinned

    space = derive(pinned(load(config)))
    contents = dict.fromkeys(space.loaded.config.models, f"sha256:{0:064x}")
    return space.recipe(space.centre(), contents)


def test_a_search_over_the_switch_and_the_number(tmp_path: Path) -> None:
    """Restarts are phases of their own, and only as many as there are changes of shape."""
    from evolve.run import run
    from evolve.types import Scored

    data = save(tmp_path / "domain.jsonl", TEXTS)
    config = make_search(
        tmp_path, **{"models": {"base": str(tmp_path / "base")}, "search.trials": 8, "score.holdout.items": 0}
    )
    document = yaml.safe_load(config.read_text())
    document["models"] = {"base": str(tmp_path / "base")}
    document["pipeline"] = [
        stage(data, enabled={"choices": [False, True]}, init={"norm": {"low": 0.5, "high": 1.5}})
    ]
    config.write_text(yaml.safe_dump(document))
    folder = run(load(config), runs=tmp_path / "runs")
    outcomes = [record.outcome for record in folder.records()]
    assert outcomes and all(isinstance(outcome, Scored) for outcome in outcomes)
    restarted = ["restart" in outcome.seconds for outcome in outcomes]
    assert any(restarted) and not all(restarted)
    assert all(("restart" in outcome.seconds) != ("load" in outcome.seconds) for outcome in outcomes)


def test_recipes_of_one_effect_are_one(tmp_path: Path) -> None:
    data = save(tmp_path / "domain.jsonl", TEXTS)
    config = tmp_path / "c.yaml"

    def written(**keys: Any) -> Path:
        config.write_text(
            yaml.safe_dump({"models": {"base": str(tmp_path / "base")}, "pipeline": [stage(data, **keys)]})
        )
        return config

    same = {recipe(written(num_new_tokens=4, seed=seed)).hash for seed in (1, 2)}
    drawn = {recipe(written(num_new_tokens=4, seed=seed, init={"input": "random"})).hash for seed in (1, 2)}
    assert (len(same), len(drawn)) == (1, 2)
    contrast = {"min_frequency": 4, "contrast": str(data)}
    found = recipe(written(num_new_tokens=4, selection=contrast)).pipeline[0]["vocab"]
    assert found["selection"]["contrast"]["content"] == found["dataset"]["content"]
    off = recipe(written(num_new_tokens=4, enabled=False))
    assert off.pipeline == () or list(off.pipeline) == []


def test_build_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import make_model

    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "base", tied=False)
    save(tmp_path / "domain.jsonl", TEXTS)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"models": {"base": "base"}, "pipeline": [stage(Path("domain.jsonl"))]}))
    call("build", "c.yaml", "out", "pipeline.0.vocab.num_new_tokens=16")
    model = open_model(tmp_path / "out")
    assert model.config["vocab_size"] == 144
    assert bool(torch.isfinite(model.tensor("lm_head.weight")).all())
    call("build", "out/evolve_recipe.yaml", "twin")
    assert (tmp_path / "twin/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_new_tokens": 0}, "to add none set enabled: false"),
        ({"num_new_tokens": {"low": 8, "high": 70000, "step": 8192}}, "must be from 1 to 32768"),
        ({"selection": {"method": "pair_merge"}}, "did you mean 'pair_merges'"),
        ({"init": {"input": "subtoken"}}, "unknown initialiser"),
        ({"init": {"input": {"choices": ["random", "subtoken"]}}}, "unknown initialiser 'subtoken'"),
        ({"init": {"output": 3}}, "expected a name, or {choices: [...]}"),
        ({"init": {"norm": 0.0}}, "must be above 0"),
        ({"dataset": None}, "give `dataset: {path: FILE}`"),
        ({"selection": {"min_frequency": 0}}, "must be at least 1"),
        ({"dataset": None, "terms": "t.txt", "selection": {"min_frequency": 3}}, "chooses from a dataset"),
        ({"dataset": None, "terms": "t.txt", "init": {"input": "nearest_contexts"}}, "in a dataset"),
    ],
)
def test_what_a_block_says_of_itself(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    from evolve.errors import ConfigError

    raw = stage(tmp_path / "d.jsonl", **{"selection": {}, **keys})
    raw["vocab"] = {key: value for key, value in raw["vocab"].items() if value is not None}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"models": {"base": "b"}, "pipeline": [raw]}))
    with pytest.raises(ConfigError) as caught:
        load(config)
    assert words in str(caught.value)


def test_only_ranges_that_change_shapes_say_so() -> None:
    def block(**keys: Any) -> StageBlock:
        return VocabBlock.model_validate({"terms": "t.txt", "num_new_tokens": 8, **keys})

    assert not block(init={"norm": {"low": 0.5, "high": 1.0}}).reshapes
    assert block(num_new_tokens={"choices": [1, 2]}).reshapes
    assert block(enabled={"choices": [False, True]}).reshapes


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_takes_an_extended_model_and_the_plain_one_again(tmp_path: Path) -> None:
    from evolve.score.engines import vllm
    from tests.score.engines.oracle import Oracle, agree
    from tests.score.engines.test_vllm import SMALL, config, scores
    from tests.tiny import make_model

    model = open_model(make_model(tmp_path / "base", tied=True))
    raw = stage(save(tmp_path / "domain.jsonl", TEXTS), num_new_tokens=16)["vocab"]
    wide = VocabStage.run(VocabBlock.model_validate(raw), {"base": model}, seed=0)
    from evolve.weights.writer import write_model

    write_model(wide, tmp_path / "wide")
    engine = vllm.open_engine(config(engine_args=SMALL), model, 1)
    before, starts = scores(engine.lm), engine.starts
    engine.load(wide)
    assert engine.starts == starts + 1
    agree(scores(engine.lm), Oracle(open_model(tmp_path / "wide")).scores)
    engine.load(model)
    assert scores(engine.lm) == before
    engine.close()


def test_names_may_be_chosen_by_genes(tmp_path: Path) -> None:
    from tests.tiny import make_model

    data = save(tmp_path / "domain.jsonl", TEXTS)
    methods, rules = ["pair_merges", "savings"], ["subtoken_mean", "random"]
    raw = stage(
        data,
        num_new_tokens=4,
        selection={"method": {"choices": methods}, "min_frequency": 4},
        init={"input": {"choices": rules}},
    )
    config = tmp_path / "c.yaml"
    models = {"base": str(make_model(tmp_path / "base"))}
    config.write_text(yaml.safe_dump({"models": models, "pipeline": [raw]}))
    from evolve.config.files import pinned
    from evolve.stages.pipeline import build

    space = derive(pinned(load(config)))
    assert [gene.choices for gene in space.genes] == [tuple(methods), tuple(rules)]
    base = open_model(tmp_path / "base")
    found = {}
    for place in itertools.product((0.0, 1.0), repeat=2):
        values = {gene.name: one for gene, one in zip(space.genes, place, strict=True)}
        made = space.recipe(values, {"base": base.content or f"sha256:{0:064x}"})
        block = made.pipeline[0]["vocab"]
        method, rule = methods[int(place[0])], rules[int(place[1])]
        kept = VocabBlock.model_validate(block)
        assert (kept.selection.method, kept.init.input) == (method, rule)
        assert ("seed" in block) == (rule == "random"), "only what is drawn has a seed"
        fixed = {**raw["vocab"], "selection": {"method": method, "min_frequency": 4}, "init": {"input": rule}}
        alone = VocabStage.run(VocabBlock.model_validate(fixed), {"base": base}, seed=0)
        name = "model.embed_tokens.weight"
        found[place] = build(made, {"base": base}).tensor(name)
        assert torch.equal(found[place], alone.tensor(name))
    assert not torch.equal(found[0.0, 0.0], found[0.0, 1.0])


def test_every_way_to_choose_must_give_enough(tmp_path: Path) -> None:
    """The genes may ask for any of them, so the one that gives fewest is named before the search."""
    from evolve.stages.pipeline import check
    from tests.tiny import make_model

    data = save(tmp_path / "domain.jsonl", TEXTS)
    base = open_model(make_model(tmp_path / "base"))

    def problems(method: Any, count: int) -> list[tuple[str, str]]:
        keys = {"selection": {"method": method, "min_frequency": 4}, "num_new_tokens": count}
        return check([("vocab", VocabBlock.model_validate(stage(data, **keys)["vocab"]))], {"base": base})

    methods = ("pair_merges", "continued_bpe", "savings")
    most = {one: next(n for n in range(1, 200) if problems(one, n)) - 1 for one in methods}
    fewest, widest = min(most, key=lambda one: most[one]), max(most.values())
    assert most[fewest] < widest, "they differ"
    assert problems({"choices": list(methods)}, most[fewest]) == []
    ((path, message),) = problems({"choices": list(methods)}, widest)
    assert path == "pipeline.0.vocab.num_new_tokens" and f"{most[fewest]} tokens ({fewest})" in message


@pytest.mark.slow
def test_what_a_search_over_vocab_and_cpt_exports_loads_in_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evolve.run import run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = save(tmp_path / "domain.jsonl", TEXTS)
    cpt = {
        "model": "wide",
        "dataset": {"path": str(data), "max_length": 32},
        "phases": [{"until": 0.5, "train": "new_embeddings"}, {"until": 1.0}],
        "training_args": {"learning_rate": {"choices": [1e-3, 3e-3]}, "per_device_train_batch_size": 4},
    }
    changes = {"search.trials": 2, "search.sampler": "random", "score.holdout.items": 0}
    config = make_search(tmp_path, **changes)
    document = yaml.safe_load(config.read_text())
    document["models"] = {"base": str(tmp_path / "base")}
    document["pipeline"] = [stage(data, num_new_tokens=16, name="wide"), {"cpt": cpt}]
    config.write_text(yaml.safe_dump(document))
    run(load(config), runs=tmp_path / "runs")
    call("export", "small", "--runs", tmp_path / "runs", "--to", "model", "--out", tmp_path / "m")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert len(tokenizer) == 144 == network.get_input_embeddings().weight.shape[0]
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    old = AutoTokenizer.from_pretrained(tmp_path / "base")(TEXTS[0]).input_ids
    assert int(ids.max()) >= 128 and ids.shape[1] < len(old), "new tokens are used"
    assert tokenizer.decode(ids[0]) == TEXTS[0]
    with torch.no_grad():
        assert network(ids).logits.isfinite().all()
    call("export", "small", "--runs", tmp_path / "runs", "--out", tmp_path / "recipe.yaml")
    call("build", tmp_path / "recipe.yaml", tmp_path / "twin")
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "twin")]
    assert written[0] == written[1], "built again from its recipe"
