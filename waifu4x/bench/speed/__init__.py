"""How fast a model is on this machine: engines, precisions and tile sizes, measured in turn.

All ways of running the model enlarge the same picture, round after round, and bicubic interpolation
with them; speed is a ratio of times of one round. Timed is `Upscaler.upscale`: colours, tiles,
network and stitching, without any file. What an engine converts is converted before, and costs
nothing of the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from waifu4x.bench.protocol import check_sizes
from waifu4x.bench.sets import DataSet
from waifu4x.bench.speed.speed_advice import MOST_LOSS_DB, SpeedReport, lost
from waifu4x.bench.speed.speed_openers import Opener, choices, is_graph
from waifu4x.bench.speed.speed_picture import natural_picture
from waifu4x.bench.speed.speed_race import MIN_ROUNDS, Doing, Race, timed
from waifu4x.bench.speed.speed_truth import example_set
from waifu4x.bench.speed.speed_ways import Course, Way, enter_network, fits, header_of
from waifu4x.errors import UsageError
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

# A filter needs no torch.
if TYPE_CHECKING:
    from waifu4x.model_files.model_facts import Model
    from waifu4x.resample import Kernel

PICTURE_SIDES_PX = (128, 192, 256, 384, 512, 768, 1024, 1536)
"""The squares to choose a picture from: each is about twice as large as the one before."""

# A picture is as large as lets so many runs of the automatic choice fit into the budget. Of torch
# alone, that is nine ways, five runs each, fp32 perhaps five times as slow, and what choosing the
# size takes; of each way of another engine, five runs, or two of fp32. Where that is too few, some
# tiles are not tried; where it is too many, there are more rounds.
_TORCH_RUNS = 60
_RUNS_A_WAY = 10
# Tiles larger than half of the largest picture are never compared, and nobody need know.
_LARGEST_TILE_PX = PICTURE_SIDES_PX[-1] // 2


def measure(
    model: Model | Kernel,
    *,
    scale: float,
    device: str = "auto",
    size_px: tuple[int, int] | None = None,
    budget_s: float = 60.0,
    folder: Path | None = None,
    truth: Sequence[DataSet] = (),
    on_progress: Doing | None = None,
) -> SpeedReport:
    """Measure a model, or a filter, on one device.

    Args:
        model: as `Upscaler.model`.
        scale: output over input size, at least 1.
        device: as `devices.pick`; filters run on the CPU whatever it says.
        size_px: (width, height) of the picture to enlarge; by default as large as lets everything
            be measured within the budget.
        budget_s: seconds that all of it may take, but for conversions and what is done with
            `truth`; three rounds are made even when they take longer.
        folder: where engines keep what they convert.
        truth: sets of true pictures that what INT8 loses is measured on; by default the example
            pictures.
        on_progress: told of every run before it begins.

    Raises:
        UsageError: a scale, size or budget that makes no sense, or true pictures that are too small
            for the scale.
        PictureReadError: a true picture that cannot be read.
        DeviceError, NumericsError, OutOfMemoryError: the automatic choice fails on this device.
    """
    _check(scale=scale, size_px=size_px, budget_s=budget_s, truth=truth)
    race = Race(budget_s=budget_s, on_progress=on_progress)
    opener = Opener(model=model, device=device, folder=folder)
    race.tell("getting ready")
    with race.paused():
        ready_s, opened = timed(opener.engine)
    automatic = opener.upscaler(opened)
    fitting_px = size_px or _fitting_px(automatic, opener, race, scale=scale)
    examples = example_set(scale=scale)
    course = Course(
        race=race,
        opener=opener,
        automatic=automatic,
        opened=opened,
        ready_s=ready_s,
        picture=natural_picture(*fitting_px),
        scale=scale,
        is_given_size=size_px is not None,
        truth=tuple(truth) or ((examples,) if examples is not None else ()),
    )
    bicubic = course.filter("bicubic")
    ways = _enter_filter(course, bicubic) if isinstance(model, str) else enter_network(course)
    race.run()
    race.tell("done")
    return _report(course, bicubic, ways)


def _check(
    *,
    scale: float,
    size_px: tuple[int, int] | None,
    budget_s: float,
    truth: Sequence[DataSet],
) -> None:
    if scale < 1:
        raise UsageError(f"speed is measured of enlarging: -s must be at least 1, not {scale}")
    if not 0.0 < budget_s < math.inf:
        raise UsageError(f"{budget_s:g} s are no time to measure in: give some seconds")
    if size_px is not None and min(size_px) < 1:
        raise UsageError(f"a picture of {size_px[0]}x{size_px[1]} px has nothing to enlarge")
    for path in (path for dataset in truth for path in dataset.pictures):
        check_sizes(path, scale=scale)


def _enter_filter(course: Course, bicubic: Way) -> list[Way]:
    kernel = course.opener.model
    assert isinstance(kernel, str)
    return [bicubic if kernel == "bicubic" else course.filter(kernel)]


def _fitting_px(upscaler: Upscaler, opener: Opener, race: Race, *, scale: float) -> tuple[int, int]:
    """The largest square that lets everything be measured, probably, or the smallest there is."""
    race.tell("choosing the size of the picture")
    target, others = Target(scale=scale), 0
    if upscaler.runner is not None:
        others = sum(engine != "torch" for engine, _ in choices(opener, upscaler.runner))
    limit_s = race.budget_s / (_TORCH_RUNS + _RUNS_A_WAY * others)
    for side_px, larger_px in itertools.pairwise(PICTURE_SIDES_PX):
        picture, growth = natural_picture(side_px, side_px), (larger_px / side_px) ** 2
        # First runs are slower: a second is made only when the first says no.
        runs = (timed(lambda p=picture: upscaler.upscale(p, target))[0] for _ in range(2))
        if all(spent_s * growth > limit_s for spent_s in runs):
            return side_px, side_px
        if not fits(upscaler, header_of(larger_px, larger_px), target):
            return side_px, side_px
    return PICTURE_SIDES_PX[-1], PICTURE_SIDES_PX[-1]


def _notes(course: Course, ways: Sequence[Way]) -> list[str]:
    race, notes, largest_px = course.race, [], course.shown_px // 2
    ready = [
        f"{way.name} {way.ready_s:.3g} s"
        for way in ways
        if way.ready_s is not None and way.tile_px is None
    ]
    if ready and not is_graph(course.opener.model):  # it is no conversion
        kept = "" if course.opener.folder is None else "; what was converted is kept"
        notes.append(f"to get ready, in no round: {', '.join(ready)}{kept}")
    notes += _notes_on_loss(course, ways)
    if course.shown_px and not course.is_given_size and largest_px < _LARGEST_TILE_PX:
        notes.append(
            f"tiles of more than {largest_px} px were not compared: that takes a larger picture, "
            f"and more than {race.budget_s:g} s"
        )
    if race.rounds == MIN_ROUNDS and race.spent_s > race.budget_s:
        notes.append(
            f"the least there is to measure took {race.spent_s:.3g} s, more than the "
            f"{race.budget_s:g} s it was given"
        )
    return notes


def _notes_on_loss(course: Course, ways: Sequence[Way]) -> list[str]:
    names, notes = [dataset.name for dataset in course.truth], []
    for way in ways:
        if way.precision != "int8" or way.tile_px is not None or way.probe_s is None:
            continue
        if way.loss_db is None and way.may_fail:
            notes.append(
                f"what {way.name} loses could not be measured, so that it is not advised: name a "
                f"folder of pictures"
            )
        elif way.loss_db is not None and way.loss_db > MOST_LOSS_DB:
            notes.append(
                f"{way.name} {lost(way.row(), names)}: it is not advised above {MOST_LOSS_DB} dB"
            )
    return notes


def _report(course: Course, bicubic: Way, ways: Sequence[Way]) -> SpeedReport:
    device, device_name, threads = "cpu", "CPU", None
    if (runner := course.automatic.runner) is not None:
        import torch

        from waifu4x import devices

        device, device_name = str(runner.device), devices.describe(runner.device)
        threads = torch.get_num_threads()
    width, height = course.picture.width_px, course.picture.height_px
    names = tuple(dataset.name for dataset in course.truth)
    return SpeedReport(
        model=course.automatic.name,
        scale=course.scale,
        device=device,
        device_name=device_name,
        threads=threads,
        input_px=(width, height),
        output_px=course.output_px,
        budget_s=course.race.budget_s,
        spent_s=course.race.spent_s,
        bicubic=bicubic.row(),
        rows=tuple(way.row() for way in ways),
        truth=names if any(way.loss_db is not None for way in ways) else (),
        notes=tuple(_notes(course, ways)),
    )
