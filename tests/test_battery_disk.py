"""Disks that are full, read-only or small: what was there stays, and what is there is whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import bound_by_permissions, contents, counted, errors, names, program, save, upscale

from waifu4x.batch import outputs
from waifu4x.batch.journal import Journal, Line

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="disks and rights of POSIX")

PRECIOUS = b"not made by this program"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 pictures that no format makes small."""
    folder = tmp_path_factory.mktemp("noisy")
    for k in range(30):
        save(folder / f"{k:02}.bmp", seed=k, size=(224, 224))
    return folder


@pytest.fixture
def fifty(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for k in range(50):
        save(folder / f"{k:02}.png", seed=k)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk))
    if not mounted:
        pytest.skip("mounting is not permitted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _mount(*arguments: str) -> bool:
    if sys.platform != "linux" or shutil.which("mount") is None:
        return False
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    return done.returncode == 0


def full_at(
    monkeypatch: pytest.MonkeyPatch, number: int, *, code: int = errno.ENOSPC
) -> Counter[str]:
    """From the `number`-th on, every output is written by half; how often each was tried."""
    tried: Counter[str] = Counter()
    write = Path.write_bytes

    def fail(path: Path, data: Any) -> int:
        if not path.name.endswith(".partial"):
            return write(path, data)
        tried[path.name.split(".")[1]] += 1
        if tried.total() < number:
            return write(path, data)
        write(path, data[: len(data) // 2])
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    return tried


def told_once(done: Any, *, code: int = 1) -> str:
    assert done.exit_code == code, done.stderr
    (told,) = errors(done)
    return told


# 1 to 5: a disk of one mebibyte.


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff", "bmp"])
def test_1_to_5_a_small_disk(noisy: Path, small_disk: Path, tmp_path: Path, format: str) -> None:
    options = ("-s", 1, "-f", format, "--no-space-check")
    out, whole = small_disk / "out", tmp_path / "whole"
    assert upscale(noisy, "-o", whole, *options).exit_code == 0
    (out).mkdir()
    (out / f"29.{format}").write_bytes(PRECIOUS)
    done = upscale(noisy, "-o", out, *options, "--overwrite")
    *_, told = errors(done)
    assert done.exit_code == 1
    assert told.startswith(f"error: {out}/")
    assert "bytes, but the disk is full: free some space" in told
    there = contents(out)
    assert there.pop(f"29.{format}") == PRECIOUS
    assert 0 < len(there) < 29
    assert there.items() <= contents(whole).items()
    assert not list(out.rglob("*.partial"))
    assert counted(done, "to do", "the same command goes on") > 0
    assert _mount("-o", "remount,size=64m", str(small_disk))
    again = upscale(noisy, "-o", out, *options)
    assert again.exit_code == 0
    assert counted(again, "done") == 29 - len(there)
    assert contents(out) == {**contents(whole), f"29.{format}": PRECIOUS}


def test_a_small_disk_is_seen_before_any_work(
    noisy: Path, small_disk: Path, calls: list[int]
) -> None:
    told = told_once(upscale(noisy, "-o", small_disk / "out", "-s", 1))
    assert f"the outputs in {small_disk} need about" in told
    assert "0.9 MiB are free" in told or "1.0 MiB are free" in told
    assert "--no-space-check" in told
    assert (calls, names(small_disk)) == ([], [])
    assert upscale(noisy / "00.bmp", "-o", small_disk / "a.bmp", "-s", 1).exit_code == 0


# 6: a quota.


@pytest.mark.parametrize("workers", [1, 4])
def test_6_a_quota_at_file_10_of_50(
    fifty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    out = tmp_path / "out"
    assert upscale(fifty, "-o", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        tried = full_at(patch, 10, code=errno.EDQUOT)
        done = upscale(fifty, "-o", out, "-j", workers)
    told = errors(done)
    assert done.exit_code == 1
    assert all(f"error: {out}/" in line and "the disk is full" in line for line in told)
    assert len(names(out)) == counted(done, "done") == 9
    assert set(tried.values()) == {1}, "nothing was tried twice"
    assert tried.total() <= 9 + 2 * workers, "what was being encoded, and nothing that came next"
    assert contents(out).items() <= contents(tmp_path / "whole").items()
    again = upscale(fifty, "-o", out)
    assert (again.exit_code, counted(again, "skipped", "done before")) == (0, 9)
    assert contents(out) == contents(tmp_path / "whole")
    retried = upscale(fifty, "-o", out, "--retry-failed")
    assert counted(retried, "failed") == 0


def test_6_a_limit_on_the_size_of_files(fifty: Path, tmp_path: Path) -> None:
    """It is about one file: the others fit."""
    save(fifty / "large.bmp", size=(100, 100))
    out = tmp_path / "out"
    save(out / "large.bmp", seed=9)
    before = (out / "large.bmp").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = program(fifty, "-o", out, "-s", 2, "--overwrite", preexec_fn=limit)
    assert done.returncode == 3
    (told,) = errors(done)
    assert f"{out}/large.bmp cannot be written: File too large" in told
    assert (out / "large.bmp").read_bytes() == before
    assert len(names(out)) == 51


# 7: the full device.


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_7_dev_full(fifty: Path, tmp_path: Path, calls: list[int]) -> None:
    told = told_once(upscale(fifty / "00.png", "-o", "/dev/full", "-f", "png", "--overwrite"))
    assert "/dev/full is no regular file" in told
    assert calls == []
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    with open("/dev/full", "wb") as full:
        done = program(fifty / "00.png", "-o", "-", stdout=full, stderr=subprocess.PIPE, **PIPED)
    assert done.returncode == 1
    assert "No space left on device" in errors(done)[0]
    reported = upscale(fifty, "-o", tmp_path / "out", "--report", "/dev/full")
    assert reported.exit_code == 1
    assert "No space left on device" in errors(reported)[-1]


PIPED: dict[str, Any] = {"capture_output": False}


# 8, 9: what may not be written.


def test_8_a_folder_that_may_not_be_written(fifty: Path, tmp_path: Path) -> None:
    give_up = bound_by_permissions()
    out = tmp_path / "out"
    save(out / "00.png", seed=9)
    before = contents(out)
    out.chmod(0o555)
    for options in ([], ["--overwrite"]):
        done = program(fifty, "-o", out, *options, preexec_fn=give_up)
        assert done.returncode == 1
        (told,) = errors(done)
        assert f"the folder {out} may not be written" in told
        assert contents(out) == before


def test_8_a_folder_in_the_output_folder(fifty: Path, tmp_path: Path) -> None:
    give_up = bound_by_permissions()
    save(fifty / "sub" / "a.png")
    out = tmp_path / "out"
    for name in ("a.png", "b.png"):
        save(out / "sub" / name, seed=9)
    before = contents(out)
    (out / "sub").chmod(0o555)
    done = program(fifty, "-r", "-o", out, "--overwrite", preexec_fn=give_up)
    assert done.returncode == 3
    assert f"the folder {out / 'sub'} may not be written" in errors(done)[0]
    assert before.items() <= contents(out).items()
    assert len(names(out)) == 52


def test_9_a_file_that_may_not_be_written(fifty: Path, tmp_path: Path) -> None:
    """It is a matter of its folder whether it may be replaced; it stays what it was otherwise."""
    give_up = bound_by_permissions()
    out = tmp_path / "out.png"
    out.write_bytes(PRECIOUS)
    out.chmod(0o444)
    done = program(fifty / "00.png", "-o", out, preexec_fn=give_up)
    assert (done.returncode, out.read_bytes()) == (0, PRECIOUS)
    done = program(fifty / "00.png", "-o", out, "--overwrite", preexec_fn=give_up)
    assert done.returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o444
    assert out.read_bytes().startswith(b"\x89PNG")


# 10: another device.


def test_10_an_output_on_another_device(fifty: Path, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    assert upscale(fifty, "-o", tmp_path / "whole").exit_code == 0
    with tempfile.TemporaryDirectory(dir=shm) as other:
        (tmp_path / "out").symlink_to(other)
        save(Path(other) / "00.png", seed=9)
        before = contents(Path(other))
        done = upscale(fifty, "-o", tmp_path / "out")
        assert (done.exit_code, counted(done, "done")) == (0, 49)
        assert contents(Path(other)) == {**contents(tmp_path / "whole"), **before}


# 11, 12: syncing, and the journal.


def test_11_no_space_when_syncing(
    fifty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", os.fsync
    assert upscale(fifty, "-o", tmp_path / "whole").exit_code == 0
    (out).mkdir()
    (out / "49.png").write_bytes(PRECIOUS)
    tried: list[int] = []

    def fail(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            tried.append(descriptor)
            if len(tried) >= 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        done = upscale(fifty, "-o", out, "--overwrite", "-j", 1)
    assert done.exit_code == 1
    assert all("bytes, but the disk is full" in line for line in errors(done))
    assert len(names(out)) == 3 + 1
    assert len(tried) <= 3 + 2
    assert (out / "49.png").read_bytes() == PRECIOUS
    assert upscale(fifty, "-o", out).exit_code == 0
    assert contents(out) == {**contents(tmp_path / "whole"), "49.png": PRECIOUS}


def test_12_no_space_for_the_journal(
    fifty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, append = tmp_path / "out", Journal.append
    assert upscale(fifty, "-o", tmp_path / "whole").exit_code == 0
    told_of: list[Line] = []

    def fail(journal: Journal, line: Line) -> None:
        told_of.append(line)
        if len(told_of) >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(journal, line)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        done = upscale(fifty, "-o", out, "-j", 1)
    assert done.exit_code == 1
    *_, told = errors(done)
    assert f"{out}/.waifu4x/journal.jsonl needs" in told
    assert "the disk is full" in told
    assert contents(out).items() <= contents(tmp_path / "whole").items()
    assert len(names(out)) < 10
    assert upscale(fifty, "-o", out).exit_code == 0
    assert contents(out) == contents(tmp_path / "whole")


def _journal_is_a_folder(journal: Path) -> None:
    journal.mkdir(parents=True)


def _journal_is_a_pipe(journal: Path) -> None:
    journal.parent.mkdir()
    os.mkfifo(journal)


def _its_folder_is_a_file(journal: Path) -> None:
    journal.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_journal_is_a_folder, _journal_is_a_pipe, _its_folder_is_a_file])
def test_a_journal_that_cannot_be_is_said_before_any_work(
    fifty: Path, tmp_path: Path, calls: list[int], spoil: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    spoil(out / ".waifu4x" / "journal.jsonl")
    told = told_once(upscale(fifty, "-o", out))
    assert f"{out}/.waifu4x" in told
    assert (calls, names(out)) == ([], [])


# What the plan says of space.


def test_too_little_space_is_refused_beforehand(
    fifty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    monkeypatch.setattr(outputs, "_free_bytes", lambda folder: 0)
    before = contents(tmp_path)
    for arguments in ((fifty, "-o", tmp_path / "out"), (fifty / "00.png",)):
        told = told_once(upscale(*arguments))
        assert f"in {tmp_path}" in told
        assert "0.0 MiB are free" in told
        assert (calls, contents(tmp_path)) == ([], before)
    done = upscale(fifty, "-o", tmp_path / "out", "--no-space-check")
    assert (done.exit_code, len(names(tmp_path / "out"))) == (0, 50)
    assert upscale(fifty, "-o", tmp_path / "out").exit_code == 0, "nothing needs no space"


def test_space_of_each_disk_is_counted_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {1: 120, 2: 10}

    class Place:
        def __init__(self, device: int) -> None:
            self.st_dev = device

        def stat(self) -> Place:
            return self

        def __str__(self) -> str:
            return f"disk {self.st_dev}"

    places = {Path("one"): Place(1), Path("two"): Place(2)}
    monkeypatch.setattr(outputs, "check_folder", lambda folder: places[folder])
    monkeypatch.setattr(outputs, "_free_bytes", lambda folder: free[folder.st_dev])
    monkeypatch.setattr(outputs, "shown", str)
    outputs.check_space([(Path("one/a"), 50), (Path("one/b"), 50), (Path("two/c"), 8)])
    with pytest.raises(outputs.DiskFullError, match="the outputs in disk 1 need"):
        outputs.check_space([(Path("one/a"), 50), (Path("one/b"), 51)])
    with pytest.raises(outputs.DiskFullError, match="the outputs in disk 2 need"):
        outputs.check_space([(Path("one/a"), 50), (Path("two/b"), 10)])
