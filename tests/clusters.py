"""A cluster within this process: real workers, whose deaths are arranged."""

from __future__ import annotations

import pickle
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from waifu4x.cluster.links import Handle, WorkerDied
from waifu4x.cluster.messages import Message, Order, Place, Reply
from waifu4x.cluster.worker import Worker

FIRST_PID = 4_000_000
"""No process has it, nor any above: proc_pid_max(5)."""


@dataclass
class Called:
    """One call of one worker, for whoever arranges what happens."""

    worker: int
    """Counted from 0, in the order in which they were called for."""
    method: str
    arguments: tuple[Any, ...]

    @property
    def names(self) -> list[str]:
        """Of the files that it brings."""
        if self.method != "exchange":
            return []
        message: Message = self.arguments[0]
        return [job.source.path.name for _, job in message.tickets]


@dataclass
class Standin:
    """Workers as threads. What they are told and tell goes through pickle."""

    count: int = 2
    arrange: Callable[[Called], None] = lambda called: None
    """Called before every call; it may change its arguments, or raise WorkerDied."""
    comes: Callable[[int], bool] = lambda worker: True
    """Whether the cluster has room for a worker."""
    cores: int = 1
    connected: int = 0
    closed: int = 0
    given: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names of files, by worker."""
    most: int = 0
    """How many jobs a worker had at once."""
    handles: list[Hand] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def connect(self) -> None:
        self.connected += 1

    def places(self) -> list[Place]:
        return [
            Place(node=f"host-{k}", key=f"{k}", cores=self.cores, share=1.0)
            for k in range(self.count)
        ]

    def open(self, place: Place) -> Handle:
        with self._lock:
            hand = Hand(self, len(self.handles), place)
            self.handles.append(hand)
            return hand

    def close(self) -> None:
        self.closed += 1


class Hand:
    """One worker."""

    def __init__(self, cluster: Standin, number: int, place: Place) -> None:
        self.number = number
        self.pid = FIRST_PID + number
        self.killed = False
        self._cluster = cluster
        self._place = place
        self._worker = Worker()
        self._has = 0

    def call(self, method: str, *arguments: Any, wanted: Callable[[], bool]) -> Any:
        never = threading.Event()
        while not self._cluster.comes(self.number):
            if not wanted():
                raise WorkerDied("it was let go of")
            never.wait(0.01)
        called = Called(self.number, method, pickle.loads(pickle.dumps(arguments)))
        try:
            self._cluster.arrange(called)
        except WorkerDied:
            self.kill()
            raise
        if method == "exchange":
            names = called.names
            self._cluster.given[self.number] += names
            self._has += len(names)
            self._cluster.most = max(self._cluster.most, self._has)
        told = getattr(self._worker, method)(*called.arguments)
        if isinstance(told, Reply):
            self._has -= len(told.outcomes)
        elif method == "facts":
            told = {**told, "node": self._place.node, "pid": self.pid}
        return pickle.loads(pickle.dumps(told))

    def kill(self) -> None:
        """What was begun is not waited for, as far as a thread can be ended."""
        self.killed = True
        self._worker.exchange(Message(stop=True))


def dies_with(*names: str) -> Callable[[Called], None]:
    """Whoever is given one of these files dies."""

    def arrange(called: Called) -> None:
        if set(names) & set(called.names):
            raise WorkerDied("it was killed")

    return arrange


def dies_once(number: int, *, after: int) -> Callable[[Called], None]:
    """One worker dies when it would be asked for the so-manieth time for what it has done."""
    asked: list[int] = []

    def arrange(called: Called) -> None:
        if called.worker == number and called.method == "exchange":
            asked.append(1)
            if len(asked) > after:
                raise WorkerDied("it was killed")

    return arrange


def changes_order(**changes: Any) -> Callable[[Called], None]:
    """Workers are told another order than was sent."""
    import dataclasses

    def arrange(called: Called) -> None:
        if called.method == "start":
            order: Order = called.arguments[0]
            called.arguments = (dataclasses.replace(order, **changes), *called.arguments[1:])

    return arrange
