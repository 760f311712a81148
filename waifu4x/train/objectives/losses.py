"""Losses are values: modules ``(prediction, target) -> scalar``; a weighted sum is one, too.

Both are (N, 3, H, W) floats, RGB in [0, 1], of one shape (ValueError otherwise: torch would
broadcast a batch against a picture and train on nonsense). All are means, so a weight does not
depend on the size of batch or crop, but for `FourierLoss`, which says so. Losses on the features of
a network are in `waifu4x.train.objectives.vgg`, those on a discriminator's logits in
`waifu4x.train.objectives.adversarial`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

ValueRange = Literal["01", "11"]
"""The range a published loss is defined on: "01" is [0, 1], "11" is [-1, 1]."""


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError unless both have one shape."""
    if prediction.shape != target.shape:
        raise ValueError(f"the prediction is {tuple(prediction.shape)}, not {tuple(target.shape)}")


class PixelLoss(nn.Module):
    """The base of losses on the difference of two pictures, pixel by pixel.

    Pictures are in [0, 1] here. A paper that has them in [-1, 1] (SRResNet, SRGAN) sees every
    difference twice as large; `value_range` "11" is guaranteed to give the loss of that paper, so
    that its weights can be used as they are: L1 is 2 times, MSE 4 times what it is on [0, 1].
    """

    def __init__(self, *, value_range: ValueRange = "01") -> None:
        super().__init__()
        if value_range not in get_args(ValueRange):
            raise ValueError(f"value_range must be '01' or '11', not {value_range!r}")
        self.value_range = value_range

    def difference(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(N, 3, H, W): prediction - target, in units of `value_range`."""
        check_same_shape(prediction, target)
        difference = prediction - target
        return difference if self.value_range == "01" else 2.0 * difference


class L1Loss(PixelLoss):
    """Mean of |d|."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.difference(prediction, target).abs().mean()


class MSELoss(PixelLoss):
    """Mean of d²."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.difference(prediction, target).square().mean()


class CharbonnierLoss(PixelLoss):
    """Mean of sqrt(d² + ε²), a smooth L1 (Lai et al., https://arxiv.org/abs/1704.03915).

    `epsilon` is in units of `value_range`.
    """

    def __init__(self, epsilon: float = 1e-3, *, value_range: ValueRange = "01") -> None:
        super().__init__(value_range=value_range)
        if not 0.0 < epsilon < math.inf:
            # With 0 the gradient of a perfect pixel is NaN.
            raise ValueError(f"epsilon must be more than 0, not {epsilon}")
        self.epsilon = epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        difference = self.difference(prediction, target)
        return torch.sqrt(difference.square() + self.epsilon**2).mean()


class FourierLoss(nn.Module):
    """L1 between the spectra: mean over the real and imaginary parts of rfft2.

    The transform is not normalised (torch's ``norm="backward"``), as in SAFMN
    (https://arxiv.org/abs/2302.13800), so that its weight of 0.05 applies. Hence the loss grows
    with the crop: it is √(H·W) times the one of an orthonormal transform.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction, target)
        difference = prediction - target  # the transform is linear: one does for two
        # cuFFT has no bfloat16, and half only for sides that are powers of two.
        difference = difference.to(torch.promote_types(difference.dtype, torch.float32))
        return torch.view_as_real(torch.fft.rfft2(difference)).abs().mean()


def _variation(images: Tensor) -> Tensor:
    """Sum of |right neighbour - pixel| and |lower neighbour - pixel|, per value; 0 for 1x1."""
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().sum()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().sum()
    return (right + down) / images.numel()


class GradientLoss(nn.Module):
    """L1 between the gradients (forward differences to the right and down), per pixel value."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction, target)
        return _variation(prediction - target)  # forward differences are linear


class GradientMagnitudeLoss(nn.Module):
    """L1 between the lengths of the gradients: how much detail there is, whichever way it lies.

    Ma et al., "Structure-Preserving Super Resolution with Gradient Guidance" (CVPR 2020),
    https://arxiv.org/abs/2003.13081: central differences without normalisation, a root that is
    smooth at 0. A smoothed texture is too short everywhere, and costs here although no pixel of it
    is far off.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction, target)
        return (_steepness(prediction) - _steepness(target)).abs().mean()


def _steepness(images: Tensor) -> Tensor:
    """(N, C, H - 2, W - 2): the gradient's length in every inner pixel."""
    right = images[..., 1:-1, 2:] - images[..., 1:-1, :-2]
    down = images[..., 2:, 1:-1] - images[..., :-2, 1:-1]
    return torch.sqrt(right.square() + down.square() + 1e-6)


class TotalVariationLoss(nn.Module):
    """Anisotropic total variation of the prediction alone, per pixel value; the target is unused.

    Divided by the number of values, as SRGAN's is by that of pixels. Anisotropic (|dx| + |dy|)
    because the root of the isotropic one has no derivative where a picture is flat.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _variation(prediction)


class WeightedSum(nn.Module):
    """A weighted sum of losses, itself a loss: ``WeightedSum({"l1": (L1Loss(), 0.01), …})``.

    A term whose weight is 0 is not computed at all.
    """

    terms: dict[str, Tensor]
    """What each term gave at the last call, times its weight: scalars without gradients, on the
    device, which sum up to what was returned. Those of a sum within are called "outer/inner". To
    read them is to wait for the device: read them when reporting, not at every step."""

    def __init__(self, parts: Mapping[str, tuple[nn.Module, float]]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("a weighted sum needs at least one loss")
        for name, (_, weight) in parts.items():
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"the weight of {name} must be 0 or more, not {weight}")
        self.losses = nn.ModuleDict({name: loss for name, (loss, _) in parts.items()})
        self.weights = {name: float(weight) for name, (_, weight) in parts.items()}
        self.terms = {}

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        total = prediction.new_zeros(())
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            weight = self.weights[name]
            if weight == 0.0:
                continue
            value = weight * loss(prediction, target)
            total = total + value
            if isinstance(loss, WeightedSum):
                terms |= {f"{name}/{inner}": weight * term for inner, term in loss.terms.items()}
            else:
                terms[name] = value.detach()
        self.terms = terms
        return total


PIXEL_LOSSES: dict[str, type[PixelLoss]] = {
    "l1": L1Loss,
    "mse": MSELoss,
    "charbonnier": CharbonnierLoss,
}

PICTURE_LOSSES: dict[str, type[nn.Module]] = {
    "fft": FourierLoss,
    "gradient": GradientLoss,
    "magnitude": GradientMagnitudeLoss,
    "tv": TotalVariationLoss,
}
"""Losses on whole pictures that have no options."""
