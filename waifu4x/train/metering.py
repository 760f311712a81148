"""What is measured while a run goes on: means of what its steps said, and one report of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line about a running training: means since the last report."""

    step: int
    stage: str
    progress: float
    elapsed_s: float
    learning_rate: float
    steps_per_s: float
    data_share: float
    """Of the time: how much was spent waiting for a batch."""
    losses: dict[str, float]
    """Each term times its weight; "d" is the discriminator's."""
    d_real: float | None = None
    """How real the discriminator takes true pictures for, 0..1."""
    d_fake: float | None = None
    psnr_db: float | None = None


@dataclass(kw_only=True)
class Means:
    """Sums of what was seen since the last report, kept on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    waited_s: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def add(self, terms: Mapping[str, Tensor], waited_s: float) -> None:
        self.steps += 1
        self.waited_s += waited_s
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def values(self) -> dict[str, Tensor]:
        return {name: value / self.steps for name, value in self.sums.items()}


def log(report: Report, run_folder: Path) -> None:
    """Add a line to the run's ``metrics.jsonl``. Raises OSError as it comes."""
    line = {key: value for key, value in asdict(report).items() if value is not None}
    path = run_folder / METRICS_NAME
    # One that was cut off when a disk was full, or a process killed, must not spoil the next.
    torn = path.is_file() and not _ends_a_line(path)
    with path.open("a", encoding="utf-8") as lines:
        lines.write("\n" * torn + json.dumps(line) + "\n")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"
