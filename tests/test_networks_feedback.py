"""SRFBN: its steps, by hand and by the published keys, and how training counts all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from training import GAN, save_three, train, trainer

from waifu4x.errors import UnknownNetworkError
from waifu4x.model_files.key_layouts import recognise
from waifu4x.networks.srfbn import SRFBN, SRFBN_SIZES, SRFBNConfig
from waifu4x.train.data import open_cache
from waifu4x.train.objectives.objective import Objective
from waifu4x.train.recipe import LossOptions

MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


def build(**numbers: Any) -> SRFBN:
    torch.manual_seed(0)
    return SRFBN(SRFBNConfig(**numbers)).eval()


# -- what it computes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "darkened"),
    [
        # Seven activations in a row: conv_first, conv_features, conv_in, up, down, conv_out,
        # upsample. In the first step the hidden state is the features themselves.
        (1, 0.2**7),
        # Features after two, hidden after four more; their mean through five.
        (2, (0.2**2 + 0.2**6) / 2 * 0.2**5),
    ],
)
@torch.inference_mode()
def test_a_flat_picture_by_hand(steps: int, darkened: float) -> None:
    """With weights that are means, far from the border every layer gives what it is given."""
    network = build(scale=2, channels=1, groups=1, steps=steps)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 4:
            # An enlarging convolution has 9 of its 36 weights for each pixel.
            enlarges = name.startswith(("upsample", "feedback.up"))
            parameter.fill_(1.0 / 9 if enlarges else 1.0 / parameter[0].numel())
    for level, factor in ((10.0, 1.0), (-10.0, darkened)):
        x = (MEAN + level / 255.0).expand(1, 3, 40, 40)
        wanted = x[..., :1, :1] + level * factor / 255.0
        y = network(x)[..., 36:44, 36:44]
        torch.testing.assert_close(y, wanted.expand_as(y), atol=1e-6, rtol=0.0)


@torch.inference_mode()
def test_without_a_residual_it_is_bilinear() -> None:
    network, x = build(channels=2, groups=1, scale=3), torch.rand(2, 3, 5, 7)
    network.conv_last.weight.zero_()
    wanted = functional.interpolate(x, scale_factor=3, mode="bilinear")
    torch.testing.assert_close(network(x), wanted, atol=1e-7, rtol=0.0)


@torch.inference_mode()
def test_training_gives_the_picture_of_every_step() -> None:
    network, x = build(channels=4, groups=2, steps=3), torch.rand(2, 3, 6, 5)
    given = network.train()(x)
    assert given.shape == (3 * 2, 3, 24, 20)
    assert network.config.outputs_in_training == 3
    for steps, picture in enumerate(given.split(2), start=1):
        shorter = SRFBN(dataclasses.replace(network.config, steps=steps)).eval()
        shorter.load_state_dict(network.state_dict())
        torch.testing.assert_close(shorter(x), picture, atol=1e-6, rtol=0.0)
    # They do differ, and nothing is kept from one picture to the next.
    assert (given[:2] - given[-2:]).abs().max() > 1e-3
    torch.testing.assert_close(network.eval()(x), given[-2:], atol=1e-6, rtol=0.0)


def test_features_keep_their_size_on_their_way() -> None:
    """As initialised, in all groups of all steps: none fades, and none grows without end."""
    network = build(channels=16, groups=6)
    sizes: list[float] = []
    for module in (*network.feedback.up, *network.feedback.down):
        module.register_forward_hook(lambda module, given, made: sizes.append(float(made.std())))
    with torch.inference_mode():
        network(torch.rand(1, 3, 12, 12))
    assert len(sizes) == 2 * 6 * 4
    assert max(sizes) < 30.0 * min(sizes)


@pytest.mark.parametrize(
    "numbers", [{"scale": 5}, {"steps": 0}, {"steps": 17}, {"groups": 0}, {"channels": 0}]
)
def test_numbers_of_nonsense(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SRFBNConfig(**numbers)


def test_radii() -> None:
    # x4: 1 for the first convolution, 1 for each of 4·6 groups, 1 for the end.
    assert SRFBN_SIZES["srfbn-x4"].receptive_radius_px == 1 + 24 + 1
    assert SRFBN_SIZES["srfbn-s-x4"].receptive_radius_px == 1 + 12 + 1
    # x2: kernels of 6 see two pixels farther.
    assert SRFBN_SIZES["srfbn-x2"].receptive_radius_px == 1 + 2 * 24 + 2


# -- the published keys ----------------------------------------------------------------------------


def published_state(*, scale: int, channels: int, groups: int) -> dict[str, Tensor]:
    """Random weights by the keys of the authors' files."""
    kernel, made = scale + 4, {}
    generator = torch.Generator().manual_seed(1)

    def add(name: str, *shape: int) -> None:
        made[f"{name}.0.weight"] = 0.2 * torch.randn(shape, generator=generator)
        made[f"{name}.0.bias"] = torch.randn(shape[0], generator=generator)
        made[f"{name}.1.weight"] = torch.rand(1, generator=generator)

    add("conv_in", 4 * channels, 3, 3, 3)
    add("feat_in", channels, 4 * channels, 1, 1)
    add("block.compress_in", channels, 2 * channels, 1, 1)
    for group in range(groups):
        add(f"block.upBlocks.{group}", channels, channels, kernel, kernel)
        add(f"block.downBlocks.{group}", channels, channels, kernel, kernel)
    for group in range(1, groups):
        add(f"block.uptranBlocks.{group - 1}", channels, (group + 1) * channels, 1, 1)
        add(f"block.downtranBlocks.{group - 1}", channels, (group + 1) * channels, 1, 1)
    add("block.compress_out", channels, groups * channels, 1, 1)
    add("out", channels, channels, kernel, kernel)
    add("conv_out", 3, channels, 3, 3)
    del made["conv_out.1.weight"]
    for name, sign in (("sub_mean", -1.0), ("add_mean", 1.0)):
        made[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        made[f"{name}.bias"] = sign * 255.0 * MEAN.flatten()
    return made


def by_published_keys(state: dict[str, Tensor], x: Tensor, *, scale: int, groups: int) -> Tensor:
    """What the authors describe, from 0..255 to 0..255, four steps."""

    def layer(name: str, x: Tensor, *, how: str = "same") -> Tensor:
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        if how == "up":
            y = functional.conv_transpose2d(x, weight, bias, stride=scale, padding=2)
        elif how == "down":
            y = functional.conv2d(x, weight, bias, stride=scale, padding=2)
        else:
            y = functional.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
        slope = state.get(f"{name}.1.weight")
        return y if slope is None else torch.where(y > 0, y, slope * y)

    x = functional.conv2d(x, state["sub_mean.weight"], state["sub_mean.bias"])
    skip = functional.interpolate(x, scale_factor=scale, mode="bilinear")
    features = hidden = layer("feat_in", layer("conv_in", x))
    for _ in range(4):
        small = [layer("block.compress_in", torch.cat((features, hidden), 1))]
        large: list[Tensor] = []
        for group in range(groups):
            given = torch.cat(small, 1)
            if group > 0:
                given = layer(f"block.uptranBlocks.{group - 1}", given)
            large.append(layer(f"block.upBlocks.{group}", given, how="up"))
            given = torch.cat(large, 1)
            if group > 0:
                given = layer(f"block.downtranBlocks.{group - 1}", given)
            small.append(layer(f"block.downBlocks.{group}", given, how="down"))
        hidden = layer("block.compress_out", torch.cat(small[1:], 1))
    picture = skip + layer("conv_out", layer("out", hidden, how="up"))
    return functional.conv2d(picture, state["add_mean.weight"], state["add_mean.bias"])


@pytest.mark.parametrize(("scale", "groups"), [(2, 1), (3, 3), (4, 2), (8, 2)])
@torch.inference_mode()
def test_published_weights_work_as_they_are(scale: int, groups: int) -> None:
    state = published_state(scale=scale, channels=4, groups=groups)
    found: Any = recognise(state, {})
    name, config, own = found
    assert name == "srfbn"
    assert config == SRFBNConfig(scale=scale, channels=4, groups=groups, steps=4)
    network = SRFBN(config).eval()
    network.load_state_dict(own)
    x = torch.rand(2, 3, 5, 6)
    wanted = by_published_keys(state, 255.0 * x, scale=scale, groups=groups)
    spread = wanted.std()
    torch.testing.assert_close(255.0 * network(x), wanted, atol=1e-5 * float(spread), rtol=1e-5)


@pytest.mark.parametrize(
    "broken", ["block.upBlocks.0.0.weight", "feat_in.0.weight", "block.uptranBlocks.0.0.weight"]
)
def test_what_lacks_a_layer_is_not_taken_for_it(broken: str) -> None:
    state = published_state(scale=4, channels=4, groups=2)
    del state[broken]

    def load() -> None:
        found: Any = recognise(state, {})
        SRFBN(found[1]).load_state_dict(found[2])

    with pytest.raises((UnknownNetworkError, RuntimeError), match=r"does not know|Missing key"):
        load()


# -- training --------------------------------------------------------------------------------------


def test_all_steps_are_compared_and_the_last_is_judged() -> None:
    options = LossOptions(pixel="l1", gan="vanilla", gan_weight=1.0)
    objective = Objective(options, open_features=lambda layers: pytest.fail("no content"))
    target = torch.zeros(2, 3, 8, 8)
    first, last = torch.full_like(target, 0.3), torch.full_like(target, 0.1)
    judged: list[Tensor] = []

    def judge(x: Tensor) -> Tensor:
        judged.append(x)
        return x.mean((1, 2, 3))

    total, terms = objective.generator(
        torch.cat((first, last)), target=target, truth=target, discriminator=judge, outputs=2
    )
    assert float(terms["l1"]) == pytest.approx((0.3 + 0.1) / 2)
    assert [float(x.mean()) for x in judged] == pytest.approx([0.1])
    assert judged[0].shape == target.shape
    # -log(sigmoid(0.1)) for the last.
    assert float(total) == pytest.approx(0.2 + 0.644397, abs=1e-5)
    with pytest.raises(ValueError, match="the prediction is"):
        objective.generator(first, target=target, truth=target, discriminator=judge, outputs=2)


def test_it_trains_with_a_discriminator_and_in_parts(tmp_path: Path) -> None:
    generator = {"network": "srfbn", "scale": 2, "channels": 4, "groups": 1, "steps": 2}
    data = dataclasses.replace(GAN.data, batch=4)
    recipe = dataclasses.replace(GAN, generator=generator, data=data)
    save_three(tmp_path / "pictures")
    cache = open_cache([tmp_path / "pictures"], tmp_path / "cache", scale=2, patch_px=8)
    losses = [
        train(trainer(cache, recipe, tmp_path / str(parts), accumulate=parts)) for parts in (1, 2)
    ]
    assert losses[0][-1].keys() >= {"mse", "content", "gan", "d"}
    # By L1 nothing depends on who else is in the batch: parts add up to the whole.
    for one, other in zip(losses[0][:4], losses[1][:4], strict=True):
        assert one["l1"] == pytest.approx(other["l1"], rel=1e-4)
