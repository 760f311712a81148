"""Which jobs are given to which worker, and what becomes of those that a dead one had."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from waifu4x.batch.jobs import Job
from waifu4x.cluster import inputs
from waifu4x.cluster.links import Link
from waifu4x.cluster.messages import Ticket

_MOST_JOBS = 8
"""That a worker has, beside two for every thread that encodes: so that it never waits for us."""
_LEAST_JOBS = 3
_MOST_PX = 100_000_000
"""Of the outputs of a worker, beyond the least jobs: or all would wait for one at the end."""
_ALONE_AFTER = 2
"""Deaths that a file was there at, after which it is given to a worker alone."""


class Backlog:
    """All jobs of a plan: in its order, but for those that come back."""

    def __init__(self, jobs: Sequence[Job], *, workers: int, encoders: int) -> None:
        """
        Args:
            workers: among how many the jobs are shared out.
            encoders: threads that encode on each; 0 is one a core.
        """
        self.left = len(jobs)
        """How many have not ended."""
        self.deaths: Counter[int] = Counter()
        """At how many deaths each job was there."""
        self._jobs = jobs
        self._workers = workers
        self._encoders = encoders
        # Numbers of millions of jobs are no list: those that were never given come one by one.
        self._fresh = iter(range(len(jobs)))
        self._again: deque[int] = deque()
        self._suspects: deque[int] = deque()

    def tickets(self, link: Link) -> tuple[Ticket, ...]:
        """What a worker is given now: so much that it does not wait, and no more."""
        if link.alone:
            return ()
        if self._suspects:
            # Whoever still has others ends those first.
            if link.outstanding:
                return ()
            link.alone = True
            return (self._ticket(self._suspects.popleft()),)
        tickets: list[Ticket] = []
        count = len(link.outstanding)
        output_px = sum(job.output_px for job in link.outstanding.values())
        # When few are left, they are shared out evenly.
        fair = -(-self.left // self._workers)
        least = min(_LEAST_JOBS, fair)
        most = min(_MOST_JOBS + 2 * (self._encoders or link.place.cores), -(-fair // 2))
        while count < least or (count < most and output_px < _MOST_PX):
            number = self._again.popleft() if self._again else next(self._fresh, None)
            if number is None:
                break
            tickets.append(self._ticket(number))
            count += 1
            output_px += self._jobs[number].output_px
        return tuple(tickets)

    def _ticket(self, number: int) -> Ticket:
        return number, inputs.as_sent(self._jobs[number])

    def take_back(self, link: Link) -> list[int]:
        """What a dead worker had is for others now; given are those that it died of."""
        fatal: list[int] = []
        # The last one first, so that in the end the first one is in front.
        for number in reversed([*link.outstanding]):
            self.deaths[number] += 1
            if self.deaths[number] < _ALONE_AFTER:
                self._again.appendleft(number)
            elif self.deaths[number] == _ALONE_AFTER or not link.alone:
                self._suspects.appendleft(number)
            else:
                fatal.append(number)
        return fatal
