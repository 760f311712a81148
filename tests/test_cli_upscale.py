"""``waifu4x upscale`` through the real command line, with filters and with a tiny network."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from waifu4x import pictures
from waifu4x.batch import outputs
from waifu4x.cli import upscale_run
from waifu4x.cli.app import app
from waifu4x.codecs.formats import FORMATS
from waifu4x.engines.torch import TorchEngine
from waifu4x.model_files import checkpoints
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 16, 12


def run(*arguments: object, input: bytes | None = None) -> Any:
    done = CliRunner().invoke(app, ["upscale", *map(str, arguments)], input=input)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def nearest(*arguments: object, input: bytes | None = None) -> Any:
    return run("-m", "nearest", *arguments, input=input)


def refused(done: Any, *, code: int) -> str:
    """The one line that says why; nothing went to stdout."""
    assert (done.exit_code, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def noise(*, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "RGB") -> Any:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values, mode)


def png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that holds one picture, a.png."""
    folder = tmp_path / "place"
    folder.mkdir()
    noise().save(folder / "a.png")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of three convolutions, x4, in a file of its own."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    network = SRVGGNetCompact(SRVGGNetCompactConfig(channels=8, convs=1))
    checkpoints.save(network, path, metadata={"licence": "CC0-1.0"})
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per batch that the network is shown."""
    made: list[int] = []
    run_network = TorchEngine._forward

    def count(engine: TorchEngine, batch: Any) -> Any:
        made.append(len(batch))
        return run_network(engine, batch)

    monkeypatch.setattr(TorchEngine, "_forward", count)
    return made


# Where outputs go.


def test_default_name_beside_the_input(place: Path) -> None:
    done = nearest(place / "a.png")
    assert (done.exit_code, done.stdout) == (0, "")
    assert names(place) == ["a.png", "a_nearest_4x.png"]
    assert size_of(place / "a_nearest_4x.png") == (4 * WIDTH, 4 * HEIGHT)
    assert f"{WIDTH}×{HEIGHT} → {place / 'a_nearest_4x.png'} 64×48" in done.stderr


def test_the_picture_is_the_right_one(place: Path) -> None:
    nearest(place / "a.png", "-s", 2)
    before, after = (pictures.read(place / n).pixels for n in ("a.png", "a_nearest_2x.png"))
    np.testing.assert_array_equal(after, before.repeat(2, axis=0).repeat(2, axis=1))


def test_a_network_from_a_file(place: Path, tiny: Path, calls: list[int]) -> None:
    done = run(place / "a.png", "-m", tiny, "-v", "--precision", "fp32")
    assert done.exit_code == 0
    assert size_of(place / "a_tiny_4x.png") == (4 * WIDTH, 4 * HEIGHT)
    assert calls == [1]
    assert "tiny on cpu in fp32" in done.stderr


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPEG", ".webp", ".bmp", ".tiff"])
def test_the_format_and_its_suffix_are_the_inputs(tmp_path: Path, suffix: str) -> None:
    noise().save(tmp_path / f"a{suffix}")
    assert nearest(tmp_path / f"a{suffix}").exit_code == 0
    out = tmp_path / f"a_nearest_4x{suffix}"
    assert pictures.read(out).format == pictures.read(tmp_path / f"a{suffix}").format


@pytest.fixture
def no_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    """GIF stands for a format that can be read and not written."""
    monkeypatch.setitem(FORMATS, "GIF", dataclasses.replace(FORMATS["GIF"], writable=False))


@pytest.mark.usefixtures("no_gif")
def test_content_decides_the_format_and_the_suffix_follows(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png", "JPEG")
    noise().save(tmp_path / "b.gif")
    assert nearest(tmp_path / "a.png").exit_code == 0
    assert nearest(tmp_path / "b.gif").exit_code == 0
    assert names(tmp_path) == ["a.png", "a_nearest_4x.jpg", "b.gif", "b_nearest_4x.png"]


def test_output_file_folder_and_new_folder(place: Path, tmp_path: Path) -> None:
    assert nearest(place / "a.png", "-o", tmp_path / "b.jpg").exit_code == 0
    assert pictures.read(tmp_path / "b.jpg").format == "JPEG"
    (tmp_path / "old").mkdir()
    assert nearest(place / "a.png", "-o", tmp_path / "old").exit_code == 0
    assert nearest(place / "a.png", "-o", f"{tmp_path}/new/deep/").exit_code == 0
    assert names(tmp_path / "old") == names(tmp_path / "new" / "deep") == ["a.png"]


@pytest.mark.parametrize("end", ["", "/"])
def test_several_inputs_into_a_new_folder(place: Path, tmp_path: Path, end: str) -> None:
    noise(seed=1).save(place / "b.jpg")
    done = nearest(place / "a.png", "-i", place / "b.jpg", "-o", f"{tmp_path}/new{end}")
    assert done.exit_code == 0
    assert names(tmp_path / "new") == [".waifu4x", "a.png", "b.jpg"]


def test_several_inputs_and_a_file_are_refused_at_once(place: Path, tmp_path: Path) -> None:
    noise().save(place / "b.png")
    (tmp_path / "c.png").write_bytes(b"precious")
    told = refused(nearest(place / "a.png", place / "b.png", "-o", tmp_path / "c.png"), code=2)
    assert "give a folder" in told
    assert (tmp_path / "c.png").read_bytes() == b"precious"


def test_inputs_by_i_alone(place: Path) -> None:
    assert nearest("-i", place / "a.png", "-s", 3).exit_code == 0
    assert "a_nearest_3x.png" in names(place)
    assert "at least one picture" in refused(nearest(), code=2)


# How large.


@pytest.mark.parametrize(
    ("options", "size", "label"),
    [
        (["-s", "2.5"], (40, 30), "2.5x"),
        (["--scale", "1"], (16, 12), "1x"),
        (["-s", "0.5"], (8, 6), "0.5x"),
        (["--width", "100"], (100, 75), "100x75"),
        (["--height", "30"], (40, 30), "40x30"),
        (["--long-edge", "32"], (32, 24), "32x24"),
        (["--short-edge", "36"], (48, 36), "48x36"),
        (["--fit", "50x60"], (50, 38), "50x38"),
        (["--fit", "48"], (48, 36), "48x36"),
        (["--min", "20x30"], (40, 30), "40x30"),
        (["--min", "5x5"], (16, 12), "16x12"),
    ],
)
def test_every_size_option(
    place: Path, tiny: Path, options: list[str], size: tuple[int, int], label: str
) -> None:
    for model, name in (("nearest", "nearest"), (str(tiny), "tiny")):
        assert run(place / "a.png", "-m", model, *options).exit_code == 0
        assert size_of(place / f"a_{name}_{label}.png") == size


@pytest.mark.parametrize(
    "options",
    [
        *(["-s", text] for text in ("0", "-1", "nan", "inf", "1e308")),
        ["--width", "0"],
        ["--fit", "10x"],
        ["--fit", "axb"],
        ["-s", "2", "--width", "10"],
        ["--width", "10", "--height", "10"],
    ],
)
def test_sizes_that_make_no_sense(place: Path, options: list[str]) -> None:
    refused(nearest(place / "a.png", *options), code=2)
    assert names(place) == ["a.png"]


# What is asked for beside.


@pytest.mark.parametrize("level", ["-1", "0", "1", "2", "3"])
def test_noise_levels_of_other_tools_are_explained(place: Path, level: str) -> None:
    told = refused(run(place / "a.png", "-n", level), code=2)
    assert "-n names the model here" in told


def test_n_is_an_alias_of_m(place: Path) -> None:
    assert run(place / "a.png", "-n", "bicubic").exit_code == 0
    assert "a_bicubic_4x.png" in names(place)


def test_format_and_quality(place: Path) -> None:
    sizes = []
    for quality in (5, 95):
        nearest(place / "a.png", "-f", "jpg", "-q", quality, "--overwrite")
        sizes.append((place / "a_nearest_4x.jpg").stat().st_size)
    assert sizes[0] < sizes[1]
    assert nearest(place / "a.png", "-f", "WebP", "--lossless").exit_code == 0
    assert nearest(place / "a.png").exit_code == 0
    webp, other = (pictures.read(place / f"a_nearest_4x.{s}").pixels for s in ("webp", "png"))
    np.testing.assert_array_equal(webp, other)


def test_transparency_needs_a_background_in_jpeg(place: Path) -> None:
    noise(mode="RGBA").save(place / "b.png")
    told = refused(nearest(place / "b.png", "-f", "jpg"), code=1)
    assert "--background" in told
    done = nearest(place / "b.png", "-f", "jpg", "--background", "#ff8800")
    assert done.exit_code == 0
    assert "laid over the background" in done.stderr
    assert "is no colour" in refused(nearest(place / "b.png", "--background", "mauvish"), code=2)


def test_strip_metadata(place: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    noise().save(place / "a.jpg", exif=exif, dpi=(300, 300))
    nearest(place / "a.jpg")
    with Image.open(place / "a_nearest_4x.jpg") as kept:
        assert kept.getexif()[0x013B] == "somebody"
        assert kept.info["dpi"] == (300, 300)
    nearest(place / "a.jpg", "--strip-metadata", "--overwrite")
    with Image.open(place / "a_nearest_4x.jpg") as stripped:
        assert 0x013B not in stripped.getexif()


def test_looks_and_speed(place: Path, tiny: Path, calls: list[int]) -> None:
    def pixels(*options: object) -> np.ndarray:
        calls.clear()
        done = run(place / "a.png", "-m", tiny, "-o", place / "b.png", "--overwrite", *options)
        assert done.exit_code == 0, done.stderr
        return pictures.read(place / "b.png").pixels.astype(int)

    plain = pixels("--precision", "fp32")
    run(place / "a.png", "-m", "bicubic")
    bicubic = pictures.read(place / "a_bicubic_4x.png").pixels
    assert abs(pixels("--strength", "0", "--precision", "fp32") - bicubic).max() <= 1
    assert abs(plain - bicubic).max() > 5
    assert (pixels("--color-fix", "--precision", "fp32") != plain).any()
    assert abs(pixels("-t", "16", "--precision", "fp32", "-g", "-1") - plain).max() <= 1
    pixels("-x", "--device", "cpu")
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--strength", "1.5"], "--strength"),
        (["-t", "8"], "tile"),
        (["-g", "0", "--device", "cpu"], "not both"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["-q", "0"], "quality is 1 to 100"),
        (["-q", "101"], "quality is 1 to 100"),
        (["-f", "webp", "--lossless", "-q", "5"], "exclude each other"),
        (["-f", "pgn"], "did you mean .png?"),
        (["-o", "b.pgn"], "did you mean .png?"),
        (["-f", "x/y"], "names no picture format"),
    ],
)
def test_options_that_make_no_sense(
    place: Path, tiny: Path, calls: list[int], options: list[str], words: str
) -> None:
    assert words in refused(run(place / "a.png", "-m", tiny, *options), code=2)
    assert (names(place), calls) == (["a.png"], [])


def test_a_wrong_quality_is_said_once_for_all(place: Path) -> None:
    noise().save(place / "b.png")
    refused(nearest(place / "a.png", place / "b.png", "-q", 500), code=2)


def test_a_format_with_a_path_in_it_stays_a_format(place: Path) -> None:
    assert nearest(place / "a.png", "-f", "../x.webp").exit_code == 0
    assert names(place) == ["a.png", "a_nearest_4x.webp"]


# Existing files are precious.


def test_existing_outputs_are_skipped_unless_told(place: Path) -> None:
    target = place / "a_nearest_4x.png"
    target.write_bytes(b"mine")
    done = nearest(place / "a.png")
    assert (done.exit_code, target.read_bytes()) == (0, b"mine")
    assert "exists (--overwrite replaces it): skipped" in done.stderr
    assert nearest(place / "a.png", "--overwrite").exit_code == 0
    assert size_of(target) == (64, 48)


@pytest.mark.parametrize("how", ["same", "dots", "link", "hard link"])
def test_the_input_is_never_the_output(place: Path, how: str) -> None:
    before = (place / "a.png").read_bytes()
    output = {"same": "a.png", "dots": "../place/a.png"}.get(how, "b.png")
    if how == "link":
        (place / "b.png").symlink_to("a.png")
    elif how == "hard link":
        os.link(place / "a.png", place / "b.png")
    told = refused(nearest(place / "a.png", "-o", place / output, "--overwrite"), code=2)
    assert "is the input itself" in told
    assert (place / "a.png").read_bytes() == before


def test_no_input_is_replaced_by_anothers_output(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    noise(seed=1).save(other / "a.png")
    before = (place / "a.png").read_bytes()
    done = nearest(other / "a.png", place / "a.png", "-o", place, "--overwrite")
    assert done.exit_code == 3
    assert "which is an input too" in done.stderr
    assert (place / "a.png").read_bytes() == before


def test_two_inputs_never_become_one_file(place: Path, tmp_path: Path) -> None:
    noise(seed=1).save(place / "A.jpg")
    out = tmp_path / "out"
    assert nearest(place / "a.png", place / "A.jpg", "-f", "webp", "-o", out).exit_code == 0
    assert names(out) == [".waifu4x", "A.jpg.webp", "a.webp"]
    again = nearest(place / "a.png", place / "A.jpg", "-f", "webp", "-o", out)
    assert (again.exit_code, again.stderr.count("done before")) == (0, 3)
    both = nearest(place / "a.png", place / "A.jpg", "--name", "{width}.png", "-o", out)
    assert both.exit_code == 3
    assert "would both become" in both.stderr
    assert names(out) == [".waifu4x", "64.png", "A.jpg.webp", "a.webp"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_only_regular_files_are_replaced(place: Path, kind: str) -> None:
    """/dev/null, say, which would be a file from then on when root asks for it."""
    target = place / "a_nearest_4x.png"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(target.name)
    before = target.lstat()
    for options in ([], ["--overwrite"]):
        refused(nearest(place / "a.png", *options), code=1)
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert len(names(place)) == 2


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("{stem}-x{scale}", "a-x4.png"),
        ("{parent}_{model}_{width}x{height}.{ext}", "place_nearest_64x48.png"),
        ("plain.{ext}", "plain.png"),
    ],
)
def test_names_by_template(place: Path, template: str, made: str) -> None:
    assert nearest(place / "a.png", "--name", template).exit_code == 0
    assert names(place) == sorted(["a.png", made])
    assert nearest(place / "a.png", "--name", template, "-o", place / "new/").exit_code == 0
    assert names(place / "new") == [made]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{stm}", "unknown field {stm}; did you mean {stem}?"),
        ("{}", "unknown field {}; known are stem"),
        ("{stem", "--name '{stem'"),
        ("x/{stem}", "give its folder with -o"),
        ("", "must be the name of a file"),
        ("{stem}", "is the input itself"),
    ],
)
def test_templates_that_name_no_output(place: Path, template: str, words: str) -> None:
    done = nearest(place / "a.png", "--name", template)
    assert done.exit_code == 2
    assert words in done.stderr
    assert names(place) == ["a.png"]
    both = nearest(place / "a.png", "--name", "b.{ext}", "-o", place / "c.png")
    assert both.exit_code == 2
    assert "not both" in both.stderr


@pytest.mark.parametrize(
    "option", [("-x",), ("-t", "32"), ("--precision", "fp32"), ("--device", "cpu"), ("-g", "-1")]
)
def test_kernels_refuse_what_only_networks_can_do(place: Path, option: tuple[str, ...]) -> None:
    done = nearest(place / "a.png", *option)
    assert done.exit_code == 2
    assert "nearest is no network" in done.stderr
    assert names(place) == ["a.png"]


# What is said.


def test_dry_run_writes_nothing_and_says_all(place: Path, tiny: Path, calls: list[int]) -> None:
    done = run(place / "a.png", "-m", tiny, "-s", 16, "-o", f"{place}/new/", "--dry-run")
    assert (done.exit_code, names(place)) == (0, ["a.png"])
    for words in ("16×12 → ", "256×192", "passes 4x · 4x", "first pass in 1 tile of up to 16 px"):
        assert words in done.stderr
    assert re.search(r"about \d+ MiB of memory and \d+\.\d s in the network", done.stderr)
    assert calls == [1] * len(calls), "tiles to warm up, and tiles to time, one by one"
    (facts,) = [
        json.loads(line)
        for line in run(
            place / "a.png", "-m", tiny, "-t", 16, "--dry-run", "--json", "--quiet"
        ).stdout.splitlines()
    ]
    assert facts["status"] == "planned"
    assert (facts["input_size"], facts["output_size"]) == ([16, 12], [64, 48])
    assert (facts["tiles"], facts["tile"]) == (1, 16)
    assert facts["estimated_s"] >= 0.0
    assert facts["memory_bytes"] > 64 * 48 * 3
    assert names(place) == ["a.png"]


def test_dry_run_of_what_exists_says_so(place: Path) -> None:
    nearest(place / "a.png")
    assert "skipped" in nearest(place / "a.png", "--dry-run").stderr


def test_json_is_all_that_is_on_stdout(place: Path, tiny: Path) -> None:
    (place / "bad.png").write_bytes(b"no picture")
    noise(seed=2).save(place / "c.png")
    nearest(place / "c.png")
    arguments = (place / "a.png", place / "bad.png", place / "c.png", "--json")
    done = nearest(*arguments)
    assert done.exit_code == 3
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    # What needs no work is said before the work begins.
    assert [each["status"] for each in facts] == ["failed", "skipped", "done"]
    first = facts[2]
    assert first["input"] == str(place / "a.png")
    assert first["output"] == str(place / "a_nearest_4x.png")
    assert (first["input_size"], first["output_size"]) == ([16, 12], [64, 48])
    assert (first["format"], first["model"], first["notes"]) == ("PNG", "nearest", [])
    assert set(first["seconds"]) == {"read", "network", "upscale", "encode", "write"}
    assert "bad.png" in facts[0]["error"]


def test_quiet_says_nothing_but_errors(place: Path) -> None:
    done = nearest(place / "a.png", "--quiet", "-v")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    refused(nearest(place / "b.png", "--quiet"), code=1)


def test_an_animation_says_that_it_was_cut(place: Path) -> None:
    noise().save(place / "b.gif", save_all=True, append_images=[noise(seed=1)])
    assert "2 frames or pages: only the first" in nearest(place / "b.gif", "--first-frame").stderr
    assert "--first-frame" in refused(nearest(place / "b.gif", "-f", "jpg"), code=1)


# Streams.


def test_stdin_to_stdout() -> None:
    done = nearest("-", input=png(noise()))
    assert done.exit_code == 0
    with Image.open(io.BytesIO(done.stdout_bytes)) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))


def test_file_to_stdout_and_stdin_to_file(place: Path) -> None:
    done = nearest(place / "a.png", "-o", "-", "-f", "jpg")
    with Image.open(io.BytesIO(done.stdout_bytes)) as image:
        assert image.format == "JPEG"
    assert nearest("-", "-o", place / "b.webp", input=png(noise())).exit_code == 0
    assert pictures.read(place / "b.webp").format == "WEBP"
    assert nearest("-", "-o", place, input=png(noise())).exit_code == 0
    assert "stdin.png" in names(place)


def test_streams_that_cannot_be(place: Path) -> None:
    noise().save(place / "b.png")
    both = (place / "a.png", place / "b.png")
    assert "only one picture" in refused(nearest(*both, "-o", "-"), code=2)
    assert "--json" in refused(nearest(place / "a.png", "-o", "-", "--json"), code=2)
    for content in (b"", b"junk"):
        assert "error: the picture is " in refused(nearest("-", input=content), code=1)


def test_a_terminal_is_neither_read_nor_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(upscale_run, "sys", SimpleNamespace(stdin=terminal, stdout=terminal))
    assert "output is a terminal" in refused(nearest(place / "a.png", "-o", "-"), code=2)
    assert "input is a terminal" in refused(nearest("-", "-o", place / "b.png"), code=2)


def waifu4x(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """The real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "waifu4x", *map(os.fsencode, map(str, arguments))],
        **{
            "capture_output": True,
            "timeout": 60,
            "stdin": subprocess.DEVNULL,
            "cwd": ROOT,
            **options,
        },
    )


def test_closed_and_full_streams(place: Path) -> None:
    command = f"{sys.executable} -m waifu4x upscale -m nearest"
    for end, code in (
        (f"- -o {place}/b.png <&-", 2),
        (f"{place}/a.png -o - >&-", 2),
        (f"{place}/a.png -o - >/dev/full", 1),
        (f"{place}/a.png -o {place}/b.png --json >/dev/full", 1),
    ):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {end}"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == code, (end, done)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, done.stderr
        assert "Traceback" not in done.stderr


# What goes wrong, in one line each.


def test_missing_empty_broken_cut_off(place: Path, tiny: Path, calls: list[int]) -> None:
    content = (place / "a.png").read_bytes()
    bad = {
        "none.png": None,
        "zero.png": b"",
        "text.png": b"not a picture at all",
        "cut.png": content[: len(content) // 2],
        "cut.jpg": content[:20],
    }
    for name, data in bad.items():
        if data is not None:
            (place / name).write_bytes(data)
        assert name in refused(run(place / name, "-m", tiny), code=1)
    done = run(*(place / name for name in bad), place / "a.png", "-m", tiny)
    assert done.exit_code == 3
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(bad)
    assert calls == [1]
    assert set(names(place)) == {*bad, "a.png", "a_tiny_4x.png"} - {"none.png"}


def test_too_large(place: Path) -> None:
    told = refused(nearest(place / "a.png", "--max-pixels", 100), code=1)
    assert "--max-pixels" in told
    Image.new("1", (20_000, 5_000)).save(place / "bomb.png")
    assert "100,000,000 pixels" in refused(nearest(place / "bomb.png"), code=1)


def test_outputs_beyond_memory_are_refused_beforehand(
    place: Path, tiny: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waifu4x.memory.free_host_bytes", lambda: 10_000)
    assert "choose a smaller size" in refused(run(place / "a.png", "-m", tiny), code=1)
    assert (calls, names(place)) == ([], ["a.png"])


def test_memory_that_runs_out_all_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("waifu4x.upscaler.Upscaler.upscale_all", fail)
    assert "does not fit into memory" in refused(nearest(place / "a.png"), code=1)


def test_a_folder_becomes_a_folder_beside_it(place: Path) -> None:
    assert nearest(place).exit_code == 0
    assert names(place) == ["a.png"]
    assert names(place.with_name("place_nearest_4x")) == [".waifu4x", "a.png"]
    assert nearest(place, "--width", "100").exit_code == 0
    assert size_of(place.with_name("place_nearest_width100") / "a.png") == (100, 75)


@pytest.mark.parametrize("model", ["nearst", "waifu4x-fest", "no-such.pth", "./no.safetensors"])
def test_unknown_models(place: Path, model: str) -> None:
    told = refused(run(place / "a.png", "-m", model), code=2)
    nearest_names = {"nearst": "nearest", "waifu4x-fest": "waifu4x-fast"}
    assert nearest_names.get(model, "there is no file") in told


def test_corrupt_weights(place: Path, tiny: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    for name, data in {
        "cut.safetensors": content[:-8],
        "zero.safetensors": b"",
        "page.pth": b"<html>please log in</html>",
        "old.ckpt": b"x",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert name in refused(run(place / "a.png", "-m", tmp_path / name), code=1)
    assert names(place) == ["a.png"]


@pytest.mark.parametrize(
    ("size", "format"), [((4096, 1), "webp"), ((16_376, 1), "jpg"), ((1, 8_193), "avif")]
)
def test_encoder_limits_are_asked_before_the_network_runs(
    place: Path, tiny: Path, calls: list[int], size: tuple[int, int], format: str
) -> None:
    noise(size=size).save(place / "wide.png")
    told = refused(run(place / "wide.png", "-m", tiny, "-f", format), code=1)
    assert "px a side" in told
    assert (calls, names(place)) == ([], ["a.png", "wide.png"])


@pytest.mark.usefixtures("no_gif")
def test_formats_that_cannot_be_written(place: Path) -> None:
    assert "can be read but not written" in refused(nearest(place / "a.png", "-f", "gif"), code=1)
    assert "without loss" in refused(nearest(place / "a.png", "-f", "jpg", "--lossless"), code=1)


def test_folders_that_cannot_be_written(
    place: Path, tiny: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_bytes(b"")
    for output in ("file/b.png", "file/new/"):
        refused(run(place / "a.png", "-m", tiny, "-o", f"{place}/{output}"), code=1)
    # Tests may run as root, whom no permission binds.
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    told = refused(run(place / "a.png", "-m", tiny, "-o", f"{place}/new/"), code=1)
    assert "may not be written" in told
    assert (calls, names(place)) == ([], ["a.png", "file"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(code, os.strerror(code), str(path))

    (place / "a_nearest_4x.png").write_bytes(b"precious")
    monkeypatch.setattr(Path, "write_bytes", fail)
    told = refused(nearest(place / "a.png", "--overwrite"), code=1)
    assert "a_nearest_4x.png" in told
    assert ".partial" not in told
    assert names(place) == ["a.png", "a_nearest_4x.png"]
    assert (place / "a_nearest_4x.png").read_bytes() == b"precious"


def test_orphans_of_killed_runs_are_swept(place: Path) -> None:
    orphan = place / ".old.png.12-0123abcd.partial"
    orphan.write_bytes(b"")
    os.utime(orphan, (0, 0))
    nearest(place / "a.png")
    assert names(place) == ["a.png", "a_nearest_4x.png"]


# Names of any kind.


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("new\nline.png", "new\\nline.png"),
        ("red\x1b[31m.png", "red\\x1b[31m.png"),
        ("[bold]b[red].png", "[bold]b[red].png"),
        ("back\\[slash\\.png", "back\\[slash\\.png"),
        ("a:smile:.png", "a:smile:.png"),
        (" spaces  and ümlaut 猫.png", " spaces  and ümlaut 猫.png"),
        ("%s {0} $HOME `x`.png", "%s {0} $HOME `x`.png"),
        (".hidden.png", ".hidden.png"),
        ("-rf.png", "-rf.png"),
    ],
)
def test_hostile_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shown: str
) -> None:
    monkeypatch.chdir(tmp_path)
    noise().save(tmp_path / name, "PNG")
    done = nearest("--", name)
    assert done.exit_code == 0
    stem = name.removesuffix(".png")
    assert set(names(tmp_path)) == {name, f"{stem}_nearest_4x.png"}
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{shown} 16×12 → ")
    (tmp_path / name).write_bytes(b"junk")
    assert shown in refused(nearest("--overwrite", "--", name), code=1)
    os.remove(tmp_path / f"{stem}_nearest_4x.png")
    (facts,) = map(json.loads, nearest("--json", "--", name).stdout.splitlines())
    assert facts["input"] == name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take only valid names")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = "\udcff\udc80.png"
    noise().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / name)
    done = waifu4x("upscale", tmp_path / name, "-m", "nearest", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["input"] == str(tmp_path / name)
    assert b"\\udcff\\udc80.png 16" in done.stderr
    assert "\udcff\udc80_nearest_4x.png" in names(tmp_path)


def test_the_longest_names(place: Path) -> None:
    longest = place / ("x" * 251 + ".png")
    noise().save(longest)
    assert "File name too long" in refused(nearest(longest), code=1)
    assert "File name too long" in refused(nearest(place / ("x" * 300 + ".png")), code=1)
    assert nearest(longest, "-o", f"{place}/out/").exit_code == 0
    assert names(place / "out") == [longest.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_fifo_does_not_hang(place: Path) -> None:
    os.mkfifo(place / "pipe.png")
    done = waifu4x("upscale", place / "pipe.png", "-m", "nearest", timeout=30)
    assert done.returncode == 1
    assert b"is no regular file" in done.stderr
