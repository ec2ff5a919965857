from __future__ import annotations

import pytest

from tests.tiny import make_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("llama"))
