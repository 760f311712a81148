"""What a run has finished, one line per output, so that the next run does only what is missing.

The journal is ``.waifu4x/journal.jsonl`` in the output folder. A line is appended with a single
write after its output was renamed into place: a killed run loses at most the line, never the
output. A torn last line is ignored. Losing the journal costs time and nothing else.

A shard (see `shards`) appends to a file of its own, ``journal-I-of-N.jsonl``, because hosts that
share a folder by NFS cannot append to one file. All of them are read, by every run, so any run goes
on where any other stopped; `merging` puts them into one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from waifu4x.batch import shards

FOLDER = ".waifu4x"
NAME = "journal.jsonl"
# The last part is of one that `merging` has set aside.
_OF_A_SHARD = re.compile(r"journal-([1-9]\d*)-of-([1-9]\d*)(?:\.[0-9a-f]{8})?\.jsonl")
# How long a merge may need to give many journals other names, on a slow disk of another machine.
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_GONE = frozenset({errno.ENOENT, errno.ESTALE})


@dataclass(frozen=True, kw_only=True, slots=True)
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
    run: int = field(default=0, compare=False)
    """Guaranteed to be higher than in every line that was there when its run began: so it is known
    which of two files speaks of the later run, whatever the clocks of their hosts say."""

    def is_about(self, other: Line) -> bool:
        """Whether both speak of the same output of the same input by the same settings."""
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[object, ...]:
        return (self.output, self.source, self.source_bytes, self.source_mtime_ns, self.settings)

    def encoded(self) -> bytes:
        """As it stands in a journal, with its end."""
        return json.dumps({name: getattr(self, name) for name in _KINDS}).encode("ascii") + b"\n"


_KINDS = {
    each.name: type(getattr(Line(source="", status="done", settings=""), each.name))
    for each in fields(Line)
}


class Known:
    """What lines say, of which the latest about an output, or an input, counts."""

    def __init__(self) -> None:
        self.done: dict[str, Line] = {}
        """By output."""
        self.failed: dict[str, Line] = {}
        """By source, of those that failed when they were last tried."""

    def learn(self, line: Line) -> None:
        """Take in what was written after all that is known."""
        if line.status == "failed":
            self.failed[line.source] = line
        else:
            self.done[line.output] = line
            self.failed.pop(line.source, None)

    def absorb(self, other: Known) -> None:
        """Take in another file: the later run counts; of one run, or of an unknown one, `other`."""
        tried: dict[str, int] = {}
        # Few fail: so this is about few.
        for line in self.done.values() if other.failed else ():
            if line.source in other.failed:
                tried[line.source] = max(line.run, tried.get(line.source, 0))
        for output, line in other.done.items():
            known = self.done.get(output)
            if known is None or known.run <= line.run:
                self.done[output] = line
            failure = self.failed.get(line.source)
            if failure is not None and failure.run <= line.run:
                del self.failed[line.source]
        for source, line in other.failed.items():
            known = self.failed.get(source)
            if line.run >= max(tried.get(source, 0), 0 if known is None else known.run):
                self.failed[source] = line


class Journal:
    """The lines of one output folder; the latest about an output, or an input, counts.

    Threads and processes may append to it at the same time: each line is a single write to a file
    that is opened for appending; empty lines mean nothing. (On Windows that is not atomic between
    processes: a line may be lost, and what it was about is done again or left as it is.)
    """

    def __init__(self, folder: Path, *, shard: shards.Shard | None = None) -> None:
        """Read all journals of an output folder, and append to the shard's own.

        shard: it also keeps only what is said of its own files, so that a shard of a large folder
        needs the memory of a small one.
        """
        self.path = path_of(folder, shard)
        self._shard = shard
        self._lock = threading.Lock()
        self._known, run = read(folder, shard=shard)
        self._run = run + 1

    def find(self, output: str) -> Line | None:
        """How an output was last made; None where this journal knows of none."""
        return self._known.done.get(output)

    @property
    def is_empty(self) -> bool:
        """It knows of no output."""
        return not self._known.done

    def has_failed(self, source: str) -> bool:
        """Whether an input failed when it was last tried."""
        return source in self._known.failed

    def begin(self) -> None:
        """Show that a shard runs, also where nothing is finished yet, or will be.

        Without a shard nothing is made. Raises OSError when the journal cannot be written.
        """
        if self._shard is not None:
            os.close(self._opened())

    def flush(self) -> None:
        """Bring what was noted to where the outputs are: here it is already."""

    def append(self, line: Line) -> None:
        """Note a finished file. Raises OSError when the journal cannot be written."""
        line = replace(line, run=self._run)
        with self._lock:
            # Each time anew: so it may be deleted, or merged, while a run goes on.
            descriptor = self._opened()
            try:
                data = line.encoded()
                # The torn line of a killed run has no end: one before this keeps it to itself.
                data = data if _ends_whole(descriptor) else b"\n" + data
                if os.write(descriptor, data) < len(data):
                    # What a disk does that has room for a part of it.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
            self._known.learn(line)

    def _opened(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            return os.open(self.path, flags, 0o666)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, flags, 0o666)


def _ends_whole(descriptor: int) -> bool:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0:
        return True
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) == b"\n"


def path_of(folder: Path, shard: shards.Shard | None = None) -> Path:
    """The journal of an output folder, or that of one shard."""
    name = NAME if shard is None else f"journal-{shard[0]}-of-{shard[1]}.jsonl"
    return folder / FOLDER / name


def shard_of(path: Path) -> shards.Shard | None:
    """The shard that a journal is of, told by its name; None for all other names."""
    found = _OF_A_SHARD.fullmatch(path.name)
    return None if found is None else (int(found[1]), int(found[2]))


def paths_in(folder: Path) -> list[Path]:
    """All journals of an output folder, that which was written to last at the end."""
    return _listed(folder)[0]


def _listed(folder: Path) -> tuple[list[Path], bool]:
    """As `paths_in`; and whether these are all, because none got another name meanwhile."""
    names = _names(folder)
    # A file that gets another name while its folder is listed may be shown by neither.
    are_all = names == _names(folder)
    found: list[tuple[int, bool, Path]] = []
    for name in names:
        path = folder / FOLDER / name
        try:
            facts = path.stat()
        except OSError as error:
            # A link to nothing stays so; whatever else fails here cannot be read either.
            are_all = are_all and (error.errno not in _GONE or path.is_symlink())
            continue
        # A pipe would wait for a writer that never comes.
        if stat.S_ISREG(facts.st_mode):
            found.append((facts.st_mtime_ns, shard_of(path) is not None, path))
    return [path for _, _, path in sorted(found)], are_all


def _names(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder / FOLDER)
    except OSError:
        return []  # none yet, or lost: that costs time
    return sorted(name for name in names if name == NAME or _OF_A_SHARD.fullmatch(name))


def read(folder: Path, *, shard: shards.Shard | None = None) -> tuple[Known, int]:
    """What all journals of a folder say (with `shard`: of its files), and their highest run."""
    for pause_s in _PAUSES_S:
        paths, are_all = _listed(folder)
        if are_all:
            known, run, are_all = _read_all(paths, shard=shard)
            if are_all:
                return known, run
        # They are merged meanwhile: what one said stands in another one, or will in a moment.
        time.sleep(pause_s)
    known, run, _ = _read_all(paths_in(folder), shard=shard)
    return known, run


def _read_all(paths: Iterable[Path], *, shard: shards.Shard | None) -> tuple[Known, int, bool]:
    """What they say, their highest run, and whether all of them were still there."""
    known, run, are_all = Known(), 0, True
    for path in paths:
        try:
            other, latest = read_file(path, shard=shard)
        except OSError as error:
            # What cannot be read is as good as lost: that costs time.
            are_all = are_all and error.errno not in _GONE
            continue
        known.absorb(other)
        run = max(run, latest)
    return known, run, are_all


def read_file(path: Path, *, shard: shards.Shard | None = None) -> tuple[Known, int]:
    """What one journal says (with `shard`: of its files), and its highest run. Raises OSError."""
    known, run = Known(), 0
    with path.open("rb") as file:
        for row in file:
            if (line := _parsed(row)) is None:
                continue
            run = max(run, line.run)
            if shard is None or shards.holds(line.source, shard):
                known.learn(line)
    return known, run


def _parsed(row: bytes) -> Line | None:
    """None for what is torn, foreign or of another version: its file is done again."""
    try:
        facts = json.loads(row)
        # Of millions of lines equal texts would be most of the memory.
        facts["settings"] = sys.intern(facts["settings"])
        if facts.get("output") == facts["source"]:
            facts["output"] = facts["source"]
        line = Line(**facts)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    for name, kind in _KINDS.items():
        if type(getattr(line, name)) is not kind:
            return None
    return line if line.status in ("done", "failed") else None
