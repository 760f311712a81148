"""SRNTT's texture loss: what is made has the textures that were found in the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.networks.srntt import TEXTURE_LAYERS
from waifu4x.train.objectives.vgg import VGG19Features

# The published sigmoid(a·s + b) of a similarity s.
_SLOPE, _OFFSET = -20.0, 0.65


def gram(features: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, C): the products of every two channels, summed over all positions."""
    flat = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
    return flat @ flat.transpose(1, 2)


class TextureLoss(nn.Module):
    """The mean over three layers of mean((gram(φ(prediction)) - gram(map))²) / (4·(h·w·C)²).

    Zhang et al., "Image Super-Resolution by Neural Texture Transfer" (CVPR 2019),
    https://arxiv.org/abs/1903.00834. The means are over a batch and the C·C products. It grows with
    the fourth power of the features' size: the published weight of 1e-4 is for the features of
    Caffe's VGG-19, of pixels in 0..255, and does not suit those of torchvision's.

    Args:
        features: VGG-19 with at least TEXTURE_LAYERS, from which the maps are, too.
        by_similarity: features and maps are first multiplied by sigmoid(-20·s + 0.65) of the
            similarity s of the patches, so that what was found nowhere counts the most.
    """

    def __init__(self, features: VGG19Features, *, by_similarity: bool = False) -> None:
        super().__init__()
        absent = [layer for layer in TEXTURE_LAYERS if layer not in features.layers]
        if absent:
            raise ValueError(f"the features are {', '.join(features.layers)}, without {absent}")
        self.features = features
        self.by_similarity = by_similarity

    def forward(
        self, prediction: Tensor, maps: Sequence[Tensor], similarity: Tensor | None = None
    ) -> Tensor:
        """A scalar.

        Args:
            prediction: (N, 3, 4h, 4w) RGB in [0, 1].
            maps: (N, C, …) of each of TEXTURE_LAYERS; without gradients.
            similarity: (N, 1, h, w), for `by_similarity`.
        """
        found = self.features(prediction)
        total = prediction.new_zeros(())
        for layer, wanted in zip(TEXTURE_LAYERS, maps, strict=True):
            given = found[layer]
            if self.by_similarity and similarity is not None:
                share = _share(similarity, given.shape[2:])
                given, wanted = given * share, wanted * share
            with torch.autocast(prediction.device.type, enabled=False):
                values = given[0].numel()
                difference = gram(given) - gram(wanted)
                total = total + (difference / values).square().mean() / 4.0
        return total / len(TEXTURE_LAYERS)


def _share(similarity: Tensor, size_px: torch.Size) -> Tensor:
    larger = functional.interpolate(similarity, size=tuple(size_px), mode="bicubic")
    return torch.sigmoid(_SLOPE * larger + _OFFSET)
