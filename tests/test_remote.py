"""Pictures in stores: as in folders of this machine, and byte for byte the same."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import shaky
from command import ROOT, contents, counted, errors, noise, save, upscale
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations
from PIL import Image
from shaky import ShakyFileSystem, Shop, failing

from waifu4x.batch import plan, remote_journal
from waifu4x.batch.request import Request
from waifu4x.models import open_upscaler
from waifu4x.remote import stores
from waifu4x.remote.urls import Url
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

PROTOCOLS = ["memory", "shaky"]
"""One that shows an object when it is whole, and one with folders and files that grow."""


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stores begin empty, and nothing is left among the temporary files."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    shaky.empty()
    yield folder
    assert list(folder.iterdir()) == []
    shaky.empty()


@pytest.fixture(params=PROTOCOLS)
def shop(request: pytest.FixtureRequest) -> Shop:
    return Shop(request.param)


def archive(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as book:
        for seed, name in enumerate(names):
            book.writestr(name, save(path.with_name("page.png"), seed=seed).read_bytes())
    path.with_name("page.png").unlink()
    return path


def animation(path: Path) -> Path:
    frames = [noise(seed=seed).convert("P") for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of all sorts."""
    folder = tmp_path / "photos"
    save(folder / "a.png", seed=1)
    save(folder / "b [1].jpg", seed=2, size=(20, 10))
    save(folder / "deep" / "er" / "c.webp", seed=3)
    save(folder / "deep" / "d.tiff", seed=4)
    save(folder / "naïve.png", seed=5, mode="RGBA")
    save(folder / "e.png", seed=6).rename(folder / "without_suffix")
    animation(folder / "moving.gif")
    archive(folder / "deep" / "book.cbz", "1.png", "2.png")
    save(folder / ".hidden" / "f.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_the_same_wherever_it_lies(
    photos: Path, tmp_path: Path, shop: Shop
) -> None:
    there = shop.fill(photos)
    before = shop.files
    here = upscale(photos, "-o", tmp_path / "big", "-r", "-s", "2")
    assert here.exit_code == 0
    expected = contents(tmp_path / "big")
    assert len(expected) == 8
    for done in (
        upscale(f"{there}/", "-o", f"{shop.root}out/", "-r", "-s", "2"),
        upscale(there, "-o", tmp_path / "from", "-r", "-s", "2"),
        upscale(photos, "-o", f"{shop.root}to", "-r", "-s", "2"),
    ):
        assert done.exit_code == 0, done.stderr
        assert counted(done, "done") == 8
        assert counted(done, "left out", "hidden") == 1
        assert counted(done, "left out", "no picture") == 1
    assert shop.below("out") == expected
    assert shop.below("to") == expected
    assert contents(tmp_path / "from") == expected
    assert {name: shop.files[name] for name in before} == before, "inputs are never changed"


def test_only_what_is_missing_or_changed_is_done(
    photos: Path, shop: Shop, calls: list[int]
) -> None:
    there = shop.fill(photos)
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2")
    assert upscale(*command).exit_code == 0
    whole = shop.below("out")
    calls.clear()
    again = upscale(*command)
    assert (again.exit_code, counted(again, "skipped", "done before"), calls) == (0, 8, [])
    shop.remove("out/deep/d.tiff")
    shop.put("in/a.png", save(photos / "a.png", seed=99).read_bytes())
    shop.put("out/naïve.png", b"cut")
    third = upscale(*command)
    assert (third.exit_code, counted(third, "done")) == (0, 3)
    assert counted(third, "skipped", "done before") == 5
    now = shop.below("out")
    assert now.keys() == whole.keys()
    assert {name for name in now if now[name] != whole[name]} == {"a.png"}
    other = upscale(*command[:-1], "3")
    assert counted(other, "done") == 8, "other settings make other pictures"


def test_what_was_there_before_is_kept(photos: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    shop.put("out/a.png", b"somebody's own")
    command = (there, "-o", f"{shop.root}out", "-s", "2")
    done = upscale(*command)
    assert counted(done, "skipped", "exists (--overwrite replaces it)") == 1
    assert counted(done, "left out", "a folder (-r goes into it)") == 1
    assert shop.below("out")["a.png"] == b"somebody's own"
    upscale(*command, "--overwrite")
    assert shop.below("out")["a.png"].startswith(b"\x89PNG")


def test_a_dry_run_writes_nothing(photos: Path, shop: Shop) -> None:
    for path in ("b [1].jpg", "deep/er/c.webp", "moving.gif"):
        (photos / path).unlink()  # each format takes a second to be tried out
    there = shop.fill(photos)
    before = dict(ShakyFileSystem.files), dict(MemoryFileSystem.store)
    done = upscale(there, "-o", f"{shop.root}out", "-r", "--dry-run", "--json")
    assert done.exit_code == 0
    planned = [json.loads(line) for line in done.stdout.splitlines()]
    assert f"{shop.root}out/deep/d.tiff" in {row.get("output") for row in planned}
    assert (dict(ShakyFileSystem.files), dict(MemoryFileSystem.store)) == before


def test_a_damaged_file_fails_alone(photos: Path, tmp_path: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    good = shop.files["in/a.png"]
    shop.put("in/a.png", good[:-30])
    shop.put("in/deep/bad.cbz", b"no archive")
    shop.put("in/empty.png", b"")
    report = tmp_path / "report.jsonl"
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2")
    done = upscale(*command, "--report", report)
    assert (done.exit_code, counted(done, "done"), counted(done, "failed")) == (3, 7, 3)
    first, second, third = sorted(errors(done))
    assert first.startswith(f"error: {there}/a.png is damaged or cut off")
    assert second.startswith(f"error: {there}/deep/bad.cbz is not a ZIP file")
    assert third.startswith(f"error: {there}/empty.png is empty")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert sum(row["status"] == "failed" for row in rows) == 3
    shop.put("in/a.png", good)
    again = upscale(*command, "--retry-failed")
    assert (counted(again, "done"), counted(again, "failed")) == (1, 2)
    assert "a.png" in shop.below("out")


def test_an_interrupted_run_goes_on(
    photos: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = shop.fill(photos)
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2", "-j", "1")
    enlarge, put, begun, is_put = Upscaler.upscale_all, stores.put, [], threading.Event()

    def interrupted(self: Upscaler, *arguments: Any, **options: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            assert is_put.wait(60)
            raise KeyboardInterrupt
        return enlarge(self, *arguments, **options)

    def told(content: bytes | Path, url: Url) -> None:
        put(content, url)
        if "/.waifu4x/" not in url.text:
            is_put.set()

    monkeypatch.setattr(stores, "put", told)
    monkeypatch.setattr(Upscaler, "upscale_all", interrupted)
    done = upscale(*command)
    assert done.exit_code == 130
    finished = shop.below("out")
    assert 0 < len(finished) < 8
    assert shop.journal().count(b'"done"') == len(finished), "it was put at the end all the same"
    # As from another machine, which knows only what was put.
    monkeypatch.setenv("WAIFU4X_HOME", str(tmp_path / "elsewhere"))
    again = upscale(*command)
    assert counted(again, "skipped", "done before") == len(finished)
    assert counted(again, "done") == 8 - len(finished)
    upscale(photos, "-o", tmp_path / "big", "-r", "-s", "2")
    assert shop.below("out") == contents(tmp_path / "big")


def test_a_journal_that_was_not_put_is_known_here(
    photos: Path, shop: Shop, calls: list[int]
) -> None:
    there = shop.fill(photos)
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2")
    upscale(*command)
    # As after a kill: what stands in the store is what the run began with.
    shop.put("out/.waifu4x/journal.jsonl", b"")
    calls.clear()
    assert counted(upscale(*command), "skipped", "done before") == 8
    assert calls == []
    assert shop.journal().count(b"\n") == 8


@pytest.mark.parametrize("operation", ["half", "mv", "info"])
def test_a_put_that_dies_leaves_nothing(photos: Path, operation: str) -> None:
    shop = Shop("shaky")
    there = shop.fill(photos)
    shop.put("out/moving.gif", b"from before")
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2", "--overwrite")
    with failing(operation, "out/.moving.gif", ConnectionError("the cable was cut")):
        done = upscale(*command)
    assert (done.exit_code, counted(done, "done")) == (3, 7)
    (line,) = errors(done)
    url = f"{shop.root}out/moving.gif"
    assert line.startswith(f"error: {url} cannot be written: the cable was cut")
    assert shop.below("out")["moving.gif"] == b"from before"
    assert len(shop.below("out")) == 8, "and no temporary file"
    assert counted(upscale(*command, "--retry-failed"), "done") == 1
    assert shop.below("out")["moving.gif"].startswith(b"GIF89a")


def test_a_store_that_replaces_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SMB does: what is there has to be moved away first, and comes back where that fails."""
    shop = Shop("shaky")
    shop.put("out/a.png", b"from before")
    mv, failures = ShakyFileSystem.mv, [OSError("the disk is worn")]

    def careful(self: ShakyFileSystem, path1: str, path2: str, **options: Any) -> None:
        if path2 in self.files:
            raise FileExistsError(path2)
        if path2 == "/out/a.png" and ".partial" in path1 and failures:
            raise failures.pop()
        mv(self, path1, path2)

    monkeypatch.setattr(ShakyFileSystem, "mv", careful)
    command = (photos / "a.png", "-o", f"{shop.root}out/a.png", "-s", "2", "--overwrite")
    assert "the disk is worn" in upscale(*command).stderr
    assert shop.files == {"out/a.png": b"from before"}
    assert upscale(*command).exit_code == 0
    assert shop.files.keys() == {"out/a.png"}
    assert shop.files["out/a.png"].startswith(b"\x89PNG")


def test_an_object_that_is_not_put_is_not_there(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop("memory")
    there = shop.fill(photos)
    original, puts = MemoryFileSystem.pipe_file, []

    def pipe_file(self: MemoryFileSystem, path: str, value: bytes, **options: Any) -> None:
        puts.append(path)
        if path.endswith("moving.gif"):
            raise TimeoutError
        original(self, path, value, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    done = upscale(there, "-o", "memory://out", "-r", "-s", "2")
    assert (done.exit_code, counted(done, "done")) == (3, 7)
    assert "moving.gif" not in shop.below("out")
    pictures = [path for path in puts if "/.waifu4x/" not in path]
    assert len(pictures) == len(set(pictures)) == 8, "one request each, by its own name"


def test_inputs_that_the_store_does_not_give(photos: Path) -> None:
    shop = Shop("shaky")
    there = shop.fill(photos)
    with failing("cat_file", "/in/a.png", PermissionError("no, me:pass is not allowed")):
        done = upscale(there, "-o", f"{shop.root}out", "-s", "2")
    assert (done.exit_code, counted(done, "done")) == (3, 4)
    (line,) = errors(done)
    assert line.startswith(f"error: {there}/a.png may not be read: check its permissions")


@pytest.mark.parametrize("option", [[], ["--shard", "1/2"]], ids=["whole", "shard"])
def test_an_output_folder_that_cannot_be_written(
    photos: Path, calls: list[int], option: list[str]
) -> None:
    shop = Shop("shaky")
    with failing("makedirs", "out", PermissionError("read only")):
        done = upscale(photos, "-o", f"{shop.root}out", "-r", "-s", "2", *option)
    assert (done.exit_code, calls) == (1, [])
    (line,) = errors(done)
    assert "out/.waifu4x may not be written: check its permissions" in line


def test_a_store_that_cannot_be_asked(photos: Path, calls: list[int]) -> None:
    shop = Shop("shaky")
    there = shop.fill(photos)
    for operation, part, command in (
        ("ls", "/in", (there, "-o", f"{shop.root}out")),
        ("ls", "/out", (photos, "-o", f"{shop.root}out")),
        ("info", "/in", (there, "-o", f"{shop.root}out")),
    ):
        with failing(operation, part, ConnectionError("nobody answers")):
            done = upscale(*command, "-r", "-s", "2")
        (line,) = errors(done)
        assert f"{part[1:]}" in line
        assert "nobody answers; check the network" in line
        assert done.exit_code == 1
    assert calls == []


def test_what_is_not_there(shop: Shop) -> None:
    for name in ("nope.png", "nope/"):
        done = upscale(shop.root + name, "-o", f"{shop.root}out/")
        assert done.exit_code == 1
        (line,) = errors(done)
        assert shop.root + "nope" in line
        assert "check" in line
    assert shop.files == {}


def test_single_files(photos: Path, tmp_path: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    upscale(photos / "a.png", "-s", "2", "-o", tmp_path / "a2.png")
    expected = (tmp_path / "a2.png").read_bytes()
    upscale(f"{there}/a.png", "-s", "2", "-o", tmp_path / "a3.png")
    assert (tmp_path / "a3.png").read_bytes() == expected
    upscale(f"{there}/a.png", "-s", "2", "-o", f"{shop.root}new/big.png")
    assert shop.files["new/big.png"] == expected
    upscale(photos / "a.png", "-s", "2", "-o", f"{shop.root}folder/")
    assert shop.files["folder/a.png"] == expected
    beside = upscale(f"{there}/a.png", "-s", "2")
    assert beside.exit_code == 0
    assert shop.files["in/a_nearest_2x.png"] == expected
    streamed = upscale(f"{there}/a.png", "-s", "2", "-o", "-")
    assert streamed.stdout_bytes == expected
    itself = upscale(f"{there}/a.png", "-s", "2", "-o", f"{there}/a.png", "--overwrite")
    assert itself.exit_code == 2
    assert "is the input itself" in itself.stderr


def test_beside_a_folder(photos: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    assert upscale(there, "-r", "-s", "2").exit_code == 0
    assert len(shop.below("in_nearest_2x")) == 8
    done = upscale(f"{shop.root}", "-r", "-s", "2")
    assert done.exit_code == 2
    assert "nothing lies beside" in done.stderr


def test_names_are_given_as_for_paths(photos: Path, tmp_path: Path, shop: Shop) -> None:
    save(photos / "a.jpg", seed=7)
    there = shop.fill(photos)
    for number, options in enumerate(
        (
            ("-f", "webp", "--lossless"),
            ("--suffix", "_big"),
            ("--name", "{parent}-{stem}-{width}.{ext}"),
            ("-f", "png", "--first-frame", "--no-provenance"),
        )
    ):
        here, out = tmp_path / str(number), f"out{number}"
        upscale(photos, "-o", here, "-r", "-s", "2", *options)
        done = upscale(there, "-o", f"{shop.root}{out}", "-r", "-s", "2", *options)
        assert counted(done, "done") == 9, done.stderr
        theirs = {name.replace("in-", "photos-"): d for name, d in shop.below(out).items()}
        assert theirs == contents(here)


def test_lists_and_patterns(photos: Path, tmp_path: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    rows = [f"{there}/a.png", str(photos / "deep"), f"{there}/deep/er/", (photos / "b [1].jpg")]
    text = "\n".join(map(str, rows))
    (tmp_path / "list.txt").write_text(text)
    done = upscale(f"@{tmp_path / 'list.txt'}", "-o", f"{shop.root}out", "-s", "2")
    assert (done.exit_code, counted(done, "done")) == (0, 5)
    assert {"a.png", "b [1].jpg", "deep/d.tiff", "er/c.webp"} <= shop.below("out").keys()
    shop.put("list.txt", text.encode())
    again = upscale(f"@{shop.root}list.txt", "-o", f"{shop.root}out", "-s", "2")
    assert counted(again, "skipped", "done before") == 5
    if shop.protocol == "memory":
        found = upscale(f"{there}/*.png", "-o", tmp_path / "found", "-s", "2")
        assert sorted(contents(tmp_path / "found")) == ["a.png", "naïve.png"]
        assert counted(found, "done") == 2
        none = upscale(f"{there}/*.bmp", "-o", tmp_path / "found")
        assert (none.exit_code, "nothing matches" in none.stderr) == (2, True)
    literal = upscale(f"{there}/b [1].jpg", "-o", tmp_path / "one.jpg", "-s", "2")
    assert literal.exit_code == 0


def test_the_output_folder_in_the_input_folder(photos: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    command = (there, "-o", f"{there}/big", "-r", "-s", "2")
    assert upscale(*command).exit_code == 0
    done = upscale(*command)
    assert counted(done, "left out", "the output folder") == 1
    assert counted(done, "skipped", "done before") == 8
    same = upscale(there, "-o", f"{there}/", "-r")
    assert (same.exit_code, "is input and output folder" in same.stderr) == (2, True)


def test_shards_of_a_store(photos: Path, tmp_path: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    command = (there, "-o", f"{shop.root}out", "-r", "-s", "2")
    parts = [counted(upscale(*command, "--shard", f"{k}/2"), "done") for k in (1, 2)]
    assert sum(parts) == 8
    assert counted(upscale(*command), "skipped", "done before") == 8
    upscale(photos, "-o", tmp_path / "big", "-r", "-s", "2")
    assert shop.below("out") == contents(tmp_path / "big")


def test_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyvips")
    shop = Shop("shaky")
    save(tmp_path / "in" / "large.png", size=(600, 500))
    there = shop.fill(tmp_path / "in")
    options = ("-s", "2", "--memory", "4M", "--json")
    upscale(tmp_path / "in", "-o", tmp_path / "big", *options)
    done = upscale(there, "-o", f"{shop.root}out", *options)
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert row.get("streamed"), row
    assert shop.below("out") == contents(tmp_path / "big")
    shop.put("in/large.png", shop.files["in/large.png"][:-5000])
    damaged = upscale(there, "-o", f"{shop.root}other", *options)
    (line,) = errors(damaged)
    assert line.startswith(f"error: {there}/large.png ")
    assert shop.below("other") == {}
    with failing("half", "third/.large", OSError("the cable was cut")):
        cut = upscale(tmp_path / "in", "-o", f"{shop.root}third", *options)
    (line,) = errors(cut)
    assert line.startswith(f"error: {shop.root}third/large.png cannot be written: the cable was")
    assert shop.below("third") == {}


def test_what_killed_runs_left_is_removed(photos: Path) -> None:
    shop = Shop("shaky")
    old, new = "out/.a.png.123-0123abcd.partial", "out/.b.png.123-0123abcd.partial"
    for name in (old, new, "out/.other.partial"):
        shop.put(name, b"half")
        ShakyFileSystem.written[f"/{name}"] = ShakyFileSystem.written[f"/{name}"].replace(year=2001)
    ShakyFileSystem.written[f"/{new}"] = ShakyFileSystem.written[f"/{new}"].replace(year=2200)
    upscale(photos, "-o", f"{shop.root}out", "-s", "2")
    left = [name for name in shop.files if name.endswith(".partial")]
    assert left == [new, "out/.other.partial"]


def test_a_job_can_be_sent(photos: Path, shop: Shop) -> None:
    there = shop.fill(photos)
    request = Request(
        inputs=(there,), output=f"{shop.root}out", recursive=True, target=Target(scale=2.0)
    )
    planned = plan.make(request, open_upscaler("nearest"))
    assert len(planned.jobs) == 8
    for job in planned.jobs:
        assert isinstance(job.source.path, Url)
        assert pickle.loads(pickle.dumps(job)) == job


# -- what is refused -------------------------------------------------------------------------------


def test_a_protocol_without_its_package(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"class": "no_such_package.files.FileSystem", "err": "install it"}
    monkeypatch.setitem(known_implementations, "far", facts)
    for command in (("far://bucket/a.png",), (photos, "-o", "far://bucket/out/")):
        done = upscale(*command)
        assert done.exit_code == 2
        (line,) = errors(done)
        assert line.endswith("needs the package no_such_package: pip install no_such_package")


def test_without_fsspec(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    done = upscale("s3://bucket/photos/", "-o", "s3://bucket/big/")
    assert done.exit_code == 2
    assert "pip install 'waifu4x[remote]'" in done.stderr


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("nowhere://a/b.png",), "fsspec knows no protocol nowhere"),
        (("memory://a.png", "-o", "https://host/out/"), "nothing can be written to https://"),
        (("zip://a.png::memory://b.zip",), "is a chain of URLs"),
        (("a.png", "--reference", "memory://b.png"), "--reference takes files of this machine"),
    ],
    ids=["unknown", "web", "chain", "reference"],
)
def test_what_makes_no_sense(command: tuple[str, ...], reason: str) -> None:
    done = upscale(*command)
    assert done.exit_code == 2
    (line,) = errors(done)
    assert reason in line


def test_passwords_are_not_shown(photos: Path, tmp_path: Path) -> None:
    shop = Shop("shaky")
    for path in ("b [1].jpg", "deep/er/c.webp", "deep/d.tiff", "moving.gif"):
        (photos / path).unlink()
    shop.fill(photos)
    shop.put("in/bad.png", b"no picture")
    root = "shaky://me:hunter2@host/"
    report = tmp_path / "report.jsonl"
    said = []
    with failing("half", "out/.a.png", OSError("hunter2 is no password at shaky://me:hunter2@h")):
        for options in ((), ("--dry-run",), ("-v", "--overwrite")):
            done = upscale(
                *(f"{root}in", "-o", f"{root}out", "-r", "-s", "2", "--json"),
                *("--report", report, *options),
            )
            assert done.exit_code == 3
            said += [done.stdout, done.stderr, report.read_text()]
    said += [upscale(f"{root}nope/").stderr, upscale(f"{root}in", "-o", f"{root}in").stderr]
    assert "hunter2" not in "".join(said)
    assert "shaky://me:***@host/out/a.png cannot be written: *** is no password" in said[1]
    assert b"hunter2" not in shop.journal()
    # Neither is it of what is the same folder.
    assert counted(upscale(f"{shop.root}in/", "-o", f"{root}out", "-r", "-s", "2"), "done") == 1


def test_files_of_this_machine_need_no_fsspec(photos: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from waifu4x.cli.app import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'fsspec' not in sys.modules\n"
    )
    source, target = photos.as_uri().replace("%20", " "), (tmp_path / "big").as_uri()
    command = ["upscale", "-m", "nearest", source, "-o", target, "-r", "-s", "2"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    upscale(photos, "-o", tmp_path / "same", "-r", "-s", "2")
    assert contents(tmp_path / "big") == contents(tmp_path / "same")
    assert (tmp_path / "big" / ".waifu4x" / "journal.jsonl").is_file()
    assert not remote_journal.folder_here(Url("memory://x")).parent.exists()


def test_an_orientation_behind_the_samples_is_seen(tmp_path: Path, shop: Shop) -> None:
    picture = noise(size=(300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    late = data.replace(chunk, b"").replace(data[-12:], chunk + data[-12:])
    assert len(late) == len(data) > 2 * 65536
    url = shop.put("late.png", late)
    done = upscale(url, "-o", tmp_path / "big.png", "-s", "1", "--dry-run", "--json")
    assert json.loads(done.stdout)["input_size"] == [200, 300]


def test_headers_take_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    original = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, **options: Any) -> bytes:
        data = original(self, path, **options)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    shop = Shop("memory")
    for name in ("a.png", "b.jpg", "c.tiff", "d.bmp"):
        path = save(tmp_path / name, size=(900, 700))
        url = shop.put(name, path.read_bytes())
        fetched.clear()
        assert upscale(url, "--dry-run").exit_code == 0
        assert len(fetched) <= 2
        assert sum(fetched) <= 2 * 65536 < path.stat().st_size / 2
    with zipfile.ZipFile(tmp_path / "book.cbz", "w") as book:
        book.write(tmp_path / "b.jpg", "1.jpg")
        book.write(tmp_path / "a.png", "2.png")
    url = shop.put("book.cbz", (tmp_path / "book.cbz").read_bytes())
    fetched.clear()
    assert upscale(url, "--dry-run").exit_code == 0
    assert sum(fetched) < (tmp_path / "b.jpg").stat().st_size + 3 * 65536


def test_inputs_come_ahead_of_time(tmp_path: Path) -> None:
    shop = Shop("shaky")
    for seed in range(12):
        save(tmp_path / "in" / f"{seed:02}.png", seed=seed)
    there = shop.fill(tmp_path / "in")
    ShakyFileSystem.asked.clear()
    with failing("cat_file", "/05.png", OSError("gone"), times=10**6):
        assert upscale(there, "-o", tmp_path / "big", "-s", "2").exit_code == 3
    read = [path for operation, path in ShakyFileSystem.asked if operation == "cat_file"]
    # Once for the header, once for the pixels.
    assert [read.count(f"/in/{k:02}.png") for k in range(12)] == [2] * 5 + [1] + [2] * 6
    assert len(contents(tmp_path / "big")) == 11


def test_a_folder_that_cannot_be_listed_is_told(photos: Path) -> None:
    shop = Shop("shaky")
    there = shop.fill(photos)
    with failing("ls", "/in/deep/er", PermissionError("closed")):
        done = upscale(there, "-o", f"{shop.root}out", "-r", "-s", "2")
    assert (done.exit_code, counted(done, "done")) == (3, 7)
    (line,) = errors(done)
    assert line.startswith(f"error: {there}/deep/er cannot be listed")


@pytest.fixture
def odd_names() -> None:
    """Keys that an object store takes, and no folder."""
    picture = io.BytesIO()
    noise().save(picture, "PNG")
    for name in ("in/../up.png", "in/a/../../../b.png", "in/./c.png", "in/\0.png", "in/ok.png"):
        MemoryFileSystem().pipe_file(f"/{name}", picture.getvalue())


@pytest.mark.usefixtures("odd_names")
def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    done = upscale("memory://in", "-o", tmp_path / "deep" / "big", "-r", "-s", "2")
    assert counted(done, "left out", "its name is none that a file can have") >= 1
    made = [path for path in tmp_path.rglob("*.png*") if path.is_file()]
    assert made == [tmp_path / "deep" / "big" / "ok.png"]
