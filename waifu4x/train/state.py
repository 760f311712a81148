"""What a training run is made of, and how it survives being killed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from waifu4x import files
from waifu4x.errors import TrainError
from waifu4x.train.data import CropSampler
from waifu4x.train.recipe import Recipe

_FORMAT = 1


def ema_decay_at(step: int, limit: float) -> float:
    """The decay of the moving average at `step`: ramped, so that the random start is forgotten."""
    return min(limit, (1.0 + step) / (10.0 + step))


@dataclass(kw_only=True)
class TrainState:
    """Everything that changes while training; `save` and `load` carry all of it.

    `ema` is the moving average of `network`: it is what is measured and what is shipped.
    """

    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: CropSampler
    step: int = 0
    elapsed_s: float = 0.0

    @classmethod
    def start(cls, network: nn.Module, sampler: CropSampler, recipe: Recipe) -> TrainState:
        """The state before the first step."""
        schedule = recipe.schedule
        return cls(
            network=network,
            ema=copy.deepcopy(network).requires_grad_(False).eval(),
            optimizer=torch.optim.Adam(
                network.parameters(), lr=schedule.learning_rate, betas=schedule.betas, fused=True
            ),
            sampler=sampler,
        )

    @torch.no_grad()
    def average(self, limit: float) -> None:
        """Move the averaged network one step towards the trained one, buffers included."""
        decay = ema_decay_at(self.step, limit)
        ema, now = self.ema.state_dict(), self.network.state_dict()
        for name, value in ema.items():
            if value.is_floating_point():
                value.lerp_(now[name], 1.0 - decay)
            else:
                value.copy_(now[name])

    def save(self, path: Path, recipe: Recipe) -> None:
        """Write the whole state to `path`, atomically."""
        payload: dict[str, Any] = {
            "format": _FORMAT,
            "recipe": recipe.facts(),
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state,
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        with files.atomic_path(path) as temporary:
            torch.save(payload, temporary)

    def load(self, path: Path, recipe: Recipe) -> None:
        """Take over what `save` wrote.

        Raises:
            TrainError: the file is damaged, or belongs to another recipe.
        """
        try:
            payload = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises six unrelated types for damaged files
            raise TrainError(_damaged(path, error)) from error
        if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
            raise TrainError(f"{path} is no saved training; remove it to start anew")
        changed = _differences(payload.get("recipe"), recipe.facts())
        if changed:
            raise TrainError(
                f"{path} was made by another recipe ({', '.join(changed)} differ); "
                f"choose another --name, or remove that file to start anew"
            )
        try:
            self.network.load_state_dict(payload["network"])
            self.ema.load_state_dict(payload["ema"])
            self.optimizer.load_state_dict(payload["optimizer"])
            self.sampler.state = payload["sampler"]
            torch.set_rng_state(payload["torch_rng"])
            self.step = int(payload["step"])
            self.elapsed_s = float(payload["elapsed_s"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path} is damaged ({reason}); remove it to start anew"


def _differences(old: Any, new: dict[str, Any]) -> list[str]:
    """The sections in which two recipes' facts differ; the schedule's length may be changed."""

    def comparable(facts: dict[str, Any]) -> dict[str, Any]:
        schedule = {k: v for k, v in facts["schedule"].items() if k not in ("steps", "minutes")}
        return {**facts, "schedule": schedule}

    if not isinstance(old, dict) or not isinstance(old.get("schedule"), dict):
        return list(new)
    before, after = comparable(old), comparable(new)
    return [key for key in after if before.get(key) != after[key]]


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 in [0, 1], channels last."""
    return images.float().div_(255.0).contiguous(memory_format=torch.channels_last)
