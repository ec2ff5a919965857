"""Silence for one kind of warning: Optuna's, about an experimental argument that we chose on purpose."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Ignore Optuna's ``ExperimentalWarning`` inside the block."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
