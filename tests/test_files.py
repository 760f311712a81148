"""Bytes reach the disk whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from waifu4x import files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_write_and_replace(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    files.write_bytes(target, b"one")
    target.chmod(0o640)
    files.write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()]
)
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def fail() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_bytes(b"half of the new")
            assert target.read_bytes() == b"old"
            raise error

    with pytest.raises(type(error)):
        fail()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


def test_a_failing_sync_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is dying")

    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="dying"):
        files.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


def test_the_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    files.write_bytes(tmp_path / "a.png", b"new")
    assert done == ["sync", "rename", "sync"]


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "猫" * 85, "\udcff" * 255, "a\nb"])
def test_names_of_any_kind(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    for _ in range(2):
        temporary = files.partial_path(target)
        assert temporary.parent == tmp_path
        assert len(os.fsencode(temporary.name)) <= 255
        assert temporary.name.startswith(".")
        temporary.name.encode()  # always valid text: macOS and Windows take nothing else
    assert files.partial_path(target) != files.partial_path(target)
    files.write_bytes(target, b"x")
    assert names(tmp_path) == [name]


def test_sweep_removes_only_our_own_and_only_old_ones(tmp_path: Path) -> None:
    ours, young = files.partial_path(tmp_path / "a\nb.png"), files.partial_path(tmp_path / "c.png")
    others = [tmp_path / name for name in (".rsync.partial", "a.png.partial", ".a.1-XYZ.partial")]
    folder = tmp_path / ".d.1-0123abcd.partial"
    folder.mkdir()
    for path in (ours, young, *others):
        path.write_bytes(b"")
    old = time.time() - files.ORPHAN_AGE_S - 60
    for path in (ours, *others, folder):
        os.utime(path, (old, old))
    assert files.sweep_orphans(tmp_path) == 1
    assert not ours.exists()
    assert all(path.exists() for path in (young, *others, folder))
    assert files.sweep_orphans(tmp_path, older_than_s=-1.0) == 1
    assert not young.exists()
    assert files.sweep_orphans(tmp_path / "absent") == 0
