from evolve.export.card import card
from evolve.export.licence import front_matter, licence_of
from evolve.types import Parent, Recipe


def folder(tmp_path, name, readme=None, **files):
    path = tmp_path / name
    path.mkdir()
    if readme is not None:
        (path / "README.md").write_text(readme)
    for file, text in files.items():
        (path / file).write_text(text)
    return path


def test_licence_of_a_card_goes_before_the_file(tmp_path):
    both = folder(tmp_path, "a", "---\nlicense: apache-2.0\n---\n# x\n", LICENSE="\n  MIT License\n\ntext")
    assert licence_of(both) == "apache-2.0"
    assert licence_of(folder(tmp_path, "b", "---\nlicense: [mit, 'cc-by-4.0']\n---\n")) == "mit, cc-by-4.0"
    assert licence_of(
        folder(tmp_path, "c", "# no front matter\n---\nlicense: mit\n---\n", LICENSE="\n# MIT License\n")
    ) == ("MIT License (file LICENSE)")


def test_silence_is_no_permission(tmp_path):
    assert licence_of(tmp_path / "nowhere") == "not stated"
    assert licence_of(folder(tmp_path, "d", "---\nlicense:\n---\n")) == "not stated"
    assert licence_of(folder(tmp_path, "e", "---\n[: broken\n---\n")) == "not stated"
    assert licence_of(folder(tmp_path, "f", "---\n- a list\n---\n")) == "not stated"


def test_licences_of_base_and_adapter(tmp_path):
    base = folder(tmp_path, "base+x", "---\nlicense: apache-2.0\n---\n")
    adapter = folder(tmp_path, "adapter", "---\nlicense: cc-by-nc-4.0\n---\n")
    silent = folder(tmp_path, "silent")
    assert licence_of(f"{base}+{adapter}") == "apache-2.0, cc-by-nc-4.0"
    assert licence_of(f"{base}+{base}") == "apache-2.0"
    assert licence_of(f"{base}+{silent}") == "not stated"


def test_card_names_base_and_adapter(tmp_path):
    known = {
        "a": Parent("a", "org/base@main+org/lora", "/x+/y", "f00+ba5", "sha256:1"),
        "b": Parent("b", "models/b+adapters/my lora", "/x/b+/x/my lora", None, "sha256:2"),
        "c": Parent("c", "org/base/q4/x.gguf", "/cache/9", "f00", "sha256:3"),
    }
    (tmp_path / "README.md").write_text(card(recipe(known), known, name="x", recipe_text=""))
    found = front_matter(tmp_path / "README.md")
    assert found["base_model"] == ["org/base", "org/lora", "b", "my-lora"]
    assert "`org/base@f00+org/lora@ba5`" in (tmp_path / "README.md").read_text()


def parents(tmp_path, *licences):
    found = {}
    for index, licence in enumerate(licences):
        readme = f"---\nlicense: {licence}\n---\n" if licence else None
        path = folder(tmp_path, f"expert {index} ü", readme)
        found[f"m{index}"] = Parent(
            f"m{index}", f"models/expert {index} ü", str(path), None, f"sha256:{index}"
        )
    return found


def recipe(known):
    block = {"merge_method": "linear", "models": [{"model": name} for name in known], "seed": 7}
    return Recipe.make({name: parent.content for name, parent in known.items()}, [{"merge": block}])


def test_card_says_what_it_is_made_of(tmp_path):
    known = parents(tmp_path, "mit", "apache-2.0")
    scores = (["model", "search"], [["best", "0.5000 [0.4, 0.6]"], ["a | b", "0.3\n0.4"]])
    text = card(
        recipe(known), known, name="a\ntitle", recipe_text="pipeline: []\n", scores=scores, notes=["A note."]
    )
    assert "# a title\n" in text
    assert "| best | 0.5000 [0.4, 0.6] |" in text
    assert "| a \\| b | 0.3 0.4 |" in text
    assert "Seeds: merge 7." in text
    assert "evolve build evolve_recipe.yaml OUT" in text
    assert "pipeline: []" in text
    assert "different licences" in text
    assert "`sha256:1`" in text
    (tmp_path / "README.md").write_text(text)
    found = front_matter(tmp_path / "README.md")
    assert found["base_model"] == ["expert-0", "expert-1"], "no path: the hub would refuse the card"
    assert found["base_model_relation"] == "merge"
    assert "license" not in found


def test_one_licence_of_all_parents_becomes_the_model_s(tmp_path):
    known = parents(tmp_path, "mit", "mit")
    text = card(recipe(known), known, name="x", recipe_text="")
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path / "README.md")["license"] == "mit"
    assert "## Scores" not in text


def test_an_unknown_licence_is_named(tmp_path):
    known = parents(tmp_path, "mit", "")
    text = card(recipe(known), known, name="x", recipe_text="")
    assert "The licence of m1 is not stated" in text
    (tmp_path / "README.md").write_text(text)
    assert "license" not in front_matter(tmp_path / "README.md")


def test_hub_ids_are_the_base_models(tmp_path):
    known = {"m": Parent("m", "org/a@main", str(tmp_path), "f00", "sha256:0")}
    (tmp_path / "README.md").write_text(card(recipe(known), known, name="x", recipe_text=""))
    assert front_matter(tmp_path / "README.md")["base_model"] == ["org/a"]
