"""The most memory that was held while something ran."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_STATM = Path("/proc/self/statm")
_EVERY_S = 0.01


class PeakMemory:
    """Notes the most bytes that the process holds (on CUDA: that are allocated on the device).

    On the CPU it is sampled, every 10 ms and at the end; where the system does not tell,
    `peak_bytes` is None.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._done = threading.Event()
        self.peak_bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        release_freed()
        if self._device.startswith("cuda"):
            _cuda().reset_peak_memory_stats(self._device)
            return self
        self.peak_bytes = _resident_bytes()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._device.startswith("cuda"):
            self.peak_bytes = int(_cuda().max_memory_allocated(self._device))
            return
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while self.peak_bytes is not None and not self._done.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        if self.peak_bytes is not None:
            self.peak_bytes = max(self.peak_bytes, _resident_bytes() or 0)


def release_freed() -> None:
    """Give memory that is free already back to the system, where glibc keeps it."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)


def _resident_bytes() -> int | None:
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _cuda() -> Any:
    import torch

    return torch.cuda
