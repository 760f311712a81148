"""Degradations: what each step does, aligned, repeatable, and what options they take."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from waifu4x.errors import UsageError
from waifu4x.resample import imresize
from waifu4x.train.degrading import spoiling
from waifu4x.train.degrading.captions import with_caption
from waifu4x.train.degrading.degrade import DEGRADATIONS, Jpeg, build
from waifu4x.train.degrading.real import SECOND_STAGE, Real, Stage
from waifu4x.train.degrading.spoiling import MODES, Mode

# Everything on, often: no branch is left to chance.
WILD: dict[str, Any] = {
    "halo_chance": 0.5,
    "webp_chance": 0.5,
    "resave_chance": 0.5,
    "rescale_chance": 0.5,
    "caption_chance": 0.5,
}


def some_hr(side_px: int = 96, *, seed: int = 0) -> np.ndarray:
    """(side_px, side_px, 3) uint8: waves and a few hard edges."""
    y, x = np.mgrid[:side_px, :side_px]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    planes = [100 * np.sin(x / 7 + p) * np.cos(y / 9 + p) + 120 for p in phase]
    image = np.stack(planes, axis=2).astype(np.uint8)
    image[side_px // 3 : side_px // 2, side_px // 4 : side_px // 2] = (250, 20, 60)
    return image


# Kernels and single steps.


def test_kernels_sum_to_one_and_do_not_shift() -> None:
    kernels = [spoiling.sinc_kernel(size, cutoff) for size in (7, 21) for cutoff in (0.7, math.pi)]
    for shape in ("gaussian", "generalized", "plateau"):
        kernels.append(spoiling.bell_kernel(13, (2.5, 0.6), angle=0.8, shape=shape, beta=0.7))
    for kernel in kernels:
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
    with pytest.raises(ValueError, match="odd size"):
        spoiling.bell_kernel(8, (1.0, 1.0))


def test_bell_kernels_have_known_values() -> None:
    def ratio(**options: Any) -> float:
        kernel = spoiling.bell_kernel(9, (2.0, 2.0), **options)
        return float(kernel[4, 6] / kernel[4, 4])  # at a distance of one sigma

    assert ratio() == pytest.approx(math.exp(-0.5))
    assert ratio(shape="generalized", beta=3.0) == pytest.approx(math.exp(-0.5))
    assert ratio(shape="plateau", beta=2.0) == pytest.approx(0.5)
    turned = spoiling.bell_kernel(9, (3.0, 1.0), angle=math.pi / 2)
    np.testing.assert_allclose(turned, spoiling.bell_kernel(9, (3.0, 1.0)).T, atol=1e-7)
    assert turned[8, 4] > turned[4, 8]


def test_the_bessel_function_in_the_sinc_kernel() -> None:
    """J1(1) and J1(40), and its third zero, from DLMF's tables."""
    got = spoiling._bessel_j1(np.array([1.0, 40.0, 10.1734681350627]))
    np.testing.assert_allclose(got, [0.44005058574493355, 0.12603831803758503, 0.0], atol=1e-11)
    # Below its cutoff the filter passes nearly everything, above it next to nothing.
    wave = np.cos(np.arange(64) * 0.6)[None, :, None].repeat(64, axis=0).astype(np.float32)
    passed, stopped = (
        float(spoiling.convolve(wave, spoiling.sinc_kernel(21, cutoff))[20:44, 20:44].std())
        for cutoff in (1.5, 0.25)
    )
    assert passed > 0.9 * wave.std() > 10 * stopped


def test_convolution_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (12, 17, 3)).astype(np.float32)
    kernel = rng.uniform(0, 1, (5, 5)).astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    expected = np.zeros_like(image)
    for dy in range(5):
        for dx in range(5):
            expected += kernel[4 - dy, 4 - dx] * padded[dy : dy + 12, dx : dx + 17]
    np.testing.assert_allclose(spoiling.convolve(image, kernel), expected, rtol=1e-4)


def test_noise_has_the_strength_that_was_asked_for() -> None:
    random = np.random.default_rng(0)
    flat = np.full((128, 128, 3), 120.0, dtype=np.float32)
    noise = spoiling.gaussian_noise(flat, 10.0, gray=False, random=random) - flat
    assert noise.std() == pytest.approx(10.0, rel=0.03)
    gray = spoiling.gaussian_noise(flat, 10.0, gray=True, random=random)
    assert (gray == gray[..., :1]).all()
    # All 256 levels: 256 electrons at 255, and at 120 a deviation of sqrt(120 * 255 / 256).
    levels = np.arange(256, dtype=np.float32).repeat(3).reshape(1, 256, 3)
    picture = np.concatenate([flat, levels.repeat(2, axis=1)[:, :128], levels[:, 128:]])
    for strength in (1.0, 0.3):
        noise = spoiling.poisson_noise(picture, strength, gray=False, random=random)[:128] - 120.0
        assert abs(noise.mean()) < 0.2 * strength
        assert noise.std() == pytest.approx(strength * math.sqrt(120 * 255 / 256), rel=0.03)
    black = spoiling.poisson_noise(np.zeros_like(flat), 3.0, gray=True, random=random)
    assert (black == 0.0).all()


def test_compression_keeps_the_place_and_costs_what_quality_says() -> None:
    image = some_hr(50).astype(np.float32)
    errors = {}
    for codec in ("JPEG", "WEBP"):
        for quality in (20, 95):
            done = spoiling.compressed(
                image, codec=codec, quality=quality, half_chroma=True, origin_px=(5, 13)
            )
            assert done.shape == image.shape
            errors[codec, quality] = float(np.square(done - image).mean())
        assert 0.0 < errors[codec, 95] < errors[codec, 20] / 2 < 500.0
    full = spoiling.compressed(
        image, codec="JPEG", quality=95, half_chroma=False, origin_px=(5, 13)
    )
    assert np.square(full - image).mean() < errors["JPEG", 95] / 2


def test_blocks_begin_where_they_should() -> None:
    ramp = np.linspace(90, 130, 64, dtype=np.float32)[None, :, None] * np.ones((64, 1, 3))
    for left in (0, 3):
        done = spoiling.compressed(
            ramp.astype(np.float32), codec="JPEG", quality=5, half_chroma=False, origin_px=(0, left)
        )
        steps = np.abs(np.diff(done[..., 0], axis=1)).mean(axis=0)
        edges = (np.arange(63) + 1 + left) % 8 == 0
        assert steps[edges].sum() > 30.0
        assert steps[~edges].max() == 0.0


def test_oversharpening_makes_halos() -> None:
    step = np.full((16, 32, 3), 100.0, dtype=np.float32)
    step[:, 16:] = 150.0
    done = spoiling.oversharpened(step, radius_px=2.0, amount=1.0)
    assert done[8, 15, 0] < 95.0
    assert done[8, 16, 0] > 155.0
    assert (done[:, :4] == 100.0).all()


def test_sharpening_of_targets_leaves_grain_alone() -> None:
    grain = np.random.default_rng(0).integers(118, 124, (70, 110, 3)).astype(np.uint8)
    np.testing.assert_array_equal(spoiling.sharpen(grain), grain)
    step = np.full((70, 110, 3), 100, dtype=np.uint8)
    step[:, 55:] = 150
    sharp = spoiling.sharpen(step)
    assert sharp.dtype == np.uint8
    assert sharp[35, 53, 0] < 100
    assert sharp[35, 56, 0] > 150
    np.testing.assert_array_equal(sharp[:, ::-1] + sharp, np.full_like(step, 250))
    assert (sharp[:, 0] == 100).all()


def test_the_gaussian_of_sharpening_is_a_gaussian() -> None:
    image = some_hr(120).astype(np.float32)
    kernel = spoiling.bell_kernel(51, (8.0, 8.0))
    np.testing.assert_allclose(spoiling._soft(image), spoiling.convolve(image, kernel), atol=0.02)


# Alignment.


def centroid(image: np.ndarray) -> tuple[float, float]:
    """Of what is brighter than black, in units of the picture's own sides."""
    mass = image.astype(np.float64).sum(axis=2)
    y, x = ((np.arange(side) + 0.5) / side for side in mass.shape)
    return float(mass.sum(axis=1) @ y / mass.sum()), float(mass.sum(axis=0) @ x / mass.sum())


def blob(side_px: int, *, at: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[:side_px, :side_px] + 0.5
    square_px = (y - at[0] * side_px) ** 2 + (x - at[1] * side_px) ** 2
    return np.exp(-square_px / (0.01 * side_px**2))[..., None].repeat(3, axis=2) * 250.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target_px", [(24, 24), (41, 37), (48, 32), (200, 170)])
def test_no_resizing_shifts(mode: Mode, target_px: tuple[int, int]) -> None:
    """Within 0.05 px of x4 low resolution, that is 0.2 of these; nearest in the mean of many."""
    random = np.random.default_rng(0)
    image = blob(96, at=(0.46, 0.55)).astype(np.float32)
    before = centroid(image)
    places = [
        centroid(spoiling.resized(image, target_px, mode=mode, random=random))
        for _ in range(32 if mode == "nearest" else 1)
    ]
    shift_px = 96 * (np.mean(places, axis=0) - before)
    assert np.abs(shift_px).max() < 0.2


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_no_degradation_shifts(kind: str) -> None:
    """Within 0.05 low-resolution px in the mean; noise is off, because it moves centroids."""
    quiet = {"noise_chance": 0.0}
    options = {"real": WILD | {"caption_chance": 0.0, "first": quiet, "second": quiet}}.get(kind)
    degradation = build(kind, scale=4, options=options)
    random = np.random.default_rng(1)
    shifts = []
    for _ in range(150):
        at = random.uniform(0.45, 0.55, 2)
        hr = np.rint(blob(96, at=(at[0], at[1]))).astype(np.uint8)
        lr = degradation(hr, random)
        # Blocks leave a faint veil far away, which has leverage.
        lr = np.where(lr > 20, lr, 0)
        shifts.append(24 * (np.array(centroid(lr)) - centroid(np.where(hr > 20, hr, 0))))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05


# Degradations as values.


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_sizes_and_kinds(kind: str, scale: int) -> None:
    degradation = build(kind, scale=scale, options=WILD if kind == "real" else None)
    hr = some_hr(96)[:72]
    kept = hr.copy()
    random = np.random.default_rng(0)
    for _ in range(4):
        lr, target = degradation.pair(hr, random)
        assert (lr.shape, lr.dtype) == ((72 // scale, 96 // scale, 3), np.uint8)
        assert (target.shape, target.dtype) == (hr.shape, np.uint8)
    np.testing.assert_array_equal(hr, kept)
    # A single low-resolution pixel is enough.
    assert degradation(hr[:scale, :scale], random).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_generator_decides_everything(kind: str) -> None:
    degradation = build(kind, scale=4, options=WILD if kind == "real" else None)
    carried = pickle.loads(pickle.dumps(degradation))
    assert carried == degradation
    hr = some_hr()
    for seed in range(8):
        pairs = [each.pair(hr, np.random.default_rng(seed)) for each in (degradation, carried)]
        for one, other in zip(*pairs, strict=True):
            np.testing.assert_array_equal(one, other)
    results = {degradation(hr, np.random.default_rng(seed)).tobytes() for seed in range(8)}
    assert len(results) == (1 if kind == "bicubic" else 8)


def test_bicubic_is_imresize() -> None:
    hr = some_hr()
    lr = build("bicubic", scale=3)(hr, np.random.default_rng(0))
    np.testing.assert_array_equal(lr, imresize(hr, 1 / 3))


def test_jpeg_is_sometimes_left_out() -> None:
    hr = some_hr()
    clean = imresize(hr, 0.5)
    random = np.random.default_rng(0)
    half = Jpeg(scale=2, none_chance=0.5)
    share = np.mean([np.array_equal(half(hr, random), clean) for _ in range(100)])
    assert 0.3 < share < 0.7
    bad, good = (Jpeg(scale=2, none_chance=0.0, quality=(q, q))(hr, random) for q in (10, 95))
    errors = [np.square(each.astype(float) - clean).mean() for each in (bad, good)]
    assert errors[0] > 4 * errors[1] > 0


def test_web_is_one_filter_and_at_most_one_save_where_nothing_else_is_drawn() -> None:
    hr = some_hr()
    calm = {"soft_chance": 0.0, "halo_chance": 0.0, "noise_chance": 0.0, "caption_chance": 0.0}
    clean = build("web", scale=4, options=calm | {"none_chance": 1.0})
    filters = {clean(hr, np.random.default_rng(seed)).tobytes() for seed in range(30)}
    by_hand = {
        np.asarray(Image.fromarray(hr).resize((hr.shape[1] // 4, hr.shape[0] // 4), way)).tobytes()
        for way in (1, 2, 3, 4)  # Pillow's Lanczos, bilinear, bicubic and box
    }
    assert filters == by_hand
    low, high = (
        build("web", scale=4, options=calm | {"none_chance": 0.0, "quality": (q, q)})
        for q in (30, 95)
    )
    for seed in range(4):
        # The filter is drawn first, so it is the same one.
        before = clean(hr, np.random.default_rng(seed)).astype(float)
        worse, better = (
            np.abs(saved(hr, np.random.default_rng(seed)) - before).mean() for saved in (low, high)
        )
        assert worse > 1.5 * better > 0.0


def test_captions_have_clean_edges_and_are_in_both_pictures() -> None:
    gray = np.full((128, 128, 3), 128, dtype=np.uint8)
    drawn = with_caption(gray, np.random.default_rng(0), height_px=(24, 32))
    assert (gray == 128).all()
    assert drawn.min() == 0
    assert drawn.max() == 255
    assert (drawn == drawn[..., :1]).all()
    # Most of what was drawn is pure black or white, the rest its antialiased edge.
    changed = drawn[drawn != 128]
    assert len(changed) > 1000
    assert np.isin(changed, (0, 255)).mean() > 0.5
    calm = dict.fromkeys(("blur_chance", "noise_chance"), 0.0)
    degradation = build("real", scale=4, options={"caption_chance": 1.0, "first": calm})
    lr, hr = degradation.pair(gray, np.random.default_rng(0))
    assert hr.max() == 255
    assert np.ptp(lr.astype(int)) > 80


def test_more_generations_lose_more() -> None:
    hr = some_hr()
    calm: dict[str, Any] = {"blur_chance": 0.0, "noise_chance": 0.0, "resize_chances": [0, 0, 1]}
    base = {"first": calm | {"quality": [95, 95]}, "second": calm | {"quality": [40, 40]}}
    base |= {"halo_chance": 0.0, "final_sinc_chance": 0.0, "caption_chance": 0.0}
    errors = []
    for often in (0.0, 1.0):
        more = {"resave_chance": often, "resaves": [4, 4], "rescale_chance": 1.0}
        degradation = build("real", scale=2, options=base | more)
        random = np.random.default_rng(0)
        lrs = [degradation(hr, random).astype(float) for _ in range(10)]
        errors.append(np.mean([np.square(lr - imresize(hr, 0.5)).mean() for lr in lrs]))
    assert errors[1] > 1.3 * errors[0]


def test_facts_are_plain_and_enough() -> None:
    first = {"quality": [50, 60], "bell_chances": [1, 0, 0, 0, 0, 0]}
    made = build("real", scale=2, options=WILD | {"first": first})
    assert isinstance(made, Real)
    assert made.first == dataclasses.replace(
        Stage(), quality=(50, 60), bell_chances=(1, 0, 0, 0, 0, 0)
    )
    assert made.second == SECOND_STAGE
    for degradation in (made, build("bicubic", scale=3), build("jpeg", scale=4)):
        facts = json.loads(json.dumps(degradation.facts()))
        assert build(**facts) == degradation


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("reel", {}, "no degradation 'reel'; did you mean 'real'?"),
        ("zzz", {}, "known are bicubic, jpeg, web, real"),
        ("jpeg", {"qualty": [3, 4]}, "unknown key 'qualty'; did you mean 'quality'?"),
        ("jpeg", {"scale": 2}, "the scale is the network's"),
        ("jpeg", {"quality": 50}, "quality = 50 must be like [30, 95]"),
        ("jpeg", {"quality": [50.5, 60]}, "must be like [30, 95]"),
        ("jpeg", {"quality": [1, 2, 3]}, "must be like [30, 95]"),
        ("jpeg", {"quality": [95, 30]}, "low end first"),
        ("jpeg", {"quality": [30, 101]}, "must lie in 1..100"),
        ("jpeg", {"none_chance": 1.5}, "none_chance must lie in 0..1"),
        ("jpeg", {"none_chance": math.nan}, "none_chance must lie in 0..1"),
        ("jpeg", {"none_chance": True}, "none_chance = True must be like 0.1"),
        ("real", {"first": 3}, "first = 3 must be like"),
        ("real", {"first": {"sigma": 1}}, "degradation real.first: unknown key 'sigma'"),
        ("real", {"second": {"resize_chances": [1, 1, 0]}}, "sum to 1"),
        ("real", {"second": {"resize_chances": [2, -1, 0]}}, "be 0 or more"),
        ("real", {"first": {"kernel_px": [8, 10]}}, "two odd sizes"),
        ("real", {"first": {"blur_sigma_px": [0.0, 1.0]}}, "a range above 0"),
    ],
)
def test_options_that_make_no_sense(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(kind, scale=4, options=options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "hr",
    [
        np.zeros((8, 9, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_arrays_that_cannot_be_degraded(hr: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"multiples of 4, not \(\d+, "):
        build("bicubic", scale=4)(hr, np.random.default_rng(0))


def test_a_scale_that_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="scale must be 1 or more"):
        build("jpeg", scale=0)


def test_views_of_all_kinds_are_taken() -> None:
    """Crops of a memory map, flipped and transposed."""
    hr = some_hr(100)[2:98, 2:98]
    for view in (hr[::-1], hr[:, ::-1], hr.transpose(1, 0, 2)):
        copied = np.array(Image.fromarray(np.ascontiguousarray(view)))
        for kind in DEGRADATIONS:
            degradation = build(kind, scale=2)
            got, expected = (degradation(a, np.random.default_rng(3)) for a in (view, copied))
            np.testing.assert_array_equal(got, expected)
