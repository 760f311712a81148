"""What is measured in a picture to tell its kind: the numbers that `picking` judges by.

How steps from pixel to pixel are distributed and which follow which, how flat small blocks are, how
many colours there are, whether edges have quiet sides, and what the 8×8 blocks of JPEG leave.
Windows are (n, wh, ww, 3) uint8 RGB, planes (n, wh, ww) float32 in levels of 0..255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Uint8Array = npt.NDArray[np.uint8]

TRAITS = 160
"""How many numbers `measured` gives."""

# Up to this many pixels are looked at in one piece, of larger pictures a grid of windows. Windows
# begin at multiples of 16 px, so that the blocks of a JPEG have one grid in all of them.
_WHOLE_PX = 384 * 384
_WINDOW_PX, _WINDOWS_A_SIDE, _ALIGN_PX = 96, 4, 16
_SMALLEST_PX = 24
# The transform is taken at every position of the liveliest tiles.
_TILE_PX, _TILES = 40, 6

# -- windows ---------------------------------------------------------------------------------------


def windows_of(pixels: np.ndarray) -> Uint8Array:
    """What is looked at of (h, w, 1 or 3) uint8 or uint16: all of it, or windows all over it.

    Gives (n, wh, ww, 3) uint8 with sides of at least _SMALLEST_PX: smaller pictures are mirrored.
    """
    height, width = pixels.shape[:2]
    if height * width <= _WHOLE_PX:
        cut = pixels[None]
    else:
        tops, lefts = _starts(height), _starts(width)
        high, wide = min(height, _WINDOW_PX), min(width, _WINDOW_PX)
        cut = np.stack([pixels[y : y + high, x : x + wide] for y in tops for x in lefts])
    if cut.dtype == np.uint16:
        cut = cut >> 8
    # In one order of memory, or sums would be rounded differently.
    cut = np.ascontiguousarray(cut, dtype=np.uint8)
    if cut.shape[3] == 1:
        cut = np.repeat(cut, 3, axis=3)
    lacking = [max(0, _SMALLEST_PX - side) for side in cut.shape[1:3]]
    if any(lacking):
        # Mirrored, not repeated: a repeated edge would look drawn.
        sides = [(0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)]
        cut = np.pad(cut, sides, mode="reflect")
    return cut


def _starts(length_px: int) -> list[int]:
    count = min(_WINDOWS_A_SIDE, max(1, length_px // _WINDOW_PX))
    free_px = max(0, length_px - _WINDOW_PX)
    places = [free_px * (2 * k + 1) // (2 * count) for k in range(count)]
    return [place - place % _ALIGN_PX for place in places]


# -- measuring -------------------------------------------------------------------------------------


def measured(windows: Uint8Array) -> Float64Array:
    """TRAITS numbers, (TRAITS,) float64, all finite whatever the windows of `windows_of` hold."""
    luma = _luma(windows)
    across, down = np.abs(np.diff(luma, axis=2)), np.abs(np.diff(luma, axis=1))
    ranges = _block_ranges(luma)
    parts = [
        _about_steps(luma, across, down),
        _about_blocks(ranges),
        _about_edges(across, down),
        _about_lines(luma),
        _about_colours(windows, luma),
        _about_chroma(windows, luma),
        _about_grid(luma, across, down),
        _about_transform(luma, across),
        _about_neighbours(luma),
        [float(np.log(luma.size))],
    ]
    return np.array([value for part in parts for value in part], dtype=np.float64)


def _luma(windows: Uint8Array) -> Float32Array:
    red, green, blue = (windows[..., c].astype(np.float32) for c in range(3))
    red *= np.float32(0.299)
    green *= np.float32(0.587)
    blue *= np.float32(0.114)
    return red + green + blue


def _counts(*steps: Float32Array) -> Float64Array:
    """How often each whole level occurs, 256 shares that sum to 1; rounded to the nearest."""
    total = np.zeros(256)
    for each in steps:
        whole = (each + np.float32(0.5)).astype(np.uint8).ravel()
        total += np.bincount(whole, minlength=256)
    return total / total.sum()


_LEVELS = np.arange(256.0)


def _tail(shares: Float64Array) -> tuple[float, float]:
    """Log of the mean step, and of the kurtosis, of a distribution that is symmetric about 0."""
    second, fourth = (float(shares @ _LEVELS**power) for power in (2, 4))
    mean = float(shares @ _LEVELS)
    return float(np.log(mean + 0.05)), float(np.log((fourth + 1e-3) / (second + 1e-2) ** 2 + 0.1))


def _about_steps(luma: Float32Array, across: Float32Array, down: Float32Array) -> list[float]:
    """From pixel to pixel, and between averages of 2×2 and 4×4 pixels."""
    shares = _counts(across, down)
    rising = np.cumsum(shares)
    mean, kurtosis = _tail(shares)
    found = [*rising[[0, 1, 2, 4, 8, 16, 32, 64]].tolist(), mean, kurtosis]
    smaller = luma
    for _ in range(2):
        smaller = _halved(smaller)
        shares = _counts(*(np.abs(np.diff(smaller, axis=axis)) for axis in (1, 2)))
        coarse, kurtosis = _tail(shares)
        found += [coarse - mean, kurtosis, *np.cumsum(shares)[[0, 2, 8]].tolist()]
    return found


def _halved(planes: Float32Array) -> Float32Array:
    high, wide = (side // 2 * 2 for side in planes.shape[1:])
    even = planes[:, 0:high:2] + planes[:, 1:high:2]
    return np.multiply(even[:, :, 0:wide:2] + even[:, :, 1:wide:2], 0.25, dtype=np.float32)


def _block_ranges(planes: Float32Array) -> Float32Array:
    """Largest less smallest value of every 4×4 block: (n, wh // 4, ww // 4)."""
    high, wide = (side // 4 * 4 for side in planes.shape[1:])
    largest = smallest = planes[:, :high, :wide]
    for _ in range(2):
        largest = np.maximum(largest[:, 0::2], largest[:, 1::2])
        largest = np.maximum(largest[:, :, 0::2], largest[:, :, 1::2])
        smallest = np.minimum(smallest[:, 0::2], smallest[:, 1::2])
        smallest = np.minimum(smallest[:, :, 0::2], smallest[:, :, 1::2])
    return largest - smallest


def _about_neighbours(luma: Float32Array) -> list[float]:
    """Which steps follow which, and which lie beside which, at three scales.

    Steps are sorted into seven sizes, large and negative to large and positive; pairs that are
    mirror images of each other, or each other's negatives, are one. Flat colour with sharp edges,
    ramps, grain and thin lines differ in them more than in the sizes alone.
    """
    found: list[float] = []
    for smaller in range(3):
        planes = _halved(luma) if smaller else luma
        luma = planes
        across, down = _sized(np.diff(planes, axis=2)), _sized(np.diff(planes, axis=1))
        pairs = np.bincount((across[:, :, :-1] * 7 + across[:, :, 1:]).ravel(), minlength=49)
        pairs = pairs + np.bincount((down[:, :-1] * 7 + down[:, 1:]).ravel(), minlength=49)
        found += np.sqrt(np.bincount(_ALIKE, weights=pairs) / pairs.sum()).tolist()
        beside = (np.abs(across[:, :-1] - 3) * 4 + np.abs(down[:, :, :-1] - 3)).ravel()
        table = np.bincount(beside, minlength=16).reshape(4, 4) / beside.size
        found += np.sqrt((table + table.T)[np.triu_indices(4)]).tolist()
    return found


def _sized(steps: Float32Array) -> npt.NDArray[np.int8]:
    sizes = np.full(steps.shape, 3, dtype=np.int8)
    for limit in (1.0, 4.0, 16.0):
        sizes += steps > limit
        sizes -= steps < -limit
    return sizes


def _alike() -> npt.NDArray[np.intp]:
    """(49,): the same number for pairs of sizes that are each other's mirror image or negative."""
    first, second = np.divmod(np.arange(49), 7)
    same = [first * 7 + second, second * 7 + first]
    same += [48 - each for each in same]
    return np.unique(np.min(same, axis=0), return_inverse=True)[1]


_ALIKE = _alike()


def _about_blocks(ranges: Float32Array) -> list[float]:
    """How flat 4×4 blocks are, and those beside an edge, where compression rings, by themselves."""
    places = np.quantile(ranges, (0.05, 0.1, 0.25, 0.5, 0.75, 0.9))
    found = np.log(places + 0.5).tolist()
    found += [float((ranges < limit).mean()) for limit in (0.5, 1.5, 3.5, 7.5)]
    edge = ranges > 48.0
    near = np.zeros_like(edge)
    near[:, 1:] |= edge[:, :-1]
    near[:, :-1] |= edge[:, 1:]
    near[:, :, 1:] |= edge[:, :, :-1]
    near[:, :, :-1] |= edge[:, :, 1:]
    near &= ~edge
    for chosen in (ranges[near], ranges[~near & ~edge]):
        found += [_share(chosen < limit) for limit in (0.5, 1.5, 3.5, 8.0)]
    return [*found, float(edge.mean())]


def _share(hits: npt.NDArray[np.bool_]) -> float:
    """The share of hits, drawn to one half where there is little to count."""
    return (float(np.count_nonzero(hits)) + 2.0) / (hits.size + 4.0)


def _about_edges(across: Float32Array, down: Float32Array) -> list[float]:
    """How quiet it is three pixels before and behind a strong step, and how wide steps are."""
    quiet_both, quiet_one, wide, strong = [], [], [], 0.0
    for steps in (across, np.swapaxes(down, 1, 2)):
        middle, before, behind = steps[:, :, 3:-3], steps[:, :, :-6], steps[:, :, 6:]
        found = middle > 24.0
        strong += 0.5 * float(found.mean())
        height, first, last = middle[found], before[found], behind[found]
        quiet_both.append(_share(np.maximum(first, last) < 0.12 * height))
        quiet_one.append(_share(np.minimum(first, last) < 0.04 * height))
        beside = np.maximum(steps[:, :, 2:-4][found], steps[:, :, 4:-2][found])
        wide.append(_share(beside < 0.3 * height))
    return [sum(quiet_both), sum(quiet_one), sum(wide), strong]


def _about_lines(luma: Float32Array) -> list[float]:
    """Thin dark and bright lines, and the Laplacian's tails."""
    middle = luma[:, :, 2:-2]
    left, right = middle - luma[:, :, :-4], middle - luma[:, :, 4:]
    dark = float((np.maximum(left, right) < -32.0).mean())
    bright = float((np.minimum(left, right) > 32.0).mean())
    bent = luma[:, 1:-1, 1:-1] - 0.25 * (
        luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    )
    squares = bent * bent
    variance = float(squares.mean()) + 0.05
    skew = float((squares * bent).mean()) / variance**1.5
    kurtosis = float((squares * squares).mean()) / variance**2
    return [
        float(np.sqrt(dark)),
        float(np.sqrt(bright)),
        float(np.log(variance)),
        float(np.arcsinh(skew)),
        float(np.log(kurtosis + 0.1)),
        float((np.abs(bent) < 0.4).mean()),
    ]


def _about_colours(windows: Uint8Array, luma: Float32Array) -> list[float]:
    """How many colours there are, how unevenly they are used, and how many neighbours are equal."""
    red, green, blue = (windows[..., c].astype(np.int32) for c in range(3))
    packed = (red << 16) | (green << 8) | blue
    equal = 0.5 * float((packed[:, :, 1:] == packed[:, :, :-1]).mean())
    equal += 0.5 * float((packed[:, 1:] == packed[:, :-1]).mean())
    coarse = ((red >> 3) << 10) | ((green >> 3) << 5) | (blue >> 3)
    counts = np.bincount(coarse.ravel(), minlength=1 << 15)
    used = np.sort(counts[counts > 0])[::-1] / coarse.size
    entropy = -float(used @ np.log(used))
    some = packed.ravel()[:: max(1, packed.size // 8192)]
    distinct = len(np.unique(some)) / some.size
    tones = _counts(luma)
    rough = float(np.abs(tones[1:-1] - 0.5 * (tones[:-2] + tones[2:])).sum())
    return [
        equal,
        distinct,
        entropy,
        float(np.log(len(used))),
        *(float(used[:most].sum()) for most in (1, 4, 16)),
        -float(tones @ np.log(tones + 1e-9)),
        rough,
        float(tones[:6].sum()),
        float(tones[250:].sum()),
    ]


def _about_chroma(windows: Uint8Array, luma: Float32Array) -> list[float]:
    largest = np.maximum(np.maximum(windows[..., 0], windows[..., 1]), windows[..., 2])
    smallest = np.minimum(np.minimum(windows[..., 0], windows[..., 1]), windows[..., 2])
    colourful = _counts((largest - smallest).astype(np.float32))
    mean = float(colourful @ _LEVELS)
    spread = float(np.sqrt(colourful @ (_LEVELS - mean) ** 2))
    rising = np.cumsum(colourful)
    tint = windows[..., 0].astype(np.float32) - luma
    steps = _counts(*(np.abs(np.diff(tint, axis=axis)) for axis in (1, 2)))
    ranges = np.quantile(_block_ranges(tint), (0.25, 0.5, 0.9))
    found = [mean, spread, rising[3], 1.0 - rising[96], *np.cumsum(steps)[[0, 2, 8]]]
    return [float(value) for value in (*found, *np.log(ranges + 0.5))]


def _about_grid(luma: Float32Array, across: Float32Array, down: Float32Array) -> list[float]:
    """Whether steps at one of eight places are larger than elsewhere, wherever the grid begins."""
    found: list[tuple[float, float]] = []
    for steps in (across, np.swapaxes(down, 1, 2)):
        # Content makes few large steps, blocks many small ones.
        small = np.minimum(steps, np.float32(12.0))
        beyond = small[:, :, 1:-1] - 0.5 * (small[:, :, :-2] + small[:, :, 2:])
        peaks = (beyond > 0.3).mean(axis=(0, 1))
        found.append((_peak(beyond.mean(axis=(0, 1))), _peak(peaks)))
    jumps, peaks = zip(*found, strict=True)
    level = float(np.minimum(across, np.float32(12.0)).mean()) + 0.1
    return [max(jumps) / level, min(jumps) / level, max(peaks), min(peaks)]


def _peak(profile: npt.NDArray[Any]) -> float:
    """How far the largest of the eight means of every eighth value exceeds the second largest."""
    means = [float(profile[phase::8].mean()) for phase in range(8)]
    means.sort()
    return means[-1] - 0.5 * (means[-2] + means[4])


def _about_transform(luma: Float32Array, across: Float32Array) -> list[float]:
    """How many coefficients of the 8×8 cosine transform vanish on the best of 64 grids.

    On the grid on which it was quantised most are 0 but for rounding; on the others they are not.
    """
    tiles = _liveliest(luma, across)
    count, high, wide = (tiles.shape[0], tiles.shape[1] - 7, tiles.shape[2] - 7)
    rows = np.lib.stride_tricks.sliding_window_view(tiles, 8, axis=2) @ _COSINES.T
    rows = np.lib.stride_tricks.sliding_window_view(rows, 8, axis=1)
    found = np.abs(rows @ _COSINES.T).reshape(count, high, wide, 64)[..., 1:]
    lively = found.sum(axis=3) > 24.0
    phases = (np.arange(high)[:, None] % 8 * 8 + np.arange(wide)[None] % 8)[None]
    phases = np.broadcast_to(phases, lively.shape)[lively]
    counted = np.bincount(phases, minlength=64) + 0.5
    result: list[float] = []
    for limit in (0.6, 1.5):
        vanished = (found < limit).mean(axis=3, dtype=np.float32)[lively]
        shares = np.bincount(phases, weights=vanished, minlength=64) / counted
        shares.sort()
        result += [shares[-1] - shares[-2], shares[-1] - shares[32], shares[32]]
    return [*(float(value) for value in result), float(lively.mean())]


def _liveliest(luma: Float32Array, across: Float32Array) -> Float32Array:
    """Up to _TILES tiles that begin at multiples of 8 px, those with most texture: (n, h, w)."""
    high, wide = (min(_TILE_PX, side) for side in luma.shape[1:])
    places = [
        (window, top, left)
        for window in range(luma.shape[0])
        for top in range(0, luma.shape[1] - high + 1, _TILE_PX)
        for left in range(0, luma.shape[2] - wide + 1, _TILE_PX)
    ]
    texture = np.minimum(across, np.float32(8.0))

    def liveliness(place: tuple[int, int, int]) -> float:
        window, top, left = place
        return -float(texture[window, top : top + high, left : left + wide].mean())

    chosen = sorted(places, key=liveliness)[:_TILES]
    return np.stack([luma[n, y : y + high, x : x + wide] for n, y, x in chosen])


def _cosines() -> Float32Array:
    """The orthonormal cosine transform of 8 values, (8, 8)."""
    k, x = np.arange(8)[:, None], np.arange(8)[None]
    rows = np.cos(np.pi * (2 * x + 1) * k / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)
    return rows.astype(np.float32)


_COSINES = _cosines()
