"""More than 8 bits a sample: what Pillow reduces, or leaves open, becomes 16 bits.

imagecodecs (libpng, libtiff, libjxl) and pillow-heif decode here, each imported only then.
"""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x.failures import RefusedError


def gray(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """A 16-bit gray image as (H, W, 1) uint16, 0 black, and the alpha of its transparent level."""
    gray = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    if tags.get(258) == (12,):
        gray = ((gray.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    if tags.get(262) == 0:
        gray = 65535 - gray
    key = image.info.get("transparency")
    alpha = None if key is None else np.where(gray == key, 0, 65535).astype(np.uint16)
    return gray[..., None], alpha


def scaled(values: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """32-bit integers and floats have no white of their own: guess it, and say so."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise RefusedError("has pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    black, white = (
        0.0,
        next(
            (
                top
                for top in ((1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0))
                if high <= top
            ),
            high,
        ),
    )
    if low < 0.0 or white == high > 65535.0:
        black, white = low, max(high, low + 1.0)
    scaled = np.rint((values - black) * (65535.0 / (white - black))).astype(np.uint16)
    note = f"its {mode} samples were read with {black:g} as black and {white:g} as white"
    return scaled[..., None], None, (note,)


def decode_png(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels (H, W, 1 or 3) and alpha (H, W) with all of their 16 bits; size is (W, H) in px.

    Raises RefusedError when the file is damaged.
    """
    import imagecodecs

    try:
        samples = imagecodecs.png_decode(data).reshape(size[1], size[0], -1)
    except imagecodecs.PngError as error:
        raise RefusedError(f"is damaged or cut off: {error}") from error
    if samples.shape[2] in (2, 4):
        return samples[..., :-1], samples[..., -1]
    return samples, None


def decode_tiff(
    stream: BinaryIO, shape: tuple[int, int, int], *, planar: bool
) -> npt.NDArray[np.uint16]:
    """The samples of a TIFF's first page, of shape (H, W, C), whichever way round they are stored.

    Raises RefusedError when the file is damaged.
    """
    import imagecodecs

    height, width, count = shape
    stream.seek(0)
    try:
        samples = imagecodecs.tiff_decode(stream.read())
    except (imagecodecs.TiffError, IndexError) as error:
        raise RefusedError(f"is damaged or cut off: {error}") from error
    if planar:
        return np.moveaxis(samples.reshape(count, height, width), 0, -1)
    return samples.reshape(shape)


def decode_heif(stream: BinaryIO) -> tuple[np.ndarray, np.ndarray | None]:
    """10 and 12 bits as 16, which the plugin would reduce to 8."""
    import pillow_heif

    stream.seek(0)
    held = pillow_heif.open_heif(stream, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    mode, _, depth = held.mode.partition(";")
    samples = np.asarray(held)
    samples = stretched(samples.reshape(*samples.shape[:2], -1), int(depth))
    if mode[-1] not in "aA":
        return samples, None
    pixels, alpha = samples[..., :-1], samples[..., -1]
    return unmultiply(pixels, alpha) if mode[-1] == "a" else pixels, alpha


def avif_depth_bits(data: bytes) -> int:
    """8, 10 or 12, of the deepest part: Pillow reads all of them with 8 bits and does not tell.

    It is in each part's AV1CodecConfigurationBox: https://aomediacodec.github.io/av1-isobmff/
    """
    flags = [found[1][0] for found in re.finditer(rb"av1C\x81.(.)", data, re.DOTALL)]
    return max((8 + 2 * (flag >> 6 & 1) + 2 * (flag >> 5 & 1) for flag in flags), default=8)


def decode_avif(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """The first frame with all its bits, not turned, as Pillow gives it with 8."""
    import imagecodecs

    try:
        samples = imagecodecs.avif_decode(data, index=0)
    except imagecodecs.AvifError as error:
        raise RefusedError(f"is damaged or cut off: {error}") from error
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.dtype == np.uint16:
        samples = stretched(samples, avif_depth_bits(data))
    if samples.shape[2] in (2, 4):
        return samples[..., :-1], samples[..., -1]
    return samples, None


def decode_jxl(data: bytes, depth_bits: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The first frame, and all bits: the plugin gives the last frame, and 8 bits of colour."""
    import imagecodecs

    try:
        samples = imagecodecs.jpegxl_decode(data, index=0)
    except imagecodecs.JpegxlError as error:
        raise RefusedError("is damaged or cut off") from error
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.dtype == np.uint16:
        samples = stretched(samples, depth_bits)
    if samples.dtype not in (np.uint8, np.uint16) or samples.shape[2] > 4:
        raise RefusedError(
            f"has {samples.shape[2]} channels of {samples.dtype}, which are not read from JPEG XL"
        )
    if samples.shape[2] in (2, 4):
        return samples[..., :-1], samples[..., -1]
    return samples, None


def stretched(samples: np.ndarray, depth_bits: int) -> np.ndarray:
    """Samples of 9 to 16 bits, so that the largest becomes 65,535."""
    full = (1 << depth_bits) - 1
    return ((samples.astype(np.uint32) * 65535 + full // 2) // full).astype(np.uint16)


def unmultiply(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) that were multiplied by alpha (H, W), as they were before; all uint16."""
    weight = np.maximum(alpha, 1)[..., None].astype(np.uint64)
    return np.minimum((pixels.astype(np.uint64) * 65535 + weight // 2) // weight, 65535).astype(
        np.uint16
    )
