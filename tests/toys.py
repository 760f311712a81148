"""Small networks that behave like large ones, and networks that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.model_files.checkpoints import Model
from waifu4x.networks import NETWORKS
from waifu4x.networks.aplus import AplusConfig
from waifu4x.networks.autoencoder import AutoencoderConfig
from waifu4x.networks.scsr import ScSRConfig

# Networks this small spend their time waiting for each other's threads: on a busy machine that made
# seconds of tests into minutes.
torch.set_num_threads(1)

GRAPHLESS = frozenset({AplusConfig, ScSRConfig})
"""Configs of networks that only PyTorch runs, and that have no convolutions to make random: what
they compute depends on values. See tests/test_networks_sparse.py."""


def as_model(network: nn.Module, *, scales: tuple[int, ...] | None = None) -> Model:
    """The network with the facts that its config states, as `checkpoints.load` gives it."""
    config: Any = network.config
    return Model(
        name="toy",
        architecture="toy",
        network=network,
        scale=config.scale,
        channels_in=config.channels_in,
        pre_upsampled=config.pre_upsampled,
        scales=scales if config.pre_upsampled else (config.scale,),
        size_multiple=config.size_multiple,
        any_scale=getattr(config, "any_scale", False),
        receptive_radius_px=config.receptive_radius_px,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        sha256="0" * 64,
        licence=None,
        metadata={},
        path=Path("toy.safetensors"),
    )


@torch.no_grad()
def random_model(config: Any, *, seed: int = 0, scales: tuple[int, ...] | None = None) -> Model:
    """A network of random weights whose output fills [0, 1] and depends strongly on its input.

    The networks' own initialisation makes residual branches almost nothing, and no mistake in
    tiling would show.
    """
    (module,) = [entry.module for entry in NETWORKS.values() if entry.config is type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = module(config).eval()
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        transposed = [m for m in network.modules() if isinstance(m, nn.ConvTranspose2d)]
        # SRFBN's own, in loops, would make more and more of what goes through them.
        others = transposed if isinstance(config, AutoencoderConfig) else []
        for convolution in (*convolutions, *others):
            nn.init.kaiming_normal_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
        noise = torch.rand(1, config.channels_in, 32, 32)
    for name, module in network.named_modules():
        # Products in the thousands would choose single pixels, and those by the last bit of a sum.
        if name.endswith((".query", ".key")):
            assert isinstance(module, nn.Conv2d)
            module.weight.mul_(0.005)
    last, seen = convolutions[-1], []
    hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = network(noise)
    hook.remove()
    assert last.bias is not None
    last.bias.add_(1.0)
    white = 255.0 if (network(noise) - before).mean() < 0.01 else 1.0
    last.weight.mul_(0.2 * white / seen[0].std())
    last.bias.sub_(1.0)
    last.bias.add_((0.5 - network(noise).mean()) * white)
    return as_model(network.requires_grad_(False), scales=scales)


@dataclass(frozen=True, kw_only=True)
class FakeConfig:
    """The facts of a network, freely chosen."""

    scale: int = 2
    channels_in: int = 3
    pre_upsampled: bool = False
    size_multiple: int = 1
    receptive_radius_px: int = 0


class FakeNetwork(nn.Module):
    """Nearest-neighbour enlargement that first asks `meddle(x)`.

    `meddle` may raise, or return a Tensor that is added to the result; `sizes` are the (n, h, w) of
    all inputs so far.
    """

    def __init__(self, config: FakeConfig, meddle: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.config = config
        self.sizes: list[tuple[int, int, int]] = []
        self._meddle = meddle

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append((x.shape[0], x.shape[2], x.shape[3]))
        extra = self._meddle(x)
        y = functional.interpolate(x, scale_factor=self.config.scale)
        return y if extra is None else y + extra
