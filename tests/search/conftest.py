"""The storages that a searcher has to work with, shared with the tests of the store."""

from tests.store.conftest import run, url

__all__ = ["run", "url"]
