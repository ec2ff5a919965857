"""The demo's data are honest, and its folders are whole or absent."""

from __future__ import annotations

import json
import random

import pytest

from tests.scripts.loading import load_script

demo = load_script("demo_models")


@pytest.fixture(scope="module")
def world():
    return demo.World(3)


def _questions(world):
    return {field: list(world.items(field)) for field in demo.FIELDS}


def test_training_never_states_a_fact_in_the_words_of_a_question(world):
    asked = {one["question"] for items in _questions(world).values() for one in items}
    draw = random.Random(0)
    stated = {world.sentence(draw, field)[0] for field in demo.FIELDS for _ in range(20_000)}
    # 360 facts a field in 4 of 6 wordings; 20,000 draws miss almost none.
    assert len(stated) > 0.99 * 3 * 360 * 4
    assert not asked & stated


def test_every_question_is_asked_once_and_has_the_trained_fact_as_its_answer(world):
    draw = random.Random(1)
    for field, items in _questions(world).items():
        assert len(items) >= 700
        assert len({one["question"] for one in items}) == len(items)
        stated = {world.sentence(draw, field) for _ in range(5_000)}
        known: dict[str, set[str]] = {}
        for prompt, answer in stated:
            for name in world.names[field]:
                if name in prompt.split():
                    known.setdefault(name, set()).add(answer.strip())
        for one in items:
            assert len(set(one["choices"])) == 4
            (name,) = set(world.names[field]) & set(one["question"].split())
            assert one["choices"][one["answer"]] in known[name]


def test_the_place_of_the_answer_tells_nothing(world):
    for items in _questions(world).values():
        places = [one["answer"] for one in items]
        assert all(0.18 < places.count(place) / len(places) < 0.32 for place in range(4))


def test_another_seed_is_another_world_and_the_same_seed_the_same():
    assert _questions(demo.World(1)) == _questions(demo.World(1))
    assert _questions(demo.World(1)) != _questions(demo.World(2))


def test_a_prompt_tokenises_alone_as_it_does_before_its_answer(world):
    # lm-eval cuts the continuation off by the length of the prompt's tokens.
    tokenizer = demo.make_tokenizer(world, 3)
    for items in _questions(world).values():
        for one in items[::20]:
            prompt = tokenizer(one["question"])["input_ids"]
            for choice in one["choices"]:
                whole = tokenizer(f"{one['question']} {choice}")["input_ids"]
                assert whole[: len(prompt)] == prompt
                assert tokenizer.decode(whole) == f"{one['question']} {choice}"


def test_only_answers_are_learned_where_only_answers_shall_be(world):
    tokenizer = demo.make_tokenizer(world, 3)
    sentences = [world.sentence(random.Random(5), field) for field in demo.FIELDS]
    _, labels = demo._batch(tokenizer, sentences, answers_only=True)
    for row, (_, answer) in zip(labels.tolist(), sentences, strict=True):
        assert tokenizer.decode([token for token in row if token != -100]) == answer + demo.END


def test_a_second_run_repeats_nothing_and_an_aborted_folder_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "BASE_STEPS", 2)
    monkeypatch.setattr(demo, "EXPERT_STEPS", 2)
    monkeypatch.setattr(demo, "THREADS", 1)
    (tmp_path / ".towns.partial").mkdir()
    (tmp_path / ".towns.partial" / "rubbish").touch()
    demo.make(tmp_path, 0)
    weights = {path: path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}
    assert len(weights) == 4 and len(set(weights.values())) == 4
    assert not (tmp_path / "towns" / "rubbish").exists()
    assert not list(tmp_path.glob(".*"))
    capsys.readouterr()
    demo.make(tmp_path, 0)
    assert "there already" in capsys.readouterr().out

    (tmp_path / "towns" / "model.safetensors").unlink()
    (tmp_path / "towns").rename(tmp_path / "elsewhere")
    demo.make(tmp_path, 0)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/model.safetensors")} == weights

    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    # vLLM's CPU attention fails with smaller heads.
    assert config["head_dim"] in (32, 64)
