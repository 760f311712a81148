"""The page of a benchmark: one file that asks for nothing, with a picture drawn to scale."""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import chromium
import numpy as np
import pytest
from PIL import Image
from test_compare_page import EVIL, Elements

from waifu4x.bench import page, scatter
from waifu4x.bench.published import Figure, Source
from waifu4x.bench.results import Column, PictureResult, Report, Result
from waifu4x.bench.scatter import NARROW, WIDE, Mark, Point
from waifu4x.errors import PictureWriteError, UsageError
from waifu4x.pages import nice_ticks

PSNR = Column(key="psnr", title="PSNR", digits=2, unit="dB")
SSIM = Column(key="ssim", title="SSIM", digits=4)
LPIPS = Column(key="lpips", title="LPIPS", digits=4, is_lower_better=True)
PSNR_RGB = Column(key="psnr-rgb", title="PSNR-RGB", digits=2, unit="dB")
COSTS = ["s/MP", "Memory", "Params", "Mult-adds"]
PAPER = Source(name="paper", title="A paper", url="https://example.org/1", channel="y", note="odd")
CODE = Source(
    name="code",
    title="Its code",
    url="https://example.org/2",
    channel="rgb",
    read_in="https://example.org/3",
)


def picture(name: str = "a", time_s: float = 0.5, **values: float | None) -> PictureResult:
    keyed = {key.replace("_", "-"): value for key, value in values.items()}
    return PictureResult(name=name, values=keyed, time_s=time_s, megapixels=0.25)


def result(model: str = "bicubic", *pictures: PictureResult, **more: Any) -> Result:
    facts: dict[str, Any] = {
        "dataset": "Set5",
        "scale": 4,
        "protocol": "rgb8",
        "device": "cpu",
        "precision": "fp32",
        "engine": "torch",
    }
    return Result(model=model, pictures=pictures or (picture(psnr=28.0),), **(facts | more))


def report(*results: Result, columns: tuple[Column, ...] = (PSNR,), **more: Any) -> Report:
    return Report(columns=columns, results=results, **more)


def build(*results: Result, **more: Any) -> str:
    return page.build(report(*results, **more), command="waifu4x bench Set5/")


def many(count: int) -> list[Result]:
    """Models with names of all lengths, crowded in one corner of the picture."""
    rng = random.Random(5)
    made = [result("bicubic", picture(psnr=28.4, time_s=0.01))]
    for number in range(1, count):
        name = f"{'x' * rng.randrange(1, 40)}_{number}"
        time_s = 10 ** rng.uniform(-0.5, 1.0)
        made.append(result(name, picture(psnr=rng.gauss(30, 0.5), time_s=time_s), parameters=9))
    return made


def tables(text: str) -> list[list[list[str]]]:
    """The texts of all cells; what is best is in stars, what is small in brackets."""
    found = []
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        rows = []
        for row in ElementTree.fromstring(table.replace("<wbr>", "")).iter("tr"):
            cells = []
            for cell in row:
                for small in cell.iter("small"):
                    small.text = f"({small.text})"
                own = "".join(cell.itertext())
                cells.append(f"*{own}*" if cell.get("class") == "best" else own)
            rows.append(cells)
        found.append(rows)
    return found


def plots(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def groups(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [group for group in svg.iter("g") if kind in group.get("class", "").split()]


# ----------------------------------------------------------------------------------------- the page


def test_the_page_is_whole_and_asks_nothing_of_the_network() -> None:
    text = build(result(), result("a", parameters=9), published=(figure(psnr_db=30.0),))
    elements = Elements(text)
    for tag, attributes in elements.found:
        for name in ("src", "action", "srcset", "poster"):
            assert name not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:", "https://")), tag
        # Neither is needed, and the policy forbids both.
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|http:", text)
    (policy,) = [m["content"] for m in elements.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert text.count("sha256-") == 2
    identities = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(identities)) == len(identities)


def test_everything_is_escaped() -> None:
    source = Source(name=EVIL, title=EVIL, url="javascript:alert(1)", channel="y", note=EVIL)
    evil = result(EVIL, picture(EVIL, psnr=30.0), dataset=EVIL, device=EVIL, notes=(EVIL,))
    text = page.build(
        report(
            evil,
            columns=(Column(key="psnr", title=EVIL, digits=2, unit=EVIL),),
            published=(Figure(model=EVIL, dataset=EVIL, scale=4, source=source, psnr_db=29.0),),
        ),
        command=EVIL,
    )
    elements = Elements(text)
    assert text.count("<script") == 1
    assert "<!--" not in text
    assert not any(a["href"].startswith("javascript") for a in elements.all("a"))
    # Nothing is lost either: here is the name of the model, of the picture and of the set.
    means, each = tables(text)[0], tables(text)[1]
    assert means[1][0] == means[3][0] == each[1][0] == EVIL
    assert any(EVIL in attributes.get("aria-label", "") for _, attributes in elements.found)


def test_a_name_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    page.write(report(result("a\udcff")), tmp_path / "a.html", command="b\udcff")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert tables(text)[0][1][0] == "a?"


def test_the_head_tells_how_it_was_measured() -> None:
    network = {"parameters": 9, "device": "cuda:0", "precision": "fp16"}
    text = build(result(), result("a", **network), result("a", dataset="Set14", scale=2, **network))
    tiles = dict(re.findall(r"<dt>(\w+)</dt><dd>([^<]*)</dd>", text))
    assert (tiles["Sets"], tiles["Scales"], tiles["Models"]) == ("Set5, Set14", "x4, x2", "2")
    # Bicubic is no network, and has no device to choose.
    assert (tiles["Protocol"], tiles["Device"]) == ("rgb8", "cuda:0 in fp16 by torch")
    assert '<code id="command">waifu4x bench Set5/</code>' in text
    assert '<h2 id="g1">Set14 x2</h2>' in text
    assert "MATLAB on uint8" in text


def test_compressed_pictures_have_tables_and_plots_of_their_own() -> None:
    text = build(result(), result(jpeg_quality=75), published=(figure(psnr_db=30.0),))
    assert "<dt>JPEG</dt><dd>clean, 75</dd>" in text
    assert "<dt>JPEG</dt><dd>the shrunk picture is saved" in text
    assert re.findall(r'<h2 id="g\d">([^<]*)</h2>', text) == ["Set5 x4", "Set5 x4, JPEG 75"]
    assert [bool(groups(svg, "mark")) for svg in plots(text)] == [True, True, False, False]
    means, _, _, compressed, *_ = tables(text)
    assert (len(means), len(compressed)) == (4, 2)
    assert "JPEG" not in build(result())


def test_nothing_measured_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was measured"):
        page.build(report(), command="")
    with pytest.raises(PictureWriteError):
        page.write(report(result()), tmp_path / "missing" / "a.html", command="")


# --------------------------------------------------------------------------------------- the tables


def test_the_best_of_each_column_is_marked_and_costs_stand_beside_it() -> None:
    one = result(
        "one",
        picture("a", psnr=28.0, ssim=0.8, lpips=0.3, time_s=0.5),
        picture("b", psnr=math.inf, ssim=0.9, lpips=None, time_s=0.25),
        peak_memory_bytes=300 * 2**20,
        parameters=621_000,
        multiply_adds_hd=35.2e9,
    )
    other = result(
        "other", picture("a", psnr=30.0, ssim=0.7, lpips=0.2), picture("b", psnr=1, ssim=0.9)
    )
    means, psnr, ssim, lpips, seconds = tables(build(one, other, columns=(PSNR, SSIM, LPIPS)))
    assert means == [
        ["Model", "PSNR, dB ↑", "SSIM ↑", "LPIPS ↓(1 of 2)", *COSTS],
        ["one", "*∞*", "*0.8500*", "0.3000", "1.5", "300 MiB", "621 K", "35.2 G"],
        ["other", "15.50", "0.8000", "*0.2000*", "2", "–", "–", "–"],
    ]
    assert psnr == [["Picture", "one", "other"], ["a", "28.00", "*30.00*"], ["b", "*∞*", "1.00"]]
    assert ssim[2] == ["b", "*0.9000*", "*0.9000*"]
    assert lpips[2] == ["b", "–", "–"]
    assert seconds[1:] == [["a", "0.5", "0.5"], ["b", "0.25", "0.5"]]


def test_how_many_pictures_a_mean_is_of_is_told_where_models_differ() -> None:
    whole = result("whole", picture("a", psnr=30.0), picture("b", psnr=31.0))
    half = result("half", picture("a", psnr=30.0), picture("b", psnr=None))
    none = result("none", picture("a", psnr=None), picture("b", psnr=None))
    means = tables(build(whole, half, none))[0]
    assert [row[1] for row in means] == ["PSNR, dB ↑", "*30.50*", "30.00(1 of 2)", "–"]


def test_alone_nothing_is_best_and_what_nobody_knows_has_no_column() -> None:
    means, each, _ = tables(build(result()))
    assert means == [["Model", "PSNR, dB ↑", "s/MP"], ["bicubic", "28.00", "2"]]
    assert each == [["Picture", "bicubic"], ["a", "28.00"]]


def test_how_a_model_ran_is_told_where_that_differs() -> None:
    fp16, fp32 = (result(p, parameters=9, precision=p, notes=(f"{p}!",)) for p in ("fp16", "fp32"))
    means = tables(build(result(), fp16, fp32))[0]
    assert [row[0] for row in means[1:]] == [
        "bicubic",
        "fp16(cpu in fp16 by torch)",
        "fp32(cpu in fp32 by torch)",
    ]
    one, other = (result(e, parameters=9, engine=e) for e in ("torch", "openvino"))
    means = tables(build(result(), one, other))[0]
    assert [row[0] for row in means[2:]] == [
        "torch(cpu in fp32 by torch)",
        "openvino(cpu in fp32 by openvino)",
    ]
    text = build(result(), fp16)
    assert [row[0] for row in tables(text)[0][1:]] == ["bicubic", "fp16"]
    assert "<li><b>fp16</b>: fp16!</li>" in text


def test_pictures_of_one_name_are_two() -> None:
    twice = result("one", picture("a", psnr=1.0), picture("a", psnr=2.0))
    other = result("other", picture("a", psnr=3.0))
    each = tables(build(twice, other))[1]
    assert each[1:] == [["a", "1.00", "*3.00*"], ["a", "2.00", "–"]]


# ---------------------------------------------------------------------------- what others published


def figure(model: str = "SRCNN", source: Source = PAPER, **more: Any) -> Figure:
    return Figure(model=model, dataset="Set5", scale=4, source=source, **more)


def test_published_figures_stand_apart_and_only_beside_what_they_are_of() -> None:
    figures = (
        figure(psnr_db=30.48, ssim=0.8628),
        figure("EDSR", source=CODE, psnr_db=30.55, ssim=0.87),
        figure("SPSR", lpips=0.0644),
        Figure(model="elsewhere", dataset="Set14", scale=4, source=PAPER, psnr_db=20.0),
    )
    text = build(result(), columns=(PSNR, SSIM), published=figures)
    assert tables(text)[0][2:] == [
        ["Published by others, not measured here"],
        ["SRCNN", "30.48", "0.8628", "paper [1]"],
    ]
    links = {a["href"] for a in Elements(text).all("a")}
    assert links == {"https://example.org/1", "#source-1"}
    assert re.search(r'<li id="source-1">.*A paper.*<p class="faint">odd</p></li>', text)
    # Luma and RGB never share a column; LPIPS is of neither.
    text = build(result(), columns=(PSNR, PSNR_RGB, LPIPS), published=figures)
    assert [row[:4] for row in tables(text)[0][3:]] == [
        ["SRCNN", "30.48", "–", "–"],
        ["EDSR", "–", "30.55", "–"],
        ["SPSR", "–", "–", "0.0644"],
    ]
    assert {"https://example.org/2", "https://example.org/3"} < {
        a["href"] for a in Elements(text).all("a")
    }


def test_published_values_are_at_the_edge_of_the_picture_where_they_are_few() -> None:
    few = tuple(figure(f"m{n}", psnr_db=30.0 + n) for n in range(page.MAX_MARKS))
    text = build(result(), published=(*few, figure("other", source=CODE, psnr_db=20.0)))
    for svg, layout in zip(plots(text), (WIDE, NARROW), strict=True):
        marks = groups(svg, "mark")
        assert [mark.findtext("text") for mark in marks] == [f"m{n}" for n in range(7, -1, -1)]
        assert marks[0].findtext("title") == "m7, published by paper: PSNR 37.00 dB"
        right = layout.right - layout.marks_px
        for mark in marks:
            line = mark.find("polyline")
            assert line is not None
            first, *_ = line.get("points", "").split()
            assert float(first.split(",")[0]) == right - 6
            assert right < float(mark[2].get("x", "")) < layout.width
    text = build(result(), published=(*few, figure("one more", psnr_db=29.0)))
    assert not any(groups(svg, "mark") for svg in plots(text))
    assert "9 published values: only in the table" in text


# -------------------------------------------------------------------------------------- the picture


def point(name: str, time_s: float, value: float, **more: Any) -> Point:
    return Point(name=name, time_s=time_s, value=value, told=f"of {name}", **more)


def centres(svg: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter("circle")]


def drawn(*points: Point, layout: scatter.Layout = WIDE, **more: Any) -> ElementTree.Element:
    return ElementTree.fromstring(scatter.draw(points, value_title="PSNR", layout=layout, **more))


def test_points_are_drawn_to_scale() -> None:
    svg = drawn(point("slow", 1.0, 30.0), point("fast", 0.01, 28.0))
    # Two decades and 8 % more on both sides: 2.32 decades on 60..884. 28..30 dB and a tenth of it
    # more: 2.4 dB on 374..34.
    assert centres(svg) == [(827.2, 62.3), (116.8, 345.7)]
    told = [text.text for text in svg.iter("text") if text.get("class") is None]
    assert told[:5] == ["28.0", "28.5", "29.0", "29.5", "30.0"]
    assert told[5:12] == [f"{time} s" for time in ("0.01", "0.02", "0.05", "0.1", "0.2", "0.5", 1)]
    # There is no room for seven on a phone.
    svg = drawn(point("slow", 1.0, 30.0), point("fast", 0.01, 28.0), layout=NARROW)
    times = [text.text for text in svg.iter("text") if (text.text or "").endswith(" s")]
    assert times == ["0.01 s", "0.1 s", "1 s"]


def test_marks_are_on_the_same_scale() -> None:
    marks = (Mark(name="high", value=32.0, told=""), Mark(name="low", value=28.0, told=""))
    svg = drawn(point("a", 1.0, 30.0, is_baseline=True), marks=marks)
    (rule,) = [line for line in svg.iter("line") if line.get("class") == "baseline"]
    # 27.6..32.4 on 374..34; the plot ends where the marks begin.
    assert (rule.get("y1"), rule.get("x2")) == ("204.0", "744")
    heights = [line.get("points", "").split()[0] for line in svg.iter("polyline")]
    assert heights == ["738,62.3", "738,345.7"]


def test_endless_values_are_at_the_upper_edge_and_unknown_ones_left_out() -> None:
    text = build(
        result("a", picture(psnr=30.0)),
        result("same", picture(psnr=math.inf)),
        result("small", picture(psnr=None)),
    )
    for svg in plots(text):
        assert [g.findtext("text") for g in groups(svg, "point")] == ["a", "same (∞)"]
        assert centres(svg)[1][1] == scatter.TOP + scatter.DOT_PX + 1
    for value in (None, math.inf):
        text = build(result("small", picture(psnr=value)))
        assert plots(text) == []
        assert "No PSNR is a number that can be drawn" in text


def test_what_is_drawn_is_psnr_or_else_the_first_column() -> None:
    pictured = result("a", picture(psnr=30.0, ssim=0.8, lpips=0.25))
    titles = []
    for columns in ((SSIM, PSNR), (LPIPS, SSIM)):
        text = build(pictured, columns=columns)
        (title,) = [t.text for t in plots(text)[0].iter("text") if t.get("x") == "2"]
        told = groups(plots(text)[0], "point")[0].findtext("title")
        titles.append((title, told, "better is below" in text))
    assert titles == [
        ("PSNR, dB ↑", "a: PSNR 30.00 dB, 2 s per megapixel", False),
        ("LPIPS ↓", "a: LPIPS 0.2500, 2 s per megapixel", True),
    ]


@pytest.mark.parametrize("value", [0.0, -3.0, 0.8, 1e9])
def test_one_model_is_in_the_middle(value: float) -> None:
    svg = drawn(point("a", 0.0, value))
    assert centres(svg) == [((60 + 884) / 2, (34 + 374) / 2)]
    assert [t.text for t in svg.iter("text") if (t.text or "").endswith(" s")]


def boxes(svg: ElementTree.Element, layout: scatter.Layout) -> list[scatter.Box]:
    """Where the labels of points are, reckoned from their places, anchors and widths."""
    found = []
    for group in groups(svg, "point"):
        (text,) = group.findall("text")
        width = scatter.text_px(text.text or "", layout.font_px)
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[text.get("text-anchor", "")]
        left, base = float(text.get("x", "")) - shift * width, float(text.get("y", ""))
        # Letters reach 0.95 of their height above the line they stand on, and 0.25 below it.
        top, bottom = base - 0.93 * layout.font_px, base + 0.25 * layout.font_px
        found.append(scatter.Box(left=left, top=top, right=left + width, bottom=bottom))
    return found


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("places", ["spread", "crowded", "the same"])
def test_no_label_of_fifteen_covers_anything(layout: scatter.Layout, places: str) -> None:
    rng = random.Random(7)
    points = [
        point(
            f"{'model' * rng.randrange(1, 7)}_{number}",
            1.0 if places == "the same" else 10 ** rng.uniform(-2.0, 1.0),
            30.0 if places == "the same" else rng.gauss(30.0, 2.0),
            is_baseline=number == 0,
        )
        for number in range(15)
    ]
    if places == "crowded":
        # Fourteen in a tenth of either axis.
        points[1:] = [point(p.name, 5.0 + p.time_s / 20, 29 + p.value / 30) for p in points[1:]]
        points[0] = point("bicubic", 0.01, 20.0, is_baseline=True)
    svg = drawn(*points, layout=layout)
    height = float(svg.get("viewBox", "").split()[3])
    labels = boxes(svg, layout)
    assert len(labels) == 15
    for one, other in itertools.combinations(labels, 2):
        assert not one.overlaps(other)
    dots = [scatter.Box.around(place, scatter.DOT_PX) for place in centres(svg)]
    for label in labels:
        assert label.left >= scatter.LEFT
        assert label.right <= layout.right
        assert label.top >= scatter.TOP
        assert label.bottom <= height - scatter.FOOT
        assert not any(label.overlaps(dot) for dot in dots)
    # A line leads from each name that is apart to its own point.
    for group, place, label in zip(groups(svg, "point"), centres(svg), labels, strict=True):
        lines = group.findall("line")
        near = scatter.Box.around(place, 12.0).overlaps(label)
        assert near or len(lines) == 1
        for line in lines:
            start = (float(line.get("x1", "")), float(line.get("y1", "")))
            assert math.dist(start, place) == pytest.approx(scatter.DOT_PX, abs=0.1)


def test_crowded_pictures_grow() -> None:
    heights = [svg.get("viewBox", "").split()[3] for svg in plots(build(*many(3)))]
    assert heights == ["430", "400"]
    svg = plots(build(*many(25)))[1]
    assert float(svg.get("viewBox", "").split()[3]) > 400
    assert len(groups(svg, "point")) == 25


@pytest.mark.parametrize("seed", [7, 45])
def test_lines_cross_nothing(seed: int) -> None:
    rng = random.Random(seed)
    svg = drawn(
        *(
            point(
                f"{'model' * rng.randrange(1, 6)}_{n}", 10 ** rng.uniform(-1, 1), rng.gauss(30, 1)
            )
            for n in range(15)
        ),
        layout=NARROW,
    )
    labels, dots = boxes(svg, NARROW), [scatter.Box.around(place, 5.0) for place in centres(svg)]
    paths: dict[int, list[tuple[float, float]]] = {}
    for number, group in enumerate(groups(svg, "point")):
        for line in group.findall("line"):
            x1, y1, x2, y2 = (float(line.get(key, "")) for key in ("x1", "y1", "x2", "y2"))
            shares = np.linspace(0.0, 1.0, 200)[:-1]
            paths[number] = [(x1 + s * (x2 - x1), y1 + s * (y2 - y1)) for s in shares]
    assert len(paths) > 2
    for number, path in paths.items():
        others = [n for n in range(15) if n != number]
        met = [other for n, points in paths.items() if n != number for other in points]
        assert min(math.dist(*pair) for pair in itertools.product(path, met)) > 1.0
        for place in path:
            spot = scatter.Box.around(place, 0.1)
            assert not any(spot.overlaps(labels[n]) or spot.overlaps(dots[n]) for n in others)


def test_names_that_are_too_long_lose_their_middle() -> None:
    # Ten px high: 6.5 px each, and 10 px for the ellipsis.
    assert scatter.shortened("a" * 6, 39.0, font_px=10) == "aaaaaa"
    assert scatter.shortened("abcdeghknop", 36.1, font_px=10) == "ab…op"
    assert scatter.shortened("abcdeghknop", 29.6, font_px=10) == "ab…p"
    assert scatter.shortened("abcdeghknop", 9.0, font_px=10) == "…"


def test_names_at_the_edge_are_moved_as_little_as_can_be() -> None:
    # The first two share what they lack: 10 and 12 become 6 and 16.
    assert scatter.spread([10, 12, 40], 10, within=(0, 100)) == [6, 16, 40]
    assert scatter.spread([0, 1], 10, within=(5, 100)) == [5, 15]
    assert scatter.spread([99, 99], 10, within=(0, 100)) == [90, 100]
    assert scatter.spread([], 10, within=(0, 100)) == []


def test_round_numbers() -> None:
    assert nice_ticks(27.8, 30.2, count=6) == [28.0, 28.5, 29.0, 29.5, 30.0]
    assert nice_ticks(0.79, 0.91, count=6) == [0.8, 0.82, 0.84, 0.86, 0.88, 0.9]
    assert scatter.time_ticks((-1.5, 0.5)) == [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    told = [scatter.seconds(time_s) for time_s in (0.0002, 0.05, 1.0, 20.0, 5000.0)]
    assert told == ["0.0002 s", "0.05 s", "1 s", "20 s", "5,000 s"]


# -------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    if chromium.PATH is None:
        pytest.skip("needs Chromium")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def opened(browser: chromium.Browser, tmp_path: Path) -> Iterator[chromium.Browser]:
    """A page of fifteen models; whatever is done with it, nothing is complained of."""
    results = many(13)
    results.insert(3, result("nothing", picture(psnr=None)))
    results.append(result("endless", picture(psnr=math.inf)))
    figures = [figure(f"m{n}", psnr_db=30.0 + n % 3) for n in range(6)]
    page.write(
        report(*results, columns=(PSNR, SSIM, LPIPS), published=tuple(figures)),
        tmp_path / "a.html",
        command="waifu4x bench " + "Set5/ " * 40,
    )
    browser.events.clear()
    browser.look(width_px=1280, height_px=900)
    browser.open(tmp_path / "a.html", ready='document.querySelector("thead button")')
    browser.settled()
    yield browser
    assert browser.complaints() == []


def column_of(browser: chromium.Browser, number: int, *, body: int = 0) -> list[str]:
    return browser.value(
        f"[...document.querySelector('table').tBodies[{body}].rows]"
        f".map((row) => row.cells[{number}].textContent)"
    )


def press(browser: chromium.Browser, number: int) -> str | None:
    """Click a heading of the first table; how it says that the table is sorted now."""
    head = f"table th:nth-child({number})"
    browser.value(f"document.querySelector({json.dumps(head)}).scrollIntoView()")
    browser.click(f"{head} button")
    return browser.value(f"document.querySelector({json.dumps(head)}).getAttribute('aria-sort')")


def test_a_heading_sorts_its_table(opened: chromium.Browser) -> None:
    names = column_of(opened, 0)
    assert press(opened, 2) == "descending"
    values = column_of(opened, 1)
    assert (values[0], values[-1]) == ("∞", "–")
    known = [float(value) for value in values[1:-1]]
    assert known == sorted(known, reverse=True)
    # What others published stays below, sorted for itself.
    assert column_of(opened, 1, body=2) == ["32.00"] * 2 + ["31.00"] * 2 + ["30.00"] * 2
    assert press(opened, 2) == "ascending"
    assert column_of(opened, 1) == [*values[-2::-1], "–"]
    assert press(opened, 5) == "ascending"
    times = [float(value) for value in column_of(opened, 4)]
    assert times == sorted(times)
    assert opened.value("document.querySelectorAll('[aria-sort]').length") == 1
    opened.value("document.querySelector('table th button').focus()")
    opened.key("Enter", code="Enter")
    assert column_of(opened, 0) != names
    assert sorted(column_of(opened, 0)) == sorted(names)


def test_the_command_is_there_to_be_copied(opened: chromium.Browser) -> None:
    opened.click("#copy")
    opened.wait(
        "document.querySelector('#copy').textContent === 'Copied' || "
        "getSelection().toString() === document.querySelector('#command').textContent"
    )


TEXTS = """[...document.querySelectorAll("svg")].filter((svg) => svg.getClientRects().length)
  .map((svg) => [svg.viewBox.baseVal.width, svg.viewBox.baseVal.height,
    [...svg.querySelectorAll("text")].map((text) => {
      const box = text.getBBox(); return [box.x, box.y, box.width, box.height]; })])"""


@pytest.mark.parametrize(("width_px", "kind"), [(1280, WIDE), (390, NARROW), (360, NARROW)])
def test_the_page_fits_its_window(
    opened: chromium.Browser, width_px: int, kind: scatter.Layout
) -> None:
    opened.look(width_px=width_px, height_px=844, phone=width_px < 500, dark=width_px == 390)
    opened.value("for (const each of document.querySelectorAll('details')) each.open = true")
    opened.settled()
    assert opened.value("document.documentElement.scrollWidth > window.innerWidth") is False
    # One picture is shown, and in the fonts of this machine too no text covers another.
    ((width, height, texts),) = opened.value(TEXTS)
    assert width == kind.width
    assert len(texts) > 14 + 6
    for one, other in itertools.combinations(texts, 2):
        # Boxes are of lines, which are higher than letters.
        overlap_x = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
        overlap_y = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
        assert overlap_x <= 0 or overlap_y <= 3
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in texts)
    letters_px = opened.value(
        """(() => { const svg = [...document.querySelectorAll("svg")].find((each) =>
        each.getClientRects().length); return svg.querySelector("text").getBBox().height
        * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; })()"""
    )
    assert letters_px > 11
    shot = np.asarray(Image.open(io.BytesIO(opened.screenshot())).convert("L")).astype(int)
    assert shot.shape[1] == width_px * (2 if width_px < 500 else 1)
    paper = shot[3, 3]
    assert (paper < 40) if width_px == 390 else (paper > 240)
    assert np.abs(shot[:200] - paper).max() > 150


def test_it_is_complete_without_scripts(browser: chromium.Browser, tmp_path: Path) -> None:
    page.write(report(*many(3)), tmp_path / "a.html", command="waifu4x")
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(tmp_path / "a.html", ready="document.readyState === 'complete'")
        assert browser.value("document.querySelectorAll('button:not([hidden])').length") == 0
        assert column_of(browser, 0)[0] == "bicubic"
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
