"""Label maps of one's own: in which region of its picture every pixel is, found out once.

A map is a PNG of class indices (a palette, or gray), as large as its picture and of the same name.
Regions are those of the whole map, so a crop knows of boundaries beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x import files, pictures
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_partners, told
from waifu4x.train.data import PairCache
from waifu4x.train.recipe import RegionOptions
from waifu4x.train.region_maps import RegionMaps

_FORMAT = 2
# A palette's indices, and gray; what has colours has no indices.
_MODES = ("P", "1", "L", "I", "I;16")
# Pillow spreads gray of 2 and 4 bit over 0..255.
_SPREAD = {"L;2": 85, "L;4": 17}

Uint8Array = npt.NDArray[np.uint8]


def with_regions(
    cache: PairCache,
    folders: Sequence[Path],
    label_folder: Path,
    cache_folder: Path,
    *,
    options: RegionOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairCache:
    """The same cache with the regions that the label maps of `label_folder` say.

    Maps that an earlier run found are opened, unless a file or what they depend on has changed.

    Args:
        folders: those that the cache was made of.
        options: `background_classes` and `boundary_px` count.
        on_progress: called with (done, total) maps.

    Raises:
        UsageError: no such folder, or a picture without a map; the first are named.
        TrainError: a map is no PNG of indices, or is not as large as its picture.
    """
    # The cache may have been made by another spelling of the same folders.
    partners = {
        path.resolve(): partner
        for path, partner in find_partners(folders, label_folder, scale=1).items()
    }
    maps = [partners[Path(path)] for path in cache.paths]
    digest = hashlib.sha256(
        f"{_FORMAT} {cache.scale} {sorted(options.background_classes)} {options.boundary_px} "
        f"{cache.place}".encode(errors="surrogateescape")
    )
    for path in maps:
        stat = path.stat()
        line = f"{os.fspath(path.resolve())} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    place = cache_folder / f"{digest.hexdigest()[:16]}.regions"
    if not place.is_file():
        cache_folder.mkdir(parents=True, exist_ok=True)
        _build(maps, place, cache=cache, options=options, on_progress=on_progress)
    return replace(cache, regions=RegionMaps(place, cache.sizes_px * cache.scale))


def _build(
    maps: Sequence[Path],
    place: Path,
    *,
    cache: PairCache,
    options: RegionOptions,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    refused: list[str] = []
    with files.atomic_path(place) as temporary, temporary.open("wb") as file:
        for number, path in enumerate(maps):
            if on_progress is not None:
                on_progress(number, len(maps))
            height, width = (int(n) * cache.scale for n in cache.sizes_px[number])
            try:
                indices = _indices(path)
            except PictureReadError as error:
                refused.append(str(error))
                continue
            # Of a picture no more than the scale's remainder is cut off, at the right and below.
            over = (indices.shape[0] - height, indices.shape[1] - width)
            if not all(0 <= each < cache.scale for each in over):
                refused.append(
                    f"{path} has {indices.shape[1]} x {indices.shape[0]} px, and its picture "
                    f"{width} x {height}"
                )
                continue
            file.write(_regions(indices[:height, :width], options).tobytes())
        if refused:
            raise TrainError(told(refused, "each picture needs a PNG of class indices, as large"))


def _indices(path: Path) -> npt.NDArray[np.int64]:
    """(H, W): the numbers in the file, not the colours that a palette shows them in."""
    with pictures.opened(path) as stream, Image.open(stream) as image:
        if image.mode not in _MODES:
            raise PictureReadError(f"{path} has colours ({image.mode}) in the place of indices")
        stored = str(image.tile[0].args) if image.tile else image.mode
        return np.asarray(image).astype(np.int64) // _SPREAD.get(stored, 1)


def _regions(indices: npt.NDArray[np.int64], options: RegionOptions) -> Uint8Array:
    import torch

    from waifu4x.train.objectives import regions

    found = regions.from_labels(
        torch.from_numpy(np.ascontiguousarray(indices))[None, None],
        background=options.background_classes,
        boundary_px=options.boundary_px,
    )
    return found[0, 0].numpy()
