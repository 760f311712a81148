"""Single steps by which pictures suffer: blur, resizing, noise, compression, sharpening halos.

Every step takes and gives (H, W, 3) float32, RGB in 0..255 before rounding; what leaves that range
is clipped by the steps that store a picture in 8 bits. All randomness comes from the Generator.
The blur kernels are those of Real-ESRGAN (Wang et al., https://arxiv.org/abs/2107.10833): there is
no scipy here, so the Bessel function of the sinc kernel is its own integral, and long kernels are
convolved by numpy's FFT.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from waifu4x.resample import resize

Float32Array = npt.NDArray[np.float32]
Uint8Array = npt.NDArray[np.uint8]

Shape = Literal["gaussian", "generalized", "plateau"]
Mode = Literal["area", "bilinear", "bicubic", "nearest"]
MODES: tuple[Mode, ...] = get_args(Mode)
Codec = Literal["JPEG", "WEBP"]

# A grid of blocks may begin anywhere in a crop: 16 px is the largest block, of 4:2:0 and of WebP.
_LARGEST_BLOCK_PX = 16


def to_uint8(image: npt.NDArray[np.floating]) -> Uint8Array:
    """Rounded and clipped, as any file would hold it."""
    return np.clip(np.rint(image), 0.0, 255.0).astype(np.uint8)


def bell_kernel(
    size_px: int,
    sigmas_px: tuple[float, float],
    *,
    angle: float = 0.0,
    shape: Shape = "gaussian",
    beta: float = 1.0,
) -> Float32Array:
    """A blur kernel (size_px, size_px) that sums to 1 and does not shift: it equals its half turn.

    Args:
        size_px: odd.
        sigmas_px: along the two axes; equal ones make it isotropic.
        angle: of the first axis, in radians.
        shape: with q the squared distance in sigmas, exp(-q/2), exp(-q^beta / 2) (generalized) or
            1 / (1 + q^beta) (plateau).
    """
    y, x = _grid(size_px)
    along = (math.cos(angle) * x + math.sin(angle) * y) / sigmas_px[0]
    across = (math.cos(angle) * y - math.sin(angle) * x) / sigmas_px[1]
    q = along**2 + across**2
    if shape == "plateau":
        kernel = 1.0 / (1.0 + q**beta)
    else:
        kernel = np.exp(-0.5 * (q**beta if shape == "generalized" else q))
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size_px: int, cutoff: float) -> Float32Array:
    """The circular low pass (size_px, size_px), which rings; `cutoff` in radians a pixel, to pi."""
    y, x = _grid(size_px)
    radii, where = np.unique(np.hypot(y, x), return_inverse=True)
    values = cutoff**2 / (4.0 * math.pi) * np.ones_like(radii)
    values[1:] = cutoff * _bessel_j1(cutoff * radii[1:]) / (2.0 * math.pi * radii[1:])
    kernel = values[where].reshape(size_px, size_px)
    return (kernel / kernel.sum()).astype(np.float32)


def _grid(size_px: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if size_px % 2 == 0:
        raise ValueError(f"a kernel has an odd size, or it would shift: not {size_px}")
    side = np.arange(size_px) - size_px // 2
    y, x = np.meshgrid(side, side, indexing="ij")
    return y.astype(np.float64), x.astype(np.float64)


def _bessel_j1(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """J1(x) = mean of cos(t - x sin t) over a period; exact to 1e-12 for x up to 50."""
    # The midpoint rule errs by J of the number of nodes, which vanishes where that exceeds x.
    nodes = (np.arange(64) + 0.5) * (math.pi / 64)
    return np.cos(nodes - x[:, None] * np.sin(nodes)).mean(axis=1)


def convolve(image: Float32Array, kernel: Float32Array) -> Float32Array:
    """(H, W, C) filtered by an odd square kernel, reflected at the borders."""
    reach_px = kernel.shape[0] // 2
    planes = np.moveaxis(image, 2, 0)
    sides = [(reach_px, reach_px)] * 2
    padded = np.pad(planes, [(0, 0), *sides], mode="reflect")
    lengths = [_fft_length(n) for n in padded.shape[1:]]
    # Circular wrapping only reaches the first 2 * reach_px samples, which are not taken.
    spectrum = np.fft.rfft2(padded, lengths) * np.fft.rfft2(kernel, lengths)
    filtered = np.fft.irfft2(spectrum, lengths)
    taken = [slice(2 * reach_px, 2 * reach_px + n) for n in planes.shape[1:]]
    whole = np.moveaxis(filtered[:, taken[0], taken[1]], 0, 2)
    return np.ascontiguousarray(whole, dtype=np.float32)


@lru_cache(maxsize=1024)
def _fft_length(at_least: int) -> int:
    """The next length whose factors are at most 7, which is up to ten times as fast."""
    length = at_least
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def resized(
    image: Float32Array, size_px: tuple[int, int], *, mode: Mode, random: np.random.Generator
) -> Float32Array:
    """Resample to (height, width) with the two pictures' corners aligned.

    All but ``nearest`` are antialiased. Of two equally near samples ``nearest`` takes left or right
    by chance: always the same would shift the picture by half a sample.
    """
    if size_px == image.shape[:2]:
        return image
    if mode == "area":
        planes = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(3)]
        turned = (size_px[1], size_px[0])
        box = Image.Resampling.BOX
        return np.stack([np.asarray(plane.resize(turned, box)) for plane in planes], axis=2)
    if mode != "nearest":
        return resize(image, size_px, kernel=mode).astype(np.float32, copy=False)
    down, right = (
        slice(None, None, -1) if each else slice(None) for each in random.random(2) < 0.5
    )
    picked = resize(np.ascontiguousarray(image[down, right]), size_px, kernel="nearest")
    return np.ascontiguousarray(picked[down, right], dtype=np.float32)


_FILTERS = (
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.LANCZOS,
)


def shrunk(
    image: Uint8Array, scale: int, *, soft_px: float, random: np.random.Generator
) -> Uint8Array:
    """(H, W, 3) uint8 to 1/scale of its size by one of Pillow's filters, all antialiased.

    Args:
        soft_px: deviation of a Gaussian before it; 0 for none.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    if soft_px > 0.0:
        picture = picture.filter(ImageFilter.GaussianBlur(soft_px))
    filtered = _FILTERS[int(random.integers(len(_FILTERS)))]
    return np.asarray(picture.resize((picture.width // scale, picture.height // scale), filtered))


def gaussian_noise(
    image: Float32Array, sigma: float, *, gray: bool, random: np.random.Generator
) -> Float32Array:
    """White noise of `sigma` levels; `gray` adds the same to all three channels."""
    shape = (*image.shape[:2], 1 if gray else 3)
    noise = random.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(sigma)
    return np.clip(image + noise, 0.0, 255.0)


def poisson_noise(
    image: Float32Array, strength: float, *, gray: bool, random: np.random.Generator
) -> Float32Array:
    """Shot noise, `strength` times that of a sensor with as many electrons as there are levels.

    As in Real-ESRGAN the number of levels is the power of two above those that occur.
    """
    stored = to_uint8(image)
    light = stored.astype(np.float32)
    if gray:
        light = np.rint(light @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32))
    occurring = np.count_nonzero(np.bincount(light.astype(np.intp).ravel(), minlength=256))
    electrons = np.float32(2 ** math.ceil(math.log2(occurring)) / 255.0)
    # The square root of a Poisson variable is nearly normal, with a deviation of 1/2 (Anscombe,
    # 1948): this has its mean, its variance + 1/8 and its skew, in a quarter of the time.
    normal = random.standard_normal(light.shape, dtype=np.float32)
    counted = np.square(np.sqrt(light * electrons) + np.float32(0.5) * normal) - np.float32(0.25)
    seen = np.where(light > 0.0, counted / electrons, np.float32(0.0))
    return np.clip(stored + np.float32(strength) * (seen - light), 0.0, 255.0)


def compressed(
    image: Float32Array,
    *,
    codec: Codec,
    quality: int,
    half_chroma: bool,
    origin_px: tuple[int, int],
) -> Float32Array:
    """Encoded by Pillow and decoded again.

    Args:
        quality: 1..100.
        half_chroma: 4:2:0, else 4:4:4; WebP knows only the former.
        origin_px: where in the picture's first block its corner lies, each 0..15, because a crop of
            a compressed picture begins anywhere in the grid of blocks.
    """
    height, width = image.shape[:2]
    top, left = origin_px
    padded = np.pad(to_uint8(image), ((top, 0), (left, 0), (0, 0)), mode="symmetric")
    stream = io.BytesIO()
    if codec == "JPEG":
        subsampling = "4:2:0" if half_chroma else "4:4:4"
        Image.fromarray(padded).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    else:
        # The default method 4 takes twice as long, for a smaller file with the same traces.
        Image.fromarray(padded).save(stream, "WEBP", quality=quality, method=1)
    decoded = np.asarray(Image.open(stream).convert("RGB"))
    return decoded[top : top + height, left : left + width].astype(np.float32)


def draw_origin(random: np.random.Generator) -> tuple[int, int]:
    """Where a crop lies in the grid of blocks, for `compressed`."""
    top, left = random.integers(_LARGEST_BLOCK_PX, size=2)
    return int(top), int(left)


def oversharpened(image: Float32Array, *, radius_px: float, amount: float) -> Float32Array:
    """An unsharp mask without a threshold: edges get the halos that resizing services give them."""
    mask = ImageFilter.UnsharpMask(radius=radius_px, percent=round(100 * amount), threshold=0)
    return np.asarray(Image.fromarray(to_uint8(image)).filter(mask)).astype(np.float32)


def sharpen(hr: Uint8Array) -> Uint8Array:
    """What Real-ESRGAN's pixel and feature losses aim at: edges sharpened, grain left alone.

    Unsharp masking with weight 0.5 and a Gaussian of 51 px (OpenCV's sigma for it, 8.0), only where
    the difference exceeds 10 levels, with that mask blurred alike.

    Args:
        hr: (H, W, 3) uint8; so is the result.
    """
    values = hr.astype(np.float32)
    residual = values - _soft(values)
    mask = _soft((np.abs(residual) > _SHARPEN_THRESHOLD).astype(np.float32))
    sharp = np.clip(values + _SHARPEN_WEIGHT * residual, 0.0, 255.0)
    return to_uint8(values + mask * (sharp - values))


_SHARPEN_WEIGHT = np.float32(0.5)
_SHARPEN_THRESHOLD = np.float32(10.0)
_SHARPEN_REACH_PX, _SHARPEN_SIGMA_PX = 25, 8.0
# Rows per product: with the kernel's 50 more that are read, a third of the products are with zeros.
_ROWS = 96


def _soft(image: Float32Array) -> Float32Array:
    """(H, W, C) under the Gaussian of `sharpen`, one axis after the other."""
    for axis in (0, 1):
        flat = np.moveaxis(image, axis, 0)
        done = _filter_rows(np.ascontiguousarray(flat).reshape(flat.shape[0], -1))
        image = np.moveaxis(done.reshape(flat.shape), 0, axis)
    return image


def _filter_rows(rows: Float32Array) -> Float32Array:
    reach_px = _SHARPEN_REACH_PX
    padded = np.pad(rows, ((reach_px, reach_px), (0, 0)), mode="reflect")
    out = np.empty_like(rows)
    for start in range(0, len(rows), _ROWS):
        count = min(_ROWS, len(rows) - start)
        banded = _band()[:count, : count + 2 * reach_px]
        np.matmul(
            banded, padded[start : start + count + 2 * reach_px], out=out[start : start + count]
        )
    return out


@lru_cache(maxsize=1)
def _band() -> Float32Array:
    """The Gaussian of `sharpen` as a banded matrix (_ROWS, _ROWS + 50)."""
    offsets = np.arange(-_SHARPEN_REACH_PX, _SHARPEN_REACH_PX + 1)
    taps = np.exp(-0.5 * (offsets / _SHARPEN_SIGMA_PX) ** 2)
    band = np.zeros((_ROWS, _ROWS + 2 * _SHARPEN_REACH_PX), dtype=np.float32)
    for row in range(_ROWS):
        band[row, row : row + len(taps)] = taps / taps.sum()
    return band
