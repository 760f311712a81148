"""What a run shows of itself: fixed pictures as it goes on, and at the end a film and a report."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from waifu4x import files
from waifu4x.errors import TrainError
from waifu4x.train import tables
from waifu4x.train.loop import Trainer
from waifu4x.train.references.referencing import reference_for
from waifu4x.train.reports import previews, report
from waifu4x.train.reports.previews import Sample
from waifu4x.train.validation import ValidationPair, enlarge, shown

_MOST_SAMPLES = 3
_SIDE_PX = 64


def show_samples(trainer: Trainer) -> None:
    """Write what the averaged generator makes of a few fixed crops, and the recipe, once.

    Crops are those of the run's earlier previews, so that all are of the same pictures however it
    goes on; at first of the validation pictures, or else of the first that are trained on.
    """
    if not trainer.fabric.is_global_zero:
        return
    recipe_path = trainer.run_folder / report.RECIPE_NAME
    if not recipe_path.is_file():
        facts = trainer.recipe.facts()
        facts.pop("name")
        files.write_bytes(recipe_path, tables.to_toml(facts).encode())
    samples = [
        Sample(
            name=pair.name,
            lr=pair.lr,
            output=enlarge(
                trainer.state.ema,
                pair.lr,
                scale=pair.scale,
                fabric=trainer.fabric,
                reference=reference_for(pair.hr, trainer.recipe.data.reference),
            ),
            truth=pair.hr,
        )
        for pair in _earlier(trainer.run_folder)
        or shown(trainer.validation, trainer.caches[0], count=_MOST_SAMPLES, side_px=_SIDE_PX)
    ]
    previews.save_preview(trainer.run_folder, trainer.state.step, samples)


def _earlier(run_folder: Path) -> list[ValidationPair]:
    """What the first preview that can be read is of; nothing where there is none."""
    for path in previews.list_previews(run_folder).values():
        with suppress(TrainError):  # the report will name it
            samples = previews.load_preview(path)
            return [
                ValidationPair(name=each.name, scale=each.scale, lr=each.lr, hr=each.truth)
                for each in samples
                if each.truth is not None
            ]
    return []


def write_report(trainer: Trainer) -> Path:
    """The learning path as a film, and the page about the whole run; returns the page.

    Raises:
        TrainError: they cannot be made of what is in the run's folder.
    """
    folder = trainer.run_folder
    if len(previews.list_previews(folder)) > 1:
        previews.write_path(previews.learning_path(folder), folder)
    try:
        return report.write(folder)
    except OSError as error:
        raise TrainError(f"{folder / report.NAME} cannot be written: {error.strerror}") from error
