"""The bytes of a file to samples, as the file stores them: not turned upright, not colour-managed.

Pillow decodes; imagecodecs (libpng, libtiff) takes over for 16-bit colour, which Pillow
would silently reduce to 8 bits, and is imported only then.
"""

from __future__ import annotations

import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x import metadata
from waifu4x.formats import READABLE

# What Pillow raises on bad content, found with 8,751 broken files of seven public collections;
# RuntimeError is what its AVIF decoder raises.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    EOFError,
    struct.error,
    RuntimeError,
)
_EXIF_TAG = 34665
_GPS_TAG = 34853
_INTEROP_TAG = 40965
_PNG_END = b"IEND\xaeB`\x82"
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WITH_FRAMES = ("GIF", "WEBP", "AVIF", "PNG", "TIFF")
_PILLOW_LOCK = threading.RLock()


class RefusedError(ValueError):
    """The content is refused; the message goes on after the name of its file."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a file holds: samples not yet turned upright, in whatever colours it has."""

    pixels: np.ndarray
    """(H, W, C), C in {1, 3}, uint8 or uint16; for CMYK the plain conversion to RGB."""
    alpha: np.ndarray | None
    """(H, W), straight."""
    format: str
    info: dict[Any, Any]
    exif: Image.Exif | None
    """None when it is damaged; empty when there is none."""
    cmyk: Image.Image | None = None
    frames_total: int = 1
    notes: tuple[str, ...] = ()


def decode(stream: BinaryIO, *, max_pixels: int) -> Stored:
    """Decode the first picture of a seekable stream; to be called within `quiet_pillow`.

    Raises one of UNREADABLE, RefusedError (one of them) where the reason is known.
    """
    if not (head := stream.read(4)):
        raise RefusedError("is empty (0 bytes)")
    stream.seek(0)
    stored = None
    if head in _TIFF_MAGICS:
        stored = _load_tiff_16_bit(stream, max_pixels=max_pixels)
        stream.seek(0)
    return stored or _load_with_pillow(stream, max_pixels=max_pixels)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow's pixel limit is off (ours is asked instead) and its warnings are silent.

    Both are states of the whole process, so readers in other threads wait.
    """
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(width: int, height: int, *, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise RefusedError(f"has no pixels ({width}×{height})")
    if width * height > max_pixels:
        raise RefusedError(
            f"has {width:,}×{height:,} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; if that is meant to be, raise it with --max-pixels"
        )


def _load_with_pillow(stream: BinaryIO, *, max_pixels: int) -> Stored:
    try:
        image = Image.open(stream, formats=READABLE)
    except Image.UnidentifiedImageError as error:
        raise RefusedError(
            f"is not a picture of a kind known ({', '.join(READABLE)}), or its start is damaged"
        ) from error
    _check_size(*image.size, max_pixels=max_pixels)
    # A phone's MPO is a JPEG followed by previews or a gain map, not by frames.
    format = "JPEG" if image.format == "MPO" else str(image.format)
    frames = _frames_of(image) if format in _WITH_FRAMES else 1
    # Read before loading: it tells how the samples are stored, which `mode` no longer does.
    raw_mode = str(image.tile[0].args) if image.tile else ""
    image.load()
    data = b""
    if format == "PNG":
        stream.seek(0)
        data = stream.read()
        if _PNG_END not in data:
            raise RefusedError("is cut off: its last part is missing")
    notes: tuple[str, ...] = ()
    if format == "PNG" and re.search(r"^(LA|RGB|RGBA);16B", raw_mode):
        pixels, alpha = _decode_png_16_bit(data, image.size)
    else:
        pixels, alpha, notes = _planes(image, raw_mode=raw_mode)
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format=format,
        info=image.info,
        exif=_exif_of(image),
        cmyk=image if image.mode == "CMYK" else None,
        frames_total=frames,
        notes=notes,
    )


def _frames_of(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except metadata.DAMAGED_TAGS as error:
        raise RefusedError(f"is damaged: one of its pages is not readable ({error})") from error


def _exif_of(image: Image.Image) -> Image.Exif | None:
    try:
        if packed := image.info.get("exif"):
            # getexif gives an empty one when loading failed before; this says that it did.
            Image.Exif().load(packed)
        if image.format == "TIFF":
            # Pillow says 1 dpi where a TIFF says nothing; what it says is among the tags.
            image.info.pop("dpi", None)
        return image.getexif()
    except metadata.DAMAGED_TAGS:
        return None


def _planes(
    image: Image.Image, *, raw_mode: str
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Any of Pillow's modes as pixels, alpha and notes."""
    mode = image.mode
    if mode.startswith("I;16"):
        return *_gray_16_bit(image), ()
    if mode in ("I", "F"):
        return _scaled_to_16_bit(np.asarray(image), mode)
    notes: tuple[str, ...] = ()
    if ";16" in raw_mode:
        notes = (f"its 16-bit {mode} samples were read with 8 bits",)
    if mode == "LAB":
        # Whatever profile comes with it, CIELAB means these colours on its own.
        image.info.pop("icc_profile", None)
        return metadata.lab_to_srgb(image), None, ("it is CIELAB: converted to sRGB",)
    if mode in ("1", "L", "LA", "La"):
        # La can only become LA, LA anything.
        image = image.convert("LA") if image.has_transparency_data else image.convert("L")
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    samples = np.asarray(image)
    if samples.ndim == 2:
        return samples[..., None], None, notes
    pixels, alpha = samples, None
    if samples.shape[2] in (2, 4):
        pixels, alpha = samples[..., :-1], samples[..., -1]
    # A profile for colours would not fit gray.
    if mode in ("P", "PA") and "icc_profile" not in image.info and _is_neutral(pixels):
        pixels = pixels[..., :1]
    return pixels, alpha, notes


def _is_neutral(pixels: np.ndarray) -> bool:
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def _gray_16_bit(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    gray = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    if tags.get(258) == (12,):
        gray = ((gray.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    if tags.get(262) == 0:
        gray = 65535 - gray
    key = image.info.get("transparency")
    alpha = None if key is None else np.where(gray == key, 0, 65535).astype(np.uint16)
    return gray[..., None], alpha


def _scaled_to_16_bit(
    values: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
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


def _decode_png_16_bit(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    import imagecodecs

    try:
        samples = imagecodecs.png_decode(data).reshape(size[1], size[0], -1)
    except imagecodecs.PngError as error:
        raise RefusedError(f"is damaged or cut off: {error}") from error
    if samples.shape[2] in (2, 4):
        return samples[..., :-1], samples[..., -1]
    return samples, None


def _load_tiff_16_bit(stream: BinaryIO, *, max_pixels: int) -> Stored | None:
    """A TIFF with unsigned 16-bit gray+alpha, RGB or RGBA samples; None for any other."""
    try:
        header = stream.read(8)
        if b"+" in header[:4]:
            header += stream.read(8)
        tags = ImageFileDirectory_v2(header)
        stream.seek(tags.next)
        tags.load(stream)
        width, height, count = int(tags[256]), int(tags[257]), int(tags.get(277, 1))
        deep = set(tags.get(258, ())) == {16} and set(tags.get(339, (1,))) == {1}
    except metadata.DAMAGED_TAGS:
        # Pillow says what is wrong with it.
        return None
    colors = {1: 1, 2: 3}.get(int(tags.get(262) or 0), 0)
    if not deep or not colors or not max(2, colors) <= count:
        return None
    _check_size(width, height, max_pixels=max_pixels)
    samples = _decode_tiff(stream, (height, width, count), planar=tags.get(284) == 2)
    pixels, alpha = samples[..., :colors], None
    # 0: unspecified, 1: premultiplied, 2: straight; without the tag a further sample is alpha.
    kind = next(iter(tags.get(338, ())), 2)
    if count > colors and kind in (1, 2):
        alpha = samples[..., colors]
        if kind == 1:
            pixels = _unmultiply(pixels, alpha)
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format="TIFF",
        info={"icc_profile": tags.get(34675), "xmp": tags.get(700)},
        exif=_tiff_exif(stream),
    )


def _decode_tiff(
    stream: BinaryIO, shape: tuple[int, int, int], *, planar: bool
) -> npt.NDArray[np.uint16]:
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


def _tiff_exif(stream: BinaryIO) -> Image.Exif | None:
    exif = Image.Exif()
    stream.seek(0)
    try:
        exif.load_from_fp(stream)
        # The directories inside must be read while the stream is open.
        for directory in (_EXIF_TAG, _GPS_TAG):
            if directory in exif:
                exif.get_ifd(directory)
        if _EXIF_TAG in exif and _INTEROP_TAG in exif.get_ifd(_EXIF_TAG):
            exif.get_ifd(_INTEROP_TAG)
    except metadata.DAMAGED_TAGS:
        return None
    return exif


def _unmultiply(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = np.maximum(alpha, 1)[..., None].astype(np.uint64)
    return np.minimum((pixels.astype(np.uint64) * 65535 + weight // 2) // weight, 65535).astype(
        np.uint16
    )
