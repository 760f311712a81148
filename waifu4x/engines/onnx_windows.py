"""A window goes through an ONNX graph in the form that the graph wants, and comes back in ours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x.engines import FloatArray
from waifu4x.tiling import Span, Tile


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a graph takes a picture, and gives the larger one."""

    channels_first: bool = True
    """(N, C, h, w) goes in; else (N, h, w, C)."""
    channels_first_out: bool = True
    white: float = 1.0
    """What white is, in and out; black is 0."""
    dtype: str = "float32"
    """Of the input: ``float32``, ``float16`` or ``uint8``."""
    batch: int = 1
    """How many pictures it takes at once, where that is fixed; all but one are then the same."""
    height_px: int | None = None
    """The only height that it takes; None when it takes any. `width_px` likewise."""
    width_px: int | None = None
    halo_px: int = 0
    """How much of its neighbours a part of a picture is shown, where a size is fixed."""


def run(session: Any, window: FloatArray, *, form: Form, scale: int) -> FloatArray:
    """(h, w, C) float32, white at 1 -> (s·h, s·w, C) float32, neither clamped nor checked.

    Where the form fixes a size, the window is shown in parts of that size, which overlap by twice
    `form.halo_px`. There it is continued on all sides by what lies at its borders: so the result
    does not depend on how a picture was cut into windows.

    Raises whatever ONNX Runtime raises, and ValueError when the graph gives another shape.
    """
    height, width, channels = window.shape
    if form.height_px is None and form.width_px is None:
        return _run_whole(session, window, form=form, scale=scale)
    rows, above = _spans(height, form.height_px, halo_px=form.halo_px)
    columns, beside = _spans(width, form.width_px, halo_px=form.halo_px)
    padded = np.pad(window, (above, beside, (0, 0)), mode="edge")
    result = np.empty((*(n * scale for n in padded.shape[:2]), channels), dtype=np.float32)
    for tile in (Tile(row, column) for row in rows for column in columns):
        made = _run_whole(session, tile.cut(padded), form=form, scale=scale)
        result[tile.place(scale)] = tile.core(made, scale)
    top, left = above[0] * scale, beside[0] * scale
    return result[top : top + height * scale, left : left + width * scale]


def _run_whole(session: Any, window: FloatArray, *, form: Form, scale: int) -> FloatArray:
    y = call(session, window, form=form)
    height, width, channels = window.shape
    if y.shape != (height * scale, width * scale, channels):
        raise ValueError(f"it makes {y.shape} of {window.shape}")
    return y


def call(session: Any, window: FloatArray, *, form: Form) -> FloatArray:
    """One pass over a window of a size that the graph takes; the result may have any shape (…).

    Raises whatever ONNX Runtime raises, and ValueError when the result is no batch of pictures.
    """
    x = window * np.float32(form.white) if form.white != 1.0 else window
    if form.dtype == "uint8":
        x = np.rint(x).clip(0.0, 255.0)
    x = x.astype(form.dtype, copy=False)[None]
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if form.channels_first else x)
    x = np.repeat(x, form.batch, axis=0) if form.batch > 1 else x
    (taken,), given = session.get_inputs(), session.get_outputs()[0]
    y: npt.NDArray = session.run([given.name], {taken.name: x})[0]
    if y.ndim != 4:
        raise ValueError(f"it makes {y.shape}, which is no picture")
    y = y[0].transpose(1, 2, 0) if form.channels_first_out else y[0]
    # Not in place: it may be what the session keeps.
    return np.multiply(y, np.float32(1.0 / form.white), dtype=np.float32)


def _spans(
    size_px: int, fixed_px: int | None, *, halo_px: int
) -> tuple[list[Span], tuple[int, int]]:
    """The parts along one side, and by how much it is continued before and after."""
    if fixed_px is None:
        return [Span(0, size_px, 0, size_px)], (0, 0)
    count = -(-size_px // (fixed_px - 2 * halo_px))
    longer_px = max(size_px + 2 * halo_px, fixed_px)
    starts = [number * (longer_px - fixed_px) // max(1, count - 1) for number in range(count)]
    # Between two parts in the middle of what both show.
    middles = [(one + fixed_px + other) // 2 for one, other in itertools.pairwise(starts)]
    edges = [halo_px, *middles, halo_px + size_px]
    return [
        Span(start, fixed_px, edges[number], edges[number + 1])
        for number, start in enumerate(starts)
    ], (halo_px, longer_px - size_px - halo_px)
