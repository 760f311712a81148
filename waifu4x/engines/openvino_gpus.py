"""Intel's GPUs, as OpenVINO lists them. What is ``xpu:1`` here, as in PyTorch, is its ``GPU.1``."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from waifu4x.engines import openvino_quietly

_NODES = Path("/dev/dri")
_WINDOWS_BELOW = Path("/dev/dxg")
_FACTS = Path("/sys/class/drm")
_INTEL = "0x8086"


def name(number: int) -> str:
    """What OpenVINO calls it, also where it is the only one and listed as ``GPU``."""
    return f"GPU.{number}"


def may_be_here() -> bool:
    """Whether it is worth loading OpenVINO to ask; False, which is told in no time, is right."""
    if sys.platform == "linux":
        nodes = _NODES.glob("renderD*")
        return _WINDOWS_BELOW.exists() or any(_may_be_intel(node) for node in nodes)
    return sys.platform == "win32"


def _may_be_intel(node: Path) -> bool:
    try:
        return (_FACTS / node.name / "device" / "vendor").read_text().strip() == _INTEL
    except OSError:
        return True


@cache
def found() -> tuple[int, ...]:
    """The numbers of those that OpenVINO can use, the fastest first as far as it says; none where
    it is not installed, or fails."""
    try:
        listed = openvino_quietly.core().available_devices
        parts = [entry.partition(".") for entry in listed]
        numbers = [int(number or 0) for kind, _, number in parts if kind == "GPU"]
        return tuple(sorted(numbers, key=lambda number: (is_integrated(number), number)))
    except Exception:  # whatever a broken driver or installation raises: nobody asked for it
        return ()


def is_integrated(number: int) -> bool:
    """Whether its memory is the machine's."""
    return "INTEGRATED" in str(_fact(number, "DEVICE_TYPE")).upper()


def memory_bytes(number: int) -> int:
    """All memory that it can address, in use or not."""
    return int(_fact(number, "GPU_DEVICE_TOTAL_MEM_SIZE"))


def describe(number: int) -> str:
    """Its name, for people."""
    return str(_fact(number, "FULL_DEVICE_NAME"))


def _fact(number: int, named: str) -> Any:
    return openvino_quietly.core().get_property(name(number), named)
