"""Parameters and multiply-adds: published ones, by hand, and against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from waifu4x.bench.cost import Cost, count_multiply_adds, measure_cost
from waifu4x.networks import NETWORKS
from waifu4x.networks.msrresnet import MSRResNet, MSRResNetConfig
from waifu4x.networks.rrdbnet import RRDBNet, RRDBNetConfig
from waifu4x.networks.srcnn import SRCNN, SRCNNConfig
from waifu4x.networks.srresnet import SRResNet, SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSR, VDSRConfig


def cost_of(module: type[nn.Module], config) -> Cost:
    return measure_cost(module(config), config)


@pytest.mark.parametrize(
    ("module", "config", "parameters", "mega_per_pixel", "giga_hd"),
    [
        (SRResNet, SRResNetConfig(), 1_547_350, "2.218", "127.8"),
        (MSRResNet, MSRResNetConfig(), 1_517_571, "2.536", "146.1"),
        (RRDBNet, RRDBNetConfig(), 16_697_987, "17.93", "1032.6"),
        (RRDBNet, RRDBNetConfig(blocks=6), 4_467_779, "5.71", "328.7"),
        (SRVGGNetCompact, SRVGGNetCompactConfig(convs=16), 621_424, "0.619", "35.7"),
        (SRVGGNetCompact, SRVGGNetCompactConfig(convs=32), 1_213_296, "1.209", "69.6"),
        # What many papers print for them, for 1280×720: 52.7G and 612.6G.
        (SRCNN, SRCNNConfig(), 57_281, "0.057184", "52.7"),
        (VDSR, VDSRConfig(bias=False), 664_704, "0.664704", "612.6"),
    ],
)
def test_published_costs(module, config, parameters, mega_per_pixel, giga_hd) -> None:
    cost = cost_of(module, config)
    assert cost.parameters == parameters
    for got, wanted in (
        (cost.multiply_adds_per_pixel / 1e6, mega_per_pixel),
        (cost.multiply_adds_hd / 1e9, giga_hd),
    ):
        assert f"{got:.{len(wanted.partition('.')[2])}f}" == wanted


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_against_torchs_counter(name: str) -> None:
    kind = NETWORKS[name]
    fields = {field.name for field in dataclasses.fields(kind.config)}
    # Hundreds of blocks, each like the other, take seconds.
    config = kind.config(groups=1, blocks=1) if {"groups", "blocks"} <= fields else kind.config()
    network = kind.module(config).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    shape = (2, config.channels_in, 8, 12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(shape))
    if name == "scsr":
        # Nothing is coded in a black picture, and what is counted is coding.
        assert count_multiply_adds(network, shape) > counter.get_total_flops() // 2
        return
    wanted = counter.get_total_flops()
    if name == "san":  # papers leave out products of features with features
        wanted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert count_multiply_adds(network, shape) == wanted // 2
    # It is left as it was: no hooks, no other device, the same weights.
    assert all(not module._forward_hooks for module in network.modules())
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


class Mixed(nn.Module):
    """One of each kind of layer, and things that do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, (3, 5), padding=(1, 2), groups=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2)
        self.gate = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.grouped(x)))
        x = self.up(x)
        x = x * self.gate(x.mean((2, 3))).mean()
        return self.norm(self.grouped(functional.interpolate(x[:, :4], scale_factor=0.5)))


def test_by_hand() -> None:
    network = Mixed()
    assert network.training
    # Twice the grouped one; the transposed one by its input; a linear one on one row a picture.
    grouped = 10 * 7 * 8 * 15 * 2
    wanted = 2 * (2 * grouped + 10 * 7 * 8 * 16 * 3 + 3 * 6)
    assert count_multiply_adds(network, (2, 4, 10, 7)) == wanted
    assert network.training
    assert next(network.parameters()).device.type == "cpu"


def test_parameters_are_counted_once_and_buffers_never() -> None:
    network = Mixed()
    network.same = network.grouped  # shared
    config = RRDBNetConfig(blocks=1, channels_in=4)
    cost = measure_cost(network, config)
    assert cost.parameters == 8 * 2 * 15 + 2 * 8 + (8 * 3 * 16 + 6) + (6 * 3 + 3)


class OnlyWhileTraining(nn.Module):
    """A branch that training alone takes, as re-parametrised networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Conv2d(1, 1, 1)
        self.sometimes = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(self.sometimes(x) if self.training else x)


def test_what_only_training_needs_is_not_counted() -> None:
    assert count_multiply_adds(OnlyWhileTraining().train(), (1, 1, 3, 5)) == 15


def test_the_hd_picture_depends_on_the_scale() -> None:
    two, three, four = (cost_of(MSRResNet, MSRResNetConfig(scale=scale)) for scale in (2, 3, 4))
    for scale, cost in ((2, two), (3, three), (4, four)):
        pixels = 1280 * 720 / scale**2
        assert cost.multiply_adds_hd == pytest.approx(cost.multiply_adds_per_pixel * pixels)
    assert two.multiply_adds_hd > three.multiply_adds_hd > four.multiply_adds_hd


def test_inputs_that_must_be_multiples() -> None:
    config = RRDBNetConfig(blocks=1, unshuffle=2)
    assert (config.scale, config.size_multiple) == (2, 2)
    cost = cost_of(RRDBNet, config)
    assert cost.multiply_adds_per_pixel == count_multiply_adds(RRDBNet(config), (1, 3, 2, 2)) / 4


def test_half_precision_costs_the_same() -> None:
    config = SRVGGNetCompactConfig(convs=2)
    network = SRVGGNetCompact(config)
    assert measure_cost(network.half(), config) == measure_cost(network.float(), config)
