"""The networks that are shown a reference: their sizes, warping by hand, what stays frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from waifu4x.errors import CheckpointError
from waifu4x.model_files import checkpoints
from waifu4x.networks import NETWORKS, REFERENCE_NETWORKS
from waifu4x.networks.crossnet import CROSSNET_SIZES, CrossNet, CrossNetConfig, warp
from waifu4x.networks.srntt import SRNTT, SRNTT_SIZES, Maps, SRNTTConfig, Texture
from waifu4x.train.objectives.vgg import VGG19Features

torch.set_num_threads(1)

SMALL_CROSSNET = CrossNetConfig(channels=2, flow_channels=4)
SMALL_SRNTT = SRNTTConfig(channels=4, blocks=2)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def varied(network: nn.Module) -> nn.Module:
    """With weights under which everything that is seen changes something."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    return network


def maps_for(height: int, width: int) -> Maps:
    return (
        torch.rand(1, 256, height, width),
        torch.rand(1, 128, 2 * height, 2 * width),
        torch.rand(1, 64, 4 * height, 4 * width),
    )


def reach(network: Any, x: Tensor, outputs: Tensor, axis: int) -> tuple[int, int]:
    """The first and the last place along an axis of `x` that the outputs depend on."""
    (gradient,) = torch.autograd.grad(outputs.sum(), x)
    seen = (gradient != 0).transpose(axis, -1).flatten(0, -2).any(0).nonzero().flatten()
    return int(seen.min()), int(seen.max())


def test_crossnet_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = CrossNet(CROSSNET_SIZES["crossnet"])
    parts = count(network.flow), count(network.encoder), count(network.decoder)
    assert parts == (33_830_110, 414_720, 939_011)
    assert count(network) == 35_183_841


def test_srntt_has_the_published_parameters() -> None:
    with torch.device("meta"):
        network = SRNTT(SRNTT_SIZES["srntt-x4"])
        bare = SRNTT(SRNTTConfig(middle_bias=False))
    assert (count(network.content), count(network.transfer)) == (1_518_211, 2_865_347)
    # A normalisation follows that bias, which the authors' code leaves out.
    assert count(bare.content) == 1_518_211 - 64
    # conv1_1 to conv3_1 of VGG-19, which are not trained.
    assert count(network.texture) == 1_792 + 36_928 + 73_856 + 147_584 + 295_168
    assert not any(parameter.requires_grad for parameter in network.texture.parameters())


def test_they_are_in_a_table_of_their_own() -> None:
    assert not NETWORKS.keys() & REFERENCE_NETWORKS.keys()
    kinds = {name: entry.config.reference for name, entry in REFERENCE_NETWORKS.items()}
    assert kinds == {"crossnet": "needed", "srntt": "optional"}


# -- CrossNet --------------------------------------------------------------------------------------


def test_a_flow_of_whole_pixels_shifts_and_continues_the_border() -> None:
    features = torch.arange(24.0).view(1, 1, 4, 6)
    flow = torch.zeros(1, 2, 4, 6)
    flow[:, 0], flow[:, 1] = 2.0, -1.0  # two to the right of here, one above
    moved = warp(features, flow)[0, 0]
    rows, columns = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 3, 4, 5, 5, 5])
    torch.testing.assert_close(moved, features[0, 0][rows][:, columns], atol=1e-4, rtol=0.0)


def test_a_flow_between_pixels_is_their_mean() -> None:
    features = torch.tensor([[[[1.0, 3.0], [5.0, 11.0]]]])
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, :, 0, 0] = 0.5
    assert warp(features, flow)[0, 0, 0, 0].item() == pytest.approx(5.0)
    assert warp(features, flow)[0, 0, 1, 1].item() == pytest.approx(11.0)


def test_flows_are_of_the_scale_of_what_they_warp_and_none_at_first() -> None:
    flows = CrossNet(SMALL_CROSSNET).flow(torch.rand(2, 3, 64, 128), torch.rand(2, 3, 64, 128))
    assert [tuple(flow.shape) for flow in flows] == [
        (2, 2, 64, 128),
        (2, 2, 32, 64),
        (2, 2, 16, 32),
        (2, 2, 8, 16),
    ]
    assert all(not flow.any() for flow in flows)


@torch.no_grad()
def test_what_crossnet_gives_beside_its_input() -> None:
    x, reference = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    plain = CrossNet(SMALL_CROSSNET).eval()
    added = CrossNet(CrossNetConfig(channels=2, flow_channels=4, residual=True)).eval()
    added.load_state_dict(plain.state_dict())
    torch.testing.assert_close(added(x, reference), x + plain(x, reference))
    assert (plain(x, reference) != plain(x, 0.5 * reference)).any()


@pytest.mark.parametrize(("shape", "other"), [((64, 96), (64, 96)), ((64, 64), (64, 128))])
def test_crossnet_takes_multiples_of_64_of_one_size(
    shape: tuple[int, int], other: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="a multiple of 64 px a side"):
        CrossNet(SMALL_CROSSNET)(torch.rand(1, 3, *shape), torch.rand(1, 3, *other))


def test_the_radius_of_crossnets_convolutions() -> None:
    # One long row of blocks; the pixel that sees most is the 10th of its own.
    radius = SMALL_CROSSNET.receptive_radius_px
    network = varied(CrossNet(SMALL_CROSSNET))
    x = torch.rand(1, 3, 64, 1024, requires_grad=True)
    y = network(x, torch.rand(1, 3, 64, 1024))
    pixel = 512 + 9
    first, _ = reach(network, x, y[..., pixel], axis=3)
    assert pixel - first == radius == 456


# -- SRNTT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_the_radius_of_srntts_convolutions(blocks: int) -> None:
    config = SRNTTConfig(channels=2, blocks=blocks)
    radius = config.receptive_radius_px
    network: Any = varied(SRNTT(config)).eval()
    for parameter in network.parameters():
        parameter.data.abs_()  # no ReLU hides anything
    side = 2 * radius + 3
    x = torch.rand(1, 3, 4, side, requires_grad=True)
    maps = maps_for(4, side)
    middle = side // 2
    y = network.transfer(network.content(x), maps, torch.float32)
    first, last = reach(network, x, y[..., 4 * middle : 4 * middle + 4], axis=3)
    assert (middle - first, last - middle) == (radius, radius)


def test_with_maps_the_content_stays_as_it_is() -> None:
    network = SRNTT(SMALL_SRNTT).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.rand(1, 3, 6, 5), maps_for(6, 5)).square().mean().backward()
    after = network.state_dict()
    for name, value in before.items():
        if not name.startswith("transfer."):
            assert torch.equal(after[name], value), name
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in trained} == {"transfer"}
    assert trained == {n for n, _ in network.named_parameters() if n.startswith("transfer.")}
    assert all(module.training for module in network.modules())


def test_without_maps_only_the_content_is_trained() -> None:
    network = SRNTT(SMALL_SRNTT).train()
    y = network(torch.rand(2, 3, 5, 6))
    assert y.shape == (2, 3, 20, 24)
    y.square().mean().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in network.named_parameters() if n.startswith("content.")}
    assert network.content.bn_mid.num_batches_tracked is not None
    assert int(network.content.bn_mid.num_batches_tracked) == 1


@torch.no_grad()
def test_the_textures_are_those_of_vgg19() -> None:
    layers = ("relu3_1", "relu2_1", "relu1_1")
    torch.manual_seed(1)
    features = VGG19Features(layers)
    texture = Texture()
    texture.load_state_dict(features.state_dict())
    x = torch.rand(2, 3, 12, 16)
    wanted = features(x)
    for found, layer in zip(texture(x), layers, strict=True):
        torch.testing.assert_close(found, wanted[layer])
    assert [tuple(each.shape[1:]) for each in texture(x)] == [
        (256, 3, 4),
        (128, 6, 8),
        (64, 12, 16),
    ]


@torch.no_grad()
def test_what_srntt_gives_beside_the_bicubic_picture() -> None:
    torch.manual_seed(0)
    plain = SRNTT(SMALL_SRNTT).eval()
    added = SRNTT(SRNTTConfig(channels=4, blocks=2, residual=True)).eval()
    added.load_state_dict(plain.state_dict())
    x, maps = torch.rand(1, 3, 6, 6), maps_for(6, 6)
    y = plain(x, maps)
    assert 0.0 <= y.min() <= y.max() <= 1.0
    # What tanh hides is the difference of the other to the enlarged input.
    large = nn.functional.interpolate(x, scale_factor=4, mode="bicubic")
    torch.testing.assert_close(torch.tanh(added(x, maps) - large), 2.0 * y - 1.0)


# -- both ------------------------------------------------------------------------------------------


def networks() -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
    side = torch.rand(1, 3, 64, 64)
    yield CrossNet(SMALL_CROSSNET), (side, torch.rand(1, 3, 64, 64))
    yield SRNTT(SMALL_SRNTT), (torch.rand(1, 3, 4, 4), maps_for(4, 4))


@torch.no_grad()
def test_pictures_are_float32_under_autocast_too() -> None:
    for network, inputs in networks():
        with torch.autocast("cpu", torch.bfloat16):
            assert network.eval()(*inputs).dtype == torch.float32


def test_gradients_reach_all_of_crossnet() -> None:
    network, inputs = next(networks())
    varied(network)(*inputs).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_they_come_back_from_their_files(tmp_path: Path) -> None:
    for network, inputs in networks():
        path = tmp_path / "own.safetensors"
        checkpoints.save(network, path, metadata={"scales": "4"})
        model = checkpoints.load(path)
        assert model.architecture in REFERENCE_NETWORKS
        config: Any = network.config
        assert model.reference == config.reference
        assert (model.pre_upsampled, model.scales) == (config.pre_upsampled, (4,))
        torch.testing.assert_close(model.network(*inputs), network.eval()(*inputs))


def test_a_config_deeper_than_its_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "deep.safetensors"
    facts = {"channels": 4, "blocks": 4000, "middle_bias": True, "residual": False}
    metadata = {"architecture": "srntt", "config": json.dumps(facts)}
    save_file({"content.conv_in.weight": torch.zeros(4, 3, 3, 3)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="deeper than the file has tensors"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (CrossNetConfig, {"channels": 0}),
        (CrossNetConfig, {"flow_channels": 6}),
        (SRNTTConfig, {"channels": 3}),
        (SRNTTConfig, {"blocks": -1}),
    ],
)
def test_a_config_of_nonsense_is_refused(kind: Any, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(**numbers)
