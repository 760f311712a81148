"""What is written beside the pictures, in words and in letters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import ImageDraw, ImageFont

from waifu4x.compare.results import Comparison, Result
from waifu4x.compare.subjects import CONTEXT_PX

RGB = tuple[int, int, int]

INK: RGB = (27, 29, 34)
FAINT: RGB = (98, 104, 115)
BEST: RGB = (18, 112, 62)
"""Of the highest figure of a row; told apart by a mark too, not by colour alone."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The lines that belong to one picture."""

    name: str
    time: str = ""
    parameters: str = ""
    what: str = ""
    """Of the input and the truth, instead of time and parameters."""
    psnr: str = ""
    ssim: str = ""
    psnr_is_best: bool = False
    ssim_is_best: bool = False

    @property
    def effort(self) -> str:
        """Time and parameters on one line; or what it is."""
        return " · ".join(filter(None, (self.time, self.parameters, self.what)))


def of_result(result: Result, comparison: Comparison) -> Caption:
    """Model, time, parameters and, where the truth is known, PSNR and SSIM."""
    parameters = result.parameters
    psnr_db, ssim = result.psnr_db, result.ssim
    return Caption(
        name=result.model,
        time=seconds(result.time_s),
        parameters="" if parameters is None else f"{count(parameters)} parameters",
        psnr="" if psnr_db is None else decibels(psnr_db),
        ssim="" if ssim is None else f"{ssim:.4f}",
        psnr_is_best=psnr_db is not None and psnr_db == comparison.best("psnr_db"),
        ssim_is_best=ssim is not None and ssim == comparison.best("ssim"),
    )


def of_input(comparison: Comparison) -> Caption:
    """The input, enlarged by repeating its pixels."""
    return Caption(name="input", what=f"each pixel {comparison.scale}x{comparison.scale}")


def of_truth() -> Caption:
    """What the enlargements should have been."""
    return Caption(name="original", what="the ground truth")


def heading(comparison: Comparison) -> tuple[str, str]:
    """The picture's name, and which part of it is shown at which scale."""
    window, region = comparison.window, comparison.region
    at = (region.x + window.x, region.y + window.y)
    size = f"{window.width_px}x{window.height_px}"
    part = comparison.chosen
    if part != "the whole picture":
        part += f" ({size} px at {at[0]},{at[1]})"
    large = f"{window.width_px * comparison.scale}x{window.height_px * comparison.scale}"
    return comparison.name, f"{comparison.scale}x: {size} to {large} px · {part}"


def measured_on(comparison: Comparison) -> str:
    """Of what the times and the figures are, in a sentence."""
    region = comparison.region
    around = "" if comparison.is_whole else f" and up to {CONTEXT_PX} px around it"
    told = f"Times are of {region.width_px}x{region.height_px} px of input{around}"
    told += machine([comparison])
    if comparison.truth is None:
        return told + "."
    return (
        f"{told}. PSNR and SSIM are of the same part, on luma, without {comparison.scale} px of "
        f"border."
    )


def machine(comparisons: Sequence[Comparison]) -> str:
    """ ", on cpu in fp32": on what the networks ran; nothing where there was none."""
    results = [result for comparison in comparisons for result in comparison.results]
    networks = [result.facts for result in results if result.parameters is not None]
    ways = dict.fromkeys(f"{facts.device} in {facts.precision}" for facts in networks)
    return f", on {' and '.join(ways)}" if ways else ""


def seconds(time_s: float) -> str:
    """3 ms, 0.21 s, 12.3 s, 2 min 05 s."""
    if time_s < 0.0995:
        return f"{max(1, round(time_s * 1000))} ms"
    if time_s < 59.95:
        return f"{time_s:.2f} s" if time_s < 9.995 else f"{time_s:.1f} s"
    return f"{round(time_s) // 60} min {round(time_s) % 60:02d} s"


def count(number: int) -> str:
    """512, 8.0 k, 621 k, 16.7 M."""
    for limit, unit in ((999_500, "k"), (math.inf, "M")):
        if number < 1000:
            return str(number)
        if number < limit:
            value = number / (1_000 if unit == "k" else 1_000_000)
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    raise AssertionError("every number is below infinity")


def decibels(value: float) -> str:
    """28.42 dB; for equal pictures, for which it is infinite, the word."""
    return "identical" if math.isinf(value) else f"{value:.2f} dB"


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def text_px(text: str, size_px: int) -> int:
    """How wide a line is."""
    return math.ceil(_font(size_px).getlength(_drawable(text)))


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    size_px: int,
    room_px: int,
    color: RGB = INK,
) -> int:
    """Write one line with its ascender line at `at`, cut where `room_px` ends; returns its width.

    The font is the one within Pillow, which has western letters only: others become "?".
    Among what it lacks is the sign of multiplication.
    """
    shown = _drawable(text)
    if text_px(shown, size_px) > room_px:
        while shown and text_px(f"{shown}...", size_px) > room_px:
            shown = shown[:-1]
        shown = f"{shown}..." if shown else ""
    draw.text(at, shown, font=_font(size_px), fill=color)
    return text_px(shown, size_px)


def _drawable(text: str) -> str:
    shown = text.encode("latin-1", "replace").decode("latin-1")
    return "".join(c if c.isprintable() else "?" for c in shown)
