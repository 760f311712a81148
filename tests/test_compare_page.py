"""The page: one file that asks for nothing, and works in a browser as people use one."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from PIL import Image
from test_compare_grid import comparison, found_at

from waifu4x.compare import page, subjects
from waifu4x.compare.results import Comparison
from waifu4x.compare.subjects import Wish
from waifu4x.errors import PictureWriteError, UsageError
from waifu4x.pictures import Picture

EVIL = '<script>alert(1)</script> & "quotes" \' </script><!-- $title ${script}'


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script" and self.lasttag == "script":
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def pixels_of(source: str) -> np.ndarray:
    kind, _, data = source.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_page_is_whole_and_asks_nothing_of_the_network() -> None:
    text = page.build([comparison(name=EVIL), comparison(name="bb.png")])
    elements = Elements(text)
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), tag
        # Neither is needed, and the policy forbids both.
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|https?:", text)
    (policy,) = [m["content"] for m in elements.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert text.count("sha256-") == 2


def test_names_are_escaped_everywhere() -> None:
    one = comparison(name=EVIL)
    evil = dataclasses.replace(one.results[1], model=EVIL)
    text = page.build([dataclasses.replace(one, results=(one.results[0], evil))])
    assert text.count("<script") == 2
    assert text.count("<!--") == 0
    data = json.loads(Elements(text).scripts[0])
    assert [view["name"] for view in data[0]["views"]] == ["input", "bicubic", EVIL, "original"]
    assert data[0]["name"] == EVIL


def test_pictures_are_in_it_without_loss() -> None:
    shown = comparison(size=(12, 10))
    images = Elements(page.build([shown])).all("img")
    assert shown.truth is not None
    expected = [shown.lr, *(r.pixels for r in shown.results), shown.truth]
    for image, pixels in zip(images, expected, strict=True):
        np.testing.assert_array_equal(pixels_of(image["src"]), pixels)
        # The input is as large as the results without a pixel more.
        assert (image["width"], image["height"]) == ("48", "40")


def test_figures_are_in_a_table_and_the_best_is_marked() -> None:
    text = page.build([comparison(models=1)])
    assert text.count('<td class="best">') == 2
    assert '<td class="best">21.00</td>' in text
    unmeasured = page.build([comparison(models=1, truth=False)])
    assert "PSNR" not in unmeasured.partition("<table>")[2].partition("</table>")[0]


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    large = Picture(pixels=np.zeros((1000, 1000, 3), dtype=np.uint8))
    subject = subjects.prepare(large, "a.png", wish=Wish(crop="all"))
    page.check([subject], 2)
    with pytest.raises(UsageError, match="would hold 49 million pixels, and the limit is 40"):
        page.check([subject], 3)
    assert page.region_px(1, 3, scale=4) == 384 * 288
    assert page.region_px(10, 12, scale=4) == 40_000_000 // (10 * (12 * 16 + 1))
    with pytest.raises(UsageError, match="nothing to make"):
        page.build([])
    monkeypatch.setattr(page, "MAX_PIXELS", 1000)
    with pytest.raises(UsageError, match="limit"):
        page.write([comparison()], tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PictureWriteError):
        page.write([comparison(size=(4, 4))], tmp_path / "missing" / "a.html")


# -------------------------------------------------------------------------------------- in Chromium

READY = 'document.querySelector("#slider")?.ariaBusy === "false"'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    if chromium.PATH is None:
        pytest.skip("needs Chromium")
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def shown() -> list[Comparison]:
    return [comparison(name="a.png"), comparison(name="bb.png", size=(30, 50), models=1)]


@pytest.fixture
def opened(
    browser: chromium.Browser, shown: list[Comparison], tmp_path: Path
) -> Iterator[chromium.Browser]:
    """The page of `shown`, on a desktop; whatever is done with it, nothing is complained of."""
    page.write(shown, tmp_path / "a page #1.html")
    browser.events.clear()
    browser.look(width_px=900, height_px=700)
    browser.open(tmp_path / "a page #1.html", ready=READY)
    browser.settled()
    yield browser
    assert browser.complaints() == []


def canvas(browser: chromium.Browser, number: int = 0) -> np.ndarray:
    """The pixels of the canvas of that number on the page: (H, W, 3)."""
    width, height, data = browser.value(
        f"""(() => {{
          const c = document.querySelectorAll("canvas")[{number}];
          const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
          let text = "";
          for (let n = 0; n < data.length; n += 32768)
            text += String.fromCharCode(...data.subarray(n, n + 32768));
          return [c.width, c.height, btoa(text)];
        }})()"""
    )
    rgba = np.frombuffer(base64.b64decode(data), dtype=np.uint8)
    return rgba.reshape(height, width, 4)[..., :3]


def text_of(browser: chromium.Browser, selector: str) -> str:
    return browser.value(f"document.querySelector({json.dumps(selector)}).textContent")


def tags(browser: chromium.Browser) -> tuple[str, str]:
    return text_of(browser, "#tag-a"), text_of(browser, "#tag-b")


def split(browser: chromium.Browser) -> int:
    return int(browser.value('document.querySelector("#divider").ariaValueNow'))


def test_one_side_is_one_picture_and_the_other_the_other(
    opened: chromium.Browser, shown: list[Comparison]
) -> None:
    assert tags(opened) == ("bicubic", "model-1")
    assert text_of(opened, "#zoom") == "200\u00a0%"
    seen = canvas(opened)
    first, second = (shown[0].results[n].pixels.repeat(2, 0).repeat(2, 1) for n in (0, 1))
    # 240x180 at twice the size, in the middle; what is left of the divider is of the first.
    # JavaScript rounds halves up.
    left, top = (seen.shape[1] + 1) // 2 - 240, (seen.shape[0] + 1) // 2 - 180
    part = seen[top : top + 360, left : left + 480]
    at = (seen.shape[1] + 1) // 2 - left
    np.testing.assert_array_equal(part[:, :at], first[:, :at])
    np.testing.assert_array_equal(part[:, at:], second[:, at:])


def test_the_divider_is_dragged(opened: chromium.Browser, shown: list[Comparison]) -> None:
    x, y = opened.middle_of("#divider")
    opened.drag((x, y), (300, 0))
    assert split(opened) > 80
    large = shown[0].results[0].pixels.repeat(2, 0).repeat(2, 1)
    assert len(found_at(canvas(opened), large)) == 1
    opened.drag(opened.middle_of("#divider"), (-2000, 40))
    assert split(opened) == 0
    assert len(found_at(canvas(opened), shown[0].results[1].pixels.repeat(2, 0).repeat(2, 1))) == 1
    # The divider has not moved the picture.
    assert text_of(opened, "#zoom") == "200\u00a0%"


def test_drags_move_and_the_wheel_zooms_where_it_points(
    opened: chromium.Browser, shown: list[Comparison]
) -> None:
    opened.key("f")
    assert split(opened) == 0
    opened.click("#exact")
    pixels = shown[0].results[1].pixels
    ((x, y),) = found_at(canvas(opened), pixels)
    box = opened.value("document.querySelector('#slider').getBoundingClientRect().toJSON()")
    start = (box["x"] + x + 100, box["y"] + y + 90)
    opened.drag(start, (-37, 21))
    assert found_at(canvas(opened), pixels) == [(x - 37, y + 21)]
    # The pixel below the pointer stays below it, whatever the zoom.
    pointed = canvas(opened)[y + 60, x + 80]
    opened.mouse("mouseWheel", box["x"] + x + 80.5, box["y"] + y + 60.5, deltaX=0, deltaY=-120)
    opened.wait('document.querySelector("#zoom").textContent.startsWith("200")')
    opened.settled()
    np.testing.assert_array_equal(canvas(opened)[y + 60, x + 80], pointed)
    opened.click("#fit")
    large = pixels.repeat(2, 0).repeat(2, 1)
    assert len(found_at(canvas(opened), large)) == 1


def test_any_two_are_chosen_by_keys_and_menus(opened: chromium.Browser) -> None:
    opened.key("5", code="Digit5")
    assert tags(opened) == ("bicubic", "original")
    opened.key("!", code="Digit1", shift=True)
    assert tags(opened) == ("input", "original")
    opened.key("x")
    assert tags(opened) == ("original", "input")
    opened.click("#swap")
    assert tags(opened) == ("input", "original")
    opened.value(
        """(() => { const s = document.querySelector("#b"); s.value = "3";
        s.dispatchEvent(new Event("change")); })()"""
    )
    assert tags(opened) == ("input", "model-2")
    opened.key("9", code="Digit9")
    assert tags(opened) == ("input", "model-2")


def test_the_input_is_shown_by_repeated_pixels(
    opened: chromium.Browser, shown: list[Comparison]
) -> None:
    opened.key("1", code="Digit1")
    opened.key("f")
    assert len(found_at(canvas(opened), shown[0].lr.repeat(8, 0).repeat(8, 1))) == 1


def test_the_divider_and_the_picture_are_moved_by_arrows(opened: chromium.Browser) -> None:
    opened.value('document.querySelector("#divider").focus()')
    opened.key("ArrowRight")
    opened.key("ArrowRight", shift=True)
    assert split(opened) == 62
    opened.key("Home")
    assert split(opened) == 0
    before = canvas(opened)
    opened.value('document.querySelector("#slider").focus()')
    opened.key("ArrowRight")
    assert split(opened) == 0
    assert not np.array_equal(canvas(opened), before)
    zooms = []
    for key in ("+", "-", "e", "0"):
        opened.key(key)
        zooms.append(text_of(opened, "#zoom").removesuffix("\u00a0%"))
    assert zooms == ["300", "200", "100", "200"]


def test_all_are_side_by_side_and_move_together(
    opened: chromium.Browser, shown: list[Comparison]
) -> None:
    opened.click("#as-sides")
    opened.key("e")
    opened.drag(opened.middle_of("#sides figure:nth-child(2) .stage"), (-30, 10))
    assert shown[0].truth is not None
    views = [shown[0].lr.repeat(4, 0).repeat(4, 1), *(r.pixels for r in shown[0].results)]
    views.append(shown[0].truth)
    cut = [view[40:120, 60:200] for view in views]
    # The first canvas is the slider's, which is hidden.
    places = [found_at(canvas(opened, n + 1), part) for n, part in enumerate(cut)]
    assert len(places[0]) == 1
    assert places.count(places[0]) == 5
    assert "22.00 dB" in text_of(opened, "#sides figure:nth-child(4) figcaption")
    opened.key("s")
    assert opened.value('document.querySelector("#sides").hidden') is True


def test_other_pictures_keep_the_chosen_models(opened: chromium.Browser) -> None:
    opened.key("2", code="Digit2", shift=True)
    opened.key("5", code="Digit5")
    opened.key("n")
    opened.wait(READY + ' && document.querySelector("#picture").value === "1"')
    assert tags(opened) == ("bicubic", "original")
    visible = [
        not hidden
        for hidden in opened.value(
            '[...document.querySelectorAll(".plain")].map((section) => section.hidden)'
        )
    ]
    assert visible == [False, True]


def is_too_wide(browser: chromium.Browser) -> bool:
    return browser.value("document.documentElement.scrollWidth > window.innerWidth")


def test_on_a_phone(opened: chromium.Browser) -> None:
    opened.look(width_px=390, height_px=844, phone=True)
    opened.settled()
    assert is_too_wide(opened) is False
    x, y = opened.middle_of("#slider")
    before = int(text_of(opened, "#zoom").removesuffix("\u00a0%"))
    opened.touch("touchStart", (x - 30, y + 60), (x + 30, y + 60))
    for reach in (40, 60):
        opened.touch("touchMove", (x - reach, y + 60), (x + reach, y + 60))
    opened.touch("touchEnd")
    opened.settled()
    assert int(text_of(opened, "#zoom").removesuffix("\u00a0%")) == pytest.approx(2 * before, abs=2)
    x, y = opened.middle_of("#divider")
    opened.touch("touchStart", (x, y))
    opened.touch("touchMove", (x - 100, y))
    opened.touch("touchEnd")
    opened.settled()
    assert split(opened) < 30
    opened.click("#as-sides")
    assert is_too_wide(opened) is False
    # Large enough for a finger.
    sides = opened.value(
        """[...document.querySelectorAll("button, select")].filter((e) => e.offsetParent)
        .map((e) => { const b = e.getBoundingClientRect(); return Math.min(b.width, b.height); })"""
    )
    assert min(sides) >= 36


@pytest.mark.parametrize("dark", [False, True])
def test_in_light_and_in_dark(opened: chromium.Browser, dark: bool) -> None:
    opened.look(width_px=900, height_px=700, dark=dark)
    opened.settled()
    shot = np.asarray(Image.open(io.BytesIO(opened.screenshot())).convert("L"))
    assert shot.shape == (700, 900)
    paper = int(shot[-3, 5])
    assert (paper < 40) if dark else (paper > 240)
    # The heading's letters stand out from it.
    heading = shot[:60].astype(int)
    assert np.abs(heading - paper).max() > 150


def test_no_other_script_can_run(browser: chromium.Browser, opened: chromium.Browser) -> None:
    opened.value(
        """(() => { const s = document.createElement("script");
        s.textContent = "document.title = 'taken over'"; document.body.append(s); })()"""
    )
    assert opened.value("document.title") == "a.png, bb.png, compared"
    found = browser.complaints()
    assert len(found) == 1
    assert "Content Security Policy" in found[0]
    browser.events.clear()


def test_without_scripts_all_pictures_are_there(
    browser: chromium.Browser, shown: list[Comparison], tmp_path: Path
) -> None:
    page.write(shown, tmp_path / "a.html")
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(tmp_path / "a.html", ready="document.readyState === 'complete'")
        seen: Any = browser.value(
            "[...document.images].map((i) => i.getBoundingClientRect().width > 50)"
        )
        assert seen == [True] * 9
        assert browser.value('document.querySelector("#viewer").offsetParent') is None
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
