"""Runs a network with OpenVINO, which is faster than PyTorch on CPUs: an extra, imported when used.

One compiled network takes windows of any size. Where the default model takes 70 ms for 228 px, the
first window of a size costs 13 ms more; one compiled for a single size was as fast as this (169 ms
to 170, and 448 to 437 for another network), and takes 100 ms to compile. So nothing is compiled for
a picture, and no window is padded to the size of another.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x import devices
from waifu4x.engines import FloatArray, in_order, openvino_cache, openvino_graph, openvino_quietly
from waifu4x.engines.torch import peak_values_per_px
from waifu4x.errors import DeviceError

EXTRA = "pip install 'waifu4x[openvino]'"

FORMAT = 1
"""To be raised when the same network is converted in another way."""

_HINTS = {"fp32": "f32", "bf16": "bf16"}
# Sizes whose kernels are kept, in operations: about fifty sizes of a small network, and 1 MB each.
_KEPT_KERNELS = 1000
# Fitted to seven networks in fp32 and bf16: they took 0.6 to 1.2 of what it says.
_ACTIVATION_MARGIN = 1.7
_OUTPUT_COPIES = 6
# A window to compare at before a conversion is trusted: neither square nor of the size traced.
_COMPARED_UNITS = (16, 24)
_LARGEST_DIFFERENCE = 1e-3


class OpenVINOEngine:
    """One network on the CPU, its convolutions in fp32 or bf16.

    Weights, input, output and what torch computes in float32 at the network's end stay in float32.
    """

    name = "openvino"

    def __init__(
        self, network: nn.Module, *, precision: str, sha256: str = "", folder: Path | None = None
    ) -> None:
        """Convert and compile the network, or take that from `folder`.

        Args:
            network: on the CPU, float32.
            precision: ``fp32`` or ``bf16``.
            sha256: of the weights.
            folder: where compiled networks are kept; without it, or sha256, all is done anew.

        Raises:
            DeviceError: OpenVINO is not installed, or cannot run this network like this.
        """
        config: Any = network.config
        self.scale: int = config.scale
        self.channels: int = config.channels_in
        self.precision = precision
        self._network = network.eval().to("cpu")
        self._sha256 = sha256
        self._folder = folder
        self._request: Any = None
        self._bytes_per_px: float | None = None
        self._prepare()

    def _prepare(self) -> None:
        runtime = _runtime()
        try:
            self._request = self._opened(runtime).create_infer_request()
        except DeviceError:
            raise
        except Exception as error:  # every kind: of tracing, of OpenVINO, of its bindings
            raise DeviceError(
                f"OpenVINO cannot run this network in {self.precision} ({_in_one_line(error)}); "
                f"try --engine torch"
            ) from error

    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`."""
        tensor = openvino_quietly.load().Tensor
        windows = in_order(batch)  # named, to outlive the run: a shared tensor does not hold it
        count, height, width, _ = windows.shape
        shape = count, height * self.scale, width * self.scale, self.channels
        # Whatever would fail without saying so would leave NaN, and the caller looks for that.
        result = np.full(shape, np.nan, dtype=np.float32)
        request = self._request or self._prepared_again()
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

    def _prepared_again(self) -> Any:
        try:
            self._prepare()
        except DeviceError as error:
            # It was prepared once: what it lacks now is memory, in whatever words.
            raise MemoryError(str(error)) from error
        return self._request

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`."""
        if self._bytes_per_px is None:
            size_bytes = 2 if self.precision == "bf16" else 4
            peak = peak_values_per_px(self._network, torch.device("cpu"))
            output_bytes = _OUTPUT_COPIES * 4 * self.channels * self.scale**2
            self._bytes_per_px = _ACTIVATION_MARGIN * size_bytes * peak + output_bytes
        return self._bytes_per_px

    def _opened(self, runtime: Any) -> Any:
        """The compiled network, from `folder` where it lies there."""
        folder = self._folder
        if folder is None or not self._sha256:
            return self._converted(runtime)
        key = self._key(runtime)
        kept = openvino_cache.read(folder, key)
        if kept is not None:
            with suppress(RuntimeError):  # what OpenVINO raises for content that it does not take
                return runtime.import_model(kept, "CPU", _settings(self.precision))
        compiled = self._converted(runtime)
        with suppress(RuntimeError):  # what it cannot write is compiled the next time, too
            openvino_cache.write(folder, key, compiled.export_model().getvalue())
        return compiled

    def _key(self, runtime: Any) -> str:
        """Everything that the compiled network depends on."""
        facts = {
            "format": FORMAT,
            "weights": self._sha256,
            "network": type(self._network).__name__,
            "config": asdict(self._network.config),  # pyright: ignore[reportArgumentType]
            "precision": self.precision,
            "openvino": runtime.get_versions("CPU")["CPU"].build_number,
            "torch": torch.__version__,
            "processor": runtime.get_property("CPU", "FULL_DEVICE_NAME"),
            "capabilities": sorted(runtime.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        }
        return json.dumps(facts, sort_keys=True)

    def _converted(self, runtime: Any) -> Any:
        """Raises DeviceError where the graph is not the network: tracing sees one example only."""
        graph = openvino_graph.convert(self._network)
        exact = _compiled(runtime, graph, "fp32")
        config: Any = self._network.config
        height, width = (units * config.size_multiple for units in _COMPARED_UNITS)
        rng = np.random.default_rng(0)
        window = rng.random((1, height, width, self.channels), dtype=np.float32)
        with torch.inference_mode():
            y: Tensor = self._network(torch.from_numpy(window).permute(0, 3, 1, 2))
        expected, result = y.permute(0, 2, 3, 1).numpy(), exact(window)[0]
        if result.shape != expected.shape or not _agree(result, expected):
            raise DeviceError("OpenVINO does not give what torch gives; try --engine torch")
        return exact if self.precision == "fp32" else _compiled(runtime, graph, self.precision)


def _agree(result: FloatArray, expected: FloatArray) -> bool:
    """Where torch gives numbers; what is none is for those to judge who run the network."""
    numbers = np.isfinite(expected)
    result, expected = result[numbers], expected[numbers]
    bound = _LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
    return bool((np.abs(result - expected) <= bound).all())


@cache
def _runtime() -> Any:
    """OpenVINO itself; one for the process."""
    if not devices.has_openvino():
        raise DeviceError(f"OpenVINO is not installed: {EXTRA}, or try --engine torch")
    try:
        return openvino_quietly.load().Core()
    except Exception as error:  # whatever a broken installation raises
        raise DeviceError(
            f"OpenVINO is installed but does not load ({_in_one_line(error)}): try {EXTRA}, or "
            f"--engine torch"
        ) from error


def _compiled(runtime: Any, graph: openvino_graph.Graph, precision: str) -> Any:
    """Raises DeviceError where the CPU cannot compute in `precision`."""
    model = runtime.read_model(graph.operations, graph.constants)
    compiled = runtime.compile_model(model, "CPU", _settings(precision))
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != _HINTS[precision]:
        raise DeviceError(f"OpenVINO has no {precision} on this CPU; try --engine torch")
    return compiled


def _settings(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Threads that cannot move wait for whoever else is on their core.
        "ENABLE_CPU_PINNING": False,
        "CPU_RUNTIME_CACHE_CAPACITY": _KEPT_KERNELS,
    }


def _in_one_line(error: BaseException) -> str:
    """The last line, which says most of OpenVINO's messages and is the only one of others'."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
