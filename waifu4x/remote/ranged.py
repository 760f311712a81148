"""A file in a store as a stream of which only the parts are fetched that are read."""

from __future__ import annotations

import errno
import io
import os

from waifu4x.errors import PictureReadError
from waifu4x.failures import shown
from waifu4x.remote import stores
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.urls import Url

FIRST_BYTES = 64 * 2**10
"""Of the first request: most headers end there."""
_MOST_BYTES = 8 * 2**20


class Ranged(io.RawIOBase):
    """Reads a file in a store, in few requests: each fetches twice what the one before did.

    What was fetched stays in memory. Reading raises PictureReadError where the store fails.
    """

    def __init__(self, url: Url, stamp: Stamp | None = None) -> None:
        """Nothing is asked for yet. stamp: as a list of files gave it, to spare a request."""
        super().__init__()
        self.url = url
        self._stamp = stamp
        self._pieces: list[tuple[int, bytes]] = []
        self._at = 0
        self._next_bytes = FIRST_BYTES

    @property
    def stamp(self) -> Stamp:
        """Of the version that is read. Raises PictureReadError; where there is no file, too."""
        if self._stamp is None or self._stamp[0] < 0:
            found = stores.find(self.url)
            if found is None:
                raise PictureReadError(f"{shown(self.url)} {self._missing()}")
            if found[0] < 0:  # then there is no other way to know
                content = stores.read(self.url)
                self._pieces = [(0, content)]
                found = len(content), found[1]
            self._stamp = found
        return self._stamp

    @property
    def size_bytes(self) -> int:
        return self.stamp[0]

    def prime(self, *, end: bool = False) -> None:
        """Fetch the first part, or the last, so that reading it waits for nothing."""
        start = max(0, self.size_bytes - FIRST_BYTES) if end else 0
        self._piece(start)

    def end(self, count: int) -> bytes:
        """Its last bytes."""
        self.seek(max(0, self.size_bytes - count))
        return self.read()

    def _missing(self) -> str:
        if stores.is_folder(self.url):
            return "is a folder: put a slash behind it"
        return "does not exist: check the name"

    def _piece(self, at: int, wanted: int = 1) -> tuple[int, bytes]:
        """A part that contains the byte at `at`, which lies within the file."""
        for start, data in self._pieces:
            if start <= at < start + len(data):
                return start, data
        stop = min(self.size_bytes, at + max(wanted, self._next_bytes))
        data = stores.read(self.url, at, stop)
        if len(data) == self.size_bytes:
            at = 0  # a web server that knows nothing of parts gives all
        elif len(data) != stop - at:
            raise PictureReadError(f"{shown(self.url)} was changed while it was read: do it again")
        self._next_bytes = min(2 * self._next_bytes, _MOST_BYTES)
        self._pieces.append((at, data))
        return at, data

    # -- what a stream has -------------------------------------------------------------------------

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: None}[whence]
        at = offset + (self.size_bytes if base is None else base)
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as files of a disk do
        self._at = at
        return at

    def read(self, size: int | None = -1, /) -> bytes:
        left = self.size_bytes - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        parts: list[bytes] = []
        while wanted > 0:
            start, data = self._piece(self._at, wanted)
            part = data[self._at - start : self._at - start + wanted]
            parts.append(part)
            self._at += len(part)
            wanted -= len(part)
        return b"".join(parts)

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)  # pyright: ignore[reportArgumentType]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
