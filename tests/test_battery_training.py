"""A training that is killed at any instant, on any disk, ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from training import GAN, assert_equal, rows, save_picture, train, trainer, with_losses

from waifu4x.train import recipe, tables
from waifu4x.train.data import open_cache
from waifu4x.train.loop import Trainer

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
KILLS = 25
"""Half of them within a save."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills and disks of POSIX")

# Draws random numbers, too; two of five steps are by pixels.
LONG = with_losses(GAN, gan="wgan-gp")
_STEPS_EACH = 20
"""So many are there for each kill, that none comes too late."""

# Trains, and saves after every step. It says when it begins, and, where asked to, holds still in a
# save: in the midst of writing, or between the two renames.
WORKER = """
import os, sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from training import trainer
from waifu4x import files
from waifu4x.train import recipe, state
from waifu4x.train.data import open_cache
_, tests, folder, where, after = sys.argv
folder, saves = Path(folder), [0]
pairs = open_cache([folder / "pictures"], folder / "cache", scale=2, patch_px=8)
subject = trainer(pairs, recipe.load(str(folder / "long.toml")), folder / "run")

def hold():
    print("held", flush=True)
    time.sleep(60)

save, replace, fsync = subject.state.save, os.replace, os.fsync
def counted(*arguments):
    saves[0] += 1
    save(*arguments)
def halved(descriptor):
    if where == "writing" and saves[0] == int(after):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        hold()
    fsync(descriptor)
def between(source, target):
    replace(source, target)
    if where == "renaming" and saves[0] == int(after) and str(target).endswith("previous.pth"):
        hold()
subject.state.save, os.replace, os.fsync = counted, between, halved
print("ready", flush=True)
subject.run(on_report=lambda report: None, report_every=1, save_every_s=0.0)
print("done", flush=True)
"""


def _spawn(folder: Path, where: str, after: int) -> subprocess.Popen[str]:
    script = folder / "worker.py"
    script.write_text(WORKER)
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(TESTS), str(folder), where, str(after)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def _wait_for(stream: IO[str] | None, word: str) -> None:
    assert stream is not None
    for line in stream:
        if line.strip() == word:
            return
    raise AssertionError(f"it ended before it was {word}")


def _trainer(folder: Path, name: str) -> Trainer:
    cache = open_cache([folder / "pictures"], folder / "cache", scale=2, patch_px=8)
    return trainer(cache, recipe.load(str(folder / "long.toml")), folder / name)


def _kill_and_go_on(folder: Path, *, kills: int) -> None:
    for number in range(3):
        save_picture(folder / "pictures" / f"{number}.png", seed=number)
    steps = kills * _STEPS_EACH
    (folder / "long.toml").write_text(tables.to_toml(LONG.with_steps(steps).facts()))
    random = np.random.default_rng(0)
    reached: list[int] = []
    for kill in range(kills):
        where = ("writing", "any", "renaming", "any")[kill % 4]
        within = 1 if kill == 0 else int(random.integers(2, 8))  # at first the very first save
        with _spawn(folder, where, within) as process:
            if where == "any":
                _wait_for(process.stdout, "ready")
                time.sleep(float(random.uniform(0.0, 0.1)))
            else:
                _wait_for(process.stdout, "held")
            process.kill()
        assert process.returncode == -signal.SIGKILL
        found = _trainer(folder, "run")
        assert found.take_notes() == []  # nothing that bears its final name is ever damaged
        reached.append(found.state.step)
    assert reached == sorted(reached)
    assert reached[0] == 0  # killed in its first save, it starts anew
    assert 2 < reached[-1] < steps
    last = _trainer(folder, "run")
    train(last)
    undisturbed = _trainer(folder, "whole")
    wanted = train(undisturbed)
    assert_equal(last, undisturbed)
    # Of each step, what was said of it last.
    told = {row["step"]: row["losses"] for row in rows(folder / "run")}
    assert [told[step] for step in range(1, steps + 1)] == wanted


def test_killed_at_any_instant(tmp_path: Path) -> None:
    _kill_and_go_on(tmp_path, kills=4)


@pytest.mark.slow
def test_killed_at_any_instant_in_full(tmp_path: Path) -> None:
    _kill_and_go_on(tmp_path, kills=KILLS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk))
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs a small disk")
    if subprocess.run(arguments, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill(disk: Path, *, leave_bytes: int) -> Path:
    free_bytes = shutil.disk_usage(disk).free
    stone = disk / "stone"
    stone.write_bytes(b"\0" * max(0, free_bytes - leave_bytes))
    return stone


@pytest.mark.parametrize("room_share", [0.0, 0.5])
def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path, room_share: float) -> None:
    """What was saved stays, whether there is no room at all or for half of a state."""
    for number in range(3):
        save_picture(tmp_path / "pictures" / f"{number}.png", seed=number)
    (tmp_path / "long.toml").write_text(tables.to_toml(GAN.facts()))
    run = small_disk / "run"
    cache = open_cache([tmp_path / "pictures"], tmp_path / "cache", scale=2, patch_px=8)
    subject = trainer(cache, GAN, run)
    train(subject, stop=lambda: subject.state.step >= 5)
    kept = {name: (run / name).read_bytes() for name in ("last.pth", "previous.pth")}
    size_bytes = len(kept["last.pth"])
    stone = _fill(small_disk, leave_bytes=int(size_bytes * room_share))
    with pytest.raises(OSError, match="No space"):
        train(trainer(cache, GAN, run), save_every_s=0.0)
    assert {name: (run / name).read_bytes() for name in kept} == kept
    assert list(run.glob(".*")) == []
    stone.unlink()
    again = trainer(cache, GAN, run)
    assert again.state.step == 5
    train(again)
    whole = trainer(cache, GAN, tmp_path / "whole")
    train(whole)
    assert_equal(again, whole)


@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "lost"])
def test_a_state_that_the_disk_spoiled(tmp_path: Path, damage: str) -> None:
    """The one before it is gone on from, to the same end."""
    for number in range(3):
        save_picture(tmp_path / "pictures" / f"{number}.png", seed=number)
    cache = open_cache([tmp_path / "pictures"], tmp_path / "cache", scale=2, patch_px=8)
    for point in (5, 8):
        subject = trainer(cache, GAN, tmp_path / "run")
        train(subject, stop=lambda subject=subject, point=point: subject.state.step >= point)
    last = tmp_path / "run" / "last.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    spoiled = {"empty": b"", "half": content[: len(content) // 2], "flipped": content}
    if damage == "lost":
        last.unlink()
    else:
        last.write_bytes(spoiled[damage])
    again = trainer(cache, GAN, tmp_path / "run")
    notes = again.take_notes()
    assert again.state.step == 5
    assert [note.endswith("going on from previous.pth") for note in notes] == (
        [] if damage == "lost" else [True]
    )
    train(again)
    whole = trainer(cache, GAN, tmp_path / "whole")
    train(whole)
    assert_equal(again, whole)
