"""Which patch of a reference is most like each patch of a picture, and what is pasted there.

Features are (C, h, w), and a patch is 3x3 positions of them. Similarity is the cosine between two
patches. Whatever the sizes, no more than a block of the matrix of similarities is ever held: the
best of each block wins over the best so far. Used by SRNTT (`waifu4x.networks.srntt`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 3
_QUERIES = 1024
_KEYS = 4096
_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class Matches:
    """For every patch of a picture of (h, w) positions the best one of all references.

    All are (h - 2, w - 2). Positions are counted through all references, one after the other, each
    row by row.
    """

    start: Tensor
    """int64: the position of the patch's upper left."""
    row_length: Tensor
    """int64: how many positions a row of its reference has."""
    similarity: Tensor
    """float32, -1..1: the cosine."""


def find_matches(
    query: Tensor,
    references: Sequence[Tensor],
    *,
    queries_at_once: int = _QUERIES,
    keys_at_once: int = _KEYS,
) -> Matches:
    """The most similar patch for each of the picture's; of equally similar ones the first.

    Args:
        query: (C, h, w) float32, of the picture; 3 positions a side or more.
        references: each (C, h', w'), likewise.
        queries_at_once, keys_at_once: how large a block of similarities is, about.

    Raises ValueError for no references, or features that are too small or differ in channels.
    """
    for features in (query, *references):
        if features.dim() != 3 or min(features.shape[1:]) < PATCH or len(features) != len(query):
            raise ValueError(f"no features (C, h, w) of 3 a side or more: {tuple(features.shape)}")
    if not references:
        raise ValueError("there is no reference to look into")
    height, width = (side - PATCH + 1 for side in query.shape[1:])
    rows = max(1, queries_at_once // width)
    found = [
        _best(_patches(query, top, min(top + rows, height)), references, keys_at_once)
        for top in range(0, height, rows)
    ]
    start, row_length, similarity = (
        torch.cat(parts).view(height, width) for parts in zip(*found, strict=True)
    )
    return Matches(start=start, row_length=row_length, similarity=similarity)


def _patches(features: Tensor, top: int, bottom: int) -> Tensor:
    """The patches whose first row is from `top` to `bottom`, of length 1: (n, 9·C)."""
    rows = features[None, :, top : bottom + PATCH - 1]
    return functional.normalize(functional.unfold(rows, PATCH)[0].t(), dim=1, eps=_EPSILON)


def _best(
    queries: Tensor, references: Sequence[Tensor], keys_at_once: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(start, row length, similarity) of each of (n, 9·C)."""
    count, device = len(queries), queries.device
    best = torch.full((count,), -torch.inf, dtype=queries.dtype, device=device)
    start = torch.zeros(count, dtype=torch.int64, device=device)
    row_length = torch.zeros(count, dtype=torch.int64, device=device)
    before = 0
    for reference in references:
        length = reference.shape[2]
        height, width = (side - PATCH + 1 for side in reference.shape[1:])
        rows = max(1, keys_at_once // width)
        for top in range(0, height, rows):
            keys = _patches(reference, top, min(top + rows, height))
            similarity, number = (queries @ keys.t()).max(1)
            place = before + (top + number // width) * length + number % width
            better = similarity > best
            best = torch.where(better, similarity, best)
            start = torch.where(better, place, start)
            row_length = torch.where(better, length, row_length)
        before += reference.shape[1] * length
    return start, row_length, best


def paste(features: Sequence[Tensor], matches: Matches, *, ratio: int = 1) -> Tensor:
    """The references' features at the matched places, averaged where patches overlap.

    Args:
        features: of each reference that was searched, (C, ratio·h', ratio·w').
        matches: for a picture of (h, w) positions.
        ratio: by how much these features are finer than those that were compared.

    Returns (C, ratio·h, ratio·w), in the features' dtype.
    """
    # A position is a cell of ratio x ratio finer ones, so that a patch is 3x3 cells at any ratio.
    cells = [functional.pixel_unshuffle(each[None], ratio)[0].flatten(1) for each in features]
    pool = torch.cat(cells, 1)
    height, width = matches.start.shape
    size = (height + PATCH - 1, width + PATCH - 1)
    total = pool.new_zeros((len(pool), *size))
    count = pool.new_zeros(size)
    for down in range(PATCH):
        for right in range(PATCH):
            place = matches.start + down * matches.row_length + right
            spot = (slice(down, down + height), slice(right, right + width))
            total[:, *spot] += pool[:, place.flatten()].view(-1, height, width)
            count[*spot] += 1.0
    return functional.pixel_shuffle((total / count)[None], ratio)[0]


def similarity_map(matches: Matches) -> Tensor:
    """(h, w): the similarity around each position, borders continued."""
    inner = matches.similarity[None, None]
    return functional.pad(inner, (1, 1, 1, 1), mode="replicate")[0, 0]
