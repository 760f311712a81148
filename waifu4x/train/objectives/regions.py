"""Regions of a picture, and a content loss that compares each by the layers that suit it.

Rad et al., "SROBB: Targeted Perceptual Loss for Single Image Super-Resolution" (ICCV 2019),
https://arxiv.org/abs/1908.07222: boundaries are compared by low features, the texture of
backgrounds (sky, plants, ground, water) by those of the middle, and objects by high ones. Pictures
are masked before they are shown to the network, not its features. Regions come from label maps as
in the paper (`from_labels`); where there are none they are guessed from the picture (`guess`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.train.objectives.losses import check_same_shape
from waifu4x.train.recipe import RegionOptions

REGIONS: Mapping[str, int] = {"boundary": 0, "background": 1, "objects": 2}
"""The regions, and by what a map (N, 1, H, W) uint8 says which of them a pixel is in."""

_LUMA = (0.299, 0.587, 0.114)
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def from_labels(labels: Tensor, *, background: Sequence[int], boundary_px: int) -> Tensor:
    """The regions of label maps: (N, 1, H, W) whole numbers -> (N, 1, H, W) uint8, see REGIONS.

    Where a label changes to the right or downwards, both pixels are a boundary, and so is
    everything within `boundary_px` of them. Of the rest, the classes of `background` are
    background, and all others objects.
    """
    edges = torch.zeros_like(labels, dtype=torch.bool)
    down = labels[..., 1:, :] != labels[..., :-1, :]
    right = labels[..., :, 1:] != labels[..., :, :-1]
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    edges[..., :, 1:] |= right
    edges[..., :, :-1] |= right
    wanted = torch.tensor(tuple(background), dtype=labels.dtype, device=labels.device)
    return _mapped(dilated(edges, boundary_px), torch.isin(labels, wanted))


def guess(images: Tensor, options: RegionOptions) -> Tensor:
    """The regions of pictures without labels: (N, 3, H, W) RGB in [0, 1] -> (N, 1, H, W) uint8.

    A boundary is what is near a steep edge of the blurred luma; a background is what is not, and
    has much texture (a local deviation from the blurred luma); all else is an object. This is no
    segmentation: it tells strong contours and fine texture from smooth things. Each picture's
    regions are its own, whatever else is in the batch; no gradients flow.
    """
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        weights = torch.tensor(_LUMA, dtype=wide.dtype, device=wide.device).view(1, 3, 1, 1)
        luma = (wide * weights).sum(1, keepdim=True)
        soft = _blurred(luma, options.blur_px)
        edges = dilated(_steepness(soft) > options.edge_level, options.boundary_px)
        # Of what lies beside boundaries alone, or each would be in a halo of texture.
        beside = (~edges).to(wide.dtype)
        energy = _blurred(beside * (luma - soft).square(), options.texture_px)
        share = _blurred(beside, options.texture_px)
        return _mapped(edges, energy > share * options.texture_level**2)


def dilated(mask: Tensor, radius_px: int) -> Tensor:
    """(N, 1, H, W) bool, widened by a disk: all pixels within `radius_px` of one that is set."""
    if radius_px == 0:
        return mask
    at = torch.arange(-radius_px, radius_px + 1, device=mask.device)
    disk = (at[:, None] ** 2 + at[None, :] ** 2 <= radius_px**2).float()
    found = functional.conv2d(mask.float(), disk[None, None], padding=radius_px)
    return found > 0.5


class RegionLoss(nn.Module):
    """weight · Σ over the regions of a weight times the content of the pictures masked to it.

    A region's content is a mean over all positions of its layer, so a region counts by its area;
    what lies outside is black in both pictures.

    Args:
        contents: by the names of REGIONS, a loss (prediction, target) -> scalar, and its weight.
        options: `weight`, and how regions are guessed.
    """

    terms: dict[str, Tensor]
    """What each region gave at the last call, times all weights; see `losses.WeightedSum`."""

    def __init__(
        self, contents: Mapping[str, tuple[nn.Module, float]], options: RegionOptions
    ) -> None:
        super().__init__()
        unknown = [name for name in contents if name not in REGIONS]
        if unknown or not contents:
            raise ValueError(f"regions are {', '.join(REGIONS)}, not {unknown}")
        self.contents = nn.ModuleDict({name: loss for name, (loss, _) in contents.items()})
        self.weights = {name: options.weight * weight for name, (_, weight) in contents.items()}
        self.options = options
        self.terms = {}

    def forward(self, prediction: Tensor, target: Tensor, regions: Tensor | None = None) -> Tensor:
        """A scalar. regions: (N, 1, H, W) uint8, see REGIONS; by default guessed of the target."""
        check_same_shape(prediction, target)
        regions = guess(target, self.options) if regions is None else regions
        total = prediction.new_zeros(())
        terms: dict[str, Tensor] = {}
        for name, content in self.contents.items():
            mask = (regions == REGIONS[name]).to(prediction.dtype)
            value = self.weights[name] * content(prediction * mask, target * mask)
            total = total + value
            terms[name] = value.detach()
        self.terms = terms
        return total


def _mapped(boundary: Tensor, background: Tensor) -> Tensor:
    """Boundaries win over backgrounds, these over objects."""
    rest = torch.where(background, REGIONS["background"], REGIONS["objects"])
    return torch.where(boundary, REGIONS["boundary"], rest).to(torch.uint8)


def _blurred(planes: Tensor, sigma_px: float) -> Tensor:
    """(N, 1, H, W) by a Gaussian of three deviations to each side; borders continue."""
    reach = max(1, math.ceil(3.0 * sigma_px))
    at = torch.arange(-reach, reach + 1, dtype=planes.dtype, device=planes.device)
    taps = torch.exp(-0.5 * (at / sigma_px) ** 2)
    taps = taps / taps.sum()
    padded = functional.pad(planes, (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(padded, taps.view(1, 1, 1, -1))
    return functional.conv2d(rows, taps.view(1, 1, -1, 1))


def _steepness(planes: Tensor) -> Tensor:
    """(N, 1, H, W): by how much each pixel's neighbourhood changes per pixel, by Sobel."""
    kernel = torch.tensor(_SOBEL, dtype=planes.dtype, device=planes.device) / 8.0
    padded = functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    kernels = torch.stack([kernel, kernel.t()]).unsqueeze(1)
    return functional.conv2d(padded, kernels).square().sum(1, keepdim=True).sqrt()
