"""ScSR: super-resolution by sparse coding, with two dictionaries that share their codes.

Yang, Wright, Huang, Ma, "Image Super-Resolution via Sparse Representation" (2010),
https://ieeexplore.ieee.org/document/5466111. Details that the paper leaves out are those of the
authors' program.

Luma alone. Around every pixel of the bicubic picture the derivatives of a patch are described by
few atoms of one dictionary; the same atoms of the other one make the patch sharp. Patches are
averaged, and what the result, shrunk again, lacks of the input is added back some times. Nothing is
learned by gradient descent: `waifu4x.train.fitting.sparse` fits it.

It is computed in float32 whatever the precision, and slowly: codes are solved for, a patch for
every pixel of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH_PX = 5
"""A side of a patch, in pixels of the output."""
FEATURES = 4 * PATCH_PX**2
"""How many derivatives describe a patch."""
PENALTY = 0.2
"""What a code pays for each unit of its atoms, once its features have a length of 1."""
# Sharp patches have more contrast than those of the bicubic picture, by this factor.
_CONTRAST = 1.2
_STEP_PX = 2
# How many input pixels to each side an interpolated pixel, or a shrunk one in cells, looks.
_BICUBIC_RADIUS = 2
# Kernels grow by its square: a stranger's file must not ask for giants.
_MAX_SCALE = 8
# What the papers compute in 0..255; features below a length of 1 there are not lengthened.
_LEVELS = 255.0
_BLUR_RADIUS_PX = 2
_MAX_PROJECTIONS = 100
# So many patches are coded at a time: on a CPU what fits its caches, elsewhere what fills it.
_CHUNK_CPU = 1024
_CHUNK = 32768


@dataclass(frozen=True, kw_only=True)
class ScSRConfig:
    """The numbers of one ScSR.

    `steps` of FISTA find the codes; `projections` times the input's likeness is restored.
    """

    scale: int = 3
    atoms: int = 512
    steps: int = 30
    projections: int = 20

    # Facts every network of this project states in its config.
    channels_in = 1
    pre_upsampled = False
    size_multiple = 1
    global_context = False

    def __post_init__(self) -> None:
        if not 2 <= self.scale <= _MAX_SCALE or min(self.atoms, self.steps) < 1:
            raise ValueError(f"scale must be 2 to {_MAX_SCALE}, atoms and steps positive")
        if not 0 <= self.projections <= _MAX_PROJECTIONS:
            raise ValueError(f"projections must be 0 to {_MAX_PROJECTIONS}")

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input pixels, an output pixel may look to each side.

        Walks back from the pixels of one cell: a projection looks at blurred, enlarged differences,
        and those at what was there before, shrunk; before all stand patches that cover the pixel.
        Far beyond what matters: each projection is local, and later ones have less to correct.
        """
        scale, low, high, cells = self.scale, 0, self.scale - 1, (0, 0)
        for _ in range(self.projections):
            seen = _cells(low - _BLUR_RADIUS_PX, high + _BLUR_RADIUS_PX, scale)
            first, last = _shrinking_reach(scale)
            cells = min(cells[0], seen[0]), max(cells[1], seen[1])
            low, high = min(low, seen[0] * scale + first), max(high, seen[1] * scale + last)
        reach_px = PATCH_PX - 1 + _STEP_PX
        seen = _cells(low - reach_px, high + reach_px, scale)
        return max(-cells[0], cells[1], -seen[0], seen[1])


def _cells(low_px: int, high_px: int, scale: int) -> tuple[int, int]:
    """The first and the last input pixel that the interpolated pixels from low to high look at."""
    used = [_places_of(row, first=-_BICUBIC_RADIUS) for row in _enlarging_taps(scale)]
    seen = [(p // scale + t) for p in range(low_px, high_px + 1) for t in used[p % scale]]
    return min(seen), max(seen)


def _shrinking_reach(scale: int) -> tuple[int, int]:
    """The first and the last pixel, from a cell's first, that what it becomes looks at."""
    used = _places_of(_shrinking_taps(scale), first=-_BICUBIC_RADIUS * scale)
    return used[0], used[-1]


def _places_of(taps: list[float], *, first: int) -> list[int]:
    """Where the taps lie that are not 0, from that of the first on."""
    return [place for place, tap in enumerate(taps, first) if tap != 0.0]


def lasso(signals: Tensor, atoms: Tensor, *, penalty: float, steps: int) -> Tensor:
    """(n, d) and (K, d) -> (n, K): codes that nearly minimise ½|signal - Σ|² + penalty·Σ|code|.

    FISTA (Beck, Teboulle 2009) from zero, `steps` steps. A signal's code depends on it alone.
    """
    pull = signals @ atoms.T
    # The largest eigenvalue: a longer step could diverge. Of the smaller of two matrices.
    alike = atoms.T @ atoms if atoms.shape[0] > atoms.shape[1] else atoms @ atoms.T
    step = 1.0 / torch.linalg.eigvalsh(alike)[-1].clamp(min=1e-12)
    codes = ahead = torch.zeros_like(pull)
    momentum = 1.0
    for _ in range(steps):
        moved = ahead - step * ((ahead @ atoms) @ atoms.T - pull)
        before, codes = codes, moved - torch.clamp(moved, -step * penalty, step * penalty)
        following = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = codes + (momentum - 1.0) / following * (codes - before)
        momentum = following
    return codes


class ScSR(nn.Module):
    """x: (N, 1, h, w) luma in [0, 1] -> (N, 1, s·h, s·w) float32, not clamped.

    Beyond its border the picture is continued by its mirror image, so that every pixel of the
    result is the mean of 25 patches.
    """

    kernels: Tensor
    shrinking: Tensor
    blurring: Tensor

    def __init__(self, config: ScSRConfig) -> None:
        super().__init__()
        self.config = config
        shrinking, blurring = _shrinking_taps(config.scale), _blurring_taps()
        self.register_buffer("kernels", _enlarging_kernels(config.scale), persistent=False)
        self.register_buffer("shrinking", torch.tensor(shrinking, device="cpu"), persistent=False)
        self.register_buffer("blurring", torch.tensor(blurring, device="cpu"), persistent=False)
        # Of length 1: described by the first, sharp by the second.
        first, second = (torch.randn(config.atoms, size) for size in (FEATURES, PATCH_PX**2))
        self.atoms = nn.Parameter(functional.normalize(first, dim=1))
        self.patches = nn.Parameter(functional.normalize(second, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            # Which patches have a code at all would be those of the example for ever.
            raise RuntimeError("ScSR solves for codes, which no traced graph can")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            y = torch.cat([self._sharpened(picture[None]) for picture in x])
            for _ in range(self.config.projections):
                y = y + self._missing(x, y)
            return y

    def described(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, h, w) -> the bicubic picture and 4 px more to every side, (N, 1, s·h + 8, s·w + 8)
        in 0..255, and derivatives of that, (N, 4, s·h + 8, s·w + 8)."""
        scale, beyond_px = self.config.scale, PATCH_PX - 1 + _STEP_PX
        cells = -(-beyond_px // scale)
        around = self._enlarged(_continued(x, cells + _BICUBIC_RADIUS)) * _LEVELS
        around = _cropped(around, cells * scale - beyond_px)
        first, second = _derivatives(around, _STEP_PX).split(2, 1)
        # The second differences themselves, and not their halves.
        return _cropped(around, _STEP_PX), torch.cat((first, 2.0 * second), 1)

    def multiply_adds_for(self, shape: tuple[int, ...]) -> int:
        """Of one pass over an input of this shape, (N, 1, h, w), where every patch has a code."""
        config, (count, _, height, width) = self.config, shape
        scale = config.scale
        windows = (height * scale + PATCH_PX - 1) * (width * scale + PATCH_PX - 1)
        coding = config.atoms * ((1 + 2 * config.steps) * FEATURES + PATCH_PX**2)
        return count * windows * coding

    def _sharpened(self, x: Tensor) -> Tensor:
        """(1, 1, h, w) -> (1, 1, s·h, s·w): the mean of all patches, before any projection."""
        around, described = self.described(x)
        height, width = (n - PATCH_PX + 1 for n in around.shape[2:])
        chunk = _CHUNK_CPU if x.device.type == "cpu" else _CHUNK
        rows = max(1, chunk // width)
        total = torch.zeros_like(around)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            strip = slice(top, bottom + PATCH_PX - 1)
            bare, features = (
                functional.unfold(part[:, :, strip], PATCH_PX)[0].T for part in (around, described)
            )
            patches = self._patches(bare, features)
            size_px = (strip.stop - strip.start, around.shape[3])
            laid = functional.fold(patches.T[None], size_px, PATCH_PX)
            total[:, :, strip] += laid
        return _cropped(total, PATCH_PX - 1) / (PATCH_PX**2 * _LEVELS)

    def _patches(self, bare: Tensor, features: Tensor) -> Tensor:
        """(n, 25) of the bicubic picture and (n, 100) of derivatives -> (n, 25), sharp."""
        features = features / features.norm(dim=1, keepdim=True).clamp(min=1.0)
        mean = bare.mean(1, keepdim=True)
        contrast = (bare - mean).norm(dim=1, keepdim=True)
        # The code of all others is zero.
        coded = ((features @ self.atoms.T).abs().amax(1) > PENALTY).nonzero()[:, 0]
        codes = lasso(features[coded], self.atoms, penalty=PENALTY, steps=self.config.steps)
        sharp = codes @ self.patches
        sharp = functional.normalize(sharp, dim=1) * (_CONTRAST * contrast[coded])
        return mean + torch.zeros_like(bare).index_copy(0, coded, sharp)

    def _missing(self, x: Tensor, y: Tensor) -> Tensor:
        """What the result, shrunk, lacks of the input, enlarged and blurred: (N, 1, s·h, s·w)."""
        scale = self.config.scale
        around = _continued(y, _BICUBIC_RADIUS * scale)
        lacking = x - _separable(around, self.shrinking, stride=scale)
        cells = -(-_BLUR_RADIUS_PX // scale)
        enlarged = self._enlarged(_continued(lacking, cells + _BICUBIC_RADIUS))
        return _separable(_cropped(enlarged, cells * scale - _BLUR_RADIUS_PX), self.blurring)

    def _enlarged(self, x: Tensor) -> Tensor:
        """(N, 1, h, w) -> (N, 1, s·(h - 4), s·(w - 4)): the outermost pixels are context."""
        return functional.pixel_shuffle(functional.conv2d(x, self.kernels), self.config.scale)


def _separable(x: Tensor, taps: Tensor, *, stride: int = 1) -> Tensor:
    """(N, 1, H, W) by the same taps along both axes, without any padding."""
    columns = functional.conv2d(x, taps.view(1, 1, -1, 1), stride=(stride, 1))
    return functional.conv2d(columns, taps.view(1, 1, 1, -1), stride=(1, stride))


def _shrinking_taps(scale: int) -> list[float]:
    """How much the pixels of the cells -2 … 2 count for what the cell 0 becomes, bicubic."""
    middle = (scale - 1) / 2
    weights = [_cubic((place - middle) / scale) for place in range(-2 * scale, 3 * scale)]
    return [weight / sum(weights) for weight in weights]


def _blurring_taps() -> list[float]:
    """The square of a Gaussian of 1 px, of five taps."""
    taps = [math.exp(-(place**2)) for place in range(-_BLUR_RADIUS_PX, _BLUR_RADIUS_PX + 1)]
    return [tap / sum(taps) for tap in taps]


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


SCSR_SIZES: dict[str, ScSRConfig] = {
    f"scsr-x{scale}": ScSRConfig(scale=scale) for scale in (2, 3, 4)
}
