"""Samples and tags to the bytes of a file, as one format stores them.

Pillow encodes; imagecodecs (libpng, zlib-ng) makes the pixels of PNG and TIFF: Pillow cannot write
16-bit colour, and takes two and a half times as long for larger files. Those of PNG are compressed
on several threads: see `png_stream`.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x.codecs import gif_writer, png_stream
from waifu4x.codecs.formats import FORMATS

# Of TIFF: levels above take twice the time for 5 % less.
_DEFLATE_LEVEL = 3
_TIFF_STRIP_BYTES = 1024 * 1024
_EXIF_TAG = 34665
_GPS_TAG = 34853
_INTEROP_TAG = 40965


@dataclass(frozen=True, kw_only=True)
class Encodable:
    """Samples and tags that need no more thought: the format holds all of them."""

    samples: np.ndarray
    """(H, W, S), S = 1, 2, 3, 4 for gray, gray+alpha, RGB, RGBA; uint8 or uint16."""
    icc_profile: bytes | None = None
    exif: Image.Exif | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


def encode_samples(
    content: Encodable, format: str, *, quality: int | None, lossless: bool
) -> bytes:
    """The file's bytes. Pillow's errors come through; `check_writable_as` was asked before."""
    if format == "TIFF":
        return encode_tiff([content])
    if format == "PNG":
        return _encode_png(content)
    if format == "GIF":
        return gif_writer.encode([content.samples], delays_cs=None)
    file = io.BytesIO()
    options = pillow_options(content, format, quality=quality, lossless=lossless)
    image_of(content).save(file, format, **options)
    return file.getvalue()


def image_of(content: Encodable) -> Image.Image:
    """The samples, 8 bits each, as Pillow has them."""
    return Image.fromarray(
        content.samples[..., 0] if content.samples.shape[2] == 1 else content.samples
    )


def pillow_options(
    content: Encodable, format: str, *, quality: int | None, lossless: bool
) -> dict[str, Any]:
    """What Pillow's `save` is to be told, metadata included."""
    options = _pillow_options(content, format)
    if format == "WEBP" and lossless:
        # exact: colour below transparent pixels is part of "without loss".
        options |= {"lossless": True, "exact": True, "method": 4}
    elif format == "HEIF" and lossless:
        # Identity matrix: HEVC keeps RGB itself, without the rounding of YCbCr.
        options |= {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    elif format == "JXL" and (lossless or quality == 100):
        # The plugin's own quality 100 asks libjxl for a combination that it refuses.
        options["lossless"] = True
    elif (default_quality := FORMATS[format].quality) is not None:
        options["quality"] = default_quality if quality is None else quality
    return options


def _pillow_options(content: Encodable, format: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "PNG": {},
        # 4:4:4: the finest chroma was just computed, halving it would throw it away again.
        "JPEG": {"subsampling": 0},
        "WEBP": {"method": 4},
        "AVIF": {"speed": 6, "subsampling": "4:4:4" if content.samples.shape[2] > 1 else "4:0:0"},
        # 4:2:0, x265's default: macOS garbles 4:4:4 at some sizes (strukturag/libheif#661).
        "HEIF": {},
        "JXL": {},
        "BMP": {},
    }[format]
    if content.icc_profile is not None:
        options["icc_profile"] = content.icc_profile
    if content.exif is not None:
        options["exif"] = content.exif.tobytes()
    if content.dpi is not None and FORMATS[format].holds_dpi:
        options["dpi"] = content.dpi
    if content.xmp is not None:
        if format == "PNG":
            options["pnginfo"] = text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", content.xmp.decode("utf-8", "replace"))
        else:
            options["xmp"] = content.xmp
    return options


def _encode_png(content: Encodable) -> bytes:
    samples = content.samples
    pixels = png_stream.idat([samples], threads=png_stream.THREADS)
    return b"".join((png_head(content, samples.shape), *pixels, png_stream.END))


def png_head(content: Encodable, shape: tuple[int, ...]) -> bytes:
    """All of a PNG before its pixels: the tags are Pillow's.

    shape: (H, W, S) of the picture, of which `content.samples` may be a part.
    """
    dummy = io.BytesIO()
    Image.new("L" if shape[2] < 3 else "RGB", (1, 1)).save(
        dummy, "PNG", **_pillow_options(content, "PNG")
    )
    tags = dummy.getvalue()
    end = tags.rindex(b"IDAT", 0, tags.rindex(b"IEND")) - 4
    head = png_stream.head(shape, depth_bits=content.samples.itemsize * 8)
    # Both begin with a signature and a header of the same length.
    return head + tags[len(head) : end]


def encode_tiff(pages: Sequence[Encodable]) -> bytes:
    """A TIFF of these pages, each with tags of its own."""
    file = io.BytesIO()
    link = None
    for page in pages:
        # A directory begins at an even offset.
        start = file.seek(0, io.SEEK_END) + (file.tell() & 1)
        file.seek(start)
        entries = _write_page(page, file)
        if link is None:
            start = 8
        else:
            file.seek(link)
            file.write(struct.pack("<L", start))
        # Behind the entries lies the offset of the next directory.
        link = start + 2 + 12 * entries
    return file.getvalue()


def _write_page(content: Encodable, file: BinaryIO) -> int:
    """Strips compressed by deflate after horizontal differencing (predictor 2).

    The tag directory is Pillow's; its own writer is not used because it can neither store 16-bit
    colour nor, when compressing, EXIF directories. Returns how many tags it has.
    """
    samples = content.samples
    height, width, count = samples.shape
    tags = ImageFileDirectory_v2(prefix=b"II")
    if content.exif is not None:
        copy_exif(content.exif, tags)
    if content.dpi is not None:
        tags[282], tags[283], tags[296] = *content.dpi, 2
    tags[256], tags[257] = width, height
    tags[258] = (samples.itemsize * 8,) * count
    tags[259] = 8
    tags[262] = 2 if count > 2 else 1
    tags[277] = count
    tags[284] = 1
    tags[317] = 2
    tags[339] = (1,) * count
    if count in (2, 4):
        tags[338] = 2
    if content.icc_profile is not None:
        tags[34675] = content.icc_profile
    if content.xmp is not None:
        tags[700] = content.xmp
    rows = min(height, max(1, _TIFF_STRIP_BYTES // (width * count * samples.itemsize)))
    strips = [deflate(samples[top : top + rows]) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    tags[278] = rows
    tags.tagtype[273] = tags.tagtype[279] = 4
    tags[279] = tuple(sizes)
    # Relative to the end of the directory; Pillow's writer adds where that is.
    tags[273] = (0, *itertools.accumulate(sizes[:-1]))
    # Writes the header, too, where the file is empty.
    tags.save(file)
    file.writelines(strips)
    return len(tags)


def deflate(strip: np.ndarray) -> bytes:
    """Rows (n, W, S) as TIFF stores them: compressed after horizontal differencing."""
    import imagecodecs

    difference = strip.astype(strip.dtype.newbyteorder("<"))
    difference[:, 1:] -= strip[:, :-1]
    return bytes(imagecodecs.zlibng_encode(difference.tobytes(), level=_DEFLATE_LEVEL))


def copy_exif(exif: Image.Exif, tags: ImageFileDirectory_v2) -> None:
    """Put the tags of `exif`, nested directories too, among those of a TIFF."""
    for tag in exif:
        if tag == _EXIF_TAG:
            nested = dict(exif.get_ifd(tag))
            if _INTEROP_TAG in nested:
                nested[_INTEROP_TAG] = exif.get_ifd(_INTEROP_TAG)
            tags[tag] = nested
        elif tag == _GPS_TAG:
            tags[tag] = exif.get_ifd(tag)
        else:
            tags[tag] = exif[tag]
