"""What a network that takes references is shown beside the picture: the same in use and training.

CrossNet is shown the reference itself, SRNTT maps of the textures that were found in it. Nothing
here is given gradients.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x import tiling
from waifu4x.networks.srntt import SRNTT, Maps
from waifu4x.references import matching
from waifu4x.references.matching import PATCH, Matches

Kind = Literal["none", "optional", "needed"]

# Networks are shown so much of a large reference at once. Only what they make of a piece's core is
# kept: around it they have padded with zeros what goes on in the reference.
_PIECE_PX = 384
_PIECE_HALO_PX = 32
# Floats of a position, which is 4 x 4 px: to be searched, and of each level of `Maps`.
_KEY_WIDTH = 256
_CELL_WIDTHS = (256, 128 * 2**2, 64 * 4**2)

TEXTURE_BYTES_PER_PX = 4 * (_KEY_WIDTH + sum(_CELL_WIDTHS)) // 4**2
"""What `Textures` hold of a reference."""


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
    """Features of references, for `maps_of`."""

    keys: tuple[Tensor, ...]
    """(256, h, w) of each reference as blurred as an enlarged picture is, to be searched."""
    sharp: tuple[Tensor, ...]
    """Of the references as they are, to be pasted: for each level of `Maps` the cells of all
    positions, as `matching.paste` takes them."""


@torch.no_grad()
def textures_of(
    network: SRNTT, references: Sequence[Tensor], *, to_search: bool = True
) -> Textures:
    """What can be found in references, each (3, H, W) RGB in [0, 1] on the network's device.

    What is more than a multiple of 4 px is left out at the bottom and on the right. Without
    `to_search` there are no keys, which take most of the time. Raises ValueError for a reference
    that has less than 12 px a side.
    """
    scale = network.config.scale
    sizes = [(each.shape[1] // scale, each.shape[2] // scale) for each in references]
    if any(min(size) < PATCH for size in sizes):
        raise ValueError(f"a reference has {PATCH * scale} px a side or more")
    positions = sum(height * width for height, width in sizes)
    weight = next(network.parameters())
    # Written where they will be looked for: each exists once.
    sharp = tuple(weight.new_empty((positions, width)) for width in _CELL_WIDTHS)
    keys = [weight.new_empty((_KEY_WIDTH, *size)) for size in sizes if to_search]
    before = 0
    with as_it_is(network), torch.autocast(weight.device.type, enabled=False):
        for number, (reference, size) in enumerate(zip(references, sizes, strict=True)):
            here = slice(before, before + math.prod(size))
            cells = [level[here].view(*size, -1) for level in sharp]
            for tile in _pieces(size, scale=scale):
                piece = reference[None, :, tile.rows.window, tile.columns.window]
                place, inner = _in_positions(tile, scale=scale)
                for level, features in enumerate(network.texture(piece)):
                    cells[level][place] = matching.cells_of(features[0], 2**level)[inner]
                if to_search:
                    # Patches of a sharp picture would be compared with those of a blurred one.
                    shrunk = functional.interpolate(
                        piece, scale_factor=1 / scale, mode="bicubic", antialias=True
                    )
                    found = _blurred_texture(network, shrunk.clamp(0.0, 1.0))
                    keys[number][:, *place] = found[:, *inner]
            before = here.stop
    return Textures(keys=tuple(keys), sharp=sharp)


def _pieces(size: tuple[int, int], *, scale: int) -> tiling.TileGrid:
    """What networks are shown at once, in px, of a reference of so many positions."""
    height, width = size
    return tiling.plan(
        (height * scale, width * scale),
        tile_px=_PIECE_PX,
        halo_px=_PIECE_HALO_PX,
        multiple=scale,
    )


def _in_positions(
    tile: tiling.Tile, *, scale: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a piece's core lies among the reference's positions, and where among its own."""
    share = Fraction(1, scale)
    return tile.place(share), (tile.rows.inner(share), tile.columns.inner(share))


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
        matching.paste(cells, matches, ratio=2**level)[None]
        for level, cells in enumerate(textures.sharp)
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
