"""What is planned before any work: which files, where they go, what is done, what it takes."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import contents, counted, errors, names, noise, save, upscale
from PIL import Image

from waifu4x import memory, pictures
from waifu4x.batch import estimates, jobs, outputs, plan, sources
from waifu4x.batch.journal import Journal, Line
from waifu4x.batch.outputs import Claims
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Encoding, Request
from waifu4x.errors import (
    PictureReadError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.headers import Header
from waifu4x.models import open_upscaler
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler


@pytest.fixture(scope="module")
def nearest() -> Upscaler:
    return open_upscaler("nearest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``in`` with a.png, b.jpg and sub/c.png."""
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.jpg", seed=1)
    save(tmp_path / "in" / "sub" / "c.png", seed=2)
    return tmp_path / "in"


def request(*inputs: object, scale: float = 4.0, **options: Any) -> Request:
    return Request(inputs=tuple(map(str, inputs)), target=Target(scale=scale), **options)


def targets(made: Plan, below: Path) -> dict[str, str]:
    """By the inputs' names, where they go."""
    return {
        job.source.path.name: str(job.target and job.target.relative_to(below)) for job in made.jobs
    }


def film(path: Path, count: int = 3) -> Path:
    first, *rest = [noise(seed=k) for k in range(count)]
    first.save(path, save_all=True, append_images=rest)
    return path


# Which files.


def test_files_keep_their_places(folder: Path) -> None:
    found, left_out = sources.gather([str(folder)], recursive=True)
    assert [source.relative.as_posix() for source in found] == ["a.png", "b.jpg", "sub/c.png"]
    assert all(source.found and source.path == folder / source.relative for source in found)
    assert left_out == []
    named, _ = sources.gather([str(folder / "sub" / "c.png")], recursive=False)
    assert [(source.relative, source.found) for source in named] == [(Path("c.png"), False)]


def test_files_are_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found, _ = sources.gather(["a.png", ".", "./a.png", str(folder), "*.png"], recursive=False)
    assert [source.relative.name for source in found] == ["a.png", "b.jpg"]


def test_what_is_left_out_and_why(folder: Path) -> None:
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "sub/.d/x.png"):
        save((folder / name).with_suffix(".png")).rename(folder / name)
    (folder / "notes.txt").write_bytes(b"text")
    (folder / "unnamed").write_bytes((folder / "a.png").read_bytes())
    found, left_out = sources.gather([str(folder)], recursive=False)
    assert [source.relative.name for source in found] == ["a.png", "b.jpg", "unnamed"]
    assert {entry.path.name: entry.reason for entry in left_out} == {
        ".hidden.png": "hidden",
        "Thumbs.db": "hidden",
        "notes.txt": "no picture",
        "sub": "a folder (-r goes into it)",
    }


def test_what_a_folder_cannot_tell_is_a_failure(
    folder: Path, nearest: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    made = plan.make(request(folder, recursive=True), nearest)
    (settled,) = made.settled
    assert settled.status == "failed"
    assert isinstance(settled.error, PictureReadError)
    assert "sub cannot be listed (Permission denied)" in settled.reason
    assert made.files == 3


@pytest.mark.parametrize(
    ("inputs", "several"),
    [
        (["a.png"], False),
        (["none.png"], False),
        (["[a].png"], False),
        (["a.png", "b.jpg"], True),
        (["*.png"], True),
        (["[b].jpg"], True),
        (["@list"], True),
        (["sub"], True),
        (["@at.png"], False),
    ],
)
def test_one_or_several(
    folder: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], several: bool
) -> None:
    monkeypatch.chdir(folder)
    save(folder / "[a].png")
    save(folder / "@at.png")
    assert sources.means_several(inputs) is several


# Where they go.


def test_a_folder_becomes_one_beside_it(folder: Path, nearest: Upscaler) -> None:
    beside = folder.parent / "in_nearest_4x"
    made = plan.make(request(f"{folder}/", recursive=True), nearest)
    assert made.folder == beside
    assert targets(made, beside) == {"a.png": "a.png", "b.jpg": "b.jpg", "c.png": "sub/c.png"}
    wide = Request(inputs=(str(folder),), target=Target(fit_px=(1920, 1080)))
    assert plan.make(wide, nearest).folder == folder.parent / "in_nearest_fit1920x1080"
    with pytest.raises(UsageError, match="becomes with -o"):
        plan.make(request(folder, folder / "a.png"), nearest)
    assert not beside.exists(), "nothing is written"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"suffix": "-x"}, ["a-x.png", "b-x.jpg", "sub/c-x.png"]),
        ({"name": "{stem}_{scale}"}, ["a_4.png", "b_4.jpg", "sub/c_4.png"]),
        ({"name": "{width}.{ext}"}, ["24.png", "24.jpg", "sub/24.png"]),
        ({"name": "{parent}-{stem}.{ext}"}, ["in-a.png", "in-b.jpg", "sub/sub-c.png"]),
        ({"encoding": Encoding(format="webp")}, ["a.webp", "b.webp", "sub/c.webp"]),
        ({"encoding": Encoding(format="JPEG")}, ["a.jpeg", "b.jpeg", "sub/c.jpeg"]),
    ],
)
def test_names_in_trees(
    folder: Path, nearest: Upscaler, options: dict[str, Any], expected: list[str]
) -> None:
    out = folder.parent / "out"
    made = plan.make(request(folder, recursive=True, output=str(out), **options), nearest)
    assert list(targets(made, out).values()) == expected
    assert made.settled == []


def test_a_name_for_all_is_refused_for_all_but_one(folder: Path, nearest: Upscaler) -> None:
    save(folder / "d.png", seed=4)
    out = folder.parent / "out"
    made = plan.make(request(folder, output=str(out), name="x.{ext}"), nearest)
    assert targets(made, out) == {"a.png": "x.png", "b.jpg": "x.jpg"}
    (failed,) = (settled for settled in made.settled if settled.status == "failed")
    assert "would both become" in failed.reason


def test_the_input_that_has_the_name_keeps_it(folder: Path, nearest: Upscaler) -> None:
    """Whatever comes first in the order of names."""
    save(folder / "b.bmp", seed=5)
    save(folder / "b.png", seed=5)
    out = folder.parent / "out"
    made = plan.make(request(folder, output=str(out), encoding=Encoding(format="png")), nearest)
    assert all(settled.error is None for settled in made.settled)
    assert targets(made, out)["b.png"] == "b.png"
    assert set(targets(made, out).values()) == {"a.png", "b.png", "b.bmp.png", "b.jpg.png"}


def test_claims_know_what_file_systems_take_for_one(tmp_path: Path) -> None:
    claims = Claims()
    claims.read(tmp_path / "In.PNG")
    with pytest.raises(UsageError, match="an input too"):
        claims.write(tmp_path / "in.png", tmp_path / "x.png")
    claims.write(tmp_path / "In.PNG", tmp_path / "In.PNG")
    claims.write(tmp_path / "caf\u00e9.png", tmp_path / "x.png")
    claims.write(tmp_path / "cafe\u0301.png", tmp_path / "x.png")
    with pytest.raises(UsageError, match="both become"):
        claims.write(tmp_path / "CAFE\u0301.png", tmp_path / "y.png")
    assert claims.owner(tmp_path / "sub" / ".." / "none.png") is None
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="both become"):
        claims.write(tmp_path / "link" / "caf\u00e9.png", tmp_path / "y.png")


# What is done already.


def noted(out: Path) -> list[dict[str, Any]]:
    text = (out / ".waifu4x" / "journal.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _touch_source(source: Path, out: Path) -> None:
    os.utime(source / "a.png", ns=(1, 1))


def _shorten_output(source: Path, out: Path) -> None:
    (out / "a.png").write_bytes(b"short")


def _remove_output(source: Path, out: Path) -> None:
    (out / "a.png").unlink()


def _rewrite_source(source: Path, out: Path) -> None:
    facts = (source / "a.png").stat()
    save(source / "a.png", seed=9, size=(7, 7))
    os.utime(source / "a.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _tear_the_line(source: Path, out: Path) -> None:
    journal = out / ".waifu4x" / "journal.jsonl"
    lines = [line for line in journal.read_bytes().splitlines() if b'"a.png"' not in line]
    torn = b'{"source": "a.png", "status": "do'
    journal.write_bytes(b"".join(line + b"\n" for line in lines) + torn)
    (out / "a.png").unlink()


@pytest.mark.parametrize(
    "change", [_touch_source, _shorten_output, _remove_output, _rewrite_source, _tear_the_line]
)
def test_only_what_changed_is_done_again(
    folder: Path, change: Callable[[Path, Path], None]
) -> None:
    out = folder.parent / "out"
    assert upscale(folder, "-o", out).exit_code == 0
    assert counted(upscale(folder, "-o", out), "skipped", "done before") == 2
    change(folder, out)
    done = upscale(folder, "-o", out)
    assert (done.exit_code, counted(done, "done")) == (0, 1)
    assert counted(done, "skipped", "done before") == 1
    fresh = folder.parent / "fresh"
    assert upscale(folder, "-o", fresh).exit_code == 0
    assert contents(out) == contents(fresh)
    assert counted(upscale(folder, "-o", out), "skipped", "done before") == 2


@pytest.mark.parametrize(
    "options",
    [("-s", 2), ("-f", "png", "--no-provenance"), ("-q", 50), ("--strip-metadata",)],
)
def test_other_settings_do_it_all_again(folder: Path, options: tuple[object, ...]) -> None:
    out = folder.parent / "out"
    upscale(folder, "-o", out, "-f", "png")
    done = upscale(folder, "-o", out, "-f", "png", *options)
    assert (done.exit_code, counted(done, "done")) == (0, 2)
    assert counted(upscale(folder, "-o", out, "-f", "png", *options), "done") == 0


def test_a_file_of_others_is_not_replaced(folder: Path) -> None:
    out = folder.parent / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"foreign")
    done = upscale(folder, "-o", out)
    assert counted(done, "skipped", "exists (--overwrite replaces it)") == 1
    assert (out / "a.png").read_bytes() == b"foreign"
    again = upscale(folder, "-o", out, "-s", 2)
    assert counted(again, "skipped", "exists (--overwrite replaces it)") == 1
    assert counted(upscale(folder, "-o", out, "--overwrite"), "done") == 2


def test_a_lost_journal_costs_nothing_but_knowledge(folder: Path) -> None:
    out = folder.parent / "out"
    upscale(folder, "-o", out)
    before = contents(out)
    (out / ".waifu4x" / "journal.jsonl").unlink()
    done = upscale(folder, "-o", out)
    assert (done.exit_code, counted(done, "skipped", "exists (--overwrite replaces it)")) == (0, 2)
    assert contents(out) == before


def test_retry_failed_does_only_that(folder: Path, nearest: Upscaler) -> None:
    out = folder.parent / "out"
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[:60])
    assert upscale(folder, "-o", out).exit_code == 3
    assert [row["status"] for row in noted(out)] == ["failed", "done"]
    save(folder / "new.png", seed=7)
    still = upscale(folder, "-o", out, "--retry-failed")
    assert (still.exit_code, names(out)) == (3, ["b.jpg"])
    (folder / "a.png").write_bytes(whole)
    done = upscale(folder, "-o", out, "--retry-failed")
    assert (done.exit_code, counted(done, "done")) == (0, 1)
    assert names(out) == ["a.png", "b.jpg"]
    assert counted(upscale(folder, "-o", out, "--retry-failed"), "done") == 0
    with pytest.raises(UsageError, match="needs the journal"):
        plan.make(request(folder / "a.png", retry_failed=True), nearest)


def test_one_file_keeps_no_journal(folder: Path) -> None:
    assert upscale(folder / "a.png", "-o", f"{folder.parent}/out/").exit_code == 0
    assert not (folder.parent / "out" / ".waifu4x").exists()


def test_lines_name_places_with_forward_slashes(folder: Path) -> None:
    out = folder.parent / "out"
    upscale(folder, "-r", "-o", out)
    row = next(row for row in noted(out) if row["source"] == "sub/c.png")
    assert row["output"] == "sub/c.png"
    assert row["output_bytes"] == (out / "sub" / "c.png").stat().st_size
    assert row["source_mtime_ns"] == (folder / "sub" / "c.png").stat().st_mtime_ns
    assert Journal(out).find("sub/c.png") == Line(**row)


# What fails, fails before the work.


def test_every_failure_names_its_file(folder: Path, nearest: Upscaler) -> None:
    film(folder / "film.gif")
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    made = plan.make(request(folder, encoding=Encoding(format="jpg")), nearest)
    assert {settled.source.name for settled in made.settled if settled.error} == {
        "film.gif",
        "cut.png",
    }
    assert all(str(s.source) in s.reason for s in made.settled if s.error is not None)


def test_fail_fast_plans_nothing_once_something_failed(folder: Path, nearest: Upscaler) -> None:
    (folder / "c.png").write_bytes(b"x")
    (folder / "d.png").write_bytes(b"x")
    made = plan.make(request(folder, fail_fast=True), nearest)
    assert (made.jobs, [settled.source.name for settled in made.settled]) == ([], ["c.png"])
    assert len(plan.make(request(folder), nearest).jobs) == 2


@pytest.mark.parametrize("several", [False, True], ids=["one file", "folder"])
@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        pytest.param((16_375, 1), ["-s", 4, "-f", "jpg"], None, id="JPEG 65,500"),
        pytest.param((16_375, 1), ["--width", 65_501, "-f", "jpg"], "65,500 px a side", id="+1"),
        pytest.param((5461, 1), ["-s", 3, "-f", "webp"], None, id="WebP 16,383"),
        pytest.param((4096, 1), ["-s", 4, "-f", "webp"], "16,383 px a side", id="WebP 16,384"),
        pytest.param((1, 8193), ["-s", 4, "-f", "avif"], "32,768 px a side", id="AVIF"),
        pytest.param("RGBA", ["-f", "jpg"], "cannot hold transparency", id="RGBA as JPEG"),
        pytest.param("16 bits", ["-f", "webp"], None, id="16 bits as WebP"),
        pytest.param("RGB", ["-f", "pgn"], "did you mean .png?", id="unknown suffix"),
    ],
)
def test_what_encoders_hold_is_known_beforehand(
    tmp_path: Path,
    calls: list[int],
    source: tuple[int, int] | str,
    options: list[object],
    words: str | None,
    several: bool,
) -> None:
    if source == "16 bits":
        deep = Picture(pixels=np.arange(60_000, dtype=np.uint16).reshape(100, 200, 3))
        (tmp_path / "in").mkdir()
        pictures.write(deep, tmp_path / "in" / "x.png")
    elif isinstance(source, str):
        save(tmp_path / "in" / "x.png", mode=source)
    else:
        save(tmp_path / "in" / "x.png", size=source)
    given = tmp_path / "in" if several else tmp_path / "in" / "x.png"
    out = (*options, "-o", f"{tmp_path}/out/")
    if words is None:
        planned = upscale(given, *out, "--dry-run")
        assert (planned.exit_code, calls) == (0, [])
        assert not (tmp_path / "out").exists()
        if source == "16 bits":
            done = upscale(given, *out)
            assert "WEBP holds 8 bits: the picture's 16 were rounded" in done.stderr
        return
    done = upscale(given, *out)
    (told,) = errors(done)
    assert words in told
    assert words.startswith("did you mean") or "x.png" in told
    assert (calls, names(tmp_path / "in"), names(tmp_path / "out")) == ([], ["x.png"], [])
    assert done.exit_code == (2 if words.startswith("did") else 3 if several else 1)


# Animations, pages, archives.


def test_animations_are_one_job_of_many_frames(folder: Path, nearest: Upscaler) -> None:
    path = film(folder / "film.gif")
    (job,) = plan.make(request(path), nearest).jobs
    assert (job.frames, job.format, job.header.kind) == (3, "GIF", "animation")
    assert job.output_px == 3 * 24 * 16
    (first,) = plan.make(request(path, first_frame=True), nearest).jobs
    assert (first.frames, first.output_px) == (1, 24 * 16)
    assert first.memory_bytes < job.memory_bytes


@pytest.mark.parametrize(
    ("name", "format", "words"),
    [
        ("film.gif", "jpg", "JPEG holds no animation"),
        ("film.gif", "tiff", "TIFF holds no animation"),
        ("film.webp", "bmp", "BMP holds no animation"),
        ("pages.tiff", "png", "PNG holds one picture, not 3 pages"),
        ("pages.tiff", "gif", "GIF holds one picture, not 3 pages"),
    ],
)
def test_formats_that_hold_one_picture(
    tmp_path: Path, calls: list[int], name: str, format: str, words: str
) -> None:
    path = film(tmp_path / name)
    done = upscale(path, "-f", format)
    (told,) = errors(done)
    assert (done.exit_code, calls, names(tmp_path)) == (1, [], [name])
    assert words in told
    assert "--first-frame" in told
    assert name in told
    assert upscale(path, "-f", format, "--first-frame").exit_code == 0
    with Image.open(tmp_path / f"{path.stem}_nearest_4x.{format}") as image:
        assert getattr(image, "n_frames", 1) == 1


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_archives_are_one_job_of_many_pictures(folder: Path, nearest: Upscaler) -> None:
    data = (folder / "a.png").read_bytes()
    book = archive(
        folder / "book.cbz", {"0.xml": b"<x/>", "1.png": data, "2.png": data, ".3.png": b""}
    )
    (job,) = plan.make(request(book), nearest).jobs
    assert (job.members, job.frames, job.format) == (2, 2, "PNG")
    assert job.target == folder / "book_nearest_4x.cbz"
    with pytest.raises(UsageError, match="not named like one"):
        raise plan.make(request(book, output="x.png"), nearest).settled[0].error or AssertionError
    with pytest.raises(PictureReadError, match="holds no pictures"):
        jobs.archive_header(archive(folder / "no.zip", {"a.txt": b""}), max_pixels=None)
    with pytest.raises(PictureReadError, match=r"bad.zip, 1.png is empty"):
        jobs.archive_header(archive(folder / "bad.zip", {"1.png": b""}), max_pixels=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the picture is empty", "b.cbz, 1.png is empty"),
        ("JPEG holds less", "b.cbz, 1.png: JPEG holds less"),
    ],
)
def test_errors_of_members_name_both(text: str, expected: str) -> None:
    error = jobs.in_member(Path("b.cbz"), "1.png", PictureWriteError(text))
    assert (type(error), str(error)) == (PictureWriteError, expected)


def test_errors_are_named_once() -> None:
    error = Waifu4xError("x/a.png is empty")
    assert jobs.named(error, "x/a.png") is error
    assert jobs.named(error, "in.png", "x/a.png") is error
    assert str(jobs.named(error, "b.png")) == "b.png: x/a.png is empty"


# What it takes.


def test_memory_counts_all_frames(nearest: Upscaler) -> None:
    def need(frames: int) -> int:
        header = Header(
            format="GIF",
            width_px=100,
            height_px=100,
            channels=3,
            has_alpha=True,
            depth_bits=8,
            frames=frames,
        )
        return jobs.memory_bytes(nearest, header, (400, 400))

    each = (100 * 100 + 400 * 400) * 4
    assert need(11) - need(1) == 10 * each


def test_what_memory_could_not_hold_is_refused(
    folder: Path, nearest: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(folder / "film.gif")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1000)
    made = plan.make(request(folder), nearest)
    assert made.jobs == []
    assert len(made.settled) == 4
    assert sum("GiB of memory" in settled.reason for settled in made.settled) == 3
    assert any("in 3 frames" in settled.reason for settled in made.settled)


def test_estimates_add_up(folder: Path, nearest: Upscaler) -> None:
    film(folder / "film.gif")
    made = plan.make(request(folder, recursive=True), nearest)
    total = estimates.estimate(made, nearest, workers=2)
    assert total.output_px == 24 * 16 * (3 + 3) == sum(job.output_px for job in made.jobs)
    assert total.output_bytes == sum(job.output_bytes for job in made.jobs) > 0
    assert total.memory_bytes == max(job.memory_bytes for job in made.jobs)
    assert total.network_s == 0.0, "a kernel is no network"
    assert 0 < total.encode_s / 2 <= total.wall_s <= total.encode_s
    empty = estimates.estimate(Plan(request=made.request), nearest, workers=2)
    assert (empty.output_px, empty.memory_bytes, empty.wall_s) == (0, 0, 0.0)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP", "BMP"])
def test_estimates_of_sizes_are_of_the_right_order(
    tmp_path: Path, nearest: Upscaler, format: str
) -> None:
    y, x = np.mgrid[:200, :300] / 30
    waves = 128 + 100 * np.stack([np.sin(x + y), np.cos(x - y), np.sin(x)], axis=2)
    grain = np.random.default_rng(0).normal(0, 2, waves.shape)
    path = tmp_path / "a.png"
    Image.fromarray(np.clip(waves + grain, 0, 255).astype(np.uint8)).save(path)
    suffix = format.lower()
    made = plan.make(request(path, scale=2, encoding=Encoding(format=suffix)), nearest)
    assert upscale(path, "-s", 2, "-f", suffix).exit_code == 0
    (job,) = made.jobs
    assert job.target is not None
    assert 1 / 4 < job.target.stat().st_size / job.output_bytes < 4
    if format == "BMP":
        assert 0 <= job.target.stat().st_size - job.output_bytes < 200


def test_a_dry_run_tells_the_totals(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"x")
    out = folder.parent / "out"
    upscale(folder / "a.png", "-o", f"{out}/")
    done = upscale(folder, "-r", "-o", out, "--dry-run", "--json")
    assert done.exit_code == 3
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    planned = [row for row in rows if row["status"] == "planned"]
    assert [Path(row["output"]).name for row in planned] == ["b.jpg", "c.png"]
    assert sorted(row["status"] for row in rows) == ["failed", "planned", "planned", "skipped"]
    said = re.search(r"in all: 2 files, ([\d.]+) megapixels out, about (\d+) MiB", done.stderr)
    assert said is not None
    assert float(said[1]) == round(2 * 24 * 16 / 1e6, 1)
    assert all(row["output_bytes"] > 0 and row["memory_bytes"] > 0 for row in planned)
    assert names(out) == ["a.png"]
    assert not (out / ".waifu4x").exists()


def test_planning_is_linear(tmp_path: Path, nearest: Upscaler) -> None:
    """Counted in calls of functions, which no busy machine changes."""
    data = save(tmp_path / "a.png", size=(1, 1)).read_bytes()

    def calls_for(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        for k in range(count):
            (folder / f"{k:04}.png").write_bytes(data)
        wished = request(folder, output=str(tmp_path / "out"))
        made = 0

        def note(frame: Any, event: str, argument: Any) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            planned = plan.make(wished, nearest)
        finally:
            sys.setprofile(before)
        assert len(planned.jobs) == count
        return made

    calls_for(10)  # what is made once
    small, large = calls_for(100), calls_for(400)
    assert large < 4.2 * small


def test_the_journal_is_not_read_where_it_could_not_be_written(
    folder: Path, nearest: Upscaler
) -> None:
    out = folder.parent / "out"
    (out / ".waifu4x" / "journal.jsonl").mkdir(parents=True)
    with pytest.raises(PictureWriteError, match="no regular file"):
        plan.make(request(folder, output=str(out)), nearest)


def test_folders_are_made_with_all_above(tmp_path: Path) -> None:
    outputs.prepare_folder(tmp_path / "a" / "b" / "c")
    outputs.prepare_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PictureWriteError, match="choose another with -o"):
        outputs.prepare_folder(tmp_path / "file" / "x")
