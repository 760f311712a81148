"""``waifu4x batch merge``: many journals become one, and nothing that they say is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, bound_by_permissions, contents, counted, errors, save, upscale
from typer.testing import CliRunner

from waifu4x import files
from waifu4x.batch import merging
from waifu4x.batch.journal import Journal, Line, read
from waifu4x.cli.app import app


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["batch", "merge", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def line(name: str, **changes: Any) -> Line:
    facts = {"source": name, "status": "done", "settings": "s", "output": name, **changes}
    return Line(**facts)


def failure(name: str) -> Line:
    return Line(source=name, status="failed", settings="", reason="is damaged")


def note(folder: Path, shard: tuple[int, int] | None, *lines: Line) -> Path:
    journal = Journal(folder, shard=shard)
    journal.begin()
    for each in lines:
        journal.append(each)
    return journal.path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Journals with superseded and torn lines, and of one shard that had nothing to do."""
    note(tmp_path, None, line("a.png", settings="old"), line("b.png"), failure("c.png"))
    note(tmp_path, (1, 5), line("a.png"), failure("d.png"), failure("b.png"))
    path = note(tmp_path, (2, 5), line("c.png"), line("d.png", output="e.png"), line("x.png"))
    path.write_bytes(path.read_bytes()[:-9])
    note(tmp_path, (5, 5))
    return tmp_path


def said(folder: Path) -> tuple[dict[str, Line], dict[str, Line]]:
    known, _ = read(folder)
    return known.done, known.failed


def journals(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".waifu4x").iterdir())


def test_they_become_one(out: Path) -> None:
    before = said(out)
    done = run(out)
    assert (done.exit_code, done.stdout) == (0, "")
    told = done.stderr.splitlines()
    assert told == [
        f"{out / '.waifu4x' / 'journal.jsonl'}: 4 done, 1 failed; 3 journals of shards merged",
        "no journal of shards 3-4 of 5: not run yet, or merged before",
    ]
    assert journals(out) == ["journal.jsonl"]
    assert said(out) == before
    done_lines, failed_lines = before
    assert set(done_lines) == {"a.png", "b.png", "c.png", "e.png"}
    assert done_lines["a.png"] == line("a.png")
    assert set(failed_lines) == {"b.png"}
    rows = (out / ".waifu4x" / "journal.jsonl").read_bytes().splitlines()
    assert len(rows) == 5, "nothing superseded, and nothing torn"


def test_runs_that_follow_count_on(out: Path) -> None:
    _, before = read(out)
    run(out)
    note(out, (1, 5), line("a.png", settings="new"))
    os.utime(out / ".waifu4x" / "journal-1-of-5.jsonl", ns=(1, 1))
    assert read(out)[1] == before + 1
    assert said(out)[0]["a.png"] == line("a.png", settings="new")


def test_twice_is_as_good_as_once(out: Path) -> None:
    run(out)
    path = out / ".waifu4x" / "journal.jsonl"
    once = path.read_bytes()
    again = run(out, "--json")
    assert (again.exit_code, again.stderr) == (0, "")
    assert path.read_bytes() == once
    assert json.loads(again.stdout) == {
        "journal": str(path),
        "done": 4,
        "failed": 1,
        "merged": [],
        "missing": [],
        "left": [],
    }


def test_for_programs(out: Path) -> None:
    note(out, (1, 2))
    told = json.loads(run(out, "--json").stdout)
    assert told["merged"] == ["1/2", "1/5", "2/5", "5/5"]
    assert told["missing"] == ["2/2", "3/5", "4/5"]


def test_shards_alone(tmp_path: Path) -> None:
    """Without a journal that they could be put into."""
    note(tmp_path, (1, 1), line("a.png"))
    done = run(tmp_path)
    assert (done.exit_code, len(done.stderr.splitlines())) == (0, 1)
    assert "1 journal of shards merged" in done.stderr
    assert journals(tmp_path) == ["journal.jsonl"]
    assert set(said(tmp_path)[0]) == {"a.png"}


class _Killed(BaseException):
    """What no handler of errors sees."""


@pytest.mark.parametrize("point", ["replace", "unlink"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_at_any_point_it_is_begun_again(
    out: Path, monkeypatch: pytest.MonkeyPatch, point: str, number: int
) -> None:
    """While journals are set aside, or removed: the third `replace` is the last of three."""
    before, calls = said(out), []
    module, original = (os, os.replace) if point == "replace" else (Path, Path.unlink)

    def killed(*arguments: Any, **options: Any) -> Any:
        if not str(arguments[0]).endswith(files.PARTIAL_SUFFIX):
            calls.append(arguments)
            if len(calls) == number:
                raise _Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, point, killed)
        with pytest.raises(_Killed):
            merging.merge(out)
    assert said(out) == before
    # A shard goes on meanwhile.
    note(out, (2, 5), line("later.png"))
    merged = merging.merge(out)
    assert (merged.done, merged.failed, merged.left) == (5, 1, ())
    assert journals(out) == ["journal.jsonl"]
    done, failed = said(out)
    assert done.pop("later.png") == line("later.png")
    assert (done, failed) == before


def test_killed_while_it_writes(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = said(out)
    base = (out / ".waifu4x" / "journal.jsonl").read_bytes()

    def killed(temporary: Path) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", killed)
        with pytest.raises(_Killed):
            merging.merge(out)
    assert (out / ".waifu4x" / "journal.jsonl").read_bytes() == base
    assert said(out) == before
    assert merging.merge(out).done == 4


@contextmanager
def _meanwhile(monkeypatch: pytest.MonkeyPatch, work: Any) -> Iterator[None]:
    """`work` is done after all was read, and before the merged journal has its name."""
    written = files.atomic_path

    @contextmanager
    def slow(target: Path) -> Iterator[Path]:
        with written(target) as temporary:
            yield temporary
            work()

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_path", slow)
        yield


def test_a_shard_that_runs_loses_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal was given another name, and it begins a new one."""
    running = Journal(out, shard=(2, 5))
    with _meanwhile(monkeypatch, lambda: running.append(line("later.png"))):
        done = run(out)
    assert done.exit_code == 0
    assert "journal-2-of-5.jsonl was written to meanwhile: merge again" in done.stderr
    assert journals(out) == ["journal-2-of-5.jsonl", "journal.jsonl"]
    assert "later.png" in said(out)[0]
    running.append(line("last.png"))
    assert run(out).exit_code == 0
    assert journals(out) == ["journal.jsonl"]
    assert set(said(out)[0]) >= {"a.png", "later.png", "last.png"}


def test_what_was_opened_before_is_left(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line may reach a journal after that has got its other name, and has been read."""
    with (
        (out / ".waifu4x" / "journal-1-of-5.jsonl").open("ab", buffering=0) as file,
        _meanwhile(monkeypatch, lambda: file.write(line("late.png").encoded())),
    ):
        merged = merging.merge(out)
    (left,) = merged.left
    assert left.name.startswith("journal-1-of-5.")
    assert journals(out) == sorted([left.name, "journal.jsonl"])
    assert "late.png" in said(out)[0]
    assert merging.merge(out).done == 5
    assert "late.png" in said(out)[0]


def test_a_run_without_shards_is_not_overwritten(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, synced = Journal(out), os.fsync

    def sync(descriptor: int) -> None:
        running.append(line("later.png"))
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        done = run(out)
    assert done.exit_code == 1
    assert errors(done) == [f"error: {running.path} is written by a run: merge when that has ended"]
    assert "later.png" in said(out)[0]
    assert run(out).exit_code == 0
    assert "later.png" in said(out)[0]


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "other"])
def test_where_there_is_nothing_to_merge(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out"
    if kind == "file":
        place.write_bytes(b"")
    elif kind != "missing":
        place.mkdir()
    if kind == "other":
        (place / ".waifu4x").mkdir()
        (place / ".waifu4x" / "notes.txt").write_bytes(b"")
    done = run(place)
    assert done.exit_code == 2
    (told,) = errors(done)
    assert str(place) in told
    assert "-o" in told


def test_journals_in_a_store_are_left_there() -> None:
    done = run("s3://bucket/big")
    assert done.exit_code == 2
    (told,) = errors(done)
    assert "s3://bucket/big" in told
    assert "every run reads them all" in told


def test_no_store_is_asked_to_say_so() -> None:
    script = """
import sys
from waifu4x.batch import merging
from waifu4x.errors import UsageError
from waifu4x.remote import urls
try:
    merging.merge(urls.location("s3://bucket/big"))
except UsageError as error:
    print(error)
assert "fsspec" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "every run reads them all" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_journal_that_may_not_be_written(out: Path) -> None:
    before = said(out)
    folder = out / ".waifu4x"
    folder.chmod(0o500)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "waifu4x", "batch", "merge", str(out)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            preexec_fn=bound_by_permissions(),
        )
    finally:
        folder.chmod(0o700)
    assert done.returncode == 1
    (told,) = errors(done)
    assert "may not be written" in told
    assert said(out) == before


def test_after_shards_and_a_merge_a_run_has_nothing_to_do(tmp_path: Path) -> None:
    for k in range(9):
        save(tmp_path / "in" / f"{k}.png", seed=k)
    place = tmp_path / "big"
    for k in (1, 2):
        assert upscale(tmp_path / "in", "-o", place, "--shard", f"{k}/2").exit_code == 0
    made = contents(place)
    assert "9 done, 0 failed; 2 journals" in run(place).stderr
    assert counted(upscale(tmp_path / "in", "-o", place), "skipped", "done before") == 9
    again = [upscale(tmp_path / "in", "-o", place, "--shard", f"{k}/4") for k in (1, 2, 3, 4)]
    assert sum(counted(each, "skipped", "done before") for each in again) == 9
    assert contents(place) == made
