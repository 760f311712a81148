"""The report: one page in one file, whatever the run's folder holds."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from waifu4x.errors import TrainError
from waifu4x.pages import nice_ticks
from waifu4x.train.reports import curves, previews, report
from waifu4x.train.reports.curves import Chart, Curve, charts, read_metrics, short
from waifu4x.train.reports.previews import Sample, save_preview

EVIL = '<script>alert(1)</script> & "quotes" \' </script><!--'
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text within each kind."""

    VOID = ("meta", "link", "input", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "stage": "pixel",
        "progress": step / 100,
        "elapsed_s": 60.0 * step,
        "steps_per_s": 2.0,
        "data_share": 0.25,
        "learning_rate": 1e-3,
        "losses": {"l1": 1.0 / step},
        **more,
    }


def note(folder: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metrics.jsonl"


def whole_run(folder: Path) -> None:
    """A run of two stages with everything in its folder, and nasty texts everywhere."""
    gan = {"losses": {"l1": 0.01, EVIL: 0.5, "d": 0.7}, "d_real": 0.8, "d_fake": 0.2}
    note(
        folder,
        *(row(step, psnr_db=20.0 + step / 10, ssim=0.8) for step in range(10, 60, 10)),
        *(row(step, stage=EVIL, **gan) for step in range(60, 110, 10)),
    )
    rng = np.random.default_rng(0)
    for step in (0, 50, 100):
        arrays = [rng.integers(0, 256, (8 * s, 6 * s, 3), dtype=np.uint8) for s in (1, 2, 2)]
        save_preview(
            folder, step, [Sample(name=EVIL, lr=arrays[0], output=arrays[1], truth=arrays[2])]
        )
    previews.write_path(previews.learning_path(folder), folder)
    (folder / "recipe.toml").write_text(f"# {EVIL}\n[generator]\nscale = 2\n")
    facts = {"name": EVIL, "scale": "2", "architecture": "rrdbnet", "pictures": "800", EVIL: EVIL}
    facts["recipe"] = '{"as": "one line"}'
    (folder / "facts.json").write_text(json.dumps(facts))


def data_of(page: Page) -> dict[str, Any]:
    scripts = page.texts["script"]
    return json.loads(scripts[0])


def test_the_page_is_whole_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    whole_run(tmp_path)
    text = report.build(tmp_path)
    page = Page(text)
    assert text.count("<script") == 2
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert report.write(tmp_path).read_text("utf-8") == text
    assert (tmp_path / "report.html").is_file()


def test_everything_is_told_and_escaped(tmp_path: Path) -> None:
    whole_run(tmp_path)
    text = report.build(tmp_path)
    page = Page(text)
    assert "alert(1)</script>" not in text
    assert page.texts["title"] == [f"Training of {EVIL}"]
    assert page.texts["h1"] == [f"Training of {EVIL}"]
    headings = page.texts["h3"]
    wanted = [
        *("Loss: l1", f"Loss: {EVIL}", "Loss: discriminator", "PSNR", "SSIM", "Learning rate"),
        *("The discriminator's verdict", "Steps per second", "Time spent waiting for data"),
    ]
    assert headings[: len(wanted)] == wanted
    assert f"# {EVIL}\n[generator]\nscale = 2\n" in page.texts["code"]
    assert page.texts["td"].count(EVIL) == 2
    assert "one line" not in text
    (tmp_path / "recipe.toml").unlink()
    assert "one line" in report.build(tmp_path)
    assert {"100", "100 min", "25.00 dB", "0.8000"} <= set(page.texts["dd"])
    commands = "\n".join(page.texts["code"])
    assert "waifu4x bench Set5/ -s 2 -m " in commands
    assert "waifu4x models blend " in commands
    assert any("ESRGAN and Real-ESRGAN" in each for each in page.texts["p"])
    assert any(EVIL in each and "step 60" in each for each in page.texts["p"])
    assert not any("Not finished" in each for each in page.texts["p"])


def test_the_page_can_be_used_by_keyboard_and_ear(tmp_path: Path) -> None:
    whole_run(tmp_path)
    page = Page(report.build(tmp_path))
    assert page.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {label["for"] for label in page.all("label")}
    assert {each["id"] for each in page.all("input")} == labelled == {"step", "preview"}
    assert all(each["type"] == "range" for each in page.all("input"))
    assert all(img["alt"] for img in page.all("img"))
    drawn = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawn) == 9
    assert all(svg["aria-label"] for svg in drawn)
    assert "goes from 20.00 dB" not in str(drawn)
    assert "PSNR: psnr_db goes from 21.00 dB at step 10 to 25.00 dB at step 50" in [
        svg["aria-label"] for svg in drawn
    ]
    # What scrolls sideways can be reached; what moves is closed at first.
    assert all("tabindex" in pre for pre in page.all("pre"))
    assert all("open" not in fold for fold in page.all("details"))


def test_the_previews_of_the_page_are_the_outputs(tmp_path: Path) -> None:
    whole_run(tmp_path)
    page = Page(report.build(tmp_path))
    shown = data_of(page)["previews"]
    assert shown["steps"] == [0, 50, 100]
    assert len({str(outputs) for outputs in shown["outputs"]}) == 3
    (output,) = [img for img in page.all("img") if img.get("class") == "output"]
    assert output["src"] == shown["outputs"][-1][0]
    assert (output["width"], output["height"]) == ("12", "16")
    assert [*page.texts["figcaption"]][-4:] == ["input", "bicubic", "output", "truth"]


def test_too_many_previews_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(tmp_path, row(1))
    lr = np.zeros((4, 4, 3), dtype=np.uint8)
    for step in range(9):
        save_preview(tmp_path, step, [Sample(name="x", lr=lr, output=lr.repeat(2, 0).repeat(2, 1))])
    monkeypatch.setattr(report, "MAX_PREVIEWS", 3)
    page = Page(report.build(tmp_path))
    assert data_of(page)["previews"]["steps"] == [0, 4, 8]
    assert any("3 of 9" in each for each in page.texts["p"])
    monkeypatch.setattr(report, "MAX_PREVIEW_BYTES", 1)
    assert data_of(Page(report.build(tmp_path)))["previews"]["steps"] == [0, 8]
    other = np.zeros((8, 8, 3), dtype=np.uint8)
    save_preview(tmp_path, 0, [Sample(name="x", lr=other, output=other)])
    save_preview(tmp_path, 8, [Sample(name="x", lr=lr, output=lr)])
    with pytest.raises(TrainError, match="other pictures"):
        report.build(tmp_path)


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    folder = tmp_path / "owls"
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(b"")
    page = Page(report.build(folder))
    assert page.texts["h1"] == ["Training of owls"]
    told = "\n".join(page.texts["p"])
    for missing in ("facts.json", "recipe.toml", "previews"):
        assert f"no {missing}" in told
    assert "Nothing was measured yet" in told
    note(folder, row(7))
    page = Page(report.build(folder))
    assert any("Not finished: 7 %" in each for each in page.texts["p"])
    # A single point is a dot in the middle of its chart.
    assert [dot["cx"] for dot in page.all("circle")] == ["350.0"] * 4


def test_runs_that_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"metrics\.jsonl"):
        report.build(tmp_path)
    note(tmp_path, row(1))
    for content in ("[1]", "{", '"x"'):
        (tmp_path / "facts.json").write_text(content)
        with pytest.raises(TrainError, match=r"facts\.json") as raised:
            report.build(tmp_path)
        assert "\n" not in str(raised.value)
    (tmp_path / "facts.json").unlink()
    (tmp_path / "recipe.toml").write_bytes(b"\xff")
    with pytest.raises(TrainError, match=r"recipe\.toml"):
        report.build(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(TrainError, match="cannot write"):
        report.write(tmp_path)


def test_torn_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    torn = json.dumps(row(20))[:-9]
    # The second is what a resumed run appends to the torn line of the one before.
    path = note(
        tmp_path, row(10), torn + json.dumps(row(20)), "[]", '{"step": "x"}', "", row(30), torn
    )
    metrics = read_metrics(path)
    assert [each["step"] for each in metrics.rows] == [10, 30]
    assert metrics.unread == 4
    assert any("left out: 4" in each for each in Page(report.build(tmp_path)).texts["p"])


def test_a_resumed_run_replaces_the_future_that_never_came(tmp_path: Path) -> None:
    path = note(tmp_path, row(10), row(20, ssim=0.1), row(30), row(20, ssim=0.2), row(25), row(35))
    rows = read_metrics(path).rows
    assert [each["step"] for each in rows] == [10, 20, 25, 35]
    assert rows[1]["ssim"] == 0.2


def test_what_is_no_finite_number_is_no_point(tmp_path: Path) -> None:
    path = note(
        tmp_path,
        row(10, losses={"l1": math.nan, "vgg": 1.0}, psnr_db=None, ssim=True, d_real="high"),
        row(20, losses=None, learning_rate={"g": 1e-4, "d": 2e-4}, grad_norm=3),
    )
    made = {chart.title: [c.name for c in chart.curves] for chart in charts(read_metrics(path))}
    assert made == {
        "Loss: vgg": ["vgg"],
        "Learning rate": ["learning_rate", "g", "d"],
        "Steps per second": ["steps_per_s"],
        "Time spent waiting for data": ["data_share"],
        "grad_norm": ["grad_norm"],
    }


def chart_of(*values: float, title: str = "x", log: bool = False) -> Chart:
    points = tuple(enumerate(values))
    return Chart(title=title, curves=(Curve(name="x", points=points),), may_be_log=log)


def polyline(chart: Chart) -> list[tuple[float, float]]:
    svg, _ = curves.draw(chart, span=(0, len(chart.curves[0].points) - 1), stages=())
    found = re.search(r'<polyline class="c0" points="([^"]+)"', svg)
    assert found
    return [(float(x), float(y)) for x, y in (p.split(",") for p in found[1].split())]


def test_a_curve_is_drawn_to_scale() -> None:
    (x0, y0), (x1, y1), (x2, y2) = polyline(chart_of(1.0, 3.0, 2.0))
    assert (x0, x1, x2) == (curves.LEFT, (curves.LEFT + curves.RIGHT) / 2, curves.RIGHT)
    assert curves.TOP < y1 < y2 < y0 < curves.BOTTOM
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.11)


def test_losses_that_fall_far_have_a_logarithmic_axis() -> None:
    falling = chart_of(1.0, 0.1, 0.01, log=True)
    assert falling.is_log
    ys = [y for _, y in polyline(falling)]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)
    assert not chart_of(1.0, 0.1, log=True).is_log
    assert not chart_of(1.0, 0.1, 0.01).is_log
    assert not chart_of(1.0, 0.0, -1.0, log=True).is_log
    # From 2e-3 to 9e-2 there is one power of ten alone: other round numbers help out.
    svg, _ = curves.draw(chart_of(0.0021, 0.091, log=True), span=(0, 1), stages=())
    assert svg.count('class="grid"') >= 3


def test_long_curves_are_drawn_as_means_within_their_extremes() -> None:
    values = [float(n % 2) for n in range(4800)]
    (curve,) = chart_of(*values).curves
    thinned = curve.thinned()
    assert len(thinned) == curves.MAX_POINTS
    assert thinned[0] == (19, 0.5, 0.0, 1.0)
    assert thinned[-1][0] == 4799
    svg, data = curves.draw(chart_of(*values), span=(0, 4799), stages=())
    assert svg.count("<polygon") == 1
    assert [len(data["curves"][0][key]) for key in ("steps", "x", "y", "words")] == [240] * 4
    assert "<polygon" not in curves.draw(chart_of(1.0, 2.0), span=(0, 1), stages=())[0]


@pytest.mark.parametrize("values", [(0.0,), (5.0, 5.0), (-3.0, -3.0), (1e300, -1e300), (1e-300,)])
def test_odd_values_are_drawn(values: tuple[float, ...]) -> None:
    for x, y in polyline(chart_of(*values)):
        assert curves.LEFT <= x <= curves.RIGHT
        assert curves.TOP <= y <= curves.BOTTOM


def test_round_numbers() -> None:
    assert nice_ticks(0, 20_000) == [0, 5000, 10_000, 15_000, 20_000]
    assert nice_ticks(27.61, 28.9) == [27.75, 28.0, 28.25, 28.5, 28.75]
    assert nice_ticks(3, 3) == [3]
    assert [short(n) for n in (0, 950, 12_000, 1_500_000)] == ["0", "950", "12k", "1.5M"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_sliders_work_in_a_browser(tmp_path: Path) -> None:
    whole_run(tmp_path)
    text = report.build(tmp_path)
    # What the page does is told by scripts that the test puts into it.
    before = "<script>window.onerror = (words) => { document.title = words; };</script>"
    after = """<script>
      const turn = (name, position) => {
        const input = document.getElementById(name);
        input.value = position;
        input.dispatchEvent(new Event("input"));
        return document.getElementById(name + "-told").textContent;
      };
      const shown = () => document.querySelector("img.output").src.length > 100
        && document.querySelector("img.output").src;
      const values = () => [...document.querySelectorAll(".value")].map((v) => v.textContent);
      const told = { begin: values(), output: shown() };
      told.hidden = document.querySelectorAll("[hidden]").length;
      told.step = turn("step", 0);
      told.values = values();
      told.preview = turn("preview", 0);
      told.first = shown();
      told.alt = document.querySelector("img.output").alt;
      told.wide = document.documentElement.scrollWidth > window.innerWidth;
      const pre = document.createElement("pre");
      pre.id = "told";
      pre.textContent = JSON.stringify(told);
      document.body.append(pre);
    </script>"""
    text = text.replace("<title>", before + "<title>", 1).replace("</body>", after + "</body>", 1)
    (tmp_path / "tested.html").write_text(text, "utf-8")
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--window-size=390,800", f"--user-data-dir={tmp_path / 'browser'}"),
            (tmp_path / "tested.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    page = Page(done.stdout)
    assert page.texts["title"] == [f"Training of {EVIL}"]
    told = json.loads(page.texts["pre"][-1])
    outputs = data_of(Page(text.replace(before, "")))["previews"]["outputs"]
    assert (told["output"], told["first"]) == (outputs[-1][0], outputs[0][0])
    assert told["hidden"] == 0
    assert (told["step"], told["preview"]) == ("step 10", "step 0")
    assert told["alt"].endswith("the output at step 0")
    assert (told["begin"][0], told["values"][0]) == ("0.01", "0.1")
    assert told["wide"] is False
