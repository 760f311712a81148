"""NIQE: how unlike the statistics of natural pictures a picture is; lower is better.

Mittal, Soundararajan, Bovik, "Making a 'Completely Blind' Image Quality Analyzer" (2013),
https://live.ece.utexas.edu/research/quality/. As published: luma 0..255, blocks of 96×96 without
overlap at two scales, a multivariate Gaussian of 36 features against that of pristine pictures.
Few blocks make it unstable: pictures below about 300×300 px are not to be judged by it.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x.bench.metrics import luma_8bit, shaved
from waifu4x.errors import UsageError
from waifu4x.resample import imresize

BLOCK_PX = 96
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Shapes of generalised Gaussians that are tried, and the ratio of moments that belongs to each.
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.array(
    [math.gamma(2 / a) ** 2 / (math.gamma(1 / a) * math.gamma(3 / a)) for a in _SHAPES]
)

# What numpy raises for a file that is no archive, and for a damaged one.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)

Plane = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The model of pristine pictures, of the authors' release."""

    mean: Plane
    """(36,)"""
    covariance: Plane
    """(36, 36)"""
    window: Plane
    """(7, 7): weights of the local mean and deviation."""


def load_prior(path: Path) -> Prior:
    """From an ``.npz`` with ``mu_pris_param``, ``cov_pris_param`` and ``gaussian_window``.

    Raises:
        UsageError: the file is missing, or holds something else.
    """
    try:
        # numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            prior = Prior(
                mean=file["mu_pris_param"].reshape(36).astype(np.float64),
                covariance=file["cov_pris_param"].reshape(36, 36).astype(np.float64),
                window=file["gaussian_window"].reshape(7, 7).astype(np.float64),
            )
    except (*_UNREADABLE, AttributeError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is no model of NIQE ({error})") from error
    if not all(np.isfinite(part).all() for part in (prior.mean, prior.covariance, prior.window)):
        raise UsageError(f"{path} is no model of NIQE (it holds NaN or infinity)")
    return prior


def niqe(image: npt.NDArray[np.uint8], prior: Prior, *, border_px: int = 0) -> float:
    """The distance of a picture (H, W, 3) uint8 RGB, `border_px` cut off every side.

    NaN where no block at all has one of the features: a picture of one colour has no statistics.

    Raises:
        ValueError: less than one block of 96×96 px is left.
    """
    plane = shaved(luma_8bit(image), border_px)
    rows, columns = (n // BLOCK_PX for n in plane.shape)
    if rows < 1 or columns < 1:
        raise ValueError(f"NIQE needs {BLOCK_PX}×{BLOCK_PX} px, not {plane.shape}")
    plane = plane[: rows * BLOCK_PX, : columns * BLOCK_PX]
    features = []
    for block_px in (BLOCK_PX, BLOCK_PX // 2):
        normalised = _normalised(plane, prior.window)
        blocks = normalised.reshape(rows, block_px, columns, block_px).swapaxes(1, 2)
        features.append([_features(b) for b in blocks.reshape(-1, block_px, block_px)])
        plane = imresize(plane / 255.0, 0.5) * 255.0
    return _distance(np.concatenate(features, axis=1), prior)


def _distance(found: Plane, prior: Prior) -> float:
    if np.isnan(found).all(axis=0).any():
        return math.nan
    whole = found[~np.isnan(found).any(axis=1)]
    covariance = np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((36, 36))
    difference = prior.mean - np.nanmean(found, axis=0)
    inverse = np.linalg.pinv((prior.covariance + covariance) / 2.0)
    return math.sqrt(float(difference @ inverse @ difference))


def _normalised(plane: Plane, window: Plane) -> Plane:
    """Each pixel less the local mean, over the local deviation and one."""
    mean = _filtered(plane, window)
    deviation = np.sqrt(np.abs(_filtered(plane**2, window) - mean**2))
    return (plane - mean) / (deviation + 1.0)


def _filtered(plane: Plane, window: Plane) -> Plane:
    reach = window.shape[0] // 2
    padded = np.pad(plane, reach, mode="edge")
    height, width = plane.shape
    total = np.zeros_like(plane)
    for (y, x), weight in np.ndenumerate(window):
        total += weight * padded[y : y + height, x : x + width]
    return total


def _features(block: Plane) -> list[float]:
    """18 numbers: shape and scale of the block, and of its products with four neighbours."""
    shape, left, right = _asymmetric_gaussian(block)
    features = [shape, (left + right) / 2.0]
    for shift in _SHIFTS:
        product = block * np.roll(block, shift, axis=(0, 1))
        shape, left, right = _asymmetric_gaussian(product)
        mean = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def _asymmetric_gaussian(values: Plane) -> tuple[float, float, float]:
    """Shape, and left and right scale, of the asymmetric generalised Gaussian that fits.

    A side without values has the scale NaN, and the shape is then the least one there is: so the
    authors' MATLAB code has it, where NaN is nearest to the first of the shapes.
    """
    left, right = (
        math.sqrt(float(np.mean(side**2))) if len(side) else math.nan
        for side in (values[values < 0], values[values > 0])
    )
    shape = float(_SHAPES[0])
    if not math.isnan(left + right):
        skew = left / right
        moments = float(np.mean(np.abs(values)) ** 2 / np.mean(values**2))
        ratio = moments * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
        shape = float(_SHAPES[np.argmin((_RATIOS - ratio) ** 2)])
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * scale, right * scale
