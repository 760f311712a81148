"""The command `waifu4x`: its sub-commands, and how errors and signals become exit codes."""

from __future__ import annotations

import atexit
import errno
import io
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from waifu4x import __version__
from waifu4x.cli import batch, bench, compare, devices, export, info, models, train, upscale
from waifu4x.cli.console import fail
from waifu4x.errors import EXIT_FATAL, EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM, Waifu4xError

_PATIENCE_S = 1.0


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack as KeyboardInterrupt does, so that cleaning up happens."""


class _Group(TyperGroup):
    """Turns every error that waifu4x raises on purpose into one line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Waifu4xError as error:
            fail(str(error))
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read our output has read enough: typer ends quietly
            fail(str(error))
            raise typer.Exit(EXIT_FATAL) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(EXIT_SIGINT) from error
        except _Terminated as error:
            raise typer.Exit(EXIT_SIGTERM) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Enlarge memes, anime stills and old photos: sharp, offline, whatever the size.",
    epilog="Example: [bold]waifu4x upscale meme.png -s 4[/]",
)
app.command("upscale")(upscale.upscale)
app.add_typer(models.app, name="models")
app.add_typer(batch.app, name="batch")
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("info")(info.info)
app.command("devices")(devices.devices)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"waifu4x {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version  # its callback has done everything


class _Signals:
    """SIGINT and SIGTERM: they end the work, and may not change how it ended."""

    def __init__(self) -> None:
        self.over = False
        """All is said and done: what comes now is too late."""
        self._code: int | None = None
        self._leaving_since_s = math.inf

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._heed)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._heed)  # else it is ignored (nohup), and stays so

    def leave(self, code: int) -> None:
        """From now on signals only hasten the end, by `code`."""
        self._code, self._leaving_since_s = code, time.monotonic()

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if not self.over:
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated
        # `timeout` sends two at once; who sends one later means it.
        if self._code is not None and time.monotonic() - self._leaving_since_s > _PATIENCE_S:
            os._exit(self._code)


def main() -> None:
    """The console script."""
    signals = _Signals()
    signals.install()
    # A file name that is no valid text must not break the message that names it.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code: object = EXIT_OK
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:  # a second signal, while the first was being answered
        code = EXIT_SIGINT
    except _Terminated:
        code = EXIT_SIGTERM
    finally:
        # Nothing is called before this: Python lets signals in at calls only.
        signals.over = True
    if not isinstance(code, int | None):
        sys.exit(code)  # a message, which only Python itself should print
    _leave(code or EXIT_OK, signals)


def _leave(code: int, signals: _Signals) -> NoReturn:
    """End the process without taking everything apart: with torch that takes a quarter second.

    As ever, threads are waited for, what asked to be called at the end is called, and what was
    written is sent on its way.
    """
    _flush()
    signals.leave(code)
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # None, a closed pipe, closed
            stream.flush()
