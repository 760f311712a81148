"""Colour arithmetic of `color` for pictures that come in rows: below transparency, and locked.

Both look far around every pixel. What lies below transparency is known from a pyramid, whose coarse
levels fit into memory; the colour lock looks three box blurs far, and no farther.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from waifu4x import color
from waifu4x.canvas import to_unit
from waifu4x.strips import Rows, RowWindow

FloatArray = npt.NDArray[np.float32]

# So often a picture is halved before it lies in memory as a whole: 1/256 of it. Filled rows wait
# for some 5 * 2 ** _LEVELS more.
_LEVELS = 4
_BAND_ROWS = 64


class VisibleColors:
    """`color.bleed_alpha` by rows, bit for bit: colours with what is below transparency filled."""

    def __init__(self, samples: Rows, size_px: tuple[int, int], *, most: int) -> None:
        """Read a picture once, to know what its parts that are far away look like.

        Args:
            samples: (n, w, C + 1) uint8 or uint16, the alpha last; 0 somewhere, but not everywhere.
            size_px: height and width.
            most: the largest value of the alpha.
        """
        self._most = np.float32(most)
        self._sizes = [size_px]
        for _ in range(_LEVELS):
            height_px, width_px = self._sizes[-1]
            self._sizes.append((-(-height_px // 2), -(-width_px // 2)))
        *_, smallest = self._pyramid(samples, _LEVELS + 1)
        height_px, rows = self._sizes[-1][0], smallest.reader()
        starts = range(0, height_px, _BAND_ROWS)
        whole = np.concatenate([rows(n, min(n + _BAND_ROWS, height_px)) for n in starts])
        self._coarse = np.ascontiguousarray(whole[..., :-1])
        color.fill_holes(self._coarse, whole[..., -1])

    def read(self, samples: Rows) -> RowWindow:
        """(n, w, C) float32 in [0, 1], from the same samples as before, from the top on."""
        levels = self._pyramid(samples, _LEVELS)
        larger = color.rows_of(self._coarse)
        window = None
        for number in reversed(range(_LEVELS)):
            pull = self._filled(levels[number].reader(), larger, number)
            window = RowWindow(pull, self._sizes[number][0])
            if number:
                larger = window.reader()
        assert window is not None
        return window

    def _pyramid(self, samples: Rows, count: int) -> list[RowWindow]:
        """Level for level (n, w, C + 1) float32: colours and, last, how much is visible."""

        def first(start: int, stop: int) -> FloatArray:
            strip = samples(start, stop)
            weight = strip[..., -1:].astype(np.float32)
            weight /= self._most
            return np.concatenate([to_unit(strip[..., :-1]), weight], axis=2)

        levels = [RowWindow(first, self._sizes[0][0])]
        for height_px, _ in self._sizes[: count - 1]:
            pull = _halved(levels[-1].reader(), height_px)
            levels.append(RowWindow(pull, -(-height_px // 2)))
        return levels

    def _filled(self, level: Rows, smaller: Rows, number: int) -> Rows:
        """The colours of a level, its holes filled from the next smaller one, which is filled."""
        size_px, smaller_px = self._sizes[number], self._sizes[number + 1]

        def filled(start: int, stop: int) -> FloatArray:
            # One row more on both sides: what is next to something visible is filled from that.
            top, bottom = max(0, start - 1), min(stop + 1, size_px[0])
            strip = level(top, bottom)
            inner = slice(start - top, stop - top)
            # Also where nothing is to be filled, so that all readers of a level move on.
            larger = color.resize_linear(smaller, smaller_px, size_px, rows=slice(start, stop))
            colors, weight = strip[..., :-1].copy(), strip[..., -1]
            if (weight[inner] <= 0).any():
                np.copyto(colors[inner], larger, where=(weight[inner] <= 0)[..., None])
                color.fill_touching(colors, weight)
            return colors[inner]

        return filled


def _halved(rows: Rows, height_px: int) -> Rows:
    def halved(start: int, stop: int) -> FloatArray:
        level = rows(2 * start, min(2 * stop, height_px))
        smaller, weight = color.halve_colors(level[..., :-1], level[..., -1])
        return np.concatenate([smaller, weight[..., None]], axis=2)

    return halved


def locked(
    output: Callable[[], Rows],
    reference: Rows,
    in_px: tuple[int, int],
    out_px: tuple[int, int],
) -> Iterator[FloatArray]:
    """`color.lock_low_frequencies` by rows; values may differ by rounding to float32.

    Args:
        output: gives readers of the enlarged picture, of `out_px` (height, width); two are made.
        reference: the original, of `in_px`.

    Yields:
        (n, W, C) float32 in [0, 1].
    """
    averaged, enlarged = output(), output()

    def difference(start: int, stop: int) -> FloatArray:
        rows = slice(start, stop)
        return reference(start, stop) - color.average_area(averaged, out_px, in_px, rows=rows)

    smooth = difference
    for _ in range(3):
        smooth = _blurred_down(RowWindow(smooth, in_px[0]).reader(), in_px[0])

    def smooth_across(start: int, stop: int) -> FloatArray:
        rows = smooth(start, stop)
        for _ in range(3):
            rows = color.box_blur(rows, color.LOCK_RADIUS_PX, axis=1)
        return rows

    shift = RowWindow(smooth_across, in_px[0]).reader()
    for start in range(0, out_px[0], _BAND_ROWS):
        rows = slice(start, min(start + _BAND_ROWS, out_px[0]))
        band = color.resize_linear(shift, in_px, out_px, rows=rows)
        band += enlarged(rows.start, rows.stop)
        yield np.clip(band, 0.0, 1.0, out=band)


def _blurred_down(rows: Rows, height_px: int) -> Rows:
    """`color.box_blur` along the height, for calls that each begin where the last one ended."""
    radius = color.LOCK_RADIUS_PX
    window = 2 * radius + 1
    # Sums of all rows so far, of the picture with its border rows repeated.
    sums: npt.NDArray[np.float64] | None = None

    def blurred(start: int, stop: int) -> FloatArray:
        nonlocal sums
        # The last sum that is there, of padded rows `start` to `start + window - 1`.
        ready = start + window - 1 if sums is not None else -1
        padded = np.arange(ready + 1, stop + window)
        needed = np.clip(padded - radius - 1, 0, height_px - 1)
        added = rows(int(needed[0]), int(needed[-1]) + 1)[needed - needed[0]]
        if sums is None:
            sums = np.cumsum(added, axis=0, dtype=np.float64)
        else:
            carried = np.concatenate([sums[-1:], added.astype(np.float64)])
            sums = np.concatenate([sums, np.cumsum(carried, axis=0)[1:]])
        result = (sums[window:] - sums[:-window]) / window
        sums = sums[stop - start :]
        return result.astype(np.float32)

    return blurred
