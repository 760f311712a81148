"""A network becomes a function on arrays; one module per way of running it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """What runs a network on one device in one number format."""

    scale: int
    channels: int
    precision: str

    def run(self, batch: FloatArray) -> FloatArray:
        """(N, h, w, C) float32 in [0, 1] -> (N, s·h, s·w, C) float32, neither clamped nor checked.

        Channels last is how pictures lie in memory and how convolutions are fastest.

        Raises whatever the device raises when its memory is full (`devices.is_out_of_memory`).
        """
        ...
