"""SPAN: a small, fast network whose attention takes no weights.

Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution" (CVPRW 2024),
https://arxiv.org/abs/2311.12770, winner of the NTIRE 2024 challenge on efficient super-resolution.
While it is trained each 3x3 convolution is a stack of three beside a 1x1 one. They are linear, and
here is the network of single convolutions that they become in the end. The published one works on
the picture times 255 less the mean color of DIV2K, which it learns to add again by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Of the pictures of DIV2K, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class SPANConfig:
    """The numbers of one SPAN.

    `tail_channels` go into the last convolution: as many as `channels`, but for smaller networks of
    the challenges. The features are those of the picture times `pixel_range`, 255 or 1, less the
    mean color with `mean_shift`.
    """

    scale: int = 4
    blocks: int = 6
    channels: int = 48
    tail_channels: int = 48
    pixel_range: int = 255
    mean_shift: bool = True
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if min(self.scale, self.blocks, self.channels, self.tail_channels, self.channels_in) < 1:
            raise ValueError(
                "scale, blocks, channels, tail_channels and channels_in must be positive"
            )
        if self.pixel_range not in (1, 255):
            raise ValueError(f"pixel_range must be 1 or 255, not {self.pixel_range}")
        if self.mean_shift and self.channels_in != 3:
            raise ValueError("mean_shift must be false for other pictures than RGB")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact."""
        return 1 + 3 * self.blocks + 1 + 1  # first, three a block, after the blocks, last


class AttentionBlock(nn.Module):
    """x: (N, C, h, w) -> (the block's result, its first features), both (N, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = functional.silu(self.conv1(x))
        y = self.conv3(functional.silu(self.conv2(first)))
        # That is sigmoid(y) - 1/2, which would lose its digits near 0, and all but two in bf16.
        attention = 0.5 * torch.tanh(0.5 * y)
        return (y + x) * attention, first


class SPAN(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    mean: Tensor

    def __init__(self, config: SPANConfig) -> None:
        super().__init__()
        self.config = config
        wide, tail = config.channels, config.tail_channels
        # It is no weight, and so not in files; on the CPU also where the weights are left out.
        mean = torch.tensor(MEAN_RGB if config.mean_shift else (0.0,), device="cpu")
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(config.channels_in, wide, 3, padding=1)
        self.blocks = nn.ModuleList(AttentionBlock(wide) for _ in range(config.blocks))
        self.conv_after_blocks = nn.Conv2d(wide, wide, 3, padding=1)
        self.conv_cat = nn.Conv2d(4 * wide, tail, 1)
        self.conv_last = nn.Conv2d(tail, config.channels_in * config.scale**2, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Starts near the mean color, and not as many times white as `pixel_range` says."""
        self.conv_last.weight.data.div_(self.config.pixel_range)
        if self.conv_last.bias is not None:
            nn.init.constant_(self.conv_last.bias, sum(MEAN_RGB) / 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        features = first = self.conv_first((x - self.mean) * float(self.config.pixel_range))
        after_one = inside_last = features
        for number, block in enumerate(self.blocks):
            features, inside_last = block(features)
            if number == 0:
                after_one = features
        features = self.conv_after_blocks(features)
        features = self.conv_cat(torch.cat((first, features, after_one, inside_last), 1))
        # There is no skip, so what this layer gives is the picture: in bf16 it would have 8 bits.
        with torch.autocast(x.device.type, enabled=False):
            y = self.conv_last(features.to(wide))
        return functional.pixel_shuffle(y, self.config.scale)


SPAN_SIZES: dict[str, SPANConfig] = {
    "span-x2": SPANConfig(scale=2),
    "span-x4": SPANConfig(scale=4),
    "span-52-x2": SPANConfig(scale=2, channels=52, tail_channels=52),
    "span-52-x4": SPANConfig(scale=4, channels=52, tail_channels=52),
    "span-28-x4": SPANConfig(scale=4, channels=28, tail_channels=20),
}
