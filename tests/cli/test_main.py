import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from evolve import __version__
from evolve.cli import logs
from evolve.cli.main import VERBS, LazyGroup, Root
from evolve.errors import ConfigError, Interrupted, Problem, UserError
from tests.cli.kit import call

HEAVY = (
    "torch",
    "ray",
    "optuna",
    "vllm",
    "transformers",
    "lm_eval",
    "datasets",
    "pydantic",
    "numpy",
    "rich",
    "yaml",
)


def test_the_issue_s_verbs_are_all_there():
    wanted = "run resume validate status trials show best export build capture generate eval"
    wanted += " spaces ls schema doctor"
    assert list(VERBS) == wanted.split()


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], ["export", "-h"]])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys\nfrom evolve.cli.main import cli\n"
        f"try: cli({args!r})\nexcept SystemExit as stop: assert stop.code == 0, stop.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout + done.stderr


def test_help_lists_every_verb_with_a_whole_sentence():
    lines = call("--help").stdout.partition("Commands:")[2].splitlines()
    for verb in VERBS:
        (line,) = [line for line in lines if line.startswith(f"  {verb} ")]
        assert line.endswith(".")
        assert not line.endswith("..."), f"the first sentence of {verb} is too long"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    assert "Usage: " in call(verb, "--help").stdout


def test_version():
    assert call("--version").stdout == f"evolve {__version__}\n"


def test_unknown_verb_suggests():
    assert "did you mean 'trials'" in call("trails", code=2).stderr


def raising(error: BaseException) -> click.Group:
    """A group like ours with one verb that raises."""

    @click.group(cls=Root, table={})
    def group() -> None:
        logs.configure(verbose=0, quiet=False)

    @click.command()
    def verb() -> None:
        raise error

    group.get_command = lambda ctx, name: verb
    group._verbs = {"verb": ""}
    return group


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("mend it so"), 2, "mend it so"),
        (
            ConfigError([Problem("a.yaml:1:2", "x", "one"), Problem("a.yaml:3:4", "y", "two")]),
            2,
            "a.yaml:3:4: y: two",
        ),
        (Interrupted("stopped by Ctrl-C"), 130, "Stopped"),
        (KeyboardInterrupt(), 130, "Stopped"),
        (click.UsageError("used wrongly"), 2, "used wrongly"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            2,
            "/a/b: No space left on device: free some",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), 2, "read-only; choose another folder"),
        (ZeroDivisionError("a fault"), 1, "ZeroDivisionError: a fault"),
        (OSError(errno.EBADF, "Bad file descriptor"), 1, "fault of evolve"),
    ],
)
def test_exceptions_become_messages_and_exit_codes(error, code, said):
    result = CliRunner().invoke(raising(error), ["verb"])
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_fault_names_the_log_and_is_in_it(tmp_path):
    file = tmp_path / "lögs" / "driver.log"

    @click.command()
    def verb() -> None:
        logs.attach(file)
        logs.attach(file)
        raise ZeroDivisionError("a fault")

    group = raising(ValueError())
    group.get_command = lambda ctx, name: verb
    result = CliRunner().invoke(group, ["verb"])
    assert result.exit_code == 1
    assert result.stderr.count(str(file)) == 1
    assert file.read_text().count("Traceback") == 1
    logs.configure(verbose=0, quiet=False)
    assert logs.files() == []


def test_a_closed_pipe_is_no_error(made):
    _, runs = made
    command = f"{sys.executable} -m evolve.cli trials small --runs '{runs}' --format json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "["
    assert done.stderr == ""


def test_quiet_and_verbose():
    import logging

    logger = logging.getLogger("evolve.something")

    @click.command()
    def verb() -> None:
        logger.debug("a detail")
        logger.info("a piece of news")
        logger.warning("a warning")
        logger.error("an error")

    @click.group(cls=LazyGroup, table={"verb": ""})
    @click.option("-v", "verbose", count=True)
    @click.option("-q", "quiet", is_flag=True)
    def group(verbose: int, quiet: bool) -> None:
        logs.configure(verbose=verbose, quiet=quiet)

    group.get_command = lambda ctx, name: verb
    counts = {
        args: len(CliRunner().invoke(group, [*args.split(), "verb"]).stderr.splitlines())
        for args in ("-q", "", "-v", "-v -v")
    }
    assert counts == {"-q": 1, "": 2, "-v": 3, "-v -v": 4}
    logs.configure(verbose=0, quiet=False)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "evolve.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"evolve {__version__}\n"
