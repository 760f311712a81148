"""CrossNet: a sharp picture of the same scene is bent to fit, scale by scale, and mixed in.

Zheng et al., "CrossNet: An End-to-end Reference-based Super Resolution Network using Cross-scale
Warping" (ECCV 2018), https://arxiv.org/abs/1807.10547. A FlowNetS finds where each pixel of the
enlarged picture lies in the reference; an encoder makes features of both at four scales; those of
the reference are warped, and a decoder makes one picture of all. Flows are found at every scale by
themselves, in pixels of that scale. The public code computes the last fusion and does not use it;
here it is used, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MULTIPLE_PX = 64
"""The deepest features of the flow are of 1/64 of the size."""
_LEAK = 0.1
_SCALES = 4


@dataclass(frozen=True, kw_only=True)
class CrossNetConfig:
    """The numbers of one CrossNet.

    `flow_channels` is the width of the first layer of the flow network, of which the others are
    multiples, up to 16 times. With `residual` the decoder's picture is added to the input instead
    of taking its place: no property of the paper's, but it learns in a fraction of the time.
    """

    channels: int = 64
    flow_channels: int = 64
    residual: bool = False

    # Facts every network of this project states in its config.
    scale = 1
    channels_in = 3
    pre_upsampled = True
    size_multiple = MULTIPLE_PX
    # A flow may point anywhere in the reference.
    global_context = True
    reference = "needed"

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be positive, not {self.channels}")
        if self.flow_channels < 4 or self.flow_channels % 4:
            raise ValueError(f"flow_channels must be a multiple of 4, not {self.flow_channels}")

    @property
    def receptive_radius_px(self) -> int:
        """How far the convolutions look to each side in the enlarged picture; exact.

        The way that sees most leads through the flow at the full size down to 1/64 and up again;
        how much, depends on where in a block of 64 a pixel lies. In the reference there is no
        limit.
        """
        widest = 0
        for pixel in range(MULTIPLE_PX):
            # 5x5 three times, a flow's 3x3 head, and 7x7 twice.
            low, high = pixel - 13, pixel + 13
            for _ in range(6):
                low, high = _under_doubling(low, high)
                low, high = low - 1, high + 1  # the flow that was enlarged has a head of its own
            for reach, more in ((1, 1), (1, 1), (1, 1), (2, 1), (2, 0), (3, 0)):
                # Each layer that halves, and the 3x3 convolution behind most of them.
                low, high = 2 * (low - more) - reach, 2 * (high + more) + reach
            widest = max(widest, pixel - low, high - pixel)
        return widest


def _under_doubling(low: int, high: int) -> tuple[int, int]:
    """What a transposed 4x4 convolution with stride 2 makes the pixels from `low` to `high` of."""
    return -(-(low - 2) // 2), (high + 1) // 2


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """Each pixel from where the flow points, by bilinear interpolation; borders continue.

    Args:
        features: (N, C, h, w).
        flow: (N, 2, h, w), to the right and downwards, in pixels of `features`.
    """
    height, width = features.shape[2:]
    wide = torch.promote_types(features.dtype, torch.float32)
    # In bfloat16 a place beyond the 256th pixel would be rounded to whole ones.
    with torch.autocast(features.device.type, enabled=False):
        flow = flow.to(wide)
        down = torch.arange(height, dtype=wide, device=flow.device).view(1, height, 1)
        right = torch.arange(width, dtype=wide, device=flow.device).view(1, 1, width)
        x = (right + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0
        y = (down + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0
        grid = torch.stack([x, y], dim=3)
        return functional.grid_sample(
            features.to(wide), grid, mode="bilinear", padding_mode="border", align_corners=True
        )


def _conv(into: int, out: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride, padding=kernel // 2)


def _leaky(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(_LEAK, inplace=True))


def _selu(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    # What keeps deviations as they are through SELU.
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.SELU(inplace=True))


def _doubling(into: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(into, out, 4, 2, padding=1)


def _head(into: int) -> nn.Conv2d:
    """A flow of nothing at first, so that the reference is taken as it lies."""
    conv = _conv(into, 2, 3)
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class FlowNet(nn.Module):
    """x, reference: (N, 3, H, W) -> flows (N, 2, …) at the full size, 1/2, 1/4 and 1/8."""

    def __init__(self, base: int) -> None:
        super().__init__()
        b = base
        self.down = nn.ModuleList(
            [
                _leaky(_conv(6, b, 7, stride=2)),
                _leaky(_conv(b, 2 * b, 5, stride=2)),
                nn.Sequential(
                    *(_leaky(_conv(2 * b, 4 * b, 5, stride=2)), _leaky(_conv(4 * b, 4 * b, 3)))
                ),
                *(
                    nn.Sequential(_leaky(_conv(into, out, 3, stride=2)), _leaky(_conv(out, out, 3)))
                    for into, out in ((4 * b, 8 * b), (8 * b, 8 * b), (8 * b, 16 * b))
                ),
            ]
        )
        # From 1/64 to 1/2; each but the first is shown a skip, what was enlarged, and a flow.
        skips = (0, 8 * b, 8 * b, 4 * b, 2 * b, b)
        widths = (16 * b, 4 * b, 4 * b, 2 * b, b, b)
        shown = [widths[0]] + [
            skip + wide + 2 for skip, wide in zip(skips[1:], widths[1:], strict=True)
        ]
        self.heads = nn.ModuleList([_head(wide) for wide in shown])
        self.flow_up = nn.ModuleList([_doubling(2, 2) for _ in shown])
        self.up = nn.ModuleList(
            [
                _leaky(_doubling(into, out))
                for into, out in zip(shown, (*widths[1:], b), strict=True)
            ]
        )
        self.last1 = _selu(_conv(b + 5, b // 4, 7))
        self.last2 = _selu(_conv(b // 4, b // 4, 7))
        self.head_full = _head(b // 4)

    def forward(self, x: Tensor, reference: Tensor) -> list[Tensor]:
        skips = [torch.cat([x, reference], 1)]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        features = skips.pop()
        skips[0] = reference
        flows: list[Tensor] = []
        for head, flow_up, up in zip(self.heads, self.flow_up, self.up, strict=True):
            flows.append(head(features))
            features = torch.cat([skips.pop(), up(features), flow_up(flows[-1])], 1)
        flows.append(self.head_full(self.last2(self.last1(features))))
        return flows[: -_SCALES - 1 : -1]


class Encoder(nn.Module):
    """x: (N, 3, H, W) -> features (N, C, …) at the full size, 1/2, 1/4 and 1/8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _selu(_conv(3, channels, 5))
        self.layers = nn.ModuleList(
            [_selu(_conv(channels, channels, 5, stride=stride)) for stride in (1, 2, 2, 2)]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.first(x)]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found[1:]


class Decoder(nn.Module):
    """Features of both pictures at four scales -> (N, 3, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.up = nn.ModuleList([_selu(_doubling(into, c)) for into in (2 * c, 3 * c, 3 * c)])
        self.fuse1 = _selu(_conv(3 * c, c, 5))
        self.fuse2 = _selu(_conv(c, c, 5))
        self.last = _conv(c, 3, 5)

    def forward(self, mine: list[Tensor], warped: list[Tensor], *, wide: torch.dtype) -> Tensor:
        features = torch.cat([mine[-1], warped[-1]], 1)
        for up, own, other in zip(self.up, mine[-2::-1], warped[-2::-1], strict=True):
            features = torch.cat([up(features), own, other], 1)
        features = self.fuse2(self.fuse1(features))
        # There may be no skip, so what this layer gives is the picture: in bf16 it would have 8
        # bits.
        with torch.autocast(features.device.type, enabled=False):
            return self.last(features.to(wide))


class CrossNet(nn.Module):
    """x, reference: (N, 3, H, W) RGB in [0, 1] -> (N, 3, H, W) float32, not clamped.

    `x` is enlarged already. Raises ValueError unless both are of one size, whose sides are
    multiples of 64.
    """

    def __init__(self, config: CrossNetConfig) -> None:
        super().__init__()
        self.config = config
        self.flow = FlowNet(config.flow_channels)
        self.encoder = Encoder(config.channels)
        self.decoder = Decoder(config.channels)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        if x.shape != reference.shape or any(side % MULTIPLE_PX for side in x.shape[2:]):
            raise ValueError(
                f"CrossNet takes a picture and a reference of one size, a multiple of "
                f"{MULTIPLE_PX} px a side, not {tuple(x.shape)} and {tuple(reference.shape)}"
            )
        flows = self.flow(x, reference)
        others = self.encoder(reference)
        warped = [warp(each, flow) for each, flow in zip(others, flows, strict=True)]
        wide = torch.promote_types(x.dtype, torch.float32)
        y = self.decoder(self.encoder(x), warped, wide=wide)
        return x.to(wide) + y if self.config.residual else y


CROSSNET_SIZES: dict[str, CrossNetConfig] = {"crossnet": CrossNetConfig()}
