"""What a network costs, whatever the machine: parameters, and multiplications with an addition.

Counted as papers count (https://arxiv.org/abs/1803.08664, "Mult-Adds"): convolutions and linear
layers alone, padding included; activations, additions, interpolation and shuffling are nothing.
The customary picture is what makes 1280×720 px: 320×180 px for a network of x4.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from waifu4x.networks import NetworkConfig

HD_PX = (720, 1280)
"""Height and width of the picture that papers count for."""
_PROBE_PX = (180, 320)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one network costs."""

    parameters: int
    """Trained numbers; buffers (the running statistics of batch normalisation) are none."""
    multiply_adds_per_pixel: float
    """Per pixel of the network's input, which is a pixel of the picture, or for networks that are
    given an upscaled picture (SRCNN, VDSR) a pixel of that."""
    multiply_adds_hd: float
    """For a result of 1280×720 px."""


def measure_cost(network: nn.Module, config: NetworkConfig) -> Cost:
    """The cost of a network that states `config`; its weights are not used and nothing is computed.

    `network` maps (N, C, h, w) to (N, C, s·h, s·w), see `waifu4x.networks`; it is left as it is.
    Layers that are no modules (`torch.nn.functional` with weights of its own) go uncounted, and a
    module that has `multiply_adds(x, y)` counts itself.
    """
    multiple = config.size_multiple
    height, width = (math.ceil(side / multiple) * multiple for side in _PROBE_PX)
    shape = (1, config.channels_in, height, width)
    per_pixel = count_multiply_adds(network, shape) / (height * width)
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds_per_pixel=per_pixel,
        multiply_adds_hd=per_pixel * math.prod(HD_PX) / config.scale**2,
    )


def count_multiply_adds(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Of one pass over an input of this shape, batch included."""
    if hasattr(network, "multiply_adds_for"):
        # What it computes depends on values, and there are none below.
        return network.multiply_adds_for(shape)  # pyright: ignore[reportCallIssue]
    counted = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal counted
        counted += _of_layer(module, inputs[0], output)

    probe = copy.deepcopy(network).eval()
    for module in probe.modules():
        own = hasattr(module, "multiply_adds")
        if own or isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            module.register_forward_hook(count)
    # Fake tensors have a shape and no values, so nothing is computed. Those on the device "meta"
    # have neither, but no autocast can be switched off for it, as networks here do.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        own = next(probe.parameters(), torch.empty(()))
        probe(torch.empty(shape, device=own.device, dtype=own.dtype))
    return counted


def _of_layer(module: Any, given: Tensor, output: Tensor) -> int:
    if hasattr(module, "multiply_adds"):
        return module.multiply_adds(given, output)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, _TRANSPOSED):
        # Each value of the input is spread over a kernel of the output.
        return (
            given.numel() * math.prod(module.kernel_size) * (module.out_channels // module.groups)
        )
    assert isinstance(module, _CONVOLUTIONS)
    return output.numel() * math.prod(module.kernel_size) * (module.in_channels // module.groups)
