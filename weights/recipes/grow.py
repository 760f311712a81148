"""Turn a trained MSRResNet with the direct tail into the start of an SRResNet of sixteen blocks.

    python weights/recipes/grow.py weights/waifu4x-clean.safetensors srresnet-start.safetensors \
        --crops data/train/photo

After Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer" (ICLR 2016),
https://arxiv.org/abs/1511.05641. The blocks are taken over, those that are added begin as the
identity, and the tail is fitted to what the smaller network gives, bilinear skip included, by least
squares. What a PReLU would bend is carried by pairs of opposite sign; the channels that are left
over begin at random, and add nothing yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from waifu4x.model_files import checkpoints
from waifu4x.networks.msrresnet import MSRResNet
from waifu4x.networks.srresnet import SRResNet, SRResNetConfig

_SLOPE = 0.25  # of a fresh PReLU
_RIDGE = 1e-7


def grow(small: MSRResNet, crops: Tensor) -> SRResNet:
    """The larger network; `crops` are (N, 3, h, w) in [0, 1], low resolution."""
    config = SRResNetConfig(norm=False, middle="plain", body_bias=True)
    if small.config.tail != "direct" or small.config.scale != config.scale:
        raise SystemExit("the network to start from is an x4 MSRResNet with the direct tail")
    torch.manual_seed(0)
    large = SRResNet(config)
    with torch.no_grad():
        _take_over(small, large)
        _fit_tail(small, large, crops)
    return large


def _take_over(small: MSRResNet, large: SRResNet) -> None:
    """First convolution and blocks; the convolution after the blocks is the identity."""
    state = large.state_dict()
    state["conv_in.weight"].zero_()[:, :, 3:6, 3:6] = small.conv_first.weight
    state["conv_in.bias"].copy_(small.conv_first.bias)
    state["prelu_in.weight"].fill_(0.1)
    given = small.state_dict()
    for number in range(large.config.blocks):
        here = f"blocks.{number}"
        if number >= small.config.blocks:
            state[f"{here}.conv2.weight"].zero_()
            state[f"{here}.conv2.bias"].zero_()
            continue
        state[f"{here}.prelu.weight"].zero_()
        for conv in ("conv1", "conv2"):
            for kind in ("weight", "bias"):
                state[f"{here}.{conv}.{kind}"].copy_(given[f"body.{number}.{conv}.{kind}"])
    torch.nn.init.dirac_(state["conv_mid.weight"])
    state["conv_mid.bias"].zero_()


def _fit_tail(small: MSRResNet, large: SRResNet, crops: Tensor) -> None:
    """What 3x3 features give of the 48 values in which an input pixel is enlarged."""
    features = large.prelu_in(large.conv_in(crops))
    features = features + large.conv_mid(large.blocks(features))
    wanted = functional.pixel_unshuffle(small(crops), 4) * 2.0 - 1.0
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    seen = functional.unfold(features[..., 1:-1, 1:-1], 3).transpose(1, 2).reshape(-1, 576)
    seen = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
    target = wanted[inner].flatten(2).transpose(1, 2).reshape(-1, 48).double()
    square = seen.T @ seen
    ridge = _RIDGE * square.diagonal().mean() * torch.eye(577, dtype=torch.float64)
    fitted = torch.linalg.solve(square + ridge, seen.T @ target)
    print(f"left of the variance: {float((seen @ fitted - target).var() / target.var()):.2e}")
    _set_tail(large, fitted[:576].T.reshape(48, 64, 3, 3).float(), fitted[576].float())


def _set_tail(large: SRResNet, weight: Tensor, bias: Tensor) -> None:
    """Two shuffles by two in the place of one by four, through pairs of opposite sign."""
    first, second, last = large.up[0].conv, large.up[1].conv, large.conv_out
    # A channel of the direct tail is 16·color + 4·row + column, of which the first shuffle takes
    # the upper bits of row and column, the second the lower ones.
    half = 1.0 + _SLOPE  # p(x) - p(-x) is (1 + slope)·x
    last.weight.mul_(0.1)
    last.weight[:, :6] = 0.0
    for color in range(3):
        for part in range(4):  # the lower bits
            low_row, low_column = divmod(part, 2)
            inner = 4 * color + part
            for sign, offset in ((1.0, 0), (-1.0, 1)):
                channel = 2 * inner + offset
                for place in range(4):  # the upper bits
                    row, column = divmod(place, 2)
                    old = 16 * color + 4 * (2 * row + low_row) + 2 * column + low_column
                    first.weight[4 * channel + place] = sign * weight[old]
                    first.bias[4 * channel + place] = sign * bias[old]
                wide = 4 * (2 * color + offset) + part
                second.weight[wide] = 0.0
                second.bias[wide] = 0.0
                second.weight[wide, 2 * inner, 1, 1] = sign / half
                second.weight[wide, 2 * inner + 1, 1, 1] = -sign / half
        last.weight[color, 2 * color, 4, 4] = 1.0 / half
        last.weight[color, 2 * color + 1, 4, 4] = -1.0 / half
    last.weight[:, 6:] = 0.0
    last.bias.zero_()


def _crops(folder: Path, count: int) -> Tensor:
    """`count` pictures, shrunk to 64x64 as training does it, as (N, 3, 64, 64)."""
    pictures = []
    for path in sorted(folder.glob("*.avif"))[:count]:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(small, np.float32).transpose(2, 0, 1) / 255.0)
    return torch.from_numpy(np.stack(pictures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--crops", type=Path, required=True)
    given = parser.parse_args()
    smaller = checkpoints.load(given.small)
    grown = grow(smaller.network.float(), _crops(given.crops, 48))
    checkpoints.save(grown, given.target, metadata={"licence": smaller.licence or ""})
