"""The published figures: those of the papers, each with a source, and a file that is checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from waifu4x.bench.published import DATASETS, Figure, figures, load, lookup
from waifu4x.catalog import shipped_folder
from waifu4x.errors import WeightsError


def one(model: str, dataset: str, scale: int, source: str) -> Figure:
    (found,) = (f for f in lookup(model, dataset, scale) if f.source.name == source)
    return found


@pytest.mark.parametrize(
    ("model", "dataset", "scale", "psnr_db", "ssim"),
    [
        ("bicubic", "Set5", 2, 33.66, 0.9299),
        ("bicubic", "Set14", 3, 27.55, 0.7742),
        ("bicubic", "B100", 4, 25.96, 0.6675),
        ("bicubic", "Urban100", 4, 23.14, 0.6577),
        ("A+", "Set5", 3, 32.58, 0.9088),
        ("RFL", "Urban100", 3, 25.86, 0.7900),
        ("SelfEx", "B100", 2, 31.18, 0.8855),
        ("SRCNN", "Set5", 4, 30.48, 0.8628),
        ("VDSR", "Set14", 2, 33.03, 0.9124),
        ("VDSR", "Urban100", 4, 25.18, 0.7524),
    ],
)
def test_the_table_of_vdsr(
    model: str, dataset: str, scale: int, psnr_db: float, ssim: float
) -> None:
    found = one(model, dataset, scale, "vdsr")
    assert (found.psnr_db, found.ssim, found.lpips) == (psnr_db, ssim, None)
    assert found.source.channel == "y"
    assert found.source.url == "https://arxiv.org/abs/1511.04587"


def test_the_table_of_vdsr_is_whole() -> None:
    table = [figure for figure in figures() if figure.source.name == "vdsr"]
    assert {figure.model for figure in table} == {
        *("bicubic", "A+", "RFL", "SelfEx", "SRCNN", "VDSR"),
    }
    assert len(table) == 6 * len(DATASETS) * 3
    # In each of its rows the later method is the better one, but for the three of one year.
    for dataset in DATASETS:
        for scale in (2, 3, 4):
            row = {f.model: f for f in table if (f.dataset, f.scale) == (dataset, scale)}
            for metric in ("psnr_db", "ssim"):
                get = {model: getattr(figure, metric) for model, figure in row.items()}
                assert get["bicubic"] < min(get["A+"], get["RFL"], get["SelfEx"])
                assert max(get.values()) == get["VDSR"]


def test_several_sources_of_one_model() -> None:
    found = {figure.source.name: figure for figure in lookup("srgan", "set5", 4)}
    assert {name: figure.psnr_db for name, figure in found.items()} == {
        "srgan": 29.40,
        "lornatang": 29.08,
        "spsr": 29.168,
    }
    # That paper's SSIM is another tool's.
    assert found["srgan"].ssim is None
    assert (found["spsr"].lpips, found["spsr"].pi) == (0.0882, 3.982)
    esrgan = one("ESRGAN", "Urban100", 4, "spsr")
    assert (esrgan.psnr_db, esrgan.lpips, esrgan.pi) == (24.36, 0.1229, 3.7704)


@pytest.mark.parametrize(
    ("model", "x2", "x3", "x4"),
    [  # Set5, as specifications of these networks give them
        ("FSRCNN", 37.00, 33.16, 30.71),
        ("EDSR-baseline", 37.99, 34.37, 32.09),
        ("EDSR", 38.11, 34.65, 32.46),
        ("RCAN", 38.27, 34.74, 32.63),
        ("SAN", 38.31, 34.75, 32.64),
        ("SRFBN", 38.11, 34.70, 32.47),
        ("SRFBN-S", 37.78, 34.20, 31.98),
        ("SwinIR", 38.42, 34.97, 32.92),
        ("DAT", 38.58, 35.16, 33.08),
    ],
)
def test_later_networks(model: str, x2: float, x3: float, x4: float) -> None:
    for scale, wanted in ((2, x2), (3, x3), (4, x4)):
        luma = [f for f in lookup(model, "Set5", scale) if f.source.channel == "y"]
        assert [figure.psnr_db for figure in luma] == [wanted]
        # Every one of them, on every set, is above VDSR at the same scale.
        for dataset in DATASETS:
            (found,) = (f for f in lookup(model, dataset, scale) if f.source.channel == "y")
            vdsr = one("VDSR", dataset, scale, "vdsr")
            assert found.psnr_db is not None
            assert vdsr.psnr_db is not None
            assert (found.psnr_db > vdsr.psnr_db) == (model != "FSRCNN")


def test_figures_fall_with_the_scale() -> None:
    by_thing: dict[tuple[str, str, str], dict[int, Figure]] = {}
    for figure in figures():
        key = (figure.model, figure.dataset, figure.source.name)
        by_thing.setdefault(key, {})[figure.scale] = figure
    for found in by_thing.values():
        for metric in ("psnr_db", "ssim"):
            values = [getattr(found[scale], metric) for scale in sorted(found)]
            given = [value for value in values if value is not None]
            assert given == sorted(given, reverse=True)
            assert len(given) == len(set(given))


def test_rgb_is_marked_and_reads_less() -> None:
    for model in ("EDSR", "EDSR-baseline"):
        for dataset in ("Set5", "Set14"):
            for scale in (2, 3, 4):
                found = {f.source.channel: f.psnr_db for f in lookup(model, dataset, scale)}
                assert set(found) == {"y", "rgb"}
                assert 1.5 < (found["y"] or 0) - (found["rgb"] or 0) < 2.5
    assert {f.source.channel for f in lookup("MSRResNet", "Set5", 4)} == {"rgb"}


def test_names_are_forgiving_and_the_unknown_is_empty() -> None:
    assert lookup("VDSR", "B100", 4) == lookup("vdsr", "BSD100", 4) == lookup("Vdsr", "bsds100", 4)
    assert lookup("VDSR", "B100", 4)
    for nothing in (("nobody", "Set5", 4), ("VDSR", "Set6", 4), ("VDSR", "Set5", 5)):
        assert lookup(*nothing) == ()


def test_rows_are_frozen_and_every_one_says_something() -> None:
    found = figures()
    assert figures() is found
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].psnr_db = 99.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].source.url = ""  # pyright: ignore[reportAttributeAccessIssue]
    assert all(figure.psnr_db is not None for figure in found)
    assert all(figure.dataset in DATASETS for figure in found)


SMALL = """
[[source]]
name = "a"
title = "A"
url = "https://a.org"
channel = "y"

[[table]]
model = "M"
source = "a"
columns = ["psnr_db", "ssim"]
Set5 = { x2 = [30.5, 0.9], x4 = [28, 0.8] }
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(SMALL, encoding="utf-8")
    first, second = load(path)
    assert (first.model, first.dataset, first.scale, first.psnr_db) == ("M", "Set5", 2, 30.5)
    assert (second.scale, second.psnr_db, second.ssim) == (4, 28.0, 0.8)
    assert isinstance(second.psnr_db, float)
    assert first.source is second.source
    assert (first.source.read_in, first.source.note) == (None, None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('channel = "y"', 'channel = "y"\nyear = "2016"', "'year', which means nothing"),
        ('channel = "y"', 'channel = "z"', "must be 'y' or 'rgb'"),
        ('channel = "y"', "channel = 1", "channel of the source 'a' must be one line of text"),
        ('url = "https://a.org"', 'url = "http://a.org"', "must begin with https://"),
        ('url = "https://a.org"', "", "the source 'a' has no 'url'"),
        ('title = "A"', 'title = "A\\nB"', "must be one line"),
        ('title = "A"', 'title = ""', "must be one line"),
        ('model = "M"', "", "needs a model's name"),
        ('source = "a"', 'source = "b"', "cites 'b', which is no source"),
        ('source = "a"', 'source = "a"\nSet6 = {}', "the table of 'M' has 'Set6'"),
        ('"psnr_db", "ssim"', '"psnr_db", "mos"', "must be some of psnr_db, ssim, lpips, pi"),
        ('"psnr_db", "ssim"', '"psnr_db", "psnr_db"', "must be some of"),
        ('"psnr_db", "ssim"', '"psnr_db"', "x2 in Set5 of the table of 'M' must have psnr_db"),
        ("x4 = ", "x5 = ", "Set5 of the table of 'M' has 'x5'"),
        ("30.5", "305.0", "psnr_db of x2 in Set5 of the table of 'M' cannot be 305.0"),
        ("0.9]", "90]", "ssim of x2 in Set5"),
        ("30.5", "nan", "cannot be nan"),
        ("30.5", "true", "cannot be True"),
        ("30.5", '"30.5"', "cannot be '30.5'"),
        ("x2 = [30.5, 0.9]", "x2 = 30.5", "must have psnr_db, ssim"),
        ("[[table]]", "[other]\n[[table]]", "the file has 'other'"),
        ("[[table]]", "[[table]", "damaged"),
        ("[[source]]", "[source]", "damaged"),
    ],
)
def test_a_wrong_file_is_one_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        load(path)
    message = str(caught.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (SMALL[SMALL.index("[[table]]") :], "two of M Set5 x2"),
        (SMALL[SMALL.index("[[table]]") :].replace('"M"', '"m"'), "two of m Set5 x2"),
        (SMALL[: SMALL.index("[[table]]")], "two sources have one name"),
        (SMALL[: SMALL.index("[[table]]")].replace('"a"', '"b"'), "nothing cites b"),
    ],
)
def test_what_is_there_twice_or_for_nothing(more: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(SMALL + more, encoding="utf-8")
    with pytest.raises(WeightsError, match=words):
        load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="reinstall waifu4x"):
        load(tmp_path / "absent.toml")


def test_it_lies_beside_the_catalogue() -> None:
    assert load(shipped_folder() / "published.toml") == figures()
