"""Keeps the libraries below Pillow and torch from writing into what this program says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_STDERR = 2


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Meanwhile only Python writes to standard error.

    libtiff, libjpeg and others print lines of their own about damaged files, straight to the file
    descriptor, on top of the error that we report. It concerns the whole process, so only the
    command line may decide it.
    """
    python_stderr = sys.stderr
    if python_stderr is None or not _is_the_descriptor(python_stderr):
        yield
        return
    python_stderr.flush()
    copy = os.dup(_STDERR)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, _STDERR)
    os.close(sink)
    with open(copy, "w", encoding=python_stderr.encoding, errors="backslashreplace") as stream:
        stream.reconfigure(line_buffering=True)
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = python_stderr
            stream.flush()
            os.dup2(copy, _STDERR)


def _is_the_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError):
        return False  # closed, or replaced by something in memory
