"""What the user asked ``waifu4x train`` for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from waifu4x.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything the user asked for."""

    folders: tuple[Path, ...]
    name: str
    recipe: Recipe
    validation: Path | None
    lr_folder: Path | None
    minutes: float | None
    initial: str | None
    vgg: Path | None
    ranker: Path | None
    niqe: Path | None
    labels: Path | None
    run_folder: Path
    licence: str
    seed: int
    device: str
    precision: str
    workers: int | None
    compile: bool
    accumulate: int
    patience: int
    validate_every: int
    report_every: int
    tensorboard: bool
    references: Path | None = None
