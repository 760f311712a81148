"""The journals of shards become one: ``waifu4x batch merge``.

Nothing depends on it, because every run reads all of them: one file is handier, and read faster.

It may run while shards do, and may be killed at any time. A shard's journal is first given another
name, that readers know too, so what the shard notes from then on goes to a new file. What was read
stands in the merged journal before any other is removed, and only what was read to its end is.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from waifu4x import failures, files
from waifu4x.batch import journal
from waifu4x.batch.journal import Known
from waifu4x.batch.shards import Shard
from waifu4x.errors import PictureWriteError, UsageError
from waifu4x.remote.urls import Location, Url


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of it."""

    path: Path
    """Of the one journal."""
    done: int
    failed: int
    shards: tuple[Shard, ...]
    """Whose journals were merged."""
    left: tuple[Path, ...]
    """Journals that were written to meanwhile: their shards still run."""

    @property
    def missing(self) -> dict[int, list[int]]:
        """For every number of shards, those of which there was no journal."""
        counts = sorted({count for _, count in self.shards})
        return {
            count: [k for k in range(1, count + 1) if (k, count) not in self.shards]
            for count in counts
        }


def merge(folder: Location) -> Merged:
    """Put all journals of an output folder into one, and remove those of the shards.

    Of each output, and of each input that failed, the last line is kept.

    Raises:
        UsageError: there is no such folder, or no journal in it, or it lies in a store.
        PictureWriteError: the journal cannot be written, or a run writes to it.
    """
    if isinstance(folder, Url):
        # None of its journals could be given another name while a shard may put it anew.
        raise UsageError(
            f"the journals in {failures.shown(folder)} stay as they are, because it is no folder "
            f"of this machine; every run reads them all"
        )
    if not folder.is_dir():
        raise UsageError(f"{failures.shown(folder)} is no folder: give the one that -o named")
    if not journal.paths_in(folder):
        raise UsageError(
            f"there is no journal in {failures.shown(folder)}: give the folder that -o named"
        )
    target = journal.path_of(folder)
    try:
        _sweep(target)
        for path in journal.paths_in(folder):
            _set_aside(path)
        return _merge_into(target, journal.paths_in(folder), folder)
    except OSError as error:
        raise failures.write_error(error, target, size_bytes=0) from error


def _sweep(target: Path) -> None:
    """Remove what killed merges left."""
    limit_s = time.time() - files.ORPHAN_AGE_S
    # What else is temporary there may be in use, however old: the mark of a run on a cluster.
    for path in target.parent.glob(f".{target.name}.*{files.PARTIAL_SUFFIX}"):
        with suppress(OSError):
            if files.is_partial(path.name) and path.stat().st_mtime < limit_s:
                path.unlink()


def _set_aside(path: Path) -> None:
    shard = journal.shard_of(path)
    # One that a killed merge has set aside stays where it is.
    if shard is not None and path.name == journal.path_of(path, shard).name:
        os.replace(path, path.with_suffix(f".{secrets.token_hex(4)}.jsonl"))


def _merge_into(target: Path, paths: list[Path], folder: Path) -> Merged:
    known = Known()
    sizes_bytes: dict[Path, int] = {}
    for path in paths:
        # Before it is read: what comes later makes a difference.
        sizes_bytes[path] = _size_bytes(path)
        known.absorb(journal.read_file(path)[0])
    with files.atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            # Failures last: they came after what was done, or they would not be known.
            for lines in (known.done, known.failed):
                file.writelines(line.encoded() for line in lines.values())
            # Here already, so that next to no time is between the next look and the new name.
            file.flush()
            os.fsync(file.fileno())
        if _size_bytes(target) != sizes_bytes.get(target, 0):
            raise PictureWriteError(
                f"{failures.shown(target)} is written by a run: merge when that has ended"
            )
    aside = [path for path in paths if path != target]
    for path in aside:
        if _size_bytes(path) == sizes_bytes[path]:
            path.unlink(missing_ok=True)
    return Merged(
        path=target,
        done=len(known.done),
        failed=len(known.failed),
        shards=tuple(sorted(set(_shards_of(aside)))),
        left=tuple(path for path in journal.paths_in(folder) if path != target),
    )


def _shards_of(paths: Iterable[Path]) -> Iterable[Shard]:
    return (shard for path in paths if (shard := journal.shard_of(path)) is not None)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
