"""A network becomes a function on arrays; one module per way of running it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Engine(Protocol):
    """What runs a network on one device in one number format."""

    name: str
    """As `--engine` names it."""
    scale: int
    channels: int
    precision: str

    def run(self, batch: FloatArray) -> FloatArray:
        """(N, h, w, C) float32 in [0, 1] -> (N, s·h, s·w, C) float32, neither clamped nor checked.

        Channels last is how pictures lie in memory and how convolutions are fastest.

        Raises whatever the device raises when its memory is full (`devices.is_out_of_memory`).
        """
        ...


def in_order(batch: FloatArray) -> FloatArray:
    """`batch` itself where its values lie in memory one after the other, else a copy where they do.

    A turned picture of a single row counts as contiguous to numpy, which ignores the stride along a
    side of one; torch refuses it, because that stride is negative.
    """
    batch = np.ascontiguousarray(batch)
    return batch.copy() if min(batch.strides) < 0 else batch


class NetworkEngine(Engine, Protocol):
    """An engine that holds the network itself, and knows what it takes."""

    def bytes_per_px(self) -> float:
        """Device memory that one input pixel takes at the peak of a pass, estimated."""
        ...
