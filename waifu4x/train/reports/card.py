"""What a trained model says about itself: the metadata that travel inside its file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping

import torch

from waifu4x import devices
from waifu4x.train import tables
from waifu4x.train.loop import Trainer
from waifu4x.train.recipe import Recipe


def facts(trainer: Trainer, *, name: str, licence: str, data: str, version: str) -> dict[str, str]:
    """How the model came to be, as plain text per fact.

    Everything but `name`, `licence`, `data` (what it was trained on, in words) and `version` (of
    waifu4x) is read from the trainer. ``psnr_db`` is there when validation pictures were given.
    """
    state = trainer.state
    measured = trainer.validate() if trainer.validation else None
    told = {
        "name": name,
        "licence": licence,
        "trained_on": data,
        "trained_by": f"waifu4x {version}, torch {torch.__version__}",
        "machine": f"{platform.machine()}, {devices.describe(trainer.fabric.device)}",
        "precision": trainer.precision,
        "steps": str(state.step),
        "minutes": f"{state.elapsed_s / 60.0:.1f}",
        "architecture": str(trainer.recipe.generator["network"]),
        "scale": str(trainer.recipe.scale),
        "scales": _scales(trainer.recipe),
        "recipe": json.dumps(trainer.recipe.facts(), sort_keys=True),
    }
    return told if measured is None else {**told, "psnr_db": f"{measured:.3f}"}


def _scales(recipe: Recipe) -> str:
    if recipe.data.from_scale is not None:
        return f"{recipe.data.from_scale:g} to {recipe.scale}"
    return ",".join(map(str, recipe.data.scales or (recipe.scale,)))


def text(facts: Mapping[str, str]) -> str:
    """The model card, as Markdown: every fact that the file itself holds, and the recipe."""
    recipe = tables.to_toml(json.loads(facts["recipe"]))
    rows = [f"| {key} | {value} |" for key, value in facts.items() if key not in ("name", "recipe")]
    return "\n".join(
        [
            f"# {facts['name']}",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "Use it with `waifu4x upscale picture.png -m " + facts["name"] + "`. The recipe:",
            "",
            "```toml",
            recipe.rstrip(),
            "```",
            "",
        ]
    )
