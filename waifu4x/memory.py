"""How much main memory is left."""

from __future__ import annotations

import os
from pathlib import Path


def free_host_bytes() -> int:
    """Main memory that can still be taken, in bytes, within a container's limit too."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            limits.append(max(0, int(limit) - used + _reclaimable_bytes()))
    except OSError:
        pass  # not Linux, or no cgroup v2: whatever was found so far counts
    if not limits:
        # macOS and Windows do not tell what is available without a further library; half of what
        # is installed is a cautious stand-in.
        limits.append(_installed_bytes() // 2)
    return min(limits)


def _reclaimable_bytes() -> int:
    """Cached files that count as used memory of the container, and go as soon as it is needed."""
    # What `docker stats` and Kubernetes subtract too: https://docs.docker.com/reference/cli/docker/container/stats/
    for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _installed_bytes() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30
