"""A network becomes a function on arrays; one module per way of running it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]


class Results(NamedTuple):
    """What a network made of one batch."""

    values: npt.NDArray
    """(N, s·h, s·w, C): float32, neither clamped nor rounded; or integers, as `Canvas.put` would
    make them of that."""
    finite: npt.NDArray[np.bool_]
    """(N,): all numbers of that one were finite. Integers of one that were not mean nothing."""


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

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """What `run` gives for each of `batches`, in their order, each as it is asked for.

        An engine may take batches ahead of what it has given. `dtype` is what the values will
        become: float32, uint8 or uint16. An engine that can make integers itself gives those, else
        it gives floats.
        """
        ...


def one_by_one(
    run: Callable[[FloatArray], FloatArray], batches: Iterable[FloatArray]
) -> Iterator[Results]:
    """`Engine.stream` for an engine that does one thing after the other."""
    for batch in batches:
        values = run(batch)
        finite = np.isfinite(values).reshape(len(values), -1)
        yield Results(values, np.asarray(finite.all(axis=1)))


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


class AnyScaleEngine(NetworkEngine, Protocol):
    """An engine whose network enlarges by any factor; `scale` is the largest."""

    def at(self, scale: Fraction, origin: tuple[int, int]) -> AnyScaleEngine:
        """An engine for windows whose first pixel is `origin` (row, column) of a picture.

        It gives all output pixels that lie on a window: for one from row a to row b those from
        ⌈scale · a⌉ up to ⌈scale · b⌉. Only the remainders of `origin` by the scale's denominator
        count.
        """
        ...


class Opened(NamedTuple):
    """An engine that is ready to run a network, and where it does."""

    engine: NetworkEngine
    devices: tuple[torch.device, ...]
    """One, or several that share the work."""
    note: str = ""
    """Why it is not another engine, a sentence; empty when there is nothing to say."""
