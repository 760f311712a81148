"""Timing several ways of doing the same work against each other on a machine that others use too.

They run in turn, A B C A B C …, so that what slows the machine for a while slows all of them alike,
and the ratio of two times of one round is steadier than either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from waifu4x.errors import Waifu4xError

MIN_ROUNDS = 3
MAX_ROUNDS = 30
HOPELESS = 3.0
"""How many times as long as the fastest one may take and still run on."""

Doing = Callable[[str, float], None]
"""Called with what is done now, and with the share of the budget spent, 0..1."""
_Result = TypeVar("_Result")


@dataclass(kw_only=True, eq=False)
class Entrant:
    """One who runs in a race, and how long it took."""

    name: str
    """For people."""
    may_fail: bool = True
    """Else its errors end the race."""
    may_be_dropped: bool = True
    probe_s: float | None = None
    """Of the run between the warm-up and the first round; None before, and where it failed."""
    times_s: list[float] = field(default_factory=list)
    """By round: as many as anybody else's who is still racing."""
    is_dropped: bool = False
    note: str = ""
    """Why it failed or was dropped."""

    def run(self) -> object:
        """Do the work that is timed, and give its result."""
        raise NotImplementedError

    @property
    def is_racing(self) -> bool:
        return self.probe_s is not None and not self.is_dropped

    def give_up(self, reason: str) -> None:
        """It takes no further part, and what it did so far counts for nothing."""
        self.probe_s, self.note = None, reason
        self.times_s.clear()


class Race:
    """Entrants that run in turn for as long as the budget lasts.

    Attributes:
        entrants: all that entered, in the order of every round.
        rounds: how many were run.
    """

    def __init__(self, *, budget_s: float, on_progress: Doing | None = None) -> None:
        self.budget_s = budget_s
        self.entrants: list[Entrant] = []
        self.rounds = 0
        self._on_progress = on_progress
        self._began_s = perf_counter()
        self._paused_s = 0.0

    @property
    def spent_s(self) -> float:
        """Since the race was made, without pauses."""
        return perf_counter() - self._began_s - self._paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile costs nothing of the budget."""
        began_s = perf_counter()
        try:
            yield
        finally:
            self._paused_s += perf_counter() - began_s

    def tell(self, doing: str) -> None:
        """Report what is done now."""
        if self._on_progress is not None:
            self._on_progress(doing, min(1.0, self.spent_s / self.budget_s))

    def enter(self, entrant: Entrant) -> object | None:
        """Let it warm up, then probe how long it takes; the result, None when it failed."""
        self.entrants.append(entrant)
        self.tell(f"warming up: {entrant.name}")
        if (first := self._attempt(entrant)) and (second := self._attempt(entrant)):
            entrant.probe_s = second[0]
            return first[1]
        return None

    def drop_hopeless(self, among: Sequence[Entrant]) -> None:
        """Leave those out whose probes took more than HOPELESS times as long as the fastest's."""
        probes = [(entrant, entrant.probe_s) for entrant in among if entrant.probe_s is not None]
        fastest_s = min((probe_s for _, probe_s in probes), default=0.0)
        for entrant, probe_s in probes:
            if entrant.may_be_dropped and probe_s > HOPELESS * fastest_s:
                entrant.is_dropped = True
                entrant.note = (
                    f"left out of the rounds: its first run took {probe_s / fastest_s:.1f} times "
                    f"as long as the fastest's"
                )

    def run(self) -> None:
        """MIN_ROUNDS, whatever they take, then as many as the budget allows, up to MAX_ROUNDS."""
        longest_s = 0.0
        while self.rounds < MIN_ROUNDS or (
            self.rounds < MAX_ROUNDS and self.spent_s + longest_s <= self.budget_s
        ):
            before_s = self.spent_s
            for entrant in self.entrants:
                if entrant.is_racing:
                    self.tell(f"round {self.rounds + 1}: {entrant.name}")
                    if done := self._attempt(entrant):
                        entrant.times_s.append(done[0])
            longest_s = max(longest_s, self.spent_s - before_s)
            self.rounds += 1

    def _attempt(self, entrant: Entrant) -> tuple[float, object] | None:
        """How long one run took, and its result; None when it failed."""
        try:
            return timed(entrant.run)
        except (Waifu4xError, RuntimeError, MemoryError) as error:
            if not entrant.may_fail:
                raise
            # torch appends advice for its developers in further lines.
            entrant.give_up(str(error).partition("\n")[0] or "out of memory")
            return None


def timed(work: Callable[[], _Result]) -> tuple[float, _Result]:
    """How long `work` takes, in seconds, and what it gives."""
    began_s = perf_counter()
    result = work()
    return perf_counter() - began_s, result
