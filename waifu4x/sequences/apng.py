"""Animated PNG to whole frames and back, in 8 and 16 bits.

Each frame's data becomes a PNG of its own, and the ways to lay them over each other are done here:
Pillow has no 16 bits, and where a half-transparent frame lies over another its alpha comes out too
low. The format: https://www.w3.org/TR/png-3/#apng-frame-based-animation
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from waifu4x.codecs.decoders import Stored
from waifu4x.codecs.decoders import decode as decode_still
from waifu4x.codecs.encoders import Encodable, encode_samples
from waifu4x.failures import RefusedError
from waifu4x.sequences import Film, Outline, changed_box

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_DELAY_MS = 65_535_000
MAX_PLAYS = 2**31 - 1
_CLEAR, _PREVIOUS = 1, 2
_OVER = 1
# What every frame needs to be a PNG; the other parts are about the whole picture.
_FOR_ALL = (b"PLTE", b"tRNS")
_OF_FRAMES = (b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IHDR", b"IEND")
_DEFAULT_LEFT_OUT = "the still picture for viewers that do not animate was left out"


@dataclass(frozen=True, kw_only=True)
class _Frame:
    width: int
    height: int
    left: int
    top: int
    delay: Fraction
    """In seconds."""
    disposal: int
    blend: int
    parts: list[bytes] = field(default_factory=list)
    """The compressed samples."""


@dataclass(kw_only=True)
class _Layout:
    header: bytes = b""
    frames_total: int = 0
    plays: int = 0
    frames: list[_Frame] = field(default_factory=list)
    before: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Names and contents of other chunks, before and after the first of the samples."""
    after: list[tuple[bytes, bytes]] = field(default_factory=list)
    default_is_extra: bool = False
    """The picture for viewers that do not animate is none of the frames."""


def outline(stream: BinaryIO) -> Outline:
    """Reads no further than the samples: what is declared is compared when decoding."""
    stream.seek(len(SIGNATURE))
    width = height = 0
    while len(head := stream.read(8)) == 8 and head[4:] != b"IDAT":
        size = int.from_bytes(head[:4], "big")
        if head[4:] == b"IHDR":
            width, height = struct.unpack(">II5x", stream.read(13))
            size -= 13
        elif head[4:] == b"acTL":
            frames = int.from_bytes(stream.read(4), "big")
            # None at all makes it no animation.
            canvas = width * height
            return Outline(frames=max(frames, 1), pixels=frames * canvas, largest=canvas)
        stream.seek(size + 4, io.SEEK_CUR)
    return Outline()


def decode(stream: BinaryIO) -> Film:
    """Every frame as it is shown: drawn over what the frames before it leave."""
    layout = _layout(stream.read())
    height, width = _size(layout.header)
    pictures = [_still(layout, k) for k in range(len(layout.frames))]
    dtype = pictures[0].pixels.dtype
    gray = layout.header[9] in (0, 4)
    pixels = np.zeros((height, width, 1 if gray else 3), dtype=dtype)
    alpha = np.zeros((height, width), dtype=dtype)
    shown: list[tuple[npt.NDArray, npt.NDArray]] = []
    for frame, picture in zip(layout.frames, pictures, strict=True):
        box = np.s_[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
        before = pixels[box].copy(), alpha[box].copy()
        own = picture.alpha
        if own is None:
            own = np.full(picture.pixels.shape[:2], np.iinfo(dtype).max, dtype=dtype)
        if frame.blend == _OVER:
            pixels[box], alpha[box] = _over(picture.pixels, own, *before)
        else:
            pixels[box], alpha[box] = picture.pixels, own
        shown.append((pixels.copy(), alpha.copy()))
        if frame.disposal == _PREVIOUS:
            pixels[box], alpha[box] = before
        elif frame.disposal == _CLEAR:
            pixels[box], alpha[box] = 0, 0
    opaque = all(bool((a == np.iinfo(dtype).max).all()) for _, a in shown)
    first = pictures[0]
    notes = (*first.notes, _DEFAULT_LEFT_OUT) if layout.default_is_extra else first.notes
    return Film(
        frames=[
            Stored(
                pixels=p,
                alpha=None if opaque else a,
                format="PNG",
                info=first.info,
                exif=first.exif,
                notes=notes,
            )
            for p, a in shown
        ],
        durations_ms=tuple(float(frame.delay * 1000) for frame in layout.frames),
        plays=layout.plays,
    )


def encode(contents: Sequence[Encodable], durations_ms: Sequence[float], *, plays: int) -> bytes:
    """The first frame carries the metadata; of the others only what changed is stored.

    durations_ms: 0..MAX_DELAY_MS, kept exactly where they are fractions of 16-bit numbers, such as
    1000 / 30. plays: 0 for ever, at most MAX_PLAYS.
    """
    file = io.BytesIO(SIGNATURE)
    file.seek(0, io.SEEK_END)
    number = 0
    for k, (content, duration_ms) in enumerate(zip(contents, durations_ms, strict=True)):
        height, width = content.samples.shape[:2]
        top, bottom, left, right = 0, height, 0, width
        if k:
            before = contents[k - 1].samples
            top, bottom, left, right = changed_box(content.samples, before)
            content = Encodable(samples=content.samples[top:bottom, left:right])
        control = struct.pack(
            ">5I2H2B", number, right - left, bottom - top, left, top, *_fraction(duration_ms), 0, 0
        )
        number += 1
        placed = False
        for name, part in _chunks(encode_samples(content, "PNG", quality=None, lossless=True)):
            if name == b"IDAT" and not placed:
                placed = True
                if not k:
                    file.write(_chunk(b"acTL", struct.pack(">2I", len(contents), plays)))
                file.write(_chunk(b"fcTL", control))
            if name == b"IDAT" and k:
                file.write(_chunk(b"fdAT", struct.pack(">I", number) + part))
                number += 1
            elif not k and name != b"IEND":
                file.write(_chunk(name, part))
    file.write(_chunk(b"IEND", b""))
    return file.getvalue()


def _fraction(duration_ms: float) -> tuple[int, int]:
    """Of a second: the nearest of two numbers of 16 bits each."""
    seconds = Fraction(duration_ms) / 1000
    most = 65_535
    if seconds > 1:
        # The numerator is the larger one and has to fit.
        most = max(1, int(65_535 / seconds))
    near = seconds.limit_denominator(most)
    return min(near.numerator, 65_535), near.denominator


def _layout(data: bytes) -> _Layout:
    layout = _Layout()
    number = 0
    has_samples = False
    for name, part in _chunks(data):
        if name in (b"fcTL", b"fdAT"):
            if int.from_bytes(part[:4], "big") != number or len(part) < 4:
                raise RefusedError(
                    f"is damaged: part {number} of its animation is not in its place"
                )
            number += 1
        if name == b"IHDR" and len(part) == 13:
            layout.header = part
        elif name == b"acTL" and not layout.frames_total and len(part) == 8:
            layout.frames_total, layout.plays = struct.unpack(">II", part)
        elif name == b"fcTL":
            layout.frames.append(_frame(part, layout.header))
        elif name == b"IDAT":
            layout.default_is_extra |= not layout.frames
            if layout.frames:
                layout.frames[-1].parts.append(part)
            has_samples = True
        elif name == b"fdAT" and layout.frames and has_samples:
            layout.frames[-1].parts.append(part[4:])
        elif name not in _OF_FRAMES:
            (layout.after if has_samples else layout.before).append((name, part))
        elif name != b"IEND":
            raise RefusedError(f"is damaged: it has a {name.decode()} where none can be")
    if len(layout.frames) != layout.frames_total or not layout.frames:
        raise RefusedError(
            f"is damaged: it has {len(layout.frames)} frames and says {layout.frames_total}"
        )
    return layout


def _frame(part: bytes, header: bytes) -> _Frame:
    if len(part) != 26 or not header:
        raise RefusedError("is damaged: it does not say where one of its frames lies")
    width, height, left, top, delay, parts_a_second, disposal, blend = struct.unpack(
        ">4x4I2H2B", part
    )
    whole = _size(header)
    fits = 0 < width <= whole[1] - left and 0 < height <= whole[0] - top
    if not fits or disposal > _PREVIOUS or blend > _OVER:
        raise RefusedError("is damaged: one of its frames lies outside the picture")
    return _Frame(
        width=width,
        height=height,
        left=left,
        top=top,
        # 0 means hundredths of a second.
        delay=Fraction(delay, parts_a_second or 100),
        disposal=disposal,
        blend=blend,
    )


def _size(header: bytes) -> tuple[int, int]:
    """Height and width."""
    width, height = struct.unpack(">II5x", header)
    return height, width


def _still(layout: _Layout, k: int) -> Stored:
    """One frame, with the metadata of the whole if it is the first."""
    frame = layout.frames[k]
    others = (layout.before, layout.after)
    if k:
        others = ([chunk for chunk in layout.before if chunk[0] in _FOR_ALL], [])
    header = struct.pack(">II", frame.width, frame.height) + layout.header[8:]
    data = (
        SIGNATURE
        + _chunk(b"IHDR", header)
        + b"".join(_chunk(*other) for other in others[0])
        + _chunk(b"IDAT", b"".join(frame.parts))
        + b"".join(_chunk(*other) for other in others[1])
        + _chunk(b"IEND", b"")
    )
    return decode_still(io.BytesIO(data), max_pixels=frame.width * frame.height)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents up to the end, which must be there; each with a right checksum."""
    found: list[tuple[bytes, bytes]] = []
    at = len(SIGNATURE)
    while not found or found[-1][0] != b"IEND":
        size = int.from_bytes(data[at : at + 4], "big")
        name, part = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        check = data[at + 8 + size : at + 12 + size]
        if len(check) < 4:
            raise RefusedError("is cut off: its last part is missing")
        if zlib.crc32(name + part) != int.from_bytes(check, "big"):
            raise RefusedError("is damaged: one of its checksums is wrong")
        found.append((name, part))
        at += 12 + size
    return found


def _chunk(name: bytes, part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))


def _over(
    pixels: npt.NDArray, alpha: npt.NDArray, below: npt.NDArray, below_alpha: npt.NDArray
) -> tuple[npt.NDArray, npt.NDArray]:
    """Straight alpha over straight alpha: https://www.w3.org/TR/png-3/#13Alpha-channel-processing"""
    full = float(np.iinfo(pixels.dtype).max)
    own = alpha[..., None].astype(np.float64)
    rest = below_alpha[..., None] * (full - own) / full
    total = own + rest
    mixed = (pixels * own + below * rest) / np.maximum(total, 1e-9)
    return np.rint(mixed).astype(pixels.dtype), np.rint(total[..., 0]).astype(pixels.dtype)
