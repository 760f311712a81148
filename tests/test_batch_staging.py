"""Inputs in stores come while others are done, whoever gives the jobs; a store may also stall."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shaky
from command import ROOT, contents, save
from shaky import ShakyFileSystem, Shop

from waifu4x.batch import fetching, run, stages, staging
from waifu4x.batch import plan as planning
from waifu4x.batch.fetching import Threads
from waifu4x.batch.jobs import Job
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome
from waifu4x.batch.stages import Part
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

PATIENCE_S = 60.0
COUNT = 24


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    shaky.empty()
    yield
    shaky.empty()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """00.png, 01.png, …, all in a store; the outputs go to this machine."""
    for seed in range(COUNT):
        save(tmp_path / "in" / f"{seed:02}.png", seed=seed)
    made = planning.make(
        Request(
            inputs=(Shop("shaky").fill(tmp_path / "in"),),
            output=str(tmp_path / "out"),
            target=Target(scale=2.0),
            check_space=False,
        ),
        Upscaler(model="nearest"),
    )
    assert len(made.jobs) == COUNT
    ShakyFileSystem.asked.clear()
    return made


def name_of(job: Job) -> str:
    return job.source.path.name


def await_event(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "what must happen meanwhile does not"


def on_fetching(act: Callable[[str], object]) -> None:
    """Call something with the name of each file whose content is asked for, in that thread."""

    def meddle(operation: str, path: str) -> None:
        if operation == "cat_file":
            act(path.rpartition("/")[2])

    ShakyFileSystem.meddle = staticmethod(meddle)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def on_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], object]], None]:
    """Call something with the name of each file before it is decoded, when it may not be here."""
    decode = stages.decode

    def install(act: Callable[[str], object]) -> None:
        def wrapped(part: Part, *arguments: Any, **options: Any) -> None:
            act(name_of(part.job))
            decode(part, *arguments, **options)

        monkeypatch.setattr(stages, "decode", wrapped)

    return install


def work(
    plan: Plan,
    jobs: Iterable[Job] | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> BaseException | None:
    """What the run raised. In a thread of its own: a run that hangs fails, and hangs no test."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            run.run(
                plan if jobs is None else Plan(request=plan.request),
                Upscaler(model="nearest"),
                jobs=jobs,
                on_outcome=on_outcome,
                on_progress=lambda job, share: None,
                workers=1,
            )
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the run hangs"
    return raised[0] if raised else None


def one_by_one(jobs: list[Job]) -> Iterator[Job]:
    """As a worker gives them: they have no length, and go into no journal."""
    for job in jobs:
        yield replace(job, line=None)


def fetched() -> list[str]:
    return sorted(path[4:] for operation, path in ShakyFileSystem.asked if operation == "cat_file")


# -- ahead of time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [None, one_by_one])
def test_the_next_ones_come_while_the_first_is_decoded(
    plan: Plan, tmp_path: Path, on_decoding: Callable[..., None], form: Any
) -> None:
    begun = {name_of(job): threading.Event() for job in plan.jobs}
    on_fetching(lambda name: begun[name].set())

    def act(name: str) -> None:
        if name == "00.png":
            await_event(begun["01.png"])
            await_event(begun["05.png"])

    on_decoding(act)
    assert work(plan, form and form(plan.jobs)) is None
    assert fetched() == sorted(begun), "each once"
    assert sorted(contents(tmp_path / "out")) == sorted(begun)


def test_who_gives_the_next_job_when_the_last_one_is_done(plan: Plan) -> None:
    ended: list[str] = []
    done = threading.Semaphore(0)

    def slowly() -> Iterator[Job]:
        for job in one_by_one(plan.jobs[:4]):
            yield job
            assert done.acquire(timeout=PATIENCE_S), "it waits for a job that is not there yet"

    def tell(outcome: Outcome) -> None:
        ended.append(name_of(outcome.job))
        done.release()

    assert work(plan, slowly(), tell) is None
    assert ended == ["00.png", "01.png", "02.png", "03.png"]


def test_so_many_jobs_are_taken_ahead_and_no_more(
    plan: Plan, on_decoding: Callable[..., None]
) -> None:
    given: list[str] = []
    decoded: list[str] = []
    ahead: list[int] = []
    all_there = threading.Event()

    def jobs() -> Iterator[Job]:
        for job in one_by_one(plan.jobs):
            given.append(name_of(job))
            ahead.append(len(given) - len(decoded))
            if len(given) == 1 + fetching._JOBS_AHEAD:
                all_there.set()
            yield job

    def act(name: str) -> None:
        if name == "00.png":
            await_event(all_there)
        decoded.append(name)

    on_decoding(act)
    assert work(plan, jobs()) is None
    assert len(decoded) == COUNT
    # One more has been given out, and is about to be decoded.
    assert max(ahead) == fetching._JOBS_AHEAD + 1


def test_memory_limits_what_comes_ahead(
    plan: Plan, on_decoding: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(map(staging.size_bytes, plan.jobs))
    smallest = min(map(staging.size_bytes, plan.jobs))
    assert 3 * smallest > 2 * largest
    monkeypatch.setattr(staging, "HELD_BYTES", 2 * largest)
    begun: list[str] = []
    decoded: list[str] = []
    ahead: list[int] = []
    third = threading.Event()

    def ask(name: str) -> None:
        begun.append(name)
        ahead.append(len(begun) - len(decoded))
        if len(begun) == 3:
            third.set()

    def act(name: str) -> None:
        if name == "00.png":
            await_event(third)
        decoded.append(name)

    on_fetching(ask)
    on_decoding(act)
    assert work(plan) is None
    assert sorted(begun) == sorted(decoded) == sorted(map(name_of, plan.jobs))
    assert max(ahead) == 3


def test_what_giving_jobs_raises(plan: Plan) -> None:
    def jobs() -> Iterator[Job]:
        yield from one_by_one(plan.jobs[:2])
        raise ZeroDivisionError("no such job")

    assert isinstance(work(plan, jobs()), ZeroDivisionError)


# -- a store that does not answer ------------------------------------------------------------------


def test_a_run_ends_while_its_store_stalls(plan: Plan, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    answer, stalling = threading.Event(), threading.Semaphore(0)

    def stall(name: str) -> None:
        if name != "00.png":
            stalling.release()
            answer.wait()

    def interrupt(outcome: Outcome) -> None:
        for _ in range(fetching._FETCHING):
            assert stalling.acquire(timeout=PATIENCE_S)
        raise KeyboardInterrupt

    on_fetching(stall)

    try:
        assert isinstance(work(plan, one_by_one(plan.jobs), interrupt), KeyboardInterrupt)
        left = [thread for thread in threading.enumerate() if thread not in before]
        for thread in left:
            if not thread.name.startswith("fetch"):
                thread.join(PATIENCE_S)
                assert not thread.is_alive(), f"{thread.name} waits for the store"
        stalled = [thread for thread in left if thread.is_alive()]
        assert [thread.daemon for thread in stalled] == [True] * fetching._FETCHING
    finally:
        answer.set()
    for thread in stalled:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in stalled)
    assert sorted(contents(tmp_path / "out")) == ["00.png"]


_STALLING = """
import sys, threading
from command import noise
from shaky import ShakyFileSystem, Shop
import io
from waifu4x.batch import plan, run
from waifu4x.batch.request import Request
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

def stall():
    def meddle(operation, path):
        if operation == "cat_file" and path != "/in/0.png":
            stalled.release()
            threading.Event().wait()
    ShakyFileSystem.meddle = staticmethod(meddle)

def leave(*told):
    stalled.acquire()
    sys.exit(7)

stalled = threading.Semaphore(0)
for k in range(3):
    noise(seed=k).save(data := io.BytesIO(), "PNG")
    Shop("shaky").put(f"in/{k}.png", data.getvalue())
request = Request(
    inputs=("shaky://host/in",), output=sys.argv[1], target=Target(scale=2.0), check_space=False
)
upscaler = Upscaler(model="nearest")
if sys.argv[2] == "plan":
    stall()
    plan.make(request, upscaler, on_progress=leave)
made = plan.make(request, upscaler)
stall()
run.run(made, upscaler, on_outcome=leave, on_progress=lambda *told: None, workers=1)
"""


@pytest.mark.parametrize("during", ["plan", "run"])
def test_python_ends_while_a_store_stalls(tmp_path: Path, during: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _STALLING, str(tmp_path / "out"), during],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        timeout=PATIENCE_S,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


def test_what_was_not_begun_is_cancelled() -> None:
    threads, answer = Threads(1, name="fetch"), threading.Event()
    begun = threading.Event()

    def first() -> str:
        begun.set()
        await_event(answer)
        return "first"

    stalling, waiting = threads.begin(first), threads.begin(lambda: "second")
    await_event(begun)
    threads.close()
    answer.set()
    assert stalling.result(PATIENCE_S) == "first"
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_S)
