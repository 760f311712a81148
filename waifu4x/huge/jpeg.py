"""JPEG, row by row: the very coefficients that `encoders` would write.

Pieces of the height of several blocks are encoded apart. Coefficients do not depend on what lies
beside their block, and with a restart marker behind every row of blocks nor does their coding
(ITU-T T.81, E.1.4). Markers are counted from 0 to 7, so that a piece of 8 rows of blocks ends where
the next one begins.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy.typing as npt

from waifu4x import pictures
from waifu4x.codecs.encoders import Encodable, image_of, pillow_options
from waifu4x.huge import pieces

_BLOCK_PX = 8
_MARKERS = 8
PIECE_PX = _BLOCK_PX * _MARKERS
"""How many rows are encoded together."""

_START_OF_FRAME, _START_OF_SCAN = 0xC0, 0xDA
_LAST_MARKER = b"\xff\xd7"
_END_OF_IMAGE = b"\xff\xd9"


def encoded(
    samples: Iterable[npt.NDArray],
    size_px: tuple[int, int],
    content: Encodable,
    *,
    quality: int | None,
) -> Iterator[bytes]:
    """The bytes of a JPEG.

    Args:
        samples: its rows from top to bottom, each (n, W, 1 or 3) uint8.
        size_px: (width, height).
        content: any few pixels of it, and its tags.

    Raises:
        PictureWriteError: the encoder failed.
    """
    width_px, height_px = size_px
    with pictures.encoding("JPEG"):
        options = pillow_options(content, "JPEG", quality=quality, lossless=False)
    groups = pieces.Groups(PIECE_PX, height_px)
    rows = (group for band in samples for group in groups.put(band))
    piece_bytes = PIECE_PX * width_px * content.samples.shape[2]
    encode = partial(_encoded, options=options)
    for number, piece in enumerate(pieces.encoded(rows, encode, piece_bytes=piece_bytes)):
        scan, height_at = _places(piece)
        if number == 0:
            yield piece[:height_at] + struct.pack(">H", height_px) + piece[height_at + 2 : scan]
        else:
            yield _LAST_MARKER
        yield piece[scan : -len(_END_OF_IMAGE)]
    yield _END_OF_IMAGE


def _encoded(rows: npt.NDArray, *, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    with pictures.encoding("JPEG"):
        image_of(Encodable(samples=rows)).save(file, "JPEG", restart_marker_rows=1, **options)
    return file.getvalue()


def _places(piece: bytes) -> tuple[int, int]:
    """Where the coded blocks begin, and where the height is written."""
    at, height_at = 2, 0
    while True:
        kind, size = struct.unpack_from(">xBH", piece, at)
        if kind == _START_OF_FRAME:
            height_at = at + 5
        at += 2 + size
        if kind == _START_OF_SCAN:
            return at, height_at
