"""Which of millions of vectors are most like each of some, without sorting them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK = 32_768


def find_neighbours(
    vectors: Tensor,
    anchors: Tensor,
    *,
    count: int,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """(n, d) and (K, d) -> (K, count) int64: the vectors of the largest products with each anchor.

    Whatever the sign, and the largest first. n is `count` at least. Memory: some K times 32,768
    numbers, whatever n.
    """
    best = vectors.new_empty(len(anchors), 0)
    places = torch.empty(len(anchors), 0, dtype=torch.long)
    for first in range(0, len(vectors), _CHUNK):
        on_progress(first / len(vectors))
        products = (anchors @ vectors[first : first + _CHUNK].T).abs_()
        found = torch.arange(first, first + products.shape[1]).expand_as(products)
        if best.shape[1] == count:
            products, found = _above(products, found, best[:, -1:])
        best, places = torch.cat((best, products), 1), torch.cat((places, found), 1)
        best, order = best.topk(min(count, best.shape[1]))
        places = places.gather(1, order)
    return places


def _above(products: Tensor, found: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Only what is above the least that counts, moved to the left; minus infinity beside it."""
    rows, columns = (products > least).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(products))
    begun = counts.cumsum(0) - counts
    narrow = torch.arange(len(rows)) - begun[rows]
    width = int(counts.max())
    kept = products.new_full((len(products), width), -torch.inf)
    where = found.new_zeros(len(products), width)
    kept[rows, narrow] = products[rows, columns]
    where[rows, narrow] = found[rows, columns]
    return kept, where
