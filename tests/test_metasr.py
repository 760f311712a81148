"""Meta-SR: every pixel by the kernel of its place, at any scale, in tiles and strips as in one."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import save, upscale
from torch import Tensor
from toys import as_model
from training import rows, save_picture, save_three, waves
from typer.testing import CliRunner

from waifu4x import devices, exporting, pictures, streaming, weights
from waifu4x.bench import protocol
from waifu4x.cli.app import app
from waifu4x.engines import choice
from waifu4x.errors import DeviceError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.model_facts import Model
from waifu4x.networks import metasr
from waifu4x.networks.metasr import MetaSR, MetaSRConfig
from waifu4x.pictures import Picture
from waifu4x.resample import imresize
from waifu4x.sizes import Pass, Target, exact, passes
from waifu4x.strips import Strip, StripSource
from waifu4x.tiled import TiledRunner
from waifu4x.tiling import Span
from waifu4x.train import building, fractional, recipe
from waifu4x.train.batches import Batches
from waifu4x.train.data import open_cache
from waifu4x.upscaler import Upscaler

EDSR = MetaSRConfig(blocks=1, channels=4, hidden=6, pixel_range=1)
RDN = MetaSRConfig(trunk="rdn", blocks=2, convs=2, growth=3, channels=4, hidden=6, mean_shift=False)
SCALES = [Fraction(text) for text in ("1", "1.1", "1.5", "2", "2.7", "3.3", "3.9", "4", "500/167")]
scales = pytest.mark.parametrize("scale", SCALES, ids=str)


@cache
def network_of(config: MetaSRConfig) -> MetaSR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MetaSR(config).eval().requires_grad_(False)


@cache
def model_of(config: MetaSRConfig = EDSR) -> Model:
    return as_model(network_of(config))


def noise(height: int, width: int, *, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def as_tensor(image: npt.NDArray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


# -- every pixel -----------------------------------------------------------------------------------


def slowly(network: MetaSR, x: Tensor, scale: Fraction, size_px: tuple[int, int]) -> npt.NDArray:
    """What the paper says, pixel by pixel, in double precision: (3, H, W) in [0, 1]."""
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    config, mean = network.config, network.mean.double().numpy()[0]
    with torch.no_grad():
        first = network.conv_first((x - network.mean) * config.pixel_range)
        features = (first + network.conv_body(network._through_blocks(first)))[0].double().numpy()
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    made = np.empty((3, *size_px))
    for i in range(size_px[0]):
        for j in range(size_px[1]):
            row, column = math.floor(i / scale), math.floor(j / scale)
            place = [float(1 / scale), float(i / scale - row), float(j / scale - column)]
            hidden = state["upscale.hidden.weight"] @ place + state["upscale.hidden.bias"]
            kernel = state["upscale.kernel.weight"] @ np.maximum(hidden, 0.0)
            kernel = (kernel + state["upscale.kernel.bias"]).reshape(-1, 3)
            seen = padded[:, row : row + 3, column : column + 3].reshape(-1)
            made[:, i, j] = seen @ kernel
    return made / config.pixel_range + mean


@scales
@pytest.mark.parametrize("config", [EDSR, RDN], ids=["edsr", "rdn"])
def test_every_pixel_is_what_the_paper_says(config: MetaSRConfig, scale: Fraction) -> None:
    network, x = network_of(config), as_tensor(noise(7, 9))
    size_px = math.floor(7 * scale), math.floor(9 * scale)
    made = network(x, scale)[0].numpy()
    assert made.shape == (3, *size_px)
    assert made.std() > 0.05
    np.testing.assert_allclose(made, slowly(network, x, scale, size_px), atol=2e-6)


@pytest.mark.parametrize("scale", SCALES[:-1], ids=str)
@torch.no_grad()
def test_both_ways_of_computing_agree(scale: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    there, x = network_of(EDSR).at(scale, (5, 13)), as_tensor(noise(11, 6))
    by_kernels = there(x)
    monkeypatch.setattr(metasr, "_MOST_VALUES", 3000)  # a few rows at a time
    torch.testing.assert_close(there(x), by_kernels, atol=1e-6, rtol=0.0)
    monkeypatch.setattr(metasr, "_MOST_SLOTS", 0)
    torch.testing.assert_close(there(x), by_kernels, atol=1e-6, rtol=0.0)


def test_positions_worked_out_by_hand() -> None:
    # At 5/2 pixel 0 has 0, 1, 2 (offsets 0, .4, .8), and pixel 1 has 3, 4 (.2, .6).
    scale = Fraction(5, 2)
    assert [metasr.first_pixel(pixel, scale) for pixel in range(4)] == [0, 3, 5, 8]
    assert metasr._pixels_on(1, 2, scale) == ([0, 0, 1, 1, 1], [0.2, 0.6, 0.0, 0.4, 0.8])
    span = Span(window_start=1, window_px=4, core_start=2, core_stop=4)
    assert span.outer(scale) == slice(5, 10)
    assert span.inner(scale) == slice(2, 7)


def test_a_scale_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 1/2"):
        network_of(EDSR)(as_tensor(noise(4, 4)), Fraction(1, 2))


@torch.no_grad()
def test_kernels_are_made_once_for_all_windows_of_a_scale() -> None:
    network, made = network_of(EDSR), []
    hook = network.upscale.kernel.register_forward_hook(lambda *_: made.append(1))
    first = network.at(Fraction(27, 10), (0, 0))
    x = as_tensor(noise(5, 5))
    expected = network.window(x, Fraction(27, 10), (3, 4))
    made.clear()
    assert torch.equal(first.at(Fraction(27, 10), (3, 4))(x), expected)
    first(x)
    assert len(made) == 1
    first.at(Fraction(3, 2), (0, 0))(x)
    assert len(made) == 2
    hook.remove()


@pytest.mark.parametrize(
    "numbers", [{"trunk": "rcan"}, {"convs": 3}, {"blocks": 0}, {"pixel_range": 2}]
)
def test_a_config_of_nonsense_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MetaSRConfig(**numbers)


# -- tiles and strips ------------------------------------------------------------------------------


def run(image: npt.NDArray, to: Pass, *, tile_px: int, config: MetaSRConfig = EDSR) -> npt.NDArray:
    runner = TiledRunner(model_of(config), device="cpu", precision="fp32", tile_px=tile_px)
    return runner.run(image, to=to)


@pytest.mark.parametrize("config", [EDSR, RDN], ids=["edsr", "rdn"])
@pytest.mark.parametrize("text", ["1.5", "2.7", "3.3", "4", "500/167", "1"])
def test_tiled_equals_whole(text: str, config: MetaSRConfig) -> None:
    scale = Fraction(text)
    image = noise(47, 61)
    whole = network_of(config).at(scale, (0, 0))(as_tensor(image))[0].permute(1, 2, 0).numpy()
    assert whole.shape[:2] == (math.ceil(47 * scale), math.ceil(61 * scale))
    to = Pass(scale, (whole.shape[0], whole.shape[1]))
    for tile_px in (16, 23, 4096):
        tiles = run(image, to, tile_px=tile_px, config=config)
        np.testing.assert_allclose(tiles, np.clip(whole, 0.0, 1.0), atol=1e-6)


def test_without_the_halo_tiles_differ() -> None:
    """So that the test above can fail."""
    image, to = noise(47, 61), Pass(Fraction(27, 10), (126, 164))
    runner = TiledRunner(model_of(), device="cpu", precision="fp32", tile_px=16)
    runner._sizes.halo_px = EDSR.receptive_radius_px - 1
    assert np.abs(runner.run(image, to=to) - run(image, to, tile_px=4096)).max() > 1e-4


def test_windows_of_wrong_places_would_differ() -> None:
    """A network that took every window's corner for the picture's would not be seamless."""
    x = as_tensor(noise(12, 12))
    network, scale = network_of(EDSR), Fraction(27, 10)
    here, there = network.at(scale, (0, 0))(x), network.at(scale, (3, 0))(x)
    assert (here[..., :32, :] - there[..., :32, :]).abs().max() > 1e-3


def test_what_is_too_small_for_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="less than"):
        run(noise(10, 10), Pass(Fraction(3, 2), (15, 16)), tile_px=16)


def test_pictures_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TiledRunner(model_of(), device="cpu", precision="fp32", tile_px=16)
    runner._sizes._batch_limit = 5
    images, to = [noise(20, 37, seed=seed) for seed in (1, 2, 3)], Pass(Fraction(5, 2), (50, 92))
    for image, together in zip(images, runner.run_all(images, to=to), strict=True):
        np.testing.assert_allclose(run(image, to, tile_px=4096), together, atol=1e-6)


def test_a_window_that_is_not_finite_is_computed_again_in_its_own_place() -> None:
    runner = TiledRunner(model_of(), device="cpu", tile_px=16)
    spoiled = MetaSR(EDSR).requires_grad_(False)
    spoiled.conv_body.weight.fill_(math.nan)
    engine: Any = runner._windows.engine
    engine._network, engine.precision = spoiled, "bf16"
    engine._dtype = torch.bfloat16
    image, to = noise(20, 37), Pass(Fraction(27, 10), (54, 100))
    np.testing.assert_allclose(runner.run(image, to=to), run(image, to, tile_px=4096), atol=1e-6)
    assert runner.notes == ["bf16 gave NaN or infinity: such tiles were computed again in fp32"]


# -- pictures --------------------------------------------------------------------------------------


def upscaler(*, tile_px: int = 4096) -> Upscaler:
    runner = TiledRunner(model_of(), device="cpu", precision="fp32", tile_px=tile_px)
    return Upscaler(model=model_of(), runner=runner)


def picture(height: int, width: int, *, alpha: bool = False) -> Picture:
    pixels = (noise(height, width) * 255).astype(np.uint8)
    return Picture(pixels=pixels, alpha=pixels[..., 0].copy() if alpha else None)


def by_network(pixels: npt.NDArray, scale: Fraction, size_px: tuple[int, int]) -> npt.NDArray:
    y = network_of(EDSR).at(scale, (0, 0))(as_tensor(pixels.astype(np.float32) / 255.0))
    values = y[0].permute(1, 2, 0)[: size_px[0], : size_px[1]].clamp(0.0, 1.0)
    return np.rint(values.numpy() * 255.0).astype(np.uint8)


@pytest.mark.parametrize(
    ("target", "scale", "size_px"),
    [
        # 272.7 and 27 px: rounded, the one is a pixel more than the paper's.
        (Target(scale=2.7), Fraction(27, 10), (273, 27)),
        (Target(scale=1.5), Fraction(3, 2), (152, 15)),
        (Target(scale=4.0), Fraction(4), (404, 40)),
        (Target(height_px=300), Fraction(300, 101), (300, 30)),
        (Target(scale=1.0), Fraction(1), (101, 10)),
    ],
)
def test_the_network_makes_the_exact_size_itself(
    target: Target, scale: Fraction, size_px: tuple[int, int]
) -> None:
    given = picture(101, 10)
    made, facts = upscaler(tile_px=32).upscale(given, target)
    assert facts.passes == (float(scale),)
    expected = by_network(given.pixels, scale, size_px)
    # Another order of sums may round a value the other way.
    assert made.pixels.shape == (*size_px, 3)
    assert np.abs(made.pixels.astype(int) - expected).max() <= 1
    assert (made.pixels == expected).mean() > 0.999


def test_beyond_its_largest_scale_it_is_applied_again() -> None:
    given = picture(9, 11)
    made, facts = upscaler().upscale(given, Target(scale=10.0))
    assert facts.passes == (4.0, 2.5)
    first = network_of(EDSR)(as_tensor(given.pixels.astype(np.float32) / 255.0)).clamp(0.0, 1.0)
    second = network_of(EDSR)(first, Fraction(5, 2))[0].permute(1, 2, 0).clamp(0.0, 1.0).numpy()
    assert np.abs(made.pixels - second * 255.0).max() <= 0.51


def test_strength_and_alpha_at_a_fraction() -> None:
    made, _ = upscaler().upscale(picture(21, 33, alpha=True), Target(scale=3.3))
    assert made.alpha is not None
    assert made.alpha.shape == made.pixels.shape[:2] == (69, 109)


@pytest.mark.parametrize("factor", [2.7, 10.0])
@pytest.mark.parametrize("alpha", [False, True])
def test_in_strips_it_is_the_same_picture(factor: float, alpha: bool) -> None:
    given, target = picture(40, 18, alpha=alpha), Target(scale=factor)
    subject = upscaler(tile_px=16)
    whole, _ = subject.upscale(given, target)

    class Source(StripSource):
        height_px, width_px, channels, has_alpha, dtype = 40, 18, 3, alpha, np.dtype(np.uint8)

        def open(self) -> Any:
            def rows(start: int, stop: int) -> Strip:
                cut = None if given.alpha is None else given.alpha[start:stop]
                return Strip(given.pixels[start:stop], cut)

            return nullcontext(rows)

    strips = list(streaming.enlarge(subject, Source(), target))
    assert len(strips) > 1
    np.testing.assert_array_equal(np.concatenate([s.pixels for s in strips]), whole.pixels)
    if whole.alpha is not None:
        alphas = [strip.alpha for strip in strips if strip.alpha is not None]
        np.testing.assert_array_equal(np.concatenate(alphas), whole.alpha)


def test_passes_and_fractions() -> None:
    assert passes(2.7, native=4, any_factor=True) == (2.7,)
    assert exact(2.7) == Fraction(27, 10)
    assert exact(1000 / 333) == Fraction(1000, 333)
    assert exact(65535 / 65521) == Fraction(65535, 65521)


# -- files, engines, the command line --------------------------------------------------------------


def saved(folder: Path, config: MetaSRConfig = EDSR) -> Path:
    path = folder / "meta.safetensors"
    checkpoints.save(network_of(config), path, metadata={"licence": "CC0-1.0"})
    return path


def test_upscale_by_a_fraction(tmp_path: Path) -> None:
    source = save(tmp_path / "in.png", size=(37, 20))
    how = ("-s", "2.7", "-m", saved(tmp_path), "--precision", "fp32")
    done = upscale(source, *how, "-o", tmp_path / "out.png")
    assert done.exit_code == 0, done.stderr
    made = pictures.read(tmp_path / "out.png").pixels
    expected = by_network(pictures.read(source).pixels, Fraction(27, 10), (54, 100))
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_bench_at_fractions(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "set" / f"{number}.png", size=(50, 41 + number))
    arguments = ["bench", str(tmp_path / "set"), "-s", "1.5,2.7", "-m", str(saved(tmp_path))]
    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet", "--precision", "fp32"])
    assert done.exit_code == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["scale"], each["model"]) for each in found] == [
        (1.5, "bicubic"),
        (1.5, "meta"),
        (2.7, "bicubic"),
        (2.7, "meta"),
    ]
    assert [each["notes"] for each in found] == [[]] * 4
    # 41 x 50 becomes 27 x 27: multiples of 27, shrunk to 10 x 10.
    assert found[2]["pictures"][0]["megapixels"] == 27 * 27 / 1e6


def test_the_protocol_shrinks_by_the_fraction_itself(tmp_path: Path) -> None:
    path = tmp_path / "hr.png"
    pictures.write(Picture(pixels=waves(seed=0, size=(64, 64))), path)
    shown: list[Picture] = []

    class Watched(Upscaler):
        def upscale(self, picture: Picture, *arguments: Any, **options: Any) -> Any:
            shown.append(picture)
            return super().upscale(picture, *arguments, **options)

    protocol.enlarge(Watched(model="bicubic"), path, scale=2.7, protocol=protocol.PROTOCOLS["rgb8"])
    hr = waves(seed=0, size=(64, 64))[:54, :54]
    np.testing.assert_array_equal(shown[0].pixels, imresize(hr, 10 / 27))


def test_the_published_keys_are_known(tmp_path: Path) -> None:
    """Those of XuecaiHu/Meta-SR-Pytorch, whose layers that shift the mean color say the range."""
    for config, rules in (
        (
            dataclasses.replace(EDSR, blocks=2, pixel_range=255),
            {"conv_first": "head.0", "conv_body": "body.2"}
            | {f"body.{b}.conv{c}": f"body.{b}.body.{2 * c - 2}" for b in (0, 1) for c in (1, 2)},
        ),
        (
            dataclasses.replace(RDN, mean_shift=True),
            {"conv_first": "SFENet1", "conv_second": "SFENet2", "fuse": "GFF.0"}
            | {"conv_body": "GFF.1"}
            | {f"body.{b}.fuse": f"RDBs.{b}.LFF" for b in (0, 1)}
            | {f"body.{b}.convs.{c}": f"RDBs.{b}.convs.{c}.conv.0" for b in (0, 1) for c in (0, 1)},
        ),
    ):
        rules |= {"upscale.hidden": "P2W.meta_block.0", "upscale.kernel": "P2W.meta_block.2"}
        network = network_of(config)
        state = {}
        for key, value in network.state_dict().items():
            layer, _, kind = key.rpartition(".")
            state[f"{rules[layer]}.{kind}"] = value
        shift = torch.tensor(metasr.MEAN_RGB) * config.pixel_range
        state |= {"sub_mean.weight": torch.eye(3).view(3, 3, 1, 1), "sub_mean.bias": -shift}
        state |= {"add_mean.weight": torch.eye(3).view(3, 3, 1, 1), "add_mean.bias": shift}
        torch.save(state, tmp_path / "published.pth")
        model = checkpoints.load(tmp_path / "published.pth")
        assert model.network.config == config
        assert model.any_scale
        x = as_tensor(noise(6, 5))
        assert torch.equal(model.network(x), network(x))


def test_only_torch_runs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = network_of(EDSR)
    monkeypatch.delenv(devices.ENGINE_VARIABLE)
    monkeypatch.setattr(devices, "has_openvino", lambda: True)
    opened = choice.open_engine(network, device="cpu")
    assert opened.engine.name == "torch"
    assert opened.note.startswith("torch ran the network: OpenVINO runs those of one scale")
    for wrong, words in (
        ({"engine": "openvino"}, "openvino is for networks of one scale.*--engine torch"),
        ({"engine": "onnxruntime"}, "onnxruntime is for networks of one scale.*--engine torch"),
        ({"precision": "int8"}, "int8 is for networks of one scale.*--precision auto"),
        ({"device": "xpu"}, "OpenVINO on Intel GPUs is for.*--device cpu"),
        ({"compiled": True}, "--compile is for networks of one scale"),
        ({"device": "cuda:0,cuda:1"}, "name one with --device"),
    ):
        with pytest.raises((DeviceError, UsageError), match=words):
            choice.open_engine(network, **{"device": "cpu", **wrong})
    with pytest.raises(UsageError, match=r"toy enlarges by any factor.*--tta"):
        TiledRunner(model_of(), device="cpu", tta=True)
    with pytest.raises(UsageError, match="toy enlarges by any factor, and a graph by one"):
        exporting.export(model_of(), tmp_path / "toy.onnx", to="onnx")


# -- training --------------------------------------------------------------------------------------

SETTINGS = {
    "generator.blocks": "1",
    "generator.channels": "8",
    "generator.hidden": "16",
    "data.batch": "2",
    "data.patch_px": "10",
}


def small(**changes: str) -> recipe.Recipe:
    settings = SETTINGS | {place.replace("__", "."): value for place, value in changes.items()}
    return recipe.load("meta-edsr", overrides=list(settings.items()))


def test_the_recipe_mixes_every_tenth() -> None:
    chosen = recipe.load("meta-edsr")
    mixed = fractional.scales(chosen.data, chosen.scale)
    assert mixed == tuple(Fraction(tenth, 10) for tenth in range(11, 41))
    found = {fractional.scale_at(mixed, seed=3, step=step) for step in range(300)}
    assert found == set(mixed)
    # Nothing of a recipe without them depends on the option.
    assert "from_scale" not in recipe.load("vdsr").facts()["data"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": '{ network = "msrresnet", scale = 4 }'}, "msrresnet is none: leave it out"),
        ({"data__patch_px": "48"}, "must be a multiple of 10, not 48"),
        ({"data__from_scale": "1.15"}, "must be tenths from 1 to 4, not 1.15"),
        ({"data__from_scale": "4.1"}, "must be tenths from 1 to 4, not 4.1"),
        ({"data__from_scale": "nan"}, "must be tenths from 1 to 4, not nan"),
        ({"data__from_scale": "inf"}, "must be tenths from 1 to 4, not inf"),
        ({"data__from_scale": "-inf"}, "must be tenths from 1 to 4, not -inf"),
        ({"data__degradation": "web"}, "goes with bicubic pairs alone"),
    ],
)
def test_scales_that_cannot_be_mixed(changes: dict[str, str], words: str) -> None:
    if "generator" in changes:
        settings = [("generator", changes["generator"]), ("data.patch_px", "10")]
        chosen = recipe.load("meta-edsr", overrides=settings)
    else:
        chosen = small(**changes)
    with pytest.raises(UsageError, match=words):
        building.check(chosen)


@pytest.mark.parametrize("text", ["1.1", "1.5", "2.7", "3", "3.9"])
def test_crops_are_those_of_the_whole_picture(text: str) -> None:
    scale = Fraction(text)
    num, den = scale.numerator, scale.denominator
    hr = (noise(110, 97, seed=4) * 255).astype(np.uint8)
    whole = imresize(hr[: 110 // num * num, : 97 // num * num], float(1 / scale))
    found = set()
    for chances in ((0.0, 0.0), (0.5, 0.3), (0.99, 0.99), (0.2, 0.99)):
        patch, large = fractional.pair(hr, scale, patch_px=10, chances=np.array(chances))
        y, x = (
            int(c * (n // num - 10 // den + 1)) for c, n in zip(chances, (110, 97), strict=True)
        )
        found.add((y, x))
        expected = whole[y * den : y * den + 10, x * den : x * den + 10].astype(int)
        # What lies halfway between two levels may be rounded to either.
        assert patch.shape == (10, 10, 3)
        assert np.abs(patch - expected).max() <= 1
        assert (patch == expected).mean() > 0.99
        side = 10 * num // den
        np.testing.assert_array_equal(large, hr[y * num : y * num + side, x * num : x * num + side])
    assert len(found) > 1


def test_a_batch_is_of_one_scale_and_of_its_step_alone(tmp_path: Path) -> None:
    cache = open_cache([save_three(tmp_path / "in")], tmp_path, scale=2, patch_px=10)
    data = dataclasses.replace(small().data, from_scale=1.2)
    batches = Batches([cache], data, seed=1)
    again, (first, second) = (
        Batches([cache], data, seed=1),
        (Batches([cache], data, seed=1, rank=rank, world=2) for rank in (0, 1)),
    )
    seen = set()
    for step in (5, 0, 3, 7, 4):
        batch = batches[step]
        seen.add(batch.scale)
        assert batch.x.shape[2:] == (10, 10)
        assert batch.truth.shape[2:] == (10 * batch.scale, 10 * batch.scale)
        assert torch.equal(batch.truth, again[step].truth)
        assert torch.equal(batch.x, torch.cat([first[step].x, second[step].x]))
    assert len(seen) > 1
    assert min(seen) >= Fraction(12, 10)
    assert max(seen) <= 2


def test_training_from_the_command_line(tmp_path: Path) -> None:
    for number in range(3):
        save_picture(tmp_path / "in" / f"{number}.png", seed=number, size=(48, 44))
    overrides = [f"--set={place}={value}" for place, value in SETTINGS.items()]
    arguments = [
        *("train", str(tmp_path / "in"), "--recipe", "meta-edsr", "--name", "own", *overrides),
        *("--set", "stages.0.learning_rate=3e-3", "--steps", "40", "--precision", "fp32"),
        *("--report-every", "10", "--device", "cpu", "--out", str(tmp_path / "run")),
    ]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, ""), (done.stderr, done.exception)
    losses = [float(row["losses"]["l1"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]
    source = save(tmp_path / "small.png", size=(21, 17))
    done = upscale(source, "-s", "3.3", "-m", "own", "-o", tmp_path / "large.png")
    assert done.exit_code == 0, done.stderr
    assert pictures.read(tmp_path / "large.png").pixels.shape == (56, 69, 3)
    assert weights.find("own").scale is None
    card = next((tmp_path / "run").glob("*.md")).read_text()
    assert "| scales | 1.1 to 4 |" in card
