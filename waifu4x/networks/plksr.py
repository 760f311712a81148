"""PLKSR and RealPLKSR: convolutions of 13 or 17 pixels a side, on a part of the channels.

Lee et al., "Partial Large Kernel CNNs for Efficient Super-Resolution" (2024),
https://arxiv.org/abs/2404.11848. RealPLKSR, of the trainers neosr and traiNNer-redux
(https://github.com/the-database/traiNNer-redux), adds a normalisation to every block, so that it
can be trained by a discriminator. That over groups of channels averages over the whole input as
well, so a picture in tiles differs from that in one piece.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["plain", "group", "layer"]

# In no key and no shape; all that were published have so many.
_GROUPS = 4


@dataclass(frozen=True, kw_only=True)
class PLKSRConfig:
    """The numbers of one PLKSR (`kind` ``plain``) or RealPLKSR.

    RealPLKSR normalises in groups of channels after a block (``group``), or all channels of a pixel
    before it (``layer``). The first `large_channels` of a block's go through the large kernel.
    `mixer_kernels` are those of the two convolutions before it: both 3, or one of them 1. `gate`
    weighs the features by a sigmoid of themselves.
    """

    scale: int = 4
    blocks: int = 28
    channels: int = 64
    kind: Kind = "plain"
    large_kernel: int = 17
    large_channels: int = 16
    mixer_kernels: tuple[int, int] = (3, 3)
    gate: bool = True
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "group", "layer"):
            raise ValueError(f"kind must be 'plain', 'group' or 'layer', not {self.kind!r}")
        if min(self.scale, self.channels, self.channels_in) < 1 or self.blocks < 0:
            raise ValueError("scale, channels, channels_in must be positive, blocks at least 0")
        if self.kind == "group" and self.channels % _GROUPS:
            raise ValueError(f"channels must be a multiple of {_GROUPS} for kind 'group'")
        if not 1 <= self.large_channels <= self.channels:
            raise ValueError(f"large_channels must be 1 to channels, not {self.large_channels}")
        if any(n < 1 or n % 2 == 0 for n in (self.large_kernel, *self.mixer_kernels)):
            raise ValueError("large_kernel and mixer_kernels must be odd")

    @property
    def global_context(self) -> bool:
        """A group is normalised by its mean over the whole input."""
        return self.kind == "group"

    @property
    def receptive_radius_px(self) -> int:
        """How far the convolutions of one output pixel look to each side, in input pixels; exact.

        310 for the large one.
        """
        kernels = (*self.mixer_kernels, self.large_kernel, 3 if self.gate else 1)
        return 1 + self.blocks * sum(kernel // 2 for kernel in kernels) + 1


class LayerNorm(nn.LayerNorm):
    """(N, C, h, w) -> the channels of each pixel with mean 0 and variance 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        wide = torch.promote_types(input.dtype, torch.float32)
        y = super().forward(input.to(wide).permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2).to(input.dtype)


class Block(nn.Module):
    """x: (N, C, h, w) -> x + what two small kernels, a large one and a gate make of it."""

    def __init__(self, config: PLKSRConfig) -> None:
        super().__init__()
        wide, (one, other) = config.channels, config.mixer_kernels
        self.split = [config.large_channels, wide - config.large_channels]
        self.kind: Kind = config.kind
        self.mixer1 = nn.Conv2d(wide, 2 * wide, one, padding=one // 2)
        self.mixer2 = nn.Conv2d(2 * wide, wide, other, padding=other // 2)
        self.large = nn.Conv2d(
            config.large_channels,
            config.large_channels,
            config.large_kernel,
            padding=config.large_kernel // 2,
        )
        self.gate = nn.Conv2d(wide, wide, 3, padding=1) if config.gate else None
        self.refine = nn.Conv2d(wide, wide, 1)
        self.layer_norm = LayerNorm(wide) if config.kind == "layer" else None
        self.norm = nn.GroupNorm(_GROUPS, wide) if config.kind == "group" else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer1(x if self.layer_norm is None else self.layer_norm(x))
        y = self.mixer2(functional.gelu(y) if self.kind == "plain" else functional.mish(y))
        part, rest = torch.split(y, self.split, dim=1)
        y = torch.cat((self.large(part), rest), 1)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y))
        if self.norm is None:
            return x + self.refine(y)
        # What is rounded before small differences are made large would be lost: in bf16 that is
        # forty times the error. With the channels last PyTorch sums less exactly.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            y = self.norm(self.refine(y.to(wide)).contiguous())
        return x + y.to(x.dtype)


class PLKSR(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    def __init__(self, config: PLKSRConfig) -> None:
        super().__init__()
        self.config = config
        colors = config.channels_in
        self.conv_first = nn.Conv2d(colors, config.channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.blocks)))
        self.conv_last = nn.Conv2d(config.channels, colors * config.scale**2, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """The authors': all but the first convolution of a block start as almost nothing."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.endswith("mixer1"):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.config.scale
        residual = self.conv_last(self.blocks(self.conv_first(x)))
        residual = functional.pixel_shuffle(residual, scale)
        # In float32: a bf16 sum would round the picture itself to 8 bits of mantissa.
        wide = torch.promote_types(x.dtype, torch.float32)
        return functional.interpolate(x.to(wide), scale_factor=scale) + residual.to(wide)


PLKSR_SIZES: dict[str, PLKSRConfig] = {
    "plksr-tiny-x2": PLKSRConfig(scale=2, blocks=12, large_kernel=13, gate=False),
    "plksr-tiny-x4": PLKSRConfig(scale=4, blocks=12, large_kernel=13, gate=False),
    "plksr-x2": PLKSRConfig(scale=2),
    "plksr-x4": PLKSRConfig(scale=4),
    "realplksr-x2": PLKSRConfig(scale=2, kind="group"),
    "realplksr-x4": PLKSRConfig(scale=4, kind="group"),
    "realplksr-layer-x4": PLKSRConfig(scale=4, kind="layer"),
    "realplksr-tiny-x4": PLKSRConfig(kind="layer", blocks=12, large_kernel=13, gate=False),
}
