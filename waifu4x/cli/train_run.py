"""The work of ``waifu4x train``: data, training, and the model that comes out."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from waifu4x import devices, files, weights
from waifu4x.cli import train_judges, train_references
from waifu4x.cli.console import say, stderr
from waifu4x.cli.train_request import Request
from waifu4x.cli.train_signals import signals_between_steps
from waifu4x.errors import OutOfMemoryError, TrainError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.references.reference_inputs import kind_of
from waifu4x.train import building
from waifu4x.train.data import PairCache, open_cache
from waifu4x.train.objectives import vgg
from waifu4x.train.recipe import Recipe
from waifu4x.train.state import has_checkpoint
from waifu4x.train.validation import ValidationPair, validation_pairs
from waifu4x.version import __version__

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from waifu4x.train.loop import Trainer
    from waifu4x.train.metering import Report
    from waifu4x.train.reports.board import Board


def run(request: Request, *, estimate: bool) -> None:
    """Train (or go on training), and write the model, its card and its report.

    Raises:
        TrainError: no usable data, a damaged or foreign checkpoint, or a loss that is not finite.
        UsageError: an unknown recipe, numbers that the network does not take, or a name that no
            model can have.
        OutOfMemoryError: the device cannot hold a single sample.
    """
    _check(request)
    other = _other_work(request.recipe)
    if other is not None:
        other(request, estimate=estimate)
        return
    try:
        from waifu4x.train import machine
    except ModuleNotFoundError as error:
        raise UsageError(f"training needs {error.name}: pip install 'waifu4x[train]'") from error
    device = devices.pick(request.device)
    fabric = machine.open_fabric(device, devices.pick_dtype(request.precision, device))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    hidden = not (stderr.is_terminal and fabric.is_global_zero)
    with Progress(*columns, console=stderr, transient=True, disable=hidden) as bar:
        # Once for all processes of a machine: those that come later find it done.
        with fabric.rank_zero_first(local=True):
            caches = [_open(request, scale, bar) for scale in _scales(request.recipe)]
            caches = [train_judges.with_labels(request, cache, bar) for cache in caches]
            caches = [train_references.with_references(request, c, bar) for c in caches]
            _check_features(request)
        if fabric.is_global_zero:
            _tell_skipped(caches)
        trainer = _trainer(request, caches, _validation(request), fabric)
        trainer.notes.extend(train_judges.notes(request))
        _tell_start(trainer)
        if estimate:
            from waifu4x.train.estimate import estimate as measure

            _tell(trainer, str(measure(trainer)))
            return
        asked = _shown(request, trainer, bar)
        if asked:
            _tell(
                trainer, f"step {trainer.state.step} is saved: run the same command again to go on"
            )
            signal.raise_signal(asked)
    if fabric.is_global_zero:
        _finish(request, trainer, caches)
    fabric.barrier()  # whoever goes on from here finds the model


def _shown(request: Request, trainer: Trainer, bar: Progress) -> int:
    """Train while the bar, the lines and the board say how; what a signal asked for, or 0."""
    task = bar.add_task("training", total=1.0)
    board = _board(request, trainer)

    def show(report: Report) -> None:
        bar.update(task, completed=report.progress)
        _tell_notes(trainer)
        _tell(trainer, _line(report))
        if board is not None:
            board.add(report)

    try:
        with signals_between_steps() as caught:
            return _train(request, trainer, show, stop=lambda: caught[0] if caught else 0)
    finally:
        if board is not None:
            board.close()
        _tell_notes(trainer)


def _other_work(recipe: Recipe) -> Callable[..., None] | None:
    """What the recipe asks for in the place of training a network that enlarges."""
    if recipe.fit is not None:
        from waifu4x.cli import train_fit

        return train_fit.run
    if recipe.ranking is not None:
        from waifu4x.cli import train_ranker

        return train_ranker.run
    return None


def _tell(trainer: Trainer, text: str) -> None:
    """One line, from the first process alone."""
    if trainer.fabric.is_global_zero:
        say(text)


def _tell_notes(trainer: Trainer) -> None:
    for note in trainer.take_notes():
        _tell(trainer, f"note: {note}")


def _board(request: Request, trainer: Trainer) -> Board | None:
    if not (request.tensorboard and trainer.fabric.is_global_zero):
        return None
    from waifu4x.train.reports.board import Board

    return Board(request.run_folder, step=trainer.state.step)


def _scales(recipe: Recipe) -> tuple[int, ...]:
    return recipe.data.scales or (recipe.scale,)


def _check(request: Request) -> None:
    """Everything that can be refused before pictures are decoded and hours are spent."""
    weights.check_name(request.name)
    building.check(request.recipe)
    train_judges.check(request)
    train_references.check(request)
    begun = has_checkpoint(request.run_folder)
    if not begun and any(request.name == row.name for row in weights.user_rows()):
        raise UsageError(
            f"you have a model called {request.name} already: give another --name, or remove it "
            f"(waifu4x models remove {request.name})"
        )
    if min(request.report_every, request.validate_every) < 1:
        raise UsageError("--report-every and --validate-every are 1 step or more")
    _check_lr(request)
    if request.validation is None:
        return
    held_out = request.validation.resolve()
    for folder in request.folders:
        if held_out.is_relative_to(folder.resolve()):
            raise UsageError(
                f"{request.validation} lies in {folder}, so it would be trained on; move it out"
            )


def _check_lr(request: Request) -> None:
    """Raises UsageError for what does not go together with low-resolution pictures of one's own."""
    if request.lr_folder is None:
        return
    if not request.lr_folder.is_dir():
        raise UsageError(
            f"--lr {request.lr_folder}: no such folder of low-resolution pictures; the learning "
            f"rate is --learning-rate"
        )
    if len(request.folders) > 1:
        raise UsageError("--lr goes with one folder of high-resolution pictures")
    if len(_scales(request.recipe)) > 1 or request.recipe.data.from_scale is not None:
        raise UsageError("--lr has pictures of one scale, and this recipe mixes several: give one")
    if request.recipe.data.degradation != "bicubic":
        raise UsageError(
            f"--lr has the low-resolution pictures, and recipe {request.recipe.name} would make "
            f"them itself: give --degradation bicubic, which leaves them as they are"
        )


def _check_features(request: Request) -> None:
    """Fetch and read VGG-19 now where a later stage needs it, rather than hours from now."""
    layers = {layer for stage in request.recipe.stages for layer in stage.losses.layers()}
    if layers:
        vgg.open_vgg19(sorted(layers), path=request.vgg)


def _validation(request: Request) -> list[ValidationPair]:
    if request.validation is None:
        return []
    return validation_pairs(request.validation, request.recipe.scale)


def _trainer(
    request: Request, caches: list[PairCache], pairs: Sequence[ValidationPair], fabric: Fabric
) -> Trainer:
    from waifu4x.train.loop import Trainer

    def open_features(layers: Sequence[str]) -> vgg.VGG19Features:
        return vgg.open_vgg19(layers, path=request.vgg)

    workers = request.workers
    if workers is None:
        # Between the steps of a CPU, where workers would take its cores from it.
        workers = 0 if fabric.device.type == "cpu" else min(8, os.cpu_count() or 1)
    return Trainer(
        request.recipe,
        caches,
        run_folder=request.run_folder,
        fabric=fabric,
        open_features=open_features,
        open_ranker=partial(train_judges.open_ranker, request),
        seed=request.seed,
        minutes=request.minutes,
        validation=pairs,
        initial=None if request.initial is None else _initial(request.initial),
        workers=workers,
        compile=request.compile,
        accumulate=request.accumulate,
    )


def _initial(name: str) -> dict[str, Tensor]:
    found = weights.resolve(name)
    return checkpoints.load(found.path, name=found.name).network.state_dict()


def _tell_start(trainer: Trainer) -> None:
    start = "going on at" if trainer.state.step else "starting at"
    recipe = trainer.recipe
    stages = " → ".join(stage.name for stage in recipe.stages)
    where = f"in {trainer.precision} on {trainer.fabric.device}"
    _tell_notes(trainer)
    _tell(
        trainer,
        f"{len(trainer.caches[0])} pictures; {recipe.generator['network']} x{recipe.scale}, "
        f"{stages}, {where}; {start} step {trainer.state.step}",
    )


def _train(
    request: Request,
    trainer: Trainer,
    show: Callable[[Report], None],
    *,
    stop: Callable[[], int],
) -> int:
    from waifu4x.train.reports.showing import show_samples

    try:
        return trainer.run(
            on_report=show,
            on_preview=show_samples,
            report_every=request.report_every,
            validate_every=request.validate_every,
            patience=request.patience,
            stop=stop,
        )
    except OSError as error:
        raise TrainError(
            f"{request.run_folder} cannot be written ({error.strerror}): what was saved is kept"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        shared = trainer.fabric.world_size > 1
        cure = "give --accumulate 2" if shared else "lower --patch, or train a smaller network"
        what = "its part of a batch" if shared else "a single sample"
        raise OutOfMemoryError(f"{trainer.fabric.device} cannot hold {what}: {cure}") from error


def _open(request: Request, scale: int, bar: Progress) -> PairCache:
    task = bar.add_task("decoding pictures", total=None)
    cache = open_cache(
        request.folders,
        weights.downloads_folder().parent / "pairs",
        scale=scale,
        patch_px=request.recipe.data.patch_px,
        lr_folder=request.lr_folder,
        on_progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.remove_task(task)
    return cache


def _tell_skipped(caches: list[PairCache]) -> None:
    """Once, though each scale has a cache of its own."""
    reasons = Counter(sentence.rsplit(": ", 1)[-1] for sentence in caches[0].skipped)
    for reason, count in reasons.items():
        say(f"skipped {count}: {reason}")


def _line(report: Report) -> str:
    terms = "  ".join(f"{name} {value:.5f}" for name, value in report.losses.items())
    judged = ""
    if report.d_real is not None and report.d_fake is not None:
        judged = f"  D(real) {report.d_real:.2f}  D(fake) {report.d_fake:.2f}"
    measured = "" if report.psnr_db is None else f"  PSNR {report.psnr_db:.3f} dB"
    return (
        f"{report.progress:6.1%}  {report.stage}  step {report.step}  {terms}{judged}  rate "
        f"{report.learning_rate:.2e}  {report.steps_per_s:.2f} steps/s, {report.data_share:.0%} of "
        f"it data{measured}"
    )


def _finish(request: Request, trainer: Trainer, caches: list[PairCache]) -> None:
    from waifu4x.train.reports import card, showing

    facts = card.facts(
        trainer,
        name=request.name,
        licence=request.licence,
        data=f"{len(caches[0])} pictures of {', '.join(f.name for f in request.folders)}",
        version=__version__,
    )
    target = request.run_folder / f"{request.name}.safetensors"
    trainer.export(target, metadata=facts)
    for name in ("facts.json", f"{request.name}.json"):
        files.write_bytes(request.run_folder / name, json.dumps(facts, indent=2).encode())
    card_path = request.run_folder / f"{request.name}.md"
    files.write_bytes(card_path, card.text(facts).encode())
    report = showing.write_report(trainer)
    row = weights.add(target, name=request.name, licence=request.licence, overwrite=True)
    say(f"wrote {target}, {card_path.name} and {report.name}")
    say(f"use it with: {_usage(row.name, trainer.state.ema.config)}")


def _usage(name: str, config: Any) -> str:
    """The command that enlarges by a model of that name, whose network has this config."""
    # What cannot do without a reference is refused where none is given.
    beside = " --reference sharp.png" if kind_of(config) == "needed" else ""
    return f"waifu4x upscale meme.png -m {name}{beside}"
