"""EDSR, RCAN, SPAN and PLKSR as they were published: their keys, and what each computes.

What a file must give is computed here once more from its own keys, operation by operation, in
float64.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.bench.cost import measure_cost
from waifu4x.bench.metrics import psnr_y
from waifu4x.errors import CheckpointError, UnknownNetworkError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.key_layouts_later import folded
from waifu4x.networks import NETWORKS
from waifu4x.networks.edsr import EDSR, EDSR_SIZES, EDSRConfig
from waifu4x.networks.plksr import PLKSR, PLKSRConfig
from waifu4x.networks.rcan import RCAN, RCANConfig
from waifu4x.networks.span import SPAN, SPAN_SIZES, SPANConfig
from waifu4x.train.validation import validation_pairs

MEAN = (0.4488, 0.4371, 0.4040)
State = dict[str, Tensor]


def filled(shapes: dict[str, tuple[int, ...]], *, gain: float = 1.0) -> State:
    """A weight of every shape, and a bias to it; values that neither vanish nor grow."""
    torch.manual_seed(1)
    state: State = {}
    for key, shape in shapes.items():
        inputs = int(np.prod(shape[1:]))
        state[f"{key}.weight"] = torch.randn(shape) * gain * (2.0 / inputs) ** 0.5
        state[f"{key}.bias"] = 0.1 * torch.randn(shape[0])
    return state


def conv(state: State, key: str, x: Tensor, *, padding: int | None = None) -> Tensor:
    weight, bias = state[f"{key}.weight"].double(), state[f"{key}.bias"].double()
    return functional.conv2d(
        x, weight, bias, padding=weight.shape[2] // 2 if padding is None else padding
    )


def shuffled(state: State, key: str, x: Tensor) -> Tensor:
    y = conv(state, key, x)
    return functional.pixel_shuffle(y, 2)


def shifted(x: Tensor, sign: float) -> Tensor:
    return x + sign * torch.tensor(MEAN, dtype=torch.float32).double().view(1, 3, 1, 1)


def picture() -> Tensor:
    return torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def loaded(folder: Path, state: State) -> checkpoints.Model:
    path = folder / "published.pth"
    torch.save({"params": state}, path)
    return checkpoints.load(path)


@torch.inference_mode()
def enlarged(model: checkpoints.Model) -> Tensor:
    return model.network.double()(picture())


# -- EDSR and RCAN ---------------------------------------------------------------------------------

_SHIFT = {
    f"{name}.{kind}": value
    for name, sign in (("sub_mean", -255.0), ("add_mean", 255.0))
    for kind, value in (
        ("weight", torch.eye(3).view(3, 3, 1, 1)),
        ("bias", sign * torch.tensor(MEAN)),
    )
}
_ENDS = {
    "head.0": (8, 3, 3, 3),
    "body.2": (8, 8, 3, 3),
    "tail.0.0": (32, 8, 3, 3),
    "tail.0.2": (32, 8, 3, 3),
    "tail.1": (3, 8, 3, 3),
}


def between_ends(state: State, body: Callable[[Tensor], Tensor]) -> Tensor:
    """What EDSR-PyTorch and RCAN share, in their authors' keys."""
    features = conv(state, "head.0", shifted(picture(), -1.0) * 255.0)
    features = conv(state, "body.2", body(features)) + features
    features = shuffled(state, "tail.0.2", shuffled(state, "tail.0.0", features))
    return shifted(conv(state, "tail.1", features) / 255.0, 1.0)


def test_edsr_of_its_authors(tmp_path: Path) -> None:
    shapes = {f"body.{n}.body.{m}": (8, 8, 3, 3) for n in (0, 1) for m in (0, 2)}
    state = filled({**_ENDS, **shapes})

    def body(x: Tensor) -> Tensor:
        for n in (0, 1):
            x = x + conv(state, f"body.{n}.body.2", conv(state, f"body.{n}.body.0", x).relu())
        return x

    model = loaded(tmp_path, {**state, **_SHIFT})
    assert (model.architecture, model.scale, model.global_context) == ("edsr", 4, False)
    torch.testing.assert_close(enlarged(model), between_ends(state, body))


def rcan_body(state: State, block: str, down: str, up: str) -> Callable[[Tensor], Tensor]:
    def body(x: Tensor) -> Tensor:
        for group in (0, 1):
            y = x
            for number in (0, 1):
                key = block.format(group, number)
                z = conv(state, f"{key}.2", conv(state, f"{key}.0", y).relu())
                pooled = z.mean(dim=(2, 3), keepdim=True)
                weights = conv(state, f"{key}.{up}", conv(state, f"{key}.{down}", pooled).relu())
                y = y + z * weights.sigmoid()
            last = f"body.{group}.body.2" if "rcab" not in block else f"body.{group}.conv"
            x = x + conv(state, last, y)
        return x

    return body


def rcan_shapes(block: str, down: str, up: str, last: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {last.format(group): (8, 8, 3, 3) for group in (0, 1)}
    for group in (0, 1):
        for number in (0, 1):
            key = block.format(group, number)
            shapes |= {f"{key}.{n}": (8, 8, 3, 3) for n in (0, 2)}
            shapes |= {f"{key}.{down}": (2, 8, 1, 1), f"{key}.{up}": (8, 2, 1, 1)}
    return shapes


def test_rcan_of_its_authors(tmp_path: Path) -> None:
    names = ("body.{}.body.{}.body", "3.conv_du.0", "3.conv_du.2")
    state = filled({**_ENDS, **rcan_shapes(*names, "body.{}.body.2")})
    model = loaded(tmp_path, {**state, **_SHIFT})
    assert (model.architecture, model.scale, model.global_context) == ("rcan", 4, True)
    torch.testing.assert_close(enlarged(model), between_ends(state, rcan_body(state, *names)))


_BASICSR = {
    "head.0": "conv_first",
    "body.2": "conv_after_body",
    "tail.0.0": "upsample.0",
    "tail.0.2": "upsample.2",
    "tail.1": "conv_last",
}


def test_rcan_of_basicsr(tmp_path: Path) -> None:
    names = ("body.{}.residual_group.{}.rcab", "3.attention.1", "3.attention.3")
    state = filled({**_ENDS, **rcan_shapes(*names, "body.{}.conv")})
    renamed = dict(state)
    for ours, theirs in _BASICSR.items():
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.{kind}"] = renamed.pop(f"{ours}.{kind}")
    model = loaded(tmp_path, renamed)
    assert (model.architecture, model.scale) == ("rcan", 4)
    torch.testing.assert_close(enlarged(model), between_ends(state, rcan_body(state, *names)))


def test_what_the_shifting_layers_say(tmp_path: Path) -> None:
    """255 or 1, or nothing at all; whatever else they do cannot be done here."""
    shapes = {f"body.{n}.body.{m}": (8, 8, 3, 3) for n in (0, 1) for m in (0, 2)}
    state = filled({**_ENDS, **shapes})
    small = {k: v / 255.0 if k.endswith("bias") else v for k, v in _SHIFT.items()}
    for shift, numbers in ((_SHIFT, (255, True)), (small, (1, True)), ({}, (1, False))):
        config: Any = loaded(tmp_path, {**state, **shift}).network.config
        assert (config.pixel_range, config.mean_shift) == numbers
    for key in ("sub_mean.bias", "add_mean.weight"):
        with pytest.raises(UnknownNetworkError):
            loaded(tmp_path, {**state, **_SHIFT, key: 1.1 * _SHIFT[key]})


def test_edsr_of_mmagic_has_a_range_of_1(tmp_path: Path) -> None:
    network = EDSR(EDSRConfig(blocks=2, channels=8, scale=4, pixel_range=1))
    state = {
        key.replace("upsample.0.", "upsample.0.upsample_conv.").replace(
            "upsample.2.", "upsample.1.upsample_conv."
        ): value
        for key, value in network.state_dict().items()
    }
    model = loaded(tmp_path, state)
    assert model.network.config == network.config
    expected = network.double().eval()(picture())
    torch.testing.assert_close(enlarged(model), expected.detach())


def test_the_large_edsr_is_damped(tmp_path: Path) -> None:
    """Nothing in its file says so."""
    network = EDSR(EDSRConfig(blocks=1, channels=256, scale=2, residual_divisor=10))
    assert loaded(tmp_path, network.state_dict()).network.config == network.config
    block: Any = network.body[0]
    x = torch.randn(1, 256, 3, 3)
    damped = 0.1 * block.conv2(block.conv1(x).relu())
    torch.testing.assert_close(block(x), x + damped)


@pytest.mark.parametrize(("scale", "parameters"), [(2, 15_444_643), (3, 15_629_283)])
def test_the_other_rcans_have_the_published_number_of_parameters(
    scale: int, parameters: int
) -> None:
    """By their difference from x4, 15,592,355, which is in the upsampling alone."""

    def count(scale: int) -> int:
        with torch.device("meta"):
            network = RCAN(RCANConfig(groups=0, scale=scale))
        return sum(each.numel() for each in network.parameters())

    assert 15_592_355 - count(4) + count(scale) == parameters


# -- SPAN ------------------------------------------------------------------------------------------


def stack_shapes(key: str, channels_in: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Of the three convolutions and the one beside them that SPAN is trained with."""
    return {
        f"{key}.sk": (channels, channels_in, 1, 1),
        f"{key}.conv.0": (2 * channels_in, channels_in, 1, 1),
        f"{key}.conv.1": (2 * channels, 2 * channels_in, 3, 3),
        f"{key}.conv.2": (channels, 2 * channels, 1, 1),
    }


def span_shapes(channels: int, *, scale: int = 4) -> dict[str, tuple[int, ...]]:
    shapes = stack_shapes("conv_1", 3, channels)
    for block in range(1, 7):
        for number in (1, 2, 3):
            shapes |= stack_shapes(f"block_{block}.c{number}_r", channels, channels)
    shapes |= stack_shapes("conv_2", channels, channels)
    shapes |= {"conv_cat": (channels, 4 * channels, 1, 1)}
    return {**shapes, "upsampler.0": (3 * scale**2, channels, 3, 3)}


def stack(state: State, key: str, x: Tensor) -> Tensor:
    y = conv(state, f"{key}.conv.0", functional.pad(x, (1, 1, 1, 1)))
    y = conv(state, f"{key}.conv.1", y, padding=0)
    return conv(state, f"{key}.conv.2", y) + conv(state, f"{key}.sk", x)


def span_in_training(state: State, x: Tensor) -> Tensor:
    """Its authors' forward: SiLU writes over what it is given, so the last block's first features
    are the activated ones."""
    first = features = stack(state, "conv_1", x)
    kept: list[Tensor] = []
    inner = features
    for block in range(1, 7):
        inner = functional.silu(stack(state, f"block_{block}.c1_r", features))
        y = functional.silu(stack(state, f"block_{block}.c2_r", inner))
        y = stack(state, f"block_{block}.c3_r", y)
        features = (y + features) * (y.sigmoid() - 0.5)
        kept.append(features)
    joined = torch.cat((first, stack(state, "conv_2", features), kept[0], inner), 1)
    return functional.pixel_shuffle(conv(state, "upsampler.0", conv(state, "conv_cat", joined)), 4)


def test_a_stack_folds_exactly_also_at_the_border() -> None:
    state = {key: value.double() for key, value in filled(stack_shapes("a", 3, 5)).items()}
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    weight, bias = folded(state, "a")
    expected = stack(state, "a", x)
    assert expected.abs().min() < expected.abs().max() > 0.5
    torch.testing.assert_close(
        functional.conv2d(x, weight, bias, padding=1), expected, atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize("plain", [False, True])
def test_span_as_it_is_trained(tmp_path: Path, plain: bool) -> None:
    state = filled(span_shapes(8), gain=0.7)
    # Copies of an earlier step, which nobody is to use.
    old = {
        key.replace(".sk.", ".eval_conv."): torch.full((8, 8, 3, 3), 9.0)
        for key in state
        if key.endswith(".sk.weight")
    }
    marked = {"no_norm": torch.zeros(1)} if plain else {}
    model = loaded(tmp_path, {**state, **old, **marked})
    assert model.architecture == "span"
    assert isinstance(model.network, SPAN)
    config = model.network.config
    assert config == SPANConfig(
        channels=8, tail_channels=8, pixel_range=1 if plain else 255, mean_shift=not plain
    )
    x = picture() if plain else shifted(picture(), -1.0) * 255.0
    expected = span_in_training(state, x)
    # The folded weights are rounded to float32.
    torch.testing.assert_close(enlarged(model), expected, rtol=0.0, atol=1e-4 * expected.std())


def test_span_has_the_published_number_of_parameters_while_it_is_trained() -> None:
    for channels, trained, with_copies in (
        (48, 1_840_488, 2_236_728),
        (52, 2_157_136, 2_621_964),
    ):
        shapes = span_shapes(channels)
        assert sum(int(np.prod(s)) + s[0] for s in shapes.values()) == trained
        stacks = [shape for key, shape in shapes.items() if key.endswith(".sk")]
        copies = sum(9 * out * into + out for out, into, _, _ in stacks)
        assert trained + copies == with_copies


def test_span_folded_by_its_authors(tmp_path: Path) -> None:
    network = SPAN(SPANConfig(channels=8, tail_channels=5))
    names = {"conv_first": "conv_1.eval_conv", "conv_after_blocks": "conv_2.eval_conv"}
    state: State = {}
    for key, value in network.state_dict().items():
        module, _, kind = key.rpartition(".")
        if module.startswith("blocks."):
            _, number, name = module.split(".")
            module = f"block_{int(number) + 1}.c{name[-1]}_r.eval_conv"
        module = {**names, "conv_last": "upsampler.0"}.get(module, module)
        state[f"{module}.{kind}"] = value
    model = loaded(tmp_path, state)
    assert model.network.config == network.config
    torch.testing.assert_close(enlarged(model), network.double().eval()(picture()).detach())


def test_a_genuine_span_reaches_what_it_should(shared: Path) -> None:
    """Of NTIRE 2025. With features that are not activated where they are joined it is 19.0 dB."""
    model = checkpoints.load(shared / "weights" / "loader" / "team46_span.pth")
    assert (model.architecture, model.scale, model.parameters) == ("span", 4, 146_328)
    assert model.network.config == SPAN_SIZES["span-28-x4"]
    (pair,) = [p for p in validation_pairs(shared / "data/bench/Set5", 4) if p.name == "butterfly"]
    x = torch.from_numpy(pair.lr.copy()).permute(2, 0, 1)[None] / 255.0
    with torch.inference_mode():
        y = model.network(x).clamp(0.0, 1.0) * 255.0
    made = y.round().byte()[0].permute(1, 2, 0).numpy()
    assert psnr_y(made, pair.hr, border_px=4) == pytest.approx(27.706, abs=0.005)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {**state, "conv_1.conv.1.weight": torch.ones(16, 6, 3)},
        lambda state: {**state, "conv_1.conv.1.bias": torch.ones(15)},
        lambda state: {**state, "conv_1.sk.weight": torch.ones(())},
        lambda state: {**state, "conv_2.conv.0.weight": torch.ones(2048, 8, 1, 1)},
        lambda state: {k: v for k, v in state.items() if k != "block_3.c1_r.conv.2.bias"},
    ],
)
def test_a_stack_that_does_not_fit_is_refused(
    tmp_path: Path, spoil: Callable[[State], State]
) -> None:
    with pytest.raises(UnknownNetworkError):
        loaded(tmp_path, spoil(filled(span_shapes(8))))


def test_a_damaged_stack_is_found_out(tmp_path: Path) -> None:
    state = filled(span_shapes(8))
    state["block_2.c2_r.conv.1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        loaded(tmp_path, state)


# -- PLKSR -----------------------------------------------------------------------------------------


def plksr_shapes(*, real: bool, kernels: tuple[int, int], gate: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"feats.0": (8, 3, 3, 3)}
    mixer = "channel_mixer" if real else "channe_mixer"
    for number in (1, 2):
        key = f"feats.{number}"
        shapes |= {
            f"{key}.{mixer}.0": (16, 8, kernels[0], kernels[0]),
            f"{key}.{mixer}.2": (8, 16, kernels[1], kernels[1]),
            f"{key}.lk.conv": (2, 2, 5, 5),
            f"{key}.refine": (8, 8, 1, 1),
        }
        if gate:
            shapes[f"{key}.attn.f.0"] = (8, 8, 3, 3)
    # After RealPLKSR's blocks comes a dropout, which has a number.
    return {**shapes, f"feats.{4 if real else 3}": (12, 8, 3, 3)}


def plksr_by_hand(state: State, *, kind: str, gate: bool) -> Tensor:
    mixer = "channe_mixer" if kind == "plain" else "channel_mixer"
    x = conv(state, "feats.0", picture())
    for number in (1, 2):
        key = f"feats.{number}"
        y = x
        if kind == "layer":
            y = y - y.mean(1, keepdim=True)
            y = y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt()
            y = affine(state, f"{key}.layer_norm", y)
        y = conv(state, f"{key}.{mixer}.0", y)
        # Mish is x · tanh(softplus(x)), GELU x times the normal distribution's integral.
        curve = 0.5 * (1.0 + torch.erf(y / 2.0**0.5)) if kind == "plain" else y.exp().log1p().tanh()
        y = conv(state, f"{key}.{mixer}.2", y * curve)
        y = torch.cat((conv(state, f"{key}.lk.conv", y[:, :2]), y[:, 2:]), 1)
        if gate:
            y = y * conv(state, f"{key}.attn.f.0", y).sigmoid()
        y = conv(state, f"{key}.refine", y)
        if kind == "group":
            groups = y.view(2, 4, -1)
            groups = groups - groups.mean(2, keepdim=True)
            groups = groups / (groups.square().mean(2, keepdim=True) + 1e-5).sqrt()
            y = affine(state, f"{key}.norm", groups.view_as(y))
        x = x + y
    y = conv(state, f"feats.{3 if kind == 'plain' else 4}", x)
    return functional.pixel_shuffle(y + picture().repeat_interleave(4, dim=1), 2)


def affine(state: State, key: str, x: Tensor) -> Tensor:
    weight, bias = (
        state[f"{key}.{kind}"].double().view(1, -1, 1, 1) for kind in ("weight", "bias")
    )
    return x * weight + bias


@pytest.mark.parametrize(
    ("kind", "kernels", "gate"),
    [
        ("plain", (3, 3), True),
        ("plain", (3, 1), False),
        ("plain", (1, 3), True),
        ("group", (3, 3), True),
        ("layer", (3, 3), False),
    ],
)
def test_plksr_as_published(
    tmp_path: Path, kind: Any, kernels: tuple[int, int], gate: bool
) -> None:
    state = filled(plksr_shapes(real=kind != "plain", kernels=kernels, gate=gate))
    name = {"plain": None, "group": "norm", "layer": "layer_norm"}[kind]
    for number in (1, 2) if name else ():
        state[f"feats.{number}.{name}.weight"] = torch.rand(8) + 0.5
        state[f"feats.{number}.{name}.bias"] = torch.randn(8)
    model = loaded(tmp_path, state)
    assert model.architecture == "plksr"
    assert model.network.config == PLKSRConfig(
        scale=2,
        blocks=2,
        channels=8,
        kind=kind,
        large_kernel=5,
        large_channels=2,
        mixer_kernels=kernels,
        gate=gate,
    )
    assert model.global_context == (kind == "group")
    torch.testing.assert_close(enlarged(model), plksr_by_hand(state, kind=kind, gate=gate))


@pytest.mark.parametrize(
    "config",
    [
        PLKSRConfig(blocks=2, channels=4, large_kernel=5, large_channels=2),
        PLKSRConfig(blocks=1, channels=4, large_kernel=7, large_channels=2, kind="layer", scale=2),
        PLKSRConfig(blocks=1, channels=4, large_channels=1, mixer_kernels=(3, 1), scale=1),
    ],
    ids=str,
)
def test_the_radius_of_a_gate_and_of_normalised_pixels(config: PLKSRConfig) -> None:
    """Of the middle pixel, by its gradient: where features are 0, as around an impulse, a gate
    opens to nothing."""
    torch.manual_seed(0)
    network = PLKSR(config).eval().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    radius_px = config.receptive_radius_px
    side_px = 2 * radius_px + 5
    x = torch.rand(1, 3, 3, side_px, dtype=torch.float64, requires_grad=True)
    middle, s = side_px // 2, config.scale
    network(x)[..., middle * s : (middle + 1) * s].square().sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (middle - radius_px, middle + radius_px)


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        # RealPLKSR whose upsampler has weights of its own, RCAN that unshuffles first, SwinIR.
        {**plksr_shapes(real=True, kernels=(3, 3), gate=True), "to_img.offset": (32, 12, 1, 1)},
        {**_ENDS, "head.1": (8, 12, 3, 3)},
        {
            "conv_first": (8, 3, 3, 3),
            "layers.0.conv": (8, 8, 3, 3),
            "conv_after_body": (8, 8, 3, 3),
            "upsample.0": (32, 8, 3, 3),
            "conv_last": (3, 8, 3, 3),
        },
    ],
)
def test_what_only_looks_like_them_is_left_to_others(
    tmp_path: Path, keys: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(UnknownNetworkError):
        loaded(tmp_path, filled(keys))


@pytest.mark.parametrize(
    ("config", "mega_per_pixel", "giga_hd"),
    [
        (EDSR_SIZES["edsr-baseline-x4"], "1.983", "114.2"),
        (SPAN_SIZES["span-x4"], "0.425", "24.5"),
    ],
)
def test_published_costs(config: Any, mega_per_pixel: str, giga_hd: str) -> None:
    (module,) = [each.module for each in NETWORKS.values() if each.config is type(config)]
    cost = measure_cost(module(config), config)
    assert f"{cost.multiply_adds_per_pixel / 1e6:.3f}" == mega_per_pixel
    assert f"{cost.multiply_adds_hd / 1e9:.1f}" == giga_hd


def test_a_file_of_this_project_cannot_state_a_giant(tmp_path: Path) -> None:
    path = tmp_path / "giant.safetensors"
    config = dataclasses.asdict(RCANConfig(groups=2000, blocks=2000))
    facts = {"architecture": "rcan", "config": json.dumps(config)}
    save_file({f"a{n}": torch.zeros(1) for n in range(2001)}, path, metadata=facts)
    with pytest.raises(CheckpointError, match="deeper than the file has tensors"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (EDSRConfig, {"scale": 5}),
        (EDSRConfig, {"pixel_range": 2}),
        (EDSRConfig, {"channels_in": 1}),
        (RCANConfig, {"reduction": 65}),
        (RCANConfig, {"scale": 6}),
        (SPANConfig, {"channels_in": 1}),
        (SPANConfig, {"blocks": 0}),
        (PLKSRConfig, {"kind": "batch"}),
        (PLKSRConfig, {"kind": "group", "channels": 6, "large_channels": 2}),
        (PLKSRConfig, {"large_channels": 65}),
        (PLKSRConfig, {"large_kernel": 16}),
    ],
)
def test_a_config_of_nonsense_is_refused(kind: Any, numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        kind(**numbers)
