"""Which engine runs a network: what the user chose, else the fastest one that can."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from waifu4x import devices
from waifu4x.engines import NetworkEngine
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, UsageError


def pick_device(engine: str, device: str) -> torch.device:
    """As `devices.pick`, for what `devices.wished_engine` gave: OpenVINO's ``auto`` is the CPU.

    Raises:
        UsageError: OpenVINO is asked to run on another device.
    """
    if engine != "openvino":
        return devices.pick(device)
    picked = torch.device("cpu") if device == "auto" else devices.pick(device)
    if picked.type != "cpu":
        raise UsageError(f"OpenVINO runs on the CPU here, not on {picked}: use --device cpu")
    return picked


def open_engine(
    network: nn.Module,
    *,
    engine: str,
    device: torch.device,
    precision: str = "auto",
    sha256: str = "",
    folder: Path | None = None,
) -> tuple[NetworkEngine, str]:
    """The engine for a network, and why it is not the one that ``auto`` would have been.

    Args:
        network: as `checkpoints.load` gives it.
        engine: what `devices.wished_engine` gave; ``auto`` is OpenVINO where it is installed and
            can run the network on the CPU, else torch.
        device: from `pick_device`.
        precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``; see `devices.pick_dtype`.
        sha256: of the weights.
        folder: where OpenVINO's conversions are kept; see `OpenVINOEngine`.

    Returns:
        The engine and a sentence, empty when there is nothing to say.

    Raises:
        UsageError: see `devices.pick_dtype`.
        DeviceError: the engine that was chosen is not installed, or cannot run the network.
    """
    dtype = devices.pick_dtype(precision, device)
    may_be_openvino = device.type == "cpu" and engine != "torch"
    note = ""
    if engine == "openvino" or (may_be_openvino and devices.has_openvino()):
        try:
            name = devices.precision_name(dtype)
            made = OpenVINOEngine(network, precision=name, sha256=sha256, folder=folder)
            return made, ""
        except DeviceError as error:
            if engine == "openvino":
                raise
            note = f"torch ran the network: {str(error).partition('; try')[0]}"
    return TorchEngine(network, device=device, dtype=dtype), note
