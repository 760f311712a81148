"""The convolutional autoencoder that first teaches super-resolution, with a head that enlarges.

Super-resolution as O'Reilly's books introduce it: an encoder and a decoder that mirrors it, then
transposed convolutions. No scores were published. The bottleneck has a quarter of the picture's
sides and the head three channels, so it stays below bicubic interpolation: a network to learn from.

Against the checkerboard that transposed convolutions leave, the chapter enlarges twice as much as
is wanted and halves that by a convolution. Taken literally, with one transposed convolution, that
gives back the input's size (scale 1 here); so that it reaches the scale there is one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Head = Literal["antialiased", "plain"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The numbers of one autoencoder; `scale` is a power of two.

    `head` enlarges by twice the scale and halves that by a convolution, or, where it is plain, by
    the scale alone. `final_relu` ends it as published: where the output then is 0 nothing learns.
    """

    scale: int = 2
    channels: tuple[int, int, int] = (64, 192, 256)
    head: Head = "antialiased"
    final_relu: bool = False
    channels_in: int = 3

    # Facts every network of this project states in its config.
    pre_upsampled = False
    size_multiple = 4
    global_context = False
    # Of the first convolution's cells, 4 px each, a pixel's own or its neighbours' see two cells to
    # either side, and each cell 2 px beyond itself. The head's kernels lie on the grid of pixels
    # and reach no further.
    receptive_radius_px = 15

    def __post_init__(self) -> None:
        if self.scale < 1 or self.scale.bit_count() != 1:
            raise ValueError(f"scale must be a power of two, not {self.scale}")
        if len(self.channels) != 3 or min(*self.channels, self.channels_in) < 1:
            raise ValueError("channels must be three positive widths, channels_in positive")
        if self.head not in ("antialiased", "plain"):
            raise ValueError(f"head must be antialiased or plain, not {self.head!r}")

    @property
    def doublings(self) -> int:
        """How many transposed convolutions the head has."""
        return self.scale.bit_length() - (self.head == "plain")


class Autoencoder(nn.Module):
    """x: (N, C, h, w) in [0, 1] -> (N, C, s·h, s·w) float32, not clamped; h and w multiples of 4.

    Of h / 4 the bottleneck has 6 more, because the kernels of 2 are padded by 2, as published.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        (first, second, third), colors = config.channels, config.channels_in
        # PyTorch's own initialisation: what the chapter trained with.
        self.encoder = nn.Sequential(
            nn.Conv2d(colors, first, 8, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(second, third, 2, padding=2),
            nn.ReLU(inplace=True),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(third, second, 2, padding=2),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(second, first, 2, padding=2),
            nn.ReLU(inplace=True),
        )
        self.picture = nn.ConvTranspose2d(first, colors, 8, stride=4, padding=2)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(colors, colors, 2, stride=2) for _ in range(config.doublings)
        )
        halved = config.head == "antialiased"
        self.down = nn.Conv2d(colors, colors, 2, stride=2) if halved else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.decoder(self.encoder(x))
        down = [] if self.down is None else [self.down]
        *inner, last = (self.picture, *self.up, *down)
        for layer in inner:
            y = functional.relu(layer(y))
        # There is no skip, so what this layer gives is the picture: in bf16 it would have 8 bits.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            y = last(y.to(wide))
        return functional.relu(y) if self.config.final_relu else y


AUTOENCODER_SIZES: dict[str, AutoencoderConfig] = {
    "autoencoder": AutoencoderConfig(scale=1, head="plain"),
    "autoencoder-x2-plain": AutoencoderConfig(scale=2, head="plain"),
    "autoencoder-literal": AutoencoderConfig(scale=1),
    "autoencoder-x2": AutoencoderConfig(scale=2),
    "autoencoder-x4": AutoencoderConfig(scale=4),
}
