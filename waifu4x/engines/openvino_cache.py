"""Compiled networks on disk, so that one is converted once on a machine.

A file is guaranteed to hold what was written for its key, or it is not read: it begins with the
sha256 of the rest, and the key is part of that. So a damaged or foreign file is nothing worse than
a missing one, a file that cannot be written costs a conversion the next time, and processes that
convert the same model at once need no lock: each writes a file of its own and renames it.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from waifu4x.files import sweep_orphans, write_bytes

MOST_BYTES = 2**30
"""What the folder may hold; what was not used for the longest time goes first."""

_SUFFIX = ".compiled"
_DIGEST_BYTES = hashlib.sha256().digest_size


def read(folder: Path, key: str) -> bytes | None:
    """What was written for `key`; None when there is nothing, or not all of it."""
    path = _path(folder, key)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, body = data[:_DIGEST_BYTES], memoryview(data)[_DIGEST_BYTES:]
    start = _start(key)
    if hashlib.sha256(body).digest() != digest or body[: len(start)] != start:
        return None
    with suppress(OSError):
        os.utime(path)  # see MOST_BYTES
    return bytes(body[len(start) :])


def write(folder: Path, key: str, content: bytes) -> None:
    """Keep `content` for `read`, where the disk lets us; whatever it refuses is not an error."""
    body = _start(key) + content
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_orphans(folder)
        write_bytes(_path(folder, key), hashlib.sha256(body).digest() + body)
        _prune(folder)


def _path(folder: Path, key: str) -> Path:
    return folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + _SUFFIX)


def _start(key: str) -> bytes:
    """The key as it stands before the content: with its length, so that none continues another."""
    return len(key.encode()).to_bytes(4, "big") + key.encode()


def _prune(folder: Path) -> None:
    found = [(path.stat(), path) for path in folder.glob(f"*{_SUFFIX}")]
    kept_bytes = 0
    for facts, path in sorted(found, key=lambda entry: entry[0].st_mtime, reverse=True):
        kept_bytes += facts.st_size
        if kept_bytes > MOST_BYTES:
            path.unlink(missing_ok=True)
