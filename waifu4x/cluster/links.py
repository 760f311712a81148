"""A worker, as the machine that has the plan sees it: a thread that talks to it, and what it has.

    calling thread ──_messages──▶ thread of the link ──call──▶ worker
         ▲────────────Mailbox─────────────┘

Only the link's thread ever waits for the cluster. The calling thread waits for a
`queue.SimpleQueue` and for nothing else: signals may interrupt it anywhere, see `batch.run`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from waifu4x.batch.jobs import Job
from waifu4x.batch.limits import POLL_S
from waifu4x.cluster.messages import Message, Order, Place, Reply
from waifu4x.errors import ClusterError
from waifu4x.version import __version__


class WorkerDied(Exception):
    """A worker is gone, or cannot be reached; the message is why, as the end of a sentence."""


class Handle(Protocol):
    """One worker in the cluster."""

    def call(self, method: str, *arguments: Any, wanted: Callable[[], bool]) -> Any:
        """What `worker.Worker`'s method gives.

        wanted: asked now and then, while it waits; when it says no, WorkerDied is raised.

        Raises:
            WorkerDied: it is gone, or does not answer.
            ClusterError: no worker can be had like that, now or later.
        """
        ...

    def kill(self) -> None:
        """End the worker; nothing is raised."""
        ...


class Cluster(Protocol):
    """Where workers are."""

    def connect(self) -> None:
        """Reach it, or start it; once. Raises UsageError or ClusterError."""
        ...

    def places(self) -> list[Place]:
        """Where workers may run. Raises ClusterError where it cannot be told."""
        ...

    def open(self, place: Place) -> Handle:
        """A new worker; it is there when it answers. Raises WorkerDied, ClusterError."""
        ...

    def close(self) -> None:
        """Leave it, or end it; also after `connect` was interrupted. Nothing is raised."""
        ...


Event = tuple["Link", Reply | BaseException]
"""What a worker told, or why it does not any more."""


class Mailbox:
    """Events for the calling thread; a signal that interrupts it loses none."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._rings.put(None)

    def first(self) -> Event | None:
        """The oldest event, waiting a moment for it; it stays until `drop`."""
        if not self._events:
            with suppress(queue.Empty):
                self._rings.get(timeout=POLL_S)
        return self._events[0] if self._events else None

    def drop(self) -> None:
        """The oldest event is dealt with."""
        self._events.popleft()


class Link:
    """One worker, what it was given, and the thread that talks to it."""

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        order: Order,
        *,
        mailbox: Mailbox,
        barren: int = 0,
    ) -> None:
        """barren: how many workers died in this place before, and had not ended a job."""
        self.place = place
        self.barren = barren
        self.node = place.node
        self.pid: int | None = None
        """On its machine; known when it was met."""
        self.ready = False
        self.alone = False
        """It was given one job, and is to be given no other beside it."""
        self.told_to_end = False
        self.settled = 0
        """How many jobs it has ended."""
        self.outstanding: dict[int, Job] = {}
        """What it was given and has not ended, by number."""
        self.since_s = 0.0
        """When it was met, by `time.monotonic`: until then it waited for room."""
        self._cluster = cluster
        self._order = order
        self._mailbox = mailbox
        self._wanted = True
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._talk, name="link", daemon=True)

    def begin(self) -> None:
        """Call for the worker."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Every reply must be answered by at least one; to be called in the calling thread."""
        self.outstanding |= dict(message.tickets)
        self._messages.put(message)

    def abandon(self) -> None:
        """Let go of it, whatever it does; its last event says so."""
        self._wanted = False
        self._messages.put(None)

    # -- the thread that talks ---------------------------------------------------------------------

    def _talk(self) -> None:
        last: Reply | BaseException
        try:
            handle = self._cluster.open(self.place)
            try:
                last = self._converse(handle)
            finally:
                handle.kill()
        except BaseException as error:  # whatever it is, it must be heard of
            last = error
        self._mailbox.put((self, last))

    def _converse(self, handle: Handle) -> Reply:
        """The last reply, with which it ended."""
        self._meet(handle.call("facts", wanted=self._is_wanted))
        handle.call("start", self._order, self.place, wanted=self._is_wanted)
        message: Message | None = Message()
        while message is not None:
            reply: Reply = handle.call("exchange", message, wanted=self._is_wanted)
            if reply.end is not None:
                return reply
            self._mailbox.put((self, reply))
            message = self._messages.get()
        raise WorkerDied("it was let go of")

    def _meet(self, facts: dict[str, Any]) -> None:
        self.since_s = time.monotonic()  # before its number, by which others know that it came
        self.node, self.pid = str(facts["node"]), int(facts["pid"])
        if facts["version"] != __version__:
            raise ClusterError(
                f"{self.node} has waifu4x {facts['version']}, and this machine {__version__}: "
                f"install the same version on all machines"
            )

    def _is_wanted(self) -> bool:
        return self._wanted

    def join(self, within_s: float) -> None:
        """Wait for the thread to end, for a while."""
        with suppress(RuntimeError):  # it was never begun
            self._thread.join(within_s)
