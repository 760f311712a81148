"""Whether a worker finds under the name of an input the file that was planned with.

Paths mean another file where each machine has a disk of its own, and nothing else would tell: the
output would be whole, and noted as that of the file here.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from contextlib import suppress
from pathlib import Path

from waifu4x.batch.jobs import Job
from waifu4x.errors import ClusterError
from waifu4x.remote import stores
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.urls import Location, Url

_APART_NS = 2 * 10**9
"""By so much times of one file may differ: SFTP counts seconds, and FAT every other one."""


def as_sent(job: Job) -> Job:
    """The job for a worker: its source has the stamp of the file, also of one of this machine.

    It is without what only the journal needs.
    """
    source, line = job.source, job.line
    stamp = source.stamp
    if line is not None:
        stamp = line.source_bytes, line.source_mtime_ns
    elif stamp is None and isinstance(source.path, Path):
        with suppress(OSError):  # whoever reads it says what is wrong
            stamp = _found(source.path)
    return dataclasses.replace(job, line=None, source=dataclasses.replace(source, stamp=stamp))


def check(job: Job) -> None:
    """Look at the input of a job that came from another machine; that is one request.

    Raises:
        ClusterError: here it is another file than there, or none.
        PictureReadError: its store cannot be asked.
    """
    planned, path = job.source.stamp, job.source.path
    if planned is None:
        return
    try:
        found = _found(path)
        if found is not None and not _is_same(found, planned, path) and isinstance(path, Path):
            # Unlike asking for its name, opening a file makes NFS look again.
            with path.open("rb") as file:
                found = _of(os.fstat(file.fileno()))
    except OSError:
        return  # whoever reads it says what is wrong
    if found is None or not _is_same(found, planned, path):
        what = "is not there" if found is None else "is another file"
        raise ClusterError(
            f"{job.name} {what} on {platform.node()}: give inputs that all machines share, or "
            f"copies with the same times (cp -p); where it was changed meanwhile, do it again"
        )


def _found(path: Location) -> Stamp | None:
    """What tells the file from others; None where there is none. Raises OSError."""
    if isinstance(path, Url):
        return stores.find(path)
    try:
        return _of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _of(facts: os.stat_result) -> Stamp:
    return facts.st_size, facts.st_mtime_ns


def _is_same(found: Stamp, planned: Stamp, path: Location) -> bool:
    """Of stores either part may be unknown: a size below 0, and a version of 0."""
    if found[0] != planned[0] and min(found[0], planned[0]) >= 0:
        return False
    if isinstance(path, Url):
        return found[1] == planned[1] or 0 in (found[1], planned[1])
    return abs(found[1] - planned[1]) <= _APART_NS
