"""SRNTT: features of similar places of a sharp reference are pasted in, and made a picture of.

Zhang et al., "Image Super-Resolution by Neural Texture Transfer" (CVPR 2019),
https://arxiv.org/abs/1903.00834. An extractor as SRGAN's generator makes features of the content,
and a first large picture. VGG-19's features of that are searched for in the reference (shrunk and
enlarged likewise), and the sharp reference's features at the best places become three maps, which
the transfer network mixes into the content. The search is `waifu4x.references.matching`; here are
the networks. Pictures in [0, 1] go in and come out; inside they are in [-1, 1], as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Maps = tuple[Tensor, Tensor, Tensor]
"""Features as of VGG-19's relu3_1, relu2_1 and relu1_1: (N, 256, h, w), (N, 128, 2h, 2w) and
(N, 64, 4h, 4w), for a picture of (h, w) that is to be enlarged 4 times."""

TEXTURE_LAYERS = ("relu3_1", "relu2_1", "relu1_1")
_TEXTURE_WIDTHS = (256, 128, 64)
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class SRNTTConfig:
    """The numbers of one SRNTT, which enlarges 4 times.

    The content has `blocks` residual blocks, and the three scales of the transfer network as many,
    a half and a quarter. `middle_bias` is about a convolution of the content that a normalisation
    follows, where a bias has no effect. With `residual` pictures are added to the input enlarged
    by bicubic interpolation, without tanh: no property of the paper's, but it learns in a fraction
    of the time.
    """

    channels: int = 64
    blocks: int = 16
    middle_bias: bool = True
    residual: bool = False

    # Facts every network of this project states in its config.
    scale = 4
    channels_in = 3
    pre_upsampled = False
    size_multiple = 1
    # The best place may be anywhere in the reference.
    global_context = True
    reference = "optional"

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels must be even, not {self.channels}")
        if self.blocks < 0:
            raise ValueError(f"blocks must be 0 or more, not {self.blocks}")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, the convolutions of an output pixel look to each side.

        Of the content and the transfer network; exact but for the search, which adds what VGG-19
        sees around a patch.
        """
        low, high = -1 - 2 * (self.blocks // 4) - 3, 4 + 2 * (self.blocks // 4) + 3
        for blocks in (self.blocks // 2, self.blocks):
            # Shuffled apart: each of four pixels is made of what lies around one.
            low, high = low // 2 - 1, high // 2 + 1
            low, high = low - 2 * blocks - 2, high + 2 * blocks + 2
        return 2 * self.blocks + 2 + max(-low, high)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))


class Doubling(nn.Module):
    """x: (N, C, h, w) -> (N, C, 2h, 2w) by convolution, pixel shuffle and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.pixel_shuffle(self.conv(x), 2))


class ContentExtractor(nn.Module):
    """x: (N, 3, h, w) in [-1, 1] -> features (N, C, h, w); `enlarge` makes a picture of those."""

    def __init__(self, config: SRNTTConfig) -> None:
        super().__init__()
        wide = config.channels
        self.conv_in = nn.Conv2d(3, wide, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(wide) for _ in range(config.blocks)))
        self.conv_mid = nn.Conv2d(wide, wide, 3, padding=1, bias=config.middle_bias)
        self.bn_mid = nn.BatchNorm2d(wide)
        self.up = nn.Sequential(Doubling(wide), Doubling(wide))
        self.conv_out = nn.Conv2d(wide, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = functional.relu(self.conv_in(x))
        return features + self.bn_mid(self.conv_mid(self.blocks(features)))

    def enlarge(self, features: Tensor, wide: torch.dtype) -> Tensor:
        """(N, C, h, w) -> (N, 3, 4h, 4w), before what bounds it."""
        return _last(self.conv_out, self.up(features), wide)


class Fusion(nn.Module):
    """Features (N, C, h, w) and a map (N, M, h, w) of the same scale -> (N, C, h, w)."""

    def __init__(self, channels: int, mapped: int, *, blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels + mapped, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn_mid = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor, mapped: Tensor) -> Tensor:
        joined = functional.relu(self.conv_in(torch.cat([features, mapped], 1)))
        return features + self.bn_mid(self.conv_mid(self.blocks(joined)))


class TextureTransfer(nn.Module):
    """Content features (N, C, h, w) and maps -> (N, 3, 4h, 4w), before what bounds it."""

    def __init__(self, config: SRNTTConfig) -> None:
        super().__init__()
        wide = config.channels
        depths = (config.blocks, config.blocks // 2, config.blocks // 4)
        self.levels = nn.ModuleList(
            [
                Fusion(wide, mapped, blocks=blocks)
                for mapped, blocks in zip(_TEXTURE_WIDTHS, depths, strict=True)
            ]
        )
        self.up = nn.ModuleList([Doubling(wide), Doubling(wide)])
        self.conv_hr = nn.Conv2d(wide, wide // 2, 3, padding=1)
        self.conv_out = nn.Conv2d(wide // 2, 3, 1)

    def forward(self, features: Tensor, maps: Maps, wide: torch.dtype) -> Tensor:
        for number, (level, mapped) in enumerate(zip(self.levels, maps, strict=True)):
            features = level(features, mapped)
            if number < len(self.up):
                features = self.up[number](features)
        return _last(self.conv_out, self.conv_hr(features), wide)


class Texture(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], H and W multiples of 4 -> maps of H/4 and W/4: see `Maps`.

    The beginning of VGG-19, with torchvision's keys; ImageNet's mean and deviation are applied
    inside. Frozen, and of random weights when fresh. Gradients flow to x.
    """

    def __init__(self) -> None:
        super().__init__()
        plan = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}
        self.features = nn.ModuleDict(
            {str(n): nn.Conv2d(into, out, 3, padding=1) for n, (into, out) in plan.items()}
        )
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Maps:
        def relu(number: int, features: Tensor) -> Tensor:
            return functional.relu(self.features[str(number)](features))

        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        fine = relu(0, (x - mean) / std)
        middle = relu(5, functional.max_pool2d(relu(2, fine), 2))
        coarse = relu(10, functional.max_pool2d(relu(7, middle), 2))
        return coarse, middle, fine


class SRNTT(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1], and maps -> (N, 3, 4h, 4w) float32 in [0, 1], not clamped.

    Without maps it gives what the content extractor makes alone, which is how that is trained. With
    maps the extractor is guaranteed to stay as it is: it gets no gradients, and no statistics.
    """

    def __init__(self, config: SRNTTConfig) -> None:
        super().__init__()
        self.config = config
        self.content = ContentExtractor(config)
        self.transfer = TextureTransfer(config)
        self.texture = Texture()

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if maps is None:
            return self._picture(x, self.content.enlarge(self.content(2.0 * x - 1.0), wide))
        return self._picture(x, self.transfer(self._frozen_content(x), maps, wide))

    def _frozen_content(self, x: Tensor) -> Tensor:
        was_training = self.content.training
        self.content.eval()  # normalisations take the statistics that they have, and gather none
        try:
            with torch.no_grad():
                return self.content(2.0 * x - 1.0)
        finally:
            self.content.train(was_training)

    def _picture(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.config.residual:
            return (torch.tanh(y) + 1.0) / 2.0
        return functional.interpolate(x.to(y.dtype), scale_factor=4, mode="bicubic") + y


def _last(conv: nn.Conv2d, features: Tensor, wide: torch.dtype) -> Tensor:
    """A last convolution in `wide`: what it gives is the picture, and in bf16 it had 8 bits."""
    with torch.autocast(features.device.type, enabled=False):
        return conv(features.to(wide))


SRNTT_SIZES: dict[str, SRNTTConfig] = {"srntt-x4": SRNTTConfig()}
