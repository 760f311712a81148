"""One picture that shows them all: the input, bicubic, every model, and the truth.

The pixels of the results are guaranteed to be in the grid exactly as they are: nothing is resampled
and nothing is drawn over them. Only the input, which is enlarged by repeating its pixels, is marked
where the insets are taken from; insets repeat pixels too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from waifu4x.compare import captions, crops
from waifu4x.compare.captions import Caption
from waifu4x.compare.crops import Crop
from waifu4x.compare.results import Comparison
from waifu4x.compare.subjects import Subject
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture
from waifu4x.version import __version__

Uint8Array = npt.NDArray[np.uint8]
RGB = tuple[int, int, int]

MAX_PIXELS = 150_000_000
"""Of all results in a grid together: half a gigabyte in memory."""
INSET_ZOOM = 3
"""How many times an inset repeats each pixel of a result."""
MARKS: tuple[RGB, ...] = ((221, 92, 12), (20, 110, 205))
"""The colours of the insets' frames, and of the marks on the input."""

_PAPER: RGB = (250, 250, 251)
_RULE: RGB = (221, 224, 230)
_MARGIN_PX, _GAP_PX, _ROWS_GAP_PX = 28, 16, 30
_WIDEST_PX = 2600
_NARROWEST_TILE_PX = 230
# A mark must stand off from the picture below it, whatever its colour: white runs along it.
_FRAME_PX, _HALO_PX = 3, 1
_TITLE_PX, _DETAIL_PX, _NAME_PX, _FACT_PX = 24, 16, 20, 16
_TITLE_ROOM_PX, _NAME_ROOM_PX, _FACT_ROOM_PX = 44, 28, 22
_INSETS_GAP_PX = 8
# An inset of fewer input pixels to a side shows nothing that the picture does not.
_INSET_MIN_LR_PX = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tile:
    pixels: Uint8Array
    caption: Caption
    is_input: bool = False


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Where things lie within each tile of one comparison; all sizes in px."""

    columns: int
    pitch_px: int
    """From one tile to the next."""
    insets: tuple[Crop, ...]
    """In pixels of the results."""
    inset_pitch_px: int
    """From one inset to the next."""
    lines: int
    """Of the captions."""

    @property
    def inset_px(self) -> tuple[int, int]:
        """(width, height) of one inset."""
        if not self.insets:
            return 0, 0
        return self.insets[0].width_px * INSET_ZOOM, self.insets[0].height_px * INSET_ZOOM


def check(subjects: Sequence[Subject], models: int) -> None:
    """Refuse what would make too large a grid: to be asked before any work is done.

    models: how many there will be, bicubic among them. Raises UsageError.
    """
    total = 0
    for subject in subjects:
        large = subject.window.scaled(subject.scale)
        total += large.width_px * large.height_px * (models + 1 + (subject.truth is not None))
    if total > MAX_PIXELS:
        raise UsageError(
            f"the grid would hold {total / 1e6:.0f} million pixels, and the limit is "
            f"{MAX_PIXELS / 1e6:.0f} million: choose a smaller --crop, fewer models or a smaller -s"
        )


def draw(comparisons: Sequence[Comparison]) -> Picture:
    """The grid: a row for each comparison, or several where there are many models.

    Raises:
        UsageError: no comparisons.
    """
    if not comparisons:
        raise UsageError("there is nothing to draw a grid of")
    rows = [(comparison, _tiles(comparison)) for comparison in comparisons]
    plans = [_plan(comparison, tiles) for comparison, tiles in rows]
    width_px = max(2 * _MARGIN_PX + plan.columns * plan.pitch_px - _GAP_PX for plan in plans)
    heights_px = [_height_px(plan, tiles) for plan, (_, tiles) in zip(plans, rows, strict=True)]
    footer_px = _FACT_ROOM_PX * len(_footer(comparisons)) + _MARGIN_PX // 2
    height_px = _MARGIN_PX + sum(heights_px) + _ROWS_GAP_PX * len(rows) + footer_px
    canvas = np.full((height_px, width_px, 3), _PAPER, dtype=np.uint8)
    lettering: list[tuple[int, Comparison, list[_Tile], _Plan]] = []
    top = _MARGIN_PX
    for (comparison, tiles), plan, tall in zip(rows, plans, heights_px, strict=True):
        _lay(canvas, tiles, plan, top=top + _TITLE_ROOM_PX)
        lettering.append((top, comparison, tiles, plan))
        top += tall + _ROWS_GAP_PX
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    room_px = width_px - 2 * _MARGIN_PX
    for row_top, comparison, tiles, plan in lettering:
        _letter(pen, comparison, tiles, plan, top=row_top, room_px=room_px)
    pen.line((_MARGIN_PX, top - 16, width_px - _MARGIN_PX, top - 16), fill=_RULE)
    for number, line in enumerate(_footer(comparisons)):
        at = (_MARGIN_PX, top - 6 + number * _FACT_ROOM_PX)
        captions.write(pen, at, line, size_px=14, room_px=room_px, color=captions.FAINT)
    return Picture(pixels=np.asarray(image), format="PNG")


def _tiles(comparison: Comparison) -> list[_Tile]:
    scale, window = comparison.scale, comparison.window
    large = window.scaled(scale)
    enlarged = window.cut(comparison.lr).repeat(scale, axis=0).repeat(scale, axis=1)
    tiles = [_Tile(pixels=enlarged, caption=captions.of_input(comparison), is_input=True)]
    for result in comparison.results:
        caption = captions.of_result(result, comparison)
        tiles.append(_Tile(pixels=large.cut(result.pixels), caption=caption))
    if comparison.truth is not None:
        tiles.append(_Tile(pixels=large.cut(comparison.truth), caption=captions.of_truth()))
    return tiles


def _plan(comparison: Comparison, tiles: Sequence[_Tile]) -> _Plan:
    wide_px = tiles[0].pixels.shape[1]
    pitch_px = max(wide_px, _NARROWEST_TILE_PX) + _GAP_PX
    most = max(1, (_WIDEST_PX - 2 * _MARGIN_PX + _GAP_PX) // pitch_px)
    lines = math.ceil(len(tiles) / most)
    insets = _insets(comparison)
    framed_px = insets[0].width_px * INSET_ZOOM + 2 * _FRAME_PX if insets else 0
    return _Plan(
        columns=math.ceil(len(tiles) / lines),
        pitch_px=pitch_px,
        insets=insets,
        # Flush with both sides of the picture above them.
        inset_pitch_px=wide_px - framed_px,
        lines=3 if comparison.truth is not None else 2,
    )


def _insets(comparison: Comparison) -> tuple[Crop, ...]:
    """Two windows that fit next to each other below the picture; they begin at input pixels."""
    window, scale = comparison.window, comparison.scale
    large = window.scaled(scale)
    wide_px = ((large.width_px - _INSETS_GAP_PX) // 2 - 2 * _FRAME_PX) // INSET_ZOOM
    tall_px = min(large.height_px, round(wide_px * 0.75))
    if min(wide_px, tall_px) < _INSET_MIN_LR_PX * scale:
        return ()
    shown = window.cut(comparison.lr)
    size = (math.ceil(wide_px / scale), math.ceil(tall_px / scale))
    first = crops.most_detailed(shown, size)
    second = crops.most_detailed(shown, size, avoid=[first])
    left, right = sorted((first, second), key=lambda crop: (crop.x, crop.y))
    return tuple(
        Crop(x=crop.x * scale, y=crop.y * scale, width_px=wide_px, height_px=tall_px)
        for crop in (left, right)
    )


def _height_px(plan: _Plan, tiles: Sequence[_Tile]) -> int:
    lines = math.ceil(len(tiles) / plan.columns)
    return _TITLE_ROOM_PX + lines * _pitch_y_px(plan, tiles) - _GAP_PX


def _pitch_y_px(plan: _Plan, tiles: Sequence[_Tile]) -> int:
    """From one line of tiles to the next, captions included."""
    return _caption_y_px(plan, tiles) + _NAME_ROOM_PX + (plan.lines - 1) * _FACT_ROOM_PX + _GAP_PX


def _caption_y_px(plan: _Plan, tiles: Sequence[_Tile]) -> int:
    inset_px = plan.inset_px[1] + 2 * _FRAME_PX + _INSETS_GAP_PX if plan.insets else 0
    return tiles[0].pixels.shape[0] + inset_px + 10


def _corners(plan: _Plan, tiles: Sequence[_Tile], *, top: int) -> list[tuple[int, int]]:
    """(x, y) of each tile."""
    pitch_y = _pitch_y_px(plan, tiles)
    return [
        (_MARGIN_PX + n % plan.columns * plan.pitch_px, top + n // plan.columns * pitch_y)
        for n in range(len(tiles))
    ]


def _lay(canvas: Uint8Array, tiles: Sequence[_Tile], plan: _Plan, *, top: int) -> None:
    for tile, (x, y) in zip(tiles, _corners(plan, tiles, top=top), strict=True):
        tall, wide = tile.pixels.shape[:2]
        _framed(canvas, tile.pixels, (x, y), color=_RULE, frame_px=1)
        for number, (inset, color) in enumerate(zip(plan.insets, MARKS, strict=False)):
            if tile.is_input:
                _mark(canvas[y : y + tall, x : x + wide], inset, color)
            large = inset.cut(tile.pixels).repeat(INSET_ZOOM, axis=0).repeat(INSET_ZOOM, axis=1)
            left = x + _FRAME_PX + number * plan.inset_pitch_px
            at = (left, y + tall + _INSETS_GAP_PX + _FRAME_PX)
            _framed(canvas, large, at, color=color, frame_px=_FRAME_PX)


def _framed(
    canvas: Uint8Array, pixels: Uint8Array, at: tuple[int, int], *, color: RGB, frame_px: int
) -> None:
    """Put `pixels` with their corner at (x, y), and a frame around them."""
    (x, y), (tall, wide) = at, pixels.shape[:2]
    around = canvas[y - frame_px : y + tall + frame_px, x - frame_px : x + wide + frame_px]
    around[:] = color
    canvas[y : y + tall, x : x + wide] = pixels


def _mark(tile: Uint8Array, inset: Crop, color: RGB) -> None:
    """Draw the inset's outline into the input, just outside of what the inset shows."""
    height, width = tile.shape[:2]
    for grow_px, shade in ((_FRAME_PX + _HALO_PX, (255, 255, 255)), (_FRAME_PX, color)):
        outer = inset.grown(grow_px, within=(height, width))
        kept = inset.cut(tile).copy()
        outer.cut(tile)[:] = shade
        inset.cut(tile)[:] = kept


def _letter(
    pen: ImageDraw.ImageDraw,
    comparison: Comparison,
    tiles: Sequence[_Tile],
    plan: _Plan,
    *,
    top: int,
    room_px: int,
) -> None:
    title, detail = captions.heading(comparison)
    x = _MARGIN_PX
    x += captions.write(pen, (x, top), title, size_px=_TITLE_PX, room_px=room_px * 2 // 3) + 14
    captions.write(
        pen,
        (x, top + _TITLE_PX - _DETAIL_PX - 1),
        detail,
        size_px=_DETAIL_PX,
        room_px=room_px + _MARGIN_PX - x,
        color=captions.FAINT,
    )
    below = _caption_y_px(plan, tiles)
    for tile, (x, y) in zip(tiles, _corners(plan, tiles, top=top + _TITLE_ROOM_PX), strict=True):
        _caption(pen, tile.caption, (x, y + below), room_px=plan.pitch_px - _GAP_PX)


def _caption(
    pen: ImageDraw.ImageDraw, caption: Caption, at: tuple[int, int], *, room_px: int
) -> None:
    x, y = at
    captions.write(pen, (x, y), caption.name, size_px=_NAME_PX, room_px=room_px)
    y += _NAME_ROOM_PX
    faint = captions.FAINT
    captions.write(pen, (x, y), caption.effort, size_px=_FACT_PX, room_px=room_px, color=faint)
    y += _FACT_ROOM_PX
    figures = (
        ("PSNR", caption.psnr, caption.psnr_is_best),
        ("SSIM", caption.ssim, caption.ssim_is_best),
    )
    end = x + room_px
    for word, figure, is_best in figures:
        if not figure:
            continue
        x += captions.write(pen, (x, y), f"{word} ", size_px=_FACT_PX, room_px=end - x, color=faint)
        color = captions.BEST if is_best else captions.INK
        x += captions.write(pen, (x, y), figure, size_px=_FACT_PX, room_px=end - x, color=color)
        if is_best:
            pen.ellipse((x + 5, y + 6, x + 12, y + 13), fill=captions.BEST)
            x += 14
        x += 14


def _footer(comparisons: Sequence[Comparison]) -> list[str]:
    told = list(dict.fromkeys(map(captions.measured_on, comparisons)))
    if len(told) > 1:
        # Regions of several sizes: each comparison's own size says enough.
        told = [f"Times are of what is compared of each picture{captions.machine(comparisons)}."]
    if any(c.best("psnr_db") is not None for c in comparisons):
        told[0] += " The dot marks the best of a row."
    zoom = f" Insets repeat each of them {INSET_ZOOM}x{INSET_ZOOM} times."
    return [*told, f"Made with waifu4x {__version__}. Every pixel is shown as it is.{zoom}"]
