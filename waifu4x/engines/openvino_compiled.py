"""Runs a network that OpenVINO has compiled; without torch, which takes a second to import.

One compiled network takes windows of any size. Where the default model takes 70 ms for 228 px, the
first window of a size costs 13 ms more; one compiled for a single size was as fast as this (169 ms
to 170, and 448 to 437 for another network), and takes 100 ms to compile. So nothing is compiled for
a picture, and no window is padded to the size of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from waifu4x import devices
from waifu4x.engines import FloatArray, Results, in_order, one_by_one, openvino_quietly
from waifu4x.errors import DeviceError

FORMAT = 2
"""To be raised when the same network is converted in another way."""

CALIBRATION_PICTURE = "calibration.png"
"""What int8 is calibrated with, among the weights that ship."""

EXTRA = "pip install 'waifu4x[openvino]'"

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

# Sizes whose kernels are kept, in operations: about fifty sizes of a small network, and 1 MB each.
_KEPT_KERNELS = 1000


class CompiledNetwork:
    """One compiled network as an engine: see `engines.NetworkEngine`."""

    name = "openvino"

    def __init__(
        self,
        open_request: Callable[[], Any],
        *,
        scale: int,
        channels: int,
        precision: str,
        bytes_per_px: Callable[[], float],
    ) -> None:
        """
        Args:
            open_request: gives an inference request of OpenVINO, now and whenever one was spoiled
                by a memory that was full; raises DeviceError.
            bytes_per_px: see `NetworkEngine.bytes_per_px`; asked once, when it is needed.
        """
        self.scale = scale
        self.channels = channels
        self.precision = precision
        self._open_request = open_request
        self._ask_bytes_per_px = bytes_per_px
        self._bytes_per_px: float | None = None
        self._request: Any = open_request()

    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`."""
        tensor = openvino_quietly.load().Tensor
        windows = in_order(batch)  # named, to outlive the run: a shared tensor does not hold it
        count, height, width, _ = windows.shape
        shape = count, height * self.scale, width * self.scale, self.channels
        # Whatever would fail without saying so would leave NaN, and the caller looks for that.
        result = np.full(shape, np.nan, dtype=np.float32)
        request = self._request or self._opened_again()
        try:
            request.set_input_tensor(tensor(windows, shared_memory=True))
            request.set_output_tensor(tensor(result, shared_memory=True))
            # `infer` would do both, but where memory is full it returns as if all were well.
            request.start_async()
            request.wait()
        except BaseException:
            # After an interrupt between the two it runs on, in arrays that are about to go.
            with suppress(RuntimeError):
                request.wait()
            # A compiled network whose memory was full mixes the sizes of this run into the next.
            self._request = None
            raise
        return result

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """See `Engine.stream`."""
        return one_by_one(self.run, batches)

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`."""
        if self._bytes_per_px is None:
            self._bytes_per_px = self._ask_bytes_per_px()
        return self._bytes_per_px

    def _opened_again(self) -> Any:
        try:
            self._request = self._open_request()
        except DeviceError as error:
            # It was opened once: what it lacks now is memory, in whatever words.
            raise MemoryError(str(error)) from error
        return self._request


@cache
def runtime() -> Any:
    """OpenVINO itself; one for the process.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    if not devices.has_openvino():
        raise DeviceError(f"OpenVINO is not installed: {EXTRA}, or try --engine torch")
    try:
        return openvino_quietly.core()
    except Exception as error:  # whatever a broken installation raises
        raise DeviceError(
            f"OpenVINO is installed but does not load ({in_one_line(error)}): try {EXTRA}, or "
            f"--engine torch"
        ) from error


def hint(precision: str) -> str:
    """What OpenVINO calls a precision; beside int8 it is what the rest is computed in."""
    if precision == "int8":
        able = runtime().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return _HINTS["bf16" if "BF16" in able else "fp32"]
    return _HINTS[precision]


def settings(precision: str, *, threads: int, place: str = "CPU") -> dict[str, Any]:
    """What a network is compiled, and opened again, with; `place` is OpenVINO's name of a
    device."""
    general = {"INFERENCE_PRECISION_HINT": hint(precision), "PERFORMANCE_HINT": "LATENCY"}
    if place != "CPU":
        return general
    return {
        **general,
        "INFERENCE_NUM_THREADS": threads,
        # Threads that cannot move wait for whoever else is on their core.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
    }


def in_one_line(error: BaseException) -> str:
    """The last line, which says most of OpenVINO's messages and is the only one of others'."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
