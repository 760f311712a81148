"""Tables of what was measured: Markdown, CSV and JSON of reports that are written by hand."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from typing import Any

import pytest
from benches import made_up

from waifu4x.bench import tables
from waifu4x.bench.published import Figure, Source
from waifu4x.bench.results import Column, Report, Result, ways
from waifu4x.version import __version__

PSNR = Column(key="psnr", title="PSNR", digits=2, unit="dB")
SSIM = Column(key="ssim", title="SSIM", digits=4)
GMSD = Column(key="gmsd", title="GMSD", digits=4, is_lower_better=True)
PSNR_RGB = Column(key="psnr-rgb", title="PSNR-RGB", digits=2, unit="dB")

LUMA = Source(name="vdsr", title="VDSR", url="https://a.org/vdsr", channel="y", note="gray is gray")
RGB = Source(
    name="edsr", title="EDSR", url="https://a.org/x_y", channel="rgb", read_in="https://b.org"
)


def figure(source: Source = LUMA, **options: Any) -> Figure:
    given = {"model": "VDSR", "dataset": "Set5", "scale": 2, "psnr_db": 37.53, **options}
    return Figure(source=source, **given)


def report(*results: Result, columns: tuple[Column, ...] = (PSNR,), **options: Any) -> Report:
    return Report(columns=columns, results=results, **options)


@pytest.fixture
def two_sets() -> Report:
    """Bicubic and a network on a set at two scales, and on another at one."""
    facts: dict[str, Any] = {
        "parameters": 1_517_571,
        "multiply_adds_hd": 146.1e9,
        "peak_memory_bytes": 200 * 2**20,
    }
    return report(
        made_up("bicubic", {"psnr": 30.0, "gmsd": 0.2}, {"psnr": 31.0, "gmsd": 0.1}),
        made_up("net", {"psnr": 33.0, "gmsd": 0.05}, {"psnr": 32.011, "gmsd": None}, **facts),
        made_up("bicubic", {"psnr": 28.0, "gmsd": 0.3}, scale=4),
        made_up("net", {"psnr": 27.5, "gmsd": 0.4}, scale=4, notes=("net is for x2",), **facts),
        made_up("bicubic", {"psnr": math.inf, "gmsd": 0.0}, dataset="flat"),
        columns=(PSNR, GMSD),
        published=(figure(), figure(RGB), figure(scale=3), figure(model="A+", scale=4)),
    )


def groups_of(text: str) -> dict[str, list[list[str]]]:
    """Every table of a Markdown text by its heading, as cells, line by line; without the rule."""
    found: dict[str, list[list[str]]] = {}
    for part in text.split("\n### ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        assert {len(line) for line in cells} == {len(cells[0])}
        assert set("".join(cells.pop(1))) == {"-", ":"}
        found[part.splitlines()[0]] = cells
    return found


def bold(cells: list[str]) -> list[str]:
    return [cell for cell in cells if cell.startswith("**")]


# Numbers.


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (PSNR, 30.3849, "30.38"),
        (PSNR, 30.3851, "30.39"),
        (PSNR, math.inf, "∞"),
        (SSIM, 1.0, "1.0000"),
        (SSIM, None, "–"),
    ],
)
def test_values_as_text(column: Column, value: float | None, text: str) -> None:
    assert column.text(value) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (57, "57"),
        (999.4, "999.4"),
        (1000, "1 K"),
        (57_281, "57.3 K"),
        (665_921, "666 K"),
        # Three figures of these are the next unit.
        (999_499, "999 K"),
        (999_500, "1 M"),
        (999_999, "1 M"),
        (1_234_567, "1.23 M"),
        (999_999_999, "1 G"),
        (146.1e9, "146 G"),
        (1.0326e12, "1.03 T"),
    ],
)
def test_amounts(number: float | None, text: str) -> None:
    assert tables.amount(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.01234, "0.0123"), (0.5, "0.5"), (12.345, "12.3"), (999.4, "999")),
        *((999.6, "1,000"), (1234.5, "1,234"), (54321.0, "54,321")),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


def test_memory() -> None:
    assert tables.memory(None) == "–"
    assert tables.memory(3 * 2**19) == "2 MiB"
    assert tables.memory(5 * 2**30) == "5,120 MiB"


# Means.


def test_means_are_over_those_that_have_a_value() -> None:
    found = made_up("net", {"psnr": 30.0, "niqe": None}, {"psnr": 40.0, "niqe": 5.0})
    assert (found.mean("psnr"), found.mean("niqe"), found.mean("ssim")) == (35.0, 5.0, None)
    assert (found.count("psnr"), found.count("niqe"), found.count("ssim")) == (2, 1, 0)
    # Half a second for each of two megapixels.
    assert found.seconds_per_megapixel == 0.5
    assert made_up("net", {"psnr": 30.0}, {"psnr": math.inf}).mean("psnr") == math.inf


def test_which_is_the_best() -> None:
    low, high, none = (
        made_up(name, {"psnr": psnr, "gmsd": gmsd})
        for name, psnr, gmsd in (("a", 30.0, 0.2), ("b", 31.0, 0.1), ("c", None, None))
    )
    of = report(low, high, none, columns=(PSNR, GMSD))
    assert of.best([low, high, none], "psnr") == 31.0
    assert of.best([low, high, none], "gmsd") == 0.1
    # It takes two to be better than another.
    assert of.best([low, none], "psnr") is None
    assert of.best([none], "gmsd") is None
    endless = made_up("d", {"psnr": math.inf, "gmsd": 0.0})
    assert of.best([low, endless], "psnr") == math.inf


# Markdown.


def test_markdown(two_sets: Report) -> None:
    text = tables.markdown(two_sets, command="waifu4x bench Set5/ -s 2,4")
    assert text.startswith(f"`waifu4x bench Set5/ -s 2,4`, waifu4x {__version__}\n")
    assert text.endswith(".\n")
    found = groups_of(text)
    heads = ["model", "PSNR ↑", "GMSD ↓", "s/MP", "memory", "params", "mult-adds"]
    costs = ["0.5", "200 MiB", "1.52 M", "146 G"]
    assert found["Set5 x2"] == [
        heads,
        ["bicubic", "30.50", "0.1500", "0.5", "–", "–", "–"],
        ["net", "**32.51**", "**0.0500**", *costs],
        ["*VDSR* [[vdsr]](https://a.org/vdsr)", "37.53", "–", "", "", "", ""],
    ]
    # Lower is better only where it says so; one alone is not the best of anything.
    assert found["Set5 x4"][1][:3] == ["bicubic", "**28.00**", "**0.3000**"]
    assert bold(found["Set5 x4"][2]) == []
    assert found["Set5 x4"][3][0] == "*A+* [[vdsr]](https://a.org/vdsr)"
    assert found["flat x2"][1:] == [["bicubic", "∞", "0.0000", "0.5", "–", "–", "–"]]
    assert list(found) == ["Set5 x2", "Set5 x4", "flat x2"]
    assert text.count("2 pictures, protocol rgb8; on cpu in fp32 by numpy.") == 1
    assert text.count("1 picture, protocol rgb8; on cpu in fp32 by numpy.") == 2


def test_how_networks_were_computed() -> None:
    """Once where all were computed alike; a filter is none of them."""
    one = made_up("a_b", {"psnr": 1.0}, engine="openvino", precision="bf16", parameters=9)
    other = dataclasses.replace(one, model="c", precision="fp32", engine="torch")
    filtered = made_up("bicubic", {"psnr": 1.0})
    assert ways([filtered, one, one]) == ["cpu in bf16 by openvino"]
    assert ways([filtered]) == ["cpu in fp32 by numpy"]
    assert tables.computed([filtered, one, one]) == "on cpu in bf16 by openvino"
    assert tables.computed([filtered, one, other, one]) == (
        "a_b on cpu in bf16 by openvino, c on cpu in fp32 by torch"
    )
    text = tables.markdown(report(filtered, one, other), command="x")
    assert "rgb8; a_b on cpu in bf16 by openvino, c on cpu in fp32 by torch." in text


def test_ties_and_absent_values_in_markdown() -> None:
    of = report(
        made_up("a", {"psnr": 30.0, "gmsd": None}),
        made_up("b", {"psnr": 30.0, "gmsd": 0.1}),
        made_up("c", {"psnr": 29.0, "gmsd": None}),
        columns=(PSNR, GMSD),
    )
    ((_, a, b, c),) = groups_of(tables.markdown(of, command="x")).values()
    assert (bold(a), bold(b), bold(c)) == (["**30.00**"], ["**30.00**"], [])
    assert (a[2], b[2], c[2]) == ("–", "0.1000", "–")


def test_footnotes(two_sets: Report) -> None:
    assert tables.footnotes(two_sets) == [
        "GMSD on Set5 x2 is of 1 of 2 pictures: the others are too small for it or too even.",
        "net is for x2.",
        "[vdsr] VDSR, https://a.org/vdsr; gray is gray.",
    ]
    text = tables.markdown(two_sets, command="x")
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- GMSD on Set5 x2 is of 1 of 2 pictures: the others are too small for it or too even.",
        "- net is for x2.",
        r"- \[vdsr\] VDSR, https://a.org/vdsr; gray is gray.",
    ]


def test_footnotes_are_said_once_and_of_what_is_there() -> None:
    note = "x2 was applied again"
    of = report(
        made_up("a", {"psnr": None}, {"psnr": None}, notes=(note,)),
        made_up("b", {"psnr": None}, {"psnr": None}, notes=(note, "another")),
        columns=(PSNR,),
    )
    assert tables.footnotes(of) == [
        "PSNR on Set5 x2 is of 0 of 2 pictures: the others are too small for it or too even.",
        f"{note}.",
        "another.",
    ]
    assert tables.footnotes(report(made_up("a", {"psnr": 1.0}))) == []


def test_sources_keep_their_addresses() -> None:
    of = report(made_up("a", {"psnr-rgb": 30.0}), columns=(PSNR_RGB,), published=(figure(RGB),))
    assert tables.footnotes(of) == ["[edsr] EDSR, https://a.org/x_y, read in https://b.org."]
    text = tables.markdown(of, command="x")
    assert "[[edsr]](https://a.org/x_y)" in text
    assert r"- \[edsr\] EDSR, https://a.org/x_y, read in https://b.org." in text


def test_what_is_published_of_another_channel_stands_nowhere() -> None:
    """Luma only beside luma, colour only beside colour, and only of the same set and scale."""
    figures = (
        figure(model="luma"),
        figure(RGB, model="colour"),
        figure(model="both", ssim=0.9),
        figure(RGB, model="perceived", lpips=0.1),
        figure(model="other set", dataset="Set14"),
        figure(model="other scale", scale=4),
    )
    lpips = Column(key="lpips", title="LPIPS", digits=4, is_lower_better=True)
    for columns, wanted in (
        ((PSNR,), {"luma": ["37.53"], "both": ["37.53"]}),
        ((SSIM,), {"both": ["0.9000"]}),
        ((PSNR_RGB,), {"colour": ["37.53"], "perceived": ["37.53"]}),
        ((GMSD,), {}),
        ((lpips,), {"perceived": ["0.1000"]}),
        (
            (PSNR, PSNR_RGB),
            {
                "luma": ["37.53", "–"],
                "colour": ["–", "37.53"],
                "both": ["37.53", "–"],
                "perceived": ["–", "37.53"],
            },
        ),
    ):
        values: dict[str, float | None] = {column.key: 1.0 for column in columns}
        of = report(made_up("mine", values), columns=columns, published=figures)
        ((_, _, results, beside),) = of.groups()
        shown = tables.rows(of, results, beside)
        assert [row.name for row in shown] == ["mine", *wanted]
        for row in shown[1:]:
            texts = [cell.text for cell in row.cells]
            assert texts == [*wanted[row.name], "", "", "", ""]
            assert not any(cell.is_best for cell in row.cells)
            assert row.source in (LUMA, RGB)


def test_compressed_pictures_stand_apart() -> None:
    qualities = (None, 75, 40)
    of = report(
        *(made_up("net", {"psnr": 30.0 - n}, jpeg_quality=q) for n, q in enumerate(qualities)),
        made_up("net", {"psnr": None}, jpeg_quality=40, scale=4),
        published=(figure(), figure(scale=4)),
    )
    tabled = groups_of(tables.markdown(of, command="x"))
    assert {name: [line[1] for line in lines[1:]] for name, lines in tabled.items()} == {
        "Set5 x2": ["30.00", "37.53"],
        "Set5 x2, JPEG 75": ["29.00"],
        "Set5 x2, JPEG 40": ["28.00"],
        "Set5 x4, JPEG 40": ["–"],
    }
    too_small, how, source = tables.footnotes(of)
    assert too_small.startswith("PSNR on Set5 x4, JPEG 40 is of 0 of 1 pictures")
    assert how.startswith("JPEG: the shrunk picture is saved as JPEG of this quality, 4:2:0, ")
    assert source.startswith("[vdsr]")
    lines = list(csv.DictReader(io.StringIO(tables.comma_separated(of))))
    assert list(lines[0])[:4] == ["set", "scale", "jpeg_quality", "model"]
    found = [(line["model"], line["jpeg_quality"], line["psnr"]) for line in lines]
    assert found == [
        *(("net", "", "30.0"), ("VDSR", "", "37.53")),
        *(("net", "75", "29.0"), ("net", "40", "28.0"), ("net", "40", "")),
    ]
    results = json.loads(tables.as_json(of, command="x"))["results"]
    assert [result.get("jpeg_quality") for result in results] == [None, 75, 40, 40]


HOSTILE = "a|b\n**c** `d` <script>alert(1)</script> [e](http://f) \\| _g_ h_i"


def test_hostile_names_in_markdown() -> None:
    of = report(
        made_up(HOSTILE, {"psnr": 30.0}, dataset=HOSTILE, notes=(HOSTILE,)),
        published=(figure(model=HOSTILE, dataset=HOSTILE),),
    )
    text = tables.markdown(of, command=f"waifu4x bench '{HOSTILE}'")
    # Whatever means something is behind a backslash, and the rest is as it was.
    called, *lines = text.splitlines()
    assert called.count("`") == 2
    bare = [re.sub(r"\\.", "", line) for line in lines]
    assert not re.search("[<>`]", "".join(bare))
    assert not re.search(r"[|*\[\]]", "".join(line for line in bare if line[:1] in ("#", "-")))
    ((heading, (_, mine, theirs)),) = groups_of(text).items()
    assert re.sub(r"\\(.)", r"\1", heading) == " ".join(HOSTILE.split()) + " x2"
    assert re.sub(r"\\(.)", r"\1", mine[0]) == " ".join(HOSTILE.split())
    assert mine[1] == "30.00"
    assert theirs[0].endswith("[[vdsr]](https://a.org/vdsr)")
    assert r"\_g\_ h_i" in mine[0]


# CSV.


def test_csv(two_sets: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(tables.comma_separated(two_sets))))
    assert [(each["set"], each["scale"], each["model"]) for each in lines] == [
        *(("Set5", "2", "bicubic"), ("Set5", "2", "net"), ("Set5", "2", "VDSR")),
        *(("Set5", "4", "bicubic"), ("Set5", "4", "net"), ("Set5", "4", "A+")),
        ("flat", "2", "bicubic"),
    ]
    assert lines[1] == {
        "set": "Set5",
        "scale": "2",
        "model": "net",
        "source": "",
        "protocol": "rgb8",
        "device": "cpu",
        "precision": "fp32",
        "engine": "numpy",
        "psnr": repr((33.0 + 32.011) / 2),  # in full
        "gmsd": "0.05",
        "seconds_per_megapixel": "0.5",
        "peak_memory_bytes": str(200 * 2**20),
        "parameters": "1517571",
        "multiply_adds_hd": "146100000000.0",
    }
    assert lines[0]["parameters"] == lines[0]["peak_memory_bytes"] == ""
    published = lines[2]
    assert (published["source"], published["psnr"]) == ("https://a.org/vdsr", "37.53")
    assert {published[key] for key in ("gmsd", "device", "protocol", "engine")} == {""}
    assert float(lines[-1]["psnr"]) == math.inf


def test_hostile_names_in_csv() -> None:
    name = 'a,"b"\nc;d'
    of = report(made_up(name, {"psnr": None}, dataset=name))
    (line,) = csv.DictReader(io.StringIO(tables.comma_separated(of)))
    assert (line["model"], line["set"], line["psnr"]) == (name, name, "")


# JSON.


def test_json(two_sets: Report) -> None:
    text = tables.as_json(two_sets, command="waifu4x bench x")
    whole = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (whole["waifu4x"], whole["command"]) == (__version__, "waifu4x bench x")
    assert [column["key"] for column in whole["columns"]] == ["psnr", "gmsd"]
    assert whole["columns"][1] == {
        "key": "gmsd",
        "title": "GMSD",
        "digits": 4,
        "unit": "",
        "is_lower_better": True,
    }
    assert len(whole["results"]) == 5
    assert whole["results"][1] == {
        "model": "net",
        "dataset": "Set5",
        "scale": 2,
        "protocol": "rgb8",
        "device": "cpu",
        "precision": "fp32",
        "engine": "numpy",
        "notes": [],
        "seconds_per_megapixel": 0.5,
        "parameters": 1517571,
        "multiply_adds_hd": 146.1e9,
        "peak_memory_bytes": 200 * 2**20,
        "means": {"psnr": (33.0 + 32.011) / 2, "gmsd": 0.05},
        "pictures": [
            {
                "name": "p0",
                "time_s": 0.5,
                "megapixels": 1.0,
                "values": {"psnr": 33.0, "gmsd": 0.05},
            },
            {
                "name": "p1",
                "time_s": 0.5,
                "megapixels": 1.0,
                "values": {"psnr": 32.011, "gmsd": None},
            },
        ],
    }
    assert whole["results"][3]["notes"] == ["net is for x2"]
    # There is no infinity in JSON.
    assert whole["results"][4]["means"] == {"psnr": None, "gmsd": 0.0}
    assert whole["results"][4]["pictures"][0]["values"]["psnr"] is None
    assert [figure["source"]["name"] for figure in whole["published"]] == [
        *("vdsr", "edsr", "vdsr", "vdsr"),
    ]
    assert text.endswith("}\n")
