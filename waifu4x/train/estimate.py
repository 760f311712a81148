"""How long a run will take, and what it needs, from a few of its steps."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from waifu4x.train.loop import Trainer

_WARM_STEPS = 2
_TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a whole run."""

    seconds: dict[str, float]
    """Of each stage, for all of its steps."""
    steps_per_s: dict[str, float]
    peak_bytes: int | None
    """Of the device's memory, or of the machine's for a CPU; None where it does not tell."""

    def __str__(self) -> str:
        total_h = sum(self.seconds.values()) / 3600.0
        stages = ", ".join(
            f"{name} {spent / 3600.0:.2f} h at {rate:.2f} steps/s ({spent * rate:.0f} steps)"
            for (name, spent), rate in zip(
                self.seconds.items(), self.steps_per_s.values(), strict=True
            )
        )
        memory = "" if self.peak_bytes is None else f"; {self.peak_bytes / 2**30:.1f} GiB of memory"
        return f"about {total_h:.2f} h: {stages}{memory}"


def estimate(trainer: Trainer) -> Estimate:
    """Time a few steps of each stage that is still to come; the run's folder is not touched.

    Validation, previews and saving are not in it. The trainer is of no use afterwards: its state
    has moved on. Raises TrainError when a loss is not finite.
    """
    device = trainer.fabric.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds: dict[str, float] = {}
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer.run_folder = Path(folder)
        while True:
            stage, left = trainer.stage, 1.0 - trainer.stage_progress
            trainer.take_steps(_WARM_STEPS)
            began = time.perf_counter()
            trainer.take_steps(_TIMED_STEPS)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates[stage.name] = _TIMED_STEPS / (time.perf_counter() - began)
            if trainer.pace.minutes is None:
                seconds[stage.name] = left * stage.steps / rates[stage.name]
            else:
                seconds[stage.name] = left * trainer.pace.length_s(stage)
            if trainer.is_last_stage:
                break
            trainer.next_stage()
    return Estimate(seconds=seconds, steps_per_s=rates, peak_bytes=_peak_bytes(device))


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
