"""GIF to whole frames, as browsers show them.

Pillow unpacks the pixels. The frames are put together here, because Pillow lets a disposal stand
for frames that name none, fills what is cleared with the background colour, and takes a file that
ends between two frames for complete.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x.codecs.decoders import Stored
from waifu4x.failures import RefusedError
from waifu4x.sequences import Film, Outline

_CLEAR = 2
# 4 is written by some for "previous", and taken so by WebKit and Chromium.
_PREVIOUS = (3, 4)
_LOOPING = (b"\x0bNETSCAPE2.0", b"\x0bANIMEXTS1.0")
_GRAYS = bytes(level for level in range(256) for _ in range(3))


@dataclass(frozen=True, kw_only=True)
class _Image:
    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    table: bytes
    """RGB, 256 entries."""
    data: bytes
    """The compressed indices, in their blocks."""
    delay_cs: int = 0
    disposal: int = 0
    clear_index: int | None = None


@dataclass(kw_only=True)
class _Layout:
    """The parts of a file, and where in it the reader is."""

    data: bytes
    at: int = 0
    width: int = 0
    height: int = 0
    plays: int = 1
    images: list[_Image] = field(default_factory=list)

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise RefusedError("is cut off: its last part is missing")
        self.at += count
        return part

    def skip_blocks(self) -> None:
        data, at = self.data, self.at
        while at < len(data) and data[at]:
            at += data[at] + 1
        self.at = at
        self.take(1)


def outline(stream: BinaryIO) -> Outline:
    """By walking the blocks; no frame is decoded."""
    layout = _layout(stream.read())
    canvas_px = layout.width * layout.height
    sizes = [max(canvas_px, image.width * image.height) for image in layout.images]
    return Outline(frames=len(sizes), pixels=sum(sizes), largest=max(sizes))


def decode(stream: BinaryIO) -> Film:
    """Every frame as it is shown: drawn over what the frames before it leave."""
    layout = _layout(stream.read())
    pixels = np.zeros((layout.height, layout.width, 3), dtype=np.uint8)
    alpha = np.zeros((layout.height, layout.width), dtype=np.uint8)
    shown = []
    for image in layout.images:
        indices = _indices(image)
        # A part beyond the screen is not shown.
        box = np.s_[image.top : image.top + image.height, image.left : image.left + image.width]
        indices = indices[: pixels[box].shape[0], : pixels[box].shape[1]]
        before = (pixels[box].copy(), alpha[box].copy()) if image.disposal in _PREVIOUS else None
        colors = np.frombuffer(image.table, dtype=np.uint8).reshape(256, 3)
        drawn = np.ones(indices.shape, dtype=bool)
        if image.clear_index is not None:
            drawn = indices != image.clear_index
        pixels[box][drawn] = colors[indices[drawn]]
        alpha[box][drawn] = 255
        shown.append((pixels.copy(), alpha.copy()))
        if before is not None:
            pixels[box], alpha[box] = before
        elif image.disposal == _CLEAR:
            pixels[box], alpha[box] = 0, 0
    opaque = all(bool(a.all()) for _, a in shown)
    gray = all(bool((p[..., :1] == p[..., 1:]).all()) for p, _ in shown)
    return Film(
        frames=[
            Stored(
                pixels=np.ascontiguousarray(p[..., :1]) if gray else p,
                alpha=None if opaque else a,
                format="GIF",
                info={},
                exif=Image.Exif(),
            )
            for p, a in shown
        ],
        durations_ms=tuple(image.delay_cs * 10.0 for image in layout.images),
        plays=layout.plays,
    )


def _layout(data: bytes) -> _Layout:
    layout = _Layout(data=data)
    layout.take(6)
    layout.width, layout.height, flags, _, _ = struct.unpack("<HHBBB", layout.take(7))
    shared = _table(layout, flags)
    control: tuple[int, int, int | None] = (0, 0, None)
    repeats = False
    while (kind := data[layout.at : layout.at + 1]) not in (b";", b""):
        layout.at += 1
        if kind == b",":
            layout.images.append(_image(layout, shared, control))
            control = (0, 0, None)
        elif kind == b"!":
            label = layout.take(1)[0]
            if label == 0xF9 and layout.data[layout.at : layout.at + 1] == b"\4":
                packed, delay, index = struct.unpack("<xBHB", layout.take(5))
                control = (delay, packed >> 2 & 7, index if packed & 1 else None)
            elif label == 0xFF and layout.data[layout.at : layout.at + 12] in _LOOPING:
                loop = layout.data[layout.at + 12 : layout.at + 16]
                if loop[:2] == b"\3\1" and len(loop) == 4:
                    repeats = True
                    count = int.from_bytes(loop[2:], "little")
                    layout.plays = count + 1 if count else 0
            layout.skip_blocks()
        elif kind != b"\0":
            raise RefusedError(f"is damaged: no part of a GIF begins with {kind!r}")
    if not layout.images:
        raise RefusedError("is damaged or cut off: it has no picture in it")
    if not kind and (repeats or len(layout.images) > 1):
        raise RefusedError("is cut off: its last part is missing")
    return layout


def _image(layout: _Layout, shared: bytes | None, control: tuple[int, int, int | None]) -> _Image:
    left, top, width, height, flags = struct.unpack("<HHHHB", layout.take(9))
    own = _table(layout, flags)
    start = layout.at
    layout.take(1)
    layout.skip_blocks()
    if not layout.images:
        # The screen grows to the first frame, where it is smaller or, as some write it, empty.
        layout.width = max(layout.width, left + width)
        layout.height = max(layout.height, top + height)
    return _Image(
        left=left,
        top=top,
        width=width,
        height=height,
        interlaced=bool(flags & 0x40),
        table=own or shared or _GRAYS,
        data=layout.data[start : layout.at],
        delay_cs=control[0],
        disposal=control[1],
        clear_index=control[2],
    )


def _table(layout: _Layout, flags: int) -> bytes | None:
    return layout.take(3 << (flags & 7) + 1).ljust(768, b"\0") if flags & 0x80 else None


def _indices(image: _Image) -> npt.NDArray[np.uint8]:
    """(h, w): without a colour table Pillow takes indices for grays, and gives them as they are."""
    if not image.width or not image.height:
        return np.zeros((image.height, image.width), dtype=np.uint8)
    screen = struct.pack("<HHBBB", image.width, image.height, 0, 0, 0)
    place = struct.pack("<HHHHB", 0, 0, image.width, image.height, image.interlaced << 6)
    file = io.BytesIO(b"GIF89a" + screen + b"," + place + image.data + b";")
    with Image.open(file, formats=("GIF",)) as opened:
        return np.asarray(opened)
