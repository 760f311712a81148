"""Pairs of luma planes for networks that are fitted: as the papers' programs make them.

8-bit luma is shrunk in float by MATLAB's bicubic `imresize` and not rounded, which is also how
`bench --protocol luma` measures.
"""

from __future__ import annotations

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
    one detail is seen in several sizes.

    Args:
        most: pictures at most; drawn anew from those that remain where one cannot be used.
        smallest_px: a low-resolution side below it is too small.
        on_progress: called with what is done, and its share 0..1.

    Raises:
        TrainError: a folder is missing, or no picture can be used.
    """
    pairs: list[LumaPair] = []
    skipped: list[str] = []
    drawn = _drawn(folders, rng)
    for path in drawn:
        if len(pairs) == most:
            break
        on_progress("reading pictures", len(pairs) / min(most, len(drawn)))
        try:
            luma = luma_8bit(as_rgb(read_8bit(path))).astype(np.float32) / np.float32(255.0)
        except PictureReadError as error:
            skipped.append(str(error))
            continue
        hr = imresize(luma, shrink ** int(rng.integers(levels)))
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        if min(hr.shape) < smallest_px * scale:
            skipped.append(f"{path}: smaller than {smallest_px * scale} px")
            continue
        pairs.append(LumaPair(lr=imresize(hr, 1.0 / scale), hr=hr))
    if not pairs:
        raise TrainError(
            f"no usable picture in {', '.join(map(str, folders))}: each side must be at least "
            f"{smallest_px * scale} px; {len(skipped)} were skipped"
        )
    return pairs, skipped


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
