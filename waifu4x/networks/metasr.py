"""Meta-SR: one network for every scale, whole or not, whose last convolution is made for it.

Hu et al., "Meta-SR: A Magnification-Arbitrary Network for Super-Resolution" (CVPR 2019),
https://arxiv.org/abs/1903.00875. A trunk (that of EDSR-baseline, or RDN-B) makes features at low
resolution. Pixel i of a row enlarged by r lies on pixel ⌊i/r⌋ of the input, at i/r - ⌊i/r⌋ of its
width. A small perceptron makes of (1/r, offset down, offset right) the kernel of the one 3×3
convolution that gives the pixel, so that equal offsets share a kernel.

A scale is a `Fraction`, num/den, and positions are integers: pixel i lies on i·den // num, and its
offset is (i·den % num) / num. There are num² different kernels, and few for scales such as 2.7.

Three ways in:

- ``network(x)`` enlarges by `config.scale`, as any network of one scale does;
- ``network(x, scale)`` gives the ⌊r·h⌋ × ⌊r·w⌋ of the paper;
- ``network.at(scale, origin)`` is a network for a window of a picture: it gives all pixels that lie
  on the window, ⌈r·(y+h)⌉ - ⌈r·y⌉ rows for one whose first row is the picture's row y. Offsets are
  those of the picture, so windows put together are guaranteed to be what the whole would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Trunk = Literal["edsr", "rdn"]
Origin = tuple[int, int]
"""Row and column of a picture's pixel."""

MEAN_RGB = (0.4488, 0.4371, 0.4040)
"""Of the pictures of DIV2K, in [0, 1]."""

# To a side of a period; above it kernels are as many as pixels, or nearly. 4096 take 30 MB.
_MOST_SLOTS = 64
# Values that are made at once: 16 MB.
_MOST_VALUES = 2**22


@dataclass(frozen=True, kw_only=True)
class MetaSRConfig:
    """The numbers of one Meta-SR; `convs` are those of each block: 2 in EDSR's, 8 in RDN-B's.

    `growth` is of RDN's dense blocks alone. `scale` is the largest that it is trained for, and what
    it enlarges by when nobody asks for another. The features are those of the picture times
    `pixel_range`, 255 or 1, less the mean color with `mean_shift`.
    """

    trunk: Trunk = "edsr"
    blocks: int = 16
    convs: int = 2
    growth: int = 64
    channels: int = 64
    hidden: int = 256
    scale: int = 4
    pixel_range: int = 255
    mean_shift: bool = True
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 1
    global_context = False
    any_scale = True

    def __post_init__(self) -> None:
        if self.trunk not in ("edsr", "rdn"):
            raise ValueError(f"trunk must be 'edsr' or 'rdn', not {self.trunk!r}")
        numbers = (self.blocks, self.convs, self.growth, self.channels, self.hidden)
        if min(*numbers, self.scale, self.channels_in) < 1:
            raise ValueError("all numbers of a config must be positive")
        if self.trunk == "edsr" and self.convs != 2:
            raise ValueError(f"convs must be 2 for the trunk of EDSR, not {self.convs}")
        if self.pixel_range not in (1, 255):
            raise ValueError(f"pixel_range must be 1 or 255, not {self.pixel_range}")
        if self.mean_shift and self.channels_in != 3:
            raise ValueError("mean_shift must be false for other pictures than RGB")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel looks to each side; exact at any scale."""
        inside = self.convs * self.blocks + (self.trunk == "rdn")  # which has conv_second
        return 1 + inside + 1 + 1  # conv_first, the blocks, conv_body, the predicted kernel


class ResidualBlock(nn.Module):
    """x: (N, C, h, w) -> x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(x), inplace=True))


class DenseBlock(nn.Module):
    """x: (N, C, h, w) -> x + a mix of x and of layers that each see all before them."""

    def __init__(self, channels: int, growth: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + number * growth, growth, 3, padding=1) for number in range(convs)
        )
        self.fuse = nn.Conv2d(channels + convs * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs:
            seen = torch.cat([seen, functional.relu(conv(seen))], dim=1)
        return x + self.fuse(seen)


class PredictedConvolution(nn.Module):
    """A 3×3 convolution without weights of its own: x (N, C, h, w), weight (C', C, 3, 3)."""

    def forward(self, x: Tensor, weight: Tensor, *, padding: int = 0) -> Tensor:
        return functional.conv2d(x, weight, padding=padding)

    @staticmethod
    def multiply_adds(x: Tensor, y: Tensor) -> int:
        """Of one pass that made y of x, as papers count."""
        return y.numel() * x.shape[1] * 9


class MetaUpscale(nn.Module):
    """Features become pixels, each by the kernel that belongs to its offset.

    Two ways of computing the same. Where kernels are few, each is made once and applied to the
    pixels that it is for. Where nearly every pixel has its own, the perceptron's last layer is
    applied to the features instead, which is a convolution, and then to each pixel's hidden values:
    both are sums over the same products.
    """

    def __init__(self, channels: int, *, hidden: int, colors: int) -> None:
        super().__init__()
        self.channels, self.colors = channels, colors
        self.hidden = nn.Linear(3, hidden)
        # Its values are in the order (channel, row, column, color).
        self.kernel = nn.Linear(hidden, channels * 9 * colors)
        self.convolution = PredictedConvolution()

    def forward(
        self, x: Tensor, scale: Fraction, origin: Origin, kernels: Tensor | None = None
    ) -> Tensor:
        """(N, C, h, w) from `origin` of a picture on -> all pixels (N, 3, H, W) that lie on it.

        kernels: what `table` gives, where it was made before.
        """
        if not has_table(scale):
            return self._by_pixels(x, scale, origin)
        kernels = self.table(scale, like=x) if kernels is None else kernels
        if scale.denominator > 1:
            return self._by_kernels(x, scale, origin, kernels)
        # All slots are taken; the order of pixel_shuffle is color, row, column.
        slots, colors = scale.numerator, self.colors
        weight = kernels.view(self.channels, 3, 3, slots, slots, colors).permute(5, 3, 4, 0, 1, 2)
        made = self.convolution(x, weight.flatten(0, 2), padding=1)
        return functional.pixel_shuffle(made, slots)

    def table(self, scale: Fraction, *, like: Tensor) -> Tensor:
        """The kernels of a scale, (den², 9·C, s²·3): for every input pixel of a period, which is of
        `den` to each side, those of s = ⌈scale⌉ slots to each side. On an input pixel lie s output
        pixels or one less, and then the last slot is of no use.

        like: of the dtype, and on the device, that they are made in.
        """
        num, den, slots = scale.numerator, scale.denominator, math.ceil(scale)
        places = [
            ((first_pixel(pixel, scale) + slot) * den - pixel * num) / num
            for pixel in range(den)
            for slot in range(slots)
        ]
        offsets = torch.tensor(places, dtype=like.dtype).to(like.device)
        shape = (len(places), len(places))
        inputs = torch.stack(
            [
                torch.full(shape, den / num, dtype=like.dtype, device=like.device),
                offsets[:, None].expand(shape),
                offsets.expand(shape),
            ],
            dim=2,
        )
        made = self.kernel(functional.relu(self.hidden(inputs)))
        made = made.view(den, slots, den, slots, 9 * self.channels, self.colors)
        return made.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 1)

    def _by_kernels(self, x: Tensor, scale: Fraction, origin: Origin, kernels: Tensor) -> Tensor:
        """Some periods at a time, because the pixels around each are nine times as many values."""
        den, slots = scale.denominator, math.ceil(scale)
        (top, left), (height, width) = (o % den for o in origin), x.shape[2:]
        down, right = -(-(top + height) // den), -(-(left + width) // den)
        # Whole periods, and the zeros around that a convolution looks at.
        bottom, beside = down * den - top - height, right * den - left - width
        x = functional.pad(x, (left + 1, beside + 1, top + 1, bottom + 1))
        at_once = max(1, _MOST_VALUES // (9 * len(x) * self.channels * right * den**2))
        # Axes: picture n, channel c, period i down and j to the right, pixel p and q in it, row u
        # and column v of the kernel, slot a and b on the pixel, color k.
        by_pixel = kernels.view(den, den, self.channels, 3, 3, slots, slots, self.colors)
        bands: list[Tensor] = []
        for start in range(0, down, at_once):
            count = min(at_once, down - start)
            band = x[:, :, start * den : (start + count) * den + 2]
            seen = band.unfold(2, 3, 1).unfold(3, 3, 1)  # (N, C, rows, columns, 3, 3)
            seen = seen.unflatten(3, (right, den)).unflatten(2, (count, den))
            # One product of matrices for each pixel of a period.
            made = torch.einsum("ncipjquv,pqcuvabk->pqnijabk", seen, by_pixel)
            made = torch.einsum("pqnijabk->nkipajqb", made)
            bands.append(made.flatten(5).flatten(2, 4))
        rows, columns = (
            torch.tensor(_taken_slots(start, n, scale), device=x.device)
            for start, n in ((top, height), (left, width))
        )
        return torch.cat(bands, dim=2).index_select(2, rows).index_select(3, columns)

    def _by_pixels(self, x: Tensor, scale: Fraction, origin: Origin) -> Tensor:
        """Some rows of the input at a time, because of the last layer every pixel has 3·256."""
        colors, hidden, channels = self.colors, self.hidden.out_features, self.channels
        made = self.kernel.weight.view(channels, 3, 3, colors, hidden).permute(3, 4, 0, 1, 2)
        bias = self.kernel.bias.view(channels, 3, 3, colors).permute(3, 0, 1, 2)
        weight = torch.cat([made, bias[:, None]], dim=1).flatten(0, 1).to(x.dtype)
        by_scale, down, right = self.hidden.weight.to(x.dtype).unbind(1)
        still = by_scale * float(1 / scale) + self.hidden.bias.to(x.dtype)
        columns, offsets = _pixels_on(origin[1], x.shape[3], scale)
        places = torch.tensor(columns, device=x.device)
        horizontal = right[:, None] * torch.tensor(offsets, dtype=x.dtype, device=x.device)
        rows_px = max(1, _MOST_VALUES // (len(x) * colors * (hidden + 1) * len(columns)))
        padded = functional.pad(x, (1, 1, 1, 1))
        made_rows: list[Tensor] = []
        for start in range(0, x.shape[2], rows_px):
            stop = min(start + rows_px, x.shape[2])
            mixed = self.convolution(padded[:, :, start : stop + 2], weight)
            mixed = mixed.view(len(x), colors, hidden + 1, *mixed.shape[2:])
            mixed = mixed.index_select(4, places)
            for row, offset in zip(
                *_pixels_on(origin[0] + start, stop - start, scale), strict=True
            ):
                values = functional.relu(horizontal + (down * offset + still)[:, None])
                of_row = mixed[:, :, :, row]
                made_rows.append((of_row[:, :, :-1] * values).sum(2) + of_row[:, :, -1])
        return torch.stack(made_rows, dim=2)


class MetaSR(nn.Module):
    """x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, ⌊r·h⌋, ⌊r·w⌋) float32, about [0, 1], not clamped."""

    mean: Tensor

    def __init__(self, config: MetaSRConfig) -> None:
        super().__init__()
        self.config = config
        wide, colors = config.channels, config.channels_in
        # It is no weight, and so not in files; on the CPU also where the weights are left out.
        mean = torch.tensor(MEAN_RGB if config.mean_shift else (0.0,), device="cpu")
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(colors, wide, 3, padding=1)
        blocks: list[nn.Module] = []
        if config.trunk == "edsr":
            blocks += [ResidualBlock(wide) for _ in range(config.blocks)]
        else:
            self.conv_second = nn.Conv2d(wide, wide, 3, padding=1)
            blocks += [DenseBlock(wide, config.growth, config.convs) for _ in range(config.blocks)]
            self.fuse = nn.Conv2d(config.blocks * wide, wide, 1)
        self.body = nn.ModuleList(blocks)
        self.conv_body = nn.Conv2d(wide, wide, 3, padding=1)
        self.upscale = MetaUpscale(wide, hidden=config.hidden, colors=colors)

    def forward(self, x: Tensor, scale: Fraction | int | None = None) -> Tensor:
        """By `scale`, at least 1; by default the config's."""
        scale = Fraction(self.config.scale if scale is None else scale)
        y = self.window(x, scale, (0, 0))
        if scale.denominator == 1:
            return y
        return y[:, :, : math.floor(x.shape[2] * scale), : math.floor(x.shape[3] * scale)]

    def at(self, scale: Fraction, origin: Origin) -> AtScale:
        """A network for windows that begin at `origin`; these weights may not change afterwards."""
        return AtScale(self, scale, origin, kept=[])

    def window(
        self, x: Tensor, scale: Fraction, origin: Origin, kernels: Tensor | None = None
    ) -> Tensor:
        """All pixels that lie on x, whose first pixel is `origin` of a picture.

        Raises ValueError for a scale below 1.
        """
        if scale < 1:
            raise ValueError(f"a scale must be at least 1, not {scale}")
        span = float(self.config.pixel_range)
        wide = torch.promote_types(x.dtype, torch.float32)
        kind = x.device.type
        # What makes the picture is in float32: a bf16 sum would round it to 8 bits of mantissa.
        with torch.autocast(kind, enabled=False):
            first = self.conv_first((x - self.mean) * span)
        low = torch.is_autocast_enabled(kind)
        inside = first.to(torch.get_autocast_dtype(kind)) if low else first
        added = self.conv_body(self._through_blocks(inside))
        with torch.autocast(kind, enabled=False):
            features = first.to(wide) + added.to(wide)
            return self.upscale(features, scale, origin, kernels) / span + self.mean

    def _through_blocks(self, x: Tensor) -> Tensor:
        if self.config.trunk == "edsr":
            for block in self.body:
                x = block(x)
            return x
        x = self.conv_second(x)
        seen: list[Tensor] = []
        for block in self.body:
            x = block(x)
            seen.append(x)
        return self.fuse(torch.cat(seen, dim=1))


class AtScale(nn.Module):
    """A Meta-SR for windows of pictures that begin at one place, by one scale; see `MetaSR.at`.

    x: (N, 3, h, w) RGB in [0, 1] -> (N, 3, H, W) float32: all pixels that lie on x.
    """

    def __init__(
        self, network: MetaSR, scale: Fraction, origin: Origin, *, kept: list[Tensor]
    ) -> None:
        """kept: the kernels, once they are made; shared by those of one scale."""
        super().__init__()
        self.config = network.config
        self.network = network
        self._scale = scale
        self._origin = origin
        self._kept = kept

    def at(self, scale: Fraction, origin: Origin) -> AtScale:
        """The same elsewhere, with the same kernels where it is for the same scale."""
        return AtScale(self.network, scale, origin, kept=self._kept if scale == self._scale else [])

    def forward(self, x: Tensor) -> Tensor:
        if not self._kept and has_table(self._scale):
            like = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
            with torch.autocast(x.device.type, enabled=False):
                self._kept.append(self.network.upscale.table(self._scale, like=like))
        return self.network.window(x, self._scale, self._origin, *self._kept)


def first_pixel(pixel: int, scale: Fraction) -> int:
    """The first output pixel that lies on an input pixel: ⌈pixel · scale⌉."""
    return -(-pixel * scale.numerator // scale.denominator)


def has_table(scale: Fraction) -> bool:
    """Whether the kernels of a scale are few enough to be made all at once."""
    return scale.denominator * math.ceil(scale) <= _MOST_SLOTS


def _taken_slots(start: int, count: int, scale: Fraction) -> list[int]:
    """Of ⌈scale⌉ slots to an input pixel, numbered from pixel 0 on: those in which output pixels
    lie, on `count` input pixels from `start` on."""
    slots = math.ceil(scale)
    return [
        pixel * slots + slot
        for pixel in range(start, start + count)
        for slot in range(first_pixel(pixel + 1, scale) - first_pixel(pixel, scale))
    ]


def _pixels_on(start: int, count: int, scale: Fraction) -> tuple[list[int], list[float]]:
    """The output pixels on `count` input pixels from `start` on: on which of them each lies,
    counted from 0, and at which offset."""
    pixels = range(first_pixel(start, scale), first_pixel(start + count, scale))
    num, den = scale.numerator, scale.denominator
    return [i * den // num - start for i in pixels], [i * den % num / num for i in pixels]


METASR_SIZES: dict[str, MetaSRConfig] = {
    "meta-edsr": MetaSRConfig(),
    "meta-rdn": MetaSRConfig(trunk="rdn", convs=8),
}
