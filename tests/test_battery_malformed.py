"""Files that were cut, flipped and spliced, as one folder through the real program."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import errors, names, program
from PIL import Image

from waifu4x import animations, headers, pictures
from waifu4x.codecs import plugins
from waifu4x.errors import PictureReadError
from waifu4x.pictures import Picture

WIDTH, HEIGHT = 48, 40
TRUNCATIONS, FLIPS, SPLICES = 64, 64, 16
EACH = TRUNCATIONS + FLIPS + SPLICES
_ERROR = re.compile(r"error: (?P<path>\S+?):? (?P<reason>\S.*)")


def _frames(count: int) -> list[Image.Image]:
    """Waves and grain: no part of them is left out by any encoder."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = []
    for k in range(count):
        waves = [np.sin((x + y + 9 * k) / 7), np.cos((x - y) / 5 + k), np.sin(x * y / 99 + k)]
        pixels = 128 + 100 * np.stack(waves, axis=2) + rng.normal(0, 4, (HEIGHT, WIDTH, 3))
        frames.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return frames


def _saved(format: str, *, frames: int = 1, **options: Any) -> bytes:
    file = io.BytesIO()
    first, *rest = _frames(frames)
    more = {"save_all": True, "append_images": rest} if rest else {}
    first.save(file, format, **more, **options)
    return file.getvalue()


def _deep(format: str) -> bytes:
    pixels = np.asarray(_frames(1)[0]).astype(np.uint16) * 257 + 13
    return pictures.encode(Picture(pixels=pixels), format=format)


def _batch() -> dict[str, bytes]:
    """By suffix: the eight formats of the battery."""
    return {
        "png": _saved("PNG"),
        "jpg": _saved("JPEG", quality=90),
        "webp": _saved("WEBP", quality=90),
        "bmp": _saved("BMP"),
        "tiff": _saved("TIFF", compression="tiff_adobe_deflate"),
        "gif": _saved("GIF", frames=3),
        "avif": _saved("AVIF", quality=90),
        "apng": _saved("PNG", frames=3),
    }


def _more() -> dict[str, bytes]:
    """By name and suffix: other ways of the same formats, and those of plugins."""
    found = {
        "deep.png": _deep("PNG"),
        "deep.tiff": _deep("TIFF"),
        "lzw.tiff": _saved("TIFF", compression="tiff_lzw"),
        "raw.tiff": _saved("TIFF"),
        "pages.tiff": _saved("TIFF", frames=3),
        "still.gif": _saved("GIF"),
        "film.webp": _saved("WEBP", frames=3),
        "lossless.webp": _saved("WEBP", lossless=True),
        "film.avif": _saved("AVIF", frames=3),
        "progressive.jpg": _saved("JPEG", progressive=True),
    }
    for name in ("HEIF", "JXL"):
        if plugins.problem(name, writing=True) is None:
            picture = Picture(pixels=np.asarray(_frames(1)[0]))
            found[name.lower()] = pictures.encode(picture, format=name)
    return found


def _mutants(data: bytes, *, seed: object) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(str(seed))
    for k in range(TRUNCATIONS):
        yield f"cut{k:02}", data[: len(data) * k // TRUNCATIONS]
    for k in range(FLIPS):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield f"flip{k:02}", bytes(changed)
    for k in range(SPLICES):
        changed = bytearray(data)
        size = rng.randrange(1, len(data) // 4)
        to, source = (rng.randrange(len(data) - size) for _ in range(2))
        changed[to : to + size] = data[source : source + size]
        yield f"splice{k:02}", bytes(changed)


@dataclass(frozen=True, kw_only=True)
class Battery:
    """The run over all of them, and what it said."""

    inputs: Path
    out: Path
    done: subprocess.CompletedProcess[str]
    rows: dict[str, dict[str, Any]]
    """The lines of the report, by the names of inputs."""

    @property
    def refused(self) -> set[str]:
        return {name for name, row in self.rows.items() if row["status"] == "failed"}


@pytest.fixture(scope="module")
def battery(tmp_path_factory: pytest.TempPathFactory) -> Battery:
    place = tmp_path_factory.mktemp("malformed")
    inputs, out, report = place / "in", place / "out", place / "report.jsonl"
    inputs.mkdir()
    for suffix, data in _batch().items():
        for kind, mutant in _mutants(data, seed=suffix):
            (inputs / f"{suffix}_{kind}.{suffix}").write_bytes(mutant)
    done = program(inputs, "-o", out, "-s", "2", "--report", report)
    rows = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    by_name = {Path(row["input"]).name: row for row in rows}
    assert len(by_name) == len(rows), "one line for every file"
    return Battery(inputs=inputs, out=out, done=done, rows=by_name)


def test_every_file_is_settled_and_the_code_says_so(battery: Battery) -> None:
    assert set(battery.rows) == set(names(battery.inputs))
    assert len(battery.rows) == 8 * EACH == 1152
    assert {row["status"] for row in battery.rows.values()} == {"done", "failed"}
    assert (battery.done.returncode, battery.done.stdout) == (3, "")


def test_every_truncation_is_refused(battery: Battery) -> None:
    cut = {name for name in battery.rows if "_cut" in name}
    assert len(cut) == 8 * TRUNCATIONS == 512
    assert cut - battery.refused == set()


def test_every_refusal_is_one_line_with_path_and_reason(battery: Battery) -> None:
    said = [_ERROR.fullmatch(line) for line in errors(battery.done)]
    assert all(said)
    paths = Counter(match["path"] for match in said if match)
    assert paths == {str(battery.inputs / name): 1 for name in battery.refused}


def test_nothing_else_is_said(battery: Battery) -> None:
    """No lines of libtiff, libpng and the like, no warnings."""
    summary = battery.done.stderr.splitlines()[-2:]
    counts = [str(len(battery.rows) - len(battery.refused)), str(len(battery.refused))]
    assert [row.split() for row in summary] == [["done", counts[0]], ["failed", counts[1]]]
    for line in battery.done.stderr.splitlines()[:-2]:
        assert line.startswith(("error: ", "  note: ")) or " → " in line, line


def test_outputs_are_whole_and_of_what_was_not_refused(battery: Battery) -> None:
    made = {Path(row["output"]).name for row in battery.rows.values() if row["status"] == "done"}
    assert set(names(battery.out)) == made
    assert len(made) == len(battery.rows) - len(battery.refused)
    for name in made:
        with Image.open(battery.out / name) as image:
            image.load()
    every = sorted(path.name for path in battery.out.rglob(".*"))
    assert every == [".waifu4x"], "no temporaries"


def test_damage_that_is_not_found_is_rare_where_formats_have_checksums(battery: Battery) -> None:
    """What gets through is damage of pixels, which formats without checksums cannot know of."""
    through = Counter(name.partition("_")[0] for name in battery.rows.keys() - battery.refused)
    assert through["apng"] == 0
    assert through["png"] <= 1  # a splice of bytes onto themselves
    assert 0 < through["bmp"] <= FLIPS + SPLICES


def test_fail_fast_stops_at_the_first(battery: Battery, tmp_path: Path) -> None:
    done = program(battery.inputs, "-o", tmp_path / "out", "-s", "2", "--fail-fast")
    assert done.returncode == 3
    (told,) = errors(done)
    assert "apng_cut00.apng is empty (0 bytes)" in told
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_other_ways_of_the_formats_too(tmp_path: Path) -> None:
    """Read within this process: every truncation is refused, and nothing else is raised."""
    through: list[str] = []
    reasons: list[str] = []
    for name, data in _more().items():
        for kind, mutant in _mutants(data, seed=name):
            try:
                header = headers.read(mutant)
                (animations if header.frames > 1 else pictures).read(mutant)
            except PictureReadError as error:
                reasons.append(str(error))
            else:
                through += [f"{name} {kind}"] if kind.startswith("cut") else []
    assert through == []
    assert len(reasons) >= 10 * TRUNCATIONS
    assert all(reason.isprintable() for reason in reasons)


def _peak_bytes(pid_usage: Any) -> int:
    return pid_usage.ru_maxrss * 1024  # Linux counts KiB


@pytest.mark.slow
def test_the_public_collection_of_broken_pictures(tmp_path: Path) -> None:
    """WAIFU4X_CORPUS=DIR: every file of it, as one folder through one process."""
    corpus = os.environ.get("WAIFU4X_CORPUS")
    if not corpus:
        pytest.skip("needs WAIFU4X_CORPUS")
    out, report = tmp_path / "out", tmp_path / "report.jsonl"
    done = program(
        *(Path(corpus).resolve(), "-r", "-o", out, "-s", 1, "-f", "png", "--first-frame"),
        *("--report", report, "--quiet"),
        timeout=3600,
    )
    assert done.returncode in (0, 3), (done.returncode, done.stderr[-2000:])
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    rows = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
    status = Counter(row["status"] for row in rows)
    assert status["failed"] == len(errors(done))
    assert status["done"] == len(names(out))
    assert not list(tmp_path.rglob("*.partial"))
    assert _peak_bytes(resource.getrusage(resource.RUSAGE_CHILDREN)) < 2 * 1024**3
