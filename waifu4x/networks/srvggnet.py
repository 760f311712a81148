"""SRVGGNetCompact: the small, fast networks of Real-ESRGAN (anime video, general v3).

Wang et al., Real-ESRGAN, https://arxiv.org/abs/2107.10833; the network is described in that
project's releases, https://github.com/xinntao/Real-ESRGAN/blob/master/docs/anime_video_model.md.
Every convolution runs at low resolution; one pixel shuffle ends it, added to the nearest-neighbour
upscaled input. Only the PReLU form exists in published weights (others cannot be told apart).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_PRELU_START = 0.25


@dataclass(frozen=True, kw_only=True)
class SRVGGNetCompactConfig:
    """The numbers of one SRVGGNetCompact; `convs` counts the hidden layers."""

    scale: int = 4
    channels: int = 64
    convs: int = 16
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if min(self.scale, self.channels, self.channels_in) < 1 or self.convs < 0:
            raise ValueError("scale, channels and channels_in must be positive, convs at least 0")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact: 1 a convolution."""
        return self.convs + 2


class SRVGGNetCompact(nn.Module):
    """x: (N, C, h, w) in [0, 1] -> (N, C, s·h, s·w) float32, about [0, 1], not clamped."""

    def __init__(self, config: SRVGGNetCompactConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        layers: list[nn.Module] = [
            nn.Conv2d(colors, wide, 3, padding=1),
            nn.PReLU(wide, _PRELU_START),
        ]
        for _ in range(config.convs):
            layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.PReLU(wide, _PRELU_START)]
        layers.append(nn.Conv2d(wide, colors * config.scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)
        self._initialise()

    def _initialise(self) -> None:
        """He's for PReLU; PyTorch's own shrinks what passes through by half in every layer, and of
        18 layers in a row without shortcuts none learns. The residual starts small."""
        convolutions = [module for module in self.body if isinstance(module, nn.Conv2d)]
        for conv in convolutions:
            nn.init.kaiming_normal_(conv.weight, a=_PRELU_START)
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
        convolutions[-1].weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.config.scale
        residual = functional.pixel_shuffle(self.body(x), scale)
        # In float32: a bf16 sum would round the picture itself to 8 bits of mantissa.
        wide = torch.promote_types(x.dtype, torch.float32)
        return functional.interpolate(x.to(wide), scale_factor=scale) + residual.to(wide)


SRVGGNET_SIZES: dict[str, SRVGGNetCompactConfig] = {
    "realesr-animevideov3": SRVGGNetCompactConfig(convs=16),
    "realesr-general-x4v3": SRVGGNetCompactConfig(convs=32),
    "realesrganv2-animevideo-xsx2": SRVGGNetCompactConfig(scale=2, convs=16),
    "ultracompact-x4": SRVGGNetCompactConfig(convs=8),
    "superultracompact-x4": SRVGGNetCompactConfig(channels=24, convs=8),
}
