"""How super-resolution papers measure: shrink, enlarge, compare, with every convention by name.

The published figures of a system hold under the conventions of its authors' scripts, which differ
in two places: what is shrunk, and whether luma is rounded. That moves a result by 0.01 to 0.08 dB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import color
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.bench.metrics import luma_8bit, psnr, shaved
from waifu4x.bench.niqe import BLOCK_PX, Prior, niqe
from waifu4x.errors import UsageError
from waifu4x.folders import find_pictures
from waifu4x.pictures import Picture
from waifu4x.resample import imresize
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

Uint8Array = npt.NDArray[np.uint8]

PROTOCOLS = {
    "rgb8": "8-bit RGB is shrunk and rounded to 8 bit; luma is rounded (MATLAB on uint8)",
    "rgb8-float-y": "as rgb8, but luma is not rounded (BasicSR)",
    "luma": "8-bit luma is shrunk in float, not rounded (the scripts of SRCNN and VDSR)",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on one folder."""

    model: str
    folder: str
    scale: int
    protocol: str
    precision: str
    pictures: dict[str, float]
    """Y-PSNR in dB of each picture."""
    niqe: dict[str, float] | None = None
    """Of each picture that is large enough, where it was asked for."""

    @property
    def psnr_db(self) -> float:
        """The mean of the pictures' dB, as papers average."""
        return float(np.mean(list(self.pictures.values())))

    @property
    def mean_niqe(self) -> float | None:
        return None if not self.niqe else float(np.mean(list(self.niqe.values())))

    def facts(self) -> dict[str, object]:
        """All of it as plain values; None for an infinite PSNR, which JSON cannot say."""
        values = {name: _finite(db) for name, db in self.pictures.items()}
        whole = {**self.__dict__, "pictures": values, "psnr_db": _finite(self.psnr_db)}
        if self.niqe is None:
            whole.pop("niqe")
            return whole
        return {**whole, "mean_niqe": self.mean_niqe}


def measure(
    upscaler: Upscaler,
    folder: Path,
    *,
    scale: int,
    protocol: str = "rgb8",
    prior: Prior | None = None,
) -> Measured:
    """Y-PSNR, and with a `prior` NIQE, of a model on every picture of a folder.

    The high-resolution picture is cut to a multiple of the scale, shrunk by MATLAB's bicubic
    `imresize`, enlarged by the model and compared with `scale` px cut off every border.

    NIQE is of the enlarged picture, with the same border cut off.

    Raises:
        UsageError: no such protocol or scale, NIQE of luma alone, no pictures in the folder, or one
            that is too small.
        PictureReadError: a picture that cannot be read.
    """
    if scale < 2:
        raise UsageError(f"a scale to measure at is 2 or more, not {scale}")
    if protocol not in PROTOCOLS:
        raise UsageError(f"no protocol {protocol!r}: use {', '.join(PROTOCOLS)}")
    if prior is not None and protocol == "luma":
        raise UsageError("NIQE is measured on whole pictures: choose another protocol than luma")
    found = find_pictures(folder)
    if not found:
        raise UsageError(f"no pictures in {folder}")
    values: dict[str, float] = {}
    natural: dict[str, float] = {}
    for path in found:
        hr = cut_to_multiple(read_8bit(path), scale)
        # As many are cut off every border: something must be left.
        if min(hr.shape[:2]) <= 2 * scale:
            raise UsageError(f"{path} is too small to measure at x{scale}; take it out of there")
        if protocol == "luma":
            values[path.stem] = _measure_luma(upscaler, hr, scale=scale)
            continue
        sr = _enlarged(upscaler, hr, scale)
        luma = color.luma if protocol == "rgb8-float-y" else luma_8bit
        values[path.stem] = psnr(*(shaved(luma(as_rgb(image)), scale) for image in (sr, hr)))
        if prior is not None and min(hr.shape[:2]) - 2 * scale >= BLOCK_PX:
            natural[path.stem] = niqe(as_rgb(sr), prior, border_px=scale)
    runner = upscaler.runner
    return Measured(
        model=upscaler.name,
        folder=folder.name,
        scale=scale,
        protocol=protocol,
        precision="fp32" if runner is None else runner.precision,
        pictures=values,
        niqe=None if prior is None else natural,
    )


def _enlarged(upscaler: Upscaler, hr: Uint8Array, scale: int) -> Uint8Array:
    small = Picture(pixels=imresize(hr, 1.0 / scale))
    return upscaler.upscale(small, Target(scale=scale))[0].pixels


def _measure_luma(upscaler: Upscaler, hr: Uint8Array, *, scale: int) -> float:
    """For networks of luma alone, and for resampling: no colour is involved at any point."""
    truth = luma_8bit(as_rgb(hr))
    small = imresize(truth / 255.0, 1.0 / scale)
    sr = upscaler.enlarge_plane(small.astype(np.float32), truth.shape[:2])
    levels = np.clip(np.floor(sr.astype(np.float64) * 255.0 + 0.5), 0.0, 255.0)
    return psnr(shaved(levels, scale), shaved(truth, scale))


def _finite(db: float) -> float | None:
    return db if math.isfinite(db) else None
