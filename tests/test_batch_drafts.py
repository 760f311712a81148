"""What the journal knows is not read: a folder that is done is planned without its headers."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from command import contents, counted, errors, names, save, upscale

from waifu4x import headers


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers are read."""
    seen: list[str] = []
    original = headers.read

    def reading(source: Any, **options: Any) -> Any:
        seen.append(source.name if isinstance(source, Path) else "bytes")
        return original(source, **options)

    monkeypatch.setattr(headers, "read", reading)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two that want one name, one whose name lies, a book, and an ordinary one."""
    place = tmp_path / "in"
    for k, name in enumerate(("a.png", "a.bmp", "sub/b.jpg")):
        save(place / name, seed=k)
    save(tmp_path / "x.jpg", seed=7).rename(place / "lies.png")
    with zipfile.ZipFile(place / "book.cbz", "w") as book:
        book.write(place / "a.png", "1.png")
    return place


def again(folder: Path, *options: object) -> Any:
    done = upscale(folder, "-r", "-o", folder.parent / "out", *options)
    assert done.exit_code in (0, 3), done.stderr
    return done


@pytest.mark.parametrize(
    ("options", "by_header"),
    [
        ((), ["lies.png"]),
        (("-f", "webp"), []),
        (("-f", "png"), []),
        (("--suffix", "_x"), ["lies.png"]),
        (("--suffix", ".png", "-f", "png"), []),
        (("--shard", "1/1", "-f", "png"), []),
        (("--retry-failed",), ["lies.png"]),
        (("--memory", "2G", "-f", "png"), []),
    ],
    ids=str,
)
def test_what_is_done_is_not_read(
    folder: Path, read: list[str], options: tuple[object, ...], by_header: list[str]
) -> None:
    first = [option for option in options if option != "--retry-failed"]
    assert counted(again(folder, *first), "done") == 5
    made = contents(folder.parent / "out")
    read.clear()
    done = again(folder, *options)
    assert read == by_header
    expected = 0 if "--retry-failed" in options else 5
    assert counted(done, "skipped", "done before") == expected
    assert contents(folder.parent / "out") == made


@pytest.mark.parametrize("options", [("--name", "{stem}"), ("--max-pixels", 10**6)], ids=str)
def test_what_depends_on_headers_reads_them(
    folder: Path, read: list[str], options: tuple[object, ...]
) -> None:
    again(folder, *options)
    read.clear()
    done = again(folder, *options)
    assert len(read) == 5
    assert counted(done, "done") == 0
    again(folder, *options, "--overwrite")
    assert len(read) > 10


def _touch(folder: Path, out: Path) -> None:
    os.utime(folder / "a.png", ns=(1, 1))


def _grow(folder: Path, out: Path) -> None:
    facts = (folder / "a.png").stat()
    save(folder / "a.png", seed=9, size=(7, 7))
    os.utime(folder / "a.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _cut(folder: Path, out: Path) -> None:
    (out / "a.png").write_bytes(b"short")


def _remove(folder: Path, out: Path) -> None:
    (out / "a.png").unlink()


@pytest.mark.parametrize("change", [_touch, _grow, _cut, _remove])
def test_what_changed_is_read(folder: Path, read: list[str], change: Any) -> None:
    again(folder, "-f", "png")
    out = folder.parent / "out"
    change(folder, out)
    read.clear()
    done = again(folder, "-f", "png")
    assert (counted(done, "done"), counted(done, "skipped", "done before")) == (1, 4)
    assert read == ["a.png"]
    fresh = folder.parent / "fresh"
    assert upscale(folder, "-r", "-f", "png", "-o", fresh).exit_code == 0
    assert contents(out) == contents(fresh)


def test_a_name_that_has_become_free_is_taken(folder: Path, read: list[str]) -> None:
    """As by a run that had read all headers."""
    again(folder, "-f", "png")
    out = folder.parent / "out"
    assert "a.bmp.png" in names(out)
    (folder / "a.png").unlink()
    done = again(folder, "-f", "png")
    assert (counted(done, "done"), counted(done, "skipped", "done before")) == (1, 3)
    fresh = folder.parent / "fresh"
    upscale(folder, "-r", "-f", "png", "-o", fresh)
    assert (out / "a.png").read_bytes() == (fresh / "a.png").read_bytes()
    read.clear()
    assert counted(again(folder, "-f", "png"), "done") == 0
    assert read == []


def test_a_name_that_is_taken_is_given_up(folder: Path) -> None:
    (folder / "a.png").rename(folder.parent / "a.png")
    again(folder, "-f", "png")
    out = folder.parent / "out"
    assert "a.bmp.png" not in names(out)
    (folder.parent / "a.png").rename(folder / "a.png")
    done = again(folder, "-f", "png")
    assert counted(done, "done") == 2
    fresh = folder.parent / "fresh"
    upscale(folder, "-r", "-f", "png", "-o", fresh)
    assert contents(out) == contents(fresh)


def test_what_became_unreadable_is_said_where_it_must_be_read(
    folder: Path, read: list[str]
) -> None:
    """Its line and its size are those of before, but its output went."""
    again(folder, "-f", "png")
    facts = (folder / "a.png").stat()
    (folder / "a.png").write_bytes(bytes(facts.st_size))
    os.utime(folder / "a.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert counted(again(folder, "-f", "png"), "skipped", "done before") == 5
    (folder.parent / "out" / "a.png").unlink()
    done = again(folder, "-f", "png")
    assert done.exit_code == 3
    (told,) = errors(done)
    assert f"{folder / 'a.png'}" in told
    assert counted(done, "failed") == 1
