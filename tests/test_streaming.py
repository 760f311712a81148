"""Strips put together are what the picture in memory becomes, and few of them lie there at once."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import FakeConfig, FakeNetwork, as_model, random_model

from waifu4x import color, streaming
from waifu4x.canvas import to_unit
from waifu4x.errors import NumericsError
from waifu4x.headers import Header
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.pictures import Picture
from waifu4x.resample import KERNELS, Kernel, resize, resize_rows
from waifu4x.sizes import Target
from waifu4x.streaming import strip_colors
from waifu4x.strips import Rows, RowWindow, Strip
from waifu4x.tiled import MemoryFullError, TiledRunner
from waifu4x.upscaler import Options, Upscaler

X2 = MSRResNetConfig(blocks=1, channels=6, scale=2)
X4 = MSRResNetConfig(blocks=1, channels=6)
LUMA_X2 = MSRResNetConfig(blocks=1, channels=6, scale=2, channels_in=1)
EVEN = RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2)
PRE_UPSAMPLED = VDSRConfig(depth=3, channels=4)
PRE_UPSAMPLED_X3 = SRCNNConfig(kernels=(9, 1, 5), channels=(4, 4))
PRE_UPSAMPLED_RGB = SRCNNConfig(kernels=(9, 1, 5), channels=(4, 4), channels_in=3)
SCALES = {PRE_UPSAMPLED: (2, 3, 4), PRE_UPSAMPLED_X3: (3,)}

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@cache
def trained(config: Any) -> Model:
    return random_model(config, scales=SCALES.get(config))


def upscaler_of(
    model: Model | Kernel, *, tile_px: int | None = 20, tta: bool = False, **options: Any
) -> Upscaler:
    runner = None
    if not isinstance(model, str):
        runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px, tta=tta)
    return Upscaler(model=model, runner=runner, options=Options(**options))


def fake(
    meddle: Callable[[Tensor], Tensor | None] = lambda x: None, **facts: Any
) -> tuple[FakeNetwork, Model]:
    network = FakeNetwork(FakeConfig(**facts), meddle)
    return network, as_model(network)


def downwards(array: np.ndarray) -> Rows:
    """Its rows, for callers who keep to what `Rows` says."""
    told = (0, 0)

    def rows(start: int, stop: int) -> np.ndarray:
        nonlocal told
        assert told[0] <= start < stop <= len(array)
        assert told[1] <= stop
        told = start, stop
        return array[start:stop]

    return rows


class Source:
    """A picture in memory that is read like one that is not."""

    def __init__(self, picture: Picture) -> None:
        self.height_px, self.width_px, self.channels = picture.pixels.shape
        self.has_alpha = picture.alpha is not None
        self.dtype = picture.pixels.dtype
        self.opened = 0
        self.asked_px = 0
        self._picture = picture

    @contextmanager
    def open(self) -> Iterator[Callable[[int, int], Strip]]:
        self.opened += 1
        pixels = downwards(self._picture.pixels)
        alpha = None if self._picture.alpha is None else downwards(self._picture.alpha)

        def rows(start: int, stop: int) -> Strip:
            self.asked_px = stop
            return Strip(pixels(start, stop), None if alpha is None else alpha(start, stop))

        yield rows


def noise(height: int, width: int, channels: int = 3, *, bits: int = 8) -> npt.NDArray[Any]:
    dtype = np.uint8 if bits == 8 else np.uint16
    rng = np.random.default_rng(height * width)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def alpha_of(kind: str, height: int, width: int, bits: int) -> npt.NDArray[Any] | None:
    if kind == "none":
        return None
    alpha = noise(height, width + 1, 1, bits=bits)[:, 1:, 0]
    if kind in ("flat", "empty"):
        alpha[:] = 0 if kind == "empty" else alpha[0, 0]
    elif kind == "varied":
        np.maximum(alpha, 1, out=alpha)
    else:  # hidden far and near, and an opaque part
        alpha[alpha < np.iinfo(alpha.dtype).max // 3] = 0
        alpha[: height // 2, width // 3 :] = 0
        alpha[-height // 4 :] = np.iinfo(alpha.dtype).max
    return alpha


def picture_of(
    height: int, width: int, channels: int = 3, *, bits: int = 8, alpha: str = "none"
) -> Picture:
    return Picture(
        pixels=noise(height, width, channels, bits=bits),
        alpha=alpha_of(alpha, height, width, bits),
    )


def together(strips: Iterator[Strip] | list[Strip]) -> Picture:
    pixels, alphas = zip(*strips, strict=True)
    alpha = None if alphas[0] is None else np.concatenate(alphas)
    return Picture(pixels=np.concatenate(pixels), alpha=alpha)


def assert_equal(found: Picture, expected: Picture, *, levels: int = 0) -> None:
    pairs = [(found.pixels, expected.pixels)]
    assert (found.alpha is None) == (expected.alpha is None)
    if found.alpha is not None and expected.alpha is not None:
        pairs.append((found.alpha, expected.alpha))
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert int(np.abs(one.astype(int) - other.astype(int)).max()) <= levels


# -- the same as in memory -------------------------------------------------------------------------

CASES: list[tuple[Any, Target, dict[str, Any], dict[str, Any]]] = [
    # A model, a size, a picture, options. Straight to integers:
    (X2, Target(scale=2), {}, {}),
    (X2, Target(scale=2), {"channels": 1}, {}),
    (X4, Target(scale=4), {"bits": 16}, {}),
    (X4, Target(scale=4), {}, {"tile_px": 64}),
    (X4, Target(scale=16), {"height": 40, "width": 12}, {"tile_px": 32}),
    (X2, Target(scale=2), {}, {"tta": True}),
    (EVEN, Target(scale=2), {"height": 91, "width": 33}, {}),
    # Resampled to the size at the end:
    (X2, Target(scale=2.5), {}, {}),
    (X4, Target(scale=2.5), {"channels": 1, "bits": 16}, {}),
    (X2, Target(scale=1), {}, {}),
    (X2, Target(width_px=101), {}, {}),
    (X2, Target(height_px=307), {"alpha": "varied"}, {}),
    (EVEN, Target(scale=3.7), {"height": 51, "width": 27}, {}),
    # Shrunk, where no network is asked:
    (X4, Target(scale=0.5), {"alpha": "holes"}, {}),
    (X4, Target(scale=0.11), {}, {"strength": 0.5, "color_fix": True}),
    # Luma, and what is given an upscaled picture:
    (LUMA_X2, Target(scale=2), {}, {}),
    (LUMA_X2, Target(scale=2), {"channels": 1}, {}),
    (LUMA_X2, Target(scale=3), {"alpha": "varied"}, {}),
    (PRE_UPSAMPLED, Target(scale=2), {}, {}),
    (PRE_UPSAMPLED, Target(scale=2.5), {"channels": 1, "alpha": "holes"}, {}),
    (PRE_UPSAMPLED, Target(scale=6), {"height": 40, "width": 20, "bits": 16}, {}),
    (PRE_UPSAMPLED_X3, Target(scale=2), {}, {}),
    (PRE_UPSAMPLED_RGB, Target(scale=1.3), {}, {}),
    # Mixed with bicubic interpolation:
    (X2, Target(scale=2), {}, {"strength": 0.6}),
    (X2, Target(scale=2.5), {"alpha": "holes", "bits": 16}, {"strength": 0.0}),
    (LUMA_X2, Target(scale=2), {}, {"strength": 0.3}),
    # Alpha:
    *[
        (X2, Target(scale=2), {"alpha": kind, "bits": bits}, {"alpha": by})
        for kind in ("flat", "empty", "varied", "holes")
        for bits in (8, 16)
        for by in ("network", "bicubic")
    ],
    (X2, Target(scale=2.5), {"alpha": "holes", "height": 300, "width": 13}, {"alpha": "bicubic"}),
    # Kernels:
    *[(kernel, Target(scale=2.5), {"alpha": "holes"}, {}) for kernel in KERNELS],
    ("bicubic", Target(scale=0.3), {"channels": 1, "bits": 16}, {}),
    ("lanczos", Target(scale=1), {}, {}),
    # One row, one column, one pixel:
    (X2, Target(scale=3), {"height": 1, "width": 40, "alpha": "varied"}, {}),
    (X2, Target(scale=3), {"height": 90, "width": 1}, {"strength": 0.5}),
    (X4, Target(scale=4), {"height": 1, "width": 1, "alpha": "flat"}, {}),
]


@pytest.mark.parametrize(("config", "target", "facts", "options"), CASES, ids=str)
def test_strips_are_what_the_picture_in_memory_becomes(
    config: Any, target: Target, facts: dict[str, Any], options: dict[str, Any]
) -> None:
    model: Any = config if isinstance(config, str) else trained(config)
    picture = picture_of(**{"height": 90, "width": 30, **facts})
    expected, in_memory = upscaler_of(model, **options).upscale(picture, target)
    upscaler, source, shares = upscaler_of(model, **options), Source(picture), list[float]()
    strips = list(streaming.enlarge(upscaler, source, target, on_progress=shares.append))
    assert_equal(together(strips), expected)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    told = streaming.facts(upscaler, source, target, spent_s=1.0)
    assert dataclasses.replace(told, network_s=0) == dataclasses.replace(in_memory, network_s=0)
    assert (told.network_s > 0.0) == (in_memory.network_s > 0.0)


@pytest.mark.parametrize("facts", [{}, {"channels": 1, "bits": 16}, {"alpha": "holes"}])
@pytest.mark.parametrize("scale", [2.0, 3.3])
def test_locked_colours_are_those_in_memory_but_for_rounding(
    facts: dict[str, Any], scale: float
) -> None:
    model, target = trained(X2), Target(scale=scale)
    picture = picture_of(130, 25, **facts)
    options = {"color_fix": True, "strength": 0.8}
    expected, _ = upscaler_of(model, **options).upscale(picture, target)
    strips = streaming.enlarge(upscaler_of(model, **options), Source(picture), target)
    assert_equal(together(strips), expected, levels=1)


def test_many_strips_come_and_each_is_a_row_of_tiles() -> None:
    strips = list(
        streaming.enlarge(
            upscaler_of(fake(scale=2)[1]), Source(picture_of(90, 30)), Target(scale=2)
        )
    )
    assert [len(strip.pixels) for strip in strips] == [36, 36, 36, 36, 36]


@pytest.mark.parametrize(
    ("alpha", "times"), [("none", 1), ("empty", 2), ("varied", 2), ("holes", 3)]
)
def test_how_often_a_picture_is_read(alpha: str, times: int) -> None:
    source = Source(picture_of(60, 20, alpha=alpha))
    list(streaming.enlarge(upscaler_of("nearest"), source, Target(scale=2)))
    assert source.opened == times


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 40)),
    larger=st.tuples(st.integers(1, 250), st.integers(1, 90)),
    kernel=st.sampled_from(KERNELS),
)
def test_resampling_by_rows(size: tuple[int, int], larger: tuple[int, int], kernel: Kernel) -> None:
    image = to_unit(noise(*size))
    bands = list(resize_rows(downwards(image), size, larger, kernel=kernel))
    np.testing.assert_array_equal(np.concatenate(bands), resize(image, larger, kernel=kernel))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 40)),
    step_px=st.integers(1, 70),
    share=st.floats(0.05, 1.0),
)
def test_colours_below_transparency_by_rows(
    size: tuple[int, int], step_px: int, share: float
) -> None:
    samples = noise(*size, 4)
    samples[..., 3] = np.where(samples[..., 3] < share * 255, 0, samples[..., 3])
    if not 0 == samples[..., 3].min() < samples[..., 3].max():
        return
    most = int(samples[..., 3].max())
    visible = strip_colors.VisibleColors(downwards(samples), size, most=most)
    rows = visible.read(downwards(samples)).reader()
    starts = range(0, size[0], step_px)
    found = np.concatenate([rows(start, min(start + step_px, size[0])) for start in starts])
    expected = color.bleed_alpha(to_unit(samples[..., :3]), samples[..., 3])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("out_px", [(340, 60), (500, 91), (170, 30)])
def test_locking_by_rows(out_px: tuple[int, int]) -> None:
    output, reference = to_unit(noise(*out_px)), to_unit(noise(170, 30))
    window = RowWindow(downwards(output), out_px[0])
    found = strip_colors.locked(window.reader, downwards(reference), (170, 30), out_px)
    expected = color.lock_low_frequencies(output, reference)
    np.testing.assert_allclose(np.concatenate(list(found)), expected, rtol=0, atol=1e-6)


# -- what goes wrong -------------------------------------------------------------------------------


def test_after_a_full_memory_the_next_run_takes_smaller_tiles() -> None:
    def meddle(x: Tensor) -> None:
        if x.shape[2] * x.shape[3] > 100 * 100:
            raise OUT_OF_MEMORY

    _, model = fake(meddle, scale=2)
    upscaler = upscaler_of(model, tile_px=None)
    picture = picture_of(400, 120)
    source, target = Source(picture), Target(scale=2)
    for number in range(2):  # 400 × 120 px, then 134 × 120
        with pytest.raises(MemoryFullError):
            list(streaming.enlarge(upscaler, source, target, again=number > 0))
    found = together(streaming.enlarge(upscaler, source, target, again=True))
    expected = picture.pixels.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(found.pixels, expected)
    facts = streaming.facts(upscaler, source, target, spent_s=0.0)
    assert facts.tile_px == 60
    assert facts.notes == tuple(
        f"cpu ran out of memory: tiles of {tile_px} px from now on" for tile_px in (192, 64)
    )
    list(streaming.enlarge(upscaler, source, target))
    assert streaming.facts(upscaler, source, target, spent_s=0.0).notes == ()


def test_what_was_begun_before_memory_was_full_is_not_in_the_next_run() -> None:
    full = iter([False, False, True])

    def meddle(x: Tensor) -> None:
        if x.shape[2:] != (8, 8) and next(full, False):
            raise OUT_OF_MEMORY

    upscaler = upscaler_of(fake(meddle, scale=4)[1], tile_px=None)
    picture = picture_of(600, 20)  # two passes of several tiles, the first of which is begun
    source, target = Source(picture), Target(scale=5)
    with pytest.raises(MemoryFullError):
        list(streaming.enlarge(upscaler, source, target))
    found = together(streaming.enlarge(upscaler, source, target, again=True))
    expected, _ = upscaler_of(fake(scale=4)[1]).upscale(picture, target)
    assert_equal(found, expected)


def test_nan_is_an_error() -> None:
    _, model = fake(lambda x: torch.full((1,), float("nan")), scale=2)
    strips = streaming.enlarge(upscaler_of(model), Source(picture_of(40, 20)), Target(scale=2.5))
    with pytest.raises(NumericsError, match="toy gives NaN or infinity in fp32"):
        next(strips)


# -- memory ----------------------------------------------------------------------------------------


class Endless:
    """A picture of any height that is made when it is asked for."""

    channels = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, height_px: int, *, alpha: str) -> None:
        self.width_px, self.height_px = 64, height_px
        self.has_alpha = alpha != "none"
        self._alpha = alpha

    @contextmanager
    def open(self) -> Iterator[Callable[[int, int], Strip]]:
        def rows(start: int, stop: int) -> Strip:
            places = np.arange(start, stop, dtype=np.uint32)[:, None] * 64 + np.arange(64)
            pixels = (places * places >> 5).astype(np.uint8)
            alpha = np.where(places % 3 == 0, 0 if self._alpha == "holes" else 9, 255)
            return Strip(
                np.stack([pixels, ~pixels, pixels // 2], axis=2),
                alpha.astype(np.uint8) if self.has_alpha else None,
            )

        yield rows


def peak_bytes(upscaler: Upscaler, height_px: int, target: Target, *, alpha: str) -> int:
    gc.collect()
    tracemalloc.start()
    for strip in streaming.enlarge(upscaler, Endless(height_px, alpha=alpha), target):
        del strip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "alpha", "options"),
    [
        (2.0, "none", {}),
        (2.5, "varied", {}),
        (2.0, "holes", {"alpha": "bicubic", "strength": 0.5}),
    ],
)
def test_a_taller_picture_takes_no_more_memory(
    scale: float, alpha: str, options: dict[str, Any]
) -> None:
    upscaler = upscaler_of(fake(scale=2)[1], tile_px=64, **options)
    target = Target(scale=scale)
    peaks = [peak_bytes(upscaler, height, target, alpha=alpha) for height in (300, 1200, 2400)]
    assert peaks[2] < 1.1 * peaks[1]


def test_a_locked_picture_takes_no_more_memory_when_it_is_taller() -> None:
    upscaler = upscaler_of(fake(scale=1)[1], tile_px=64, color_fix=True)
    shorter, taller = (
        peak_bytes(upscaler, height, Target(scale=1), alpha="none") for height in (300, 600)
    )
    assert taller < 1.1 * shorter


@pytest.mark.parametrize(
    ("model", "ahead_px"),
    [
        # A row of tiles of 64 rows, and 32 more on both sides; at the top all of them are below.
        (fake(scale=2, receptive_radius_px=32)[1], 64 + 2 * 32),
        # 64 rows of a result, and what the last one's kernel sees below it.
        ("bicubic", 32 + 2),
    ],
    ids=["network", "kernel"],
)
def test_a_picture_is_not_read_far_ahead(model: Model | Kernel, ahead_px: int) -> None:
    source = Source(picture_of(640, 20))
    done_px = 0
    for strip in streaming.enlarge(upscaler_of(model, tile_px=64), source, Target(scale=2)):
        assert source.asked_px <= done_px // 2 + ahead_px
        done_px += len(strip.pixels)
    assert done_px == 1280


def test_a_window_holds_what_may_be_asked_for_again() -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def pull(start: int, stop: int) -> np.ndarray:
        band = np.arange(start, start + 10)[:, None]
        alive.append(weakref.ref(band))
        return band

    window = RowWindow(pull, 100)
    ahead, behind = window.reader(), window.reader()
    assert ahead(0, 25).ravel().tolist() == list(range(25))
    assert ahead(22, 50).ravel().tolist() == list(range(22, 50))
    assert behind(0, 1).ravel().tolist() == [0]
    assert [band() is not None for band in alive] == [True] * 5
    assert behind(21, 30).ravel().tolist() == list(range(21, 30))
    assert ahead(49, 51).ravel().tolist() == [49, 50]
    assert [band() is not None for band in alive] == [False, False, True, True, True, True]


@pytest.mark.parametrize("scale", [2.0, 2.5])
def test_memory_is_estimated_whatever_the_height(scale: float) -> None:
    def header(height_px: int) -> Header:
        return Header(
            format="PNG",
            width_px=64,
            height_px=height_px,
            channels=3,
            has_alpha=False,
            depth_bits=8,
        )

    target = Target(scale=scale)
    upscaler = upscaler_of(fake(scale=2)[1], tile_px=64)
    tall, taller = (
        streaming.memory_bytes(upscaler, header(h), target.size_px(64, h)) for h in (1280, 128_000)
    )
    assert tall == taller
    assert upscaler.runner is not None
    network = upscaler.runner.main_memory_bytes(upscaler.runner.plan(1280, 64))
    taken = peak_bytes(upscaler, 1280, target, alpha="none")
    assert 0.8 * taken < tall - network < 1.6 * taken


def test_only_single_pictures_are_streamed() -> None:
    header = Header(
        format="PNG", width_px=9, height_px=9, channels=3, has_alpha=False, depth_bits=8
    )
    assert streaming.refusal(header) is None
    moving = dataclasses.replace(header, frames=3, kind="animation")
    assert streaming.refusal(moving) == "it has 3 frames, and each must lie in memory"
