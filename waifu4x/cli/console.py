"""The two streams of the command line: data on stdout, everything else on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

_ENDLESS = 10_000

# Without emoji: a file may well be called a:smile:.png.
stdout = Console(highlight=False, emoji=False)
stderr = Console(stderr=True, highlight=False, emoji=False)


def say(text: str) -> None:
    """One line on stderr."""
    stderr.print(Text(printable(text)), soft_wrap=True)


def fail(text: str) -> None:
    """One line on stderr that says what went wrong."""
    line = Text.assemble(("error:", "bold red"), " ", printable(text))
    stderr.print(line, soft_wrap=True)


def width_of(table: Table) -> int:
    """How many columns of text it needs for nothing in it to be cut."""
    return Measurement.get(stdout, stdout.options.update_width(_ENDLESS), table).maximum


def show(table: Table) -> None:
    """A table on stdout; in a file or a pipe, where nothing is too wide, it is never cut."""
    if stdout.is_terminal:
        stdout.print(table)
        return
    wide = Console(
        file=stdout.file, width=max(width_of(table), stdout.width), highlight=False, emoji=False
    )
    wide.print(table)


@contextmanager
def progress_bar(*, quiet: bool, with_time_left: bool = False) -> Iterator[Progress]:
    """The one bar of a command, on stderr and gone afterwards; on a terminal only."""
    from rich import progress  # not before: --help has no bar

    columns: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
    ]
    if with_time_left:
        columns.append(progress.TimeRemainingColumn())
    disable = quiet or not stderr.is_terminal
    with progress.Progress(*columns, console=stderr, transient=True, disable=disable) as shown:
        yield shown


def printable(text: str) -> str:
    """`text` as one line: a file's name may hold line breaks, escape codes, and bytes that are no
    text at all."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
