"""What a job says while it runs: one bar, lines for people, JSON lines for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from waifu4x.cli import console
from waifu4x.cli.console import stderr
from waifu4x.errors import Waifu4xError


@dataclass(kw_only=True)
class Reporter:
    """Says what happens: data on stdout as JSON when asked, all else on stderr."""

    as_json: bool
    quiet: bool
    verbose: bool
    _progress: Progress | None = field(default=None, init=False)

    @contextmanager
    def job(self, files_total: int) -> Iterator[None]:
        """One bar for the whole job; none when stderr is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        disable = self.quiet or not stderr.is_terminal
        with Progress(*columns, console=stderr, transient=True, disable=disable) as progress:
            self._progress = progress
            self._task = progress.add_task("", total=files_total)
            yield

    def working_on(self, name: str, number: int, share: float) -> None:
        if self._progress is not None:
            text = escape(console.printable(name))
            self._progress.update(self._task, description=text, completed=number + share)

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
        if self.as_json:
            typer.echo(json.dumps(facts))
