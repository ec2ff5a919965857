"""A real PostgreSQL server of our own, in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "p@ss/w:rd{0}%41 ü"
"""Every character that breaks a URL or a format string."""

_numbers = itertools.count()


class Unavailable(Exception):
    """There is no server; the message says why."""


@functools.cache
def server() -> Path:
    """Start a server once, and return the folder of its socket. It is stopped when Python ends."""
    binaries = _binaries()
    # Short, since the path of a Unix socket is limited to about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    owner = _owner()
    secret = folder / "password"
    secret.write_text(PASSWORD)
    data = folder / "data"
    data.mkdir(mode=0o700)
    if owner is not None:
        for path in (folder, secret, data):
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def call(*command: str | Path) -> None:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=120,
            text=True,
        )
        if done.returncode:
            raise Unavailable(f"{command[0]} failed: {done.stdout[-500:]}")

    initdb = (
        "--auth=scram-sha-256",
        "--username=evolve",
        "--encoding=UTF8",
        "--no-sync",
        "--no-instructions",
    )
    call(binaries / "initdb", "-D", data, f"--pwfile={secret}", *initdb)
    watcher = subprocess.Popen(
        ["sh", "-c", _WATCHED, str(binaries / "postgres"), str(folder)],
        cwd=folder,
        user=owner.pw_uid if owner else None,
        group=owner.pw_gid if owner else None,
        extra_groups=[] if owner else None,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    atexit.register(watcher.communicate)
    _wait(watcher, folder)
    return folder


# The end of its standard input is our end, a killed one too: no server and no folder stays behind.
_WATCHED = """
"$0" -D "$1/data" -c listen_addresses= -c unix_socket_directories="$1" -c fsync=off -c shared_buffers=16MB \\
    >"$1/log" 2>&1 </dev/null &
server=$!
read -r _
kill -QUIT $server
wait $server
cd / && rm -rf "$1"
"""


def _wait(watcher: subprocess.Popen[bytes], folder: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(host=str(folder), user="evolve", password=PASSWORD, dbname="postgres").close()
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline or watcher.poll() is not None:
                raise Unavailable(f"the server does not answer: {error}") from error
            time.sleep(0.05)
        else:
            return


def new_database() -> tuple[str, str]:
    """Make an empty database; return its URL, ``${EVOLVE_TEST_PG}`` for the password, and its name."""
    import psycopg2

    folder, name = server(), f"d{os.getpid()}_{next(_numbers)}"
    connection = psycopg2.connect(host=str(folder), user="evolve", password=PASSWORD, dbname="postgres")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
    finally:
        connection.close()
    return f"postgresql://evolve:${{EVOLVE_TEST_PG}}@/{name}?host={folder}", name


def _binaries() -> Path:
    try:
        import psycopg2  # noqa: F401 # only whether it is there
    except ImportError as error:
        raise Unavailable("psycopg2 is not installed: pip install 'evolve[postgresql]'") from error
    found = _find()
    if found is None and os.geteuid() == 0 and os.environ.get("CI") and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", "postgresql"]):
            subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                timeout=300,
                check=False,
            )
        found = _find()
    if found is None:
        raise Unavailable("no PostgreSQL server: apt-get install postgresql")
    return found


def _find() -> Path | None:
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / "initdb").exists():
            return folder
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _owner() -> pwd.struct_passwd | None:
    """Return the user that a server may run as: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Unavailable("this is root, and there is no user postgres or nobody to run a server as")
