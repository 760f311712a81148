"""OpenVINO as a module, without what reports on its users."""

from __future__ import annotations

import importlib
import sys
from typing import Any

# https://github.com/openvinotoolkit/telemetry; optional, as its absence is.
_REPORTER = "openvino_telemetry"


def load() -> Any:
    """The module ``openvino``, imported now if it was not.

    To import it sends a line to its makers over the network unless the user, whom nobody asked, has
    forbidden that, or unless the package that does it is missing. So that is missing meanwhile.

    Raises ImportError, or whatever a broken installation raises.
    """
    if "openvino" in sys.modules:
        return importlib.import_module("openvino")
    before = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # pyright: ignore[reportArgumentType]
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_REPORTER]
        if before is not None:
            sys.modules[_REPORTER] = before
