"""What each picture format can hold, and what it is called.

`FORMATS` is the allow-list: content in any other format is never decoded. Limits were measured with
Pillow 13.0 (libjpeg-turbo, libwebp 1.6, libavif 1.4) by encoding and reading back.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from waifu4x.codecs import plugins
from waifu4x.errors import PictureWriteError, UsageError

_GIB = 1024**3
# Pillow refuses lines whose 4-byte pixels overflow a C int (ImagingNewPrologueSubtype, Storage.c).
_PILLOW_SIDE_PX = (2**31 - 1) // 4 - 1


@dataclass(frozen=True, kw_only=True)
class Format:
    """The facts of one format, as far as waifu4x reads and writes it."""

    suffixes: tuple[str, ...]
    """With the dot, lower case; the first is the usual one."""
    writable: bool = True
    holds_alpha: bool = False
    holds_16_bit: bool = False
    holds_profile: bool = False
    holds_metadata: bool = False
    """EXIF and XMP."""
    holds_dpi: bool = False
    """Has a field of its own for it; elsewhere it goes into the EXIF data, where there is one."""
    quality: int | None = None
    """The default quality, 1..100; None where there is no such dial, nothing being lost."""
    lossless: bool = True
    """Every pixel can be kept exactly, always or on request."""
    max_side_px: int = _PILLOW_SIDE_PX
    max_pixels: int | None = None
    max_raw_bytes: int | None = None
    max_exif_bytes: int | None = None
    max_xmp_bytes: int | None = None


FORMATS: dict[str, Format] = {
    "PNG": Format(
        suffixes=(".png", ".apng"),
        holds_alpha=True,
        holds_16_bit=True,
        holds_profile=True,
        holds_metadata=True,
        holds_dpi=True,
        # PNG_USER_WIDTH_MAX of libpng.
        max_side_px=1_000_000,
    ),
    "JPEG": Format(
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"),
        holds_profile=True,
        holds_metadata=True,
        holds_dpi=True,
        quality=95,
        lossless=False,
        # JPEG_MAX_DIMENSION of libjpeg, below the 65,535 of the format.
        max_side_px=65_500,
        # One APP1 segment, less its length field and, for XMP, its 29-byte name.
        max_exif_bytes=65_533,
        max_xmp_bytes=65_504,
    ),
    "WEBP": Format(
        suffixes=(".webp",),
        holds_alpha=True,
        holds_profile=True,
        holds_metadata=True,
        quality=90,
        max_side_px=16_383,
    ),
    "AVIF": Format(
        suffixes=(".avif", ".avifs"),
        holds_alpha=True,
        holds_profile=True,
        holds_metadata=True,
        quality=90,
        # libavif also at quality 100 goes through YCbCr: noise came back up to 3 levels off.
        lossless=False,
        # libavif writes up to 65,536 but refuses to read more than these two, its defaults
        # (AVIF_DEFAULT_IMAGE_DIMENSION_LIMIT, AVIF_DEFAULT_IMAGE_SIZE_LIMIT in avif.h).
        max_side_px=32_768,
        max_pixels=16_384 * 16_384,
    ),
    "TIFF": Format(
        suffixes=(".tif", ".tiff"),
        holds_alpha=True,
        holds_16_bit=True,
        holds_profile=True,
        holds_metadata=True,
        holds_dpi=True,
        # Offsets are 32 bits; what deflate and the tags may add is kept free.
        max_raw_bytes=4 * _GIB - 64 * 1024 * 1024,
    ),
    "HEIF": Format(
        suffixes=(".heic", ".heif", ".hif"),
        holds_alpha=True,
        holds_profile=True,
        holds_metadata=True,
        quality=90,
        # libheif's default limit for reading (heif_security.h); sides to 40,000 came back.
        max_side_px=32_768,
    ),
    "JXL": Format(
        suffixes=(".jxl",),
        holds_alpha=True,
        # True of its plugin for Pillow (1.3): it writes neither profiles nor 16-bit colour.
        holds_profile=False,
        holds_metadata=True,
        quality=90,
        # Level 5 of ISO/IEC 18181-1 annex M: beyond it decoders may refuse.
        max_side_px=262_144,
        max_pixels=2**28,
    ),
    "BMP": Format(suffixes=(".bmp", ".dib"), holds_dpi=True, max_raw_bytes=4 * _GIB - 4096),
    # 256 colours, and alpha that is all or nothing: see `gif_writer`.
    "GIF": Format(suffixes=(".gif",), holds_alpha=True, lossless=False, max_side_px=65_535),
}

READABLE: tuple[str, ...] = tuple(name for name in FORMATS if name not in plugins.PLUGINS)
"""What Pillow opens without a plugin."""


def format_of(target_name_or_suffix: str) -> str:
    """Pillow's name of the format that a file name, a suffix or a format name stands for.

    "a/b.JPG", ".jpg", "jpg" and "JPEG" all give "JPEG". Raises UsageError for anything unknown.
    """
    wanted = "." + target_name_or_suffix.rsplit(".", 1)[-1].lower()
    known: dict[str, str] = {}
    for name, facts in FORMATS.items():
        known |= dict.fromkeys((*facts.suffixes, "." + name.lower()), name)
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    usual = ", ".join(facts.suffixes[0] for facts in FORMATS.values() if facts.writable)
    raise UsageError(
        f"{target_name_or_suffix!r} names no picture format that waifu4x writes: "
        f"{guess}known are {usual}"
    )


def check_writable_as(
    format: str,
    width_px: int,
    height_px: int,
    *,
    transparent: bool = False,
    channels: int = 3,
    depth_bits: int = 8,
    quality: int | None = None,
    lossless: bool = False,
    background: tuple[int, int, int] | None = None,
) -> None:
    """Refuse what the encoder could not hold: to be asked before any work is done.

    transparent: some pixel's alpha is below the maximum. channels: 1 or 3, alpha not counted.
    background: RGB 0..255 put below transparent pixels where the format has no alpha. Raises
    PictureWriteError, or UsageError where the options make no sense together.
    """
    name = format_of(format)
    facts = FORMATS[name]
    _check_options(name, quality=quality, lossless=lossless, background=background)
    if not facts.writable:
        raise PictureWriteError(
            f"{name} can be read but not written; choose PNG or WebP with --format"
        )
    if name in plugins.PLUGINS and (reason := plugins.problem(name, writing=True)):
        raise PictureWriteError(f"writing {plugins.PLUGINS[name].shown} needs a plugin: {reason}")
    if width_px < 1 or height_px < 1:
        raise PictureWriteError(f"a picture of {width_px}×{height_px} px cannot be written")
    if transparent and not facts.holds_alpha and background is None:
        raise PictureWriteError(
            f"{name} cannot hold transparency: choose PNG or WebP with --format, "
            "or say what goes below with --background white"
        )
    if max(width_px, height_px) > facts.max_side_px:
        raise PictureWriteError(
            f"{name} holds at most {facts.max_side_px:,} px a side, not "
            f"{width_px:,}×{height_px:,}; choose PNG or TIFF with --format, or a smaller scale"
        )
    if facts.max_pixels is not None and width_px * height_px > facts.max_pixels:
        raise PictureWriteError(
            f"{name} holds at most {facts.max_pixels:,} pixels, not {width_px * height_px:,}; "
            "choose PNG or TIFF with --format, or a smaller scale"
        )
    samples = channels + (transparent and facts.holds_alpha)
    sample_bytes = 2 if depth_bits > 8 and facts.holds_16_bit else 1
    # BMP pads rows to four bytes; three more a row matter to no other format.
    raw_bytes = (width_px * samples * sample_bytes + 3) * height_px
    if facts.max_raw_bytes is not None and raw_bytes > facts.max_raw_bytes:
        raise PictureWriteError(
            f"{name} holds at most {facts.max_raw_bytes / _GIB:.1f} GiB of pixels, not "
            f"{raw_bytes / _GIB:.1f}; choose PNG with --format, or a smaller scale"
        )


def _check_options(
    name: str, *, quality: int | None, lossless: bool, background: tuple[int, int, int] | None
) -> None:
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality is 1 to 100, not {quality}")
    if lossless and quality is not None and FORMATS[name].quality is not None:
        raise UsageError("lossless and quality exclude each other: leave one of them out")
    if lossless and not FORMATS[name].lossless:
        raise PictureWriteError(
            f"{name} cannot be written without loss; choose PNG or WebP with --format"
        )
    if background is not None and not all(0 <= level <= 255 for level in background):
        raise UsageError(f"a background colour is three numbers 0 to 255, not {background}")
