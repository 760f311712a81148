"""How large an output becomes, in how many passes, and what it is called."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waifu4x import naming
from waifu4x.codecs.formats import FORMATS, format_of
from waifu4x.errors import UsageError
from waifu4x.sizes import Target, parse_box, passes

SIDES = st.integers(1, 20_000)

# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        (Target(scale=4), (100, 50), (400, 200)),
        (Target(scale=2.5), (101, 51), (253, 128)),  # 252.5 and 127.5, half up
        (Target(scale=1), (7, 9), (7, 9)),
        (Target(scale=0.5), (101, 3), (51, 2)),
        (Target(scale=0.001), (500, 400), (1, 1)),  # 0.5 goes up, 0.4 may not vanish
        (Target(width_px=1000), (333, 77), (1000, 231)),
        # Exactly 122.5 goes up although 15 * (49 / 6) is 122.49999999999999.
        (Target(width_px=49), (6, 15), (49, 123)),
        (Target(height_px=1080), (640, 480), (1440, 1080)),
        (Target(long_edge_px=2000), (300, 400), (1500, 2000)),
        (Target(long_edge_px=2000), (400, 300), (2000, 1500)),
        (Target(short_edge_px=600), (300, 400), (600, 800)),
        (Target(short_edge_px=600), (400, 300), (800, 600)),
        (Target(fit_px=(1920, 1080)), (100, 100), (1080, 1080)),
        (Target(fit_px=(1920, 1080)), (1000, 100), (1920, 192)),
        (Target(fit_px=(50, 50)), (100, 80), (50, 40)),
        (Target(minimum_px=(1920, 1080)), (100, 100), (1920, 1920)),
        (Target(minimum_px=(1920, 1080)), (3000, 2000), (3000, 2000)),
        (Target(minimum_px=(1920, 1080)), (3000, 540), (6000, 1080)),
        (Target(minimum_px=(10, 10)), (1, 1), (10, 10)),
    ],
    ids=str,
)
def test_every_kind_of_target(
    target: Target, source: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert target.size_px(*source) == expected


@given(SIDES, SIDES, st.integers(1, 20_000), st.integers(1, 20_000))
def test_what_was_asked_for_is_met_exactly(
    width: int, height: int, wished: int, other: int
) -> None:
    assert Target(width_px=wished).size_px(width, height)[0] == wished
    assert Target(height_px=wished).size_px(width, height)[1] == wished
    assert max(Target(long_edge_px=wished).size_px(width, height)) == wished
    assert min(Target(short_edge_px=wished).size_px(width, height)) == wished
    assert Target(scale=1.0).size_px(width, height) == (width, height)
    assert Target(scale=3).size_px(width, height) == (3 * width, 3 * height)

    fitted = Target(fit_px=(wished, other)).size_px(width, height)
    assert fitted[0] <= wished
    assert fitted[1] <= other
    assert fitted[0] == wished or fitted[1] == other

    covering = Target(minimum_px=(wished, other)).size_px(width, height)
    assert covering[0] >= max(wished, width)
    assert covering[1] >= max(other, height)
    assert covering == (width, height) or covering[0] == wished or covering[1] == other


@given(SIDES, SIDES, st.floats(0.01, 100))
def test_the_aspect_ratio_is_kept_to_half_a_pixel(width: int, height: int, scale: float) -> None:
    out = Target(scale=scale).size_px(width, height)
    for before, after in zip((width, height), out, strict=True):
        assert after >= 1
        assert abs(after - before * scale) <= 0.5 + 1e-6 or after == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scale": 2.0, "width_px": 100},
        {"fit_px": (1, 1), "minimum_px": (1, 1)},
        {"long_edge_px": 5, "short_edge_px": 5},
    ],
)
def test_exactly_one_field(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="exactly one of --scale"):
        Target(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": 0.0},
        {"scale": -2.0},
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": 1e300},
        {"width_px": 0},
        {"height_px": -5},
        {"width_px": 10**400},
        {"long_edge_px": 0},
        {"fit_px": (0, 10)},
        {"minimum_px": (10, -1)},
    ],
)
def test_sizes_of_nonsense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be positive and at most"):
        Target(**fields)


# -- passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "native", "expected"),
    [
        (4.0, 4, (4.0,)),
        (2.0, 4, (4.0,)),
        (1.0, 4, (4.0,)),
        (4.0, 2, (2.0, 2.0)),
        (4.08, 4, (4.0,)),
        (4.09, 4, (4.0, 4.0)),
        (10.0, 4, (4.0, 4.0)),
        (16.0, 4, (4.0, 4.0)),
        (16.5, 4, (4.0, 4.0, 4.0)),
        (9.0, 3, (3.0, 3.0)),
        (243.0, 3, (3.0,) * 5),
        (0.999, 4, ()),
        (0.1, 4, ()),
        (1.0, 1, (1.0,)),
        (3.0, 1, (1.0,)),
        (0.5, 1, ()),
    ],
)
def test_passes_of_a_network_with_one_scale(
    factor: float, native: int, expected: tuple[float, ...]
) -> None:
    assert passes(factor, native=native) == expected


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(2.5, (2.5,)), (4.0, (4.0,)), (1.0, (1.0,)), (10.0, (4.0, 2.5)), (0.5, ())],
)
def test_passes_of_a_network_for_any_factor(factor: float, expected: tuple[float, ...]) -> None:
    assert passes(factor, native=4, any_factor=True) == expected


@given(st.floats(1.0, 1e6), st.integers(2, 8), st.booleans())
def test_passes_reach_the_factor_and_none_is_too_many(
    factor: float, native: int, any_factor: bool
) -> None:
    steps = passes(factor, native=native, any_factor=any_factor)
    allowance = 1.0 if any_factor else 1.02
    assert math.prod(steps) * allowance >= factor * (1 - 1e-7)
    assert len(steps) == 1 or native ** (len(steps) - 1) * allowance < factor
    if any_factor:
        assert math.prod(steps) == pytest.approx(factor)
        # The tiny slack of the count may leave it a hair above what it was trained for.
        assert all(1.0 <= step <= native * (1 + 1e-7) for step in steps)


@pytest.mark.parametrize("native", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_exact_powers_take_no_pass_too_many(native: int, count: int) -> None:
    # log(125) / log(5) is 3.0000000000000004.
    assert passes(float(native**count), native=native) == (float(native),) * count


# -- boxes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("1920x1080", (1920, 1080)),
        ("1920X1080", (1920, 1080)),
        ("1920×1080", (1920, 1080)),
        (" 12 x 34 ", (12, 34)),
        ("512", (512, 512)),
    ],
)
def test_boxes(text: str, box: tuple[int, int]) -> None:
    assert parse_box(text) == box


@pytest.mark.parametrize(
    "text", ["", "x", "12x", "x12", "1x2x3", "-1x2", "1.5x2", "a", "²x3", "1080p", "1 2"]
)
def test_what_is_no_box(text: str) -> None:
    with pytest.raises(UsageError, match="is no size: write it as 1920x1080"):
        parse_box(text)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (Target(scale=4), "4x"),
        (Target(scale=4.0), "4x"),
        (Target(scale=2.5), "2.5x"),
        (Target(width_px=640), "640x480"),
        (Target(fit_px=(640, 640)), "640x480"),
    ],
)
def test_size_labels(target: Target, label: str) -> None:
    assert naming.size_label(target, (640, 480)) == label


@pytest.mark.parametrize("name", [n for n, facts in FORMATS.items() if facts.writable])
def test_every_format_gets_a_suffix_that_means_it(name: str) -> None:
    assert format_of(naming.suffix_for(name, source=Path("a.gif"))) == name
    assert naming.suffix_for(name, source=Path("a.gif")) == FORMATS[name].suffixes[0]
    for wish in (name, name.lower(), f".{name}", *FORMATS[name].suffixes):
        suffix = naming.suffix_for(name, source=Path("a.gif"), wish=wish)
        assert suffix == f".{wish.lower().lstrip('.')}"
        assert format_of(suffix) == name


@pytest.mark.parametrize(
    ("source", "suffix"), [("a.JPG", ".JPG"), ("a.jpeg", ".jpeg"), ("a", ".jpg"), ("a.png", ".jpg")]
)
def test_the_suffix_is_the_sources_where_it_fits(source: str, suffix: str) -> None:
    assert naming.suffix_for("JPEG", source=Path(source)) == suffix


def test_the_format_is_wished_or_named_or_the_inputs(tmp_path: Path) -> None:
    assert naming.output_format("PNG", wish="webp", output="a.out") == "WEBP"
    assert naming.output_format("PNG", wish="jpeg", output="a.JPG") == "JPEG"
    with pytest.raises(UsageError, match=r"a\.jpg is named like JPEG, and --format asks for WEBP"):
        naming.output_format("PNG", wish="webp", output="a.jpg")
    assert naming.output_format("PNG", wish=None, output="a.jpg") == "JPEG"
    assert naming.output_format("JPEG", wish=None, output=str(tmp_path)) == "JPEG"
    assert naming.output_format("JPEG", wish=None, output="new.folder/") == "JPEG"
    assert naming.output_format("WEBP", wish=None, output="-") == "WEBP"
    assert naming.output_format("WEBP", wish=None, output=None) == "WEBP"
    # Nothing is known of what comes from nowhere.
    assert naming.output_format(None, wish=None, output=None) == "PNG"
    for wish, output in (("tga", None), (None, "a.tga"), (None, "a")):
        with pytest.raises(UsageError, match="no picture format"):
            naming.output_format("PNG", wish=wish, output=output)


def test_what_cannot_be_written_becomes_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "BMP", dataclasses.replace(FORMATS["BMP"], writable=False))
    assert naming.output_format("BMP", wish=None, output=None) == "PNG"
    # Asking for it is left to be refused by whoever writes.
    assert naming.output_format("PNG", wish="bmp", output=None) == "BMP"


def test_what_means_a_folder(tmp_path: Path) -> None:
    assert naming.means_folder(str(tmp_path))
    assert naming.means_folder("anything/")
    assert naming.means_folder(f"anything{os.sep}")
    assert not naming.means_folder(str(tmp_path / "new.png"))
    (tmp_path / "file").write_bytes(b"")
    assert not naming.means_folder(str(tmp_path / "file"))


def test_an_output_is_never_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "cat.png"
    source.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for output in ("cat.png", "./cat.png", str(tmp_path / "x" / ".." / "cat.png")):
        with pytest.raises(UsageError, match="is the input itself"):
            naming.refuse_input(Path(output), source)
    with pytest.raises(UsageError, match="is the input itself"):
        naming.refuse_input(source, Path("cat.png"))
    (tmp_path / "link.png").symlink_to(source)
    with pytest.raises(UsageError, match="is the input itself"):
        naming.refuse_input(Path("link.png"), source)
    # As A.PNG is a.png on Windows and macOS: another name of the same file.
    os.link(source, tmp_path / "other.png")
    with pytest.raises(UsageError, match="is the input itself"):
        naming.refuse_input(Path("other.png"), source)
    # Neither exists: pictures from stdin have no file.
    naming.refuse_input(Path("out.png"), Path("stdin"))
