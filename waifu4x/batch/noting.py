"""What became of files is noted in the journal: by whoever runs them, here or on a cluster."""

from __future__ import annotations

from dataclasses import replace

from waifu4x import failures
from waifu4x.batch.jobs import Job
from waifu4x.batch.journal import Line
from waifu4x.batch.plan import Plan
from waifu4x.errors import DiskFullError, Waifu4xError


def note_refusals(plan: Plan) -> None:
    """Files that the plan refused are failures, too, for the next run.

    Raises:
        PictureWriteError: the journal cannot be written; so do the others here.
    """
    journal = plan.journal
    for settled in plan.settled:
        if journal is None or settled.status != "failed" or settled.place is None:
            continue
        if not journal.has_failed(settled.place):
            _note(plan, _failed_line(settled.place, settled.reason))


def note_done(plan: Plan, job: Job, *, output_bytes: int) -> None:
    """The output of `job` is there, whole, and has so many bytes."""
    if job.line is not None:
        _note(plan, replace(job.line, output_bytes=output_bytes))


def note_failed(plan: Plan, job: Job, error: Waifu4xError) -> None:
    """There is no output of `job`, for this reason."""
    # A full disk is no fault of the file, nor could it be noted there.
    if job.line is not None and not isinstance(error, DiskFullError):
        _note(plan, _failed_line(job.line.source, str(error)))


def _failed_line(source: str, reason: str) -> Line:
    return Line(source=source, status="failed", settings="", reason=reason)


def _note(plan: Plan, line: Line) -> None:
    journal = plan.journal
    assert journal is not None, "lines are made for a journal"
    try:
        journal.append(line)
    except OSError as error:
        raise failures.write_error(error, journal.path, size_bytes=4096) from error
