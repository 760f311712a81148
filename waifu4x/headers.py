"""What the header of a picture file says, read without decoding a pixel."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x import pictures
from waifu4x.codecs import decoders, deep, jxl_header, metadata, plugins
from waifu4x.codecs.formats import FORMATS, READABLE
from waifu4x.failures import RefusedError
from waifu4x.remote.ranged import FIRST_BYTES, Ranged
from waifu4x.sequences import Outline
from waifu4x.sequences.outlines import check_limits, outline

_GRAY_MODES = ("1", "L", "LA", "La", "I", "F")
_SIDEWAYS = (5, 6, 7, 8)
_PNG_HEAD_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Header:
    """The facts of a file that decide what enlarging it takes."""

    format: str
    """Pillow's name of it, such as "PNG"."""
    width_px: int
    """Upright, as `pictures.read` will give it; so is the height."""
    height_px: int
    channels: int
    """1 or 3, alpha not counted; 3 for a palette, even one of grays."""
    has_alpha: bool
    """Whether it can be transparent; only its pixels tell whether it is."""
    depth_bits: int
    """8 or 16, of each sample in memory."""
    frames: int = 1
    """Of an animation, or pages."""
    kind: Literal["picture", "animation", "pages"] = "picture"


def read(source: Path | bytes | BinaryIO | Ranged, *, max_pixels: int | None = None) -> Header:
    """The header of a picture file.

    max_pixels: as in `pictures.read` and, for all frames together, in `animations.read`; by default
    the limits there. Raises PictureReadError, for what these would refuse too as far as a header
    tells: damaged samples are found only when they are decoded. Of a file in a store (`Ranged`) no
    more is fetched than is needed.
    """
    with _opened(source) as stream:
        if not (head := stream.read(plugins.HEAD_BYTES)):
            raise RefusedError("is empty (0 bytes)")
        stream.seek(0)
        limit = pictures.MAX_PIXELS if max_pixels is None else max_pixels
        if (extra := plugins.plugin_format_of(head)) is not None:
            if reason := plugins.problem(extra):
                raise RefusedError(f"is {plugins.PLUGINS[extra].shown}: {reason}")
            header = {"HEIF": _heif, "JXL": _jxl}[extra](stream)
            found = Outline()
        else:
            _, found = outline(stream)
            check_limits(found, 4 * limit if max_pixels is None else max_pixels)
            stream.seek(0)
            is_tiff = head[:4] in decoders.TIFF_MAGICS
            header = _tiff(stream, found) if is_tiff else _by_pillow(stream, found)
        decoders.check_size(header.width_px, header.height_px, max_pixels=limit)
        return header


@contextmanager
def _opened(source: Path | bytes | BinaryIO | Ranged) -> Iterator[BinaryIO]:
    """As `pictures.opened`, which would read all of any stream."""
    if not isinstance(source, Ranged):
        with pictures.opened(source) as stream:
            yield stream
        return
    with pictures.opened(b""):  # what fails is said as it is of bytes
        source.seek(0)
        yield cast("BinaryIO", source)


def of(picture: pictures.Picture) -> Header:
    """What the header of a file that holds `picture` would say."""
    return Header(
        format=picture.format or "PNG",
        width_px=picture.width_px,
        height_px=picture.height_px,
        channels=picture.pixels.shape[2],
        has_alpha=picture.alpha is not None,
        depth_bits=picture.depth_bits,
    )


def _by_pillow(stream: BinaryIO, found: Outline) -> Header:
    try:
        image = Image.open(stream, formats=READABLE)
    except UnidentifiedImageError as error:
        raise RefusedError(
            f"is not a picture of a kind known ({', '.join(FORMATS)}), or its start is damaged"
        ) from error
    format = "JPEG" if image.format == "MPO" else str(image.format)
    raw_mode = str(image.tile[0].args) if image.tile else ""
    # Pillow would decode all of a PNG to look for it behind the samples.
    is_late = format == "PNG" and not image.info.get("exif")
    exif = _late_exif(stream) if is_late else decoders.exif_of(image)
    is_deep = image.mode[0] in "IF" or ";16" in raw_mode
    # Pillow takes gray with alpha of 16 bits for RGBA.
    is_gray = image.mode in _GRAY_MODES or image.mode.startswith("I;16") or raw_mode[:2] == "LA"
    if format == "AVIF":
        stream.seek(0)
        is_deep = deep.avif_depth_bits(stream.read()) > 8
    return _header(
        format,
        image.size,
        orientation=_orientation(exif),
        channels=1 if is_gray else 3,
        # Frames of an animation may leave parts of the screen empty.
        has_alpha=image.has_transparency_data or (format == "GIF" and found.frames > 1),
        depth_bits=16 if is_deep else 8,
        frames=found.frames,
    )


def _header(
    format: str,
    size: tuple[int, int],
    *,
    orientation: int,
    channels: int,
    has_alpha: bool,
    depth_bits: int,
    frames: int = 1,
) -> Header:
    width, height = size if orientation not in _SIDEWAYS else size[::-1]
    several: Literal["animation", "pages"] = "pages" if format == "TIFF" else "animation"
    return Header(
        format=format,
        width_px=width,
        height_px=height,
        channels=channels,
        has_alpha=has_alpha,
        depth_bits=depth_bits,
        frames=frames,
        kind="picture" if frames == 1 else several,
    )


def _orientation(exif: Image.Exif | None) -> int:
    try:
        return 1 if exif is None else metadata.orientation_of(exif)
    except metadata.DAMAGED_TAGS:
        return 1  # as in `pictures.read`


def _late_exif(stream: BinaryIO) -> Image.Exif | None:
    """The EXIF data that a PNG may have behind its samples, where Pillow sees it after decoding."""
    if isinstance(stream, Ranged) and stream.size_bytes > FIRST_BYTES:
        return _exif_at_the_end(stream)
    at = _PNG_HEAD_BYTES
    stream.seek(at)
    while len(head := stream.read(8)) == 8 and head[4:] != b"IEND":
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return _loaded(stream.read(size))
        at += 12 + size
        stream.seek(at)
    return None


def _exif_at_the_end(stream: Ranged) -> Image.Exif | None:
    """The same without a walk past the samples, all of which would be fetched for it.

    A chunk is known by its checksum.
    """
    end = stream.end(FIRST_BYTES)
    at = len(end)
    while (at := end.rfind(b"eXIf", 4, at)) >= 0:
        stop = at + 4 + int.from_bytes(end[at - 4 : at], "big")
        if zlib.crc32(end[at:stop]).to_bytes(4, "big") == end[stop : stop + 4]:
            return _loaded(end[at + 4 : stop])
    return None


def _loaded(data: bytes) -> Image.Exif | None:
    exif = Image.Exif()
    try:
        exif.load(data)
    except metadata.DAMAGED_TAGS:
        return None
    return exif


def _tiff(stream: BinaryIO, found: Outline) -> Header:
    """From its tags: Pillow does not open 16-bit gray with alpha, which `decoders` reads."""
    head = stream.read(8)
    if b"+" in head[:4]:
        head += stream.read(8)
    tags = ImageFileDirectory_v2(head)
    stream.seek(tags.next)
    tags.load(stream)
    Base = ExifTags.Base
    width, height = (_number(tags, tag) for tag in (Base.ImageWidth, Base.ImageLength))
    # Without the tag: 1 (TIFF 6.0, section 8). Premultiplied or straight; 0 says nothing of alpha.
    extra = tags.get(Base.ExtraSamples, ())
    samples = _number(tags, Base.SamplesPerPixel, 1)
    gray = _number(tags, Base.PhotometricInterpretation, 1) in (0, 1)
    bits = max(map(int, tags.get(Base.BitsPerSample, (1,))))
    return _header(
        "TIFF",
        (width, height),
        orientation=_number(tags, Base.Orientation, 1),
        channels=1 if gray else 3,
        has_alpha=any(kind in (1, 2) for kind in extra) or (gray and samples == 2) or samples == 4,
        depth_bits=16 if bits > 8 else 8,
        frames=found.frames,
    )


def _number(tags: Any, tag: int, default: int = 0) -> int:
    """The tag's only value; hostile files have lists, fractions and texts in its place."""
    value = tags.get(tag, default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return int(value)


def _heif(stream: BinaryIO) -> Header:
    image = Image.open(stream, formats=("HEIF",))
    # Its plugin has turned it upright already.
    return _header(
        "HEIF",
        image.size,
        orientation=1,
        channels=1 if image.mode in _GRAY_MODES else 3,
        has_alpha=image.has_transparency_data,
        depth_bits=16 if image.info["bit_depth"] > 8 else 8,
    )


def _jxl(stream: BinaryIO) -> Header:
    """Channels come after fields that are not read here: the most that there can be is assumed."""
    data = stream.read()
    header = jxl_header.read_header(data)
    return _header(
        "JXL",
        (header.width_px, header.height_px),
        orientation=header.orientation,
        channels=3,
        has_alpha=True,
        depth_bits=16 if header.depth_bits > 8 else 8,
    )
