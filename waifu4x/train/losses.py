"""Losses are values: modules ``(prediction, target) -> scalar``.

Both are (N, 3, H, W) float32 in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CharbonnierLoss(nn.Module):
    """Mean of sqrt(d² + ε²), a smooth L1 (Lai et al., https://arxiv.org/abs/1704.03915)."""

    def __init__(self, epsilon: float = 1e-3) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.sqrt((prediction - target) ** 2 + self.epsilon**2).mean()


PIXEL_LOSSES: dict[str, type[nn.Module]] = {
    "l1": nn.L1Loss,
    "mse": nn.MSELoss,
    "charbonnier": CharbonnierLoss,
}
