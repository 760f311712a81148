"""A plan is carried out by workers: jobs go out, outcomes come back, none is lost or done twice.

This machine makes the plan, keeps the journal and tells what became of every file, exactly as
`batch.run` does; the workers only make outputs. A worker that dies loses what it had to others. Its
files are done again from the beginning: an output is there whole or not at all, and so that a death
between the output and the word about it does no harm, the bytes are the same each time. A file that
is there at every death is found out, and fails, and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from waifu4x.batch import noting
from waifu4x.batch.jobs import Job
from waifu4x.batch.plan import Plan
from waifu4x.batch.run import Outcome, Split
from waifu4x.cluster import traces
from waifu4x.cluster.backlog import Backlog
from waifu4x.cluster.links import Cluster, Event, Link, Mailbox, WorkerDied
from waifu4x.cluster.messages import Message, Order, Place, Reply
from waifu4x.errors import ClusterError, DiskFullError, PictureWriteError, Waifu4xError
from waifu4x.remote import urls
from waifu4x.upscaler import Upscaler

_MOST_DEATHS = 5
"""Of workers in one place, one after the other, none of which has ended a job."""
_WAIT_S = 0.5
"""How long a worker waits for something to tell: so often is the bar moved."""
_IDLE_WAIT_S = 0.1
"""The same of one that has nothing to do: so soon it has, or may go."""
_NOBODY_S = 300.0
"""How long a run waits without any worker for the cluster to have room for one."""
_START_S = 1800.0
"""How long a worker may take to fetch and open the model."""
_REFRESH_S = 3600.0
"""How often the mark is made young again, which others would sweep after a day."""
_GOODBYE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Workers of a cluster, in the place of this machine."""

    cluster: Cluster
    order: Order
    on_note: Callable[[str], None] = lambda text: None
    """Called in the calling thread with what users should know of workers, a line each."""

    def run(
        self,
        plan: Plan,
        upscaler: Upscaler,
        *,
        on_outcome: Callable[[Outcome], None],
        on_progress: Callable[[Job, float], None],
        workers: int,
        stdout: BinaryIO | None = None,
    ) -> Split:
        """Do all jobs of `plan`; as `batch.run.run`, with these differences.

        Args:
            upscaler: opened here; workers open their own, and must get the same model.
            on_progress: of the job that is the furthest in the plan; never called backwards.
            workers: how many threads encode on each worker; 0 is one a core.
            stdout: not used, for all outputs are files.

        Raises:
            UsageError: there is no such cluster.
            ClusterError: no worker can be had, or one differs from this machine.
            DiskFullError, PictureWriteError, KeyboardInterrupt: as there.
        """
        assert plan.folder is not None, "`asked.check` sees to it"
        started = time.perf_counter()
        noting.note_refusals(plan)
        driver = _Driver(
            plan=plan,
            cluster=self.cluster,
            on_outcome=on_outcome,
            on_progress=on_progress,
            on_note=self.on_note,
        )
        order = dataclasses.replace(
            self.order,
            settings=plan.request.settings_key(upscaler),
            encoders=workers,
            here=_here(self.order),
            mark=traces.new_mark(plan.folder),
        )
        try:
            if plan.jobs:
                traces.make(order.mark)
                driver.hire(order)
                try:
                    driver.work()
                finally:
                    driver.wind_down()
        finally:
            try:
                driver.drop()
            finally:
                if plan.jobs:
                    traces.remove(order.mark)
                self.cluster.close()
                driver.split.wall_s = time.perf_counter() - started
        return driver.split


@dataclass(kw_only=True)
class _Driver:
    """One run, and its workers."""

    plan: Plan
    cluster: Cluster
    on_outcome: Callable[[Outcome], None]
    on_progress: Callable[[Job, float], None]
    on_note: Callable[[str], None]
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        self._stopped = False
        """Nothing is begun any more."""
        self._fatal: BaseException | None = None
        """What ends the run."""
        self._mailbox = Mailbox()
        self._links: set[Link] = set()
        self._nobody_since_s = self._refreshed_s = time.monotonic()
        self._furthest = (0, 0.0)

    # -- workers come ------------------------------------------------------------------------------

    def hire(self, order: Order) -> None:
        """Call for a worker in every place, and for no more than there are jobs."""
        self._order = order
        self.cluster.connect()
        places = self.cluster.places()
        if not places:
            raise ClusterError(
                "no machine of the cluster gives workers: it needs cores, and GPUs with --device "
                "cuda (`ray status` shows what it has)"
            )
        places = places[: len(self.plan.jobs)]
        jobs = self.plan.jobs
        self._backlog = Backlog(jobs, workers=len(places), encoders=order.encoders)
        nodes = len({place.key for place in places})
        self.on_note(
            f"{len(places)} worker{'s' if len(places) > 1 else ''} of "
            f"{_in_words(places)} on {nodes} machine{'s' if nodes > 1 else ''}"
        )
        for place in places:
            self._call_for(place)

    def _call_for(self, place: Place, *, barren: int = 0) -> None:
        link = Link(self.cluster, place, self._order, mailbox=self._mailbox, barren=barren)
        self._links.add(link)
        link.begin()

    # -- the run -----------------------------------------------------------------------------------

    def work(self) -> None:
        """Until all jobs have ended."""
        while self._backlog.left:
            self._heed_next()
            self._check_clocks(time.monotonic())
            if self._fatal is not None:
                raise self._fatal
            if self._stopped:
                return
        self._let_go()
        while self._links:
            self._heed_next()
        if self._fatal is not None:
            raise self._fatal

    def _let_go(self) -> None:
        """Of workers that have not come yet."""
        for link in self._links:
            if not link.ready:
                link.abandon()

    def _heed_next(self) -> None:
        """Deal with what is told next, waiting a moment for it."""
        if (event := self._mailbox.first()) is None:
            return
        if event[0].pid is not None:
            self._nobody_since_s = time.monotonic()
        self._heed(event)
        self._mailbox.drop()

    def _check_clocks(self, now_s: float) -> None:
        """Wait for nobody for ever, whether there is something to heed meanwhile or not."""
        if any(link.pid is not None for link in self._links):
            self._nobody_since_s = now_s
        elif now_s - self._nobody_since_s > _NOBODY_S:
            raise ClusterError(
                f"the cluster had no room for a worker for {_NOBODY_S:.0f} s: `ray status` "
                f"shows who has its cores and GPUs"
            )
        for link in self._links:
            if not link.ready and link.pid is not None and now_s - link.since_s > _START_S:
                link.abandon()
        if now_s - self._refreshed_s > _REFRESH_S:
            self._refreshed_s = now_s
            traces.refresh(self._order.mark)

    def _heed(self, event: Event) -> None:
        """An event that was interrupted by a signal comes again, and does no harm."""
        link, told = event
        if isinstance(told, WorkerDied):
            self._links.discard(link)
            self._bury(link, str(told))
            return
        if isinstance(told, BaseException):
            self._links.discard(link)
            self._fatal = self._fatal or told
            return
        if told.ready:
            link.ready = True
        self._take(link, told)
        if told.end is not None:
            self._links.discard(link)
            self._part_with(link, told)
        else:
            link.send(self._message(link))

    def _take(self, link: Link, reply: Reply) -> None:
        for number, outcome in reply.outcomes:
            if number in link.outstanding:
                # In this order: a signal in between lets it be noted twice, and never not at all.
                is_noted = self._note(number, outcome)
                del link.outstanding[number]
                link.settled += 1
                self._end(number, outcome, is_noted=is_noted)
        if not link.outstanding:
            link.alone = False
        if reply.progress is not None and not self._stopped:
            self._furthest, before = max(self._furthest, reply.progress), self._furthest
            if self._furthest != before:
                self.on_progress(self.plan.jobs[self._furthest[0]], self._furthest[1])

    def _note(self, number: int, outcome: Outcome) -> bool:
        """What became of a job goes into the journal; False where that is the end of the run."""
        job = self.plan.jobs[number]
        try:
            if outcome.error is None:
                noting.note_done(self.plan, job, output_bytes=outcome.output_bytes)
            else:
                noting.note_failed(self.plan, job, outcome.error)
        except PictureWriteError as error:
            self._fatal = self._fatal or error
            return False
        return True

    def _end(self, number: int, outcome: Outcome, *, is_noted: bool) -> None:
        """One job has ended, which is told; where it could not be noted it is not."""
        self._backlog.left -= 1
        if not is_noted:
            return
        if isinstance(outcome.error, DiskFullError):
            self._fatal = self._fatal or outcome.error
        if outcome.error is not None and self.plan.request.fail_fast:
            self._stopped = True
        for stage, spent_s in outcome.seconds.items():
            self.split.stages_s[stage] += spent_s
        # The very job of the plan, and not the copy that was sent: whoever is told knows it.
        self.on_outcome(dataclasses.replace(outcome, job=self.plan.jobs[number]))

    # -- jobs go out -------------------------------------------------------------------------------

    def _message(self, link: Link) -> Message:
        close, stop = not self._backlog.left, self._stopped or self._fatal is not None
        link.told_to_end = link.told_to_end or close or stop
        tickets = () if link.told_to_end or not link.ready else self._backlog.tickets(link)
        wait_s = _WAIT_S if link.outstanding or tickets else _IDLE_WAIT_S
        return Message(tickets=tickets, close=close, stop=stop, wait_s=wait_s)

    # -- workers go --------------------------------------------------------------------------------

    def _part_with(self, link: Link, reply: Reply) -> None:
        """It has ended by itself, or because it was told to."""
        assert reply.end is not None, "it has ended"
        error, split = reply.end.error, reply.end.split
        if split is not None:
            self.split.starved_s += split.starved_s
            self.split.blocked_s += split.blocked_s
        if error is None and link.outstanding and not link.told_to_end and not self._stopped:
            error = ClusterError("it ended before its work was done")
        if isinstance(error, Waifu4xError) and not isinstance(error, DiskFullError):
            error = type(error)(f"the worker on {link.node} cannot work: {error}")
        self._fatal = self._fatal or error

    def _bury(self, link: Link, reason: str) -> None:
        """It is gone: what it had is given to others, and another one is called for."""
        _sweep(link)
        if self._stopped or self._fatal is not None or not self._backlog.left:
            return
        barren = 1 if link.settled or link.alone else link.barren + 1
        self.on_note(_about_death(link, reason))
        for number in self._backlog.take_back(link):
            self._fail(number, reason)
        if barren < _MOST_DEATHS:
            if self._backlog.left:
                self._call_for(link.place, barren=barren)
        elif not self._links:
            self._fatal = ClusterError(
                f"workers die and none is left; the last one, on {link.node}, because {reason}"
            )

    def _fail(self, number: int, reason: str) -> None:
        job = self.plan.jobs[number]
        error = ClusterError(
            f"{job.name}: the worker died {self._backlog.deaths[number]} times while it had this "
            f"file, the last time with no other ({reason}): leave it out, or see what is wrong "
            f"with it on one machine"
        )
        outcome = Outcome(job=job, status="failed", error=error)
        self._end(number, outcome, is_noted=self._note(number, outcome))

    # -- the end -----------------------------------------------------------------------------------

    def wind_down(self) -> None:
        """Begin nothing any more, and wait for what is being encoded."""
        self._stopped = True
        self._let_go()
        for link in self._links:
            link.send(self._message(link))  # a signal may have come before it got its answer
        while self._links:
            self._heed_next()

    def drop(self) -> None:
        """Leave nothing half done, also where winding down was cut short."""
        self._stopped = True
        for link in self._links:
            link.abandon()
        until_s = time.monotonic() + _GOODBYE_S
        told: list[tuple[Link, Reply]] = []
        left = set(self._links)
        while left and time.monotonic() < until_s:
            if (event := self._mailbox.first()) is None:
                continue
            if isinstance(event[1], Reply):
                told.append((event[0], event[1]))
            if not isinstance(event[1], Reply) or event[1].end is not None:
                left.discard(event[0])
            self._mailbox.drop()
        for link in self._links:
            _sweep(link)
        for link, reply in told:
            self._take(link, reply)


def _here(order: Order) -> str:
    """The folder that what was given is relative to; empty where nothing is."""
    request, references = order.request, map(str, order.wishes.get("references", ()))
    output = [] if request.output is None else [request.output]
    model = [order.model] if os.path.isfile(order.model) else []
    given = (*request.inputs, *output, *model, *references)
    is_full = all(urls.is_url(text) or os.path.isabs(urls.plain(text)) for text in given)
    return "" if is_full else os.getcwd()


def _sweep(link: Link) -> None:
    """Remove what a dead worker had begun to write."""
    if link.pid is not None:
        traces.sweep((job.target for job in link.outstanding.values()), pid=link.pid)


def _about_death(link: Link, reason: str) -> str:
    lost = len(link.outstanding)
    given = f": others get its {lost} file{'s' if lost > 1 else ''}" if lost else ""
    return f"a worker on {link.node} died ({reason}){given}"


def _in_words(places: list[Place]) -> str:
    kinds = Counter("1 GPU" if place.gpu else f"{place.cores} cores" for place in places)
    words = [kind.replace("1 cores", "1 core") for kind in kinds]
    return ", ".join(itertools.islice(words, 3)) + (" …" if len(words) > 3 else "")
