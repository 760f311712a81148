"""Runs of a measurement: their order, what is held in memory, what is refused before any work."""

from __future__ import annotations

import json
import math
import mmap
import shutil
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import a_measure, measure, plan, saved_model, three_pictures, values
from benches import unswept as unswept
from PIL import Image

from waifu4x.bench import peaks, run
from waifu4x.bench.cost import measure_cost
from waifu4x.bench.measures import Measure, open_measures
from waifu4x.bench.peaks import PeakMemory, release_freed
from waifu4x.bench.protocol import Enlarged, Pair, enlarge
from waifu4x.bench.results import Result
from waifu4x.errors import (
    CheckpointError,
    DeviceError,
    PictureReadError,
    UnknownModelError,
    UsageError,
)
from waifu4x.model_files import checkpoints
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.resample import imresize
from waifu4x.upscaler import Upscaler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_pictures(tmp_path / "Set3")


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """Seven pictures of noise, no two alike."""
    place = tmp_path / "Seven"
    place.mkdir()
    rng = np.random.default_rng(7)
    for number in range(7):
        noise = rng.integers(0, 256, (20 + 2 * number, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number}.png")
    return place


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small network of x2."""
    return saved_model(tmp_path / "toy.safetensors", MSRResNetConfig(blocks=1, channels=4, scale=2))


def places(results: tuple[Result, ...]) -> list[tuple[str, int, str]]:
    return [(result.dataset, result.scale, result.model) for result in results]


# Order.


def test_the_order_is_that_of_the_plan(folder: Path, seven: Path) -> None:
    wanted = plan(["bicubic", "nearest"], seven, folder, scales=(3, 2))
    report = run.run(wanted)
    assert places(report.results) == [
        (dataset, scale, model)
        for dataset in ("Seven", "Set3")
        for scale in (3, 2)
        for model in ("bicubic", "nearest")
    ]
    groups = [(dataset, scale) for dataset, scale, _, _ in report.groups()]
    assert groups == [("Seven", 3), ("Seven", 2), ("Set3", 3), ("Set3", 2)]
    assert all(len(results) == 2 for _, _, results, _ in report.groups())
    assert [column.key for column in report.columns] == ["psnr"]
    assert report.published == ()
    # One model after the other, whatever the order of what is told.
    alone = measure("nearest", folder, scale=2)
    assert values(report.results[-1]) == values(alone)


@pytest.mark.parametrize("metrics", [("psnr", "ssim", "gmsd")])
def test_workers_change_nothing_but_times(seven: Path, metrics: tuple[str, ...]) -> None:
    found = [
        run.run(plan(["bicubic", "nearest"], seven, metrics=metrics, workers=workers)).results
        for workers in (1, 2, 3, 20)
    ]
    for results in found[1:]:
        assert places(results) == places(found[0])
        for one, other in zip(found[0], results, strict=True):
            for key in metrics:
                assert values(one, key) == values(other, key)
                assert list(values(other, key)) == [str(n) for n in range(7)]


def test_measures_are_taken_while_the_next_picture_is_enlarged(
    seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first measure is not done before the second picture has begun."""
    begun: list[Path] = []
    second = threading.Event()

    def beginning(upscaler: Upscaler, path: Path, **options: Any) -> Enlarged:
        begun.append(path)
        if len(begun) == 2:
            second.set()
        return enlarge(upscaler, path, **options)

    monkeypatch.setattr(run, "enlarge", beginning)
    waiting = a_measure(of=lambda pair: float(second.wait(20)))
    (result,) = run.run(plan(["bicubic"], seven, measures=(waiting,), workers=2)).results
    assert set(values(result).values()) == {1.0}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_pictures_are_held_at_a_time(
    workers: int, seven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Enlarged] = weakref.WeakSet()
    most: list[int] = []
    numbers: dict[int, int] = {}
    made_one = threading.Condition()

    def counting(*args: Any, **options: Any) -> Enlarged:
        made = enlarge(*args, **options)
        with made_one:
            alive.add(made)
            numbers[id(made.pair)] = len(most)
            most.append(len(alive))
            made_one.notify_all()
        return made

    def slow(pair: Pair) -> float:
        """Ends when as many pictures lie behind this one as may; but one worker is the only one."""
        with made_one:
            wanted = min(7, numbers[id(pair)] + workers + 1) if workers > 1 else 0
            return float(made_one.wait_for(lambda: len(most) >= wanted, timeout=20))

    monkeypatch.setattr(run, "enlarge", counting)
    wanted = plan(["bicubic"], seven, measures=(a_measure(of=slow),), workers=workers)
    (result,) = run.run(wanted).results
    assert set(values(result).values()) == {1.0}
    assert len(most) == 7
    assert max(most) == workers + 1
    assert len(alive) == 0


def test_a_measure_that_fails_ends_the_run(seven: Path) -> None:
    def failing(pair: object) -> float:
        raise UsageError("not like this")

    for workers in (1, 3):
        wanted = plan(["bicubic"], seven, measures=(a_measure(of=failing),), workers=workers)
        with pytest.raises(UsageError, match="not like this"):
            run.run(wanted)
    assert not [t for t in threading.enumerate() if t.name == "peak memory"]


def test_progress_is_told_once_a_picture(folder: Path, seven: Path) -> None:
    told: list[tuple[str, int, int]] = []
    wanted = plan(["bicubic", "nearest"], folder, seven, scales=(2, 3))
    assert wanted.total == 40
    run.run(wanted, on_progress=lambda *call: told.append(call))
    assert [(done, total) for _, done, total in told] == [(n, 40) for n in range(41)]
    assert told[0][0] == "bicubic on Set3 x2"
    assert Counter(text for text, _, _ in told[:-1]) == {
        f"{model} on {name} x{scale}": count
        for model in ("bicubic", "nearest")
        for name, count in (("Set3", 3), ("Seven", 7))
        for scale in (2, 3)
    }


# What is refused before any work.


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def enlarge(*_: object, **__: object) -> None:
        raise AssertionError("it was too late")

    monkeypatch.setattr(run, "enlarge", enlarge)


@pytest.mark.usefixtures("nothing_is_measured")
def test_models_are_looked_at_first(folder: Path, tmp_path: Path, network: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(network.read_bytes()[:-8])
    cases: list[tuple[str | Path, dict[str, Any], type[Exception], str]] = [
        ("neerest", {}, UnknownModelError, "no model called 'neerest'"),
        (tmp_path / "absent.pth", {}, UnknownModelError, "there is no file"),
        (damaged, {}, CheckpointError, r"damaged\.safetensors"),
        # Not even fetched, which is 244 MB.
        ("alexnet", {}, UsageError, "alexnet enlarges nothing"),
        (network, {"device": "tpu"}, UsageError, "tpu"),
        (network, {"device": "cuda:99"}, DeviceError, "cuda"),
    ]
    for model, options, kind, words in cases:
        with pytest.raises(kind, match=words):
            run.run(plan(["bicubic", model], folder, **options))


@pytest.mark.usefixtures("nothing_is_measured")
def test_pictures_are_looked_at_first(folder: Path, seven: Path, tmp_path: Path) -> None:
    (tmp_path / "lr").mkdir()
    with pytest.raises(UsageError, match=r"0\.png is too small to measure at x10"):
        run.run(plan(["bicubic"], folder, seven, scales=(2, 10)))
    with pytest.raises(UsageError, match=r"0\.png has no partners in .*lr; .*; and 4 more: each"):
        run.run(plan(["bicubic"], seven, lr_folder=tmp_path / "lr"))
    (seven / "6.png").write_bytes(b"junk")
    with pytest.raises(PictureReadError, match=r"6\.png"):
        run.run(plan(["bicubic"], seven))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": (2, 1)}, "a scale to measure at is more than 1, not 1"),
        ({"scales": ()}, "nothing to measure"),
        ({"measures": ()}, "nothing to measure"),
        ({"models": ()}, "nothing to measure"),
        ({"sets": ()}, "nothing to measure"),
        ({"workers": 0}, "at least one worker, not 0"),
        ({"protocol": "rgb"}, "no protocol 'rgb': use rgb8, rgb8-own-gray, rgb8-float-y, luma"),
        ({"jpeg_qualities": ()}, "nothing to measure"),
        ({"jpeg_qualities": (75, 0)}, "a JPEG quality is 1 to 100, not 0"),
        ({"jpeg_qualities": (101,)}, "a JPEG quality is 1 to 100, not 101"),
        ({"jpeg_qualities": (None, 9), "lr_folder": Path("a")}, "leave it out, or --lr"),
        ({"jpeg_qualities": (9,), "protocol": "luma"}, "leave out --jpeg, or use rgb8"),
        ({"protocol": "luma", "lr_folder": Path("a")}, "luma shrinks luma itself: leave out --lr"),
        (
            {"protocol": "luma", "measures": open_measures(["psnr", "psnr-rgb"])},
            "PSNR-RGB is measured in colour: choose another protocol than luma",
        ),
    ],
)
def test_plans_that_make_no_sense(options: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        replace(plan(["bicubic"], folder), **options)


# Low-resolution pictures of one's own.


def shrink(hr_folder: Path, lr_folder: Path, *, scale: int, ending: str = "") -> Path:
    """What the protocol makes, as files."""
    lr_folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(hr_folder.rglob("*.png")):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        if pixels.dtype == np.uint16:
            pixels = (pixels // 257).astype(np.uint8)
        cut = pixels[: pixels.shape[0] // scale * scale, : pixels.shape[1] // scale * scale]
        small = Image.fromarray(imresize(cut, 1 / scale))
        small.save(lr_folder / f"{path.stem}{ending}.png")
    return lr_folder


@pytest.mark.parametrize("protocol", ["rgb8", "rgb8-own-gray", "rgb8-float-y"])
def test_own_pictures_give_the_same_as_making_them(
    protocol: str, folder: Path, tmp_path: Path
) -> None:
    lr = shrink(folder, tmp_path / "lr", scale=3)
    options: dict[str, Any] = {"scale": 3, "protocol": protocol, "metrics": ("psnr", "ssim")}
    made = measure("bicubic", folder, **options)
    given = measure("bicubic", folder, **options, lr_folder=lr)
    for key in ("psnr", "ssim"):
        assert values(given, key) == values(made, key)
    # They are really read.
    Image.new("L", (16, 15), 128).save(lr / "gray.png")
    spoiled = values(measure("bicubic", folder, **options, lr_folder=lr))
    assert spoiled["rgb"] == values(made)["rgb"]
    assert (spoiled["gray"] or 0.0) < (values(made)["gray"] or 0.0) - 1


def test_own_pictures_with_other_channels(folder: Path, tmp_path: Path) -> None:
    """Gray ones are shrunk as colour, and saved as such, by many programs."""
    lr = shrink(folder, tmp_path / "lr", scale=2)
    with Image.open(lr / "gray.png") as image:
        image.convert("RGB").save(lr / "gray.png")
    found = values(measure("bicubic", folder, scale=2, lr_folder=lr))
    assert found == values(measure("bicubic", folder, scale=2))
    with Image.open(lr / "rgb.png") as image:
        image.convert("L").save(lr / "rgb.png")
    both = measure("bicubic", folder, scale=2, lr_folder=lr, metrics=("psnr", "psnr-rgb"))
    # Its luma is as good as ever, but its colours are gone.
    assert (values(both)["rgb"] or 0.0) > 35
    assert (values(both, "psnr-rgb")["rgb"] or 0.0) < 25


@pytest.mark.parametrize("place", ["", "X{}", "Set3/x{}", "Set3"])
def test_where_own_pictures_may_lie(place: str, folder: Path, tmp_path: Path) -> None:
    """As DIV2K has them: 0001x4.png in a folder X4; or in one named like the set."""
    lr = tmp_path / "lr"
    for scale in (2, 3):
        shrink(folder, lr / place.format(scale), scale=scale, ending=f"x{scale}")
    made, given = (
        run.run(plan(["nearest"], folder, scales=(2, 3), lr_folder=place)).results
        for place in (None, lr)
    )
    assert list(map(values, given)) == list(map(values, made))


def test_own_pictures_of_two_sets(folder: Path, seven: Path, tmp_path: Path) -> None:
    for name in (folder.name, seven.name):
        shrink(tmp_path / name, tmp_path / "lr" / name, scale=2)
    made, given = (
        run.run(plan(["nearest"], folder, seven, lr_folder=place)).results
        for place in (None, tmp_path / "lr")
    )
    assert list(map(values, given)) == list(map(values, made))


def test_own_pictures_of_a_wrong_size(folder: Path, tmp_path: Path) -> None:
    lr = shrink(folder, tmp_path / "lr", scale=2)
    words = r"gray\.png is 25×22 px, and .*gray\.png at x3 needs 16×15 px"
    with pytest.raises(UsageError, match=words):
        measure("bicubic", folder, scale=3, lr_folder=lr)
    (lr / "rgb.png").unlink()
    with pytest.raises(UsageError, match=r"rgb\.png has no partners"):
        measure("bicubic", folder, scale=2, lr_folder=lr)
    with pytest.raises(UsageError, match="absent is no folder"):
        measure("bicubic", folder, scale=2, lr_folder=tmp_path / "absent")


# What is said of a model.


def test_a_filter_is_no_network(folder: Path) -> None:
    found = measure("nearest", folder, scale=2, metrics=("psnr",))
    assert (found.model, found.way) == ("nearest", "cpu in fp32 by numpy")
    assert (found.parameters, found.multiply_adds_hd, found.notes) == (None, None, ())


def test_a_network(network: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    upscale = Upscaler.upscale

    def noting(self: Upscaler, picture: Any, *args: Any, **options: Any) -> Any:
        sizes.append((picture.width_px, picture.height_px))
        return upscale(self, picture, *args, **options)

    monkeypatch.setattr(Upscaler, "upscale", noting)
    found = measure(network, folder, scale=2)
    model = checkpoints.load(network)
    cost = measure_cost(model.network, model)
    assert (found.model, found.way) == ("toy", "cpu in fp32 by torch")
    assert found.parameters == cost.parameters == model.parameters
    assert found.multiply_adds_hd == cost.multiply_adds_hd
    assert found.notes == ()
    # Once before any time is taken, and once for each picture.
    assert sizes == [(32, 32), *[(25, 22)] * 3]
    assert all(picture.time_s > 0 for picture in found.pictures)
    assert {picture.megapixels for picture in found.pictures} == {50 * 44 / 1e6}
    spent_s = sum(picture.time_s for picture in found.pictures)
    assert found.seconds_per_megapixel == pytest.approx(spent_s / (3 * 50 * 44 / 1e6))


def test_a_network_by_the_protocol_of_luma(tmp_path: Path, folder: Path) -> None:
    toy = saved_model(tmp_path / "y.safetensors", SRCNNConfig(), scales="2,3")
    for scale in (2, 3):
        found = measure(toy, folder, scale=scale, protocol="luma")
        assert (found.count("psnr"), found.notes) == (3, ())


@pytest.mark.parametrize(
    ("scale", "note"),
    [
        (2, None),
        (3, "toy enlarges 2 and 2 times, not 3; the rest is interpolation"),
        (4, "toy enlarges 2 times: for 4 it was applied again"),
    ],
)
def test_a_network_of_another_scale(
    scale: int, note: str | None, network: Path, folder: Path
) -> None:
    found = measure(network, folder, scale=scale)
    assert found.notes == (() if note is None else (note,))
    assert found.scale == scale


def resident(size_bytes: int) -> mmap.mmap:
    """New pages that were written to: those of malloc may be old ones that another test freed."""
    block = mmap.mmap(-1, size_bytes)
    np.frombuffer(block, dtype=np.uint8).fill(1)
    return block


def test_peak_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not peaks._STATM.exists():
        pytest.skip("needs Linux")
    with PeakMemory("cpu") as memory:
        before = memory.peak_bytes
        assert before is not None
        wanted = before + 60 * 2**20
        # It is only there once it is written to, and it is gone before the end.
        held: Any = resident(64 * 2**20)
        waiting, deadline_s = threading.Event(), time.monotonic() + 20
        while (memory.peak_bytes or 0) < wanted and time.monotonic() < deadline_s:
            waiting.wait(0.005)
        held = held.close()
    assert held is None
    assert (memory.peak_bytes or 0) >= wanted
    # Where all is over before anybody looks, what is there at the end counts.
    monkeypatch.setattr(peaks, "_EVERY_S", 60.0)
    with PeakMemory("cpu") as memory:
        wanted = (memory.peak_bytes or 0) + 60 * 2**20
        held = resident(64 * 2**20)
    assert (memory.peak_bytes or 0) >= wanted
    held.close()
    found = measure("bicubic", folder, scale=2)
    assert 2**20 < (found.peak_memory_bytes or 0) < 2**40
    for content in (None, b"", b"1", b"1 x"):
        statm = tmp_path / "statm"
        if content is not None:
            statm.write_bytes(content)
        monkeypatch.setattr(peaks, "_STATM", statm)
        assert measure("bicubic", folder, scale=2).peak_memory_bytes is None
    assert not [thread for thread in threading.enumerate() if thread.name == "peak memory"]


def test_memory_is_given_back() -> None:
    class Circle:
        def __init__(self) -> None:
            self.own = self

    forgotten = weakref.ref(Circle())
    release_freed()
    assert forgotten() is None


def test_peak_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Cuda:
        @staticmethod
        def reset_peak_memory_stats(device: str) -> None:
            asked.append(f"reset {device}")

        @staticmethod
        def max_memory_allocated(device: str) -> int:
            asked.append(f"most of {device}")
            return 12345

    monkeypatch.setattr(peaks, "_cuda", lambda: Cuda)
    with PeakMemory("cuda:1") as memory:
        assert asked == ["reset cuda:1"]
    assert (memory.peak_bytes, asked[1:]) == (12345, ["most of cuda:1"])


# Names and values.


def test_pictures_in_folders_keep_their_paths(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(folder / "rgb.png", folder / "deep" / "er" / "rgb.png")
    shutil.copy(folder / "rgb.png", folder / "a.b.png")
    found = values(measure("bicubic", folder, scale=2))
    assert list(found) == ["a.b", "deep/er/rgb", "gray", "gray16", "rgb"]
    assert found["deep/er/rgb"] == found["rgb"]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    Image.new("RGB", (24, 24), (10, 20, 30)).save(tmp_path / "flat.png")
    measured = measure("bicubic", tmp_path, scale=2)
    assert measured.mean("psnr") == math.inf
    facts = json.loads(json.dumps(measured.facts(), allow_nan=False))
    assert facts["means"] == {"psnr": None}
    assert [(each["name"], each["values"]) for each in facts["pictures"]] == [
        ("flat", {"psnr": None})
    ]


def test_what_was_published_of_the_same(folder: Path) -> None:
    set5 = folder.rename(folder.with_name("set5"))
    wanted = plan(["bicubic"], set5, scales=(2, 4), with_published=True)
    report = run.run(wanted)
    assert {(figure.dataset, figure.scale) for figure in report.published} == {
        *(("Set5", 2), ("Set5", 4)),
    }
    for dataset, scale, _, figures in report.groups():
        assert dataset == "set5"
        assert {figure.scale for figure in figures} == {scale}
        assert "VDSR" in {figure.model for figure in figures}
    assert run.run(plan(["bicubic"], set5)).published == ()
    other = set5.rename(set5.with_name("Set6"))
    assert run.run(plan(["bicubic"], other, with_published=True)).published == ()


def test_each_quality_is_measured_by_itself(folder: Path) -> None:
    set5 = folder.rename(folder.with_name("Set5"))
    qualities = (75, None, 5)
    wanted = plan(["bicubic", "nearest"], set5, jpeg_qualities=qualities, with_published=True)
    assert wanted.total == 18
    told: list[str] = []
    report = run.run(wanted, on_progress=lambda text, *_: told.append(text))
    assert told[::3] == [
        *("bicubic on Set5 x2, JPEG 75", "bicubic on Set5 x2", "bicubic on Set5 x2, JPEG 5"),
        *("nearest on Set5 x2, JPEG 75", "nearest on Set5 x2", "nearest on Set5 x2, JPEG 5"),
        "",
    ]
    found = [(result.jpeg_quality, result.model) for result in report.results]
    assert found == [(q, model) for q in qualities for model in ("bicubic", "nearest")]
    # One without an artefact, one with a few, one with many.
    some, clean, many = (r for r in report.results if r.model == "bicubic")
    assert (clean.mean("psnr") or 0) > (some.mean("psnr") or 0) + 1 > (many.mean("psnr") or 0) + 2
    assert values(clean) == values(measure("bicubic", set5, scale=2))
    groups = report.groups()
    assert [(group[2], bool(group[3])) for group in groups] == [
        (report.results[:2], False),
        (report.results[2:4], True),
        (report.results[4:], False),
    ]
    # Papers say nothing of compressed pictures.
    assert run.run(replace(wanted, jpeg_qualities=(75,))).published == ()


def test_nothing_to_be_measured_is_none(folder: Path) -> None:
    found = measure("bicubic", folder, scale=2, measures=(a_measure(of=lambda pair: math.nan),))
    assert set(values(found).values()) == {None}
    assert (found.mean("psnr"), found.count("psnr")) == (None, 0)
    assert isinstance(a_measure(), Measure)
