"""RankSRGAN's generator: SRResNet without normalisation, and without a skip of the picture.

Zhang et al., "RankSRGAN: Generative Adversarial Networks with Ranker for Image Super-Resolution"
(ICCV 2019), https://arxiv.org/abs/1908.06382. What makes the system is how it is trained, see
`waifu4x.train.ranked.ranker`; this network alone is also what its authors call SRResNet. Beside
MSRResNet it has a convolution after the blocks and a long skip around them, and nothing
interpolated is added at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class RankSRGANConfig:
    """The numbers of one generator."""

    scale: int = 4
    blocks: int = 16
    channels: int = 64
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4, 8):
            raise ValueError(f"scale must be 2, 3, 4 or 8, not {self.scale}")
        if min(self.channels, self.channels_in) < 1 or self.blocks < 0:
            raise ValueError("channels and channels_in must be positive, blocks at least 0")

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
        low, high = -2, self.scale - 1 + 2  # conv_hr and conv_last at full size
        for factor in reversed(self.stages):
            low, high = low // factor - 1, high // factor + 1
        trunk = 1 + 2 * self.blocks + 1  # first, two a block, after the blocks
        return trunk + max(-low, high)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True))


class RankSRGAN(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    def __init__(self, config: RankSRGANConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        self.conv_first = nn.Conv2d(colors, wide, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(wide) for _ in range(config.blocks)))
        self.conv_body = nn.Conv2d(wide, wide, 3, padding=1)
        for number, factor in enumerate(config.stages, start=1):
            self.add_module(f"upconv{number}", nn.Conv2d(wide, wide * factor**2, 3, padding=1))
        self.conv_hr = nn.Conv2d(wide, wide, 3, padding=1)
        self.conv_last = nn.Conv2d(wide, colors, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Kaiming-normal scaled by 0.1, as published, but for the convolution after the blocks."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.conv_body:
                nn.init.kaiming_normal_(module.weight)
                module.weight.data.mul_(0.1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _picture(self, features: Tensor, wide: torch.dtype) -> Tensor:
        """The last convolution, in `wide`, as there is no skip: in bf16 a picture has 8 bits.

        Not while training, where its rounding is far less than the loss it goes into.
        """
        if self.training:
            return self.conv_last(features).to(wide)
        with torch.autocast(features.device.type, enabled=False):
            return self.conv_last(features.to(wide))

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(x)
        features = features + self.conv_body(self.body(features))
        for number, factor in enumerate(self.config.stages, start=1):
            features = self.get_submodule(f"upconv{number}")(features)
            features = functional.relu(functional.pixel_shuffle(features, factor))
        features = functional.relu(self.conv_hr(features))
        return self._picture(features, torch.promote_types(x.dtype, torch.float32))


RANKSRGAN_SIZES: dict[str, RankSRGANConfig] = {
    "ranksrgan-x2": RankSRGANConfig(scale=2),
    "ranksrgan-x3": RankSRGANConfig(scale=3),
    "ranksrgan-x4": RankSRGANConfig(scale=4),
}
