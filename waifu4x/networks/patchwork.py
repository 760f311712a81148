"""What the sparse-coding networks share: a picture continued beyond its border, MATLAB's bicubic
interpolation as convolutions, and its derivatives.

The constants are buffers that no file holds. Names: a *cell* is what an input pixel becomes, s by
s pixels of the output.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

BICUBIC_RADIUS = 2
"""How many input pixels to each side an interpolated pixel, or a shrunk one in cells, looks."""


def continued(x: Tensor, by_px: int) -> Tensor:
    """(N, C, h, w) -> (N, C, h + 2·by_px, w + 2·by_px): mirrored at its edges, as `imresize` does.

    The edge sample itself is repeated: 2 1 | 1 2 3; a picture smaller than that again and again.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        places = torch.arange(-by_px, size + by_px, device=x.device) % (2 * size)
        x = x.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
    return x


def cropped(x: Tensor, by_px: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H - 2·by_px, W - 2·by_px)."""
    return x[..., by_px : x.shape[2] - by_px, by_px : x.shape[3] - by_px]


def derivatives(x: Tensor, step_px: int) -> Tensor:
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
    return torch.cat(
        (
            moved(0, ahead) - moved(0, behind),
            moved(ahead, 0) - moved(behind, 0),
            (moved(0, step_px) + moved(0, -step_px)) / 2 - here,
            (moved(step_px, 0) + moved(-step_px, 0)) / 2 - here,
        ),
        1,
    )


class Enlarged(nn.Module):
    """x: (N, 1, h, w) -> (N, 1, s·(h - 4), s·(w - 4)), bicubic: the outermost pixels are context.

    Of a picture that was `continued` by 2 px it is `imresize(x, s)`, to float rounding.
    """

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        taps = enlarging_taps(scale)
        kernels = np.einsum("ia,jb->ijab", taps, taps).reshape(scale**2, 1, 5, 5)
        self.register_buffer("kernels", _constant(kernels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(functional.conv2d(x, self.kernels), self.scale)


class Shrunk(nn.Module):
    """x: (N, 1, s·h, s·w) -> (N, 1, h - 4, w - 4), bicubic and without aliases.

    Of a picture that was `continued` by 2·s px it is `imresize(x, 1 / s)`, to float rounding.
    """

    taps: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("taps", _constant(shrinking_taps(scale)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.conv2d(x, self.taps.view(1, 1, -1, 1), stride=(self.scale, 1))
        return functional.conv2d(columns, self.taps.view(1, 1, 1, -1), stride=(1, self.scale))


def enlarging_taps(scale: int) -> npt.NDArray[np.float64]:
    """(s, 5): how much the pixels -2 … 2 count for each of the s that the pixel 0 becomes."""
    centres = (np.arange(scale) + 0.5) / scale - 0.5
    return _cubic(np.arange(-2, 3)[None, :] - centres[:, None])


def shrinking_taps(scale: int) -> npt.NDArray[np.float64]:
    """(5·s,): how much the pixels of the cells -2 … 2 count for what the cell 0 becomes."""
    positions = np.arange(-2 * scale, 3 * scale)
    weights = _cubic((positions - (scale - 1) / 2) / scale)
    return weights / weights.sum()


def _cubic(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    x = np.abs(t)
    near = 1.5 * x**3 - 2.5 * x**2 + 1.0
    far = -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))


def _constant(values: npt.NDArray[np.float64]) -> Tensor:
    # On the CPU also where a network is built on "meta": no file would bring them later.
    return torch.tensor(values, dtype=torch.float32, device="cpu")
