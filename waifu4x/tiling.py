"""Where tiles lie, and how their results are put together: integers only, exact by construction.

A picture is cut into *cores* that cover it without overlap. The network is shown each core inside
a larger *window*, with `halo_px` more pixels on every side where the picture has them. All windows
of a picture are of one size and lie inside it, so they can be batched, and at the picture's borders
the network pads exactly as it would for the whole picture. When the halo reaches the network's
receptive radius, the cores put together are guaranteed to equal one pass over the whole picture.

A scale may be a fraction r, for networks of any scale. An output pixel i belongs to the input pixel
⌊i/r⌋, and so those of a span are ⌈r·start⌉ up to ⌈r·stop⌉.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy.typing as npt


@dataclass(frozen=True)
class Span:
    """One tile along one axis, in input pixels."""

    window_start: int
    window_px: int
    core_start: int
    core_stop: int

    def inner(self, scale: int | Fraction) -> slice:
        """The core's place inside the window's result, in output pixels."""
        first, core = math.ceil(self.window_start * scale), self.outer(scale)
        return slice(core.start - first, core.stop - first)

    def outer(self, scale: int | Fraction) -> slice:
        """The core's place in the whole result, in output pixels."""
        return slice(math.ceil(self.core_start * scale), math.ceil(self.core_stop * scale))

    @property
    def window(self) -> slice:
        """The window's place in the input."""
        return slice(self.window_start, self.window_start + self.window_px)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the picture: a vertical and a horizontal span."""

    rows: Span
    columns: Span

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the picture at which the window begins."""
        return self.rows.window_start, self.columns.window_start

    def cut(self, image: npt.NDArray, *, top_px: int = 0) -> npt.NDArray:
        """The window of `image` (h, w, C), as a view; the image begins at the picture's row
        `top_px`."""
        start = self.rows.window_start - top_px
        return image[start : start + self.rows.window_px, self.columns.window]

    def core(self, result: npt.NDArray, scale: int | Fraction) -> npt.NDArray:
        """The core of this window's `result` (s·window_h, s·window_w, C), as a view."""
        return result[self.rows.inner(scale), self.columns.inner(scale)]

    def place(self, scale: int | Fraction) -> tuple[slice, slice]:
        """Rows and columns of the whole output that this tile's core fills."""
        return self.rows.outer(scale), self.columns.outer(scale)


@dataclass(frozen=True)
class TileGrid:
    """All tiles of one picture: guaranteed to cover each pixel with exactly one core."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __iter__(self) -> Iterator[Tile]:
        return (Tile(rows, columns) for rows in self.rows for columns in self.columns)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def window_px(self) -> tuple[int, int]:
        """Height and width of every window."""
        return self.rows[0].window_px, self.columns[0].window_px

    @property
    def core_px(self) -> int:
        """The longest side of any core."""
        return max(span.core_stop - span.core_start for span in (*self.rows, *self.columns))

    @property
    def waste(self) -> float:
        """Pixels shown to the network over pixels of the picture; 1.0 is the ideal."""
        shown_px = len(self) * self.window_px[0] * self.window_px[1]
        return shown_px / (self.rows[-1].core_stop * self.columns[-1].core_stop)


def plan(
    size_px: tuple[int, int],
    *,
    tile_px: int,
    halo_px: int,
    multiple: int = 1,
    rows_px: int | None = None,
) -> TileGrid:
    """Cut a picture into tiles of about equal size.

    Args:
        size_px: height and width of the picture, multiples of `multiple`.
        tile_px: the longest side a core may have.
        halo_px: how much more the network is shown on each side.
        multiple: windows begin and end at multiples of it (networks that unshuffle pixels).
        rows_px: the most rows that a core may have; `tile_px` by default.

    Raises:
        ValueError: a size that is no multiple, or a tile that is smaller than one multiple.
    """
    rows, columns = (
        _spans(n, tile_px=most_px, halo_px=halo_px, multiple=multiple)
        for n, most_px in zip(size_px, (rows_px or tile_px, tile_px), strict=True)
    )
    return TileGrid(rows=rows, columns=columns)


def windows(size_px: int, *, tile_px: int, halo_px: int, multiple: int = 1) -> tuple[int, int]:
    """How many spans `plan` cuts an axis into, and how long the window of each is, in px."""
    if size_px < 1 or size_px % multiple or tile_px < multiple or halo_px < 0:
        raise ValueError(f"cannot tile {size_px} px by {tile_px} px in multiples of {multiple}")
    # In units of `multiple`, rounded so that tiles never grow and halos never shrink.
    units, tile, halo = size_px // multiple, tile_px // multiple, -(-halo_px // multiple)
    count = -(-units // tile)
    longest = -(-units // count)
    return count, min(units, longest + 2 * halo) * multiple


def _spans(size_px: int, *, tile_px: int, halo_px: int, multiple: int) -> tuple[Span, ...]:
    count, window_px = windows(size_px, tile_px=tile_px, halo_px=halo_px, multiple=multiple)
    units, window, halo = size_px // multiple, window_px // multiple, -(-halo_px // multiple)
    edges = [number * units // count for number in range(count + 1)]
    return tuple(
        Span(
            window_start=min(max(start - halo, 0), units - window) * multiple,
            window_px=window_px,
            core_start=start * multiple,
            core_stop=stop * multiple,
        )
        for start, stop in itertools.pairwise(edges)
    )
