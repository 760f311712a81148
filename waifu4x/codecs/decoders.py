"""The bytes of a file to samples, as the file stores them: not turned upright, not colour-managed.

Pillow decodes; imagecodecs (libpng, libtiff) takes over for 16-bit colour, which Pillow
would silently reduce to 8 bits, and is imported only then.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x.codecs import deep, jxl_header, metadata, plugins
from waifu4x.codecs.formats import FORMATS, READABLE
from waifu4x.failures import RefusedError

_EXIF_TAG = 34665
_GPS_TAG = 34853
_INTEROP_TAG = 40965
_PNG_END = b"IEND\xaeB`\x82"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WITH_FRAMES = ("GIF", "WEBP", "AVIF", "PNG", "TIFF")
# Code points of ITU-T H.273 that mean BT.709 or sRGB, or nothing.
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2), (1, 2, 6, 13)
_PILLOW_LOCK = threading.RLock()
# What libpng allows by default. Pillow's eight bytes for every row are not the picture's own.
_MAX_SIDE_PX = 1_000_000
# Pillow compares each page of a TIFF with all before it.
_MAX_PAGES = 10_000
# The advice of libjpeg-turbo: each scan of a progressive JPEG goes through the whole picture again.
# https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf
_MAX_SCANS = 500
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


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
    if not (head := stream.read(plugins.HEAD_BYTES)):
        raise RefusedError("is empty (0 bytes)")
    stream.seek(0)
    stored = None
    if (extra := plugins.plugin_format_of(head)) is not None:
        if reason := plugins.problem(extra):
            raise RefusedError(f"is {plugins.PLUGINS[extra].shown}: {reason}")
        load = {"HEIF": _load_heif, "JXL": _load_jxl}[extra]
        return load(stream, max_pixels=max_pixels)
    if head[:4] in TIFF_MAGICS:
        stored = _load_tiff_16_bit(stream, max_pixels=max_pixels)
        stream.seek(0)
    return stored or _load_with_pillow(stream, max_pixels=max_pixels)


def read_xmp(stream: BinaryIO) -> bytes | None:
    """The XMP packet of a seekable stream, its pixels not decoded; within `quiet_pillow`.

    A packet that a PNG holds behind its pixels is not seen. Raises what `decode` raises.
    """
    extra = plugins.plugin_format_of(stream.read(plugins.HEAD_BYTES))
    stream.seek(0)
    if extra == "JXL":
        packet = _jxl_xmp(stream.read())
    else:
        if extra is not None and (reason := plugins.problem(extra)):
            raise RefusedError(f"is {plugins.PLUGINS[extra].shown}: {reason}")
        packet = _open(stream, READABLE if extra is None else (extra,)).info.get("xmp")
    return packet if isinstance(packet, bytes) and packet else None


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


def check_size(width: int, height: int, *, max_pixels: int) -> None:
    """Raise RefusedError unless a picture of so many pixels a side may be decoded."""
    if width < 1 or height < 1:
        raise RefusedError(f"has no pixels ({width}×{height})")
    if max(width, height) > _MAX_SIDE_PX:
        raise RefusedError(
            f"has a side of {max(width, height):,} px, more than {_MAX_SIDE_PX:,}: cut it into "
            "pieces first"
        )
    if width * height > max_pixels:
        raise RefusedError(
            f"has {width:,}×{height:,} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; if that is meant to be, raise it with --max-pixels"
        )


def _open(stream: BinaryIO, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    try:
        return Image.open(stream, formats=formats)
    except Image.UnidentifiedImageError as error:
        raise RefusedError(
            f"is not a picture of a kind known ({', '.join(FORMATS)}), or its start is damaged"
        ) from error


def _load_with_pillow(stream: BinaryIO, *, max_pixels: int) -> Stored:
    image = _open(stream, READABLE)
    check_size(*image.size, max_pixels=max_pixels)
    # A phone's MPO is a JPEG followed by previews or a gain map, not by frames.
    format = "JPEG" if image.format == "MPO" else str(image.format)
    if format == "TIFF" and metadata.count_directories(stream, most=_MAX_PAGES) > _MAX_PAGES:
        raise RefusedError(f"has more than {_MAX_PAGES:,} pages: split it first")
    frames = _frames_of(image) if format in _WITH_FRAMES else 1
    # Read before loading: it tells how the samples are stored, which `mode` no longer does.
    raw_mode = str(image.tile[0].args) if image.tile else ""
    data = b""
    if format in ("JPEG", "PNG", "AVIF"):
        place = stream.tell()
        stream.seek(0)
        data = stream.read()
        stream.seek(place)
    if format == "JPEG":
        _check_scans(data)
    # Pillow turns a TIFF upright in loading, and leaves its two resolutions as they were.
    turned = metadata.orientation_of(image.getexif()) if format == "TIFF" else 1
    image.load()
    if format == "PNG" and _PNG_END not in data:
        raise RefusedError("is cut off: its last part is missing")
    notes: tuple[str, ...] = ()
    if format == "PNG" and re.search(r"^(LA|RGB|RGBA);16B", raw_mode):
        pixels, alpha = deep.decode_png(data, image.size)
    elif format == "AVIF" and deep.avif_depth_bits(data) > 8:
        pixels, alpha = deep.decode_avif(data)
    else:
        pixels, alpha, notes = _planes(image, raw_mode=raw_mode)
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format=format,
        info=image.info,
        exif=metadata.with_turned_resolution(exif_of(image), turned),
        cmyk=image if image.mode == "CMYK" else None,
        frames_total=frames,
        notes=notes,
    )


def _check_scans(data: bytes) -> None:
    """Goes from marker to marker: what lies behind the picture, or in other data, is no scan."""
    scans, at = 0, 2
    while (found := _JPEG_MARKER.search(data, at)) and found[1][0] != _END_OF_IMAGE:
        scans += found[1][0] == _START_OF_SCAN
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    if scans > _MAX_SCANS:
        raise RefusedError(
            f"is a JPEG of {scans:,} scans, which take hours to decode: more than {_MAX_SCANS} are "
            "not read"
        )


def _frames_of(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except metadata.DAMAGED_TAGS as error:
        raise RefusedError(f"is damaged: one of its pages is not readable ({error})") from error


def exif_of(image: Image.Image) -> Image.Exif | None:
    """The EXIF tags, or a TIFF's own; empty where there are none, None where they are damaged."""
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
        return *deep.gray(image), ()
    if mode in ("I", "F"):
        return deep.scaled(np.asarray(image), mode)
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


def _load_heif(stream: BinaryIO, *, max_pixels: int) -> Stored:
    # The plugin turns the picture upright itself, by the container's own fields (irot, imir), and
    # says so by an orientation of 1 in the EXIF data; libheif ignores any other there, as Apple.
    image = _open(stream, ("HEIF",))
    check_size(*image.size, max_pixels=max_pixels)
    frames = _frames_of(image)
    if image.info["bit_depth"] > 8:
        pixels, alpha = deep.decode_heif(stream)
    else:
        image.load()
        pixels, alpha, _ = _planes(image, raw_mode="")
    notes: tuple[str, ...] = ()
    code = image.info.get("nclx_profile")
    if "icc_profile" not in image.info and code is not None:
        primaries, transfer = code["color_primaries"], code["transfer_characteristics"]
        if primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFERS:
            notes = (
                f"its colours (primaries {primaries}, transfer {transfer}) were taken for sRGB",
            )
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format="HEIF",
        info=image.info,
        exif=metadata.with_turned_resolution(
            exif_of(image), image.info.get("original_orientation") or 1
        ),
        frames_total=frames,
        notes=notes,
    )


def _load_jxl(stream: BinaryIO, *, max_pixels: int) -> Stored:
    data = stream.read()
    header = jxl_header.read_header(data)
    check_size(header.width_px, header.height_px, max_pixels=max_pixels)
    try:
        image = _open(io.BytesIO(data), ("JXL",))
    except RuntimeError as error:
        # libjxl gives no reasons.
        raise RefusedError("is damaged or cut off") from error
    # A JPEG that was packed without loss comes out as itself, and turned as its EXIF data say.
    is_jpeg = bool(getattr(image, "jpeg", False))
    exif = exif_of(image)
    notes: list[str] = []
    if not is_jpeg:
        # Elsewhere the codestream says how to turn, libjxl did, and EXIF has no say (18181-2).
        if exif is not None and metadata.ORIENTATION_TAG in exif:
            exif[metadata.ORIENTATION_TAG] = 1
        image.info["xmp"] = _jxl_xmp(data)
        _forget_srgb(image)
    if header.is_animated:
        notes.append("it is an animation: only its first frame was read")
    is_deep = header.depth_bits > 8 and not header.is_float and len(image.getbands()) > 1
    if header.is_animated or is_deep:
        pixels, alpha = deep.decode_jxl(data, header.depth_bits)
    else:
        image.load()
        pixels, alpha, remarks = _planes(image, raw_mode="")
        notes += remarks
        if header.is_float and image.mode != "F":
            notes.append("its floating-point samples were read with 8 bits")
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format="JXL",
        info=image.info,
        exif=exif,
        cmyk=image if image.mode == "CMYK" else None,
        notes=tuple(notes),
    )


def _jxl_xmp(data: bytes) -> bytes | None:
    return next((content for kind, content in jxl_header.boxes(data) if kind == b"xml "), None)


def _forget_srgb(image: Image.Image) -> None:
    """libjxl makes up a profile for every picture; one that means sRGB says nothing."""
    profile, gray = image.info.get("icc_profile"), len(image.getbands()) < 3
    with suppress(ValueError):
        if profile and metadata.is_srgb(profile, gray=gray):
            del image.info["icc_profile"]


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
        is_deep = set(tags.get(258, ())) == {16} and set(tags.get(339, (1,))) == {1}
    except metadata.DAMAGED_TAGS:
        # Pillow says what is wrong with it.
        return None
    colors = {1: 1, 2: 3}.get(int(tags.get(262) or 0), 0)
    if not is_deep or not colors or not max(2, colors) <= count:
        return None
    check_size(width, height, max_pixels=max_pixels)
    if width * height * count > 4 * max_pixels:
        raise RefusedError(
            f"has {count:,} samples a pixel, {width * height * count:,} in all, more than the "
            f"limit of {4 * max_pixels:,}; if that is meant to be, raise it with --max-pixels"
        )
    samples = deep.decode_tiff(stream, (height, width, count), planar=tags.get(284) == 2)
    pixels, alpha = samples[..., :colors], None
    # 0: unspecified, 1: premultiplied, 2: straight; without the tag a further sample is alpha.
    kind = next(iter(tags.get(338, ())), 2)
    if count > colors and kind in (1, 2):
        alpha = samples[..., colors]
        if kind == 1:
            pixels = deep.unmultiply(pixels, alpha)
    return Stored(
        pixels=pixels,
        alpha=alpha,
        format="TIFF",
        info={"icc_profile": tags.get(34675), "xmp": tags.get(700)},
        exif=tiff_exif(stream),
    )


def tiff_exif(stream: BinaryIO) -> Image.Exif | None:
    """The tags of a TIFF, of its first directory; None where they are damaged."""
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
