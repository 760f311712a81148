"""The plan is carried out: decoding, the network and encoding overlap, within bounded memory.

    decode thread            calling thread            encode threads
    _read_all ──_decoded──▶ _enlarge_all ──_enlarged──▶ _finish_all ──_ended──▶ calling thread

All three spend their time in code that releases Python's lock. How much is on its way is bounded by
the memory that it takes, so a folder of any length needs no more than its largest pictures do. What
fails becomes an error in the place of its part, and goes the same way. A picture that is too large
for memory goes alone, and is written by the calling thread while that enlarges it: `streamed`.
What lies in stores comes ahead of the decode thread, by threads of its own: `fetching`.

Signals interrupt the calling thread, between any two of its steps. A lock that Python code takes
would then stay taken for ever, now and then (`threading.Condition`, and with it `queue.Queue`,
`Semaphore` and `Event`), so the calling thread uses `queue.SimpleQueue`, which is made for that:
https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from waifu4x import failures
from waifu4x.batch import limits, noting, streamed
from waifu4x.batch.assembly import Assembly, Folders
from waifu4x.batch.fetching import Fetcher
from waifu4x.batch.jobs import Job, named
from waifu4x.batch.limits import POLL_S, Budget, Slots
from waifu4x.batch.plan import Plan
from waifu4x.batch.stages import Part
from waifu4x.errors import DiskFullError, OutOfMemoryError, Waifu4xError
from waifu4x.upscaler import Facts, Upscaler

_LOOK_AHEAD = 3
"""Decoded parts that wait for the network: enough that a slow file does not stop it."""
_ENCODER_NICENESS = 10


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one job."""

    job: Job
    status: Literal["done", "failed"]
    error: Waifu4xError | None = None
    facts: Facts | None = None
    """Of its first picture; its `network_s` is of all."""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; see `stages.Part.seconds`, and "write"."""
    output_bytes: int = 0


@dataclass(kw_only=True)
class Split:
    """Where the time of a run went, in seconds; stages overlap, so they add up to more than it."""

    wall_s: float = 0.0
    stages_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """As in `Outcome.seconds`, of all jobs that were done."""
    starved_s: float = 0.0
    """For how long the network waited for a decoded picture."""
    blocked_s: float = 0.0
    """For how long the network waited because too much was left to encode."""


def run(
    plan: Plan,
    upscaler: Upscaler,
    *,
    jobs: Iterable[Job] | None = None,
    on_outcome: Callable[[Outcome], None],
    on_progress: Callable[[Job, float], None],
    workers: int,
    stdout: BinaryIO | None = None,
) -> Split:
    """Do all jobs of `plan`.

    Args:
        jobs: in the place of the plan's, where they are not all known yet: a further one may wait
            until others are done. A thread of the run takes them, a few ahead of time.
        on_outcome: called for every job that ended, in this thread, also when the run is cut short;
            never twice, so a signal that arrives in it cuts it short too.
        on_progress: called with a job and how much of it the network has done, 0..1.
        workers: how many threads encode.
        stdout: where a job without a target goes.

    Raises:
        DiskFullError: there is no room left; what comes next was not tried.
        PictureWriteError: the journal cannot be written.
        KeyboardInterrupt, and whatever signals raise: what was being encoded is finished (after a
        second signal only what was being written), all else is dropped, nothing half done is left.
    """
    pipeline = _Pipeline(
        plan=plan,
        upscaler=upscaler,
        fetcher=Fetcher(plan.jobs if jobs is None else jobs),
        on_outcome=on_outcome,
        on_progress=on_progress,
        workers=workers,
        stdout=stdout,
    )
    started = time.perf_counter()
    try:
        try:
            noting.note_refusals(plan)
            pipeline.run()
        finally:
            pipeline.wind_down()
    finally:
        pipeline.drop()
        pipeline.split.wall_s = time.perf_counter() - started
    return pipeline.split


_Item = Part | Waifu4xError


@dataclass(kw_only=True)
class _Pipeline:
    """The threads of one run, and what passes between them."""

    plan: Plan
    upscaler: Upscaler
    fetcher: Fetcher
    on_outcome: Callable[[Outcome], None]
    on_progress: Callable[[Job, float], None]
    workers: int
    stdout: BinaryIO | None
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        self._stopped = False
        """Nothing is begun any more."""
        self._fatal: BaseException | None = None
        """What ends the run."""
        self._budget = Budget(limits.memory_bytes(self.plan.request.memory_bytes))
        self._ahead = Slots(_LOOK_AHEAD)
        # Encoded later than this, parts would only wait: one for each thread, and one more each.
        self._behind = Slots(2 * self.workers)
        self._decoded: queue.SimpleQueue[tuple[Assembly, _Item] | None] = queue.SimpleQueue()
        self._enlarged: queue.SimpleQueue[tuple[Assembly, _Item] | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        self._folders = Folders()
        self._open: set[Assembly] = set()
        # As daemons they do not keep a program alive that a second signal has ended.
        self._reader = threading.Thread(target=self._read_all, name="decode", daemon=True)
        self._encoders = [
            threading.Thread(target=self._finish_all, name=f"encode-{k}", daemon=True)
            for k in range(self.workers)
        ]

    # -- the thread that decodes -------------------------------------------------------------------

    def _read_all(self) -> None:
        try:
            for job in self.fetcher:
                self._read(job)
            self._decoded.put(None)
        except BaseException as error:  # whatever it is, the run must hear of it
            self._ended.put(error)

    def _read(self, job: Job) -> None:
        if self._stopped:
            return
        wish = self.plan.request.encoding.format
        assembly = Assembly(job, wish=wish, folders=self._folders, stdout=self.stdout)
        self._open.add(assembly)
        try:
            for part in streamed.parts(job, self.upscaler, self.plan.request, begin=assembly.begin):
                if assembly.dropped or not self._has_room(part):
                    return
                try:
                    streamed.decode(part, self.plan.request, opener=self.fetcher.content)
                except BaseException:
                    self._release(part)
                    self._ahead.give()
                    raise
                self._decoded.put((assembly, part))
        except (Waifu4xError, MemoryError) as error:
            self._decoded.put((assembly, _own(error, job)))

    def _has_room(self, part: Part) -> bool:
        """Wait until `part` may be decoded; False when the run has stopped."""
        for take in (self._ahead.take, lambda: self._budget.take(part.memory_bytes)):
            while not take():
                if self._stopped:
                    return False
        return not self._stopped

    # -- the thread that runs the network ----------------------------------------------------------

    def run(self) -> None:
        for thread in (self._reader, *self._encoders):
            thread.start()
        self._enlarge_all()
        self._end_encoders(tell=self._tell)
        self._tell()

    def _enlarge_all(self) -> None:
        while (entry := self._next_decoded()) is not None:
            assembly, item = entry
            if isinstance(item, Part) and not assembly.dropped:
                item = self._enlarge(item)
            started = time.perf_counter()
            while not self._behind.take():
                self._tell()
            self.split.blocked_s += time.perf_counter() - started
            self._enlarged.put((assembly, item))
            self._tell()

    def _next_decoded(self) -> tuple[Assembly, _Item] | None:
        started = time.perf_counter()
        entry = None
        while not self._stopped:
            with suppress(queue.Empty):
                entry = self._decoded.get(timeout=POLL_S)
                break
            self._tell()
        self.split.starved_s += time.perf_counter() - started
        if entry is not None and isinstance(entry[1], Part):
            self._ahead.give()
        return entry

    def _enlarge(self, part: Part) -> _Item:
        def inside(share: float) -> None:
            self._pass_on()  # not only when it ends: a large picture takes minutes
            self.on_progress(part.job, (part.number + share) / part.total)

        try:
            streamed.enlarge(part, self.upscaler, self.plan.request, on_progress=inside)
        except (Waifu4xError, MemoryError) as error:
            self._release(part)
            return _own(error, part.job)
        return part

    def _tell(self) -> None:
        """Pass on what has ended meanwhile, and end the run where that was the end of it."""
        self._pass_on()
        if self._fatal is not None:
            raise self._fatal

    def _pass_on(self) -> None:
        while not self._ended.empty():
            ended = self._ended.get_nowait()
            if isinstance(ended, BaseException):
                self._fatal = self._fatal or ended
                continue
            if isinstance(ended.error, DiskFullError):
                self._fatal = self._fatal or ended.error
            if ended.error is not None and self.plan.request.fail_fast:
                self._stopped = True
            for stage, spent_s in ended.seconds.items():
                self.split.stages_s[stage] += spent_s
            self.on_outcome(ended)

    def _end_encoders(self, *, tell: Callable[[], None]) -> None:
        for _ in self._encoders:
            self._enlarged.put(None)
        for thread in self._encoders:
            while thread.is_alive():
                thread.join(POLL_S)
                tell()

    def wind_down(self) -> None:
        """Begin nothing any more, and wait for what is being encoded."""
        self._stopped = True
        self.fetcher.close()
        self._end_encoders(tell=lambda: None)
        if self._reader.is_alive():
            # It ends after the file that it is reading, and has nothing to clean up.
            self._reader.join(10 * POLL_S)

    def drop(self) -> None:
        """Leave nothing half done, and tell what was done; also where winding down was cut short.

        What is being written is waited for; what is still being encoded finds itself dropped.
        """
        self._stopped = True
        self.fetcher.close()
        for assembly in list(self._open):
            assembly.drop()
        self._pass_on()

    # -- the threads that encode -------------------------------------------------------------------

    def _finish_all(self) -> None:
        _step_back()
        while (entry := self._enlarged.get()) is not None:
            assembly, item = entry
            try:
                if self._stopped:
                    assembly.drop()
                else:
                    self._finish(assembly, item)
            except BaseException as error:  # whatever it is, the run must hear of it
                assembly.drop()
                self._ended.put(error)
            finally:
                if isinstance(item, Part):
                    self._release(item)
                self._behind.give()

    def _finish(self, assembly: Assembly, item: _Item) -> None:
        if isinstance(item, Waifu4xError):
            self._fail(assembly, item)
            return
        if assembly.dropped:
            return
        try:
            streamed.encode(item, self.plan.request)
            is_whole = assembly.add(item)
        except (Waifu4xError, MemoryError) as error:
            self._fail(assembly, _own(error, item.job))
            return
        if is_whole:
            self._succeed(assembly)

    def _succeed(self, assembly: Assembly) -> None:
        job = assembly.job
        self._open.discard(assembly)
        noting.note_done(self.plan, job, output_bytes=assembly.size_bytes)
        self._ended.put(
            Outcome(
                job=job,
                status="done",
                facts=assembly.facts,
                notes=tuple(assembly.notes),
                seconds=dict(assembly.seconds),
                output_bytes=assembly.size_bytes,
            )
        )

    def _fail(self, assembly: Assembly, error: Waifu4xError) -> None:
        if not assembly.drop():
            return  # one reason is enough
        self._open.discard(assembly)
        noting.note_failed(self.plan, assembly.job, error)
        self._ended.put(Outcome(job=assembly.job, status="failed", error=error))

    # -- any of them -------------------------------------------------------------------------------

    def _release(self, part: Part) -> None:
        """Keep nothing of it: whoever still holds the part holds no picture."""
        size_bytes, part.memory_bytes = part.memory_bytes, 0
        part.content = b""
        self._budget.give(size_bytes)  # last, as whoever waits for the room goes on at once


def _step_back() -> None:
    """Let the network's threads go first where it shares the cores with this thread.

    They wait for each other many times a picture: an encoder that takes the core of one stops all.
    Only Linux has priorities of threads.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _ENCODER_NICENESS)


def _own(error: Waifu4xError | MemoryError, job: Job) -> Waifu4xError:
    """As an error of ours, without the frames that it went through: they hold the pictures."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"{job.name} does not fit into memory; choose a smaller size")
    error = named(error, job.name, *([] if job.target is None else [failures.shown(job.target)]))
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
