"""What a file says beside its pixels, and whether these can be read row by row.

Read by rows is what libvips was seen to decode to the very samples that `pictures.read` gives;
tests/test_huge_reading.py looks at each of these kinds.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, TiffTags
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x.codecs import decoders, metadata
from waifu4x.failures import RefusedError
from waifu4x.huge import vips

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PALETTE = 3
# Baseline and extended sequential; all others come in several scans.
_JPEG_IN_ONE_SCAN = (0xC0, 0xC1)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
_JPEG_MOST_SEGMENTS = 10_000
_RARE_TIFF = "it is a TIFF of a rarer kind"
# libtiff, as libvips uses it, takes no more than twice as much for one piece.
_MOST_PIECE_BYTES = 24 * 2**20
_MOST_PIXEL_BYTES = 8
_IN_JPEG = 7
# None, CCITT, LZW, JPEG, deflate, PackBits.
_TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, _IN_JPEG, 8, 32773, 32946})
_PALETTE, _CMYK, _YCBCR = 3, 5, 6
# By photometric interpretation: 0 and 1 are gray, 2 is RGB.
_TIFF_SAMPLES = {0: 1, 1: 1, 2: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_TIFF_BITS = {0: {1, 8}, 1: {1, 8, 16}, 2: {8, 16}, _PALETTE: {8}, _CMYK: {8}, _YCBCR: {8}}


@dataclass(frozen=True, kw_only=True)
class Insides:
    """All that a file says but its pixels."""

    info: dict[Any, Any]
    """As Pillow has it when a file is decoded; see `decoders.Stored`."""
    exif: Image.Exif | None
    orientation: int = 1
    is_palette: bool = False
    is_cmyk: bool = False
    rows_at_once: int = 1
    """Of the file that must be decoded together."""
    frames_total: int = 1
    whole: str | None = None
    """Why it must be decoded as a whole: "it is interlaced"; None where it can be by rows."""


def read(stream: BinaryIO, format: str) -> Insides:
    """Look at a seekable stream in one of `vips.LOADERS`; to be called within `pictures.opened`.

    Raises one of `failures.UNREADABLE`.
    """
    assert format in vips.LOADERS, format
    try:
        found = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff}[format](stream)
    except (TypeError, KeyError, IndexError, AttributeError):
        # Tags that are no numbers, or none at all.
        return Insides(info={}, exif=None, whole="its tags are damaged")
    if found.whole is None and found.orientation > 2:
        return _as_whole(found, "it is turned by its EXIF data")
    return found


def _as_whole(found: Insides, why: str) -> Insides:
    return Insides(info=found.info, exif=found.exif, orientation=found.orientation, whole=why)


def _orientation(exif: Image.Exif | None) -> int:
    try:
        return 1 if exif is None else metadata.orientation_of(exif)
    except metadata.DAMAGED_TAGS:
        return 1  # as in `pictures.read`


# ---------------------------------------------------------------------------------------------- PNG


def _png(stream: BinaryIO) -> Insides:
    """Pillow sees what is behind the samples only after decoding: so it gets one pixel of them."""
    stream.seek(len(_PNG_SIGNATURE))
    small: list[bytes] = [_PNG_SIGNATURE]
    depth = color = interlaced = 0
    is_keyed, is_animated, before_samples = False, False, True
    while True:
        head = stream.read(8)
        if len(head) < 8:
            raise RefusedError("is cut off: its last part is missing")
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"fdAT", b"fcTL", b"acTL"):
            stream.seek(size + 4, io.SEEK_CUR)
            is_animated |= kind == b"acTL"
            if kind == b"IDAT" and before_samples:
                before_samples = False
                row_bytes = 1 + -(-depth * _PNG_SAMPLES.get(color, 4) // 8)
                small.append(_chunk(b"IDAT", zlib.compress(bytes(row_bytes))))
            continue
        data = stream.read(size)
        if kind == b"IHDR":
            _, _, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", data)
            small.append(_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, color, 0, 0, 0)))
            stream.seek(4, io.SEEK_CUR)
            continue
        is_keyed |= kind == b"tRNS" and color != _PNG_PALETTE
        small += [head, data, stream.read(4)]
        if kind == b"IEND":
            break
    image = Image.open(io.BytesIO(b"".join(small)), formats=("PNG",))
    image.load()
    exif = decoders.exif_of(image)
    found = Insides(
        info=image.info,
        exif=exif,
        orientation=_orientation(exif),
        is_palette=color == _PNG_PALETTE,
    )
    if interlaced or is_animated:
        return _as_whole(found, "it is interlaced" if interlaced else "it is an animation")
    # Pillow and libvips read keys of other depths differently.
    return _as_whole(found, "it has a transparent colour") if is_keyed and depth != 8 else found


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# --------------------------------------------------------------------------------------------- JPEG


def _jpeg(stream: BinaryIO) -> Insides:
    stream.seek(0)
    image = Image.open(stream, formats=("JPEG", "MPO"))
    exif = decoders.exif_of(image)
    found = Insides(
        info=image.info,
        exif=exif,
        orientation=_orientation(exif),
        is_cmyk=image.mode == "CMYK",
        rows_at_once=16,
    )
    return found if _is_in_one_scan(stream) else _as_whole(found, "it is progressive")


def _is_in_one_scan(stream: BinaryIO) -> bool:
    """Whether all that there is to a pixel stands together, as far as the first scan tells."""
    stream.seek(2)
    components = 0
    for _ in range(_JPEG_MOST_SEGMENTS):
        while (byte := stream.read(1)) and byte != b"\xff":
            pass
        while (byte := stream.read(1)) == b"\xff":
            pass
        if not byte:
            break
        data = stream.read(int.from_bytes(stream.read(2), "big") - 2)
        if byte[0] in _JPEG_FRAMES:
            if byte[0] not in _JPEG_IN_ONE_SCAN:
                return False
            components = data[5]
        elif byte[0] == _JPEG_SCAN:
            return data[0] == components
    return False


# --------------------------------------------------------------------------------------------- TIFF


def _tiff(stream: BinaryIO) -> Insides:
    stream.seek(0)
    head = stream.read(8)
    if b"+" in head[:4]:
        head += stream.read(8)
    tags = ImageFileDirectory_v2(head)
    stream.seek(tags.next)
    tags.load(stream)
    photometric = int(tags.get(Base.PhotometricInterpretation, 1))
    samples, depth = int(tags.get(Base.SamplesPerPixel, 1)), set(tags.get(Base.BitsPerSample, (1,)))
    if not _is_plain(tags, photometric, samples, depth):
        return Insides(info={}, exif=None, whole=_RARE_TIFF)
    if _largest_piece_bytes(tags) > _MOST_PIECE_BYTES:
        return Insides(info={}, exif=None, whole="too many of its rows are compressed together")
    if depth == {16} and samples > 1:
        # What Pillow would reduce to 8 bits is read by `decoders` itself, tags and all.
        info = {"icc_profile": tags.get(Base.InterColorProfile), "xmp": tags.get(Base.XMLPacket)}
        exif, frames_total = decoders.tiff_exif(stream), 1
    else:
        info, exif, frames_total = _tiff_by_pillow(stream)
    return Insides(
        info=info,
        exif=exif,
        frames_total=frames_total,
        is_palette=photometric == _PALETTE,
        is_cmyk=photometric == _CMYK,
        rows_at_once=int(tags.get(Base.TileLength, 1)),
    )


def _largest_piece_bytes(tags: ImageFileDirectory_v2) -> int:
    """What must be decoded at once: a tile, or a strip, but where that is not compressed."""
    if Base.TileWidth in tags:
        return int(tags[Base.TileWidth]) * int(tags[Base.TileLength]) * _MOST_PIXEL_BYTES
    if tags.get(Base.Compression, 1) == 1:
        return 0
    sizes_bytes = tags.get(Base.StripByteCounts, 0)
    return max(sizes_bytes) if isinstance(sizes_bytes, tuple) else int(sizes_bytes)


def _is_plain(tags: ImageFileDirectory_v2, photometric: int, samples: int, depth: set[int]) -> bool:
    compression = int(tags.get(Base.Compression, 1))
    colors = _TIFF_SAMPLES.get(photometric, 0)
    # What one more sample is: alpha, which the colours were not multiplied with.
    extra = (2,) if samples == colors + 1 else ()
    return (
        compression in _TIFF_COMPRESSIONS
        and (compression == _IN_JPEG or photometric != _YCBCR)
        and len(depth) == 1
        and depth <= _TIFF_BITS.get(photometric, set())
        and (samples == colors or (samples == colors + 1 and photometric in (0, 1, 2)))
        and tuple(tags.get(Base.ExtraSamples, ())) == extra
        and set(tags.get(Base.SampleFormat, (1,))) == {1}
        and all(tags.get(tag, 1) == 1 for tag in (Base.FillOrder, Base.PlanarConfiguration))
        and tags.get(Base.Orientation, 1) == 1
    )


def _tiff_by_pillow(stream: BinaryIO) -> tuple[dict[Any, Any], Image.Exif | None, int]:
    stream.seek(0)
    image = Image.open(stream, formats=("TIFF",))
    # First: it goes from page to page, and sets again what is forgotten below.
    frames_total = getattr(image, "n_frames", 1)
    exif = image.getexif()
    # As in decoding: while the stream is open.
    for directory in TiffTags.TAGS_V2_GROUPS:
        if directory in exif:
            exif.get_ifd(directory)
    found = decoders.exif_of(image)
    if found is not None:
        # EXIF data elsewhere has no offsets of 64 bits.
        found.bigtiff = False
    return image.info, found, frames_total
