"""What a run has finished, one line per output, so that the next run does only what is missing.

The journal is ``.waifu4x/journal.jsonl`` in the output folder. A line is appended with a single
write after its output was renamed into place: a killed run loses at most the line, never the
output. A torn last line is ignored. Losing the journal costs time and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FOLDER = ".waifu4x"
NAME = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One file that was finished, or that failed."""

    source: str
    """Relative to the input folder, with forward slashes."""
    status: Literal["done", "failed"]
    settings: str
    """What `Request.settings_key` gave."""
    output: str = ""
    """Relative to the output folder, with forward slashes; of a failure none."""
    source_bytes: int = 0
    source_mtime_ns: int = 0
    output_bytes: int = 0
    reason: str = ""
    """Of a failure."""

    def is_about(self, other: Line) -> bool:
        """Whether both speak of the same output of the same input by the same settings."""
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[object, ...]:
        return (self.output, self.source, self.source_bytes, self.source_mtime_ns, self.settings)


class Journal:
    """The lines of one output folder; the latest about an output, or an input, counts.

    Threads and processes may append to it at the same time: each line is a single write to a file
    that is opened for appending; empty lines mean nothing. (On Windows that is not atomic between
    processes: a line may be lost, and what it was about is done again or left as it is.)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER / NAME
        self._done: dict[str, Line] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()
        for line in _read(self.path):
            self._learn(line)

    def find(self, output: str) -> Line | None:
        """How an output was last made; None where this journal knows of none."""
        return self._done.get(output)

    def has_failed(self, source: str) -> bool:
        """Whether an input failed when it was last tried."""
        return source in self._failed

    def _learn(self, line: Line) -> None:
        if line.status == "failed":
            self._failed.add(line.source)
        else:
            self._done[line.output] = line
            self._failed.discard(line.source)

    def append(self, line: Line) -> None:
        """Note a finished file. Raises OSError when the journal cannot be written."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self.path, flags, 0o666)
            try:
                text = json.dumps(asdict(line)) + "\n"
                # The torn line of a killed run has no end: one before this keeps it to itself.
                text = text if _ends_whole(descriptor) else "\n" + text
                data = text.encode("ascii")
                if os.write(descriptor, data) < len(data):
                    # What a disk does that has room for a part of it.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
            self._learn(line)


def _ends_whole(descriptor: int) -> bool:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0:
        return True
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"


def _read(path: Path) -> list[Line]:
    try:
        rows = path.read_bytes().split(b"\n")
    except OSError:
        return []  # none yet, or lost: that costs time
    return [line for row in rows if (line := _parsed(row)) is not None]


def _parsed(row: bytes) -> Line | None:
    """None for what is torn, foreign or of another version: its file is done again."""
    try:
        line = Line(**json.loads(row))
    except (ValueError, TypeError, RecursionError):
        return None
    kinds = {name: type(value) for name, value in asdict(line).items()}
    return line if kinds == _KINDS and line.status in ("done", "failed") else None


_KINDS = {
    name: type(value) for name, value in asdict(Line(source="", status="done", settings="")).items()
}
