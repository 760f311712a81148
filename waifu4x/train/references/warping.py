"""A part of a picture as it looks from a little beside: shifted, turned, nearer, brighter.

What comes out is as sharp as the picture, by bicubic interpolation, and shows what a reference of
the same scene would. Borders continue.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from waifu4x.train.references.reference_options import ReferenceOptions

Uint8Array = npt.NDArray[np.uint8]

# Some rows at a time, to keep temporaries small.
_ROWS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warp:
    """How a part looks: around its middle turned counterclockwise, enlarged, and how bright it is.

    The middle is taken from `down_px` and `right_px` beside it.
    """

    down_px: float = 0.0
    right_px: float = 0.0
    rotation_deg: float = 0.0
    zoom: float = 1.0
    brightness: float = 1.0


def draw(options: ReferenceOptions, random: np.random.Generator) -> Warp:
    """A warp within the limits of the options; of each amount all values are equally likely."""
    down, right, turn, zoom, brightness = random.uniform(-1.0, 1.0, 5)
    return Warp(
        down_px=down * options.shift_px,
        right_px=right * options.shift_px,
        rotation_deg=turn * options.rotation_deg,
        zoom=1.0 + zoom * options.zoom,
        brightness=1.0 + brightness * options.brightness,
    )


def warped(image: Uint8Array, place: tuple[slice, slice], warp: Warp) -> Uint8Array:
    """The part of an image (H, W, 3) at rows and columns `place`, seen through the warp."""
    rows, columns = place
    middle = (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
    angle = math.radians(warp.rotation_deg)
    sin, cos = math.sin(angle) / warp.zoom, math.cos(angle) / warp.zoom
    across = np.arange(columns.start, columns.stop) - middle[1]
    found: list[Uint8Array] = []
    for top in range(rows.start, rows.stop, _ROWS):
        down = (np.arange(top, min(top + _ROWS, rows.stop)) - middle[0])[:, None]
        y = middle[0] + warp.down_px + cos * down + sin * across
        x = middle[1] + warp.right_px - sin * down + cos * across
        levels = _sampled(image, y, x) * warp.brightness
        found.append(np.clip(np.rint(levels), 0.0, 255.0).astype(np.uint8))
    return np.concatenate(found)


def _sampled(
    image: Uint8Array, y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(n, m, 3) by bicubic interpolation at places (n, m)."""
    height, width = image.shape[:2]
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    total = np.zeros((*y.shape, 3), dtype=np.float32)
    for row in range(-1, 3):
        rows = np.clip(top + row, 0, height - 1)
        share = _cubic(y - (top + row))
        for column in range(-1, 3):
            columns = np.clip(left + column, 0, width - 1)
            weight = (share * _cubic(x - (left + column))).astype(np.float32)
            total += weight[..., None] * image[rows, columns]
    return total


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The kernel with a = -0.5, of `resample`; 0 beyond 2."""
    d = np.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))
