"""Converts a network for OpenVINO, an extra, which is faster than PyTorch on CPUs.

What is converted is kept (`openvino_cache`), compared with the network first, and run by
`openvino_compiled`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x.engines import FloatArray, openvino_cache, openvino_graph
from waifu4x.engines.openvino_compiled import (
    HINTS,
    CompiledNetwork,
    in_one_line,
    runtime,
    settings,
)
from waifu4x.engines.torch import peak_values_per_px
from waifu4x.errors import DeviceError

FORMAT = 1
"""To be raised when the same network is converted in another way."""

# Fitted to seven networks in fp32 and bf16: they took 0.6 to 1.2 of what it says.
_ACTIVATION_MARGIN = 1.7
_OUTPUT_COPIES = 6
# A window to compare at before a conversion is trusted: neither square nor of the size traced.
_COMPARED_UNITS = (16, 24)
_LARGEST_DIFFERENCE = 1e-3


class OpenVINOEngine(CompiledNetwork):
    """One network on the CPU, its convolutions in fp32 or bf16.

    Weights, input, output and what torch computes in float32 at the network's end stay in float32.
    """

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
        self._network = network.eval().to("cpu")
        self._sha256 = sha256
        self._folder = folder
        super().__init__(
            self._prepared,
            scale=config.scale,
            channels=config.channels_in,
            precision=precision,
            bytes_per_px=self._estimated_bytes_per_px,
        )

    def _prepared(self) -> Any:
        core = runtime()
        try:
            return self._opened(core).create_infer_request()
        except DeviceError:
            raise
        except Exception as error:  # every kind: of tracing, of OpenVINO, of its bindings
            raise DeviceError(
                f"OpenVINO cannot run this network in {self.precision} ({in_one_line(error)}); "
                f"try --engine torch"
            ) from error

    def _estimated_bytes_per_px(self) -> float:
        size_bytes = 2 if self.precision == "bf16" else 4
        peak = peak_values_per_px(self._network, torch.device("cpu"))
        output_bytes = _OUTPUT_COPIES * 4 * self.channels * self.scale**2
        return _ACTIVATION_MARGIN * size_bytes * peak + output_bytes

    def _opened(self, core: Any) -> Any:
        """The compiled network, from `folder` where it lies there."""
        folder = self._folder
        if folder is None or not self._sha256:
            return self._converted(core)
        key = self.key(core)
        kept = openvino_cache.read(folder, key)
        if kept is not None:
            with suppress(RuntimeError):  # what OpenVINO raises for content that it does not take
                return core.import_model(
                    kept, "CPU", settings(self.precision, threads=torch.get_num_threads())
                )
        compiled = self._converted(core)
        with suppress(RuntimeError):  # what it cannot write is compiled the next time, too
            openvino_cache.write(folder, key, compiled.export_model().getvalue())
        return compiled

    def key(self, core: Any) -> str:
        """Everything that the compiled network depends on."""
        facts = {
            "format": FORMAT,
            "weights": self._sha256,
            "network": type(self._network).__name__,
            "config": asdict(self._network.config),  # pyright: ignore[reportArgumentType]
            "precision": self.precision,
            "openvino": core.get_versions("CPU")["CPU"].build_number,
            "torch": torch.__version__,
            "processor": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        }
        return json.dumps(facts, sort_keys=True)

    def _converted(self, core: Any) -> Any:
        """Raises DeviceError where the graph is not the network: tracing sees one example only."""
        graph = openvino_graph.convert(self._network)
        exact = _compiled(core, graph, "fp32")
        config: Any = self._network.config
        height, width = (units * config.size_multiple for units in _COMPARED_UNITS)
        rng = np.random.default_rng(0)
        window = rng.random((1, height, width, self.channels), dtype=np.float32)
        with torch.inference_mode():
            y: Tensor = self._network(torch.from_numpy(window).permute(0, 3, 1, 2))
        expected, result = y.permute(0, 2, 3, 1).numpy(), exact(window)[0]
        if result.shape != expected.shape or not _agree(result, expected):
            raise DeviceError("OpenVINO does not give what torch gives; try --engine torch")
        return exact if self.precision == "fp32" else _compiled(core, graph, self.precision)


def _agree(result: FloatArray, expected: FloatArray) -> bool:
    """Where torch gives numbers; what is none is for those to judge who run the network."""
    numbers = np.isfinite(expected)
    result, expected = result[numbers], expected[numbers]
    bound = _LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max(initial=0.0)))
    return bool((np.abs(result - expected) <= bound).all())


def _compiled(core: Any, graph: openvino_graph.Graph, precision: str) -> Any:
    """Raises DeviceError where the CPU cannot compute in `precision`."""
    model = core.read_model(graph.operations, graph.constants)
    compiled = core.compile_model(
        model, "CPU", settings(precision, threads=torch.get_num_threads())
    )
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != HINTS[precision]:
        raise DeviceError(f"OpenVINO has no {precision} on this CPU; try --engine torch")
    return compiled
