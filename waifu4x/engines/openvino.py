"""Converts a network for OpenVINO, an extra: faster than PyTorch on CPUs, and for Intel's GPUs.

What is converted is kept (`openvino_cache`), compared with the network first, and run by
`openvino_compiled`.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x.engines import (
    FloatArray,
    openvino_cache,
    openvino_gpus,
    openvino_graph,
    openvino_int8,
)
from waifu4x.engines.openvino_compiled import (
    FORMAT,
    CompiledNetwork,
    hint,
    in_one_line,
    runtime,
    settings,
)
from waifu4x.engines.torch import peak_values_per_px
from waifu4x.errors import DeviceError

# Fitted to seven networks in fp32 and bf16: they took 0.6 to 1.2 of what it says.
_ACTIVATION_MARGIN = 1.7
_OUTPUT_COPIES = 5
# A window to compare at before a conversion is trusted: neither square nor of the size traced.
_COMPARED_UNITS = (16, 24)
_LARGEST_DIFFERENCE = 1e-3
# In fp16 some differ more; by so much, on average, differ those that have nothing in common.
_MEAN_DIFFERENCE_FP16 = 0.02


class OpenVINOEngine(CompiledNetwork):
    """One network on the CPU, its convolutions in fp32, bf16 or int8; or on an Intel GPU.

    Weights, input, output and what torch computes in float32 at the network's end stay in float32.

    Attributes:
        note: how a conversion that changes more than rounding does went; empty where there was none
            of that kind.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str,
        device: torch.device | None = None,
        sha256: str = "",
        folder: Path | None = None,
    ) -> None:
        """Convert and compile the network, or take that from `folder`.

        Args:
            network: on the CPU, float32.
            precision: ``fp32``, ``bf16`` or ``int8`` (see `openvino_int8`); on a GPU ``fp32`` or
                ``fp16``.
            device: the CPU, or ``xpu:N``, which is OpenVINO's ``GPU.N``.
            sha256: of the weights.
            folder: where compiled networks are kept; without it, or sha256, all is done anew. So it
                is for a GPU, because what is compiled depends on its driver.

        Raises:
            DeviceError: OpenVINO is not installed, or cannot run this network like this.
        """
        config: Any = network.config
        self.note = ""
        on_gpu = device is not None and device.type == "xpu"
        self._place = openvino_gpus.name(device.index or 0) if device and on_gpu else "CPU"
        self._network = network.eval().to("cpu")
        self._multiple: int = config.size_multiple
        self._sha256 = sha256
        self._folder = None if on_gpu else folder
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
                f"{self._advice}"
            ) from error

    @property
    def _advice(self) -> str:
        if self._place != "CPU":
            return "try --device cpu"
        return "try --precision bf16" if self.precision == "int8" else "try --engine torch"

    def _estimated_bytes_per_px(self) -> float:
        # Beside int8 there are sums in bf16, or in fp32 where the CPU has no bf16.
        size_bytes = 4 if hint(self.precision) == "f32" else 2
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
                return core.import_model(kept, "CPU", self._settings(self.precision))
        compiled = self._converted(core)
        with suppress(RuntimeError):  # what it cannot write is compiled the next time, too
            openvino_cache.write(folder, key, compiled.export_model().getvalue())
        return compiled

    def key(self, core: Any) -> str:
        """Everything that the compiled network depends on."""
        facts = {
            **({"int8": openvino_int8.facts()} if self.precision == "int8" else {}),
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

        def read() -> Any:
            return core.read_model(graph.operations, graph.constants)

        def compile(model: Any, precision: str) -> Any:
            return self._compiled(core, model, precision)

        # What a GPU compiles takes long: nothing is compiled for it but what will run.
        compared = self.precision if self._place != "CPU" else "fp32"
        exact = compile(read(), compared)
        self._compare(exact, compared)
        if self.precision != "int8":
            return exact if self.precision == compared else compile(read(), self.precision)
        started = time.perf_counter()
        made = openvino_int8.convert(read, compile, channels=self.channels, multiple=self._multiple)
        self.note = (
            f"converted to int8 in {time.perf_counter() - started:.1f} s: PSNR to fp32 is "
            f"{made.agreement_db:.1f} dB on the calibration picture"
        )
        return made.compiled

    def _compare(self, compiled: Any, precision: str) -> None:
        height, width = (units * self._multiple for units in _COMPARED_UNITS)
        rng = np.random.default_rng(0)
        window = rng.random((1, height, width, self.channels), dtype=np.float32)
        with torch.inference_mode():
            y: Tensor = self._network(torch.from_numpy(window).permute(0, 3, 1, 2))
        expected, result = y.permute(0, 2, 3, 1).numpy(), compiled(window)[0]
        if result.shape != expected.shape or not _agree(result, expected, precision):
            raise DeviceError(f"OpenVINO does not give what torch gives; {self._advice}")

    def _compiled(self, core: Any, model: Any, precision: str) -> Any:
        """Raises DeviceError where the device cannot compute in `precision`."""
        compiled = core.compile_model(model, self._place, self._settings(precision))
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint(precision):
            where = "this CPU" if self._place == "CPU" else self._place
            raise DeviceError(f"OpenVINO has no {precision} on {where}; {self._advice}")
        return compiled

    def _settings(self, precision: str) -> dict[str, Any]:
        return settings(precision, threads=torch.get_num_threads(), place=self._place)


def _agree(result: FloatArray, expected: FloatArray, precision: str) -> bool:
    """Where torch gives numbers; what is none is for those to judge who run the network."""
    numbers = np.isfinite(expected)
    if not numbers.any():
        return True
    size = max(1.0, float(np.abs(expected[numbers]).max()))
    if precision == "fp32":
        difference = np.abs(result[numbers] - expected[numbers])
        return bool((difference <= _LARGEST_DIFFERENCE * size).all())
    numbers &= np.isfinite(result)  # what overflows in fp16 is computed again in fp32
    difference = np.abs(result[numbers] - expected[numbers])
    return difference.size > 0 and float(difference.mean()) <= _MEAN_DIFFERENCE_FP16 * size
