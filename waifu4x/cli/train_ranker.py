"""The work of ``waifu4x train --recipe ranker``: patches of several systems, and their judge."""

from __future__ import annotations

import json
import platform
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from waifu4x import devices, files, weights
from waifu4x.bench.niqe import load_prior
from waifu4x.cli.console import say, stderr
from waifu4x.cli.train_signals import signals_between_steps
from waifu4x.errors import OutOfMemoryError, TrainError, UsageError
from waifu4x.train import systems, tables
from waifu4x.train.ranked import ranker, ranking
from waifu4x.version import __version__

if TYPE_CHECKING:
    from waifu4x.cli.train_request import Request
    from waifu4x.train.metering import Report
    from waifu4x.train.ranked.ranker_loop import RankerTrainer
    from waifu4x.train.ranked.ranking import Patches

_PRIOR = "niqe"


def run(request: Request, *, estimate: bool) -> None:
    """Make the patches, train the ranker (or go on with either), and write it and its facts.

    Raises:
        UsageError: flags that a ranker has no use for, or options that make no sense.
        TrainError: no usable data, a damaged or foreign checkpoint, or a loss that is not finite.
        WeightsError: a system, or the model of NIQE, cannot be had.
        OutOfMemoryError: the device cannot hold a batch.
    """
    _check(request, estimate=estimate)
    try:
        from waifu4x.train import machine
        from waifu4x.train.ranked import ranker_loop
    except ModuleNotFoundError as error:
        raise UsageError(f"training needs {error.name}: pip install 'waifu4x[train]'") from error
    device = devices.pick(request.device)
    fabric = machine.open_fabric(device, devices.pick_dtype(request.precision, device))
    if fabric.world_size > 1:
        raise UsageError("a ranker is trained by one process: start it without torchrun or srun")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        try:
            patches = _patches(request, bar)
            trainer = ranker_loop.RankerTrainer(
                request.recipe,
                patches,
                run_folder=request.run_folder,
                fabric=fabric,
                seed=request.seed,
                minutes=request.minutes,
            )
            _tell_start(trainer)
            asked = _train(request, trainer, bar)
        except OSError as error:
            raise TrainError(
                f"{request.run_folder} cannot be written ({error.strerror}): what was saved is kept"
            ) from error
    if asked:
        say(f"step {trainer.state.step} is saved: run the same command again to go on")
        signal.raise_signal(asked)
    _finish(request, trainer)


def _check(request: Request, *, estimate: bool) -> None:
    """Raises UsageError for flags that would do nothing here, and for unknown systems."""
    useless = {
        "--estimate": estimate,
        "--val": request.validation is not None,
        "--lr": request.lr_folder is not None,
        "--init": request.initial is not None,
        "--accumulate": request.accumulate > 1,
        "--compile": request.compile,
        "--patience": request.patience > 0,
        "--tensorboard": request.tensorboard,
        "--degradation": request.recipe.data.degradation != "bicubic",
    }
    for flag, given in useless.items():
        if given:
            raise UsageError(
                f"a ranker learns from bicubic pairs and holds out pictures by itself "
                f"(ranking.held_out): leave out {flag}"
            )
    assert request.recipe.ranking is not None, "only recipes of rankers come here"
    systems.check_systems(request.recipe.ranking.systems)


def _patches(request: Request, bar: Progress) -> Patches:
    recipe = request.recipe
    assert recipe.ranking is not None, "only recipes of rankers come here"
    prior = load_prior(weights.resolve(_PRIOR).path if request.niqe is None else request.niqe)
    task = bar.add_task("making patches", total=None)
    names = recipe.ranking.systems
    plan = ranking.Plan(
        systems=systems.open_systems(names, scale=recipe.scale, device=request.device),
        options=recipe.ranking,
        scale=recipe.scale,
        patch_px=ranker.patch_px_of(recipe),
        prior=prior,
    )
    patches = ranking.make(
        request.folders,
        request.run_folder / ranking.FOLDER,
        plan=plan,
        on_progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.remove_task(task)
    for reason, count in Counter(s.rsplit(": ", 1)[-1] for s in patches.skipped).items():
        say(f"skipped {count}: {reason}")
    return patches


def _tell_start(trainer: RankerTrainer) -> None:
    pairs, recipe = trainer.pairs, trainer.recipe
    for note in trainer.notes:
        say(f"note: {note}")
    start = "going on at" if trainer.state.step else "starting at"
    say(
        f"{len(trainer.patches.places)} places of {', '.join(trainer.patches.systems)} at "
        f"x{recipe.scale}: {len(pairs.learned)} pairs to learn from, {len(pairs.held_out)} held "
        f"out; on {trainer.fabric.device}; {start} step {trainer.state.step}"
    )


def _train(request: Request, trainer: RankerTrainer, bar: Progress) -> int:
    task = bar.add_task("training", total=1.0)

    def show(report: Report) -> None:
        bar.update(task, completed=report.progress)
        say(_line(report))

    try:
        with signals_between_steps() as caught:
            return trainer.run(
                on_report=show,
                report_every=request.report_every,
                validate_every=request.validate_every,
                stop=lambda: caught[0] if caught else 0,
            )
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{trainer.fabric.device} cannot hold a batch: lower --batch or --patch"
        ) from error


def _line(report: Report) -> str:
    held = report.losses.get("held out")
    return (
        f"{report.progress:6.1%}  step {report.step}  rank {report.losses['rank']:.4f}  in order "
        f"{report.losses['order']:.1%}  rate {report.learning_rate:.2e}  "
        f"{report.steps_per_s:.2f} steps/s, {report.data_share:.0%} of it data"
        + ("" if held is None else f"  held out in order {held:.1%}")
    )


def _finish(request: Request, trainer: RankerTrainer) -> None:
    facts = _facts(request, trainer)
    target = request.run_folder / f"{request.name}.safetensors"
    trainer.export(target, metadata=facts)
    files.write_bytes(target.with_suffix(".json"), json.dumps(facts, indent=2).encode())
    recipe = tables.to_toml(request.recipe.facts())
    files.write_bytes(request.run_folder / "recipe.toml", recipe.encode())
    say(f"wrote {target}; the NIQE of its patches is in {_labels(request)}")
    say(f"use it with: waifu4x train photos/ --recipe ranksrgan --ranker {target}")


def _labels(request: Request) -> Path:
    return request.run_folder / ranking.FOLDER / ranking.LABELS_NAME


def _facts(request: Request, trainer: RankerTrainer) -> dict[str, str]:
    """How the ranker came to be, as plain text per fact; they travel inside its file."""
    folders = ", ".join(folder.name for folder in request.folders)
    pictures = len({place.picture for place in trainer.patches.places})
    held = trainer.held_out_order()
    told = {
        "name": request.name,
        "licence": request.licence,
        "trained_on": f"{len(trainer.pairs.learned)} pairs of patches of {pictures} pictures of "
        f"{folders}, by {', '.join(trainer.patches.systems)}",
        "trained_by": f"waifu4x {__version__}",
        "machine": f"{platform.machine()}, {devices.describe(trainer.fabric.device)}",
        "steps": str(trainer.state.step),
        "minutes": f"{trainer.state.elapsed_s / 60.0:.1f}",
        "recipe": json.dumps(trainer.recipe.facts(), sort_keys=True),
    }
    return told if held is None else {**told, "held_out_in_order": f"{held:.3f}"}
