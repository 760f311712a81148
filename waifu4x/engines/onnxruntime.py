"""Runs a network, or the graph of an ``.onnx`` file, with ONNX Runtime: an extra.

Networks are converted once, compared with torch and kept; a file's graph is run as it is. On two
cores it is as fast as OpenVINO in fp32; what it is there for is graphs that are no network of ours,
and the accelerators that torch does not know.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x import devices
from waifu4x.engines import (
    FloatArray,
    Results,
    one_by_one,
    onnx_graph,
    onnx_windows,
    onnxruntime_quietly,
    openvino_cache,
)
from waifu4x.engines.onnx_windows import Form
from waifu4x.errors import DeviceError, NumericsError
from waifu4x.model_files.given_files import printable

EXTRA = "pip install 'waifu4x[onnx]'"

FORMAT = 1
"""To be raised when the same network is converted in another way."""


class Provider(NamedTuple):
    """What computes: an "execution provider" of ONNX Runtime."""

    name: str
    label: str
    settings: dict[str, str]


CPU = Provider("CPUExecutionProvider", "the CPU", {})
# Its own default is TF32, with 10 bits of mantissa, and trying every algorithm for every size.
_CUDA = Provider(
    "CUDAExecutionProvider",
    "CUDA",
    {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    },
)
# The older format, and Apple's neural engine, compute in fp16.
_COREML = Provider(
    "CoreMLExecutionProvider",
    "CoreML",
    {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
)
_DIRECTML = Provider("DmlExecutionProvider", "DirectML", {})
_ACCELERATORS = (_COREML, _DIRECTML)
_OF_DEVICE = {"cpu": CPU, "cuda": _CUDA, "mps": _COREML}

# Fitted to seven networks: they took 0.3 to 1.1 of what it says.
_ACTIVATION_MARGIN = 1.3
_OUTPUT_COPIES = 4
_UNKNOWN_BYTES_PER_PX = 8192.0
_PROFILED_UNITS = 8
# A window to compare at before a conversion is trusted: neither square nor of the size traced.
_COMPARED_UNITS = (16, 24)
_LARGEST_DIFFERENCE = 1e-3
# What says nothing that the rest does not: kinds of errors, and lines of its source code.
_PREAMBLE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model failed:|\S*\.(cc|h):\d+ (\S+::.*\) )?"
)


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """The facts of a graph; see `waifu4x.networks.NetworkConfig`."""

    scale: int
    channels_in: int
    pre_upsampled: bool
    size_multiple: int
    receptive_radius_px: int
    precision: str
    """``fp32``, ``fp16`` or ``int8``: the graph's own, which nobody can change."""
    form: Form


class OnnxNetwork(nn.Module):
    """The graph of an ``.onnx`` file as a network: it has no parameters that torch knows of."""

    def __init__(self, graph: bytes, config: GraphConfig) -> None:
        super().__init__()
        self.graph = graph
        self.config = config
        self._engine: ONNXRuntimeEngine | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) in [0, 1] -> (N, C, s·h, s·w) float32, by ONNX Runtime on the CPU."""
        if self._engine is None:
            self._engine = ONNXRuntimeEngine(self)
        y = self._engine.run(x.permute(0, 2, 3, 1).float().cpu().numpy())
        return torch.from_numpy(y).permute(0, 3, 1, 2).to(x.device)


class ONNXRuntimeEngine:
    """One network or graph by one provider; networks in fp32, graphs in their own precision."""

    name = "onnxruntime"

    def __init__(
        self,
        network: nn.Module,
        *,
        provider: Provider = CPU,
        sha256: str = "",
        folder: Path | None = None,
    ) -> None:
        """Convert the network, or take that from `folder`; compare what it gives.

        Args:
            network: an `OnnxNetwork`, or one on the CPU in float32.
            sha256: of the weights.
            folder: where converted networks are kept; without it, or sha256, all is done anew.

        Raises:
            DeviceError: a package is missing, or the provider cannot run the network.
        """
        config: Any = network.config
        self.scale: int = config.scale
        self.channels: int = config.channels_in
        self.precision = config.precision if isinstance(network, OnnxNetwork) else "fp32"
        self._network = network.eval()
        self._provider = provider
        self._form = config.form if isinstance(network, OnnxNetwork) else Form()
        self._bytes_per_px: float | None = None
        try:
            self._graph, self._session = self._opened(sha256, folder)
        except DeviceError:
            raise
        except Exception as error:  # every kind: of tracing, of ONNX Runtime, of its bindings
            raise DeviceError(
                f"ONNX Runtime cannot run this network on {provider.label} ({in_one_line(error)})"
            ) from error

    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`; one after the other, as files are often made for one picture alone.

        Raises:
            MemoryError: the memory is full.
            NumericsError: a file's graph gives NaN or infinity, and not in fp32.
            DeviceError: it fails otherwise.
        """
        count, height, width, channels = batch.shape
        scale = self.scale
        result = np.empty((count, height * scale, width * scale, channels), dtype=np.float32)
        try:
            for number, window in enumerate(batch):
                made = onnx_windows.run(self._session, window, form=self._form, scale=scale)
                result[number] = made
        except Exception as error:  # ONNX Runtime's are of no common class
            if devices.is_out_of_memory(error):
                raise MemoryError(in_one_line(error)) from error
            raise DeviceError(
                f"ONNX Runtime failed at a window of {width}×{height} px ({in_one_line(error)})"
            ) from error
        if self.precision != "fp32" and not np.isfinite(result).all():
            raise NumericsError(
                f"the .onnx file gives NaN or infinity for this picture in {self.precision}, its "
                f"own precision; try another model"
            )
        return result

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """See `Engine.stream`."""
        return one_by_one(self.run, batches)

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`."""
        if self._bytes_per_px is None:
            output_bytes = _OUTPUT_COPIES * 4 * self.channels * self.scale**2
            self._bytes_per_px = _ACTIVATION_MARGIN * self._peak_bytes_per_px() + output_bytes
        return self._bytes_per_px

    def _peak_bytes_per_px(self) -> float:
        """The largest input plus output of any node, as ONNX Runtime's own profile says."""
        with tempfile.TemporaryDirectory(prefix="waifu4x-") as folder:
            session = open_session(self._graph, profile=Path(folder, "nodes"))
            window = self._window(_PROFILED_UNITS)
            onnx_windows.run(session, window, form=self._form, scale=self.scale)
            events = json.loads(Path(session.end_profiling()).read_bytes())
        form, shown = self._form, window.shape
        pixels = (form.height_px or shown[0]) * (form.width_px or shown[1])
        nodes = [event.get("args", {}) for event in events]
        sizes = [int(n.get("activation_size", 0)) + int(n.get("output_size", 0)) for n in nodes]
        return max(sizes, default=0) / pixels / form.batch or _UNKNOWN_BYTES_PER_PX

    def _opened(self, sha256: str, folder: Path | None) -> tuple[bytes, Any]:
        """The graph and its session, from `folder` where the graph lies there."""
        if isinstance(self._network, OnnxNetwork):
            session = open_session(self._network.graph, provider=self._provider)
            if self._provider != CPU:
                self._compare(session, open_session(self._network.graph))
            return self._network.graph, session
        key = self._key(sha256)
        kept = openvino_cache.read(folder, key) if folder and sha256 else None
        if kept is not None:
            try:
                return kept, open_session(kept, provider=self._provider)
            except Exception:  # what is in the file is none of ours, whatever it is
                kept = None
        graph = onnx_graph.convert(self._network.to("cpu"))
        session = open_session(graph, provider=self._provider)
        self._compare(session, None)
        if folder and sha256:
            openvino_cache.write(folder, key, graph)
        return graph, session

    def _key(self, sha256: str) -> str:
        """Everything that the graph, and its having been compared, depend on."""
        facts = {
            "engine": self.name,
            "format": FORMAT,
            "weights": sha256,
            "network": type(self._network).__name__,
            "config": asdict(self._network.config),  # pyright: ignore[reportArgumentType]
            "provider": self._provider,
            "onnxruntime": runtime().__version__,
            "torch": torch.__version__,
        }
        return json.dumps(facts, sort_keys=True)

    def _compare(self, session: Any, exact: Any) -> None:
        """Raises DeviceError where the session gives other numbers than `exact`, or than torch."""
        window = self._window(*_COMPARED_UNITS)
        result = onnx_windows.run(session, window, form=self._form, scale=self.scale)
        if exact is not None:
            expected = onnx_windows.run(exact, window, form=self._form, scale=self.scale)
        else:
            with torch.inference_mode():
                y: Tensor = self._network(torch.from_numpy(window).permute(2, 0, 1)[None])
            expected = y[0].permute(1, 2, 0).numpy()
        numbers = np.isfinite(expected)
        bound = _LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected[numbers]).max(initial=0.0)))
        if not (np.abs(result - expected)[numbers] <= bound).all():
            raise DeviceError(f"{self._provider.label} does not give what others give")

    def _window(self, units: int, units_wide: int | None = None) -> FloatArray:
        """(h, w, C) of noise, in multiples of what the network takes."""
        config: Any = self._network.config
        height, width = (n * config.size_multiple for n in (units, units_wide or units))
        rng = np.random.default_rng(0)
        return rng.random((height, width, self.channels), dtype=np.float32)


def open_best(
    network: nn.Module,
    *,
    device: torch.device,
    accelerate: bool = False,
    sha256: str = "",
    folder: Path | None = None,
) -> tuple[ONNXRuntimeEngine, str]:
    """The engine for a network or graph, and what is to be said about it; see `ONNXRuntimeEngine`.

    Args:
        device: its provider must be there: CUDA, CoreML for MPS, or the CPU.
        accelerate: where that is the CPU, CoreML and DirectML are tried first.

    Raises:
        DeviceError: a package is missing, or that provider is, or it cannot run the network.
    """
    here = runtime().get_available_providers()
    provider = _OF_DEVICE.get(device.type)
    if provider is None or provider.name not in here:
        label = provider.label if provider else device.type
        raise DeviceError(f"this ONNX Runtime has no {label}: use --device cpu")
    if provider is _CUDA:
        number = str(device.index or 0)
        provider = provider._replace(settings={**provider.settings, "device_id": number})
    failures: list[str] = []
    for accelerator in _ACCELERATORS if accelerate and provider is CPU else ():
        if accelerator.name in here:
            try:
                made = ONNXRuntimeEngine(
                    network, provider=accelerator, sha256=sha256, folder=folder
                )
                return made, f"{accelerator.label} ran the network, not the CPU"
            except DeviceError as error:
                failures.append(f"the CPU ran the network: {error}")
    made = ONNXRuntimeEngine(network, provider=provider, sha256=sha256, folder=folder)
    return made, failures[0] if failures else ""


def open_session(
    graph: bytes,
    *,
    provider: Provider = CPU,
    profile: Path | None = None,
    capped: bool = False,
) -> Any:
    """A session of ONNX Runtime: it says nothing by itself, and keeps no memory between runs.

    `profile` is how the file begins that it writes of its nodes; with `capped` it may take
    PROBE_BYTES of memory in all.

    Raises whatever ONNX Runtime raises, also where it would take another provider instead.
    """
    options = runtime().SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop take the time of those that decode and encode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # It would keep the most that was ever needed; and sizes change, so that plans are of no use.
    options.enable_cpu_mem_arena = capped
    options.enable_mem_pattern = False
    if capped:
        _cap_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    wanted = [(provider.name, provider.settings), *([CPU.name] if provider != CPU else [])]
    # It would print that it takes the CPU instead.
    session = runtime().InferenceSession(graph, options, providers=wanted, enable_fallback=0)
    if session.get_providers()[0] != provider.name:
        raise RuntimeError("it could not be started")
    return session


PROBE_BYTES = 4 << 30
"""What an unknown graph may take while it is looked at, at a few dozen pixels a side."""


@cache
def _cap_memory() -> None:
    """Give the process an allocator that refuses more than PROBE_BYTES to sessions that use it."""
    library = runtime()
    place = library.OrtMemoryInfo(
        "Cpu", library.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, library.OrtMemType.DEFAULT
    )
    # Extended by no more than is asked for.
    limits = {"max_mem": PROBE_BYTES, "arena_extend_strategy": 1}
    library.create_and_register_allocator(place, library.OrtArenaCfg(limits))


@cache
def runtime() -> Any:
    """ONNX Runtime itself. Raises DeviceError where it, or the package onnx, is missing."""
    if not devices.has_onnxruntime():
        raise DeviceError(f"ONNX Runtime is not installed: {EXTRA}, or try --engine torch")
    try:
        return onnxruntime_quietly.load()
    except Exception as error:  # whatever a broken installation raises
        raise DeviceError(
            f"ONNX Runtime is installed but does not load ({in_one_line(error)}): try {EXTRA}, or "
            f"--engine torch"
        ) from error


def in_one_line(error: BaseException) -> str:
    """What ONNX Runtime, or whoever failed, says first."""
    text = _PREAMBLE.sub("", str(error)).strip()
    return printable(text.partition("\n")[0], limit=200) or type(error).__name__
