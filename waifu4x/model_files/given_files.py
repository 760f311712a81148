"""What a file of weights is refused for before anything reads it, and how that is said."""

from __future__ import annotations

import stat
import unicodedata
from pathlib import Path
from typing import NoReturn

from waifu4x.errors import CheckpointError

MAX_FILE_BYTES = 1 << 30


def printable(text: object, *, limit: int = 160) -> str:
    """`text` as one line without control characters, cut to `limit`: it came from a stranger."""
    kept = "".join(
        " " if character.isspace() else character
        for character in str(text)
        if character.isspace() or unicodedata.category(character)[0] != "C"
    )
    line = " ".join(kept.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def fail(
    path: Path,
    problem: str,
    *,
    sha256: str | None = None,
    kind: type[CheckpointError] = CheckpointError,
) -> NoReturn:
    """Raise `kind` with one line that names the file, the problem and the sha256 (when known)."""
    # From nothing: the traceback of a failed parse would keep its tensors alive.
    tail = "" if sha256 is None else f" (sha256 {sha256})"
    raise kind(f"{printable(path, limit=400)}: {problem}{tail}") from None


def check_file(path: Path) -> None:
    """Raises CheckpointError unless `path` is a regular file of a size that weights have."""
    try:
        # Looked at before opening: opening a FIFO would wait for a writer that never comes.
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fail(path, f"cannot be read: {printable(reason)}")
    if not stat.S_ISREG(status.st_mode):
        fail(path, "is not a regular file; give the path of a .safetensors or .pth file")
    if status.st_size == 0:
        fail(path, "is empty; download it again")
    if status.st_size > MAX_FILE_BYTES:
        fail(path, f"is larger than {MAX_FILE_BYTES >> 20} MiB, which no known network is")
