"""What was planned elsewhere is looked at again by a worker: its input, and the memory it takes."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import Called, Folders, Standin, alone
from command import contents, names, save

from waifu4x import memory
from waifu4x.batch import streamed
from waifu4x.batch.jobs import Job
from waifu4x.batch.journal import Journal
from waifu4x.cluster import inputs
from waifu4x.errors import ClusterError, OutOfMemoryError
from waifu4x.remote import stores
from waifu4x.remote.urls import Url
from waifu4x.sizes import Target

HOST = platform.node()


@pytest.fixture
def place(tmp_path: Path) -> Folders:
    (tmp_path / "in").mkdir()
    return Folders(tmp_path)


@pytest.fixture
def other(place: Folders) -> Path:
    """What lies under the name of the input folder on the disk of a worker: the same, so far."""
    place.fill(6)
    return Path(shutil.copytree(place.inputs, place.folder / "other"))


def reads_in(folder: Path) -> Callable[[Called], None]:
    """Workers find the inputs in another folder, which is called the same there."""

    def arrange(called: Called) -> None:
        if called.names:
            (message,) = called.arguments
            tickets = tuple((number, _moved(job, folder)) for number, job in message.tickets)
            called.arguments = (replace(message, tickets=tickets),)

    return arrange


def _moved(job: Job, folder: Path) -> Job:
    return replace(job, source=replace(job.source, path=folder / job.source.relative))


def ran_with(place: Folders, other: Path) -> Any:
    return place.run(Standin(count=1, arrange=reads_in(other)))


# -- whether it is the same file -------------------------------------------------------------------


def test_copies_with_the_times_of_what_they_are_copies_of(place: Folders, other: Path) -> None:
    """SFTP and FAT know no parts of a second."""
    for path in other.rglob("*.png"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns // 10**9 * 10**9))
    ran = ran_with(place, other)
    assert (len(ran.done), ran.failed, ran.error) == (6, [], None)
    assert contents(place.out) == alone(place)[0]


def test_another_file_of_the_same_name(place: Folders, other: Path) -> None:
    """It would be enlarged, and noted as that of the file here."""
    stale = other / "a/02.png"
    save(stale, seed=99)
    os.utime(stale, (0, 0))
    ran = ran_with(place, other)
    assert (len(ran.done), ran.failed, ran.error) == (5, ["02.png"], None)
    (told,) = (str(o.error) for o in ran.outcomes if o.status == "failed")
    assert told.startswith(f"{stale} is another file on {HOST}: ")
    assert "a/02.png" not in names(place.out)
    assert Journal(place.out).has_failed("a/02.png")


def test_a_file_of_another_size(place: Folders, other: Path) -> None:
    stale = other / "a/02.png"
    there = stale.stat()
    save(stale, seed=99, size=(9, 9))
    os.utime(stale, ns=(0, there.st_mtime_ns))
    assert stale.stat().st_size != there.st_size
    assert ran_with(place, other).failed == ["02.png"]


def test_a_file_that_is_not_there(place: Folders, other: Path) -> None:
    (other / "b/03.png").unlink()
    ran = ran_with(place, other)
    assert (len(ran.done), ran.failed, ran.error) == (5, ["03.png"], None)
    (told,) = (str(o.error) for o in ran.outcomes if o.status == "failed")
    assert f"b/03.png is not there on {HOST}: " in told


def test_a_machine_that_has_none_of_them(place: Folders, other: Path) -> None:
    """Nothing fails faster: it would be given all that there is."""
    shutil.rmtree(other)
    ran = ran_with(place, other)
    assert isinstance(ran.error, ClusterError)
    assert str(ran.error).startswith("the worker on host-0 cannot work: ")
    assert f"is not there on {HOST}" in str(ran.error)
    assert (ran.done, len(ran.failed)) == ([], 2)
    place.check_journal(ran)


def test_a_single_file_too(place: Folders, other: Path) -> None:
    """Of which no journal is kept."""
    save(other / "a/00.png", seed=99, size=(9, 9))
    (job,) = place.plan(inputs=(str(place.inputs / "a/00.png"),), output=f"{place.out}/").jobs
    assert job.line is None
    sent = inputs.as_sent(job)
    inputs.check(sent)
    with pytest.raises(ClusterError, match="is another file on"):
        inputs.check(replace(sent, source=replace(sent.source, path=other / "a/00.png")))


def test_it_costs_one_look(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(1)
    (job,) = place.plan().jobs
    sent = inputs.as_sent(job)
    asked: list[Any] = []
    stat = os.stat
    monkeypatch.setattr(inputs.os, "stat", lambda path: asked.append(path) or stat(path))
    inputs.as_sent(job)
    inputs.check(sent)
    assert asked == [job.source.path]


def test_nfs_is_asked_again_before_a_file_is_called_another_one(
    place: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what it knows of a file for a while, until that is opened."""
    place.fill(1)
    (job,) = place.plan().jobs
    kept = os.stat(__file__)
    monkeypatch.setattr(inputs.os, "stat", lambda path: kept)
    inputs.check(inputs.as_sent(job))


def test_what_cannot_be_looked_at_is_left_to_whoever_reads_it(
    place: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(1)
    (job,) = place.plan().jobs

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(inputs.os, "stat", refuse)
    inputs.check(inputs.as_sent(job))


def test_in_a_store(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    place.fill(2)
    store, root = fsspec.filesystem("memory"), f"/{place.folder.name}"
    store.put(f"{place.inputs}/a/", root, recursive=True)
    (job,) = place.plan(inputs=(f"memory:/{root}",)).jobs
    sent = inputs.as_sent(job)
    asked: list[Url] = []
    find = stores.find
    monkeypatch.setattr(inputs.stores, "find", lambda url: asked.append(url) or find(url))
    inputs.check(sent)
    assert asked == [job.source.path]
    # What a store does not say is not compared.
    for stamp in ((-1, sent.source.stamp[1]), (sent.source.stamp[0], 0), None):  # type: ignore[index]
        inputs.check(replace(sent, source=replace(sent.source, stamp=stamp)))
    store.pipe(f"{root}/00.png", store.cat(f"{root}/00.png"))
    with pytest.raises(ClusterError, match=rf"memory:/{root}/00.png is another file on "):
        inputs.check(sent)
    store.rm(root, recursive=True)
    with pytest.raises(ClusterError, match=rf"memory:/{root}/00.png is not there on "):
        inputs.check(sent)


# -- whether it fits into memory -------------------------------------------------------------------


@pytest.fixture
def large(place: Folders, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A picture that fits into half of what is free, and not into 40 % of that.

    Gives whether it was made in strips, each time that it was.
    """
    save(place.inputs / "large.png", size=(600, 600))
    (job,) = place.plan(target=Target(scale=4.0)).jobs
    monkeypatch.setattr(memory, "free_host_bytes", lambda: int(2.05 * job.memory_bytes))
    made: list[bool] = []
    parts = streamed.parts

    def noted(job: Job, *arguments: Any, **options: Any) -> Any:
        made.append(job.streamed)
        return parts(job, *arguments, **options)

    monkeypatch.setattr(streamed, "parts", noted)
    return made


def test_what_is_too_large_for_the_share_of_a_worker_is_made_in_strips(
    place: Folders, large: list[bool]
) -> None:
    """It fits where it was planned, but not into every worker of a machine at once."""
    plan = place.plan(target=Target(scale=4.0))
    assert [job.streamed for job in plan.jobs] == [False]
    ran = place.run(Standin(count=1, share=0.4), plan)
    assert (ran.done, ran.error, large) == (["large.png"], None, [True])
    made = contents(place.out)
    place.run(Standin(count=1), target=Target(scale=4.0), overwrite=True)
    assert (contents(place.out), large) == (made, [True, False])


def test_what_cannot_be_made_in_strips_is_refused(place: Folders, large: list[bool]) -> None:
    encoding = replace(place.request().encoding, format="BMP")
    ran = place.run(
        Standin(count=1, share=0.4), place.plan(target=Target(scale=4.0), encoding=encoding)
    )
    assert (ran.failed, ran.error, large) == (["large.png"], None, [])
    (outcome,) = ran.outcomes
    assert isinstance(outcome.error, OutOfMemoryError)
    assert "--memory" in str(outcome.error)


def test_memory_that_was_allowed_is_each_workers_own(place: Folders, large: list[bool]) -> None:
    plan = place.plan(target=Target(scale=4.0), memory_bytes=2**40)
    ran = place.run(Standin(count=1, share=0.4), plan)
    assert (ran.done, large) == (["large.png"], [False])
