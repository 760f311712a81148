"""OpenVINO and what belongs to it as modules, without what reports on their users."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

# https://github.com/openvinotoolkit/telemetry; optional, as its absence is.
_REPORTER = "openvino_telemetry"


def load(name: str = "openvino") -> Any:
    """The module ``openvino``, or ``nncf``; imported now if it was not.

    To import it sends a line to its makers over the network unless the user, whom nobody asked, has
    forbidden that, or unless the package that does it is missing. So that is missing meanwhile.

    Raises ImportError, or whatever a broken installation raises.
    """
    if name in sys.modules:
        return importlib.import_module(name)
    before = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[_REPORTER]
        if before is not None:
            sys.modules[_REPORTER] = before


@cache
def core() -> Any:
    """OpenVINO's `Core`, one for the process; raises as `load`."""
    return load().Core()
