"""Rectangles of a picture, and where in it most is going on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from waifu4x.errors import UsageError

Uint8Array = npt.NDArray[np.uint8]

# A step of this many levels between neighbours counts as full detail and a higher one as no more,
# so that a region full of texture wins over one with two hard edges.
_FULL_DETAIL = 48.0
# Beyond as many pixels, detail is summed over blocks first: a window need not be placed exactly.
_FINE_PX = 4_000_000
_BAND_ROWS = 256
_WRITTEN = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A rectangle within a picture, in its pixels: the upper left corner and the size."""

    x: int
    y: int
    width_px: int
    height_px: int

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width_px},{self.height_px}"

    def cut(self, image: Uint8Array) -> Uint8Array:
        """A view of (H, W, C) or (H, W)."""
        return image[self.y : self.y + self.height_px, self.x : self.x + self.width_px]

    def scaled(self, scale: int) -> Crop:
        """The same place in the picture enlarged by `scale`."""
        return Crop(
            x=self.x * scale,
            y=self.y * scale,
            width_px=self.width_px * scale,
            height_px=self.height_px * scale,
        )

    def grown(self, by_px: int, *, within: tuple[int, int]) -> Crop:
        """With `by_px` more on each side, as far as the picture of (height, width) reaches."""
        left, top = max(0, self.x - by_px), max(0, self.y - by_px)
        right = min(within[1], self.x + self.width_px + by_px)
        bottom = min(within[0], self.y + self.height_px + by_px)
        return Crop(x=left, y=top, width_px=right - left, height_px=bottom - top)

    def relative_to(self, outer: Crop) -> Crop:
        """The same place, counted from the corner of `outer`."""
        return Crop(
            x=self.x - outer.x,
            y=self.y - outer.y,
            width_px=self.width_px,
            height_px=self.height_px,
        )


def whole(image: Uint8Array) -> Crop:
    """All of (H, W, C)."""
    return Crop(x=0, y=0, width_px=image.shape[1], height_px=image.shape[0])


def parse(text: str) -> Crop:
    """``x,y,w,h`` in pixels. Raises UsageError for everything else."""
    found = _WRITTEN.fullmatch(text)
    if found is None or not int(found[3]) or not int(found[4]):
        raise UsageError(
            f"--crop {text!r} is no rectangle: write it as x,y,width,height in px, such as "
            f"--crop 40,20,120,90, or say auto or all"
        )
    x, y, width, height = map(int, found.groups())
    return Crop(x=x, y=y, width_px=width, height_px=height)


def most_detailed(
    image: Uint8Array, size_px: tuple[int, int], *, avoid: Sequence[Crop] = ()
) -> Crop:
    """The window of `size_px` in which most is going on.

    The detail of a pixel is how much its luma differs from that of its right and its lower
    neighbour, up to a limit; the window with the largest sum wins, and of equal ones the one that
    lies nearest to the middle. In large pictures windows begin at multiples of a few pixels.

    Args:
        image: (H, W, 1 or 3) uint8.
        size_px: (width, height) of the window; what is larger than the picture is cut to it.
        avoid: windows that it keeps clear of as far as there is other detail.
    """
    height, width = image.shape[:2]
    wide, tall = min(size_px[0], width), min(size_px[1], height)
    step = max(1, math.ceil(math.sqrt(height * width / _FINE_PX)))
    detail = _detail(image, step)
    for crop in avoid:
        rows, columns = (
            slice(start // step, math.ceil((start + length) / step))
            for start, length in ((crop.y, crop.height_px), (crop.x, crop.width_px))
        )
        detail[rows, columns] = 0.0
    sums = np.zeros((detail.shape[0] + 1, detail.shape[1] + 1))
    np.cumsum(np.cumsum(detail, axis=0), axis=1, out=sums[1:, 1:])
    down, across = max(1, tall // step), max(1, wide // step)
    found = sums[down:, across:] - sums[:-down, across:] - sums[down:, :-across]
    found += sums[:-down, :-across]
    # Sums of as many numbers differ in their last digits where they are equal.
    ys, xs = np.nonzero(found >= found.max() - 1e-6 * max(1.0, float(found.max())))
    off = (ys - (found.shape[0] - 1) / 2) ** 2 + (xs - (found.shape[1] - 1) / 2) ** 2
    nearest = int(np.argmin(off))
    x, y = int(xs[nearest]) * step, int(ys[nearest]) * step
    return Crop(x=min(x, width - wide), y=min(y, height - tall), width_px=wide, height_px=tall)


def _detail(image: Uint8Array, step: int) -> npt.NDArray[np.float64]:
    """Sums over blocks of step × step pixels; a rest at the right and below is left out."""
    rows, columns = max(1, image.shape[0] // step), max(1, image.shape[1] // step)
    detail = np.zeros((rows, columns))
    band_rows = max(1, _BAND_ROWS // step)
    for first in range(0, rows, band_rows):
        count = min(band_rows, rows - first)
        # One row more than is asked for: the last one's lower neighbours.
        band = image[first * step : (first + count) * step + 1]
        luma = band.mean(axis=2, dtype=np.float32)
        steps = np.zeros_like(luma)
        steps[:, :-1] += np.abs(np.diff(luma, axis=1))
        steps[:-1] += np.abs(np.diff(luma, axis=0))
        capped = np.minimum(steps, _FULL_DETAIL)[: count * step, : columns * step]
        padded = np.zeros((count * step, columns * step), dtype=np.float32)
        padded[: capped.shape[0], : capped.shape[1]] = capped
        blocks = padded.reshape(count, step, columns, step)
        detail[first : first + count] = blocks.sum(axis=(1, 3))
    return detail
