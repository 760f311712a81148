"""SRResNet: the generator of SRGAN, as the paper has it, with batch normalisation.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network" (CVPR 2017), https://arxiv.org/abs/1609.04802. Picture in [0, 1] in; the paper's output
range is [-1, 1], which the network maps back to [0, 1] itself. Published weights differ in small
things, and each is a number of the config: convolutions with or without bias, one slope or one a
channel in a PReLU, normalisation folded into the convolutions, a PReLU or nothing in the place of
the last normalisation, an output through tanh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Middle = Literal["norm", "prelu", "plain"]
Output = Literal["signed", "tanh", "unit"]


@dataclass(frozen=True, kw_only=True)
class SRResNetConfig:
    """The numbers of one SRResNet.

    `middle` is what follows the convolution after the blocks: ``norm`` (the paper's), ``prelu``,
    or ``plain`` (normalisation folded away). `output` says what the last convolution y means:
    ``signed`` is (y + 1) / 2, ``tanh`` is (tanh(y) + 1) / 2, ``unit`` is y.
    `body_bias` is about the convolutions that a normalisation follows, where a bias has no effect.
    """

    scale: int = 4
    blocks: int = 16
    channels: int = 64
    norm: bool = True
    middle: Middle = "norm"
    body_bias: bool = False
    slope_per_channel: bool = False
    output: Output = "signed"
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.scale not in (1, 2, 3, 4, 8, 16):
            raise ValueError(f"scale must be 1, 2, 3, 4, 8 or 16, not {self.scale}")
        if min(self.channels, self.channels_in) < 1 or self.blocks < 0:
            raise ValueError("channels and channels_in must be positive, blocks at least 0")
        if self.middle not in ("norm", "prelu", "plain"):
            raise ValueError(f"middle must be 'norm', 'prelu' or 'plain', not {self.middle!r}")
        if self.output not in ("signed", "tanh", "unit"):
            raise ValueError(f"output must be 'signed', 'tanh' or 'unit', not {self.output!r}")

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
        low, high = -4, self.scale - 1 + 4  # the 9x9 convolution at full size
        for factor in reversed(self.stages):
            low, high = low // factor - 1, high // factor + 1
        trunk = 4 + 2 * self.blocks + 1  # 9x9, two 3x3 a block, 3x3
        return trunk + max(-low, high)


def _prelu(config: SRResNetConfig) -> nn.PReLU:
    return nn.PReLU(config.channels if config.slope_per_channel else 1)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + norm(conv(prelu(norm(conv(x)))))."""

    def __init__(self, config: SRResNetConfig) -> None:
        super().__init__()
        wide, bias = config.channels, config.body_bias
        self.conv1 = nn.Conv2d(wide, wide, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(wide) if config.norm else nn.Identity()
        self.prelu = _prelu(config)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(wide) if config.norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class UpsamplingStage(nn.Module):
    """x: (N, C, h, w) -> (N, C, f·h, f·w) by convolution, pixel shuffle and PReLU."""

    def __init__(self, config: SRResNetConfig, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(config.channels, config.channels * factor**2, 3, padding=1)
        self.prelu = _prelu(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(functional.pixel_shuffle(self.conv(x), self.factor))


class SRResNet(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    def __init__(self, config: SRResNetConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        self.conv_in = nn.Conv2d(colors, wide, 9, padding=4)
        self.prelu_in = _prelu(config)
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        self.conv_mid = nn.Conv2d(wide, wide, 3, padding=1, bias=config.body_bias)
        if config.middle == "norm":
            self.bn_mid = nn.BatchNorm2d(wide)
        elif config.middle == "prelu":
            self.prelu_mid = _prelu(config)
        self.up = nn.Sequential(*(UpsamplingStage(config, factor) for factor in config.stages))
        self.conv_out = nn.Conv2d(wide, colors, 9, padding=4)

    def _middle(self, features: Tensor) -> Tensor:
        features = self.conv_mid(features)
        if self.config.middle == "norm":
            return self.bn_mid(features)
        return self.prelu_mid(features) if self.config.middle == "prelu" else features

    def _picture(self, features: Tensor, wide: torch.dtype) -> Tensor:
        """The last convolution, in `wide`, as there is no skip: in bf16 a picture has 8 bits.

        Not while training, where it would take half of the time: its rounding is some 60 dB below
        the picture, far less than the loss it goes into.
        """
        if self.training:
            return self.conv_out(features).to(wide)
        with torch.autocast(features.device.type, enabled=False):
            return self.conv_out(features.to(wide))

    def forward(self, x: Tensor) -> Tensor:
        features = self.prelu_in(self.conv_in(x))
        features = features + self._middle(self.blocks(features))
        y = self._picture(self.up(features), torch.promote_types(x.dtype, torch.float32))
        if self.config.output == "tanh":
            y = torch.tanh(y)
        return y if self.config.output == "unit" else (y + 1.0) / 2.0


SRRESNET_SIZES: dict[str, SRResNetConfig] = {
    "srresnet-x2": SRResNetConfig(scale=2),
    "srresnet-x3": SRResNetConfig(scale=3),
    "srresnet-x4": SRResNetConfig(scale=4),
}
