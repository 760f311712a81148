"""Classical resampling: nearest, bilinear, bicubic, lanczos3, and MATLAB's `imresize` bit for bit.

One machinery serves both: separable kernels, stretched when shrinking (anti-aliasing), with
symmetric reflection at the borders. A pass is a product with a sparse banded matrix; it is done
here block by block with small dense products, which BLAS makes faster than gathering tap by tap.

`imresize` follows MATLAB's documented and observed behaviour: on uint8 the height is done before
the width, and the result is rounded and clipped after *each* pass. Super-resolution papers measure
on low-resolution pictures made that way, so one grey level off here shows up in their tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from waifu4x.strips import Rows, RowWindow

Kernel = Literal["nearest", "bilinear", "bicubic", "lanczos"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

FloatArray = npt.NDArray[np.floating]

# Outputs per dense product: at x4 it reads 8 + 5 inputs. Larger ones multiply by zeros.
_BLOCK_PX = 32
# Rows of the picture that are worked on at a time, so that temporaries stay in the cache.
_BAND_PX = 64
# Of the taps along a tall picture, so many lie in memory at a time where it comes in rows.
_TAPS_AT_ONCE = 1024


def _box(t: FloatArray) -> FloatArray:
    return ((t >= -0.5) & (t < 0.5)).astype(t.dtype)


def _triangle(t: FloatArray) -> FloatArray:
    return np.maximum(0.0, 1.0 - np.abs(t))


def _cubic(t: FloatArray) -> FloatArray:
    """Keys' cubic with a = -0.5: MATLAB's and Pillow's (OpenCV and torch use -0.75)."""
    x = np.abs(t)
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos3(t: FloatArray) -> FloatArray:
    return np.where(np.abs(t) < 3.0, np.sinc(t) * np.sinc(t / 3.0), 0.0)


@dataclass(frozen=True)
class _KernelShape:
    weigh: Callable[[FloatArray], FloatArray]
    support_px: float
    # Nearest picks a sample; widening it would turn it into a box average.
    antialias: bool


_SHAPES: dict[Kernel, _KernelShape] = {
    "nearest": _KernelShape(_box, 1.0, False),
    "bilinear": _KernelShape(_triangle, 2.0, True),
    "bicubic": _KernelShape(_cubic, 4.0, True),
    "lanczos": _KernelShape(_lanczos3, 6.0, True),
}


@dataclass(frozen=True)
class _Taps:
    """What each output sample of one axis is made of: indices and weights, both (out_px, taps)."""

    indices: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float64]


def _taps(in_px: int, out_px: int, *, scale: float, kernel: Kernel) -> _Taps:
    """MATLAB's `contributions`: the taps of every output sample along one axis."""
    taps = _padded_taps(in_px, range(out_px), scale=scale, kernel=kernel)
    used = np.any(taps.weights != 0.0, axis=0)
    return _Taps(indices=taps.indices[:, used], weights=taps.weights[:, used])


def _padded_taps(in_px: int, outputs: range, *, scale: float, kernel: Kernel) -> _Taps:
    """The taps of some output samples, with some of weight 0 beside them."""
    shape = _SHAPES[kernel]
    stretch = min(scale, 1.0) if shape.antialias else 1.0
    support_px = shape.support_px / stretch
    numbers = np.arange(outputs.start + 1, outputs.stop + 1)
    centres = numbers / scale + 0.5 * (1.0 - 1.0 / scale)
    left = np.floor(centres - support_px / 2.0)
    positions = left[:, None] + np.arange(math.ceil(support_px) + 2)[None, :]
    weights = stretch * shape.weigh(stretch * (centres[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    # Symmetric reflection including the edge sample: 1..n, n..1, period 2n.
    wrapped = np.mod(positions.astype(np.intp) - 1, 2 * in_px)
    indices = np.where(wrapped < in_px, wrapped, 2 * in_px - 1 - wrapped)
    return _Taps(indices=indices, weights=weights)


def _resample_rows(image: FloatArray, taps: _Taps) -> FloatArray:
    """Resample axis 0 of `image` (in_px, n) to (out_px, n), in the image's own dtype."""
    out_px = taps.indices.shape[0]
    out = np.empty((out_px, image.shape[1]), dtype=image.dtype)
    for start in range(0, out_px, _BLOCK_PX):
        rows = slice(start, start + _BLOCK_PX)
        dense, first = _dense(_Taps(indices=taps.indices[rows], weights=taps.weights[rows]))
        block = image[first : first + dense.shape[1]]
        np.matmul(dense.astype(image.dtype), block, out=out[rows])
    return out


def _dense(taps: _Taps) -> tuple[FloatArray, int]:
    """The taps of a block as a matrix, and the input sample that its first column is for."""
    first, last = int(taps.indices.min()), int(taps.indices.max())
    dense = np.zeros((len(taps.indices), last - first + 1))
    np.add.at(dense, (np.arange(len(dense))[:, None], taps.indices - first), taps.weights)
    return dense, first


def _resample_columns(image: FloatArray, taps: _Taps) -> FloatArray:
    """Resample axis 1 of `image` (h, in_px, c) to (h, out_px, c), band by band."""
    height, in_px, channels = image.shape
    out_px = taps.indices.shape[0]
    out = np.empty((height, out_px, channels), dtype=image.dtype)
    for top in range(0, height, _BAND_PX):
        band = image[top : top + _BAND_PX]
        turned = np.ascontiguousarray(band.transpose(1, 0, 2)).reshape(in_px, -1)
        done = _resample_rows(turned, taps).reshape(out_px, band.shape[0], channels)
        out[top : top + _BAND_PX] = done.transpose(1, 0, 2)
    return out


def resize(
    image: FloatArray, size_px: tuple[int, int], *, kernel: Kernel = "bicubic"
) -> FloatArray:
    """Resample a float picture to `size_px`.

    Args:
        image: (H, W) or (H, W, C), float32 or float64, any value range.
        size_px: (height, width) of the result, each at least 1.
        kernel: all but ``nearest`` are widened when shrinking, so that nothing aliases.

    Returns:
        The picture in the same dtype and number of dimensions. Values may overshoot the input's
        range (bicubic and lanczos ring); nothing is clipped.

    Raises:
        ValueError: an integer picture, an empty picture, or a size below 1.
    """
    if image.dtype not in (np.float32, np.float64):
        raise ValueError(f"resize works on float32 or float64, not {image.dtype}")
    if min(size_px) < 1 or min(image.shape[:2]) < 1:
        raise ValueError(f"cannot resize {image.shape[:2]} to {size_px}")
    planes = image[..., None] if image.ndim == 2 else image
    scales = (size_px[0] / planes.shape[0], size_px[1] / planes.shape[1])
    if scales == (1.0, 1.0):
        return image.copy()
    resized = _two_passes(planes, size_px, scales=scales, kernel=kernel, settle=None)
    return resized[..., 0] if image.ndim == 2 else resized


def resize_rows(
    rows: Rows, in_px: tuple[int, int], size_px: tuple[int, int], *, kernel: Kernel = "bicubic"
) -> Iterator[FloatArray]:
    """`resize` of a picture that comes in rows, from its top to its bottom.

    Args:
        rows: of (n, w, C) float32 or float64.
        in_px, size_px: height and width of the picture and of the result.

    Yields:
        (n, W, C) of the same dtype, which put together are what `resize` gives, bit for bit.
    """
    scales = (size_px[0] / in_px[0], size_px[1] / in_px[1])
    tall = _Tall(in_px[0], size_px[0], scale=scales[0], kernel=kernel)
    if scales[1] == 1.0:
        yield from tall.resampled(rows)
        return
    taps = _taps(in_px[1], size_px[1], scale=scales[1], kernel=kernel)
    if scales[0] <= scales[1]:
        for band in tall.resampled(rows):
            yield _resample_columns(band, taps)
        return
    bands = (_resample_columns(band, taps) for band in _bands(rows, in_px[0]))
    yield from tall.resampled(RowWindow.of(bands, in_px[0]).reader())


def _bands(rows: Rows, height_px: int) -> Iterator[FloatArray]:
    for start in range(0, height_px, _BAND_PX):
        yield rows(start, min(start + _BAND_PX, height_px)).copy()


class _Tall:
    """The rows of a picture that is never whole: block for block what `_resample_rows` computes."""

    def __init__(self, in_px: int, out_px: int, *, scale: float, kernel: Kernel) -> None:
        self._in_px, self._out_px = in_px, out_px
        self._scale = scale
        self._kernel: Kernel = kernel
        self._used = np.zeros(1, dtype=bool)
        for start in range(0, out_px, _TAPS_AT_ONCE):
            taps = self._padded(start, min(start + _TAPS_AT_ONCE, out_px))
            self._used = self._used | np.any(taps.weights != 0.0, axis=0)

    def resampled(self, rows: Rows) -> Iterator[FloatArray]:
        """(n, w, C) bands of the result, each as high as `_resample_columns` works on them."""
        if self._scale == 1.0:
            yield from _bands(rows, self._in_px)
            return
        for start in range(0, self._out_px, _BAND_PX):
            blocks = range(start, min(start + _BAND_PX, self._out_px), _BLOCK_PX)
            yield np.concatenate([self._block(rows, block) for block in blocks])

    def _block(self, rows: Rows, start: int) -> FloatArray:
        taps = self._padded(start, min(start + _BLOCK_PX, self._out_px))
        weights = taps.weights[:, self._used]
        dense, first = _dense(_Taps(indices=taps.indices[:, self._used], weights=weights))
        # What is reflected at the bottom lies below the block's first tap, so rows only go down.
        block = np.ascontiguousarray(rows(first, first + dense.shape[1]))
        flat = block.reshape(len(block), -1)
        return np.matmul(dense.astype(block.dtype), flat).reshape(-1, *block.shape[1:])

    def _padded(self, start: int, stop: int) -> _Taps:
        outputs = range(start, stop)
        return _padded_taps(self._in_px, outputs, scale=self._scale, kernel=self._kernel)


def imresize(image: npt.NDArray, scale: float, *, kernel: Kernel = "bicubic") -> npt.NDArray:
    """MATLAB's ``imresize(image, scale, kernel)``; for uint8 guaranteed equal to it bit for bit.

    Args:
        image: (H, W) or (H, W, C); uint8 or float.
        scale: any positive factor; the result is ceil(H * scale) by ceil(W * scale).
        kernel: MATLAB's name of ``lanczos`` is lanczos3.

    Returns:
        The same dtype and number of dimensions. uint8 is rounded half up and clipped after each of
        the two passes, as MATLAB does; float is neither rounded nor clipped.

    Raises:
        ValueError: an empty picture, one of another dtype, or a scale that is not above 0.
    """
    if image.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"imresize works on uint8, float32 or float64, not {image.dtype}")
    if not 0.0 < scale < math.inf or min(image.shape[:2]) < 1:
        raise ValueError(f"cannot resize {image.shape[:2]} by {scale}")
    planes = image[..., None] if image.ndim == 2 else image
    height, width = planes.shape[:2]
    # The tiny term guards against 63.99999 * x: MATLAB computes ceil on the same doubles.
    size_px = (math.ceil(height * scale - 1e-9), math.ceil(width * scale - 1e-9))
    integer = image.dtype == np.uint8
    values = planes.astype(np.float64) if integer else planes
    settle = _round_to_uint8_range if integer else None
    resized = _two_passes(values, size_px, scales=(scale, scale), kernel=kernel, settle=settle)
    resized = resized.astype(image.dtype)
    return resized[..., 0] if image.ndim == 2 else resized


def _two_passes(
    image: FloatArray,
    size_px: tuple[int, int],
    *,
    scales: tuple[float, float],
    kernel: Kernel,
    settle: Callable[[FloatArray], FloatArray] | None,
) -> FloatArray:
    """Resample both axes of (H, W, C): the one that shrinks more first, the height on a tie."""
    for axis in sorted((0, 1), key=lambda a: scales[a]):
        if scales[axis] == 1.0 and size_px[axis] == image.shape[axis]:
            continue
        taps = _taps(image.shape[axis], size_px[axis], scale=scales[axis], kernel=kernel)
        if axis == 0:
            flat = np.ascontiguousarray(image).reshape(image.shape[0], -1)
            image = _resample_rows(flat, taps).reshape(size_px[0], *image.shape[1:])
        else:
            image = _resample_columns(image, taps)
        if settle is not None:
            image = settle(image)
    return image


def _round_to_uint8_range(values: FloatArray) -> FloatArray:
    """MATLAB's saturating cast to uint8, kept in float: round half up, clip to 0..255."""
    return np.clip(np.floor(values + 0.5), 0.0, 255.0)
