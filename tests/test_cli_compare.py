"""``waifu4x compare``: files in, a grid and more out, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import errors, save
from PIL import Image
from typer.testing import CliRunner

from waifu4x.cli.app import app


def run(*arguments: object) -> Any:
    """The command with one filter beside bicubic: no network is needed to see what it writes."""
    return run_all("-m", "nearest", *arguments)


def run_all(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done


def told(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_grid_beside_the_picture(tmp_path: Path) -> None:
    source = save(tmp_path / "meme.png", size=(30, 20))
    done = run(source)
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meme.png", "meme_compare.png"]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["model", "bicubic", "nearest"]
    assert f"wrote {tmp_path / 'meme_compare.png'}" in done.stderr.replace("\n", "")
    with Image.open(tmp_path / "meme_compare.png") as grid:
        assert grid.mode == "RGB"
        assert grid.width >= 3 * 230


def test_page_and_animation_beside_the_grid(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(20, 20))
    done = run(source, "--html", "--gif", "-o", tmp_path / "out" / "grid.webp", "-s", 2)
    assert done.exit_code == 0, done.stderr
    found = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["grid.gif", "grid.html", "grid.webp"]
    assert found["grid.html"].read_text("utf-8").startswith("<!doctype html>")
    with Image.open(found["grid.gif"]) as film:
        assert getattr(film, "n_frames", 1) == 2
    with Image.open(found["grid.webp"]) as grid:
        # Without loss: the picture's own colours are in it.
        inside = {tuple(c) for c in np.asarray(grid.convert("RGB")).reshape(-1, 3).tolist()}
    with Image.open(source) as small:
        own = {tuple(c) for c in np.asarray(small).reshape(-1, 3).tolist()}
    assert own <= inside


def test_measured_against_the_truth_as_json(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(64, 48))
    rows = told(run(source, "--downscale", 2, "--json"))
    assert [row["model"] for row in rows] == ["bicubic", "nearest"]
    assert {row["scale"] for row in rows} == {2}
    assert all(row["psnr_db"] > 0 and 0 < row["ssim"] < 1 for row in rows)
    assert rows[0]["region"] == [0, 0, 32, 24]
    same = told(run(source, "--reference", source, "--json", "--overwrite", "-s", 2))
    assert same == []


def test_identical_pictures_are_valid_json(tmp_path: Path) -> None:
    small = Image.fromarray(np.full((12, 12, 3), 77, dtype=np.uint8))
    small.save(tmp_path / "a.png")
    small.resize((24, 24)).save(tmp_path / "hr.png")
    done = run(tmp_path / "a.png", "--reference", tmp_path / "hr.png", "--json")
    assert [(row["psnr_db"], row["ssim"]) for row in told(done)] == [(None, 1.0)] * 2


def test_several_pictures_of_which_one_is_none(tmp_path: Path) -> None:
    good = [save(tmp_path / name, size=(20, 20)) for name in ("a.png", "b.png")]
    bad = tmp_path / "c.png"
    bad.write_bytes(b"no picture")
    done = run(*good, bad)
    assert done.exit_code == 3
    assert len(errors(done)) == 1
    assert done.stdout.count("bicubic") == 2
    alone = run(bad, "--overwrite")
    assert (alone.exit_code, len(errors(alone))) == (1, 1)


def test_a_folder_is_its_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, size=(20, 20))
    for _ in range(2):  # the grid of the first run is no picture of the second
        done = run(tmp_path / "in", "--overwrite")
        assert (done.exit_code, done.stdout.count("bicubic")) == (0, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "in_compare.png"]
    (tmp_path / "none").mkdir()
    refused = run(tmp_path / "none")
    assert (refused.exit_code, "no pictures in" in refused.stderr) == (2, True)


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(20, 20))
    cases = {
        "no rectangle": ["--crop", "1,2,3"],
        "reaches beyond": ["--crop", "10,10,20,20"],
        "whole factors": ["-s", "1"],
        "leave -s out": ["-s", "3", "--downscale", "2"],
        "is a .png, .webp or .jpg": ["-o", tmp_path / "a.html"],
        "one of the pictures": ["-o", source, "--overwrite"],
        "one --reference": ["--reference", source, "--reference", source],
        "no colour": ["--background", "blurple"],
        "no model called": ["-m", "neerest"],
    }
    for words, options in cases.items():
        done = run(source, *options)
        assert done.exit_code == 2, (words, done.stderr)
        assert words in done.stderr.replace("\n", " "), done.stderr
        assert len(errors(done)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_existing_files_are_kept_unless_told(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(20, 20))
    target = tmp_path / "a_compare.png"
    target.write_bytes(b"mine")
    done = run(source)
    assert (done.exit_code, target.read_bytes()) == (2, b"mine")
    assert "--overwrite" in done.stderr
    assert run(source, "--overwrite").exit_code == 0
    assert target.read_bytes() != b"mine"


def test_every_model_at_hand_is_run_by_default(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(16, 16))
    models = [row["model"] for row in told(run_all(source, "--json"))]
    assert models[:2] == ["bicubic", "waifu4x-art"]
    # Filters beside bicubic are no models that one chooses between; nothing is downloaded.
    assert not {"nearest", "lanczos", "RealESRGAN_x4plus"} & set(models)


def test_quiet_says_nothing_and_jpeg_is_told(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", size=(16, 16))
    done = run(source, "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    lossy = run(source, "-o", tmp_path / "grid.jpg")
    assert "note: JPEG changes pixels" in lossy.stderr


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    source = save(tmp_path / "a.png", size=(16, 16))
    done = run_all(source, "-m", "waifu4x-clean", "--device", device)
    assert done.exit_code in (1, 2)
    assert len(errors(done)) == 1
