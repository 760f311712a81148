"""How much may be on its way at once; no limit can be broken by a signal (see `run`)."""

from __future__ import annotations

import os
import queue
from contextlib import suppress
from pathlib import Path

from waifu4x import memory

POLL_S = 0.1
"""For how long a thread waits before it looks whether the run was stopped."""

_MEMORY_SHARE = 0.5
"""Of what is free when a run begins."""


def memory_bytes(allowed_bytes: int | None) -> int:
    """What pictures on their way may take of main memory.

    allowed_bytes: for the whole process, as the user said; None is half of what is free.
    """
    if allowed_bytes is None:
        return int(memory.free_host_bytes() * _MEMORY_SHARE)
    return max(allowed_bytes // 2, allowed_bytes - _resident_bytes())


def _resident_bytes() -> int:
    """What this process takes already: PyTorch and the network, mostly."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 2**29  # not Linux: about what it takes there


class Slots:
    """A semaphore that no signal can break."""

    def __init__(self, count: int) -> None:
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(count):
            self.give()

    def take(self) -> bool:
        """Wait a moment for a slot; False when there is none."""
        with suppress(queue.Empty):
            self._free.get(timeout=POLL_S)
            return True
        return False

    def give(self) -> None:
        self._free.put(None)


class Budget:
    """Bytes that may be on their way at once; one thread takes them, any may give them back."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._given: queue.SimpleQueue[int] = queue.SimpleQueue()

    def take(self, size_bytes: int) -> bool:
        """Wait a moment for room; False when there is none.

        What is larger than the whole budget goes alone.
        """
        with suppress(queue.Empty):
            while True:
                self._taken_bytes -= self._given.get_nowait()
        if self._taken_bytes and self._taken_bytes + size_bytes > self._limit_bytes:
            with suppress(queue.Empty):
                self._taken_bytes -= self._given.get(timeout=POLL_S)
            return False
        self._taken_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        self._given.put(size_bytes)
