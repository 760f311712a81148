"""The references of a folder: decoded once, memory-mapped, one for each picture of a cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x import files
from waifu4x.bench.datasets import as_rgb, read_8bit
from waifu4x.canvas import from_unit, to_unit
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_partners
from waifu4x.references.reference_pictures import References, aligned
from waifu4x.train.data import PairCache, Uint8Array

_FORMAT = 1


@dataclass(frozen=True)
class ReferencedPairs(PairCache):
    """A cache of pairs whose pictures have references."""

    reference_sizes_px: npt.NDArray[np.int64] | None = None
    """(n, 2): the height and width of each."""
    references: Path | None = None
    """The file of them all, one after another, (H, W, 3) uint8 RGB each."""

    def __reduce__(self) -> tuple[Any, ...]:
        own = self.reference_sizes_px, self.references
        return _again, (super().__reduce__(), own)

    @cached_property
    def _reference_starts(self) -> npt.NDArray[np.int64]:
        assert self.reference_sizes_px is not None, "`with_references` gives them"
        areas_px = np.prod(self.reference_sizes_px, axis=1)
        return np.cumsum(areas_px) - areas_px

    @cached_property
    def _mapped(self) -> Uint8Array:
        assert self.references is not None, "`with_references` gives it"
        return np.memmap(self.references, dtype=np.uint8, mode="r")

    def reference(self, number: int) -> Uint8Array:
        """The reference of picture `number`: (H, W, 3)."""
        assert self.reference_sizes_px is not None, "`with_references` gives them"
        height, width = (int(side) for side in self.reference_sizes_px[number])
        start = 3 * int(self._reference_starts[number])
        return self._mapped[start : start + 3 * height * width].reshape(height, width, 3)


def _again(made: tuple[Callable[..., PairCache], tuple[Any, ...]], own: Any) -> ReferencedPairs:
    make, arguments = made
    return _joined(make(*arguments), *own)


def _joined(cache: PairCache, sizes_px: Any, references: Path) -> ReferencedPairs:
    values = {field.name: getattr(cache, field.name) for field in fields(PairCache)}
    return ReferencedPairs(**values, reference_sizes_px=sizes_px, references=references)


def with_references(
    cache: PairCache,
    folders: tuple[Path, ...],
    reference_folder: Path,
    cache_folder: Path,
    *,
    upon: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReferencedPairs:
    """The same cache, with the pictures of another folder as references, decoded where need be.

    Args:
        folders: those that the cache was made of.
        reference_folder: has a picture of the same name, but for the suffix, for each of them; of
            any size from the crops' on.
        upon: references are made to lie upon their pictures, as `aligned` does it in use.

    Raises:
        TrainError: a reference cannot be read.
        UsageError: as `folders.find_partners`; with `upon`, a reference has another shape.
    """
    # The cache may have been made by another spelling of the same folders.
    partners = {
        path.resolve(): partner
        for path, partner in find_partners(folders, reference_folder, scale=1).items()
    }
    wanted = [partners[Path(path)] for path in cache.paths]
    upon_px = cache.sizes_px * cache.scale if upon else None
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    if upon_px is not None:
        digest.update(f" upon {upon_px.tolist()}\n".encode())
    for path in wanted:
        facts = path.stat()
        line = f"{os.fspath(path.resolve())} {facts.st_size} {facts.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    place = cache_folder / f"references-{digest.hexdigest()[:16]}"
    if not all(place.with_suffix(suffix).is_file() for suffix in (".json", ".rgb")):
        cache_folder.mkdir(parents=True, exist_ok=True)
        _build(wanted, place, upon_px, on_progress)
    sizes_px = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    return _joined(cache, np.asarray(sizes_px, dtype=np.int64), place.with_suffix(".rgb"))


def _build(
    wanted: list[Path],
    place: Path,
    upon_px: npt.NDArray[np.int64] | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    sizes_px: list[tuple[int, int]] = []
    with files.atomic_path(place.with_suffix(".rgb")) as temporary, temporary.open("wb") as file:
        for done, path in enumerate(wanted):
            if on_progress is not None:
                on_progress(done, len(wanted))
            try:
                image = as_rgb(read_8bit(path))
            except PictureReadError as error:
                raise TrainError(f"a reference cannot be read: {error}") from error
            if upon_px is not None:
                height, width = (int(side) for side in upon_px[done])
                image = _lying_upon(image, path, (height, width))
            file.write(np.ascontiguousarray(image).tobytes())
            sizes_px.append((image.shape[0], image.shape[1]))
    # Written last: it says that the pixels are whole.
    files.write_bytes(place.with_suffix(".json"), json.dumps(sizes_px).encode())


def _lying_upon(image: Uint8Array, path: Path, size_px: tuple[int, int]) -> Uint8Array:
    shown = References(images=(to_unit(image),), names=(str(path),))
    return from_unit(aligned(shown, size_px)[0], np.dtype(np.uint8))
