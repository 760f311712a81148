"""What every degradation is: a frozen dataclass of its options, and callable."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from waifu4x.train.degrading.captions import with_caption
from waifu4x.train.degrading.spoiling import Uint8Array
from waifu4x.train.options import Options, plain, require


@dataclass(frozen=True, kw_only=True)
class Degradation(Options, ABC):
    """``degradation(hr, random)``: (H, W, 3) uint8 RGB becomes (H/scale, W/scale, 3) uint8 RGB."""

    kind: ClassVar[str]
    """What recipes call it."""
    scale: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scale >= 1, f"scale must be 1 or more, not {self.scale}")

    def __call__(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        """Raises ValueError for another kind of array, or sides that are no multiple of scale."""
        good = hr.dtype == np.uint8 and hr.ndim == 3 and hr.shape[2] == 3 and hr.size > 0
        if not good or hr.shape[0] % self.scale or hr.shape[1] % self.scale:
            raise ValueError(
                f"degraded is (H, W, 3) uint8 with sides that are multiples of {self.scale}, "
                f"not {hr.shape} {hr.dtype}"
            )
        return self._degrade(hr, random)

    @abstractmethod
    def _degrade(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array: ...

    def prepare(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        """What is drawn into the high-resolution picture itself before it is degraded."""
        return hr

    def pair(self, hr: Uint8Array, random: np.random.Generator) -> tuple[Uint8Array, Uint8Array]:
        """The low-resolution picture and the high-resolution one that it was made from."""
        hr = self.prepare(hr, random)
        return self(hr, random), hr

    def facts(self) -> dict[str, Any]:
        """Kind and options as plain values, for checkpoints; ``build(**facts)`` makes it again."""
        options = plain(dataclasses.asdict(self))
        scale = options.pop("scale")
        return {"kind": self.kind, "scale": scale, "options": options}


@dataclass(frozen=True, kw_only=True)
class Captioned(Degradation):
    """One that draws a caption into some pictures first, as memes have them."""

    caption_chance: float = 0.05
    caption_px: tuple[float, float] = (8.0, 28.0)
    """The size of the caption's font, in low-resolution pixels."""

    def prepare(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        if random.random() >= self.caption_chance:
            return hr
        low, high = self.caption_px
        return with_caption(hr, random, height_px=(self.scale * low, self.scale * high))


def whole(random: np.random.Generator, limits: tuple[int, int]) -> int:
    """A whole number between these, ends included."""
    return int(random.integers(limits[0], limits[1] + 1))
