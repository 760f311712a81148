"""Adversarial losses: what a discriminator, and a generator, are told by logits.

Logits are raw outputs of a discriminator, of any shape ((N, 1), or a map (N, 1, h, w)): higher
means "real". All losses are means, computed in at least float32. The caller freezes the
discriminator in the generator's step, and detaches the generator's picture in the discriminator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class AdversarialLoss(Protocol):
    """What every adversarial loss offers."""

    needs_real: ClassVar[bool]
    """Whether `generator_loss` must be given the logits of the real pictures, too."""

    penalty_weight: ClassVar[float]
    """By what to multiply `gradient_penalty` in the discriminator's loss; 0 when it has none."""

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """A scalar, small when real pictures are told from made ones."""
        ...

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        """A scalar, small when made pictures pass for real ones."""
        ...


@dataclass(frozen=True)
class Vanilla:
    """The non-saturating loss: -log σ(D(G)) for the generator, and cross-entropy for D.

    Goodfellow et al. (2014), https://arxiv.org/abs/1406.2661; SRGAN's, which sums where this takes
    the mean. D's two terms are added, not averaged.
    """

    needs_real: ClassVar[bool] = False
    penalty_weight: ClassVar[float] = 0.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return _as_real(real_logits) + _as_fake(fake_logits)

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return _as_real(fake_logits)


@dataclass(frozen=True)
class RelativisticAverage:
    """Real ones are to seem more real than made ones do on average, and the other way round.

    Jolicoeur-Martineau (2018), https://arxiv.org/abs/1807.00734, as in ESRGAN: halves of two terms
    for D and for the generator, both of which depend on the made picture. The average is over the
    batch (and the map). The generator's step takes `real_logits` as they are: no gradient.
    """

    needs_real: ClassVar[bool] = True
    penalty_weight: ClassVar[float] = 0.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real, fake = _wide(real_logits), _wide(fake_logits)
        return 0.5 * (_as_real(real - fake.mean()) + _as_fake(fake - real.mean()))

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        if real_logits is None:
            raise ValueError("the relativistic loss compares with the logits of the real pictures")
        real, fake = _wide(real_logits).detach(), _wide(fake_logits)
        return 0.5 * (_as_fake(real - fake.mean()) + _as_real(fake - real.mean()))


@dataclass(frozen=True)
class LeastSquares:
    """Squared distances of logits to 1 (real) and 0 (made): https://arxiv.org/abs/1611.04076.

    Without the paper's factor ½, as most code has it.
    """

    needs_real: ClassVar[bool] = False
    penalty_weight: ClassVar[float] = 0.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (_wide(real_logits) - 1.0).square().mean() + _wide(fake_logits).square().mean()

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return (_wide(fake_logits) - 1.0).square().mean()


@dataclass(frozen=True)
class Hinge:
    """D is content with margins of 1, the generator never: https://arxiv.org/abs/1705.02894."""

    needs_real: ClassVar[bool] = False
    penalty_weight: ClassVar[float] = 0.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real, fake = _wide(real_logits), _wide(fake_logits)
        return functional.relu(1.0 - real).mean() + functional.relu(1.0 + fake).mean()

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -_wide(fake_logits).mean()


@dataclass(frozen=True)
class WassersteinGP:
    """Differences of means, with `gradient_penalty` for D: https://arxiv.org/abs/1704.00028.

    The penalty is not in `discriminator_loss`, which has no pictures: the caller adds
    ``penalty_weight * gradient_penalty(...)``. D must not have batch normalisation, with which the
    gradient of one picture's logit is not its own.
    """

    needs_real: ClassVar[bool] = False
    penalty_weight: ClassVar[float] = 10.0

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return _wide(fake_logits).mean() - _wide(real_logits).mean()

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -_wide(fake_logits).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """mean((‖∇D(x)‖₂ - 1)²) at a random point x between each real and made picture: a scalar.

    real, fake: (N, 3, H, W), one shape. The norm is over all axes but the batch's (SRNTT's code
    takes it over the channels alone); the logits of a map are summed over each picture. Gradients
    flow to the discriminator's weights, not to the pictures. Computed without autocast. The random
    numbers are the CPU's, so that a run can be continued exactly from that one generator's state.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real pictures are {tuple(real.shape)}, made ones {tuple(fake.shape)}")
    real, fake = _wide(real).detach(), _wide(fake).detach()
    share = torch.rand(len(real), *[1] * (real.dim() - 1)).to(real)
    between = torch.lerp(fake, real, share).requires_grad_()
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        logits = discriminator(between)
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    # A gradient of zeros is possible (dead units), and the root has no derivative there.
    norms = gradient.flatten(1).square().sum(1).add(1e-12).sqrt()
    return (norms - 1.0).square().mean()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _as_real(logits: Tensor) -> Tensor:
    """Mean of -log σ(logits): cross-entropy with the label 1."""
    return functional.softplus(-_wide(logits)).mean()


def _as_fake(logits: Tensor) -> Tensor:
    """Mean of -log(1 - σ(logits)): cross-entropy with the label 0."""
    return functional.softplus(_wide(logits)).mean()


ADVERSARIAL_LOSSES: dict[str, type[AdversarialLoss]] = {
    "vanilla": Vanilla,
    "ragan": RelativisticAverage,
    "lsgan": LeastSquares,
    "hinge": Hinge,
    "wgan-gp": WassersteinGP,
}
