"""Where a job meets a store: its input comes here, and what it becomes goes there, whole.

Between the two everything is as for files of this machine. A job names stores by their URLs and
holds nothing else of them, so it can be done in any process. What lies on this machine passes
through here untouched.

Inputs of usual size are held in memory; large ones, archives and what is made in strips lie in a
folder of their own among the system's temporary files (TMPDIR), and are gone when that ends.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from waifu4x import failures, files, pictures
from waifu4x.batch.jobs import Job
from waifu4x.errors import PictureWriteError, Waifu4xError
from waifu4x.remote import stores
from waifu4x.remote.urls import Location, Url

_PREFIX = "waifu4x-staging-"
HELD_BYTES = 64 * 2**20
"""Of inputs in memory: larger ones go to the disk; also of those that are fetched ahead."""

Opener = Callable[[Job], AbstractContextManager[Path | bytes]]
"""`content`, or the same of what is here already: `fetching.Fetcher.content`."""


@contextmanager
def content(job: Job, *, read: Callable[[Url], bytes] | None = None) -> Iterator[Path | bytes]:
    """The input of a job, as it can be decoded while the block lasts.

    read: gives all of what `is_held`; by default it is fetched now.

    Raises:
        PictureReadError: the store does not give it.
        DiskFullError: there is no room for it here.
    """
    where = job.source.path
    if job.data is not None:
        yield job.data
    elif isinstance(where, Url) and is_held(job):
        data = (read or stores.read)(where)
        with _speaking_of(where):
            yield data
    else:
        with file_of(job) as here:
            yield here


def is_held(job: Job) -> bool:
    """Whether an input in a store comes into memory."""
    return 0 <= size_bytes(job) <= HELD_BYTES


def size_bytes(job: Job) -> int:
    """Of an input in a store; -1 where it is not known."""
    return -1 if job.source.stamp is None else job.source.stamp[0]


@contextmanager
def file_of(job: Job) -> Iterator[Path]:
    """The input of a job as a file of this machine, while the block lasts. Raises as `content`."""
    where = job.source.path
    assert job.data is None, "what came by standard input is no file"
    if isinstance(where, Path):
        yield where
        return
    with _scratch(where.name) as here:
        stores.fetch(where, here)
        with _speaking_of(where, here):
            yield here


@contextmanager
def written(target: Location) -> Iterator[Path]:
    """Yield a path of this machine; when the block ends without an error its file is `target`.

    It is `files.atomic_path`, also for stores; when the block raises, `target` is as it was. Raises
    OSError as it comes, and PictureWriteError where a store does not take it.
    """
    if isinstance(target, Path):
        with files.atomic_path(target) as temporary:
            yield temporary
        return
    with _scratch(target.name) as here:
        yield here
        stores.put(here, target)


def store(data: bytes, target: Location) -> None:
    """Make a file of `data`, whole or not at all. Raises PictureWriteError."""
    if isinstance(target, Path):
        pictures.store(data, target)
    else:
        stores.put(data, target)


def renamed(error: Waifu4xError, where: Location, here: Path | bytes | None) -> Waifu4xError:
    """The same error, said of a file in a store, and not of its bytes or its copy `here`."""
    if isinstance(where, Path):
        return error
    text, name = str(error), failures.shown(where)
    if isinstance(here, Path):
        text = text.replace(failures.shown(here), name)
    for other in ("the picture on the stream ", "the picture "):
        if text.startswith(other):
            text = f"{name} {text.removeprefix(other)}"
    return type(error)(text)


@contextmanager
def _speaking_of(where: Url, here: Path | None = None) -> Iterator[None]:
    try:
        yield
    except Waifu4xError as error:
        raise renamed(error, where, here) from error


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """A path that no other job has, and that is gone afterwards with whatever lies there."""
    try:
        _sweep_once()
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        reason = failures.one_line(error.strerror or error)
        raise PictureWriteError(
            f"nothing can be kept for a while ({reason}): let TMPDIR name a folder with room"
        ) from error
    with folder:
        # Of the name only what says how to read it: it may be too long, or impossible here.
        yield Path(folder.name) / f"file{Path(name).suffix}"


_swept: list[str] = []


def _sweep_once() -> None:
    """Remove what killed runs have left, once in a process."""
    folder = tempfile.gettempdir()
    if folder in _swept:
        return
    _swept.append(folder)
    limit = time.time() - files.ORPHAN_AGE_S
    for orphan in Path(folder).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # What is written to is younger than its folder.
            newest = max(path.stat().st_mtime for path in (orphan, *orphan.iterdir()))
            if newest < limit:
                shutil.rmtree(orphan, ignore_errors=True)
