"""Pictures of known truth, in the form in which papers measure and train: 8-bit, cut to size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import pictures, sizes

Uint8Array = npt.NDArray[np.uint8]


def read_8bit(path: Path) -> Uint8Array:
    """(H, W, C) uint8, C = 1 gray or 3 RGB; 16 bit is rounded, alpha is ignored.

    Raises PictureReadError as `pictures.read` does.
    """
    pixels = pictures.read(path).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels


def as_rgb(image: Uint8Array) -> Uint8Array:
    """(H, W, 1 or 3) -> (H, W, 3): gray is treated as RGB with equal channels.

    Set14 then reads 0.08 dB above the papers.
    """
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def cut_to_multiple(image: Uint8Array, scale: float) -> Uint8Array:
    """The upper left of (H, W, C) whose sides are multiples of `scale`; MATLAB's "modcrop".

    Of 2.7 they are multiples of 27: then it can be shrunk to whole pixels, of which 10 are those.
    """
    whole = sizes.exact(scale).numerator
    return image[: image.shape[0] // whole * whole, : image.shape[1] // whole * whole]
