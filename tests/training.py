"""What tests of training share: small pictures, small recipes, and runs of a few steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from waifu4x.train import machine
from waifu4x.train.data import PairCache
from waifu4x.train.loop import Trainer
from waifu4x.train.metering import METRICS_NAME, Report
from waifu4x.train.objectives.vgg import VGG19Features
from waifu4x.train.recipe import DataOptions, LossOptions, Recipe, StageOptions

torch.set_num_threads(1)

PIXEL = Recipe(
    name="tiny",
    generator={
        "network": "msrresnet",
        "scale": 2,
        "blocks": 1,
        "channels": 8,
        "tail": "direct",
    },
    data=DataOptions(batch=2, patch_px=8),
    stages=(StageOptions(steps=12, learning_rate=5e-3, warmup_steps=3),),
)
"""One stage of 12 steps, without batch normalisation."""

_GAN_LOSSES = LossOptions(
    pixel="mse", pixel_weight=0.5, content={"conv1_2": 0.1}, gan="vanilla", gan_weight=0.01
)
GAN = dataclasses.replace(
    PIXEL,
    stages=(
        StageOptions(name="pixel", steps=4, learning_rate=5e-3, warmup_steps=2),
        StageOptions(
            name="gan",
            steps=6,
            learning_rate=1e-3,
            discriminator_rate=2e-3,
            warmup_steps=0,
            discriminator={"kind": "srgan", "channels": 2, "hidden": 8},
            losses=_GAN_LOSSES,
        ),
    ),
)
"""Four steps by L1, then six by everything."""


def with_losses(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other losses in its last stage."""
    *before, last = recipe.stages
    last = dataclasses.replace(last, losses=dataclasses.replace(last.losses, **changes))
    return dataclasses.replace(recipe, stages=(*before, last))


def with_stage(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with another last stage."""
    *before, last = recipe.stages
    return dataclasses.replace(recipe, stages=(*before, dataclasses.replace(last, **changes)))


def waves(*, seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """Smooth: a network first learns to disturb nothing, then to do better."""
    y, x = np.mgrid[: size[1], : size[0]]
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    planes = [np.sin(x / 3 + phase[c]) * np.cos(y / 4 + phase[c + 3]) for c in range(3)]
    return (np.stack(planes, axis=2) * 100 + 120).astype(np.uint8)


def save_picture(path: Path, *, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(waves(seed=seed, size=size)).save(path)
    return path


def save_three(place: Path) -> Path:
    """A folder of 0.png, 1.png and 2.png, a little larger each; returns it."""
    for number in range(3):
        save_picture(place / f"{number}.png", seed=number, size=(40 + 2 * number, 32))
    return place


def features(layers: Sequence[str]) -> VGG19Features:
    """VGG-19 with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return VGG19Features(layers)


def trainer(cache: PairCache, recipe: Recipe, run_folder: Path, **options: Any) -> Trainer:
    fabric = options.pop("fabric", None)
    if fabric is None:
        fabric = machine.open_fabric(torch.device("cpu"), torch.float32)
    return Trainer(
        *(recipe, [cache]),
        **{"run_folder": run_folder, "fabric": fabric, "open_features": features, **options},
    )


def train(subject: Trainer, **options: Any) -> list[dict[str, float]]:
    """Run it; the losses of all its steps."""
    seen: list[Report] = []
    subject.run(**{"on_report": seen.append, "report_every": 1, **options})
    return [report.losses for report in seen]


def rows(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics."""
    return [json.loads(line) for line in (run_folder / METRICS_NAME).read_text().splitlines()]


def contents(subject: Trainer) -> dict[str, Any]:
    """Everything that is saved, but for the time it took, one tensor or number a key."""

    def flat(value: Any, name: str) -> dict[str, Any]:
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        else:
            return {name: value}
        found: dict[str, Any] = {}
        for key, each in items:
            found |= flat(each, f"{name}/{key}")
        return found

    payload = subject.state.payload(subject.recipe)
    timed = ("elapsed_s", "stage_started_s")
    return flat({key: each for key, each in payload.items() if key not in timed}, "")


def assert_equal(one: Trainer, other: Trainer) -> None:
    """Bit for bit: weights, buffers, averages, both optimizers, random numbers, history."""
    mine, wanted = contents(one), contents(other)
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.equal(mine[name], value) if torch.is_tensor(value) else mine[name] == value
        assert same, name
