"""An animation that flips from one result to the next, in place: what differs, moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from waifu4x.animations import Animation
from waifu4x.compare import captions
from waifu4x.compare.captions import Caption
from waifu4x.compare.results import Comparison
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture

Uint8Array = npt.NDArray[np.uint8]

FRAME_MS = 1200.0
"""How long each result stays: time enough to read its name."""

_PAPER = (250, 250, 251)
_RAIL = (221, 224, 230)
_GAP_PX, _PAD_PX = 8, 8
_NAME_PX, _FACT_PX = 20, 15
_LABEL_PX = 70
_RAIL_PX = 4
_NARROWEST_PX = 240


def flip(comparisons: Sequence[Comparison]) -> Animation:
    """A frame for bicubic, each model and the truth, with its label below; shown for ever.

    Several comparisons are next to each other in every frame. The pixels are those of the grid's
    windows, exactly; a GIF keeps at most 256 colours of them, WebP and PNG keep all.

    Raises:
        UsageError: no comparisons.
    """
    if not comparisons:
        raise UsageError("there is nothing to flip between")
    views = [_views(comparison) for comparison in comparisons]
    total = len(views[0])
    frames = [
        _frame([shown[number] for shown in views], number, total=total) for number in range(total)
    ]
    return Animation(
        frames=tuple(Picture(pixels=frame, format="GIF") for frame in frames),
        durations_ms=(FRAME_MS,) * total,
        format="GIF",
    )


def _views(comparison: Comparison) -> list[tuple[Uint8Array, Caption]]:
    large = comparison.window.scaled(comparison.scale)
    views = [
        (large.cut(result.pixels), captions.of_result(result, comparison))
        for result in comparison.results
    ]
    if comparison.truth is not None:
        views.append((large.cut(comparison.truth), captions.of_truth()))
    return views


def _frame(views: Sequence[tuple[Uint8Array, Caption]], number: int, *, total: int) -> Uint8Array:
    """One result of every comparison, as near to a square as may be."""
    across = math.ceil(math.sqrt(len(views)))
    cell_x = max(_NARROWEST_PX, *(pixels.shape[1] for pixels, _ in views)) + _GAP_PX
    cell_y = max(pixels.shape[0] for pixels, _ in views) + _GAP_PX
    down = math.ceil(len(views) / across)
    size = (down * cell_y - _GAP_PX + _LABEL_PX, across * cell_x - _GAP_PX)
    canvas = np.full((*size, 3), _PAPER, dtype=np.uint8)
    for place, (pixels, _) in enumerate(views):
        x = place % across * cell_x + (cell_x - _GAP_PX - pixels.shape[1]) // 2
        y = place // across * cell_y + (cell_y - _GAP_PX - pixels.shape[0]) // 2
        canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    image = Image.fromarray(canvas)
    _label(ImageDraw.Draw(image), [caption for _, caption in views], number, total, size)
    return np.asarray(image)


def _label(
    pen: ImageDraw.ImageDraw,
    labels: Sequence[Caption],
    number: int,
    total: int,
    size: tuple[int, int],
) -> None:
    """A rail that shows how far the round is; then the name, and what is known of it."""
    height, width = size
    top = height - _LABEL_PX + _GAP_PX
    pen.rectangle((0, top, width, top + _RAIL_PX - 1), fill=_RAIL)
    ends = (round(width * number / total), round(width * (number + 1) / total) - 1)
    pen.rectangle((ends[0], top, ends[1], top + _RAIL_PX - 1), fill=captions.INK)
    room_px = width - 2 * _PAD_PX
    captions.write(pen, (_PAD_PX, top + 9), labels[0].name, size_px=_NAME_PX, room_px=room_px)
    captions.write(
        pen,
        (_PAD_PX, top + 36),
        _told(labels),
        size_px=_FACT_PX,
        room_px=room_px,
        color=captions.FAINT,
    )


def _told(labels: Sequence[Caption]) -> str:
    """Time, parameters and figures of one picture; of several, what is true of all."""
    first = labels[0]
    if len(labels) > 1:
        return first.what or first.parameters
    parts = (first.effort, first.psnr, first.ssim and f"SSIM {first.ssim}")
    return " · ".join(filter(None, parts))
