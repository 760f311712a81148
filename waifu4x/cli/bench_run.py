"""What ``waifu4x bench`` does, once its options have been read."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.cells import cell_len
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from waifu4x import pictures
from waifu4x.bench import measures, page, run, tables
from waifu4x.bench.results import Report, Result
from waifu4x.bench.sets import open_sets
from waifu4x.cli import console
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.cli.native import silent_libraries
from waifu4x.errors import UsageError

# Names may be folded to this, but not further, to make room for figures.
_NAME_COLUMNS = 24


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The options, read but not yet looked into."""

    sets: tuple[str, ...]
    models: tuple[str, ...]
    """Without the baseline."""
    scales: tuple[float, ...]
    metrics: str
    metric_files: dict[str, Path]
    protocol: str
    lr_folder: Path | None
    jpeg_qualities: tuple[int | None, ...]
    workers: int
    device: str
    precision: str
    engine: str
    offline: bool
    with_published: bool
    references: str | None
    targets: tuple[Path, ...]
    as_json: bool
    verbose: bool
    quiet: bool


def measure_sets(wish: Wish) -> None:
    """Measure models on sets, and show and write what came out."""
    if not wish.sets:
        raise UsageError("name a folder of pictures, or a set: waifu4x bench set5")
    keep_large_blocks()
    with silent_libraries(), _bar(wish.quiet) as bar:
        plan = run.Plan(
            models=tuple(dict.fromkeys([run.BASELINE, *wish.models])),
            sets=open_sets(wish.sets),
            scales=wish.scales,
            measures=measures.open_measures(
                _metrics(wish.metrics),
                files=wish.metric_files,
                offline=wish.offline,
                on_download=bar.download,
            ),
            protocol=wish.protocol,
            lr_folder=wish.lr_folder,
            jpeg_qualities=wish.jpeg_qualities,
            workers=wish.workers,
            device=wish.device,
            precision=wish.precision,
            engine=wish.engine,
            offline=wish.offline,
            with_published=wish.with_published,
            references=wish.references,
        )
        report = run.run(plan, on_progress=bar.progress, on_download=bar.download)
    # Shown first: a full disk should not cost what took so long.
    _show(report, wish)
    _write(report, wish.targets)
    if not wish.quiet:
        _say(report, wish)


def _metrics(text: str) -> list[str]:
    wanted: list[str] = []
    for part in (part.strip().lower() for part in text.split(",")):
        if part == "all":
            wanted += [name for name in measures.names() if not measures.needs_file(name)]
        else:
            wanted.append(part)
    return wanted


def _write(report: Report, targets: Sequence[Path]) -> None:
    command = shlex.join(["waifu4x", *sys.argv[1:]])
    texts: dict[str, Callable[[], str]] = {
        ".md": lambda: tables.markdown(report, command=command),
        ".csv": lambda: tables.comma_separated(report),
        ".json": lambda: tables.as_json(report, command=command),
        ".html": lambda: page.build(report, command=command),
    }
    for target in targets:
        # The name of a file need not be text.
        content = texts[target.suffix.lower()]().encode("utf-8", "backslashreplace")
        pictures.store(content, target)


def _show(report: Report, wish: Wish) -> None:
    if wish.as_json:
        for result in report.results:
            typer.echo(json.dumps(result.facts(), allow_nan=False))
    else:
        for _, _, results, published in report.groups():
            rows = tables.rows(report, results, published)
            _print_group(report, results[0].place, rows)
            if wish.verbose:
                console.show(_picture_table(report, results))


def _say(report: Report, wish: Wish) -> None:
    first = report.results[0]
    if not wish.as_json:
        console.say(f"note: {first.protocol} protocol; {tables.computed(report.results)}")
    for note in tables.footnotes(report):
        console.say(f"note: {note}")
    if wish.workers > 1:
        console.say("note: metrics were taken beside enlarging: one worker gives truer times")
    for target in wish.targets:
        console.say(f"wrote {target}")


def _print_group(report: Report, title: str, rows: Sequence[tables.Row]) -> None:
    """One table, or several below each other where the terminal is too narrow for it."""
    heads = tables.headers(report)
    costs = len(heads) - len(tables.COSTS)
    whole = _table(title, heads, rows, columns=range(1, len(heads)))
    if _fits(whole, rows):
        console.show(whole)
        return
    _print_parts(title, heads, rows, columns=range(1, costs))
    measured = [row for row in rows if row.source is None]  # what is published has no costs
    _print_parts("", heads, measured, columns=range(costs, len(heads)))


def _print_parts(
    title: str, heads: Sequence[str], rows: Sequence[tables.Row], *, columns: range
) -> None:
    table = _table(title, heads, rows, columns=columns)
    if len(columns) == 1 or _fits(table, rows):
        console.show(table)
        return
    half = len(columns) // 2
    _print_parts(title, heads, rows, columns=columns[:half])
    _print_parts("", heads, rows, columns=columns[half:])


def _fits(table: Table, rows: Sequence[tables.Row]) -> bool:
    """Whether nothing has to be cut; names are folded where they are long."""
    needed = console.width_of(table) - max(0, _longest(rows) - _NAME_COLUMNS)
    return not console.stdout.is_terminal or needed <= console.stdout.width


def _name(row: tables.Row) -> str:
    name = row.name if row.source is None else f"{row.name} [{row.source.name}]"
    return console.printable(name)


def _longest(rows: Sequence[tables.Row]) -> int:
    return max(cell_len(_name(row)) for row in rows)


def _table(
    title: str, heads: Sequence[str], rows: Sequence[tables.Row], *, columns: range
) -> Table:
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
        title=escape(console.printable(title)) or None,
        title_justify="left",
        title_style="bold",
    )
    table.add_column(heads[0], overflow="fold", min_width=min(_NAME_COLUMNS, _longest(rows)))
    for number in columns:
        table.add_column(heads[number], justify="right", no_wrap=True)
    for row in rows:
        cells = (row.cells[number - 1] for number in columns)
        table.add_row(
            escape(_name(row)),
            *(f"[bold]{c.text}[/]" if c.is_best else c.text for c in cells),
            style="" if row.source is None else "dim italic",
        )
    return table


def _picture_table(report: Report, results: Sequence[Result]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    for head in ("model", "picture"):
        table.add_column(head, overflow="fold")
    for head in (*(column.title for column in report.columns), "s/MP"):
        table.add_column(head, justify="right", no_wrap=True)
    for result in results:
        for picture in result.pictures:
            table.add_row(
                escape(console.printable(result.model)),
                escape(console.printable(picture.name)),
                *(column.text(picture.values[column.key]) for column in report.columns),
                tables.duration(picture.time_s / picture.megapixels),
            )
    return table


class _Bar:
    """The one bar of a measurement; it moves on a terminal only."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._task = shown.add_task("", total=None)

    def progress(self, text: str, done: int, total: int) -> None:
        described = escape(console.printable(text))
        self._shown.update(self._task, description=described, completed=done, total=total)

    def download(self, done_bytes: int, total_bytes: int) -> None:
        if total_bytes:
            text = f"downloading {done_bytes / total_bytes:.0%}"
            self._shown.update(self._task, description=text)


@contextmanager
def _bar(quiet: bool) -> Iterator[_Bar]:
    with console.progress_bar(quiet=quiet, with_time_left=True) as shown:
        yield _Bar(shown)
