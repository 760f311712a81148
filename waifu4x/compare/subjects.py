"""What the models are shown: a picture, the part of it that counts, and what is true of it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import pictures
from waifu4x.bench.datasets import as_rgb, cut_to_multiple
from waifu4x.compare import crops
from waifu4x.compare.crops import Crop
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture
from waifu4x.resample import imresize

Uint8Array = npt.NDArray[np.uint8]
Color = tuple[int, int, int]

SCALE_MIN, SCALE_MAX = 2, 16
WHITE: Color = (255, 255, 255)
GRID_CELL_PX = (480, 360)
"""(width, height), in output pixels, of what a grid shows of a picture by default."""
PAGE_REGION_PX = (384, 288)
"""(width, height), in input pixels: pictures of no more pixels than that are compared whole."""
CONTEXT_PX = 32
"""As many input pixels around the part that is compared are shown to the models too, so that what
it borders on counts as it would in the whole picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One picture to compare models on."""

    name: str
    """Of its file, without the folder."""
    picture: Picture
    """What is enlarged: the whole picture, or the low-resolution one made from the truth."""
    shown: Uint8Array
    """(h, w, 3) sRGB: `picture` as a screen shows it, over the background."""
    region: Crop
    """What the models are run on, in pixels of `picture`."""
    window: Crop
    """What a grid shows, in pixels of `picture`; it lies within `region`."""
    chosen: str
    """How `window` was chosen, in a few words."""
    scale: int
    truth: Uint8Array | None = None
    """(scale·h, scale·w, 3) sRGB, of the whole picture."""
    background: Color = WHITE
    notes: tuple[str, ...] = ()

    def flattened(self, picture: Picture) -> Uint8Array:
        """(H, W, 3): an enlargement of `picture` or of a part of it, as `shown` is made."""
        return flatten(picture, self.background)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be compared on each of several pictures."""

    scale: int | None = None
    """Output pixels to a side of one input pixel; by default what the reference says, or 4."""
    downscale: int | None = None
    """The pictures are the truth: they are shrunk by this before they are enlarged."""
    crop: str = "auto"
    """``x,y,w,h`` in px of the given picture, ``all``, or ``auto``."""
    background: Color = WHITE
    region_px: int | None = None
    """Compare up to as many input pixels rather than only what a grid shows by default: for a page,
    in which one can move about."""

    def __post_init__(self) -> None:
        for name, value in (("-s", self.scale), ("--downscale", self.downscale)):
            if value is not None and not SCALE_MIN <= value <= SCALE_MAX:
                raise UsageError(
                    f"{name} {value}: pictures are compared at whole factors from {SCALE_MIN} to "
                    f"{SCALE_MAX}"
                )
        if self.downscale is not None and self.scale not in (None, self.downscale):
            raise UsageError(
                f"--downscale {self.downscale} is compared at {self.downscale}x: leave -s out"
            )
        if self.crop not in ("auto", "all"):
            crops.parse(self.crop)


def read(path: Path, wish: Wish, *, reference: Path | None = None) -> Subject:
    """The picture in a file as something to compare on.

    reference: the true picture, `scale` times as large; up to `scale` − 1 px more at the right and
    below are cut off, as measuring scripts do.

    Raises:
        PictureReadError: a file that cannot be read.
        UsageError: the crop lies outside the picture, the reference is no whole multiple of it, or
            both a reference and `downscale` are given.
    """
    given = pictures.read(path)
    true = None if reference is None else flatten(pictures.read(reference), wish.background)
    return prepare(given, path.name, wish=wish, reference=true)


def prepare(
    given: Picture, name: str, *, wish: Wish, reference: Uint8Array | None = None
) -> Subject:
    """As `read`, of pictures in memory; `reference` is (H, W, 3) sRGB."""
    notes = list(given.notes)
    if given.frames_total > 1:
        notes.append(f"{name} has {given.frames_total} frames or pages: the first is compared")
    truth = None
    if wish.downscale is not None:
        if reference is not None:
            raise UsageError("--downscale makes the given picture the truth: leave --reference out")
        given, truth = _shrunk(given, name, wish)
        scale = wish.downscale
    elif reference is not None:
        scale = _scale_of(given, name, reference=reference, wished=wish.scale)
        height, width = given.height_px * scale, given.width_px * scale
        if reference.shape[:2] != (height, width):
            notes.append(
                f"the reference of {name} was cut from {reference.shape[1]}x{reference.shape[0]} "
                f"to {width}x{height} px"
            )
        truth = reference[:height, :width]
    else:
        scale = wish.scale or 4
    shown = flatten(given, wish.background)
    region, window, chosen, note = _choose(shown, name, wish=wish, scale=scale, truth=truth)
    return Subject(
        name=name,
        picture=given,
        shown=shown,
        region=region,
        window=window,
        chosen=chosen,
        scale=scale,
        truth=truth,
        background=wish.background,
        notes=(*notes, *note),
    )


def flatten(picture: Picture, background: Color) -> Uint8Array:
    """(H, W, 3) uint8 sRGB: 16 bits rounded, transparency over the background, gray as RGB."""
    # A BMP holds nothing but that, and `pictures` knows how to make it so.
    samples = pictures.encodable(picture, "BMP", strip=True, background=background).samples
    return as_rgb(samples)


def _shrunk(given: Picture, name: str, wish: Wish) -> tuple[Picture, Uint8Array]:
    """The low-resolution picture by MATLAB's bicubic, and the truth, cut to a multiple."""
    scale = wish.downscale or 1
    samples = pictures.encodable(given, "BMP", strip=True, background=wish.background).samples
    hr = cut_to_multiple(samples, scale)
    if min(hr.shape[:2]) < scale:
        raise UsageError(f"{name} is too small for --downscale {scale}")
    # Gray stays gray, which is measured as the papers measure it.
    small = Picture(pixels=imresize(hr, 1.0 / scale), format=given.format)
    return small, as_rgb(hr)


def _scale_of(given: Picture, name: str, *, reference: Uint8Array, wished: int | None) -> int:
    height, width = reference.shape[:2]
    scale = wished or min(height // given.height_px, width // given.width_px)
    over = (width - scale * given.width_px, height - scale * given.height_px)
    if not SCALE_MIN <= scale <= SCALE_MAX or not all(0 <= n < scale for n in over):
        times = f"{wished} times" if wished else "a whole number of times"
        raise UsageError(
            f"the reference of {name} is {width}x{height} px, not {times} its "
            f"{given.width_px}x{given.height_px}; give the picture it was made from, or use "
            f"--downscale on that one"
        )
    return scale


def _choose(
    shown: Uint8Array, name: str, *, wish: Wish, scale: int, truth: Uint8Array | None
) -> tuple[Crop, Crop, str, list[str]]:
    """What is computed, what a grid shows of it, how that was chosen, and remarks."""
    whole = crops.whole(shown)
    if wish.crop == "all":
        return whole, whole, "the whole picture", []
    if wish.crop != "auto":
        crop, notes = _given_crop(shown, name, wish)
        return crop, crop, "the crop that was asked for", notes
    cell = (math.ceil(GRID_CELL_PX[0] / scale), math.ceil(GRID_CELL_PX[1] / scale))
    window = crops.most_detailed(shown, cell)
    told = "the whole picture" if window == whole else "the most detailed region"
    if wish.region_px is None and truth is None:
        return window, window, told, []
    full_px = PAGE_REGION_PX[0] * PAGE_REGION_PX[1]
    most_px = wish.region_px or full_px
    if whole.width_px * whole.height_px <= most_px:
        return whole, window, told, []
    share = math.sqrt(most_px / full_px)
    wide, tall = (max(c, int(p * share)) for c, p in zip(cell, PAGE_REGION_PX, strict=True))
    region = crops.most_detailed(shown, (wide, tall))
    inner = crops.most_detailed(region.cut(shown), cell)
    window = dataclasses.replace(inner, x=inner.x + region.x, y=inner.y + region.y)
    return region, window, told, []


def _given_crop(shown: Uint8Array, name: str, wish: Wish) -> tuple[Crop, list[str]]:
    crop, by = crops.parse(wish.crop), wish.downscale or 1
    height, width = shown.shape[:2]
    right, bottom = crop.x + crop.width_px, crop.y + crop.height_px
    if right > width * by or bottom > height * by:
        raise UsageError(
            f"--crop {crop} reaches beyond {name}, which is {width * by}x{height * by} px"
        )
    if by == 1:
        return crop, []
    # In pixels of the picture that was given, which is the large one.
    left, top = crop.x // by, crop.y // by
    small = Crop(
        x=left,
        y=top,
        width_px=math.ceil(right / by) - left,
        height_px=math.ceil(bottom / by) - top,
    )
    if small.scaled(by) == crop:
        return small, []
    return small, [f"--crop {crop} became {small.scaled(by)}, whole pixels of the small picture"]
