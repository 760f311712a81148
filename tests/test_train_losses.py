"""Losses and adversarial losses, against numbers worked out by hand or by numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from waifu4x.train.objectives.adversarial import (
    ADVERSARIAL_LOSSES,
    AdversarialLoss,
    Hinge,
    LeastSquares,
    RelativisticAverage,
    Vanilla,
    WassersteinGP,
    gradient_penalty,
)
from waifu4x.train.objectives.losses import (
    PICTURE_LOSSES,
    PIXEL_LOSSES,
    CharbonnierLoss,
    FourierLoss,
    GradientLoss,
    GradientMagnitudeLoss,
    L1Loss,
    MSELoss,
    TotalVariationLoss,
    WeightedSum,
)

torch.set_num_threads(1)


def pictures(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A prediction and a target, float64 in [0, 1]."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.random(shape)), torch.from_numpy(random.random(shape))


# Pixels.


def test_pixel_losses_by_hand() -> None:
    prediction = torch.tensor([0.0, 0.5, 1.0, 0.25]).view(1, 1, 2, 2)
    target = torch.tensor([0.0, 1.0, 0.0, 0.5]).view(1, 1, 2, 2)
    assert float(L1Loss()(prediction, target)) == (0.5 + 1.0 + 0.25) / 4
    assert float(MSELoss()(prediction, target)) == (0.25 + 1.0 + 0.0625) / 4
    by_hand = (0.3 + math.sqrt(0.34) + math.sqrt(1.09) + math.sqrt(0.1525)) / 4
    assert float(CharbonnierLoss(0.3)(prediction, target)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", PIXEL_LOSSES)
def test_on_minus_one_to_one_a_loss_is_that_of_the_moved_pictures(name: str) -> None:
    prediction, target = pictures(2, 3, 4, 5)
    moved = PIXEL_LOSSES[name]()(2.0 * prediction - 1.0, 2.0 * target - 1.0)
    got = PIXEL_LOSSES[name](value_range="11")(prediction, target)
    torch.testing.assert_close(got, moved)


def test_mse_is_four_times_and_l1_twice_as_large_on_minus_one_to_one() -> None:
    prediction, target = pictures(1, 3, 4, 4)
    torch.testing.assert_close(
        MSELoss(value_range="11")(prediction, target), 4.0 * MSELoss()(prediction, target)
    )
    torch.testing.assert_close(
        L1Loss(value_range="11")(prediction, target), 2.0 * L1Loss()(prediction, target)
    )


def test_charbonnier_has_a_derivative_where_l1_has_none() -> None:
    same = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    CharbonnierLoss()(same, same.detach()).backward()
    assert same.grad is not None
    assert torch.equal(same.grad, torch.zeros_like(same))


@pytest.mark.parametrize(
    "make",
    [
        lambda: L1Loss(value_range="0-255"),  # type: ignore[arg-type]
        lambda: CharbonnierLoss(0.0),
        lambda: CharbonnierLoss(math.nan),
        lambda: WeightedSum({}),
        lambda: WeightedSum({"l1": (L1Loss(), -1.0)}),
        lambda: WeightedSum({"l1": (L1Loss(), math.nan)}),
    ],
)
def test_numbers_that_make_no_sense(make: object) -> None:
    with pytest.raises(ValueError, match=r"must be|at least"):
        make()  # type: ignore[operator]


# Whole pictures.


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.25, 0.0]]).view(1, 1, 2, 3)
    # right: 1 + 0.5, 0 + 0.25; down: 0.25 + 0.75 + 0.5
    expected = pytest.approx((1.75 + 1.5) / 6, rel=1e-6)
    assert float(TotalVariationLoss()(image, torch.rand(1, 1, 2, 3))) == expected
    assert float(TotalVariationLoss()(torch.rand(1, 1, 1, 1), image)) == 0.0


def test_gradient_loss_by_hand() -> None:
    prediction, target = pictures(2, 3, 5, 7)
    p, t = prediction.numpy(), target.numpy()
    total = sum(np.abs(np.diff(p, axis=axis) - np.diff(t, axis=axis)).sum() for axis in (2, 3))
    assert float(GradientLoss()(prediction, target)) == pytest.approx(total / p.size, rel=1e-12)
    # It does not see a constant difference.
    assert float(GradientLoss()(prediction + 0.5, prediction)) == pytest.approx(0.0, abs=1e-12)


def test_gradient_magnitude_by_hand() -> None:
    ramp = torch.arange(5, dtype=torch.float64).expand(1, 1, 5, 5) / 10
    # Central differences of 0.2 and 0.1 to the right in every inner pixel.
    loss = GradientMagnitudeLoss()(ramp, ramp / 2)
    assert float(loss) == pytest.approx((0.04 + 1e-6) ** 0.5 - (0.01 + 1e-6) ** 0.5, rel=1e-9)
    # Which way a gradient lies does not count.
    for other in (ramp.transpose(2, 3), 0.5 - ramp):
        assert float(GradientMagnitudeLoss()(ramp, other)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_fourier_loss_is_that_of_the_two_spectra(size: tuple[int, int]) -> None:
    prediction, target = pictures(2, 3, *size)
    spectra = np.fft.rfft2(prediction.numpy()) - np.fft.rfft2(target.numpy())
    expected = (np.abs(spectra.real).sum() + np.abs(spectra.imag).sum()) / (2 * spectra.size)
    assert float(FourierLoss()(prediction, target)) == pytest.approx(expected, rel=1e-12)


def test_fourier_loss_takes_bfloat16_and_computes_in_float32() -> None:
    prediction, target = (p.to(torch.bfloat16) for p in pictures(1, 3, 5, 6))
    loss = FourierLoss()(prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, FourierLoss()((prediction - target).float(), torch.zeros(1, 3, 5, 6))
    )


@pytest.mark.parametrize("name", [*PIXEL_LOSSES, *PICTURE_LOSSES])
def test_gradients_of_all_losses_are_right(name: str) -> None:
    prediction, target = pictures(1, 3, 3, 4)
    loss = (PIXEL_LOSSES | PICTURE_LOSSES)[name]()
    assert torch.autograd.gradcheck(lambda p: loss(p, target), (prediction.requires_grad_(),))


@pytest.mark.parametrize("name", [*PIXEL_LOSSES, "fft", "gradient", "magnitude"])
def test_pictures_of_different_shapes_are_refused_not_broadcast(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\), not \(1, 3, 4, 4\)"):
        (PIXEL_LOSSES | PICTURE_LOSSES)[name]()(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4))


# Sums.


class Untouchable(nn.Module):
    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")


def test_a_weighted_sum_is_a_loss_and_tells_its_terms() -> None:
    prediction, target = pictures(1, 3, 4, 4)
    inner = WeightedSum({"fft": (FourierLoss(), 0.5), "tv": (TotalVariationLoss(), 0.25)})
    whole = WeightedSum(
        {"l1": (L1Loss(), 0.01), "rank": (Untouchable(), 0.0), "picture": (inner, 2.0)}
    )
    total = whole(prediction.requires_grad_(), target)
    expected = {
        "l1": 0.01 * L1Loss()(prediction, target),
        "picture/fft": 2.0 * 0.5 * FourierLoss()(prediction, target),
        "picture/tv": 2.0 * 0.25 * TotalVariationLoss()(prediction, target),
    }
    assert list(whole.terms) == list(expected)
    for name, term in whole.terms.items():
        assert not term.requires_grad
        torch.testing.assert_close(term, expected[name].detach())
    torch.testing.assert_close(total, torch.stack(list(expected.values())).sum())
    total.backward()
    assert prediction.grad is not None
    assert bool(prediction.grad.any())


def test_two_sums_share_nothing_and_terms_are_of_the_last_call() -> None:
    zero, one = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    first, second = (WeightedSum({"l1": (L1Loss(), weight)}) for weight in (1.0, 3.0))
    assert first.terms == {}
    first(zero, one)
    second(zero, one)
    assert (float(first.terms["l1"]), float(second.terms["l1"])) == (1.0, 3.0)
    first(one, one)
    assert float(first.terms["l1"]) == 0.0


# Adversaries.

REAL = torch.tensor([[2.0], [-1.0], [0.5]], dtype=torch.float64)
FAKE = torch.tensor([[-0.5], [1.5], [0.0]], dtype=torch.float64)


def bce(logits: np.ndarray, label: float) -> float:
    """Cross-entropy as the textbooks have it."""
    chance = 1.0 / (1.0 + np.exp(-logits))
    return float(-(label * np.log(chance) + (1.0 - label) * np.log(1.0 - chance)).mean())


def both(loss: AdversarialLoss) -> tuple[float, float]:
    """The discriminator's and the generator's loss."""
    return float(loss.discriminator_loss(REAL, FAKE)), float(loss.generator_loss(FAKE, REAL))


def test_adversarial_losses_by_hand() -> None:
    real, fake = REAL.numpy(), FAKE.numpy()
    expected: dict[str, tuple[float, float]] = {
        "vanilla": (bce(real, 1) + bce(fake, 0), bce(fake, 1)),
        "ragan": (
            0.5 * (bce(real - fake.mean(), 1) + bce(fake - real.mean(), 0)),
            0.5 * (bce(real - fake.mean(), 0) + bce(fake - real.mean(), 1)),
        ),
        # (1 + 4 + 0.25) / 3 + (0.25 + 2.25 + 0) / 3; (2.25 + 0.25 + 1) / 3
        "lsgan": (5.25 / 3 + 2.5 / 3, 3.5 / 3),
        # relu(1 - real) = 0, 2, 0.5; relu(1 + fake) = 0.5, 2.5, 1
        "hinge": (2.5 / 3 + 4.0 / 3, -1.0 / 3),
        "wgan-gp": (1.0 / 3 - 1.5 / 3, -1.0 / 3),
    }
    assert {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()} == {
        name: both(kind()) for name, kind in ADVERSARIAL_LOSSES.items()
    }


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_logits_may_be_maps_and_bfloat16(name: str) -> None:
    loss = ADVERSARIAL_LOSSES[name]()
    real, fake = (logits.to(torch.bfloat16).view(1, 1, 3, 1) for logits in (REAL, FAKE))
    values = (loss.discriminator_loss(real, fake), loss.generator_loss(fake, real))
    # These logits are exact in bfloat16, and the loss is computed in float32.
    for value, exact in zip(values, both(loss), strict=True):
        assert value.dtype == torch.float32
        assert value.dim() == 0
        assert float(value) == pytest.approx(exact, rel=1e-6)


def test_losses_stay_finite_for_extreme_logits() -> None:
    real, fake = torch.full((2, 1), -300.0), torch.full((2, 1), 300.0, requires_grad=True)
    for kind in (Vanilla, RelativisticAverage):
        loss = kind().discriminator_loss(real, fake) + kind().generator_loss(-fake, real)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
    assert fake.grad is not None
    assert bool(fake.grad.isfinite().all())


def test_the_generator_is_not_told_to_leave_bad_pictures_alone() -> None:
    """Non-saturating: the surer the discriminator, the stronger the push, up to 1."""
    fake = torch.tensor([[-8.0]], requires_grad=True)
    Vanilla().generator_loss(fake).backward()
    assert fake.grad is not None
    assert float(fake.grad) == pytest.approx(-1.0, abs=1e-3)


def test_both_terms_of_ragan_reach_the_generator_and_none_the_real_logits() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    RelativisticAverage().generator_loss(fake, real).backward()
    assert real.grad is None
    sigma = torch.sigmoid
    # d/dfake_i: of the real term by way of the mean, and of the fake term directly.
    of_real = -sigma(REAL - FAKE.mean()).mean() / 3
    of_fake = -(1.0 - sigma(FAKE - REAL.mean())) / 3
    torch.testing.assert_close(fake.grad, 0.5 * (of_real + of_fake))


def test_ragan_needs_the_real_logits() -> None:
    assert RelativisticAverage.needs_real
    assert not any(kind.needs_real for kind in (Vanilla, LeastSquares, Hinge, WassersteinGP))
    with pytest.raises(ValueError, match="real pictures"):
        RelativisticAverage().generator_loss(FAKE)


# The gradient penalty.


class Linear(nn.Module):
    """D(x) = Σ w·x of each picture: its gradient is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


def test_the_penalty_of_a_linear_discriminator_by_hand() -> None:
    weight = torch.zeros(3, 2, 2, dtype=torch.float64)
    weight[0, 0, 0], weight[2, 1, 1] = 3.0, 4.0  # of norm 5, over channels and places together
    discriminator = Linear(weight)
    real, fake = pictures(2, 3, 2, 2)
    penalty = gradient_penalty(discriminator, real, fake.requires_grad_())
    assert float(penalty.detach()) == pytest.approx((5.0 - 1.0) ** 2, rel=1e-12)
    penalty.backward()
    # d/dw (|w| - 1)² = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(discriminator.weight.grad, 2.0 * 4.0 * weight / 5.0)
    assert fake.grad is None
    assert WassersteinGP.penalty_weight == 10.0


class HalfSquare(nn.Module):
    """A map of x²/2: the gradient of its sum is x itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square() / 2.0


def test_the_penalty_is_of_each_picture_and_lies_between_the_two() -> None:
    real, _ = pictures(3, 3, 2, 2)
    norms = real.flatten(1).norm(dim=1)
    same = gradient_penalty(HalfSquare(), real, real)
    torch.testing.assert_close(same, (norms - 1.0).square().mean())
    # Between 0 and 10·real each picture has a share of its own, of the CPU's generator.
    torch.manual_seed(3)
    shares = torch.rand(3, 1, 1, 1)
    torch.manual_seed(3)
    mixed = gradient_penalty(HalfSquare(), 10.0 * real, torch.zeros_like(real))
    expected = (shares.flatten() * 10.0 * norms - 1.0).square().mean()
    torch.testing.assert_close(mixed, expected)
    assert len(set(shares.flatten().tolist())) == 3


def test_a_dead_discriminator_has_a_penalty_with_finite_gradients() -> None:
    discriminator = Linear(torch.zeros(3, 2, 2))
    penalty = gradient_penalty(discriminator, torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(1.0, abs=1e-5)
    assert discriminator.weight.grad is not None
    assert bool(discriminator.weight.grad.isfinite().all())


def test_penalties_want_as_many_made_pictures_as_real_ones() -> None:
    with pytest.raises(ValueError, match="made ones"):
        gradient_penalty(HalfSquare(), torch.rand(2, 3, 2, 2), torch.rand(1, 3, 2, 2))
