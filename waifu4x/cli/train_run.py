"""The work of ``waifu4x train``: data, training, and the model that comes out."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from waifu4x import __version__, devices, files, weights
from waifu4x.cli.console import say, stderr
from waifu4x.errors import OutOfMemoryError, UsageError
from waifu4x.train import card, recipe
from waifu4x.train.data import PairCache, open_cache
from waifu4x.train.loop import (
    CHECKPOINT_NAME,
    Report,
    Trainer,
    check,
    training_dtype,
    validation_pairs,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything the user asked for."""

    folders: tuple[Path, ...]
    name: str
    recipe: str
    validation: Path | None
    steps: int | None
    minutes: float | None
    run_folder: Path
    licence: str
    seed: int
    device: str
    precision: str
    validate_every: int
    report_every: int


def run(request: Request) -> None:
    """Train (or go on training), and write the model and its card into the run's folder.

    Raises:
        TrainError: no usable data, a damaged or foreign checkpoint, or a loss that is not finite.
        UsageError: an unknown recipe, numbers that the network does not take, or a name that no
            model can have.
        OutOfMemoryError: the device cannot hold a batch.
    """
    chosen = _with_length(recipe.load(request.recipe), request)
    _check(request, chosen)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        cache = _open(request, chosen, bar)
        pairs = validation_pairs(request.validation, chosen.scale) if request.validation else ()
        trainer = Trainer(
            chosen,
            cache,
            run_folder=request.run_folder,
            device=request.device,
            precision=request.precision,
            seed=request.seed,
            validation=pairs,
        )
        start = "going on at" if trainer.state.step else "starting at"
        say(
            f"{len(cache)} pictures; {chosen.network['architecture']} x{chosen.scale} in "
            f"{trainer.precision} on {trainer.device}; {start} step {trainer.state.step}"
        )
        task = bar.add_task("training", total=1.0)

        def show(report: Report) -> None:
            bar.update(task, completed=report.progress)
            say(_line(report))

        with _signals_between_steps() as caught:
            _train(request, trainer, show, stop=lambda: bool(caught))
        if caught:
            say(f"step {trainer.state.step} is saved: run the same command again to go on")
            signal.raise_signal(caught[0])
    _finish(request, trainer, cache)


def _check(request: Request, chosen: recipe.Recipe) -> None:
    """Everything that can be refused before pictures are decoded and hours are spent."""
    weights.check_name(request.name)
    check(chosen)
    training_dtype(request.precision, devices.pick(request.device))
    begun = (request.run_folder / CHECKPOINT_NAME).is_file()
    if not begun and any(request.name == row.name for row in weights.user_rows()):
        raise UsageError(
            f"you have a model called {request.name} already: give another --name, or remove it "
            f"(waifu4x models remove {request.name})"
        )
    if min(request.report_every, request.validate_every) < 1:
        raise UsageError("--report-every and --validate-every are 1 step or more")
    if request.validation is None:
        return
    held_out = request.validation.resolve()
    for folder in request.folders:
        if held_out.is_relative_to(folder.resolve()):
            raise UsageError(
                f"{request.validation} lies in {folder}, so it would be trained on; move it out"
            )


@contextmanager
def _signals_between_steps() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, so that the step can end; a second does not wait."""
    caught: list[int] = []
    # One that is ignored (nohup, a shell's background job) stays so.
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            restore()
            signal.raise_signal(number)
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


def _train(
    request: Request,
    trainer: Trainer,
    show: Callable[[Report], None],
    *,
    stop: Callable[[], bool],
) -> None:
    try:
        trainer.run(
            on_report=show,
            report_every=request.report_every,
            validate_every=request.validate_every,
            stop=stop,
        )
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{trainer.device} cannot hold a batch of {trainer.recipe.data.batch}: lower batch or "
            f"patch_px in the recipe's [data]"
        ) from error


def _with_length(chosen: recipe.Recipe, request: Request) -> recipe.Recipe:
    schedule = chosen.schedule
    if request.steps is not None and request.minutes is not None:
        raise UsageError("give --steps or --minutes, not both")
    if request.steps is not None:
        schedule = dataclasses.replace(schedule, steps=request.steps, minutes=None)
    if request.minutes is not None:
        schedule = dataclasses.replace(schedule, minutes=request.minutes)
    return dataclasses.replace(chosen, schedule=schedule)


def _open(request: Request, chosen: recipe.Recipe, bar: Progress) -> PairCache:
    task = bar.add_task("decoding pictures", total=None)
    cache = open_cache(
        request.folders,
        weights.downloads_folder().parent / "pairs",
        scale=chosen.scale,
        patch_px=chosen.data.patch_px,
        on_progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.remove_task(task)
    reasons = Counter(sentence.rsplit(": ", 1)[-1] for sentence in cache.skipped)
    for reason, count in reasons.items():
        say(f"skipped {count}: {reason}")
    return cache


def _line(report: Report) -> str:
    measured = "" if report.psnr_db is None else f"  PSNR {report.psnr_db:.3f} dB"
    return (
        f"{report.progress:6.1%}  step {report.step}  loss {report.loss:.5f}  "
        f"rate {report.learning_rate:.2e}  {report.steps_per_s:.2f} steps/s{measured}"
    )


def _finish(request: Request, trainer: Trainer, cache: PairCache) -> None:
    facts = card.facts(
        trainer,
        name=request.name,
        licence=request.licence,
        data=f"{len(cache)} pictures of {', '.join(f.name for f in request.folders)}",
        version=__version__,
    )
    target = request.run_folder / f"{request.name}.safetensors"
    trainer.export(target, metadata=facts)
    table = json.dumps(facts, indent=2)
    files.write_bytes(request.run_folder / f"{request.name}.json", table.encode())
    row = weights.add(target, name=request.name, licence=request.licence, overwrite=True)
    say(f"wrote {target}; use it with: waifu4x upscale meme.png -m {row.name}")
