"""ONNX Runtime as a module, without what reports on its users."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

# https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md: read once, when it starts.
_SWITCH = "ORT_DISABLE_TELEMETRY"
_FATAL = 4


def load() -> Any:
    """The module ``onnxruntime``, imported now if it was not.

    As published it sends events to its makers over the network and writes an identifier of the
    machine into the user's cache folder, unless that is forbidden before it starts.

    Raises ImportError, or whatever a broken installation raises.
    """
    if "onnxruntime" in sys.modules:
        return _silenced(importlib.import_module("onnxruntime"))
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        runtime = _silenced(importlib.import_module("onnxruntime"))
        runtime.set_default_logger_severity(_FATAL)  # else it writes to standard error
        return runtime
    finally:
        del os.environ[_SWITCH]
        if before is not None:
            os.environ[_SWITCH] = before


def _silenced(runtime: Any) -> Any:
    """For builds, and programs around us, that it started in before."""
    disable = getattr(runtime, "disable_telemetry_events", None)
    if disable is not None:
        disable()
    return runtime
