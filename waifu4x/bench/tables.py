"""What was measured as tables: Markdown, CSV and JSON, and the cells for whoever draws others."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from waifu4x.bench.protocol import JPEG_TEXT
from waifu4x.bench.published import Figure, Source
from waifu4x.bench.results import Column, Report, Result, ways
from waifu4x.version import __version__

_FIRST = ("set", "scale", "model", "source", "protocol", "device", "precision", "engine")
_LAST = ("seconds_per_megapixel", "peak_memory_bytes", "parameters", "multiply_adds_hd")
COSTS = ("s/MP", "memory", "params", "mult-adds")
"""The titles after those of the measures: seconds per megapixel of output, the process's peak
memory, the network's parameters, its multiply-adds for a result of 1280×720 px."""
_MIB = 2**20
# From here on three figures are a thousand, which Python would write as 1e+03.
_ROUNDED_UP = 999.5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table."""

    text: str
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: a model that was measured, or what was published of one."""

    name: str
    cells: tuple[Cell, ...]
    """As many as `headers` has titles after the first."""
    source: Source | None = None
    """Of a published one, which has no costs."""


def headers(report: Report) -> tuple[str, ...]:
    """The titles of all columns, with an arrow that says which way is better."""
    titles = (f"{c.title} {'↓' if c.is_lower_better else '↑'}" for c in report.columns)
    return ("model", *titles, *COSTS)


def rows(report: Report, results: Sequence[Result], published: Sequence[Figure]) -> list[Row]:
    """The lines of one table, as `Report.groups` gives them."""
    measured = [_measured(report, result, results) for result in results]
    return [*measured, *(_published(report, figure) for figure in published)]


def duration(seconds: float) -> str:
    """Of a megapixel: three figures are as much as a clock is worth."""
    return f"{seconds:.3g}" if seconds < _ROUNDED_UP else f"{seconds:,.0f}"


def memory(size_bytes: int | None) -> str:
    """In MiB; "–" where it is not known."""
    return "–" if size_bytes is None else f"{size_bytes / _MIB:,.0f} MiB"


def amount(number: float | None) -> str:
    """1,234,567 as "1.23 M"; "–" for none."""
    if number is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= _ROUNDED_UP / 1e3 * size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def footnotes(report: Report) -> list[str]:
    """What has to be known to read the figures, one sentence each."""
    found: dict[str, None] = {}
    for result in report.results:
        for column in report.columns:
            count = result.count(column.key)
            if count < len(result.pictures):
                found[
                    f"{column.title} on {result.place} is of {count} of "
                    f"{len(result.pictures)} pictures: the others are too small for it or too even."
                ] = None
        found |= dict.fromkeys(f"{note}." for note in result.notes)
    if report.has_jpeg:
        found[f"JPEG: {JPEG_TEXT}."] = None
    shown = (figure.source for *_, figures in report.groups() for figure in figures)
    for source in dict.fromkeys(shown):
        copy = f", read in {source.read_in}" if source.read_in else ""
        note = f"; {source.note}" if source.note else ""
        found[f"[{source.name}] {source.title}, {source.url}{copy}{note}."] = None
    return list(found)


def computed(results: Sequence[Result]) -> str:
    """On what and by what, once where all networks were computed alike."""
    found = ways(results)
    if len(found) == 1:
        return f"on {found[0]}"
    networks = (result for result in results if result.parameters is not None)
    return ", ".join(dict.fromkeys(f"{result.model} on {result.way}" for result in networks))


def markdown(report: Report, *, command: str) -> str:
    """Tables of all sets and scales, the best values bold, published lines in italics."""
    titles = headers(report)
    lines = [f"`{_code(command)}`, waifu4x {__version__}", ""]
    for _, _, results, published in report.groups():
        first = results[0]
        lines += [f"### {_escaped(first.place)}", ""]
        lines += [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
        for row in rows(report, results, published):
            cells = [f"**{cell.text}**" if cell.is_best else cell.text for cell in row.cells]
            name = _escaped(row.name)
            if row.source is not None:
                name = f"*{name}* [[{_escaped(row.source.name)}]]({row.source.url})"
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [
            "",
            f"{_counted(first)}, protocol {first.protocol}; {_escaped(computed(results))}.",
            "",
        ]
    lines += [f"- {_escaped(note)}" for note in footnotes(report)]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(report: Report) -> str:
    """One line per model, set and scale, with a header; numbers in full, nothing for none.

    Where small pictures were compressed there is a column `jpeg_quality` behind the scale.
    """
    text = io.StringIO()
    keys = [column.key for column in report.columns]
    writer = csv.writer(text, lineterminator="\n")
    dataset_title, scale_title, *titles = _FIRST
    jpeg_title = ["jpeg_quality"] if report.has_jpeg else []
    writer.writerow([dataset_title, scale_title, *jpeg_title, *titles, *keys, *_LAST])
    for dataset, scale, results, published in report.groups():
        place = [dataset, scale, *([results[0].jpeg_quality] if report.has_jpeg else [])]
        for r in results:
            writer.writerow(
                [*place, r.model, "", r.protocol, r.device, r.precision, r.engine]
                + [r.mean(key) for key in keys]
                + [r.seconds_per_megapixel, r.peak_memory_bytes, r.parameters, r.multiply_adds_hd]
            )
        for f in published:
            values = [f.value(key) for key in keys]
            writer.writerow([*place, f.model, f.source.url, *[""] * 4, *values, *[""] * 4])
    return text.getvalue()


def as_json(report: Report, *, command: str) -> str:
    """One object with everything, every picture's values too."""
    whole = {
        "waifu4x": __version__,
        "command": command,
        "columns": [asdict(column) for column in report.columns],
        "results": [result.facts() for result in report.results],
        "published": [asdict(figure) for figure in report.published],
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _measured(report: Report, result: Result, among: Sequence[Result]) -> Row:
    values = (_value(report, column, result, among) for column in report.columns)
    costs = (
        duration(result.seconds_per_megapixel),
        memory(result.peak_memory_bytes),
        amount(result.parameters),
        amount(result.multiply_adds_hd),
    )
    return Row(name=result.model, cells=(*values, *(Cell(text=text) for text in costs)))


def _value(report: Report, column: Column, result: Result, among: Sequence[Result]) -> Cell:
    value = result.mean(column.key)
    best = report.best(among, column.key)
    return Cell(text=column.text(value), is_best=value is not None and value == best)


def _published(report: Report, figure: Figure) -> Row:
    values = (Cell(text=column.text(figure.value(column.key))) for column in report.columns)
    return Row(
        name=figure.model,
        cells=(*values, *(Cell(text="") for _ in COSTS)),
        source=figure.source,
    )


def _counted(result: Result) -> str:
    count = len(result.pictures)
    return "1 picture" if count == 1 else f"{count} pictures"


def _escaped(text: str) -> str:
    """Markdown means what it says: the name of a model or a folder may hold anything.

    A `_` within a word means nothing in Markdown, and a backslash before it would break addresses.
    """
    escaped = re.sub(r"[\\`*{}\[\]<>#|]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(escaped.split())


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
