"""Workers and the machine that has the plan: nothing is lost, nothing is done twice, it ends."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import (
    PATIENCE_S,
    WISHES,
    Called,
    Folders,
    Standin,
    alone,
    changes_order,
    dies_once,
    dies_with,
)
from command import ROOT, contents, counted, errors, names, upscale

from waifu4x import files
from waifu4x.batch import noting, stages
from waifu4x.batch import plan as planning
from waifu4x.batch.jobs import Job
from waifu4x.batch.journal import FOLDER, Journal
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.batch.stages import Part
from waifu4x.cluster import asked, backlog, driver, links, ray_cluster, traces, worker
from waifu4x.cluster.links import Link, Mailbox, WorkerDied
from waifu4x.cluster.messages import Message, Order, Place, Reply, portable
from waifu4x.cluster.worker import Worker
from waifu4x.errors import (
    ClusterError,
    DiskFullError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.remote.stores import Entry
from waifu4x.remote.urls import Url
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler


@pytest.fixture
def place(tmp_path: Path) -> Folders:
    (tmp_path / "in").mkdir()
    return Folders(tmp_path)


@pytest.fixture
def break_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """break_stage("encode", "03.png", error): the stage raises it for this file."""

    def replace_stage(stage: str, name: str, error: BaseException) -> None:
        original = getattr(stages, stage)

        def broken(part: Part, *arguments: Any, **options: Any) -> Any:
            if part.job.source.path.name == name:
                raise error
            return original(part, *arguments, **options)

        monkeypatch.setattr(stages, stage, broken)

    return replace_stage


def unordered(lines: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(line, sort_keys=True) for line in lines}


# -- as on one machine -----------------------------------------------------------------------------


def test_the_same_files_and_the_same_journal(place: Folders) -> None:
    there = place.fill(40)
    (place.inputs / "a/cut.png").write_bytes((place.inputs / "a/00.png").read_bytes()[:-20])
    (place.inputs / "no.png").write_bytes(b"no picture")
    cluster = Standin()
    plan = place.plan()
    ran = place.run(cluster, plan)
    assert (ran.done, ran.failed, ran.error) == (there, ["cut.png"], None)
    assert {id(o.job) for o in ran.outcomes} == {id(job) for job in plan.jobs}
    expected, lines = alone(place)
    assert contents(place.out) == expected
    # How a run is numbered, and in what order it ends, is its own affair.
    assert unordered(place.lines()) == unordered(lines)
    assert len(place.lines()) == len(lines)
    assert cluster.connected == 1
    assert len(cluster.given) == 2, "both of them worked"
    assert ran.split is not None
    assert ran.split.stages_s["encode"] > 0
    assert ran.notes == ["2 workers of 1 core on 2 machines"]


def test_all_is_done_already(place: Folders) -> None:
    place.fill(2)
    place.run(Standin())
    cluster = Standin()
    ran = place.run(cluster)
    assert (ran.outcomes, ran.error, cluster.connected) == ([], None, 0)
    assert ran.split == Split(wall_s=ran.split.wall_s if ran.split else 0)


def test_progress_never_goes_back(place: Folders) -> None:
    place.fill(20)
    plan = place.plan()
    ran = place.run(Standin(count=3), plan)
    numbers = {id(job): k for k, job in enumerate(plan.jobs)}
    told = [(numbers[id(job)], share) for job, share in ran.progress]
    assert told == sorted(told)
    assert told


def test_archives_and_animations(place: Folders, tmp_path: Path) -> None:
    import zipfile

    place.fill(2)
    with zipfile.ZipFile(place.inputs / "book.cbz", "w") as book:
        for name in ("a/00.png", "b/01.png"):
            book.write(place.inputs / name, name)
        book.writestr("about.txt", "no picture")
    ran = place.run(Standin())
    assert ran.done == ["00.png", "01.png", "book.cbz"]
    assert contents(place.out) == alone(place)[0]


def test_into_a_store(place: Folders) -> None:
    """Named by a URL; the mark goes there too, and goes."""
    fsspec = pytest.importorskip("fsspec")
    there = place.fill(6)
    store = fsspec.filesystem("memory")
    out = f"memory://{place.folder.name}"
    ran = place.run(Standin(), output=out)
    assert (ran.done, ran.error) == (there, None)
    found = {name.partition(place.folder.name)[2] for name in store.find(out)}
    assert {Path(name).name for name in found} - {"journal.jsonl"} == set(there)
    store.rm(out, recursive=True)


# -- how much is given -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "most"), [(1, 10), (3, 14)])
def test_no_worker_has_more_than_it_needs(place: Folders, cores: int, most: int) -> None:
    place.fill(60)
    cluster = Standin(cores=cores)
    place.run(cluster)
    assert cluster.most == most


def test_large_pictures_are_given_few_at_once(
    place: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(30)
    (job, *_) = place.plan().jobs
    monkeypatch.setattr(backlog, "_MOST_PX", 5 * job.output_px)
    cluster = Standin()
    place.run(cluster)
    assert cluster.most == 5
    monkeypatch.setattr(backlog, "_MOST_PX", 1)
    cluster = Standin()
    place.run(cluster, overwrite=True)
    assert cluster.most == 3


def test_the_last_ones_are_shared_out_evenly(place: Folders) -> None:
    there = place.fill(4)
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def arrange(called: Called) -> None:
        if called.names and not both.broken and both.n_waiting < 2 and called.worker not in met:
            met.add(called.worker)
            both.wait()

    met: set[int] = set()
    cluster = Standin(arrange=arrange)
    place.run(cluster)
    assert sorted(map(len, cluster.given.values())) == [2, 2]
    assert sorted(itertools.chain(*cluster.given.values())) == there


def test_no_more_workers_than_jobs(place: Folders) -> None:
    place.fill(2)
    cluster = Standin(count=5)
    place.run(cluster)
    assert len(cluster.handles) == 2


def test_a_worker_that_never_comes(place: Folders) -> None:
    there = place.fill(9)
    cluster = Standin(comes=lambda number: number == 1)
    ran = place.run(cluster)
    assert (ran.done, ran.error) == (there, None)
    assert [*cluster.given] == [1]


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_what_a_dead_worker_had_is_done_by_others(place: Folders, after: int) -> None:
    there = place.fill(40)
    cluster = Standin(arrange=dies_once(0, after=after))
    ran = place.run(cluster)
    assert (ran.done, ran.failed, ran.error) == (there, [], None)
    place.check_journal(ran)
    assert contents(place.out) == alone(place)[0]
    assert "a worker on host-0 died (it was killed)" in ran.notes[1]
    assert len(cluster.handles) == 3, "another one was called for"


def test_what_a_dead_worker_had_begun_is_removed(place: Folders) -> None:
    there = place.fill(20)
    begun: list[Path] = []
    (place.out / "a").mkdir(parents=True)

    def arrange(called: Called) -> None:
        if called.worker == 0 and called.names:
            job: Job = called.arguments[0].tickets[0][1]
            assert isinstance(job.target, Path)
            begun.append(job.target.with_name(f".{job.target.name}.4000000-0123abcd.partial"))
            begun[0].parent.mkdir(exist_ok=True)
            begun[0].write_bytes(b"half")
            raise WorkerDied("it was killed")

    ran = place.run(Standin(arrange=arrange))
    assert begun
    assert ran.done == there


def test_a_file_that_ends_every_worker(place: Folders) -> None:
    there = place.fill(30)
    cluster = Standin(arrange=dies_with("07.png"))
    ran = place.run(cluster)
    assert ran.failed == ["07.png"]
    assert ran.done == [name for name in there if name != "07.png"]
    place.check_journal(ran)
    (failure,) = (o for o in ran.outcomes if o.status == "failed")
    assert isinstance(failure.error, ClusterError)
    told = str(failure.error)
    assert "07.png: the worker died 3 times while it had this file" in told
    assert "it was killed" in told
    had = [given for given in cluster.given.values() if "07.png" in given]
    assert had == [], "nobody lived to be asked what it did"
    assert Journal(place.out).has_failed("b/07.png")


def test_files_that_were_near_go_alone_and_are_done(place: Folders) -> None:
    """Whoever had the bad file dies twice with others beside it; those are no worse for it."""
    there = place.fill(12)
    alone_with: list[list[str]] = []

    def arrange(called: Called) -> None:
        if called.names:
            alone_with.append(called.names)
        dies_with("00.png")(called)

    ran = place.run(Standin(count=1, arrange=arrange))
    assert (ran.done, ran.failed) == (there[1:], ["00.png"])
    fatal = [given for given in alone_with if "00.png" in given]
    assert len(fatal) == 3
    assert fatal[-1] == ["00.png"]


def test_several_such_files(place: Folders) -> None:
    there = place.fill(30)
    bad = ["00.png", "01.png", "15.png", "29.png"]
    ran = place.run(Standin(arrange=dies_with(*bad)))
    assert (ran.failed, ran.error) == (bad, None)
    assert ran.done == [name for name in there if name not in bad]
    place.check_journal(ran)


def test_the_last_file_is_such_a_file(place: Folders) -> None:
    place.fill(1)
    ran = place.run(Standin(arrange=dies_with("00.png")))
    assert (ran.failed, ran.error) == (["00.png"], None)


def test_workers_that_die_before_they_work(place: Folders) -> None:
    place.fill(3)

    def arrange(called: Called) -> None:
        raise WorkerDied("there is no Python")

    cluster = Standin(arrange=arrange)
    ran = place.run(cluster)
    assert isinstance(ran.error, ClusterError)
    assert "none is left" in str(ran.error)
    assert "there is no Python" in str(ran.error)
    assert len(cluster.handles) == 2 * 5
    assert ran.outcomes == []


def test_one_machine_whose_workers_die(place: Folders) -> None:
    there = place.fill(20)

    def arrange(called: Called) -> None:
        if called.worker != 1:
            raise WorkerDied("it has no memory")

    ran = place.run(Standin(arrange=arrange))
    assert (ran.done, ran.error) == (there, None)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_dies_in_whatever_order(place: Folders, seed: int) -> None:
    import random

    there = place.fill(30)
    chance = random.Random(seed)
    left = [6]

    def arrange(called: Called) -> None:
        if called.method == "exchange" and chance.random() < 0.15 and left[0]:
            left[0] -= 1
            raise WorkerDied("it was killed")

    ran = place.run(Standin(count=3, arrange=arrange))
    assert ran.error is None
    assert sorted(ran.done + ran.failed) == there
    place.check_journal(ran)
    assert all(isinstance(o.error, ClusterError) for o in ran.outcomes if o.error is not None)


# -- nobody is waited for in vain ------------------------------------------------------------------


def test_no_room_in_the_cluster(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(2)
    monkeypatch.setattr(driver, "_NOBODY_S", 0.05)
    ran = place.run(Standin(comes=lambda number: False))
    assert isinstance(ran.error, ClusterError)
    assert "no room" in str(ran.error)


def test_a_cluster_without_places(place: Folders) -> None:
    place.fill(2)
    ran = place.run(Standin(count=0))
    assert isinstance(ran.error, ClusterError)
    assert "ray status" in str(ran.error)


def test_a_model_that_takes_for_ever(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(2)
    monkeypatch.setattr(driver, "_START_S", 0.05)
    over = threading.Event()
    monkeypatch.setattr(worker, "_check", lambda order, upscaler: over.wait(PATIENCE_S))
    ran = place.run(Standin())
    over.set()
    assert isinstance(ran.error, ClusterError)
    assert "none is left" in str(ran.error)


class Clocks:
    """The time, as the run and its workers see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.looked = threading.Event()
        """The run has asked for the time."""
        monkeypatch.setattr(driver, "time", self)
        monkeypatch.setattr(links, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def monotonic(self) -> float:
        self.looked.set()
        return self.now_s

    def perf_counter(self) -> float:
        return self.now_s


def test_a_death_after_a_long_time_of_work(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was always something to heed, and never a moment to look at the clock."""
    there = place.fill(40)
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr(links, "POLL_S", PATIENCE_S)
    died = threading.Event()

    def arrange(called: Called) -> None:
        if called.worker == 0 and clocks.now_s > 2 * driver._NOBODY_S:
            monkeypatch.setattr(links, "POLL_S", 0.01)
            clocks.looked.clear()
            died.set()
            raise WorkerDied("it was killed")

    def comes(number: int) -> bool:
        # The next one is waited for until the run has seen that there is none.
        return number == 0 or (died.is_set() and clocks.looked.is_set())

    def tell(outcome: Outcome) -> None:
        clocks.now_s += 0.1 * driver._NOBODY_S

    ran = place.run(Standin(count=1, arrange=arrange, comes=comes), on_outcome=tell)
    assert died.is_set()
    assert (ran.done, ran.error) == (there, None)


def test_the_mark_of_a_run_of_days_does_not_grow_old(
    place: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run into the same folder sweeps what is older than a day."""
    there = place.fill(40)
    clocks = Clocks(monkeypatch)
    ages_s: list[float] = []

    def tell(outcome: Outcome) -> None:
        (mark,) = (place.out / FOLDER).glob(".cluster.*")
        if not ages_s:
            os.utime(mark, (0.0, 0.0))
            clocks.now_s += 2 * driver._REFRESH_S
        ages_s.append(time.time() - mark.stat().st_mtime)

    ran = place.run(Standin(count=1), on_outcome=tell)
    assert (ran.done, ran.error) == (there, None)
    assert ages_s[0] > files.ORPHAN_AGE_S > ages_s[-1]


def test_a_worker_that_waited_long_for_room_may_open_the_model(
    place: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = place.fill(4)
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr(driver, "_NOBODY_S", float("inf"))

    def comes(number: int) -> bool:
        clocks.now_s = 2 * driver._START_S
        return True

    def arrange(called: Called) -> None:
        if called.method == "start":
            clocks.looked.clear()
            assert clocks.looked.wait(PATIENCE_S)

    cluster = Standin(count=1, comes=comes, arrange=arrange)
    ran = place.run(cluster)
    assert (ran.done, ran.error) == (there, None)
    assert len(cluster.handles) == 1, "it was not let go of"


# -- workers that differ ---------------------------------------------------------------------------


def test_another_version(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(2)
    monkeypatch.setattr(worker, "__version__", "0.0.1")
    ran = place.run(Standin())
    assert isinstance(ran.error, ClusterError)
    assert "has waifu4x 0.0.1" in str(ran.error)
    assert "host-" in str(ran.error)


def test_another_model_of_the_same_name(place: Folders) -> None:
    place.fill(2)
    ran = place.run(Standin(arrange=changes_order(model="bicubic")))
    assert isinstance(ran.error, ClusterError)
    assert "the model bicubic is another one here" in str(ran.error)
    assert "host-" in str(ran.error)
    assert names(place.out) == []


def test_another_folder_of_the_same_name(
    place: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(2)
    monkeypatch.setattr(traces, "_SEEN_WITHIN_S", 0.2)
    elsewhere = tmp_path / "elsewhere/.waifu4x/marker"
    ran = place.run(Standin(arrange=changes_order(mark=elsewhere)))
    assert isinstance(ran.error, ClusterError)
    assert f"{tmp_path / 'elsewhere'} is another one here" in str(ran.error)
    assert names(place.out) == []


def test_no_such_folder_to_work_in(place: Folders, tmp_path: Path) -> None:
    place.fill(2)
    ran = place.run(Standin(arrange=changes_order(here=str(tmp_path / "gone"))))
    assert isinstance(ran.error, ClusterError)
    assert f"there is no folder {tmp_path / 'gone'} here" in str(ran.error)


def test_a_model_that_cannot_be_opened_there(place: Folders) -> None:
    """The error is that of one machine, exit code included, and names the machine."""
    place.fill(2)
    ran = place.run(Standin(), wishes={"device": "auto", "precision": "fp16"})
    assert type(ran.error) is UsageError
    assert "the worker on host-" in str(ran.error)
    assert "nearest is no network" in str(ran.error)


# -- what ends a run -------------------------------------------------------------------------------


def test_fail_fast(place: Folders) -> None:
    place.fill(60)
    cut = place.inputs / "a/00.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    ran = place.run(Standin(), fail_fast=True)
    assert (ran.failed, ran.error) == (["00.png"], None)
    assert len(ran.done) < 59
    assert names(place.out) == sorted(f"{'ab'[int(n[:2]) % 2]}/{n}" for n in ran.done)
    place.check_journal(ran)


def test_a_full_disk_ends_it(place: Folders, break_stage: Callable[..., None]) -> None:
    place.fill(40)
    break_stage("encode", "03.png", DiskFullError("the disk is full"))
    ran = place.run(Standin())
    assert isinstance(ran.error, DiskFullError)
    assert "03.png: the disk is full" in str(ran.error)
    assert ran.failed == ["03.png"]
    assert len(ran.outcomes) < 40
    assert not Journal(place.out).has_failed("b/03.png"), "it is no fault of the file"


def test_a_bug_reaches_the_caller(place: Folders, break_stage: Callable[..., None]) -> None:
    place.fill(10)
    break_stage("encode", "03.png", KeyError("a bug"))
    ran = place.run(Standin())
    assert isinstance(ran.error, KeyError)
    assert "in broken" in ran.error.__notes__[0], "where it was raised is told"


def test_a_journal_that_cannot_be_written(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(10)
    plan = place.plan()
    assert plan.journal is not None

    def refuse(line: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(plan.journal, "append", refuse)
    ran = place.run(Standin(), plan)
    assert isinstance(ran.error, PictureWriteError)
    assert ran.outcomes == []


@pytest.mark.parametrize("at", [1, 2, 7])
def test_an_interruption(place: Folders, at: int) -> None:
    """What is done is there, noted and told, each once; the same command does the rest."""
    there = place.fill(40)
    count = itertools.count(1)

    def interrupt(outcome: Outcome) -> None:
        if next(count) == at:
            raise KeyboardInterrupt

    ran = place.run(Standin(), on_outcome=interrupt)
    assert isinstance(ran.error, KeyboardInterrupt)
    assert len(ran.done) == len(set(ran.done))
    assert len(ran.done) < 40
    place.check_journal(ran)
    assert sorted(Path(name).name for name in names(place.out)) == ran.done
    rest = place.run(Standin())
    assert sorted(ran.done + rest.done) == there
    assert contents(place.out) == alone(place)[0]


def test_an_interruption_before_the_line(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """No output is without a line: it would be anybody's, and stay when its input changes."""
    place.fill(12)
    note_done, count = noting.note_done, itertools.count(1)

    def interrupted(plan: Plan, job: Job, **options: Any) -> None:
        # Workers note nothing.
        if job.line is not None and next(count) == 3:
            raise KeyboardInterrupt
        note_done(plan, job, **options)

    monkeypatch.setattr(noting, "note_done", interrupted)
    ran = place.run(Standin(count=1))
    assert isinstance(ran.error, KeyboardInterrupt)
    assert names(place.out) == sorted(line["output"] for line in place.lines())
    assert len(ran.done) >= 3
    place.check_journal(ran)


def test_a_second_interruption(place: Folders) -> None:
    there = place.fill(40)

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    ran = place.run(Standin(), on_outcome=interrupt)
    assert isinstance(ran.error, KeyboardInterrupt)
    assert contents(place.out).items() <= alone(place)[0].items()
    rest = place.run(Standin(), overwrite=True)
    assert rest.done == there


def test_an_interruption_before_anybody_comes(place: Folders) -> None:
    """Also while the cluster is looked for: what was begun is left."""
    place.fill(3)
    cluster = Standin()

    def interrupted() -> None:
        raise KeyboardInterrupt

    cluster.connect = interrupted  # type: ignore[method-assign]
    ran = place.run(cluster)
    assert isinstance(ran.error, KeyboardInterrupt)
    assert names(place.out) == []


def test_an_event_stays_until_it_is_dealt_with() -> None:
    mailbox = Mailbox()
    assert mailbox.first() is None
    link = Link(Standin(), Standin().places()[0], ORDER, mailbox=mailbox)
    first, second = Reply(), Reply(ready=True)
    mailbox.put((link, first))
    mailbox.put((link, second))
    assert mailbox.first() == (link, first)
    assert mailbox.first() == (link, first)
    mailbox.drop()
    assert mailbox.first() == (link, second)
    mailbox.drop()
    assert mailbox.first() is None


# -- one worker ------------------------------------------------------------------------------------

ORDER = Order(
    request=Request(inputs=("in",), target=Target(scale=2.0)),
    model="nearest",
    wishes=WISHES,
    filters=True,
)
PLACE = Place(node="here", key="here", cores=1)


def test_a_worker_may_take_its_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.memory, "free_host_bytes", lambda: 800)
    for share, expected in ((1.0, None), (0.25, 100)):
        request, _ = worker._opened(ORDER, replace(PLACE, share=share))
        assert request.memory_bytes == expected
    own = replace(ORDER, request=replace(ORDER.request, memory_bytes=7))
    assert worker._opened(own, replace(PLACE, share=0.25))[0].memory_bytes == 7


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (PLACE, {"device": "cpu", "memory_bytes": 5}),
        (replace(PLACE, share=0.5), {"device": "cpu", "memory_bytes": 200}),
        (replace(PLACE, share=0.5, gpu=True), {"device": "cuda", "memory_bytes": 5}),
    ],
)
def test_how_a_worker_opens_a_network(
    monkeypatch: pytest.MonkeyPatch, place: Place, expected: dict[str, Any]
) -> None:
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "open_upscaler", lambda model, **wishes: opened.append(wishes))
    monkeypatch.setattr(worker.memory, "free_host_bytes", lambda: 800)
    order = replace(ORDER, filters=False, wishes={"device": "auto", "memory_bytes": 5})
    worker._opened(order, place)
    assert opened == [expected]


def test_a_worker_that_is_told_to_stop_while_it_has_nothing(place: Folders) -> None:
    (place.out / ".waifu4x").mkdir(parents=True)
    mark = place.out / ".waifu4x/marker"
    mark.touch()
    subject = Worker()
    request = place.request()
    settings = request.settings_key(Upscaler(model="nearest"))
    order = replace(ORDER, request=request, settings=settings, mark=mark, here=str(Path.cwd()))
    subject.start(order, PLACE)
    assert subject.exchange(Message(wait_s=PATIENCE_S)).ready
    assert subject.exchange(Message()).end is None
    end = subject.exchange(Message(stop=True, wait_s=PATIENCE_S)).end
    assert end is not None
    assert (end.error, end.split) == (None, None)


class UnportableError(Exception):
    """Takes two arguments, and is pickled with one."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def test_errors_travel() -> None:
    try:
        try:
            raise OSError("below")
        except OSError as below:
            raise DiskFullError("full") from below
    except DiskFullError as error:
        sent = portable(error)
    assert (sent.__cause__, sent.__context__, sent.__traceback__) == (None, None, None)
    assert type(portable(KeyError("a"))) is KeyError
    sent = portable(UnportableError(1, 2))
    assert (type(sent), str(sent)) == (RuntimeError, "UnportableError: 3")


# -- temporaries -----------------------------------------------------------------------------------


def test_only_what_the_dead_one_had_begun_is_swept(tmp_path: Path) -> None:
    long = tmp_path / ("ü" * 120 + ".png")
    target = tmp_path / "a.png"
    mine = [tmp_path / files._partial_name(path, 77, "01234567") for path in (long, target)]
    assert all(len(path.name.encode()) <= 255 for path in mine)
    others = [
        tmp_path / files._partial_name(target, 78, "01234567"),
        tmp_path / files._partial_name(tmp_path / "b.png", 77, "01234567"),
        tmp_path / ".a.png.77-nothexad.partial",
        target,
    ]
    for path in (*mine, *others):
        path.touch()
    gone = tmp_path / "gone/a.png"
    traces.sweep([long, None, target, gone], pid=77)
    assert sorted(tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    ("protocol", "swept"), [("sftp", [".a.png.77-01234567.partial"]), ("s3", [])]
)
def test_the_same_in_a_store(
    monkeypatch: pytest.MonkeyPatch, protocol: str, swept: list[str]
) -> None:
    """Where a file shows while it grows."""
    there = [".a.png.77-01234567.partial", ".a.png.78-01234567.partial", "a.png", "b.png"]
    entries = [Entry(place=name, kind="file", stamp=(1, 1)) for name in there]
    removed: list[str] = []
    monkeypatch.setattr(traces.stores, "list_folder", lambda folder: entries)
    monkeypatch.setattr(traces.stores, "remove", lambda url: removed.append(url.name))
    traces.sweep([Url(f"{protocol}://host/out/a.png")], pid=77)
    assert removed == swept


# -- Ray's words and numbers -----------------------------------------------------------------------


def node(cpus: float, gpus: float = 0, *, alive: bool = True, name: str = "n") -> dict[str, Any]:
    has = {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})
    return {"NodeID": name, "Alive": alive, "NodeManagerHostname": name, "Resources": has}


@pytest.mark.parametrize(
    ("nodes", "cores", "gpus", "expected"),
    [
        ([node(2)], None, None, [(2, False, 1.0)]),
        ([node(2)], 1, None, [(1, False, 0.5)] * 2),
        ([node(9)], None, None, [(4, False, 0.5)] * 2),
        ([node(3)], 8, None, [(3, False, 1.0)]),
        ([node(0), node(0.5)], None, None, []),
        ([node(8), node(8, alive=False)], None, None, [(4, False, 0.5)] * 2),
        # GPUs and CPUs do not give the same bytes: where there are GPUs, they do it all.
        ([node(8), node(8, 2)], None, None, [(4, True, 0.5)] * 2),
        ([node(2, 4)], None, None, [(0, True, 0.25)] * 4),
        ([node(8), node(8, 2)], None, False, [(4, False, 0.5)] * 4),
        ([node(8)], None, True, []),
    ],
)
def test_where_workers_are_put(
    nodes: list[dict[str, Any]],
    cores: int | None,
    gpus: bool | None,
    expected: list[tuple[int, bool, float]],
) -> None:
    found = ray_cluster.places_of(nodes, cores=cores, gpus=gpus)
    assert [(each.cores, each.gpu, each.share) for each in found] == expected


def test_why_it_died_in_one_sentence() -> None:
    told = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
        "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of "
        "file. Some common causes include: (1) the process was killed by the OOM killer"
    )
    expected = "Worker unexpectedly exits with a connection error code 2"
    assert ray_cluster._first_sentence(RuntimeError(told)) == expected
    told = "Failed to connect to GCS at 127.0.0.1:1. Is it there?"
    assert ray_cluster._first_sentence(RuntimeError(told)) == told.partition(". ")[0]


def test_why_a_machine_cannot_run_a_worker() -> None:
    told = "The actor died because of an error\n  ^^^^\nModuleNotFoundError: No module named 'a'\n"
    said = ray_cluster._cannot_begin("host-1", RuntimeError(told))
    assert said.startswith("host-1 cannot run a worker (ModuleNotFoundError: No module named 'a')")


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Standin:
    """What the command takes for Ray."""
    found = Standin()
    monkeypatch.setattr(asked, "find_spec", lambda name: object())
    monkeypatch.setattr(asked, "RayCluster", lambda address, **options: found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def ray(place: Folders, *arguments: object) -> Any:
    return upscale(place.inputs, "-r", "-o", place.out, "--ray", "local", *arguments)


def test_the_command(place: Folders, cluster: Standin, tmp_path: Path) -> None:
    place.fill(20)
    done = ray(place, "-s", "2", "--json", "--report", tmp_path / "report.jsonl")
    assert (done.exit_code, errors(done)) == (0, [])
    assert counted(done, "done") == 20
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    assert {row["status"] for row in rows} == {"done"}
    assert (tmp_path / "report.jsonl").read_text() == done.stdout
    assert contents(place.out) == alone(place)[0]
    again = ray(place, "-s", "2")
    assert (again.exit_code, counted(again, "skipped", "done before")) == (0, 20)
    assert cluster.connected == 1


def test_the_command_with_a_file_that_ends_workers(place: Folders, cluster: Standin) -> None:
    place.fill(20)
    cluster.arrange = dies_with("05.png")
    done = ray(place, "-s", "2")
    assert done.exit_code == 3
    assert (counted(done, "done"), counted(done, "failed")) == (19, 1)
    (told,) = errors(done)
    assert "05.png: the worker died 3 times" in told
    assert "a worker on host-" in done.stderr
    cluster.arrange = lambda called: None
    again = ray(place, "-s", "2", "--retry-failed")
    assert (again.exit_code, counted(again, "done")) == (0, 1)


def test_a_dry_run_starts_nothing(place: Folders, cluster: Standin) -> None:
    place.fill(2)
    done = ray(place, "--dry-run", "-v")
    assert done.exit_code == 0
    assert "in all: 2 files" in done.stderr
    assert (cluster.connected, cluster.handles) == (0, [])
    assert not place.out.exists()


def test_a_cluster_that_runs_is_reached_before_the_plan_is_made(
    place: Folders, cluster: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(1)

    def refuse() -> None:
        raise UsageError("there is none")

    monkeypatch.setattr(cluster, "connect", refuse)
    monkeypatch.setattr(planning, "make", None)
    done = ray(place, "--ray", "auto")
    assert (done.exit_code, errors(done)) == (2, ["error: there is none"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["in", "-o", "out/", "--ray", "ray://head:10001"], "ray job submit"),
        (["in", "-o", "out/", "--ray", "head"], "HOST:PORT"),
        (["in", "-o", "out/", "--ray", "6379"], "HOST:PORT"),
        (["in", "-o", "out/", "--ray", ":6379"], "HOST:PORT"),
        (["in", "-o", "out/", "--ray", "http://head:8265"], "HOST:PORT"),
        (["in", "-o", "-", "--ray", "local"], ""),
        (["-", "-o", "out/", "--ray", "local"], ""),
        (["in/a/00.png", "--ray", "local"], "one folder for all outputs"),
        (["in/a/00.png", "-o", "big.png", "--ray", "local"], "one folder for all outputs"),
        (["in", "-o", "out/", "--ray", "local", "--device", "cuda:1"], "a GPU of its own"),
        (["in", "-o", "out/", "--ray", "local", "--device", "mps"], "a GPU of its own"),
        (["in", "-o", "out/", "--ray-cores", "2"], "with --ray"),
    ],
)
def test_what_makes_no_sense(
    place: Folders,
    cluster: Standin,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    place.fill(1)
    monkeypatch.chdir(place.folder)
    done = upscale(*arguments)
    assert done.exit_code == 2
    assert told in errors(done)[0]
    assert cluster.connected == 0


def test_an_address_for_clients_in_the_environment(
    place: Folders, cluster: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(1)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    done = ray(place, "--ray", "auto")
    assert done.exit_code == 2
    assert "ray://head:10001" in errors(done)[0]


def test_the_address_of_a_dashboard_in_the_environment(
    place: Folders, cluster: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what `ray job submit` is given."""
    place.fill(1)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    done = ray(place, "--ray", "auto")
    assert done.exit_code == 2
    assert "RAY_ADDRESS=http://head:8265 is no cluster" in errors(done)[0]
    assert cluster.connected == 0


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_addresses_of_clusters(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "find_spec", lambda name: object())
    request = Request(inputs=("in",), target=Target(scale=2.0), output="out/")
    asked.check(request, address=address, device="auto")
    monkeypatch.setenv("RAY_ADDRESS", address)
    asked.check(request, address="auto", device="auto")


def test_without_ray(place: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(1)
    monkeypatch.setattr(asked, "find_spec", lambda name: None)
    done = ray(place)
    assert done.exit_code == 2
    assert "pip install 'waifu4x[ray]'" in errors(done)[0]


def test_who_does_without_it_does_not_load_it() -> None:
    script = (
        "import sys, waifu4x.cli.app, waifu4x.cli.upscale_run\n"
        "assert 'waifu4x.cluster' not in sys.modules\n"
        "from waifu4x.cluster import asked\n"
        "assert not {'ray', 'fsspec', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_plan_is_made_without_a_gpu() -> None:
    wishes = {"device": "cuda", "precision": "fp16", "compiled": True, "tile_px": 64}
    assert asked.planning_wishes("nearest", wishes) == wishes
    here = {"device": "cpu", "precision": "auto", "compiled": False, "tile_px": 64}
    assert asked.planning_wishes("waifu4x-clean", wishes) == here
    assert asked.planning_wishes("own.safetensors", wishes) == here


def test_its_errors_are_of_the_tree() -> None:
    assert issubclass(ClusterError, Waifu4xError)
    assert not issubclass(WorkerDied, Waifu4xError), "nobody is told of it as it is"
