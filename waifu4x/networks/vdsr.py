"""VDSR: twenty thin layers that learn what bicubic interpolation misses.

Kim, Lee, Lee, "Accurate Image Super-Resolution Using Very Deep Convolutional Networks" (CVPR 2016),
https://arxiv.org/abs/1511.04587. The input is already upscaled (bicubic), as a rule only its luma;
one set of weights serves x2, x3, x4 and the factors between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class VDSRConfig:
    """The numbers of one VDSR; `depth` counts all convolutions, first and last included."""

    depth: int = 20
    channels: int = 64
    bias: bool = True
    channels_in: int = 1

    # Facts every network of this project states in its config.
    scale = 1
    pre_upsampled = True
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.depth < 2 or self.channels < 1 or self.channels_in < 1:
            raise ValueError("depth must be at least 2, channels and channels_in positive")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact: 1 a layer."""
        return self.depth


class VDSR(nn.Module):
    """x: (N, C, h, w) in [0, 1], bicubic-upscaled -> (N, C, h, w) float32, not clamped."""

    def __init__(self, config: VDSRConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors, bias = config.channels, config.channels_in, config.bias
        self.conv_first = nn.Conv2d(colors, wide, 3, padding=1, bias=bias)
        self.body = nn.ModuleList(
            nn.Conv2d(wide, wide, 3, padding=1, bias=bias) for _ in range(config.depth - 2)
        )
        self.conv_last = nn.Conv2d(wide, colors, 3, padding=1, bias=bias)
        self._initialise()

    def _initialise(self) -> None:
        """He's, counted over the outputs: N(0, 2 / (9 · out)), as the published code does."""
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=math.sqrt(2.0 / (9 * conv.out_channels)))
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv_first(x), inplace=True)
        for conv in self.body:
            features = functional.relu(conv(features), inplace=True)
        residual = self.conv_last(features)
        # In float32: a bf16 sum would round the picture itself to 8 bits of mantissa.
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) + residual.to(wide)


VDSR_SIZES: dict[str, VDSRConfig] = {
    "vdsr": VDSRConfig(),
    "vdsr-no-bias": VDSRConfig(bias=False),
    "vdsr-rgb": VDSRConfig(channels_in=3),
    "vdsr-rgb-no-bias": VDSRConfig(channels_in=3, bias=False),
}
