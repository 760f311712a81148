"""A batch that is killed at any instant, and started again, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILES = 50
ROOT = Path(__file__).parents[1]
DAY_S = 24 * 3600

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def _sensitive() -> None:
    # A shell's background job inherits a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _picture(rng: np.random.Generator) -> Image.Image:
    """Noise takes the longest to encode, so that encoders are hit at work."""
    height, width = rng.integers(40, 120, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _fill(folder: Path) -> None:
    """50 files in three folders: pictures, an animation, pages, and a comic book."""
    rng = np.random.default_rng(0)
    for name in ("", "deep/er", "one"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for k in range(FILES - 4):
        place = folder / ("", "deep/er", "one")[k % 3]
        _picture(rng).save(place / f"{k:02}.{'jpg' if k % 4 == 0 else 'png'}", quality=90)
    for name, options in (("a.gif", {"duration": 40}), ("b.tif", {}), ("one/c.webp", {})):
        first, *others = [_picture(rng).resize((48, 40)) for _ in range(4 if "gif" in name else 2)]
        first.save(folder / name, save_all=True, append_images=others, **options)
    with zipfile.ZipFile(folder / "book.cbz", "w") as book:
        for k in range(5):
            _picture(rng).save(page := folder / "page.png")
            book.write(page, f"chapter/{k}.png")
            page.unlink()
        book.writestr("chapter/about.txt", "no picture")


def _tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but the journal and temporaries, and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in _all_files(folder)
        if ".waifu4x" not in path.parts and path.suffix != ".partial"
    }


def _all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def _temporaries(folder: Path) -> list[Path]:
    return [path for path in _all_files(folder) if path.suffix == ".partial"]


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """What changes for every file that is written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in _all_files(folder)}


def _rest(process: subprocess.Popen[str]) -> str:
    """What it says until it ends. (`communicate` would miss what `readline` has buffered.)"""
    assert process.stderr is not None
    told = process.stderr.read()
    process.wait(timeout=60)
    return told


@dataclass(frozen=True)
class Batch:
    """The inputs, and what an uninterrupted run makes of them."""

    inputs: Path
    reference: dict[str, bytes]

    def start(self, out: Path) -> subprocess.Popen[str]:
        command = ["upscale", str(self.inputs), "-o", str(out), "-r", "-m", "nearest", "-j", "3"]
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "waifu4x", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=_sensitive,
        )

    def finish(self, out: Path) -> str:
        with self.start(out) as process:
            told = _rest(process)
        assert process.returncode == 0, told
        return told

    def interrupt(self, out: Path, number: int, chance: random.Random) -> tuple[int, str]:
        """Send the signal at a random instant of the work: the exit code, and what was said."""
        with self.start(out) as process:
            assert process.stderr is not None
            told = "".join(process.stderr.readline() for _ in range(chance.randrange(1, FILES - 4)))
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(number)
            told += _rest(process)
        return process.returncode, told


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    place = tmp_path_factory.mktemp("batch")
    _fill(place / "in")
    before = _stamps(place / "in"), _tree(place / "in")
    assert len(before[1]) == FILES
    whole = Batch(place / "in", {})
    whole.finish(place / "out")
    reference = _tree(place / "out")
    assert len(reference) == FILES
    yield Batch(place / "in", reference)
    assert (_stamps(place / "in"), _tree(place / "in")) == before


@pytest.mark.parametrize(
    ("number", "code", "times"),
    [
        pytest.param(signal.SIGKILL, -9, 6, id="kill"),
        pytest.param(signal.SIGINT, 130, 2, id="int"),
        pytest.param(signal.SIGTERM, 143, 2, id="term"),
        pytest.param(signal.SIGKILL, -9, 60, id="kill-60", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 20, id="int-20", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 20, id="term-20", marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_resumed(
    batch: Batch, tmp_path: Path, number: signal.Signals, code: int, times: int
) -> None:
    chance = random.Random(times * number)
    hits = 0
    for k in range(times):
        out = tmp_path / f"out-{k}"
        got, told = batch.interrupt(out, number, chance)
        there, stamps = _tree(out), _stamps(out)
        # The interpreter, when it has nothing left to do but to end, dies of signals as they are.
        codes = (code, 0, -number) if there == batch.reference else (code,)
        assert got in codes, told
        hits += got == code
        assert "Traceback" not in told
        assert there.items() <= batch.reference.items(), "an output is torn"
        if number == signal.SIGKILL:
            for orphan in _temporaries(out):
                os.utime(orphan, (time.time() - 2 * DAY_S,) * 2)
        else:
            assert _temporaries(out) == []
            # What was told is there, and the other way round, but for a line that was interrupted.
            lines = {line.split(" → ")[0] for line in told.splitlines() if " → " in line}
            assert len(there) - 1 <= len(lines) <= len(there)
        batch.finish(out)
        assert _tree(out) == batch.reference
        assert _temporaries(out) == []
        after = _stamps(out)
        again = [name for name in there if after[out / name] != stamps[out / name]]
        assert again == [], "what was done was done again"
    assert hits >= 0.8 * times, "the signals came too late"


@pytest.mark.parametrize(
    ("number", "code", "times"),
    [
        pytest.param(signal.SIGTERM, 143, 3, id="term"),
        pytest.param(signal.SIGTERM, 143, 60, id="term-60", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 60, id="int-60", marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_it_at_once(
    batch: Batch, tmp_path: Path, number: signal.Signals, code: int, times: int
) -> None:
    """As `timeout` sends it: to the process, and once more to its group."""
    for k in range(times):
        out = tmp_path / f"out-{k}"
        with batch.start(out) as process:
            assert process.stderr is not None
            told = process.stderr.readline()
            process.send_signal(number)
            time.sleep(0.2 * (k / times) ** 2)  # from at once to long after the end
            process.send_signal(number)
            told += _rest(process)
        assert process.returncode == code, told
        assert "Traceback" not in told
        assert _tree(out).items() <= batch.reference.items()
        assert _temporaries(out) == []
        batch.finish(out)
        assert _tree(out) == batch.reference


def test_a_group_of_runs_into_one_folder(batch: Batch, tmp_path: Path) -> None:
    """Two runs at once do some work twice, and no harm."""
    out = tmp_path / "out"
    with batch.start(out) as one, batch.start(out) as two:
        told = [_rest(process) for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), told
    assert _tree(out) == batch.reference
    assert _temporaries(out) == []
    assert "done before" in batch.finish(out)
