"""Networks that take references, in training: what they are shown, and what they begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from waifu4x.errors import UsageError
from waifu4x.networks.srntt import SRNTT, TEXTURE_LAYERS, Maps
from waifu4x.references import matching, reference_inputs
from waifu4x.references.matching import Matches
from waifu4x.references.reference_inputs import kind_of
from waifu4x.train.batches import Batch
from waifu4x.train.objectives.vgg import VGG19Features
from waifu4x.train.recipe import Recipe
from waifu4x.train.references import warping
from waifu4x.train.references.reference_batches import ReferenceBatch
from waifu4x.train.references.reference_options import ReferenceOptions

# SRNTT's authors search the references of all pairs beforehand. Of samples that come again what was
# found is kept, up to so much: 46,000 crops of 160 px.
_MOST_KEPT_BYTES = 512 * 2**20


class Shown(NamedTuple):
    """What a generator is called with, and what of that a texture loss compares with."""

    inputs: tuple[Any, ...]
    maps: Maps | None = None
    similarity: Tensor | None = None
    """(N, 1, h, w), of the patches that the maps were pasted from."""


class Showing:
    """Turns batches into what a generator is called with, for one stage.

    Args:
        with_reference: else the generator is shown none, where its batches have some.
    """

    def __init__(self, generator: nn.Module, *, with_reference: bool) -> None:
        self._generator = generator
        self._with_reference = with_reference
        config: Any = getattr(generator, "config", None)
        self._any_scale: bool = getattr(config, "any_scale", False)
        self._kept: dict[int, Matches] = {}
        self._kept_bytes = 0

    def __call__(self, piece: Batch) -> Shown:
        if self._any_scale:
            return Shown((piece.x, piece.scale))
        if not (isinstance(piece, ReferenceBatch) and self._with_reference):
            return Shown((piece.x,))
        if not isinstance(self._generator, SRNTT):
            return Shown((piece.x, piece.reference))
        if piece.is_own:
            maps = reference_inputs.own_maps(self._generator, piece.truth)
            ones = piece.x.new_ones(len(piece), 1, *piece.x.shape[2:])
            return Shown((piece.x, maps), maps, ones)
        return self._searched(self._generator, piece)

    def _searched(self, network: SRNTT, piece: ReferenceBatch) -> Shown:
        """One by one, so that what is found in a reference depends on nothing else."""
        found: list[Maps] = []
        similarity: list[Tensor] = []
        for number, sample in enumerate(piece.samples):
            matches = self._kept.get(sample)
            textures = reference_inputs.textures_of(
                network, [piece.reference[number]], to_search=matches is None
            )
            if matches is None:
                matches = reference_inputs.match(network, piece.x[number], textures)
                if piece.comes_again:
                    self._keep(sample, matches)
            found.append(reference_inputs.maps_of(textures, matches))
            similarity.append(matching.similarity_map(matches)[None, None])
        coarse, middle, fine = (torch.cat(each) for each in zip(*found, strict=True))
        maps = (coarse, middle, fine)
        return Shown((piece.x, maps), maps, torch.cat(similarity))

    def _keep(self, sample: int, matches: Matches) -> None:
        if self._kept_bytes + matches.kept_bytes <= _MOST_KEPT_BYTES:
            self._kept[sample] = matches
            self._kept_bytes += matches.kept_bytes


def equip(
    network: nn.Module,
    open_features: Callable[[Sequence[str]], VGG19Features] | None,
    *,
    is_fresh: bool,
) -> None:
    """Give SRNTT the beginning of VGG-19, which is stored in its file; nothing to other networks.

    Raises:
        UsageError: the network, which is not fresh, was trained with another VGG-19.
    """
    if not isinstance(network, SRNTT) or open_features is None:
        return
    wanted = open_features(TEXTURE_LAYERS).state_dict()
    if is_fresh:
        network.texture.load_state_dict(wanted)
        return
    own = network.texture.state_dict()
    if not all(torch.allclose(own[key], wanted[key].to(own[key]), rtol=1e-3) for key in own):
        raise UsageError("--init was trained with another VGG-19: give that one by --vgg")


def check(recipe: Recipe, config: Any) -> None:
    """Raises UsageError where references and the network, whose `config` this is, do not agree."""
    where = f"recipe {recipe.name}"
    network, kind, options = recipe.generator["network"], kind_of(config), recipe.data.reference
    losses = [stage.losses for stage in recipe.stages]
    if (kind == "none") != (options is None):
        wrong = "takes no references: leave data.reference out"
        raise UsageError(
            f"{where}: {network} "
            + (
                wrong
                if kind == "none"
                else f"needs references: give [data.reference], or begin with --recipe {network}"
            )
        )
    is_search = kind == "optional"
    if not is_search and any(each.texture_weight > 0.0 for each in losses):
        raise UsageError(f"{where}: a texture loss is for srntt, whose maps it compares with")
    if options is None:
        return
    if options.own_maps and not is_search:
        raise UsageError(f"{where}: data.reference.own_maps is for srntt alone")
    if not is_search and not all(stage.reference for stage in recipe.stages):
        raise UsageError(f"{where}: {network} needs its reference in every stage")
    if any(
        e.texture_weight > 0.0 and not s.reference
        for e, s in zip(losses, recipe.stages, strict=True)
    ):
        raise UsageError(
            f"{where}: a texture loss needs the reference: leave out reference = false"
        )
    shown_px = recipe.data.patch_px * (recipe.scale if config.pre_upsampled else 1)
    least_px = max(config.size_multiple, matching.PATCH)
    if shown_px < least_px or shown_px % config.size_multiple:
        raise UsageError(
            f"{where}: {network} takes crops of {least_px} px or more, in steps of "
            f"{config.size_multiple}, not {shown_px}: change data.patch_px"
        )
    if len(recipe.data.scales) > 1 or recipe.data.from_scale is not None:
        raise UsageError(f"{where}: {network} is trained for one scale: give one in data.scales")


def check_processes(recipe: Recipe, processes: int) -> None:
    """Raises UsageError where several processes cannot train the network.

    SRNTT's stages train a part of it each, and processes wait for gradients of all.
    """
    if processes > 1 and recipe.generator.get("network") == "srntt":
        raise UsageError("srntt is trained by one process: start it without torchrun or srun")


def reference_for(
    hr: npt.NDArray[np.uint8], options: ReferenceOptions | None
) -> npt.NDArray[np.uint8] | None:
    """What a picture to measure or to show is given as its reference: itself, from beside.

    It is shifted and brighter or darker, by as much as crops are, the same for pictures of one
    size; not turned, which would move the corners of a large picture farther than any crop's.
    """
    if options is None:
        return None
    height, width = hr.shape[:2]
    still = dataclasses.replace(options, rotation_deg=0.0, zoom=0.0)
    warp = warping.draw(still, np.random.default_rng([height, width]))
    return warping.warped(hr, (slice(0, height), slice(0, width)), warp)
