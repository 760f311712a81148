"""SAN: channels are weighed by how they vary together over the picture, and regions by themselves.

Dai et al., "Second-order Attention Network for Single Image Super-Resolution" (CVPR 2019). Each
group of residual blocks ends in an attention whose weights come from the square root of the
channels' covariance; before and after all groups the same non-local block lets every pixel of a
quarter of the picture look at all others of that quarter.

So every pixel depends on the whole input, and a picture in tiles is another than that in one piece:
in a tile the covariance is that of the tile, and the four regions are the quarters of the tile, not
of the picture. For a small network of random weights, in tiles of half of a small picture, the
first made one grey level of 255 on average, and the second, which training starts from nothing,
nine. What convolutions alone compute stays the same. So tiles should be large.

The published code holds weights that nothing uses: a γ in every group, one convolution behind all
groups, and a channel attention inside of the non-local block, 38,044 numbers of 15,860,488 for x4.
Here they do not exist. Published weights work on the picture times 255 less the mean color of
DIV2K; here both happen inside, and a picture in [0, 1] goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Of the pictures of DIV2K, in [0, 1]."""
_WHITE = 255.0
COVARIANCE_PX = 1000
"""Of what is larger, only the middle goes into the covariance, as in the published code."""
_ITERATIONS = 5
# Far below the variance of any features of a picture in 0..255, and above what is left of it by
# rounding where all is of one color.
_LEAST_TRACE = 1e-6
# So many pixels at a time look at their region: what that takes grows with the region's pixels, and
# not with their square.
_LOOKING = 1024
# CUDA's kernels that do without the whole square want as many values, or a multiple.
_VALUES = 8

LongSkip = Literal["head", "region"]


@dataclass(frozen=True, kw_only=True)
class SANConfig:
    """The numbers of one SAN: `groups` times `blocks` residual blocks.

    Attention of channels goes through `channels` / `reduction` values, that of regions through
    `looking`. `long_skip` says what is added after all groups: the features of the first
    convolution (``head``, as for the published weights), or those after the first non-local block
    (``region``, as in the authors' later code).
    """

    scale: int = 4
    groups: int = 20
    blocks: int = 10
    channels: int = 64
    reduction: int = 16
    looking: int = 8
    long_skip: LongSkip = "head"

    # Facts every network of this project states in its config.
    channels_in = 3
    pre_upsampled = False
    size_multiple = 1
    global_context = True

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4, 8):
            raise ValueError(f"scale must be 2, 3, 4 or 8, not {self.scale}")
        if min(self.groups, self.blocks) < 0 or min(self.channels, self.looking) < 1:
            raise ValueError("channels and looking must be positive, groups and blocks at least 0")
        if not 1 <= self.reduction <= self.channels:
            raise ValueError(f"reduction must be 1 to {self.channels}, not {self.reduction}")
        if self.long_skip not in ("head", "region"):
            raise ValueError(f"long_skip must be 'head' or 'region', not {self.long_skip!r}")

    @property
    def stages(self) -> tuple[int, ...]:
        """The pixel-shuffle factors, in order: a 3 for x3, else twos."""
        return (3,) if self.scale == 3 else (2,) * (self.scale.bit_length() - 1)

    @property
    def receptive_radius_px(self) -> int:
        """How far the convolutions of one output pixel look to each side, in input pixels; exact.

        Walks back from the output pixels inside one input pixel: `low` and `high` are the
        positions seen, which a shuffle divides and a convolution widens.
        """
        low, high = -1, self.scale - 1 + 1  # conv_last at full size
        for factor in reversed(self.stages):
            low, high = low // factor - 1, high // factor + 1
        trunk = 1 + self.groups * (2 * self.blocks + 1)
        return trunk + max(-low, high)


def _middle(x: Tensor, most_px: int) -> Tensor:
    """(N, C, h, w) -> the middle, at most `most_px` to a side.

    By arithmetic alone, without a question: a trace of it holds for inputs of any size.
    """
    for axis in (2, 3):
        beyond = x.shape[axis] - most_px
        before = (beyond + abs(beyond)) // 4  # half of what is too much, 0 where nothing is
        here = slice(before, before + most_px)
        x = x[:, :, here] if axis == 2 else x[:, :, :, here]
    return x


def covariance(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, C): how channels vary together over the pixels, divided by h·w.

    The mean goes off first: it is subtracted from squares otherwise, which leaves rounding errors
    where all is of one color, and those have no square root.
    """
    values = x.flatten(2)
    values = values - values.mean(2, keepdim=True)
    return values @ values.transpose(1, 2) / values.shape[2]


def square_root(matrices: Tensor) -> Tensor:
    """(N, C, C), symmetric and without negative eigenvalues -> the same: nearly S with S·S = it.

    By five steps of Newton and Schulz (https://arxiv.org/abs/1712.01034), from a trace of 1. The
    roots of eigenvalues below a hundredth of their sum come out too small; trained weights count on
    that.
    """
    one = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    trace = (matrices * one).sum((1, 2), keepdim=True).clamp(min=_LEAST_TRACE)
    y, thrice = matrices / trace, 3.0 * one
    step = 0.5 * (thrice - y)
    y, z = y @ step, step
    for _ in range(_ITERATIONS - 2):
        step = 0.5 * (thrice - z @ y)
        y, z = y @ step, step @ z
    return 0.5 * y @ (thrice - z @ y) * trace.sqrt()


class SecondOrderAttention(nn.Module):
    """x: (N, C, h, w) -> x times a weight in (0, 1) for every channel.

    In float32 whatever the rest computes in: half precision has not the digits for the square root.
    """

    in_float32 = True

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // reduction, 1)
        self.up = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            root = square_root(covariance(_middle(x, COVARIANCE_PX).to(wide)))
            told = root.mean(1)[:, :, None, None]
            weights = torch.sigmoid(self.up(functional.relu(self.down(told))))
        return x * weights.to(x.dtype)


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True))


class AttentionGroup(nn.Module):
    """x: (N, C, h, w) -> x + conv(attention(blocks(x)))."""

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        wide = config.channels
        self.blocks = nn.Sequential(*(ResidualBlock(wide) for _ in range(config.blocks)))
        self.attention = SecondOrderAttention(wide, config.reduction)
        self.conv = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.attention(self.blocks(x)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(N, D, h, w) each -> (N, D, h, w): for every pixel the values, by how alike its key is.

    Weighed by exp(query · key), which sum up to 1.
    """
    q, k, v = (each.flatten(2).transpose(1, 2)[:, None] for each in (query, key, value))
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        # It would keep the number of parts that its example has.
        looked = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    else:
        looked = _attended_by_parts(q, k, v)
    return looked[:, 0].transpose(1, 2).reshape(query.shape)


def _attended_by_parts(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(N, 1, M, D) each -> the same shape; what it takes of memory grows with M, not its square."""
    # Zeros change no product. Fast kernels also want the values of a pixel side by side.
    missing = -query.shape[3] % _VALUES
    query, key, value = (
        functional.pad(each, (0, missing)).contiguous() for each in (query, key, value)
    )
    parts = [
        functional.scaled_dot_product_attention(part, key, value, scale=1.0)
        for part in query.split(_LOOKING, 2)
    ]
    return torch.cat(parts, 2)[..., : query.shape[3] - missing]


class RegionAttention(nn.Module):
    """x: (N, C, h, w) -> x + what each quarter of it sees of itself.

    Sides that are odd are cut below their middle; with one pixel the quarters are the same. In
    float32, as what is exponentiated is in the thousands.
    """

    in_float32 = True

    def __init__(self, channels: int, looking: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, looking, 1)
        self.key = nn.Conv2d(channels, looking, 1)
        self.value = nn.Conv2d(channels, looking, 1)
        self.conv_out = nn.Conv2d(looking, channels, 1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            given = x.to(wide)
            maps = [conv(given) for conv in (self.query, self.key, self.value)]
            return x + self.conv_out(self._looked(maps)).to(x.dtype)

    @staticmethod
    def _looked(maps: list[Tensor]) -> Tensor:
        # Also without a question, for traces: a side of 1 px is there twice, and left out once.
        rows, columns = (maps[0].shape[axis] // 2 for axis in (2, 3))
        more_rows, more_columns = 1 // (rows + 1), 1 // (columns + 1)
        bands = []
        for down in (slice(0, rows + more_rows), slice(rows, None)):
            across = [
                attend(*(each[:, :, down, aside] for each in maps))
                for aside in (slice(0, columns + more_columns), slice(columns, None))
            ]
            bands.append(torch.cat(across, 3)[:, :, :, more_columns:])
        return torch.cat(bands, 2)[:, :, more_rows:]


class SAN(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, s·h, s·w) float32, about [0, 1], not clamped."""

    mean: Tensor

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        # It is no weight, and so not in files; on the CPU also where the weights are left out.
        mean = torch.tensor(MEAN_RGB, device="cpu").view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(colors, wide, 3, padding=1)
        self.regions = RegionAttention(wide, config.looking)
        self.share = nn.Parameter(torch.zeros(1))
        self.groups = nn.ModuleList(AttentionGroup(config) for _ in range(config.groups))
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
        wide = torch.promote_types(x.dtype, torch.float32)
        head = self.conv_first((x - self.mean) * _WHITE)
        source = self.regions(head)
        shared = source * self.share.to(source.dtype)
        features = source
        for group in self.groups:
            features = group(features) + shared
        skip = head if self.config.long_skip == "head" else source
        features = self.regions(features) + skip
        return self._picture(self.upsample(features), wide) / _WHITE + self.mean


SAN_SIZES: dict[str, SANConfig] = {
    "san-x2": SANConfig(scale=2),
    "san-x3": SANConfig(scale=3),
    "san-x4": SANConfig(scale=4),
    "san-x8": SANConfig(scale=8),
}
