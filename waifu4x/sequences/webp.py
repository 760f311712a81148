"""Animated WebP to whole frames and back.

libwebp puts the frames together, through Pillow. The container is written here: libwebp's own
writer would merge frames that look alike, and lets the colours below full transparency go.
The format: https://developers.google.com/speed/webp/docs/riff_container
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from waifu4x.codecs.decoders import Stored, exif_of
from waifu4x.codecs.encoders import Encodable, encode_samples
from waifu4x.failures import RefusedError
from waifu4x.sequences import Film, Outline, changed_box

MAX_DURATION_MS = 2**24 - 1
MAX_PLAYS = 65_535
_ANIMATED, _XMP, _EXIF, _ALPHA, _PROFILE = 0x02, 0x04, 0x08, 0x10, 0x20
_REPLACE = 0x02
_OF_PIXELS = (b"ALPH", b"VP8 ", b"VP8L")


def outline(stream: BinaryIO) -> Outline:
    """By walking the chunks; no frame is decoded."""
    stream.seek(12)
    name, flags, packed = struct.unpack("<4s4xB3x6s", stream.read(18).ljust(18, b"\0"))
    if name != b"VP8X" or not flags & _ANIMATED:
        return Outline()
    width, height = (1 + int.from_bytes(packed[k : k + 3], "little") for k in (0, 3))
    frames = sum(name == b"ANMF" for name, _ in _heads(stream))
    canvas = width * height
    return Outline(frames=max(frames, 1), pixels=frames * canvas, largest=canvas)


def decode(stream: BinaryIO) -> Film:
    """Every frame as it is shown; a file with fewer than it names is refused as damaged."""
    wanted = outline(stream).frames
    stream.seek(0)
    shown, durations_ms = [], []
    with Image.open(stream, formats=("WEBP",)) as image:
        if getattr(image, "n_frames", 1) != wanted:
            raise RefusedError("is damaged: not all of its frames can be read")
        info, exif = dict(image.info), exif_of(image)
        for k in range(wanted):
            image.seek(k)
            image.load()
            shown.append(np.asarray(image))
            durations_ms.append(float(image.info["duration"]))
    opaque = all(bool((s[..., 3:] == 255).all()) for s in shown)
    return Film(
        frames=[
            Stored(
                pixels=s[..., :3],
                alpha=None if opaque else s[..., 3],
                format="WEBP",
                info=info,
                exif=exif,
            )
            for s in shown
        ],
        durations_ms=tuple(durations_ms),
        plays=int(info["loop"]),
    )


def encode(
    contents: Sequence[Encodable],
    durations_ms: Sequence[int],
    *,
    plays: int,
    quality: int | None,
    lossless: bool,
) -> bytes:
    """The first frame carries the metadata; of the others only what changed is stored.

    durations_ms: 0..MAX_DURATION_MS. plays: 0 for ever, at most MAX_PLAYS.
    """
    first = contents[0]
    height, width = first.samples.shape[:2]
    flags = _ANIMATED | (_ALPHA if first.samples.shape[2] == 4 else 0)
    head, tail = b"", b""
    if first.icc_profile is not None:
        flags |= _PROFILE
        head = _chunk(b"ICCP", first.icc_profile)
    if first.exif is not None:
        flags |= _EXIF
        tail += _chunk(b"EXIF", first.exif.tobytes().removeprefix(b"Exif\0\0"))
    if first.xmp is not None:
        flags |= _XMP
        tail += _chunk(b"XMP ", first.xmp)
    canvas = struct.pack("<B3x", flags) + _three_bytes(width - 1) + _three_bytes(height - 1)
    # No background: frames that are there when it would show are laid over nothing.
    parts = [_chunk(b"VP8X", canvas), head, _chunk(b"ANIM", struct.pack("<IH", 0, plays))]
    before = None
    for content, duration_ms in zip(contents, durations_ms, strict=True):
        samples = content.samples
        top, bottom, left, right = (
            (0, height, 0, width) if before is None else changed_box(samples, before)
        )
        # Places are counted in steps of two.
        top, left = top & ~1, left & ~1
        piece = Encodable(samples=np.ascontiguousarray(samples[top:bottom, left:right]))
        data = encode_samples(piece, "WEBP", quality=quality, lossless=lossless)
        numbers = (left // 2, top // 2, right - left - 1, bottom - top - 1, duration_ms)
        control = b"".join(map(_three_bytes, numbers)) + bytes([_REPLACE])
        parts.append(_chunk(b"ANMF", control + _pixel_chunks(data)))
        before = samples
    body = b"WEBP" + b"".join(parts) + tail
    if len(body) >= 2**32:
        raise ValueError("its frames take more than 4 GiB")
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _heads(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and sizes of the parts; meanwhile the stream is at the content. All of it is there."""
    whole = stream.seek(0, io.SEEK_END)
    stream.seek(4)
    end = 8 + int.from_bytes(stream.read(4), "little")
    if end > whole:
        raise RefusedError("is cut off: its last part is missing")
    at = 12
    while at + 8 <= end:
        stream.seek(at)
        name, size = struct.unpack("<4sI", stream.read(8))
        if at + 8 + size > end:
            raise RefusedError("is damaged: one of its parts does not fit into it")
        yield name, size
        at += 8 + size + (size & 1)


def _pixel_chunks(data: bytes) -> bytes:
    """Of a still WebP: what a frame of an animation consists of."""
    stream = io.BytesIO(data)
    return b"".join(
        _chunk(name, stream.read(size)) for name, size in _heads(stream) if name in _OF_PIXELS
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)


def _three_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")
