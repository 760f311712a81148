"""A cluster within this process: real workers, whose deaths are arranged; and runs on it."""

from __future__ import annotations

import json
import pickle
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from command import contents, save

from waifu4x.batch import plan as planning
from waifu4x.batch import run as pipeline
from waifu4x.batch.jobs import Job
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.cluster.driver import Distribution
from waifu4x.cluster.links import Handle, WorkerDied
from waifu4x.cluster.messages import Message, Order, Place, Reply
from waifu4x.cluster.worker import Worker
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

PATIENCE_S = 30.0
"""Nothing here takes so long, but for ever is longer."""
WISHES = {"device": "auto"}
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
    share: float = 1.0
    """Of its machine's memory, of each."""
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
            Place(node=f"host-{k}", key=f"{k}", cores=self.cores, share=self.share)
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

    def arrange(called: Called) -> None:
        if called.method == "start":
            order: Order = called.arguments[0]
            called.arguments = (replace(order, **changes), *called.arguments[1:])

    return arrange


@dataclass
class Ran:
    """All that a run gave."""

    outcomes: list[Outcome] = field(default_factory=list)
    progress: list[tuple[Job, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: BaseException | None = None
    split: Split | None = None

    def _ended(self, status: str) -> list[str]:
        return sorted(o.job.source.path.name for o in self.outcomes if o.status == status)

    @property
    def done(self) -> list[str]:
        return self._ended("done")

    @property
    def failed(self) -> list[str]:
        return self._ended("failed")


@dataclass
class Folders:
    """An input folder, an output folder, and runs from one into the other."""

    folder: Path

    @property
    def inputs(self) -> Path:
        return self.folder / "in"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def fill(self, count: int) -> list[str]:
        """00.png, 01.png, … in two folders; their names."""
        there = [f"{k:02}.png" for k in range(count)]
        for k, name in enumerate(there):
            save(self.inputs / "ab"[k % 2] / name, seed=k)
        return there

    def request(self, **changes: Any) -> Request:
        options: dict[str, Any] = {
            "inputs": (str(self.inputs),),
            "recursive": True,
            "target": Target(scale=2.0),
            "output": str(self.out),
            "check_space": False,
            **changes,
        }
        return Request(**options)

    def plan(self, **changes: Any) -> Plan:
        return planning.make(self.request(**changes), Upscaler(model="nearest"))

    def run(
        self,
        cluster: Standin,
        plan: Plan | None = None,
        *,
        model: str = "nearest",
        wishes: dict[str, Any] = WISHES,
        on_outcome: Callable[[Outcome], None] | None = None,
        **changes: Any,
    ) -> Ran:
        """In a thread of its own, so that a run that hangs fails and does not hang the tests."""
        ran = Ran()
        planned = plan if plan is not None else self.plan(**changes)

        def tell(outcome: Outcome) -> None:
            ran.outcomes.append(outcome)
            if on_outcome is not None:
                on_outcome(outcome)

        def work() -> None:
            order = Order(request=planned.request, model=model, wishes=wishes, filters=True)
            distribution = Distribution(cluster=cluster, order=order, on_note=ran.notes.append)
            try:
                ran.split = distribution.run(
                    planned,
                    Upscaler(model="nearest"),
                    on_outcome=tell,
                    on_progress=lambda job, share: ran.progress.append((job, share)),
                    workers=0,
                )
            except BaseException as error:
                ran.error = error

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the run hangs"
        assert cluster.closed == 1
        assert all(hand.killed for hand in cluster.handles), "a worker is left"
        self.check_clean()
        return ran

    def check_clean(self) -> None:
        """Nothing half done is left, nor what workers are known by."""
        assert [*self.out.rglob("*.partial")] == []
        assert {path.name for path in self.out.glob(".waifu4x/*")} <= {"journal.jsonl"}

    def lines(self) -> list[dict[str, Any]]:
        rows = (self.out / ".waifu4x/journal.jsonl").read_text().splitlines()
        return [json.loads(row) for row in rows]

    def check_journal(self, ran: Ran) -> None:
        """One line for each outcome, and no other."""
        noted = Counter((line["source"], line["status"]) for line in self.lines())
        told = Counter((o.job.source.relative.as_posix(), o.status) for o in ran.outcomes)
        assert noted == told
        assert set(noted.values()) == {1}


def alone(place: Folders) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """What one machine makes of the same, and notes, in another folder."""
    other = Folders(place.folder / "alone")
    other.folder.mkdir()
    plan = planning.make(replace(place.request(), output=str(other.out)), Upscaler(model="nearest"))
    pipeline.run(
        plan,
        Upscaler(model="nearest"),
        on_outcome=lambda outcome: None,
        on_progress=lambda job, share: None,
        workers=1,
    )
    return contents(other.out), other.lines()
