"""EXIF, XMP, resolution and ICC profiles: what a file says about its pixels.

Colour management is littleCMS, through Pillow for 8 bits and through imagecodecs for 16.
"""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms

PROVENANCE_NAMESPACE = "http://ns.waifu4x/provenance/1.0/"
"""The XMP namespace of what `provenance` writes; an identifier, not an address to be opened."""

ORIENTATION_TAG = 274
_X_RESOLUTION_TAG, _Y_RESOLUTION_TAG, _RESOLUTION_UNIT_TAG = 282, 283, 296
_SIZE_TAGS = ((256, 257), (40962, 40963))
_PROFILE_SPACES = {b"RGB ": "RGB", b"GRAY": "GRAY", b"CMYK": "CMYK"}
_CM_PER_INCH = 2.54
# Pillow stores RGB in four bytes per pixel: whole pictures would be twice more in memory.
_BAND_ROWS = 256

# In a TIFF these tell how the pixels are stored or belong to other features of the file (tiles,
# sub-pictures, XMP, Photoshop, IPTC, ICC, GeoTIFF, whose map coordinates scaling would make wrong).
_STORAGE_TAGS = frozenset(
    {254, 255, 258, 259, *range(262, 267), 273, 277, 278, 279, 280, 281, 284, *range(288, 294)}
    | {297, 301, *range(317, 348), *range(512, 533), 559, 700, 33550, 33723, 33922, 34264, 34377}
    | {34675, 34735, 34736, 34737, 37724, 50341}
)

# What parsing and re-packing hostile tag data with Pillow may raise.
DAMAGED_TAGS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
    EOFError,
    struct.error,
)


def orientation_of(exif: Image.Exif) -> int:
    """1..8 as EXIF defines them; 1 for anything else that is found there."""
    value = exif.get(ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def with_turned_resolution(exif: Image.Exif | None, orientation: int) -> Image.Exif | None:
    """The two resolutions exchanged, if they belong to a picture that was turned on its side."""
    both = exif is not None and _X_RESOLUTION_TAG in exif and _Y_RESOLUTION_TAG in exif
    if exif is not None and both and 5 <= orientation <= 8:
        x, y = exif[_X_RESOLUTION_TAG], exif[_Y_RESOLUTION_TAG]
        exif[_X_RESOLUTION_TAG], exif[_Y_RESOLUTION_TAG] = y, x
    return exif


def count_directories(stream: BinaryIO, *, most: int) -> int:
    """How many pages and other directories are chained in a TIFF: at most `most` + 1 are counted.

    The stream is left where it was; a chain that breaks off or goes round ends there.
    """
    place = stream.tell()
    stream.seek(0)
    head = stream.read(4)
    order, big = "<" if head[:2] == b"II" else ">", b"+" in head
    count = struct.Struct(order + ("Q" if big else "H"))
    offset = struct.Struct(order + ("Q" if big else "L"))
    seen: set[int] = set()
    at = 8 if big else 4
    whole = stream.seek(0, io.SEEK_END)
    while len(seen) <= most and at + offset.size <= whole:
        stream.seek(at)
        (start,) = offset.unpack(stream.read(offset.size))
        if start in seen or not 0 < start <= whole - count.size:
            break
        seen.add(start)
        stream.seek(start)
        (entries,) = count.unpack(stream.read(count.size))
        at = start + count.size + entries * (20 if big else 12)
    stream.seek(place)
    return len(seen)


def apply_orientation(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored rows and columns, (H, W, ...), into what a viewer shows: that or (W, H, ...)."""
    if orientation >= 5:
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    # Not ascontiguousarray: where a side is 1 px it leaves strides that imagecodecs refuses.
    return samples.copy() if orientation > 1 else np.ascontiguousarray(samples)


def pack_exif(exif: Image.Exif) -> bytes | None:
    """EXIF as bytes, without what tells how the file stored its pixels and without the thumbnail.

    None when nothing is left. Raises one of DAMAGED_TAGS where the data is broken.
    """
    for tag in list(exif):
        if tag in _STORAGE_TAGS:
            del exif[tag]
    # What came out of a BigTIFF would be written as one, which nothing reads.
    exif.bigtiff = False
    # tobytes writes neither the second directory (the thumbnail) nor what is not asked for.
    return exif.tobytes() if len(exif) else None


def exif_for(
    packed: bytes | None,
    *,
    width_px: int,
    height_px: int,
    dpi: tuple[float, float] | None,
) -> Image.Exif | None:
    """EXIF for an upright picture of that size: orientation 1, true dimensions, no thumbnail.

    Size tags are corrected where they were present, never added. dpi is put in where it is given.
    """
    if packed is None and dpi is None:
        return None
    exif = Image.Exif()
    if packed is not None:
        exif.load(packed)
    if ORIENTATION_TAG in exif:
        exif[ORIENTATION_TAG] = 1
    # Asking for a directory that is not there would create an empty one.
    nested = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
    for directory in (exif, nested):
        for width_tag, height_tag in _SIZE_TAGS:
            if width_tag in directory:
                directory[width_tag] = width_px
            if height_tag in directory:
                directory[height_tag] = height_px
    if dpi is not None:
        exif[_X_RESOLUTION_TAG], exif[_Y_RESOLUTION_TAG] = dpi
        exif[_RESOLUTION_UNIT_TAG] = 2
    return exif


def dpi_of(info: dict[Any, Any], exif: Image.Exif) -> tuple[float, float] | None:
    """Dots per inch (horizontal, vertical) from the format's own field, else from the EXIF data."""
    value: Any = info.get("dpi")
    factor = 1.0
    if value is None and _X_RESOLUTION_TAG in exif:
        unit = exif.get(_RESOLUTION_UNIT_TAG, 2)
        if unit not in (2, 3):
            return None
        x = exif[_X_RESOLUTION_TAG]
        value, factor = (x, exif.get(_Y_RESOLUTION_TAG, x)), (_CM_PER_INCH if unit == 3 else 1.0)
    if value is None:
        return None
    try:
        x_dpi, y_dpi = (float(number) * factor for number in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    sane = 0.0 < x_dpi < 1e5 and 0.0 < y_dpi < 1e5
    return (x_dpi, y_dpi) if sane else None


def xmp_for(packet: bytes | None, *, width_px: int, height_px: int) -> bytes | None:
    """XMP for an upright picture of that size: properties corrected, never added; no thumbnails."""
    if packet is None:
        return None
    packet = _without_thumbnails(packet)
    values = {
        rb"tiff:Orientation": 1,
        rb"tiff:ImageWidth": width_px,
        rb"tiff:ImageLength": height_px,
        rb"exif:PixelXDimension": width_px,
        rb"exif:PixelYDimension": height_px,
    }
    for name, value in values.items():
        # A property is written as an attribute or as an element (XMP specification, part 1, 7.9).
        new = rb"\g<1>%d\g<2>" % value
        packet = re.sub(rb"(\b%s\s*=\s*[\"'])[^\"'<>]*([\"'])" % name, new, packet)
        packet = re.sub(rb"(<%s>)[^<]*(</%s>)" % (name, name), new, packet)
    return packet


def _without_thumbnails(packet: bytes) -> bytes:
    """In time that grows as its length does: one expression for the whole element would try every
    start with every end."""
    end = b"</xmp:Thumbnails>"
    parts, at = [], 0
    for start in re.finditer(rb"<xmp:Thumbnails\b", packet):
        if start.start() < at:
            continue
        closing = packet.find(end, start.end())
        if closing < 0:
            break
        parts.append(packet[at : start.start()])
        at = closing + len(end)
    return b"".join([*parts, packet[at:]])


def profile_space(profile: bytes) -> str | None:
    """What the profile is for: "RGB", "GRAY" or "CMYK"; None when it is broken or another kind."""
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return None
    return _PROFILE_SPACES.get(profile[16:20])


@functools.cache
def srgb_profile() -> bytes:
    """The sRGB profile of littleCMS."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def to_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """(H, W, C) in the profile's space, C in {1, 3}, to sRGB of the same shape.

    Raises ValueError when the profile cannot be used for such pixels.
    """
    return _transform(pixels, profile, srgb_profile())


def from_srgb(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """(H, W, 3) sRGB to (H, W, 3) in the RGB profile's space. Raises ValueError as `to_srgb`."""
    return _transform(pixels, srgb_profile(), profile)


def cmyk_to_srgb(image: Image.Image, profile: bytes) -> np.ndarray:
    """A picture of Pillow's mode CMYK to (H, W, 3) uint8 sRGB. Raises ValueError as `to_srgb`."""
    return _transform_image(image, profile)


def lab_to_srgb(image: Image.Image) -> np.ndarray:
    """A picture of Pillow's mode LAB (D50, 8 bits) to (H, W, 3) uint8 sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return _transform_image(image, lab)


def is_srgb(profile: bytes, *, gray: bool = False) -> bool:
    """Whether converting from the profile to sRGB changes nothing (at most one level in 255).

    Raises ValueError when the profile cannot be used for RGB, or for gray, pixels.
    """
    if gray:
        probe = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    else:
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        probe = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    return int(np.abs(to_srgb(probe, profile).astype(int) - probe).max()) <= 1


def survives_srgb(pixels: np.ndarray, srgb: np.ndarray, profile: bytes) -> bool:
    """Whether `srgb`, converted back to the profile, is `pixels` again: no colour lay outside sRGB.

    Differences count as lightness: near black one step of sRGB is many of a plain-gamma space.
    """
    back = from_srgb(srgb, profile)
    luminance = (np.arange(256) / 255.0) ** 2.2
    lightness = np.where(
        luminance > 216 / 24389, 116.0 * np.cbrt(luminance) - 16.0, luminance * 24389 / 27
    ).astype(np.float32)
    shift = 8 * (pixels.itemsize - 1)
    for rows in _bands(len(pixels)):
        there, again = pixels[rows] >> shift, back[rows] >> shift
        if (np.abs(lightness[there] - lightness[again]) > 1.25).any():
            return False
    return True


def _transform(pixels: np.ndarray, source: bytes, target: bytes) -> np.ndarray:
    if pixels.shape[2] > 1:
        return _transform_samples(pixels, source, target)
    # Gray has few levels: each is converted once, by the curves themselves. LittleCMS would put 33
    # points in their place, and linear light was 5 levels of 255 off near black.
    levels = np.arange(np.iinfo(pixels.dtype).max + 1, dtype=pixels.dtype).reshape(-1, 256, 1)
    table = _transform_samples(levels, source, target, flags=ImageCms.Flags.NOOPTIMIZE)
    return table.reshape(-1)[pixels]


def _transform_samples(
    pixels: np.ndarray, source: bytes, target: bytes, *, flags: int = 0
) -> np.ndarray:
    gray = pixels.shape[2] == 1
    plane = pixels[..., 0] if gray else pixels
    flags |= ImageCms.Flags.BLACKPOINTCOMPENSATION
    if pixels.dtype == np.uint8:
        bands = (Image.fromarray(plane[rows]) for rows in _bands(len(pixels)))
        return _transform_8_bit(bands, source, target, shape=pixels.shape, flags=flags)
    import imagecodecs

    try:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(plane),
            source,
            target,
            colorspace="gray" if gray else "rgb",
            outcolorspace="rgb",
            intent=int(ImageCms.Intent.RELATIVE_COLORIMETRIC),
            flags=int(flags),
        )
    except RuntimeError as error:
        raise ValueError(f"the ICC profile cannot be used: {error}") from error
    return converted[..., : pixels.shape[2]]


def _transform_image(image: Image.Image, source: bytes) -> np.ndarray:
    """A picture of any mode that littleCMS knows to (H, W, 3) uint8 sRGB."""
    bands = (image.crop((0, rows.start, image.width, rows.stop)) for rows in _bands(image.height))
    shape = (image.height, image.width, 3)
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    return _transform_8_bit(bands, source, srgb_profile(), shape=shape, flags=flags)


def _bands(height_px: int) -> Iterator[slice]:
    for top in range(0, height_px, _BAND_ROWS):
        yield slice(top, min(top + _BAND_ROWS, height_px))


def _transform_8_bit(
    bands: Iterator[Image.Image],
    source: bytes,
    target: bytes,
    *,
    shape: tuple[int, ...],
    flags: int,
) -> np.ndarray:
    """Convert `bands`, one below the other, of one mode, to (H, W, C) uint8 = `shape`."""
    converted = np.empty(shape, dtype=np.uint8)
    transform = None
    try:
        for rows, band in zip(_bands(shape[0]), bands, strict=True):
            if transform is None:
                transform = ImageCms.buildTransform(
                    ImageCms.ImageCmsProfile(io.BytesIO(source)),
                    ImageCms.ImageCmsProfile(io.BytesIO(target)),
                    band.mode,
                    "RGB",
                    ImageCms.Intent.RELATIVE_COLORIMETRIC,
                    ImageCms.Flags(flags),
                )
            done = ImageCms.applyTransform(band, transform)
            # Gray becomes three equal channels, of which one is kept.
            converted[rows] = np.asarray(done)[..., : shape[2]]
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"the ICC profile cannot be used: {error}") from error
    return converted
