"""Low-resolution pictures that someone has already: which belongs to which, and whether it fits.

A pair that is shifted by a pixel teaches a network to shift, and blurs what it draws; so every pair
is compared with what bicubic interpolation makes of its high-resolution picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_SHIFT_PX = 0.5
"""In pixels of the low-resolution picture. Other kernels and origins of the grid shift by less."""

# Measured on the 119 pictures of Set5, Set14 and B100 at x4: shifts were found to within 0.145 px.
# Degraded as Real-ESRGAN's training does it, 118 pass, all with JPEG, and all of which every fourth
# pixel was taken; none that is shifted by 1 px, and no other picture of the same size.
_FOUND_WITHIN_PX = 0.15
_SAME_PICTURE = 0.5
# Levels of 255: there is nothing to align in a picture that is flatter.
_FLAT = 1.5

Uint8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]


def difference(lr: Uint8Array, hr: Uint8Array, *, reference: Uint8Array) -> str | None:
    """What is wrong with a pair, to follow the file's name; None when it fits.

    Args:
        lr: (h, w, 3), the low-resolution picture that is to be used.
        hr: (H, W, 3), the high-resolution one.
        reference: (H/s, W/s, 3), what bicubic interpolation makes of `hr`.
    """
    height, width = hr.shape[:2]
    scale = height // reference.shape[0]
    if (lr.shape[0] * scale, lr.shape[1] * scale) != (height, width):
        return f"has {lr.shape[1]} x {lr.shape[0]} px, which is not 1/{scale} of {width} x {height}"
    mine, wanted = _luma(lr), _luma(reference)
    if min(mine.std(), wanted.std()) < _FLAT:
        return None if abs(mine.mean() - wanted.mean()) < 64.0 else "is another picture"
    down_px, right_px, likeness = shift(mine, wanted)
    if likeness < _SAME_PICTURE:
        return "is another picture than the large one"
    if max(abs(down_px), abs(right_px)) > MOST_SHIFT_PX + _FOUND_WITHIN_PX:
        return f"is shifted by {right_px:+.1f} px to the right and {down_px:+.1f} px down"
    return None


def shift(mine: Float64Array, wanted: Float64Array) -> tuple[float, float, float]:
    """By how many pixels (H, W) `mine` lies further down and right than `wanted`; their likeness.

    The likeness is the correlation (-1..1) where they overlap after that many whole pixels. First
    whole pixels are found at the peak of the cross-correlation, then fractions by least squares on
    the gradient (Lucas, Kanade 1981).
    """
    height, width = wanted.shape
    padded = (2 * height, 2 * width)
    # Of edges rather than of brightness, whose correlation hardly falls from one pixel to the next.
    spectrum = np.sum(
        [
            np.fft.rfft2(mine_slope, padded) * np.conj(np.fft.rfft2(wanted_slope, padded))
            for mine_slope, wanted_slope in zip(np.gradient(mine), np.gradient(wanted), strict=True)
        ],
        axis=0,
    )
    peak = int(np.argmax(np.fft.irfft2(spectrum, padded)))
    down, right = divmod(peak, padded[1])
    down, right = down - padded[0] * (down >= height), right - padded[1] * (right >= width)
    mine = mine[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
    wanted = wanted[max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
    if min(mine.shape) < 3 or min(mine.std(), wanted.std()) < _FLAT:
        return float(down), float(right), 0.0
    likeness = float(np.corrcoef(mine.ravel(), wanted.ravel())[0, 1])
    # As bright and as contrasty as each other, so that what is left is due to the shift.
    mine = (mine - mine.mean()) / mine.std()
    wanted = (wanted - wanted.mean()) / wanted.std()
    slopes = np.stack([slope.ravel() for slope in np.gradient(wanted)], axis=1)
    fraction, *_ = np.linalg.lstsq(slopes, (wanted - mine).ravel(), rcond=None)
    return down + float(fraction[0]), right + float(fraction[1]), likeness


def _luma(image: Uint8Array) -> Float64Array:
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
