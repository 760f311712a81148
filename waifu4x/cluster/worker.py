"""What does jobs, wherever it is: one model, and one run of `batch.run` that is fed with jobs.

    exchange ──_given──▶ _jobs ──▶ batch.run ──_told──▶ exchange

Whoever gives the jobs calls `exchange` again and again: it brings jobs and takes outcomes back, so
there is one call under way at a time, and none that lasts. The run is continuous, so decoding, the
network and encoding overlap from one job to the next, as they do on one machine. It keeps no
journal, and knows nothing of other workers.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from waifu4x import memory
from waifu4x.batch import run
from waifu4x.batch.jobs import Job
from waifu4x.batch.limits import POLL_S
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.cluster import traces
from waifu4x.cluster.messages import End, Message, Order, Place, Reply, portable
from waifu4x.errors import ClusterError
from waifu4x.failures import shown
from waifu4x.models import open_upscaler
from waifu4x.upscaler import Upscaler
from waifu4x.version import __version__

_MOST_ENCODERS = 8
# As one process may take, of what is free, for the pictures on their way.
_MEMORY_SHARE = 0.5
# Several outcomes at once are cheaper than one by one.
_GATHER_S = 0.01


class _StoppedError(BaseException):
    """The run is to end now. No Exception: nothing that fails may be taken for it."""


class Worker:
    """Does jobs. Every method returns soon; what takes long runs in a thread."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[int, Outcome] | End | None] = queue.SimpleQueue()
        # By id: jobs are not told apart by what they say.
        self._under_way: dict[int, tuple[int, Job]] = {}
        self._progress: tuple[int, float] | None = None
        self._stopping = False

    def facts(self) -> dict[str, str | int]:
        """Who it is. Asked first, and in words that every version understands."""
        return {"version": __version__, "node": platform.node(), "pid": os.getpid()}

    def start(self, order: Order, place: Place) -> None:
        """Open the model, and begin; `exchange` tells how that went."""
        threading.Thread(target=self._work, args=(order, place), daemon=True).start()

    def exchange(self, message: Message) -> Reply:
        """Take further jobs, and tell what has ended meanwhile."""
        for ticket in message.tickets:
            self._given.put(ticket)
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
        self._told.put(end)

    def _run(self, order: Order, place: Place) -> Split:
        _go_to(order)
        request, upscaler = _opened(order, place)
        _check(order, upscaler)
        self._told.put(None)
        # The jobs come one by one; `run` only goes through them.
        jobs = cast("list[Job]", self._jobs())
        return run.run(
            Plan(request=request, jobs=jobs),
            upscaler,
            on_outcome=self._tell,
            on_progress=self._note_progress,
            workers=order.encoders or max(1, min(place.cores, _MOST_ENCODERS)),
        )

    def _jobs(self) -> Iterator[Job]:
        while True:
            if self._stopping:
                raise _StoppedError
            with suppress(queue.Empty):
                ticket = self._given.get(timeout=POLL_S)
                if ticket is None:
                    return
                self._under_way[id(ticket[1])] = ticket
                yield ticket[1]

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
