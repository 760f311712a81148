"""What a JPEG XL file says before its pixels: size, depth, animation; and its boxes.

Its plugin for Pillow decodes everything as soon as a file is opened, and the limit on pixels has to
come before that. Field layouts: ISO/IEC 18181-1 annex D (headers) and 18181-2 clause 9 (boxes), as
in the reference implementation (libjxl, lib/jxl/headers.cc and image_metadata.cc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_SIGNATURE = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
# The fields read here end long before this, even after a preview and an animation header.
_HEADER_BYTES = 64
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_SIZE = ((9, 1), (13, 1), (18, 1), (30, 1))


@dataclass(frozen=True, kw_only=True)
class JxlHeader:
    """The start of a codestream."""

    width_px: int
    """As stored: the orientation may swap it with the height."""
    height_px: int
    orientation: int
    """1 to 8, as in EXIF; that of a JPEG packed without loss is in its EXIF data instead."""
    depth_bits: int
    is_float: bool
    is_animated: bool


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of each top-level box; none for a bare codestream, cut where `data` ends."""
    at = 0
    while data.startswith(_CONTAINER) and at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        # 0 means: to the end of the file.
        end = at + size if size else len(data)
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def read_header(data: bytes) -> JxlHeader:
    """Parse the first fields of the codestream in a whole JPEG XL file.

    Raises ValueError when there is none, or it ends within them.
    """
    bits = _Bits(_codestream_start(data))
    height, width = _size(bits)
    orientation, depth_bits, is_float, is_animated = 1, 8, False, False
    if not bits.flag():
        if bits.flag():
            orientation = 1 + bits.take(3)
            if bits.flag():
                _size(bits)
            if bits.flag():
                _skip_preview(bits)
            is_animated = bits.flag()
            if is_animated:
                _skip_animation(bits)
        is_float = bits.flag()
        if is_float:
            depth_bits = bits.choose((0, 32), (0, 16), (0, 24), (6, 1))
        else:
            depth_bits = bits.choose((0, 8), (0, 10), (0, 12), (6, 1))
    return JxlHeader(
        width_px=width,
        height_px=height,
        orientation=orientation,
        depth_bits=depth_bits,
        is_float=is_float,
        is_animated=is_animated,
    )


def _codestream_start(data: bytes) -> bytes:
    start = data[: _HEADER_BYTES + 2]
    if data.startswith(_CONTAINER):
        start = b""
        for kind, content in boxes(data):
            # A codestream in parts has a number of four bytes before each of them.
            start += content[: _HEADER_BYTES + 2] if kind == b"jxlc" else b""
            start += content[4 : _HEADER_BYTES + 6] if kind == b"jxlp" else b""
            if len(start) >= _HEADER_BYTES:
                break
    if not start.startswith(_SIGNATURE):
        raise ValueError("no JPEG XL codestream is in it")
    return start[2:]


class _Bits:
    """Reads fields from the lowest bit of the first byte upwards."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("its header is cut off")
        field = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return field

    def flag(self) -> bool:
        return bool(self.take(1))

    def choose(self, *options: tuple[int, int]) -> int:
        """The standard's U32: two bits choose among four (number of bits, offset)."""
        count, offset = options[self.take(2)]
        return offset + self.take(count)


def _size(bits: _Bits) -> tuple[int, int]:
    """(height, width) of a SizeHeader."""
    small = bits.flag()

    def side() -> int:
        return 8 * (1 + bits.take(5)) if small else bits.choose(*_SIZE)

    height = side()
    ratio = _RATIOS.get(bits.take(3))
    return height, side() if ratio is None else height * ratio[0] // ratio[1]


def _skip_preview(bits: _Bits) -> None:
    by_8 = bits.flag()
    options = (
        ((0, 16), (0, 32), (5, 1), (9, 33)) if by_8 else ((6, 1), (8, 65), (10, 321), (12, 1345))
    )
    bits.choose(*options)
    if bits.take(3) == 0:
        bits.choose(*options)


def _skip_animation(bits: _Bits) -> None:
    bits.choose((0, 100), (0, 1000), (10, 1), (30, 1))
    bits.choose((0, 1), (0, 1001), (8, 1), (10, 1))
    bits.choose((0, 0), (3, 0), (16, 0), (32, 0))
    bits.take(1)
