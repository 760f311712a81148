"""What is to be done for every file, decided from headers alone, before any work.

Whatever can be known now is refused now: files that are no pictures, outputs that their format, the
memory or the disk could not hold, two inputs that would become one file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from waifu4x import archives, failures, headers, memory, naming
from waifu4x.batch import limits, outputs, sources, streamed
from waifu4x.batch.jobs import Job, archive_header, check_writable, memory_bytes, named
from waifu4x.batch.journal import FOLDER, NAME, Journal, Line
from waifu4x.batch.outputs import Claims
from waifu4x.batch.request import STREAM, Request
from waifu4x.batch.sources import LeftOut, Source
from waifu4x.errors import PictureReadError, PictureWriteError, UsageError, Waifu4xError
from waifu4x.headers import Header
from waifu4x.upscaler import Upscaler


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A file for which nothing is to be done, or nothing can be."""

    source: Path
    status: Literal["skipped", "failed"]
    reason: str
    place: str | None = None
    """Below the input folder, with forward slashes; of what was left out none."""
    target: Path | None = None
    error: Waifu4xError | None = None
    found: bool = False
    """It was found in a folder, and not named."""


@dataclass(kw_only=True)
class Plan:
    """All that is to be done, in the order in which it is done."""

    request: Request
    jobs: list[Job] = field(default_factory=list)
    settled: list[Settled] = field(default_factory=list)
    folder: Path | None = None
    """The one that all outputs go to; None where they lie beside their inputs."""
    journal: Journal | None = None
    several: bool = False
    """The inputs may have been more than one file."""

    @property
    def files(self) -> int:
        """How many files were meant: done, to be done, or impossible; not what was left out."""
        return len(self.jobs) + sum(s.status == "failed" or not s.found for s in self.settled)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A job that has no target yet."""

    job: Job
    target: Path | None
    other: Path | None
    """Where it goes when another input becomes `target`; it keeps the input's suffix too."""


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
    folder = outputs.folder_for(request, upscaler.label)
    several = sources.means_several(request.inputs)
    if folder is not None:
        outputs.check_folder(folder)
    inputs = [text for text in request.inputs if text != STREAM]
    found, left_out = sources.gather(inputs, recursive=request.recursive, exclude=folder)
    if stdin is not None:
        found.append(Source(path=Path("stdin"), relative=Path("stdin")))
    if not found:
        raise PictureReadError(_nothing_in(request.inputs, left_out))
    journal = _journal(folder) if several and folder is not None else None
    if request.retry_failed and journal is None:
        raise UsageError("--retry-failed needs the journal of an output folder: give it with -o")
    plan = Plan(request=request, folder=folder, journal=journal, several=several)
    plan.settled += map(_left_out, left_out)
    drafts: list[_Draft] = []
    maker = _Maker(request=request, upscaler=upscaler, folder=folder, journal=journal)
    for number, source in enumerate(found):
        is_stdin = stdin is not None and number == len(found) - 1
        try:
            drafts.append(maker.draft(source, data=stdin if is_stdin else None))
        except Waifu4xError as error:
            known = error if is_stdin else named(error, failures.shown(source.path))
            plan.settled.append(_failed(source, known))
            if request.fail_fast:
                break
        if on_progress is not None:
            on_progress(number + 1, len(found))
    maker.settle(drafts, plan, read=[source.path for source in found])
    if request.fail_fast and (failed := [s for s in plan.settled if s.status == "failed"]):
        plan.jobs, plan.settled = [], failed[:1]
    if request.check_space:
        needs = [(job.target, job.output_bytes) for job in plan.jobs if job.target is not None]
        outputs.check_space(needs)
    return plan


def _nothing_in(inputs: tuple[str, ...], left_out: list[LeftOut]) -> str:
    reasons = sorted({entry.reason for entry in left_out})
    why = f" ({len(left_out)} left out: {', '.join(reasons)})" if left_out else ""
    return f"there is no picture in {failures.one_line(' '.join(inputs))}{why}"


def _journal(folder: Path) -> Journal:
    """Raises PictureWriteError where it could not note anything: that is said before the work."""
    path = folder / FOLDER / NAME
    if outputs.exists(path) and not os.access(path, os.W_OK):
        raise PictureWriteError(f"{path} may not be written: check its permissions")
    return Journal(folder)


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


def _skipped(job: Job, reason: str) -> Settled:
    return Settled(
        source=job.source.path,
        status="skipped",
        reason=reason,
        place=job.source.relative.as_posix(),
        target=job.target,
        found=job.source.found,
    )


@dataclass(kw_only=True)
class _Maker:
    """What all files of a run have in common while it is planned."""

    request: Request
    upscaler: Upscaler
    folder: Path | None
    journal: Journal | None

    def __post_init__(self) -> None:
        self._settings = self.request.settings_key(self.upscaler)
        self._free_bytes = memory.free_host_bytes()
        self._limit_bytes = limits.memory_bytes(self.request.memory_bytes)

    def draft(self, source: Source, *, data: bytes | None) -> _Draft:
        """All but the claim on the target and what lies there already.

        Raises:
            Waifu4xError: the file is no picture, or could not become what is wished.
        """
        request, members = self.request, None
        if data is None and archives.is_archive(source.path):
            header, members = archive_header(source.path, max_pixels=request.max_pixels)
        else:
            content = source.path if data is None else data
            header = headers.read(content, max_pixels=request.max_pixels)
        if request.first_frame:
            header = replace(header, frames=1, kind="picture")
        format = self._format(header, is_archive=members is not None)
        size_px = request.target.size_px(header.width_px, header.height_px)
        check_writable(header, format, size_px, request)
        job = Job(
            source=source,
            data=data,
            header=header,
            members=members,
            format=format,
            size_px=size_px,
            passes=self.upscaler.passes(request.target.factor(header.width_px, header.height_px)),
            target=None,
            memory_bytes=memory_bytes(self.upscaler, header, size_px),
        )
        path = source.path
        target, other = self._target(job, path.stem), self._target(job, path.name)
        job = streamed.fitted(
            job,
            self.upscaler,
            request,
            to_stdout=target is None,
            free_bytes=self._free_bytes,
            limit_bytes=self._limit_bytes,
        )
        return _Draft(job=job, target=target, other=other)

    def _format(self, header: Header, *, is_archive: bool) -> str:
        output = None if self.folder is not None or is_archive else self.request.output
        wish = self.request.encoding.format
        return naming.output_format(header.format, wish=wish, output=output)

    def _target(self, job: Job, stem: str) -> Path | None:
        request, path = self.request, job.source.path
        is_stream = request.output is None and job.data is not None
        if request.output == STREAM or is_stream:
            if job.members is not None:
                raise UsageError(f"{job.name} is an archive: give a file or a folder with -o")
            return None
        if self.folder is None and request.output is not None:
            return self._named_file(Path(request.output), job)
        below = path.parent if self.folder is None else self.folder / job.source.relative.parent
        suffix = path.suffix
        if job.members is None:
            suffix = naming.suffix_for(job.format, source=path, wish=request.encoding.format)
        if request.name is not None:
            name = naming.fill_template(
                request.name,
                source=path,
                model=self.upscaler.label,
                scale=request.target.factor(job.header.width_px, job.header.height_px),
                size_px=job.size_px,
                suffix=suffix,
            )
            return below / name
        addition = request.suffix or ""
        if request.suffix is None and self.folder is None:
            label = naming.size_label(request.target, job.size_px)
            addition = f"_{self.upscaler.label}_{label}"
        return below / f"{stem}{addition}{suffix}"

    def _named_file(self, target: Path, job: Job) -> Path:
        if job.members is not None and not archives.is_archive(target):
            raise UsageError(f"{job.name} is an archive, and {target} is not named like one")
        return target

    def settle(self, drafts: list[_Draft], plan: Plan, *, read: list[Path]) -> None:
        """Give every draft its target, or say why it gets none; `plan` gets all of them.

        read: all inputs, those that are no pictures among them.
        """
        claims = Claims(inside=self.folder)
        made_before = self._made_before(drafts, claims)
        plan.settled += [
            _skipped(draft.job, "is the output of another input")
            for draft in drafts
            if draft.job.source.path in made_before
        ]
        drafts = [draft for draft in drafts if draft.job.source.path not in made_before]
        for path in read:
            if path not in made_before:
                claims.read(path)
        # A name that is an input's own belongs to that input; who would take it keeps a longer one.
        ordered = sorted(range(len(drafts)), key=lambda k: (not _keeps_its_name(drafts[k]), k))
        targets: dict[int, Path | None] = {}
        for k in ordered:
            draft, source = drafts[k], drafts[k].job.source
            target = draft.target
            if target is None:
                targets[k] = None
                continue
            if claims.owner(target) is not None and draft.other is not None:
                target = draft.other
            try:
                naming.refuse_input(target, source.path)
                claims.write(target, source.path)
            except Waifu4xError as error:
                plan.settled.append(_failed(source, error))
            else:
                targets[k] = target
        for k, draft in enumerate(drafts):
            if k in targets:
                self._add(replace(draft.job, target=targets[k]), plan)

    def _made_before(self, drafts: list[_Draft], claims: Claims) -> set[Path]:
        """Inputs that the same command made beside the others: ``*.png`` means them the next time.

        They are known by their names; a template may make those of pictures that are no outputs.
        """
        request = self.request
        if self.folder is not None or request.output is not None or request.name is not None:
            return set()
        maker_of = {claims.key(d.target): d.job.source.path for d in drafts if d.target is not None}
        paths = [draft.job.source.path for draft in drafts]
        return {path for path in paths if maker_of.get(claims.key(path), path) != path}

    def _add(self, job: Job, plan: Plan) -> None:
        """Put a job into the plan, unless it is done already."""
        line = self._line(job)
        job = replace(job, line=line)
        journal = self.journal
        if self.request.retry_failed:
            assert journal is not None, "`make` sees to it"
            if not journal.has_failed(job.source.relative.as_posix()):
                return
        known = None if line is None or journal is None else journal.find(line.output)
        try:
            if job.target is not None and outputs.exists(job.target):
                reason = None if self.request.overwrite else _done_reason(job, known)
                if reason is not None:
                    plan.settled.append(_skipped(job, reason))
                    return
                outputs.check_folder(job.target.parent)
        except PictureWriteError as error:
            plan.settled.append(_failed(job.source, error))
        else:
            plan.jobs.append(job)

    def _line(self, job: Job) -> Line | None:
        if self.journal is None or self.folder is None or job.target is None:
            return None
        try:
            facts = job.source.path.stat()
        except OSError:
            return None  # it went meanwhile: reading it will say so
        return Line(
            output=job.target.relative_to(self.folder).as_posix(),
            source=job.source.relative.as_posix(),
            source_bytes=facts.st_size,
            source_mtime_ns=facts.st_mtime_ns,
            settings=self._settings,
            status="done",
        )


def _done_reason(job: Job, known: Line | None) -> str | None:
    """Why an output that is there needs not be made; None where it is out of date."""
    assert job.target is not None
    if known is None:
        # Not of this program, as far as it remembers: nothing that it may replace unasked.
        return "exists (--overwrite replaces it)"
    same = job.line is not None and known.is_about(job.line)
    if same and job.target.stat().st_size == known.output_bytes:
        return "done before"
    return None


def _keeps_its_name(draft: _Draft) -> bool:
    return draft.target is not None and draft.target.name == draft.job.source.path.name
