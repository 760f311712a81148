"""Scale is a property of the output: how large it must be, and how to get there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from waifu4x.errors import UsageError

_MAX_WISH = 1_000_000_000
# Above the sides of most pictures, so that the ratio of two of them comes back as it was.
_MAX_DENOMINATOR = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Target:
    """The wished size of an output; exactly one field is set. Sizes are (width, height) in px.

    The aspect ratio is always kept (to the rounding of one pixel).
    """

    scale: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    long_edge_px: int | None = None
    short_edge_px: int | None = None
    fit_px: tuple[int, int] | None = None
    """The largest size that lies inside this box."""
    minimum_px: tuple[int, int] | None = None
    """The smallest size that covers this box; a picture that does so already keeps its size."""

    def __post_init__(self) -> None:
        given = [value for value in self.__dict__.values() if value is not None]
        if len(given) != 1:
            raise UsageError(
                "give exactly one of --scale, --width, --height, --long-edge, --short-edge, "
                "--fit and --min"
            )
        numbers = given[0] if isinstance(given[0], tuple) else (given[0],)
        # No format holds more, and beyond it the arithmetic below overflows. NaN is refused too.
        if not all(0 < n <= _MAX_WISH for n in numbers):
            raise UsageError(
                f"an output size must be positive and at most {_MAX_WISH:,}, not {given[0]}"
            )

    def factor(self, width_px: int, height_px: int) -> float:
        """Output size over input size for a picture of that size."""
        long_px, short_px = max(width_px, height_px), min(width_px, height_px)
        if self.scale is not None:
            return self.scale
        if self.width_px is not None:
            return self.width_px / width_px
        if self.height_px is not None:
            return self.height_px / height_px
        if self.long_edge_px is not None:
            return self.long_edge_px / long_px
        if self.short_edge_px is not None:
            return self.short_edge_px / short_px
        if self.fit_px is not None:
            return min(self.fit_px[0] / width_px, self.fit_px[1] / height_px)
        assert self.minimum_px is not None  # the constructor saw to it
        covering = max(self.minimum_px[0] / width_px, self.minimum_px[1] / height_px)
        return max(1.0, covering)

    def size_px(self, width_px: int, height_px: int) -> tuple[int, int]:
        """(width, height) of the output, rounded half up, each at least 1."""
        factor = self.factor(width_px, height_px)
        # The tiny term keeps 333 * (1000 / 333) at 1000 although the product is 999.9999….
        width, height = (max(1, math.floor(n * factor + 0.5 + 1e-9)) for n in (width_px, height_px))
        return width, height


class Pass(NamedTuple):
    """One pass of a network of any scale."""

    scale: Fraction
    size_px: tuple[int, int]
    """(height, width) of what it gives: at most ⌈scale · n⌉ of n pixels."""


def exact(factor: float) -> Fraction:
    """The fraction that is meant: 27/10 for 2.7, 1000/333 for what 1000 / 333 gives."""
    return Fraction(factor).limit_denominator(_MAX_DENOMINATOR)


# A last resample that enlarges by so little blurs nothing; another pass of a x4 network would cost
# sixteen times the work.
LAST_RESAMPLE_LIMIT = 1.02


def passes(factor: float, *, native: int, any_factor: bool = False) -> tuple[float, ...]:
    """By how much each pass of a network enlarges, so that together they reach `factor`.

    Args:
        factor: output size over input size.
        native: the network's own scale; with `any_factor` the largest that it was trained for.
        any_factor: the network enlarges by any factor from 1 to `native` (VDSR, Meta-SR).

    Returns:
        One number per pass; their product may fall short of `factor` by 2 %, which the one resample
        at the end makes up for. Nothing when the picture shrinks: a network has nothing to add.
    """
    if factor < 1.0:
        return ()
    if native == 1:
        return (1.0,)
    if not any_factor:
        needed = math.log(max(1.0, factor / LAST_RESAMPLE_LIMIT)) / math.log(native)
        return (float(native),) * max(1, math.ceil(needed - 1e-9))
    count = max(1, math.ceil(math.log(factor) / math.log(native) - 1e-9))
    return (float(native),) * (count - 1) + (factor / native ** (count - 1),)


def parse_box(text: str) -> tuple[int, int]:
    """``1920x1080`` -> (1920, 1080); a single number is a square.

    Raises:
        UsageError: anything else.
    """
    parts = text.lower().replace("×", "x").split("x")
    if not 1 <= len(parts) <= 2 or not all(p.strip().isdecimal() for p in parts):
        raise UsageError(f"{text!r} is no size: write it as 1920x1080")
    numbers = [int(p) for p in parts]
    return numbers[0], numbers[-1]
