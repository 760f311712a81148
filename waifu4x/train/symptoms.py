"""What can be measured of one picture that says whether a network should learn from it.

Every function takes the luma of a picture, (H, W) float32 in 0..255, as `luma_of` gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Float32Array = npt.NDArray[np.float32]

_WINDOW_PX = 128
_WINDOW = np.hanning(_WINDOW_PX + 1)[:_WINDOW_PX].astype(np.float32)
# Lines whose spectra are averaged, per axis: more do not change the average.
_LINES = 128
# Sharp pictures lose 6 dB an octave along a line; after two octaves without a cliff that is exact
# within 8 dB. -8 dB is the noise of rounding to 8 bits, with something to spare.
_SLOPE_DB, _CLIFF_DB, _ROUNDING_DB = 6.0, 8.0, -8.0
_LARGEST_REPEAT = 8
_BLOCK_PX = 8
# ITU-T T.81 table K.1, which libjpeg scales by quality; its sum is all that is needed here.
_STANDARD_TABLE_SUM = 3688
_HASH_PX = 16
HASH_BITS = _HASH_PX * _HASH_PX
_LEAST_BITS = 40
_COMPARED_AT_ONCE = 2**24


def luma_of(pixels: npt.NDArray[np.unsignedinteger]) -> Float32Array:
    """The luma of (H, W, 1 or 3) uint8 or uint16."""
    weights = [1.0] if pixels.shape[2] == 1 else [0.299, 0.587, 0.114]
    scale = 255.0 / np.iinfo(pixels.dtype).max
    return pixels.astype(np.float32) @ (np.array(weights) * scale).astype(np.float32)


def texture(luma: Float32Array) -> float:
    """The mean difference of neighbouring pixels, in levels of 255."""
    steps = [np.abs(np.diff(luma, axis=axis)).mean() for axis in (0, 1) if luma.shape[axis] > 1]
    return float(np.mean(steps)) if steps else 0.0


def effective_resolution(luma: Float32Array) -> float | None:
    """Which part of the picture's resolution is used: 0.5 where it was enlarged twofold.

    The spectrum along rows and columns is compared with that of a sharp picture, which falls
    evenly, drawn through the picture's own coarse detail (8 to 16 px a period). Above the
    frequency that is returned it lies 8 dB and more below that, or in the noise of rounding.
    Returns None for sides below 128 px.
    """
    if min(luma.shape) < _WINDOW_PX:
        return None
    power = np.zeros(_WINDOW_PX // 2 + 1)
    for lines in (luma, luma.T):
        lines = lines[:: max(1, len(lines) // _LINES)]
        starts = range(0, lines.shape[1] - _WINDOW_PX + 1, _WINDOW_PX // 2)
        pieces = np.stack([lines[:, start : start + _WINDOW_PX] for start in starts])
        pieces = (pieces - pieces.mean(axis=2, keepdims=True)) * _WINDOW
        power += (np.abs(np.fft.rfft(pieces, axis=2)) ** 2).mean(axis=(0, 1))
    decibels = 10.0 * np.log10(power / (2.0 * np.square(_WINDOW).sum()) + 1e-3)
    frequencies = np.arange(len(power)) / (len(power) - 1)
    falling = -_SLOPE_DB * np.log2(np.maximum(frequencies, 0.01))
    coarse = slice(_WINDOW_PX // 32, _WINDOW_PX // 16 + 1)
    expected = falling + (decibels - falling)[coarse].mean()
    smooth = np.convolve(decibels, np.full(5, 0.2), "same")
    present = smooth > np.maximum(expected - _CLIFF_DB, _ROUNDING_DB)
    # The two ends are not smoothed fully.
    found = np.flatnonzero(present & (frequencies > 0.06) & (frequencies < 0.96))
    if len(found) == 0:
        return 0.06
    highest = float(frequencies[found[-1]])
    return 1.0 if highest > 0.94 else highest


def repeats(luma: Float32Array) -> int:
    """How many times every pixel is repeated along both axes: 2 after nearest-neighbour x2."""
    steps = [np.abs(np.diff(lines, axis=1)).mean(axis=0) for lines in (luma, luma.T)]
    for times in range(_LARGEST_REPEAT, 1, -1):
        if all(_at_one_phase(each, times) for each in steps):
            return times
    return 1


def _at_one_phase(steps: Float32Array, times: int) -> bool:
    """Whether the picture changes only after every `times` pixels, and there mostly does."""
    count = len(steps) // times * times
    total = float(steps[:count].sum())
    if count < 4 * times or total == 0.0:
        return False
    table = steps[:count].reshape(-1, times)
    phase = int(table.sum(axis=0).argmax())
    changes = int(np.count_nonzero(table[:, phase] > 0.1 * table[:, phase].mean()))
    return float(table[:, phase].sum()) > 0.98 * total and changes > 0.3 * len(table)


def blockiness(luma: Float32Array) -> float:
    """How much higher the steps between 8 px blocks are than elsewhere, in levels of 255.

    The grid may begin anywhere. Both axes must show it: a picture may have an 8 px rhythm of its
    own along one.
    """
    if min(luma.shape) < 4 * _BLOCK_PX:
        return 0.0
    return min(_excess(luma), _excess(luma.T))


def _excess(lines: Float32Array) -> float:
    steps = np.abs(np.diff(lines, axis=1))
    # Against its neighbours, and limited, so that a few true edges do not count for the grid's.
    peaks = np.clip(steps[:, 1:-1] - 0.5 * (steps[:, :-2] + steps[:, 2:]), -8.0, 8.0)
    count = peaks.shape[1] // _BLOCK_PX * _BLOCK_PX
    phases = np.sort(peaks[:, :count].mean(axis=0).reshape(-1, _BLOCK_PX).mean(axis=0))
    return float(phases[-1] - phases[-2])


def jpeg_quality(luma_table: Sequence[int]) -> int:
    """The quality 1..100, as libjpeg counts, of a JPEG with this quantisation table of 64.

    Exact within 2 for tables that libjpeg made; for others the quality of equal mean step.
    """
    percent = 100.0 * sum(luma_table) / _STANDARD_TABLE_SUM
    quality = (200.0 - percent) / 2.0 if percent <= 100.0 else 5000.0 / percent
    return max(1, min(100, round(quality)))


def fingerprint(luma: Float32Array) -> npt.NDArray[np.bool_] | None:
    """(256,) bits that stay nearly the same when a picture is scaled or compressed.

    Whether each of 16 x 16 places is brighter than its right neighbour ("dHash", N. Krawetz,
    https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html), by more than
    what compression changes. None where too few are: such pictures are all alike.
    """
    box = Image.Resampling.BOX
    small = np.asarray(Image.fromarray(luma).resize((_HASH_PX + 1, _HASH_PX), box))
    bits = (small[:, 1:] > small[:, :-1] + 1.0).ravel()
    return bits if np.count_nonzero(bits) >= _LEAST_BITS else None


def alike(fingerprints: npt.NDArray[np.bool_], *, distance_bits: int) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of rows of (n, 256) that differ in at most so many bits.

    Of several earlier ones that are near enough, the first is given.
    """
    signs = np.where(fingerprints, np.float32(1.0), np.float32(-1.0))
    found = []
    rows = max(1, _COMPARED_AT_ONCE // max(1, len(signs)))
    for start in range(0, len(signs), rows):
        block = signs[start : start + rows]
        distances = (HASH_BITS - block @ signs[: start + len(block)].T) / 2.0
        near = distances <= distance_bits
        for row in range(len(block)):
            earlier = np.flatnonzero(near[row, : start + row])
            if len(earlier):
                found.append((int(earlier[0]), start + row))
    return found
