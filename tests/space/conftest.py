from __future__ import annotations

import pytest

from tests.space.stub import add_stub

stub_stage = pytest.fixture(add_stub)
