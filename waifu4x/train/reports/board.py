"""The reports of a run for TensorBoard, beside ``metrics.jsonl``, which has the same numbers."""

from __future__ import annotations

from pathlib import Path

from waifu4x.errors import UsageError
from waifu4x.train.metering import Report

FOLDER_NAME = "tensorboard"


class Board:
    """Writes event files into ``tensorboard/`` of a run's folder.

    Args:
        step: where the run goes on: what was noted after it is hidden.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, run_folder: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--tensorboard needs {error.name}: pip install 'waifu4x[train]'"
            ) from error
        self._writer = SummaryWriter(str(run_folder / FOLDER_NAME), purge_step=step + 1)

    def add(self, report: Report) -> None:
        told = {f"losses/{name}": value for name, value in report.losses.items()}
        told |= {
            "D/real": report.d_real,
            "D/fake": report.d_fake,
            "PSNR in dB": report.psnr_db,
            "learning rate": report.learning_rate,
            "steps per second": report.steps_per_s,
        }
        for name, value in told.items():
            if value is not None:
                self._writer.add_scalar(name, value, report.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
