"""``waifu4x bench --speed``: how fast models are here, and which flags would make them faster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.markup import escape
from rich.table import Table

from waifu4x import onnx_files
from waifu4x.bench import run, speed
from waifu4x.bench.sets import open_sets
from waifu4x.bench.speed.speed_advice import SpeedReport, SpeedRow
from waifu4x.cli import console
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.cli.bench_run import Wish
from waifu4x.cli.native import silent_libraries
from waifu4x.errors import UsageError
from waifu4x.model_files.model_facts import Model
from waifu4x.models import conversions_folder, open_upscaler
from waifu4x.resample import Kernel

BUDGET_S = 60.0
"""For each model."""


def measure_speed(wish: Wish) -> None:
    """Measure each model at each scale, and say which flags are the best here."""
    if wish.targets or wish.lr_folder:
        raise UsageError(
            "--speed shrinks pictures itself and writes no file: leave out --lr and -o"
        )
    if (wish.precision, wish.engine) != ("auto", "auto"):
        raise UsageError(
            "--speed tries every engine and precision: leave out --engine and --precision"
        )
    for scale in wish.scales:
        if scale < 1:
            raise UsageError(f"a scale to measure at is 1 or more, not {scale}")
    truth = open_sets(wish.sets)
    keep_large_blocks()
    for name in wish.models:
        for scale in wish.scales:
            with silent_libraries(), _bar(wish.quiet) as doing:
                report = speed.measure(
                    _opened(name, offline=wish.offline),
                    scale=scale,
                    device=wish.device,
                    budget_s=BUDGET_S,
                    folder=conversions_folder(),
                    truth=truth,
                    on_progress=doing,
                )
            _show(report, wish)


def _opened(name: str, *, offline: bool) -> Model | Kernel:
    """The model alone: what an engine converts is converted when it is measured."""
    has_choice = not (run.is_filter(name) or name.lower().endswith(onnx_files.SUFFIX))
    return open_upscaler(name, engine="torch" if has_choice else "auto", offline=offline).model


def _show(report: SpeedReport, wish: Wish) -> None:
    if wish.as_json:
        typer.echo(json.dumps(report.facts(), allow_nan=False))
        return
    console.show(_table(report))
    for row in report.rows:
        if row.note:
            _print("", f"{_by(row)}{_tile(row)}: {row.note}")
    for sentence in report.advice:
        _print("[bold]advice:[/] ", sentence)
    if wish.quiet:
        return
    for note in report.notes:
        console.say(f"note: {note}")
    if wish.sets and not report.truth:
        console.say("note: only INT8 is compared with true pictures, and there is none here")


def _print(head: str, text: str) -> None:
    console.stdout.print(head + escape(console.printable(text)), soft_wrap=True)


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
    table.add_column("\nflags", min_width=11)
    table.add_column("\nby", min_width=11)
    heads = ["\ntile", "\nMP/s", "of\nbicubic", "of\nfp32", "\nwaste", "dB to\nfp32"]
    # Of what was compared with the truth alone.
    heads += ["dB\nlost"] if report.truth else []
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_row("", "bicubic", "", _rate(report.bicubic), "1")
    for row in report.rows:
        if row is not report.bicubic:
            table.add_row(*_cells(report, row)[: len(heads) + 2])
    return table


def _cells(report: SpeedReport, row: SpeedRow) -> tuple[str, ...]:
    return (
        row.flags or "(automatic)",
        _by(row),
        "" if row.used_tile_px is None else str(row.used_tile_px),
        _rate(row),
        _number(row.ratio_to(report.bicubic), ".3g"),
        _number(row.ratio_to(report.fp32), ".2f"),
        _number(row.waste, ".2f"),
        "" if row.agreement_db is None else _agreement(row.agreement_db),
        "" if row.loss_db is None else f"{row.loss_db:.3f}",
    )


def _by(row: SpeedRow) -> str:
    return row.engine if row.engine == "numpy" else f"{row.engine} {row.precision}"


def _tile(row: SpeedRow) -> str:
    return "" if row.tile_px is None else f" in tiles of {row.tile_px} px"


def _rate(row: SpeedRow) -> str:
    return _number(row.megapixels_per_second, ".3g")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _agreement(db: float) -> str:
    return "equal" if db == float("inf") else f"{db:.1f}"


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    with console.progress_bar(quiet=quiet) as shown:
        task = shown.add_task("", total=1.0)

        def doing(text: str, share: float) -> None:
            described = escape(console.printable(text))
            shown.update(task, description=described, completed=share)

        yield doing
