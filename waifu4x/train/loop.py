"""The training loop: stages of a recipe, on one device or many, resumable at any step.

Lightning Fabric places modules on devices, casts, and joins the processes of a distributed run; the
loop itself is plain. Every process draws its own part of the same batch, so that two processes do
what one does with the whole batch. They share one run folder; the first of them writes in it, and
whatever decides how a run goes on (signals, clocks, measurements) is made the same in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from waifu4x import files
from waifu4x.errors import TrainError
from waifu4x.model_files import checkpoints
from waifu4x.train import building, machine, metering
from waifu4x.train.batches import Batches
from waifu4x.train.data import PairCache
from waifu4x.train.feeding import Feed
from waifu4x.train.metering import Means, Report
from waifu4x.train.objectives.balance import BalanceWatch
from waifu4x.train.objectives.objective import Objective, OpenFeatures, OpenRanker
from waifu4x.train.recipe import Recipe, StageOptions
from waifu4x.train.references.reference_batches import open_batches
from waifu4x.train.schedule import Pace, is_stalled, rate_at
from waifu4x.train.state import TrainState, has_checkpoint
from waifu4x.train.updates import NotFiniteError, Terms, Updates
from waifu4x.train.validation import ValidationPair, validate

_MOST_RECOVERIES = 5
_RATE_AFTER_RECOVERY = 0.5
# A state that was saved just before it went wrong may go wrong whatever the rate.
_TRIES_BEFORE_OLDER = 2
_ORPHAN_AGE_S = 60.0


class Trainer:
    """Trains one generator by one recipe, in one run folder.

    Whatever interrupts it, `run` can be called again by a new process and goes on from the last
    checkpoint; on a CPU the continued run is guaranteed to equal the uninterrupted one bit for bit
    when its length is counted in steps.

    Args:
        caches: decoded pictures, one cache for each scale of the recipe.
        minutes: train for so long, in place of the recipe's steps.
        open_features, open_ranker: give VGG-19 and a ranker, where losses ask for them.
        initial: weights to start from, of the same network.
        workers: processes that prepare batches; 0 prepares them in this one.
        accumulate: in how many parts a batch goes through the networks, to need less memory.

    Raises:
        TrainError: the run folder holds a damaged state, or that of another recipe.
        UsageError: `initial` is of another network, or a batch cannot be shared evenly by the
            processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        caches: Sequence[PairCache],
        *,
        run_folder: Path,
        fabric: Fabric,
        open_features: OpenFeatures,
        open_ranker: OpenRanker | None = None,
        seed: int = 0,
        minutes: float | None = None,
        validation: Sequence[ValidationPair] = (),
        initial: Mapping[str, Tensor] | None = None,
        workers: int = 0,
        compile: bool = False,
        accumulate: int = 1,
    ) -> None:
        building.check_share(recipe, fabric.world_size)
        torch.manual_seed(seed)
        self.recipe = recipe
        self.run_folder = run_folder
        self.fabric = fabric
        self.notes: list[str] = []
        self._seed = seed
        self.pace = Pace(recipe, minutes=minutes)
        self.validation = tuple(validation)
        self._judges: Any = {"open_features": open_features, "open_ranker": open_ranker}
        self.caches = tuple(caches)
        generator: Any = building.begin(recipe, initial, open_features).to(fabric.device)
        generator.to(memory_format=torch.channels_last)
        self.state = TrainState.start(
            generator,
            recipe,
            make_discriminator=self._make_discriminator,
            scaler=machine.scaler_of(fabric),
        )
        shown: Any = torch.compile(generator) if compile else generator
        self._generator: Any = fabric.setup_module(shown.train())
        self._feed = Feed(self._make_batches(generator), device=fabric.device, workers=workers)
        self._updates: Updates | None = None
        self._recoveries = 0
        self._failed_step = self._saved_step = -1
        self._in_step = False
        self._clock = time.monotonic()
        if has_checkpoint(run_folder):
            self._restore()
        else:
            self._prepare()
        self.state.parts = max(self.state.parts, accumulate)
        self._saved_at_s = self.state.elapsed_s

    def _make_batches(self, generator: nn.Module) -> Batches:
        config: Any = generator.config
        return open_batches(
            self.caches,
            self.recipe.data,
            luma=config.channels_in == 1,
            enlarged=config.pre_upsampled,
            seed=self._seed,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )

    def _make_discriminator(self, stage: StageOptions) -> nn.Module:
        torch.manual_seed(self._seed + 1)
        patch_px = self.recipe.data.patch_px * self.recipe.scale
        return building.discriminator(stage, patch_px).to(self.fabric.device)

    def _restore(self, *, older: bool = False) -> None:
        note = self.state.load(
            self.run_folder,
            self.recipe,
            make_discriminator=self._make_discriminator,
            older=older,
        )
        if note is not None:
            self.notes.append(note)
        is_last = note is None and not older
        self._saved_step = self.state.step if is_last else -1
        if self._updates is None or not self._updates.fit(self.state):
            self._prepare()

    def _prepare(self) -> None:
        """Everything that the present stage needs beside its state."""
        objective = Objective(self.stage.losses, batch=self.recipe.data.batch, **self._judges)
        self._updates = Updates(
            self.state,
            objective.to(self.fabric.device),
            generator=self._generator,
            fabric=self.fabric,
            stage=self.stage,
            on_note=self.notes.append,
        )
        self._watch = BalanceWatch(
            self.stage, number=self.state.stage, from_start=self.state.stage_step == 0
        )

    @property
    def stage(self) -> StageOptions:
        return self.recipe.stages[self.state.stage]

    @property
    def precision(self) -> str:
        return str(self.fabric.strategy.precision.precision)

    @property
    def progress(self) -> float:
        """How much of the run is done, 0..1."""
        return self.pace.progress(step=self.state.step, elapsed_s=self.state.elapsed_s)

    @property
    def stage_progress(self) -> float:
        """How much of the present stage is done, 0..1."""
        return self.pace.stage_progress(
            self.stage,
            step=self.state.stage_step,
            elapsed_s=self.state.elapsed_s - self.state.stage_started_s,
        )

    def run(
        self,
        *,
        on_report: Callable[[Report], None],
        on_preview: Callable[[Trainer], None] = lambda trainer: None,
        report_every: int = 100,
        validate_every: int = 1000,
        save_every_s: float = 300.0,
        patience: int = 0,
        stop: Callable[[], int] = lambda: 0,
    ) -> int:
        """Train until all stages are done, or `stop`, asked after every step, gives more than 0.

        When an exception cuts a step in two, the state that was saved last is kept.

        Args:
            on_preview: called at the first step, at every validation, and at the end.
            patience: end a stage after so many validations without a better one; 0 never does.

        Returns:
            0 when all stages are done; else the largest that `stop` gave in any process.

        Raises:
            TrainError: the loss stayed NaN or infinite at ever lower rates.
            OSError: the run folder cannot be written; what was saved before is kept.
        """
        self._open_folder(on_preview)
        asked, means, self._clock = 0, Means(), time.monotonic()
        try:
            asked = self._agree(stop())
            while asked == 0 and not self._is_done(patience):
                if self._stage_is_over(patience):
                    self._save()
                    self.next_stage()
                    self._save()
                if (found := self._step()) is None:
                    means = Means()
                    continue
                means.add(*found)
                asked = self._agree(stop())
                validates = self._is_due(validate_every)
                if validates or self._is_due(report_every):
                    on_report(self._report(means, validates=validates, patience=patience))
                    means = Means()
                if validates:
                    on_preview(self)
                if self.state.elapsed_s - self._saved_at_s > save_every_s:
                    self._save()
        except BaseException:
            if not self._in_step:
                with suppress(OSError):  # perhaps that was it, and the disk is full
                    self._write()
            raise
        finally:
            self._feed.close()
        self._save()
        if asked == 0:
            on_preview(self)
        return asked

    def _open_folder(self, preview: Callable[[Trainer], None]) -> None:
        self.run_folder.mkdir(parents=True, exist_ok=True)
        if self.fabric.is_global_zero:
            # What a process that was killed had not finished writing: hundreds of MB each.
            files.sweep_orphans(self.run_folder, older_than_s=_ORPHAN_AGE_S)
        if self.state.step == 0:
            preview(self)
            self._save()

    def _agree(self, asked: int) -> int:
        """Signals reach processes one by one, and their clocks differ: the largest counts."""
        told = machine.largest(self.fabric, [asked, self.state.elapsed_s])
        self.state.elapsed_s = told[1]
        return int(told[0])

    @property
    def is_last_stage(self) -> bool:
        return self.state.stage == len(self.recipe.stages) - 1

    def _stage_is_over(self, patience: int) -> bool:
        return self.stage_progress >= 1.0 or is_stalled(self.state.history, patience)

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.stage_progress >= 1.0

    def _is_done(self, patience: int) -> bool:
        return self.is_last_stage and self._stage_is_over(patience)

    def next_stage(self) -> None:
        """Begin the next stage from the averaged generator, with a fresh discriminator."""
        self._in_step = True  # half entered, it is not to be saved
        number = self.state.stage + 1
        self.state.enter(number, self.recipe, make_discriminator=self._make_discriminator)
        self._prepare()
        self._in_step = False

    def take_steps(self, count: int) -> None:
        """Take so many steps of the present stage, and report nothing.

        Raises TrainError when the loss is not finite.
        """
        for _ in range(count):
            batch, _ = self._feed.take(self.state.step)
            try:
                self._update(batch)
            except NotFiniteError as error:
                raise TrainError(f"{error} at step {self.state.step}") from error

    def _step(self) -> tuple[Terms, float] | None:
        """One step by the next batch, and how long that was waited for; None after a recovery."""
        batch, waited_s = self._feed.take(self.state.step)
        self._in_step = True
        try:
            terms = self._update(batch)
        except NotFiniteError as error:
            self._recover(str(error))
            return None
        now = time.monotonic()
        self.state.elapsed_s += now - self._clock
        self._clock = now
        self._in_step = False
        return terms, waited_s

    def _update(self, batch: Any) -> Terms:
        state, stage = self.state, self.stage
        share = state.rate_factor * rate_at(
            stage, step=state.stage_step, progress=self.stage_progress
        )
        for optimizer in (state.optimizer, state.discriminator_optimizer):
            for group in [] if optimizer is None else optimizer.param_groups:
                group["lr"] = group["base_rate"] * share
        assert self._updates is not None, "every stage is prepared before its first step"
        terms = self._updates.run(batch)
        state.step += 1
        state.average(stage.ema_decay)
        return terms

    def _recover(self, reason: str) -> None:
        """Back to the last good state, with a lower rate."""
        step, factor = self.state.step, self.state.rate_factor * _RATE_AFTER_RECOVERY
        parts = self.state.parts
        self._failed_step = max(self._failed_step, step)
        self._recoveries += 1
        if self._recoveries > _MOST_RECOVERIES:
            raise TrainError(
                f"{reason} at step {step}, {self._recoveries} times over, at ever lower rates; "
                f"lower the learning rate; the last good state is kept in {self.run_folder}"
            )
        self._restore(older=self._recoveries > _TRIES_BEFORE_OLDER)
        self.state.rate_factor, self.state.parts = factor, parts
        self._in_step = False
        self.notes.append(
            f"{reason} at step {step}: back to step {self.state.step}, with {factor:g} of the rate"
        )

    def _save(self) -> None:
        if self.state.step == self._saved_step and self.state.stage_step > 0:
            return  # it would push out the state before it, and gain nothing
        self._write()
        self.fabric.barrier()
        self._saved_step, self._saved_at_s = self.state.step, self.state.elapsed_s
        if self.state.step > self._failed_step:
            self._recoveries = 0

    def _write(self) -> None:
        if self.fabric.is_global_zero:
            self.state.save(self.run_folder, self.recipe)

    def _report(self, means: Means, *, validates: bool, patience: int) -> Report:
        spent_s = max(time.monotonic() - means.since, 1e-9)
        values = {name: machine.mean(self.fabric, v) for name, v in means.values().items()}
        measured = None
        if validates and self.validation:
            # Measured once: batch statistics are each process's own.
            measured = self.validate() if self.fabric.is_global_zero else 0.0
            measured = self.fabric.broadcast(measured)
            self.state.history.append(measured)
        report = Report(
            step=self.state.step,
            stage=self.stage.name,
            progress=self.progress,
            elapsed_s=self.state.elapsed_s,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            steps_per_s=means.steps / spent_s,
            data_share=means.waited_s / spent_s,
            d_real=values.pop("d_real", None),
            d_fake=values.pop("d_fake", None),
            losses=values,
            psnr_db=measured,
        )
        if self.fabric.is_global_zero:
            metering.log(report, self.run_folder)
        stuck = self._watch.see(report)
        if stuck is not None:
            self.notes.append(stuck)
        if measured is not None and is_stalled(self.state.history, patience):
            self.notes.append(
                f"stage {report.stage} ends at step {report.step}: {patience} validations "
                f"without more than {max(self.state.history):.3f} dB"
            )
        return report

    def validate(self) -> float:
        """Mean Y-PSNR in dB of the averaged generator on the validation pictures."""
        return validate(self.state.ema, self.validation, fabric=self.fabric, data=self.recipe.data)

    def take_notes(self) -> list[str]:
        """What was decided since the last call, one sentence each."""
        taken = list(self.notes)
        self.notes.clear()
        return taken

    def export(self, target: Path, *, metadata: Mapping[str, str]) -> None:
        """Write the averaged generator as ``.safetensors``, ready for `waifu4x upscale -m`."""
        checkpoints.save(self.state.ema, target, metadata=metadata)
