"""What was measured as one page, in one file, with quality drawn against time.

It asks nothing of the network and nothing of a server. All figures are there without JavaScript;
with it, tables are sorted by their headings. What others published stands apart from what was
measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from waifu4x import pictures
from waifu4x.bench import scatter, tables
from waifu4x.bench.protocol import JPEG_TEXT, PROTOCOLS
from waifu4x.bench.published import Figure, Source
from waifu4x.bench.results import Column, PictureResult, Report, Result, ways
from waifu4x.bench.run import BASELINE
from waifu4x.bench.scatter import Mark, Point
from waifu4x.errors import UsageError
from waifu4x.pages import content_policy
from waifu4x.version import __version__

MAX_MARKS = 8
"""More published values than this are in the table alone, and not at the edge of the picture."""


def build(report: Report, *, command: str) -> str:
    """The page. All texts in it are escaped; no script but its own can run in it.

    command: the line that made the report, for those who want to make it again.

    Raises:
        UsageError: the report has no results.
    """
    if not report.results:
        raise UsageError("nothing was measured: there is nothing to make a page of")
    page = resources.files("waifu4x.bench").joinpath("page.html").read_text("utf-8")
    style, script = (
        page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0] for tag in ("style", "script")
    )
    cited = [f.source for *_, figures in report.groups() for f in figures]
    sources = {source: number for number, source in enumerate(dict.fromkeys(cited), start=1)}
    sets = ", ".join(dict.fromkeys(result.dataset for result in report.results))
    built = Template(page).substitute(
        policy=content_policy(style, script),
        generator=f"waifu4x {__version__}",
        title=escape(f"{sets}, measured"),
        facts=_facts(report),
        command=escape(command),
        groups="\n".join(
            _group(report, number, sources=sources) for number in range(len(report.groups()))
        ),
        protocols="".join(
            f"<dt>Protocol {escape(name)}</dt><dd>{escape(PROTOCOLS[name].text)}</dd>"
            for name in dict.fromkeys(result.protocol for result in report.results)
            if name in PROTOCOLS
        )
        + (f"<dt>JPEG</dt><dd>{escape(JPEG_TEXT)}</dd>" if report.has_jpeg else ""),
        sources=_sources(sources),
        footer=escape(f"Made with waifu4x {__version__}."),
    )
    # The name of a file need not be text: what is not becomes "?".
    return built.encode("utf-8", "replace").decode()


def write(report: Report, target: Path, *, command: str) -> None:
    """Write what `build` gives, whole or not at all.

    Raises:
        UsageError: as `build`.
        PictureWriteError: the file cannot be written.
    """
    pictures.store(build(report, command=command).encode(), target)


def _facts(report: Report) -> str:
    results = report.results
    tiles = {
        "Sets": dict.fromkeys(result.dataset for result in results),
        "Scales": dict.fromkeys(f"x{result.scale}" for result in results),
        **({"JPEG": _qualities(results)} if report.has_jpeg else {}),
        "Models": [str(len({result.model for result in results}))],
        "Protocol": dict.fromkeys(result.protocol for result in results),
        "Device": ways(results),
        "Version": [__version__],
    }
    return "".join(
        f"<div><dt>{name}</dt><dd>{escape(', '.join(told))}</dd></div>"
        for name, told in tiles.items()
    )


def _qualities(results: Sequence[Result]) -> list[str]:
    found = dict.fromkeys(result.jpeg_quality for result in results)
    return ["clean" if quality is None else str(quality) for quality in found]


def _group(report: Report, number: int, *, sources: dict[Source, int]) -> str:
    _, _, results, figures = report.groups()[number]
    first = results[0].pictures
    count = "1 picture" if len(first) == 1 else f"{len(first)} pictures"
    notes = [f"<b>{escape(r.model)}</b>: {escape(note)}" for r in results for note in r.notes]
    name = results[0].place
    return "\n".join(
        [
            f'<section aria-labelledby="g{number}">',
            f'<h2 id="g{number}">{escape(name)}</h2>',
            f'<p class="faint">{count}, enlarged to {sum(p.megapixels for p in first):.3g} '
            f"megapixels in all.</p>",
            _picture(report, results, figures),
            _table(report, results, figures, name=name, sources=sources),
            f'<ul class="notes"><li>{"</li><li>".join(notes)}</li></ul>' if notes else "",
            _details(report, results, name=name),
            "</section>",
        ]
    )


def _picture(report: Report, results: Sequence[Result], figures: Sequence[Figure]) -> str:
    column = next((c for c in report.columns if c.key == "psnr"), report.columns[0])
    points = [
        _point(r, value, column) for r in results if (value := r.mean(column.key)) is not None
    ]
    if not any(math.isfinite(point.value) for point in points):
        return f'<p class="faint">No {escape(column.title)} is a number that can be drawn.</p>'
    marks = _marks(figures, column)
    shown = marks if len(marks) <= MAX_MARKS else []
    drawn = "\n".join(
        scatter.draw(points, marks=shown, value_title=_arrowed(column), layout=layout)
        for layout in (scatter.WIDE, scatter.NARROW)
    )
    legend = ['<span class="key-point">measured here</span>']
    if any(point.is_baseline for point in points):
        legend.append(f'<span class="key-baseline">{BASELINE}, the baseline</span>')
    if shown:
        legend.append('<span class="key-mark">published, its time unknown</span>')
    elif marks:
        legend.append(f"<span>{len(marks)} published values: only in the table</span>")
    better = "below" if column.is_lower_better else "above"
    return (
        f'<figure><figcaption><b>{escape(column.title)} against time</b> <span class="faint">'
        f"better is {better}, faster is left</span></figcaption>\n{drawn}\n"
        f'<p class="legend">{"".join(legend)}</p></figure>'
    )


def _point(result: Result, value: float, column: Column) -> Point:
    time_s, text = result.seconds_per_megapixel, column.text(value)
    return Point(
        # What is endless lies at the edge, where its height tells nothing.
        name=result.model if math.isfinite(value) else f"{result.model} ({text})",
        time_s=time_s,
        value=value,
        told=f"{result.model}: {_valued(column, text)}, {tables.duration(time_s)} s per megapixel",
        is_baseline=result.model == BASELINE,
    )


def _marks(figures: Sequence[Figure], column: Column) -> list[Mark]:
    found = [(f, value) for f in figures if (value := f.value(column.key)) is not None]
    return [
        Mark(
            name=figure.model,
            value=value,
            told=f"{figure.model}, published by {figure.source.name}: "
            f"{_valued(column, column.text(value))}",
        )
        for figure, value in found
    ]


def _valued(column: Column, text: str) -> str:
    return " ".join(filter(None, (column.title, text, column.unit)))


def _titled(column: Column) -> str:
    return f"{column.title}, {column.unit}" if column.unit else column.title


def _arrowed(column: Column) -> str:
    return f"{_titled(column)} {'↓' if column.is_lower_better else '↑'}"


_COSTS: tuple[tuple[str, str, Callable[[Result], Any], Callable[[Any], str]], ...] = (
    (
        "s/MP",
        "seconds per megapixel of output",
        lambda result: result.seconds_per_megapixel,
        tables.duration,
    ),
    (
        "Memory",
        "the most that the whole process, or the GPU, held",
        lambda result: result.peak_memory_bytes,
        tables.memory,
    ),
    ("Params", "trained numbers of the network", lambda result: result.parameters, tables.amount),
    (
        "Mult-adds",
        "multiplications with an addition, for a result of 1280×720 px",
        lambda result: result.multiply_adds_hd,
        tables.amount,
    ),
)
"""Heading, what it means, and what it is of a result, as number and as text."""


def _table(
    report: Report,
    results: Sequence[Result],
    figures: Sequence[Figure],
    *,
    name: str,
    sources: dict[Source, int],
) -> str:
    costs = [cost for cost in _COSTS if any(cost[2](result) is not None for result in results)]
    counts = {column.key: _counts(results, column) for column in report.columns}
    # What is so of all models is said once, at the head.
    common = {key: own[0] if len(set(own)) == 1 else "" for key, own in counts.items()}
    heads = [
        _head("Model"),
        *(
            _head(_titled(c), is_lower_better=c.is_lower_better, small=common[c.key])
            for c in report.columns
        ),
        *(_head(title, told=told) for title, told, _, _ in costs),
    ]
    # Where all networks ran alike, the head of the page says how.
    differ = len(ways(results)) > 1
    rows = []
    for number, result in enumerate(results):
        way = result.way if differ and result.parameters is not None else ""
        cells = [
            _cell(
                value := result.mean(column.key),
                column.text,
                is_best=value is not None and value == report.best(results, column.key),
                small="" if common[column.key] else counts[column.key][number],
            )
            for column in report.columns
        ]
        cells += [_cell(pick(result), text) for _, _, pick, text in costs]
        rows.append(_row(result.model, cells, small=way))
    bodies = f"<tbody>{''.join(rows)}</tbody>"
    if figures:
        rows = []
        for figure in figures:
            cells = [_cell(figure.value(column.key), column.text) for column in report.columns]
            cited = sources[figure.source]
            link = _link(figure.source.url, figure.source.name)
            number = f'<a href="#source-{cited}" aria-label="source {cited}">[{cited}]</a>'
            cells.append(f'<td class="source" colspan="{len(costs)}">{link} {number}</td>')
            rows.append(_row(figure.model, cells))
        bodies += (
            f'<tbody class="others"><tr><th colspan="{len(heads)}" scope="rowgroup"><span>'
            f"Published by others, not measured here</span></th></tr></tbody>"
            f'<tbody class="others">{"".join(rows)}</tbody>'
        )
    return _boxed(f"Means of {name}", heads, bodies)


def _counts(results: Sequence[Result], column: Column) -> list[str]:
    """Of how many pictures each mean is, "4 of 5", where it is of fewer than all."""
    pairs = [(result.count(column.key), len(result.pictures)) for result in results]
    return [f"{count} of {whole}" if 0 < count < whole else "" for count, whole in pairs]


def _details(report: Report, results: Sequence[Result], *, name: str) -> str:
    """Every value: a table for each measure, and one of seconds."""
    by_name = [_by_name(result.pictures) for result in results]
    heads = [_head("Picture"), *(_head(result.model) for result in results)]
    seconds = Column(key="", title="Seconds", digits=3, is_lower_better=True)
    parts = []
    for column in (*report.columns, seconds):
        rows = []
        for place in dict.fromkeys(place for found in by_name for place in found):
            shown = [each.get(place) for each in by_name]
            if column is seconds:
                cells = [_cell(p and p.time_s, tables.duration) for p in shown]
            else:
                values = [p and p.values.get(column.key) for p in shown]
                known = [value for value in values if value is not None]
                best = (min if column.is_lower_better else max)(known, default=None)
                cells = [
                    _cell(v, column.text, is_best=v == best and len(known) > 1) for v in values
                ]
            rows.append(_row(place[0], cells))
        title = _titled(column)
        bodies = f"<tbody>{''.join(rows)}</tbody>"
        parts += [f"<h3>{escape(title)}</h3>", _boxed(f"{title}, each picture", heads, bodies)]
    return f"<details><summary>Each picture of {escape(name)}</summary>{''.join(parts)}</details>"


def _by_name(results: Iterable[PictureResult]) -> dict[tuple[str, int], PictureResult]:
    """By name, and by which of that name it is: a.png and a.jpg may both be called "a"."""
    found: dict[tuple[str, int], PictureResult] = {}
    for result in results:
        number = sum(name == result.name for name, _ in found)
        found[result.name, number] = result
    return found


def _boxed(label: str, heads: Sequence[str], bodies: str) -> str:
    """A table in a box of its own that scrolls sideways, by keys too."""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{''.join(heads)}</tr></thead>{bodies}</table></div>"
    )


def _head(
    title: str, *, told: str = "", is_lower_better: bool | None = None, small: str = ""
) -> str:
    """A heading, with an arrow to what is better; which sorting begins with."""
    arrow = ""
    if is_lower_better is not None:
        told, sign = ("lower is better", "↓") if is_lower_better else ("higher is better", "↑")
        arrow = f' <span role="img" aria-label="{told}">{sign}</span>'
    begin = ' data-first="descending"' if is_lower_better is False else ""
    tip = f' title="{escape(told)}"' if told else ""
    return f'<th scope="col"{begin}{tip}>{escape(title)}{arrow}{_small(small)}</th>'


def _row(name: str, cells: Sequence[str], *, small: str = "") -> str:
    # Where a name must be broken, after its words.
    name = escape(name).replace("_", "_<wbr>")
    return f'<tr><th scope="row">{name}{_small(small)}</th>{"".join(cells)}</tr>'


def _cell(
    value: float | None, text: Callable[[Any], str], *, is_best: bool = False, small: str = ""
) -> str:
    if value is None:
        return "<td>–</td>"
    number = str(value).replace("inf", "Infinity")
    kind = ' class="best"' if is_best else ""
    return f'<td{kind} data-value="{number}">{escape(text(value))}{_small(small)}</td>'


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _sources(sources: dict[Source, int]) -> str:
    items = []
    for source, number in sources.items():
        parts = [_link(source.url, source.title)]
        if source.read_in is not None:
            parts.append(f"read in {_link(source.read_in, source.read_in)}")
        told = f'<p class="faint">{escape(source.note)}</p>' if source.note else ""
        items.append(f'<li id="source-{number}">{", ".join(parts)}{told}</li>')
    if not items:
        return ""
    return f'<section><h2>Sources</h2><ol class="sources">{"".join(items)}</ol></section>'


def _link(url: str, text: str) -> str:
    """A link where it is one of the web's; else the text alone."""
    if not url.startswith("https://"):
        return escape(text)
    return f'<a href="{escape(url)}" rel="noopener noreferrer">{escape(text)}</a>'
