"""Files of several pictures: GIF, APNG, animated WebP and AVIF, TIFF with pages.

One module for each, with the same functions: `outline` (from the header), `decode` and, beside
`gif_writer` and `encoders.encode_tiff`, `encode`. Frames come out whole, as they are to be shown.
They raise what `decoders.decode` raises, and are to be called as that is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt

from waifu4x.codecs.decoders import Stored
from waifu4x.codecs.gif_writer import bounds


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What the header of a file says, before anything is decoded."""

    frames: int = 1
    pixels: int = 0
    """Of all frames together; what decoding takes at most."""
    largest: int = 0
    """Pixels of the largest frame, or of the screen where that is larger."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """What a file holds."""

    frames: list[Stored]
    """Of an animation: all of one size and one number of channels, with alpha or without."""
    durations_ms: tuple[float, ...]
    plays: int
    """How often the whole is shown; 0 for ever."""


def in_ticks(durations_ms: Sequence[float], *, tick_ms: int) -> list[int]:
    """Each duration as a whole number of ticks; rounded so that errors never add up."""
    ends = [round(end / tick_ms) for end in itertools.accumulate(durations_ms)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def split(ticks: Sequence[int], *, most: int) -> list[list[int]]:
    """Each frame's ticks in parts that the format can hold: a longer frame is stored again."""
    return [[most] * (n // most) + [n % most] * (n % most > 0 or n == 0) for n in ticks]


def changed_box(samples: npt.NDArray, before: npt.NDArray) -> tuple[int, int, int, int]:
    """top, bottom, left, right of what differs; one pixel if nothing does: no frame is empty."""
    return bounds((samples != before).any(axis=2))
