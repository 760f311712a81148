"""Start another system's network from the blocks of a trained MSRResNet.

    python weights/recipes/trunk.py weights/waifu4x-clean.safetensors edsr edsr-start.safetensors
    python weights/recipes/trunk.py weights/waifu4x-clean.safetensors metasr meta-start.safetensors

For EDSR-baseline, Meta-SR with its trunk, and RankSRGAN's generator, whose residual blocks are the
same. Their first convolution has no activation: the first block takes its place, as
x + 0.9·relu(-x) is the leaky ReLU. The blocks that are left over begin as the identity; what
enlarges begins as the network has it, and is what has to be trained most.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from waifu4x.model_files import checkpoints
from waifu4x.networks.edsr import EDSR, MEAN_RGB, EDSRConfig
from waifu4x.networks.metasr import MetaSR, MetaSRConfig
from waifu4x.networks.msrresnet import MSRResNet
from waifu4x.networks.ranksrgan import RankSRGAN, RankSRGANConfig


def start(small: MSRResNet, network: str) -> EDSR | MetaSR | RankSRGAN:
    """A network of `network`'s published size with the blocks of `small`, of 64 channels."""
    torch.manual_seed(0)
    if network == "ranksrgan":
        ranked = RankSRGAN(RankSRGANConfig(scale=4))
        _take_over(small, ranked, after="conv_body", span=1.0, mean=(0.0, 0.0, 0.0))
        # A tenth of this, as published, takes thousands of steps to become a picture.
        tail = ("upconv", "conv_hr", "conv_last")
        for name, module in ranked.named_children():
            if name.startswith(tail) and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return ranked
    large = EDSR(EDSRConfig(scale=4)) if network == "edsr" else MetaSR(MetaSRConfig(scale=4))
    after = "conv_after_body" if network == "edsr" else "conv_body"
    _take_over(small, large, after=after, span=float(large.config.pixel_range), mean=MEAN_RGB)
    return large


@torch.no_grad()
def _take_over(
    small: MSRResNet,
    large: EDSR | MetaSR | RankSRGAN,
    *,
    after: str,
    span: float,
    mean: tuple[float, float, float],
) -> None:
    """All but the tail. The features are `span` times those of `small`, and so are the biases."""
    state, given = large.state_dict(), small.state_dict()
    weight = given["conv_first.weight"]
    shift = weight.sum((2, 3)) @ torch.tensor(mean)
    state["conv_first.weight"].copy_(weight)
    state["conv_first.bias"].copy_(span * (given["conv_first.bias"] + shift))
    for conv, sign in (("conv1", -1.0), ("conv2", 0.9)):
        nn.init.dirac_(state[f"body.0.{conv}.weight"]).mul_(sign)
        state[f"body.0.{conv}.bias"].zero_()
    for number in range(1, large.config.blocks):
        if number > small.config.blocks:
            state[f"body.{number}.conv2.weight"].zero_()
            state[f"body.{number}.conv2.bias"].zero_()
            continue
        for conv in ("conv1", "conv2"):
            here, there = f"body.{number}.{conv}", f"body.{number - 1}.{conv}"
            state[f"{here}.weight"].copy_(given[f"{there}.weight"])
            state[f"{here}.bias"].copy_(span * given[f"{there}.bias"])
    nn.init.dirac_(state[f"{after}.weight"])
    state[f"{after}.bias"].zero_()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("network", choices=("edsr", "metasr", "ranksrgan"))
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    trained = checkpoints.load(asked.small)
    if not isinstance(trained.network, MSRResNet):
        raise SystemExit(f"{asked.small}: not an MSRResNet")
    grown = start(trained.network.float(), asked.network)
    checkpoints.save(grown, asked.target, metadata={"licence": trained.licence or ""})
