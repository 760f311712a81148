"""SRCNN: the first convolutional super-resolution network, three layers on the bicubic picture.

Dong, Loy, He, Tang, "Image Super-Resolution Using Deep Convolutional Networks" (TPAMI 2016),
https://arxiv.org/abs/1501.00092. The input is already upscaled (bicubic, MATLAB's), as a rule only
its luma; one set of weights belongs to one scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class SRCNNConfig:
    """The numbers of one SRCNN: odd kernel sizes and the widths of the two hidden layers."""

    kernels: tuple[int, int, int] = (9, 5, 5)
    channels: tuple[int, int] = (64, 32)
    channels_in: int = 1

    # Facts every network of this project states in its config.
    scale = 1
    pre_upsampled = True
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if len(self.kernels) != 3 or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels must be three odd sizes, not {self.kernels!r}")
        if len(self.channels) != 2 or min(self.channels) < 1 or self.channels_in < 1:
            raise ValueError("channels must be two positive widths, channels_in positive")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact."""
        return sum(kernel // 2 for kernel in self.kernels)


class SRCNN(nn.Module):
    """x: (N, C, h, w) in [0, 1], bicubic-upscaled -> (N, C, h, w) float32, not clamped."""

    def __init__(self, config: SRCNNConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.channels_in, *config.channels, config.channels_in)
        # Replicate padding is what the authors' test code does; zeros darken the border.
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2, padding_mode="replicate")
            for width_in, width_out, kernel in zip(widths, widths[1:], config.kernels, strict=False)
        )
        self._initialise()

    def _initialise(self) -> None:
        """So that it begins as bicubic: the picture passes through one channel a color.

        The other channels begin by He's rule, and add what the last layer, N(0, 0.001) as in the
        paper, makes of them. With the paper's N(0, 0.001) in every layer it has to learn the
        picture itself first, and was still below bicubic after four thousand steps.
        """
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
        nn.init.normal_(self.conv3.weight, std=0.001)
        passed = min(self.config.channels_in, *self.config.channels)
        for conv in (self.conv1, self.conv2, self.conv3):
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            middle = conv.kernel_size[0] // 2
            with torch.no_grad():
                for color in range(passed):
                    if conv is not self.conv3:
                        conv.weight[color] = 0.0
                    conv.weight[color, color, middle, middle] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv1(x), inplace=True)
        features = functional.relu(self.conv2(features), inplace=True)
        # There is no skip, so what this layer gives is the picture: in bf16 it would have 8 bits.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return self.conv3(features.to(wide))


SRCNN_SIZES: dict[str, SRCNNConfig] = {
    "srcnn-9-1-5": SRCNNConfig(kernels=(9, 1, 5)),
    "srcnn-9-3-5": SRCNNConfig(kernels=(9, 3, 5)),
    "srcnn-9-5-5": SRCNNConfig(kernels=(9, 5, 5)),
    "srcnn-9-1-5-rgb": SRCNNConfig(kernels=(9, 1, 5), channels_in=3),
    "srcnn-9-3-5-rgb": SRCNNConfig(kernels=(9, 3, 5), channels_in=3),
    "srcnn-9-5-5-rgb": SRCNNConfig(kernels=(9, 5, 5), channels_in=3),
}
