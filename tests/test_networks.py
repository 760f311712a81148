"""The networks: sizes as published, radius as stated, and genuine weights give genuine pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from waifu4x.model_files.checkpoints import load
from waifu4x.networks import NETWORKS
from waifu4x.networks.aplus import AplusConfig
from waifu4x.networks.autoencoder import AutoencoderConfig
from waifu4x.networks.edsr import EDSR_SIZES, EDSRConfig
from waifu4x.networks.metasr import METASR_SIZES, MetaSRConfig
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.plksr import PLKSR_SIZES, PLKSRConfig
from waifu4x.networks.ranksrgan import RANKSRGAN_SIZES, RankSRGANConfig
from waifu4x.networks.rcan import RCAN_SIZES, RCANConfig
from waifu4x.networks.rrdbnet import RRDBNET_SIZES, RRDBNetConfig
from waifu4x.networks.san import SAN_SIZES, SANConfig
from waifu4x.networks.scsr import ScSRConfig
from waifu4x.networks.span import SPAN_SIZES, SPANConfig
from waifu4x.networks.srcnn import SRCNN_SIZES, SRCNNConfig
from waifu4x.networks.srfbn import SRFBN_SIZES, SRFBNConfig
from waifu4x.networks.srresnet import SRRESNET_SIZES, Output, SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNET_SIZES, SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSR_SIZES, VDSRConfig
from waifu4x.train import recipe
from waifu4x.train.building import generator


def build(config: Any) -> nn.Module:
    (module,) = [entry.module for entry in NETWORKS.values() if entry.config is type(config)]
    return module(config)


SMALL = [
    SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4)),
    SRCNNConfig(kernels=(9, 3, 5), channels=(8, 4), channels_in=3),
    VDSRConfig(depth=4, channels=8),
    VDSRConfig(depth=20, channels=2, bias=False, channels_in=3),
    SRResNetConfig(blocks=2, channels=4),
    SRResNetConfig(blocks=1, channels=4, scale=2, slope_per_channel=True, body_bias=True),
    SRResNetConfig(blocks=1, channels=4, scale=3, norm=False, middle="plain", output="unit"),
    SRResNetConfig(blocks=1, channels=4, scale=8, middle="prelu", output="tanh"),
    SRResNetConfig(blocks=16, channels=2, output="unit"),
    RRDBNetConfig(blocks=1, channels=4, growth=2),
    RRDBNetConfig(blocks=2, channels=2, growth=1, upsamplings=1),
    RRDBNetConfig(blocks=1, channels=2, growth=1, upsamplings=3),
    RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2),
    RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=4, channels_in=1),
    RRDBNetConfig(blocks=1, channels=2, growth=1, upsamplings=0),
    SRVGGNetCompactConfig(convs=3, channels=4),
    SRVGGNetCompactConfig(convs=0, channels=4, scale=3, channels_in=1),
    MSRResNetConfig(blocks=2, channels=4),
    MSRResNetConfig(blocks=1, channels=4, scale=2),
    MSRResNetConfig(blocks=1, channels=4, scale=3),
    MSRResNetConfig(blocks=2, channels=4, scale=2, tail="direct"),
    RankSRGANConfig(blocks=2, channels=8),
    RankSRGANConfig(blocks=1, channels=4, scale=2),
    RankSRGANConfig(blocks=1, channels=4, scale=3),
    MetaSRConfig(blocks=2, channels=4, hidden=8),
    MetaSRConfig(trunk="rdn", blocks=2, convs=3, growth=2, channels=4, hidden=8, scale=3),
    EDSRConfig(blocks=2, channels=4),
    EDSRConfig(blocks=1, channels=4, scale=3, residual_divisor=10, pixel_range=1),
    EDSRConfig(blocks=1, channels=4, scale=2, mean_shift=False, channels_in=1),
    RCANConfig(groups=2, blocks=1, channels=4, reduction=2),
    RCANConfig(groups=1, blocks=2, channels=4, reduction=4, scale=3, pixel_range=1),
    SPANConfig(blocks=2, channels=4, tail_channels=4, pixel_range=1),
    SPANConfig(blocks=1, channels=4, tail_channels=2, scale=3, pixel_range=1, mean_shift=False),
    PLKSRConfig(blocks=1, channels=8, large_kernel=5, large_channels=2, kind="group", scale=3),
    PLKSRConfig(blocks=2, channels=4, large_kernel=5, large_channels=1, gate=False),
    PLKSRConfig(blocks=1, channels=4, large_channels=2, mixer_kernels=(1, 3), gate=False, scale=2),
    AutoencoderConfig(channels=(4, 6, 8)),
    AutoencoderConfig(channels=(4, 4, 4), scale=4, head="plain", channels_in=1),
    AplusConfig(anchors=9, features=6),
    AplusConfig(anchors=5, features=4, scale=2),
    ScSRConfig(atoms=16, steps=3, projections=2),
    SRFBNConfig(channels=4, groups=2, steps=2),
    SRFBNConfig(channels=4, groups=2, steps=1, scale=2),
    SRFBNConfig(channels=2, groups=1, steps=2, scale=3),
    SANConfig(groups=2, blocks=1, channels=4, reduction=2, looking=2),
    SANConfig(groups=1, blocks=1, channels=4, reduction=4, looking=1, scale=3, long_skip="region"),
]
small = pytest.mark.parametrize("config", SMALL, ids=str)
# Where the whole input counts, no radius can be exact, and tiles are not the whole.
LOCAL = [config for config in SMALL if not config.global_context]


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (SRCNN_SIZES["srcnn-9-1-5"], 8_129),
        (SRCNN_SIZES["srcnn-9-3-5"], 24_513),
        (SRCNN_SIZES["srcnn-9-5-5"], 57_281),
        (SRCNN_SIZES["srcnn-9-1-5-rgb"], 20_099),
        (SRCNN_SIZES["srcnn-9-3-5-rgb"], 36_483),
        (SRCNN_SIZES["srcnn-9-5-5-rgb"], 69_251),
        (VDSR_SIZES["vdsr"], 665_921),
        (VDSR_SIZES["vdsr-no-bias"], 664_704),
        (VDSR_SIZES["vdsr-rgb"], 668_227),
        (VDSR_SIZES["vdsr-rgb-no-bias"], 667_008),
        (SRRESNET_SIZES["srresnet-x2"], 1_399_637),
        (SRRESNET_SIZES["srresnet-x3"], 1_584_277),
        (SRRESNET_SIZES["srresnet-x4"], 1_547_350),
        (SRResNetConfig(scale=2, body_bias=True), 1_401_749),
        (SRResNetConfig(scale=3, body_bias=True), 1_586_389),
        (SRResNetConfig(scale=4, body_bias=True), 1_549_462),
        (SRResNetConfig(slope_per_channel=True), 1_548_547),
        (SRResNetConfig(slope_per_channel=True, body_bias=True), 1_550_659),
        (MSRResNetConfig(scale=2), 1_369_859),
        (MSRResNetConfig(scale=3), 1_554_499),
        (MSRResNetConfig(scale=4), 1_517_571),
        (RANKSRGAN_SIZES["ranksrgan-x2"], 1_406_787),
        (RANKSRGAN_SIZES["ranksrgan-x3"], 1_591_427),
        (RANKSRGAN_SIZES["ranksrgan-x4"], 1_554_499),
        (RRDBNET_SIZES["rrdb-23-x4"], 16_697_987),
        (RRDBNET_SIZES["rrdb-16-x4"], 11_662_019),
        (RRDBNET_SIZES["rrdb-6-x4"], 4_467_779),
        (RRDBNET_SIZES["rrdb-23-x2"], 16_661_059),
        (RRDBNET_SIZES["realesrgan-x2plus"], 16_703_171),
        (SRVGGNET_SIZES["realesr-animevideov3"], 621_424),
        (SRVGGNET_SIZES["realesrganv2-animevideo-xsx2"], 600_652),
        (SRVGGNET_SIZES["realesr-general-x4v3"], 1_213_296),
        (SRVGGNET_SIZES["ultracompact-x4"], 325_488),
        (SRVGGNET_SIZES["superultracompact-x4"], 52_968),
        # Without the 24 numbers that shift the mean color.
        (SRFBN_SIZES["srfbn-x2"], 2_140_510),
        (SRFBN_SIZES["srfbn-x3"], 2_832_734),
        (SRFBN_SIZES["srfbn-x4"], 3_631_454),
        (SRFBN_SIZES["srfbn-s-x2"], 282_418),
        (SRFBN_SIZES["srfbn-s-x3"], 375_602),
        (SRFBN_SIZES["srfbn-s-x4"], 483_122),
        # Without what the published code holds and does not use.
        (SAN_SIZES["san-x2"], 15_712_776 - 38_044),
        (SAN_SIZES["san-x3"], 15_897_416 - 38_044),
        (SAN_SIZES["san-x4"], 15_860_488 - 38_044),
        (METASR_SIZES["meta-edsr"], 1_665_536),
        (METASR_SIZES["meta-rdn"], 22_419_072),
        (EDSR_SIZES["edsr-baseline-x2"], 1_369_859),
        (EDSR_SIZES["edsr-baseline-x3"], 1_554_499),
        (EDSR_SIZES["edsr-baseline-x4"], 1_517_571),
        (EDSR_SIZES["edsr-x2"], 40_729_603),
        (EDSR_SIZES["edsr-x3"], 43_680_003),
        (EDSR_SIZES["edsr-x4"], 43_089_923),
        (RCAN_SIZES["rcan-x4"], 15_592_355),
        (SPAN_SIZES["span-x4"], 426_288),
        (SPAN_SIZES["span-52-x4"], 498_208),
        (PLKSR_SIZES["plksr-tiny-x4"], 2_370_544),
        (PLKSR_SIZES["plksr-x4"], 7_386_096),
        (PLKSR_SIZES["realplksr-x4"], 7_389_680),
        (PLKSR_SIZES["realplksr-layer-x4"], 7_389_680),
        (PLKSR_SIZES["realplksr-tiny-x4"], 2_372_080),
    ],
)
def test_the_published_sizes_have_the_published_number_of_parameters(
    config: Any, parameters: int
) -> None:
    with torch.device("meta"):
        network = build(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_every_network_keeps_its_config_and_states_its_facts() -> None:
    assert {type(config) for config in SMALL} == {entry.config for entry in NETWORKS.values()}
    for config in SMALL:
        network = build(config)
        assert network.config is config
        assert config.scale >= 1
        assert config.channels_in in (1, 3)
        assert isinstance(config.pre_upsampled, bool)
        assert config.pre_upsampled <= (config.scale == 1)


def reach_px(network: nn.Module, config: Any) -> int:
    """The farthest that one input pixel is seen, in input pixels, over all phases of the input."""
    step, scale = config.size_multiple, config.scale
    half = -(-(config.receptive_radius_px + 8) // step) * step
    blank = torch.zeros(1, config.channels_in, step, 2 * half + step, dtype=torch.float64)
    blank = blank + getattr(network, "mean", 0.0)  # what such a network takes for nothing
    base = network(blank)
    farthest = 0
    for phase in range(step):
        impulse = blank.clone()
        impulse[..., half + phase] += 1.0
        seen = (network(impulse) != base).any(dim=1).any(dim=1)[0].nonzero().flatten()
        assert len(seen) > 0
        at_px = torch.div(seen, scale, rounding_mode="floor")
        farthest = max(farthest, int((at_px - half - phase).abs().max()))
    return farthest


# ScSR takes no impulse for texture: tests/test_networks_sparse.py.
@pytest.mark.parametrize("config", [c for c in LOCAL if not isinstance(c, ScSRConfig)], ids=str)
@torch.inference_mode()
def test_the_receptive_radius_is_exactly_what_the_config_says(config: Any) -> None:
    # With positive weights nothing cancels and every activation is the identity, so an impulse is
    # seen as far as it can be.
    network = build(config).eval().double()
    for name, parameter in network.named_parameters():
        # Weights of 1 would blow up through 40 layers until tanh saturates and sees nothing.
        size = 1.0 if parameter.dim() == 1 else 1.0 / parameter[0].numel()
        parameter.fill_(0.0 if name.endswith("bias") else size)
    assert reach_px(network, config) == config.receptive_radius_px


@pytest.mark.parametrize("config", [c for c in SMALL if c.global_context], ids=str)
@torch.inference_mode()
def test_what_looks_at_the_whole_says_so(config: Any) -> None:
    torch.manual_seed(0)
    network = build(config).eval().double()
    radius_px, step = config.receptive_radius_px, config.size_multiple
    width_px = -(-(2 * radius_px + 8) // step) * step
    x = torch.rand(1, config.channels_in, 2 * step, width_px, dtype=torch.float64)
    changed = x.clone()
    changed[..., 0] = 1.0 - changed[..., 0]
    beyond = slice((radius_px + 2) * config.scale, None)
    assert (network(changed) != network(x))[..., beyond].all()


def test_the_published_radii() -> None:
    assert SRCNN_SIZES["srcnn-9-1-5"].receptive_radius_px * 2 + 1 == 13
    assert VDSR_SIZES["vdsr"].receptive_radius_px * 2 + 1 == 41
    assert SRRESNET_SIZES["srresnet-x4"].receptive_radius_px == 40
    assert RRDBNET_SIZES["rrdb-23-x4"].receptive_radius_px > 300


def picture(config: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, config.channels_in, 12, 20, generator=generator)


@small
@torch.inference_mode()
def test_sizes_types_and_repetition(config: Any) -> None:
    torch.manual_seed(0)
    network, x = build(config).eval(), picture(config)
    kept = x.clone()
    y = network(x)
    assert y.shape == (2, config.channels_in, 12 * config.scale, 20 * config.scale)
    assert y.dtype == torch.float32
    assert torch.equal(x, kept), "the input must not be written to"
    assert torch.equal(y, network(x))
    # Layout is a matter of speed alone.
    as_last: dict[str, Any] = {"memory_format": torch.channels_last}
    last = network.to(**as_last)(x.to(**as_last))
    torch.testing.assert_close(last, y, atol=1e-5, rtol=1e-5)


@small
@torch.inference_mode()
def test_under_bfloat16_autocast_the_output_is_float32(config: Any) -> None:
    torch.manual_seed(0)
    network, x = build(config).eval(), picture(config)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "config", [VDSRConfig(depth=3), SRVGGNetCompactConfig(convs=1), MSRResNetConfig(blocks=1)]
)
@torch.inference_mode()
def test_the_last_sum_is_float32_under_autocast(config: Any) -> None:
    # With every weight zero the skip alone remains, and must come through to the last bit.
    network = build(config).eval()
    for parameter in network.parameters():
        parameter.zero_()
    x = torch.full((1, config.channels_in, 6, 6), 100.3 / 255.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    # bfloat16 would be off by up to 1e-3.
    torch.testing.assert_close(y, torch.full_like(y, 100.3 / 255.0), atol=1e-7, rtol=0.0)


@small
def test_gradients_reach_every_parameter(config: Any) -> None:
    torch.manual_seed(0)
    network = build(config).train()
    network(picture(config)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    "name", ["fast", "srcnn", "vdsr", "srresnet", "compact", "edsr-baseline", "span", "realplksr"]
)
def test_what_is_trained_learns_in_its_first_layer_too(name: str) -> None:
    """Of 18 layers in a row that each halve what passes through, none would learn."""
    torch.manual_seed(0)
    network = generator(recipe.load(name))
    x = picture(network.config)
    y = network(x)
    (y - torch.rand_like(y)).abs().mean().backward()
    gradients = [
        p.grad.abs().mean() for p in network.parameters() if p.dim() == 4 and p.grad is not None
    ]
    assert gradients[0] > 0.01 * gradients[-1]


@torch.inference_mode()
def test_srcnn_continues_the_border_instead_of_darkening_it() -> None:
    torch.manual_seed(0)
    network = build(SRCNNConfig()).eval()
    y = network(torch.full((1, 1, 24, 24), 0.7))
    torch.testing.assert_close(y, y[:, :, 12:13, 12:13].expand_as(y), atol=1e-7, rtol=1e-6)


@torch.inference_mode()
def test_the_output_ranges_of_srresnet_agree() -> None:
    torch.manual_seed(0)
    unit = build(SRResNetConfig(blocks=1, channels=4, output="unit")).eval()
    x = picture(SRResNetConfig())
    y = unit(x)
    expectations: list[tuple[Output, Tensor]] = [
        ("signed", (y + 1) / 2),
        ("tanh", (y.tanh() + 1) / 2),
    ]
    for output, expected in expectations:
        other = build(SRResNetConfig(blocks=1, channels=4, output=output)).eval()
        other.load_state_dict(unit.state_dict())
        torch.testing.assert_close(other(x), expected)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (SRCNNConfig, {"kernels": (9, 2, 5)}),
        (VDSRConfig, {"depth": 1}),
        (SRResNetConfig, {"scale": 5}),
        (SRResNetConfig, {"output": "sigmoid"}),
        (RRDBNetConfig, {"unshuffle": 3}),
        (RRDBNetConfig, {"upsamplings": 1, "unshuffle": 4}),
        (SRVGGNetCompactConfig, {"scale": 0}),
    ],
)
def test_a_config_of_nonsense_is_refused(kind: Any, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|makes"):
        kind(**numbers)


@pytest.mark.parametrize("size", ["16x16", "32x32", "64x64"])
@torch.inference_mode()
def test_genuine_weights_give_the_published_picture(shared: Path, size: str) -> None:
    # Made by the official program without padding, rounded to the nearest grey level.
    weights = shared / "weights"
    model = load(weights / "realesrgan" / "RealESRGAN_General_x4_v3_fp16.safetensors")
    folder = weights / "reference-images"
    with Image.open(folder / "inputs" / f"{size}.png") as image:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255.0
    with Image.open(folder / "outputs" / size / "realesr-general-x4v3.png") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    got = (model.network(x).clamp(0.0, 1.0) * 255.0).round()
    assert (got - expected).abs().max() <= 1.0
    assert (got == expected).float().mean() > 0.96
