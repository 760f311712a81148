"""``waifu4x bench``: tables on the screen and in files, and what is refused before any work."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benches import measure, saved_model, three_pictures, values
from benches import unswept as unswept
from command import errors
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from waifu4x import pictures
from waifu4x.bench import page, perceptual, run
from waifu4x.bench.results import Report
from waifu4x.catalog import DEFAULT_MODEL
from waifu4x.cli import console
from waifu4x.cli.app import app
from waifu4x.errors import DiskFullError
from waifu4x.networks.msrresnet import MSRResNetConfig

SMALL = MSRResNetConfig(blocks=1, channels=4, scale=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_pictures(tmp_path / "Set3")


def bench(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# On the screen.


def test_the_table(folder: Path) -> None:
    done = bench(folder, "-m", "nearest", "-m", "bicubic", "-s", "2,3", "--protocol", "luma")
    assert done.exit_code == 0
    lines = rows(done.stdout)
    heads = ["model", *("PSNR", "↑", "SSIM", "↑"), *("s/MP", "memory", "params", "mult-adds")]
    # Bicubic is first, whatever was asked for, and once.
    assert [line[:2] for line in lines] == [
        *(["Set3", "x2"], heads[:2], ["bicubic", lines[2][1]], ["nearest", lines[3][1]]),
        *(["Set3", "x3"], heads[:2], ["bicubic", lines[6][1]], ["nearest", lines[7][1]]),
    ]
    assert lines[1] == lines[5] == heads
    wanted = measure("nearest", folder, scale=3, protocol="luma", metrics=("psnr", "ssim"))
    assert lines[7][1:3] == [f"{wanted.mean('psnr'):.2f}", f"{wanted.mean('ssim'):.4f}"]
    assert done.stderr == "note: luma protocol; on cpu in fp32 by numpy\n"


def test_a_network_by_default(folder: Path) -> None:
    """The one that ships, at x4."""
    done = bench(folder, "--device", "cpu", "--precision", "fp32")
    assert done.exit_code == 0
    lines = rows(done.stdout)
    assert (lines[0], lines[2][0], lines[3][0]) == (["Set3", "x4"], "bicubic", DEFAULT_MODEL)
    assert len(lines) == 4
    wanted = measure(DEFAULT_MODEL, folder, scale=4)
    assert lines[3][1] == f"{wanted.mean('psnr'):.2f}"
    # What a filter has not: so many parameters, and multiply-adds.
    assert lines[2][-2:] == ["–", "–"]
    assert {lines[3][-3], lines[3][-1]} <= set("KMGT")


def test_the_table_as_json(folder: Path, tmp_path: Path) -> None:
    toy = saved_model(tmp_path / "toy.safetensors", SMALL)
    options = ("--device", "cpu", "--precision", "fp32", "--metrics", "psnr, SSIM")
    done = bench(folder, folder, "-m", toy, "-s", "2,2,3", "--json", *options)
    assert done.exit_code == 0
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    # Sets, scales and models that are named twice are measured once.
    assert [(each["model"], each["scale"]) for each in facts] == [
        *(("bicubic", 2), ("toy", 2), ("bicubic", 3), ("toy", 3)),
    ]
    assert set(facts[0]) == {
        *("model", "dataset", "scale", "protocol", "device", "precision", "engine", "notes"),
        *("parameters", "multiply_adds_hd", "peak_memory_bytes", "seconds_per_megapixel"),
        *("means", "pictures"),
    }
    assert (facts[2]["scale"], facts[2]["protocol"], facts[2]["dataset"]) == (3, "rgb8", "Set3")
    assert [each["name"] for each in facts[0]["pictures"]] == ["gray", "gray16", "rgb"]
    assert [each["engine"] for each in facts] == ["numpy", "torch"] * 2
    wanted = measure(toy, folder, scale=2, metrics=("psnr", "ssim"))
    for key in ("psnr", "ssim"):
        got = {each["name"]: each["values"][key] for each in facts[1]["pictures"]}
        assert got == values(wanted, key)
        assert facts[1]["means"][key] == wanted.mean(key)
    # What has to be known stands apart.
    assert done.stderr == ("note: toy enlarges 2 and 2 times, not 3; the rest is interpolation.\n")


def test_all_metrics_are_those_that_need_no_file(folder: Path) -> None:
    done = bench(folder, "-m", "nearest", "-s", 2, "--metrics", "all,psnr", "--json")
    means = json.loads(done.stdout.splitlines()[0])["means"]
    assert list(means) == ["psnr", "ssim", "ms-ssim", "gmsd", "psnr-rgb"]
    assert means["ms-ssim"] is None
    assert "note: MS-SSIM on Set3 x2 is of 0 of 3 pictures" in done.stderr


def test_metrics_by_their_files(folder: Path, tmp_path: Path) -> None:
    """Random ones, as torchvision and the authors lay them out."""
    torch.manual_seed(0)
    network = perceptual.Lpips("squeeze")
    backbone, head, prior = (tmp_path / name for name in ("b.pth", "h.pth", "p.npz"))
    state = network.state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("features.")}, backbone)
    heads = {f"lin{k}.model.1.weight": each.data for k, each in enumerate(network.heads)}
    torch.save(heads, head)
    np.savez(
        prior,
        mu_pris_param=np.zeros(36),
        cov_pris_param=np.eye(36),
        gaussian_window=np.full((7, 7), 1 / 49),
    )
    noise = np.random.default_rng(0).integers(0, 256, (104, 208, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large.png")
    files = ("--metric-file", f"squeezenet1_1={backbone}", "--metric-file", f"NIQE={prior}")
    files = (*files, "--metric-file", f"lpips-squeeze={head}")
    done = bench(
        folder, "-m", "nearest", "-s", 2, "--metrics", "lpips-squeeze,niqe", *files, "--offline"
    )
    assert done.exit_code == 0, done.stderr
    assert rows(done.stdout)[1][:5] == ["model", "LPIPS-squeeze", "↓", "NIQE", "↓"]
    assert "note: NIQE on Set3 x2 is of 1 of 4 pictures: the others are too" in done.stderr
    for missing, words in (
        (("--metrics", "niqe", "--offline"), "waifu4x models download niqe"),
        (("--metrics", "psnr", *files), "no measure that was asked for needs a file"),
        (("--metrics", "niqe", "--metric-file", "niqe"), "write NAME=PATH, such as niqe=prior"),
        (("--metrics", "niqe", "--metric-file", f"niqe={head}"), "is no model of NIQE"),
        (("--metrics", "dists"), "--metric-file dists=weights.pth"),
    ):
        refused = bench(folder, "-m", "nearest", *missing)
        assert refused.exit_code in (1, 2)
        assert words in refused.stderr
        assert len(errors(refused)) == 1


def test_the_engine_that_was_chosen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAIFU4X_ENGINE", "onnxruntime")
    toy = saved_model(tmp_path / "toy.safetensors", SMALL)
    options = ("-s", 2, "--device", "cpu", "--precision", "fp32", "-o", tmp_path / "a.md")
    done = bench(folder, "-m", toy, "--engine", "torch", *options)
    assert done.stderr.splitlines()[0] == "note: rgb8 protocol; on cpu in fp32 by torch"
    text = (tmp_path / "a.md").read_text("utf-8")
    assert "3 pictures, protocol rgb8; on cpu in fp32 by torch." in text


def test_every_picture_with_verbose(folder: Path) -> None:
    done = bench(folder, "-m", "nearest", "-s", 2, "-v")
    lines = rows(done.stdout)
    start = lines.index(["model", "picture", "PSNR", "SSIM", "s/MP"])
    found = [line[:3] for line in lines[start + 1 :]]
    assert found == [
        [model, name, f"{db:.2f}"]
        for model in ("bicubic", "nearest")
        for name, db in values(measure(model, folder, scale=2)).items()
    ]


def test_quiet(folder: Path, tmp_path: Path) -> None:
    loud = bench(folder, "-m", "nearest", "--workers", 2, "-o", tmp_path / "a.csv")
    assert re.findall("^(note|wrote)", loud.stderr, re.MULTILINE) == ["note", "note", "wrote"]
    assert "one worker gives truer times" in loud.stderr
    done = bench(folder, "-m", "nearest", "--quiet", "-o", tmp_path / "b.csv", "--workers", 2)
    assert (done.exit_code, done.stderr) == (0, "")
    assert rows(done.stdout)[1][0] == "model"
    assert (tmp_path / "b.csv").is_file()


def test_what_is_published_stands_beside(folder: Path) -> None:
    set5 = folder.rename(folder.with_name("Set5"))
    done = bench(set5, "-m", "nearest", "-s", 4, "--published")
    names = [line[:2] for line in rows(done.stdout)]
    assert ["VDSR", "[vdsr]"] in names
    # Nothing of them is in bold, and nobody measured RGB here.
    assert not any("[basicsr]" in name for name in names)
    assert "note: [vdsr] Kim, Lee, Lee (CVPR 2016)" in done.stderr
    assert "basicsr" not in done.stderr
    assert "[vdsr]" not in bench(set5, "-m", "nearest", "-s", 4).stdout


def test_compressed_pictures(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    done = bench(folder, "-m", "nearest", "-s", 2, "--jpeg", "Clean, 40,clean", "-o", target)
    assert done.exit_code == 0, done.stderr
    lines = rows(done.stdout)
    assert (lines[0], lines[4]) == (["Set3", "x2"], ["Set3", "x2,", "JPEG", "40"])
    for line, qualities in ((lines[3], (None,)), (lines[7], (40,))):
        wanted = measure("nearest", folder, scale=2, jpeg_qualities=qualities)
        assert line[:2] == ["nearest", f"{wanted.mean('psnr'):.2f}"]
    assert "note: JPEG: the shrunk picture is saved" in done.stderr
    found = list(csv.DictReader(io.StringIO(target.read_text("utf-8"))))
    assert [line["jpeg_quality"] for line in found] == ["", "", "40", "40"]


def test_own_small_pictures(folder: Path, tmp_path: Path) -> None:
    lr = tmp_path / "lr" / "X2"
    lr.mkdir(parents=True)
    for path in folder.iterdir():
        Image.new("L", (25, 22), 128).save(lr / f"{path.stem}x2.png")
    done = bench(folder, "-m", "nearest", "-s", 2, "--lr", lr.parent, "--json")
    facts = list(map(json.loads, done.stdout.splitlines()))
    # Both make the same of nothing.
    assert facts[0]["means"] == facts[1]["means"]
    refused = bench(folder, "-m", "nearest", "-s", 2, "--lr", lr.parent, "--protocol", "luma")
    assert (refused.exit_code, len(errors(refused))) == (2, 1)


# Where tables are shown.


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, width: int) -> io.StringIO:
    shown = io.StringIO()
    terminal = Console(
        file=shown, force_terminal=True, width=width, highlight=False, emoji=False, no_color=True
    )
    monkeypatch.setattr(console, "stdout", terminal)
    return shown


def plain(shown: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())


@pytest.mark.parametrize(("width", "at_least"), [(120, 1), (79, 2), (50, 3), (36, 5)])
def test_a_narrow_terminal_splits_the_table(
    width: int, at_least: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set5 = folder.rename(folder.with_name("Set5"))
    shown = on_a_terminal(monkeypatch, width=width)
    bench(set5, "-m", "nearest", "-s", 4, "--published", "--metrics", "all", "--quiet")
    text = plain(shown)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    parts = text.split("model ")[1:]
    assert len(parts) >= at_least
    assert (len(parts) == 1) == (width == 120)
    titles = [line for part in parts for line in re.split(r"  +", part.splitlines()[0].strip())]
    assert titles == [
        *("PSNR ↑", "SSIM ↑", "MS-SSIM ↑", "GMSD ↓", "PSNR-RGB ↑"),
        *("s/MP", "memory", "params", "mult-adds"),
    ]
    # Every one of them says of whom, but what is published has no costs.
    assert all("nearest " in part for part in parts)
    assert ("VDSR [vdsr]" in parts[-1]) == (width == 120)
    assert "VDSR [vdsr]" in parts[0]


def test_a_long_name_is_folded_on_a_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "n" * 90
    toy = saved_model(tmp_path / f"{name}.safetensors", SMALL)
    shown = on_a_terminal(monkeypatch, width=80)
    bench(folder, "-m", toy, "-s", 2, "--device", "cpu", "--quiet")
    text = plain(shown)
    assert text.count("n" * 20) >= 3
    assert "".join(re.findall("nnnn+", text)) == name
    # Its figures are all in one line with the beginning of the name.
    (line,) = (line for line in text.splitlines() if line.startswith("nnn") and " K" in line)
    assert len(line.split()) == 10


def test_a_pipe_is_never_cut(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "n" * 150
    toy = saved_model(tmp_path / f"{name}.safetensors", SMALL)
    done = bench(folder, "-m", toy, "-s", 2, "--device", "cpu", "--metrics", "all", "-v")
    assert "…" not in done.stdout
    lines = rows(done.stdout)
    whole, *each = (line for line in lines if line[0] == name)
    # Five measures, the time, and three things with their units.
    assert len(whole) == 1 + 5 + 1 + 3 * 2
    assert [line[1] for line in each] == ["gray", "gray16", "rgb"]
    assert "\x1b" not in done.stdout


def test_the_best_is_bold_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_a_terminal(monkeypatch, width=120)
    bench(folder, "-m", "nearest", "-s", 2, "--quiet")
    found = re.findall(r"\x1b\[1m([0-9.]+) *\x1b", shown.getvalue())
    best = measure("bicubic", folder, scale=2, metrics=("psnr", "ssim"))
    assert found == [f"{best.mean('psnr'):.2f}", f"{best.mean('ssim'):.4f}"]


def test_names_are_no_markup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = folder.rename(folder.with_name("[red]a\n\x1b[31mb:smile:"))
    done = bench(hostile, "-m", "nearest", "-s", 2)
    assert done.stdout.splitlines()[0].strip() == r"[red]a\n\x1b[31mb:smile: x2"


# In files.


def test_files_of_four_kinds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Report] = []

    def build(report: Report, *, command: str) -> str:
        built.append(report)
        return f"<!doctype html>{command}"

    monkeypatch.setattr(page, "build", build)
    monkeypatch.setattr(sys, "argv", ["waifu4x", "bench", "a b/"])
    targets = [tmp_path / f"out.{suffix}" for suffix in ("md", "CSV", "json", "html")]
    options = [word for target in targets for word in ("-o", target)]
    done = bench(folder, "-m", "nearest", "-s", 2, *options)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[1:] == [f"wrote {target}" for target in targets]
    markdown, commas, whole, html = (target.read_text("utf-8") for target in targets)
    assert "`waifu4x bench 'a b/'`" in markdown
    assert "### Set3 x2" in markdown
    models = [row["model"] for row in csv.DictReader(io.StringIO(commas))]
    assert models == ["bicubic", "nearest"]
    assert json.loads(whole)["command"] == "waifu4x bench 'a b/'"
    assert len(json.loads(whole)["results"][0]["pictures"]) == 3
    assert html == "<!doctype html>waifu4x bench 'a b/'"
    assert [result.model for result in built[0].results] == ["bicubic", "nearest"]


def test_existing_files_are_replaced_only_when_told(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.md"
    target.write_text("mine")
    refused = bench(folder, "-m", "nearest", "-o", target)
    assert (refused.exit_code, refused.stdout, target.read_text()) == (2, "", "mine")
    assert "--overwrite replaces it" in errors(refused)[0]
    assert bench(folder, "-m", "nearest", "-o", target, "--overwrite").exit_code == 0
    assert "### Set3 x4" in target.read_text("utf-8")


def test_what_was_measured_is_shown_though_it_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(data: bytes, target: Path) -> None:
        raise DiskFullError(f"there is no room for {target}")

    monkeypatch.setattr(pictures, "store", store)
    done = bench(folder, "-m", "nearest", "-o", tmp_path / "a.md")
    assert (done.exit_code, len(errors(done))) == (1, 1)
    assert [line[0] for line in rows(done.stdout)] == ["Set3", "model", "bicubic", "nearest"]
    assert "wrote" not in done.stderr


def test_names_that_are_no_text(folder: Path, tmp_path: Path) -> None:
    """The bytes of a file's name need not be UTF-8."""
    name = os.fsdecode(b"caf\xe9")
    try:
        strange = folder.rename(tmp_path / name)
    except OSError:
        pytest.skip("needs a file system that takes any name")
    shutil.copy(strange / "rgb.png", strange / f"{name}.png")
    targets = [tmp_path / f"out.{suffix}" for suffix in ("md", "csv", "json", "html")]
    options = [word for target in targets for word in ("-o", target)]
    done = bench(strange, "-m", "nearest", "-s", 2, "-v", *options)
    assert done.exit_code == 0, done.stderr
    assert r"caf\udce9 x2" in done.stdout
    for target in targets[:3]:
        assert r"\udce9" in target.read_text("utf-8")
    assert targets[3].read_text("utf-8")


# What is refused before any work.


def test_errors_are_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measuring(*_: object, **__: object) -> None:
        raise AssertionError("it was too late")

    monkeypatch.setattr(run, "enlarge", measuring)
    nearest = (folder, "-m", "nearest")
    cases: list[tuple[tuple[object, ...], int, str]] = [
        ((), 2, "name a folder of pictures, or a set: waifu4x bench set5"),
        ((tmp_path / "absent", "-m", "nearest"), 2, "no pictures in"),
        (("set5", "-m", "nearest"), 2, "Set5 is not here: get its 5 high-resolution pictures"),
        ((folder, "-m", "nearst"), 2, "no model called 'nearst'"),
        ((*nearest, "--protocol", "x"), 2, "no protocol 'x'"),
        ((*nearest, "--metrics", "psnr,snr"), 2, "no measure 'snr'"),
        ((*nearest, "-s", "1"), 2, "more than 1, not 1"),
        ((*nearest, "-s", "inf"), 2, "more than 1, not inf"),
        ((*nearest, "-s", "nan"), 2, "more than 1, not nan"),
        ((*nearest, "-s", "2x"), 2, "-s 2x: scales are numbers, such as 4 or 1.5,2,4"),
        ((*nearest, "-s", "2,"), 2, "-s 2,: scales are numbers"),
        ((*nearest, "-s", "999999999999"), 2, "is too small to measure at x999999999999"),
        ((*nearest, "--jpeg", "75,"), 2, "--jpeg 75,: qualities are whole numbers from 1 to 100"),
        ((*nearest, "--jpeg", "7.5"), 2, "or clean, such as clean,75"),
        ((*nearest, "--jpeg", "clean,0"), 2, "a JPEG quality is 1 to 100, not 0"),
        ((*nearest, "--jpeg", "9", "--protocol", "luma"), 2, "leave out --jpeg, or use rgb8"),
        ((*nearest, "--jpeg", "9", "--lr", folder), 2, "leave it out, or --lr"),
        (("--speed", "--jpeg", "9"), 2, "--speed compresses nothing: leave out --jpeg"),
        ((*nearest, "-o", tmp_path / "a.txt"), 2, "it must end in .md, .csv, .json, .html"),
        ((*nearest, "-o", tmp_path / "no" / "a.md"), 2, "there is no folder"),
        ((*nearest, "--lr", tmp_path / "absent"), 2, "is no folder of pictures"),
        ((folder, "-m", "waifu4x-clean", "--device", "tpu"), 2, "tpu"),
        ((folder, "-m", "alexnet"), 2, "alexnet enlarges nothing"),
    ]
    for arguments, code, words in cases:
        done = bench(*arguments)
        assert (done.exit_code, done.stdout) == (code, ""), arguments
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Set3"]


def test_a_picture_that_is_none(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"junk")
    done = bench(folder, "-m", "nearest")
    assert (done.exit_code, done.stdout, len(errors(done))) == (1, "", 1)
    assert "a.png" in done.stderr
