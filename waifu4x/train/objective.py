"""What a stage trains for: its losses, as its options say, and their parts by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from waifu4x.train import adversarial
from waifu4x.train.losses import (
    PIXEL_LOSSES,
    FourierLoss,
    GradientLoss,
    TotalVariationLoss,
    WeightedSum,
)
from waifu4x.train.recipe import LossOptions
from waifu4x.train.vgg import ContentLoss, VGG19Features

OpenFeatures = Callable[[Sequence[str]], VGG19Features]


class Objective:
    """The losses of one stage.

    Args:
        open_features: gives VGG-19 up to the layers asked for; called only where content counts.
    """

    def __init__(self, options: LossOptions, *, open_features: OpenFeatures) -> None:
        parts: dict[str, tuple[nn.Module, float]] = {}
        if options.pixel_weight > 0.0:
            pixel = PIXEL_LOSSES[options.pixel](value_range=options.pixel_range)
            parts[options.pixel] = (pixel, options.pixel_weight)
        if options.content_weight * sum(options.content.values()) > 0.0:
            content = ContentLoss(
                open_features(tuple(options.content)),
                options.content,
                criterion=options.content_criterion,
            )
            parts["content"] = (content, options.content_weight)
        for name, loss, weight in (
            ("tv", TotalVariationLoss(), options.tv_weight),
            ("fft", FourierLoss(), options.fft_weight),
            ("gradient", GradientLoss(), options.gradient_weight),
        ):
            if weight > 0.0:
                parts[name] = (loss, weight)
        self._fidelity = WeightedSum(parts)
        self._gan = None if options.gan == "none" else adversarial.ADVERSARIAL_LOSSES[options.gan]()
        self._gan_weight = options.gan_weight

    def to(self, device: torch.device) -> Objective:
        self._fidelity.to(device)
        return self

    def generator(
        self,
        made: Tensor,
        *,
        target: Tensor,
        truth: Tensor,
        discriminator: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and its terms times their weights, without gradients.

        Args:
            made: (N, C, H, W) in [0, 1], of the generator.
            target: what it is compared with; `truth` is what a discriminator takes for real.
            discriminator: frozen; gives logits.
        """
        total = self._fidelity(made, target)
        terms = dict(self._fidelity.terms)
        if self._gan is not None and discriminator is not None and self._gan_weight > 0.0:
            real = None
            if self._gan.needs_real:
                with torch.no_grad():
                    real = discriminator(truth)
            loss = self._gan_weight * self._gan.generator_loss(discriminator(made), real)
            terms["gan"] = loss.detach()
            total = total + loss
        return total, terms

    def discriminator(
        self,
        discriminator: Callable[[Tensor], Tensor],
        *,
        bare: nn.Module,
        truth: Tensor,
        made: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss "d", and how real it takes both for, 0..1: "d_real", "d_fake".

        Args:
            discriminator: as it is wrapped for its device.
            bare: the same without autocast, for a gradient penalty.
            truth, made: (N, C, H, W) in [0, 1]; without gradients.
        """
        assert self._gan is not None, "a stage without an adversarial loss has no discriminator"
        real, fake = discriminator(truth), discriminator(made)
        total = self._gan.discriminator_loss(real, fake)
        if self._gan.penalty_weight > 0.0:
            penalty = adversarial.gradient_penalty(bare, truth, made)
            total = total + self._gan.penalty_weight * penalty
        # What a relativistic discriminator says is by how much one seems more real than the other.
        is_relative = isinstance(self._gan, adversarial.RelativisticAverage)
        real, fake = real.detach().float(), fake.detach().float()
        d_real = torch.sigmoid(real - fake.mean() if is_relative else real).mean()
        d_fake = torch.sigmoid(fake - real.mean() if is_relative else fake).mean()
        return total, {"d": total.detach(), "d_real": d_real, "d_fake": d_fake}
