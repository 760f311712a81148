"""The work of ``waifu4x upscale``: what was asked for is planned and done, and said."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ImageColor

from waifu4x import archives, naming
from waifu4x.batch import estimates, plan, sources
from waifu4x.batch import run as pipeline
from waifu4x.batch.jobs import Job
from waifu4x.batch.plan import Plan, Settled
from waifu4x.batch.request import STREAM, Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.cli import upscale_words as words
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.cli.native import silent_libraries
from waifu4x.cli.reporter import Reporter
from waifu4x.codecs.formats import check_writable_as, format_of
from waifu4x.errors import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    DiskFullError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.models import open_upscaler
from waifu4x.remote import urls
from waifu4x.upscaler import Upscaler

_MOST_WORKERS = 8
# Of the memory that a run may take.
_TILE_SHARE = 3


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a run is started, beside what is asked for."""

    model: str
    device: str
    compiled: bool
    offline: bool
    workers: int | None
    dry_run: bool
    references: tuple[str, ...] = ()
    ray: str | None = None
    """The cluster that does the work; None is this machine."""
    ray_cores: int | None = None


def parse_color(text: str) -> tuple[int, int, int]:
    """A CSS colour name or #rrggbb as three numbers 0..255."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UsageError(f"{text!r} is no colour: write it as white or #ff8800") from error


def parse_gpus(text: str) -> str:
    """What ``--device`` is given for numbers of GPUs with commas; -1 is the CPU."""
    numbers = [number.strip() for number in text.split(",")]
    if numbers == ["-1"]:
        return "cpu"
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"-g {text} is no GPU: give a number, several as 0,1, or -1 for the CPU")
    return ",".join(f"gpu:{int(number)}" for number in numbers)


def run(request: Request, start: Start, reporter: Reporter) -> int:
    """Enlarge every input; the exit code is returned.

    Raises:
        Waifu4xError: nothing can be done for any input, so nothing was; or the disk is full.
    """
    _check(request, start, reporter)
    keep_large_blocks()
    stdin = sys.stdin.buffer.read() if STREAM in request.inputs else None
    wishes: dict[str, Any] = {
        "device": start.device,
        "compiled": start.compiled,
        "precision": request.precision,
        "engine": request.engine,
        "tile_px": request.tile_px,
        "tta": request.tta,
        "options": request.options,
        "offline": start.offline,
        "memory_bytes": _tile_bytes(request),
        "scale": request.target.scale,
        "references": start.references,
    }
    with silent_libraries(), reporter.job(), _doers(request, start, wishes, reporter) as doers:
        do, wishes = doers
        upscaler = open_upscaler(start.model, on_download=reporter.downloading, **wishes)
        planned = plan.make(request, upscaler, stdin=stdin, on_progress=reporter.planning)
        workers = start.workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        if start.ray is not None and not start.dry_run:
            workers = start.workers or 0
        session = _Session(
            plan=planned, upscaler=upscaler, reporter=reporter, workers=workers, do=do
        )
        for settled in planned.settled:
            session.tell_settled(settled)
        if planned.is_empty_shard:
            reporter.say("this shard holds none of the files: there is nothing to do")
        if start.dry_run:
            session.describe()
        else:
            session.work()
    return session.exit_code


@contextmanager
def _doers(
    request: Request, start: Start, wishes: dict[str, Any], reporter: Reporter
) -> Iterator[tuple[Callable[..., Split], dict[str, Any]]]:
    """What does the jobs, and how the model is opened for the plan."""
    if start.ray is None:
        yield pipeline.run, wishes
        return
    from waifu4x.cluster import asked

    with asked.distributed(
        request,
        address=start.ray,
        cores=start.ray_cores,
        model=start.model,
        wishes=wishes,
        connect=not start.dry_run,
        on_note=reporter.say,
    ) as distribution:
        yield distribution.run, asked.planning_wishes(start.model, wishes)


def parse_memory(text: str) -> int:
    """2G, 1500M or a number of bytes, in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--memory {text!r} is no size: write it as 2G or 1500M")
    return int(float(found[1]) * 1024 ** ("", "k", "m", "g", "t").index(found[2]))


def _tile_bytes(request: Request) -> int | None:
    """What the network may take for a tile: the rest is for the picture, and for this program."""
    return None if request.memory_bytes is None else request.memory_bytes // _TILE_SHARE


def _check(request: Request, start: Start, reporter: Reporter) -> None:
    """Everything that can be refused before any work."""
    if not request.inputs:
        raise UsageError("give at least one picture: waifu4x upscale meme.png -s 4")
    if request.inputs.count(STREAM) > 1:
        raise UsageError("standard input can be read once: give - once")
    to_stdout = request.output == STREAM or (request.output is None and STREAM in request.inputs)
    several = sources.means_several(request.inputs)
    if to_stdout and several:
        raise UsageError("only one picture fits into standard output: give a folder with -o")
    if to_stdout and reporter.as_json:
        raise UsageError("--json and the picture cannot both go to standard output: give -o FILE")
    if to_stdout and (sys.stdout is None or sys.stdout.isatty()):
        raise UsageError("standard output is a terminal, or closed: give -o FILE, or redirect it")
    if STREAM in request.inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("standard input is a terminal, or closed: redirect a picture into it")
    if any(map(urls.is_url, start.references)):
        raise UsageError("--reference takes files of this machine: copy it here first")
    _check_names(request)
    if start.ray is not None:
        from waifu4x.cluster import asked

        asked.check(request, address=start.ray, device=start.device)
    # A wrong suffix or quality is known now; no input has to be read for it.
    encoding = request.encoding
    output = None if several or request.name is not None else request.output
    if output is not None and archives.is_archive(Path(output)):
        output = None
    check_writable_as(
        naming.output_format("PNG", wish=encoding.format, output=output),
        1,
        1,
        quality=encoding.quality,
        lossless=encoding.lossless,
        background=encoding.background,
    )


def _check_names(request: Request) -> None:
    if request.name is not None and request.suffix is not None:
        raise UsageError("--name says all of the name: leave --suffix out")
    if request.suffix is not None and any(s in request.suffix for s in (os.sep, os.altsep) if s):
        raise UsageError(f"--suffix {request.suffix!r} must be a part of a name, not a path")
    if request.name is not None:
        naming.check_template(request.name)
        output = request.output or ""
        if naming.format_named(Path(output).suffix) and not naming.means_folder(output):
            raise UsageError("give the output's name by -o FILE or by --name, not both")
        named, wish = naming.template_format(request.name), request.encoding.format
        if named is not None and wish is not None and format_of(named) != format_of(wish):
            raise UsageError(f"--name {request.name!r} is named like {named}, and --format {wish}")


@dataclass(kw_only=True)
class _Session:
    """One run, and what is said about it."""

    plan: Plan
    upscaler: Upscaler
    reporter: Reporter
    workers: int
    do: Callable[..., Split] = pipeline.run
    """`batch.run.run`, or what does the same elsewhere."""
    done: int = 0
    failed: list[Waifu4xError] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._total_px = sum(job.output_px for job in self.plan.jobs)
        self._before_px: dict[int, int] = {}
        if self.plan.elsewhere:
            self.left_out["belongs to other shards"] = self.plan.elsewhere
        before_px = 0
        for job in self.plan.jobs:
            self._before_px[id(job)] = before_px
            before_px += job.output_px

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return EXIT_OK
        # One picture that fails is the whole job; of several, the others were done.
        return EXIT_SOME_FAILED if self.plan.several else self.failed[0].exit_code

    def tell_settled(self, settled: Settled) -> None:
        """Say why there is nothing to do for a file."""
        facts = {"input": str(settled.source), "status": settled.status}
        if settled.error is not None:
            self.failed.append(settled.error)
            self.reporter.fail(settled.error)
            self.reporter.outcome({**facts, "error": settled.reason})
            return
        of_folder = settled.place is None
        (self.left_out if of_folder else self.skipped)[settled.reason] += 1
        name = settled.target if settled.target is not None else settled.source
        # What a folder holds is counted; of a folder that was done, every line would be this one.
        if self.reporter.verbose or not settled.found:
            self.reporter.say(f"{name} {settled.reason}: skipped")
        target = {} if settled.target is None else {"output": str(settled.target)}
        self.reporter.outcome({**facts, **target, "reason": settled.reason})

    def describe(self) -> None:
        """Say what would be done."""
        for job in self.plan.jobs:
            costs = words.costs(job, self.upscaler, self.plan)
            self.reporter.say(words.job_in_words(job, costs))
            self.reporter.outcome({**words.facts(job), **costs, "status": "planned"})
        if self.plan.several:
            total = estimates.estimate(self.plan, self.upscaler, workers=self.workers)
            self.reporter.say(
                f"in all: {len(self.plan.jobs)} files, {total.output_px / 1e6:.1f} megapixels out, "
                f"about {total.output_bytes / 2**20:.0f} MiB on disk, "
                f"{total.memory_bytes / 2**20:.0f} MiB of memory for the largest, and "
                f"{total.wall_s:.1f} s ({total.network_s:.1f} s in the network, "
                f"{total.encode_s:.1f} s encoding beside it)"
            )
            self._summarise("")

    def work(self) -> None:
        """Do it. Raises what `pipeline.run` raises, after having said how far it came."""
        split = None
        self.plan.begin()
        try:
            split = self.do(
                self.plan,
                self.upscaler,
                on_outcome=self._tell,
                on_progress=self._progress,
                workers=self.workers,
                stdout=None if sys.stdout is None else sys.stdout.buffer,
            )
        finally:
            self._end()
            if self.plan.several:
                self._summarise()
            if split is not None and self.reporter.verbose:
                self.reporter.say(words.split_in_words(split))

    def _end(self) -> None:
        try:
            self.plan.end()
        except PictureWriteError as error:
            # What was made is there all the same, and this machine knows it.
            self.reporter.say(f"note: {error}; the same command goes on from here, on this machine")

    def _progress(self, job: Job, share: float) -> None:
        done_px = self._before_px[id(job)] + share * job.output_px
        self.reporter.working_on(job.name, done_px, self._total_px)

    def _tell(self, outcome: Outcome) -> None:
        job, reporter = outcome.job, self.reporter
        if outcome.error is not None:
            self.failed.append(outcome.error)
            if not isinstance(outcome.error, DiskFullError):  # it ends the run, and is said there
                reporter.fail(outcome.error)
            reporter.outcome({"input": job.name, "status": "failed", "error": str(outcome.error)})
            return
        self.done += 1
        seconds = {stage: round(spent_s, 4) for stage, spent_s in outcome.seconds.items()}
        # The network's time is a part of upscaling's.
        in_all_s = sum(s for stage, s in outcome.seconds.items() if stage != "network")
        reporter.say(f"{words.arrow(job)} ({in_all_s:.1f} s)")
        for note in outcome.notes:
            reporter.say(f"  note: {job.name}: {note}")
        facts: dict[str, Any] = {**words.facts(job), "status": "done"}
        if outcome.facts is not None:
            if reporter.verbose:
                spent = ", ".join(f"{stage} {s} s" for stage, s in seconds.items())
                strips = "in strips, " if job.streamed else ""
                reporter.say(f"  {strips}{words.made_in_words(outcome.facts)}; {spent}")
            facts |= {
                "model": outcome.facts.model,
                "picked": outcome.facts.picked,
                "device": outcome.facts.device,
                "precision": outcome.facts.precision,
                "engine": outcome.facts.engine,
                "tile": outcome.facts.tile_px,
                "waste": round(outcome.facts.waste, 3),
            }
        facts |= {"output_bytes": outcome.output_bytes, "seconds": seconds}
        reporter.outcome({**facts, "notes": list(outcome.notes)})

    def _summarise(self, hint: str = "the same command goes on") -> None:
        planned = len(self.plan.jobs)
        failed_before = sum(s.status == "failed" for s in self.plan.settled)
        missing = planned - self.done - (len(self.failed) - failed_before)
        rows = [("done", str(self.done), "")] if self.done or not missing else []
        rows += [("skipped", str(n), reason) for reason, n in sorted(self.skipped.items())]
        rows += [("left out", str(n), reason) for reason, n in sorted(self.left_out.items())]
        if self.failed:
            rows.append(("failed", str(len(self.failed)), ""))
        if missing:
            rows.append(("to do", str(missing), hint))
        self.reporter.summary(rows)
