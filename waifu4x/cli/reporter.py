"""What a job says while it runs: one bar, lines for people, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from waifu4x.cli import console
from waifu4x.cli.console import stderr
from waifu4x.errors import UsageError, Waifu4xError


@dataclass(kw_only=True)
class Reporter:
    """Says what happens: data on stdout as JSON when asked, all else on stderr."""

    as_json: bool
    quiet: bool
    verbose: bool
    report: Path | None = None
    """A file that gets the JSON lines too."""
    _progress: Progress | None = field(default=None, init=False)
    _report: TextIO | None = field(default=None, init=False)

    @contextmanager
    def job(self) -> Iterator[None]:
        """One bar for the whole job; none when stderr is no terminal."""
        with (
            self._opened_report(),
            console.progress_bar(quiet=self.quiet, with_time_left=True) as progress,
        ):
            self._progress = progress
            self._task = progress.add_task("", total=None)
            yield

    @contextmanager
    def _opened_report(self) -> Iterator[None]:
        if self.report is None:
            yield
            return
        try:
            # Line by line: what is known of an interrupted run stays known.
            stream = self.report.open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(
                f"the report {self.report} cannot be written: {error.strerror}"
            ) from error
        with stream:
            self._report = stream
            yield
        self._report = None

    def planning(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description="planning", completed=done, total=total)

    def working_on(self, name: str, done: float, total: float) -> None:
        if self._progress is not None:
            text = escape(console.printable(name))
            self._progress.update(self._task, description=text, completed=done, total=total)

    def downloading(self, done_bytes: int, total_bytes: int) -> None:
        if self._progress is not None and total_bytes:
            text = f"downloading the model {done_bytes / total_bytes:.0%}"
            self._progress.update(self._task, description=text)

    def say(self, text: str) -> None:
        if not self.quiet:
            console.say(text)

    def fail(self, error: Waifu4xError) -> None:
        console.fail(str(error))

    def outcome(self, facts: dict[str, Any]) -> None:
        """One file's JSON line."""
        line = json.dumps(facts)
        if self.as_json:
            typer.echo(line)
        if self._report is not None:
            self._report.write(line + "\n")

    def summary(self, rows: list[tuple[str, str, str]]) -> None:
        """A table of what became of how many files, and why."""
        if self.quiet:
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*map(escape, map(console.printable, row)))
        stderr.print(table)
