"""A+: adjusted anchored neighbourhood regression, a linear regressor for every kind of patch.

Timofte, De Smet, Van Gool, "A+: Adjusted Anchored Neighborhood Regression for Fast
Super-Resolution" (ACCV 2014); features of Zeyde, Elad, Protter, "On Single Image Scale-Up Using
Sparse-Representations" (2010). Details that the papers leave out are those of the authors' program.

Luma alone. Every window of 3 by 3 input pixels, enlarged by bicubic interpolation, is described by
derivatives, reduced by principal components; the anchor that correlates most with that picks a
matrix, which makes of it what interpolation lacks. The windows' results are averaged. Nothing is
learned by gradient descent: `waifu4x.train.fitting.sparse` fits it.

It is computed in float32 whatever the precision: in bf16 other anchors would be picked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WINDOW = 3
"""A side of a patch, in input pixels."""
# To each side an interpolated pixel looks so many input pixels, and derivatives one more.
_BICUBIC_RADIUS = 2
_CONTEXT = 1 + _BICUBIC_RADIUS
# Kernels grow by its square: a stranger's file must not ask for giants.
_MAX_SCALE = 8
# Correlations with all anchors lie in memory for so many patches at a time.
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class AplusConfig:
    """The numbers of one A+; `features` is how many principal components are kept."""

    scale: int = 3
    anchors: int = 1024
    features: int = 30

    # Facts every network of this project states in its config.
    channels_in = 1
    pre_upsampled = False
    size_multiple = 1
    global_context = False
    # Exact: from the far side of a window that covers the pixel.
    receptive_radius_px = WINDOW - 1 + _CONTEXT

    def __post_init__(self) -> None:
        if not 2 <= self.scale <= _MAX_SCALE or min(self.anchors, self.features) < 1:
            raise ValueError(f"scale must be 2 to {_MAX_SCALE}, anchors and features positive")
        if self.features > self.derivatives:
            raise ValueError(f"features must be {self.derivatives} at most, not {self.features}")

    @property
    def derivatives(self) -> int:
        """How many numbers describe a window before they are reduced."""
        return 4 * (WINDOW * self.scale) ** 2


class Aplus(nn.Module):
    """x: (N, 1, h, w) luma in [0, 1] -> (N, 1, s·h, s·w) float32, not clamped.

    Beyond its border the picture is continued by its mirror image, so that every pixel of the
    result is the mean of nine patches.
    """

    anchors: Tensor
    kernels: Tensor

    def __init__(self, config: AplusConfig) -> None:
        super().__init__()
        self.config = config
        side_px = WINDOW * config.scale
        self.register_buffer("kernels", _enlarging_kernels(config.scale), persistent=False)
        self.components = nn.Conv2d(4, config.features, side_px, stride=config.scale, bias=False)
        # Picked by the largest of all: no gradient comes to them.
        self.register_buffer("anchors", torch.randn(config.anchors, config.features))
        self.regressors = nn.Parameter(torch.empty(config.anchors, config.features, side_px**2))
        nn.init.normal_(self.regressors, std=0.1 / math.sqrt(config.features))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            # Which patch goes with which regressor would be that of the example for ever.
            raise RuntimeError("A+ picks regressors by what it sees, which no traced graph can")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            base, described = self.described(x)
            features = self.components(described).permute(0, 2, 3, 1)
            patches = self._regressed(features.flatten(0, 2)).unflatten(0, features.shape[:3])
            return base + self._averaged(patches)

    def described(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, h, w) -> the bicubic picture (N, 1, s·h, s·w), and derivatives of it and 2 cells
        more to every side, (N, 4, s·(h + 4), s·(w + 4))."""
        scale, reach = self.config.scale, WINDOW - 1
        phases = functional.conv2d(_continued(x, reach + _CONTEXT), self.kernels)
        around = functional.pixel_shuffle(phases, scale)
        return _cropped(around, (reach + 1) * scale), _derivatives(around, scale)

    def multiply_adds_for(self, shape: tuple[int, ...]) -> int:
        """Of one pass over an input of this shape, (N, 1, h, w)."""
        config, (count, _, height, width) = self.config, shape
        cells = (height + 2 * WINDOW) * (width + 2 * WINDOW)
        windows = (height + WINDOW - 1) * (width + WINDOW - 1)
        patch = (WINDOW * config.scale) ** 2
        each = config.features * (config.derivatives + config.anchors + patch)
        return count * (cells * 25 * config.scale**2 + windows * each)

    def nearest(self, features: Tensor) -> Tensor:
        """(n, d) -> (n,): the anchor that correlates most with each, whatever the sign."""
        turned = self.anchors.T
        picked = [(part @ turned).abs_().argmax(1) for part in features.detach().split(_CHUNK)]
        return torch.cat(picked)

    def _regressed(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, 9·s²): those of one anchor together, by one matrix product."""
        nearest = self.nearest(features)
        order = nearest.argsort(stable=True)
        anchors, counts = torch.unique_consecutive(nearest[order], return_counts=True)
        made = features.new_empty(len(features), self.regressors.shape[2])
        for anchor, places in zip(anchors.tolist(), order.split(counts.tolist()), strict=True):
            made[places] = features[places] @ self.regressors[anchor]
        return made

    def _averaged(self, patches: Tensor) -> Tensor:
        """(N, h + 2, w + 2, 9·s²), one for each window -> (N, 1, s·h, s·w).

        The numbers of a patch are in the order of cells, and in each of them of pixels.
        """
        scale = self.config.scale
        height, width = (n - WINDOW + 1 for n in patches.shape[1:3])
        cells = patches.unflatten(3, (WINDOW, WINDOW, scale**2))
        total = torch.zeros_like(cells[:, :height, :width, 0, 0])
        for i in range(WINDOW):
            for j in range(WINDOW):
                # The window whose cell (i, j) this is begins i rows and j columns earlier.
                top, left = WINDOW - 1 - i, WINDOW - 1 - j
                total = total + cells[:, top : top + height, left : left + width, i, j]
        return functional.pixel_shuffle(total.permute(0, 3, 1, 2) / WINDOW**2, scale)


def _continued(x: Tensor, by_px: int) -> Tensor:
    """(N, C, h, w) -> (N, C, h + 2·by_px, w + 2·by_px): mirrored at its edges, as `imresize` does.

    The edge sample itself is repeated: 2 1 | 1 2 3; a picture smaller than that again and again.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        places = torch.arange(-by_px, size + by_px, device=x.device) % (2 * size)
        x = x.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    return x


def _cropped(x: Tensor, by_px: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H - 2·by_px, W - 2·by_px)."""
    return x[..., by_px : x.shape[2] - by_px, by_px : x.shape[3] - by_px]


def _derivatives(x: Tensor, step_px: int) -> Tensor:
    """(N, 1, H, W) -> (N, 4, H - 2·step_px, W - 2·step_px): differences along x and y, then halves
    of second differences along x and y, of pixels that lie `step_px` apart.

    The first ones are between pixels to both sides of the middle; of an odd step the larger part
    lies ahead, where MATLAB's `conv2` has it.
    """
    ahead = (step_px + 1) // 2
    behind = ahead - step_px

    def moved(down_px: int, right_px: int) -> Tensor:
        top, left = step_px + down_px, step_px + right_px
        height, width = x.shape[2] - 2 * step_px, x.shape[3] - 2 * step_px
        return x[:, :, top : top + height, left : left + width]

    here = moved(0, 0)
    planes = (
        moved(0, ahead) - moved(0, behind),
        moved(ahead, 0) - moved(behind, 0),
        (moved(0, step_px) + moved(0, -step_px)) / 2 - here,
        (moved(step_px, 0) + moved(-step_px, 0)) / 2 - here,
    )
    return torch.cat(planes, 1)


def _cubic(t: float) -> float:
    """Keys' cubic with a = -0.5, as MATLAB's bicubic."""
    x = abs(t)
    if x <= 1.0:
        return 1.5 * x**3 - 2.5 * x**2 + 1.0
    return -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0 if x < 2.0 else 0.0


def _enlarging_taps(scale: int) -> list[list[float]]:
    """How much the pixels -2 … 2 count for each of the s that the pixel 0 becomes."""
    centres = [(phase + 0.5) / scale - 0.5 for phase in range(scale)]
    return [[_cubic(place - centre) for place in range(-2, 3)] for centre in centres]


def _enlarging_kernels(scale: int) -> Tensor:
    """(s², 1, 5, 5): all phases of bicubic interpolation by a whole factor."""
    taps = _enlarging_taps(scale)
    kernels = [[[[a * b for b in across] for a in down]] for down in taps for across in taps]
    # On the CPU also where a network is built on "meta": no file would bring them later.
    return torch.tensor(kernels, device="cpu")


APLUS_SIZES: dict[str, AplusConfig] = {
    f"aplus-x{scale}": AplusConfig(scale=scale) for scale in (2, 3, 4)
}
