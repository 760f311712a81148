"""Resampling: known answers, a plain slow version, other libraries, the tables of the papers."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from waifu4x import pictures
from waifu4x.bench.metrics import psnr_y
from waifu4x.resample import KERNELS, Kernel, imresize, resize

kernels = pytest.mark.parametrize("kernel", KERNELS)
FloatArray = npt.NDArray[np.floating]


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).random(shape)


# -- known answers ---------------------------------------------------------------------------------


def column(*values: float) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]


@pytest.mark.parametrize(
    ("kernel", "scale", "source", "expected"),
    [
        # Keys' cubic at 1/4 and 3/4: pixel 2k weighs what lies around k - 1/4 by (-3, 29, 111, -9)
        # / 128, pixel 2k + 1 the other way round; the edge sample is repeated.
        (
            "bicubic",
            2.0,
            (0, 0, 128, 0, 0, 0),
            (0, -3, -9, 29, 111, 111, 29, -9, -3, 0, 0, 0),
        ),
        # Halved: the cubic stretched to 8 taps (-3, -9, 29, 111, 111, 29, -9, -3) / 256.
        ("bicubic", 0.5, (0, 0, 0, 0, 256, 0, 0, 0), (-3, 29, 111, -9)),
        # At the border the taps left of it see the reflected samples.
        ("bicubic", 0.5, (256, 0, 0, 0, 0, 0, 0, 0), (111 + 29, -9 - 3, 0, 0)),
        # Triangle: 3/4 and 1/4; halved: (1, 3, 3, 1) / 8.
        ("bilinear", 2.0, (0, 8, 16), (0, 2, 6, 10, 14, 16)),
        ("bilinear", 0.5, (8, 0, 0, 0), (4, 0)),
        ("nearest", 2.0, (1, 2, 3), (1, 1, 2, 2, 3, 3)),
        ("nearest", 3.0, (1, 2), (1, 1, 1, 2, 2, 2)),
        ("nearest", 1 / 3, (1, 2, 3, 4, 5, 6), (2, 5)),
    ],
)
def test_answers_worked_out_by_hand(
    kernel: Kernel, scale: float, source: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    result = imresize(column(*source), scale, kernel=kernel)[:, :1]
    np.testing.assert_allclose(result[:, 0], expected, atol=1e-12)
    wide = imresize(column(*source).T, scale, kernel=kernel)
    np.testing.assert_allclose(wide[0], expected, atol=1e-12)


def plain_cubic(t: Fraction) -> Fraction:
    x = abs(t)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return Fraction(-1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def plain_row(values: list[Fraction], scale: Fraction) -> list[Fraction]:
    """MATLAB's bicubic `imresize` of one row of numbers, word by word, in exact fractions."""
    stretch = min(scale, Fraction(1))
    support = 4 / stretch
    result = []
    for x in range(1, math.ceil(len(values) * scale) + 1):
        u = x / scale + Fraction(1, 2) * (1 - 1 / scale)
        left = math.floor(u - support / 2)
        total = weight_sum = Fraction(0)
        for index in range(left, left + math.ceil(support) + 2):
            weight = stretch * plain_cubic(stretch * (u - index))
            mirror = (index - 1) % (2 * len(values))
            mirror = mirror if mirror < len(values) else 2 * len(values) - 1 - mirror
            total += weight * values[mirror]
            weight_sum += weight
        result.append(total / weight_sum)
    return result


def plain_imresize(image: npt.NDArray[np.uint8], scale: Fraction) -> npt.NDArray[np.uint8]:
    """Height first, rounded half up and clipped after each pass."""

    def settle(row: list[Fraction]) -> list[Fraction]:
        return [Fraction(min(255, max(0, math.floor(v + Fraction(1, 2))))) for v in row]

    tall = [settle(plain_row([Fraction(int(v)) for v in line], scale)) for line in image.T]
    rows = list(zip(*tall, strict=True))
    wide = [settle(plain_row(list(row), scale)) for row in rows]
    return np.array([[int(v) for v in row] for row in wide], dtype=np.uint8)


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2)])
@pytest.mark.parametrize("binary", [False, True])
def test_imresize_of_8_bits_is_exact(scale: Fraction, binary: bool) -> None:
    """Black-and-white pictures have many results at exactly one half, and need clipping."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (24, 18), dtype=np.uint8)
    if binary:
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    expected = plain_imresize(image, scale)
    np.testing.assert_array_equal(imresize(image, float(scale)), expected)
    colors = np.stack([image, image[::-1], 255 - image], axis=2)
    np.testing.assert_array_equal(imresize(colors, float(scale))[..., 0], expected)


def test_8_bits_are_rounded_between_the_passes_and_the_height_comes_first() -> None:
    image = np.random.default_rng(5).integers(0, 256, (60, 60), dtype=np.uint8)
    image[::7] = 255
    once = np.clip(np.floor(imresize(image.astype(np.float64), 0.5) + 0.5), 0, 255)
    both = imresize(image, 0.5)
    width_first = imresize(np.ascontiguousarray(image.T), 0.5).T
    # Each detail moves a good part of the pixels; that is what makes tables of papers differ.
    assert (both != once).mean() > 0.05
    assert (both != width_first).mean() > 0.05
    expected = imresize(image[:, :1].repeat(60, axis=1), 0.5)[:, 0]
    by_hand = np.array(
        [
            min(255, max(0, math.floor(v + Fraction(1, 2))))
            for v in plain_row([Fraction(int(v)) for v in image[:, 0]], Fraction(1, 2))
        ]
    )
    np.testing.assert_array_equal(expected, by_hand)


@pytest.mark.parametrize(
    ("size", "scale", "out"),
    [(10, 0.25, 3), (10, 1 / 3, 4), (9, 1 / 3, 3), (7, 0.5, 4), (7, 1.5, 11), (300, 0.1, 30)],
)
def test_imresize_rounds_sizes_up(size: int, scale: float, out: int) -> None:
    assert imresize(np.zeros((size, 2 * size), np.uint8), scale).shape[0] == out


@pytest.mark.parametrize("multiple", [2, 3, 4])
@pytest.mark.parametrize("out", [1, 7, 64, 333, 4321])
def test_imresize_by_one_over_n_of_a_multiple_is_exact(multiple: int, out: int) -> None:
    shrunk = imresize(np.zeros((out * multiple, multiple), np.float32), 1 / multiple)
    assert shrunk.shape == (out, 1)


# -- properties ------------------------------------------------------------------------------------


@kernels
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size_px=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    value=st.floats(-1, 300, width=32),
)
def test_a_constant_stays_constant_at_any_size(
    kernel: Kernel, height: int, width: int, size_px: tuple[int, int], value: float
) -> None:
    image = np.full((height, width, 3), value, dtype=np.float32)
    result = resize(image, size_px, kernel=kernel)
    assert result.shape == (*size_px, 3)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, value, atol=1e-4)


@kernels
def test_the_same_size_is_the_same_picture(kernel: Kernel) -> None:
    image = noise(13, 9, 3)
    np.testing.assert_array_equal(resize(image, (13, 9), kernel=kernel), image)
    np.testing.assert_array_equal(imresize(image, 1.0, kernel=kernel), image)


@kernels
def test_mirroring_before_and_after_is_the_same(kernel: Kernel) -> None:
    image = noise(20, 30, 3)
    # Other factors make nearest choose between two equally near samples, and it takes the left.
    for size_px in ((40, 90),) if kernel == "nearest" else ((40, 90), (47, 95), (10, 9)):
        plain = resize(image, size_px, kernel=kernel)
        turned = resize(image[::-1, ::-1], size_px, kernel=kernel)[::-1, ::-1]
        np.testing.assert_allclose(turned, plain, atol=1e-12)


@kernels
def test_channels_and_dimensions_do_not_matter(kernel: Kernel) -> None:
    image = noise(33, 21, 4)
    together = resize(image, (70, 15), kernel=kernel)
    for channel in range(4):
        alone = resize(image[..., channel], (70, 15), kernel=kernel)
        np.testing.assert_allclose(alone, together[..., channel], atol=1e-13)
    sideways = resize(image.transpose(1, 0, 2), (15, 70), kernel=kernel)
    np.testing.assert_allclose(sideways.transpose(1, 0, 2), together, atol=1e-12)


@kernels
def test_blocks_and_bands_leave_no_seam(kernel: Kernel) -> None:
    """Wider than a block and taller than a band, against the same picture in small pieces."""
    image = noise(300, 290, 1)
    result = resize(image, (1200, 870), kernel=kernel)
    # Far from its own borders, a part of the picture is resampled as it is in the whole.
    part = resize(image[100:300, 90:290], (800, 600), kernel=kernel)
    np.testing.assert_allclose(part[40:, 30:], result[440:, 300:], atol=1e-12)


@kernels
def test_borders_are_reflected_with_the_edge_sample(kernel: Kernel) -> None:
    image = noise(12, 10, 1)
    mirrored = np.pad(image, ((12, 12), (10, 10), (0, 0)), mode="symmetric")
    for factor in (2, 3):
        whole = resize(mirrored, (36 * factor, 30 * factor), kernel=kernel)
        centre = whole[12 * factor : 24 * factor, 10 * factor : 20 * factor]
        alone = resize(image, (12 * factor, 10 * factor), kernel=kernel)
        np.testing.assert_allclose(alone, centre, atol=1e-12)


@kernels
def test_tiny_pictures_at_any_size(kernel: Kernel) -> None:
    for size_px in ((1, 1), (1, 50), (50, 1), (7, 13)):
        result = resize(np.full((1, 1), 0.3), size_px, kernel=kernel)
        np.testing.assert_allclose(result, np.full(size_px, 0.3), atol=1e-12)
    line = noise(1, 200)
    assert resize(line, (3, 2), kernel=kernel).shape == (3, 2)


@kernels
@pytest.mark.parametrize("scale", [2.0, 3.0, 0.5, 0.25, 1.5])
def test_resize_is_imresize_on_floats(kernel: Kernel, scale: float) -> None:
    image = noise(24, 16, 3)
    by_scale = imresize(image, scale, kernel=kernel)
    np.testing.assert_array_equal(resize(image, by_scale.shape[:2], kernel=kernel), by_scale)


@kernels
def test_float32_is_float64_but_for_rounding(kernel: Kernel) -> None:
    image = noise(40, 50, 3)
    exact = resize(image, (90, 31), kernel=kernel)
    rounded = resize(image.astype(np.float32), (90, 31), kernel=kernel)
    np.testing.assert_allclose(rounded, exact, atol=1e-6)


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0.0, 1.0]), 60)[None, :].repeat(120, axis=0)
    # By hand: the stretched triangle keeps 1/9 of the stripes' swing, the cubic 1/81.
    limits: dict[Kernel, float] = {"bilinear": 1 / 9, "bicubic": 1 / 81, "lanczos": 1e-3}
    for kernel, swing in limits.items():
        inside = resize(stripes, (40, 40), kernel=kernel)[:, 5:-5]
        assert np.abs(inside - 0.5).max() <= 0.5 * swing + 1e-9
    assert np.abs(resize(stripes, (40, 40), kernel="nearest") - 0.5).min() == 0.5


def test_the_input_is_never_written_to() -> None:
    image = noise(10, 10, 3)
    image.flags.writeable = False
    for kernel in KERNELS:
        resize(image, (20, 5), kernel=kernel)
        imresize(image, 2.0, kernel=kernel)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float16, np.bool_])
def test_what_it_cannot_do_is_refused(dtype: npt.DTypeLike) -> None:
    with pytest.raises(ValueError, match="works on"):
        imresize(np.zeros((4, 4), dtype), 2.0)
    with pytest.raises(ValueError, match="works on"):
        resize(np.zeros((4, 4), dtype), (8, 8))


def test_impossible_sizes_are_refused() -> None:
    integers: npt.NDArray[Any] = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match="works on float32 or float64, not uint8"):
        resize(integers, (8, 8))
    for size_px in ((0, 3), (3, -1)):
        with pytest.raises(ValueError, match="cannot resize"):
            resize(np.zeros((4, 4)), size_px)
    with pytest.raises(ValueError, match="cannot resize"):
        resize(np.zeros((0, 4)), (3, 3))
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="cannot resize"):
            imresize(np.zeros((4, 4)), scale)


# -- other libraries -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "filter", "reach"),
    [
        ("bilinear", Image.Resampling.BILINEAR, 1),
        ("bicubic", Image.Resampling.BICUBIC, 2),
        ("lanczos", Image.Resampling.LANCZOS, 3),
    ],
)
@pytest.mark.parametrize("size_px", [(30, 20), (41, 37), (24, 60), (240, 200), (131, 250)])
def test_pillow_agrees_away_from_the_borders(
    kernel: Kernel, filter: Image.Resampling, reach: int, size_px: tuple[int, int]
) -> None:
    """Pillow leaves out what lies beyond the border and renormalises; inside it is the same."""
    image = noise(120, 100).astype(np.float32)
    theirs = np.asarray(Image.fromarray(image).resize((size_px[1], size_px[0]), filter))
    ours = resize(image, size_px, kernel=kernel)
    # Output pixels whose taps all lie inside: `reach` source or target pixels, whichever is more.
    top, left = (
        math.ceil((reach + 1) * max(1.0, out / size))
        for out, size in zip(size_px, image.shape, strict=True)
    )
    inside = (slice(top, -top), slice(left, -left))
    assert ours[inside].size > 0
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=2e-6)
    if reach > 1:
        assert np.abs(ours - theirs).max() > 1e-3, "the borders are known to differ"


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_pillow_agrees_on_nearest(factor: int) -> None:
    image = noise(11, 13).astype(np.float32)
    size_px = (11 * factor, 13 * factor)
    theirs = np.asarray(
        Image.fromarray(image).resize((size_px[1], size_px[0]), Image.Resampling.NEAREST)
    )
    np.testing.assert_array_equal(resize(image, size_px, kernel="nearest"), theirs)


# -- the tables of the papers ----------------------------------------------------------------------


def mean_psnr(folder: Path, *, scale: int, kernel: Kernel = "bicubic") -> float:
    """Shrink, enlarge, compare, as papers do: all in 8 bits, gray as RGB, `scale` px shaved."""
    values = []
    for path in sorted(folder.glob("*.png")):
        pixels = pictures.read(path).pixels
        height, width = (n // scale * scale for n in pixels.shape[:2])
        hr = np.ascontiguousarray(np.broadcast_to(pixels[:height, :width], (height, width, 3)))
        sr = imresize(imresize(hr, 1 / scale), scale, kernel=kernel)
        values.append(psnr_y(sr, hr, border_px=scale))
    assert len(values) == {"Set5": 5, "Set14": 14, "B100": 100}[folder.name]
    return float(np.mean(values))


BICUBIC = {
    "Set5": (33.64, 30.39, 28.42),
    "Set14": (30.31, 27.62, 26.08),
    "B100": (29.55, 27.20, 25.96),
}


def _slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *(("Set5", 2), ("Set5", 3), ("Set5", 4), ("Set14", 4)),
        *(_slow("Set14", 2), _slow("Set14", 3)),
        *(_slow("B100", 2), _slow("B100", 3), _slow("B100", 4)),
    ],
)
def test_bicubic_measures_what_the_papers_print(shared: Path, name: str, scale: int) -> None:
    found = mean_psnr(shared / "data" / "bench" / name, scale=scale)
    assert found == pytest.approx(BICUBIC[name][scale - 2], abs=0.01)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("nearest", (30.84, 27.91, 26.25)),
        ("bilinear", (32.22, 29.52, 27.55)),
        ("lanczos", (34.27, 30.81, 28.80)),
    ],
)
def test_the_other_filters_on_set5(
    shared: Path, kernel: Kernel, expected: tuple[float, ...]
) -> None:
    found = [
        mean_psnr(shared / "data" / "bench" / "Set5", scale=s, kernel=kernel) for s in (2, 3, 4)
    ]
    assert found == pytest.approx(expected, abs=0.01)
