"""Tiled equals whole, a full memory makes tiles smaller, and no NaN reaches a picture."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from toys import GRAPHLESS, FakeConfig, FakeNetwork, as_model, random_model

from waifu4x import devices
from waifu4x.canvas import Canvas, to_unit
from waifu4x.errors import NumericsError, OutOfMemoryError, UsageError
from waifu4x.model_files.checkpoints import Model, load
from waifu4x.networks import NETWORKS
from waifu4x.networks.autoencoder import AutoencoderConfig
from waifu4x.networks.edsr import EDSRConfig
from waifu4x.networks.metasr import MetaSRConfig
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.plksr import PLKSRConfig
from waifu4x.networks.ranksrgan import RankSRGANConfig
from waifu4x.networks.rcan import RCANConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.san import SANConfig
from waifu4x.networks.span import SPANConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srfbn import SRFBNConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.tiled import MAX_HALO_PX, TiledRunner, tile_sizes
from waifu4x.tiled.tile_sizes import MIN_TILE_PX

WHOLE_PX = 4096

# Every architecture, radii up to the largest halo, each kind of input and of tail.
CONFIGS = [
    SRCNNConfig(kernels=(9, 5, 5), channels=(8, 4)),
    SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4), channels_in=3),
    VDSRConfig(depth=20, channels=6),
    SRResNetConfig(blocks=2, channels=8),
    SRResNetConfig(blocks=3, channels=8, scale=2, output="unit"),
    SRResNetConfig(blocks=1, channels=8, scale=3, norm=False, middle="plain", output="tanh"),
    RRDBNetConfig(blocks=1, channels=8, growth=4),
    RRDBNetConfig(blocks=1, channels=8, growth=4, upsamplings=1),
    SRVGGNetCompactConfig(channels=8, convs=6),
    SRVGGNetCompactConfig(channels=8, convs=6, scale=3),
    MSRResNetConfig(blocks=3, channels=8),
    MSRResNetConfig(blocks=4, channels=8, scale=2, tail="direct"),
    RankSRGANConfig(blocks=2, channels=8),
    EDSRConfig(blocks=2, channels=8),
    RCANConfig(groups=1, blocks=2, channels=8, reduction=2),
    SPANConfig(blocks=2, channels=8, tail_channels=8, pixel_range=1),
    PLKSRConfig(blocks=2, channels=8, large_kernel=5, large_channels=2),
    MetaSRConfig(blocks=1, channels=8, hidden=16, pixel_range=1),
    AutoencoderConfig(channels=(8, 8, 8)),
    SRFBNConfig(channels=8, groups=2, steps=2),
    SANConfig(groups=1, blocks=1, channels=8, reduction=4, looking=2, scale=2),
]
LOCAL = [config for config in CONFIGS if not config.global_context]
UNSHUFFLED = RRDBNetConfig(blocks=1, channels=8, growth=4, unshuffle=2)


@cache
def model_of(config: Any) -> Model:
    return random_model(config)


def noise(height: int, width: int, channels: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


def run(
    model: Model,
    image: npt.NDArray[np.float32],
    *,
    tile_px: int = WHOLE_PX,
    halo_px: int | None = None,
    precision: str = "fp32",
    tta: bool = False,
) -> npt.NDArray[np.float32]:
    runner = TiledRunner(model, device="cpu", precision=precision, tile_px=tile_px, tta=tta)
    if halo_px is not None:
        runner._sizes.halo_px = halo_px
    return runner.run(image)


def largest_difference(one: npt.NDArray, other: npt.NDArray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other).max())


# -- tiled equals whole ----------------------------------------------------------------------------


def test_every_architecture_is_tested_here() -> None:
    kinds = {entry.config for entry in NETWORKS.values()}
    assert {type(c) for c in CONFIGS} == kinds - GRAPHLESS


@settings(max_examples=100, deadline=None)
@given(
    config=st.sampled_from(LOCAL),
    height=st.integers(1, 80),
    width=st.integers(1, 110),
    tile_px=st.integers(16, 100),
)
@example(config=CONFIGS[0], height=80, width=110, tile_px=16)
@example(config=CONFIGS[2], height=60, width=90, tile_px=16)
@example(config=CONFIGS[3], height=60, width=90, tile_px=16)
@example(config=CONFIGS[6], height=60, width=90, tile_px=16)
@example(config=CONFIGS[8], height=60, width=90, tile_px=16)
@example(config=CONFIGS[10], height=60, width=90, tile_px=16)
def test_tiled_equals_whole_when_the_halo_is_the_radius(
    config: Any, height: int, width: int, tile_px: int
) -> None:
    assert config.receptive_radius_px <= MAX_HALO_PX
    image = noise(height, width, config.channels_in)
    whole = run(model_of(config), image)
    tiles = run(model_of(config), image, tile_px=tile_px)
    # Measured: 0 mostly, else 1.8e-7: oneDNN may sum in another order for another shape.
    assert largest_difference(tiles, whole) <= 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_tiled_differs_from_whole_when_the_halo_is_too_small(config: Any) -> None:
    """So that the test above can fail: these networks do look as far as they say."""
    image = noise(48, 64, config.channels_in)
    whole = run(model_of(config), image)
    assert whole.std() > 0.05
    assert largest_difference(run(model_of(config), image, tile_px=16, halo_px=0), whole) > 0.1
    radius_px = config.receptive_radius_px
    assert largest_difference(run(model_of(config), image, tile_px=16, halo_px=1), whole) > 0.05
    # One pixel less than the radius, where the influence has not died away on the way out.
    if radius_px <= 8:
        short = run(model_of(config), image, tile_px=16, halo_px=radius_px - 1)
        assert largest_difference(short, whole) > 1e-5


@pytest.mark.parametrize(("height", "width"), [(75, 101), (76, 102), (1, 1), (1, 90), (91, 2)])
def test_pixel_unshuffling_tiles_of_any_size_equal_whole(height: int, width: int) -> None:
    # Radius 38: beyond the largest halo, so it is asked for here.
    image, model = noise(height, width, 3), model_of(UNSHUFFLED)
    whole = run(model, image)
    assert whole.shape == (2 * height, 2 * width, 3)
    for tile_px in (16, 33):
        assert largest_difference(run(model, image, tile_px=tile_px, halo_px=38), whole) <= 1e-5
        assert largest_difference(run(model, image, tile_px=tile_px), whole) <= 1 / 255


def test_bilinear_positions_of_x3_are_rounded_so_its_tiles_equal_whole_nearly() -> None:
    """torch computes the places of bilinear samples in float32, from the tile's own corner.

    For factors of two they are exact; for x3 they are off by up to 1e-7 of the picture's side.
    """
    model = model_of(MSRResNetConfig(blocks=2, channels=8, scale=3))
    image = noise(96, 300, 3)
    assert largest_difference(run(model, image, tile_px=40), run(model, image)) <= 1e-4


def test_a_deep_network_at_the_largest_halo_is_within_one_grey_level() -> None:
    """23 blocks have a radius of 349 px; what lies beyond 32 px may not move an 8-bit value."""
    config = RRDBNetConfig(blocks=23, channels=6, growth=3)
    model = model_of(config)
    assert model.receptive_radius_px > 300
    image = noise(24, 160, 3)
    whole = run(model, image)
    assert largest_difference(run(model, image, tile_px=24, halo_px=2), whole) > 1 / 255
    assert largest_difference(run(model, image, tile_px=24), whole) <= 1 / 255


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "realesrgan/RealESRGAN_General_x4_v3_fp16.safetensors",
        "realesrgan/realesr-animevideov3.pth",
        "srresnet/srresnet8_pytorch_tutorial_x4.safetensors",
        "srgan/leftthomas_netG_epoch_4_100.pth",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trained_networks_tiled_are_within_one_grey_level(
    shared: Path, name: str, precision: str
) -> None:
    model = load(shared / "weights" / name)
    with Image.open(sorted((shared / "data" / "bench" / "Set14").iterdir())[1]) as picture:
        image = to_unit(np.asarray(picture.convert("RGB"))[:200, :200])
    whole = run(model, image, precision=precision)
    for tile_px in (32, 48, 100):
        tiles = run(model, image, tile_px=tile_px, precision=precision)
        assert largest_difference(tiles, whole) <= 1 / 255


@pytest.mark.parametrize("config", [*LOCAL, UNSHUFFLED], ids=str)
def test_tiles_in_bfloat16_differ_by_less_than_bfloat16_itself_does(config: Any) -> None:
    """Another order of summation may flip the last of bfloat16's eight bits, here and there."""
    image, model = noise(60, 90, config.channels_in), model_of(config)
    exact = run(model, image)
    whole = run(model, image, precision="bf16")
    rounding = largest_difference(whole, exact)
    assert rounding > 0.0
    for tile_px in (16, 37):
        tiles = run(model, image, tile_px=tile_px, precision="bf16")
        assert largest_difference(tiles, whole) <= max(rounding, 1 / 255)
        # Rare or small: it must not look like a seam.
        assert np.sqrt(np.mean((tiles - whole) ** 2)) <= 0.5 / 255


def test_eightfold_tiles_equal_eightfold_whole() -> None:
    model, image = model_of(CONFIGS[8]), noise(50, 71, 3)
    tiles = run(model, image, tile_px=20, tta=True)
    assert largest_difference(tiles, run(model, image, tta=True)) <= 1e-5


# -- what a runner does with a picture -------------------------------------------------------------


def fake(
    meddle: Callable[[Tensor], Tensor | None] = lambda x: None, **facts: Any
) -> tuple[FakeNetwork, Model]:
    network = FakeNetwork(FakeConfig(**facts), meddle)
    return network, as_model(network)


def test_gray_through_a_network_of_three_channels_comes_back_gray() -> None:
    gray = noise(20, 30, 1)
    result = run(model_of(CONFIGS[8]), gray, tile_px=16)
    assert result.shape == (80, 120, 1)
    rgb = run(model_of(CONFIGS[8]), gray.repeat(3, axis=2), tile_px=16)
    weights = np.array([0.299, 0.587, 0.114])
    # The network's unclamped values are weighed; where none was clamped both must agree.
    inside = ((rgb > 0) & (rgb < 1)).all(axis=2)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(result[..., 0][inside], (rgb @ weights)[inside], atol=1e-6)


def test_results_go_into_the_canvas_that_is_given() -> None:
    _, model = fake()
    image = noise(30, 41, 3)
    canvas = Canvas((60, 82), channels=3, dtype=np.uint8)
    result = TiledRunner(model, device="cpu", tile_px=16).run(image, canvas=canvas)
    assert result is canvas.values
    expected = np.rint(image * 255).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size_px", [(1, 1), (1, 7), (5, 3), (9, 130)])
def test_a_size_that_is_no_multiple_is_continued_and_cut_off(size_px: tuple[int, int]) -> None:
    network, model = fake(size_multiple=4)
    image = noise(*size_px, 3)
    result = run(model, image, tile_px=16)
    np.testing.assert_array_equal(result, image.repeat(2, axis=0).repeat(2, axis=1))
    assert all(h % 4 == 0 and w % 4 == 0 for _, h, w in network.sizes)


def test_values_are_clamped_and_the_input_is_left_alone() -> None:
    _, model = fake(lambda x: torch.full((1,), 0.5))
    image = noise(20, 20, 3)
    kept = image.copy()
    result = run(model, image)
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_allclose(result[::2, ::2], np.minimum(image + 0.5, 1.0), atol=1e-6)
    assert result.max() == 1.0


def test_progress_rises_to_one() -> None:
    _, model = fake()
    shares: list[float] = []
    TiledRunner(model, device="cpu", tile_px=16).run(noise(50, 50, 3), on_progress=shares.append)
    assert len(shares) == 16
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_facts_of_a_run() -> None:
    _, model = fake(receptive_radius_px=4)
    runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=20)
    runner.run(noise(40, 40, 3))
    assert (runner.last_tile_px, runner.last_waste) == (20, 4 * 28 * 28 / 1600)
    assert runner.spent_s > 0.0
    assert runner.notes == []
    assert runner.precision == "fp32"
    runner.forget()
    assert (runner.last_tile_px, runner.spent_s) == (None, 0.0)


def test_a_tile_below_sixteen_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 16 px, not 15"):
        TiledRunner(fake()[1], device="cpu", tile_px=15)


def test_several_tiles_at_once_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image, model = noise(50, 64, 3), model_of(CONFIGS[8])
    one_by_one = run(model, image, tile_px=16)
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 5)
    assert largest_difference(run(model, image, tile_px=16), one_by_one) <= 1e-5
    network, model = fake()
    run(model, image, tile_px=16)
    assert [n for n, _, _ in network.sizes if n > 1] == [5, 5, 5]  # 16 tiles: 5, 5, 5 and 1


@pytest.mark.parametrize("config", [CONFIGS[8], CONFIGS[2], UNSHUFFLED], ids=str)
def test_several_pictures_give_what_each_gives_alone(
    monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    model = model_of(config)
    images = [noise(37, 50, config.channels_in, seed=k) for k in range(4)]
    alone = [run(model, image, tile_px=20) for image in images]
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 5)
    runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=20)
    together = runner.run_all(images)
    assert len(together) == 4
    for one, other in zip(together, alone, strict=True):
        # Another order of summation, at most.
        assert largest_difference(one, other) <= 1e-5
    assert largest_difference(together[0], together[1]) > 0.1


def test_several_pictures_go_into_their_canvases() -> None:
    _, model = fake()
    images = [noise(30, 41, 3, seed=k) for k in range(3)]
    canvases = [Canvas((60, 82), channels=3, dtype=np.uint8) for _ in images]
    shares: list[float] = []
    results = TiledRunner(model, device="cpu", tile_px=41).run_all(
        images, canvases=canvases, on_progress=shares.append
    )
    for result, canvas, image in zip(results, canvases, images, strict=True):
        assert result is canvas.values
        np.testing.assert_array_equal(result[::2, ::2], np.rint(image * 255).astype(np.uint8))
    assert shares == [1 / 3, 2 / 3, 1.0]


@pytest.mark.parametrize("images", [[], [noise(8, 8, 3), noise(8, 9, 3)]])
def test_pictures_of_one_run_must_be_of_one_shape(images: list[npt.NDArray[np.float32]]) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        TiledRunner(fake()[1], device="cpu").run_all(images)


def test_tiles_shrink_with_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = fake(receptive_radius_px=10)
    runner = TiledRunner(model, device="cpu", precision="fp32")
    tiles = []
    for free_bytes in (2**40, 2**24, 0):
        monkeypatch.setattr(devices, "free_bytes", lambda device, free=free_bytes: free)
        grid = runner.plan(2000, 2000)
        tiles.append(max(span.core_stop - span.core_start for span in grid.rows))
    assert tiles == sorted(tiles, reverse=True)
    assert tiles[0] == 334  # 2000 px in tiles of at most 384
    assert tiles[0] > tiles[1] > tiles[2]
    assert tiles[2] <= MIN_TILE_PX


# -- a full memory ---------------------------------------------------------------------------------

OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: "
        "you tried to allocate 1099511627776 bytes."
    ),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"),
    "host": MemoryError(),
}


def failing_above(limit_px: int, error: BaseException) -> Callable[[Tensor], None]:
    def meddle(x: Tensor) -> None:
        if max(x.shape[2:]) > limit_px:
            raise error

    return meddle


def sides(network: FakeNetwork) -> list[int]:
    """The longest side of what the network saw, repetitions left out; not the engine's own try."""
    longest = [max(h, w) for _, h, w in network.sizes if max(h, w) > 8]
    return [n for k, n in enumerate(longest) if k == 0 or longest[k - 1] != n]


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
@pytest.mark.parametrize(
    ("limit_px", "seen"),
    # Of at most 512, 128 (half of 300, and less) and 64 px.
    [(1000, [300]), (149, [300, 120]), (80, [300, 120, 60])],
)
def test_an_automatic_tile_is_halved_until_it_fits(
    kind: str, limit_px: int, seen: list[int]
) -> None:
    network, model = fake(failing_above(limit_px, OUT_OF_MEMORY[kind]))
    runner = TiledRunner(model, device="cpu", precision="fp32")
    image = noise(600, 290, 3)
    result = runner.run(image)
    np.testing.assert_array_equal(result, image.repeat(2, axis=0).repeat(2, axis=1))
    assert sides(network) == seen
    assert runner.last_tile_px == seen[-1]
    assert len(runner.notes) == len(seen) - 1
    assert all("ran out of memory: tiles of" in note for note in runner.notes)

    # What worked is kept for the next picture.
    network.sizes.clear()
    runner.forget()
    runner.run(image)
    assert sides(network) == seen[-1:]
    assert runner.notes == []


def test_not_even_the_smallest_tile_fits() -> None:
    network, model = fake(failing_above(50, OUT_OF_MEMORY["cpu"]))
    runner = TiledRunner(model, device="cpu", precision="fp32")
    with pytest.raises(OutOfMemoryError, match="not enough memory even for tiles of 60 px"):
        runner.run(noise(600, 300, 3))
    assert sides(network) == [300, 120, 60]


def test_a_tile_that_was_asked_for_is_never_changed() -> None:
    network, model = fake(failing_above(100, OUT_OF_MEMORY["cuda"]))
    runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=128)
    with pytest.raises(OutOfMemoryError, match=r"for tiles of 128 px.*leave --tile out"):
        runner.run(noise(256, 256, 3))
    assert network.sizes[-1] == (1, 128, 128)
    assert len([size for size in network.sizes if size[1] > 8]) == 1
    assert runner.notes == []


@pytest.mark.parametrize("tile_px", [None, 100])
def test_tiles_come_one_by_one_before_they_become_smaller(
    monkeypatch: pytest.MonkeyPatch, tile_px: int | None
) -> None:
    """Halving the tile alone would fill up the batch and need the same memory again."""

    def meddle(x: Tensor) -> None:
        if x.shape[0] * x.shape[2] * x.shape[3] > 100 * 100:
            raise OUT_OF_MEMORY["cuda"]

    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 16)
    network, model = fake(meddle)
    runner = TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px)
    image = noise(400, 400, 3)
    np.testing.assert_array_equal(runner.run(image)[::2, ::2], image)
    seen = list(dict.fromkeys(size for size in network.sizes if size[1] > 8))
    if tile_px is None:
        assert seen == [(4, 200, 200), (1, 200, 200), (1, 80, 80)]
    else:
        assert seen == [(16, 100, 100), (1, 100, 100)]
        assert runner.notes == []


def test_what_a_failed_pass_held_is_let_go_before_the_next_try() -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def meddle(x: Tensor) -> None:
        alive.extend(ref() is not None for ref in held)
        if max(x.shape[2:]) > 100:
            activation = torch.zeros(10)
            held.append(weakref.ref(activation))
            # A new exception each time: its traceback holds this frame.
            raise torch.OutOfMemoryError("CUDA out of memory.")

    _, model = fake(meddle)
    TiledRunner(model, device="cpu", precision="fp32").run(noise(300, 300, 3))
    assert held
    assert alive
    assert not any(alive)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA driver version is insufficient; out of memory or luck"),
        RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
        KeyboardInterrupt(),
        SystemExit(143),
    ],
    ids=repr,
)
@pytest.mark.parametrize("tile_px", [None, 64])
def test_every_other_error_comes_through_unchanged(
    error: BaseException, tile_px: int | None
) -> None:
    """A tile that raises may not leave a hole in a picture that looks finished."""
    calls = 0

    def meddle(x: Tensor) -> None:
        nonlocal calls
        calls += x.shape[2] > 8
        if calls == 3:
            raise error

    _, model = fake(meddle)
    monkey = TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px)
    shares: list[float] = []
    with pytest.raises(type(error)) as caught:
        monkey.run(noise(1100, 300, 3), on_progress=shares.append)
    assert caught.value is error
    assert calls == 3
    assert len(shares) == 2
    assert monkey.notes == []


def test_an_interrupt_in_the_progress_callback_ends_the_run() -> None:
    network, model = fake()

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TiledRunner(model, device="cpu", tile_px=16).run(noise(64, 64, 3), on_progress=interrupt)
    assert len([size for size in network.sizes if size[1] > 8]) == 1


# -- numbers that are none -------------------------------------------------------------------------


def overflowing(value: float, *, in_fp32: bool) -> Callable[[Tensor], Tensor | None]:
    """Spoils one value of bright tiles, in reduced precision or always."""

    def meddle(x: Tensor) -> Tensor | None:
        reduced = torch.is_autocast_enabled("cpu")
        if x.max() < 0.9 or not (reduced or in_fp32):
            return None
        spoiled = torch.zeros(x.shape[0], 3, 2 * x.shape[2], 2 * x.shape[3])
        spoiled[0, 1, -1, -1] = value
        return spoiled

    return meddle


def half_bright() -> npt.NDArray[np.float32]:
    image = noise(64, 64, 3) * np.float32(0.5)
    image[:32, :32] = 1.0
    return image


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_automatic_precision_falls_back_to_fp32_for_the_spoiled_tiles(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    network, model = fake(overflowing(value, in_fp32=False))
    runner = TiledRunner(model, device="cpu", tile_px=32)
    assert runner.precision == "bf16"
    result = runner.run(half_bright())
    np.testing.assert_array_equal(result[::2, ::2], half_bright())
    assert runner.notes == [
        "bf16 gave NaN or infinity: such tiles were computed again in fp32",
    ]
    # Four tiles, and one of them twice.
    assert len([size for size in network.sizes if size[1] > 8]) == 5
    assert runner.precision == "bf16"


def test_of_a_batch_only_the_spoiled_tiles_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def meddle(x: Tensor) -> Tensor | None:
        if not torch.is_autocast_enabled("cpu"):
            return torch.full((1,), 0.25)
        spoiled = torch.zeros(x.shape[0], 3, 2 * x.shape[2], 2 * x.shape[3])
        spoiled[x.amax(dim=(1, 2, 3)) > 0.9] = float("nan")
        return spoiled

    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    monkeypatch.setitem(tile_sizes._MAX_BATCH, "cpu", 4)
    network, model = fake(meddle)
    image = half_bright() * np.float32(0.95)
    result = TiledRunner(model, device="cpu", tile_px=32).run(image)[::2, ::2]
    np.testing.assert_array_equal(result[32:], image[32:])
    np.testing.assert_array_equal(result[:32, 32:], image[:32, 32:])
    assert (result[:32, :32] == 1.0).all()  # 0.95 and what fp32 adds
    assert [size for size in network.sizes if size[1] > 8] == [(4, 32, 32), (1, 32, 32)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_fp32_too_is_an_error(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    _, model = fake(overflowing(value, in_fp32=True))
    for precision in ("auto", "fp32"):
        runner = TiledRunner(model, device="cpu", precision=precision, tile_px=32)
        with pytest.raises(
            NumericsError, match=r"toy gives NaN or infinity in fp32 .*another model"
        ):
            runner.run(half_bright())


def test_a_precision_that_was_asked_for_is_never_changed() -> None:
    network, model = fake(overflowing(float("nan"), in_fp32=False))
    runner = TiledRunner(model, device="cpu", precision="bf16", tile_px=32)
    with pytest.raises(NumericsError, match=r"in bf16 for this picture; try --precision fp32"):
        runner.run(half_bright())
    assert runner.notes == []
    assert len([size for size in network.sizes if size[1] > 8]) == 1


def test_one_nan_in_one_of_eight_views_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    _, model = fake(overflowing(float("nan"), in_fp32=False))
    runner = TiledRunner(model, device="cpu", tile_px=32, tta=True)
    np.testing.assert_allclose(runner.run(half_bright())[::2, ::2], half_bright(), atol=1e-6)
    assert len(runner.notes) == 1


def test_nan_weights_are_an_error_and_not_a_black_picture() -> None:
    model = random_model(CONFIGS[10])
    with torch.no_grad():
        next(model.network.parameters())[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericsError, match="in fp32"):
        run(model, noise(20, 20, 3))
