"""In which region of its picture every pixel is, for all pictures of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RegionMaps:
    """The regions of all pictures of a cache, one map after another, memory-mapped.

    Attributes:
        sizes_px: (n, 2) height and width of each map, those of the high-resolution picture.
    """

    place: Path
    sizes_px: npt.NDArray[np.int64]

    def __reduce__(self) -> tuple[Any, ...]:
        # For the processes that prepare batches: each maps the file anew.
        return RegionMaps, (self.place, self.sizes_px)

    @cached_property
    def _all(self) -> Uint8Array:
        return np.memmap(self.place, dtype=np.uint8, mode="r")

    @cached_property
    def _starts_px(self) -> npt.NDArray[np.int64]:
        areas_px = np.prod(self.sizes_px, axis=1)
        return np.cumsum(areas_px) - areas_px

    def map(self, number: int) -> Uint8Array:
        """(H, W) uint8: the region of each pixel of picture `number`; see `regions.REGIONS`."""
        height, width = (int(n) for n in self.sizes_px[number])
        start = int(self._starts_px[number])
        return self._all[start : start + height * width].reshape(height, width)
