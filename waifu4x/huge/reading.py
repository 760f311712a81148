"""A picture file becomes a `strips.StripSource`, with the very samples that `pictures.read` gives.

Row by row where libvips reads its kind so, out of memory where the whole input fits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x import failures, pictures
from waifu4x.codecs import metadata
from waifu4x.codecs.decoders import Stored
from waifu4x.errors import PictureReadError
from waifu4x.headers import Header
from waifu4x.huge import kinds, vips
from waifu4x.huge.kinds import Insides
from waifu4x.pictures import Picture
from waifu4x.strips import RowWindow, Strip, StripSource

# Of rows that are read only to be looked at.
_BAND_BYTES = 16 * 2**20
# What decoding takes for each byte of the samples: copies of Pillow and of numpy.
_WHOLE_FACTOR = 5


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A picture whose rows are read when they are asked for."""

    source: StripSource
    facts: Picture
    """All that its file says, around one pixel, which is transparent if any was found to be."""


def why_whole(content: Path | bytes, header: Header) -> str | None:
    """Why a file must be decoded as a whole: "it is interlaced"; None where it need not be.

    Raises:
        PictureReadError: it cannot be read at all.
    """
    if header.format not in vips.LOADERS:
        return f"{header.format} is read as a whole"
    whole = _insides(content, header).whole
    if whole is None and not vips.is_installed():
        return f"reading it in parts takes libvips: {vips.EXTRA}"
    return whole


def memory_bytes(content: Path | bytes, header: Header, *, whole: bool) -> int:
    """Main memory that reading takes at its peak, estimated.

    Raises:
        PictureReadError: as `why_whole`.
    """
    row_bytes = header.width_px * (header.channels + header.has_alpha) * header.depth_bits // 8
    whole_bytes = header.height_px * row_bytes
    if whole:
        return whole_bytes * _WHOLE_FACTOR
    # libvips holds two rows of a TIFF's tiles.
    held_bytes = 2 * _insides(content, header).rows_at_once * row_bytes
    return held_bytes + min(4 * _BAND_BYTES, 2 * whole_bytes)


def read(
    content: Path | bytes, header: Header, *, max_pixels: int, whole: bool, ask_alpha: bool
) -> Reading:
    """Begin to read a file: as far as its colours cannot be told without.

    Args:
        header: what `headers.read` says of it.
        max_pixels: as in `pictures.read`.
        whole: decode all of it now, in memory.
        ask_alpha: whether it matters if any pixel is transparent.

    Raises:
        PictureReadError: what was read is damaged; the source raises it for what comes later.
    """
    if whole:
        picture = pictures.read(content, max_pixels=max_pixels)
        source, facts = PictureSource(picture), picture
    else:
        source, facts = _by_rows(content, header)
    alpha = None
    if source.has_alpha:
        is_clear = ask_alpha and not all(_is_opaque(strip) for strip in _bands(source))
        alpha = np.full((1, 1), 0 if is_clear else np.iinfo(source.dtype).max, dtype=source.dtype)
    pixel = np.zeros((1, 1, source.channels), dtype=source.dtype)
    return Reading(source=source, facts=dataclasses.replace(facts, pixels=pixel, alpha=alpha))


class PictureSource:
    """A picture that lies in memory."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self.width_px, self.height_px = picture.width_px, picture.height_px
        self.channels = picture.pixels.shape[2]
        self.has_alpha = picture.alpha is not None
        self.dtype = picture.pixels.dtype

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[int, int], Strip]]:
        """See `strips.StripSource`."""
        pixels, alpha = self._picture.pixels, self._picture.alpha

        def rows(start: int, stop: int) -> Strip:
            return Strip(pixels[start:stop], None if alpha is None else alpha[start:stop])

        yield rows


@dataclass(frozen=True, kw_only=True)
class Development:
    """How samples as libvips gives them become pixels."""

    is_cmyk: bool = False
    cmyk_profile: bytes | None = None
    channels: int | None = None
    """1 or 3 for a palette, whichever of them libvips made of it."""
    is_mirrored: bool = False
    profile: bytes | None = None
    """Of RGB that becomes sRGB."""

    def __call__(self, samples: npt.NDArray) -> Strip:
        """(n, w, S) to pixels and alpha."""
        alpha = None
        if self.is_cmyk:
            pixels = self._from_cmyk(samples)
        elif samples.shape[2] in (2, 4):
            pixels, alpha = samples[..., :-1], samples[..., -1]
        else:
            pixels = samples
        if self.channels == 1:
            pixels = pixels[..., :1]
        elif self.channels == 3 and pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if self.is_mirrored:
            pixels = pixels[:, ::-1]
            alpha = None if alpha is None else alpha[:, ::-1]
        if self.profile is not None:
            pixels = metadata.to_srgb(np.ascontiguousarray(pixels), self.profile)
        return Strip(pixels, alpha)

    def _from_cmyk(self, samples: npt.NDArray) -> npt.NDArray:
        image = as_cmyk(samples)
        if self.cmyk_profile is None:
            return np.asarray(image.convert("RGB"))
        return metadata.cmyk_to_srgb(image, self.cmyk_profile)


class FileSource:
    """A picture that is decoded anew with every `open`."""

    def __init__(self, content: Path | bytes, header: Header, develop: Development) -> None:
        """Raises PictureReadError: not even the first row can be read."""
        self.develop = develop
        self._content, self._format = content, header.format
        self.width_px, self.height_px = header.width_px, header.height_px
        with self._decoding() as decoding:
            self.first = decoding.next_rows(1)[:, :1].copy()
        strip = develop(self.first)
        self.channels, self.has_alpha = strip.pixels.shape[2], strip.alpha is not None
        self.dtype = strip.pixels.dtype

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[int, int], Strip]]:
        """See `strips.StripSource`."""
        with self._decoding() as decoding:
            window = RowWindow(
                lambda start, stop: decoding.next_rows(stop - start), self.height_px
            ).reader()

            def rows(start: int, stop: int) -> Strip:
                return self.develop(window(start, stop))

            yield rows

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[vips.Decoding]:
        with vips.opened(self._content, self._format) as decoding:
            if (decoding.width_px, decoding.height_px) != (self.width_px, self.height_px):
                name = failures.shown(self._content)
                raise PictureReadError(f"{name} was changed while it was read: do it again")
            yield decoding


def as_cmyk(samples: npt.NDArray) -> Image.Image:
    """(n, w, 4) uint8 as Pillow has such pictures."""
    return Image.frombytes("CMYK", samples.shape[1::-1], np.ascontiguousarray(samples).data)


def _insides(content: Path | bytes, header: Header) -> Insides:
    with pictures.opened(content) as stream:
        return kinds.read(stream, header.format)


def _bands(source: StripSource) -> Iterator[Strip]:
    """All of a picture, some rows at a time."""
    row_bytes = source.width_px * (source.channels + source.has_alpha) * source.dtype.itemsize
    step = max(1, _BAND_BYTES // row_bytes)
    with source.open() as rows:
        for top in range(0, source.height_px, step):
            yield rows(top, min(top + step, source.height_px))


def _by_rows(content: Path | bytes, header: Header) -> tuple[FileSource, Picture]:
    """The source, and what the file says: see `pictures.upright`."""
    insides = _insides(content, header)
    profile = insides.info.get("icc_profile")
    develop = Development(
        is_cmyk=insides.is_cmyk,
        channels=3 if insides.is_palette else None,
        is_mirrored=insides.orientation == 2,
    )
    source = FileSource(content, header, develop)
    if insides.is_palette and not profile and all(map(_is_neutral, _bands(source))):
        # As `decoders` has it: a palette is gray where all that it is used for is.
        source = FileSource(content, header, dataclasses.replace(develop, channels=1))
    if insides.is_cmyk and profile and _is_usable(profile, source.first):
        source.develop = dataclasses.replace(develop, cmyk_profile=profile)
    pixel = source.develop(source.first)
    facts = _upright(pixel, insides, header, cmyk=source.first)
    if facts.icc_profile is not None and not facts.in_profile_space and not insides.is_cmyk:
        strips = (strip.pixels for strip in _bands(source))
        outside = next((s for s in strips if not _survives(s, facts.icc_profile)), None)
        if outside is None:
            source.develop = dataclasses.replace(develop, profile=facts.icc_profile)
        else:
            pixel = pixel._replace(pixels=_pixel_outside(outside, facts.icc_profile))
            facts = _upright(pixel, insides, header)
    return source, facts


def _upright(
    pixel: Strip, insides: Insides, header: Header, *, cmyk: npt.NDArray | None = None
) -> Picture:
    """What `pictures.read` would decide for a picture of this one pixel."""
    stored = Stored(
        pixels=pixel.pixels,
        alpha=pixel.alpha,
        format=header.format,
        info=insides.info,
        exif=insides.exif,
        cmyk=as_cmyk(cmyk) if insides.is_cmyk and cmyk is not None else None,
        frames_total=insides.frames_total,
    )
    return pictures.upright(stored)


def _is_usable(profile: bytes, cmyk: npt.NDArray) -> bool:
    try:
        metadata.cmyk_to_srgb(as_cmyk(cmyk), profile)
    except ValueError:
        return False
    return metadata.profile_space(profile) == "CMYK"


def _survives(pixels: npt.NDArray, profile: bytes) -> bool:
    pixels = np.ascontiguousarray(pixels)
    return metadata.survives_srgb(pixels, metadata.to_srgb(pixels, profile), profile)


def _pixel_outside(pixels: npt.NDArray, profile: bytes) -> npt.NDArray:
    """One of the pixels that sRGB cannot hold, (1, 1, 3)."""
    line = pixels.reshape(1, -1, 3)
    while line.shape[1] > 1:
        half = line[:, : line.shape[1] // 2]
        line = line[:, half.shape[1] :] if _survives(half, profile) else half
    return line


def _is_neutral(strip: Strip) -> bool:
    return bool((strip.pixels[..., :1] == strip.pixels[..., 1:]).all())


def _is_opaque(strip: Strip) -> bool:
    return strip.alpha is None or bool((strip.alpha == np.iinfo(strip.alpha.dtype).max).all())
