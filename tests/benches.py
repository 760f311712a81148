"""Measuring as tests do it: on the CPU in fp32, with pictures that cost next to nothing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toys import random_model

from waifu4x.bench import peaks, run
from waifu4x.bench.measures import Measure, open_measures
from waifu4x.bench.results import Column, PictureResult, Result
from waifu4x.bench.run import Plan
from waifu4x.bench.sets import open_set
from waifu4x.bench.speed.speed_picture import natural_picture
from waifu4x.model_files import checkpoints


@pytest.fixture(autouse=True)
def unswept(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that import it: collecting garbage before each model takes longer than all
    that they measure."""
    monkeypatch.setattr(peaks, "release_freed", lambda: None)


drawn = functools.cache(natural_picture)
"""Drawing it takes longer than all else that most tests of speed do."""


def plan(
    models: Sequence[str | Path], *folders: Path, metrics: Sequence[str] = ("psnr",), **options: Any
) -> Plan:
    """A plan for folders; `options` are those of `Plan`, x2 unless they say otherwise."""
    return Plan(
        models=tuple(models),
        sets=tuple(open_set(folder) for folder in folders),
        **{
            "scales": (2,),
            "measures": open_measures(metrics),
            "device": "cpu",
            "precision": "fp32",
            **options,
        },
    )


def measure(
    model: str | Path,
    folder: Path,
    *,
    scale: int,
    protocol: str = "rgb8",
    metrics: Sequence[str] = ("psnr",),
    **options: Any,
) -> Result:
    """One model on one folder at one scale."""
    wanted = plan([model], folder, metrics=metrics, scales=(scale,), protocol=protocol, **options)
    (result,) = run.run(wanted).results
    return result


def values(result: Result, key: str = "psnr") -> dict[str, float | None]:
    """One measure of every picture, by the pictures' names."""
    return {picture.name: picture.values[key] for picture in result.pictures}


def three_pictures(folder: Path) -> Path:
    """Three files of 50×45 px: colour, gray, and gray in 16 bit; no multiple of any scale."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:45, :50]
    wave = (np.sin(x / 3.0)[..., None] * np.cos(y / 4.0)[..., None] + [0.0, 0.3, 0.6]) * 70 + 110
    noise = np.random.default_rng(0).normal(0, 4, wave.shape)
    rgb = (wave + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray(rgb[..., 0]).save(folder / "gray.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "gray16.png")
    return folder


def saved_model(path: Path, config: Any, **metadata: str) -> Path:
    """A network of random weights as a file."""
    checkpoints.save(random_model(config).network, path, metadata=metadata)
    return path


def a_measure(key: str = "psnr", **options: Any) -> Measure:
    """One that gives 1.0 to everything, unless `options` of `Measure` say otherwise."""
    column = Column(key=key, title=key.upper(), digits=2)
    return Measure(**{"column": column, "of": lambda pair: 1.0, "needs_colour": False, **options})


def made_up(model: str, *pictures: dict[str, float | None], **facts: Any) -> Result:
    """A result of nothing: one megapixel a picture, half a second each."""
    return Result(
        model=model,
        pictures=tuple(
            PictureResult(name=f"p{number}", values=values, time_s=0.5, megapixels=1.0)
            for number, values in enumerate(pictures)
        ),
        **{
            "dataset": "Set5",
            "scale": 2,
            "protocol": "rgb8",
            "device": "cpu",
            "precision": "fp32",
            "engine": "numpy",
            **facts,
        },
    )
