"""The pages of a TIFF, each of its own size, depth and mode.

Smaller copies (previews, pyramids) and masks, which a TIFF chains in the same way, are no pages.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from waifu4x.codecs.decoders import Stored
from waifu4x.codecs.decoders import decode as decode_first
from waifu4x.failures import RefusedError
from waifu4x.sequences import Outline

_SUBFILE_TAG, _WIDTH_TAG, _HEIGHT_TAG = 254, 256, 257
_SMALLER_COPY, _MASK = 1, 4
# Types BYTE, SHORT, LONG, IFD and, in a BigTIFF, LONG8, IFD8: how they are unpacked.
_NUMBERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}


@dataclass(frozen=True, kw_only=True)
class _Page:
    offset: int
    link: int
    """Where the offset of the next directory is."""
    tags: dict[int, int]

    @property
    def pixels(self) -> int:
        return self.tags.get(_WIDTH_TAG, 0) * self.tags.get(_HEIGHT_TAG, 0)


@dataclass(frozen=True, kw_only=True)
class _Style:
    order: str
    """"<" or ">", as `struct` has it."""
    big: bool
    """64-bit offsets."""

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "L"))

    @property
    def first_link(self) -> int:
        return 8 if self.big else 4


def outline(stream: BinaryIO) -> Outline:
    """By following the chain of pages; each counts as a frame."""
    pages = _pages(stream, _style(stream))
    sizes = [page.pixels for page in pages]
    return Outline(frames=len(sizes), pixels=sum(sizes), largest=max(sizes, default=0))


def decode(stream: BinaryIO, *, max_pixels: int) -> list[Stored]:
    """Each page is decoded as if it were the first and only one."""
    style = _style(stream)
    pages = _pages(stream, style)
    stream.seek(0)
    data = bytearray(stream.read())
    found = []
    for page in pages:
        style.offset.pack_into(data, style.first_link, page.offset)
        style.offset.pack_into(data, page.link, 0)
        found.append(decode_first(io.BytesIO(data), max_pixels=max_pixels))
    return found


def _style(stream: BinaryIO) -> _Style:
    stream.seek(0)
    head = stream.read(4)
    return _Style(order="<" if head[:2] == b"II" else ">", big=b"+" in head)


def _pages(stream: BinaryIO, style: _Style) -> list[_Page]:
    found: list[_Page] = []
    seen: set[int] = set()
    link = style.first_link
    while (offset := _unpack(stream, style.offset, link)) and offset not in seen:
        seen.add(offset)
        count_format = struct.Struct(style.order + ("Q" if style.big else "H"))
        count = _unpack(stream, count_format, offset)
        at, entry_bytes = offset + count_format.size, 20 if style.big else 12
        link = at + count * entry_bytes
        if link > stream.seek(0, io.SEEK_END):
            raise RefusedError("is damaged or cut off: one of its pages is missing")
        stream.seek(at)
        tags = _numbers(stream.read(count * entry_bytes), style)
        # The first one is what everybody takes for the picture, whatever it says of itself.
        if not found or not tags.get(_SUBFILE_TAG, 0) & (_SMALLER_COPY | _MASK):
            found.append(_Page(offset=offset, link=link, tags=tags))
    return found


def _numbers(entries: bytes, style: _Style) -> dict[int, int]:
    """The few tags that are asked for, which are single numbers."""
    head = struct.Struct(style.order + ("HHQ" if style.big else "HHL"))
    found = {}
    for at in range(0, len(entries), 20 if style.big else 12):
        tag, kind, count = head.unpack_from(entries, at)
        if tag in (_SUBFILE_TAG, _WIDTH_TAG, _HEIGHT_TAG) and kind in _NUMBERS and count == 1:
            value = struct.Struct(style.order + _NUMBERS[kind])
            (found[tag],) = value.unpack_from(entries, at + head.size)
    return found


def _unpack(stream: BinaryIO, format: struct.Struct, at: int) -> int:
    stream.seek(at)
    data = stream.read(format.size)
    if len(data) < format.size:
        raise RefusedError("is damaged or cut off: one of its pages is missing")
    return format.unpack(data)[0]
