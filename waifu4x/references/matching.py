"""Which patch of a reference is most like each patch of a picture, and what is pasted there.

Features are (C, h, w), and a patch is 3x3 positions of them. Similarity is the cosine between two
patches. Whatever the sizes, no more than a block of the matrix of similarities is ever held, beside
the picture's own patches: the best of each block wins over the best so far. Used by SRNTT
(`waifu4x.networks.srntt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    Tensors are (h - 2, w - 2). Positions are counted through all references, one after the other,
    each row by row.
    """

    start: Tensor
    """int32: the position of the patch's upper left."""
    similarity: Tensor
    """float32, -1..1: the cosine."""
    sizes: tuple[tuple[int, int], ...]
    """How many rows and columns of positions each reference has."""

    @property
    def kept_bytes(self) -> int:
        """What it takes to keep them."""
        return self.start.nbytes + self.similarity.nbytes

    def row_lengths(self) -> Tensor:
        """int32: how many positions a row of the reference has in which each patch was found."""
        areas, lengths = (
            torch.tensor(each, dtype=torch.int32, device=self.start.device)
            for each in zip(*((h * w, w) for h, w in self.sizes), strict=True)
        )
        ends = areas.cumsum(0, dtype=torch.int32)
        return lengths[torch.bucketize(self.start, ends, right=True)]


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
    queries = [_patches(query, *block) for block in _blocks(height, width, queries_at_once)]
    start, similarity = _best(queries, references, keys_at_once)
    return Matches(
        start=start.view(height, width).to(torch.int32),
        similarity=similarity.view(height, width),
        sizes=tuple((each.shape[1], each.shape[2]) for each in references),
    )


def _patches(features: Tensor, rows: range, columns: range) -> Tensor:
    """The patches that begin in these rows and columns, of length 1: (n, 9·C)."""
    seen = features[
        None, :, rows.start : rows.stop + PATCH - 1, columns.start : columns.stop + PATCH - 1
    ]
    return functional.normalize(functional.unfold(seen, PATCH)[0].t(), dim=1, eps=_EPSILON)


def _blocks(height: int, width: int, at_once: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of about so many positions: whole rows, or parts of a row."""
    rows, columns = max(1, at_once // width), min(width, at_once)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield (
                range(top, min(top + rows, height)),
                range(left, min(left + columns, width)),
            )


def _best(
    queries: Sequence[Tensor], references: Sequence[Tensor], keys_at_once: int
) -> tuple[Tensor, Tensor]:
    """(start, similarity) of each of the patches, which come in blocks (n, 9·C)."""
    best = [each.new_full((len(each),), -torch.inf) for each in queries]
    start = [torch.zeros_like(each, dtype=torch.int64) for each in best]
    before = 0
    for reference in references:
        length = reference.shape[2]
        height, width = (side - PATCH + 1 for side in reference.shape[1:])
        for rows, columns in _blocks(height, width, keys_at_once):
            # To take patches of a large reference costs as much as to compare them with a block.
            keys = _patches(reference, rows, columns).t()
            for block, patches in enumerate(queries):
                similarity, number = (patches @ keys).max(1)
                down, right = number // len(columns), number % len(columns)
                place = before + (rows.start + down) * length + columns.start + right
                better = similarity > best[block]
                best[block] = torch.where(better, similarity, best[block])
                start[block] = torch.where(better, place, start[block])
        before += reference.shape[1] * length
    return torch.cat(start), torch.cat(best)


def cells_of(features: Tensor, ratio: int = 1) -> Tensor:
    """(C, ratio·h, ratio·w) -> (h, w, C·ratio²): a position is a cell of ratio x ratio finer ones.

    So a patch is 3x3 cells at any ratio.
    """
    return functional.pixel_unshuffle(features[None], ratio)[0].permute(1, 2, 0)


def paste(cells: Tensor, matches: Matches, *, ratio: int = 1) -> Tensor:
    """The references' features at the matched places, averaged where patches overlap.

    Args:
        cells: (positions of all references that were searched, C·ratio²), as `cells_of` gives them.
        matches: for a picture of (h, w) positions.
        ratio: by how much these features are finer than those that were compared.

    Returns (C, ratio·h, ratio·w), in the features' dtype.
    """
    height, width = matches.start.shape
    row_lengths = matches.row_lengths()
    total = cells.new_zeros((height + PATCH - 1, width + PATCH - 1, cells.shape[1]))
    count = cells.new_zeros((*total.shape[:2], 1))
    for down in range(PATCH):
        for right in range(PATCH):
            place = matches.start + down * row_lengths + right
            spot = (slice(down, down + height), slice(right, right + width))
            total[*spot] += cells.index_select(0, place.flatten()).view(height, width, -1)
            count[*spot] += 1.0
    total /= count
    return functional.pixel_shuffle(total.permute(2, 0, 1)[None], ratio)[0].contiguous()


def similarity_map(matches: Matches) -> Tensor:
    """(h, w): the similarity around each position, borders continued."""
    inner = matches.similarity[None, None]
    return functional.pad(inner, (1, 1, 1, 1), mode="replicate")[0, 0]
