"""Convolutions that are computed together with what follows give what they give alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import random_model

from waifu4x.engines import torch_fused
from waifu4x.engines.torch import TorchEngine
from waifu4x.engines.torch_fused import FusedConvolutions
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig

pytestmark = pytest.mark.skipif(
    not torch_fused.is_possible(), reason="this PyTorch was built without oneDNN"
)


def features(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, 12, 9, generator=generator).to(memory_format=torch.channels_last)


def convolution(*, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(16, 16, 3, padding=1, bias=bias).requires_grad_(False)


def normalisation() -> nn.BatchNorm2d:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(16).eval().requires_grad_(False)
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert values is not None
        values.data.uniform_(0.5, 1.5)
    return norm


def twice(x: Tensor) -> Tensor:
    y = convolution()(x)
    return functional.relu(y) + y * 0.5


# What is done with a convolution, and how often it is a part of the step before it.
USES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (lambda x: functional.relu(convolution()(x), inplace=True), 1),
    "leaky": (lambda x: functional.leaky_relu(convolution()(x), 0.2), 1),
    "leaky module": (lambda x: nn.LeakyReLU(0.2, inplace=True)(convolution()(x)), 1),
    "one slope": (lambda x: nn.PReLU().requires_grad_(False)(convolution()(x)), 1),
    "a slope each": (lambda x: nn.PReLU(16).requires_grad_(False)(convolution()(x)), 0),
    "sum": (lambda x: x.bfloat16() + convolution()(x), 1),
    "sum, turned": (lambda x: convolution()(x) + x.bfloat16(), 1),
    "sum with float32": (lambda x: x + convolution()(x), 0),
    "sum with a number": (lambda x: convolution()(x) + 1.0, 0),
    "sum of two": (lambda x: convolution()(x) + convolution(bias=False)(x), 0),
    "normalised": (lambda x: normalisation()(convolution()(x)), 1),
    "normalised without bias": (lambda x: normalisation()(convolution(bias=False)(x)), 1),
    "normalised, leaky": (
        lambda x: functional.leaky_relu(normalisation()(convolution()(x)), 0.2),
        2,
    ),
    "in a list": (lambda x: torch.cat((convolution()(x), x.bfloat16()), 1), 0),
    "by a method": (lambda x: convolution()(x).float().clamp(0.0, 1.0), 0),
    "times": (lambda x: 0.2 * convolution()(x), 0),
    "twice": (twice, 1),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_gives_what_it_gives_alone(use: str) -> None:
    function, fused = USES[use]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = function(features())
        with FusedConvolutions() as fusing:
            result = function(features())
            result = result.float() if not isinstance(result, Tensor) else result
    assert fusing.fused == fused
    # bf16 has 8 bits, of numbers up to about 4.
    torch.testing.assert_close(result.float(), expected.float(), atol=0.04, rtol=0.0)


def test_without_autocast_nothing_changes() -> None:
    with torch.inference_mode():
        expected = functional.relu(convolution()(features()))
        with FusedConvolutions() as fusing:
            result = functional.relu(convolution()(features()))
    assert fusing.fused == 0
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("config", "fuses"),
    [
        (MSRResNetConfig(blocks=2, channels=16, tail="direct"), True),
        (MSRResNetConfig(blocks=2, channels=16), True),
        (RRDBNetConfig(blocks=1, channels=16, growth=8), True),
        (SRResNetConfig(blocks=2, channels=16), True),
        (SRResNetConfig(blocks=2, channels=16, norm=False, output="unit"), True),
        (SRVGGNetCompactConfig(channels=16, convs=3), False),
    ],
)
def test_networks_are_as_near_to_fp32_as_without(
    config: object, fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_model(config).network
    windows = np.random.default_rng(0).random((2, 21, 18, 3), dtype=np.float32)
    results = {}
    for kind, dtype, possible in (
        ("exact", torch.float32, True),
        ("plain", torch.bfloat16, False),
        ("fused", torch.bfloat16, True),
    ):
        monkeypatch.setattr(torch_fused, "is_possible", lambda possible=possible: possible)
        engine = TorchEngine(network, device=torch.device("cpu"), dtype=dtype)
        results[kind] = engine.run(windows)
        if kind == "fused":
            assert engine._fuses is fuses
            np.testing.assert_array_equal(engine.run(windows), results[kind])
    error = {
        kind: float(np.sqrt(np.square(results[kind] - results["exact"]).mean()))
        for kind in ("plain", "fused")
    }
    assert 0.0 < error["fused"] <= 1.05 * error["plain"]
