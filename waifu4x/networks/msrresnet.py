"""MSRResNet: SRResNet without batch normalisation, as it is trained today.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution" (EDSR-baseline),
https://arxiv.org/abs/1707.02921, dropped the normalisation of SRResNet
(https://arxiv.org/abs/1609.04802); Wang et al. ("MSRResNet" of BasicSR) added the bilinear skip, so
that the convolutions only have to learn what interpolation misses.

Two tails:

- ``staged``: the published one, one convolution and pixel shuffle per factor of two (or one of
  three), then two convolutions at full size. 1,517,571 parameters at x4.
- ``direct``: one convolution to 3·s² channels and a single pixel shuffle, so that every convolution
  runs at low resolution. About a quarter of the time per picture; the shipped fast model is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Tail = Literal["staged", "direct"]


@dataclass(frozen=True, kw_only=True)
class MSRResNetConfig:
    """The numbers of one MSRResNet."""

    scale: int = 4
    blocks: int = 16
    channels: int = 64
    tail: Tail = "staged"
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.tail not in ("staged", "direct"):
            raise ValueError(f"tail must be 'staged' or 'direct', not {self.tail!r}")
        if self.tail == "staged" and self.scale not in (2, 3, 4):
            raise ValueError(f"the staged tail reaches x2, x3 and x4, not x{self.scale}")
        if min(self.scale, self.blocks, self.channels) < 1:
            raise ValueError("scale, blocks and channels must be positive")

    @property
    def stages(self) -> tuple[int, ...]:
        """The pixel-shuffle factors of the staged tail."""
        return {2: (2,), 3: (3,), 4: (2, 2)}[self.scale] if self.tail == "staged" else ()

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact.

        Walks back from the output pixels inside one input pixel: `low` and `high` are the
        positions seen, which a shuffle divides and a convolution widens.
        """
        trunk = 1 + 2 * self.blocks  # conv_first and two convolutions a block
        if self.tail == "direct":
            return trunk + 1
        low, high = -2, self.scale - 1 + 2  # conv_hr and conv_last at full size
        for factor in reversed(self.stages):
            low, high = low // factor - 1, high // factor + 1
        return trunk + max(-low, high)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True))


class MSRResNet(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    def __init__(self, config: MSRResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, colors = config.channels, config.channels_in
        self.conv_first = nn.Conv2d(colors, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(config.blocks)))
        if config.tail == "staged":
            for number, factor in enumerate(config.stages, start=1):
                wide = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
                self.add_module(f"upconv{number}", wide)
            self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
            self.conv_last = nn.Conv2d(channels, colors, 3, padding=1)
        else:
            self.conv_last = nn.Conv2d(channels, colors * config.scale**2, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Kaiming-normal scaled by 0.1: residual branches start as almost nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.config.scale
        features = functional.leaky_relu(self.conv_first(x), 0.1)
        features = self.body(features)
        if self.config.tail == "staged":
            for number, factor in enumerate(self.config.stages, start=1):
                features = self.get_submodule(f"upconv{number}")(features)
                features = functional.pixel_shuffle(features, factor)
                features = functional.leaky_relu(features, 0.1)
            features = functional.leaky_relu(self.conv_hr(features), 0.1)
            residual = self.conv_last(features)
        else:
            residual = functional.pixel_shuffle(self.conv_last(features), scale)
        # In float32: a bf16 sum would round the picture itself to 8 bits of mantissa.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            base = functional.interpolate(
                x.to(wide), scale_factor=scale, mode="bilinear", align_corners=False
            )
            return base + residual.to(wide)


MSRRESNET_SIZES: dict[str, MSRResNetConfig] = {
    "msrresnet-x2": MSRResNetConfig(scale=2),
    "msrresnet-x3": MSRResNetConfig(scale=3),
    "msrresnet-x4": MSRResNetConfig(scale=4),
    "msrresnet-fast-x2": MSRResNetConfig(scale=2, blocks=8, tail="direct"),
    "msrresnet-fast-x4": MSRResNetConfig(scale=4, blocks=8, tail="direct"),
}
