"""At most 256 colours for pictures that have more.

Colours of the palette itself stay exactly what they are. All others are dithered by where they lie,
not by diffusing errors: what does not change from frame to frame looks the same in all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Colors = npt.NDArray[np.uint8]
"""(N, 3) RGB."""

# A colour that makes up this share of what one entry stands for takes its place: flat areas, such
# as a white background, then keep their colour instead of being averaged with their borders.
_FLAT_SHARE = 0.3
# How far beyond a colour, seen from its entry, the second entry is looked for. With 1 only the
# middle half of the way between two entries is dithered; 3 leaves an eighth at either end plain.
_REACH = 3
_NEAREST_CHUNK = 1 << 15
# Below it sorting the colours is faster than ticking them off in a table of all 16 million.
_FEW = 100_000


def distinct(pixels: Colors, *, most: int) -> Colors | None:
    """The colours among `pixels`, (N, 3), in a fixed order; None if they are more than `most`."""
    if len(pixels) < _FEW:
        found = np.unique(_packed(pixels))
    else:
        seen = np.zeros(1 << 24, dtype=bool)
        seen[_packed(pixels)] = True
        found = np.flatnonzero(seen)
    if len(found) > most:
        return None
    return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)


def build(pixels: Colors, *, most: int) -> Colors:
    """1 to `most` colours for `pixels`, (N, 3): median cut, k-means, flat areas kept exactly."""
    if (exact := distinct(pixels, most=most)) is not None:
        return exact if len(exact) else np.zeros((1, 3), dtype=np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels[None]))
    reduced = image.quantize(most, method=Image.Quantize.MEDIANCUT, kmeans=2)
    table = reduced.getpalette("RGB")
    assert table is not None
    palette = np.array(table, dtype=np.uint8).reshape(-1, 3)[:most]
    return _with_flat_colors(palette, pixels)


def reduce(pixels: npt.NDArray[np.uint8], palette: Colors) -> npt.NDArray[np.uint8]:
    """(H, W, 3) to (H, W) indices into `palette`, which has 1..256 rows."""
    height, width = pixels.shape[:2]
    flat = pixels.reshape(-1, 3)
    wanted, table = _packed(flat), _packed(palette)
    order = np.argsort(table, kind="stable")
    at = order[np.minimum(np.searchsorted(table, wanted, sorter=order), len(table) - 1)]
    indices = at.astype(np.uint8)
    (others,) = np.nonzero(table[at] != wanted)
    if len(others):
        rows, columns = np.divmod(others, width)
        indices[others] = _dithered(flat[others], palette, rows, columns)
    return indices.reshape(height, width)


def mean_square_error(pixels: Colors, palette: Colors) -> float:
    """Of the nearest entry against the colour, over the three channels, in levels of 255."""
    if not len(pixels):
        return 0.0
    error = pixels.astype(np.float32) - palette[_nearest(pixels, palette)]
    return float((error * error).mean())


def _packed(colors: Colors) -> npt.NDArray[np.integer]:
    wide = colors.astype(np.int32)
    return wide[:, 0] << 16 | wide[:, 1] << 8 | wide[:, 2]


def _nearest(colors: npt.NDArray, palette: Colors) -> npt.NDArray[np.uint8]:
    """The entry nearest to each colour, at most two levels a channel off the best.

    Six bits a channel are compared, and each combination that occurs only once.
    """
    bins = colors.astype(np.uint32) >> 2
    keys = bins[:, 0] << 12 | bins[:, 1] << 6 | bins[:, 2]
    present = np.flatnonzero(np.bincount(keys, minlength=1 << 18))
    centers = np.stack([present >> 12, present >> 6 & 63, present & 63], axis=1) * 4 + 1.5
    entries = palette.astype(np.float32)
    lengths = (entries * entries).sum(axis=1)
    table = np.zeros(1 << 18, dtype=np.uint8)
    for start in range(0, len(present), _NEAREST_CHUNK):
        part = slice(start, start + _NEAREST_CHUNK)
        distances = lengths - 2 * (centers[part].astype(np.float32) @ entries.T)
        table[present[part]] = distances.argmin(axis=1)
    return table[keys]


def _dithered(
    colors: Colors, palette: Colors, rows: npt.NDArray, columns: npt.NDArray
) -> npt.NDArray[np.uint8]:
    """The nearest entry, or the one across the gap: in proportion, by an ordered pattern."""
    first = _nearest(colors, palette)
    wanted, base = colors.astype(np.float32), palette[first].astype(np.float32)
    beyond = np.clip(wanted + _REACH * (wanted - base), 0, 255)
    second = _nearest(beyond.astype(np.uint8), palette)
    step = palette[second] - base
    share = ((wanted - base) * step).sum(axis=1) / np.maximum((step * step).sum(axis=1), 1e-6)
    return np.where(share > _bayer(3)[rows % 8, columns % 8], second, first)


def _bayer(levels: int) -> npt.NDArray[np.floating]:
    """Thresholds in (0, 1), (2^levels, 2^levels), as evenly spread as can be (Bayer, 1973)."""
    pattern = np.zeros((1, 1))
    for _ in range(levels):
        pattern = np.block([[4 * pattern, 4 * pattern + 2], [4 * pattern + 3, 4 * pattern + 1]])
    return (pattern + 0.5) / pattern.size


def _with_flat_colors(palette: Colors, pixels: Colors) -> Colors:
    packed, counts = np.unique(_packed(pixels), return_counts=True)
    colors = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    entry = _nearest(colors, palette)
    total = np.bincount(entry, weights=counts, minlength=len(palette))
    # The last of each entry's colours in this order is its most frequent one.
    order = np.lexsort((counts, entry))
    last = np.flatnonzero(np.diff(entry[order].astype(int), append=-1))
    top = order[last]
    frequent = counts[top] > _FLAT_SHARE * total[entry[top]]
    result = palette.copy()
    result[entry[top[frequent]]] = colors[top[frequent]]
    return result
