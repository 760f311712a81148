"""When a stage is over, and how the learning rate goes over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waifu4x.train.recipe import Recipe, StageOptions

_LONGEST_WARMUP = 0.25


@dataclass(frozen=True)
class Pace:
    """How much of a run is done: counted in the recipe's steps, or by the clock.

    Attributes:
        minutes: for how long it trains in all; each stage gets the share of it that it has of the
            recipe's steps. None counts steps.
    """

    recipe: Recipe
    minutes: float | None = None

    def progress(self, *, step: int, elapsed_s: float) -> float:
        """Of the whole run, 0..1."""
        if self.minutes is not None:
            return min(1.0, elapsed_s / (60.0 * self.minutes))
        return min(1.0, step / self.recipe.steps)

    def stage_progress(self, stage: StageOptions, *, step: int, elapsed_s: float) -> float:
        """Of a stage, 0..1, when it was trained by so many steps in so many seconds."""
        if self.minutes is not None:
            return min(1.0, elapsed_s / self.length_s(stage))
        return min(1.0, step / stage.steps)

    def length_s(self, stage: StageOptions) -> float:
        """Of a stage, by the clock."""
        assert self.minutes is not None, "a run that counts steps has no length in seconds"
        return 60.0 * self.minutes * stage.steps / self.recipe.steps


def is_stalled(history: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` measurements brought nothing better than those before did.

    Never with a patience of 0.
    """
    if not 0 < patience < len(history):
        return False
    return max(history[-patience:]) <= max(history[:-patience])


def rate_at(stage: StageOptions, *, step: int, progress: float) -> float:
    """The share of the learning rate at a step of the stage, `progress` (0..1) of it done.

    A warm-up is over after `warmup_steps`, and at the latest after a quarter of the stage, however
    few steps a time limit leaves it.
    """
    warm = min(1.0, max((step + 1) / max(1, stage.warmup_steps), progress / _LONGEST_WARMUP))
    if stage.decay == "constant":
        return warm
    if stage.decay == "steps":
        return warm * stage.decay_factor ** sum(progress >= m for m in stage.milestones)
    low = stage.final_rate / stage.learning_rate
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (low + (1.0 - low) * cosine)
