"""The journal: what is torn, foreign or lost costs time, and never an output."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from waifu4x.batch import journal as journal_module
from waifu4x.batch.journal import Journal, Line


def line(name: str = "a.png", **changes: object) -> Line:
    made = Line(
        source=name,
        status="done",
        settings="0123456789abcdef",
        output=name,
        source_bytes=12,
        source_mtime_ns=1_700_000_000_123_456_789,
        output_bytes=345,
    )
    return dataclasses.replace(made, **changes)


def failure(name: str = "a.png") -> Line:
    return Line(source=name, status="failed", settings="", reason="is damaged")


def rows(folder: Path) -> list[bytes]:
    return Journal(folder).path.read_bytes().split(b"\n")


def test_what_was_noted_is_known_at_once_and_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.path == tmp_path / ".waifu4x" / "journal.jsonl"
    assert not journal.path.parent.exists(), "reading makes nothing"
    journal.append(line())
    for known in (journal, Journal(tmp_path)):
        assert known.find("a.png") == line()
        assert known.find("b.png") is None
    assert json.loads(rows(tmp_path)[0]) == dataclasses.asdict(line())


def test_the_latest_line_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for entry in (line(), line(settings="other"), failure(), failure("b.png"), line("c.png")):
        journal.append(entry)
    for known in (journal, Journal(tmp_path)):
        assert known.find("a.png") == line(settings="other"), "a failure leaves the output as it is"
        assert known.has_failed("a.png")
        assert known.has_failed("b.png")
        assert not known.has_failed("c.png")
    journal.append(line())
    assert not journal.has_failed("a.png")
    assert not Journal(tmp_path).has_failed("a.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "other.png"},
        {"source": "other.png"},
        {"source_bytes": 13},
        {"source_mtime_ns": 1_700_000_000_123_456_790},
        {"settings": "other"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_makes_an_output_out_of_date(changes: dict[str, object]) -> None:
    assert line().is_about(line(output_bytes=9, reason="whatever"))
    assert not line().is_about(line(**changes))


@pytest.mark.parametrize("cut", [1, 7, 60, 150, -1], ids=str)
def test_a_torn_last_line(tmp_path: Path, cut: int) -> None:
    journal = Journal(tmp_path)
    journal.append(line("a.png"))
    journal.append(line("b.png"))
    whole = journal.path.read_bytes()
    start = whole.index(b"\n") + 1
    journal.path.write_bytes(whole[:start] + whole[start:][:cut])
    after = Journal(tmp_path)
    assert after.find("a.png") == line("a.png")
    # Without its line end alone it is whole, and nothing is lost.
    assert after.find("b.png") == (line("b.png") if cut == -1 else None)
    # What is appended is no part of it; now it is torn in the middle.
    after.append(line("c.png"))
    later = Journal(tmp_path)
    assert later.find("a.png") == line("a.png")
    assert later.find("c.png") == line("c.png")
    assert later.find("b.png") == (line("b.png") if cut == -1 else None)


FOREIGN = [
    *(b"", b" ", b"null", b"[]", b"5", b'"text"', b"{}", b"\x00" * 40, b"\xff\xfe", b"NaN"),
    *(b'{"source": "a.png"}', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000),
    json.dumps(dataclasses.asdict(line()) | {"version": 2}).encode(),
    *(
        json.dumps(dataclasses.asdict(line()) | change).encode()
        for change in (
            {"output": ["a.png"]},
            {"output": None},
            {"source": {}, "status": "failed"},
            {"status": "perhaps"},
            {"status": []},
            {"source_bytes": "12"},
            {"source_mtime_ns": 1.5},
            {"output_bytes": True},
        )
    ),
]


@pytest.mark.parametrize("row", FOREIGN, ids=lambda row: repr(row[:24]))
def test_foreign_lines_are_passed_over(tmp_path: Path, row: bytes) -> None:
    journal = Journal(tmp_path)
    journal.append(line("b.png"))
    good = journal.path.read_bytes()
    journal.path.write_bytes(row + b"\n" + good + row + b"\r\n" + row)
    after = Journal(tmp_path)
    assert after.find("b.png") == line("b.png")
    assert after.find("a.png") is None
    assert not after.has_failed("a.png")
    after.append(line("c.png"))
    assert Journal(tmp_path).find("c.png") == line("c.png")


def test_threads_append_at_the_same_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    gate = threading.Barrier(8)

    def append(thread: int) -> None:
        gate.wait()
        for k in range(50):
            journal.append(line(f"{thread}-{k}.png"))

    threads = [threading.Thread(target=append, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = rows(tmp_path)
    assert written.pop() == b""
    assert len(written) == 400
    assert {json.loads(row)["source"] for row in written} == {
        f"{thread}-{k}.png" for thread in range(8) for k in range(50)
    }
    assert Journal(tmp_path).find("7-49.png") == line("7-49.png")


def _append_many(folder: str, process: int) -> None:
    journal = Journal(Path(folder))
    for k in range(100):
        journal.append(line(f"{process}-{k}.png", reason="x" * (k * 40)))


def test_processes_append_at_the_same_time(tmp_path: Path) -> None:
    """Each by a journal of its own, as runs into one folder have; lines of up to 4 KB."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_append_many, args=(str(tmp_path), number)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    # Who sees the line of another half written begins with a line end: that makes an empty one.
    written = [row for row in rows(tmp_path) if row]
    assert sorted(json.loads(row)["source"] for row in written) == sorted(
        f"{process}-{k}.png" for process in range(4) for k in range(100)
    )


@pytest.mark.parametrize("name", ["caf\udce9.png", "new\nline.png", "猫.png", 'q"uo\\te', "\udcff"])
def test_names_of_every_kind(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    journal.append(line(name))
    journal.append(failure(f"not {name}"))
    after = Journal(tmp_path)
    assert after.find(name) == line(name)
    assert after.has_failed(f"not {name}")
    assert len(rows(tmp_path)) == 3
    assert journal.path.read_bytes().isascii()


def test_a_lost_journal_is_begun_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(line("a.png"))
    journal.path.unlink()
    journal.path.parent.rmdir()
    assert Journal(tmp_path).find("a.png") is None
    journal.append(line("b.png"))
    assert Journal(tmp_path).find("b.png") == line("b.png")


def test_a_journal_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / ".waifu4x" / "journal.jsonl").mkdir(parents=True)
    journal = Journal(tmp_path)
    assert journal.find("a.png") is None
    with pytest.raises(IsADirectoryError if os.name == "posix" else PermissionError):
        journal.append(line())
    assert journal.find("a.png") is None, "what could not be noted is not known"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / ".waifu4x").write_bytes(b"in the way")
    with pytest.raises(OSError, match=r"\.waifu4x"):
        Journal(tmp_path).append(line())
    assert (tmp_path / ".waifu4x").read_bytes() == b"in the way"


def test_a_disk_with_room_for_a_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.write` says so by a smaller number, and by no error."""
    write = os.write
    monkeypatch.setattr(
        journal_module.os, "write", lambda descriptor, data: write(descriptor, data[:20])
    )
    journal = Journal(tmp_path)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        journal.append(line("a.png"))
    assert journal.find("a.png") is None
    monkeypatch.undo()
    journal.append(line("b.png"))
    assert Journal(tmp_path).find("b.png") == line("b.png")
    assert Journal(tmp_path).find("a.png") is None
