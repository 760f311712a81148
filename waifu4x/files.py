"""Bytes reach the disk whole or not at all: unique temporary name, fsync, rename.

Every temporary of this project is called ``.{target name}.{pid}-{random}.partial`` and lies beside
its target, so the rename never crosses a file system. A process that is killed leaves its temporary
behind; `sweep_orphans` removes those that are older than a day.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
ORPHAN_AGE_S = 24 * 3600.0
_NAME_MAX_BYTES = 255
_MARK_BYTES = 4
# Other programs call files .partial too, and theirs are not ours to remove.
_OURS = re.compile(r"\..*\.\d+-[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX), re.DOTALL)


def partial_path(target: Path) -> Path:
    """A fresh temporary name beside `target`, unique to this process and call."""
    return target.with_name(_partial_name(target, os.getpid(), secrets.token_hex(_MARK_BYTES)))


def _partial_name(target: Path, pid: int, mark: str) -> str:
    tail = f".{pid}-{mark}{PARTIAL_SUFFIX}"
    room_bytes = _NAME_MAX_BYTES - len(tail) - 1
    # A character cut in two is dropped: macOS and Windows take no names that are not valid text.
    stem = os.fsencode(target.name)[:room_bytes].decode(errors="ignore")
    return f".{stem}{tail}"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends without an error it becomes `target`.

    The file is synced before the rename and its folder after it, so that after a power cut `target`
    is the old file or the new one, never a part. An existing target keeps its permissions. When the
    block raises, the temporary is removed and `target` is as it was. Raises OSError as it comes.
    """
    temporary = partial_path(target)
    try:
        yield temporary
        _sync(temporary)
        # Afterwards, because a file that is read-only by then could not be opened for syncing.
        with suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    # A folder cannot be opened on Windows; there the rename itself is durable enough.
    with suppress(OSError):
        _sync(target.parent)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically (see `atomic_path`)."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def sweep_orphans(folder: Path, *, older_than_s: float = ORPHAN_AGE_S) -> int:
    """Remove temporaries of dead runs that lie directly in `folder`; returns how many went."""
    swept = 0
    limit = time.time() - older_than_s
    for orphan in folder.glob(f".*{PARTIAL_SUFFIX}"):
        with suppress(OSError):
            if _OURS.fullmatch(orphan.name) and orphan.is_file() and orphan.stat().st_mtime < limit:
                orphan.unlink()
                swept += 1
    return swept


def is_partial(name: str, *, of: Iterable[str] | None = None, pid: int = 0) -> bool:
    """Whether a file of this name is a temporary of this project.

    of: names of targets; it must be one of these, of the process `pid`.
    """
    if _OURS.fullmatch(name) is None:
        return False
    end = 2 * _MARK_BYTES + len(PARTIAL_SUFFIX)
    return of is None or any(_partial_name(Path(one), pid, name[-end:][:8]) == name for one in of)


def sweep_partials(targets: Iterable[Path], *, pid: int) -> int:
    """Remove what a process that is dead, on whichever machine, had begun to write; returns how
    many went."""
    names: defaultdict[Path, list[str]] = defaultdict(list)
    for target in targets:
        names[target.parent].append(target.name)
    swept = 0
    for folder, wanted in names.items():
        with suppress(OSError), os.scandir(folder) as entries:
            for path in [e.path for e in entries if is_partial(e.name, of=wanted, pid=pid)]:
                os.unlink(path)
                swept += 1
    return swept


def _sync(path: Path) -> None:
    # Windows syncs only what is open for writing; a folder can only be opened for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
