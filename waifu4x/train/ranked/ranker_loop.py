"""The training of a ranker: pairs of patches, of which it says which one is worse.

A loop of its own beside `loop`, which trains generators: there is one stage, no picture comes out,
and what is measured is how many pairs it puts in the right order. What is saved, and how it goes on
after a kill, is the same (`state`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from waifu4x import files
from waifu4x.errors import TrainError
from waifu4x.train import machine, metering
from waifu4x.train.metering import Means, Report
from waifu4x.train.ranked import ranker
from waifu4x.train.ranked.ranking import Patches
from waifu4x.train.recipe import RankingOptions, Recipe, StageOptions
from waifu4x.train.schedule import Pace, rate_at
from waifu4x.train.state import TrainState, has_checkpoint

_ORPHAN_AGE_S = 60.0
_MOST_ASKED = 512


class Pairs:
    """Pairs of patches of one place, by two systems that differ enough in NIQE.

    Args:
        options: `least_difference` and `held_out` count.
    """

    def __init__(self, patches: Patches, options: RankingOptions) -> None:
        self._data = patches.data
        found: list[tuple[int, int, int]] = []
        signs: list[float] = []
        for number, place in enumerate(patches.places):
            for first in range(len(place.niqe)):
                for second in range(first + 1, len(place.niqe)):
                    apart = place.niqe[first] - place.niqe[second]
                    if abs(apart) > options.least_difference:  # not for NaN
                        found.append((number, first, second))
                        signs.append(1.0 if apart > 0.0 else -1.0)
        pairs = np.array(found, dtype=np.int64).reshape(-1, 3)
        # Whole pictures are held out: patches of one picture overlap.
        names = list(dict.fromkeys(place.picture for place in patches.places))
        count = int(options.held_out * len(names))
        held = {names[(2 * k + 1) * len(names) // (2 * count)] for k in range(count)}
        is_held = np.array([patches.places[p].picture in held for p in pairs[:, 0]], dtype=bool)
        self._signs = np.array(signs, dtype=np.float32)
        self._pairs = pairs
        self.learned: npt.NDArray[np.int64] = np.flatnonzero(~is_held)
        """The pairs that are trained on, by their numbers."""
        self.held_out: npt.NDArray[np.int64] = np.flatnonzero(is_held)

    def drawn(self, step: int, *, seed: int, batch: int) -> npt.NDArray[np.int64]:
        """(batch,) numbers of pairs to learn from, by seed and step alone."""
        random = np.random.default_rng([seed, step])
        return self.learned[random.integers(len(self.learned), size=batch)]

    def load(self, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(2n, 3, p, p) uint8, all first ones and then all second ones; (n, 1) float signs.

        The sign is +1 where the first one has the higher NIQE, and so is the worse one.
        """
        places, first, second = self._pairs[numbers].T
        chosen = [self._data[places[k], first[k]] for k in range(len(numbers))]
        chosen += [self._data[places[k], second[k]] for k in range(len(numbers))]
        images = np.ascontiguousarray(np.stack(chosen).transpose(0, 3, 1, 2))
        return torch.from_numpy(images), torch.from_numpy(self._signs[numbers][:, None])


class RankerTrainer:
    """Trains one ranker by one recipe, in one run folder.

    Whatever interrupts it, `run` can be called again by a new process and goes on from the last
    checkpoint; on a CPU the continued run is guaranteed to equal the uninterrupted one bit for bit
    when its length is counted in steps.

    Args:
        minutes: train for so long, in place of the recipe's steps.

    Raises:
        TrainError: no pair is left to learn from, or the run folder holds a damaged state, or that
            of another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        patches: Patches,
        *,
        run_folder: Path,
        fabric: Fabric,
        seed: int = 0,
        minutes: float | None = None,
    ) -> None:
        assert recipe.ranking is not None, "only recipes of rankers are trained here"
        torch.manual_seed(seed)
        self.recipe, self.options = recipe, recipe.ranking
        self.run_folder, self.fabric = run_folder, fabric
        self.patches = patches
        self.pairs = Pairs(patches, recipe.ranking)
        if not len(self.pairs.learned):
            raise TrainError(
                "no pair of patches is left to learn from: give more pictures, or a lower "
                "--set ranking.held_out"
            )
        self._seed = seed
        self.pace = Pace(recipe, minutes=minutes)
        network: Any = ranker.build_ranker(recipe).to(fabric.device)
        self.state = TrainState.start(
            network.to(memory_format=torch.channels_last),
            recipe,
            make_discriminator=_no_discriminator,
            scaler=machine.scaler_of(fabric),
        )
        self.notes: list[str] = []
        if has_checkpoint(run_folder):
            note = self.state.load(run_folder, recipe, make_discriminator=_no_discriminator)
            self.notes += [] if note is None else [note]
        self._ranker: Any = fabric.setup_module(network.train())
        self._optimizer: Any = fabric.setup_optimizers(self.state.optimizer)
        self._clock = time.monotonic()

    @property
    def stage(self) -> StageOptions:
        return self.recipe.stages[0]

    @property
    def progress(self) -> float:
        """How much of the run is done, 0..1."""
        return self.pace.progress(step=self.state.step, elapsed_s=self.state.elapsed_s)

    def run(
        self,
        *,
        on_report: Callable[[Report], None],
        report_every: int = 100,
        validate_every: int = 1000,
        save_every_s: float = 300.0,
        stop: Callable[[], int] = lambda: 0,
    ) -> int:
        """Train until the recipe is done, or `stop`, asked after every step, gives more than 0.

        Returns:
            0 when it is done; else what `stop` gave.

        Raises:
            TrainError: the loss became NaN or infinite; what was saved before is kept.
            OSError: the run folder cannot be written; what was saved before is kept.
        """
        self.run_folder.mkdir(parents=True, exist_ok=True)
        files.sweep_orphans(self.run_folder, older_than_s=_ORPHAN_AGE_S)
        asked, means, self._clock = stop(), Means(), time.monotonic()
        saved_at_s = self.state.elapsed_s
        while asked == 0 and self.progress < 1.0:
            means.add(*self._step())
            asked = stop()
            validates = self._is_due(validate_every)
            if validates or self._is_due(report_every):
                on_report(self._report(means, validates=validates))
                means = Means()
            if self.state.elapsed_s - saved_at_s > save_every_s:
                self.state.save(self.run_folder, self.recipe)
                saved_at_s = self.state.elapsed_s
        self.state.save(self.run_folder, self.recipe)
        return asked

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.progress >= 1.0

    def _step(self) -> tuple[dict[str, Tensor], float]:
        """One step; its terms, and how long the patches were waited for."""
        began = time.monotonic()
        state, stage = self.state, self.stage
        numbers = self.pairs.drawn(state.step, seed=self._seed, batch=self.recipe.data.batch)
        images, signs = self._placed(numbers)
        waited_s = time.monotonic() - began
        share = rate_at(stage, step=state.step, progress=self.progress)
        for group in state.optimizer.param_groups:
            group["lr"] = group["base_rate"] * share
        self._optimizer.zero_grad(set_to_none=True)
        # Both in one batch, whose statistics then tell nothing of which system is which.
        first, second = self._ranker(images).float().chunk(2)
        loss = ranker.margin_ranking_loss(
            first, second, signs, margin=self.options.margin, limit=self.options.limit
        )
        if not bool(torch.isfinite(loss)):
            raise TrainError(
                f"the loss became NaN or infinite at step {state.step}: lower --learning-rate; "
                f"the last good state is kept in {self.run_folder}"
            )
        self.fabric.backward(loss)
        if stage.clip_norm > 0.0:
            self.fabric.clip_gradients(
                self._ranker, self._optimizer, max_norm=stage.clip_norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        state.step += 1
        state.average(stage.ema_decay)
        now = time.monotonic()
        state.elapsed_s += now - self._clock
        self._clock = now
        return {"rank": loss.detach(), "order": _ordered(first, second, signs)}, waited_s

    def _placed(self, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, signs = self.pairs.load(numbers)
        device = self.fabric.device
        unit = images.to(device).float().div_(255.0)
        return unit.contiguous(memory_format=torch.channels_last), signs.to(device)

    @torch.no_grad()
    def held_out_order(self) -> float | None:
        """Which share of the held-out pairs it puts in the right order; None without any."""
        numbers = self.pairs.held_out
        if not len(numbers):
            return None
        if len(numbers) > _MOST_ASKED:
            numbers = numbers[np.linspace(0, len(numbers) - 1, _MOST_ASKED).astype(np.int64)]
        network, right = self.state.ema.eval(), 0.0
        for start in range(0, len(numbers), self.recipe.data.batch):
            images, signs = self._placed(numbers[start : start + self.recipe.data.batch])
            with self.fabric.autocast():
                first, second = network(images).float().chunk(2)
            right += float(_ordered(first, second, signs)) * len(signs)
        return right / len(numbers)

    def _report(self, means: Means, *, validates: bool) -> Report:
        spent_s = max(time.monotonic() - means.since, 1e-9)
        values = {name: float(value) for name, value in means.values().items()}
        held = self.held_out_order() if validates else None
        if held is not None:
            values["held out"] = held
        report = Report(
            step=self.state.step,
            stage=self.stage.name,
            progress=self.progress,
            elapsed_s=self.state.elapsed_s,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            steps_per_s=means.steps / spent_s,
            data_share=means.waited_s / spent_s,
            losses=values,
        )
        metering.log(report, self.run_folder)
        return report

    def export(self, target: Path, *, metadata: Mapping[str, str]) -> None:
        """Write the averaged ranker as ``.safetensors``, ready for ``--ranker``."""
        network: Any = self.state.ema
        stated = {ranker.PATCH_KEY: str(self.patches.patch_px)}
        ranker.save_ranker(network, target, metadata={**metadata, **stated})


def _ordered(first: Tensor, second: Tensor, signs: Tensor) -> Tensor:
    """Which share of pairs is in the right order; a scalar without gradients."""
    return (((first - second).detach() * signs) > 0.0).float().mean()


def _no_discriminator(stage: StageOptions) -> NoReturn:
    raise AssertionError(f"stage {stage.name} of a ranker has no discriminator")
