"""The starts of files: planning needs headers, and asks for one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from waifu4x import archives
from waifu4x.batch.fetching import Threads
from waifu4x.batch.sources import Source
from waifu4x.codecs import decoders
from waifu4x.remote import stores, urls
from waifu4x.remote.ranged import Ranged
from waifu4x.remote.urls import Url

_AHEAD = 64

# PNG may have its orientation behind the samples, and TIFF has its directory anywhere.
_WITH_AN_END = (b"\x89PNG", *decoders.TIFF_MAGICS)
_BY_THE_START = (b"\xff\xd8\xff", b"BM", b"P")
_READ_WHOLE_BYTES = 4 * 2**20
"""Of all others `headers.read` reads all."""


class Heads:
    """The starts of inputs, here or in stores; of those in stores the next ones come meanwhile."""

    def __init__(self, found: Sequence[Source]) -> None:
        self.is_wanted: Callable[[Source], bool] = lambda source: True
        """Whether the start of a file will be asked for; of others nothing is fetched."""
        self._rest = iter([source for source in found if isinstance(source.path, Url)])
        self._coming: dict[str, Future[Ranged]] = {}
        self._last: Ranged | None = None
        self._threads: Threads | None = None

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
        if self._threads is None:
            assert isinstance(source.path, Url), "it lies in a store"
            self._threads = Threads(stores.most_at_once(source.path), name="look")
        while len(self._coming) < _AHEAD and (after := next(self._rest, None)) is not None:
            # What is not known of a file is asked for with its start.
            if after != source and (after.stamp is None or self.is_wanted(after)):
                key = urls.real(after.path)
                self._coming[key] = self._threads.begin(functools.partial(_primed, after))

    def __enter__(self) -> Heads:
        return self

    def __exit__(self, *error: object) -> None:
        """Fetch nothing any more."""
        if self._threads is not None:
            self._threads.close()
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
