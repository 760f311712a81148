"""What tells one version of a file in a store from the next: its size, and a number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Stamp = tuple[int, int]
"""Size in bytes, -1 where the store does not say; and `version`."""

# Stores have no common names for these: https://github.com/fsspec/filesystem_spec/issues/526
_TIMES = (
    *("mtime", "LastModified", "last_modified", "modified", "updated", "modify", "last_write_time"),
    *("modificationTime", "created"),
)
_SUMS = (
    *("ETag", "etag", "generation", "md5Hash", "md5", "content_md5", "checksum", "blob_id", "sha"),
    "sha256",
)
_MILLISECONDS = frozenset({"modificationTime"})


def of(info: Mapping[str, Any]) -> Stamp:
    """Of what fsspec says of a file."""
    size = info.get("size")
    return -1 if size is None else int(size), version(info)


def version(info: Mapping[str, Any]) -> int:
    """A number that changes with the content, the same whenever and wherever it is asked for.

    Where the store says when it was written, that in nanoseconds, its last three digits from the
    store's checksum: many stores count only seconds. Else that checksum alone, as a number of 48
    bits; 0 where there is neither.
    """
    sums = [str(info[name]).strip('"') for name in _SUMS if info.get(name)]
    # One is as good as all, and lists of files have fewer than what is said of a single one.
    digest = hashlib.sha256(sums[0].encode()).digest() if sums else b""
    if written_ns := time_ns(info):
        return written_ns - written_ns % 1000 + int.from_bytes(digest[:6], "big") % 1000
    return int.from_bytes(digest[:6], "big")


def time_ns(info: Mapping[str, Any]) -> int:
    """When it was written, since 1970, to the microsecond; 0 where the store does not say."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            value = aware.timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            seconds = value / 1000 if name in _MILLISECONDS else value
            # Some say it to the nanosecond in a list of files, and not when asked for one.
            return round(seconds * 1_000_000) * 1000
    return 0


def _parsed(text: str) -> datetime | None:
    """As RFC 3339 has it, or FTP: 20240131235959.123."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return datetime.strptime(text.partition(".")[0], "%Y%m%d%H%M%S")
    except ValueError:
        return None
