"""What lies in stores comes ahead of time, by threads that keep no program alive.

    thread "ahead"                    threads "fetch"      whoever does the jobs
    jobs ──Fetcher._pull──▶ _calls ──▶ stores.read ──▶ Fetcher.__iter__, Fetcher.content

A store takes long to answer and little else, and may not answer at all.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from waifu4x.batch import staging
from waifu4x.batch.jobs import Job
from waifu4x.batch.limits import POLL_S, Budget, Slots
from waifu4x.errors import PictureReadError
from waifu4x.failures import shown
from waifu4x.remote import stores
from waifu4x.remote.urls import Url

_JOBS_AHEAD = 8
_FETCHING = 4
"""No fewer than what a worker of a cluster has at least (`cluster.backlog`): that comes at once."""

T = TypeVar("T")


class Threads:
    """A few threads that do what they are given, in its order.

    Those of `concurrent.futures` are waited for when Python ends, however long a store takes.
    """

    def __init__(self, most: int, *, name: str) -> None:
        """Begins none yet. most: how many there will be."""
        self._most = most
        self._name = name
        self._begun = 0
        self._closed = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """What `call` will have given; to be asked for by one thread only."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        if self._begun < self._most:
            self._begun += 1
            name = f"{self._name}-{self._begun}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def close(self) -> None:
        """Begin nothing any more; what is under way is not waited for. Takes no lock: see `run`."""
        self._closed = True
        for _ in range(self._most):
            self._calls.put(None)

    def _work(self) -> None:
        while (asked := self._calls.get()) is not None:
            if self._closed:
                asked[0].cancel()
            else:
                _fulfil(*asked)
            del asked  # it holds what was fetched, and the next one may be long in coming


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        result = call()
    except BaseException as error:  # whoever asked for it must hear of it
        future.set_exception(error)
    else:
        future.set_result(result)


_Ahead = tuple[Job, "Future[bytes] | None", int]
"""A job, its input, and how many bytes of memory that takes."""


class Fetcher:
    """The jobs of a run, one by one; the inputs of the next ones are being fetched meanwhile.

    Jobs may come from anywhere, also from whoever gives no further one before others are done: one
    that is there is begun to be fetched, and never waits for the next. No more are taken than are
    fetched ahead. One thread goes through the jobs, and asks for the content of each in its turn.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = jobs
        self._closed = False
        self._error: BaseException | None = None
        """What the jobs themselves have raised."""
        self._slots = Slots(_JOBS_AHEAD)
        self._budget = Budget(staging.HELD_BYTES)
        self._threads = Threads(_FETCHING, name="fetch")
        self._coming: queue.SimpleQueue[_Ahead | None] = queue.SimpleQueue()
        self._turn: tuple[Job, Future[bytes]] | None = None
        """Whose turn it is, where its input was fetched ahead and nobody took it yet."""

    def __iter__(self) -> Iterator[Job]:
        """The jobs, in their order, until `close`; once.

        Raises: what the jobs raise, at once, whatever came before it.
        """
        pulling = threading.Thread(target=self._pull, name="ahead", daemon=True)
        pulling.start()
        while (job := self._next()) is not None:
            yield job
        pulling.join()  # whoever gave the jobs may do with them as they like

    @contextmanager
    def content(self, job: Job) -> Iterator[Path | bytes]:
        """As `staging.content`, of what was fetched ahead where it was."""
        with staging.content(job, read=functools.partial(self._take, job)) as stored:
            yield stored

    def close(self) -> None:
        """Fetch nothing any more, and keep nothing; what is under way is not waited for.

        Takes no lock, and may be called again: see `run`.
        """
        self._closed = True
        self._turn = None
        self._threads.close()
        with suppress(queue.Empty):
            while True:
                self._coming.get_nowait()

    def _next(self) -> Job | None:
        ahead = None
        while not self._closed and self._error is None:
            with suppress(queue.Empty):
                ahead = self._coming.get(timeout=POLL_S)
                break
        if self._error is not None:
            raise self._error
        if ahead is None:
            return None
        job, fetching, size_bytes = ahead
        self._turn = None if fetching is None else (job, fetching)
        self._slots.give()
        self._budget.give(size_bytes)
        return job

    def _take(self, job: Job, where: Url) -> bytes:
        turn, self._turn = self._turn, None
        while not self._closed:
            if turn is None or turn[0] is not job:
                return stores.read(where)
            if futures.wait(turn[1:], timeout=POLL_S).done:
                return turn[1].result()
        raise PictureReadError(f"{shown(where)} was to be fetched when the run was ended")

    # -- the thread that takes jobs ----------------------------------------------------------------

    def _pull(self) -> None:
        try:
            jobs = iter(self._jobs)
            while self._waited_for(self._slots.take) and (job := next(jobs, None)) is not None:
                self._begin(job)
        except BaseException as error:  # whatever it is, whoever goes through them must hear of it
            self._error = error
        self._coming.put(None)

    def _begin(self, job: Job) -> None:
        """Begin to fetch the input of a job, where that is of use."""
        where = job.source.path
        is_whole = job.members is None and not job.streamed
        if not (isinstance(where, Url) and is_whole and staging.is_held(job)):
            self._coming.put((job, None, 0))
            return
        size_bytes = staging.size_bytes(job)
        if self._waited_for(lambda: self._budget.take(size_bytes)):
            fetching = self._threads.begin(functools.partial(stores.read, where))
            self._coming.put((job, fetching, size_bytes))

    def _waited_for(self, take: Callable[[], bool]) -> bool:
        """Wait until there is room; False when nothing is wanted any more."""
        while not self._closed:
            if take():
                return True
        return False
