"""Which arguments of lm-eval's ``evaluate`` a config may pass through."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evolve.config.schema import ScoreConfig
    from evolve.score.tasks import Problems

EVAL_ARGS = ("gen_kwargs", "fewshot_as_multiturn", "confirm_run_unsafe_code", "write_out")
_OWN_ARGS = {
    "limit": "use `items`",
    "samples": "use `items`",
    "num_fewshot": "use `num_fewshot` of the task",
    "apply_chat_template": "use score.apply_chat_template",
    "system_instruction": "use score.system_instruction",
    "batch_size": "use score.batch_size",
}


def check_arguments(config: ScoreConfig) -> Problems:
    """Return the keys of ``eval_args`` that cannot be passed through, as paths below ``score``."""
    found: Problems = []
    for key in config.eval_args:
        if key in _OWN_ARGS:
            found.append((("eval_args", key), f"cannot be passed through: {_OWN_ARGS[key]}"))
        elif key not in EVAL_ARGS:
            close = difflib.get_close_matches(key, EVAL_ARGS, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(EVAL_ARGS)}"
            found.append((("eval_args", key), f"lm-eval's evaluate has no such argument here ({mend})"))
    return found
