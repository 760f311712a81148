"""SSIM, MS-SSIM and GMSD: how like its original a picture looks, by structure and not by error.

All three are those of their authors' MATLAB code, on one plane of 0..255, in double precision:

- SSIM, Wang, Bovik, Sheikh, Simoncelli (2004), https://ece.uwaterloo.ca/~z70wang/research/ssim/:
  ``ssim_index.m``, which is what super-resolution papers measure by. The later ``ssim.m`` shrinks
  large pictures first, and reads higher.
- MS-SSIM, Wang, Simoncelli, Bovik (2003), "Multi-scale structural similarity".
- GMSD, Xue, Zhang, Mou, Bovik (2014), https://arxiv.org/abs/1308.3052; lower is better.

Other conventions give other numbers: a 7×7 box (scikit-image's default), full-size maps with
reflected borders, three colours, or the tool of the SRGAN paper (0.8211 where this gives 0.8104).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from waifu4x.bench.metrics import luma_8bit, shaved

Uint8Array = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]

WINDOW_PX = 11
"""SSIM's window; no side of a plane may be shorter."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""How much each scale counts, the full size first."""
MS_SSIM_SMALLEST_PX = WINDOW_PX * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""176: the window must fit into the coarsest scale."""

_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_GMSD_CONSTANT = 170.0
# MATLAB's rgb2gray: the luma row of NTSC's matrix, inverted from its three-digit coefficients.
_GRAY = np.array([0.298936021293776, 0.587043074451121, 0.114020904255103])


def ssim(prediction: npt.NDArray, target: npt.NDArray, *, peak: float = 255.0) -> float:
    """Mean SSIM of two planes (H, W) in 0..peak: 1 for equal ones, and never more.

    A Gaussian window of 11×11 px and deviation 1.5, only where it lies wholly inside ("valid"),
    K1 = 0.01, K2 = 0.03, variances over the weights' sum (not one less). Raises ValueError for
    planes of two sizes, or with a side below 11 px.
    """
    first, second = _planes(prediction, target, smallest_px=WINDOW_PX, what="SSIM")
    luminance, structure = _maps(first, second, peak)
    return float(np.mean(luminance * structure))


def ssim_y(prediction: Uint8Array, target: Uint8Array, *, border_px: int) -> float:
    """`ssim` of rounded luma (16..235), with `border_px` cut off every side: the papers' figure.

    Both are (H, W, 3) uint8 RGB of the same size. The peak is 255, though luma ends at 235.
    """
    return ssim(*_lumas(prediction, target, border_px))


def ms_ssim(prediction: npt.NDArray, target: npt.NDArray, *, peak: float = 255.0) -> float:
    """MS-SSIM of two planes (H, W) in 0..peak, at five scales: 1 for equal ones.

    Contrast and structure count at every scale, luminance at the coarsest alone. From scale to
    scale 2×2 pixels are averaged; an odd last row or column stands for two. A scale whose contrast
    and structure are negative on average, where the published formula has no real value, makes the
    whole 0. Raises ValueError for planes of two sizes, or with a side below 176 px.
    """
    first, second = _planes(prediction, target, smallest_px=MS_SSIM_SMALLEST_PX, what="MS-SSIM")
    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS, start=1):
        luminance, structure = _maps(first, second, peak)
        coarsest = scale == len(MS_SSIM_WEIGHTS)
        mean = float(np.mean(luminance * structure if coarsest else structure))
        result *= max(mean, 0.0) ** weight
        if not coarsest:
            first, second = _halved(first), _halved(second)
    return result


def ms_ssim_y(prediction: Uint8Array, target: Uint8Array, *, border_px: int) -> float:
    """`ms_ssim` of rounded luma, with `border_px` cut off every side; arguments as `ssim_y`."""
    return ms_ssim(*_lumas(prediction, target, border_px))


def gmsd(prediction: npt.NDArray, target: npt.NDArray) -> float:
    """The deviation of the gradients' likeness over two planes (H, W) in 0..255: 0 for equal ones.

    As published: 2×2 pixels are averaged into one, gradients are Prewitt's over three, T = 170,
    outside the picture is black, and the deviation is the sample's (over n - 1). Raises ValueError
    for planes of two sizes, or with a side below 4 px.
    """
    first, second = _planes(prediction, target, smallest_px=4, what="GMSD")
    one, other = (_gradient(_halved(plane, repeat=False)) for plane in (first, second))
    likeness = (2.0 * one * other + _GMSD_CONSTANT) / (one**2 + other**2 + _GMSD_CONSTANT)
    return float(np.std(likeness, ddof=1))


def gmsd_gray(prediction: Uint8Array, target: Uint8Array, *, border_px: int) -> float:
    """`gmsd` of MATLAB's ``rgb2gray`` (0..255, rounded), `border_px` cut off every side.

    Both are (H, W, 3) uint8 RGB of the same size. Not of luma, which spans 16..235 only: T = 170 is
    meant for the full range.
    """
    return gmsd(*(shaved(_gray_8bit(image), border_px) for image in (prediction, target)))


def _lumas(prediction: Uint8Array, target: Uint8Array, border_px: int) -> tuple[Plane, Plane]:
    return (shaved(luma_8bit(prediction), border_px), shaved(luma_8bit(target), border_px))


def _gray_8bit(rgb: Uint8Array) -> Plane:
    return np.floor(rgb.astype(np.float64) @ _GRAY + 0.5)


def _planes(
    prediction: npt.NDArray, target: npt.NDArray, *, smallest_px: int, what: str
) -> tuple[Plane, Plane]:
    if prediction.shape != target.shape or prediction.ndim != 2:
        raise ValueError(f"{what} compares two planes, not {prediction.shape} with {target.shape}")
    if min(prediction.shape) < smallest_px:
        raise ValueError(f"{what} needs {smallest_px} px a side, not {prediction.shape}")
    return prediction.astype(np.float64), target.astype(np.float64)


def _window() -> Plane:
    """(11,): its outer product with itself is the Gaussian window, which sums to one."""
    offsets = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(offsets**2) / (2.0 * _SIGMA**2))
    return weights / weights.sum()


def _blurred(planes: Plane) -> Plane:
    """(K, H, W) -> (K, H - 10, W - 10): weighted means, where the window lies wholly inside."""
    height, width = planes.shape[1] - WINDOW_PX + 1, planes.shape[2] - WINDOW_PX + 1
    rows = np.zeros((len(planes), height, planes.shape[2]))
    for tap, weight in enumerate(_window()):
        rows += weight * planes[:, tap : tap + height]
    means = np.zeros((len(planes), height, width))
    for tap, weight in enumerate(_window()):
        means += weight * rows[:, :, tap : tap + width]
    return means


def _maps(first: Plane, second: Plane, peak: float) -> tuple[Plane, Plane]:
    """SSIM's two factors at each place of the window: luminance, and contrast with structure."""
    stack = np.stack([first, second, first * first, second * second, first * second])
    mean_1, mean_2, square_1, square_2, product = _blurred(stack)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    variances = (square_1 - mean_1**2) + (square_2 - mean_2**2)
    luminance = (2.0 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    structure = (2.0 * (product - mean_1 * mean_2) + c2) / (variances + c2)
    return luminance, structure


def _halved(plane: Plane, *, repeat: bool = True) -> Plane:
    """(H, W) -> (⌈H/2⌉, ⌈W/2⌉): means of 2×2 px; an odd last one is repeated, or black follows."""
    height, width = (math.ceil(n / 2) for n in plane.shape)
    padding = ((0, 2 * height - plane.shape[0]), (0, 2 * width - plane.shape[1]))
    even = np.pad(plane, padding, mode="edge" if repeat else "constant")
    return even.reshape(height, 2, width, 2).mean(axis=(1, 3))


def _gradient(plane: Plane) -> Plane:
    """The magnitude of Prewitt's gradients; outside the plane is zero."""
    padded = np.pad(plane, 1)
    across = padded[:, :-2] - padded[:, 2:]
    down = padded[:-2] - padded[2:]
    horizontal = (across[:-2] + across[1:-1] + across[2:]) / 3.0
    vertical = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3.0
    return np.sqrt(horizontal**2 + vertical**2)
