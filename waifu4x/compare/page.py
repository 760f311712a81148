"""One page, in one file, in which all results are moved, zoomed and laid over each other together.

It asks nothing of the network and nothing of a server: it opens from a disk or a mail, on a phone
too. Pictures are in it without loss, and enlarged they are shown pixel by pixel. Without JavaScript
they stand next to each other.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x import pictures
from waifu4x.compare import captions
from waifu4x.compare.captions import Caption
from waifu4x.compare.results import Comparison
from waifu4x.compare.subjects import PAGE_REGION_PX, Subject
from waifu4x.errors import UsageError
from waifu4x.pages import content_policy
from waifu4x.version import __version__

Uint8Array = npt.NDArray[np.uint8]

MAX_PIXELS = 40_000_000
"""Of all pictures in a page together: about 50 MB of photographs, and 160 MB at the very worst."""


def region_px(pictures: int, kinds: int, *, scale: int) -> int:
    """How many input pixels of each picture a page has room for, and should have at most.

    kinds: how many enlargements there will be of each, the truth among them.
    """
    room_px = MAX_PIXELS // (pictures * (kinds * scale**2 + 1))
    return max(1, min(PAGE_REGION_PX[0] * PAGE_REGION_PX[1], room_px))


def check(subjects: Sequence[Subject], models: int) -> None:
    """Refuse what would make too large a page: to be asked before any work is done.

    models: how many there will be, bicubic among them. Raises UsageError.
    """
    total = 0
    for subject in subjects:
        region = subject.region
        kinds = models + (subject.truth is not None)
        total += region.width_px * region.height_px * (subject.scale**2 * kinds + 1)
    _check_pixels(total)


def build(comparisons: Sequence[Comparison]) -> str:
    """The page. All texts in it are escaped; no script but its own can run in it.

    Raises:
        UsageError: no comparisons, or more than MAX_PIXELS of pictures.
    """
    if not comparisons:
        raise UsageError("there is nothing to make a page of")
    views = [_views(number, comparison) for number, comparison in enumerate(comparisons)]
    _check_pixels(sum(v["pixels"].shape[0] * v["pixels"].shape[1] for row in views for v in row))
    names = ", ".join(dict.fromkeys(comparison.name for comparison in comparisons))
    page, style, script = (
        resources.files("waifu4x.compare").joinpath(f"page.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    data = [_data(c, row) for c, row in zip(comparisons, views, strict=True)]
    sections = [_section(c, row) for c, row in zip(comparisons, views, strict=True)]
    return Template(page).substitute(
        policy=content_policy(style, script),
        generator=f"waifu4x {__version__}",
        title=escape(f"{names}, compared"),
        style=style,
        sections="\n".join(sections),
        footer=escape(
            f"Made with waifu4x {__version__}. All pictures are here without loss, "
            f"{comparisons[0].scale} times the size of what was enlarged."
        ),
        # In a script only "</" and "<!--" mean anything to HTML.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )


def write(comparisons: Sequence[Comparison], target: Path) -> None:
    """Write what `build` gives, whole or not at all.

    Raises:
        UsageError: as `build`.
        PictureWriteError: the file cannot be written.
    """
    pictures.store(build(comparisons).encode(), target)


def _check_pixels(total: int) -> None:
    if total > MAX_PIXELS:
        raise UsageError(
            f"the page would hold {total / 1e6:.0f} million pixels, and the limit is "
            f"{MAX_PIXELS / 1e6:.0f} million: choose a smaller --crop, fewer models or a smaller -s"
        )


def _views(number: int, comparison: Comparison) -> list[dict[str, Any]]:
    """What can be looked at, in order: caption, pixels, and the element that holds them."""
    # The input is embedded as it is; the browser repeats its pixels.
    shown: list[tuple[Caption, Uint8Array]] = [
        (captions.of_input(comparison), comparison.lr),
        *((captions.of_result(r, comparison), r.pixels) for r in comparison.results),
    ]
    if comparison.truth is not None:
        shown.append((captions.of_truth(), comparison.truth))
    return [
        {"id": f"p{number}v{place}", "caption": caption, "pixels": pixels}
        for place, (caption, pixels) in enumerate(shown)
    ]


def _data(comparison: Comparison, views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    region = comparison.region
    # Bicubic beside the first model; where there is no model, beside the input.
    first = [1, 2] if len(comparison.results) > 1 else [0, 1]
    return {
        "name": comparison.name,
        "width": region.width_px * comparison.scale,
        "height": region.height_px * comparison.scale,
        "measured": captions.measured_on(comparison),
        "first": first,
        "views": [
            {"id": v["id"], "name": v["caption"].name, "figures": _figures(v["caption"])}
            for v in views
        ],
    }


def _figures(caption: Caption) -> str:
    parts = (caption.effort, caption.psnr, caption.ssim and f"SSIM {caption.ssim}")
    return " · ".join(filter(None, parts))


def _section(comparison: Comparison, views: Sequence[dict[str, Any]]) -> str:
    """The pictures for those without JavaScript, and the table for everybody."""
    region, scale = comparison.region, comparison.scale
    width, height = region.width_px * scale, region.height_px * scale
    figures = []
    for view in views:
        caption: Caption = view["caption"]
        name = escape(caption.name)
        kind = ' class="input"' if caption.name == "input" and view["id"].endswith("v0") else ""
        figures.append(
            f'<figure><img id="{view["id"]}"{kind} src="{_data_uri(view["pixels"])}" '
            f'width="{width}" height="{height}" alt="{escape(comparison.name)}, {name}">'
            f'<figcaption><b>{name}</b><div class="figures">{escape(_figures(caption))}</div>'
            f"</figcaption></figure>"
        )
    part = "" if comparison.is_whole else f", {region.width_px}x{region.height_px} px at "
    where = "the whole picture" if not part else f"a part of it{part}{region.x},{region.y}"
    return (
        f'<section class="plain"><h2>{escape(comparison.name)}</h2>'
        f'<p class="faint">{scale}x to {width}x{height} px, {where}.</p>'
        f'<div class="tiles">{"".join(figures)}</div>{_table(views)}</section>'
    )


def _table(views: Sequence[dict[str, Any]]) -> str:
    shown: list[Caption] = [view["caption"] for view in views if view["caption"].time]
    heads = ["Model", "Time", "Parameters"]
    measured = any(caption.psnr for caption in shown)
    if measured:
        heads += ["PSNR, dB", "SSIM"]
    rows = []
    for caption in shown:
        cells = [(caption.time, False), (caption.parameters.removesuffix(" parameters"), False)]
        if measured:
            cells += [
                (caption.psnr.removesuffix(" dB"), caption.psnr_is_best),
                (caption.ssim, caption.ssim_is_best),
            ]
        columns = "".join(
            f'<td class="best">{escape(text)}</td>' if is_best else f"<td>{escape(text)}</td>"
            for text, is_best in cells
        )
        rows.append(f'<tr><th scope="row">{escape(caption.name)}</th>{columns}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _data_uri(pixels: Uint8Array) -> str:
    encoded = io.BytesIO()
    # Without loss: what is looked for here are artefacts, and they must be the models' own.
    Image.fromarray(pixels).save(encoded, "WEBP", lossless=True, quality=50, method=2, exact=True)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
