"""A file becomes a Picture, a Picture becomes a file; content decides the format, not the name.

Here are the decisions: orientation, colour management, what a format cannot hold, what a failure is
called. The work on bytes is in `decoders` and `encoders`, the tags' in `metadata`.
"""

from __future__ import annotations

import dataclasses
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from waifu4x import failures, files
from waifu4x.codecs import decoders, gif_writer, metadata
from waifu4x.codecs.encoders import Encodable, encode_samples
from waifu4x.codecs.formats import FORMATS, check_writable_as, format_of
from waifu4x.errors import PictureError, PictureReadError, PictureWriteError

MAX_PIXELS = 89_478_485
"""The default limit of `read`: Pillow's own, a quarter of a gigabyte as RGB."""

_WITHOUT_GRAY_ALPHA = ("WEBP", "AVIF", "HEIF")
# Correcting sizes and adding a resolution lengthens EXIF and XMP a little.
_METADATA_SLACK_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One upright picture in memory, with everything its file said about it."""

    pixels: np.ndarray
    """(H, W, C) uint8 or uint16, C = 1 gray or C = 3 RGB: sRGB, but see `in_profile_space`."""
    alpha: np.ndarray | None = None
    """(H, W), same dtype; straight, that is: `pixels` are not multiplied with it."""
    icc_profile: bytes | None = None
    """The file's profile, GRAY or RGB as the pixels are; it is embedded again on writing."""
    in_profile_space: bool = False
    """`pixels` are values of `icc_profile` itself, because it is gray, or means sRGB, or because
    sRGB cannot hold the picture's colours and converting would have clipped them."""
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    format: str | None = None
    """Pillow's name of the format it was read from, such as "PNG"."""
    frames_total: int = 1
    """More than 1 for an animation or several pages, of which this is the first."""
    notes: tuple[str, ...] = ()
    """What was lost or assumed while reading, one sentence each."""

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
            raise PictureError(f"pixels are (H, W, 1) or (H, W, 3), not {pixels.shape}")
        if pixels.dtype not in (np.uint8, np.uint16):
            raise PictureError(f"pixels are uint8 or uint16, not {pixels.dtype}")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise PictureError(
                f"alpha is {pixels.shape[:2]} {pixels.dtype}, not {alpha.shape} {alpha.dtype}"
            )

    @property
    def width_px(self) -> int:
        return self.pixels.shape[1]

    @property
    def height_px(self) -> int:
        return self.pixels.shape[0]

    @property
    def depth_bits(self) -> int:
        return self.pixels.itemsize * 8

    @property
    def is_gray(self) -> bool:
        return self.pixels.shape[2] == 1

    @property
    def is_transparent(self) -> bool:
        """Some pixel is not fully opaque."""
        return self.alpha is not None and bool((self.alpha < np.iinfo(self.alpha.dtype).max).any())

    def with_pixels(self, pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
        """The same picture, metadata and all, with other pixels, of any size and either depth.

        A profile goes, with a note, where gray became colour or colour gray: it no longer fits.
        """
        changed = dataclasses.replace(self, pixels=pixels, alpha=alpha)
        if self.icc_profile is None or changed.is_gray == self.is_gray:
            return changed
        note = "its ICC profile was left out: it does not fit the new number of channels"
        return dataclasses.replace(
            changed, icc_profile=None, in_profile_space=False, notes=(*self.notes, note)
        )


def read(source: str | Path | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the picture in a file (a text is its path), in bytes or in a stream, read to its end.

    Orientation is applied. Colour is converted to sRGB (see `Picture.in_profile_space`). Raises
    PictureReadError, and nothing else, for whatever is wrong with the source: it is missing, no
    regular file, empty, no picture of a known format, damaged, cut off, or has more than
    `max_pixels` pixels (known from its header, before anything is decoded).
    """
    with opened(Path(source) if isinstance(source, str) else source) as stream:
        return upright(decoders.decode(stream, max_pixels=max_pixels))


@contextmanager
def opened(source: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a seekable stream, to be decoded within; every failure is a PictureReadError.

    Meanwhile Pillow has no limit of its own (see `decoders.quiet_pillow`).
    """
    name = failures.shown(source)
    try:
        if isinstance(source, Path):
            # A FIFO would wait for a writer that never comes; a device may never end.
            if not stat.S_ISREG(source.stat().st_mode) and not source.is_dir():
                raise PictureReadError(f"{name} is no regular file: name a picture, or - for stdin")
            with source.open("rb") as stream, decoders.quiet_pillow():
                yield stream
            return
        data = source if isinstance(source, bytes) else source.read()
        with decoders.quiet_pillow():
            yield io.BytesIO(data)
    except PictureReadError:
        raise
    except failures.RefusedError as error:
        raise PictureReadError(f"{name} {error}") from error
    except ModuleNotFoundError as error:
        raise PictureReadError(f"{name}: {failures.missing_module(error)}") from error
    except failures.UNREADABLE as error:
        raise PictureReadError(f"{name} {failures.read_failure(error)}") from error


def encode(
    picture: Picture,
    *,
    format: str,
    quality: int | None = None,
    lossless: bool = False,
    strip_metadata: bool = False,
    background: tuple[int, int, int] | None = None,
) -> bytes:
    """The picture as the bytes of a file in `format`.

    quality: 1..100, ignored by formats that lose nothing anyway. strip_metadata leaves EXIF, XMP
    and resolution out; the ICC profile stays, being a part of the colours. background: as in
    `check_writable_as`. Raises what `check_writable_as` raises, and PictureWriteError.
    """
    name = format_of(format)
    check_writable_as(
        name,
        picture.width_px,
        picture.height_px,
        transparent=picture.is_transparent,
        channels=picture.pixels.shape[2],
        depth_bits=picture.depth_bits,
        quality=quality,
        lossless=lossless,
        background=background,
    )
    with encoding(name):
        content = encodable(picture, name, strip=strip_metadata, background=background)
        return encode_samples(content, name, quality=quality, lossless=lossless)


@contextmanager
def encoding(name: str) -> Iterator[None]:
    """Every failure of an encoder within is a PictureWriteError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PictureWriteError(failures.missing_module(error)) from error
    except (*metadata.DAMAGED_TAGS, RuntimeError) as error:
        raise PictureWriteError(
            f"the {name} encoder failed ({failures.one_line(error)}); try PNG, or --strip-metadata"
        ) from error


def write(
    picture: Picture,
    target: str | Path,
    *,
    format: str | None = None,
    quality: int | None = None,
    lossless: bool = False,
    strip_metadata: bool = False,
    background: tuple[int, int, int] | None = None,
) -> None:
    """Write `encode`'s bytes to `target`, whole or not at all; its folder must exist.

    format: by default what the suffix of `target` says. Raises what `encode` raises; after any
    error an existing `target` is guaranteed to be untouched.
    """
    target = Path(target)
    data = encode(
        picture,
        format=format if format is not None else format_of(target.name),
        quality=quality,
        lossless=lossless,
        strip_metadata=strip_metadata,
        background=background,
    )
    store(data, target)


def store(data: bytes, target: Path) -> None:
    """Write an encoded file, whole or not at all. Raises PictureWriteError."""
    name = failures.shown(target)
    if target.is_dir():
        raise PictureWriteError(f"{name} is a folder: give the name of a file")
    try:
        files.write_bytes(target, data)
    except OSError as error:
        raise failures.write_error(error, target, size_bytes=len(data)) from error


def losses(
    picture: Picture,
    format: str,
    *,
    strip_metadata: bool = False,
    background: tuple[int, int, int] | None = None,
) -> tuple[str, ...]:
    """What writing as `format` will not keep, one sentence each; to be told to the user."""
    name = format_of(format)
    facts = FORMATS[name]
    found = []
    if picture.depth_bits == 16 and not facts.holds_16_bit:
        found.append(f"{name} holds 8 bits: the picture's 16 were rounded")
    if picture.is_transparent and not facts.holds_alpha and background is not None:
        found.append(f"{name} holds no transparency: the picture was laid over the background")
    if picture.icc_profile is not None and not facts.holds_profile:
        found.append(f"{name} holds no ICC profile: the colours were converted to sRGB")
    elif picture.icc_profile is not None and _becomes_rgb(picture, name):
        found.append(f"{name} holds this gray as RGB: its gray ICC profile was converted to sRGB")
    if name == "GIF":
        found += gif_writer.losses([encodable(picture, name, strip=True).samples])
    if strip_metadata:
        return tuple(found)
    if (picture.exif or picture.xmp) and not facts.holds_metadata:
        found.append(f"{name} holds no EXIF or XMP: they were left out")
        if picture.xmp and metadata.PROVENANCE_NAMESPACE.encode() in picture.xmp:
            found.append(f"{name} holds no provenance: nothing in it tells how it was made")
    for kind, packed, limit in (
        ("EXIF", picture.exif, facts.max_exif_bytes),
        ("XMP", picture.xmp, facts.max_xmp_bytes),
    ):
        if packed is not None and limit is not None and len(packed) > limit - _METADATA_SLACK_BYTES:
            found.append(f"{name} holds no {kind} above {limit:,} bytes: it was left out")
    return tuple(found)


def upright(stored: decoders.Stored, *, keep_space: bool = False) -> Picture:
    """Turn what the file held into what a viewer shows.

    keep_space: never convert from a profile that can stay, whatever colours the picture has.
    """
    notes = list(stored.notes)
    orientation, dpi, exif = 1, None, None
    try:
        if stored.exif is None:
            raise SyntaxError("damaged already when it was opened")
        orientation = metadata.orientation_of(stored.exif)
        dpi = metadata.dpi_of(stored.info, stored.exif)
        exif = metadata.pack_exif(stored.exif)
    except metadata.DAMAGED_TAGS:
        notes.append("its EXIF data is damaged and was left out")
    xmp = stored.info.get("xmp")
    pixels, profile, in_profile_space = stored.pixels, stored.info.get("icc_profile"), False
    if profile:
        pixels, profile, in_profile_space, remark = _managed(stored, profile, keep_space=keep_space)
        notes += remark
    if stored.cmyk is not None and pixels is stored.pixels:
        notes.append(
            "it is CMYK without a usable ICC profile: converted to RGB by the plain formula"
        )
    alpha = stored.alpha
    return Picture(
        pixels=metadata.apply_orientation(pixels, orientation),
        alpha=None if alpha is None else metadata.apply_orientation(alpha, orientation),
        icc_profile=profile or None,
        in_profile_space=in_profile_space,
        exif=exif,
        xmp=xmp if isinstance(xmp, bytes) and xmp else None,
        dpi=dpi if dpi is None or orientation < 5 else (dpi[1], dpi[0]),
        format=stored.format,
        frames_total=stored.frames_total,
        notes=tuple(notes),
    )


def _managed(
    stored: decoders.Stored, profile: bytes, *, keep_space: bool
) -> tuple[np.ndarray, bytes | None, bool, list[str]]:
    """Pixels, the profile to keep, whether pixels are in its space, and remarks."""
    pixels = stored.pixels
    space = metadata.profile_space(profile)
    wanted = "CMYK" if stored.cmyk is not None else "GRAY" if pixels.shape[2] == 1 else "RGB"
    if space is None:
        return pixels, None, False, ["its ICC profile is broken or of an unknown kind: ignored"]
    if space != wanted:
        return pixels, None, False, [f"its ICC profile is for {space}, not {wanted}: ignored"]
    try:
        if stored.cmyk is not None:
            converted = metadata.cmyk_to_srgb(stored.cmyk, profile)
            return converted, None, False, ["it is CMYK: converted to sRGB by its ICC profile"]
        if space == "GRAY" or metadata.is_srgb(profile) or keep_space:
            return pixels, profile, True, []
        converted = metadata.to_srgb(pixels, profile)
        if metadata.survives_srgb(pixels, converted, profile):
            return converted, profile, False, []
    except ValueError:
        return pixels, None, False, ["its ICC profile cannot be used and was ignored"]
    return pixels, profile, True, ["some of its colours lie outside sRGB: kept in its own space"]


def encodable(
    picture: Picture, name: str, *, strip: bool, background: tuple[int, int, int] | None = None
) -> Encodable:
    """What the format called `name` stores of the picture."""
    facts = FORMATS[name]
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is not None and not facts.holds_alpha:
        if background is not None and picture.is_transparent:
            pixels = _over(pixels, alpha, background)
        alpha = None
    profile = picture.icc_profile
    if profile is not None and pixels.shape[2] != picture.pixels.shape[2]:
        # A coloured background made RGB of gray: its gray profile says nothing about that.
        profile = None
    elif profile is not None and _becomes_rgb(picture, name):
        pixels, profile = metadata.to_srgb(pixels, profile), None
    elif profile is not None and facts.holds_profile and not picture.in_profile_space:
        pixels = metadata.from_srgb(pixels, profile)
    elif profile is not None and not facts.holds_profile and picture.in_profile_space:
        pixels = metadata.to_srgb(pixels, profile)
    samples = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    if samples.dtype == np.uint16 and not facts.holds_16_bit:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if samples.shape[2] == 2 and name in _WITHOUT_GRAY_ALPHA:
        samples = samples[..., [0, 0, 0, 1]]
    if strip:
        return Encodable(samples=samples, icc_profile=_held(profile, facts.holds_profile))
    width, height = picture.width_px, picture.height_px
    exif = xmp = None
    if facts.holds_metadata:
        dpi = None if facts.holds_dpi else picture.dpi
        packed = _within(picture.exif, facts.max_exif_bytes)
        exif = metadata.exif_for(packed, width_px=width, height_px=height, dpi=dpi)
        packet = _within(picture.xmp, facts.max_xmp_bytes)
        xmp = metadata.xmp_for(packet, width_px=width, height_px=height)
    return Encodable(
        samples=samples,
        icc_profile=_held(profile, facts.holds_profile),
        exif=exif,
        xmp=xmp,
        dpi=picture.dpi,
    )


def _becomes_rgb(picture: Picture, name: str) -> bool:
    """Whether the format stores this gray picture as RGB, which a profile for gray does not fit."""
    gray_alpha = picture.is_gray and picture.alpha is not None
    return (picture.is_gray and name == "WEBP") or (gray_alpha and name in _WITHOUT_GRAY_ALPHA)


def _held(profile: bytes | None, holds_profile: bool) -> bytes | None:
    return profile if holds_profile else None


def _within(packed: bytes | None, limit_bytes: int | None) -> bytes | None:
    if packed is None or limit_bytes is None or len(packed) <= limit_bytes - _METADATA_SLACK_BYTES:
        return packed
    return None


def _over(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Lay (H, W, C) over one colour; gray stays gray where the colour is gray."""
    full = np.iinfo(pixels.dtype).max
    below = np.array(background, dtype=np.uint64) * (full // 255)
    if pixels.shape[2] == 1 and len(set(background)) == 1:
        below = below[:1]
    weight = alpha[..., None].astype(np.uint64)
    blend = pixels * weight + below * (full - weight) + full // 2
    return (blend // full).astype(pixels.dtype)
