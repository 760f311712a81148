"""The training loop: one network, one pixel loss, one cosine; resumable at any step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x import checkpoints, devices
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.bench.metrics import psnr_y
from waifu4x.errors import TrainError, UsageError
from waifu4x.folders import find_pictures
from waifu4x.networks import NETWORKS
from waifu4x.resample import imresize
from waifu4x.train.data import CropSampler, PairCache
from waifu4x.train.losses import PIXEL_LOSSES
from waifu4x.train.recipe import Recipe, ScheduleOptions
from waifu4x.train.state import TrainState, to_float

CHECKPOINT_NAME = "last.pth"
METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line about a running training: means since the last report."""

    step: int
    progress: float
    loss: float
    learning_rate: float
    steps_per_s: float
    elapsed_s: float
    psnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationPair:
    """A picture to measure on: (h, w, 3) and (s·h, s·w, 3) uint8."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


def learning_rate_at(schedule: ScheduleOptions, *, step: int, progress: float) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine of `progress` (0..1) to the final rate."""
    low, high = schedule.final_learning_rate, schedule.learning_rate
    cosine = low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return cosine * min(1.0, (step + 1) / max(1, schedule.warmup_steps))


def validation_pairs(folder: Path, scale: int) -> list[ValidationPair]:
    """All pictures of `folder`, cut to a multiple of the scale, with their MATLAB-bicubic LR."""
    pairs = []
    for path in find_pictures(folder):
        hr = cut_to_multiple(as_rgb(read_8bit(path)), scale)
        # `scale` px are cut off every border before comparing: something must be left.
        if min(hr.shape[:2]) <= 2 * scale:
            raise TrainError(f"{path} is too small to validate on at x{scale}")
        pairs.append(ValidationPair(name=path.stem, lr=imresize(hr, 1.0 / scale), hr=hr))
    if not pairs:
        raise TrainError(f"no pictures to validate on in {folder}")
    return pairs


def check(recipe: Recipe) -> None:
    """Find out what is wrong with a recipe before any picture is decoded for it.

    Raises:
        UsageError: an unknown loss or network, or numbers that the network does not take.
    """
    _pixel_loss(recipe)
    _build(recipe)


def training_dtype(wish: str, device: torch.device) -> torch.dtype:
    """As `devices.pick_dtype`, but never fp16, in which the gradient of a mean underflows.

    Raises:
        UsageError: fp16 was asked for, or no such precision.
    """
    dtype = devices.pick_dtype(wish, device)
    if dtype != torch.float16:
        return dtype
    if wish == "fp16":
        raise UsageError("training in fp16 loses its gradients: use --precision auto or fp32")
    return torch.float32


def _pixel_loss(recipe: Recipe) -> nn.Module:
    if recipe.loss.pixel not in PIXEL_LOSSES:
        raise UsageError(
            f"recipe {recipe.name} [loss]: no loss {recipe.loss.pixel!r}: "
            f"known are {', '.join(PIXEL_LOSSES)}"
        )
    return PIXEL_LOSSES[recipe.loss.pixel]()


def _build(recipe: Recipe) -> nn.Module:
    """The network of a recipe, with fresh weights.

    Raises:
        UsageError: an unknown architecture, or numbers that it does not take.
    """
    numbers = dict(recipe.network)
    architecture = numbers.pop("architecture")
    if architecture not in NETWORKS:
        raise UsageError(f"no network {architecture!r}: known are {', '.join(NETWORKS)}")
    entry = NETWORKS[architecture]
    try:
        config = entry.config(**numbers)
        if config.pre_upsampled or config.channels_in != 3:
            raise ValueError("only networks from RGB to larger RGB can be trained")
        return entry.module(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"recipe {recipe.name} [network]: {error}") from error


class Trainer:
    """Trains one network by one recipe, in one run folder.

    Whatever interrupts it, `run` can be called again by a new process and goes on from the last
    checkpoint; on a CPU the continued run is guaranteed to equal the uninterrupted one bit for bit
    when the schedule is counted in steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: PairCache,
        *,
        run_folder: Path,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        validation: Sequence[ValidationPair] = (),
    ) -> None:
        torch.manual_seed(seed)
        self.recipe = recipe
        self.run_folder = run_folder
        self.device = devices.pick(device)
        self.dtype = training_dtype(precision, self.device)
        self._validation = validation
        self._loss = _pixel_loss(recipe)
        self._in_step = False
        network = _build(recipe).to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        sampler = CropSampler(cache, patch_px=recipe.data.patch_px, seed=seed)
        self.state = TrainState.start(network, sampler, recipe)
        if self.checkpoint.is_file():
            self.state.load(self.checkpoint, recipe)

    @property
    def checkpoint(self) -> Path:
        return self.run_folder / CHECKPOINT_NAME

    @property
    def precision(self) -> str:
        return devices.precision_name(self.dtype)

    @property
    def has_validation(self) -> bool:
        return len(self._validation) > 0

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0..1."""
        schedule = self.recipe.schedule
        if schedule.minutes is not None:
            return min(1.0, self.state.elapsed_s / (60.0 * schedule.minutes))
        return min(1.0, self.state.step / schedule.steps)

    def run(
        self,
        *,
        on_report: Callable[[Report], None],
        report_every: int = 100,
        validate_every: int = 1000,
        save_every_s: float = 300.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train until the schedule is done, or `stop`, asked after every step, says so.

        The state is saved at the end, and now and then. When an exception cuts a step in two,
        nothing could go on from there bit for bit: then the last saved state is kept.

        Raises:
            TrainError: the loss became NaN or infinite; the last good checkpoint is kept.
            UsageError: reports or validations every 0 steps.
        """
        if min(report_every, validate_every) < 1:
            raise UsageError("reports and validations come every 1 step or more")
        self.run_folder.mkdir(parents=True, exist_ok=True)
        saved_at, since, losses = time.monotonic(), time.monotonic(), []
        try:
            while self.progress < 1.0 and not stop():
                losses.append(self._step())
                if self.state.step % report_every == 0 or self.progress >= 1.0:
                    spent_s, since = time.monotonic() - since, time.monotonic()
                    rate = len(losses) / max(spent_s, 1e-9)
                    due = self.state.step % validate_every == 0 or self.progress >= 1.0
                    on_report(self._report(losses, rate, validate=due))
                    losses = []
                if time.monotonic() - saved_at > save_every_s:
                    self.state.save(self.checkpoint, self.recipe)
                    saved_at = time.monotonic()
        except BaseException:
            if not self._in_step:
                self.state.save(self.checkpoint, self.recipe)
            raise
        self.state.save(self.checkpoint, self.recipe)

    def _step(self) -> float:
        """One optimizer step; returns the loss."""
        began, self._in_step = time.monotonic(), True
        state, schedule = self.state, self.recipe.schedule
        rate = learning_rate_at(schedule, step=state.step, progress=self.progress)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        lr, hr = (to_float(torch.from_numpy(a)).to(self.device) for a in self._draw())
        with devices.autocast(self.device, self.dtype):
            prediction = state.network(lr)
        loss: Tensor = self._loss(prediction, hr)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainError(
                f"the loss became {value} at step {state.step}; lower the learning rate "
                f"(now {rate:.1e}); a state saved earlier is kept in {self.run_folder}"
            )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(state.network.parameters(), schedule.clip_norm)
        state.optimizer.step()
        state.step += 1
        state.average(schedule.ema_decay)
        state.elapsed_s += time.monotonic() - began
        self._in_step = False
        return value

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        return self.state.sampler.batch(self.recipe.data.batch)

    def _report(self, losses: list[float], rate: float, *, validate: bool) -> Report:
        report = Report(
            step=self.state.step,
            progress=self.progress,
            loss=sum(losses) / len(losses),
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            steps_per_s=rate,
            elapsed_s=self.state.elapsed_s,
            psnr_db=self.validate() if validate and self._validation else None,
        )
        with (self.run_folder / METRICS_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps(report.__dict__) + "\n")
        return report

    @torch.no_grad()
    def validate(self) -> float:
        """Mean Y-PSNR in dB of the averaged network on the validation pictures."""
        values = []
        for pair in self._validation:
            lr = to_float(torch.from_numpy(pair.lr.transpose(2, 0, 1)[None])).to(self.device)
            with devices.autocast(self.device, self.dtype):
                output = self.state.ema(lr)
            rounded = output.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
            sr = rounded[0].permute(1, 2, 0).cpu().numpy()
            values.append(psnr_y(sr, pair.hr, border_px=self.recipe.scale))
        return float(np.mean(values))

    def export(self, target: Path, *, metadata: Mapping[str, str]) -> None:
        """Write the averaged network as ``.safetensors``, ready for `waifu4x upscale -m`."""
        checkpoints.save(self.state.ema, target, metadata=metadata)
