"""What does jobs, wherever it is: one model, and one run of `batch.run` that is fed with jobs.

    exchange ──_given──▶ _jobs ──▶ batch.run ──_told──▶ exchange

Whoever gives the jobs calls `exchange` again and again: it brings jobs and takes outcomes back, so
there is one call under way at a time, and none that lasts. The run is continuous, so decoding, the
network and encoding overlap from one job to the next, as they do on one machine. It keeps no
journal, and knows nothing of other workers. What was decided about a job elsewhere is looked at
again before it is done: whether its input is the same file here, and whether it fits into memory.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress

from waifu4x import memory
from waifu4x.batch import limits, run, streamed
from waifu4x.batch.fetching import Threads
from waifu4x.batch.jobs import Job
from waifu4x.batch.limits import POLL_S
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.cluster import inputs, traces
from waifu4x.cluster.messages import End, Message, Order, Place, Reply, bare, portable
from waifu4x.errors import ClusterError, OutOfMemoryError, Waifu4xError
from waifu4x.failures import shown
from waifu4x.models import open_upscaler
from waifu4x.upscaler import Upscaler
from waifu4x.version import __version__

_MOST_ENCODERS = 8
# As one process may take, of what is free, for the pictures on their way.
_MEMORY_SHARE = 0.5
# Several outcomes at once are cheaper than one by one.
_GATHER_S = 0.01
# A store takes long to answer: so many inputs are looked at at once.
_LOOKS = 4
_MOST_STRANGE = 3
"""Of inputs, one after the other, that are other files here: it is no fault of theirs then."""

_Fit = Callable[[Job], Job]


class _StoppedError(BaseException):
    """The run is to end now. No Exception: nothing that fails may be taken for it."""


class Worker:
    """Does jobs. Every method returns soon; what takes long runs in a thread."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[int, Job, Future[None]] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[int, Outcome] | End | None] = queue.SimpleQueue()
        # By id: jobs are not told apart by what they say.
        self._under_way: dict[int, tuple[int, Job]] = {}
        self._progress: tuple[int, float] | None = None
        self._stopping = False
        self._looks = Threads(_LOOKS, name="look")
        self._strange = 0

    def facts(self) -> dict[str, str | int]:
        """Who it is. Asked first, and in words that every version understands."""
        return {"version": __version__, "node": platform.node(), "pid": os.getpid()}

    def start(self, order: Order, place: Place) -> None:
        """Open the model, and begin; `exchange` tells how that went."""
        threading.Thread(target=self._work, args=(order, place), daemon=True).start()

    def exchange(self, message: Message) -> Reply:
        """Take further jobs, and tell what has ended meanwhile."""
        for number, job in message.tickets:
            look = self._looks.begin(functools.partial(inputs.check, job))
            self._given.put((number, job, look))
        if message.close:
            self._given.put(None)
        self._stopping = self._stopping or message.stop
        reply = Reply()
        self._gather(reply, within_s=message.wait_s)
        self._gather(reply, within_s=_GATHER_S)
        reply.progress = self._progress
        return reply

    def _gather(self, reply: Reply, *, within_s: float) -> None:
        """Put into the reply what there is to tell, waiting for the first of it."""
        with suppress(queue.Empty):
            told = self._told.get(timeout=within_s)
            while True:
                if told is None:
                    reply.ready = True
                elif isinstance(told, End):
                    reply.end = told
                else:
                    reply.outcomes.append(told)
                told = self._told.get_nowait()

    # -- the thread that works ---------------------------------------------------------------------

    def _work(self, order: Order, place: Place) -> None:
        end = End()
        try:
            end = End(split=self._run(order, place))
        except _StoppedError:
            pass
        except BaseException as error:  # whatever it is, it must be heard of
            end = End(error=portable(error))
        self._looks.close()
        self._told.put(end)

    def _run(self, order: Order, place: Place) -> Split:
        _go_to(order)
        request, upscaler = _opened(order, place)
        _check(order, upscaler)
        self._told.put(None)
        return run.run(
            Plan(request=request),
            upscaler,
            jobs=self._jobs(_fitting(order, place, request, upscaler)),
            on_outcome=self._tell,
            on_progress=self._note_progress,
            workers=order.encoders or max(1, min(place.cores, _MOST_ENCODERS)),
        )

    def _jobs(self, fit: _Fit) -> Iterator[Job]:
        while (given := self._next_given()) is not None:
            number, job, look = given
            try:
                self._wait_for(look)
                job = fit(job)
            except Waifu4xError as error:
                self._refuse(number, job, error)
                continue
            self._strange = 0
            self._under_way[id(job)] = number, job
            yield job

    def _next_given(self) -> tuple[int, Job, Future[None]] | None:
        """None when there will be no further one."""
        while not self._stopping:
            with suppress(queue.Empty):
                return self._given.get(timeout=POLL_S)
        raise _StoppedError

    def _wait_for(self, look: Future[None]) -> None:
        """Until an input was looked at. Raises as `inputs.check`."""
        while not futures.wait([look], timeout=POLL_S).done:
            if self._stopping:
                raise _StoppedError
        look.result()

    def _refuse(self, number: int, job: Job, error: Waifu4xError) -> None:
        """It failed before it was begun. Raises the error where this machine is to blame."""
        self._strange = self._strange + 1 if isinstance(error, ClusterError) else 0
        if self._strange == _MOST_STRANGE:
            raise error
        self._told.put((number, Outcome(job=job, status="failed", error=bare(error))))

    def _tell(self, outcome: Outcome) -> None:
        number, _ = self._under_way.pop(id(outcome.job))
        self._told.put((number, outcome))

    def _note_progress(self, job: Job, share: float) -> None:
        if self._stopping:
            raise _StoppedError
        # One page of an archive may go on while another has failed already.
        if (ticket := self._under_way.get(id(job))) is not None:
            self._progress = ticket[0], share


def _go_to(order: Order) -> None:
    """Let relative paths mean the same as at home."""
    try:
        if order.here and os.getcwd() != order.here:
            os.chdir(order.here)
    except OSError as error:
        raise ClusterError(
            f"there is no folder {order.here} here ({error.strerror}): run the command in a folder "
            f"that all machines share"
        ) from error


def _opened(order: Order, place: Place) -> tuple[Request, Upscaler]:
    """The upscaler, and the request with what this worker may take of the machine's memory."""
    request, wishes = order.request, dict(order.wishes)
    if place.share < 1.0 and request.memory_bytes is None:
        share_bytes = int(memory.free_host_bytes() * _MEMORY_SHARE * place.share)
        request = dataclasses.replace(request, memory_bytes=share_bytes)
        if not place.gpu and not order.filters:
            wishes["memory_bytes"] = share_bytes
    if not order.filters:
        wishes["device"] = "cuda" if place.gpu else "cpu"
    return request, open_upscaler(order.model, **wishes)


def _fitting(order: Order, place: Place, request: Request, upscaler: Upscaler) -> _Fit:
    """How a job is done with the memory that is here, and not where it was planned.

    request: as `_opened` gives it.
    """
    limit_bytes = limits.memory_bytes(request.memory_bytes)
    free_bytes, is_shared = memory.free_host_bytes(), order.request.memory_bytes is None
    if is_shared:
        free_bytes = int(free_bytes * place.share)

    def fit(job: Job) -> Job:
        try:
            return streamed.fitted(
                job,
                upscaler,
                order.request,
                to_stdout=False,
                free_bytes=free_bytes,
                limit_bytes=limit_bytes,
            )
        except OutOfMemoryError as error:
            if not is_shared:
                raise
            raise OutOfMemoryError(f"{error}, or give each worker more with --memory") from error

    return fit


def _check(order: Order, upscaler: Upscaler) -> None:
    """Raises ClusterError where the same job would not become the same file in the same folder."""
    if order.request.settings_key(upscaler) != order.settings:
        raise ClusterError(
            f"the model {order.model} is another one here: give all machines the same file, and "
            f"the same references"
        )
    if not traces.is_seen(order.mark):
        raise ClusterError(
            f"the output folder {shown(order.mark.parent.parent)} is another one here: choose one "
            f"that all machines share with -o"
        )
