"""Storage URLs: names from the environment, absolute paths, no secret in any message."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from evolve.errors import RunError

_NAME = re.compile(r"\$\{(\w+)\}")
_ONLY_NAMES = re.compile(r"(?:\$\{\w+\})+")
_POSTGRESQL = re.compile(r"postgresql(\+\w+)?://.")
_USER = re.compile(r"^(?P<scheme>[\w+]+)://(?P<user>[^/?#]*)@")
_PASSWORD_OPTION = re.compile(r"[?&](?:password|sslpassword)=(?P<value>[^&]*)", re.IGNORECASE)


@dataclass(frozen=True)
class StorageUrl:
    """A storage URL that can be opened.

    Attributes:
        shown: What the user wrote, for messages.
        real: The URL with everything filled in. May hold a password: never print it.
        secrets: Passwords that it holds, to be blanked out of foreign messages.
        file: The absolute path of an SQLite file; None for a server.
    """

    shown: str
    real: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False, default=())
    file: Path | None = None

    def hide(self, message: str) -> str:
        """Return a message of another library without the URL's secrets."""
        for secret in self.secrets:
            message = message.replace(secret, "***")
        return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", message)


def resolve(url: str, base: Path) -> StorageUrl:
    """Fill in ``${NAME}`` from the environment, and make the path of an SQLite file absolute.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:${PASSWORD}@HOST/DATABASE``.
        base: Folder that a relative path begins at.

    Raises:
        RunError: A name is not set, a password stands in the URL, or it is another kind of storage.
    """
    _refuse_password(url)
    user = _USER.match(url)
    user_ends = user.end("user") if user else 0

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise RunError(f"search.storage: {url}: the environment has no {match[1]}. Set it and try again.")
        # A password may hold any character; a host with its port must stay as it is.
        return _quoted(value) if match.end() <= user_ends else value

    real = _NAME.sub(fill, url)
    if real.startswith("sqlite"):
        return _sqlite(real, url, base)
    if not _POSTGRESQL.match(real):
        raise RunError(
            f"search.storage: {url}: unknown kind of storage. Use sqlite:///FILE or "
            "postgresql://USER:${PASSWORD}@HOST/DATABASE, or leave it out for a journal in the run's folder."
        )
    # SQLAlchemy 2.1 takes psycopg 3 where no driver is named; ours is the one in the extra `postgresql`.
    real = real.replace("postgresql://", "postgresql+psycopg2://", 1)
    return StorageUrl(shown=url, real=real, secrets=_passwords(real))


def _sqlite(real: str, shown: str, base: Path) -> StorageUrl:
    from sqlalchemy.engine import make_url

    name, mark, options = real.removeprefix("sqlite:///").partition("?")
    if not real.startswith("sqlite:///") or not name or name == ":memory:":
        raise RunError(
            f"search.storage: {shown}: a search has to survive its process. Name a file: sqlite:///study.db"
        )
    path = str(base.absolute() / name)
    # Since version 2.1 SQLAlchemy decodes %41 in a path, earlier ones do not.
    for spelling in (path, quote(path)):
        if make_url(f"sqlite:///{spelling}").database == path:
            return StorageUrl(shown, f"sqlite:///{spelling}{mark}{options}", file=Path(path))
    raise RunError(f"search.storage: {shown}: no storage URL can hold the path {path}. Choose another one.")


def _passwords(real: str) -> tuple[str, ...]:
    """Return the passwords of a URL as they stand in it and as they are, the longest first."""
    user, option = _USER.match(real), _PASSWORD_OPTION.search(real)
    found = {user["user"].partition(":")[2] if user else "", option["value"] if option else ""}
    found |= {unquote(password) for password in found}
    return tuple(sorted(found - {""}, key=len, reverse=True))


def _refuse_password(url: str) -> None:
    user = _USER.match(url)
    name, colon, password = user["user"].partition(":") if user else ("", "", "")
    option = _PASSWORD_OPTION.search(url)
    inline = bool(colon and password and not _ONLY_NAMES.fullmatch(password))
    if option is not None and not _ONLY_NAMES.fullmatch(option["value"]):
        inline = True
    if inline:
        where = f"{user['scheme']}://{name}:***@..." if user else "the URL"
        raise RunError(
            f"search.storage: {where}: a password must not stand in a config. "
            "Write ${PGPASSWORD} in its place, and set PGPASSWORD in the environment."
        )


def _quoted(value: str) -> str:
    return quote(value, safe="")
