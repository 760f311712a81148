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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from waifu4x import archives, failures, files, pictures
from waifu4x.batch.jobs import Job
from waifu4x.batch.sources import Source
from waifu4x.codecs import decoders
from waifu4x.errors import PictureWriteError, Waifu4xError
from waifu4x.remote import stores, urls
from waifu4x.remote.ranged import Ranged
from waifu4x.remote.urls import Location, Url

_PREFIX = "waifu4x-staging-"
_HELD_BYTES = 64 * 2**20
"""Of inputs in memory: larger ones go to the disk; also of those that are fetched ahead."""
_JOBS_AHEAD = 8
_FETCHING = 4
_HEADS_AHEAD = 64

# PNG may have its orientation behind the samples, and TIFF has its directory anywhere.
_WITH_AN_END = (b"\x89PNG", *decoders.TIFF_MAGICS)
_BY_THE_START = (b"\xff\xd8\xff", b"BM", b"P")
_READ_WHOLE_BYTES = 4 * 2**20
"""Of all others `headers.read` reads all."""

_fetched: dict[str, Future[bytes]] = {}
"""By URL, what `ahead` has begun to fetch and nobody took yet."""


@contextmanager
def content(job: Job) -> Iterator[Path | bytes]:
    """The input of a job, as it can be decoded while the block lasts.

    Raises:
        PictureReadError: the store does not give it.
        DiskFullError: there is no room for it here.
    """
    where = job.source.path
    if job.data is not None:
        yield job.data
    elif isinstance(where, Url) and 0 <= _size_bytes(job) <= _HELD_BYTES:
        fetching = _fetched.pop(where.text, None)
        data = stores.read(where) if fetching is None else fetching.result()
        with _speaking_of(where):
            yield data
    else:
        with file_of(job) as here:
            yield here


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


def ahead(jobs: Iterable[Job], *, wanted: Callable[[], bool]) -> Iterator[Job]:
    """The jobs, in their order; the inputs of the next ones are being fetched meanwhile.

    Only of a list: whoever makes jobs one by one waits for them to be done.

    wanted: asked before every job; when it says no, that is the end.
    """
    if not isinstance(jobs, list) or not any(_is_fetched_ahead(job) for job in jobs):
        yield from jobs
        return
    coming: deque[tuple[Job, int]] = deque()
    rest = iter(jobs)
    pool = ThreadPoolExecutor(_FETCHING, thread_name_prefix="fetch")
    try:
        while wanted():
            while len(coming) < _JOBS_AHEAD and sum(size for _, size in coming) < _HELD_BYTES:
                if (job := next(rest, None)) is None:
                    break
                coming.append((job, _begin(job, pool)))
            if not coming:
                return
            yield coming.popleft()[0]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for job in jobs:
            if isinstance(where := job.source.path, Url):
                _fetched.pop(where.text, None)


def _begin(job: Job, pool: ThreadPoolExecutor) -> int:
    """Begin to fetch the input of a job, where that is of use; returns its size in bytes."""
    where = job.source.path
    if not _is_fetched_ahead(job) or not isinstance(where, Url):
        return 0
    _fetched[where.text] = pool.submit(stores.read, where)
    return _size_bytes(job)


def _is_fetched_ahead(job: Job) -> bool:
    """It lies in a store, and comes into memory."""
    is_whole = job.members is None and not job.streamed
    return isinstance(job.source.path, Url) and is_whole and 0 <= _size_bytes(job) <= _HELD_BYTES


def _size_bytes(job: Job) -> int:
    """Of an input in a store; -1 where it is not known."""
    return -1 if job.source.stamp is None else job.source.stamp[0]


class Heads:
    """The starts of inputs, to read their headers; of those in stores the next ones come meanwhile.

    Planning asks for one file after the other, and a store takes long to answer and little else.
    """

    def __init__(self, found: Sequence[Source]) -> None:
        self.is_wanted: Callable[[Source], bool] = lambda source: True
        """Whether the start of a file will be asked for; of others nothing is fetched."""
        self._rest = iter([source for source in found if isinstance(source.path, Url)])
        self._coming: dict[str, Future[Ranged]] = {}
        self._last: Ranged | None = None
        self._pool: ThreadPoolExecutor | None = None

    def of(self, source: Source) -> Path | Ranged:
        """A path, or a stream of what lies in a store. Raises PictureReadError."""
        if isinstance(source.path, Path):
            return source.path
        if self._last is None or self._last.url != source.path:
            coming = self._coming.pop(urls.real(source.path), None)
            self._look_ahead(source)
            fresh = coming is None
            self._last = Ranged(source.path, source.stamp) if fresh else coming.result()
        return self._last

    def _look_ahead(self, source: Source) -> None:
        """Begin to fetch the starts of those that come after this one."""
        if self._pool is None:
            assert isinstance(source.path, Url), "it lies in a store"
            threads = stores.most_at_once(source.path)
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="look")
        while len(self._coming) < _HEADS_AHEAD and (after := next(self._rest, None)) is not None:
            # What is not known of a file is asked for with its start.
            if after != source and (after.stamp is None or self.is_wanted(after)):
                key = urls.real(after.path)
                self._coming[key] = self._pool.submit(_primed, after)

    def __enter__(self) -> Heads:
        return self

    def __exit__(self, *error: object) -> None:
        """Fetch nothing any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._coming.clear()


def _primed(source: Source) -> Ranged:
    assert isinstance(source.path, Url), "it lies in a store"
    ranged = Ranged(source.path, source.stamp)
    # A ZIP file says at its end what is in it.
    ranged.prime(end=archives.is_archive(source.path))
    if archives.is_archive(source.path):
        return ranged
    head = ranged.read(16)
    if head.startswith(_WITH_AN_END):
        ranged.prime(end=True)
    elif not head.startswith(_BY_THE_START) and ranged.size_bytes <= _READ_WHOLE_BYTES:
        ranged.read()
    ranged.seek(0)
    return ranged
