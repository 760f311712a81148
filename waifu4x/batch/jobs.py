"""One file to be enlarged, and what its header says about what that takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from waifu4x import animations, archives, failures, headers
from waifu4x.batch.journal import Line
from waifu4x.batch.request import STREAM, Request
from waifu4x.batch.sources import Source
from waifu4x.codecs import formats
from waifu4x.errors import PictureReadError, PictureWriteError, UsageError, Waifu4xError
from waifu4x.headers import Header
from waifu4x.remote.ranged import Ranged
from waifu4x.remote.urls import Location
from waifu4x.upscaler import Upscaler

# Bytes for a pixel of an enlarged photo, as this program writes it; drawings need half of that.
_BYTES_PER_PX = {"PNG": 1.2, "TIFF": 1.3, "JPEG": 0.3, "WEBP": 0.15, "AVIF": 0.15, "HEIF": 0.15}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to be enlarged, and all that is decided about it.

    Where it lies is told by paths and URLs alone, so it can be sent to another process.
    """

    source: Source
    data: bytes | None = None
    """What standard input gave; `source` is only a name then."""
    header: Header
    """Of an archive: of its first picture."""
    members: int | None = None
    """How many pictures an archive holds; None for everything else."""
    format: str
    """To write; of an archive's first picture."""
    size_px: tuple[int, int]
    """(width, height) of the output."""
    passes: tuple[float, ...]
    target: Location | None
    """None is standard output."""
    memory_bytes: int
    streamed: bool = False
    """It is made in strips: memory could not hold it."""
    reads_whole: bool = False
    """It is streamed, but its file has to be decoded as a whole."""
    line: Line | None = None
    """What the journal will say when it is done; None where none is kept."""

    @property
    def name(self) -> str:
        """Of the input, for messages: one printable line."""
        return STREAM if self.data is not None else failures.shown(self.source.path)

    @property
    def frames(self) -> int:
        """How many pictures go through the network."""
        return self.header.frames * (self.members or 1)

    @property
    def output_px(self) -> int:
        return self.size_px[0] * self.size_px[1] * self.frames

    @property
    def output_bytes(self) -> int:
        """An estimate of the size of the output."""
        raw = (self.header.channels + self.header.has_alpha) * self.header.depth_bits // 8
        each = raw if self.format == "BMP" else _BYTES_PER_PX.get(self.format, 1.0)
        return int(self.output_px * each * self.header.depth_bits / 8)


def archive_header(
    path: Location, *, max_pixels: int | None, content: Path | Ranged | None = None
) -> tuple[Header, int]:
    """The header of the first picture of an archive, and how many there are.

    content: where it is read; by default `path`, which is only a name otherwise.
    """
    if content is None:
        assert isinstance(path, Path), "what lies in a store is read from a stream"
        content = path
    stored = cast("Path | BinaryIO", content)
    names = archives.member_names(stored)
    count = sum(map(archives.named_like_a_picture, names))
    if not count:
        raise PictureReadError(f"{failures.shown(path)} holds no pictures")
    for member in archives.read_members(stored):
        if member.is_picture:
            try:
                return headers.read(member.data, max_pixels=max_pixels), count
            except PictureReadError as error:
                raise in_member(path, member.name, error) from error
    raise AssertionError("one of its names is a picture's")


def in_member(path: Location, member: str, error: Waifu4xError) -> Waifu4xError:
    """The same error, about a member of an archive."""
    name = f"{failures.shown(path)}, {failures.one_line(member)}"
    text = str(error)
    rest = text.removeprefix("the picture ")
    return type(error)(f"{name} {rest}" if rest != text else f"{name}: {text}")


def named(error: Waifu4xError, *names: str) -> Waifu4xError:
    """The same error, and its message says which file it is about: the first of `names`.

    Where it names one of them already it stays as it is.
    """
    text = str(error)
    return error if any(name in text for name in names) else type(error)(f"{names[0]}: {text}")


def check_writable(
    header: Header,
    format: str,
    size_px: tuple[int, int],
    request: Request,
    *,
    transparent: bool = False,
) -> None:
    """Refuse what `format` could not hold. Raises PictureWriteError or UsageError."""
    several = header.frames > 1
    if several and header.kind == "animation" and format not in animations.ANIMATED:
        raise PictureWriteError(
            f"{format} holds no animation: choose GIF, PNG, WebP or AVIF with --format, or take "
            f"the first frame with --first-frame"
        )
    if several and header.kind == "pages" and format != "TIFF":
        raise PictureWriteError(
            f"{format} holds one picture, not {header.frames} pages: choose TIFF with --format, or "
            f"take the first with --first-frame"
        )
    if request.encoding.layout is not None and (format != "TIFF" or several):
        raise UsageError(
            "--tiff is about how one picture is written as a TIFF: add -f tiff, or leave it out"
        )
    # A single picture is a BigTIFF where 4 GiB are not enough, and only its sides have a limit.
    width_px, height_px = size_px
    is_big = format == "TIFF" and not several
    for part_px in [(width_px, 1), (1, height_px)] if is_big else [size_px]:
        formats.check_writable_as(
            format,
            *part_px,
            transparent=transparent,
            channels=header.channels,
            depth_bits=header.depth_bits,
            quality=request.encoding.quality,
            lossless=request.encoding.lossless,
            background=request.encoding.background,
        )


def memory_bytes(upscaler: Upscaler, header: Header, size_px: tuple[int, int]) -> int:
    """Main memory that a file takes at its peak, all frames together, estimated."""
    samples = (header.channels + header.has_alpha) * header.depth_bits // 8
    others = header.frames - 1
    frame_bytes = (header.width_px * header.height_px + size_px[0] * size_px[1]) * samples
    return upscaler.memory_bytes(header, size_px) + others * frame_bytes
