"""``report.html``: one page, in one file, that tells a whole training run.

It asks nothing of the network and nothing of a server, so it can be mailed, kept beside the model,
and opened years later. Curves and last values are there without JavaScript too; with it, one slider
moves a cursor through all curves, and another shows the outputs step by step.
"""

from __future__ import annotations

import base64
import io
import json
import shlex
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from waifu4x import files
from waifu4x.errors import TrainError
from waifu4x.train.reports import curves, previews
from waifu4x.train.reports.curves import Chart, Metrics
from waifu4x.train.reports.previews import Sample, Uint8Array
from waifu4x.version import __version__

NAME = "report.html"
FACTS_NAME = "facts.json"
METRICS_NAME = "metrics.jsonl"
RECIPE_NAME = "recipe.toml"
MAX_PREVIEW_BYTES = 6_000_000
"""Of the outputs in the page, before base64 adds a third; beyond it an even choice is shown."""
MAX_PREVIEWS = 60
MAX_FILM_BYTES = 4_000_000

_ELSEWHERE = {
    "rrdbnet": "ESRGAN and Real-ESRGAN",
    "srvggnetcompact": "Real-ESRGAN's compact networks",
}


def build(run_folder: Path) -> str:
    """The page about the run in `run_folder`, also of one that is not finished.

    It tells ``metrics.jsonl``, the previews, ``recipe.toml``, ``facts.json`` ({name: text}; its
    ``name``, ``scale`` and ``architecture`` are used in the commands) and ``path.webp``. Of these
    only the metrics must be there; the page says what is missing. All texts are escaped.

    Raises:
        TrainError: no metrics, or a file that cannot be read.
    """
    metrics = curves.read_metrics(run_folder / METRICS_NAME)
    facts = _facts(run_folder)
    name = facts.get("name", run_folder.resolve().name)
    charts = curves.charts(metrics)
    curves_html, data = _curves(metrics, charts)
    previews_html, data["previews"] = _previews(run_folder)
    page = Template(
        resources.files("waifu4x.train.reports").joinpath("report.html").read_text("utf-8")
    )
    return page.substitute(
        title=escape(f"Training of {name}"),
        header=_header(metrics, facts),
        curves=curves_html,
        previews=previews_html + _film(run_folder),
        usage=_usage(name, facts),
        facts=_table(run_folder, facts) if facts else _missing(FACTS_NAME),
        recipe=_recipe(run_folder),
        footer=escape(f"Written by waifu4x {__version__}."),
        # In a script only "</" and "<!--" mean anything to HTML.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def write(run_folder: Path) -> Path:
    """Write what `build` gives to ``report.html`` in the run's folder, and return its path.

    Raises:
        TrainError: as `build`, or the file cannot be written.
    """
    target = run_folder / NAME
    page = build(run_folder).encode()
    try:
        files.write_bytes(target, page)
    except OSError as error:
        raise TrainError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _facts(run_folder: Path) -> dict[str, str]:
    path = run_folder / FACTS_NAME
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainError(f"{path} cannot be read: {error}; delete it") from error
    if not isinstance(facts, dict):
        raise TrainError(f"{path} is no table of facts; delete it")
    return {str(key): str(value) for key, value in facts.items()}


def _missing(name: str) -> str:
    return f'<p class="faint">Not here: the run has no {escape(name)} (yet).</p>'


def _header(metrics: Metrics, facts: dict[str, str]) -> str:
    rows = metrics.rows
    tiles: dict[str, str] = {}
    if rows:
        last = rows[-1]
        tiles["Steps"] = f"{last['step']:,}"
        if _is_number(last.get("elapsed_s")):
            tiles["Time"] = _duration(last["elapsed_s"])
    for key, label, form in (("psnr_db", "PSNR", "{:.2f} dB"), ("ssim", "SSIM", "{:.4f}")):
        measured = [row[key] for row in rows if _is_number(row.get(key))]
        if measured:
            tiles[f"{label}, at the end"] = form.format(measured[-1])
            tiles[f"{label}, best"] = form.format(max(measured))
    tiles |= {key: facts[key] for key in ("machine", "licence") if key in facts}
    items = [
        f"<div><dt>{escape(key.capitalize() if key.islower() else key)}</dt>"
        f"<dd>{escape(value)}</dd></div>"
        for key, value in tiles.items()
    ]
    parts = [f'<dl class="key">{"".join(items)}</dl>'] if items else []
    progress = rows[-1].get("progress") if rows else 0.0
    if isinstance(progress, int | float) and progress < 1.0:
        parts.insert(0, f'<p class="notice">Not finished: {100.0 * progress:.0f} % is done.</p>')
    if metrics.unread:
        parts.append(
            f'<p class="notice">Lines of {METRICS_NAME} that could not be read, as happens when a '
            f"run is cut off, and are left out: {metrics.unread}.</p>"
        )
    return "\n".join(parts)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))  # pyright: ignore[reportArgumentType, reportCallIssue]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _curves(metrics: Metrics, charts: tuple[Chart, ...]) -> tuple[str, dict[str, Any]]:
    data: dict[str, Any] = {"charts": []}
    if not charts:
        return '<p class="faint">Nothing was measured yet.</p>', data
    span = (0, max(curve.points[-1][0] for chart in charts for curve in chart.curves))
    first, *later = metrics.stages.items() or [("", 0)]
    begins = dict(later)
    figures = []
    for chart in charts:
        svg, numbers = curves.draw(chart, span=span, stages=begins.values())
        data["charts"].append(numbers)
        figures.append(_figure(chart, svg))
    data["plot"] = {
        "left": curves.LEFT,
        "right": curves.RIGHT,
        "top": curves.TOP,
        "bottom": curves.BOTTOM,
        "width": curves.WIDTH,
        "first": span[0],
        "last": span[1],
    }
    told = ""
    if begins:
        names = "; ".join(f"{name}, first noted at step {step:,}" for name, step in later)
        told = f"<p>Stages: {escape(first[0])}; {escape(names)}. Dotted lines mark the changes.</p>"
    thinned = any(len(c.points) > curves.MAX_POINTS for chart in charts for c in chart.curves)
    if thinned:
        told += '<p class="faint">Lines are means of short stretches; bands are their extremes.</p>'
    body = _slider("step", "Read the curves at") + f'<div class="charts">{"".join(figures)}</div>'
    return told + body + _ends(charts), data


def _slider(name: str, label: str) -> str:
    """Hidden until the script is there that it needs."""
    return (
        f'<div class="slider" hidden><label for="{name}">{label}</label>'
        f'<input type="range" id="{name}" min="0" step="1" value="0">'
        f'<output id="{name}-told" for="{name}" aria-live="off"></output></div>'
    )


def _figure(chart: Chart, svg: str) -> str:
    legend = []
    for number, curve in enumerate(chart.curves):
        swatch = (
            f'<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true">'
            f'<polyline class="c{number % 4}" points="0,5 26,5"/></svg>{escape(curve.name)} '
        )
        value = escape(chart.in_words(curve.thinned()[-1][1]))
        shown = swatch if len(chart.curves) > 1 else ""
        legend.append(f'<span>{shown}<span class="value">{value}</span></span>')
    axis = "<span>logarithmic</span>" if chart.is_log else ""
    caption = f"<figcaption>{''.join(legend)}{axis}</figcaption>"
    return f"<figure><h3>{escape(chart.title)}</h3>{caption}{svg}</figure>"


def _ends(charts: tuple[Chart, ...]) -> str:
    """The curves as a table: where each begins and ends, and its extremes."""
    rows = []
    for chart in charts:
        for curve in chart.curves:
            lowest = min(curve.points, key=lambda point: point[1])
            highest = max(curve.points, key=lambda point: point[1])
            title = chart.title if len(chart.curves) == 1 else f"{chart.title}: {curve.name}"
            cells = [
                f"<td>{escape(chart.in_words(value))}"
                f'<br><span class="faint">step&nbsp;{step:,}</span></td>'
                for step, value in (curve.points[0], curve.points[-1], lowest, highest)
            ]
            rows.append(f'<tr><th scope="row">{escape(title)}</th>{"".join(cells)}</tr>')
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("", "First", "Last", "Lowest", "Highest"))
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<details><summary>In numbers</summary><div class="wide">{table}</div></details>'


def _previews(run_folder: Path) -> tuple[str, dict[str, Any]]:
    listed = previews.list_previews(run_folder)
    if not listed:
        return _missing("previews"), {"steps": [], "outputs": []}
    last = previews.load_preview(listed[max(listed)])
    chosen = _choice(listed, last)
    outputs: list[list[str]] = []
    for step in chosen:
        samples = previews.load_preview(listed[step])
        if [sample.output.shape for sample in samples] != [s.output.shape for s in last]:
            raise TrainError(f"{listed[step]} is of other pictures than the last; delete it")
        outputs.append([_data_uri(sample.output) for sample in samples])
    some = "" if len(chosen) == len(listed) else f", {len(chosen)} of {len(listed)}"
    parts = [
        f"<p>The same pictures at fixed steps{some}; all of them, uncut, are in "
        f"<code>{previews.FOLDER}/</code>.</p>",
        _slider("preview", "Show the output at"),
    ]
    for sample, output in zip(last, outputs[-1], strict=True):
        figures = [_tile(sample, label, output=output) for label in sample.tiles]
        parts.append(f'<h3>{escape(sample.name)}</h3><div class="tiles">{"".join(figures)}</div>')
    return "\n".join(parts), {"steps": chosen, "outputs": outputs}


def _choice(listed: dict[int, Path], last: tuple[Sample, ...]) -> list[int]:
    """As many steps as fit, evenly, the first and the last among them."""
    each_bytes = sum(len(_webp(sample.output)) for sample in last)
    most = max(2, min(MAX_PREVIEWS, MAX_PREVIEW_BYTES // each_bytes))
    steps = list(listed)
    places = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round())
    return [steps[int(place)] for place in places]


def _tile(sample: Sample, label: str, *, output: str) -> str:
    height, width = sample.output.shape[:2]
    if label == "output":
        more, source = f' class="output" data-name="{escape(sample.name)}"', output
    else:
        more, source = "", _data_uri(sample.tiles[label])
    words = escape(f"{sample.name}, {label}")
    return (
        f'<figure><img{more} src="{source}" width="{width}" height="{height}" alt="{words}">'
        f"<figcaption>{label}</figcaption></figure>"
    )


def _webp(pixels: Uint8Array) -> bytes:
    encoded = io.BytesIO()
    # Without loss: what is looked for here are artefacts, and they must be the network's own.
    Image.fromarray(pixels).save(encoded, "WEBP", lossless=True, quality=50, method=2)
    return encoded.getvalue()


def _data_uri(pixels: Uint8Array) -> str:
    return "data:image/webp;base64," + base64.b64encode(_webp(pixels)).decode()


def _film(run_folder: Path) -> str:
    """The learning path, in a fold: what moves must not do so unasked."""
    path = run_folder / previews.PATH_NAMES[0]
    if not path.is_file():
        return ""
    if path.stat().st_size > MAX_FILM_BYTES:
        return f"<p>The learning path as a film is in <code>{escape(path.name)}</code>.</p>"
    source = "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()
    alt = "The outputs from the first step to the last, as an animation"
    return (
        f'<details class="film"><summary>The learning path as a film</summary>'
        f'<img src="{source}" alt="{alt}"></details>'
    )


def _usage(name: str, facts: dict[str, str]) -> str:
    quoted = shlex.quote(name)
    scale = facts.get("scale", "4")
    scale = scale if scale.isdecimal() else "4"
    commands = {
        "Enlarge a picture, or a folder with all that is in it": (
            f"waifu4x upscale picture.png -m {quoted}\n"
            f"waifu4x upscale photos/ -o big/ -r -m {quoted}"
        ),
        "Measure it against bicubic, on pictures it was not trained on": (
            f"waifu4x bench Set5/ -s {scale} -m {quoted}"
        ),
        "Mix it with a model of the same network, such as the one it was started from": (
            f"waifu4x models blend {quoted} OTHER --alpha 0.8 --name mixed"
        ),
        "On another machine, bring the file along": (
            f"waifu4x models add {shlex.quote(f'{name}.safetensors')} --name {quoted}"
        ),
        "In Python": (
            f"import waifu4x\n\nupscaler = waifu4x.open_upscaler({name!r})\n"
            f"target = waifu4x.Target(scale={scale})\n"
            'larger, facts = upscaler.upscale(waifu4x.read("picture.png"), target)\n'
            'waifu4x.write(larger, "larger.png")'
        ),
    }
    parts = [
        f'<h3>{escape(title)}</h3><pre tabindex="0"><code>{escape(text)}</code></pre>'
        for title, text in commands.items()
    ]
    family = _ELSEWHERE.get(facts.get("architecture", ""))
    if family is not None:
        parts.append(
            f"<p>The tensors in the file have the names that are usual for {family}: other "
            f"programs that load such models from .safetensors files know it too.</p>"
        )
    return "\n".join(parts)


def _table(run_folder: Path, facts: dict[str, str]) -> str:
    # The recipe as one line of JSON is for programs; the page has it as TOML.
    told_apart = {"recipe"} if (run_folder / RECIPE_NAME).is_file() else set()
    rows = [
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in facts.items()
        if key not in told_apart
    ]
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def _recipe(run_folder: Path) -> str:
    path = run_folder / RECIPE_NAME
    if not path.is_file():
        return _missing(RECIPE_NAME)
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise TrainError(f"{path} cannot be read: {error}") from error
    command = "waifu4x train photos/ --recipe recipe.toml --name again"
    return (
        f"<p>Saved as a file, it trains again: <code>{command}</code></p>"
        f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
    )
