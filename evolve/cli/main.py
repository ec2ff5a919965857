"""The command line: verbs are found by name and imported when they are used.

Errors are turned into messages and exit codes here and nowhere else:

=====  =========================================================================
0      done
1      a fault of evolve, with a traceback and the place of the log
2      something that the user can mend, without a traceback
130    stopped by Ctrl-C; the same command goes on
=====  =========================================================================
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from evolve import __version__
from evolve.cli import logs
from evolve.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

VERBS: dict[str, str] = {
    "run": "evolve.cli.run:run",
    "resume": "evolve.cli.resume:resume",
    "validate": "evolve.cli.validate:validate",
    "status": "evolve.cli.status:status",
    "trials": "evolve.cli.trials:trials",
    "show": "evolve.cli.show:show",
    "best": "evolve.cli.best:best",
    "export": "evolve.cli.export:export",
    "build": "evolve.cli.build:build",
    "capture": "evolve.cli.capture:capture",
    "generate": "evolve.cli.generate:generate",
    "eval": "evolve.cli.eval:evaluate",
    "spaces": "evolve.cli.spaces:spaces",
    "ls": "evolve.cli.ls:ls",
    "schema": "evolve.cli.schema:schema",
    "doctor": "evolve.cli.doctor:doctor",
}
"""Verb to ``module:command``, in the order in which ``--help`` lists them."""

_MENDS_OF_THE_SYSTEM = {
    errno.ENOSPC: "free some space on this disk, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "you may not write or read there; change the permissions or choose another folder",
    errno.EPERM: "the system forbids it there; choose another folder",
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use. A verb's module imports little at its top."""

    def __init__(self, *args: Any, table: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = dict(table)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None where there is none of that name."""
        if cmd_name not in self._verbs:
            return None
        module, _, attribute = self._verbs[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the closest verb in the message for an unknown one."""
        if args and not args[0].startswith("-") and args[0] not in self._verbs:
            from evolve.registry import did_you_mean

            ctx.fail(f"no such verb {args[0]!r}{did_you_mean(args[0], self._verbs)}")
        return super().resolve_command(ctx, args)


class Root(LazyGroup):
    """The outermost group: the one place where exceptions become messages and exit codes."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and leave the process with the exit code, unless ``standalone_mode`` is off."""
        if not standalone_mode:
            return self._main(*args, **extra)
        sys.exit(self._guarded(*args, **extra))

    def _main(self, *args: Any, **extra: Any) -> Any:
        return super().main(*args, **{**extra, "standalone_mode": False})

    def _guarded(self, *args: Any, **extra: Any) -> int:
        try:
            code = self._main(*args, **extra)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except UserError as error:
            return _fail(str(error), 2)
        except (Interrupted, KeyboardInterrupt, click.Abort) as error:
            click.echo(f"\nStopped. {error}".rstrip(), err=True)
            return 130
        except BrokenPipeError:
            # The reader of a pipe has left, as in `evolve trials RUN | head`: nothing is wrong.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.errno not in _MENDS_OF_THE_SYSTEM:
                return _fault(error)
            place = f"{error.filename}: " if error.filename else ""
            return _fail(f"{place}{error.strerror}: {_MENDS_OF_THE_SYSTEM[error.errno]}", 2)
        except Exception as error:
            return _fault(error)


def _fail(message: str, code: int) -> int:
    logger.debug("ends with exit code %d", code, exc_info=True)
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    return code


def _fault(error: BaseException) -> int:
    files = logs.files()
    logger.error("%s: %s", type(error).__name__, error, exc_info=error)
    for file in files:
        click.echo(f"The log is in {file}", err=True)
    click.echo("This is a fault of evolve, not of yours: please report it with the lines above.", err=True)
    return 1


@click.group(cls=Root, table=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="evolve", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; -vv for everything.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
def cli(verbose: int, quiet: bool) -> None:
    """Find the best way to build a language model out of models that exist.

    Start with `evolve spaces ls` and `evolve spaces cp NAME`, then `evolve validate CONFIG` and
    `evolve run CONFIG`. The same command resumes. Every verb explains itself with --help.
    """
    logs.configure(verbose=verbose, quiet=quiet)


def main() -> None:
    """Entry point of the command ``evolve``."""
    cli()
