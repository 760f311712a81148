"""How super-resolution papers measure: shrink, enlarge, compare, with every convention by name.

The published figures of a system hold under the conventions of its authors' scripts, which differ
in what is shrunk, in whether luma is rounded, and in what becomes of gray files. That moves a
result by 0.01 to 0.1 dB.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x import color, headers, sizes
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.bench.metrics import luma_8bit, shaved
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture
from waifu4x.resample import imresize
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Upscaler

Uint8Array = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float64]

DEFAULT_PROTOCOL = "rgb8"
JPEG_TEXT = (
    "the shrunk picture is saved as JPEG of this quality, 4:2:0, by Pillow, and read again before "
    "it is enlarged"
)
"""What is done beyond the protocol where a JPEG quality is given."""
# libjpeg's own limit.
_LONGEST_JPEG_PX = 65_500


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One set of conventions."""

    name: str
    text: str
    is_luma_rounded: bool = True
    is_luma_alone: bool = False
    """Only luma is shrunk and enlarged, in float; colour is not measured."""
    keeps_gray: bool = False
    """A gray file is measured in its own levels 0..255; else as RGB, whose luma is in 16..235."""

    def luma(self, image: Uint8Array) -> Plane:
        """(H, W, 1 or 3) -> (H, W): what PSNR and SSIM are taken of."""
        if self.keeps_gray and image.shape[2] == 1:
            return image[..., 0].astype(np.float64)
        return luma_8bit(as_rgb(image)) if self.is_luma_rounded else color.luma(as_rgb(image))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name=DEFAULT_PROTOCOL,
            text="8-bit RGB is shrunk and rounded to 8 bit; luma is rounded (MATLAB on uint8)",
        ),
        Protocol(
            name="rgb8-own-gray",
            text="as rgb8, but gray files are measured in their own levels (Set14 has one)",
            keeps_gray=True,
        ),
        Protocol(
            name="rgb8-float-y",
            text="as rgb8, but luma is not rounded (BasicSR)",
            is_luma_rounded=False,
        ),
        Protocol(
            name="luma",
            text="8-bit luma is shrunk in float, not rounded; gray files keep their levels (the "
            "scripts of SRCNN and VDSR)",
            is_luma_alone=True,
            keeps_gray=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """An enlarged picture and the truth, both with ⌈scale⌉ px cut off every border."""

    luma: Plane
    """(h, w), in 16..235; of a gray file that keeps its levels in 0..255. Likewise `true_luma`."""
    true_luma: Plane
    rgb: Uint8Array | None
    """(h, w, 3); None where luma alone was enlarged. Likewise `true_rgb`."""
    true_rgb: Uint8Array | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Enlarged:
    """What a model made of one picture of known truth."""

    pair: Pair
    time_s: float
    """Of enlarging alone."""
    megapixels: float
    """Of the whole enlarged picture."""
    facts: Facts | None
    """None where luma alone was enlarged."""


def protocol_named(name: str) -> Protocol:
    """One of PROTOCOLS. Raises UsageError, which names all, for any other."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol {name!r}: use {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_jpeg(quality: int, *, protocol: Protocol, is_small_given: bool) -> None:
    """Raise UsageError for a quality outside 1..100, and where no 8-bit picture is shrunk."""
    if not 1 <= quality <= 100:
        raise UsageError(f"a JPEG quality is 1 to 100, not {quality}")
    if protocol.is_luma_alone:
        raise UsageError(
            f"the protocol {protocol.name} shrinks luma in float, which no JPEG can hold: "
            f"leave out --jpeg, or use {DEFAULT_PROTOCOL}"
        )
    if is_small_given:
        raise UsageError("--jpeg compresses what was shrunk here: leave it out, or --lr")


def check_sizes(
    path: Path, *, scale: float, lr: Path | None = None, jpeg_quality: int | None = None
) -> None:
    """Raise what `enlarge` would raise for the sizes of its files, from their headers alone."""
    header = headers.read(path)
    whole = sizes.exact(scale).numerator
    size_px = (header.height_px // whole * whole, header.width_px // whole * whole)
    _check_large_enough(path, size_px, scale=scale)
    if jpeg_quality is not None and max(_shrunk_px(size_px, scale)) > _LONGEST_JPEG_PX:
        raise UsageError(
            f"{path} at x{scale} is more than {_LONGEST_JPEG_PX} px long, which no JPEG can be; "
            f"take it out of there"
        )
    if lr is not None:
        small = headers.read(lr)
        _check_small(lr, (small.height_px, small.width_px), size_px, scale=scale, path=path)


def enlarge(
    upscaler: Upscaler,
    path: Path,
    *,
    scale: float,
    protocol: Protocol,
    lr: Path | None = None,
    jpeg_quality: int | None = None,
) -> Enlarged:
    """One picture through the protocol.

    The high-resolution picture is cut to a multiple of the scale, shrunk by MATLAB's bicubic
    `imresize` (or `lr` is taken for what is shrunk), and enlarged by the model.

    Args:
        jpeg_quality: 1..100, to compress what was shrunk: see JPEG_TEXT. None leaves it as it is.

    Raises:
        UsageError: the picture is too small, `lr` has another size than the shrunk picture would
            have, or luma alone is to be shrunk and there is an `lr`; for `jpeg_quality` as
            `check_jpeg`.
        PictureReadError: a picture that cannot be read.
    """
    hr = cut_to_multiple(read_8bit(path), scale)
    _check_large_enough(path, hr.shape[:2], scale=scale)
    if jpeg_quality is not None:
        check_jpeg(jpeg_quality, protocol=protocol, is_small_given=lr is not None)
    if protocol.is_luma_alone:
        if lr is not None:
            raise UsageError(f"the protocol {protocol.name} shrinks luma itself: leave out --lr")
        return _enlarge_luma(upscaler, hr, scale=scale, protocol=protocol)
    small = imresize(hr, 1.0 / scale) if lr is None else _given(lr, hr, scale=scale, path=path)
    if jpeg_quality is not None:
        small = _compressed(small, jpeg_quality)
    started = time.perf_counter()
    enlarged, facts = upscaler.upscale(Picture(pixels=small), Target(scale=scale))
    time_s = time.perf_counter() - started
    sr, border_px = enlarged.pixels, math.ceil(scale)
    return Enlarged(
        pair=Pair(
            luma=shaved(protocol.luma(sr), border_px),
            true_luma=shaved(protocol.luma(hr), border_px),
            rgb=shaved(as_rgb(sr), border_px),
            true_rgb=shaved(as_rgb(hr), border_px),
        ),
        time_s=time_s,
        megapixels=_megapixels(hr),
        facts=facts,
    )


def _check_large_enough(path: Path, size_px: tuple[int, ...], *, scale: float) -> None:
    # As many are cut off every border: something must be left.
    if min(size_px) <= 2 * math.ceil(scale):
        raise UsageError(f"{path} is too small to measure at x{scale}; take it out of there")


def _shrunk_px(size_px: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Of a picture that was cut for this scale."""
    ratio = sizes.exact(scale)
    height, width = (n * ratio.denominator // ratio.numerator for n in size_px[:2])
    return height, width


def _check_small(
    lr: Path, small_px: tuple[int, ...], size_px: tuple[int, ...], *, scale: float, path: Path
) -> None:
    wanted = _shrunk_px(size_px, scale)
    if small_px != wanted:
        raise UsageError(
            f"{lr} is {small_px[1]}×{small_px[0]} px, and {path} at x{scale} needs "
            f"{wanted[1]}×{wanted[0]} px"
        )


def _given(lr: Path, hr: Uint8Array, *, scale: float, path: Path) -> Uint8Array:
    """A low-resolution picture that somebody has shrunk, with as many channels as `hr`."""
    small = read_8bit(lr)
    _check_small(lr, small.shape[:2], hr.shape[:2], scale=scale, path=path)
    if small.shape[2] == hr.shape[2]:
        return small
    return (
        as_rgb(small)
        if hr.shape[2] == 3
        else np.rint(small.mean(axis=2, keepdims=True)).astype(np.uint8)
    )


def _compressed(image: Uint8Array, quality: int) -> Uint8Array:
    """(H, W, 1 or 3) -> the same, once through a JPEG whose blocks begin at the upper left."""
    stream = io.BytesIO()
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    whole.save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(stream)).reshape(image.shape)


def _enlarge_luma(
    upscaler: Upscaler, hr: Uint8Array, *, scale: float, protocol: Protocol
) -> Enlarged:
    """For networks of luma alone, and for resampling: no colour is involved at any point."""
    truth = protocol.luma(hr)
    small = imresize(truth / 255.0, 1.0 / scale).astype(np.float32)
    started = time.perf_counter()
    sr = upscaler.enlarge_plane(small, (hr.shape[0], hr.shape[1]))
    time_s = time.perf_counter() - started
    levels = np.clip(np.floor(sr.astype(np.float64) * 255.0 + 0.5), 0.0, 255.0)
    return Enlarged(
        pair=Pair(
            luma=shaved(levels, math.ceil(scale)),
            true_luma=shaved(truth, math.ceil(scale)),
            rgb=None,
            true_rgb=None,
        ),
        time_s=time_s,
        megapixels=_megapixels(hr),
        facts=None,
    )


def _megapixels(image: Uint8Array) -> float:
    return image.shape[0] * image.shape[1] / 1e6
