"""``waifu4x bench --speed``: how fast models are here, and which flags would make them faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.markup import escape
from rich.table import Table

from waifu4x.bench import speed
from waifu4x.bench.speed_advice import SpeedReport, SpeedRow
from waifu4x.cli import console
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.cli.bench_run import Wish
from waifu4x.devices import has_openvino
from waifu4x.errors import UsageError
from waifu4x.models import open_upscaler

BUDGET_S = 60.0
"""For each model."""


def measure_speed(wish: Wish) -> None:
    """Measure each model at each scale, and say which flags are the best here."""
    if wish.sets or wish.targets or wish.lr_folder:
        raise UsageError("--speed measures no pictures: leave out the sets, --lr and -o")
    if wish.precision != "auto":
        raise UsageError("--speed tries every precision: leave out --precision")
    for scale in wish.scales:
        if scale < 1:
            raise UsageError(f"a scale to measure at is 1 or more, not {scale}")
    keep_large_blocks()
    for name in wish.models:
        for scale in wish.scales:
            with _bar(wish.quiet) as doing:
                opened = open_upscaler(name, offline=wish.offline).model
                report = speed.measure(
                    opened,
                    scale=scale,
                    device=wish.device,
                    budget_s=BUDGET_S,
                    on_progress=doing,
                )
            _show(report, wish)


def _show(report: SpeedReport, wish: Wish) -> None:
    if wish.as_json:
        typer.echo(json.dumps(report.facts(), allow_nan=False))
        return
    console.show(_table(report))
    for sentence in report.advice:
        line = f"[bold]advice:[/] {escape(console.printable(sentence))}"
        console.stdout.print(line, soft_wrap=True)
    if wish.quiet:
        return
    notes = report.notes
    if report.threads is not None and report.device == "cpu" and has_openvino():
        notes = (
            *notes,
            "this is the speed of PyTorch; OpenVINO, which is installed, is taken first",
        )
    for note in notes:
        console.say(f"note: {note}")


def _table(report: SpeedReport) -> Table:
    width, height = report.input_px
    title = (
        f"{report.model} x{report.scale} on {report.device_name}: "
        f"{width}×{height} px, {report.rounds} rounds"
    )
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
        title=escape(console.printable(title)),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("flags", min_width=12)
    table.add_column("precision")
    for head in ("tile", "MP/s", "of bicubic", "of fp32", "waste", "to fp32"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_row("", "", "", _rate(report.bicubic), "1", "", "", "", "bicubic")
    for row in report.rows:
        if row is not report.bicubic:
            table.add_row(*_cells(report, row), escape(console.printable(row.note)))
    return table


def _cells(report: SpeedReport, row: SpeedRow) -> tuple[str, ...]:
    return (
        row.flags or "(automatic)",
        row.precision,
        "" if row.used_tile_px is None else str(row.used_tile_px),
        _rate(row),
        _number(row.ratio_to(report.bicubic), ".3g"),
        _number(row.ratio_to(report.fp32), ".2f"),
        _number(row.waste, ".2f"),
        "" if row.agreement_db is None else _agreement(row.agreement_db),
    )


def _rate(row: SpeedRow) -> str:
    return _number(row.megapixels_per_second, ".3g")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _agreement(db: float) -> str:
    return "equal" if db == float("inf") else f"{db:.1f} dB"


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    with console.progress_bar(quiet=quiet) as shown:
        task = shown.add_task("", total=1.0)

        def doing(text: str, share: float) -> None:
            described = escape(console.printable(text))
            shown.update(task, description=described, completed=share)

        yield doing
