"""The journal of an output folder in a store, which cannot append to a file.

It is kept in a file of this machine, exactly as that of a folder here is, and is put to
``.waifu4x/journal.jsonl`` in the output folder now and then, and at the end. A run begins with what
both say: so another machine goes on where this one stopped, and this one, where it was killed, from
the very last file. Nothing of it is needed to make outputs: losing either costs time.

Runs on several machines at once must be shards, each of which has a journal of its own: of two that
put the same one, the later would take the place of the other.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from waifu4x import files, weights
from waifu4x.batch import journal, shards
from waifu4x.batch.journal import FOLDER, Journal, Line
from waifu4x.errors import PictureReadError, PictureWriteError
from waifu4x.remote import stores
from waifu4x.remote.urls import Url

_MOST_UNSENT = 100
"""Lines. Of long journals a share, or sending them would cost the square of their length."""
_UNSENT_SHARE = 0.1
_UNSENT_S = 60.0
_SENDING_SHARE = 0.05
"""Of the time: a slow store gets the journal less often."""


def folder_here(folder: Url) -> Path:
    """Where the journal of an output folder lies on this machine; it need not exist yet."""
    key = hashlib.sha256(folder.identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return weights.models_folder().parent / "journals" / key


class RemoteJournal(Journal):
    """As `Journal`, of an output folder in a store; `flush` is to be called at the end of a run."""

    def __init__(self, folder: Url, *, shard: shards.Shard | None = None) -> None:
        """Read the journals of the store and of this machine; nothing is sent.

        Raises:
            PictureReadError: the store cannot be asked.
            OSError: what it says cannot be kept here.
        """
        here = folder_here(folder)
        own = journal.path_of(here, shard).name
        self.url = folder / FOLDER / own
        self._sending = threading.Lock()
        self._lines = self._unsent = 0
        known = _bring(folder / FOLDER, here / FOLDER)
        super().__init__(here, shard=shard)
        with suppress(OSError):
            data = self.path.read_bytes()
            self._lines = data.count(b"\n")
            self._unsent = int(data != known.get(own))
        self._sent_s = time.monotonic()
        self._took_s = 0.0

    def begin(self) -> None:
        """Put the journal: where that cannot be, no output could be put either.

        Raises PictureWriteError.
        """
        super().begin()
        self._unsent += 1
        self.flush()

    def append(self, line: Line) -> None:
        """As `Journal.append`; a store that fails is tried again later, and by `flush`."""
        super().append(line)
        self._lines += 1
        self._unsent += 1
        if self._is_due() and self._sending.acquire(blocking=False):
            try:
                with suppress(PictureWriteError):
                    self._send()
            finally:
                self._sending.release()

    def flush(self) -> None:
        """Put what was noted since. Raises PictureWriteError."""
        with self._sending:
            if self._unsent:
                self._send()

    def _is_due(self) -> bool:
        waited_s = time.monotonic() - self._sent_s
        many = max(_MOST_UNSENT, self._lines * _UNSENT_SHARE)
        return self._unsent >= many or waited_s > max(_UNSENT_S, self._took_s / _SENDING_SHARE)

    def _send(self) -> None:
        started = time.monotonic()
        unsent = self._unsent
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            data = b""  # nothing was noted yet
        try:
            # What else is temporary there may be in use: the mark of a run on a cluster.
            stores.prepare_folder(self.url.parent, of="journal")
            stores.put(data, self.url)
            self._unsent -= unsent
        finally:
            self._sent_s = time.monotonic()
            self._took_s = self._sent_s - started


def _bring(folder: Url, here: Path) -> dict[str, bytes]:
    """Let the journals of this machine say all that those of the store say; returns the latter."""
    found: dict[str, bytes] = {}
    for name in _names(folder):
        theirs = found[name] = stores.read(folder / name)
        path = here / name
        try:
            ours = path.read_bytes()
        except FileNotFoundError:
            ours = b""
        if ours.startswith(theirs):
            continue
        here.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, theirs if theirs.startswith(ours) else _joined(ours, theirs))
    return found


def _names(folder: Url) -> list[str]:
    try:
        names = [entry.place for entry in stores.list_folder(folder) if entry.kind == "file"]
    except PictureReadError:
        if stores.is_folder(folder):
            raise
        return []  # no run has put one yet
    return [n for n in names if n == journal.NAME or journal.shard_of(Path(n)) is not None]


def _joined(ours: bytes, theirs: bytes) -> bytes:
    """All lines of both, each once, those of later runs behind those of earlier ones."""
    rows = heapq.merge(_rows(ours), _rows(theirs), key=lambda row: row[0])
    return b"".join(line + b"\n" for line in dict.fromkeys(line for _, line in rows))


def _rows(text: bytes) -> Iterable[tuple[int, bytes]]:
    """Each line, and its run; what is no line of a journal belongs to the run before it."""
    run = 0
    for line in text.split(b"\n"):
        with suppress(ValueError, TypeError, RecursionError, AttributeError):
            run = max(run, int(json.loads(line).get("run", 0)))
        if line:
            yield run, line
