"""Rows that come in any numbers are encoded in pieces of a fixed one, several pieces at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from waifu4x.codecs import ordered

_MOST_THREADS = 16
_MOST_BYTES = 64 * 2**20


class Groups:
    """Copies of rows, so many together; what remains at the bottom may be fewer."""

    def __init__(self, size: int, height_px: int) -> None:
        self._size = size
        self._left = height_px
        self._group = np.empty(0)
        self._filled = 0

    def put(self, rows: npt.NDArray) -> Iterator[npt.NDArray]:
        """Take the next rows, (n, W, S), and give the groups that they complete."""
        while len(rows):
            if self._filled == 0:
                shape = (min(self._size, self._left), *rows.shape[1:])
                self._group = np.empty(shape, dtype=rows.dtype)
            taken = rows[: len(self._group) - self._filled]
            self._group[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._left -= len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._group):
                self._filled = 0
                yield self._group


def encoded(
    pieces: Iterable[npt.NDArray], encode: Callable[[npt.NDArray], bytes], *, piece_bytes: int
) -> Iterator[bytes]:
    """What `encode` makes of every piece, in their order, in several threads.

    piece_bytes: how large a piece is; of large ones fewer are on their way at once.
    """
    return ordered.made_of(pieces, encode, threads=threads_for(piece_bytes), name="strip")


def threads_for(piece_bytes: int) -> int:
    """How many pieces are encoded at once; about two more are held."""
    return max(1, min(_MOST_THREADS, os.cpu_count() or 1, _MOST_BYTES // piece_bytes))
