"""The journal: what is torn, foreign or lost costs time, and never an output."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from waifu4x.batch import journal as journal_module
from waifu4x.batch import merging, plan, shards
from waifu4x.batch.journal import Journal, Line
from waifu4x.batch.request import Request
from waifu4x.sizes import Target


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
    assert json.loads(rows(tmp_path)[0]) == dataclasses.asdict(line()) | {"run": 1}


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
def test_what_makes_an_output_out_of_date(changes: dict[str, Any]) -> None:
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
            {"run": "1"},
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


# Several files.


def of_shard(folder: Path, index: int, count: int, *names: str, **changes: object) -> Path:
    """Lines that a shard notes, whatever their sources."""
    journal = Journal(folder, shard=(index, count))
    for name in names:
        journal.append(line(name, **changes))
    return journal.path


def test_a_shard_appends_to_its_own_and_all_are_read(tmp_path: Path) -> None:
    Journal(tmp_path).append(line("a.png"))
    assert of_shard(tmp_path, 2, 3, "b.png") == tmp_path / ".waifu4x" / "journal-2-of-3.jsonl"
    of_shard(tmp_path, 1, 40, "c.png")
    known = Journal(tmp_path)
    assert [known.find(name) for name in ("a.png", "b.png", "c.png")] == [
        line("a.png"),
        line("b.png"),
        line("c.png"),
    ]
    assert known.path.name == "journal.jsonl"
    assert len(known.path.read_bytes().splitlines()) == 1


def test_a_shard_remembers_its_own_files_alone(tmp_path: Path) -> None:
    """So that each needs its part of the memory; whoever noted them, in however many shards."""
    names = [f"{k}.png" for k in range(40)]
    for name in names[:20]:
        Journal(tmp_path).append(line(name))
    of_shard(tmp_path, 1, 7, *names[20:])
    for k in (1, 2, 3):
        journal = Journal(tmp_path, shard=(k, 3))
        mine = [name for name in names if shards.holds(name, (k, 3))]
        assert [name for name in names if journal.find(name) is not None] == mine
        assert mine


@pytest.mark.parametrize("name", ["journal-1-of-2.jsonl", "journal-1-of-2.0123abcd.jsonl"])
@pytest.mark.parametrize("shards_are_later", [False, True])
def test_of_two_files_the_later_run_counts(
    tmp_path: Path, name: str, shards_are_later: bool
) -> None:
    """Whatever the times of the files are: those of other hosts may be wrong."""
    first = Journal(tmp_path)
    for entry in (line(), failure("b.png"), line("c.png"), line("d.png")):
        first.append(entry)
    journals = tmp_path / ".waifu4x"
    later = Journal(tmp_path)
    later.path = journals / name
    for entry in (line(settings="new"), line("b.png"), failure("c.png"), failure("d.png")):
        later.append(entry)
    last = Journal(tmp_path)
    last.append(line("d.png", settings="newest"))
    os.utime(journals / name, ns=(2 if shards_are_later else 0, 2 if shards_are_later else 0))
    os.utime(first.path, ns=(1, 1))
    known = Journal(tmp_path)
    assert known.find("a.png") == line(settings="new")
    assert known.find("d.png") == line("d.png", settings="newest")
    failed = [source for source in ("a.png", "b.png", "c.png", "d.png") if known.has_failed(source)]
    assert failed == ["c.png"]


@pytest.mark.parametrize("base_is_later", [False, True])
def test_of_one_run_the_later_file_counts(tmp_path: Path, base_is_later: bool) -> None:
    """Lines of older versions all belong to one; on a tie the shard's counts."""
    journals = tmp_path / ".waifu4x"
    journals.mkdir()
    for name, settings, bad in (
        ("journal.jsonl", "base", "b.png"),
        ("journal-1-of-2.jsonl", "shard", "c.png"),
    ):
        old = dataclasses.asdict(line(settings=settings))
        del old["run"]
        rows = [json.dumps(old).encode() + b"\n", failure(bad).encoded(), b"torn"]
        (journals / name).write_bytes(b"".join(rows))
        os.utime(journals / name, ns=(5, 5))
    assert Journal(tmp_path).find("a.png") == line(settings="shard")
    if base_is_later:
        os.utime(journals / "journal.jsonl", ns=(6, 6))
    known = Journal(tmp_path)
    assert known.find("a.png") == line(settings="base" if base_is_later else "shard")
    assert known.has_failed("b.png")
    assert known.has_failed("c.png")


def test_runs_are_counted_over_all_files(tmp_path: Path) -> None:
    of_shard(tmp_path, 1, 2, "a.png")
    of_shard(tmp_path, 2, 2, "b.png", "c.png")
    journal = Journal(tmp_path)
    journal.append(line("d.png"))
    journal.append(line("e.png"))
    runs = [json.loads(row)["run"] for row in journal.path.read_bytes().splitlines()]
    assert runs == [3, 3]
    # Also by a shard that has nothing to do with the lines of that run.
    other = next(k for k in (1, 2) if not shards.holds("d.png", (k, 2)))
    row = of_shard(tmp_path, other, 2, "x.png").read_bytes().splitlines()[-1]
    assert json.loads(row)["run"] == 4


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    path = of_shard(tmp_path, 1, 2, "a.png")
    for name in (
        *("journal-0-of-2.jsonl", "journal-1-of-2.txt", "xjournal-1-of-2.jsonl", "journal-1.jsonl"),
        *(".journal-1-of-2.jsonl.1-00000000.partial", "journal-1-of-2.xyz.jsonl"),
    ):
        path.rename(path.with_name(name))
        assert Journal(tmp_path).find("a.png") is None
        path.with_name(name).rename(path)
    assert Journal(tmp_path).find("a.png") == line("a.png")


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    of_shard(tmp_path, 1, 2, "a.png")
    os.mkfifo(tmp_path / ".waifu4x" / "journal-2-of-2.jsonl")
    (tmp_path / ".waifu4x" / "journal-1-of-1.jsonl").mkdir()
    assert Journal(tmp_path).find("a.png") == line("a.png")


def test_a_shard_shows_that_it_runs(tmp_path: Path) -> None:
    Journal(tmp_path).begin()
    assert not (tmp_path / ".waifu4x").exists()
    journal = Journal(tmp_path, shard=(3, 4))
    journal.begin()
    assert journal.path.read_bytes() == b""
    journal.append(line())
    journal.begin()
    assert Journal(tmp_path).find("a.png") == line()


def test_a_file_that_is_merged_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in another one then."""
    path = of_shard(tmp_path, 1, 2, "a.png")
    read = journal_module.read_file
    went: list[Path] = []

    def reading(each: Path, **options: Any) -> Any:
        if not went:
            went.append(path)
            path.rename(path.with_name("journal.jsonl"))
        return read(each, **options)

    monkeypatch.setattr(journal_module, "read_file", reading)
    assert Journal(tmp_path).find("a.png") == line("a.png")
    assert went


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_a_file_that_is_merged_while_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, hidden: bool
) -> None:
    """Before it is looked at, or so that the folder shows neither of its names."""
    path = of_shard(tmp_path, 1, 2, "a.png", "b.png")
    calls: list[str] = []

    def listing(original: Any) -> Any:
        def listed(place: Any) -> Any:
            found = [*original(place)]
            calls.append(str(place))
            if len(calls) == number:
                path.rename(path.with_name("journal-1-of-2.0123abcd.jsonl"))
                found = [] if hidden else found
            return found

        return listed

    scan = listing(os.scandir)
    monkeypatch.setattr(os, "listdir", listing(os.listdir))
    monkeypatch.setattr(os, "scandir", lambda place: contextlib.nullcontext(scan(place)))
    journal = Journal(tmp_path)
    assert journal.find("a.png") == line("a.png")
    journal.append(failure("a.png"))
    assert json.loads(journal.path.read_bytes())["run"] == 2, "it is the later one"


def test_of_files_that_go_again_and_again_the_others_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = of_shard(tmp_path, 1, 2, "a.png")
    of_shard(tmp_path, 2, 2, "b.png")
    read, asked = journal_module.read_file, []

    def reading(each: Path, **options: Any) -> Any:
        asked.append(each)
        if each == gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(each))
        return read(each, **options)

    monkeypatch.setattr(journal_module, "read_file", reading)
    monkeypatch.setattr(journal_module, "_PAUSES_S", (0.0, 0.0))
    assert Journal(tmp_path).find("b.png") == line("b.png")
    assert asked.count(gone) == 3


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_link_to_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_shard(tmp_path, 1, 2, "a.png")
    (tmp_path / ".waifu4x" / "journal-2-of-2.jsonl").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(journal_module.time, "sleep", lambda _: pytest.fail("it is waited for"))
    assert Journal(tmp_path).find("a.png") == line("a.png")


def test_merging_removes_what_merges_left_and_no_mark(tmp_path: Path) -> None:
    """A run on a cluster shows its workers by a mark that this is the folder, however long."""
    path = of_shard(tmp_path, 1, 2, "a.png")
    mark, left = (
        path.with_name(f".{name}.12-0123abcd.partial") for name in ("cluster", "journal.jsonl")
    )
    young = path.with_name(".journal.jsonl.12-4567abcd.partial")
    for each in (mark, left, young):
        each.write_bytes(b"")
    for each in (mark, left):
        os.utime(each, (0, 0))
    merging.merge(tmp_path)
    assert sorted(path.parent.iterdir()) == sorted([mark, young, path.with_name("journal.jsonl")])


def test_the_end_of_a_run_is_told_to_any_journal(tmp_path: Path) -> None:
    told: list[Path] = []

    class Kept(Journal):
        def flush(self) -> None:
            super().flush()
            told.append(self.path)

    for journal in (Kept(tmp_path), Journal(tmp_path), None):
        plan.Plan(request=Request(inputs=("in",), target=Target(scale=2.0)), journal=journal).end()
    assert told == [tmp_path / ".waifu4x" / "journal.jsonl"]
    assert list(tmp_path.iterdir()) == []
