"""``waifu4x info``: what a file holds, and what made it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from waifu4x import __version__
from waifu4x.cli.app import app


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def made(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "a.png")
    assert run("upscale", tmp_path / "a.png", "-m", "nearest", "-s", 3).exit_code == 0
    return tmp_path / "a_nearest_3x.png"


def test_it_says_what_made_a_picture(made: Path) -> None:
    done = run("info", made)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{made}: PNG, 24×18 px, 8-bit colour"
    assert lines[1] == f"  enlarged 3x by waifu4x {__version__}"
    assert lines[2].split() == ["model", "nearest"]


def test_generations_newest_first_and_a_warning(made: Path) -> None:
    again = run("upscale", made, "-m", "bicubic", "-s", 2, "-o", made.with_name("b.png"))
    assert "was already enlarged 3x by waifu4x" in again.stderr
    (facts,) = map(json.loads, run("info", made.with_name("b.png"), "--json").stdout.splitlines())
    assert facts["size"] == [48, 36]
    assert [each["model"] for each in facts["provenance"]] == ["bicubic", "nearest"]
    assert [each["scale"] for each in facts["provenance"]] == [2.0, 3.0]
    assert facts["provenance"][0]["sha256"] is None


def test_the_sha256_of_a_model_is_the_one_of_its_file(made: Path) -> None:
    out = made.with_name("c.png")
    assert run("upscale", made.with_name("a.png"), "-o", out, "--strength", 0.5).exit_code == 0
    (facts,) = map(json.loads, run("info", out, "--json").stdout.splitlines())
    (listed,) = [
        line
        for line in run("models", "show", "waifu4x-clean").stdout.splitlines()
        if "sha256" in line
    ]
    (generation,) = facts["provenance"]
    assert generation["sha256"] in listed
    assert generation["settings"]["strength"] == "0.5"
    assert generation["settings"]["engine"] == "torch"
    lines = [line.split() for line in run("info", out).stdout.splitlines()]
    engine = lines.index(["engine", "torch"])
    assert lines[engine + 1] == ["precision", generation["settings"]["precision"]]


@pytest.mark.parametrize("option", ["--no-provenance", "--strip-metadata"])
def test_pictures_that_say_nothing(made: Path, option: str) -> None:
    out = made.with_name("d.png")
    run("upscale", made.with_name("a.png"), "-m", "nearest", "-o", out, option)
    done = run("info", out)
    assert "does not say" in done.stdout
    assert b"waifu4x" not in out.read_bytes()


def test_animations_and_pages(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name, words in (("a.gif", "2 frames"), ("a.tiff", "2 pages")):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert words in run("info", tmp_path / name).stdout


def test_what_is_no_picture(made: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(io.BytesIO(b"nothing").getvalue())
    alone = run("info", tmp_path / "x.png")
    assert (alone.exit_code, alone.stdout) == (1, "")
    assert alone.stderr.startswith("error: ")
    both = run("info", tmp_path / "x.png", made)
    assert (both.exit_code, both.stdout.count("PNG, 24×18")) == (3, 1)
