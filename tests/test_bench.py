"""Measuring: metrics with known answers, and the protocols that papers measure by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from typer.testing import CliRunner

from waifu4x import color
from waifu4x.bench import datasets, metrics, niqe, protocol
from waifu4x.bench.datasets import as_rgb, read_8bit
from waifu4x.cli.app import app
from waifu4x.errors import PictureReadError, UsageError
from waifu4x.models import open_upscaler
from waifu4x.resample import imresize

RNG = np.random.default_rng(0)


def solid(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((4, 4, 3), (red, green, blue), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures: colour with sides that are no multiple of the scale, gray, and 16 bit."""
    place = tmp_path / "Set3"
    place.mkdir()
    y, x = np.mgrid[:45, :50]
    wave = (np.sin(x / 3.0)[..., None] * np.cos(y / 4.0)[..., None] + [0.0, 0.3, 0.6]) * 70 + 110
    rgb = (wave + RNG.normal(0, 4, wave.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(place / "rgb.png")
    Image.fromarray(rgb[..., 0]).save(place / "gray.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(place / "gray16.png")
    return place


# Metrics.


def test_psnr_by_hand() -> None:
    black = np.zeros((3, 5))
    assert metrics.psnr(black, black + 1.0) == pytest.approx(20 * math.log10(255))
    assert metrics.psnr(black, black + 255.0) == 0.0
    assert metrics.psnr(black, black + 0.1, peak=1.0) == pytest.approx(20.0)
    one = black.copy()
    one[0, 0] = 15.0  # MSE = 225 / 15
    assert metrics.psnr(one, black) == pytest.approx(10 * math.log10(255**2 / 15))
    assert metrics.psnr(one, one) == math.inf
    # Not in uint8, where 0 - 255 is 1.
    dark, light = solid(0, 0, 0), solid(255, 255, 255)
    assert metrics.psnr(dark, light) == metrics.psnr(light, dark) == 0.0
    with pytest.raises(ValueError, match="cannot compare"):
        metrics.psnr(black, black[:2])


@pytest.mark.parametrize("seed", range(3))
def test_psnr_is_that_of_scikit_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 256, (17, 23, 3), dtype=np.uint8) for _ in range(2))
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)


@pytest.mark.parametrize(
    ("rgb", "y"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((128, 128, 128), 126),
    ],
)
def test_luma_is_matlabs(rgb: tuple[int, int, int], y: int) -> None:
    np.testing.assert_array_equal(metrics.luma_8bit(solid(*rgb)), np.full((4, 4), y))


def test_shaved() -> None:
    plane = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(metrics.shaved(plane, 2), [[14, 15]])
    np.testing.assert_array_equal(metrics.shaved(plane, 0), plane)


def test_psnr_y_ignores_the_border_and_rounds_luma() -> None:
    one = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    other = one.copy()
    other[:2] = 255 - other[:2]
    other[:, -2:] = 0
    assert metrics.psnr_y(one, other, border_px=2) == math.inf
    assert metrics.psnr_y(one, other, border_px=1) < 40
    assert metrics.psnr_y(solid(0, 0, 0), solid(255, 255, 255), border_px=1) == pytest.approx(
        20 * math.log10(255 / 219)
    )
    # Blue alone by 1: 0.098 levels of luma, which rounding hides.
    assert metrics.psnr_y(solid(0, 0, 0), solid(0, 0, 1), border_px=0) == math.inf


def test_pictures_are_read_as_8_bit(folder: Path) -> None:
    gray, gray16, rgb = (
        datasets.read_8bit(folder / f"{name}.png") for name in ("gray", "gray16", "rgb")
    )
    np.testing.assert_array_equal(gray16, gray)
    assert {image.dtype for image in (gray, gray16, rgb)} == {np.dtype(np.uint8)}
    assert (gray.shape, rgb.shape) == ((45, 50, 1), (45, 50, 3))
    np.testing.assert_array_equal(datasets.as_rgb(gray), np.concatenate([gray] * 3, axis=2))
    assert datasets.as_rgb(rgb) is rgb
    np.testing.assert_array_equal(datasets.cut_to_multiple(rgb, 4), rgb[:44, :48])


# Protocols.


def by_hand(path: Path, *, scale: int, name: str) -> float:
    """Bicubic measured by the words of PROTOCOLS, with as little of the package as can be."""
    hr = np.asarray(Image.open(path).convert("RGB"))
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]

    def enlarge(small: np.ndarray) -> np.ndarray:
        return imresize(small.astype(np.float64), float(scale)).clip(0, 255)

    if name == "luma":
        truth = np.floor(color.luma(hr) + 0.5)
        one = np.floor(enlarge(imresize(truth, 1 / scale)) + 0.5)
    else:
        sr = np.rint(enlarge(imresize(hr, 1 / scale)))
        planes = [color.luma(image) for image in (sr, hr)]
        one, truth = planes if name == "rgb8-float-y" else [np.floor(p + 0.5) for p in planes]
    inner = (slice(scale, -scale), slice(scale, -scale))
    return float(peak_signal_noise_ratio(truth[inner], one[inner], data_range=255))


@pytest.mark.parametrize("name", list(protocol.PROTOCOLS))
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_protocols(folder: Path, scale: int, name: str) -> None:
    (folder / "gray16.png").unlink()
    measured = protocol.measure(open_upscaler("bicubic"), folder, scale=scale, protocol=name)
    assert list(measured.pictures) == ["gray", "rgb"]
    for picture, db in measured.pictures.items():
        wanted = by_hand(folder / f"{picture}.png", scale=scale, name=name)
        assert db == pytest.approx(wanted, abs=2e-3)
    assert measured.psnr_db == pytest.approx(np.mean(list(measured.pictures.values())))
    assert (measured.model, measured.folder, measured.precision) == ("bicubic", "Set3", "fp32")


def test_16_bit_is_measured_as_8_bit(folder: Path) -> None:
    got = protocol.measure(open_upscaler("bicubic"), folder, scale=2).pictures
    assert got["gray16"] == got["gray"]


def test_better_is_higher(folder: Path) -> None:
    values = [
        protocol.measure(open_upscaler(name), folder, scale=2).psnr_db
        for name in ("nearest", "bilinear", "bicubic")
    ]
    assert values == sorted(values)
    assert all(20 < db < 60 for db in values)


def test_what_cannot_be_measured(folder: Path, tmp_path: Path) -> None:
    bicubic = open_upscaler("bicubic")
    (tmp_path / "empty").mkdir()
    requests: list[tuple[Path, dict[str, Any], str]] = [
        (folder, {"scale": 2, "protocol": "rgb9"}, "no protocol 'rgb9': use rgb8, "),
        (folder, {"scale": 1}, "2 or more, not 1"),
        (folder, {"scale": -3}, "2 or more, not -3"),
        (folder, {"scale": 16}, "is too small to measure at x16"),
        (folder, {"scale": 60}, "is too small to measure at x60"),
        (tmp_path / "empty", {"scale": 2}, "no pictures in"),
        (tmp_path / "absent", {"scale": 2}, "no pictures in"),
    ]
    for place, options, words in requests:
        with pytest.raises(UsageError, match=words):
            protocol.measure(bicubic, place, **options)
    (folder / "bad.png").write_bytes(b"junk")
    with pytest.raises(PictureReadError, match=r"bad\.png"):
        protocol.measure(bicubic, folder, scale=2)


def test_json_has_no_infinity(tmp_path: Path) -> None:
    Image.new("RGB", (24, 24), (10, 20, 30)).save(tmp_path / "flat.png")
    measured = protocol.measure(open_upscaler("bicubic"), tmp_path, scale=2)
    assert measured.psnr_db == math.inf
    facts = json.loads(json.dumps(measured.facts(), allow_nan=False))
    assert facts["psnr_db"] is None
    assert facts["pictures"] == {"flat": None}


# The command.


def bench(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_table(folder: Path) -> None:
    done = bench(folder, "-m", "nearest", "-m", "bicubic", "-s", 2, "--protocol", "luma")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [["bicubic", "Set3", "x2"], ["nearest", "Set3", "x2"]]
    wanted = protocol.measure(open_upscaler("nearest"), folder, scale=2, protocol="luma").psnr_db
    assert lines[1][3:5] == [f"{wanted:.3f}", "dB"]


def test_the_table_as_json(folder: Path) -> None:
    done = bench(folder, folder, "-m", "nearest", "-s", 3, "--json")
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["model"] for each in facts] == ["bicubic", "bicubic", "nearest", "nearest"]
    assert facts[0] == facts[1]
    assert set(facts[0]) == {
        *("model", "folder", "scale", "protocol", "precision", "pictures", "psnr_db"),
    }
    assert (facts[0]["scale"], facts[0]["protocol"]) == (3, "rgb8")
    assert set(facts[0]["pictures"]) == {"rgb", "gray", "gray16"}


def test_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    for arguments, code in (
        ((tmp_path / "absent", "-m", "nearest"), 2),
        ((folder, "-m", "nearst"), 2),
        ((folder, "-m", "nearest", "--protocol", "x"), 2),
        ((folder, "-m", "nearest", "-s", "0"), 2),
    ):
        done = bench(*arguments)
        assert done.exit_code == code
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")


def test_niqe_of_a_known_picture(shared: Path) -> None:
    """The authors' MATLAB code gives 5.7296 for baboon (as BasicSR documents); luma is rounded."""
    prior = niqe.load_prior(shared / "weights" / "metrics" / "niqe_pris_params.npz")
    picture = read_8bit(shared / "data" / "bench" / "Set14" / "baboon.png")
    assert niqe.niqe(as_rgb(picture), prior) == pytest.approx(5.7296, abs=0.002)
    blurred = as_rgb(picture).reshape(240, 2, 250, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert niqe.niqe(blurred.astype(np.uint8), prior) > 6.0
    with pytest.raises(ValueError, match="96×96"):
        niqe.niqe(np.zeros((95, 200, 3), np.uint8), prior)


def test_a_file_that_is_no_model_of_niqe(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no model of NIQE"):
        niqe.load_prior(tmp_path / "a.npz")


def test_niqe_beside_psnr(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    picture = shared / "data" / "bench" / "Set14" / "baboon.png"
    (tmp_path / "one" / "baboon.png").write_bytes(picture.read_bytes())
    small = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    Image.fromarray(small).save(tmp_path / "one" / "small.png")
    prior = shared / "weights" / "metrics" / "niqe_pris_params.npz"
    options = [str(tmp_path / "one"), "-m", "nearest", "--niqe", str(prior)]
    done = CliRunner().invoke(app, ["bench", *options, "--json"])
    bicubic, nearest = map(json.loads, done.stdout.splitlines())
    # One block is too small to be judged.
    assert set(bicubic["niqe"]) == {"baboon"}
    assert bicubic["mean_niqe"] == bicubic["niqe"]["baboon"]
    assert nearest["mean_niqe"] > bicubic["mean_niqe"] > 5.0
    refused = CliRunner().invoke(app, ["bench", *options, "--protocol", "luma"])
    assert (refused.exit_code, "NIQE" in refused.stderr) == (2, True)
