"""EDSR: residual blocks without normalisation, wide and deep.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution" (CVPRW 2017),
https://arxiv.org/abs/1707.02921. The small one, EDSR-baseline, is what many later papers compare
with. Published weights work on the picture times 255 less the mean color of DIV2K; here both happen
inside, and a picture in [0, 1] goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Of the pictures of DIV2K, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class EDSRConfig:
    """The numbers of one EDSR.

    What a block adds is divided by `residual_divisor`: 10 keeps the large one stable. The features
    are those of the picture times `pixel_range`, 255 or 1, less the mean color with `mean_shift`.
    """

    scale: int = 4
    blocks: int = 16
    channels: int = 64
    residual_divisor: int = 1
    pixel_range: int = 255
    mean_shift: bool = True
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.scale not in (1, 2, 3, 4, 8):
            raise ValueError(f"scale must be 1, 2, 3, 4 or 8, not {self.scale}")
        if min(self.channels, self.residual_divisor, self.channels_in) < 1 or self.blocks < 0:
            raise ValueError(
                "channels, residual_divisor, channels_in must be positive, blocks at least 0"
            )
        if self.pixel_range not in (1, 255):
            raise ValueError(f"pixel_range must be 1 or 255, not {self.pixel_range}")
        if self.mean_shift and self.channels_in != 3:
            raise ValueError("mean_shift must be false for other pictures than RGB")

    @property
    def stages(self) -> tuple[int, ...]:
        """The pixel-shuffle factors, in order: a 3 for x3, else twos."""
        return (3,) if self.scale == 3 else (2,) * (self.scale.bit_length() - 1)

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact.

        Walks back from the output pixels inside one input pixel: `low` and `high` are the
        positions seen, which a shuffle divides and a convolution widens.
        """
        low, high = -1, self.scale - 1 + 1  # conv_last at full size
        for factor in reversed(self.stages):
            low, high = low // factor - 1, high // factor + 1
        trunk = 1 + 2 * self.blocks + 1  # first, two a block, after the blocks
        return trunk + max(-low, high)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + conv(relu(conv(x))) / divisor."""

    def __init__(self, channels: int, divisor: int) -> None:
        super().__init__()
        self.factor = 1.0 / divisor
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        added = self.conv2(functional.relu(self.conv1(x), inplace=True))
        return x + added if self.factor == 1.0 else torch.add(x, added, alpha=self.factor)


class EDSR(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    mean: Tensor

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        # It is no weight, and so not in files; on the CPU also where the weights are left out.
        mean = torch.tensor(MEAN_RGB if config.mean_shift else (0.0,), device="cpu")
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(colors, wide, 3, padding=1)
        blocks = (ResidualBlock(wide, config.residual_divisor) for _ in range(config.blocks))
        self.body = nn.Sequential(*blocks)
        self.conv_after_body = nn.Conv2d(wide, wide, 3, padding=1)
        stages: list[nn.Module] = []
        for factor in config.stages:
            stages.append(nn.Conv2d(wide, wide * factor**2, 3, padding=1))
            stages.append(nn.PixelShuffle(factor))
        self.upsample = nn.Sequential(*stages)
        self.conv_last = nn.Conv2d(wide, colors, 3, padding=1)

    def _picture(self, features: Tensor, wide: torch.dtype) -> Tensor:
        """The last convolution, in `wide`, as there is no skip: in bf16 a picture has 8 bits.

        Not while training, where its rounding is far less than the loss it goes into.
        """
        if self.training:
            return self.conv_last(features).to(wide)
        with torch.autocast(features.device.type, enabled=False):
            return self.conv_last(features.to(wide))

    def forward(self, x: Tensor) -> Tensor:
        span = float(self.config.pixel_range)
        wide = torch.promote_types(x.dtype, torch.float32)
        features = self.conv_first((x - self.mean) * span)
        features = features + self.conv_after_body(self.body(features))
        return self._picture(self.upsample(features), wide) / span + self.mean


EDSR_SIZES: dict[str, EDSRConfig] = {
    "edsr-baseline-x2": EDSRConfig(scale=2),
    "edsr-baseline-x3": EDSRConfig(scale=3),
    "edsr-baseline-x4": EDSRConfig(scale=4),
    "edsr-x2": EDSRConfig(scale=2, blocks=32, channels=256, residual_divisor=10),
    "edsr-x3": EDSRConfig(scale=3, blocks=32, channels=256, residual_divisor=10),
    "edsr-x4": EDSRConfig(scale=4, blocks=32, channels=256, residual_divisor=10),
}
