"""Which engine runs a network: what the user chose, else the fastest one that can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from waifu4x import devices
from waifu4x.engines import Engine, NetworkEngine, Opened, openvino_int8
from waifu4x.engines.cuda import CUDAEngine
from waifu4x.engines.onnxruntime import OnnxNetwork, open_best
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.engines.spread import SpreadEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, UsageError
from waifu4x.model_files.community import CommunityNetwork

_CPU = torch.device("cpu")


def pick_device(engine: str, device: str) -> torch.device:
    """As `devices.pick`, for what `devices.wished_engine` gave, with Intel GPUs as OpenVINO's.

    ONNX Runtime's ``auto`` is the CPU.

    Raises:
        UsageError: an engine is asked to run on another's device.
    """
    if device.partition(":")[0] == "xpu":
        if engine not in ("auto", "openvino"):
            raise UsageError(f"Intel GPUs are OpenVINO's here, not {engine}'s: leave out --engine")
        return devices.pick_xpu(device)
    if device == "auto" and engine != "torch":
        picked = devices.pick("auto") if engine == "auto" else torch.device("cpu")
        if picked.type == "cpu" and engine != "onnxruntime":
            return next(iter(devices.find_xpus()), picked)
        return picked
    numbered = device.startswith("gpu:") and engine in ("auto", "openvino")
    # Where no other GPU is, the number is that of an Intel one.
    if numbered and devices.pick("auto").type == "cpu" and devices.find_xpus():
        return devices.pick_xpu(device.replace("gpu", "xpu", 1))
    picked = devices.pick(device)
    if picked.type != "cpu" and engine == "openvino":
        raise UsageError(f"OpenVINO runs on the CPU here, not on {picked}: use --device cpu")
    return picked


def pick_devices(engine: str, device: str) -> tuple[torch.device, ...]:
    """As `pick_device`, and several that share the work where `device` names them with commas.

    Raises:
        UsageError: see `devices.pick_all`; or the engine does not run on several.
    """
    if "," not in device:
        return (pick_device(engine, device),)
    if engine in ("openvino", "onnxruntime"):
        raise UsageError(f"{engine} runs on one device, not on {device}: use --engine torch")
    return devices.pick_all(device)


def open_engine(
    network: nn.Module,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    sha256: str = "",
    folder: Path | None = None,
) -> Opened:
    """The engine for a network, on the devices that were chosen or found.

    Args:
        network: as `checkpoints.load` or `onnx_files.load` gives it.
        engine: one of `devices.ENGINES`; ``auto`` is what the environment says, else OpenVINO where
            it is installed and can run the network on the device, else torch.
        device: see `devices.pick_all` and `devices.pick_xpu`; ``auto`` is CUDA, else MPS, else an
            Intel GPU where OpenVINO runs the network, else the CPU.
        precision: see `devices.pick_dtype`; or ``int8`` (`openvino_int8`), never picked by itself.
        compiled: see `CUDAEngine`.
        sha256, folder: of the weights; where conversions are kept, see `OpenVINOEngine`.

    Raises:
        UsageError: choices that make no sense together.
        DeviceError: the engine or device that was chosen is not here, or cannot run the network.
    """
    wish = _wish(network, engine, device=device, precision=precision, compiled=compiled)
    if getattr(network.config, "any_scale", False):
        return _open_any_scale(network, wish, device=device, precision=precision, compiled=compiled)
    places = pick_devices(wish, device)
    first = places[0]
    runs_onnx = wish == "onnxruntime" or isinstance(network, OnnxNetwork)
    if first.type == "xpu" and device == "auto" and (runs_onnx or precision in ("bf16", "int8")):
        # Nobody chose it, and it cannot do what was chosen.
        first, places = _CPU, (_CPU,)
    _check_cuda("ONNX Runtime" if runs_onnx else first.type, places, compiled=compiled)
    if runs_onnx:
        _check_onnxruntime(network, engine=wish, precision=precision)
        # Where nobody chose the device, it may be an accelerator that torch does not know.
        how = {"accelerate": device == "auto", "sha256": sha256, "folder": folder}
        made, note = open_best(network, device=first, **how)
        return Opened(made, places, note)
    if precision == "int8":
        _check_int8(first, engine=wish)
    if first.type == "cuda":
        return Opened(_open_cuda(network, places, precision=precision, compiled=compiled), places)
    note = ""
    if first.type == "xpu":
        try:
            return _open_openvino(network, first, precision=precision)
        except DeviceError as error:
            if device != "auto":
                raise
            first, note = _CPU, f"the CPU ran the network: {_reason(error)}"
    kept = {"sha256": sha256, "folder": folder}
    made = _open_beside_cuda(network, first, engine=wish, precision=precision, **kept)
    return made._replace(note="; ".join(filter(None, [note, made.note])))


def open_exact(network: nn.Module, device: torch.device) -> Engine:
    """The engine that computes again what was not finite in another number format: in fp32, by
    torch, which has no Intel GPUs here."""
    place = _CPU if device.type == "xpu" else torch.device(str(device))
    return TorchEngine(network, device=place, dtype=torch.float32)


def _wish(network: nn.Module, engine: str, *, device: str, precision: str, compiled: bool) -> str:
    """The engine that was chosen here or by the environment; for a network of others torch.

    A graph is made at one size and compared at another, which says nothing about others where
    windows are counted: SwinIR's agreed, and failed at the next size. Raises DeviceError where
    something else than torch was chosen for such a network.
    """
    wish = devices.wished_engine(engine)
    if not isinstance(network, CommunityNetwork):
        return wish
    for is_asked, other, cure in (
        (wish in ("openvino", "onnxruntime"), wish, "--engine torch"),
        (precision == "int8", "int8", "--precision auto"),
        (device.partition(":")[0] == "xpu", "OpenVINO on Intel GPUs", "--device cpu"),
        (compiled, "--compile", "without it"),
    ):
        if is_asked:
            raise DeviceError(f"{other} is not for networks that spandrel builds: try {cure}")
    return "torch"


def _open_any_scale(
    network: nn.Module, engine: str, *, device: str, precision: str, compiled: bool
) -> Opened:
    """By torch, on one device: what other engines run, and what is compiled, has one scale."""
    why = "this network enlarges by any factor"
    for is_asked, other, cure in (
        (engine in ("openvino", "onnxruntime"), engine, "--engine torch"),
        (precision == "int8", "int8", "--precision auto"),
        (device.partition(":")[0] == "xpu", "OpenVINO on Intel GPUs", "--device cpu"),
    ):
        if is_asked:
            raise DeviceError(f"{other} is for networks of one scale, and {why}: try {cure}")
    if compiled:
        raise UsageError(f"--compile is for networks of one scale, and {why}: leave it out")
    if "," in device:
        raise UsageError(f"{why}, which it does on one device: name one with --device")
    place = pick_device("torch", device)
    note = ""
    if engine == "auto" and place.type == "cpu" and devices.has_openvino():
        note = f"torch ran the network: OpenVINO runs those of one scale, and {why}"
    dtype = devices.pick_dtype(precision, place)
    return Opened(TorchEngine(network, device=place, dtype=dtype), (place,), note)


def _reason(error: DeviceError) -> str:
    return str(error).partition("; try")[0]


def _open_beside_cuda(
    network: nn.Module,
    place: torch.device,
    *,
    engine: str,
    precision: str,
    sha256: str,
    folder: Path | None,
) -> Opened:
    """By OpenVINO or torch, on the CPU or an Apple GPU."""
    note = ""
    may_be_openvino = place.type == "cpu" and engine != "torch"
    if engine == "openvino" or (may_be_openvino and devices.has_openvino()):
        try:
            return _open_openvino(network, place, precision=precision, sha256=sha256, folder=folder)
        except DeviceError as error:
            if engine == "openvino" or precision == "int8":
                raise
            note = f"torch ran the network: {_reason(error)}"
    dtype = devices.pick_dtype(precision, place)
    return Opened(TorchEngine(network, device=place, dtype=dtype), (place,), note)


def _open_openvino(
    network: nn.Module,
    place: torch.device,
    *,
    precision: str,
    sha256: str = "",
    folder: Path | None = None,
) -> Opened:
    if precision != "int8":
        precision = devices.precision_name(devices.pick_dtype(precision, place))
    made = OpenVINOEngine(network, precision=precision, device=place, sha256=sha256, folder=folder)
    return Opened(made, (place,), made.note)


def _check_int8(place: torch.device, *, engine: str) -> None:
    """Raises UsageError, DeviceError: int8 was chosen and cannot be, because of what else was."""
    if engine == "torch":
        raise UsageError("int8 is OpenVINO's, not torch's: leave out --engine torch")
    if place.type != "cpu":
        raise UsageError(f"int8 runs on the CPU, not on {place}: use --device cpu")
    openvino_int8.check()


def _check_cuda(place: str, places: Sequence[torch.device], *, compiled: bool) -> None:
    """Raises UsageError where what was chosen is CUDA's, by PyTorch, and it runs elsewhere."""
    if place != "cuda" and (compiled or len(places) > 1):
        if compiled:
            raise UsageError(f"--compile makes CUDA faster, and not {place}: leave it out")
        raise UsageError(f"{place} runs on one device: name one with --device")


def _open_cuda(
    network: nn.Module, places: Sequence[torch.device], *, precision: str, compiled: bool
) -> NetworkEngine:
    """On several devices every one has a copy of the network, and all compute in one precision."""
    dtypes = {devices.pick_dtype(precision, device) for device in places}
    # Only ``auto`` gives several, and there is no CUDA device without fp16.
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float16
    engines = [
        CUDAEngine(network, device=device, dtype=dtype, compiled=compiled) for device in places
    ]
    return engines[0] if len(engines) == 1 else SpreadEngine(engines)


def _check_onnxruntime(network: nn.Module, *, engine: str, precision: str) -> None:
    """Raises UsageError where the user chose what cannot be."""
    if isinstance(network, OnnxNetwork):
        if engine not in ("auto", "onnxruntime"):
            raise UsageError(
                f"{engine} cannot run an .onnx file, only ONNX Runtime can: --engine onnxruntime"
            )
        if precision not in ("auto", network.config.precision):
            raise UsageError(
                f"this .onnx file computes in {network.config.precision}, and in nothing else: "
                f"leave --precision out"
            )
    elif precision not in ("auto", "fp32"):
        raise UsageError(f"ONNX Runtime runs models in fp32, not {precision}: use --precision fp32")
