"""Networks that are fitted, not trained: A+ and ScSR, from pictures to weights in minutes.

A recipe with a table ``[fit]`` leads here. There is no gradient descent, so no stages, no losses
and nothing to go on from: a fit that was interrupted starts again. Equal pictures, options and seed
give equal weights on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.errors import TrainError, UsageError
from waifu4x.networks.aplus import WINDOW, Aplus, AplusConfig
from waifu4x.networks.scsr import FEATURES, PATCH_PX, ScSR, ScSRConfig
from waifu4x.train import tables
from waifu4x.train.fitting.dictionaries import learn_by_ksvd, learn_by_lasso
from waifu4x.train.fitting.fit_options import AplusFit, ScSRFit
from waifu4x.train.fitting.luma_pairs import LumaPair, Progress, read_luma_pairs
from waifu4x.train.fitting.neighbours import find_neighbours
from waifu4x.train.recipe import Recipe

_ANCHORS_AT_ONCE = 32
# For every patch of ScSR so many are looked at, of which some are flat.
_TRIED = 8
# Features as short have no direction that an anchor or an atom could share.
_FLAT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit gives."""

    network: nn.Module
    """In eval mode, on the CPU."""
    pictures: int
    samples: int
    skipped: tuple[str, ...]
    """One sentence per file that could not be used."""


def check(recipe: Recipe) -> None:
    """Raises UsageError for a fit of another network, with wrong options, or for training."""
    name = recipe.generator["network"]
    if recipe.fit is not None:
        options = _options(recipe)
        if isinstance(options, AplusFit):
            _check_aplus(recipe, options)
    elif name in _FITS:
        raise UsageError(
            f"recipe {recipe.name}: {name} is fitted, not trained: use --recipe {name}"
        )


def fit(
    recipe: Recipe,
    folders: Sequence[Path],
    *,
    seed: int = 0,
    on_progress: Progress = lambda stage, share: None,
) -> Fitted:
    """The network of `recipe`, fitted to the pictures of `folders`.

    Args:
        on_progress: called with what is being done, and its share 0..1.

    Raises:
        UsageError: as `check`.
        TrainError: no picture can be used, or they have too few patches.
    """
    options = _options(recipe)
    numbers = {key: value for key, value in recipe.generator.items() if key != "network"}
    fit_one: Callable[..., Fitted] = _FITS[str(recipe.generator["network"])][1]
    with torch.inference_mode():
        made = fit_one(numbers, options, folders, seed=seed, on_progress=on_progress)
    made.network.eval().requires_grad_(False)
    return made


def _options(recipe: Recipe) -> Any:
    name = recipe.generator["network"]
    if name not in _FITS:
        known = " and ".join(_FITS)
        raise UsageError(f"recipe {recipe.name}: only {known} can be fitted, and not {name}")
    return tables.from_table(_FITS[name][0], recipe.fit or {}, f"recipe {recipe.name} [fit]")


# -- A+ --------------------------------------------------------------------------------------------


def _check_aplus(recipe: Recipe, options: AplusFit) -> None:
    if "features" in recipe.generator:
        raise UsageError(
            f"recipe {recipe.name}: how many features A+ has, fit.energy decides: leave out "
            f"generator.features"
        )
    anchors = recipe.generator.get("anchors", AplusConfig.anchors)
    # What is no number, the network's config refuses.
    if isinstance(anchors, int) and anchors > options.dictionary_samples:
        raise UsageError(
            f"recipe {recipe.name}: {anchors} anchors cannot be learned from fewer windows: raise "
            f"fit.dictionary_samples from {options.dictionary_samples}, or lower generator.anchors"
        )


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Windows that were drawn from pictures, and the residuals that they lie on.

    Residuals are what interpolation lacks of the sharp pictures, all in one row; a window's first
    pixel lies at `starts` in it, and its next row `widths_px` later.
    """

    features: Tensor
    """(n, d)."""
    residuals: Tensor
    starts: Tensor
    widths_px: Tensor

    def patches(self, places: Tensor, scale: int) -> Tensor:
        """(...) -> (..., 9·s²): residuals in the order that `Aplus` has them in."""
        i, u, j, v = (n.flatten() for n in _grid(scale))
        rows, columns = i * scale + u, j * scale + v
        at = self.starts[places][..., None] + rows * self.widths_px[places][..., None] + columns
        return self.residuals[at]


def _grid(scale: int) -> tuple[Tensor, ...]:
    """Of each number of a patch: the cell's row, the pixel's in it, both columns."""
    cells, pixels = torch.arange(WINDOW), torch.arange(scale)
    i, j, u, v = torch.meshgrid(cells, cells, pixels, pixels, indexing="ij")
    return i, u, j, v


def _fit_aplus(
    numbers: dict[str, Any],
    options: AplusFit,
    folders: Sequence[Path],
    *,
    seed: int,
    on_progress: Progress,
) -> Fitted:
    config = AplusConfig(**{**numbers, "features": 1})
    pairs, skipped = read_luma_pairs(
        folders,
        scale=config.scale,
        most=options.pictures,
        levels=options.levels,
        shrink=options.shrink,
        smallest_px=WINDOW + 2,
        rng=np.random.default_rng(seed),
        on_progress=on_progress,
    )
    generator = torch.Generator().manual_seed(seed)
    components = _components(Aplus(config), pairs, options, generator)
    network = Aplus(AplusConfig(**{**numbers, "features": len(components)}))
    network.components.weight.copy_(components)
    windows = _windows(network, pairs, options, generator, on_progress)
    n, wanted = len(windows.features), max(network.config.anchors, options.neighbours)
    if n < wanted:
        raise TrainError(
            f"{n} windows in {len(pairs)} pictures, and {wanted} are needed: give more pictures, "
            f"or lower generator.anchors and fit.neighbours"
        )
    picked = torch.randperm(n, generator=generator)[: options.dictionary_samples]
    anchors = learn_by_ksvd(
        windows.features[picked],
        count=network.config.anchors,
        sparsity=options.sparsity,
        rounds=options.rounds,
        generator=generator,
        on_progress=lambda share: on_progress("learning anchors", share),
    )
    network.anchors.copy_(anchors)
    _regress(network, windows, options, on_progress)
    return Fitted(network=network, pictures=len(pairs), samples=n, skipped=tuple(skipped))


def _drawn(pair: LumaPair, most: int, generator: torch.Generator) -> Tensor:
    """Numbers of windows, row by row, that lie within the picture with a pixel around; sorted."""
    height, width = (n - WINDOW - 1 for n in pair.lr.shape)
    places = torch.randperm(height * width, generator=generator)[:most].sort().values
    return places


def _components(
    network: Aplus, pairs: Sequence[LumaPair], options: AplusFit, generator: torch.Generator
) -> Tensor:
    """(d, 4, 3·s, 3·s): the principal components that keep most of the derivatives' energy."""
    scale = network.config.scale
    numbers = network.config.derivatives
    energy = torch.zeros(numbers, numbers, dtype=torch.float64)
    each = max(1, options.dictionary_samples // len(pairs))
    for pair in pairs:
        described = network.described(torch.from_numpy(pair.lr)[None, None])[1]
        # All windows of the network but those that touch the picture's border.
        inner = described[..., 3 * scale : -3 * scale, 3 * scale : -3 * scale]
        windows = functional.unfold(inner, WINDOW * scale, stride=scale)[0].T
        part = windows[_drawn(pair, each, generator)]
        energy += (part.T @ part).double()
    values, vectors = torch.linalg.eigh(energy)
    kept = values.clamp(min=0.0)
    lost = kept.cumsum(0) / kept.sum().clamp(min=1e-300)
    # Of pictures that are all flat one is kept, and no window will be found.
    first = min(int((lost < 1.0 - options.energy).sum()), len(lost) - 1)
    return vectors[:, first:].T.float().reshape(-1, 4, WINDOW * scale, WINDOW * scale)


def _windows(
    network: Aplus,
    pairs: Sequence[LumaPair],
    options: AplusFit,
    generator: torch.Generator,
    on_progress: Progress,
) -> _Windows:
    scale = network.config.scale
    each = -(-options.samples // len(pairs))
    features, residuals, starts, widths = [], [], [], []
    begun = 0
    for number, pair in enumerate(pairs):
        on_progress("describing windows", number / len(pairs))
        base, described = network.described(torch.from_numpy(pair.lr)[None, None])
        seen = network.components(described)[0]
        # The first window of the network begins two cells before the picture.
        inner = seen[:, 3:-3, 3:-3].flatten(1).T
        strong = (inner.norm(dim=1) >= max(options.weakest, _FLAT)).nonzero()[:, 0]
        order = torch.randperm(len(strong), generator=generator)[:each]
        places = strong[order].sort().values
        features.append(inner[places])
        residuals.append((torch.from_numpy(pair.hr) - base[0, 0]).flatten().half())
        width_px = pair.hr.shape[1]
        across = pair.lr.shape[1] - WINDOW - 1
        rows, columns = places // across + 1, places % across + 1
        starts.append(begun + (rows * width_px + columns) * scale)
        widths.append(torch.full_like(places, width_px, dtype=torch.int32))
        begun += pair.hr.size
    return _Windows(
        features=torch.cat(features),
        residuals=torch.cat(residuals),
        starts=torch.cat(starts),
        widths_px=torch.cat(widths),
    )


def _regress(network: Aplus, windows: _Windows, options: AplusFit, on_progress: Progress) -> None:
    """The regressor of each anchor, from the windows that are most like it."""
    lengths = windows.features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    windows.features.div_(lengths)
    near = find_neighbours(
        windows.features,
        network.anchors,
        count=options.neighbours,
        on_progress=lambda share: on_progress("finding neighbours", share),
    )
    each = torch.eye(network.config.features) * options.ridge
    for first in range(0, len(near), _ANCHORS_AT_ONCE):
        on_progress("fitting regressors", first / len(near))
        places = near[first : first + _ANCHORS_AT_ONCE]
        seen = windows.features[places]
        sharp = windows.patches(places, network.config.scale).float() / lengths[places]
        solved = torch.linalg.solve(seen.mT @ seen + each, seen.mT @ sharp)
        network.regressors[first : first + _ANCHORS_AT_ONCE] = solved


# -- ScSR ------------------------------------------------------------------------------------------


def _fit_scsr(
    numbers: dict[str, Any],
    options: ScSRFit,
    folders: Sequence[Path],
    *,
    seed: int,
    on_progress: Progress,
) -> Fitted:
    network = ScSR(ScSRConfig(**numbers))
    scale, count = network.config.scale, network.config.atoms
    pairs, skipped = read_luma_pairs(
        folders,
        scale=scale,
        most=options.pictures,
        levels=options.levels,
        shrink=options.shrink,
        smallest_px=-(-(PATCH_PX + 8) // scale),
        rng=np.random.default_rng(seed),
        on_progress=on_progress,
    )
    generator = torch.Generator().manual_seed(seed)
    sharp, features = _patch_pairs(network, pairs, options, generator)
    if len(sharp) < count:
        raise TrainError(
            f"{len(sharp)} patches with some contrast in {len(pairs)} pictures, and {count} are "
            f"needed: give more pictures, or lower generator.atoms"
        )
    # Each part counts as much as it has numbers, whatever its contrast.
    parts = [functional.normalize(part, dim=1) * part.shape[1] ** 0.5 for part in (sharp, features)]
    atoms = learn_by_lasso(
        functional.normalize(torch.cat(parts, 1), dim=1),
        count=count,
        penalty=options.penalty,
        steps=options.steps,
        rounds=options.rounds,
        batch=options.batch,
        generator=generator,
        on_progress=lambda share: on_progress("learning atoms", share),
    )
    patches, described = atoms.split((PATCH_PX**2, FEATURES), 1)
    network.patches.copy_(patches)
    network.atoms.copy_(functional.normalize(described, dim=1))
    return Fitted(network=network, pictures=len(pairs), samples=len(sharp), skipped=tuple(skipped))


def _patch_pairs(
    network: ScSR, pairs: Sequence[LumaPair], options: ScSRFit, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(n, 25) of sharp pictures, without their means and 255 as 1, and (n, 100) of derivatives."""
    sharp, features = [], []
    each = -(-options.samples // len(pairs))
    for pair in pairs:
        described = network.described(torch.from_numpy(pair.lr)[None, None])[1][0, :, 4:-4, 4:-4]
        height, width = (n - PATCH_PX + 1 for n in pair.hr.shape)
        tried = torch.randperm(height * width, generator=generator)[: _TRIED * each]
        rows, columns = tried // width, tried % width
        patches = _windows_of(torch.from_numpy(pair.hr)[None] * 255.0)[0, rows, columns].flatten(1)
        patches = patches - patches.mean(1, keepdim=True)
        loud = (patches.var(1) > options.variance).nonzero()[:each, 0]
        seen = _windows_of(described)[:, rows[loud], columns[loud]].transpose(0, 1).flatten(1)
        sharp.append(patches[loud])
        features.append(seen)
    found, seen = torch.cat(sharp), torch.cat(features)
    loud = seen.norm(dim=1) > _FLAT
    return found[loud], seen[loud]


def _windows_of(planes: Tensor) -> Tensor:
    """(C, H, W) -> (C, H - 4, W - 4, 5, 5), a view."""
    return planes.unfold(1, PATCH_PX, 1).unfold(2, PATCH_PX, 1)


_FITS: dict[str, tuple[type, Callable[..., Fitted]]] = {
    "aplus": (AplusFit, _fit_aplus),
    "scsr": (ScSRFit, _fit_scsr),
}
