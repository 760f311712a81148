"""Measuring: metrics with known answers, the protocols that papers measure by, and the measures."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benches import measure, three_pictures, values
from benches import unswept as unswept
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from waifu4x import color
from waifu4x.bench import (
    datasets,
    measures,
    metrics,
    niqe,
    perceptual,
    protocol,
    similarity,
)
from waifu4x.bench.datasets import as_rgb, read_8bit
from waifu4x.bench.measures import open_measures
from waifu4x.bench.protocol import PROTOCOLS, Pair, enlarge
from waifu4x.errors import CheckpointError, OfflineError, PictureReadError, UsageError
from waifu4x.models import open_upscaler
from waifu4x.resample import imresize

RNG = np.random.default_rng(0)


def solid(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((4, 4, 3), (red, green, blue), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures: colour with sides that are no multiple of the scale, gray, and 16 bit."""
    return three_pictures(tmp_path / "Set3")


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
    with Image.open(path) as image:
        keeps_gray = image.mode == "L" and name in ("rgb8-own-gray", "luma")
        hr = np.asarray(image if keeps_gray else image.convert("RGB"))
    hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]

    def enlarged(small: np.ndarray) -> np.ndarray:
        return imresize(small.astype(np.float64), float(scale)).clip(0, 255)

    def luma(image: np.ndarray) -> np.ndarray:
        return image.astype(np.float64) if keeps_gray else color.luma(image)

    if name == "luma":
        truth = np.floor(luma(hr) + 0.5)
        one = np.floor(enlarged(imresize(truth, 1 / scale)) + 0.5)
    else:
        sr = np.rint(enlarged(imresize(hr, 1 / scale)))
        planes = [luma(image) for image in (sr, hr)]
        one, truth = planes if name == "rgb8-float-y" else [np.floor(p + 0.5) for p in planes]
    inner = (slice(scale, -scale), slice(scale, -scale))
    return float(peak_signal_noise_ratio(truth[inner], one[inner], data_range=255))


@pytest.mark.parametrize("name", list(PROTOCOLS))
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_protocols(folder: Path, scale: int, name: str) -> None:
    (folder / "gray16.png").unlink()
    measured = measure("bicubic", folder, scale=scale, protocol=name)
    found = values(measured)
    assert list(found) == ["gray", "rgb"]
    for picture, db in found.items():
        wanted = by_hand(folder / f"{picture}.png", scale=scale, name=name)
        assert db == pytest.approx(wanted, abs=2e-3)
    assert measured.mean("psnr") == pytest.approx(np.mean(list(map(float, found.values()))))
    assert (measured.model, measured.dataset, measured.precision) == ("bicubic", "Set3", "fp32")
    assert (measured.scale, measured.protocol) == (scale, name)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_the_levels_of_luma(name: str, tmp_path: Path) -> None:
    """Black and white are 16 and 235, but in a gray file that keeps its levels."""
    halves = np.zeros((20, 20), np.uint8)
    halves[:, 10:] = 255
    Image.fromarray(halves).save(tmp_path / "gray.png")
    Image.fromarray(halves).convert("RGB").save(tmp_path / "rgb.png")
    bicubic = open_upscaler("bicubic")
    for file, own in (("gray", name in ("rgb8-own-gray", "luma")), ("rgb", False)):
        made = enlarge(bicubic, tmp_path / f"{file}.png", scale=2, protocol=PROTOCOLS[name])
        assert made.pair.luma.shape == made.pair.true_luma.shape == (16, 16)
        levels = np.unique(made.pair.true_luma)
        np.testing.assert_allclose(levels, [0, 255] if own else [16, 235], atol=1e-9)
        assert made.megapixels == pytest.approx(400e-6)
        if name == "luma":
            assert made.pair.rgb is None
            assert made.pair.true_rgb is None
        else:
            assert made.pair.rgb is not None
            assert made.pair.rgb.shape == (16, 16, 3)
            np.testing.assert_array_equal(made.pair.true_rgb, as_rgb(halves[2:-2, 2:-2, None]))


def test_a_gray_file_reads_higher_as_rgb(folder: Path) -> None:
    """Its luma spans 219 levels, not 255: 1.32 dB, but for rounding; in colour nothing changes."""
    rounded, unrounded, own = (
        values(measure("bicubic", folder, scale=2, protocol=name))
        for name in ("rgb8", "rgb8-float-y", "rgb8-own-gray")
    )
    higher_db = (unrounded["gray"] or 0.0) - (own["gray"] or 0.0)
    assert higher_db == pytest.approx(20 * math.log10(255 / 219), abs=1e-6)
    assert rounded["rgb"] == own["rgb"]


def test_16_bit_is_measured_as_8_bit(folder: Path) -> None:
    got = values(measure("bicubic", folder, scale=2))
    assert got["gray16"] == got["gray"]


def test_better_is_higher(folder: Path) -> None:
    found = [measure(name, folder, scale=2).mean("psnr") for name in ("nearest", "bilinear")]
    found.append(measure("bicubic", folder, scale=2).mean("psnr"))
    known = [db for db in found if db is not None and 20 < db < 60]
    assert len(known) == 3
    assert known == sorted(known)


def test_what_cannot_be_measured(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    requests: list[tuple[Path, dict[str, Any], str]] = [
        (folder, {"scale": 2, "protocol": "rgb9"}, "no protocol 'rgb9': use rgb8, "),
        (folder, {"scale": 1}, "more than 1, not 1"),
        (folder, {"scale": -3}, "more than 1, not -3"),
        (folder, {"scale": 16}, "is too small to measure at x16"),
        (folder, {"scale": 60}, "is too small to measure at x60"),
        (tmp_path / "empty", {"scale": 2}, "no pictures in"),
        (tmp_path / "absent", {"scale": 2}, "no pictures in"),
    ]
    for place, options, words in requests:
        with pytest.raises(UsageError, match=words):
            measure("bicubic", place, **options)
    (folder / "bad.png").write_bytes(b"junk")
    with pytest.raises(PictureReadError, match=r"bad\.png"):
        measure("bicubic", folder, scale=2)


def test_how_small_a_picture_may_be(tmp_path: Path) -> None:
    """As many px as the scale are cut off every border, and one must be left."""
    for side in (5, 6):
        Image.new("RGB", (side, 30)).save(tmp_path / f"{side}.png")
    bicubic, rgb8 = open_upscaler("bicubic"), PROTOCOLS["rgb8"]
    for check in (
        lambda path: enlarge(bicubic, path, scale=2, protocol=rgb8),
        lambda path: protocol.check_sizes(path, scale=2),
    ):
        check(tmp_path / "6.png")
        with pytest.raises(UsageError, match=r"5\.png is too small to measure at x2; take it out"):
            check(tmp_path / "5.png")  # 4 px of it are a multiple of 2


@pytest.mark.parametrize("name", ["rgb", "gray"])
def test_small_pictures_go_through_a_jpeg(name: str, folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / f"{name}.png") as image:
        small = imresize(np.asarray(image)[:44], 1 / 2)
    assert small.shape[:2] == (22, 25)  # no multiple of a block
    Image.fromarray(small).save(tmp_path / "a.jpg", quality=40, subsampling=2)
    with Image.open(tmp_path / "a.jpg") as image:
        assert (np.asarray(image) != small).mean() > 0.5
        wanted = np.asarray(image.convert("RGB"))
    nearest, path = open_upscaler("nearest"), folder / f"{name}.png"
    made = enlarge(nearest, path, scale=2, protocol=PROTOCOLS["rgb8"], jpeg_quality=40).pair
    assert made.rgb is not None
    np.testing.assert_array_equal(made.rgb[::2, ::2], wanted[1:-1, 1:-1])
    # The truth is never compressed.
    clean = enlarge(nearest, path, scale=2, protocol=PROTOCOLS["rgb8"]).pair
    np.testing.assert_array_equal(made.true_luma, clean.true_luma)


def test_no_jpeg_is_that_long(tmp_path: Path) -> None:
    Image.new("L", (131_002, 6)).save(tmp_path / "a.png")
    protocol.check_sizes(tmp_path / "a.png", scale=2)
    with pytest.raises(UsageError, match=r"a\.png at x2 is more than 65500 px long, which no JPEG"):
        protocol.check_sizes(tmp_path / "a.png", scale=2, jpeg_quality=75)


# NIQE.


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    """A file of the right kind: features that are centred, and do not depend on each other."""
    path = tmp_path / "prior.npz"
    window = np.full((7, 7), 1 / 49)
    np.savez(
        path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36), gaussian_window=window
    )
    return path


def test_niqe_of_a_known_picture(shared: Path) -> None:
    """5.729954 by BasicSR's own code in double precision, 5.7296 by the authors' MATLAB code."""
    prior = niqe.load_prior(shared / "weights" / "metrics" / "niqe_pris_params.npz")
    picture = as_rgb(read_8bit(shared / "data" / "bench" / "Set14" / "baboon.png"))
    assert niqe.niqe(picture, prior) == pytest.approx(5.729954, abs=5e-5)
    blurred = picture.reshape(240, 2, 250, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert niqe.niqe(blurred.astype(np.uint8), prior) > 6.0
    with pytest.raises(ValueError, match="96×96"):
        niqe.niqe(np.zeros((95, 200, 3), np.uint8), prior)


def test_a_gaussian_with_a_side_that_has_no_values() -> None:
    """The least shape there is, as MATLAB takes the first of what is NaN everywhere."""
    scale = math.sqrt(math.gamma(5) / math.gamma(15))  # of the shape 0.2
    shape, left, right = niqe._asymmetric_gaussian(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert shape == 0.2
    assert math.isnan(left)
    assert right == pytest.approx(math.sqrt(12.5) * scale)
    shape, left, right = niqe._asymmetric_gaussian(np.array([[-2.0, -2.0]]))
    assert (shape, math.isnan(right)) == (0.2, True)
    assert left == pytest.approx(2.0 * scale)


def test_a_gaussian_of_gaussian_values() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 3.0, (400, 400))
    shape, left, right = niqe._asymmetric_gaussian(normal)
    assert shape == pytest.approx(2.0, abs=0.05)
    # What the density's scale is for a deviation of 3.
    assert (left, right) == (pytest.approx(3 * math.sqrt(2), abs=0.1),) * 2
    lopsided = np.where(normal > 0, 2 * normal, normal)
    _, narrow, wide = niqe._asymmetric_gaussian(lopsided)
    assert wide / narrow == pytest.approx(2.0, abs=0.05)


def test_pictures_with_nothing_in_them_have_no_niqe(prior: Path) -> None:
    flat = np.full((192, 192, 3), 77, dtype=np.uint8)
    loaded = niqe.load_prior(prior)
    assert math.isnan(niqe.niqe(flat, loaded))
    # Where only some blocks are flat, the others say what it is.
    flat[:96] = RNG.integers(0, 256, (96, 192, 3), dtype=np.uint8)
    assert 0.0 < niqe.niqe(flat, loaded) < math.inf


@pytest.mark.parametrize(
    "problem", ["none", "bytes", "empty", "array", "cut", "keys", "shape", "nan"]
)
def test_a_file_that_is_no_model_of_niqe(problem: str, prior: Path) -> None:
    with np.load(prior) as file:
        content: dict[str, Any] = dict(file)
    if problem == "none":
        prior.unlink()
    elif problem == "bytes":
        prior.write_bytes(b"nothing")
    elif problem == "empty":
        prior.write_bytes(b"")
    elif problem == "array":
        with prior.open("wb") as file:
            np.save(file, np.zeros(3))
    elif problem == "cut":
        prior.write_bytes(prior.read_bytes()[:-200])
    else:
        if problem == "keys":
            del content["gaussian_window"]
        else:
            name, value = {
                "shape": ("mu_pris_param", np.zeros(35)),
                "nan": ("cov_pris_param", np.full((36, 36), np.nan)),
            }[problem]
            content[name] = value
        np.savez(prior, **content)
    with pytest.raises(UsageError, match=r"prior\.npz is no model of NIQE \(") as caught:
        niqe.load_prior(prior)
    assert "\n" not in str(caught.value)


# The measures by their names.


def a_pair(height: int, width: int, *, in_colour: bool = True) -> Pair:
    """Noise and something like it."""
    rng = np.random.default_rng(height)
    truth = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = (truth // 2 + rng.integers(0, 128, truth.shape)).astype(np.uint8)
    return Pair(
        luma=metrics.luma_8bit(made),
        true_luma=metrics.luma_8bit(truth),
        rgb=made if in_colour else None,
        true_rgb=truth if in_colour else None,
    )


def test_the_measures_are_the_functions_of_their_names() -> None:
    pair = a_pair(180, 176)
    wanted = {
        "psnr": metrics.psnr(pair.luma, pair.true_luma),
        "ssim": similarity.ssim(pair.luma, pair.true_luma),
        "ms-ssim": similarity.ms_ssim(pair.luma, pair.true_luma),
        "gmsd": similarity.gmsd_gray(pair.rgb, pair.true_rgb, border_px=0),  # pyright: ignore
        "psnr-rgb": metrics.psnr(pair.rgb, pair.true_rgb),  # pyright: ignore
    }
    opened = open_measures(list(wanted))
    assert {each.column.key: each.take(pair) for each in opened} == wanted
    assert len(set(wanted.values())) == 5
    # Which way is better, what it is called, how it is written.
    assert [(e.column.title, e.column.is_lower_better, e.column.digits) for e in opened] == [
        ("PSNR", False, 2),
        ("SSIM", False, 4),
        ("MS-SSIM", False, 4),
        ("GMSD", True, 4),
        ("PSNR-RGB", False, 2),
    ]
    assert not any(map(measures.needs_file, wanted))
    assert {name for name in measures.names() if measures.needs_file(name)} == {
        *("niqe", "lpips", "lpips-vgg", "lpips-squeeze", "dists"),
    }


def test_measures_keep_their_order_and_are_there_once() -> None:
    keys = [each.column.key for each in open_measures(["ssim", "psnr", "ssim"])]
    assert keys == ["ssim", "psnr"]
    assert tuple(each.column.key for each in open_measures(measures.DEFAULT_MEASURES)) == (
        *("psnr", "ssim"),
    )


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("psnr", 1), ("psnr-rgb", 1), ("gmsd", 4), ("ssim", 11), ("ms-ssim", 176)],
)
def test_how_small_a_pair_may_be(name: str, smallest: int) -> None:
    (opened,) = open_measures([name])
    assert opened.take(a_pair(smallest, smallest + 3)) is not None
    if smallest > 1:
        assert opened.take(a_pair(smallest + 3, smallest - 1)) is None


@pytest.mark.parametrize("name", ["psnr", "ssim", "ms-ssim", "gmsd", "psnr-rgb"])
def test_which_measures_need_colour(name: str) -> None:
    (opened,) = open_measures([name])
    assert opened.needs_colour == (name in ("gmsd", "psnr-rgb"))
    luma = a_pair(180, 180, in_colour=False)
    if opened.needs_colour:
        with pytest.raises(UsageError, match="measured in colour: choose another protocol than lu"):
            opened.take(luma)
    else:
        assert opened.take(luma) is not None


def test_measures_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(name: str, **_: object) -> None:
        raise AssertionError(f"{name} would be fetched")

    monkeypatch.setattr(measures.weights, "resolve", resolve)
    file = tmp_path / "a.npz"
    for wanted, files, words in (
        (["lpips", "snr"], {}, "no measure 'snr': there are psnr, ssim, "),
        ([""], {}, "no measure ''"),
        (["psnr"], {"niqe": file}, "needs a file 'niqe': the files are none"),
        (["niqe"], {"nique": file}, "needs a file 'nique': the files are niqe$"),
        (["lpips"], {"niqe": file}, "the files are alexnet, lpips-alex$"),
        (["niqe", "dists"], {"niqe": file}, r"DISTS needs .* --metric-file dists=weights\.pth"),
    ):
        with pytest.raises(UsageError, match=words):
            open_measures(wanted, files=files)


@pytest.mark.parametrize(
    ("name", "missing"), [("niqe", "niqe"), ("lpips", "lpips-alex"), ("lpips-vgg", "lpips-vgg")]
)
def test_files_that_may_not_be_fetched(name: str, missing: str) -> None:
    with pytest.raises(OfflineError, match=f"waifu4x models download {missing}"):
        open_measures([name], offline=True)


def test_niqe_by_its_file(prior: Path) -> None:
    (opened,) = open_measures(["niqe"], files={"niqe": prior})
    pair = a_pair(96, 192)
    assert opened.take(pair) == niqe.niqe(pair.rgb, niqe.load_prior(prior))  # pyright: ignore
    assert (opened.column.digits, opened.column.is_lower_better) == (3, True)
    # It looks at no truth. One block is too small to be judged, and one colour has nothing in it.
    flat = Pair(luma=pair.luma, true_luma=pair.true_luma, rgb=pair.rgb, true_rgb=pair.rgb)
    assert opened.take(flat) == opened.take(pair)
    assert opened.take(a_pair(95, 192)) is None
    gray = np.full((96, 192, 3), 9, dtype=np.uint8)
    assert opened.take(Pair(luma=pair.luma, true_luma=pair.luma, rgb=gray, true_rgb=gray)) is None
    with pytest.raises(UsageError, match="NIQE is measured in colour"):
        opened.take(a_pair(100, 100, in_colour=False))


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of LPIPS over SqueezeNet, in the layouts of torchvision and of the authors."""
    torch.manual_seed(0)
    network = perceptual.Lpips("squeeze")
    folder = tmp_path_factory.mktemp("squeeze")
    features = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
    torch.save(features, folder / "backbone.pth")
    heads = {f"lin{k}.model.1.weight": head.data for k, head in enumerate(network.heads)}
    torch.save(heads, folder / "head.pth")
    return {"squeezenet1_1": folder / "backbone.pth", "lpips-squeeze": folder / "head.pth"}


def test_lpips_by_its_files(squeeze: dict[str, Path]) -> None:
    (opened,) = open_measures(["lpips-squeeze"], files=squeeze, offline=True)
    pair = a_pair(30, 40)
    network = perceptual.load_lpips(
        "squeeze", backbone=squeeze["squeezenet1_1"], head=squeeze["lpips-squeeze"]
    )
    wanted = perceptual.lpips(network, pair.rgb, pair.true_rgb, border_px=0)  # pyright: ignore
    assert opened.take(pair) == wanted
    assert wanted > 1e-3
    assert (opened.column.title, opened.column.is_lower_better) == ("LPIPS-squeeze", True)
    assert opened.take(a_pair(17, 17)) is not None
    assert opened.take(a_pair(16, 40)) is None
    with pytest.raises(UsageError, match="LPIPS-squeeze is measured in colour"):
        opened.take(a_pair(30, 40, in_colour=False))
    swapped = dict(zip(squeeze, reversed(squeeze.values()), strict=True))
    with pytest.raises(CheckpointError, match="give the published file of"):
        open_measures(["lpips-squeeze"], files=swapped)


@pytest.mark.parametrize(
    ("name", "net", "backbone", "head"),
    [
        ("lpips", "alex", "alexnet", "lpips-alex"),
        ("lpips-vgg", "vgg", "vgg16", "lpips-vgg"),
        ("dists", None, "vgg16", "dists"),
    ],
)
def test_which_files_are_for_what(
    name: str, net: str | None, backbone: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks of this size are not built here: a small one stands in for them."""
    loaded: list[Any] = []
    torch.manual_seed(0)
    small = perceptual.Lpips("squeeze")

    def load(*args: str, **files: Path) -> perceptual.Lpips:
        loaded.append((*args, files))
        return small

    monkeypatch.setattr(perceptual, "load_lpips", load)
    monkeypatch.setattr(perceptual, "load_dists", load)
    files = {backbone: Path("a.pth"), head: Path("b.pth")}
    (opened,) = open_measures([name], files=files, offline=True)
    nets = () if net is None else (net,)
    assert loaded == [(*nets, {"backbone": Path("a.pth"), "head": Path("b.pth")})]
    pair = a_pair(30, 40)
    compare: Any = perceptual.dists if name == "dists" else perceptual.lpips
    assert opened.take(pair) == compare(small, pair.rgb, pair.true_rgb, border_px=0)
    assert opened.column.key == name


def test_measures_beside_each_other(folder: Path, prior: Path) -> None:
    """A picture that is too small for one is measured by the others."""
    shutil.copy(folder / "rgb.png", folder / "small.png")
    Image.fromarray(RNG.integers(0, 256, (104, 204, 3), dtype=np.uint8)).save(folder / "large.png")
    opened = open_measures(["psnr", "niqe"], files={"niqe": prior})
    found = measure("bicubic", folder, scale=2, measures=opened)
    judged = values(found, "niqe")
    assert [name for name, value in judged.items() if value is not None] == ["large"]
    assert (found.count("niqe"), found.count("psnr")) == (1, 5)
    assert found.mean("niqe") == judged["large"]
