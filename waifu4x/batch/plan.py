"""What is to be done for every file, decided from headers alone, before any work.

Whatever can be known now is refused now: files that are no pictures, outputs that their format, the
memory or the disk could not hold, two inputs that would become one file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from waifu4x import failures, naming
from waifu4x.batch import outputs, shards, sources
from waifu4x.batch.drafts import Draft, Drafter
from waifu4x.batch.heads import Heads
from waifu4x.batch.jobs import Job, named
from waifu4x.batch.journal import Journal, Line, path_of
from waifu4x.batch.outputs import Claims
from waifu4x.batch.remote_journal import RemoteJournal, folder_here
from waifu4x.batch.remote_outputs import There
from waifu4x.batch.request import STREAM, Request
from waifu4x.batch.sources import LeftOut, Source
from waifu4x.errors import PictureReadError, PictureWriteError, UsageError, Waifu4xError
from waifu4x.remote import urls
from waifu4x.remote.urls import Location, Url
from waifu4x.upscaler import Upscaler


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A file for which nothing is to be done, or nothing can be."""

    source: Location
    status: Literal["skipped", "failed"]
    reason: str
    place: str | None = None
    """Below the input folder, with forward slashes; of what was left out none."""
    target: Location | None = None
    error: Waifu4xError | None = None
    found: bool = False
    """It was found in a folder, and not named."""


@dataclass(kw_only=True)
class Plan:
    """All that is to be done, in the order in which it is done."""

    request: Request
    jobs: list[Job] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    folder: Location | None = None
    """The one that all outputs go to; None where they lie beside their inputs."""
    journal: Journal | None = None
    several: bool = False
    """The inputs may have been more than one file."""
    elsewhere: int = 0
    """How many files belong to other shards."""

    @property
    def files(self) -> int:
        """How many files were meant: done, to be done, or impossible; not what was left out."""
        return len(self.jobs) + sum(s.status == "failed" or not s.found for s in self.settled)

    @property
    def is_empty_shard(self) -> bool:
        """All files belong to other shards."""
        mine = (settled for settled in self.settled if settled.place is not None)
        return self.elsewhere > 0 and not self.jobs and next(mine, None) is None

    def begin(self) -> None:
        """Show that a shard runs, so that `merging` knows of it, also where it finishes nothing.

        Raises:
            PictureWriteError: its journal cannot be made.
        """
        if self.journal is not None:
            try:
                self.journal.begin()
            except OSError as error:
                raise failures.write_error(error, self.journal.path, size_bytes=4096) from error

    def end(self) -> None:
        """To be called at the end of a run, also where it was cut short.

        Raises:
            PictureWriteError: the journal could not be put beside the outputs; this machine has it.
        """
        if self.journal is not None:
            self.journal.flush()


def make(
    request: Request,
    upscaler: Upscaler,
    *,
    stdin: bytes | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Decide about every file; nothing is written, nothing is decoded.

    With `Request.fail_fast` a plan with a failure has this one and no jobs.

    Args:
        stdin: what ``-`` among the inputs means.
        on_progress: called with (files looked at, files in all).

    Raises:
        UsageError: the request makes no sense as a whole.
        PictureReadError: there is no picture at all.
        PictureWriteError: nothing could be written into the output folder, or onto its disk.
    """
    several = sources.means_several(request.inputs)
    folder = _folder(request, upscaler, several=several)
    others = shards.Others(shard=request.shard, folder=folder)
    inputs = [text for text in request.inputs if text != STREAM]
    found, left_out = sources.gather(
        inputs, recursive=request.recursive, exclude=folder, wanted=others.leaves
    )
    if stdin is not None:
        found.append(Source(path=Path("stdin"), relative=Path("stdin")))
    if not found and not others.files:
        raise PictureReadError(_nothing_in(request.inputs, left_out))
    journal = _journal(folder, request.shard) if several and folder is not None else None
    if request.retry_failed and journal is None:
        raise UsageError("--retry-failed needs the journal of an output folder: give it with -o")
    plan = Plan(
        request=request, folder=folder, journal=journal, several=several, elsewhere=others.files
    )
    plan.settled += map(_left_out, left_out)
    with Heads(found) as heads:
        drafter = Drafter(
            request=request,
            upscaler=upscaler,
            folder=folder,
            journal=journal,
            heads=heads,
            there=There(folder if isinstance(folder, Url) else None),
        )
        drafts = _drafts(found, drafter, plan, stdin=stdin, on_progress=on_progress)
        read = [*(source.path for source in found), *others.in_the_way]
        _Settling(plan=plan, drafter=drafter).settle(drafts, read=read)
    _end(plan)
    return plan


def _end(plan: Plan) -> None:
    """What is to be said of the plan as a whole."""
    if plan.request.fail_fast and (failed := [s for s in plan.settled if s.status == "failed"]):
        plan.jobs, plan.settled = [], failed[:1]
    if plan.request.check_space:
        here = ((job.target, job.output_bytes) for job in plan.jobs)
        outputs.check_space((target, size) for target, size in here if isinstance(target, Path))


def _drafts(
    found: list[Source],
    drafter: Drafter,
    plan: Plan,
    *,
    stdin: bytes | None,
    on_progress: Callable[[int, int], None] | None,
) -> list[Draft]:
    """What can be drafted; `plan` gets the rest. stdin: of the last one."""
    drafts: list[Draft] = []
    for number, source in enumerate(found):
        data = stdin if number == len(found) - 1 else None
        try:
            known = drafter.remembered(source) if data is None else None
            drafts.append(known or drafter.draft(source, data=data))
        except Waifu4xError as error:
            plan.settled.append(_refused(source, error, is_stdin=data is not None))
            if plan.request.fail_fast:
                break
        if on_progress is not None:
            on_progress(number + 1, len(found))
    return drafts


def _folder(request: Request, upscaler: Upscaler, *, several: bool) -> Location | None:
    """The one for all outputs, if there is one; raises as `make` does where it cannot be."""
    folder = outputs.folder_for(request, upscaler.label)
    if request.shard is not None:
        shards.check(request, folder=folder, several=several)
    if isinstance(folder, Path):
        outputs.check_folder(folder)
    return folder


def _nothing_in(inputs: tuple[str, ...], left_out: list[LeftOut]) -> str:
    reasons = sorted({entry.reason for entry in left_out})
    why = f" ({len(left_out)} left out: {', '.join(reasons)})" if left_out else ""
    meant = failures.one_line(" ".join(map(urls.shown, inputs)))
    return f"there is no picture in {meant}{why}"


def _journal(folder: Location, shard: shards.Shard | None) -> Journal:
    """Raises PictureWriteError where it could not note anything: that is said before the work."""
    if isinstance(folder, Url):
        try:
            return RemoteJournal(folder, shard=shard)
        except OSError as error:
            here = path_of(folder_here(folder), shard)
            raise failures.write_error(error, here, size_bytes=0) from error
    path = path_of(folder, shard)
    if outputs.exists(path) and not os.access(path, os.W_OK):
        raise PictureWriteError(f"{path} may not be written: check its permissions")
    return Journal(folder, shard=shard)


def _left_out(entry: LeftOut) -> Settled:
    if not entry.unreadable:
        return Settled(source=entry.path, status="skipped", reason=entry.reason, found=True)
    error = PictureReadError(f"{failures.shown(entry.path)} {entry.reason}: check its permissions")
    return Settled(source=entry.path, status="failed", reason=str(error), error=error, found=True)


def _failed(source: Source, error: Waifu4xError) -> Settled:
    return Settled(
        source=source.path,
        status="failed",
        reason=str(error),
        place=source.relative.as_posix(),
        # Without the frames that it went through: they hold the file's bytes.
        error=error.with_traceback(None),
        found=source.found,
    )


def _refused(source: Source, error: Waifu4xError, *, is_stdin: bool = False) -> Settled:
    """As `_failed`, of what was said about its content."""
    return _failed(source, error if is_stdin else named(error, failures.shown(source.path)))


def _skipped(source: Source, target: Location | None, reason: str) -> Settled:
    return Settled(
        source=source.path,
        status="skipped",
        reason=reason,
        place=source.relative.as_posix(),
        target=target,
        found=source.found,
    )


@dataclass(kw_only=True)
class _Settling:
    """Drafts become jobs, or what is said in the place of one."""

    plan: Plan
    drafter: Drafter

    def __post_init__(self) -> None:
        self._check_folder = functools.cache(outputs.check_folder)

    def settle(self, drafts: list[Draft], *, read: list[Location]) -> None:
        """Give every draft its target, or say why it gets none.

        read: all inputs, those that are no pictures among them.
        """
        plan = self.plan
        claims = Claims(inside=plan.folder)
        made_before = self._made_before(drafts, claims)
        plan.settled += [
            _skipped(draft.source, None, "is the output of another input")
            for draft in drafts
            if draft.source.path in made_before
        ]
        drafts = [draft for draft in drafts if draft.source.path not in made_before]
        for path in read:
            if path not in made_before:
                claims.read(path)
        # A name that is an input's own belongs to that input; who would take it keeps a longer one.
        ordered = sorted(range(len(drafts)), key=lambda k: (not _keeps_its_name(drafts[k]), k))
        targets: dict[int, Location | None] = {}
        for k in ordered:
            draft, target = drafts[k], drafts[k].target
            if target is None:
                targets[k] = None
                continue
            if claims.owner(target) is not None and draft.other is not None:
                target = draft.other
            try:
                if outputs.is_one_file(target, draft.source.path):
                    naming.refuse_input(target, draft.source.path)
                claims.write(target, draft.source.path)
            except Waifu4xError as error:
                plan.settled.append(_failed(draft.source, error))
            else:
                targets[k] = target
        for k, draft in enumerate(drafts):
            if k in targets:
                self._add(draft, targets[k])

    def _made_before(self, drafts: list[Draft], claims: Claims) -> set[Location]:
        """Inputs that the same command made beside the others: ``*.png`` means them the next time.

        They are known by their names; a template may make those of pictures that are no outputs.
        """
        request = self.plan.request
        if self.plan.folder is not None or request.output is not None or request.name is not None:
            return set()
        maker_of = {claims.key(d.target): d.source.path for d in drafts if d.target is not None}
        paths = [draft.source.path for draft in drafts]
        return {path for path in paths if maker_of.get(claims.key(path), path) != path}

    def _size_of(self, target: Location) -> int | None:
        """In bytes, of what is there already; None for nothing. Raises PictureWriteError."""
        if isinstance(target, Url):
            stamp = self.drafter.there.find(target)
            return None if stamp is None else stamp[0]
        found = outputs.found(target, check=self._check_folder)
        return None if found is None else found.st_size

    def _add(self, draft: Draft, target: Location | None) -> None:
        """Put a job into the plan, unless it is done already."""
        plan, source = self.plan, draft.source
        journal = plan.journal
        if plan.request.retry_failed:
            assert journal is not None, "`make` sees to it"
            if not journal.has_failed(source.relative.as_posix()):
                return
        line = None if target is None else self.drafter.line(source, target.name, draft.stamp)
        try:
            if target is not None and (size_bytes := self._size_of(target)) is not None:
                known = None if line is None or journal is None else journal.find(line.output)
                reason = _done_reason(line, known, size_bytes=size_bytes)
                if reason is not None and not plan.request.overwrite:
                    plan.settled.append(_skipped(source, target, reason))
                    return
                if isinstance(target, Path):
                    self._check_folder(target.parent)
        except PictureWriteError as error:
            plan.settled.append(_failed(source, error))
            return
        try:
            # Where the output is not what the journal says, its header is read after all.
            job = draft.job or self.drafter.draft(source, data=None).job
        except Waifu4xError as error:
            plan.settled.append(_refused(source, error))
            return
        assert job is not None, "it was drafted from its header"
        plan.jobs.append(replace(job, target=target, line=line))


def _done_reason(line: Line | None, known: Line | None, *, size_bytes: int) -> str | None:
    """Why an output that is there needs not be made; None where it is out of date.

    known: how it was last made, as far as the journal knows. size_bytes: of what is there.
    """
    if known is None:
        # Not of this program, as far as it remembers: nothing that it may replace unasked.
        return "exists (--overwrite replaces it)"
    is_same = line is not None and known.is_about(line) and size_bytes == known.output_bytes
    return "done before" if is_same else None


def _keeps_its_name(draft: Draft) -> bool:
    return draft.target is not None and draft.target.name == draft.source.path.name
