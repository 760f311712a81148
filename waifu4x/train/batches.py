"""Batches of aligned crops: batch `step` of a run depends on the seed and the step alone.

So a run that goes on needs no state of a sampler, workers may prepare batches ahead of time in any
number, and the processes of a distributed run share one stream, each taking its part of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from waifu4x import color
from waifu4x.canvas import to_unit
from waifu4x.resample import resize
from waifu4x.train import fractional
from waifu4x.train.data import PairCache, Uint8Array
from waifu4x.train.degrading import degrade, spoiling
from waifu4x.train.recipe import DataOptions

# Context around a crop, in low-resolution pixels, so that its borders are no borders of a picture:
# the taps of bicubic interpolation, and the blur of the widest degradation.
_ENLARGE_MARGIN_PX = 3
_DEGRADE_MARGIN_PX = 12


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step is trained on; float32 in [0, 1]."""

    x: Tensor
    """(N, C, h, w): what the generator is shown."""
    truth: Tensor
    """(N, C, H, W): what it should give, and what a discriminator is shown."""
    target: Tensor
    """(N, C, H, W): what pixel and content losses compare with: `truth`, or that sharpened."""
    regions: Tensor | None = None
    """(N, 1, H, W) uint8, where the pictures have label maps; see `regions.REGIONS`."""

    @property
    def scale(self) -> Fraction:
        """The truth's size over that of `x`."""
        return Fraction(self.truth.shape[2], self.x.shape[2])

    def to(self, device: torch.device) -> Batch:
        x, truth = (placed(t, device) for t in (self.x, self.truth))
        same = self.target is self.truth
        return Batch(
            x=x,
            truth=truth,
            target=truth if same else placed(self.target, device),
            regions=None if self.regions is None else self.regions.to(device, non_blocking=True),
        )

    def part(self, start: int, stop: int) -> Batch:
        """The samples from `start` to `stop`."""
        truth = self.truth[start:stop]
        same = self.target is self.truth
        target = truth if same else self.target[start:stop]
        regions = None if self.regions is None else self.regions[start:stop]
        return Batch(x=self.x[start:stop], truth=truth, target=target, regions=regions)

    def pin_memory(self) -> Batch:
        """Where a GPU can fetch it while it computes; asked for by torch's DataLoader."""
        same = self.target is self.truth
        x, truth = self.x.pin_memory(), self.truth.pin_memory()
        return Batch(
            x=x,
            truth=truth,
            target=truth if same else self.target.pin_memory(),
            regions=None if self.regions is None else self.regions.pin_memory(),
        )

    def __len__(self) -> int:
        return len(self.x)


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.to(device, non_blocking=True)
    if moved.dtype == torch.uint8:
        # Four times fewer bytes went to the device.
        moved = moved.float().div_(255.0)
    return moved.contiguous(memory_format=torch.channels_last)


class Batches(Dataset[Batch]):
    """The batches of a run, by their step.

    Args:
        caches: one for each scale; a batch is of one of them, in turn.
        luma: samples are the Y of YCbCr in studio range, as for SRCNN and VDSR.
        enlarged: `x` is enlarged by bicubic interpolation to the truth's size.
        rank, world: which part of each batch this process gets, of how many.
    """

    def __init__(
        self,
        caches: Sequence[PairCache],
        data: DataOptions,
        *,
        luma: bool = False,
        enlarged: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._caches = tuple(caches)
        self._data = data
        self._luma = luma
        self._enlarged = enlarged
        self._seed = seed
        self._rank, self._world = rank, world
        self._degradations = [_degradation(cache.scale, data) for cache in self._caches]
        self._cumulative = [_cumulative(cache, data.patch_px) for cache in self._caches]
        self._fractions = fractional.scales(data, max(cache.scale for cache in self._caches))

    def __getitem__(self, step: int) -> Batch:
        turn = step % len(self._caches)
        draws = np.random.default_rng([self._seed, step])
        # All processes draw for the whole batch, and cut out no more than their own part.
        chances = draws.random((self._data.batch, 6))
        mine = range(self._rank, self._data.batch, self._world)
        scale = fractional.scale_at(self._fractions, seed=self._seed, step=step)
        samples = [
            self._sample(turn, chances[k], np.random.default_rng([self._seed, step, k]), scale)
            for k in mine
        ]
        x, truth, target = (
            torch.from_numpy(np.ascontiguousarray(np.stack(each).transpose(0, 3, 1, 2)))
            for each in zip(*samples, strict=True)
        )
        return Batch(
            x=x,
            truth=truth,
            target=target if self._data.sharpen else truth,
            regions=self._regions(turn, [chances[k] for k in mine]),
        )

    def _place(self, turn: int, chances: npt.NDArray[np.float64]) -> tuple[int, int, int]:
        """Of a sample: the number of its picture, and its upper left in low-resolution pixels."""
        cache, cumulative = self._caches[turn], self._cumulative[turn]
        number = int(np.searchsorted(cumulative, chances[0] * cumulative[-1], side="right"))
        number = min(number, len(cache) - 1)
        room_px = cache.sizes_px[number] - self._data.patch_px + 1
        y, x = (int(c * n) for c, n in zip(chances[1:3], room_px, strict=True))
        return number, y, x

    def _regions(self, turn: int, chances: Sequence[npt.NDArray[np.float64]]) -> Tensor | None:
        """(n, 1, H, W): those of the label maps, cut and turned as the pictures are."""
        cache = self._caches[turn]
        if cache.regions is None:
            return None
        cut: list[npt.NDArray] = []
        side = self._data.patch_px * cache.scale
        for each in chances:
            number, y, x = self._place(turn, each)
            top, left = y * cache.scale, x * cache.scale
            whole = cache.regions.map(number)[..., None]
            cut.append(flipped(whole[top : top + side, left : left + side], each[3:]))
        return torch.from_numpy(np.ascontiguousarray(np.stack(cut).transpose(0, 3, 1, 2)))

    def _sample(
        self,
        turn: int,
        chances: npt.NDArray[np.float64],
        random: np.random.Generator,
        fraction: Fraction | None,
    ) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
        cache, degradation = self._caches[turn], self._degradations[turn]
        number, y, x = self._place(turn, chances)
        lr, hr = cache.pair(number)
        p, s = self._data.patch_px, cache.scale
        if fraction is not None:
            small, large = fractional.pair(hr, fraction, patch_px=p, chances=chances[1:3])
        elif degradation is None:
            small, large = lr[y : y + p, x : x + p], hr[y * s : (y + p) * s, x * s : (x + p) * s]
            if self._enlarged:
                small = _enlarged(lr, y, x, size=p, scale=s)
        else:
            small, large = _degraded(hr, y, x, size=p, degradation=degradation, random=random)
            if self._enlarged:
                small = _enlarged(small, 0, 0, size=p, scale=s)
        target = spoiling.sharpen(large) if self._data.sharpen else large
        turned = (flipped(image, chances[3:]) for image in (small, large, target))
        if not self._luma:
            first, second, third = turned
            return first, second, third
        first, second, third = (color.rgb_to_ycbcr(to_unit_rgb(t))[..., :1] for t in turned)
        return first, second, third


def _degradation(scale: int, data: DataOptions) -> degrade.Degradation | None:
    """None where the pictures of the cache, made by bicubic interpolation, are meant."""
    if data.degradation == "bicubic":
        return None
    return degrade.build(data.degradation, scale=scale, options=data.degrade)


def _degraded(
    hr: Uint8Array,
    y: int,
    x: int,
    *,
    size: int,
    degradation: degrade.Degradation,
    random: np.random.Generator,
) -> tuple[Uint8Array, Uint8Array]:
    """A degraded crop and its truth; the degradation sees what lies around the crop."""
    s, m = degradation.scale, _DEGRADE_MARGIN_PX
    top, left = max(0, y - m), max(0, x - m)
    window = hr[top * s : (y + size + m) * s, left * s : (x + size + m) * s]
    small, large = degradation.pair(window, random)
    y, x = y - top, x - left
    return (
        small[y : y + size, x : x + size],
        large[y * s : (y + size) * s, x * s : (x + size) * s],
    )


def to_unit_rgb(image: npt.NDArray) -> npt.NDArray[np.float32]:
    """uint8 or float (H, W, 3) as float32 in [0, 1]."""
    return to_unit(image) if image.dtype == np.uint8 else image


def _cumulative(cache: PairCache, patch_px: int) -> npt.NDArray[np.float64]:
    """Running sums of the pictures' chances.

    Each folder is drawn from equally often; within a folder a picture in proportion to the number
    of crops it holds, so that every crop is equally likely.
    """
    places = np.prod(cache.sizes_px - patch_px + 1, axis=1).astype(np.float64)
    chance = np.zeros(len(cache))
    present = np.unique(cache.groups)
    for group in present:
        mask = cache.groups == group
        chance[mask] = places[mask] / places[mask].sum() / len(present)
    return np.cumsum(chance)


def _enlarged(lr: Uint8Array, y: int, x: int, *, size: int, scale: int) -> npt.NDArray[np.float32]:
    """A crop of the picture enlarged by bicubic interpolation, as if it was enlarged whole."""
    m = _ENLARGE_MARGIN_PX
    top, left = max(0, y - m), max(0, x - m)
    window = to_unit(lr[top : y + size + m, left : x + size + m])
    large = resize(window, (window.shape[0] * scale, window.shape[1] * scale))
    y, x, side = (y - top) * scale, (x - left) * scale, size * scale
    return np.clip(large[y : y + side, x : x + side], 0.0, 1.0)


def flipped(image: npt.NDArray, chances: npt.NDArray[np.float64]) -> npt.NDArray:
    """Flipped and transposed by chance, in one of eight ways."""
    flip_y, flip_x, transpose = chances < 0.5
    if flip_y:
        image = image[::-1]
    if flip_x:
        image = image[:, ::-1]
    return image.transpose(1, 0, 2) if transpose else image
