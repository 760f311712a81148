"""Animated AVIF to whole frames and back, by libavif, through Pillow.

How often it is shown Pillow neither reads nor writes: it is said by how long the edit list and the
whole track are (ISO/IEC 14496-12, 8.6.6; libavif: https://github.com/AOMediaCodec/libavif).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from waifu4x.codecs import deep
from waifu4x.codecs.decoders import Stored, exif_of
from waifu4x.codecs.encoders import Encodable, image_of, pillow_options
from waifu4x.sequences import Film, Outline

_INSIDE = (b"moov", b"trak", b"edts")
_FOR_EVER = (2**32 - 1, 2**64 - 1)
# Where a duration lies in a box of version 0 and of version 1, and with how many bytes.
_DURATION_AT = {b"mvhd": {0: (16, 4), 1: (24, 8)}, b"tkhd": {0: (20, 4), 1: (28, 8)}}
_SEGMENT_AT = {0: (8, 4), 1: (8, 8)}


def outline(stream: BinaryIO) -> Outline:
    """Of a file that is no AVIF, or a damaged one, that of a single picture."""
    try:
        image = Image.open(stream, formats=("AVIF",))
    except UnidentifiedImageError:
        return Outline()  # a relative of it, or damaged: who reads it as a picture will say
    with image:
        frames = getattr(image, "n_frames", 1)
        canvas = image.width * image.height
        return Outline(frames=frames, pixels=frames * canvas, largest=canvas)


def decode(stream: BinaryIO) -> Film:
    """Every frame, in 8 bits whatever the file holds; more is noted."""
    data = stream.read()
    plays = _plays(data)
    depth = deep.avif_depth_bits(data)
    notes = (f"its {depth}-bit frames were read with 8 bits",) if depth > 8 else ()
    shown, starts_ms = [], []
    duration_ms = 0
    with Image.open(stream, formats=("AVIF",)) as image:
        info, exif = dict(image.info), exif_of(image)
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            image.load()
            shown.append(np.asarray(image).reshape(image.height, image.width, -1))
            starts_ms.append(image.info["timestamp"])
            duration_ms = image.info["duration"]
    # Pillow rounds to milliseconds; from start to start the errors do not add up.
    durations = [b - a for a, b in itertools.pairwise([*starts_ms, starts_ms[-1] + duration_ms])]
    opaque = all(s.shape[2] < 4 or bool((s[..., 3] == 255).all()) for s in shown)
    return Film(
        frames=[
            Stored(
                pixels=s[..., :3],
                alpha=None if opaque else s[..., 3],
                format="AVIF",
                info=info,
                exif=exif,
                notes=notes,
            )
            for s in shown
        ],
        durations_ms=tuple(map(float, durations)),
        plays=plays,
    )


def encode(
    contents: Sequence[Encodable],
    durations_ms: Sequence[int],
    *,
    plays: int,
    quality: int | None,
) -> bytes:
    """The first frame carries the metadata. plays: 0 for ever."""
    images = [image_of(content) for content in contents]
    file = io.BytesIO()
    images[0].save(
        file,
        "AVIF",
        save_all=True,
        append_images=images[1:],
        duration=list(durations_ms),
        **pillow_options(contents[0], "AVIF", quality=quality, lossless=False),
    )
    data = bytearray(file.getvalue())
    if plays:
        _set_plays(data, plays)
    return bytes(data)


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Names and places of the contents of all boxes about time, track by track."""
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        name = bytes(data[start + 4 : start + 8])
        if size < 8 or start + size > end:
            # The last one may go to the end of the file; it holds the samples.
            return
        yield name, start + 8
        if name in _INSIDE:
            yield from _boxes(data, start + 8, start + size)
        start += size


def _plays(data: bytes) -> int:
    whole = 0
    for name, at in _boxes(data, 0, len(data)):
        version = data[at]
        if name == b"tkhd" and version in _DURATION_AT[name]:
            offset, size = _DURATION_AT[name][version]
            whole = int.from_bytes(data[at + offset : at + offset + size], "big")
        elif name == b"elst" and version in _SEGMENT_AT:
            if not data[at + 3] & 1:
                return 1
            offset, size = _SEGMENT_AT[version]
            once = int.from_bytes(data[at + offset : at + offset + size], "big")
            return 0 if whole in _FOR_EVER or not once else max(1, -(-whole // once))
    return 0


def _set_plays(data: bytearray, plays: int) -> None:
    boxes = list(_boxes(data, 0, len(data)))
    once = next(
        int.from_bytes(data[at + 8 : at + 8 + _SEGMENT_AT[data[at]][1]], "big")
        for name, at in boxes
        if name == b"elst"
    )
    for name, at in boxes:
        if name in _DURATION_AT:
            offset, size = _DURATION_AT[name][data[at]]
            data[at + offset : at + offset + size] = (once * plays).to_bytes(size, "big")
