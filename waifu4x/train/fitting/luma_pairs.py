"""Pairs of luma planes for networks that are fitted: as the papers' programs make them.

8-bit luma is shrunk in float by MATLAB's bicubic `imresize` and not rounded, which is also how
`bench --protocol luma` measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from waifu4x.bench.datasets import as_rgb, read_8bit
from waifu4x.bench.metrics import luma_8bit
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_pictures
from waifu4x.resample import imresize

Plane = npt.NDArray[np.float32]
Progress = Callable[[str, float], None]

# Of all sharp pictures together, which are in memory until the end of a fit: with what else is kept
# of each pixel they take 2 GB. Of one, all windows of which are described at once, in 0.6 GB.
_MOST_PX, _MOST_EACH_PX = 2**28, 2**22


class LumaPair(NamedTuple):
    """Two planes of studio-range luma with 255 as 1."""

    lr: Plane
    """(h, w)."""
    hr: Plane
    """(s·h, s·w)."""


def read_luma_pairs(
    folders: Sequence[Path],
    *,
    scale: int,
    most: int,
    levels: int,
    shrink: float,
    smallest_px: int,
    rng: np.random.Generator,
    on_progress: Progress = lambda stage, share: None,
) -> tuple[list[LumaPair], list[str]]:
    """Pictures drawn from `folders`, equally often from each, and one sentence per skipped file.

    A folder that is named twice is drawn from twice as often, and gives other pictures.

    A picture is first shrunk itself, by a power of `shrink` below `levels` that is drawn, so that
    one detail is seen in several sizes. Of one that is still larger than its share of the memory a
    part is drawn.

    Args:
        most: pictures at most; drawn anew from those that remain where one cannot be used.
        smallest_px: a low-resolution side below it is too small.
        on_progress: called with what is done, and its share 0..1.

    Raises:
        TrainError: a folder is missing or has no picture, or none can be used.
    """
    pairs: list[LumaPair] = []
    skipped: list[str] = []
    drawn = _drawn(folders, rng)
    if not drawn:
        raise TrainError(f"no pictures in {', '.join(map(str, folders))}")
    count = min(most, len(drawn))
    least_px = smallest_px * scale
    most_px = max(min(_MOST_PX // count, _MOST_EACH_PX), least_px**2)
    for path in drawn:
        if len(pairs) == most:
            break
        on_progress("reading pictures", len(pairs) / count)
        try:
            luma = luma_8bit(as_rgb(read_8bit(path))).astype(np.float32) / np.float32(255.0)
        except PictureReadError as error:
            skipped.append(str(error))
            continue
        hr = _part(imresize(luma, shrink ** int(rng.integers(levels))), most_px, rng)
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        if min(hr.shape) < least_px:
            skipped.append(f"{path}: smaller than {least_px} px")
            continue
        pairs.append(LumaPair(lr=imresize(hr, 1.0 / scale), hr=hr))
    if not pairs:
        raise TrainError(
            f"no usable picture in {', '.join(map(str, folders))}: each side must be at least "
            f"{least_px} px; {len(skipped)} were skipped"
        )
    return pairs, skipped


def _part(plane: Plane, most_px: int, rng: np.random.Generator) -> Plane:
    """A part of so many pixels at most, as square as the plane allows; the plane, if it is one."""
    if plane.size <= most_px:
        return plane
    height, width = plane.shape
    rows = min(height, max(math.isqrt(most_px), most_px // width))
    columns = min(width, most_px // rows)
    top, left = (int(rng.integers(n + 1)) for n in (height - rows, width - columns))
    # A copy: a view would keep all of the plane.
    return plane[top : top + rows, left : left + columns].copy()


def _drawn(folders: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    """All pictures, those of each folder in an order that is drawn, from one folder after the other
    in turn; a folder that is named twice has two turns."""
    piles: dict[Path, list[Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TrainError(f"{folder} is no folder of pictures")
        if folder not in piles:
            found = find_pictures(folder)
            piles[folder] = [found[place] for place in rng.permutation(len(found))]
    drawn: list[Path] = []
    while any(piles.values()):
        drawn += [piles[folder].pop() for folder in folders if piles[folder]]
    return drawn
