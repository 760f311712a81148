"""Which kind of file with several pictures a stream holds, and what its header says of them."""

from __future__ import annotations

from typing import BinaryIO

from waifu4x.codecs import decoders
from waifu4x.failures import RefusedError
from waifu4x.sequences import Outline, apng, avif, gif, tiff, webp

MAX_FRAMES = 10_000

_OUTLINES = {
    "GIF": gif.outline,
    "PNG": apng.outline,
    "WEBP": webp.outline,
    "AVIF": avif.outline,
    "TIFF": tiff.outline,
}


def outline(stream: BinaryIO) -> tuple[str | None, Outline]:
    """The format, where it is one of those with several pictures, and what the header says.

    Of a seekable stream, within `quiet_pillow`; raises what `decoders.decode` raises.
    """
    head = stream.read(16)
    stream.seek(0)
    format = None
    if head.startswith((b"GIF87a", b"GIF89a")):
        format = "GIF"
    elif head.startswith(apng.SIGNATURE):
        format = "PNG"
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        format = "WEBP"
    elif head[4:8] == b"ftyp":
        format = "AVIF"
    elif head.startswith(decoders.TIFF_MAGICS):
        format = "TIFF"
    return format, Outline() if format is None else _OUTLINES[format](stream)


def check_limits(found: Outline, max_pixels: int) -> None:
    """Raise RefusedError where the header speaks of more than `read` would take."""
    if found.frames > MAX_FRAMES:
        raise RefusedError(
            f"has {found.frames:,} frames or pages, more than {MAX_FRAMES:,}: split it first"
        )
    if found.frames > 1 and found.pixels > max_pixels:
        raise RefusedError(
            f"has {found.pixels:,} pixels in {found.frames:,} frames or pages, more than the "
            f"limit of {max_pixels:,}; if that is meant to be, raise it with --max-pixels"
        )
