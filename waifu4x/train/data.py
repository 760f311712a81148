"""High-resolution pictures become pairs of crops: decoded once, memory-mapped, cut at random.

The low-resolution picture is made from the whole high-resolution one by MATLAB's bicubic `imresize`
in uint8, as the papers do, so a crop near a picture's border has the border's true context.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x import files
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_partners, find_pictures, told
from waifu4x.resample import imresize
from waifu4x.train import pairs
from waifu4x.train.region_maps import RegionMaps

UNUSED_S = 30 * 24 * 3600.0
"""After so long without being opened, decoded pictures are removed."""
_FORMAT = 2
_SUFFIXES = (".json", ".hr", ".lr")

Uint8Array = npt.NDArray[np.uint8]

_NONE: Uint8Array = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class PairCache:
    """Decoded pictures, memory-mapped.

    Attributes:
        scale: HR size divided by LR size.
        sizes_px: (n, 2) height and width of each low-resolution picture.
        groups: (n,) which of the given folders a picture came from.
        hr, lr: all pictures of a kind one after another, (H, W, 3) uint8 RGB each.
        skipped: one sentence per file that could not be used.
    """

    scale: int
    sizes_px: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    hr: Uint8Array
    lr: Uint8Array
    skipped: tuple[str, ...]
    place: Path | None = None
    """Its files but for their suffix; None for one that is in memory alone."""
    paths: tuple[str, ...] = ()
    """The file of each picture, absolute."""
    regions: RegionMaps | None = None
    """Where the pictures have label maps; see `labels.with_regions`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # For the processes that prepare batches: each maps the files anew instead of being sent
        # gigabytes.
        if self.place is not None:
            return _mapped, (self.place, self.scale, self.regions)
        return _made, ({field.name: getattr(self, field.name) for field in fields(self)},)

    @cached_property
    def _starts_px(self) -> npt.NDArray[np.int64]:
        """How many low-resolution pixels lie before each picture."""
        areas_px = np.prod(self.sizes_px, axis=1)
        return np.cumsum(areas_px) - areas_px

    def __len__(self) -> int:
        return len(self.sizes_px)

    def pair(self, number: int) -> tuple[Uint8Array, Uint8Array]:
        """The low- and the high-resolution picture `number`: (h, w, 3) and (s·h, s·w, 3)."""
        height, width = (int(v) for v in self.sizes_px[number])
        before_px, area_px, s = int(self._starts_px[number]), height * width, self.scale
        lr = self.lr[3 * before_px : 3 * (before_px + area_px)]
        hr = self.hr[3 * s * s * before_px : 3 * s * s * (before_px + area_px)]
        return lr.reshape(height, width, 3), hr.reshape(height * s, width * s, 3)


def _made(values: dict[str, Any]) -> PairCache:
    return PairCache(**values)


def _mapped(place: Path, scale: int, regions: RegionMaps | None = None) -> PairCache:
    facts = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    groups = facts["groups"]
    # An empty file cannot be mapped.
    hr, lr = (
        np.memmap(place.with_suffix(suffix), dtype=np.uint8, mode="r") if groups else _NONE
        for suffix in (".hr", ".lr")
    )
    return PairCache(
        scale=scale,
        sizes_px=np.asarray(facts["sizes_px"], dtype=np.int64).reshape(-1, 2),
        groups=np.asarray(groups, dtype=np.int64),
        hr=hr,
        lr=lr,
        skipped=tuple(facts["skipped"]),
        place=place,
        paths=tuple(facts["paths"]),
        regions=regions,
    )


def open_cache(
    folders: Sequence[Path],
    cache_folder: Path,
    *,
    scale: int,
    patch_px: int,
    lr_folder: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairCache:
    """Decode all pictures of `folders` into `cache_folder`, or open what an earlier run decoded.

    The cache is keyed by paths, sizes and times of the pictures, so a changed folder is decoded
    anew. Caches that were not opened for UNUSED_S are removed.

    Args:
        scale: HR size divided by LR size.
        patch_px: pictures with a low-resolution side below it are skipped, with the reason.
        lr_folder: has the low-resolution pictures, under the same names (see `pairs`); by default
            they are made by bicubic interpolation.
        on_progress: called with (done, total) pictures.

    Raises:
        TrainError: a folder is missing, or holds no picture that is large enough; or `lr_folder`
            has not, for every picture, the same one in 1/scale of its size.
    """
    listed = _list_folders(folders)
    partners = {} if lr_folder is None else find_partners(folders, lr_folder, scale=scale)
    key = _cache_key(listed, partners, scale=scale, patch_px=patch_px)
    place = cache_folder / f"x{scale}-{key}"
    if not all(place.with_suffix(suffix).is_file() for suffix in _SUFFIXES):
        cache_folder.mkdir(parents=True, exist_ok=True)
        _build(
            listed,
            place,
            scale=scale,
            patch_px=patch_px,
            partners=partners,
            on_progress=on_progress,
        )
    _sweep(cache_folder, using=place)
    cache = _mapped(place, scale)
    if not len(cache):
        raise TrainError(
            f"no usable picture in {', '.join(map(str, folders))}: each side must be at least "
            f"{patch_px * scale} px; {len(cache.skipped)} were skipped"
        )
    return cache


def _sweep(cache_folder: Path, *, using: Path) -> None:
    """Remove what no run has opened for long: decoded pictures are large, and can be made again."""
    used = using.with_suffix(".json")
    # Its time says when it was last opened.
    with suppress(OSError):
        os.utime(used)
    oldest = time.time() - UNUSED_S
    for facts in cache_folder.glob("x*.json"):
        with suppress(OSError):
            if facts != used and facts.stat().st_mtime < oldest:
                for suffix in _SUFFIXES:
                    facts.with_suffix(suffix).unlink(missing_ok=True)


def _list_folders(folders: Sequence[Path]) -> list[tuple[int, Path]]:
    listed: list[tuple[int, Path]] = []
    for group, folder in enumerate(folders):
        if not folder.is_dir():
            raise TrainError(f"{folder} is no folder of pictures")
        listed += [(group, path) for path in find_pictures(folder)]
    if not listed:
        raise TrainError(f"no pictures in {', '.join(map(str, folders))}")
    return listed


def _cache_key(
    listed: Sequence[tuple[int, Path]],
    partners: Mapping[Path, Path],
    *,
    scale: int,
    patch_px: int,
) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {scale} {patch_px}".encode())
    for group, path in [*listed, *((-1, partner) for partner in partners.values())]:
        stat = path.stat()
        line = f"{group} {os.fspath(path.resolve())} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _build(
    listed: list[tuple[int, Path]],
    place: Path,
    *,
    scale: int,
    patch_px: int,
    partners: Mapping[Path, Path],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    refused: list[str] = []
    sizes: list[tuple[int, int]] = []
    groups: list[int] = []
    names: list[str] = []
    skipped: list[str] = []
    with (
        files.atomic_path(place.with_suffix(".hr")) as hr_path,
        files.atomic_path(place.with_suffix(".lr")) as lr_path,
        hr_path.open("wb") as hr_file,
        lr_path.open("wb") as lr_file,
    ):
        for done, (group, path) in enumerate(listed):
            if on_progress is not None:
                on_progress(done, len(listed))
            try:
                whole = as_rgb(read_8bit(path))
                partner = as_rgb(read_8bit(partners[path])) if partners else None
            except PictureReadError as error:
                skipped.append(str(error))
                continue
            hr = cut_to_multiple(whole, scale)
            if min(hr.shape[:2]) < patch_px * scale:
                skipped.append(f"{path}: smaller than {patch_px * scale} px")
                continue
            lr = imresize(hr, 1.0 / scale)
            if partner is not None:
                wrong = pairs.difference(partner, whole, reference=lr)
                if wrong is not None:
                    refused.append(f"{partners[path]} {wrong}")
                    continue
                lr = partner
            hr_file.write(hr.tobytes())
            lr_file.write(lr.tobytes())
            sizes.append((lr.shape[0], lr.shape[1]))
            groups.append(group)
            names.append(os.fspath(path.resolve()))
        if refused:
            raise TrainError(told(refused, "fix or remove them"))
    facts = {"sizes_px": sizes, "groups": groups, "skipped": skipped, "paths": names}
    # Written last: the table's presence says that both data files are whole.
    files.write_bytes(place.with_suffix(".json"), json.dumps(facts).encode())
