"""The config of a model whose layers were chosen, on configs of real architectures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from evolve.errors import CandidateError
from evolve.stages.merge import MergeStage
from evolve.stages.merge.block import MergeBlock
from evolve.weights.model import Model
from evolve.weights.reader import open_model
from tests.stages.merge.stacks import make_parent

if TYPE_CHECKING:
    from pathlib import Path


def stack(*picks: tuple[str, int, int]) -> MergeBlock:
    slices = [{"sources": [{"model": model, "layer_range": [first, end]}]} for model, first, end in picks]
    return MergeBlock.model_validate({"merge_method": "passthrough", "slices": slices})


def pair(folder: Path, kind: str, layers: tuple[int, int] = (6, 6), **config: Any) -> dict[str, Model]:
    for seed, (name, count) in enumerate(zip("ab", layers, strict=True)):
        make_parent(folder / name, kind, seed=seed, layers=count, **config)
    return {name: open_model(folder / name) for name in "ab"}


def kinds(model: Model) -> Any:
    """Ask transformers what it makes of a config."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model.config["model_type"]].from_dict(dict(model.config))


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_layer_types_follow_their_layers(tmp_path: Path, kind: str) -> None:
    models = pair(tmp_path, kind)
    block = stack(("a", 4, 6), ("b", 5, 6), ("a", 0, 2))
    assert MergeStage.check(block, models) == []
    result = MergeStage.run(block, models, seed=0)
    assert result.config["num_hidden_layers"] == 5
    own = kinds(models["a"]).layer_types
    assert kinds(result).layer_types == [own[4], own[5], own[5], own[0], own[1]]
    assert FULL in own and SLIDING in own
    # No list in the file: the rule of the architecture would give other kinds.
    silent = {
        name: Model(
            {k: v for k, v in model.config.items() if k != "layer_types"},
            model.specs,
            model.tensor,
            model.files,
        )
        for name, model in models.items()
    }
    again = MergeStage.run(block, silent, seed=0)
    assert kinds(again).layer_types == kinds(result).layer_types


def test_several_lists_at_once(tmp_path: Path) -> None:
    models = pair(tmp_path, "smollm3")
    block = stack(("a", 1, 3), ("b", 1, 4))
    result = MergeStage.run(block, models, seed=0)
    assert MergeStage.check(block, models) == []
    assert kinds(models["a"]).no_rope_layers == [1, 0] * 3
    assert kinds(result).no_rope_layers == [0, 1, 0, 1, 0]


def test_layers_of_different_kinds_cannot_be_merged(tmp_path: Path) -> None:
    models = pair(tmp_path, "gemma2")
    sources = [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [1, 3]}]
    keys = {"merge_method": "linear", "parameters": {"weight": 1}}
    block = MergeBlock.model_validate({**keys, "slices": [{"sources": sources}]})
    ((path, message),) = MergeStage.check(block, models)
    assert path == "slices"
    assert "layers of different kinds cannot be merged" in message
    assert "slices.0: layer 1 of b has layer_types full_attention" in message
    with pytest.raises(CandidateError, match="different kinds"):
        MergeStage.run(block, models, seed=0)
    sources[1]["layer_range"] = [2, 4]
    assert (
        MergeStage.check(MergeBlock.model_validate({**keys, "slices": [{"sources": sources}]}), models) == []
    )


def test_lists_that_have_nothing_to_do_with_layers_stay(tmp_path: Path) -> None:
    models = pair(tmp_path, "llama", (2, 2))
    config = {**models["a"].config, "eos_token_id": [2, 3], "architectures": ["LlamaForCausalLM"]}
    models["a"] = Model(config, models["a"].specs, models["a"].tensor, models["a"].files)
    result = MergeStage.run(stack(("a", 0, 2), ("b", 0, 1)), models, seed=0)
    assert result.config["eos_token_id"] == [2, 3]
    assert result.config["num_hidden_layers"] == 3
    assert {k: v for k, v in result.config.items() if k not in {"num_hidden_layers", "dtype"}} == {
        k: v for k, v in config.items() if k not in {"num_hidden_layers", "dtype"}
    }


def test_gpt2_names_its_depth_otherwise(tmp_path: Path) -> None:
    models = pair(tmp_path, "gpt2", (3, 2))
    result = MergeStage.run(stack(("a", 0, 3), ("b", 0, 2)), models, seed=0)
    assert result.config["n_layer"] == 5
    assert "num_hidden_layers" not in result.config


@pytest.mark.parametrize("same_places", [True, False])
def test_a_layer_whose_place_decides_what_it_computes(tmp_path: Path, same_places: bool) -> None:
    """GPT-2 may divide attention by the number of the layer: layers then only fit their own places."""
    models = pair(tmp_path, "gpt2", (3, 3))
    models = {
        name: Model({**m.config, "scale_attn_by_inverse_layer_idx": True}, m.specs, m.tensor, m.files)
        for name, m in models.items()
    }
    block = stack(("a", 0, 1), ("b", 1, 3)) if same_places else stack(("a", 0, 1), ("b", 2, 3))
    if same_places:
        assert MergeStage.check(block, models) == []
        MergeStage.run(block, models, seed=0)
        return
    (problem,) = MergeStage.check(block, models)
    assert problem[0] == "slices"
    assert "layer 2 of b cannot stand in place 1: attn.scaling would be" in problem[1]
    with pytest.raises(CandidateError, match="cannot stand in place 1"):
        MergeStage.run(block, models, seed=0)


def test_a_scale_needs_layers_that_read_through_a_norm(tmp_path: Path) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    Olmo2ForCausalLM(Olmo2Config(**shape, num_hidden_layers=2)).save_pretrained(tmp_path / "a")
    models = {"a": open_model(tmp_path / "a")}
    block = stack(("a", 0, 2), ("a", 1, 2))
    assert MergeStage.check(block, models) == []
    data = block.model_dump()
    data["slices"][1]["scale"] = {"low": 0.5, "high": 1.5}
    ((path, message),) = MergeStage.check(MergeBlock.model_validate(data), models)
    assert path == "slices.1.scale"
    assert "no scale for models of type 'olmo2'" in message
    data["slices"][1]["scale"] = 0.5
    with pytest.raises(CandidateError, match="no scale"):
        MergeStage.run(MergeBlock.model_validate(data), models, seed=0)


def test_a_list_with_a_name_of_its_own(tmp_path: Path) -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    shape = {"vocab_size": 64, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    config = GPTNeoConfig(**shape, num_layers=4, attention_types=[[["global", "local"], 2]])
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "a")
    models = {"a": open_model(tmp_path / "a")}
    block = stack(("a", 0, 3), ("a", 2, 4))
    assert MergeStage.check(block, models) == []
    result = MergeStage.run(block, models, seed=0)
    assert kinds(result).attention_layers == ["global", "local", "global", "global", "local"]


def test_a_config_that_transformers_refuses(tmp_path: Path) -> None:
    models = pair(tmp_path, "gemma2", (4, 4))
    config = {**models["b"].config, "layer_types": ["nonsense"] * 4}
    models["b"] = Model(config, models["b"].specs, models["b"].tensor, models["b"].files)
    ((path, message),) = MergeStage.check(stack(("a", 0, 2), ("b", 0, 1)), models)
    assert path == "slices"
    assert "config.json of such layers" in message and "nonsense" in message
