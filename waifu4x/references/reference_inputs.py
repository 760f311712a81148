"""What a network that takes references is shown beside the picture: the same in use and training.

CrossNet is shown the reference itself, SRNTT maps of the textures that were found in it. Nothing
here is given gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x import tiling
from waifu4x.networks.srntt import SRNTT, Maps
from waifu4x.references import matching
from waifu4x.references.matching import PATCH, Matches

Kind = Literal["none", "optional", "needed"]

# Networks are shown so much of a large reference at once; pieces overlap, so that no patch between
# two of them is lost.
_PIECE_PX = 384
_PIECE_HALO_PX = 32


def kind_of(config: Any) -> Kind:
    """Whether a network with this config takes references, and whether it can do without."""
    return getattr(config, "reference", "none")


@contextlib.contextmanager
def as_it_is(network: nn.Module) -> Iterator[None]:
    """In eval mode: its normalisations take the statistics that they have, and gather none."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@dataclass(frozen=True, kw_only=True)
class Textures:
    """Features of references, for `maps_of`; one entry a piece."""

    keys: tuple[Tensor, ...]
    """(256, h, w): of the reference as blurred as an enlarged picture is, to be searched."""
    sharp: tuple[Maps, ...]
    """Of the reference as it is, to be pasted; without the batch's axis."""


@torch.no_grad()
def textures_of(
    network: SRNTT, references: Sequence[Tensor], *, to_search: bool = True
) -> Textures:
    """What can be found in references, each (3, H, W) RGB in [0, 1] on the network's device.

    What is more than a multiple of 4 px is left out at the bottom and on the right. Without
    `to_search` there are no keys, which take most of the time. Raises ValueError for a reference
    that has less than 12 px a side.
    """
    keys: list[Tensor] = []
    sharp: list[Maps] = []
    device = next(network.parameters()).device.type
    with as_it_is(network), torch.autocast(device, enabled=False):
        for piece in _pieces(references, scale=network.config.scale):
            coarse, middle, fine = network.texture(piece)
            sharp.append((coarse[0], middle[0], fine[0]))
            if not to_search:
                continue
            # Patches of a sharp picture would be compared with those of a blurred one.
            shrunk = functional.interpolate(
                piece, scale_factor=1 / network.config.scale, mode="bicubic", antialias=True
            )
            keys.append(_blurred_texture(network, shrunk.clamp(0.0, 1.0)))
    return Textures(keys=tuple(keys), sharp=tuple(sharp))


def _pieces(references: Sequence[Tensor], *, scale: int) -> Iterator[Tensor]:
    """(1, 3, h, w) each, sides multiples of the scale."""
    for reference in references:
        height, width = (side // scale * scale for side in reference.shape[1:])
        if min(height, width) < PATCH * scale:
            raise ValueError(f"a reference has {PATCH * scale} px a side or more")
        grid = tiling.plan(
            (height, width), tile_px=_PIECE_PX, halo_px=_PIECE_HALO_PX, multiple=scale
        )
        for tile in grid:
            yield reference[None, :, tile.rows.window, tile.columns.window]


def _blurred_texture(network: SRNTT, x: Tensor) -> Tensor:
    """(1, 3, h, w) -> (256, h, w): relu3_1 of what the content extractor makes of it."""
    return network.texture(network(x).clamp(0.0, 1.0))[0][0]


@torch.no_grad()
def match(network: SRNTT, x: Tensor, textures: Textures) -> Matches:
    """The best places for a picture (3, h, w), one by one, so that it is the same in any batch."""
    with as_it_is(network), torch.autocast(x.device.type, enabled=False):
        query = _blurred_texture(network, x[None].to(torch.float32))
        return matching.find_matches(query, textures.keys)


@torch.no_grad()
def maps_of(textures: Textures, matches: Matches) -> Maps:
    """What a network is shown of the references, (1, …) each; see `srntt.Maps`."""
    coarse, middle, fine = (
        matching.paste([piece[level] for piece in textures.sharp], matches, ratio=2**level)[None]
        for level in range(3)
    )
    return coarse, middle, fine


@torch.no_grad()
def own_maps(network: SRNTT, truth: Tensor) -> Maps:
    """The textures of the truth itself, (N, 3, 4h, 4w): what the best of references would give."""
    with torch.autocast(truth.device.type, enabled=False):
        return network.texture(truth.to(torch.float32))


def inputs_of(network: nn.Module, x: Tensor, references: Sequence[Tensor]) -> tuple[Any, ...]:
    """All that `network(...)` is called with for a picture.

    Args:
        x: (1, 3, h, w) in [0, 1].
        references: each (3, H, W), on the same device. A network that needs one takes one, of the
            size of `x`; none is for those that can do without.
    """
    if not references or kind_of(network.config) == "none":
        return (x,)
    if not isinstance(network, SRNTT):
        return x, references[0][None]
    textures = textures_of(network, references)
    return x, maps_of(textures, match(network, x[0], textures))
