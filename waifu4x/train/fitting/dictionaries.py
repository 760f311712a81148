"""Dictionaries that describe signals by few of their atoms: K-SVD, and online learning for lasso.

Aharon, Elad, Bruckstein, "K-SVD" (2006), in the approximate form of Rubinstein, Zibulevsky, Elad
(2008); Mairal, Bach, Ponce, Sapiro, "Online Learning for Matrix Factorization and Sparse Coding"
(2010). Atoms and signals are rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from waifu4x.networks.scsr import lasso

# So many signals at a time: their correlations with all atoms stay in the caches' reach.
_CHUNK = 8192
# Keeps two equal atoms from making a system that has no solution.
_RIDGE = 1e-6
_SILENT = 1e-12

Share = Callable[[float], None]


def pursue(signals: Tensor, atoms: Tensor, *, sparsity: int) -> tuple[Tensor, Tensor]:
    """Orthogonal matching pursuit: each signal by `sparsity` atoms.

    Args:
        signals: (n, d). atoms: (K, d), of length 1.

    Returns:
        Which atoms, (n, sparsity) int64, and how much of each, (n, sparsity).
    """
    found = [_pursued(part, atoms, sparsity) for part in signals.split(_CHUNK)]
    supports, amounts = zip(*found, strict=True)
    return torch.cat(supports), torch.cat(amounts)


def _pursued(signals: Tensor, atoms: Tensor, sparsity: int) -> tuple[Tensor, Tensor]:
    support = torch.empty(len(signals), 0, dtype=torch.long, device=signals.device)
    amounts = signals.new_empty(len(signals), 0)
    residual = signals
    for _ in range(sparsity):
        picked = (residual @ atoms.T).abs_().argmax(1, keepdim=True)
        support = torch.cat((support, picked), 1)
        chosen = atoms[support]
        alike = chosen @ chosen.mT
        alike.diagonal(dim1=1, dim2=2).add_(_RIDGE)
        wanted = chosen @ signals[..., None]
        amounts = torch.linalg.solve(alike, wanted)[..., 0]
        residual = signals - (amounts[:, None] @ chosen)[:, 0]
    return support, amounts


def learn_by_ksvd(
    signals: Tensor,
    *,
    count: int,
    sparsity: int,
    rounds: int,
    generator: torch.Generator,
    on_progress: Share = lambda share: None,
) -> Tensor:
    """`count` atoms of length 1, (count, d), of which `sparsity` describe each signal well.

    signals: (n, d), n at least `count`. Equal arguments give equal atoms. An atom that nothing
    uses becomes the signal that is described worst.
    """
    lengths = signals.norm(dim=1)
    loud = signals[lengths > _SILENT]
    start = torch.randperm(len(loud), generator=generator)[:count]
    atoms = torch.nn.functional.normalize(loud[start], dim=1)
    for number in range(rounds):
        support, amounts = pursue(loud, atoms, sparsity=sparsity)
        _improve(loud, atoms, support, amounts)
        on_progress((number + 1) / rounds)
    return atoms


def _improve(signals: Tensor, atoms: Tensor, support: Tensor, amounts: Tensor) -> None:
    """Each atom in turn becomes what its signals have in common beside the other atoms."""
    residual = signals - (amounts[:, None] @ atoms[support])[:, 0]
    sparsity = support.shape[1]
    order = support.flatten().argsort(stable=True)
    counts = torch.bincount(support.flatten(), minlength=len(atoms))
    flat = amounts.flatten()
    unused: list[int] = []
    for number, places in enumerate(order.split(counts.tolist())):
        if len(places) == 0:
            unused.append(number)
            continue
        users = places // sparsity
        amount = flat[places]
        # What would be left of these signals without this atom.
        left = residual[users] + amount[:, None] * atoms[number]
        common = amount @ left
        length = common.norm()
        if length > _SILENT:
            atoms[number] = common / length
        flat[places] = amount = left @ atoms[number]
        residual[users] = left - amount[:, None] * atoms[number]
    if unused:
        worst = residual.norm(dim=1).topk(len(unused)).indices
        atoms[unused] = torch.nn.functional.normalize(signals[worst], dim=1)


def learn_by_lasso(
    signals: Tensor,
    *,
    count: int,
    penalty: float,
    steps: int,
    rounds: int,
    batch: int,
    generator: torch.Generator,
    on_progress: Share = lambda share: None,
) -> Tensor:
    """`count` atoms, (count, d), of length 1 at most, for ½|signal - Σ|² + penalty·Σ|amounts|.

    signals: (n, d), n at least `count`; `rounds` times all of them are coded, `batch` at a time, by
    `steps` steps. Equal arguments give equal atoms.
    """
    start = torch.randperm(len(signals), generator=generator)[:count]
    atoms = torch.nn.functional.normalize(signals[start], dim=1)
    among = signals.new_zeros(count, count)
    towards = signals.new_zeros(count, signals.shape[1])
    batches = -(-len(signals) // batch)
    for number in range(rounds):
        order = torch.randperm(len(signals), generator=generator)
        for done, places in enumerate(order.split(batch)):
            part = signals[places]
            amounts = lasso(part, atoms, penalty=penalty, steps=steps)
            # What older, worse atoms led to counts for less and less.
            kept = 1.0 - 1.0 / (1 + number * batches + done) ** 0.5
            among = kept * among + amounts.T @ amounts
            towards = kept * towards + amounts.T @ part
            _descend(atoms, among, towards)
            on_progress((number + (done + 1) / batches) / rounds)
    return atoms


def _descend(atoms: Tensor, among: Tensor, towards: Tensor) -> None:
    """One pass of block coordinate descent over the atoms; those that nothing uses stay."""
    uses = among.diagonal()
    floor = 1e-6 * float(uses.max())
    for number in (uses > floor).nonzero().flatten().tolist():
        row = among[number]
        wanted = (towards[number] - row @ atoms) / row[number] + atoms[number]
        atoms[number] = wanted / wanted.norm().clamp(min=1.0)
