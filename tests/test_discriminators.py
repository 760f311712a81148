"""The discriminators: their sizes are the published ones, their logits of the promised shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from waifu4x.errors import UsageError
from waifu4x.train.objectives.discriminators import (
    DISCRIMINATORS,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    SpectralConv2d,
    SRGANDiscriminator,
    SRGANDiscriminatorConfig,
    UNetDiscriminator,
    UNetDiscriminatorConfig,
    VGGDiscriminator,
    VGGDiscriminatorConfig,
    build_discriminator,
)

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("kind", "crop_px", "numbers", "parameters"),
    [
        ("srgan", 96, {}, 23_563_649),
        ("srgan", 96, {"body_bias": True}, 23_565_505),
        ("srgan-gap", 96, {}, 5_215_425),
        ("srgan-gap", 40, {}, 5_215_425),
        ("vgg128", 128, {}, 14_499_401),
        ("vgg128", 256, {}, 21_055_049),
        ("vgg128", 296, {}, 17_827_401),
        ("srntt", 160, {}, 17_823_457),
        ("unet-sn", 256, {}, 4_376_897),
        ("patchgan", 256, {}, 2_765_633),
    ],
)
def test_parameter_counts(
    kind: str, crop_px: int, numbers: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        discriminator = build_discriminator(kind, crop_px=crop_px, **numbers)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters


@pytest.mark.parametrize(
    ("kind", "crop_px", "shape"),
    [
        ("srgan", 16, (2, 1)),
        ("srgan", 40, (2, 1)),  # not a multiple of 16: halvings round up
        ("srgan-gap", 24, (2, 1)),
        ("vgg128", 37, (2, 1)),  # and here down
        ("srntt", 40, (2, 1)),
        ("unet-sn", 24, (2, 1, 24, 24)),
        ("patchgan", 32, (2, 1, 2, 2)),
    ],
)
def test_logits_have_the_promised_shape_and_every_weight_a_gradient(
    kind: str, crop_px: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(kind, crop_px=crop_px, channels=2)
    x = torch.rand(2, 3, crop_px, crop_px, requires_grad=True)
    logits = discriminator(x)
    assert logits.shape == shape
    logits.square().mean().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_there_is_no_sigmoid_at_the_end(kind: str) -> None:
    torch.manual_seed(0)
    discriminator = build_discriminator(kind, crop_px=32, channels=2).eval()
    with torch.no_grad():
        far = discriminator(1e9 * torch.randn(4, 3, 32, 32))
    assert float(far.abs().max()) > 1.0


@pytest.mark.parametrize("kind", ["srgan", "srgan-gap", "vgg128", "srntt", "patchgan"])
def test_the_normalisation_can_be_left_out(kind: str) -> None:
    torch.manual_seed(0)
    with_norm = build_discriminator(kind, crop_px=64, channels=2)
    without = build_discriminator(kind, crop_px=64, channels=2, norm=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in with_norm.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without.modules())
    # What "wgan-gp" needs it for: a picture's logit does not depend on its neighbours.
    x = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(without(x)[:1], without(x[:1]))
    assert not torch.allclose(with_norm(x)[:1], with_norm(x[:1]))


def test_the_first_convolution_is_not_normalised_and_the_others_are() -> None:
    for discriminator in (
        SRGANDiscriminator(SRGANDiscriminatorConfig(channels=2)),
        VGGDiscriminator(VGGDiscriminatorConfig(channels=2)),
        PatchDiscriminator(PatchDiscriminatorConfig(channels=2)),
    ):
        modules = list(discriminator.body)
        places = [n for n, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
        kinds = [type(modules[n + 1]) for n in places if n + 1 < len(modules)]
        assert kinds[0] is not nn.BatchNorm2d
        assert set(kinds[1:]) == {nn.BatchNorm2d}


def test_a_patch_is_70_pixels() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(PatchDiscriminatorConfig(channels=4, norm=False))
    x = torch.rand(1, 3, 128, 128, requires_grad=True)
    discriminator(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


# Refusals.


@pytest.mark.parametrize(
    ("kind", "crop_px", "numbers", "words"),
    [
        ("srgan", 8, {}, "crop_px must be 16 or more"),
        ("vgg128", 16, {}, "crop_px must be 32 or more"),
        ("unet-sn", 100, {}, "crop_px must be a multiple of 8"),
        ("patchgan", 16, {}, "crop_px must be 32 or more"),
        ("unet-sn", 64, {"norm": False}, "unknown key 'norm'"),
        ("vgg128", 128, {"chanels": 3}, "did you mean 'channels'?"),
        ("srgan", 96, {"crop_px_": 3}, "unknown key 'crop_px_'"),
        ("srgan", 96, {"channels": 0}, "channels and hidden must be positive"),
        ("srgan", 96, {"channels": "64"}, "for crops of 96 px"),
        ("patchgan", 64, {"channels": 6.5}, "for crops of 64 px"),
        ("srgann", 96, {}, "did you mean 'srgan'?"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    kind: str, crop_px: int, numbers: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build_discriminator(kind, crop_px=crop_px, **numbers)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "size"), [("srgan", 48), ("vgg128", 48), ("unet-sn", 36)])
def test_pictures_of_another_size_are_refused(kind: str, size: int) -> None:
    discriminator = build_discriminator(kind, crop_px=32, channels=2)
    with pytest.raises(ValueError, match="made for"):
        discriminator(torch.rand(1, 3, size, size))


# Spectral normalisation.


def convolution(seed: int = 0) -> SpectralConv2d:
    torch.manual_seed(seed)
    return SpectralConv2d(3, 8, kernel=4, stride=2)


def largest_singular_value(weight: Tensor) -> float:
    return float(np.linalg.svd(weight.detach().double().flatten(1).numpy(), compute_uv=False)[0])


def test_the_largest_singular_value_becomes_one() -> None:
    layer = convolution()
    with torch.no_grad():
        layer.weight_orig.mul_(7.0)
        # A fresh layer is nearly right already, and each step in training makes it more so.
        assert largest_singular_value(layer.eval().weight()) == pytest.approx(1.0, abs=0.02)
        layer.train()
        for _ in range(100):
            layer.weight()
        assert largest_singular_value(layer.eval().weight()) == pytest.approx(1.0, abs=1e-5)


def test_it_is_what_torch_does() -> None:
    """torch's own, of the same weight and vectors: outputs, gradients and the vectors after."""
    ours = convolution()
    plain = nn.Conv2d(3, 8, 4, 2, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(ours.weight_orig)
    theirs = torch.nn.utils.spectral_norm(plain)
    assert set(theirs.state_dict()) == set(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 8, 8)
    for train in (True, True, False):
        expected, got = theirs.train(train)(x), ours.train(train)(x)
        torch.testing.assert_close(got, expected)
        expected.square().sum().backward()
        got.square().sum().backward()
    torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_the_vectors_stay_still_in_eval_mode() -> None:
    layer = convolution().eval()
    before = layer.weight_u.clone(), layer.weight_v.clone()
    layer(torch.rand(1, 3, 8, 8))
    assert torch.equal(layer.weight_u, before[0])
    assert torch.equal(layer.weight_v, before[1])
    layer.train()(torch.rand(1, 3, 8, 8))
    assert not torch.equal(layer.weight_u, before[0])


def test_two_forwards_can_be_followed_by_one_backward() -> None:
    layer = convolution()
    (layer(torch.rand(1, 3, 8, 8)).sum() + layer(torch.rand(1, 3, 8, 8)).sum()).backward()
    assert layer.weight_orig.grad is not None


def test_under_autocast_the_norm_is_found_in_float32() -> None:
    first, second = convolution(), convolution()
    x = torch.rand(1, 3, 8, 8)
    first(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert second(x).dtype == torch.bfloat16  # the convolution itself is fast
        weight = second.eval().weight()
    assert weight.dtype == torch.float32
    assert torch.equal(weight, first.eval().weight())
    assert torch.equal(second.weight_u, first.weight_u)


def test_the_keys_are_those_of_published_files() -> None:
    keys = set(UNetDiscriminator(UNetDiscriminatorConfig(channels=2)).state_dict())
    plain = {f"conv{n}.{part}" for n in (0, 9) for part in ("weight", "bias")}
    spectral = {f"conv{n}.weight_{part}" for n in range(1, 9) for part in ("orig", "u", "v")}
    assert keys == plain | spectral
