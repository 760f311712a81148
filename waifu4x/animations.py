"""Animations and pages: every picture of a file becomes a Picture, and a file of the same kind.

What a single picture is, how its colours are managed and what a failure is called is decided in
`pictures`; the work on bytes is in `sequences` and `gif_writer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from waifu4x import pictures
from waifu4x.codecs import decoders, formats, gif_writer
from waifu4x.codecs.encoders import Encodable, encode_tiff
from waifu4x.codecs.formats import FORMATS, format_of
from waifu4x.errors import PictureError, PictureWriteError
from waifu4x.failures import RefusedError
from waifu4x.pictures import Picture
from waifu4x.sequences import apng, avif, gif, in_ticks, split, tiff, webp
from waifu4x.sequences.outlines import check_limits, outline

MAX_PIXELS = 4 * pictures.MAX_PIXELS
"""The default limit of `read` for all frames together: a gigabyte as RGB."""
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
"""The formats that hold animations. The one that holds pages is TIFF."""

_DECODERS = {"GIF": gif.decode, "PNG": apng.decode, "WEBP": webp.decode, "AVIF": avif.decode}


@dataclass(frozen=True, kw_only=True)
class Animation:
    """All pictures of one file: the frames of an animation, or pages."""

    frames: tuple[Picture, ...]
    """Frames are whole, as they are to be shown, and alike in size, channels and depth; if one is
    transparent, all have alpha. Pages are as they are, each with its own metadata."""
    durations_ms: tuple[float, ...] = ()
    """How long each frame stays; none for pages. Whole numbers but for APNG, which has fractions
    of seconds such as 1/30."""
    loop: int = 0
    """How often an animation is shown; 0 for ever. A GIF that does not mention it is shown once."""
    format: str
    """Pillow's name of the format it was read from, such as "GIF"."""
    kind: Literal["animation", "pages"] = "animation"

    def __post_init__(self) -> None:
        if not self.frames:
            raise PictureError("an animation has at least one frame")
        if self.kind == "pages":
            return
        looks = {(f.pixels.shape, f.pixels.dtype, f.alpha is None) for f in self.frames}
        if len(looks) > 1:
            raise PictureError("all frames are of one size, mode and depth, and these are not")
        if len(self.durations_ms) != len(self.frames):
            raise PictureError(
                f"{len(self.frames)} frames need as many durations, not {len(self.durations_ms)}"
            )
        if not all(0 <= duration <= apng.MAX_DELAY_MS for duration in self.durations_ms):
            raise PictureError(f"a frame stays 0 to {apng.MAX_DELAY_MS:,} ms")
        if self.loop < 0:
            raise PictureError(f"an animation is shown 0 (for ever) or more times, not {self.loop}")

    def with_frames(self, frames: Sequence[Picture]) -> Animation:
        """The same animation, timing and all, of other pictures, as many as before."""
        return dataclasses.replace(self, frames=tuple(frames))


def count_frames(source: Path | bytes | BinaryIO) -> int:
    """How many frames or pages `read` would give, without decoding them.

    1 for everything else, also for what is no picture: `pictures.read` says what it is. Raises
    PictureReadError where the file cannot be opened, or where frames are missing.
    """
    with pictures.opened(source) as stream:
        return outline(stream)[1].frames


def read(source: Path | bytes | BinaryIO, *, max_pixels: int | None = None) -> Animation:
    """Decode all frames or all pages; a still picture comes as one page.

    max_pixels: of all frames together; by default MAX_PIXELS, and `pictures.MAX_PIXELS` for each.
    Raises PictureReadError as `pictures.read` does, and where one of the frames is damaged or
    missing, or they are more than `outlines.MAX_FRAMES`. Limits are compared with the header,
    before anything is decoded.
    """
    each = pictures.MAX_PIXELS if max_pixels is None else max_pixels
    with pictures.opened(source) as stream:
        format, found = outline(stream)
        check_limits(found, MAX_PIXELS if max_pixels is None else max_pixels)
        if found.frames > 1 and found.largest > each:
            raise RefusedError(
                f"has a frame or page of {found.largest:,} pixels, more than the limit of "
                f"{each:,}; if that is meant to be, raise it with --max-pixels"
            )
        stream.seek(0)
        if format in _DECODERS and found.frames > 1:
            film = _DECODERS[format](stream)
            return Animation(
                frames=_uprights(film.frames),
                durations_ms=film.durations_ms,
                loop=film.plays,
                format=format,
            )
        if format == "TIFF" and found.frames > 1:
            stored = tiff.decode(stream, max_pixels=each)
        else:
            stored = [decoders.decode(stream, max_pixels=each)]
        frames = tuple(map(pictures.upright, stored))
        return Animation(frames=frames, format=stored[0].format, kind="pages")


def encode(
    animation: Animation,
    *,
    format: str | None = None,
    quality: int | None = None,
    lossless: bool = False,
    strip_metadata: bool = False,
) -> bytes:
    """The animation, or the pages, as the bytes of a file; by default of the format they had.

    All frames, all durations and the number of plays are kept, as far as the format can say them:
    GIF has steps of 10 ms and WebP and AVIF of 1 ms (rounding never adds up), AVIF turns 0 ms into
    1, GIF and WebP can repeat 65,535 times. A frame that stays longer than GIF or WebP can say is
    stored several times.
    quality, lossless, strip_metadata: as in `pictures.encode`. Raises what `check_writable_as`
    raises, and PictureWriteError.
    """
    name = animation.format if format is None else format_of(format)
    check_writable_as(animation, name, quality=quality, lossless=lossless)
    if len(animation.frames) == 1:
        return pictures.encode(
            animation.frames[0],
            format=name,
            quality=quality,
            lossless=lossless,
            strip_metadata=strip_metadata,
        )
    with pictures.encoding(name):
        contents = [
            # Animations have metadata once, with the first frame.
            pictures.encodable(
                frame, name, strip=strip_metadata or (k > 0 and animation.kind == "animation")
            )
            for k, frame in enumerate(animation.frames)
        ]
        if animation.kind == "pages":
            return encode_tiff(contents)
        return _encode_frames(contents, animation, name, quality=quality, lossless=lossless)


def write(
    animation: Animation,
    target: Path,
    *,
    format: str | None = None,
    quality: int | None = None,
    lossless: bool = False,
    strip_metadata: bool = False,
) -> None:
    """Write `encode`'s bytes to `target`, whole or not at all; its folder must exist.

    format: by default what the suffix of `target` says. Raises what `encode` raises; after any
    error an existing `target` is guaranteed to be untouched.
    """
    data = encode(
        animation,
        format=format if format is not None else format_of(target.name),
        quality=quality,
        lossless=lossless,
        strip_metadata=strip_metadata,
    )
    pictures.store(data, target)


def check_writable_as(
    animation: Animation,
    format: str,
    *,
    sizes_px: Sequence[tuple[int, int]] | None = None,
    quality: int | None = None,
    lossless: bool = False,
) -> None:
    """Refuse what the encoder could not hold: to be asked before any work is done.

    sizes_px: (width, height) that each frame or page will have; by default, what they have. Raises
    PictureWriteError, or UsageError, as `formats.check_writable_as` does.
    """
    name = format_of(format)
    facts = FORMATS[name]
    count = len(animation.frames)
    if count > 1 and animation.kind == "pages" and name != "TIFF":
        raise PictureWriteError(
            f"{name} holds one picture, not {count} pages: choose TIFF with --format"
        )
    if count > 1 and animation.kind == "animation" and name not in ANIMATED:
        raise PictureWriteError(
            f"{name} holds no animation: choose GIF, PNG, WebP or AVIF with --format"
        )
    if sizes_px is None:
        sizes_px = [(frame.width_px, frame.height_px) for frame in animation.frames]
    raw_bytes = 0
    for frame, (width_px, height_px) in zip(animation.frames, sizes_px, strict=True):
        channels = frame.pixels.shape[2]
        formats.check_writable_as(
            name,
            width_px,
            height_px,
            transparent=frame.is_transparent,
            channels=channels,
            depth_bits=frame.depth_bits,
            quality=quality,
            lossless=lossless,
        )
        raw_bytes += width_px * height_px * (channels + 1) * frame.depth_bits // 8
    if animation.kind == "pages" and facts.max_raw_bytes is not None and count > 1:
        limit = facts.max_raw_bytes
        if raw_bytes > limit:
            raise PictureWriteError(
                f"{name} holds at most {limit / 1024**3:.1f} GiB of pixels, and {count} pages of "
                "this size could have more; choose a smaller scale"
            )


def losses(animation: Animation, format: str, *, strip_metadata: bool = False) -> tuple[str, ...]:
    """What writing as `format` will not keep, one sentence each; to be told to the user."""
    name = format_of(format)
    asked = animation.frames if animation.kind == "pages" else animation.frames[:1]
    found = [
        loss
        for frame in asked
        for loss in pictures.losses(frame, name, strip_metadata=strip_metadata)
    ]
    if name == "GIF" and animation.kind == "animation":
        contents = (pictures.encodable(frame, name, strip=True) for frame in animation.frames)
        found += gif_writer.losses(content.samples for content in contents)
        if any(duration % 10 for duration in animation.durations_ms):
            found.append("GIF counts time in hundredths of a second: the durations were rounded")
    return tuple(dict.fromkeys(found))


def _uprights(stored: list[decoders.Stored]) -> tuple[Picture, ...]:
    frames = [pictures.upright(frame) for frame in stored]
    if len({frame.in_profile_space for frame in frames}) > 1:
        # Colours outside sRGB in one frame: all stay as they are, or the animation would flicker.
        frames = [pictures.upright(frame, keep_space=True) for frame in stored]
    return tuple(frames)


def _encode_frames(
    contents: list[Encodable],
    animation: Animation,
    name: str,
    *,
    quality: int | None,
    lossless: bool,
) -> bytes:
    loop = animation.loop
    if name == "PNG":
        plays = min(loop, apng.MAX_PLAYS)
        return apng.encode(contents, animation.durations_ms, plays=plays)
    ticks = in_ticks(animation.durations_ms, tick_ms=10 if name == "GIF" else 1)
    if name == "AVIF":
        return avif.encode(contents, ticks, plays=loop, quality=quality)
    most = gif_writer.MAX_DELAY_CS if name == "GIF" else webp.MAX_DURATION_MS
    parts = split(ticks, most=most)
    contents = [content for content, own in zip(contents, parts, strict=True) for _ in own]
    ticks = [part for own in parts for part in own]
    if name == "GIF":
        frames = [content.samples for content in contents]
        return gif_writer.encode(frames, delays_cs=ticks, plays=min(loop, gif_writer.MAX_PLAYS))
    plays = min(loop, webp.MAX_PLAYS)
    return webp.encode(contents, ticks, plays=plays, quality=quality, lossless=lossless)
