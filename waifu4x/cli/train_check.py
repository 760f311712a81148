"""``waifu4x train check``: whether folders are fit to train on, and what a recipe makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import typer
from rich.progress import BarColumn, Progress, TextColumn

from waifu4x import pictures
from waifu4x.cli.console import printable, say, stderr
from waifu4x.pictures import Picture
from waifu4x.train import doctor, recipe
from waifu4x.train.degrading import degrade
from waifu4x.train.doctor import ADVICE, Diagnosis

_MOST_NAMED = 5


def run(folders: tuple[Path, ...], *, recipe_name: str, seed: int, out: Path | None) -> None:
    """Examine the folders, and draw what the recipe's degradation makes of six of their crops.

    Raises:
        TrainError: a folder is missing, or there is no picture to draw.
        UsageError: an unknown recipe.
        PictureWriteError: the drawing cannot be written.
    """
    chosen = recipe.load(recipe_name)
    columns = (TextColumn("examining"), BarColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=None)
        diagnosis = doctor.examine(
            folders,
            scale=chosen.scale,
            patch_px=chosen.data.patch_px,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _tell(diagnosis)
    data = chosen.data
    degradation = degrade.build(data.degradation, scale=chosen.scale, options=data.degrade)
    target = Path("train-check.png") if out is None else out
    sheet = doctor.preview(folders, degradation, seed=seed)
    pictures.write(Picture(pixels=sheet), target)
    say(f"wrote {target}: crops, and what '{data.degradation}' makes of them")


def _tell(diagnosis: Diagnosis) -> None:
    typer.echo(
        f"{diagnosis.pictures_total} pictures, {diagnosis.pictures_usable} of them usable: "
        f"{diagnosis.megapixels:.1f} megapixels, {diagnosis.crops:,} crops"
    )
    counts = Counter(finding.kind for finding in diagnosis.findings)
    for kind, what in ADVICE.items():
        if not counts[kind]:
            continue
        typer.echo(f"{kind}: {counts[kind]} ({what})")
        for finding in diagnosis.of(kind)[:_MOST_NAMED]:
            typer.echo(f"  {printable(f'{finding.path}: {finding.says}')}")
        if counts[kind] > _MOST_NAMED:
            typer.echo(f"  and {counts[kind] - _MOST_NAMED} more")
    for sentence in diagnosis.advice:
        typer.echo(f"advice: {sentence}")
