"""Runs a network with PyTorch: channels last, convolutions in bf16 or fp16 where that is fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from waifu4x import devices
from waifu4x.engines import FloatArray, Results, in_order, torch_fused
from waifu4x.engines.torch_fused import FusedConvolutions

# Residual and dense networks keep earlier activations alive beside the layer that is computed, and
# oneDNN and cuDNN take workspace.
_ACTIVATION_MARGIN = 2.5
# In float32: what the network adds at its end, its sum, and that while it becomes integers.
_OUTPUT_COPIES = 4
_INTEGERS = {np.dtype(np.uint8): torch.uint8, np.dtype(np.uint16): torch.uint16}


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
        self._fuses = device.type == "cpu" and dtype == torch.bfloat16 and torch_fused.is_possible()

    @torch.inference_mode()
    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`."""
        return self._forward(batch).cpu().contiguous().numpy()

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """See `Engine.stream`: one batch after the other, integers made where the network ran."""
        for batch in batches:
            yield self._results(batch, dtype)

    @torch.inference_mode()
    def _results(self, batch: FloatArray, dtype: np.dtype) -> Results:
        y = self._forward(batch)
        finite = sums_are_finite(y).cpu().numpy()
        return Results(rounded(y, dtype).cpu().contiguous().numpy(), finite)

    def _forward(self, batch: FloatArray) -> torch.Tensor:
        """(N, h, w, C) -> (N, s·h, s·w, C) float32 on the device."""
        x = torch.from_numpy(in_order(batch)).to(self.device).permute(0, 3, 1, 2)
        with devices.autocast(self.device, self._dtype), devices.true_fp32(self.device):
            y = self._fused(x) if self._fuses else self._network(x)
        return y.permute(0, 2, 3, 1).float()

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        with FusedConvolutions() as fusing:
            y: torch.Tensor = self._network(x)
        self._fuses = fusing.fused > 0
        return y

    def at(self, scale: Fraction, origin: tuple[int, int]) -> TorchEngine:
        """See `AnyScaleEngine.at`; only for a network that has such a method, too."""
        network: Any = self._network
        return TorchEngine(network.at(scale, origin), device=self.device, dtype=self._dtype)

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`."""
        if self._bytes_per_px is None:
            size_bytes = torch.finfo(self._dtype).bits // 8
            peak = peak_values_per_px(self._network, self.device)
            output_bytes = _OUTPUT_COPIES * 4 * self.channels * self.scale**2
            self._bytes_per_px = _ACTIVATION_MARGIN * size_bytes * peak + output_bytes
        return self._bytes_per_px


def sums_are_finite(y: torch.Tensor) -> torch.Tensor:
    """(N, …) -> (N,) bool: whether all numbers of each are finite.

    A sum is NaN or infinite as soon as one of its numbers is, and takes one pass and no memory; it
    also is where numbers of 1e30 add up, which are as useless.
    """
    return y.flatten(1).sum(1).isfinite()


def rounded(y: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
    """What `Canvas.put` would make of `y`; itself for a float `dtype`."""
    if dtype.kind != "u":
        return y
    full = float(np.iinfo(dtype).max)
    # Not in place from the first step on: a network may give back what it was given.
    return y.clamp(0.0, 1.0).mul_(full).round_().to(_INTEGERS[dtype])


def peak_values_per_px(network: nn.Module, device: torch.device) -> float:
    """The largest input plus output of any layer, per input pixel, seen in one tiny pass.

    `device` is where the network lies.
    """
    config: Any = network.config
    side_px = 8 * config.size_multiple
    peak = 0

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal peak
        # Networks of others also give their layers sizes and flags.
        tensors = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
        peak = max(peak, sum(t.numel() for t in tensors))

    leaves = (module for module in network.modules() if not any(module.children()))
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, config.channels_in, side_px, side_px, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return peak / side_px**2
