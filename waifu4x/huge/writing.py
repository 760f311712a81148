"""Strips become a picture file, encoded as they come: PNG, TIFF and JPEG, never held as a whole.

WebP's encoder takes whole pictures only; the strips of one are collected. What is written has the
pixels and the tags that `pictures.encode` would give it, and its bytes do not depend on how the
strips were cut: those of a PNG, and of a TIFF in strips, are the very same.
"""

from __future__ import annotations

import dataclasses
import io
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from waifu4x import pictures
from waifu4x.codecs import encoders, png_stream
from waifu4x.codecs.encoders import Encodable
from waifu4x.huge import jpeg, pieces, tiff
from waifu4x.huge.tiff import Layout
from waifu4x.pictures import Picture
from waifu4x.strips import Strip

FORMATS = ("PNG", "TIFF", "JPEG", "WEBP")
"""What can be written so."""

_IN_STRIPS_FROM_PX = 2**26
# Of samples as they will be stored, on their way to an encoder.
_BAND_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**20
# Of WebP beside its samples: Pillow's copy, libwebp's, and what it finds out about it.
_WEBP_BYTES_PER_PX = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a file is written; see `pictures.encode`."""

    format: str
    quality: int | None = None
    lossless: bool = False
    strip_metadata: bool = False
    background: tuple[int, int, int] | None = None
    layout: Layout | None = None
    """Of a TIFF; None is by its size: `tiff.layout_for`."""


def is_in_strips(settings: Settings, picture: Picture) -> bool:
    """Whether a picture that lies in memory is to be written as its strips would be.

    Large ones, so that a file's bytes do not depend on how much memory was free; and what the
    encoders of `pictures` do not make.
    """
    size_px = picture.width_px, picture.height_px
    if settings.format == "TIFF":
        count = picture.pixels.shape[2] + (picture.alpha is not None)
        pixel_bytes = count * picture.pixels.itemsize
        return tiff.layout_for(size_px, pixel_bytes, settings.layout) != "strips"
    return settings.format == "JPEG" and size_px[0] * size_px[1] >= _IN_STRIPS_FROM_PX


def memory_bytes(settings: Settings, size_px: tuple[int, int], pixel_bytes: int) -> int:
    """Main memory that writing takes at its peak beside the strips, estimated."""
    width_px, height_px = size_px
    whole_bytes, row_bytes = width_px * height_px * pixel_bytes, width_px * pixel_bytes
    if settings.format == "WEBP":
        return whole_bytes + width_px * height_px * _WEBP_BYTES_PER_PX
    under_way_bytes = png_stream.UNDER_WAY_BYTES
    if settings.format == "JPEG":
        piece_bytes = jpeg.PIECE_PX * row_bytes
        under_way_bytes = (pieces.threads_for(piece_bytes) + 2) * piece_bytes
    elif settings.format == "TIFF":
        # Of the rows of tiles in all sizes of a pyramid the first takes half.
        under_way_bytes += 3 * tiff.TILE_PX * row_bytes
    return 2 * min(whole_bytes, under_way_bytes) + min(4 * _BAND_BYTES, 2 * whole_bytes)


@contextmanager
def writing(
    target: Path, facts: Picture, size_px: tuple[int, int], settings: Settings
) -> Iterator[Callable[[Strip], None]]:
    """Write a file: what is given takes its strips, from top to bottom.

    It returns when nothing of the strip is held any more; the last parts may then still be encoded.
    Encoders take locks that must not be lost to a signal, so they run in a thread of their own, and
    between it and this one are only queues that are made for that: see `batch.run`.

    Args:
        target: written over; after an error part of a file is left there.
        facts: all that there is to the picture but its pixels, around one of them, which is
            transparent if any is. What the format can hold is to be asked beforehand.
        size_px: (width, height).

    Raises:
        PictureWriteError: an encoder failed.
        OSError: the file cannot be written.
    """
    handover = _Handover()

    def write() -> None:
        with target.open("wb", buffering=_BUFFER_BYTES) as file:
            _write(file, handover.strips(), facts, size_px, settings)

    thread = threading.Thread(target=handover.run, args=[write], name="write", daemon=True)
    thread.start()
    try:
        yield handover.give
        handover.give(None)
    finally:
        handover.stop()
        thread.join()


def encode(picture: Picture, settings: Settings) -> bytes:
    """A picture that lies in memory as the bytes of a file: those that its strips would become.

    Raises PictureWriteError.
    """
    file, alpha = io.BytesIO(), picture.alpha
    if alpha is not None:
        most = np.iinfo(alpha.dtype).max
        alpha = np.full((1, 1), 0 if picture.is_transparent else most, dtype=alpha.dtype)
    facts = dataclasses.replace(picture, pixels=picture.pixels[:1, :1], alpha=alpha)
    strip = Strip(picture.pixels, picture.alpha)
    _write(file, [strip], facts, (picture.width_px, picture.height_px), settings)
    return file.getvalue()


class _StoppedError(Exception):
    """No more strips will come."""


class _Handover:
    """Strips go from one thread to another, one at a time."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[Strip | _StoppedError | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def give(self, strip: Strip | None) -> None:
        """Wait until it was taken in; None is the end. Raises what went wrong there."""
        self._given.put(strip)
        del strip
        answer = self._answers.get()
        if answer is not None:
            raise answer

    def stop(self) -> None:
        """Whoever still waits for strips is to give up."""
        self._given.put(_StoppedError())

    def strips(self) -> Iterator[Strip]:
        """In the other thread: what was given."""
        while (strip := self._given.get()) is not None:
            if isinstance(strip, _StoppedError):
                raise strip
            yield strip
            del strip
            self._answers.put(None)

    def run(self, write: Callable[[], None]) -> None:
        """In the other thread: `write`, and whoever gives strips hears how it ended."""
        try:
            write()
        except BaseException as error:
            self._answers.put(error)
        else:
            self._answers.put(None)


def _write(
    file: BinaryIO,
    strips: Iterable[Strip],
    facts: Picture,
    size_px: tuple[int, int],
    settings: Settings,
) -> None:
    content = _content(facts, size_px, settings)
    samples = _stored(strips, facts, content, settings)
    if settings.format == "PNG":
        with pictures.encoding("PNG"):
            head = encoders.png_head(content, (size_px[1], size_px[0], content.samples.shape[2]))
        file.write(head)
        file.writelines(png_stream.idat(samples, threads=png_stream.THREADS))
        file.write(png_stream.END)
    elif settings.format == "TIFF":
        tiff.write(file, samples, size_px, content, layout=settings.layout)
    elif settings.format == "JPEG":
        file.writelines(jpeg.encoded(samples, size_px, content, quality=settings.quality))
    else:
        file.write(_encoded_whole(samples, size_px, content, settings))


def _content(facts: Picture, size_px: tuple[int, int], settings: Settings) -> Encodable:
    """One pixel as it will be stored, and the tags of the whole."""
    name = settings.format
    with pictures.encoding(name):
        stored = pictures.encodable(facts, name, strip=True, background=settings.background)
        # Its size is what tags speak of; it takes no memory.
        sized = Picture(
            pixels=np.broadcast_to(np.uint8(0), (size_px[1], size_px[0], 3)),
            exif=facts.exif,
            xmp=facts.xmp,
            dpi=facts.dpi,
        )
        tags = pictures.encodable(sized, name, strip=settings.strip_metadata)
    return dataclasses.replace(tags, samples=stored.samples, icc_profile=stored.icc_profile)


def _stored(
    strips: Iterable[Strip], facts: Picture, content: Encodable, settings: Settings
) -> Iterator[npt.NDArray]:
    """Copies of their rows, a few at a time, as `content` is stored."""
    one = content.samples[0, 0]

    def copied(strip: Strip, rows: slice) -> npt.NDArray:
        alpha = None if strip.alpha is None else strip.alpha[rows]
        band = facts.with_pixels(strip.pixels[rows], alpha)
        samples = pictures.encodable(
            band, settings.format, strip=True, background=settings.background
        ).samples
        if samples.shape[2] == len(one):
            return samples.copy()
        # A background of some colour made RGB of gray, but not here, where all is opaque.
        return np.repeat(samples, len(one), axis=2)

    for strip in strips:
        rows_px = max(1, _BAND_BYTES // (strip.pixels.shape[1] * one.nbytes))
        for top in range(0, len(strip.pixels), rows_px):
            yield copied(strip, slice(top, top + rows_px))
        # It is large, and the next one is about to be made: nothing may hold it any more.
        del strip


def _encoded_whole(
    samples: Iterable[npt.NDArray],
    size_px: tuple[int, int],
    content: Encodable,
    settings: Settings,
) -> bytes:
    one = content.samples
    whole, done = np.empty((size_px[1], size_px[0], one.shape[2]), dtype=one.dtype), 0
    for rows in samples:
        whole[done : done + len(rows)] = rows
        done += len(rows)
    with pictures.encoding(settings.format):
        return encoders.encode_samples(
            dataclasses.replace(content, samples=whole),
            settings.format,
            quality=settings.quality,
            lossless=settings.lossless,
        )
