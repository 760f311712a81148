"""SSIM, MS-SSIM and GMSD against other people's code, by hand, and against the papers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import signal
from skimage.metrics import structural_similarity

from waifu4x.bench import similarity
from waifu4x.bench.datasets import cut_to_multiple, read_8bit
from waifu4x.bench.metrics import luma_8bit, shaved
from waifu4x.resample import imresize

# Published for bicubic, x2, x3, x4 (the table of the VDSR paper).
PUBLISHED = {
    "Set5": (0.9299, 0.8682, 0.8104),
    "Set14": (0.8688, 0.7742, 0.7027),
    "B100": (0.8431, 0.7385, 0.6675),
}


def pair(height: int, width: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two planes of whole numbers in 0..255 that have something in common."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    wave = 128 + 60 * np.sin(x / 5.0) * np.cos(y / 7.0)
    return tuple(np.rint(wave + rng.normal(0, 12, wave.shape)).clip(0, 255) for _ in range(2))


def colored(height: int, width: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    planes = [pair(height, width, seed=seed + channel) for channel in range(3)]
    return tuple(np.stack(each, axis=2).astype(np.uint8) for each in zip(*planes, strict=True))


# SSIM.


@pytest.mark.parametrize("size", [(11, 11), (12, 31), (64, 48)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    one, other = pair(*size)
    _, whole = structural_similarity(
        one,
        other,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # It reflects at the borders; where the window lies inside, both must be the same.
    assert similarity.ssim(one, other) == pytest.approx(float(np.mean(shaved(whole, 5))), abs=1e-12)


def test_ssim_by_hand() -> None:
    flat = np.full((11, 15), 100.0)
    # No variance: luminance alone is left.
    c1 = (0.01 * 255) ** 2
    wanted = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert similarity.ssim(flat, flat + 20) == pytest.approx(wanted, abs=1e-10)
    # Against its own negative of equal means: structure is opposite.
    y, x = np.mgrid[:11, :11]
    board = np.where((x + y) % 2, 1.0, -1.0) * 50
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / 4.5)
    weights /= weights.sum()
    mean = float(weights @ board @ weights)
    variance = 2500 - mean**2
    c2 = (0.03 * 255) ** 2
    low, high = 128 + mean, 128 - mean
    wanted = (2 * low * high + c1) / (low**2 + high**2 + c1) * (c2 - 2 * variance)
    wanted /= 2 * variance + c2
    assert similarity.ssim(128 + board, 128 - board) == pytest.approx(wanted, abs=1e-9)
    # The peak scales the constants with the values.
    one, other = pair(20, 20)
    assert similarity.ssim(one / 255, other / 255, peak=1.0) == pytest.approx(
        similarity.ssim(one, other), abs=1e-12
    )


@pytest.mark.parametrize("metric", [similarity.ssim, similarity.ms_ssim])
def test_equal_planes_are_one_and_order_does_not_matter(metric) -> None:
    one, other = pair(180, 176)
    assert metric(one, one) == pytest.approx(1.0, abs=1e-12)
    assert metric(one, other) == pytest.approx(metric(other, one), abs=1e-12)
    assert 0.1 < metric(one, other) < 0.95


def test_uint8_is_not_computed_in_uint8() -> None:
    one, other = (plane.astype(np.uint8) for plane in pair(180, 180))
    for metric in (similarity.ssim, similarity.ms_ssim, similarity.gmsd):
        assert metric(one, other) == metric(one.astype(float), other.astype(float))


def test_ssim_y_is_of_rounded_luma_inside_the_border() -> None:
    one, other = colored(30, 40, seed=1)
    wanted = similarity.ssim(luma_8bit(one)[3:-3, 3:-3], luma_8bit(other)[3:-3, 3:-3])
    assert similarity.ssim_y(one, other, border_px=3) == wanted
    spoiled = one.copy()
    spoiled[:3] = 255 - spoiled[:3]
    assert similarity.ssim_y(spoiled, one, border_px=3) == pytest.approx(1.0)
    assert similarity.ssim_y(spoiled, one, border_px=2) < 0.9995


# MS-SSIM.


def slowly(one: np.ndarray, other: np.ndarray) -> float:
    """MS-SSIM as its authors' script goes: whole windows, imfilter, every second sample."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 4.5)
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(plane: np.ndarray) -> np.ndarray:
        return signal.correlate2d(plane, window, mode="valid")

    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        a, b = mean(one), mean(other)
        va, vb, vab = mean(one**2) - a**2, mean(other**2) - b**2, mean(one * other) - a * b
        structure = (2 * vab + c2) / (va + vb + c2)
        whole = structure * (2 * a * b + c1) / (a**2 + b**2 + c1)
        result *= (whole if scale == 4 else structure).mean() ** weight
        # The window's origin is its upper left; MATLAB's 'symmetric' repeats the last sample.
        one, other = (
            signal.correlate2d(np.pad(p, ((0, 1), (0, 1)), "symmetric"), np.full((2, 2), 0.25))[
                1:-1:2, 1:-1:2
            ]
            for p in (one, other)
        )
    return result


@pytest.mark.parametrize("size", [(176, 192), (181, 203)])
def test_ms_ssim_is_its_authors(size: tuple[int, int]) -> None:
    one, other = pair(*size, seed=3)
    assert similarity.ms_ssim(one, other) == pytest.approx(slowly(one, other), abs=1e-10)


def test_ms_ssim_of_the_parts_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    import torch

    one, other = pair(176, 208, seed=4)  # multiples of 16: it drops an odd last row
    a, b = (torch.from_numpy(plane)[None, None] for plane in (one, other))
    whole = functional.structural_similarity_index_measure
    result = 1.0
    for scale, weight in enumerate(similarity.MS_SSIM_WEIGHTS):
        if scale == 4:
            # Its mean is also over what it reflected at the borders; that is cut off here.
            image = whole(a, b, data_range=255.0, return_full_image=True)[1]
            result *= float(image[..., 5:-5, 5:-5].mean()) ** weight
            break
        result *= (
            float(whole(a, b, data_range=255.0, return_contrast_sensitivity=True)[1]) ** weight
        )
        a, b = (torch.nn.functional.avg_pool2d(plane, 2) for plane in (a, b))
    assert similarity.ms_ssim(one, other) == pytest.approx(result, abs=1e-10)


def test_ms_ssim_of_opposites_is_zero() -> None:
    one, _ = pair(176, 176)
    assert similarity.ms_ssim(one, 255 - one) == 0.0


def test_ms_ssim_y() -> None:
    one, other = colored(184, 190, seed=2)
    wanted = similarity.ms_ssim(luma_8bit(one)[4:-4, 4:-4], luma_8bit(other)[4:-4, 4:-4])
    assert similarity.ms_ssim_y(one, other, border_px=4) == wanted
    with pytest.raises(ValueError, match="MS-SSIM needs 176 px"):
        similarity.ms_ssim_y(one, other, border_px=5)


# GMSD.


@pytest.mark.parametrize("size", [(4, 4), (20, 30), (21, 35)])
def test_gmsd_is_its_authors(size: tuple[int, int]) -> None:
    one, other = pair(*size, seed=5)
    prewitt = np.array([[1.0, 0.0, -1.0]] * 3) / 3

    def gradient(plane: np.ndarray) -> np.ndarray:
        full = signal.convolve2d(plane, np.full((2, 2), 0.25))
        small = full[1:, 1:][::2, ::2]  # MATLAB's "same" of an even kernel begins at the second
        return np.hypot(*(signal.convolve2d(small, k, mode="same") for k in (prewitt, prewitt.T)))

    a, b = gradient(one), gradient(other)
    likeness = (2 * a * b + 170) / (a**2 + b**2 + 170)
    wanted = math.sqrt(((likeness - likeness.mean()) ** 2).sum() / (likeness.size - 1))
    assert similarity.gmsd(one, other) == pytest.approx(wanted, abs=1e-12)


def test_gmsd_by_hand() -> None:
    one, other = pair(24, 24)
    assert similarity.gmsd(one, one) == 0.0
    assert similarity.gmsd(one, other) == pytest.approx(similarity.gmsd(other, one))
    # A spot of 2×2 px against black: nine gradients, of which the middle one is none.
    black, spot = np.zeros((10, 10)), np.zeros((10, 10))
    spot[4:6, 4:6] = 30.0
    side, corner = (30 / 3) ** 2, 2 * (30 / 3) ** 2
    likeness = np.array([1.0] * 17 + [170 / (side + 170)] * 4 + [170 / (corner + 170)] * 4)
    assert similarity.gmsd(black, spot) == pytest.approx(float(np.std(likeness, ddof=1)))


def test_gmsd_is_of_full_range_gray() -> None:
    one, other = colored(30, 40, seed=6)

    def gray(rgb: np.ndarray) -> np.ndarray:
        return np.rint(rgb @ [0.2989, 0.5870, 0.1140])  # as MATLAB documents rgb2gray

    wanted = similarity.gmsd(gray(one)[2:-2, 2:-2], gray(other)[2:-2, 2:-2])
    assert similarity.gmsd_gray(one, other, border_px=2) == pytest.approx(wanted, rel=1e-3)
    white, black = np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)
    split = np.concatenate([white, black], axis=1)
    plane = np.concatenate([np.full((8, 8), 255.0), np.zeros((8, 8))], axis=1)
    flat = np.full((8, 16, 3), 128, np.uint8)
    assert similarity.gmsd_gray(split, flat, border_px=0) == pytest.approx(
        similarity.gmsd(plane, np.full((8, 16), 128.0))
    )


# What cannot be compared.


@pytest.mark.parametrize(
    ("metric", "smallest", "words"),
    [
        (similarity.ssim, 11, "SSIM needs 11 px"),
        (similarity.ms_ssim, 176, "MS-SSIM needs 176 px"),
        (similarity.gmsd, 4, "GMSD needs 4 px"),
    ],
)
def test_what_cannot_be_compared(metric, smallest: int, words: str) -> None:
    fits = np.zeros((smallest, smallest))
    assert metric(fits, fits) in (0.0, 1.0)
    small = np.zeros((smallest, smallest - 1))
    with pytest.raises(ValueError, match=words):
        metric(small, small)
    with pytest.raises(ValueError, match="compares two planes"):
        metric(fits, small)
    with pytest.raises(ValueError, match="compares two planes"):
        metric(np.zeros((200, 200, 3)), np.zeros((200, 200, 3)))


# The papers.


def mean_ssim(folder: Path, scale: int) -> float:
    """Of bicubic by the scripts of SRCNN and VDSR: luma alone, shrunk without rounding."""
    values = []
    for path in sorted(folder.glob("*.png")):
        hr = cut_to_multiple(read_8bit(path), scale)
        # A gray picture is kept as it is, as the published figures of Set14 are.
        truth = hr[..., 0].astype(np.float64) if hr.shape[2] == 1 else luma_8bit(hr)
        levels = imresize(imresize(truth / 255.0, 1.0 / scale), float(scale)) * 255.0
        levels = np.clip(np.floor(levels + 0.5), 0.0, 255.0)
        values.append(similarity.ssim(shaved(levels, scale), shaved(truth, scale)))
    return float(np.mean(values))


@pytest.mark.parametrize("name", ["Set5", "Set14", pytest.param("B100", marks=pytest.mark.slow)])
def test_published_ssim_of_bicubic(shared: Path, name: str) -> None:
    for scale, published in zip((2, 3, 4), PUBLISHED[name], strict=True):
        got = mean_ssim(shared / "data" / "bench" / name, scale)
        # Set14 x3 and x4 differ most, by 0.0006 and 0.0008: see the rule of borders of `imresize`.
        assert got == pytest.approx(published, abs=1e-3 if name == "Set14" else 2e-4)
