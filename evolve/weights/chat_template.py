"""Chat templates of a model: read from its side files, chosen among several models, and written.

The named templates are written after the public descriptions of their formats. Each stands in one line, so
that it means the same whether or not a reader trims the lines of blocks.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from evolve.errors import ModelError
from evolve.weights.files import contents, parse_json, read_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.weights.files import Files

AUTO = "auto"
_FILE = "chat_template.jinja"
_LEGACY = "chat_template.json"
_FOLDER = "additional_chat_templates"
_CONFIG = "tokenizer_config.json"
_DEFAULT = "default"

# Taori et al. 2023, Stanford Alpaca: the prompt for instructions without input, here over several turns.
_ALPACA = (
    "{{ bos_token }}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
    "{% else %}{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.' }}{% endif %}{{ '\\n\\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' ~ (message['content'] | trim) ~ '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' ~ (message['content'] | trim) ~ eos_token ~ '\\n\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

# OpenAI's ChatML: every turn between <|im_start|>, with the role in its first line, and <|im_end|>.
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Meta's prompt format of Llama 3: headers around the role, an empty line, the trimmed text, <|eot_id|>.
_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}"
    "{{ (message['content'] | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# Mistral's instruct format: <s>[INST] Instruction [/INST] Answer</s>[INST] Next instruction [/INST].
# It has no system turn: that text goes before the next instruction.
_MISTRAL = (
    "{{ bos_token }}{% set pending = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set pending.text = message['content'] ~ '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' ~ pending.text ~ message['content'] ~ ' [/INST]' }}{% set pending.text = '' %}"
    "{% else %}{{ ' ' ~ message['content'] ~ eos_token }}"
    "{% endif %}{% endfor %}"
)

# LG AI Research's format of EXAONE 3: a user's turn ends with a line break, any other with [|endofturn|]; a
# conversation without a system turn starts with an empty one.
_EXAONE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    "{{ '[|' ~ message['role'] ~ '|]' ~ message['content'] }}"
    "{% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)

NAMED: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "exaone": _EXAONE,
}
"""Name to Jinja template."""


def is_jinja(text: str) -> bool:
    """Whether a text is meant to be a template, and not the name of one."""
    return "{{" in text or "{%" in text


def flaw(template: str) -> str:
    """Return why transformers cannot compile a template, or an empty text."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        # Without conversations it is compiled, in the environment of apply_chat_template, and not run.
        render_jinja_template(conversations=[], chat_template=template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    # Jinja makes Python of it, whose compiler has errors of its own: a break outside of a loop, deep nesting.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def templates(files: Files) -> dict[str, str]:
    """Return name to template of a model, ``default`` first, as transformers reads them; {} without any.

    Raises:
        ModelError: tokenizer_config.json is damaged.
    """
    found = contents(files)
    result: dict[str, str] = {}
    if _FILE in found:
        result[_DEFAULT] = _text(found[_FILE])
    for name, content in found.items():
        path = PurePosixPath(name)
        if path.parent.name == _FOLDER:
            result[path.stem] = _text(content)
    # Files of their own go before what the config holds.
    return result or _from_config(_config(files))


def plurality(models: Iterable[tuple[str, Mapping[str, str]]], base: str | None) -> dict[str, str]:
    """Return the templates of the model whose default most of the models share; {} where none has one.

    Args:
        models: Name and templates of each model, in the order of the config.
        base: Of equally many, its template is taken, else the first in the order of the config.
    """
    listed = [(name, dict(found)) for name, found in models if _DEFAULT in found]
    count = Counter(found[_DEFAULT] for _, found in listed)
    most = max(count.values(), default=0)
    leading = [(name, found) for name, found in listed if count[found[_DEFAULT]] == most]
    leading.sort(key=lambda entry: entry[0] != base)
    return leading[0][1] if leading else {}


def with_templates(files: Files, chosen: Mapping[str, str]) -> dict[str, bytes | None]:
    """Return the changes that give side files the templates ``chosen`` and no others.

    They go where transformers 5 writes them: into files of their own, not into tokenizer_config.json.
    """
    if templates(files) == dict(chosen):
        return {}
    changes: dict[str, bytes | None] = {
        name: None
        for name in contents(files)
        if name in (_FILE, _LEGACY) or PurePosixPath(name).parent.name == _FOLDER
    }
    for name, text in chosen.items():
        changes[_FILE if name == _DEFAULT else f"{_FOLDER}/{name}.jinja"] = text.encode()
    config = _config(files)
    if config.pop("chat_template", None) is not None:
        changes[_CONFIG] = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    return changes


def named(text: str) -> dict[str, str]:
    """Return the templates for the name of one, or for a template itself."""
    return {_DEFAULT: NAMED.get(text, text)}


def _config(files: Files) -> dict[str, Any]:
    content = contents(files).get(_CONFIG)
    if content is None:
        return {}
    return parse_json(read_content(content), _CONFIG if isinstance(content, bytes) else content)


def _from_config(config: Mapping[str, Any]) -> dict[str, str]:
    stated = config.get("chat_template")
    if isinstance(stated, str):
        return {_DEFAULT: stated}
    if isinstance(stated, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in stated}
        except (KeyError, TypeError) as error:
            raise ModelError(f"{_CONFIG}: chat_template is no list of names and templates") from error
    return {str(name): str(text) for name, text in stated.items()} if isinstance(stated, dict) else {}


def _text(content: Any) -> str:
    return read_content(content).decode("utf-8")
