"""SAN: its attention against plain formulas, its published keys, and what tiles make of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_networks import reach_px
from torch import Tensor, nn
from torch.nn import functional
from toys import random_model

from waifu4x.bench.speed.speed_picture import natural_picture
from waifu4x.canvas import to_unit
from waifu4x.model_files.key_layouts import recognise
from waifu4x.networks import san
from waifu4x.networks.san import SAN, SAN_SIZES, LongSkip, SANConfig
from waifu4x.tiled import TiledRunner

MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
TINY = SANConfig(groups=1, blocks=1, channels=8, reduction=4, looking=2, scale=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- attention of the second order -----------------------------------------------------------------


def test_the_covariance_is_numpys() -> None:
    x = noise(2, 5, 6, 7) + 100.0
    for made, one in zip(san.covariance(x), x.double().numpy(), strict=True):
        wanted = np.cov(one.reshape(5, -1), bias=True)
        np.testing.assert_allclose(made.numpy(), wanted, atol=1e-5, rtol=1e-5)


def test_the_square_root_by_hand() -> None:
    # What all five steps together make of a trace of 1 is a polynomial of each eigenvalue; far from
    # 0 it is the root, and of small ones less.
    eigenvalues = torch.tensor([0.6, 0.38, 0.02, 0.0])
    turn = torch.linalg.qr(noise(4, 4)).Q
    made = san.square_root((turn * 16.0 * eigenvalues @ turn.T)[None])[0]
    found = (turn.T @ made @ turn).diagonal() / 4.0
    assert float(found[0]) == pytest.approx(math.sqrt(0.6), abs=1e-4)
    assert float(found[1]) == pytest.approx(math.sqrt(0.38), abs=1e-3)
    assert 0.02 * 5 < float(found[2]) < math.sqrt(0.02)
    assert float(found[3]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (4, 4)])
def test_a_picture_of_one_color_has_finite_gradients(size: tuple[int, int]) -> None:
    """Its covariance is 0, and so are a trace and a root that are divided by."""
    x = torch.full((1, 6, *size), 123.456, requires_grad=True)
    root = san.square_root(san.covariance(x))
    assert root.abs().max() < 1e-2
    root.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_of_large_pictures_the_middle_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(70.0).view(1, 1, 7, 10)
    assert torch.equal(san._middle(x, 4), x[:, :, 1:5, 3:7])
    assert torch.equal(san._middle(x, 7), x[:, :, :, 1:8])
    assert torch.equal(san._middle(x, 10), x)
    attention = san.SecondOrderAttention(3, 1)
    assert attention.down.bias is not None
    nn.init.constant_(attention.down.bias, 2.0)  # beyond the bend of its activation
    for convolution in (attention.down, attention.up):
        nn.init.constant_(convolution.weight, 0.2)
    with torch.inference_mode():
        x = noise(1, 3, 12, 9)
        whole = attention(x)
        monkeypatch.setattr(san, "COVARIANCE_PX", 5)
        middle = attention(x)
        assert (middle - whole).abs().max() > 1e-4
        x[..., 0], x[..., 0, :] = 9.0, -9.0  # outside of the middle nothing matters
        assert torch.equal(attention(x)[..., 1:, 1:], middle[..., 1:, 1:])


def test_half_precision_stays_out_of_attention() -> None:
    network = SAN(TINY).eval()
    kinds: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda module, given, made, name=name: kinds.update({name: made.dtype})
        )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(torch.rand(1, 3, 8, 8))
    exact = {"groups.0.attention.down", "groups.0.attention.up", "regions.query", "regions.key"}
    assert {kinds[name] for name in exact} == {torch.float32}
    assert kinds["groups.0.blocks"] == kinds["groups.0"] == kinds["regions"] == torch.bfloat16


# -- attention within regions ----------------------------------------------------------------------


def plainly_attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """By the whole square of products."""
    q, k, v = (each.flatten(2) for each in (query, key, value))
    weights = torch.softmax(q.transpose(1, 2) @ k, dim=2)
    return (v @ weights.transpose(1, 2)).reshape(query.shape)


@pytest.mark.parametrize("values", [1, 8, 9])
@pytest.mark.parametrize("part", [1, 7, 1024])
def test_attention_in_parts_is_that_of_the_whole(
    values: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(san, "_LOOKING", part)
    maps = [noise(2, values, 5, 4, seed=seed) for seed in range(3)]
    made = san.attend(*maps)
    torch.testing.assert_close(made, plainly_attended(*maps), atol=1e-6, rtol=1e-5)


def test_no_part_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even where a kernel multiplies all with all, memory grows with the pixels alone."""
    lengths: list[int] = []
    attention = functional.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        lengths.append(query.shape[2])
        return attention(query, key, value, scale=scale)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    san.attend(*(noise(1, 2, 50, 50, seed=seed) for seed in range(3)))
    assert lengths == [1024, 1024, 50 * 50 - 2048]


@pytest.mark.parametrize("size", [(7, 10), (1, 6), (5, 1), (1, 1)])
@torch.inference_mode()
def test_regions_are_quarters_and_cut_above_the_middle_of_odd_sides(size: tuple[int, int]) -> None:
    block = san.RegionAttention(4, 2)
    for number, parameter in enumerate(block.parameters()):
        parameter.copy_(noise(*parameter.shape, seed=number))
    x = noise(2, 4, *size)
    wanted = x.clone()
    rows, columns = size[0] // 2, size[1] // 2
    for down in (slice(0, rows), slice(rows, None)):
        for aside in (slice(0, columns), slice(columns, None)):
            region = x[:, :, down, aside]
            if region.numel() > 0:
                maps = [conv(region) for conv in (block.query, block.key, block.value)]
                wanted[:, :, down, aside] += block.conv_out(plainly_attended(*maps))
    torch.testing.assert_close(block(x), wanted, atol=1e-5, rtol=1e-5)


# -- the published keys ----------------------------------------------------------------------------


def published_shapes(config: SANConfig, *, squeezed: int) -> dict[str, tuple[int, ...]]:
    """The keys of the authors' files with the shapes of their tensors, unused ones included."""
    wide, looking = config.channels, config.looking
    shapes: dict[str, tuple[int, ...]] = {"gamma": (1,)}

    def add(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, kernel, kernel), (out,)

    add("sub_mean", 3, 3, 1)
    add("add_mean", 3, 3, 1)
    add("head.0", wide, 3, 3)
    for name in ("g", "theta", "phi"):
        add(f"non_local.non_local.{name}", looking, wide, 1)
    add("non_local.non_local.W", wide, looking, 1)
    add("non_local.soca.conv_du.0", wide // 8, wide, 1)
    add("non_local.soca.conv_du.2", wide, wide // 8, 1)
    for group in range(config.groups):
        shapes[f"RG.{group}.gamma"] = (1,)
        for block in range(config.blocks):
            add(f"RG.{group}.rcab.{block}.conv_first.0", wide, wide, 3)
            add(f"RG.{group}.rcab.{block}.conv_first.2", wide, wide, 3)
        add(f"RG.{group}.soca.conv_du.0", squeezed, wide, 1)
        add(f"RG.{group}.soca.conv_du.2", wide, squeezed, 1)
        add(f"RG.{group}.conv_last", wide, wide, 3)
    add("conv_last", wide, wide, 3)
    for stage, factor in enumerate(config.stages):
        add(f"tail.0.{2 * stage}", wide * factor**2, wide, 3)
    add("tail.1", 3, wide, 3)
    return shapes


def by_published_keys(
    state: dict[str, Tensor], x: Tensor, *, config: SANConfig, later: bool
) -> Tensor:
    """What the authors describe, from 0..255 to 0..255."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[2] // 2)

    def looked(x: Tensor) -> Tensor:
        made, rows, columns = torch.zeros_like(x), x.shape[2] // 2, x.shape[3] // 2
        for down in (slice(0, rows), slice(rows, None)):
            for aside in (slice(0, columns), slice(columns, None)):
                part = x[:, :, down, aside]
                maps = [conv(f"non_local.non_local.{n}", part) for n in ("theta", "phi", "g")]
                seen = conv("non_local.non_local.W", plainly_attended(*maps))
                made[:, :, down, aside] = part + seen
        return made

    def weighed(name: str, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        values = x.flatten(2)
        centring = (torch.eye(pixels) - 1.0 / pixels) / pixels
        a = values @ centring @ values.transpose(1, 2)
        trace = a.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
        one = torch.eye(a.shape[1])
        y, z = a / trace, one
        for _ in range(5):
            y, z = 0.5 * y @ (3 * one - z @ y), 0.5 * (3 * one - z @ y) @ z
        told = (y * trace.sqrt()).mean(1)[..., None, None]
        told = conv(f"{name}.conv_du.2", conv(f"{name}.conv_du.0", told).relu())
        return x * torch.sigmoid(told)

    head = conv("head.0", conv("sub_mean", x))
    source = features = looked(head)
    for group in range(config.groups):
        y = features
        for block in range(config.blocks):
            name = f"RG.{group}.rcab.{block}.conv_first"
            y = y + conv(f"{name}.2", conv(f"{name}.0", y).relu())
        y = conv(f"RG.{group}.conv_last", weighed(f"RG.{group}.soca", y)) + features
        features = y + state["gamma"] * source
    features = looked(features) + (source if later else head)
    for stage, factor in enumerate(config.stages):
        features = functional.pixel_shuffle(conv(f"tail.0.{2 * stage}", features), factor)
    return conv("add_mean", conv("tail.1", features))


@pytest.mark.parametrize(
    ("scale", "later", "long_skip"),
    [(2, False, "head"), (3, False, "head"), (4, True, "region")],
)
@torch.inference_mode()
def test_published_weights_work_as_they_are(scale: int, later: bool, long_skip: LongSkip) -> None:
    wanted_config = SANConfig(
        scale=scale,
        groups=2,
        blocks=2,
        channels=8,
        reduction=4,
        looking=3,
        long_skip=long_skip,
    )
    shapes = published_shapes(wanted_config, squeezed=2)
    state = {key: 0.1 * noise(*shape, seed=n) for n, (key, shape) in enumerate(shapes.items())}
    for name, sign in (("sub_mean", -1.0), ("add_mean", 1.0)):
        state[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        state[f"{name}.bias"] = sign * 255.0 * MEAN.flatten()
    if later:  # then groups have none
        state = {key: value for key, value in state.items() if not key.endswith(".gamma")}
    for name in ("theta", "phi"):  # else one pixel takes all
        state[f"non_local.non_local.{name}.weight"] *= 0.1
    recognised: Any = recognise(state, {})
    name, config, own = recognised
    assert (name, config) == ("san", wanted_config)
    network = SAN(config).eval()
    network.load_state_dict(own)
    x = torch.rand(2, 3, 9, 6)
    wanted = by_published_keys(state, 255.0 * x, config=config, later=later)
    assert wanted.std() > 10.0
    torch.testing.assert_close(255.0 * network(x), wanted, atol=1e-2, rtol=1e-4)


def test_unused_weights_of_published_files_are_left_out() -> None:
    config = SAN_SIZES["san-x4"]
    shapes = published_shapes(config, squeezed=4)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    assert sum(tensor.numel() for tensor in state.values()) == 15_860_488 + 24
    _, found, own = recognise(state, {})
    assert found == config
    # 20 γ, a convolution of 64 by 64 channels, attention from 64 to 8 and back.
    unused = 20 + (9 * 64 * 64 + 64) + (64 * 8 + 8 + 8 * 64 + 64)
    assert unused == 38_044
    assert sum(tensor.numel() for tensor in own.values()) == 15_860_488 - unused
    with torch.device("meta"):
        assert own.keys() == SAN(config).state_dict().keys()


# -- what tiles make of it -------------------------------------------------------------------------


@torch.inference_mode()
def test_the_convolutions_alone_look_as_far_as_the_config_says() -> None:
    config = SANConfig(groups=2, blocks=1, channels=4, reduction=2, looking=1, scale=4)
    network = SAN(config).eval().double()
    for name, parameter in network.named_parameters():
        # All weights of channels are a half, and regions add nothing.
        is_off = name.endswith("bias") or ".attention." in name or name.startswith("regions")
        parameter.fill_(0.0 if is_off else 1.0 / parameter[0].numel())
    assert reach_px(network, config) == config.receptive_radius_px


@pytest.mark.parametrize(
    ("counts", "most", "mean"),
    [
        ("convolutions", 1e-5, 1e-6),
        ("channels", 0.1, 0.008),  # measured: 0.041 and 0.0038
        ("all", 0.6, 0.06),  # 0.37 and 0.036
    ],
)
@torch.no_grad()
def test_how_far_tiles_are_from_the_whole(counts: str, most: float, mean: float) -> None:
    """In tiles of half of a picture, with random weights, which use attention more than others."""
    model = random_model(SANConfig(groups=2, blocks=1, channels=8, reduction=2, looking=2, scale=2))
    network: Any = model.network
    if counts != "all":
        network.regions.conv_out.weight.zero_()
    if counts == "convolutions":
        for group in network.groups:
            group.attention.up.weight.zero_()
    image = to_unit(natural_picture(48, 48).pixels)

    def run(tile_px: int) -> np.ndarray:
        return TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px).run(image)

    apart = np.abs(run(24) - run(4096))
    assert apart.max() <= most
    assert apart.mean() <= mean
    if counts != "convolutions":
        assert apart.mean() > 0.1 * mean  # it is not measured on nothing
