"""Full-reference metrics, each with its convention in words, because the conventions decide."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from waifu4x import color

Uint8Array = npt.NDArray[np.uint8]

def luma_8bit(image: Uint8Array) -> npt.NDArray[np.float64]:
    """Y of MATLAB's ``rgb2ycbcr`` on uint8: (H, W, 3) -> (H, W) whole numbers in 16..235.

    MATLAB scripts measure on uint8, so Y is rounded here; unrounded Y (BasicSR) reads about 0.01 dB
    higher at 28 dB. A gray picture, (H, W, 1), is treated as RGB with equal channels.
    """
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    return np.floor(color.luma(rgb) + 0.5)


def psnr(prediction: npt.NDArray, target: npt.NDArray, *, peak: float = 255.0) -> float:
    """10·log10(peak² / MSE) in dB over all values; infinite for equal arrays of the same shape."""
    if prediction.shape != target.shape:
        raise ValueError(f"cannot compare {prediction.shape} with {target.shape}")
    error = float(np.mean((prediction.astype(np.float64) - target.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(peak**2 / error)


def psnr_y(prediction: Uint8Array, target: Uint8Array, *, shave_px: int) -> float:
    """PSNR of the papers: on 8-bit Y, with `shave_px` (the scale, by custom) cut off every border.

    Args:
        prediction, target: (H, W, C) uint8, C in {1, 3}, of the same size.
    """
    y_prediction, y_target = luma_8bit(prediction), luma_8bit(target)
    inner = slice(shave_px, -shave_px or None)
    return psnr(y_prediction[inner, inner], y_target[inner, inner])
