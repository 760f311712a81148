"""High-resolution pictures become pairs of crops: decoded once, memory-mapped, cut at random.

The low-resolution picture is made from the whole high-resolution one by MATLAB's bicubic `imresize`
in uint8, as the papers do, so a crop near a picture's border has the border's true context.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import files
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_pictures
from waifu4x.resample import imresize

_FORMAT = 1

Uint8Array = npt.NDArray[np.uint8]


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


def open_cache(
    folders: Sequence[Path],
    cache_folder: Path,
    *,
    scale: int,
    patch_px: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> PairCache:
    """Decode all pictures of `folders` into `cache_folder`, or open what an earlier run decoded.

    The cache is keyed by paths, sizes and times of the pictures, so a changed folder is decoded
    anew.

    Args:
        scale: HR size divided by LR size.
        patch_px: pictures with a low-resolution side below it are skipped, with the reason.
        on_progress: called with (done, total) pictures.

    Raises:
        TrainError: a folder is missing, or holds no picture that is large enough.
    """
    listed = _list_folders(folders)
    key = _cache_key(listed, scale=scale, patch_px=patch_px)
    place = cache_folder / f"x{scale}-{key}"
    table = place.with_suffix(".json")
    if not all(place.with_suffix(suffix).is_file() for suffix in (".json", ".hr", ".lr")):
        cache_folder.mkdir(parents=True, exist_ok=True)
        _build(listed, place, scale=scale, patch_px=patch_px, on_progress=on_progress)
    facts = json.loads(table.read_text(encoding="utf-8"))
    if not facts["sizes_px"]:
        raise TrainError(
            f"no usable picture in {', '.join(map(str, folders))}: each side must be at least "
            f"{patch_px * scale} px; {len(facts['skipped'])} were skipped"
        )
    return PairCache(
        scale=scale,
        sizes_px=np.asarray(facts["sizes_px"], dtype=np.int64),
        groups=np.asarray(facts["groups"], dtype=np.int64),
        hr=np.memmap(place.with_suffix(".hr"), dtype=np.uint8, mode="r"),
        lr=np.memmap(place.with_suffix(".lr"), dtype=np.uint8, mode="r"),
        skipped=tuple(facts["skipped"]),
    )


def _list_folders(folders: Sequence[Path]) -> list[tuple[int, Path]]:
    listed: list[tuple[int, Path]] = []
    for group, folder in enumerate(folders):
        if not folder.is_dir():
            raise TrainError(f"{folder} is no folder of pictures")
        listed += [(group, path) for path in find_pictures(folder)]
    if not listed:
        raise TrainError(f"no pictures in {', '.join(map(str, folders))}")
    return listed


def _cache_key(listed: Iterable[tuple[int, Path]], *, scale: int, patch_px: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {scale} {patch_px}".encode())
    for group, path in listed:
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
    on_progress: Callable[[int, int], None] | None,
) -> None:
    sizes: list[tuple[int, int]] = []
    groups: list[int] = []
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
                hr = cut_to_multiple(as_rgb(read_8bit(path)), scale)
            except PictureReadError as error:
                skipped.append(str(error))
                continue
            if min(hr.shape[:2]) < patch_px * scale:
                skipped.append(f"{path}: smaller than {patch_px * scale} px")
                continue
            lr = imresize(hr, 1.0 / scale)
            hr_file.write(hr.tobytes())
            lr_file.write(lr.tobytes())
            sizes.append((lr.shape[0], lr.shape[1]))
            groups.append(group)
    facts = {"sizes_px": sizes, "groups": groups, "skipped": skipped}
    # Written last: the table's presence says that both data files are whole.
    files.write_bytes(place.with_suffix(".json"), json.dumps(facts).encode())


class CropSampler:
    """Random aligned crops, flipped and transposed at random; its whole state is one string.

    Each folder is sampled equally often; within a folder a picture in proportion to the number of
    crops it holds, so that every crop is equally likely.
    """

    def __init__(self, cache: PairCache, *, patch_px: int, seed: int) -> None:
        self._cache = cache
        self._patch_px = patch_px
        self._random = np.random.default_rng(seed)
        places = np.prod(cache.sizes_px - patch_px + 1, axis=1).astype(np.float64)
        chance = np.zeros(len(cache))
        present = np.unique(cache.groups)
        for group in present:
            mask = cache.groups == group
            chance[mask] = places[mask] / places[mask].sum() / len(present)
        self._cumulative = np.cumsum(chance)

    def batch(self, size: int) -> tuple[Uint8Array, Uint8Array]:
        """(size, 3, p, p) and (size, 3, s·p, s·p) uint8 RGB: low and high resolution."""
        pairs = [self._crop() for _ in range(size)]
        lr = np.stack([lr for lr, _ in pairs]).transpose(0, 3, 1, 2)
        hr = np.stack([hr for _, hr in pairs]).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(lr), np.ascontiguousarray(hr)

    def _crop(self) -> tuple[Uint8Array, Uint8Array]:
        draw = self._random.random() * self._cumulative[-1]
        number = int(np.searchsorted(self._cumulative, draw, side="right"))
        lr, hr = self._cache.pair(min(number, len(self._cache) - 1))
        p, s = self._patch_px, self._cache.scale
        y = int(self._random.integers(lr.shape[0] - p + 1))
        x = int(self._random.integers(lr.shape[1] - p + 1))
        flip_y, flip_x, transpose = self._random.random(3) < 0.5
        crops = (lr[y : y + p, x : x + p], hr[y * s : (y + p) * s, x * s : (x + p) * s])
        turned = [_turn(c, flip_y=flip_y, flip_x=flip_x, transpose=transpose) for c in crops]
        return turned[0], turned[1]

    @property
    def state(self) -> str:
        return json.dumps(self._random.bit_generator.state)

    @state.setter
    def state(self, state: str) -> None:
        self._random.bit_generator.state = json.loads(state)


def _turn(image: Uint8Array, *, flip_y: bool, flip_x: bool, transpose: bool) -> Uint8Array:
    if flip_y:
        image = image[::-1]
    if flip_x:
        image = image[:, ::-1]
    return image.transpose(1, 0, 2) if transpose else image
