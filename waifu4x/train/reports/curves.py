"""The lines of ``metrics.jsonl`` as small charts: what is drawn, and how it is drawn in SVG."""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from waifu4x.errors import TrainError
from waifu4x.pages import nice_ticks

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 8, 150
MAX_POINTS = 240
"""A longer curve is drawn as the means of so many stretches, in the band of their extremes."""

# A logarithmic axis where a loss falls so far that a straight one would show a corner.
_LOG_FROM_RATIO = 30.0
_NO_CURVES = ("step", "stage", "progress", "elapsed_s", "losses")
_TERMS = {"d": "discriminator"}
_UNITS: dict[str, Literal["", "%", "dB"]] = {"psnr_db": "dB", "data_share": "%"}
_TITLES = {
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "steps_per_s": "Steps per second",
    "data_share": "Time spent waiting for data",
}


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a run noted down."""

    rows: tuple[dict[str, Any], ...]
    """In order of their ``step``, each once."""
    unread: int
    """Lines that are no JSON object with a step: torn by a crash, as a rule."""

    @property
    def stages(self) -> dict[str, int]:
        """The names of the stages, and the first step noted in each; in order."""
        found: dict[str, int] = {}
        for row in self.rows:
            if isinstance(row.get("stage"), str):
                found.setdefault(row["stage"], row["step"])
        return found


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    points: tuple[tuple[int, float], ...]
    """(step, value); at least one, all finite."""

    def thinned(self) -> list[tuple[int, float, float, float]]:
        """(step, mean, lowest, highest) of at most MAX_POINTS stretches of equal length."""
        count = min(MAX_POINTS, len(self.points))
        edges = [len(self.points) * n // count for n in range(count + 1)]
        stretches = (self.points[a:b] for a, b in itertools.pairwise(edges))
        thinned = []
        for stretch in stretches:
            values = [value for _, value in stretch]
            mean = math.fsum(values) / len(values)
            thinned.append((stretch[-1][0], mean, min(values), max(values)))
        return thinned


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One or more curves over the steps."""

    title: str
    curves: tuple[Curve, ...]
    unit: Literal["", "%", "dB"] = ""
    may_be_log: bool = False

    @property
    def is_log(self) -> bool:
        values = [value for curve in self.curves for _, value in curve.points]
        return self.may_be_log and min(values) > 0 and max(values) / min(values) > _LOG_FROM_RATIO

    def in_words(self, value: float) -> str:
        """The value with its unit; a share becomes per cent."""
        if self.unit == "%":
            return f"{100.0 * value:.1f} %"
        return f"{value:.2f} dB" if self.unit == "dB" else f"{value:.4g}"


def read_metrics(path: Path) -> Metrics:
    """The lines of a run's ``metrics.jsonl``.

    A run that is resumed goes back to its last checkpoint: what was noted after that step belongs
    to a future that never came, so a line replaces all earlier lines of its step and of later ones.

    Raises:
        TrainError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror or error}; train first") from error
    rows: list[dict[str, Any]] = []
    unread = 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            unread += bool(line.strip())
            continue
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return Metrics(rows=tuple(rows), unread=unread)


def charts(metrics: Metrics) -> tuple[Chart, ...]:
    """A chart for each loss term, and for everything else that is a number, in a fixed order."""
    rows = metrics.rows
    made = [
        Chart(title=f"Loss: {_TERMS.get(curve.name, curve.name)}", curves=(curve,), may_be_log=True)
        for curve in _curves((row["step"], row.get("losses")) for row in rows)
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rates = [key for key in keys if key.startswith("learning_rate")]
    verdicts = [key for key in ("d_real", "d_fake") if key in keys]
    known = [key for key in _TITLES if key in keys]
    others = [key for key in keys if key not in (*rates, *verdicts, *known, *_NO_CURVES)]
    measured = [key for key in known if key in ("psnr_db", "ssim")]
    groups = [
        *((_TITLES[key], [key]) for key in measured),
        ("Learning rate", rates),
        ("The discriminator's verdict", verdicts),
        *((_TITLES[key], [key]) for key in known if key not in measured),
        *((key, [key]) for key in others),
    ]
    for title, names in groups:
        curves = [curve for name in names for curve in _curves(_pick(rows, name))]
        if curves:
            made.append(Chart(title=title, curves=tuple(curves), unit=_UNITS.get(names[0], "")))
    return tuple(made)


def _pick(rows: Sequence[dict[str, Any]], key: str) -> Iterable[tuple[int, object]]:
    """The values under `key`; a number on its own becomes a table of one."""
    shown = {"d_real": "D(real)", "d_fake": "D(fake)"}.get(key, key)
    for row in rows:
        value = row.get(key)
        yield row["step"], value if isinstance(value, Mapping) else {shown: value}


def _curves(tables: Iterable[tuple[int, object]]) -> list[Curve]:
    """A curve for each name in the tables; whatever is no finite number is left out."""
    points: dict[str, list[tuple[int, float]]] = {}
    for step, table in tables:
        for name, value in table.items() if isinstance(table, Mapping) else ():
            if type(value) in (int, float) and math.isfinite(value):
                points.setdefault(str(name), []).append((step, float(value)))
    return [Curve(name=name, points=tuple(found)) for name, found in points.items()]


def draw(chart: Chart, *, span: tuple[int, int], stages: Iterable[int]) -> tuple[str, dict]:
    """The chart as SVG, and its numbers for the page's script.

    span: the first and last step on the axis, the same for all charts of a page. stages: the steps
    at which one begins.
    """
    transform = math.log10 if chart.is_log else float
    thinned = [curve.thinned() for curve in chart.curves]
    values = [transform(v) for points in thinned for _, _, *both in points for v in both]
    low, high = _limits(values, chart)
    first, last = span

    def at_x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (step - first) / max(1, last - first), 1)

    def at_y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (transform(value) - low) / (high - low), 1)

    parts = [_axes(chart, low, high=high, at_y=at_y), _steps_axis(span, at_x)]
    parts += [
        f'<line class="stage" x1="{at_x(step)}" x2="{at_x(step)}" y1="{TOP}" y2="{BOTTOM}"/>'
        for step in stages
        if first < step <= last
    ]
    data = []
    for number, (curve, points) in enumerate(zip(chart.curves, thinned, strict=True)):
        kind = f"c{number % 4}"
        if len(curve.points) > len(points):
            above = [f"{at_x(step)},{at_y(most)}" for step, _, _, most in points]
            below = [f"{at_x(step)},{at_y(least)}" for step, _, least, _ in reversed(points)]
            parts.append(f'<polygon class="band {kind}" points="{" ".join(above + below)}"/>')
        places = [(at_x(step), at_y(mean)) for step, mean, _, _ in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        x, y = places[-1]
        parts.append(f'<circle class="dot {kind}" r="3.5" cx="{x}" cy="{y}"/>')
        steps = [step for step, *_ in points]
        words = [chart.in_words(mean) for _, mean, _, _ in points]
        data.append({"steps": steps, "x": [p[0] for p in places], "y": [p[1] for p in places]})
        data[-1]["words"] = words
    label = html.escape(_described(chart), quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>"]), {"curves": data}


def _described(chart: Chart) -> str:
    """The chart for those who do not see it."""
    told = []
    for curve in chart.curves:
        (first, start), (last, end) = curve.points[0], curve.points[-1]
        told.append(
            f"{curve.name} goes from {chart.in_words(start)} at step {first} to "
            f"{chart.in_words(end)} at step {last}"
        )
    axis = ", logarithmic" if chart.is_log else ""
    return f"{chart.title}{axis}: {'; '.join(told)}"


def _limits(values: Sequence[float], chart: Chart) -> tuple[float, float]:
    low, high = min(values), max(values)
    if chart.unit == "%" or (
        chart.curves[0].name in ("D(real)", "D(fake)") and 0 <= low <= high <= 1
    ):
        return 0.0, 1.0
    # A flat curve lies in the middle, however large its value.
    room = 0.05 * (high - low) if high > low else 0.1 * abs(high) or 1.0
    return low - room, high + room


def _axes(chart: Chart, low: float, *, high: float, at_y: Any) -> str:
    parts = []
    if chart.is_log:
        ticks = [10.0**exponent for exponent in range(math.ceil(low), math.floor(high) + 1)]
        if len(ticks) < 3:
            ticks = [
                m * 10.0**e for e in range(math.floor(low), math.ceil(high)) for m in (1, 2, 5)
            ]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    else:
        ticks = nice_ticks(low, high)
    for tick in ticks:
        y = at_y(tick)
        words = f"{100.0 * tick:.0f} %" if chart.unit == "%" else _tick(tick, max(ticks))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{words}</text>')
    return "\n".join(parts)


def _steps_axis(span: tuple[int, int], at_x: Any) -> str:
    parts = []
    ticks = [tick for tick in nice_ticks(*span, count=4) if tick == int(tick)]
    for tick in ticks:
        x = at_x(tick)
        anchor = "end" if x > RIGHT - 12 else "middle"
        parts.append(f'<text x="{x}" y="{BOTTOM + 16}" text-anchor="{anchor}">{short(tick)}</text>')
    return "\n".join(parts)


def _tick(value: float, largest: float) -> str:
    """Short enough for the axis: 0.00025 beside 0.001 is 2.5e-4."""
    if value == 0.0 or 0.01 <= abs(largest) < 1e5:
        return f"{value:.4g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def short(number: float) -> str:
    """12000 -> "12k"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"
