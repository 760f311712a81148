"""A picture in rows, from its top to its bottom, so that it never lies in memory as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Rows = Callable[[int, int], npt.NDArray]
"""Gives rows `start` to `stop` of something, (stop - start, w, C). Neither number ever falls from
one call to the next, and what it gives is not to be written to."""

# Of pictures so wide that this is not little, temporaries are in the end a few copies of it.
_MOST_ROWS = 128


class Strip(NamedTuple):
    """Some whole rows of a picture, as `pictures.Picture` has them."""

    pixels: np.ndarray
    """(n, w, C) uint8 or uint16, C = 1 gray or C = 3 RGB."""
    alpha: np.ndarray | None
    """(n, w), same dtype; straight."""


class StripSource(Protocol):
    """A picture that is read from its top to its bottom, as often as it is opened."""

    width_px: int
    height_px: int
    channels: int
    """1 or 3, alpha not counted: what `pictures.read` would give."""
    has_alpha: bool
    dtype: np.dtype
    """uint8 or uint16."""

    def open(self) -> AbstractContextManager[Callable[[int, int], Strip]]:
        """Begin at the top: ``with source.open() as rows: strip = rows(start, stop)``.

        Neither `start` nor `stop` ever falls from one call to the next.
        """
        ...


class RowWindow:
    """Rows that come only once, for readers that ask for some of them again.

    Held are the rows from the first one that any reader may still ask for, so readers are to move
    on together: one that is made and never used holds everything.
    """

    def __init__(self, pull: Rows, height_px: int) -> None:
        """
        Args:
            pull: gives rows from `start` on, at least one; more than asked for is welcome. Each
                call begins where the last one's rows ended.
            height_px: how many rows there are.
        """
        self._pull = pull
        self._height_px = height_px
        self._held: deque[npt.NDArray] = deque()
        self._first = self._end = 0
        self._starts: list[int] = []

    @classmethod
    def of(cls, bands: Iterator[npt.NDArray], height_px: int) -> RowWindow:
        """Of rows that come as an iterator likes to give them."""
        return cls(lambda start, stop: next(bands), height_px)

    def reader(self) -> Rows:
        """A reader, from the top on; all are made before the first one reads."""
        number = len(self._starts)
        self._starts.append(0)

        def rows(start: int, stop: int) -> npt.NDArray:
            assert self._starts[number] <= start < stop <= self._height_px, "rows only go down"
            self._starts[number] = start
            while self._end < stop:
                self._forget()
                self._held.append(self._pull(self._end, min(stop, self._end + _MOST_ROWS)))
                self._end += len(self._held[-1])
            return self._between(start, stop)

        return rows

    def _forget(self) -> None:
        """Let go of what nobody will ask for, before more comes."""
        past = min(self._starts) - self._first
        while self._held and past >= len(self._held[0]):
            past -= len(self._held[0])
            self._first += len(self._held.popleft())
        # A band may be large, and a network's next window needs a few rows of it.
        if self._held and past > len(self._held[0]) // 2:
            self._held[0] = self._held[0][past:].copy()
            self._first += past

    def _between(self, start: int, stop: int) -> npt.NDArray:
        parts: list[npt.NDArray] = []
        top = self._first
        for band in self._held:
            if top < stop and start < top + len(band):
                parts.append(band[max(0, start - top) : stop - top])
            top += len(band)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
