"""The discriminators of the published GANs: pictures in, logits out (no sigmoid).

x: (N, 3, H, W) float, RGB in [0, 1] -> (N, 1) logits, or a map (N, 1, h, w) of them. A higher
logit means "more real". Every config has `crop_px`, the side of the square crops that it will be
shown, and raises ValueError when these are none that it can take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.errors import UsageError
from waifu4x.train import options


def _check_crop(x: Tensor, crop_px: int) -> None:
    if x.shape[2:] != (crop_px, crop_px):
        raise ValueError(f"made for crops of {crop_px} px a side, not {tuple(x.shape)}")


def _norm(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


@dataclass(frozen=True, kw_only=True)
class SRGANDiscriminatorConfig:
    """The numbers of SRGAN's discriminator (Ledig et al., https://arxiv.org/abs/1609.04802).

    The paper's head is two dense layers, for crops of just `crop_px`; a `pooled` one averages over
    all positions before them, and takes every size.
    `body_bias` is about the convolutions that a normalisation follows, where a bias has no effect.
    """

    crop_px: int = 96
    pooled: bool = False
    channels: int = 64
    hidden: int = 1024
    body_bias: bool = False
    norm: bool = True

    def __post_init__(self) -> None:
        if min(self.channels, self.hidden) < 1:
            raise ValueError("channels and hidden must be positive")
        if self.crop_px < 16:
            raise ValueError(f"crop_px must be 16 or more, not {self.crop_px}")


class SRGANDiscriminator(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1] -> (N, 1) logits.

    Eight 3x3 convolutions, every second one halving the size, LeakyReLU 0.2 after each and batch
    normalisation after all but the first. Raises ValueError for another size than `config.crop_px`
    unless the head is pooled.
    """

    def __init__(self, config: SRGANDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        wide, bias = config.channels, config.body_bias or not config.norm
        plan = [(wide * factor, stride) for factor in (1, 2, 4, 8) for stride in (1, 2)]
        layers: list[nn.Module] = []
        channels = 3
        for number, (out, stride) in enumerate(plan):
            first = number == 0
            layers.append(nn.Conv2d(channels, out, 3, stride, padding=1, bias=first or bias))
            layers.append(_norm(out, config.norm and not first))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = out
        self.body = nn.Sequential(*layers)
        # Each halving rounds up.
        side = 1 if config.pooled else -(-config.crop_px // 16)
        self.hidden = nn.Linear(channels * side * side, config.hidden)
        self.last = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.config.pooled:
            _check_crop(x, self.config.crop_px)
        features = self.body(x)
        if self.config.pooled:
            features = features.mean((2, 3))
        return self.last(functional.leaky_relu(self.hidden(features.flatten(1)), 0.2))


@dataclass(frozen=True, kw_only=True)
class VGGDiscriminatorConfig:
    """The numbers of ESRGAN's discriminator: `stages` halvings of a crop of `crop_px`, then dense.

    By default 5 stages, but 6 for 256 px, as published (ESRGAN: 128 and 256; RankSRGAN: 296).
    """

    crop_px: int = 128
    stages: int | None = None
    channels: int = 64
    hidden: int = 100
    norm: bool = True

    def __post_init__(self) -> None:
        if min(self.halvings, self.channels, self.hidden) < 1:
            raise ValueError("stages, channels and hidden must be positive")
        if self.crop_px < 2**self.halvings:
            raise ValueError(f"crop_px must be {2**self.halvings} or more, not {self.crop_px}")

    @property
    def halvings(self) -> int:
        """How many stages there are."""
        return (6 if self.crop_px == 256 else 5) if self.stages is None else self.stages


class VGGDiscriminator(nn.Module):
    """x: (N, 3, crop, crop) RGB in [0, 1] -> (N, 1) logits; ValueError for another size.

    Each stage is a 3x3 convolution and a 4x4 one that halves, with batch normalisation (but for the
    very first) and LeakyReLU 0.2 (Wang et al., ESRGAN, https://arxiv.org/abs/1809.00219).
    """

    def __init__(self, config: VGGDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(config.halvings):
            wide, first = config.channels * min(2**stage, 8), stage == 0
            layers += [
                nn.Conv2d(channels, wide, 3, padding=1, bias=first or not config.norm),
                _norm(wide, config.norm and not first),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(wide, wide, 4, 2, padding=1, bias=not config.norm),
                _norm(wide, config.norm),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels = wide
        self.body = nn.Sequential(*layers)
        side = config.crop_px >> config.halvings  # each halving rounds down
        self.hidden = nn.Linear(channels * side * side, config.hidden)
        self.last = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        _check_crop(x, self.config.crop_px)
        features = self.body(x).flatten(1)
        return self.last(functional.leaky_relu(self.hidden(features), 0.2))


class SpectralConv2d(nn.Module):
    """A convolution without bias, of its weight divided by the weight's largest singular value.

    Miyato et al. (2018), https://arxiv.org/abs/1802.05957: one step of power iteration for each
    forward in train mode, none in eval. The singular value is guaranteed to be found in float32,
    also under autocast, which torch's own would follow into bfloat16. Parameters and buffers are
    named as torch.nn.utils.spectral_norm does, so that published discriminators can be loaded.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight_orig = nn.Parameter(
            nn.Conv2d(channels, out, kernel, bias=False).weight.detach()
        )
        for name, length in (("u", out), ("v", channels * kernel**2)):
            start = functional.normalize(torch.randn(length), dim=0, eps=1e-12)
            self.register_buffer(f"weight_{name}", start)
        with torch.no_grad():
            for _ in range(15):  # a fresh u is far from the singular vector
                self._iterate()

    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v.copy_(functional.normalize(matrix.t() @ self.weight_u, dim=0, eps=1e-12))
        self.weight_u.copy_(functional.normalize(matrix @ self.weight_v, dim=0, eps=1e-12))

    def weight(self) -> Tensor:
        """(out, channels, k, k): the weight, normalised by the present estimate."""
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            if self.training:
                with torch.no_grad():
                    self._iterate()
            # Copies: the next forward changes the buffers, and this one's backward needs them.
            u, v = self.weight_u.clone(), self.weight_v.clone()
            return self.weight_orig / torch.dot(u, self.weight_orig.flatten(1) @ v)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight(), stride=self.stride, padding=1)


@dataclass(frozen=True, kw_only=True)
class SRNTTDiscriminatorConfig:
    """The numbers of SRNTT's discriminator: five halvings of a crop of `crop_px`, then dense."""

    crop_px: int = 160
    channels: int = 32
    hidden: int = 1024
    norm: bool = True

    def __post_init__(self) -> None:
        if min(self.channels, self.hidden) < 1:
            raise ValueError("channels and hidden must be positive")
        if self.crop_px < 32:
            raise ValueError(f"crop_px must be 32 or more, not {self.crop_px}")


class SRNTTDiscriminator(nn.Module):
    """x: (N, 3, crop, crop) RGB in [0, 1] -> (N, 1) logits; ValueError for another size.

    Each of five stages is a 3x3 convolution and one that halves, twice as wide as the one before,
    all with batch normalisation and LeakyReLU 0.2 (Zhang et al., https://arxiv.org/abs/1903.00834).
    """

    def __init__(self, config: SRNTTDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels, side = 3, config.crop_px
        for stage in range(5):
            wide = config.channels * 2**stage
            for into, stride in ((channels, 1), (wide, 2)):
                layers.append(nn.Conv2d(into, wide, 3, stride, padding=1, bias=not config.norm))
                layers += [_norm(wide, config.norm), nn.LeakyReLU(0.2, inplace=True)]
            channels, side = wide, -(-side // 2)
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * side * side, config.hidden)
        self.last = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        _check_crop(x, self.config.crop_px)
        features = self.body(x).flatten(1)
        return self.last(functional.leaky_relu(self.hidden(features), 0.2))


@dataclass(frozen=True, kw_only=True)
class UNetDiscriminatorConfig:
    """The numbers of Real-ESRGAN's discriminator, which takes every multiple of 8."""

    crop_px: int = 256
    channels: int = 64

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError("channels must be positive")
        if self.crop_px < 8 or self.crop_px % 8:
            raise ValueError(f"crop_px must be a multiple of 8, not {self.crop_px}")


class UNetDiscriminator(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1] -> (N, 1, H, W) logits, one a pixel.

    A U-Net with spectral normalisation whose skips are added (Wang et al., Real-ESRGAN,
    https://arxiv.org/abs/2107.10833). Raises ValueError unless H and W are multiples of 8. Its keys
    are those of the published ``netD`` files.
    """

    def __init__(self, config: UNetDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        w = config.channels
        self.conv0 = nn.Conv2d(3, w, 3, padding=1)
        self.conv1 = SpectralConv2d(w, 2 * w, kernel=4, stride=2)
        self.conv2 = SpectralConv2d(2 * w, 4 * w, kernel=4, stride=2)
        self.conv3 = SpectralConv2d(4 * w, 8 * w, kernel=4, stride=2)
        self.conv4 = SpectralConv2d(8 * w, 4 * w, kernel=3, stride=1)
        self.conv5 = SpectralConv2d(4 * w, 2 * w, kernel=3, stride=1)
        self.conv6 = SpectralConv2d(2 * w, w, kernel=3, stride=1)
        self.conv7 = SpectralConv2d(w, w, kernel=3, stride=1)
        self.conv8 = SpectralConv2d(w, w, kernel=3, stride=1)
        self.conv9 = nn.Conv2d(w, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(f"made for sizes that are multiples of 8 px, not {tuple(x.shape)}")
        full = _leaky(self.conv0(x))
        half = _leaky(self.conv1(full))
        quarter = _leaky(self.conv2(half))
        features = _leaky(self.conv3(quarter))
        features = _leaky(self.conv4(_doubled(features))) + quarter
        features = _leaky(self.conv5(_doubled(features))) + half
        features = _leaky(self.conv6(_doubled(features))) + full
        return self.conv9(_leaky(self.conv8(_leaky(self.conv7(features)))))


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2, inplace=True)


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """The numbers of pix2pix's 70x70 discriminator, which takes every size from 32 px."""

    crop_px: int = 128
    channels: int = 64
    norm: bool = True

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError("channels must be positive")
        if self.crop_px < 32:
            raise ValueError(f"crop_px must be 32 or more, not {self.crop_px}")


class PatchDiscriminator(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1] -> (N, 1, H/8 - 2, W/8 - 2) logits of 70x70 px each.

    Isola et al., https://arxiv.org/abs/1611.07004: five 4x4 convolutions, three of which halve.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, wide, 4, 2, padding=1), nn.LeakyReLU(0.2, True)]
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            out = config.channels * factor
            layers.append(nn.Conv2d(wide, out, 4, stride, padding=1, bias=not config.norm))
            layers += [_norm(out, config.norm), nn.LeakyReLU(0.2, inplace=True)]
            wide = out
        self.body = nn.Sequential(*layers, nn.Conv2d(wide, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Discriminator(NamedTuple):
    """What makes a discriminator: `module(config(crop_px=…, **numbers))`."""

    config: type[Any]
    module: type[nn.Module]
    numbers: Mapping[str, Any]


DISCRIMINATORS: dict[str, Discriminator] = {
    "srgan": Discriminator(SRGANDiscriminatorConfig, SRGANDiscriminator, {}),
    "srgan-gap": Discriminator(
        SRGANDiscriminatorConfig, SRGANDiscriminator, {"pooled": True, "body_bias": True}
    ),
    "srntt": Discriminator(SRNTTDiscriminatorConfig, SRNTTDiscriminator, {}),
    "vgg128": Discriminator(VGGDiscriminatorConfig, VGGDiscriminator, {}),
    "unet-sn": Discriminator(UNetDiscriminatorConfig, UNetDiscriminator, {}),
    "patchgan": Discriminator(PatchDiscriminatorConfig, PatchDiscriminator, {}),
}


def build_discriminator(kind: str, *, crop_px: int, **numbers: Any) -> nn.Module:
    """A fresh discriminator for high-resolution crops of `crop_px` a side.

    `numbers` are those of its config which are to differ (channels = 32, norm = false). Raises
    UsageError for an unknown kind or number, and for crops that it cannot take.
    """
    if kind not in DISCRIMINATORS:
        known = list(DISCRIMINATORS)
        raise UsageError(options.unknown(f"no discriminator {kind!r}", kind, known=known))
    entry = DISCRIMINATORS[kind]
    fields = [field.name for field in dataclasses.fields(entry.config) if field.name != "crop_px"]
    for key in numbers:
        if key not in fields:
            wrong = f"discriminator {kind}: unknown key {key!r}"
            raise UsageError(options.unknown(wrong, key, known=fields))
    try:
        return entry.module(entry.config(**{"crop_px": crop_px, **entry.numbers, **numbers}))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"discriminator {kind}, for crops of {crop_px} px: {reason}") from error
