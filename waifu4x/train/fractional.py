"""Crops for networks of any scale: every tenth of a scale, one for each batch.

At num/den, `den` pixels of the small picture are `num` of the large one, and nowhere else do two
pixels begin at one place: crops begin and end there. The small crop is made from the large picture
around it, and is what MATLAB's `imresize` of the whole picture, cut to a multiple of num, has there
(but for values halfway between two levels, which may be rounded to either). So thirty scales take
no more room on the disk than one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x.errors import UsageError
from waifu4x.resample import imresize
from waifu4x.train.recipe import DataOptions, Recipe

STEPS = 10
"""To one whole scale."""
# Bicubic interpolation looks at two pixels of the small picture to each side.
_MARGIN_PX = 3

Uint8Array = npt.NDArray[np.uint8]


def scales(data: DataOptions, most: int) -> tuple[Fraction, ...]:
    """Those that are mixed, from `data.from_scale` to `most` in tenths; none without the former."""
    if data.from_scale is None:
        return ()
    first = round(data.from_scale * STEPS)
    return tuple(Fraction(number, STEPS) for number in range(first, most * STEPS + 1))


def least_px(data: DataOptions, most: int) -> int:
    """The side of the smallest crop of the large picture."""
    return math.floor(data.patch_px * min(scales(data, most), default=Fraction(most)))


def scale_at(mixed: tuple[Fraction, ...], *, seed: int, step: int) -> Fraction | None:
    """The scale of a batch, which every process of a run finds alike; None where none are mixed."""
    if not mixed:
        return None
    # Beyond the numbers that batches and their samples are drawn by.
    draws = np.random.default_rng([seed, step, 2**32 - 1])
    return mixed[int(draws.integers(len(mixed)))]


def pair(
    hr: Uint8Array, scale: Fraction, *, patch_px: int, chances: npt.NDArray[np.float64]
) -> tuple[Uint8Array, Uint8Array]:
    """A crop of `patch_px` and the one of scale·`patch_px` that it belongs to.

    Args:
        hr: (H, W, 3), at least as large as that.
        patch_px: a multiple of the scale's denominator.
        chances: two numbers in [0, 1), where to cut.
    """
    num, den = scale.numerator, scale.denominator
    # In periods of num large, and of den small pixels.
    count, margin = patch_px // den, -(-_MARGIN_PX // den)
    room = [side // num for side in hr.shape[:2]]
    y, x = (int(c * (n - count + 1)) for c, n in zip(chances, room, strict=True))
    top, left = max(0, y - margin), max(0, x - margin)
    bottom, right = (min(n, start + count + margin) for n, start in zip(room, (y, x), strict=True))
    window = np.asarray(hr[top * num : bottom * num, left * num : right * num])
    small = imresize(window, float(1 / scale))
    y_px, x_px, side = (y - top) * num, (x - left) * num, count * num
    large = window[y_px : y_px + side, x_px : x_px + side]
    y_px, x_px = (y - top) * den, (x - left) * den
    return small[y_px : y_px + patch_px, x_px : x_px + patch_px], large


def check(recipe: Recipe, config: Any) -> None:
    """Raises UsageError for scales that cannot be mixed, or not by a network of this config."""
    data, where = recipe.data, f"recipe {recipe.name}: data.from_scale"
    if data.from_scale is None:
        return
    if not getattr(config, "any_scale", False):
        network = recipe.generator["network"]
        raise UsageError(
            f"{where} is for networks of any scale, and {network} is none: leave it out"
        )
    tenths = data.from_scale * STEPS
    # First whether it lies between them: what is not finite cannot be rounded.
    if not (STEPS <= tenths <= recipe.scale * STEPS and math.isclose(tenths, round(tenths))):
        raise UsageError(f"{where} must be tenths from 1 to {recipe.scale}, not {data.from_scale}")
    if data.patch_px % STEPS:
        raise UsageError(
            f"{where}: crops begin and end where pixels of both pictures do, so data.patch_px must "
            f"be a multiple of {STEPS}, not {data.patch_px}"
        )
    if data.degradation != "bicubic" or data.scales:
        raise UsageError(f"{where} goes with bicubic pairs alone: leave out other degradations")
    if any(stage.discriminator or stage.losses.regions for stage in recipe.stages):
        raise UsageError(
            f"{where}: crops differ in size, and discriminators and regions take those of one: "
            f"leave them out"
        )
