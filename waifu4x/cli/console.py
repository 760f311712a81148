"""The two streams of the command line: data on stdout, everything else on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

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


def printable(text: str) -> str:
    """`text` as one line: a file's name may hold line breaks, escape codes, and bytes that are no
    text at all."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
