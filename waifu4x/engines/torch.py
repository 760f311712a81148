"""Runs a network with PyTorch: channels last, convolutions in bf16 or fp16 where that is fast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from waifu4x import devices
from waifu4x.engines import FloatArray, in_order

# Residual and dense networks keep earlier activations alive beside the layer that is computed, and
# oneDNN and cuDNN take workspace.
_ACTIVATION_MARGIN = 2.5


class TorchEngine:
    """One network on one device, its convolutions in `dtype`.

    The input, the output, the weights and the network's last residual add stay in float32.
    """

    name = "torch"

    def __init__(self, network: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        config: Any = network.config
        self.scale: int = config.scale
        self.channels: int = config.channels_in
        self.precision = devices.precision_name(dtype)
        self.device = device
        self._dtype = dtype
        self._network = network.eval().to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._bytes_per_px: float | None = None

    @torch.inference_mode()
    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`."""
        x = torch.from_numpy(in_order(batch)).to(self.device).permute(0, 3, 1, 2)
        with devices.autocast(self.device, self._dtype), devices.true_fp32(self.device):
            y: torch.Tensor = self._network(x)
        return y.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`."""
        if self._bytes_per_px is None:
            size_bytes = torch.finfo(self._dtype).bits // 8
            peak = peak_values_per_px(self._network, self.device)
            self._bytes_per_px = _ACTIVATION_MARGIN * size_bytes * peak
        return self._bytes_per_px


def peak_values_per_px(network: nn.Module, device: torch.device) -> float:
    """The largest input plus output of any layer, per input pixel, seen in one tiny pass.

    `device` is where the network lies.
    """
    config: Any = network.config
    side_px = 8 * config.size_multiple
    peak = 0

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, sum(t.numel() for t in inputs) + output.numel())

    leaves = (module for module in network.modules() if not any(module.children()))
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, config.channels_in, side_px, side_px, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return peak / side_px**2
