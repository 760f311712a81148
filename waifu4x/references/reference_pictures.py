"""Sharp pictures that show what a small one lacks: read, and made to lie upon its enlargement."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from waifu4x import color, pictures
from waifu4x.canvas import FloatArray, to_unit
from waifu4x.errors import UsageError
from waifu4x.resample import resize

BLANK = "blank"
"""In the place of a reference: a black one, to see what a network does without help."""
SMALLEST_PX = 12
# A reference that is this much larger was cut off elsewhere to a multiple of something.
_CUT_PX = 8
_DISTORTION = 0.02


@dataclass(frozen=True, kw_only=True)
class References:
    """Sharp pictures, as networks are shown them."""

    images: tuple[FloatArray, ...]
    """(H, W, 3) each, RGB in [0, 1]; none for a blank one."""
    names: tuple[str, ...]
    is_blank: bool = False

    @cached_property
    def told(self) -> str:
        """What they are, in a few characters that change when a pixel does."""
        if self.is_blank:
            return BLANK
        return " ".join(_digest(image) for image in self.images)


def _digest(image: FloatArray) -> str:
    shape = "x".join(map(str, image.shape)).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(image).tobytes()).hexdigest()[:12]


NO_REFERENCES = References(images=(), names=())


def read_references(given: Sequence[str | Path]) -> References:
    """Read them all; `BLANK` alone stands for a blank one.

    Raises:
        UsageError: `BLANK` beside others, or a picture that is too small.
        PictureReadError: one cannot be read.
    """
    if BLANK in map(str, given):
        if len(given) > 1:
            raise UsageError(f"--reference {BLANK} is no picture: give it alone")
        return References(images=(), names=(BLANK,), is_blank=True)
    images: list[FloatArray] = []
    for path in map(Path, given):
        picture = pictures.read(path)
        pixels = to_unit(picture.pixels)
        if picture.alpha is not None:
            pixels = color.bleed_alpha(pixels, picture.alpha)
        if min(pixels.shape[:2]) < SMALLEST_PX:
            raise UsageError(f"{path} is no reference: it has less than {SMALLEST_PX} px a side")
        images.append(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    return References(images=tuple(images), names=tuple(str(path) for path in given))


def aligned(references: References, size_px: tuple[int, int]) -> tuple[FloatArray, str | None]:
    """The one reference as large as the output, (height, width), and a note where it was changed.

    Raises UsageError where its shape is another one.
    """
    if references.is_blank:
        return np.zeros((*size_px, 3), dtype=np.float32), None
    (image,), (name,) = references.images, references.names
    height, width = image.shape[:2]
    beyond = height - size_px[0], width - size_px[1]
    if all(0 <= more < _CUT_PX for more in beyond):
        return image[: size_px[0], : size_px[1]], None
    if abs(math.log(height / width * size_px[1] / size_px[0])) > _DISTORTION:
        raise UsageError(
            f"{name} is {width}×{height} px, and the output {size_px[1]}×{size_px[0]}: this "
            f"network's reference must show the same scene in the output's shape"
        )
    note = f"{name} was resampled from {width}×{height} px to the output's size"
    return np.clip(resize(image, size_px, kernel="lanczos"), 0.0, 1.0), note
