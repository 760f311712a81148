"""Planes become larger planes: the passes of a network or a kernel, luma, strength, colour lock.

float32 in [0, 1] -> passes of the network -> one resample to the exact size -> strength, colour
lock -> integers. Everything works on several pictures that are alike, so that their tiles can share
batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from waifu4x import color, sizes
from waifu4x.canvas import Canvas, FloatArray, from_unit, to_unit
from waifu4x.resample import Kernel, resize
from waifu4x.sizes import LAST_RESAMPLE_LIMIT, Pass

if TYPE_CHECKING:
    from waifu4x.model_files.checkpoints import Model  # it needs torch, and kernels do not

LAST_RESAMPLE: Kernel = "lanczos"
"""Beyond the network's own scale this filter is the sharpest that does not invent structure."""
# Colours are converted so many rows at a time, to keep temporaries small.
_BAND_ROWS = 256


class Run(Protocol):
    """One pass of a network over pictures that are alike: `TiledRunner.run_all`."""

    def __call__(
        self,
        images: Sequence[FloatArray],
        *,
        canvases: Sequence[Canvas] | None = None,
        to: Pass | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[npt.NDArray]: ...


class Shares:
    """Shares of several equal parts become one share of the whole."""

    def __init__(self, report: Callable[[float], None] | None, parts: int) -> None:
        self._report = report
        self._parts = parts
        self._finished = 0.0
        self._told = 0.0

    def inside(self, share: float) -> None:
        # A pass that begins again with smaller tiles may not take back what was told.
        self._told = max(self._told, min(1.0, (self._finished + share) / self._parts))
        if self._report is not None:
            self._report(self._told)

    def finish_part(self) -> None:
        self._finished += 1.0
        self.inside(0.0)


@dataclass(kw_only=True)
class Way:
    """How values in [0, 1] become a larger picture's integers."""

    model: Model | Kernel
    size_px: tuple[int, int]
    """(height, width) of every result."""
    factors: tuple[float, ...]
    """By how much each pass enlarges; empty where only a kernel works."""
    dtype: np.dtype
    strength: float = 1.0
    color_fix: bool = False

    def needs_no_floats(self, in_px: tuple[int, ...], model: Model) -> bool:
        """Whether the last pass gives the result, so that nothing is to be done with its floats.

        in_px: height and width of the original.
        """
        if model.pre_upsampled or model.channels_in == 1 or self.strength < 1.0 or self.color_fix:
            return False
        reached = model.scale ** len(self.factors)
        return model.any_scale or (in_px[0] * reached, in_px[1] * reached) == self.size_px

    def shown_px(self, number: int, in_px: tuple[int, ...]) -> tuple[int, int]:
        """How large pass `number` is given a picture of height and width `in_px` by a network that
        takes them enlarged: the last as large as the result, unless that is beyond its factor."""
        factor, final = self.factors[number], number == len(self.factors) - 1
        if final and max(self.size_px) <= math.ceil(max(in_px[:2]) * factor * LAST_RESAMPLE_LIMIT):
            return self.size_px
        return times(in_px, factor)

    def pass_of(self, number: int, in_px: tuple[int, ...], model: Model) -> Pass | None:
        """What pass `number` of a picture of height and width `in_px` gives; None where the network
        has one scale, which says it."""
        if not model.any_scale:
            return None
        factor, final = self.factors[number], number == len(self.factors) - 1
        return Pass(sizes.exact(factor), self.size_px if final else times(in_px, factor))


@dataclass(kw_only=True)
class Enlargement(Way):
    """Pictures on their way: what the colours and the alphas of all of them have in common."""

    run: Run | None
    """What runs the model; None for a kernel."""
    progress: Shares

    def enlarge(self, images: Sequence[FloatArray]) -> list[npt.NDArray]:
        """Each (h, w, C) float in [0, 1] -> (H, W, C) of `dtype`; they are of one shape."""
        model = self.model
        if isinstance(model, str) or not self.factors:
            kernel = model if isinstance(model, str) else LAST_RESAMPLE
            done = [from_unit(resize(i, self.size_px, kernel=kernel), self.dtype) for i in images]
        elif self.needs_no_floats(images[0].shape, model):
            channels = images[0].shape[2]
            canvases = [Canvas(self.size_px, channels=channels, dtype=self.dtype) for _ in images]
            done = self._run_passes(images, model, canvases)
        else:
            steps = self._enlarge_luma if model.channels_in == 1 else self.run_network
            done = steps(images, model)
            # One after the other: the floats of a picture go as soon as its integers are there.
            for image in images:
                done.append(from_unit(self._mixed(done.pop(0), image), self.dtype))
        self.progress.finish_part()
        return done

    def enlarge_alphas(
        self, alphas: Sequence[npt.NDArray], *, by_network: bool
    ) -> list[npt.NDArray]:
        """Each (h, w) -> (H, W), all of `dtype`; 0 and full stay exactly 0 and full."""
        uneven = [alpha for alpha in alphas if not is_flat(alpha)]
        # Strength and colour lock are about colours; the alpha is the network's alone.
        model = self.model if by_network else "bicubic"
        bare = dataclasses.replace(self, model=model, strength=1.0, color_fix=False)
        enlarged = iter(bare.enlarge([to_unit(a)[..., None] for a in uneven]) if uneven else [])
        return [
            np.full(self.size_px, alpha.flat[0], dtype=self.dtype)
            if is_flat(alpha)
            else color.restore_plateaus(next(enlarged)[..., 0], alpha)
            for alpha in alphas
        ]

    def run_network(self, images: Sequence[FloatArray], model: Model) -> list[npt.NDArray]:
        """All passes, then the one resample to the exact size, which is none where they reach it.

        Each image is (h, w, C) in the network's own colour space; the results are float32, clamped
        to [0, 1].
        """
        results = self._run_passes(images, model, None)
        if results[0].shape[:2] != self.size_px:
            for number in range(len(results)):
                resized = resize(results[number], self.size_px, kernel=LAST_RESAMPLE)
                results[number] = np.clip(resized, 0.0, 1.0, out=resized)
        return results

    def _mixed(self, result: FloatArray, image: FloatArray) -> FloatArray:
        """Colour lock and strength; `result` may be overwritten."""
        if self.color_fix:
            result = color.lock_low_frequencies(result, image)
        if self.strength < 1.0:
            plain = resize(image, self.size_px)
            plain *= np.float32(1.0 - self.strength)
            result *= np.float32(self.strength)
            result += plain
        return result

    def _enlarge_luma(self, images: Sequence[FloatArray], model: Model) -> list[npt.NDArray]:
        """Y through the network, Cb and Cr by bicubic interpolation, as the papers do."""
        ycbcr = [to_ycbcr(image) for image in images]
        results = self.run_network([planes[..., :1] for planes in ycbcr], model)
        for number, planes in enumerate(ycbcr):
            if images[number].shape[2] == 1:
                results[number] = to_gray(results[number])
            else:
                chroma = resize(planes[..., 1:], self.size_px)
                results[number] = to_rgb(results[number], chroma)
        return results

    def _run_passes(
        self, images: Sequence[FloatArray], model: Model, last: Sequence[Canvas] | None
    ) -> list[npt.NDArray]:
        """All passes of the network; the last one writes into `last` when that is given."""
        assert self.run is not None  # the constructor of the upscaler saw to it
        passing: Sequence[npt.NDArray] = images
        for number in range(len(self.factors)):
            final = number == len(self.factors) - 1
            if model.pre_upsampled:
                size_px = self.shown_px(number, passing[0].shape)
                passing = [resize(image, size_px) for image in passing]

            def inside(share: float, done: int = number) -> None:
                self.progress.inside((done + share) / len(self.factors))

            passing = self.run(
                passing,
                canvases=last if final else None,
                to=self.pass_of(number, passing[0].shape, model),
                on_progress=inside,
            )
        return list(passing)


def is_flat(alpha: npt.NDArray) -> bool:
    """Whether all values are the same, so that nothing need be computed."""
    return bool((alpha == alpha.flat[0]).all())


def times(in_px: tuple[int, ...], factor: float) -> tuple[int, int]:
    """What a pass that is given an upscaled picture makes of one of `in_px`."""
    return round(in_px[0] * factor), round(in_px[1] * factor)


def to_ycbcr(image: FloatArray) -> FloatArray:
    """(h, w, 1 or 3) float32 in [0, 1] -> (h, w, 3), as `color.rgb_to_ycbcr` gives it."""
    return color.rgb_to_ycbcr(np.broadcast_to(image, (*image.shape[:2], 3)))


def to_gray(luma: FloatArray) -> FloatArray:
    """Studio-range luma becomes gray in [0, 1], in place."""
    luma -= np.float32(16.0 / 255.0)
    luma *= np.float32(255.0 / 219.0)
    return luma


def to_rgb(luma: FloatArray, chroma: FloatArray) -> FloatArray:
    """(H, W, 1) and (H, W, 2), as `color.rgb_to_ycbcr` gives them, to (H, W, 3)."""
    rgb = np.empty((*luma.shape[:2], 3), dtype=np.float32)
    for top in range(0, len(rgb), _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        rgb[rows] = color.ycbcr_to_rgb(np.concatenate([luma[rows], chroma[rows]], axis=2))
    return rgb
