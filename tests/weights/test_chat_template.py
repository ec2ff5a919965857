"""Each named format against a conversation written out by hand, rendered by transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from transformers import AutoTokenizer

from evolve.errors import ModelError
from evolve.weights.chat_template import NAMED, flaw, named, plurality, templates, with_templates
from evolve.weights.files import SideFiles, read_side_files, with_changes
from tests.tiny import make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

CHAT = [
    {"role": "user", "content": " Hi! "},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}

ALPACA = """\
<s>Be brief.

### Instruction:
Hi!

### Response:
Hello.</s>

### Instruction:
Bye?

### Response:
"""
ALPACA_ALONE = ALPACA.replace(
    "Be brief.",
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
)
CHATML = """\
<|im_start|>system
Be brief.<|im_end|>
<|im_start|>user
 Hi! <|im_end|>
<|im_start|>assistant
Hello.<|im_end|>
<|im_start|>user
Bye?<|im_end|>
<|im_start|>assistant
"""
LLAMA3 = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
MISTRAL = "<s>[INST] Be brief.\n\n Hi!  [/INST] Hello.</s>[INST] Bye? [/INST]"
EXAONE = (
    "[|system|]Be brief.[|endofturn|]\n[|user|] Hi! \n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye?\n"
    "[|assistant|]"
)

# Name: with a system turn, without one, and what the generation prompt adds.
EXPECTED = {
    "alpaca": (ALPACA, ALPACA_ALONE, "### Response:\n"),
    "chatml": (CHATML, CHATML.split("Be brief.<|im_end|>\n")[1], "<|im_start|>assistant\n"),
    "llama3": (
        LLAMA3,
        "<s>" + LLAMA3.split("Be brief.<|eot_id|>")[1],
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": (MISTRAL, MISTRAL.replace("Be brief.\n\n", ""), ""),
    "exaone": (EXAONE, EXAONE.replace("Be brief.", ""), "[|assistant|]"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def load(files: Path | SideFiles, target: Path):
    """Write side files and load them with transformers."""
    target.mkdir()
    for name, content in read_side_files(files).items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(target)


def test_every_name_is_tested() -> None:
    assert NAMED.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation(name: str, folder: Path, tmp_path: Path) -> None:
    tokenizer = load(with_changes(folder, with_templates(folder, named(name))), tmp_path / "made")
    whole, alone, prompt = EXPECTED[name]
    for chat, text in (([SYSTEM, *CHAT], whole), (CHAT, alone)):
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == text
        assert tokenizer.apply_chat_template(chat, tokenize=False) == text.removesuffix(prompt)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_whether_or_not_the_lines_of_blocks_are_trimmed(name: str) -> None:
    from jinja2 import Environment

    found = {
        Environment(trim_blocks=trim, lstrip_blocks=trim)
        .from_string(NAMED[name])
        .render(messages=CHAT, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        for trim in (True, False)
    }
    assert found == {EXPECTED[name][1]}


def test_a_tokenizer_without_special_tokens(tmp_path: Path) -> None:
    """Then the names of its tokens are undefined, which must not show."""
    from jinja2 import Environment

    for template in NAMED.values():
        text = Environment().from_string(template).render(messages=CHAT, add_generation_prompt=True)
        assert "None" not in text
        assert "Hello." in text


def test_templates_are_read_as_transformers_reads_them(folder: Path, tmp_path: Path) -> None:
    assert templates(folder) == {}
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": "{{ 1 }}"}))
    assert templates(folder) == {"default": AutoTokenizer.from_pretrained(folder).chat_template}
    listed = [{"name": "default", "template": "{{ 2 }}"}, {"name": "tool_use", "template": "{{ 3 }}"}]
    path.write_text(json.dumps({**config, "chat_template": listed}))
    assert templates(folder) == AutoTokenizer.from_pretrained(folder).chat_template
    (folder / "chat_template.jinja").write_text("{{ 4 }}")
    assert (
        templates(folder)
        == {"default": "{{ 4 }}"}
        == {"default": AutoTokenizer.from_pretrained(folder).chat_template}
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 5 }}")
    assert templates(folder) == AutoTokenizer.from_pretrained(folder).chat_template
    assert templates(folder) == {"default": "{{ 4 }}", "rag": "{{ 5 }}"}
    # The chosen one goes where it is found first, and nothing else is left.
    changed = with_changes(folder, with_templates(folder, {"default": "{{ 'ä' }}"}))
    assert templates(changed) == {"default": "{{ 'ä' }}"}
    assert load(changed, tmp_path / "made").chat_template == "{{ 'ä' }}"
    assert "chat_template" not in json.loads(read_side_files(changed)["tokenizer_config.json"])
    # Several at once, and none to change.
    several = {"default": "{{ 6 }}", "rag": "{{ 7 }}"}
    changed = with_changes(folder, with_templates(folder, several))
    assert load(changed, tmp_path / "several").chat_template == several
    assert with_templates(changed, several) == {}


def test_a_damaged_list_of_templates(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": ["x"]}))
    with pytest.raises(ModelError, match="no list of names and templates"):
        templates(folder)


@pytest.mark.parametrize(
    ("given", "base", "expected"),
    [
        ("ABB", None, "B"),
        ("ABB", "m0", "B"),
        ("AB", None, "A"),
        ("AB", "m1", "B"),
        ("ABBA", None, "A"),
        ("ABBA", "m2", "B"),
        # The base's own has one voice only; of the others the first goes before.
        ("CBAAB", "m0", "B"),
        ("-B-", None, "B"),
        ("--", "m0", None),
        ("-A", "m0", "A"),
    ],
)
def test_the_plurality(given: str, base: str | None, expected: str | None) -> None:
    models = [(f"m{i}", {} if text == "-" else {"default": text}) for i, text in enumerate(given)]
    assert plurality(models, base) == ({} if expected is None else {"default": expected})


def test_the_winner_brings_its_other_templates() -> None:
    models = [("a", {"default": "A"}), ("b", {"default": "B", "rag": "R"}), ("c", {"default": "B"})]
    assert plurality(models, None) == {"default": "B", "rag": "R"}
    assert plurality(models, "c") == {"default": "B"}
    assert plurality([("a", {"rag": "R"})], None) == {}


def test_flaws() -> None:
    assert all(flaw(template) == "" for template in NAMED.values())
    # What only transformers' own environment knows, and what a conversation would stumble over when it runs.
    assert flaw("{% generation %}{{ messages[0].content }}{% endgeneration %}{% break %}") != ""
    assert (
        flaw("{% for m in messages %}{% generation %}{{ m }}{% endgeneration %}{% break %}{% endfor %}") == ""
    )
    assert flaw("{{ raise_exception('no') }}") == ""
    assert "outside loop" in flaw("{% break %}")
    assert flaw("a\n{% for x %}").startswith("line 2: ")
    assert "nofilter" in flaw("{{ x | nofilter }}")
    assert flaw("{{ " + "(" * 5000 + ")" * 5000 + " }}") != ""
