"""Colour arithmetic on arrays: luma, chroma, colour under transparency, colours kept as they were.

Everything here is numpy on plain arrays; nothing knows of files, profiles or networks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from waifu4x.strips import Rows

# ITU-R BT.601, studio range, as MATLAB's rgb2ycbcr has it: rows give Y, Cb, Cr of RGB in [0, 1].
# https://www.mathworks.com/help/images/ref/rgb2ycbcr.html
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_YCBCR_OFFSET = np.array([16.0, 128.0, 128.0])
_RGB = np.linalg.inv(_YCBCR)

# Rows handled at once where a whole-picture intermediate would double the memory needed.
_BAND_ROWS = 256

LOCK_RADIUS_PX = 8
"""How far what counts as a low frequency reaches, in pixels of the original."""


def luma(rgb: np.ndarray) -> npt.NDArray[np.float64]:
    """The Y that super-resolution papers measure on: BT.601, studio range, not rounded.

    rgb: (..., 3), any dtype, R, G, B in 0..255. Returns (...) float64 in [16, 235].
    """
    return np.asarray(rgb, dtype=np.float64) @ (_YCBCR[0] / 255.0) + 16.0


def rgb_to_ycbcr(rgb: np.ndarray) -> npt.NDArray[np.float32]:
    """RGB to studio-range YCbCr, both with 255 as 1 (MATLAB's `rgb2ycbcr` on doubles).

    rgb: (..., 3) float in [0, 1]. Returns (..., 3) float32, Y in [16/255, 235/255], chroma in
    [16/255, 240/255]. `ycbcr_to_rgb` is its exact inverse up to float32 rounding.
    """
    matrix = (_YCBCR.T / 255.0).astype(np.float32)
    offset = (_YCBCR_OFFSET / 255.0).astype(np.float32)
    return rgb.astype(np.float32, copy=False) @ matrix + offset


def ycbcr_to_rgb(ycbcr: np.ndarray) -> npt.NDArray[np.float32]:
    """The inverse of `rgb_to_ycbcr`; not clipped, so Y from a network may give RGB beyond [0, 1].

    ycbcr: (..., 3) float, as `rgb_to_ycbcr` gives it. Returns (..., 3) float32.
    """
    centred = ycbcr.astype(np.float32, copy=False) - (_YCBCR_OFFSET / 255.0).astype(np.float32)
    matrix: npt.NDArray[np.float32] = np.asarray(_RGB.T * 255.0, dtype=np.float32)
    rgb: npt.NDArray[np.float32] = np.matmul(centred, matrix)
    return rgb


def rows_of(plane: np.ndarray) -> Rows:
    """What lies in memory, for those who work on rows."""
    return lambda start, stop: plane[start:stop]


def bleed_alpha(pixels: np.ndarray, alpha: np.ndarray) -> npt.NDArray[np.float32]:
    """Fill the colour below fully transparent pixels from the visible ones around them.

    Image editors leave any colour (mostly black) there; a network that sees it draws a dark halo.
    This is the push-pull fill of Gortler et al., "The Lumigraph", 1996: colours are
    averaged, weighted by alpha, into ever smaller pictures, then holes are filled from the next
    smaller one. Time and memory are linear in the number of pixels.

    pixels: (H, W, C) float; alpha: (H, W), any dtype, 0 is transparent. Returns (H, W, C) float32:
    every pixel with alpha above 0 is guaranteed to be as it was, every other one lies within the
    range of the visible colours. A picture with nothing visible comes back as it was.
    """
    filled = np.array(pixels, dtype=np.float32)
    holes = alpha <= 0
    if not holes.any() or holes.all():
        return filled
    weight = alpha.astype(np.float32)
    weight /= weight.max()
    fill_holes(filled, np.maximum(weight, 0.0))
    return filled


def fill_holes(color: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> None:
    """The push-pull fill of `bleed_alpha`, in place; see `halve_colors` for what it works on."""
    holes = weight <= 0
    if not holes.any():
        return
    smaller, smaller_weight = halve_colors(color, weight)
    fill_holes(smaller, smaller_weight)
    height = len(holes)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, min(top + _BAND_ROWS, height))
        if holes[rows].any():
            larger = resize_linear(rows_of(smaller), smaller.shape[:2], holes.shape, rows=rows)
            np.copyto(color[rows], larger, where=holes[rows][..., None])
    fill_touching(color, weight)


def halve_colors(
    color: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """One level of the pyramid from the one that is twice as large.

    color: (h, w, C), anything where weight is 0; weight: (h, w) in [0, 1]. Both results are as
    large as half of that, rounded up.
    """
    smaller = _halve(color * weight[..., None])
    smaller_weight = _halve(weight)
    smaller /= np.where(smaller_weight <= 0, 1.0, smaller_weight)[..., None]
    # Only how much of a block is covered matters, not how many pixels it has.
    return smaller, np.minimum(smaller_weight, 1.0)


def fill_touching(color: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> None:
    """Fill the holes next to something visible from just that, in place.

    Push-pull alone mixes far colours in where an edge lies on the border of a block; done at every
    size, this keeps what is near to an edge like the edge.
    """
    holes = weight <= 0
    near = ~holes
    for axis in (0, 1):
        inner = np.moveaxis(near.copy(), axis, 0)
        along = np.moveaxis(near, axis, 0)
        along[1:] |= inner[:-1]
        along[:-1] |= inner[1:]
    rows, columns = np.nonzero(near & holes)
    total = np.zeros((len(rows), color.shape[2]), dtype=np.float32)
    total_weight = np.zeros((len(rows), 1), dtype=np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row = np.clip(rows + down, 0, holes.shape[0] - 1)
            column = np.clip(columns + right, 0, holes.shape[1] - 1)
            share = weight[row, column][:, None]
            total += color[row, column] * share
            total_weight += share
    color[rows, columns] = total / total_weight


def _halve(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums of 2×2 blocks; an odd last row or column stands alone."""
    for axis in (0, 1):
        along = np.moveaxis(plane, axis, 0)
        halved = along[0::2].copy()
        halved[: len(along) // 2] += along[1::2]
        plane = np.moveaxis(halved, 0, axis)
    return plane


def lock_low_frequencies(
    output: np.ndarray, reference: np.ndarray, *, radius_px: int = LOCK_RADIUS_PX
) -> npt.NDArray[np.float32]:
    """Give `output` the low frequencies (colour, brightness) of `reference`, keeping its detail.

    GAN-trained networks shift colours; the shift is smooth, so the low-passed difference of the
    two pictures is added back. It is computed at the reference's size: output is area-averaged down
    to it, the difference is smoothed (three box filters, near a Gaussian of sigma `radius_px`) and
    added with linear interpolation. The idea is the wavelet colour correction of StableSR
    (https://arxiv.org/abs/2305.07015) with a single level.

    output: (H, W, C) float in [0, 1]; reference: (h, w, C) float in [0, 1], the picture that was
    upscaled, h <= H and w <= W. radius_px: in pixels of the reference. Returns (H, W, C) float32 in
    [0, 1]; where the low frequencies agree already, `output` as it was.
    """
    height = len(output)
    small = _area_average(output, reference.shape[0], reference.shape[1])
    difference = reference.astype(np.float32) - small
    for axis in (0, 1):
        for _ in range(3):
            difference = box_blur(difference, radius_px, axis=axis)
    result = np.empty(output.shape, dtype=np.float32)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top, min(top + _BAND_ROWS, height))
        size_px = difference.shape[:2]
        band = resize_linear(rows_of(difference), size_px, output.shape[:2], rows=rows)
        band += output[rows]
        np.clip(band, 0.0, 1.0, out=result[rows])
    return result


def restore_plateaus(alpha_out: np.ndarray, alpha_in: np.ndarray) -> np.ndarray:
    """Make an upscaled alpha exactly transparent or opaque where the original was so all around.

    A network turns 0 into 1 and 255 into 253 in flat parts; that gives ghosts around stickers and
    files that never compress. Where all pixels of `alpha_in` that bicubic interpolation would look
    at are 0, the output becomes 0; where all are at the maximum, the maximum.

    alpha_out: (H, W); alpha_in: (h, w); each uint8, uint16 or float with 1.0 as the maximum.
    Returns (H, W) of alpha_out's dtype; all other pixels are guaranteed to be as they were.
    """
    rows = slice(0, len(alpha_out))
    shape = alpha_out.shape[0], alpha_out.shape[1]
    return restore_plateaus_rows(alpha_out, rows_of(alpha_in), alpha_in.shape[:2], shape, rows=rows)


def restore_plateaus_rows(
    alpha_out: np.ndarray,
    alpha_in: Rows,
    in_px: tuple[int, ...],
    out_px: tuple[int, ...],
    *,
    rows: slice,
) -> np.ndarray:
    """`restore_plateaus` for the rows `rows` alone.

    alpha_out: those rows, (n, W), of an alpha of `out_px` (height, width); alpha_in: the rows of
    the original of `in_px`. Returns (n, W).
    """
    down = _support(in_px[0], out_px[0], rows)
    across = _support(in_px[1], out_px[1], slice(0, out_px[1]))
    first = int(down[0, 0])
    source = alpha_in(first, int(down[-1, -1]) + 1)
    result = alpha_out.copy()
    for level_in, level_out in ((0, 0), (_full(source), _full(alpha_out))):
        flat = _all_of(source == level_in, down - first, axis=0)
        result[_all_of(flat, across, axis=1)] = level_out
    return result


def _full(plane: np.ndarray) -> float:
    return float(np.iinfo(plane.dtype).max) if plane.dtype.kind in "iu" else 1.0


def _support(in_px: int, out_px: int, places: slice) -> npt.NDArray[np.intp]:
    """(n, k): for each of these places of an axis, the pixels under the cubic kernel."""
    scale = out_px / in_px
    reach = math.ceil(2.0 * max(1.0, 1.0 / scale))
    left = np.floor((np.arange(places.start, places.stop) + 0.5) / scale - 0.5).astype(np.intp)
    return np.clip(left[:, None] + np.arange(1 - reach, reach + 1), 0, in_px - 1)


def _all_of(
    flags: npt.NDArray[np.bool_], places: npt.NDArray[np.intp], *, axis: int
) -> npt.NDArray[np.bool_]:
    """Along `axis`, for each row (k,) of `places`: are all of these pixels flagged."""
    flags = np.moveaxis(flags, axis, 0)
    found = np.ones((len(places), *flags.shape[1:]), dtype=bool)
    for place in places.T:
        found &= flags[place]
    return np.moveaxis(found, 0, axis)


def _area_average(plane: np.ndarray, height_px: int, width_px: int) -> npt.NDArray[np.float32]:
    """Shrink (H, W, C) to (height_px, width_px, C): each result is the mean of its area."""
    rows = slice(0, height_px)
    return average_area(rows_of(plane), plane.shape[:2], (height_px, width_px), rows=rows)


def average_area(
    source: Rows, in_px: tuple[int, ...], out_px: tuple[int, ...], *, rows: slice
) -> npt.NDArray[np.float32]:
    """Rows `rows` of a picture of `in_px` (height, width) shrunk to `out_px`: means of areas.

    source: its rows, (n, W, C). Returns (n, w, C).
    """
    shrunk = _means(source, in_px[0], out_px[0], rows)
    columns = np.ascontiguousarray(shrunk.swapaxes(0, 1))
    return _means(rows_of(columns), in_px[1], out_px[1], slice(0, out_px[1])).swapaxes(0, 1)


def _means(source: Rows, in_px: int, out_px: int, rows: slice) -> npt.NDArray[np.float32]:
    first = _mean_of_span(source, rows.start, in_px / out_px, in_px)
    means = np.empty((rows.stop - rows.start, *first.shape), dtype=np.float32)
    means[0] = first
    for number in range(1, len(means)):
        means[number] = _mean_of_span(source, rows.start + number, in_px / out_px, in_px)
    return means


def _mean_of_span(source: Rows, number: int, step: float, in_px: int) -> np.ndarray:
    """What row `number` of a result covers, `step` of the `in_px` rows of `source`, as its mean."""
    start, stop = number * step, (number + 1) * step
    first, last = int(start), min(math.ceil(stop - 1e-9), in_px)
    weights = np.ones(last - first, dtype=np.float32)
    weights[0] -= start - first
    weights[-1] -= max(last - stop, 0.0)
    covered = source(first, last).astype(np.float32, copy=False)
    return np.tensordot(weights / weights.sum(), covered, axes=1)


def box_blur(
    plane: npt.NDArray[np.float32], radius_px: int, *, axis: int
) -> npt.NDArray[np.float32]:
    """Running mean over 2·radius_px + 1 pixels, the border pixels repeated."""
    pad = [(0, 0)] * plane.ndim
    pad[axis] = (radius_px + 1, radius_px)
    # float64: the running sum of a long row loses the last bits of float32.
    sums = np.cumsum(np.pad(plane, pad, mode="edge"), axis=axis, dtype=np.float64)
    window = 2 * radius_px + 1
    size = plane.shape[axis]
    high = np.take(sums, np.arange(window, window + size), axis=axis)
    low = np.take(sums, np.arange(size), axis=axis)
    return ((high - low) / window).astype(np.float32)


def resize_linear(
    source: Rows, in_px: tuple[int, ...], out_px: tuple[int, ...], *, rows: slice
) -> npt.NDArray[np.float32]:
    """Rows `rows` of a picture of `in_px` (height, width) enlarged to `out_px`, pixel centres
    aligned. source: its rows, (n, w, C). Returns (n, W, C)."""
    top, bottom, part = _linear_taps(in_px[0], out_px[0], rows)
    first = int(top[0])
    plane = source(first, int(bottom[-1]) + 1)
    part = part[:, None, None]
    band = plane[top - first] * (1.0 - part) + plane[bottom - first] * part
    left, right, part = _linear_taps(in_px[1], out_px[1], slice(0, out_px[1]))
    part = part[:, None]
    larger = band[:, left] * (1.0 - part)
    larger += band[:, right] * part
    return larger.astype(np.float32, copy=False)


def _linear_taps(
    size_px: int, larger_px: int, places: slice
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    centre = (np.arange(places.start, places.stop) + 0.5) * (size_px / larger_px) - 0.5
    centre = np.clip(centre, 0, size_px - 1)
    first = np.floor(centre).astype(np.intp)
    second = np.minimum(first + 1, size_px - 1)
    return first, second, (centre - first).astype(np.float32)
