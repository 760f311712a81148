"""What a trained model says about itself: the metadata that travel inside its file."""

from __future__ import annotations

import json
import platform

import torch

from waifu4x import devices
from waifu4x.train.loop import Trainer


def facts(trainer: Trainer, *, name: str, licence: str, data: str, version: str) -> dict[str, str]:
    """How the model came to be, as plain text per fact.

    Everything but `name`, `licence`, `data` (what it was trained on, in words) and `version` (of
    waifu4x) is read from the trainer. ``psnr_db`` is there when validation pictures were given.
    """
    state = trainer.state
    measured = trainer.validate() if trainer.has_validation else None
    told = {
        "name": name,
        "licence": licence,
        "trained_on": data,
        "trained_by": f"waifu4x {version}, torch {torch.__version__}",
        "machine": f"{platform.machine()}, {devices.describe(trainer.device)}",
        "precision": trainer.precision,
        "steps": str(state.step),
        "minutes": f"{state.elapsed_s / 60.0:.1f}",
        "recipe": json.dumps(trainer.recipe.facts(), sort_keys=True),
    }
    return told if measured is None else {**told, "psnr_db": f"{measured:.3f}"}
