"""What a stage trains for: its losses, as its options say, and their parts by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from waifu4x.networks.srntt import TEXTURE_LAYERS
from waifu4x.train.objectives import adversarial
from waifu4x.train.objectives.losses import (
    PIXEL_LOSSES,
    FourierLoss,
    GradientLoss,
    GradientMagnitudeLoss,
    TotalVariationLoss,
    WeightedSum,
)
from waifu4x.train.objectives.regions import REGIONS, RegionLoss
from waifu4x.train.objectives.textures import TextureLoss
from waifu4x.train.objectives.vgg import ContentLoss, VGG19Features
from waifu4x.train.ranked.ranker import RankContentLoss, Ranker
from waifu4x.train.recipe import LossOptions
from waifu4x.train.references.referencing import Shown

OpenFeatures = Callable[[Sequence[str]], VGG19Features]
OpenRanker = Callable[[LossOptions], Ranker]


class Objective:
    """The losses of one stage.

    Args:
        open_features: gives VGG-19 up to the layers asked for; called only where content counts.
        open_ranker: gives the ranker of those losses; called only where they have a weight for it.
        batch: how many samples a whole batch has, for losses that are sums over it.
    """

    def __init__(
        self,
        options: LossOptions,
        *,
        open_features: OpenFeatures,
        open_ranker: OpenRanker | None = None,
        batch: int = 1,
    ) -> None:
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
            ("magnitude", GradientMagnitudeLoss(), options.magnitude_weight),
        ):
            if weight > 0.0:
                parts[name] = (loss, weight)
        if options.rank_weight > 0.0:
            assert open_ranker is not None, "whoever asks for a rank loss gives the ranker"
            ranked = RankContentLoss(open_ranker(options), batch=batch)
            parts["rank"] = (ranked, options.rank_weight)
        self._regions = _region_loss(options, open_features)
        self._texture: TextureLoss | None = None
        self._texture_weight = options.texture_weight
        if options.texture_weight > 0.0:
            features = open_features(TEXTURE_LAYERS)
            self._texture = TextureLoss(features, by_similarity=options.texture_by_similarity)
        self._fidelity = WeightedSum(parts) if parts else None
        self._gan = None if options.gan == "none" else adversarial.ADVERSARIAL_LOSSES[options.gan]()
        self._gan_weight = options.gan_weight

    def to(self, device: torch.device) -> Objective:
        for loss in (self._fidelity, self._regions, self._texture):
            if loss is not None:
                loss.to(device)
        return self

    def generator(
        self,
        made: Tensor,
        *,
        target: Tensor,
        truth: Tensor,
        discriminator: Callable[[Tensor], Tensor] | None,
        regions: Tensor | None = None,
        outputs: int = 1,
        shown: Shown | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and its terms times their weights, without gradients.

        Args:
            made: (outputs·N, C, H, W) in [0, 1], of the generator.
            target: what it is compared with; `truth` is what a discriminator takes for real.
            discriminator: frozen; gives logits.
            regions: (N, 1, H, W) uint8, of label maps; see `regions.RegionLoss`.
            outputs: how many pictures there are of each sample: all are compared with the target,
                the last of them are shown to the discriminator.
            shown: what the generator made them of, for the textures of references.
        """
        if outputs > 1:
            target = target.repeat(outputs, 1, 1, 1)
            regions = None if regions is None else regions.repeat(outputs, 1, 1, 1)
        total = made.new_zeros(())
        terms: dict[str, Tensor] = {}
        if self._fidelity is not None:
            total = self._fidelity(made, target)
            terms |= self._fidelity.terms
        if self._regions is not None:
            total = total + self._regions(made, target, regions)
            terms |= {f"regions/{name}": term for name, term in self._regions.terms.items()}
        if self._texture is not None and shown is not None and shown.maps is not None:
            texture = self._texture_weight * self._texture(made, shown.maps, shown.similarity)
            terms["texture"] = texture.detach()
            total = total + texture
        if self._gan is not None and discriminator is not None and self._gan_weight > 0.0:
            real = None
            if self._gan.needs_real:
                with torch.no_grad():
                    real = discriminator(truth)
            fake = discriminator(made[-len(truth) :])
            loss = self._gan_weight * self._gan.generator_loss(fake, real)
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


def _region_loss(options: LossOptions, open_features: OpenFeatures) -> RegionLoss | None:
    """Each region with features of its own, so that none goes deeper than its layers need."""
    if options.regions is None:
        return None
    weights = dict(zip(REGIONS, options.regions.weights, strict=True))
    contents: dict[str, tuple[nn.Module, float]] = {}
    for name, layers in options.regions.layers().items():
        features = open_features(tuple(layers))
        content = ContentLoss(features, layers, criterion=options.regions.criterion)
        contents[name] = (content, weights[name])
    return RegionLoss(contents, options.regions)
