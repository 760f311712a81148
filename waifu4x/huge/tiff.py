"""TIFF, row by row: strips, tiles, or a pyramid of tiles; a BigTIFF where 4 GiB are not enough.

How many pieces there will be is known, and so how long the directories are: they are written first,
empty, and once more when it is known where the pieces lie. So a directory's own offsets stay small.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x import pictures
from waifu4x.codecs.encoders import Encodable, copy_exif, deflate
from waifu4x.codecs.formats import FORMATS
from waifu4x.huge import pieces

Layout = Literal["strips", "tiled", "pyramid"]
LAYOUTS: tuple[Layout, ...] = ("strips", "tiled", "pyramid")

TILE_PX = 256
"""The side of a tile."""

_STRIP_BYTES = 2**20
# TIFF 6.0, but for the last one, which is of BigTIFF.
_SMALLER_COPY, _DEFLATE, _GRAY, _RGB, _DIFFERENCES, _STRAIGHT_ALPHA = 1, 8, 1, 2, 2, 2
_LONG, _LONG8 = 4, 16


def layout_for(size_px: tuple[int, int], pixel_bytes: int, wish: Layout | None) -> Layout:
    """Strips, which everything reads, and above 4 GiB tiles: whoever opens that wants a part."""
    if wish is not None:
        return wish
    return "tiled" if _is_big(_levels(size_px, pixel_bytes, "strips"), pixel_bytes) else "strips"


def write(
    file: BinaryIO,
    samples: Iterable[npt.NDArray],
    size_px: tuple[int, int],
    content: Encodable,
    *,
    layout: Layout | None,
) -> None:
    """A TIFF into an empty file that can be sought in.

    Args:
        samples: its rows from top to bottom, each (n, W, S); S = 1, 2, 3, 4 for gray, gray+alpha,
            RGB, RGBA.
        size_px: (width, height).
        content: any few pixels of it, and its tags.

    Raises:
        PictureWriteError: its tags cannot be stored.
        OSError: the file cannot be written.
    """
    _Writer(file, size_px, content, layout).write(samples)


@dataclass(kw_only=True)
class _Level:
    """The picture in one of its sizes."""

    size_px: tuple[int, int]
    """(width, height)."""
    piece_px: tuple[int, int]
    """Of a tile, or of a strip, which is as wide as the picture."""
    groups: pieces.Groups
    offsets: list[int] = field(default_factory=list)
    """Of its pieces, from where the first one of all begins."""
    sizes_bytes: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many pieces there will be."""
        return math.prod(-(-n // by) for n, by in zip(self.size_px, self.piece_px, strict=True))


class _Writer:
    """A TIFF on its way into a file."""

    def __init__(
        self, file: BinaryIO, size_px: tuple[int, int], content: Encodable, wish: Layout | None
    ) -> None:
        pixel_bytes = content.samples.shape[2] * content.samples.itemsize
        self._layout = layout_for(size_px, pixel_bytes, wish)
        self._levels = _levels(size_px, pixel_bytes, self._layout)
        self._is_big = _is_big(self._levels, pixel_bytes)
        self._piece_bytes = math.prod(self._levels[0].piece_px) * pixel_bytes
        self._file, self._content = file, content
        self._start = 0
        """Where the first piece begins."""

    def write(self, samples: Iterable[npt.NDArray]) -> None:
        self._write_directories()
        self._start = self._file.tell()
        owners: deque[_Level] = deque()

        def cut() -> Iterator[npt.NDArray]:
            for rows in samples:
                for level, piece in self._cut(rows, 0):
                    owners.append(level)
                    yield piece

        for data in pieces.encoded(cut(), deflate, piece_bytes=self._piece_bytes):
            level = owners.popleft()
            level.offsets.append(self._file.tell() - self._start)
            level.sizes_bytes.append(len(data))
            self._file.write(data)
        self._write_directories()

    def _cut(self, rows: npt.NDArray, number: int) -> Iterator[tuple[_Level, npt.NDArray]]:
        """The pieces that these rows complete, in this size and in all smaller ones."""
        level = self._levels[number]
        for group in level.groups.put(rows):
            for piece in [group] if self._layout == "strips" else _tiles(group):
                yield level, piece
            if number + 1 < len(self._levels):
                yield from self._cut(_halved(group), number + 1)

    def _write_directories(self) -> None:
        """All of them, behind each other from the start of the file."""
        self._file.seek(0)
        number_format, entry_bytes = ("<Q", 20) if self._is_big else ("<L", 12)
        head = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" if self._is_big else b"II*\0\x08\0\0\0"
        at = len(head)
        self._file.write(head)
        for number, level in enumerate(self._levels):
            with pictures.encoding("TIFF"):
                tags = self._tags(head, level, is_copy=number > 0)
                directory = bytearray(tags.tobytes(at))
            at += len(directory)
            # Behind the entries, which follow their number, is where the next directory lies.
            link = (8 if self._is_big else 2) + entry_bytes * len(tags)
            is_last = number + 1 == len(self._levels)
            struct.pack_into(number_format, directory, link, 0 if is_last else at)
            self._file.write(directory)

    def _tags(self, head: bytes, level: _Level, *, is_copy: bool) -> ImageFileDirectory_v2:
        content = self._content
        count, depth = content.samples.shape[2], content.samples.itemsize
        tags = ImageFileDirectory_v2(head)
        if content.exif is not None and not is_copy:
            copy_exif(content.exif, tags)
        if content.dpi is not None and not is_copy:
            tags[Base.XResolution], tags[Base.YResolution] = content.dpi
            tags[Base.ResolutionUnit] = 2
        if content.xmp is not None and not is_copy:
            tags[Base.XMLPacket] = content.xmp
        if content.icc_profile is not None:
            tags[Base.InterColorProfile] = content.icc_profile
        if is_copy:
            tags[Base.NewSubfileType] = _SMALLER_COPY
        tags[Base.ImageWidth], tags[Base.ImageLength] = level.size_px
        tags[Base.BitsPerSample] = (depth * 8,) * count
        tags[Base.Compression] = _DEFLATE
        tags[Base.PhotometricInterpretation] = _RGB if count > 2 else _GRAY
        tags[Base.SamplesPerPixel] = count
        tags[Base.PlanarConfiguration] = 1
        tags[Base.Predictor] = _DIFFERENCES
        tags[Base.SampleFormat] = (1,) * count
        if count in (2, 4):
            tags[Base.ExtraSamples] = _STRAIGHT_ALPHA
        self._place(tags, level)
        return tags

    def _place(self, tags: ImageFileDirectory_v2, level: _Level) -> None:
        """Where the pieces lie, or zeros before it is known."""
        unknown = (0,) * (level.count - len(level.offsets))
        offsets, sizes_bytes = (*level.offsets, *unknown), (*level.sizes_bytes, *unknown)
        if self._layout == "strips":
            where, how_many = Base.StripOffsets, Base.StripByteCounts
            tags[Base.RowsPerStrip] = level.piece_px[1]
        else:
            where, how_many = Base.TileOffsets, Base.TileByteCounts
            tags[Base.TileWidth], tags[Base.TileLength] = level.piece_px
            # To those of strips Pillow adds where the directory ends.
            offsets = tuple(self._start + offset for offset in offsets)
        tags.tagtype[where] = tags.tagtype[how_many] = _LONG8 if self._is_big else _LONG
        tags[where], tags[how_many] = offsets, sizes_bytes


def _levels(size_px: tuple[int, int], pixel_bytes: int, layout: Layout) -> list[_Level]:
    width, height = size_px
    if layout == "strips":
        rows = min(height, max(1, _STRIP_BYTES // (width * pixel_bytes)))
        return [_Level(size_px=size_px, piece_px=(width, rows), groups=pieces.Groups(rows, height))]
    found = []
    while True:
        level = _Level(
            size_px=(width, height),
            piece_px=(TILE_PX, TILE_PX),
            groups=pieces.Groups(TILE_PX, height),
        )
        found.append(level)
        if layout == "tiled" or max(width, height) <= TILE_PX:
            return found
        width, height = -(-width // 2), -(-height // 2)


def _is_big(levels: list[_Level], pixel_bytes: int) -> bool:
    """Whether offsets of 32 bits might not do."""
    limit_bytes = FORMATS["TIFF"].max_raw_bytes
    assert limit_bytes is not None, "TIFF has one"
    whole_px = sum(level.count * math.prod(level.piece_px) for level in levels)
    return whole_px * pixel_bytes > limit_bytes


def _tiles(rows: npt.NDArray) -> Iterator[npt.NDArray]:
    """Copies of the tiles of a row of them, whose last row and column are repeated to fill it."""
    for left in range(0, rows.shape[1], TILE_PX):
        tile = rows[:, left : left + TILE_PX]
        missing = [(0, TILE_PX - n) for n in tile.shape[:2]]
        yield np.pad(tile, (*missing, (0, 0)), mode="edge")


def _halved(rows: npt.NDArray) -> npt.NDArray:
    """Each pixel the mean of four; the last row and column are repeated where they have no pair."""
    rows = np.pad(rows, ((0, rows.shape[0] % 2), (0, rows.shape[1] % 2), (0, 0)), mode="edge")
    sums = rows[::2].astype(np.uint32) + rows[1::2]
    return ((sums[:, ::2] + sums[:, 1::2] + 2) // 4).astype(rows.dtype)
