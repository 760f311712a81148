"""Batches whose samples have a reference: as all batches, by the seed and their step alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from waifu4x.train import batches
from waifu4x.train.batches import Batch, Batches
from waifu4x.train.data import PairCache, Uint8Array
from waifu4x.train.recipe import DataOptions
from waifu4x.train.references import warping
from waifu4x.train.references.reference_options import ReferenceOptions
from waifu4x.train.references.reference_pictures import ReferencedPairs

# Beside the numbers of steps, by which other batches are drawn.
_OF_ORDER, _OF_SAMPLE = 2**32 - 2, 2**32 - 3


@dataclass(frozen=True, kw_only=True)
class ReferenceBatch(Batch):
    """A batch, and what the generator is shown beside it."""

    reference: Tensor
    """(N, 3, H, W), float32 in [0, 1]."""
    samples: tuple[int, ...]
    """Which samples these are: what is equal here is equal in everything."""
    comes_again: bool = False
    """The run draws these samples again: what is found in their references is worth keeping."""
    is_own: bool = False
    """The truth is its own reference: see `ReferenceOptions.own_maps`."""

    def to(self, device: torch.device) -> ReferenceBatch:
        return self._with(super().to(device), batches.placed(self.reference, device))

    def part(self, start: int, stop: int) -> ReferenceBatch:
        piece = self._with(super().part(start, stop), self.reference[start:stop])
        return dataclasses.replace(piece, samples=self.samples[start:stop])

    def pin_memory(self) -> ReferenceBatch:
        return self._with(super().pin_memory(), self.reference.pin_memory())

    def _with(self, batch: Batch, reference: Tensor) -> ReferenceBatch:
        return ReferenceBatch(
            **vars(batch),
            reference=reference,
            samples=self.samples,
            comes_again=self.comes_again,
            is_own=self.is_own,
        )


class ReferenceBatches(Batches):
    """As `Batches`, for `data.reference`; all its samples have a number of their own."""

    _data: DataOptions

    def __getitem__(self, step: int) -> ReferenceBatch:
        options = self._options
        # A batch that is used twice has one number.
        number, again = divmod(step, 2) if options.own_maps else (step, 0)
        turn = number % len(self._caches)
        size = self._data.batch
        mine = [self._sample_at(number * size + k) for k in range(self._rank, size, self._world)]
        cut = [self._referenced(turn, sample) for sample in mine]
        x, truth, target, reference = (
            torch.from_numpy(np.ascontiguousarray(np.stack(each).transpose(0, 3, 1, 2)))
            for each in zip(*cut, strict=True)
        )
        return ReferenceBatch(
            x=x,
            truth=truth,
            target=target if self._data.sharpen else truth,
            reference=reference,
            samples=tuple(mine),
            comes_again=options.pairs > 0,
            is_own=bool(again),
        )

    @property
    def _options(self) -> ReferenceOptions:
        assert self._data.reference is not None, "`open_batches` makes these where there are some"
        return self._data.reference

    def _sample_at(self, position: int) -> int:
        """The number of the sample at this position of a run."""
        count = self._options.pairs
        if count == 0:
            return position
        # Each once, in an order of its own, before any comes again.
        round_, place = divmod(position, count)
        order = np.random.default_rng([self._seed, round_, _OF_ORDER]).permutation(count)
        return int(order[place])

    def _referenced(
        self, turn: int, sample: int
    ) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray, npt.NDArray]:
        random = np.random.default_rng([self._seed, sample, _OF_SAMPLE])
        chances = random.random(6)
        small, large, target = self._sample(turn, chances, random, None)
        number, y, x = self._place(turn, chances)
        cache = self._caches[turn]
        side = self._data.patch_px * cache.scale
        top, left = y * cache.scale, x * cache.scale
        place = slice(top, top + side), slice(left, left + side)
        reference = self._reference(cache, number, place, random)
        return small, large, target, batches.flipped(reference, chances[3:])

    def _reference(
        self,
        cache: PairCache,
        number: int,
        place: tuple[slice, slice],
        random: np.random.Generator,
    ) -> Uint8Array:
        options = self._options
        is_blank = random.random() < options.blank_share
        warp = warping.draw(options, random)
        hr = cache.pair(number)[1]
        if is_blank:
            return np.zeros(
                (place[0].stop - place[0].start, place[1].stop - place[1].start, 3), np.uint8
            )
        if options.source == "warped":
            return warping.warped(hr, place, warp)
        assert isinstance(cache, ReferencedPairs), "a folder's references were opened"
        return _cut(cache.reference(number), hr.shape, place, warp)


def _cut(
    image: Uint8Array, of_px: Sequence[int], place: tuple[slice, slice], warp: warping.Warp
) -> Uint8Array:
    """The part of a reference that lies where `place` does in a picture of (H, W), as it is.

    Shifted by whole pixels, and inside the reference, which is continued where it is too small.
    """
    found: list[slice] = []
    for side, of, where, shift in zip(
        image.shape, of_px, place, (warp.down_px, warp.right_px), strict=False
    ):
        length = where.stop - where.start
        start = round(where.start * side / of + shift)
        start = min(max(start, 0), max(side - length, 0))
        found.append(slice(start, start + length))
    rows, columns = found
    part = np.asarray(image[rows, columns])
    missing = [
        where.stop - where.start - side for where, side in zip(place, part.shape, strict=False)
    ]
    if not any(missing):
        return part
    return np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")


def open_batches(caches: Sequence[PairCache], data: DataOptions, **options: Any) -> Batches:
    """The batches of a run, with references where its data have some; see `Batches`."""
    kind = Batches if data.reference is None else ReferenceBatches
    return kind(caches, data, **options)
