"""``waifu4x train check``: what is wrong with a folder, and what a degradation makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from waifu4x import pictures
from waifu4x.cli.app import app


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (280, 270, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    Image.fromarray(pixels).save(place / "again.png")
    Image.fromarray(pixels[:40, :40]).save(place / "small.png")
    (place / "broken.png").write_bytes(b"\x89PNG nothing")
    return place


def test_it_names_what_is_wrong_and_draws_a_sheet(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = run("check", folder, "--recipe", "realesrgan", "--out", sheet)
    assert done.exit_code == 0
    assert "6 pictures, 4 of them usable" in done.stdout
    for words in ("unreadable: 1", "small: 1", "duplicate: 1", "broken.png", "advice: "):
        assert words in done.stdout
    assert "'real'" in done.stderr
    assert pictures.read(sheet).width_px > 400


def test_the_sheet_shows_the_recipes_own_degradation(folder: Path, tmp_path: Path) -> None:
    sheets = []
    for recipe in ("srgan", "realesrgan"):
        sheet = tmp_path / f"{recipe}.png"
        assert run("check", folder, "--recipe", recipe, "--out", sheet).exit_code == 0
        sheets.append(pictures.read(sheet).pixels)
    assert sheets[0].shape == sheets[1].shape
    half = sheets[0].shape[0] // 2
    assert (sheets[0][half:] != sheets[1][half:]).any()


def test_check_without_a_folder_or_with_none(tmp_path: Path) -> None:
    alone = run("check")
    assert (alone.exit_code, "give the folders" in alone.stderr) == (2, True)
    assert run("check", tmp_path / "missing").exit_code == 1


def test_a_folder_called_check_is_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "check")
    done = run("check", "--recipe", "no-such-recipe")
    assert (done.exit_code, "no recipe" in done.stderr) == (2, True)
