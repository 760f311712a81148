"""Tiles, numbers that are none, and full memories: what the modules' own tests leave over."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from toys import FakeConfig, FakeNetwork, as_model, random_model
from typer.testing import CliRunner

from waifu4x import catalog, devices, pictures
from waifu4x.canvas import to_unit
from waifu4x.cli.app import app
from waifu4x.errors import NumericsError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.tiled import TiledRunner
from waifu4x.tiling import plan

FloatArray = npt.NDArray[np.float32]
LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}


def noise(height: int, width: int, *, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def runner_of(model: Model, precision: str = "fp32", *, tile_px: int | None = 4096) -> TiledRunner:
    """A runner on the CPU; fp16 too, which users are refused there because it does not pay."""
    with pytest.MonkeyPatch.context() as patch:
        if precision == "fp16":
            patch.setattr(devices, "pick_dtype", lambda wish, device: torch.float16)
        return TiledRunner(model, device="cpu", precision=precision, tile_px=tile_px)


# -- 12: tiles -------------------------------------------------------------------------------------


@settings(max_examples=500, deadline=None)
@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    tile_px=st.integers(1, 700),
    halo_px=st.integers(0, 80),
    scale=st.sampled_from([1, 2, 3, 4]),
)
def test_every_output_pixel_belongs_to_exactly_one_tile(
    height: int, width: int, tile_px: int, halo_px: int, scale: int
) -> None:
    """Rows and columns are cut independently: two partitions make every pixel one tile's."""
    grid = plan((height, width), tile_px=tile_px, halo_px=halo_px)
    for length_px, spans in ((height, grid.rows), (width, grid.columns)):
        places = [span.outer(scale) for span in spans]
        assert places[0].start == 0
        assert places[-1].stop == length_px * scale
        assert all(before.stop == after.start for before, after in pairwise(places))
        for span, place in zip(spans, places, strict=True):
            inner = span.inner(scale)
            assert 0 < place.stop - place.start == inner.stop - inner.start
            assert 0 <= inner.start < inner.stop <= span.window_px * scale
            assert place.start == span.window_start * scale + inner.start
            assert 0 <= span.window_start <= length_px - span.window_px
    assert len(grid) == len(grid.rows) * len(grid.columns)
    if len(grid) <= 100:
        tiles = {(tile.rows, tile.columns) for tile in grid}
        assert tiles == {(rows, columns) for rows in grid.rows for columns in grid.columns}


@cache
def srresnet(scale: int) -> Model:
    return random_model(SRResNetConfig(blocks=2, channels=4, scale=scale))


def check_tiled_is_whole(height: int, width: int, tile_px: int, scale: int) -> None:
    model, image = srresnet(scale), noise(height, width)
    tiled = runner_of(model, tile_px=tile_px)
    assert tiled._sizes.halo_px == model.receptive_radius_px
    assert np.abs(tiled.run(image) - runner_of(model).run(image)).max() <= 1e-5


TILINGS = {"tile_px": st.integers(16, 200), "scale": st.sampled_from([1, 2, 3, 4])}


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), **TILINGS)
def test_tiled_is_whole(height: int, width: int, tile_px: int, scale: int) -> None:
    check_tiled_is_whole(height, width, tile_px, scale)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(height=st.integers(1, 600), width=st.integers(1, 600), **TILINGS)
def test_tiled_is_whole_up_to_600_px(height: int, width: int, tile_px: int, scale: int) -> None:
    check_tiled_is_whole(height, width, tile_px, scale)


def at_call(number: int, error: BaseException) -> tuple[Callable[[Tensor], None], list[int]]:
    """What raises when the network is called for the number-th time with a real tile."""
    calls: list[int] = []

    def meddle(x: Tensor) -> None:
        if max(x.shape[2:]) > 8:
            calls.append(x.shape[0])
            if len(calls) == number:
                raise error

    return meddle, calls


@settings(max_examples=30, deadline=None)
@given(
    number=st.integers(1, 9),
    error=st.sampled_from([RuntimeError("a bug"), ValueError("another"), KeyboardInterrupt()]),
)
def test_a_tile_that_raises_ends_the_picture(number: int, error: BaseException) -> None:
    meddle, calls = at_call(number, error)
    runner = runner_of(as_model(FakeNetwork(FakeConfig(), meddle)), tile_px=16)
    with pytest.raises(type(error)) as caught:
        runner.run(noise(48, 48))
    assert caught.value is error
    assert len(calls) == number


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one picture of noise, x.png; the model is the file m.safetensors."""
    pixels = np.random.default_rng(0).integers(0, 256, (290, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (tmp_path / "m.safetensors").write_bytes(b"its content is not looked at here")
    return tmp_path


def upscale(
    place: Path, model: Model, *options: str, monkeypatch: pytest.MonkeyPatch, precision: str
) -> Any:
    """The command line with `model` for what the file of weights holds."""
    monkeypatch.setattr(checkpoints, "load", lambda path, **facts: model)
    files = [str(place / "x.png"), "-m", str(place / "m.safetensors"), "-o", str(place / "y.png")]
    how = ["--device", "cpu", "--precision", precision]
    return CliRunner().invoke(app, ["upscale", *files, *how, *options])


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


@pytest.mark.parametrize("number", [1, 2, 7])
def test_an_interrupt_leaves_no_file(
    place: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle, calls = at_call(number, KeyboardInterrupt())
    model = as_model(FakeNetwork(FakeConfig(), meddle))
    done = upscale(place, model, "-t", "100", monkeypatch=monkeypatch, precision="fp32")
    assert done.exit_code == 130
    assert len(calls) == number
    assert names(place) == {"x.png", "m.safetensors"}


# -- 13: numbers -----------------------------------------------------------------------------------


NETWORKS = {
    "msrresnet": MSRResNetConfig(blocks=2, channels=8, scale=2),
    "srvggnet": SRVGGNetCompactConfig(channels=8, convs=3, scale=2),
}


def spoiled(config: Any, layer: int, value: float, *, in_fp32: bool) -> Model:
    """A network whose layer-th convolution gives one `value`, in low precision or always."""
    model = random_model(config)
    convolutions = [m for m in model.network.modules() if isinstance(m, nn.Conv2d)]

    def spoil(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if max(output.shape[2:]) <= 16 or not (in_fp32 or torch.is_autocast_enabled("cpu")):
            return None
        output = output.clone()
        output[-1, 0, 3, 4] = value
        return output

    convolutions[layer].register_forward_hook(spoil)
    return model


LAYERS = pytest.mark.parametrize("layer", [0, 2, -1], ids=["first", "middle", "last"])
VALUES = pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)


@LAYERS
@VALUES
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", LOW)
def test_what_low_precision_spoils_is_computed_again_in_fp32(
    network: str, precision: str, value: float, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, image = NETWORKS[network], noise(30, 40)
    expected = runner_of(random_model(config)).run(image)
    model = spoiled(config, layer, value, in_fp32=False)
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    real = devices.pick_dtype
    monkeypatch.setattr(
        devices, "pick_dtype", lambda wish, device: LOW.get(precision, real(wish, device))
    )
    runner = TiledRunner(model, device="cpu", precision="auto", tile_px=64)
    assert runner.precision == precision
    np.testing.assert_array_equal(runner.run(image), expected)
    assert any(f"{precision} gave NaN or infinity" in note for note in runner.notes)


@LAYERS
@VALUES
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_cannot_be_computed_is_an_error(precision: str, value: float, layer: int) -> None:
    model = spoiled(NETWORKS["srvggnet"], layer, value, in_fp32=True)
    with pytest.raises(NumericsError, match=f"NaN or infinity in {precision}"):
        runner_of(model, precision, tile_px=64).run(noise(30, 40))


@LAYERS
@VALUES
@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_no_file_is_made_of_nan(
    place: Path, precision: str, value: float, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spoiled(NETWORKS["msrresnet"], layer, value, in_fp32=True)
    Image.new("RGB", (30, 20), (10, 100, 200)).save(place / "x.png")
    done = upscale(place, model, monkeypatch=monkeypatch, precision=precision)
    assert isinstance(done.exception, SystemExit)
    assert (done.exit_code, done.stdout) == (1, "")
    assert sum("NaN or infinity" in line for line in done.stderr.splitlines()) == 1
    assert names(place) == {"x.png", "m.safetensors"}


def test_what_an_activation_swallows_is_as_if_it_had_not_overflown() -> None:
    """ReLU makes 0 of minus infinity, and of every very negative number: nothing to be seen, and
    nothing wrong."""
    image, config = noise(30, 40), NETWORKS["msrresnet"]
    inside_block = 1  # its convolution is followed by a ReLU and nothing else
    results = [
        runner_of(spoiled(config, inside_block, value, in_fp32=True)).run(image)
        for value in (-np.inf, -1e30)
    ]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.fixture(scope="module")
def shipped() -> Model:
    return checkpoints.load(catalog.shipped_folder() / f"{catalog.DEFAULT_MODEL}.safetensors")


def drawn(name: str) -> FloatArray:
    """One of eight pictures of 64 × 64 px, after what pictures are made of."""
    y, x = np.mgrid[:64, :64] / 64.0
    rng = np.random.default_rng(0)
    gray = {
        "text": (np.kron(rng.random((16, 16)) > 0.6, np.ones((4, 4)))),
        "lines": ((x * 64).astype(int) // 3) % 2,
        "edge": x + 0.3 * y > 0.6,
    }
    colors = {
        "gradient": lambda: np.stack([x, y, (x + y) / 2], axis=2),
        "waves": lambda: np.stack([0.5 + 0.4 * np.sin(40 * x * y + k) for k in range(3)], axis=2),
        "blocks": lambda: np.kron(rng.random((8, 8, 3)), np.ones((8, 8, 1))),
        "disc": lambda: 0.1 + (np.hypot(x - 0.5, y - 0.5) < 0.3)[..., None] * [0.8, 0.1, 0.2],
        "grain": lambda: 0.5 + 0.1 * rng.standard_normal((64, 64, 3)).clip(-3, 3),
    }
    image = gray[name][..., None].repeat(3, axis=2) if name in gray else colors[name]()
    return image.astype(np.float32)


DRAWN = ["gradient", "waves", "blocks", "disc", "grain", "text", "lines", "edge"]


def psnr(one: FloatArray, other: FloatArray) -> float:
    return float(10 * np.log10(1 / np.mean((one.astype(np.float64) - other) ** 2)))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("precision", LOW)
def test_low_precision_is_close_to_fp32(shipped: Model, name: str, precision: str) -> None:
    """Measured on a CPU with the shipped model: bf16 58 to 86 dB, fp16 76 to 103 dB."""
    exact = runner_of(shipped).run(drawn(name))
    low = runner_of(shipped, precision).run(drawn(name))
    assert (low != exact).any()
    assert psnr(low, exact) >= 50


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("precision", LOW)
def test_low_precision_is_close_to_fp32_on_photographs(
    shared: Path, shipped: Model, number: int, precision: str
) -> None:
    """Measured on a CPU with the shipped model: bf16 61 to 74 dB, fp16 74 to 92 dB."""
    folder = shared / "data" / "bench" / "Set14"
    files = sorted(path for path in folder.iterdir() if path.suffix == ".png")
    picture = pictures.read(files[number]).pixels[:64, :64]
    image = to_unit(picture if picture.shape[2] == 3 else picture.repeat(3, axis=2))
    exact = runner_of(shipped).run(image)
    low = runner_of(shipped, precision).run(image)
    assert (low != exact).any()
    assert psnr(low, exact) >= 50


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_flat_in_is_flat_out(shipped: Model, level: int, precision: str) -> None:
    """To the very border, where the network's padding is dark."""
    image = np.full((26, 30, 3), level / 255.0, dtype=np.float32)
    result = runner_of(shipped, precision, tile_px=16).run(image)
    assert np.abs(result - image[0, 0]).max() <= 1 / 255


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90)])
def test_a_flat_colour_is_flat_inside(
    shipped: Model, color: tuple[int, int, int], precision: str
) -> None:
    """At the border the padding counts: measured 2.8 to 11.1 levels there, 0.3 inside."""
    image = np.full((32, 34, 3), np.array(color) / 255.0, dtype=np.float32)
    result = runner_of(shipped, precision).run(image)
    border = 8 * shipped.scale
    assert np.abs(result - image[0, 0])[border:-border, border:-border].max() <= 1 / 255


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("cell_px", [1, 2, 8])
def test_a_checkerboard_stays_one(shipped: Model, cell_px: int, precision: str) -> None:
    y, x = np.mgrid[:48, :48] // cell_px
    image = ((x + y) % 2)[..., None].repeat(3, axis=2).astype(np.float32)
    result = runner_of(shipped, precision, tile_px=24).run(image)
    assert np.isfinite(result).all()
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    assert abs(result.mean() - 0.5) < 0.05
    if cell_px >= 8:  # the middle of a cell is flat
        middles = result[14:-14:32, 14:-14:32], image[3:-3:8, 3:-3:8]
        assert np.abs(middles[0] - middles[1]).max() <= 0.05
    exact = runner_of(shipped, tile_px=24).run(image)
    if precision != "fp32":
        # One pixel wide it is the hardest picture there is: bf16 has 49.5 dB.
        assert psnr(result, exact) >= (49 if cell_px == 1 else 50)


# -- 14: full memories -----------------------------------------------------------------------------

MESSAGES: dict[str, BaseException] = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1099511627776 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9 GB)"),
}


def full_above(limit_px: int, error: BaseException) -> tuple[FakeNetwork, Model]:
    def meddle(x: Tensor) -> None:
        if max(x.shape[2:]) > limit_px:
            raise error

    network = FakeNetwork(FakeConfig(), meddle)
    return network, as_model(network)


def sides(network: FakeNetwork) -> list[int]:
    """The longest sides the network saw, repetitions left out, and its try for memory."""
    longest = [max(h, w) for _, h, w in network.sizes if max(h, w) > 8]
    return list(dict.fromkeys(longest))


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize(("limit_px", "seen"), [(149, [300, 120]), (80, [300, 120, 60])])
def test_the_command_line_goes_on_with_smaller_tiles_and_says_so(
    place: Path, kind: str, limit_px: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, model = full_above(limit_px, MESSAGES[kind])
    done = upscale(place, model, "-s", "2", monkeypatch=monkeypatch, precision="fp32")
    assert done.exit_code == 0, done.stderr
    assert sides(network) == seen
    assert "ran out of memory: tiles of" in done.stderr
    source, result = (pictures.read(place / name).pixels for name in ("x.png", "y.png"))
    np.testing.assert_array_equal(result, source.repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("kind", MESSAGES)
def test_the_command_line_never_changes_a_tile_that_was_asked_for(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, model = full_above(100, MESSAGES[kind])
    done = upscale(place, model, "-s", "2", "-t", "128", monkeypatch=monkeypatch, precision="fp32")
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "not enough memory for tiles of 128 px" in line
    assert len(sides(network)) == 1
    assert names(place) == {"x.png", "m.safetensors"}


@pytest.mark.parametrize("options", [[], ["-t", "128"]], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: out of resources for requested operation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED on CUDA device 0"),
    ],
    ids=str,
)
def test_other_errors_of_cuda_come_through_unchanged(
    place: Path, error: BaseException, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, model = full_above(100, error)
    done = upscale(place, model, "-s", "2", *options, monkeypatch=monkeypatch, precision="fp32")
    assert done.exception is error
    assert len(sides(network)) == 1
    assert names(place) == {"x.png", "m.safetensors"}
