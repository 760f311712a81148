"""SRFBN: one block that is given its own result again, four times, and gets better each time.

Li et al., "Feedback Network for Image Super-Resolution" (CVPR 2019),
https://arxiv.org/abs/1903.09814. The steps share their weights: each is shown the features of the
input beside what the step before made of them. While training every step's picture counts; used is
the last one. Published weights work on the picture times 255 less the mean color of DIV2K; here
both happen inside, and a picture in [0, 1] goes in and comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Of the pictures of DIV2K, in [0, 1]."""
_WHITE = 255.0
_PRELU_START = 0.2
_PADDING_PX = 2
_MOST_STEPS = 16


@dataclass(frozen=True, kw_only=True)
class SRFBNConfig:
    """The numbers of one SRFBN; each step goes up to the full size and down again `groups` times.

    `steps` is no property of the weights: those of any number run with any other.
    """

    scale: int = 4
    channels: int = 64
    groups: int = 6
    steps: int = 4

    # Facts every network of this project states in its config.
    channels_in = 3
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4, 8):
            raise ValueError(f"scale must be 2, 3, 4 or 8, not {self.scale}")
        if min(self.channels, self.groups) < 1:
            raise ValueError("channels and groups must be positive")
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ValueError(f"steps must be 1 to {_MOST_STEPS}, not {self.steps}")

    @property
    def outputs_in_training(self) -> int:
        """How many pictures of each input it gives in train mode; see `SRFBN`."""
        return self.steps

    @property
    def kernel(self) -> int:
        """The side of the kernels between both sizes."""
        return self.scale + 2 * _PADDING_PX

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact (26 for x4).

        An enlarged pixel o is made of the pixels (o + 2 - k + 1) / s to (o + 2) / s, rounded
        inwards, and one that is shrunk again of the enlarged ones from s·i - 2 to s·i - 2 + k - 1.
        """
        around = (self.kernel - 1) // self.scale  # up, and down again
        # The last convolution sees one enlarged pixel farther, which counts at the cell's border.
        last = (self.scale + _PADDING_PX) // self.scale
        return 1 + self.steps * self.groups * around + last


def _activated(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.PReLU(init=_PRELU_START))


def _joined(maps: int, channels: int) -> nn.Sequential:
    """(N, maps·C, h, w) -> (N, C, h, w)."""
    return _activated(nn.Conv2d(maps * channels, channels, 1))


def _enlarging(config: SRFBNConfig) -> nn.Sequential:
    """(N, C, h, w) -> (N, C, s·h, s·w)."""
    wide, scale, kernel = config.channels, config.scale, config.kernel
    return _activated(nn.ConvTranspose2d(wide, wide, kernel, scale, _PADDING_PX))


def _shrinking(config: SRFBNConfig) -> nn.Sequential:
    """(N, C, s·h, s·w) -> (N, C, h, w)."""
    wide, scale, kernel = config.channels, config.scale, config.kernel
    return _activated(nn.Conv2d(wide, wide, kernel, scale, _PADDING_PX))


class FeedbackBlock(nn.Module):
    """features, hidden: (N, C, h, w) each -> the next hidden, of the same shape."""

    def __init__(self, config: SRFBNConfig) -> None:
        super().__init__()
        groups, wide = range(config.groups), config.channels
        self.conv_in = _joined(2, wide)
        self.up = nn.ModuleList(_enlarging(config) for _ in groups)
        self.down = nn.ModuleList(_shrinking(config) for _ in groups)
        # What a group is given: all that was before, of its size.
        self.join_small = nn.ModuleList(_joined(n + 1, wide) for n in groups[1:])
        self.join_large = nn.ModuleList(_joined(n + 1, wide) for n in groups[1:])
        self.conv_out = _joined(config.groups, wide)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        given = self.conv_in(torch.cat((features, hidden), 1))
        small, large = [given], []
        for group, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            if group > 0:
                given = self.join_small[group - 1](torch.cat(small, 1))
            large.append(up(given))
            spread = large[0] if group == 0 else self.join_large[group - 1](torch.cat(large, 1))
            small.append(down(spread))
        return self.conv_out(torch.cat(small[1:], 1))


class SRFBN(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped.

    In train mode (T·N, 3, s·h, s·w): first all pictures of the first step, last those of the last.
    """

    mean: Tensor

    def __init__(self, config: SRFBNConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.channels
        # It is no weight, and so not in files; on the CPU also where the weights are left out.
        mean = torch.tensor(MEAN_RGB, device="cpu").view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = _activated(nn.Conv2d(config.channels_in, 4 * wide, 3, padding=1))
        self.conv_features = _activated(nn.Conv2d(4 * wide, wide, 1))
        self.feedback = FeedbackBlock(config)
        self.upsample = _enlarging(config)
        self.conv_last = nn.Conv2d(wide, config.channels_in, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """He's for PReLU, and a residual that starts small.

        An enlarging convolution makes each pixel of s² times fewer products than its kernel has:
        without that in the count, features fade by s in every group.
        """
        gain = math.sqrt(2.0 / (1.0 + _PRELU_START**2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                seen = module.in_channels * math.prod(module.kernel_size)
                if isinstance(module, nn.ConvTranspose2d):
                    seen /= math.prod(module.stride)
                nn.init.normal_(module.weight, std=gain / math.sqrt(seen))
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
        self.conv_last.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_features(self.conv_first((x - self.mean) * _WHITE))
        hidden, seen = features, []
        for _ in range(self.config.steps):
            hidden = self.feedback(features, hidden)
            seen.append(hidden)
        shown = torch.cat(seen) if self.training else hidden
        residual = self.conv_last(self.upsample(shown))
        # In float32: a bf16 sum would round the picture itself to 8 bits of mantissa.
        wide = torch.promote_types(x.dtype, torch.float32)
        picture = functional.interpolate(
            x.to(wide), scale_factor=self.config.scale, mode="bilinear", align_corners=False
        )
        if self.training:
            picture = picture.repeat(self.config.steps, 1, 1, 1)
        return picture + residual.to(wide) / _WHITE


SRFBN_SIZES: dict[str, SRFBNConfig] = {
    "srfbn-x2": SRFBNConfig(scale=2),
    "srfbn-x3": SRFBNConfig(scale=3),
    "srfbn-x4": SRFBNConfig(scale=4),
    "srfbn-x8": SRFBNConfig(scale=8),
    "srfbn-s-x2": SRFBNConfig(scale=2, channels=32, groups=3),
    "srfbn-s-x3": SRFBNConfig(scale=3, channels=32, groups=3),
    "srfbn-s-x4": SRFBNConfig(scale=4, channels=32, groups=3),
}
