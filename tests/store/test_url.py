from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evolve.errors import RunError
from evolve.store.url import resolve

BASE = Path("/base/mit raum")


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///study.db", "/base/mit raum/study.db"),
        ("sqlite:///a/ü b.db", "/base/mit raum/a/ü b.db"),
        ("sqlite:////abs/study.db", "/abs/study.db"),
        ("sqlite:///${FOLDER}/study.db", "/else where/study.db"),
    ],
)
def test_sqlite_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, url: str, file: str) -> None:
    monkeypatch.setenv("FOLDER", "/else where")
    found = resolve(url, BASE)
    assert found.shown == url
    assert found.file == Path(file)
    assert found.real == f"sqlite:///{file}"


@given(st.text(st.characters(exclude_characters="\0/?", exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_any_file_name_gets_through(name: str) -> None:
    from sqlalchemy.engine import make_url

    assume(name not in (".", "..", ":memory:") and "${" not in name)
    found = resolve(f"sqlite:///{name}", Path("/base?%41"))
    assert found.file == Path("/base?%41") / name
    assert make_url(found.real).database == str(found.file)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:study.db"])
def test_a_study_in_memory_is_refused(url: str) -> None:
    with pytest.raises(RunError, match="survive its process"):
        resolve(url, BASE)


@pytest.mark.parametrize("url", ["mysql://h/d", "redis://h", "study.db", "", "postgresql", "postgresql://"])
def test_another_kind_is_refused(url: str) -> None:
    with pytest.raises(RunError, match="unknown kind of storage"):
        resolve(url, BASE)


def test_a_name_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_EVOLVE", raising=False)
    with pytest.raises(RunError, match="environment has no NOT_SET_EVOLVE"):
        resolve("postgresql://u:${NOT_SET_EVOLVE}@h/d", BASE)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/db",
        "postgresql+psycopg2://user:hunter2@host/db",
        "postgresql://user:hunter2${X}@host/db",
        "postgresql://user:${X}hunter2@host/db",
        "postgresql://:hunter2@host/db",
        "postgresql://user:a@hunter2@host/db",
        "postgresql://user@host/db?password=hunter2",
        "postgresql://user@host/db?sslmode=require&password=hunter2",
    ],
)
def test_a_password_in_the_config_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("X", "x")
    with pytest.raises(RunError, match=r"must not stand in a config\. .*PGPASSWORD") as caught:
        resolve(url, BASE)
    assert "hunter2" not in str(caught.value)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_password_gets_through(password: str) -> None:
    from sqlalchemy.engine import make_url

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOLVE_PW", password)
        found = resolve("postgresql://me:${EVOLVE_PW}@host:5432/db", BASE)
    url = make_url(found.real)
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "me",
        password,
        "host",
        5432,
        "db",
    )
    assert url.drivername == "postgresql+psycopg2"
    assert found.shown == "postgresql://me:${EVOLVE_PW}@host:5432/db"
    assert found.real not in repr(found)


def test_hosts_and_whole_urls_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "db.example.org:6432")
    assert (
        resolve("postgresql://me@${HOST}/db", BASE).real == "postgresql+psycopg2://me@db.example.org:6432/db"
    )
    monkeypatch.setenv("URL", "postgresql://me:s%40crt@h/d")
    found = resolve("${URL}", BASE)
    assert found.real == "postgresql+psycopg2://me:s%40crt@h/d"
    assert set(found.secrets) == {"s%40crt", "s@crt"}


@pytest.mark.parametrize(
    "message",
    [
        "cannot open {real}",
        "FATAL: password s@cr:et for me",
        "bad url postgresql://me:s%40cr%3Aet@h/d, see postgresql://else:where@h",
    ],
)
def test_messages_hide_the_password(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    monkeypatch.setenv("PW", "s@cr:et")
    found = resolve("postgresql://me:${PW}@h/d", BASE)
    hidden = found.hide(message.format(real=found.real))
    for secret in ("s@cr:et", "s%40cr%3Aet", ":where@"):
        assert secret not in hidden
    assert "***" in hidden
