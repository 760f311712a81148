"""RRDBNet: the generator of ESRGAN and Real-ESRGAN, residual-in-residual dense blocks.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018),
https://arxiv.org/abs/1809.00219, and Real-ESRGAN (2021), https://arxiv.org/abs/2107.10833, which
added the x2 and x1 forms: the input is pixel-unshuffled first, the rest stays the x4 network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class RRDBNetConfig:
    """The numbers of one RRDBNet.

    `upsamplings` is how many times the features double in size; `unshuffle` divides the input
    first. The paper's x4 is (2, 1), Real-ESRGAN's x2 (2, 2) and x1 (2, 4), a plain x2 (1, 1).
    """

    blocks: int = 23
    channels: int = 64
    growth: int = 32
    upsamplings: int = 2
    unshuffle: int = 1
    channels_in: int = 3

    # A fact every network of this project states in its config.
    pre_upsampled = False
    global_context = False

    def __post_init__(self) -> None:
        if min(self.blocks, self.channels, self.growth, self.unshuffle, self.channels_in) < 1:
            raise ValueError("blocks, channels, growth, unshuffle, channels_in must be positive")
        if not 0 <= self.upsamplings <= 4:
            raise ValueError(f"upsamplings must be 0 to 4, not {self.upsamplings}")
        if 2**self.upsamplings % self.unshuffle:
            raise ValueError(f"unshuffle {self.unshuffle} makes the scale a fraction")

    @property
    def scale(self) -> int:
        """Output pixels to a side of one input pixel."""
        return 2**self.upsamplings // self.unshuffle

    @property
    def size_multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.unshuffle

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact (349 for x4-23).

        Walks back from each output pixel inside one cell (a pixel of the trunk, `unshuffle` input
        pixels wide): `low` and `high` are the positions seen, which an upsampling halves and a
        convolution widens.
        """
        trunk = 1 + 15 * self.blocks + 1  # first, 3 dense blocks of 5 convolutions each, body
        radius_px = 0
        for position in range(2**self.upsamplings):
            low, high = position - 2, position + 2  # conv_hr and conv_last at full size
            for _ in range(self.upsamplings):
                low, high = (low - 1) // 2, (high + 1) // 2
            low, high = low - trunk, high + trunk
            here_px = position // self.scale
            first_px, last_px = low * self.unshuffle, (high + 1) * self.unshuffle - 1
            radius_px = max(radius_px, here_px - first_px, last_px - here_px)
        return radius_px


class DenseBlock(nn.Module):
    """x: (N, C, h, w) -> x + 0.2 · five densely connected convolutions."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            grown = functional.leaky_relu(conv(seen), 0.2, inplace=True)
            # Rebinding `seen` lets go of the shorter concatenation: only one is alive at a time.
            seen = torch.cat((seen, grown), 1)
        return torch.add(x, self.conv5(seen), alpha=0.2)


class RRDB(nn.Module):
    """x: (N, C, h, w) -> x + 0.2 · three dense blocks."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=0.2)


class RRDBNet(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped.

    h and w must be multiples of `config.size_multiple`, else torch's RuntimeError.
    """

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        self.conv_first = nn.Conv2d(colors * config.unshuffle**2, wide, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(wide, config.growth) for _ in range(config.blocks)))
        self.conv_body = nn.Conv2d(wide, wide, 3, padding=1)
        for number in range(1, config.upsamplings + 1):
            self.add_module(f"conv_up{number}", nn.Conv2d(wide, wide, 3, padding=1))
        self.conv_hr = nn.Conv2d(wide, wide, 3, padding=1)
        self.conv_last = nn.Conv2d(wide, colors, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Dense blocks start as almost nothing: Kaiming-normal scaled by 0.1, biases zero."""
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.config.unshuffle > 1:
            x = functional.pixel_unshuffle(x, self.config.unshuffle)
        features = self.conv_first(x)
        features = features + self.conv_body(self.body(features))
        for number in range(1, self.config.upsamplings + 1):
            features = functional.interpolate(features, scale_factor=2)
            features = self.get_submodule(f"conv_up{number}")(features)
            features = functional.leaky_relu(features, 0.2, inplace=True)
        features = functional.leaky_relu(self.conv_hr(features), 0.2, inplace=True)
        # There is no skip, so what this layer gives is the picture: in bf16 it would have 8 bits.
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_last(features.to(wide))


RRDBNET_SIZES: dict[str, RRDBNetConfig] = {
    "rrdb-23-x4": RRDBNetConfig(),
    "rrdb-16-x4": RRDBNetConfig(blocks=16),
    "rrdb-6-x4": RRDBNetConfig(blocks=6),
    "rrdb-23-x2": RRDBNetConfig(upsamplings=1),
    "realesrgan-x2plus": RRDBNetConfig(unshuffle=2),
    "realesrgan-x1": RRDBNetConfig(unshuffle=4),
}
