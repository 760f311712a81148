"""A picture becomes a larger picture: sizes, passes, colours, alpha, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import FakeConfig, FakeNetwork, as_model, random_model

from waifu4x import color, devices, memory, pictures
from waifu4x.canvas import from_unit, to_unit
from waifu4x.errors import (
    CheckpointError,
    DeviceError,
    NumericsError,
    OutOfMemoryError,
    UnknownModelError,
    UsageError,
    Waifu4xError,
)
from waifu4x.headers import Header
from waifu4x.model_files.checkpoints import Model, save
from waifu4x.models import open_upscaler
from waifu4x.networks.msrresnet import MSRResNet, MSRResNetConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.pictures import Picture
from waifu4x.resample import KERNELS, Kernel, resize
from waifu4x.sizes import Target
from waifu4x.tiled import TiledRunner, tile_sizes
from waifu4x.upscaler import Options, Upscaler

UintArray = npt.NDArray[Any]

RESIDUAL = MSRResNetConfig(blocks=2, channels=8, scale=2)


@cache
def trained(config: Any, scales: tuple[int, ...] | None = None) -> Model:
    return random_model(config, scales=scales)


def upscaler_of(
    model: Model, *, tile_px: int | None = 4096, tta: bool = False, **options: Any
) -> Upscaler:
    runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px, tta=tta)
    return Upscaler(model=model, runner=runner, options=Options(**options))


def fake(
    meddle: Any = lambda x: None, *, scales: tuple[int, ...] | None = None, **facts: Any
) -> tuple[FakeNetwork, Model]:
    network = FakeNetwork(FakeConfig(**facts), meddle)
    return network, as_model(network, scales=scales)


def sizes_seen(network: FakeNetwork) -> list[tuple[int, int]]:
    """Height and width of all inputs but the engine's own 8-pixel try for memory."""
    return [(h, w) for _, h, w in network.sizes if (h, w) != (8, 8)]


def noise(height: int, width: int, channels: int = 3, *, bits: int = 8, seed: int = 0) -> UintArray:
    dtype = np.uint8 if bits == 8 else np.uint16
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def header_of(picture: Picture) -> Header:
    return Header(
        format="PNG",
        width_px=picture.width_px,
        height_px=picture.height_px,
        channels=picture.pixels.shape[2],
        has_alpha=picture.alpha is not None,
        depth_bits=picture.depth_bits,
    )


def sized(width_px: int, height_px: int, *, has_alpha: bool = False) -> Header:
    return Header(
        format="PNG",
        width_px=width_px,
        height_px=height_px,
        channels=3,
        has_alpha=has_alpha,
        depth_bits=8,
    )


def smooth(height: int, width: int) -> UintArray:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 7 + k) * np.cos(columns / 9 - k) for k in range(3)]
    return (128 + 80 * np.stack(waves, axis=2)).astype(np.uint8)


def enlarged(image: UintArray, factor: int) -> UintArray:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def levels_apart(one: UintArray, other: UintArray) -> int:
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())


# -- sizes -----------------------------------------------------------------------------------------

TARGETS = st.one_of(
    st.builds(Target, scale=st.floats(0.2, 6)),
    st.builds(Target, width_px=st.integers(1, 90)),
    st.builds(Target, height_px=st.integers(1, 90)),
    st.builds(Target, long_edge_px=st.integers(1, 120)),
    st.builds(Target, short_edge_px=st.integers(1, 60)),
    st.builds(Target, fit_px=st.tuples(st.integers(1, 90), st.integers(1, 90))),
    st.builds(Target, minimum_px=st.tuples(st.integers(1, 40), st.integers(1, 40))),
)
MODELS: list[Model | Kernel] = [
    fake(scale=1)[1],
    fake(scale=2)[1],
    fake(scale=4, size_multiple=4)[1],
    fake(scale=1, channels_in=1, pre_upsampled=True, scales=(2, 3, 4))[1],
    fake(scale=1, channels_in=3, pre_upsampled=True)[1],
    "nearest",
    "lanczos",
]


@settings(max_examples=150, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    target=TARGETS,
    width=st.integers(1, 24),
    height=st.integers(1, 24),
    channels=st.sampled_from([1, 3]),
    bits=st.sampled_from([8, 16]),
    with_alpha=st.booleans(),
    options=st.sampled_from([Options(), Options(strength=0.5), Options(color_fix=True)]),
)
def test_every_output_has_exactly_the_wished_size(
    model: Model | Kernel,
    target: Target,
    width: int,
    height: int,
    channels: int,
    bits: int,
    with_alpha: bool,
    options: Options,
) -> None:
    width_px, height_px = target.size_px(width, height)
    if max(width_px, height_px) > 400:
        return
    if isinstance(model, str):
        options = Options()  # kernels refuse the others
    pixels = noise(height, width, channels, bits=bits)
    alpha = noise(height, width, 1, bits=bits, seed=1)[..., 0] if with_alpha else None
    kept = pixels.copy()
    runner = None
    if not isinstance(model, str):
        runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=16)
    upscaler = Upscaler(model=model, runner=runner, options=options)
    result, _ = upscaler.upscale(Picture(pixels=pixels, alpha=alpha), target)
    assert result.pixels.shape == (height_px, width_px, channels)
    assert result.pixels.dtype == pixels.dtype
    assert (result.alpha is None) == (alpha is None)
    np.testing.assert_array_equal(pixels, kept)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_networks_own_scale_is_not_resampled(bits: int) -> None:
    _, model = fake(scale=3)
    pixels = noise(21, 34, bits=bits)
    result, facts = upscaler_of(model, tile_px=16).upscale(Picture(pixels=pixels), Target(scale=3))
    np.testing.assert_array_equal(result.pixels, enlarged(pixels, 3))
    assert facts.passes == (3.0,)
    assert facts.notes == ()
    assert facts.tile_px == 12  # 34 px in three tiles of at most 16
    assert (facts.device, facts.precision, facts.model) == ("cpu", "fp32", "toy")
    assert facts.network_s > 0.0
    assert facts.waste == 22 * 36 / (21 * 34) or facts.waste >= 1.0


def test_what_lies_between_the_scales_is_one_resample_in_float() -> None:
    network, model = fake(scale=4)
    pixels = noise(20, 30)
    result, facts = upscaler_of(model).upscale(Picture(pixels=pixels), Target(width_px=77))
    in_float = resize(to_unit(enlarged(pixels, 4)), (51, 77), kernel="lanczos")
    np.testing.assert_array_equal(result.pixels, from_unit(in_float, np.uint8))
    assert facts.passes == (4.0,)
    assert sizes_seen(network) == [(20, 30)]


def test_ten_times_with_a_network_of_four_takes_two_passes() -> None:
    network, model = fake(scale=4)
    pixels = noise(9, 11)
    result, facts = upscaler_of(model).upscale(Picture(pixels=pixels), Target(scale=10))
    assert facts.passes == (4.0, 4.0)
    assert sizes_seen(network) == [(9, 11), (36, 44)]
    in_float = resize(to_unit(enlarged(pixels, 16)), (90, 110), kernel="lanczos")
    np.testing.assert_array_equal(result.pixels, from_unit(in_float, np.uint8))


def test_sixteen_times_with_a_network_of_four_is_not_resampled() -> None:
    pixels = noise(7, 5)
    result, _ = upscaler_of(fake(scale=4)[1]).upscale(Picture(pixels=pixels), Target(scale=16))
    np.testing.assert_array_equal(result.pixels, enlarged(pixels, 16))


@pytest.mark.parametrize("options", [{}, {"strength": 0.5}, {"color_fix": True}])
def test_a_network_is_not_asked_to_shrink(options: dict[str, Any]) -> None:
    network, model = fake(scale=2)
    pixels = noise(40, 60)
    result, facts = upscaler_of(model, **options).upscale(Picture(pixels=pixels), Target(scale=0.4))
    expected = from_unit(resize(to_unit(pixels), (16, 24), kernel="lanczos"), np.uint8)
    np.testing.assert_array_equal(result.pixels, expected)
    assert facts.passes == ()
    assert facts.tile_px is None
    assert sizes_seen(network) == []


def test_the_same_size_still_goes_through_the_network() -> None:
    network, model = fake(scale=2)
    result, facts = upscaler_of(model).upscale(Picture(pixels=noise(12, 20)), Target(scale=1))
    assert facts.passes == (2.0,)
    assert result.pixels.shape == (12, 20, 3)
    assert sizes_seen(network) == [(12, 20)]


def test_an_odd_picture_through_pixel_unshuffling() -> None:
    model = trained(RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2))
    assert (model.scale, model.size_multiple) == (2, 2)
    pixels = noise(25, 33)
    result, _ = upscaler_of(model).upscale(Picture(pixels=pixels), Target(scale=2))
    even = np.pad(pixels, ((0, 1), (0, 1), (0, 0)), mode="edge")
    padded, _ = upscaler_of(model).upscale(Picture(pixels=even), Target(scale=2))
    np.testing.assert_array_equal(result.pixels, padded.pixels[:50, :66])


@pytest.mark.parametrize("size_px", [(1, 1), (1, 40), (40, 1), (2, 2), (3, 7)])
@pytest.mark.parametrize(
    "config",
    [RESIDUAL, RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=4), VDSRConfig(depth=3)],
    ids=str,
)
def test_tiny_pictures(config: Any, size_px: tuple[int, int]) -> None:
    picture = Picture(pixels=noise(*size_px), alpha=noise(*size_px, 1)[..., 0])
    for target in (Target(scale=2), Target(scale=3.7), Target(width_px=17)):
        result, _ = upscaler_of(trained(config), tile_px=16).upscale(picture, target)
        assert (result.width_px, result.height_px) == target.size_px(size_px[1], size_px[0])


# -- networks that are given an upscaled picture, and networks of luma -----------------------------


def test_one_pass_at_a_fraction_where_all_factors_are_learnt() -> None:
    network, model = fake(scale=1, channels_in=1, pre_upsampled=True, scales=(2, 3, 4))
    upscaler = upscaler_of(model)
    result, facts = upscaler.upscale(Picture(pixels=smooth(20, 30)), Target(scale=2.5))
    assert facts.passes == (2.5,)
    assert sizes_seen(network) == [(50, 75)]
    assert result.pixels.shape == (50, 75, 3)
    network.sizes.clear()
    _, facts = upscaler.upscale(Picture(pixels=smooth(20, 30)), Target(scale=10))
    assert facts.passes == (4.0, 2.5)
    assert sizes_seen(network) == [(80, 120), (200, 300)]


@pytest.mark.parametrize(
    ("scales", "factor", "passes"),
    [
        ((3,), 3.0, (3.0,)),
        ((3,), 2.0, (3.0,)),
        ((3,), 9.0, (3.0, 3.0)),
        ((2, 3, 4), 4.0, (4.0,)),
        ((2, 3, 4), 1.0, (1.0,)),
        (None, 2.7, (2.7,)),
        (None, 0.7, ()),
    ],
)
def test_passes_of_networks_that_are_given_an_upscaled_picture(
    scales: tuple[int, ...] | None, factor: float, passes: tuple[float, ...]
) -> None:
    model = fake(scale=1, channels_in=1, pre_upsampled=True, scales=scales)[1]
    assert upscaler_of(model).passes(factor) == passes


@pytest.mark.parametrize("bits", [8, 16])
def test_luma_goes_through_the_network_and_chroma_is_interpolated(bits: int) -> None:
    seen: list[Tensor] = []
    _, model = fake(
        lambda x: seen.append(x), scale=1, channels_in=1, pre_upsampled=True, scales=(2,)
    )
    pixels = smooth(20, 30) if bits == 8 else noise(20, 30, bits=16) // 2 + 2**14
    result, _ = upscaler_of(model).upscale(Picture(pixels=pixels), Target(scale=2))
    # A network that changes nothing leaves bicubic interpolation, colour conversion and back.
    expected = from_unit(resize(to_unit(pixels), (40, 60)), pixels.dtype)
    assert levels_apart(result.pixels, expected) <= (0 if bits == 8 else 2)
    # What it saw is studio-range luma.
    unit = to_unit(pixels)
    luma = resize((color.luma(unit * 255.0) / 255.0).astype(np.float32), (40, 60))
    (x,) = [x for x in seen if x.shape[2:] == (40, 60)]
    assert x.shape == (1, 1, 40, 60)
    np.testing.assert_allclose(x[0, 0].numpy(), luma, atol=1e-6)


def test_a_change_of_luma_alone_leaves_the_chroma() -> None:
    def brighter(x: Tensor) -> Tensor:
        return torch.full((1,), 21.9 / 255.0)

    _, model = fake(brighter, scale=1, channels_in=1, pre_upsampled=True, scales=(2,))
    pixels = smooth(16, 16)
    result, _ = upscaler_of(model).upscale(Picture(pixels=pixels), Target(scale=2))
    plain = from_unit(resize(to_unit(pixels), (32, 32)), np.uint8)
    # 219 levels of luma are 255 of gray: 21.9 of them brighten all three channels by 25.5.
    difference = result.pixels.astype(int) - plain
    assert difference.min() >= 25
    assert difference.max() <= 26


def test_gray_through_a_network_of_luma_is_the_colour_result_made_gray() -> None:
    model = trained(SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4)), (3,))
    gray = smooth(20, 30)[..., :1]
    result, _ = upscaler_of(model).upscale(Picture(pixels=gray), Target(scale=3))
    rgb, _ = upscaler_of(model).upscale(Picture(pixels=gray.repeat(3, axis=2)), Target(scale=3))
    assert result.pixels.shape == (60, 90, 1)
    assert levels_apart(rgb.pixels, result.pixels.repeat(3, axis=2)) <= 1


def test_gray_through_a_network_of_colours_stays_gray() -> None:
    gray = noise(20, 30, 1)
    upscaler = upscaler_of(trained(RESIDUAL))
    result, _ = upscaler.upscale(Picture(pixels=gray), Target(scale=2))
    assert result.pixels.shape == (40, 60, 1)
    rgb, _ = upscaler.upscale(Picture(pixels=gray.repeat(3, axis=2)), Target(scale=2))
    inside = ((rgb.pixels > 0) & (rgb.pixels < 255)).all(axis=2)
    weighed = rgb.pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert inside.mean() > 0.2
    assert np.abs(weighed - result.pixels[..., 0])[inside].max() <= 1.0


def test_sixteen_bits_come_out_as_sixteen_bits() -> None:
    pixels = noise(20, 30, bits=16)
    for model in (trained(RESIDUAL), trained(VDSRConfig(depth=3), (2,))):
        result, _ = upscaler_of(model).upscale(Picture(pixels=pixels), Target(scale=2))
        assert result.pixels.dtype == np.uint16
        low_bytes = np.unique(result.pixels & 0xFF)
        assert len(low_bytes) > 200, "there is more in it than eight bits"
        eight, _ = upscaler_of(model).upscale(
            Picture(pixels=(pixels / 257).round().astype(np.uint8)), Target(scale=2)
        )
        # The same picture but for the rounding of the input, which the network may amplify.
        error = result.pixels / 65535 - eight.pixels / 255
        assert np.sqrt(np.mean(error**2)) < 0.02


# -- strength, colour lock -------------------------------------------------------------------------


@pytest.mark.parametrize("config", [RESIDUAL, VDSRConfig(depth=3)], ids=str)
@pytest.mark.parametrize("scale", [2.0, 2.6])
def test_strength_blends_from_bicubic_to_the_network(config: Any, scale: float) -> None:
    model, picture = trained(config), Picture(pixels=smooth(24, 30))
    results = {
        strength: upscaler_of(model, strength=strength).upscale(picture, Target(scale=scale))[0]
        for strength in (0.0, 0.25, 1.0)
    }
    plain = upscaler_of(model).upscale(picture, Target(scale=scale))[0].pixels
    np.testing.assert_array_equal(results[1.0].pixels, plain)
    bicubic, _ = Upscaler(model="bicubic").upscale(picture, Target(scale=scale))
    np.testing.assert_array_equal(results[0.0].pixels, bicubic.pixels)
    assert levels_apart(plain, bicubic.pixels) > 20
    # Only where neither was clipped; smooth pictures keep bicubic inside.
    inside = (plain > 0) & (plain < 255)
    blend = 0.25 * plain.astype(float) + 0.75 * bicubic.pixels
    assert np.abs(results[0.25].pixels - blend)[inside].max() <= 1.0


def test_the_colour_lock_takes_a_shift_of_colours_back() -> None:
    shift = torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)
    _, model = fake(lambda x: shift, scale=2)
    picture = Picture(pixels=smooth(40, 60))
    shifted, _ = upscaler_of(model).upscale(picture, Target(scale=2))
    locked, _ = upscaler_of(model, color_fix=True).upscale(picture, Target(scale=2))
    truth = enlarged(picture.pixels, 2)
    assert levels_apart(shifted.pixels, truth) >= 25
    assert levels_apart(locked.pixels, truth) <= 1


@pytest.mark.parametrize(
    "options",
    [{"strength": -0.1}, {"strength": 1.1}, {"strength": float("nan")}, {"alpha": "none"}],
)
def test_options_of_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--strength must lie|alpha is upscaled by"):
        Options(**options)


# -- transparency ----------------------------------------------------------------------------------


def sticker(height: int = 48, width: int = 64) -> UintArray:
    """A disc: opaque inside, transparent outside, with a soft edge."""
    rows, columns = np.mgrid[:height, :width]
    radius = np.hypot(rows - height / 2, columns - width / 2)
    return (np.clip((16 - radius) / 5, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("level", [0, 93, 255])
@pytest.mark.parametrize("scale", [0.5, 2.0, 2.6])
def test_a_uniform_alpha_stays_uniform(level: int, scale: float) -> None:
    picture = Picture(pixels=noise(20, 30), alpha=np.full((20, 30), level, np.uint8))
    for upscaler in (upscaler_of(trained(RESIDUAL)), Upscaler(model="lanczos")):
        result, _ = upscaler.upscale(picture, Target(scale=scale))
        assert result.alpha is not None
        assert (result.alpha == level).all()
        assert result.alpha.shape == result.pixels.shape[:2]
        plain, _ = upscaler.upscale(Picture(pixels=picture.pixels), Target(scale=scale))
        np.testing.assert_array_equal(result.pixels, plain.pixels)


@pytest.mark.parametrize("mode", ["network", "bicubic"])
@pytest.mark.parametrize("scale", [2.0, 2.6, 8.0])
@pytest.mark.parametrize("bits", [8, 16])
def test_plateaus_of_the_alpha_stay_exactly_transparent_and_opaque(
    mode: str, scale: float, bits: int
) -> None:
    def restless(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        h, w = (2 * n for n in x.shape[2:])
        return 0.05 * torch.randn(1, 3, h, w, generator=generator)

    alpha = sticker() if bits == 8 else sticker().astype(np.uint16) * 257
    full = int(np.iinfo(alpha.dtype).max)
    _, model = fake(restless, scale=2)
    picture = Picture(pixels=noise(48, 64, bits=bits), alpha=alpha)
    result, _ = upscaler_of(model, alpha=mode).upscale(picture, Target(scale=scale))
    assert result.alpha is not None
    assert result.alpha.dtype == alpha.dtype
    height, width = result.alpha.shape
    # Deep in a plateau: all of 7×7 pixels of the original are alike. A cubic sees 4×4.
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(alpha, 3, mode="edge"), (7, 7))
    rows = ((np.arange(height) + 0.5) / scale).astype(int).clip(0, 47)
    columns = ((np.arange(width) + 0.5) / scale).astype(int).clip(0, 63)
    for level in (0, full):
        deep = (windows == level).all(axis=(2, 3))
        assert deep.sum() > 100
        assert (result.alpha[deep[np.ix_(rows, columns)]] == level).all()
    soft = (result.alpha > 0) & (result.alpha < full)
    assert soft.any()
    if mode == "bicubic":
        flat = resize(to_unit(alpha[..., None]), (height, width))
        expected = from_unit(flat, alpha.dtype)[..., 0]
        np.testing.assert_array_equal(result.alpha[soft], expected[soft])


def test_the_alpha_goes_through_the_network_unless_bicubic_is_asked_for() -> None:
    picture = Picture(pixels=noise(48, 64), alpha=sticker())
    model = trained(RESIDUAL)
    by_network, _ = upscaler_of(model).upscale(picture, Target(scale=2))
    by_bicubic, _ = upscaler_of(model, alpha="bicubic").upscale(picture, Target(scale=2))
    assert by_network.alpha is not None
    assert by_bicubic.alpha is not None
    as_gray, _ = upscaler_of(model).upscale(Picture(pixels=sticker()[..., None]), Target(scale=2))
    expected = color.restore_plateaus(as_gray.pixels[..., 0], sticker())
    np.testing.assert_array_equal(by_network.alpha, expected)
    assert levels_apart(by_network.alpha, by_bicubic.alpha) > 5
    np.testing.assert_array_equal(by_network.pixels, by_bicubic.pixels)


def test_strength_and_colour_lock_are_about_colours_alone() -> None:
    picture = Picture(pixels=noise(48, 64), alpha=sticker())
    model = trained(RESIDUAL)
    plain, _ = upscaler_of(model).upscale(picture, Target(scale=2))
    mixed, _ = upscaler_of(model, strength=0.3, color_fix=True).upscale(picture, Target(scale=2))
    assert plain.alpha is not None
    assert mixed.alpha is not None
    np.testing.assert_array_equal(plain.alpha, mixed.alpha)


@pytest.mark.parametrize("kernel", KERNELS)
def test_invisible_black_leaves_no_dark_rim(kernel: Kernel) -> None:
    alpha = sticker()
    red = np.array([200, 30, 60], np.uint8)
    pixels = np.where((alpha > 0)[..., None], red, np.uint8(0))
    result, _ = Upscaler(model=kernel).upscale(Picture(pixels=pixels, alpha=alpha), Target(scale=3))
    assert result.alpha is not None
    visible = result.alpha > 0
    assert np.abs(result.pixels[visible].astype(int) - red).max() <= 1


# -- flat pictures, repetition, the eight views ----------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_flat_picture_stays_flat(level: int, channels: int) -> None:
    picture = Picture(pixels=np.full((17, 23, channels), level, np.uint8))
    models: list[Model | Kernel] = [*MODELS, "bicubic", "bilinear"]
    for model in models:
        upscaler = Upscaler(model=model) if isinstance(model, str) else upscaler_of(model)
        for scale in (0.5, 1.0, 2.0, 2.7, 9.0):
            result, _ = upscaler.upscale(picture, Target(scale=scale))
            assert (result.pixels == level).all(), (upscaler.name, scale)


def test_black_and_white_through_a_network_are_finite_and_flat_inside() -> None:
    for level in (0, 255):
        picture = Picture(pixels=np.full((40, 40, 3), level, np.uint8))
        result, _ = upscaler_of(trained(RESIDUAL), tile_px=16).upscale(picture, Target(scale=2))
        inside = result.pixels[20:-20, 20:-20]
        # A network may move a level, and colour it; each phase of the shuffle has its own value.
        for row in (0, 1):
            for column in (0, 1):
                phase = inside[row::2, column::2]
                assert (phase == phase[0, 0]).all()


def test_the_same_picture_gives_the_same_bytes() -> None:
    picture = Picture(pixels=noise(40, 50), alpha=sticker(40, 50))
    upscaler = upscaler_of(trained(RESIDUAL), tile_px=20)
    first, _ = upscaler.upscale(picture, Target(scale=2.5))
    again, _ = upscaler.upscale(picture, Target(scale=2.5))
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.alpha is not None
    assert again.alpha is not None
    assert first.alpha.tobytes() == again.alpha.tobytes()


def views(image: UintArray) -> list[UintArray]:
    """All eight: mirrored or not, transposed or not, turned by a half or not."""
    both = [image, image.transpose(1, 0, 2)]
    return [v[::rows, ::columns] for v in both for rows in (1, -1) for columns in (1, -1)]


def test_tta_is_the_mean_of_eight_views() -> None:
    model = trained(MSRResNetConfig(blocks=2, channels=8, scale=3))
    image = to_unit(noise(14, 21))
    plain = TiledRunner(model, device="cpu", precision="fp32", tile_px=64)
    network: nn.Module = model.network
    total = np.zeros((42, 63, 3))
    for number, view in enumerate(views(image)):
        x = torch.from_numpy(np.ascontiguousarray(view)).permute(2, 0, 1)[None]
        y = network(x)[0].permute(1, 2, 0).numpy()
        # Flips undo themselves; the transposition came first and is undone last.
        y = views(y)[number] if number < 4 else views(y)[number - 4].transpose(1, 0, 2)
        total += y
    expected = np.clip(total / 8.0, 0.0, 1.0)
    ensemble = TiledRunner(model, device="cpu", precision="fp32", tile_px=64, tta=True).run(image)
    np.testing.assert_allclose(ensemble, expected, atol=1e-5)
    assert np.abs(plain.run(image) - expected).max() > 0.05


def test_tta_does_not_care_how_the_picture_lies() -> None:
    pixels = noise(15, 22)
    upscaler = upscaler_of(trained(RESIDUAL), tta=True)
    results = [
        upscaler.upscale(Picture(pixels=np.ascontiguousarray(view)), Target(scale=2))[0].pixels
        for view in views(pixels)
    ]
    for result, expected in zip(results, views(results[0]), strict=True):
        # Sums in another order: a tie may be rounded the other way.
        assert levels_apart(result, expected) <= 1
        assert (result == expected).mean() > 0.999
    plain = upscaler_of(trained(RESIDUAL))
    straight, _ = plain.upscale(Picture(pixels=pixels), Target(scale=2))
    turned, _ = plain.upscale(Picture(pixels=np.ascontiguousarray(pixels[::-1])), Target(scale=2))
    assert levels_apart(turned.pixels[::-1], straight.pixels) > 5


SHRUNK = "the output is smaller than the input: it was only resampled, by lanczos"


# -- kernels, facts, progress ----------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [8, 16])
def test_kernels_are_the_resampling_they_are_called_after(kernel: Kernel, bits: int) -> None:
    pixels = noise(20, 30, bits=bits)
    result, facts = Upscaler(model=kernel).upscale(Picture(pixels=pixels), Target(scale=2.5))
    expected = from_unit(resize(to_unit(pixels), (50, 75), kernel=kernel), pixels.dtype)
    np.testing.assert_array_equal(result.pixels, expected)
    assert (facts.model, facts.passes, facts.tile_px) == (kernel, (), None)
    assert Upscaler(model=kernel).tiles(sized(30, 20), Target(scale=2)) == 0
    assert Upscaler(model=kernel).tile_px(sized(30, 20), Target(scale=2)) is None


def test_everything_else_of_the_picture_is_kept() -> None:
    picture = Picture(pixels=noise(9, 9), dpi=(72.0, 72.0), format="PNG", notes=("read oddly",))
    result, _ = upscaler_of(trained(RESIDUAL)).upscale(picture, Target(scale=2))
    assert (result.dpi, result.format, result.notes) == ((72.0, 72.0), "PNG", ("read oddly",))


@pytest.mark.parametrize("alpha", [None, "opaque", "soft"])
@pytest.mark.parametrize("mode", ["network", "bicubic"])
@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_progress_never_goes_back_and_ends_at_one(
    alpha: str | None, mode: str, scale: float
) -> None:
    planes = {None: None, "opaque": np.full((48, 64), 255, np.uint8), "soft": sticker()}
    picture = Picture(pixels=noise(48, 64), alpha=planes[alpha])
    models: list[Model | Kernel] = [fake(scale=2)[1], "bicubic"]
    for model in models:
        shares: list[float] = []
        upscaler = (
            Upscaler(model=model)
            if isinstance(model, str)
            else upscaler_of(model, tile_px=16, alpha=mode)
        )
        upscaler.upscale(picture, Target(scale=scale), on_progress=shares.append)
        assert shares
        assert shares == sorted(shares)
        assert shares[0] >= 0.0
        assert shares[-1] == 1.0
        if scale > 1.0 and not isinstance(model, str):
            assert len(shares) >= 12
            assert shares[0] <= 0.1


def test_progress_does_not_go_back_when_tiles_become_smaller() -> None:
    calls = 0

    def full_once(x: Tensor) -> None:
        nonlocal calls
        calls += x.shape[2] > 8
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    _, model = fake(full_once, scale=2)
    shares: list[float] = []
    picture = Picture(pixels=noise(4000, 100))  # in tiles of 500 px
    result, facts = upscaler_of(model, tile_px=None).upscale(
        picture, Target(scale=2), on_progress=shares.append
    )
    np.testing.assert_array_equal(result.pixels, enlarged(picture.pixels, 2))
    assert facts.notes == ("cpu ran out of memory: tiles of 192 px from now on",)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_facts_are_of_one_picture() -> None:
    upscaler = upscaler_of(fake(scale=2)[1], tile_px=16)
    _, first = upscaler.upscale(Picture(pixels=noise(64, 64)), Target(scale=2))
    _, second = upscaler.upscale(Picture(pixels=noise(16, 8)), Target(scale=2))
    _, third = upscaler.upscale(Picture(pixels=noise(16, 8)), Target(scale=0.5))
    assert (first.tile_px, second.tile_px, third.tile_px) == (16, 16, None)
    assert third.network_s == 0.0
    assert third.notes == (SHRUNK,)


def test_tiles_are_planned_from_a_header() -> None:
    upscaler = upscaler_of(fake(scale=2)[1], tile_px=16)
    assert upscaler.tiles(sized(64, 64), Target(scale=2)) == 16
    assert upscaler.tile_px(sized(64, 64), Target(scale=2)) == 16
    assert upscaler.tiles(sized(65, 1), Target(scale=2)) == 5
    assert upscaler.tiles(sized(64, 64), Target(scale=0.5)) == 0
    assert upscaler.tile_px(sized(64, 64), Target(scale=0.5)) is None
    luma = fake(scale=1, channels_in=1, pre_upsampled=True, scales=(2, 3, 4))[1]
    assert upscaler_of(luma, tile_px=16).tiles(sized(16, 16), Target(scale=4)) == 16
    # What is planned is what is done.
    _, facts = upscaler.upscale(Picture(pixels=noise(61, 47)), Target(scale=2))
    assert facts.tile_px == upscaler.tile_px(sized(47, 61), Target(scale=2))


# -- several pictures at once ----------------------------------------------------------------------

FRAMES = 5


def frames_of(height: int, width: int, **facts: Any) -> list[Picture]:
    """Alike, with and without transparency: some frames have it everywhere alike."""
    bits = facts.get("bits", 8)
    pixels = [
        noise(height, width, facts.get("channels", 3), bits=bits, seed=k) for k in range(FRAMES)
    ]
    if not facts.get("alpha"):
        return [Picture(pixels=p, dpi=(k, k)) for k, p in enumerate(pixels)]
    alphas = [noise(height, width, 1, bits=bits, seed=k + 9)[..., 0] for k in range(FRAMES)]
    alphas[1][:] = 0
    alphas[3][:] = 77
    return [
        Picture(pixels=p, alpha=a, dpi=(k, k))
        for k, (p, a) in enumerate(zip(pixels, alphas, strict=True))
    ]


def assert_same(one: Picture, other: Picture, *, apart: int) -> None:
    assert levels_apart(one.pixels, other.pixels) <= apart
    assert (one.alpha is None) == (other.alpha is None)
    if one.alpha is not None and other.alpha is not None:
        assert levels_apart(one.alpha, other.alpha) <= apart
    assert one.dpi == other.dpi


LUMA = {"scale": 1, "channels_in": 1, "pre_upsampled": True, "scales": (2, 3, 4)}


@pytest.mark.parametrize(
    ("model", "options", "scale", "facts"),
    [
        (fake(scale=2)[1], {}, 2.0, {}),
        (fake(scale=2)[1], {}, 2.0, {"alpha": True}),
        (fake(scale=2)[1], {"alpha": "bicubic"}, 2.6, {"alpha": True, "bits": 16}),
        (fake(scale=2)[1], {"strength": 0.3, "color_fix": True}, 7.0, {"alpha": True}),
        (fake(scale=2, size_multiple=4)[1], {}, 4.0, {"channels": 1}),
        (fake(**LUMA)[1], {}, 5.0, {"alpha": True}),
        (fake(**LUMA)[1], {"strength": 0.5}, 2.5, {"channels": 1}),
        (fake(scale=2)[1], {}, 0.5, {"alpha": True}),
        ("lanczos", {}, 1.7, {"alpha": True}),
        (trained(RESIDUAL), {}, 3.0, {"alpha": True}),
        (trained(VDSRConfig(depth=3)), {}, 2.0, {}),
    ],
)
def test_frames_together_are_what_they_are_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
    model: Model | Kernel,
    options: dict[str, Any],
    scale: float,
    facts: dict[str, Any],
) -> None:
    def upscaler() -> Upscaler:
        if isinstance(model, str):
            return Upscaler(model=model)
        return upscaler_of(model, tile_px=16, **options)

    frames = frames_of(21, 34, **facts)
    alone = [upscaler().upscale(frame, Target(scale=scale))[0] for frame in frames]
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 7)
    together, _ = upscaler().upscale_all(frames, Target(scale=scale))
    assert len(together) == FRAMES
    # What only copies pixels must be exact; sums of another order may round the other way.
    apart = 0 if isinstance(model, str) or isinstance(model.network, FakeNetwork) else 1
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other, apart=apart)


def test_tiles_of_different_frames_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 4)
    network, model = fake(scale=2)
    shares: list[float] = []
    _, facts = upscaler_of(model, tile_px=16).upscale_all(
        frames_of(16, 32), Target(scale=2), on_progress=shares.append
    )
    # Five frames of two tiles each.
    assert [size for size in network.sizes if size[1] > 8] == [
        (4, 16, 16),
        (4, 16, 16),
        (2, 16, 16),
    ]
    assert shares == [0.4, 0.8, 1.0, 1.0]
    assert (facts.tile_px, facts.passes) == (16, (2.0,))
    assert facts.network_s > 0.0


def test_frames_begin_again_together_when_the_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def meddle(x: Tensor) -> None:
        if x.shape[0] * x.shape[2] * x.shape[3] > 100 * 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 16)
    network, model = fake(meddle, scale=2)
    frames = frames_of(120, 120)
    results, facts = upscaler_of(model, tile_px=None).upscale_all(frames, Target(scale=2))
    for result, frame in zip(results, frames, strict=True):
        np.testing.assert_array_equal(result.pixels, enlarged(frame.pixels, 2))
    tried = list(dict.fromkeys(size for size in network.sizes if size[1] > 8))
    assert tried == [(5, 120, 120), (1, 120, 120), (1, 60, 60)]
    assert facts.notes == ("cpu ran out of memory: tiles of 64 px from now on",)


@pytest.mark.parametrize(
    "other",
    [
        Picture(pixels=noise(8, 9)),
        Picture(pixels=noise(8, 8, 1)),
        Picture(pixels=noise(8, 8, bits=16)),
        Picture(pixels=noise(8, 8), alpha=noise(8, 8, 1)[..., 0]),
        None,
    ],
)
def test_pictures_of_one_call_must_be_alike(other: Picture | None) -> None:
    given_ = [] if other is None else [Picture(pixels=noise(8, 8)), other]
    for upscaler in (Upscaler(model="bicubic"), upscaler_of(fake()[1])):
        with pytest.raises(ValueError, match="must be alike"):
            upscaler.upscale_all(given_, Target(scale=2))


def test_how_many_frames_fill_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, target = Picture(pixels=noise(40, 60)), Target(scale=2)
    assert upscaler_of(fake()[1]).frames_at_once(frame, target) == 1
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 16)
    upscaler = upscaler_of(fake()[1], tile_px=32)  # four tiles
    assert upscaler.frames_at_once(frame, target) == 4
    assert upscaler.frames_at_once(Picture(pixels=noise(32, 32)), target) == 16
    assert upscaler.frames_at_once(Picture(pixels=noise(400, 60)), target) == 1
    assert upscaler.frames_at_once(frame, Target(scale=0.5)) == 1
    assert Upscaler(model="bicubic").frames_at_once(frame, target) == 1
    # A device may have more memory left than the machine.
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2**40)
    each_bytes = upscaler.memory_bytes(header_of(frame), (120, 80))
    for free_bytes, count in ((2 * each_bytes, 1), (5 * each_bytes, 2), (0, 1)):
        monkeypatch.setattr(memory, "free_host_bytes", lambda free=free_bytes: free)
        assert upscaler.frames_at_once(frame, target) == count


# -- time ------------------------------------------------------------------------------------------


def test_the_time_is_estimated_from_at_most_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the network moves: 3 s a call and 1 ms a pixel."""
    now = 0.0
    calls: list[int] = []

    def work(x: Tensor) -> None:
        nonlocal now
        if x.shape[2] > 8:
            now += 3.0 + 0.001 * x.shape[2] * x.shape[3]
            calls.append(x.shape[2])

    monkeypatch.setattr(tile_sizes.time, "perf_counter", lambda: now)
    # Pixels cost the same in every window, so the largest tiles are the best.
    monkeypatch.setattr(tile_sizes, "_CPU_CURVE", {256: 1.0})
    monkeypatch.setattr(tile_sizes, "TILES_PX", (64, 192))
    upscaler = upscaler_of(fake(work, scale=2, receptive_radius_px=8)[1], tile_px=None)
    full_px = 192 + 2 * 8

    def seconds(header: Header, scale: float = 2.0) -> float:
        return upscaler.estimate_s(header, Target(scale=scale))

    small_rate, full_rate = 3.0 / 64**2 + 0.001, 3.0 / 256**2 + 0.001
    # 4 × 4 tiles of the full size.
    assert seconds(sized(768, 768)) == pytest.approx(16 * full_px**2 * full_rate)
    assert calls == [256, 256]
    assert seconds(sized(64, 64)) == pytest.approx(3.0 + 0.001 * 64**2)
    assert calls == [256, 256, 64, 64]
    # All others are estimates, and nothing is timed for them.
    assert seconds(sized(100, 32)) == pytest.approx(3200 * small_rate)
    assert seconds(sized(150, 180)) == pytest.approx(27000 * full_rate)
    assert seconds(sized(64, 64, has_alpha=True)) == pytest.approx(2 * 4096 * small_rate)
    # A second pass sees four times the pixels.
    assert seconds(sized(72, 64), 4.0) == pytest.approx(4608 * small_rate + 18432 * full_rate)
    assert seconds(sized(64, 64), 0.5) == 0.0
    assert len(calls) == 4
    assert Upscaler(model="bicubic").estimate_s(sized(64, 64), Target(scale=2)) == 0.0


def test_bicubic_alpha_takes_the_network_no_time() -> None:
    upscaler = upscaler_of(fake(scale=2)[1], alpha="bicubic")
    opaque, transparent = (sized(64, 64, has_alpha=alpha) for alpha in (False, True))
    assert upscaler.estimate_s(opaque, Target(scale=2)) > 0.0
    assert upscaler.estimate_s(opaque, Target(scale=2)) == upscaler.estimate_s(
        transparent, Target(scale=2)
    )


@pytest.mark.parametrize("limit_px", [120, 10])
def test_timing_in_a_full_memory_takes_a_smaller_window(limit_px: int) -> None:
    seen: list[int] = []

    def meddle(x: Tensor) -> None:
        seen.append(x.shape[2])
        if x.shape[2] > limit_px:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    upscaler = upscaler_of(fake(meddle, scale=2)[1], tile_px=None)
    if limit_px >= 64:
        assert upscaler.estimate_s(sized(900, 900), Target(scale=2)) > 0.0
        assert list(dict.fromkeys(side for side in seen if side > 8)) == [256, 128, 64]
    else:
        with pytest.raises(OutOfMemoryError, match="not enough memory even for 64 px"):
            upscaler.estimate_s(sized(900, 900), Target(scale=2))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [Options(strength=0.5), Options(color_fix=True)])
def test_kernels_refuse_what_only_networks_can_do(options: Options) -> None:
    with pytest.raises(UsageError, match="nearest is no network"):
        Upscaler(model="nearest", options=options)


def test_an_interrupt_ends_a_picture_at_once() -> None:
    def interrupt(x: Tensor) -> None:
        if x.shape[2] > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upscaler_of(fake(interrupt)[1]).upscale(Picture(pixels=noise(16, 16)), Target(scale=2))


def test_an_interrupt_between_tiles_leaves_nothing_behind() -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    upscaler = upscaler_of(trained(RESIDUAL), tile_px=16)
    frames = frames_of(20, 30, alpha=True)
    with pytest.raises(KeyboardInterrupt):
        upscaler.upscale_all(frames, Target(scale=3), on_progress=interrupt)
    after, _ = upscaler.upscale_all(frames, Target(scale=3))
    fresh, _ = upscaler_of(trained(RESIDUAL), tile_px=16).upscale_all(frames, Target(scale=3))
    for one, other in zip(after, fresh, strict=True):
        assert_same(one, other, apart=0)


@pytest.mark.parametrize("options", [{}, {"strength": 0.5}, {"color_fix": True}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_pixel_is_made_of_nan(options: dict[str, Any], value: float) -> None:
    """Also not of one in the alpha alone."""

    def spoil(x: Tensor) -> Tensor | None:
        gray = bool((x[:, 0] == x[:, 1]).all())
        return torch.tensor(value) if gray and x.shape[2] > 8 else None

    upscaler = upscaler_of(fake(spoil)[1], **options)
    upscaler.upscale(Picture(pixels=noise(16, 16)), Target(scale=2))
    for picture in (
        Picture(pixels=noise(16, 16, 1)),
        Picture(pixels=noise(16, 16), alpha=noise(16, 16, 1)[..., 0]),
    ):
        with pytest.raises(NumericsError):
            upscaler.upscale(picture, Target(scale=2))


def test_an_upscaler_needs_what_its_model_needs() -> None:
    unknown: Any = "bicubical"
    with pytest.raises(UsageError, match="no resampling kernel 'bicubical'"):
        Upscaler(model=unknown)
    with pytest.raises(UsageError, match="the model toy needs a runner"):
        Upscaler(model=fake()[1])


# -- one plane of numbers --------------------------------------------------------------------------


def test_a_plane_is_enlarged_as_it_is() -> None:
    plane = np.random.default_rng(0).random((20, 30), dtype=np.float32)
    bicubic = Upscaler(model="bicubic").enlarge_plane(plane, (40, 60))
    np.testing.assert_array_equal(bicubic, resize(plane, (40, 60)))
    assert bicubic.max() > 1.0, "not clipped: it rings"
    _, model = fake(scale=1, channels_in=1, pre_upsampled=True, scales=(2,))
    through = upscaler_of(model).enlarge_plane(plane, (40, 60))
    np.testing.assert_array_equal(through, np.clip(bicubic, 0.0, 1.0))
    assert through.dtype == np.float32
    shrunk = upscaler_of(model).enlarge_plane(plane, (10, 15))
    expected = np.clip(resize(plane, (10, 15), kernel="lanczos"), 0.0, 1.0)
    np.testing.assert_array_equal(shrunk, expected)


# -- opening ---------------------------------------------------------------------------------------


def test_opening_a_file_of_weights(tmp_path: Path) -> None:
    network = MSRResNet(MSRResNetConfig(blocks=1, channels=4, scale=2))
    path = tmp_path / "mine.safetensors"
    save(network, path, metadata={})
    options = Options(strength=0.5)
    upscaler = open_upscaler(path, device="cpu", precision="fp32", tile_px=32, options=options)
    assert upscaler.name == "mine"
    assert upscaler.options is options
    assert upscaler.passes(3) == (2.0, 2.0)
    result, facts = upscaler.upscale(Picture(pixels=noise(20, 20)), Target(scale=2))
    assert result.pixels.shape == (40, 40, 3)
    assert (facts.device, facts.precision) == ("cpu", "fp32")
    again = open_upscaler(str(path), device="cpu", precision="bf16")
    assert again.upscale(Picture(pixels=noise(20, 20)), Target(scale=2))[1].precision == "bf16"


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        open_upscaler("no-such-model")
    with pytest.raises(Waifu4xError):
        open_upscaler(tmp_path / "missing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        open_upscaler(tmp_path / "bad.safetensors")


def test_opening_on_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "mine.safetensors"
    save(MSRResNet(MSRResNetConfig(blocks=1, channels=4, scale=2)), path, metadata={})
    with pytest.raises(DeviceError, match="try --device cpu"):
        open_upscaler(path, device="cuda")
    with pytest.raises(UsageError, match="fp16 does not pay"):
        open_upscaler(path, device="cpu", precision="fp16")
    with pytest.raises(UsageError, match="at least 16 px"):
        open_upscaler(path, device="cpu", tile_px=8)


def test_filters_need_no_torch() -> None:
    program = (
        "import sys, numpy as np, waifu4x\n"
        "upscaler = waifu4x.open_upscaler('LANCZOS')\n"
        "picture = waifu4x.Picture(pixels=np.zeros((8, 8, 3), np.uint8))\n"
        "larger, facts = upscaler.upscale(picture, waifu4x.Target(scale=4))\n"
        "print(upscaler.name, larger.pixels.shape, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.split("\n")[0] == "lanczos (32, 32, 3) False"


# -- memory ----------------------------------------------------------------------------------------


def grainy(**facts: Any) -> Model:
    """A network whose results do not compress, as the worst of photos."""
    scale = facts["scale"]

    def grain(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return 0.3 * torch.randn(n, c, h * scale, w * scale)

    return fake(grain, **facts)[1]


def opened(model: Model | Kernel, **options: Any) -> Upscaler:
    if isinstance(model, str):
        return Upscaler(model=model, options=Options(**options))
    return upscaler_of(model, tile_px=32, **options)


LARGE = noise(300, 450)
LARGE_16_BIT = noise(300, 450, bits=16)
ADOBE_RGB = imagecodecs.cms_profile("adobergb")
MEMORY_CASES: dict[str, tuple[Upscaler, Picture, float]] = {
    "nearest": (opened("nearest"), Picture(pixels=LARGE), 4),
    "lanczos": (opened("lanczos"), Picture(pixels=LARGE, alpha=LARGE[..., 0]), 4),
    "shrunk": (opened("bicubic"), Picture(pixels=noise(1000, 1500)), 0.5),
    "network": (opened(grainy(scale=4)), Picture(pixels=LARGE), 4),
    "profile": (opened(grainy(scale=4)), Picture(pixels=LARGE, icc_profile=ADOBE_RGB), 4),
    "sixteen bits": (opened(grainy(scale=4)), Picture(pixels=LARGE_16_BIT), 4),
    "alpha": (opened(grainy(scale=4)), Picture(pixels=LARGE, alpha=LARGE[..., 0]), 4),
    "gray": (opened(grainy(scale=4)), Picture(pixels=LARGE[..., :1]), 4),
    "resampled": (opened(grainy(scale=4)), Picture(pixels=LARGE), 3),
    "two passes": (opened(grainy(scale=4)), Picture(pixels=LARGE[:150, :200]), 5),
    "two passes exactly": (opened(grainy(scale=2)), Picture(pixels=LARGE), 4),
    "blend": (opened(grainy(scale=4), strength=0.5), Picture(pixels=LARGE), 4),
    "lock": (opened(grainy(scale=4), color_fix=True), Picture(pixels=LARGE), 4),
    "both": (opened(grainy(scale=4), strength=0.5, color_fix=True), Picture(pixels=LARGE), 4),
    "luma": (opened(grainy(**LUMA)), Picture(pixels=LARGE), 3),
    "luma of gray": (opened(grainy(**LUMA)), Picture(pixels=LARGE[..., :1]), 3),
    "upscaled first": (opened(grainy(**{**LUMA, "channels_in": 3})), Picture(pixels=LARGE), 3),
}


@pytest.mark.parametrize("case", MEMORY_CASES)
def test_the_memory_estimate_is_hardly_too_low_and_at_most_twice_too_high(case: str) -> None:
    """Of the arrays and bytes at the peak of reading, enlarging and encoding, by Python's count.

    It does not see Pillow's own copies and the network's activations.
    """
    upscaler, picture, scale = MEMORY_CASES[case]
    file, target = pictures.encode(picture, format="PNG"), Target(scale=scale)
    # Modules and tables that are made on first use are none of a picture's.
    small = Picture(pixels=picture.pixels[:16, :16], icc_profile=picture.icc_profile)
    pictures.encode(upscaler.upscale(small, target)[0], format="PNG")
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        result, _ = upscaler.upscale(pictures.read(file), target)
        pictures.encode(result, format="PNG")
        peak_bytes = tracemalloc.get_traced_memory()[1] - before_bytes
    finally:
        tracemalloc.stop()
    size_px = result.width_px, result.height_px
    estimate_bytes = upscaler.memory_bytes(header_of(picture), size_px)
    for grid in upscaler.grids(header_of(picture), scale)[-1:]:
        assert upscaler.runner is not None
        # Of what the network takes Python sees the two arrays that go in and come out at most.
        estimate_bytes -= upscaler.runner.main_memory_bytes(grid)
    assert 0.9 < estimate_bytes / peak_bytes < 2.0


def test_the_networks_own_memory_counts_where_it_is_the_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upscaler = upscaler_of(fake(scale=2)[1], tile_px=64)
    assert upscaler.runner is not None
    with_network = upscaler.memory_bytes(sized(64, 64), (128, 128))
    # float32, the margin of 2.5, and a layer that reads 3 and writes 3 · 4 values a pixel; then
    # four copies of what it writes.
    own_bytes = 64 * 64 * 4 * (2.5 * (3 + 12) + 4 * 12)
    # A GPU has two buffers for what it gets and two for what it gives.
    buffer_bytes = 2 * 64 * 64 * 4 * (3 + 12)
    monkeypatch.setattr(upscaler.runner, "device", torch.device("cuda", 0))
    with_buffers = upscaler.memory_bytes(sized(64, 64), (128, 128))
    assert with_network - with_buffers == own_bytes - buffer_bytes
