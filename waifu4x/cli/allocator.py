"""Keeps glibc from giving every large activation back to the kernel."""

from __future__ import annotations

import ctypes
import sys

# From malloc.h; the values are bytes.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_large_blocks() -> None:
    """Let freed blocks of up to 256 MiB be used again by this process; does nothing without glibc.

    By default glibc maps and unmaps each of them, and the kernel zeroes its pages anew: that took a
    quarter of the time of inference on a CPU. It concerns the whole process, so only the command
    line may decide it. https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, 256 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)
