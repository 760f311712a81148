"""The pipeline: stages side by side, within bounds, and whatever fails leaves nothing half done."""

from __future__ import annotations

import io
import itertools
import random
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner

from waifu4x import animations, archives, memory, pictures, provenance
from waifu4x.batch import plan as planning
from waifu4x.batch import run as pipeline
from waifu4x.batch import stages
from waifu4x.batch.journal import Journal, Line
from waifu4x.batch.limits import Budget, Slots
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Encoding, Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.batch.stages import Part
from waifu4x.cli.app import app
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import (
    DiskFullError,
    NumericsError,
    OutOfMemoryError,
    PictureWriteError,
)
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

PATIENCE_S = 30.0
"""Nothing here takes so long, but for ever is longer."""


def noise(seed: int = 0, *, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode
    )


def as_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def enlarged(image: Image.Image) -> np.ndarray:
    """What ``nearest`` makes of it at 2x."""
    return np.asarray(image.convert("RGB")).repeat(2, axis=0).repeat(2, axis=1)


@dataclass
class Ran:
    """All that a run gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    error: BaseException | None = None
    split: Split | None = None

    @property
    def done(self) -> list[str]:
        return sorted(o.job.source.path.name for o in self.outcomes if o.status == "done")

    @property
    def failed(self) -> dict[str, str]:
        return {o.job.source.path.name: str(o.error) for o in self.outcomes if o.status == "failed"}


@dataclass
class Place:
    """An input folder, an output folder, and runs from one into the other."""

    folder: Path
    latest: Ran = field(default_factory=Ran)

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def fill(self, count: int, *, size: tuple[int, int] = (12, 8)) -> None:
        """00.png, 01.png, …"""
        for k in range(count):
            noise(k, size=size).save(self.inputs / f"{k:02}.png")

    def book(self, members: dict[str, bytes], name: str = "book.cbz") -> None:
        with zipfile.ZipFile(self.inputs / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def plan(self, **changes: Any) -> Plan:
        request = Request(
            inputs=(str(self.inputs),),
            target=Target(scale=2.0),
            output=str(self.out),
            check_space=False,
            **changes,
        )
        return planning.make(request, Upscaler(model="nearest"))

    def run(self, plan: Plan | None = None, *, workers: int = 1, **changes: Any) -> Ran:
        """In a thread of its own, so that a run that hangs fails and does not hang the tests."""
        ran = self.latest = Ran()
        planned = plan if plan is not None else self.plan(**changes)

        def work() -> None:
            try:
                ran.split = pipeline.run(
                    planned,
                    Upscaler(model="nearest"),
                    on_outcome=ran.outcomes.append,
                    on_progress=lambda job, share: None,
                    workers=workers,
                )
            except BaseException as error:
                ran.error = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the run hangs"
        self.check_clean()
        return ran

    def check_clean(self) -> None:
        """No temporaries, no threads."""
        assert [path.name for path in self.folder.rglob("*.partial")] == []
        left = [t.name for t in threading.enumerate() if t.name.startswith(("decode", "encode"))]
        assert left == []

    @property
    def outputs(self) -> list[str]:
        """All that is in the output folder, but the journal."""
        files = [path for path in self.out.rglob("*") if path.is_file()]
        return sorted(
            path.relative_to(self.out).as_posix() for path in files if ".waifu4x" not in path.parts
        )

    def members(self, name: str = "book.cbz") -> dict[str, bytes]:
        with zipfile.ZipFile(self.out / name) as archive:
            assert archive.testzip() is None
            return {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "in").mkdir()
    return Place(tmp_path)


Meddle = Callable[[Part], object]


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call something before, or after, each part's turn in a stage."""

    def install(stage: str, before: Meddle | None = None, after: Meddle | None = None, /) -> None:
        work = getattr(stages, stage)

        def wrapped(part: Part, *arguments: Any, **options: Any) -> Any:
            if before is not None:
                before(part)
            result = work(part, *arguments, **options)
            if after is not None:
                after(part)
            return result

        monkeypatch.setattr(stages, stage, wrapped)

    return install


def name_of(part: Part) -> str:
    return part.member or part.job.source.path.name


def await_event(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "what must happen meanwhile does not"


def raising(error: BaseException | type[BaseException], name: str) -> Meddle:
    def hit(part: Part) -> None:
        if name_of(part) == name:
            raise error

    return hit


# Side by side.


def test_the_three_stages_overlap(place: Place, meddle: Callable[..., None]) -> None:
    """Decoding k+1, the network on k and encoding k-1 meet: none goes on before all are there."""
    place.fill(3)
    meeting = threading.Barrier(3, timeout=PATIENCE_S)

    def meet(name: str) -> Meddle:
        def wait(part: Part) -> None:
            if name_of(part) == name:
                meeting.wait()

        return wait

    meddle("encode", meet("00.png"))
    meddle("enlarge", meet("01.png"))
    meddle("decode", meet("02.png"))
    ran = place.run()
    assert (ran.error, ran.done) == (None, ["00.png", "01.png", "02.png"])
    assert not meeting.broken


def test_encoders_work_side_by_side(place: Place, meddle: Callable[..., None]) -> None:
    place.fill(6)
    meeting = threading.Barrier(3, timeout=PATIENCE_S)
    meddle("encode", lambda part: meeting.wait())
    assert place.run(workers=3).error is None


def test_the_network_finds_pictures_ready(place: Place, meddle: Callable[..., None]) -> None:
    """While it is on the first picture, the next three are decoded, and no more."""
    place.fill(9)
    decoded: list[str] = []
    ahead: list[int] = []
    taken: list[str] = []
    ready = threading.Event()

    def note(part: Part) -> None:
        decoded.append(name_of(part))
        ahead.append(len(decoded) - len(taken))
        if len(decoded) == 4:
            ready.set()

    def take(part: Part) -> None:
        taken.append(name_of(part))
        await_event(ready)

    meddle("decode", None, note)
    meddle("enlarge", take)
    assert place.run().error is None
    # One of them may have left the queue and not come to the network yet.
    assert max(ahead) in (3, 4)


def test_the_network_runs_ahead_of_encoders_by_so_much_only(
    place: Place, meddle: Callable[..., None]
) -> None:
    place.fill(12)
    shown: list[str] = []
    encoded: list[str] = []
    ahead: list[int] = []
    third = threading.Event()

    def note(part: Part) -> None:
        shown.append(name_of(part))
        ahead.append(len(shown) - len(encoded))
        if len(shown) == 3:
            third.set()

    meddle("enlarge", note)
    # The one that it encodes, one that waits for it, and one that the network is on.
    meddle("encode", lambda part: await_event(third), lambda part: encoded.append(name_of(part)))
    assert len(place.run(workers=1).done) == 12
    assert max(ahead) == 3


# Bounded memory.


def test_a_budget() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert budget.take(40)
    assert not budget.take(1), "it is full"
    budget.give(40)
    assert budget.take(1)
    budget.give(1)
    budget.give(60)
    assert budget.take(1000), "what is larger than all of it goes alone"
    assert not budget.take(1)
    budget.give(1000)
    assert budget.take(100)


def test_slots() -> None:
    slots = Slots(2)
    assert [slots.take() for _ in range(3)] == [True, True, False]
    slots.give()
    assert [slots.take() for _ in range(2)] == [True, False]


def _watch_memory(place: Place, meddle: Callable[..., None]) -> list[list[int]]:
    """The sizes of all parts on their way, whenever one is about to be decoded."""
    begun: list[Part] = []
    seen: list[list[int]] = []

    def note(part: Part) -> None:
        begun.append(part)
        seen.append([p.memory_bytes for p in begun if p.memory_bytes])

    meddle("decode", note)
    return seen


def test_no_more_is_on_its_way_than_the_budget(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fill(8)
    noise(99, size=(120, 80)).save(place.inputs / "04b.png")
    plan = place.plan()
    each, large = plan.jobs[0].memory_bytes, max(job.memory_bytes for job in plan.jobs)
    limit = 2 * each
    assert large > limit
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 2 * limit)  # it takes half
    seen = _watch_memory(place, meddle)
    ran = place.run(plan, workers=3)
    assert len(ran.done) == 9
    assert len(seen) == 9
    assert all(sum(sizes) <= limit or sizes == [large] for sizes in seen)


def test_the_budget_is_what_limits(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for more, more are on their way: five, while the first is still being encoded."""
    place.fill(8)
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 2**40)
    seen = _watch_memory(place, meddle)
    five = threading.Event()
    meddle("decode", lambda part: five.set() if len(seen) >= 5 else None)
    meddle("encode", lambda part: await_event(five))
    assert place.run(workers=2).error is None
    assert max(map(len, seen)) >= 5


@pytest.mark.parametrize("stage", ["decode", "enlarge", "encode"])
def test_failures_give_their_budget_back(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Otherwise the reader would wait for ever: the budget is that of one picture."""
    place.fill(6)
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(4)})
    plan = place.plan()
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 2 * plan.jobs[0].memory_bytes)

    def fail(part: Part) -> None:
        raise NumericsError("no number")

    meddle(stage, fail)
    ran = place.run(plan, workers=2)
    assert (ran.error, ran.done, len(ran.failed)) == (None, [], 7)


def test_pages_count_as_large_as_they_are(place: Place) -> None:
    small, large = as_bytes(noise()), as_bytes(noise(size=(400, 300)))
    place.book({"0.png": small, "1.png": large, "2.txt": b"x" * 77})
    (job,) = place.plan().jobs
    upscaler = Upscaler(model="nearest")
    first, second, third = stages.parts(job, upscaler, place.plan().request)
    assert first.memory_bytes == job.memory_bytes
    assert second.memory_bytes > 1000 * first.memory_bytes
    assert third.memory_bytes == 77


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_of_a_part(place: Place, meddle: Callable[..., None], fails: bool) -> None:
    place.fill(3)
    seen: list[Part] = []
    meddle("decode", seen.append)
    if fails:
        # With frames that hold pictures in its traceback, and a cause with more of them.
        def fail(part: Part) -> None:
            try:
                raise ValueError(part.content)
            except ValueError as error:
                raise NumericsError("no number") from error

        meddle("enlarge", fail)
    ran = place.run()
    assert len(ran.outcomes) == len(seen) == 3
    assert [(part.content, part.memory_bytes) for part in seen] == [(b"", 0)] * 3
    for outcome in ran.outcomes:
        assert (outcome.error is not None) == fails
        if outcome.error is not None:
            assert outcome.error.__traceback__ is None
            assert outcome.error.__cause__ is outcome.error.__context__ is None


# What fails.

STAGES = ("decode", "enlarge", "encode", "write")


def _break(
    stage: str, error: BaseException, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise `error` in a stage of 01.png."""
    if stage != "write":
        meddle(stage, raising(error, "01.png"))
        return
    store = pictures.store

    def broken(data: bytes, target: Path) -> None:
        if target.name == "01.png":
            raise error
        store(data, target)

    monkeypatch.setattr(pictures, "store", broken)


@pytest.mark.parametrize("stage", STAGES)
def test_one_that_fails_stops_nothing(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    place.fill(4)
    _break(stage, PictureWriteError("it cannot be"), meddle, monkeypatch)
    ran = place.run(workers=2)
    assert ran.error is None
    # Whoever raises may not know which file it is about.
    assert ran.failed == {"01.png": f"{place.inputs / '01.png'}: it cannot be"}
    assert ran.done == place.outputs == ["00.png", "02.png", "03.png"]
    journal = Journal(place.out)
    assert journal.has_failed("01.png")
    # The next run does what is missing, and nothing else.
    monkeypatch.undo()
    again = place.run()
    assert (again.done, again.failed) == (["01.png"], {})
    assert not Journal(place.out).has_failed("01.png")


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_runs_out_stops_nothing(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    place.fill(4)
    _break(stage, MemoryError(), meddle, monkeypatch)
    ran = place.run(workers=2)
    assert ran.error is None
    assert ran.done == place.outputs == ["00.png", "02.png", "03.png"]
    (outcome,) = [o for o in ran.outcomes if o.status == "failed"]
    assert isinstance(outcome.error, OutOfMemoryError)
    assert str(outcome.error).startswith(str(place.inputs / "01.png"))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a"), SystemExit(5)], ids=repr)
@pytest.mark.parametrize("stage", STAGES)
def test_a_bug_reaches_the_caller(
    place: Place,
    meddle: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
) -> None:
    """From whatever thread; with an archive half done, and encoders waiting for their turns."""
    place.fill(6)
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(12)}, "00.cbz")
    _break(stage, error, meddle, monkeypatch)
    ran = place.run(workers=3)
    assert ran.error is error
    assert "01.png" not in place.outputs


def test_a_bug_within_an_archive(place: Place, meddle: Callable[..., None]) -> None:
    """Those that wait for the page that never comes go home."""
    place.book({f"{k:02}.png": as_bytes(noise(k)) for k in range(12)})
    others = threading.Event()

    def encode(part: Part) -> None:
        if part.number == 1:
            await_event(others)
            raise RuntimeError("a bug")

    meddle("encode", encode, lambda part: others.set() if part.number == 3 else None)
    ran = place.run(workers=3)
    assert repr(ran.error) == "RuntimeError('a bug')"
    assert place.outputs == []


def test_a_bug_in_the_caller(place: Place) -> None:
    place.fill(5)
    plan = place.plan()
    for callbacks in (
        {"on_outcome": lambda outcome: 1 / 0, "on_progress": lambda job, share: None},
        {"on_outcome": lambda outcome: None, "on_progress": lambda job, share: 1 / 0},
    ):
        with pytest.raises(ZeroDivisionError):
            pipeline.run(plan, Upscaler(model="nearest"), workers=2, **callbacks)
        place.check_clean()


def test_fail_fast(place: Place) -> None:
    """What is on its way may end; what comes after that is not begun."""
    place.fill(40)
    broken = (place.inputs / "03.png").read_bytes()
    (place.inputs / "03.png").write_bytes(broken[:-40])
    ran = place.run(fail_fast=True)
    assert ran.error is None
    assert list(ran.failed) == ["03.png"]
    assert ran.done == place.outputs
    assert {"00.png", "01.png", "02.png"} <= set(ran.done)
    assert len(ran.done) < 20
    assert len(place.run().done) == 39 - len(ran.done)


def test_a_full_disk_ends_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fill(40)
    _break("write", DiskFullError("no room"), lambda *_: None, monkeypatch)
    ran = place.run()
    assert isinstance(ran.error, DiskFullError)
    assert ran.failed == {"01.png": str(ran.error)}
    assert str(ran.error) == f"{place.inputs / '01.png'}: no room"
    assert ran.done == place.outputs
    assert len(ran.done) < 20
    assert not Journal(place.out).has_failed("01.png"), "it is no fault of the file"


def test_an_archive_on_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the end of the archive cannot be written while it is given up."""
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(4)})
    close = zipfile.ZipFile.close
    written: list[str] = []

    def full(archive: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes) -> None:
        written.append(info.filename)
        raise OSError(28, "No space left on device")

    def full_too(archive: zipfile.ZipFile) -> None:
        if archive.mode == "w":
            archive.mode = "r"
            close(archive)
            raise OSError(28, "No space left on device")
        close(archive)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    monkeypatch.setattr(zipfile.ZipFile, "close", full_too)
    ran = place.run()
    assert isinstance(ran.error, DiskFullError)
    assert written == ["0.png"]
    assert list(ran.failed) == ["book.cbz"]
    assert place.outputs == []


def test_a_journal_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the next run could not know what was done: it ends, and says so."""
    place.fill(30)
    append = Journal.append

    def refuse(self: Journal, line: Line) -> None:
        if line.source == "03.png":
            raise PermissionError(13, "Permission denied")
        append(self, line)

    monkeypatch.setattr(Journal, "append", refuse)
    ran = place.run()
    assert isinstance(ran.error, PictureWriteError)
    assert "journal.jsonl may not be written" in str(ran.error)
    # The picture is whole all the same, and stays.
    assert {"00.png", "01.png", "02.png", "03.png"} <= set(place.outputs)
    assert set(place.outputs) - set(ran.done) == {"03.png"}
    assert len(place.outputs) < 20
    assert pictures.read(place.out / "03.png").width_px == 24


# Interruptions.


def test_an_interruption_of_the_network(place: Place, meddle: Callable[..., None]) -> None:
    """What is being encoded is finished, and told; all else is dropped."""
    place.fill(8)
    interrupted, encoding = threading.Event(), threading.Event()

    def interrupt(part: Part) -> None:
        if name_of(part) == "02.png":
            await_event(encoding)
            interrupted.set()
            raise KeyboardInterrupt

    def hold(part: Part) -> None:
        if name_of(part) == "01.png":
            encoding.set()
            await_event(interrupted)

    meddle("enlarge", interrupt)
    meddle("encode", hold)
    ran = place.run()
    assert isinstance(ran.error, KeyboardInterrupt)
    assert ran.done == place.outputs == ["00.png", "01.png"]
    assert ran.failed == {}
    journal = Journal(place.out)
    assert [journal.find(f"0{k}.png") is not None for k in range(3)] == [True, True, False]


def test_an_interruption_within_an_archive(place: Place, meddle: Callable[..., None]) -> None:
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(6)})
    begun = threading.Event()

    def interrupt(part: Part) -> None:
        if part.number == 3:
            await_event(begun)
            assert len(list(place.out.glob(".*.partial"))) == 1
            raise KeyboardInterrupt

    meddle("enlarge", interrupt)
    # The second is encoded after the first was put into the archive.
    meddle("encode", lambda part: begun.set() if part.number == 1 else None)
    ran = place.run()
    assert isinstance(ran.error, KeyboardInterrupt)
    assert (ran.outcomes, place.outputs) == ([], [])


def test_a_second_interruption(
    place: Place, meddle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the encoder any more, and nothing comes of what it does."""
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(6)})
    begun, over = threading.Event(), threading.Event()
    wind_down = pipeline._Pipeline.wind_down
    pipelines: list[pipeline._Pipeline] = []

    def interrupt(part: Part) -> None:
        if part.number == 3:
            await_event(begun)
            raise KeyboardInterrupt

    def hold(part: Part) -> None:
        if part.number == 1:
            begun.set()
            await_event(over)

    def interrupt_again(self: pipeline._Pipeline) -> None:
        pipelines.append(self)
        raise KeyboardInterrupt("again")

    meddle("enlarge", interrupt)
    meddle("encode", hold)
    monkeypatch.setattr(pipeline._Pipeline, "wind_down", interrupt_again)
    plan = place.plan()
    with pytest.raises(KeyboardInterrupt, match="again"):
        pipeline.run(
            plan,
            Upscaler(model="nearest"),
            on_outcome=lambda outcome: pytest.fail("nothing ended"),
            on_progress=lambda job, share: None,
            workers=1,
        )
    assert list(place.out.glob(".*.partial")) == []
    over.set()
    wind_down(pipelines[0])
    place.check_clean()
    assert place.outputs == []


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_in_whatever_order(
    place: Place, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Failures, and the end, at random: every job ends once, and what is there is whole."""
    chance = random.Random(seed)
    place.fill(6)
    members = {"00.png": as_bytes(noise())} | {f"{k:02}.txt": b"%02d" % k for k in range(1, 10)}
    for book in "abc":
        place.book(members, f"{book}.cbz")
    plan = place.plan()
    rate = chance.choice([0.0, 0.02, 0.2])
    ends = chance.choice([None, None, KeyboardInterrupt, RuntimeError])
    instant = chance.randrange(30)
    steps = itertools.count()
    kinds = [NumericsError("no"), MemoryError(), PictureWriteError("no")]

    def step(part: Part, *arguments: object, **options: object) -> None:
        # Signals arrive in the calling thread alone.
        here = threading.current_thread().name.startswith("Thread") or ends is RuntimeError
        if ends is not None and here and next(steps) == instant:
            raise ends
        if chance.random() < rate:
            raise chance.choice(kinds)

    for stage in ("decode", "enlarge", "encode"):
        monkeypatch.setattr(stages, stage, step)
    free_bytes = chance.choice([1, 2**40])
    monkeypatch.setattr(memory, "free_host_bytes", lambda: free_bytes)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        ran = place.run(plan, workers=chance.randrange(1, 5))
    finally:
        sys.setswitchinterval(interval)
    ended = [outcome.job.source.path.name for outcome in ran.outcomes]
    assert len(ended) == len(set(ended))
    if ran.error is None:
        assert len(ended) == 9
    else:
        assert isinstance(ran.error, ends or ())
    assert ran.done == place.outputs
    for name in ran.done:
        if name.endswith(".cbz"):
            assert list(place.members(name).items()) == list(members.items())


# Archives.


def test_pages_keep_their_order(place: Place, meddle: Callable[..., None]) -> None:
    """The first page is encoded last; bytes that are no picture pass as they are."""
    pages = [noise(k, size=(10 + k, 8)) for k in range(4)]
    members = {f"c/{k}.png": as_bytes(page) for k, page in enumerate(pages)}
    place.book(members | {"about.txt": b"words", "c/4.PNG": as_bytes(pages[0])})
    others = threading.Semaphore(0)

    def wait_for_others(part: Part) -> None:
        if part.number == 0:
            assert all(others.acquire(timeout=PATIENCE_S) for _ in range(2))

    meddle("encode", wait_for_others, lambda part: others.release() if part.number else None)
    ran = place.run(workers=3)
    assert (ran.error, ran.done) == (None, ["book.cbz"])
    made = place.members()
    assert list(made) == ["c/0.png", "c/1.png", "c/2.png", "c/3.png", "about.txt", "c/4.PNG"]
    assert made["about.txt"] == b"words"
    for name, page in zip(members, pages, strict=True):
        with Image.open(io.BytesIO(made[name])) as image:
            assert np.array_equal(np.asarray(image), enlarged(page))
    (outcome,) = ran.outcomes
    assert outcome.output_bytes == (place.out / "book.cbz").stat().st_size
    # Whatever the order was, the bytes are the same.
    whole = (place.out / "book.cbz").read_bytes()
    place.run(overwrite=True, workers=1)
    assert (place.out / "book.cbz").read_bytes() == whole


@pytest.mark.parametrize("stage", ["decode", "enlarge", "encode"])
def test_a_page_that_fails(place: Place, meddle: Callable[..., None], stage: str) -> None:
    """It fails the archive; others go on, and pages that wait for it do not wait for ever."""
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(9)})
    place.fill(3)
    meddle(stage, raising(NumericsError("no number"), "2.png"))
    ran = place.run(workers=3)
    assert ran.error is None
    assert ran.failed == {"book.cbz": f"{place.inputs / 'book.cbz'}: no number"}
    assert ran.done == place.outputs == ["00.png", "01.png", "02.png"]


def test_two_pages_that_fail_are_one_failure(place: Place, meddle: Callable[..., None]) -> None:
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(4)})
    meeting = threading.Barrier(3, timeout=PATIENCE_S)

    def fail(part: Part) -> None:
        if part.number:
            meeting.wait()
            raise PictureWriteError(f"page {part.number}")

    meddle("encode", fail)
    ran = place.run(workers=3)
    assert [outcome.status for outcome in ran.outcomes] == ["failed"]
    assert len(Journal(place.out).path.read_text().splitlines()) == 1


def test_a_damaged_page_is_named(place: Place) -> None:
    page = as_bytes(noise())
    place.book({"1.png": page, "sub/2.png": page[:-30], "3.png": page})
    place.book({"1.png": page, "2.png": b"no picture at all"}, "other.cbz")
    ran = place.run(workers=2)
    assert (ran.done, place.outputs) == ([], [])
    assert "book.cbz, sub/2.png is damaged" in ran.failed["book.cbz"]
    assert "other.cbz, 2.png" in ran.failed["other.cbz"]


def test_a_page_that_its_format_cannot_hold_is_named(place: Place) -> None:
    """Which pages are transparent only their pixels say."""
    place.book({"1.png": as_bytes(noise()), "2.png": as_bytes(noise(mode="RGBA"))})
    ran = place.run(encoding=Encoding(format="jpg"))
    assert list(ran.failed) == ["book.cbz"]
    assert "book.cbz, 2.png" in ran.failed["book.cbz"]
    assert "transparen" in ran.failed["book.cbz"]
    assert place.outputs == []


def test_a_page_that_the_network_or_an_encoder_refuses_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.book({"1.png": as_bytes(noise()), "sub/2.png": as_bytes(noise(1))})
    for owner, name in ((Upscaler, "upscale_all"), (pictures, "encode")):
        work, calls = getattr(owner, name), itertools.count(1)

        def refuse(*arguments: Any, work: Any = work, calls: Any = calls, **options: Any) -> Any:
            if next(calls) == 2:
                raise NumericsError("no number")
            return work(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuse)
            ran = place.run(workers=1)
        assert list(ran.failed.values()) == [f"{place.inputs / 'book.cbz'}, sub/2.png: no number"]


def test_an_archive_that_changes_meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.book({"1.png": as_bytes(noise())})
    plan = place.plan()
    monkeypatch.setattr(archives, "member_names", lambda path: ("1.png", "2.png"))
    ran = place.run(plan)
    assert (ran.error, list(ran.failed), place.outputs) == (None, ["book.cbz"], [])
    assert "was changed while it was read" in ran.failed["book.cbz"]


def test_pages_in_another_format(place: Place) -> None:
    page = as_bytes(noise())
    place.book(
        {"1.png": page, "1.jpg": as_bytes(noise(), "JPEG"), "2.GIF": as_bytes(noise(), "GIF")}
    )
    ran = place.run(encoding=Encoding(format="webp"), workers=2)
    assert ran.error is None
    made = place.members()
    assert list(made) == ["1.webp", "1.jpg.webp", "2.webp"]
    assert all(data[8:12] == b"WEBP" for data in made.values())


def test_an_output_that_is_moved_away_at_once(place: Place, meddle: Callable[..., None]) -> None:
    """By somebody who waits for it: that is done, and is no failure."""
    place.book({"1.png": as_bytes(noise())})
    moved: list[Path] = []
    learn = archives.write_archive

    class Moving:
        def __init__(self, target: Path) -> None:
            self.target = target
            self.inner = learn(target)

        def __enter__(self) -> archives.ArchiveWriter:
            return self.inner.__enter__()

        def __exit__(self, *raised: Any) -> bool | None:
            result = self.inner.__exit__(*raised)
            moved.append(self.target.rename(place.folder / "elsewhere.cbz"))
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "write_archive", Moving)
        ran = place.run()
    assert (ran.error, ran.done, len(moved)) == (None, ["book.cbz"], 1)


# Animations and pages, through the command line.


def upscale(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["upscale", *map(str, arguments), "-m", "nearest", "-s", "2"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def _frames(count: int = 3) -> list[Image.Image]:
    """Few colours, so that GIF keeps them; a corner is transparent, another one in each frame."""
    frames = []
    for k in range(count):
        pixels = np.zeros((6, 8, 4), np.uint8)
        pixels[..., :3] = np.random.default_rng(k).choice([0, 128, 255], (6, 8, 3))
        pixels[..., 3] = 255
        pixels[: 2 + k, :2, 3] = 0
        frames.append(Image.fromarray(pixels))
    return frames


@pytest.mark.parametrize(("suffix", "loop"), [("gif", 3), ("png", 2), ("webp", 5), ("gif", 0)])
def test_animations(tmp_path: Path, suffix: str, loop: int) -> None:
    first, *others = frames = _frames()
    durations = [40, 200, 1000]
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    source = tmp_path / f"a.{suffix}"
    first.save(
        *(source,),
        save_all=True,
        append_images=others,
        duration=durations,
        loop=loop,
        disposal=2,
        **options,
    )
    before = animations.read(source)
    extra = ("--lossless",) if suffix == "webp" else ()
    done = upscale(source, "-o", tmp_path / f"b.{suffix}", *extra)
    assert done.exit_code == 0, done.stderr
    assert "3 frames" in done.stderr
    after = animations.read(tmp_path / f"b.{suffix}")
    assert len(after.frames) == 3
    assert after.durations_ms == before.durations_ms == tuple(durations)
    assert after.loop == before.loop
    assert after.kind == "animation"
    for old, new, drawn in zip(before.frames, after.frames, frames, strict=True):
        alpha = np.asarray(drawn)[..., 3].repeat(2, axis=0).repeat(2, axis=1)
        assert new.alpha is not None
        assert np.array_equal(new.alpha, alpha)
        visible = alpha == 255
        larger = old.pixels.repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(new.pixels[visible], larger[visible])


def test_frames_go_through_the_network_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as `frames_at_once` says; pages, which may differ in size, one by one."""
    first, *others = _frames(7)
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=50)
    pages = [noise(k, size=(8 + k, 6)) for k in range(3)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    sizes: list[int] = []
    upscale_all = Upscaler.upscale_all

    def note(self: Upscaler, pictures: list[Any], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(pictures))
        return upscale_all(self, pictures, *arguments, **options)

    monkeypatch.setattr(Upscaler, "upscale_all", note)
    monkeypatch.setattr(Upscaler, "frames_at_once", lambda *_: 3)
    assert upscale(tmp_path / "a.png", tmp_path / "b.tif", "-o", tmp_path / "out").exit_code == 0
    assert sizes == [3, 3, 1, 1, 1, 1]
    assert len(animations.read(tmp_path / "out" / "a.png").frames) == 7


def test_pages(tmp_path: Path) -> None:
    pages = [noise(k, size=(8 + k, 6)) for k in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    done = upscale(tmp_path / "a.tif", "-o", tmp_path / "b.tif")
    assert done.exit_code == 0, done.stderr
    assert "3 pages" in done.stderr
    with Image.open(tmp_path / "b.tif") as image:
        made = [np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(image)]
    assert len(made) == 3
    for page, data in zip(pages, made, strict=True):
        assert np.array_equal(data, enlarged(page))


def test_the_first_frame_alone(place: Place) -> None:
    first, *others = _frames()
    first.save(place.inputs / "a.gif", save_all=True, append_images=others)
    place.book({"1.gif": (place.inputs / "a.gif").read_bytes(), "2.png": as_bytes(noise())})
    ran = place.run(first_frame=True)
    assert (ran.error, ran.failed) == (None, {})
    assert animations.count_frames(place.out / "a.gif") == 1
    assert animations.count_frames(place.members()["1.gif"]) == 1
    notes = {outcome.job.source.path.name: outcome.notes for outcome in ran.outcomes}
    assert [note for note in notes["a.gif"] if "only the first was taken" in note]
    assert [note for note in notes["book.cbz"] if note.startswith("1.gif: it has 3 frames")]


# Provenance.


def _one_of_each(place: Place) -> None:
    for suffix in ("png", "jpg", "webp", "tif", "gif", "bmp"):
        noise().save(place.inputs / f"still.{suffix}")
    first, *others = _frames()
    for suffix in ("gif", "png", "webp"):
        first.save(place.inputs / f"moving.{suffix}", save_all=True, append_images=others)
    noise().save(place.inputs / "pages.tif", save_all=True, append_images=[noise(1)])
    place.book({"1.png": as_bytes(noise()), "2.txt": b""})


def _stamps(place: Place) -> dict[str, tuple[provenance.Provenance, ...]]:
    found = {}
    for name in place.outputs:
        if name.endswith(".cbz"):
            data = place.members(name)["1.png"]
            found[name] = provenance.read(pictures.read(data))
        else:
            found[name] = provenance.read(place.out / name)
    return found


def test_outputs_say_what_made_them(place: Place) -> None:
    _one_of_each(place)
    ran = place.run(workers=2)
    assert (ran.error, ran.failed) == (None, {})
    found = _stamps(place)
    assert len(found) == 11
    for name, stamps in found.items():
        holds = name.endswith(".cbz") or FORMATS[_format_of(name)].holds_metadata
        assert [(stamp.model, stamp.scale) for stamp in stamps] == [("nearest", 2.0)] * holds, name
    assert not found["still.bmp"], "BMP holds no metadata"
    # Nor is anything said of what it could never hold.
    (bmp,) = [o for o in ran.outcomes if o.job.source.path.name == "still.bmp"]
    assert bmp.notes == ()
    assert [len(provenance.read(page)) for page in animations.read(place.out / "pages.tif").frames]


def _format_of(name: str) -> str:
    (format,) = [key for key, facts in FORMATS.items() if Path(name).suffix in facts.suffixes]
    return format


@pytest.mark.parametrize(
    "changes", [{"provenance": False}, {"encoding": Encoding(strip_metadata=True)}], ids=str
)
def test_outputs_that_say_nothing(place: Place, changes: dict[str, Any]) -> None:
    _one_of_each(place)
    ran = place.run(workers=2, **changes)
    assert (ran.error, ran.failed) == (None, {})
    assert set(_stamps(place).values()) == {()}
    assert not [name for name in place.outputs if b"waifu4x" in (place.out / name).read_bytes()]


# What is told.


def test_the_journal_says_what_was_done(place: Place) -> None:
    place.fill(3)
    (place.inputs / "deep").mkdir()
    noise().save(place.inputs / "deep" / "a.png")
    (place.inputs / "no.png").write_bytes(b"no picture")
    broken = place.inputs / "01.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    plan = place.plan(recursive=True)
    ran = place.run(plan)
    assert ran.done == ["00.png", "02.png", "a.png"]
    journal = Journal(place.out)
    settings = plan.request.settings_key(Upscaler(model="nearest"))
    for name in ("00.png", "02.png", "deep/a.png"):
        facts = (place.inputs / name).stat()
        assert journal.find(name) == Line(
            source=name,
            status="done",
            settings=settings,
            output=name,
            source_bytes=facts.st_size,
            source_mtime_ns=facts.st_mtime_ns,
            output_bytes=(place.out / name).stat().st_size,
        )
    # The first was refused by the plan, the other by its decoder.
    assert journal.has_failed("no.png")
    assert journal.has_failed("01.png")
    assert len(journal.path.read_text().splitlines()) == 5
    # Again: nothing is done, and what fails again is noted once.
    assert place.run(recursive=True).done == []
    assert len(journal.path.read_text().splitlines()) == 6
    assert [job.source.path.name for job in place.plan(retry_failed=True).jobs] == ["01.png"]


def test_the_times_add_up(place: Place) -> None:
    place.fill(4)
    place.book({f"{k}.png": as_bytes(noise(k)) for k in range(3)})
    ran = place.run(workers=2)
    split = ran.split
    assert split is not None
    assert set(split.stages_s) == {"read", "upscale", "network", "encode", "write"}
    for stage, spent_s in split.stages_s.items():
        each = [outcome.seconds[stage] for outcome in ran.outcomes]
        assert min(each) > 0
        assert spent_s == pytest.approx(sum(each))
    assert split.stages_s["network"] <= split.stages_s["upscale"]
    # What the calling thread did, one after the other, fits into the time of the run.
    assert split.stages_s["upscale"] + split.starved_s + split.blocked_s <= split.wall_s
    assert split.stages_s["read"] <= split.wall_s
    assert split.stages_s["encode"] + split.stages_s["write"] <= 2 * split.wall_s


def test_progress_goes_from_nothing_to_all(place: Place) -> None:
    place.book({"1.png": as_bytes(noise()), "2.txt": b"", "3.png": as_bytes(noise(1))})
    place.fill(1)
    told: dict[str, list[float]] = {}
    pipeline.run(
        place.plan(),
        Upscaler(model="nearest"),
        on_outcome=lambda outcome: None,
        on_progress=lambda job, share: told.setdefault(job.source.path.name, []).append(share),
        workers=1,
    )
    assert set(told) == {"00.png", "book.cbz"}
    for shares in told.values():
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert {1 / 3, 2 / 3} <= set(told["book.cbz"])


def test_what_is_done_is_told_while_the_network_works(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what ends the run; that is no failure of the picture that the network is on."""
    place.fill(5)
    numbers = itertools.count()
    upscale_all = Upscaler.upscale_all

    def slow(self: Upscaler, *arguments: Any, on_progress: Callable[[float], None]) -> Any:
        deadline_s = time.monotonic() + PATIENCE_S
        if next(numbers) == 2:
            while len(place.latest.outcomes) < 2:
                assert time.monotonic() < deadline_s, "nothing is told"
                on_progress(0.5)
        return upscale_all(self, *arguments, on_progress=on_progress)

    monkeypatch.setattr(Upscaler, "upscale_all", slow)
    _break("write", DiskFullError("no room"), lambda *_: None, monkeypatch)
    ran = place.run()
    assert isinstance(ran.error, DiskFullError)
    assert list(ran.failed) == ["01.png"]
    assert ran.done[0] == "00.png"


def test_nothing_to_do(place: Place) -> None:
    place.fill(2)
    assert place.run().done == ["00.png", "01.png"]
    again = place.run()
    assert (again.error, again.outcomes) == (None, [])
