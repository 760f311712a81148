"""How fast a model is on this machine: precisions and tile sizes, measured in turn.

All ways of running the model enlarge the same picture, round after round, and bicubic interpolation
with them; speed is a ratio of times of one round. Timed is `Upscaler.upscale`: colours, tiles,
network and stitching, without any file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from waifu4x import memory
from waifu4x.bench.speed_advice import AGREEMENT_DB, NOISE, SpeedReport, SpeedRow
from waifu4x.bench.speed_picture import natural_picture
from waifu4x.bench.speed_race import MIN_ROUNDS, Doing, Entrant, Race, timed
from waifu4x.errors import UsageError
from waifu4x.headers import Header
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Upscaler

# A filter needs no torch.
if TYPE_CHECKING:
    from waifu4x.checkpoints import Model
    from waifu4x.resample import Kernel

TILE_SIZES_PX = (64, 96, 128, 192, 256, 384, 512)
"""The explicit tiles that are tried, in the precision that is best in automatic ones."""
PICTURE_SIDES_PX = (128, 192, 256, 384, 512, 768, 1024, 1536)
"""The squares to choose a picture from: each is about twice as large as the one before."""

Uint8Array = npt.NDArray[np.uint8]

# A picture is as large as lets so many runs of the automatic choice fit into the budget: nine ways,
# five runs each, fp32 perhaps five times as slow, and what choosing the size takes. Where that is
# too few, some tiles are not tried; where it is too many, there are more rounds.
_EXPECTED_RUNS = 60
# Of the free memory, what a picture and its tile may take by an estimate that may be half of the
# truth: a CPU's memory, once overfull, ends the process without an error to be caught.
_MEMORY_SHARE = 0.5
_BAND_ROWS = 256


def measure(
    model: Model | Kernel,
    *,
    scale: int,
    device: str = "auto",
    size_px: tuple[int, int] | None = None,
    budget_s: float = 60.0,
    on_progress: Doing | None = None,
) -> SpeedReport:
    """Measure a model, or a filter, on one device.

    Args:
        model: as `Upscaler.model`.
        scale: output over input size, at least 1.
        device: as `devices.pick`; filters run on the CPU whatever it says.
        size_px: (width, height) of the picture to enlarge; by default as large as lets everything
            be measured within the budget.
        budget_s: seconds that all of it may take; three rounds are made even when they take longer.
        on_progress: told of every run before it begins.

    Raises:
        UsageError: a scale, size or budget that makes no sense.
        DeviceError, NumericsError, OutOfMemoryError: the automatic choice fails on this device.
    """
    if scale < 1:
        raise UsageError(f"speed is measured of enlarging: -s must be at least 1, not {scale}")
    if not 0.0 < budget_s < math.inf:
        raise UsageError(f"{budget_s:g} s are no time to measure in: give some seconds")
    if size_px is not None and min(size_px) < 1:
        raise UsageError(f"a picture of {size_px[0]}x{size_px[1]} px has nothing to enlarge")
    race = Race(budget_s=budget_s, on_progress=on_progress)
    automatic, fitting_px = _open(model, device=device), size_px
    if fitting_px is None:
        race.tell("choosing the size of the picture")
        limit_s = budget_s / _EXPECTED_RUNS
        fitting_px = _fitting_px(automatic, Target(scale=scale), limit_s=limit_s)
    course = _Course(
        race=race,
        model=model,
        automatic=automatic,
        picture=natural_picture(*fitting_px),
        scale=scale,
        is_given_size=size_px is not None,
    )
    bicubic = course.filter("bicubic")
    ways = _enter_filter(course, bicubic) if isinstance(model, str) else _enter_network(course)
    race.run()
    race.tell("done")
    return _report(course, bicubic, ways)


@dataclass(frozen=True, kw_only=True)
class _Course:
    """What all ways of running one model have in common."""

    race: Race
    model: Model | Kernel
    automatic: Upscaler
    picture: Picture
    scale: int
    is_given_size: bool
    """The picture is as large as the user asked for."""

    @property
    def target(self) -> Target:
        return Target(scale=self.scale)

    @property
    def output_px(self) -> tuple[int, int]:
        return self.target.size_px(self.picture.width_px, self.picture.height_px)

    @property
    def shown_px(self) -> int:
        """The shorter side of what the network is shown; 0 for a filter."""
        if isinstance(self.model, str):
            return 0
        larger = self.model.pre_upsampled
        return min(self.output_px if larger else (self.picture.width_px, self.picture.height_px))

    def filter(self, kernel: Kernel) -> _Way:
        way = _Way(
            name=kernel,
            may_fail=False,
            may_be_dropped=False,
            course=self,
            open=lambda: Upscaler(model=kernel),
            engine="numpy",
        )
        self.race.enter(way)
        return way

    def network(self, precision: str, tile_px: int | None = None) -> _Way:
        """A way that has not entered the race yet."""
        runner = self.automatic.runner
        assert runner is not None  # it is no filter
        is_own, is_plain = precision == runner.precision, tile_px is None
        # The automatic precision may compute a tile again in fp32; the same one by name may not.
        wish = "auto" if is_own else precision
        return _Way(
            name=precision if is_plain else f"{precision} in tiles of {tile_px} px",
            may_fail=not (is_own and is_plain),
            may_be_dropped=not (is_plain and (is_own or precision == "fp32")),
            course=self,
            open=lambda: _open(
                self.model, device=str(runner.device), precision=wish, tile_px=tile_px
            ),
            upscaler=self.automatic if is_own and is_plain else None,
            engine="torch",
            precision=precision,
            wish=wish,
            tile_px=tile_px,
        )


@dataclass(kw_only=True, eq=False)
class _Way(Entrant):
    """One way of enlarging the picture."""

    course: _Course
    open: Callable[[], Upscaler]
    engine: str
    precision: str = "fp32"
    wish: str = "auto"
    """What --precision is given."""
    tile_px: int | None = None
    upscaler: Upscaler | None = None
    facts: Facts | None = None
    notes: list[str] = field(default_factory=list)
    agreement_db: float | None = None

    def run(self) -> Uint8Array:
        # Not before: a precision that the device does not have is refused here.
        self.upscaler = self.upscaler or self.open()
        picture, self.facts = self.upscaler.upscale(self.course.picture, self.course.target)
        self.notes += [note for note in self.facts.notes if note not in self.notes]
        return picture.pixels

    def row(self) -> SpeedRow:
        flags = [] if self.wish == "auto" else [f"--precision {self.wish}"]
        flags += [] if self.tile_px is None else [f"--tile {self.tile_px}"]
        has_run = self.probe_s is not None
        return SpeedRow(
            flags=" ".join(flags),
            engine=self.engine,
            precision=self.precision,
            tile_px=self.tile_px,
            megapixels=math.prod(self.course.output_px) / 1e6,
            times_s=tuple(self.times_s),
            probe_s=self.probe_s,
            used_tile_px=self.facts.tile_px if self.facts and has_run else None,
            waste=self.facts.waste if self.facts and has_run else None,
            agreement_db=self.agreement_db if has_run else None,
            note="; ".join(filter(None, [*self.notes, self.note])),
        )


def _open(
    model: Model | Kernel, *, device: str, precision: str = "auto", tile_px: int | None = None
) -> Upscaler:
    """An upscaler that shares the network's weights with all others of this model."""
    if isinstance(model, str):
        return Upscaler(model=model)

    from waifu4x.tiled import TiledRunner  # it needs torch

    runner = TiledRunner(model, device=device, precision=precision, tile_px=tile_px)
    return Upscaler(model=model, runner=runner)


def _enter_filter(course: _Course, bicubic: _Way) -> list[_Way]:
    assert isinstance(course.model, str)
    return [bicubic if course.model == "bicubic" else course.filter(course.model)]


def _enter_network(course: _Course) -> list[_Way]:
    """Every precision in automatic tiles, then explicit tiles in the best of them."""
    from waifu4x.devices import PRECISIONS  # it needs torch

    race = course.race
    precisions = [course.network(name) for name in PRECISIONS if name != "auto"]
    exact: object | None = None
    for way in precisions:
        result = race.enter(way)
        exact = result if way.precision == "fp32" else exact  # it is the first
        way.agreement_db = _agreement_db(result, exact)
    race.drop_hopeless(precisions)
    tiles = _explicit_tiles(course, _best(precisions))
    for way in tiles:
        if not way.note:
            way.agreement_db = _agreement_db(race.enter(way), exact)
    race.drop_hopeless([*precisions, *tiles])
    return [*precisions, *tiles]


def _best(precisions: Sequence[_Way]) -> _Way:
    """The fastest by its probe of those that may be advised; the automatic one where that is as
    fast but for noise."""
    (own,) = [way for way in precisions if not way.may_fail]
    probes = {
        way: way.probe_s
        for way in precisions
        if way.probe_s is not None and (way is own or (way.agreement_db or 0.0) >= AGREEMENT_DB)
    }
    best = min(probes, key=lambda way: probes[way])
    return best if probes[best] * NOISE <= probes[own] else own


def _explicit_tiles(course: _Course, best: _Way) -> list[_Way]:
    """Those that cut the picture in another way than automatic tiles and each other do; those that
    memory or time is lacking for have given up.

    A tile that holds the whole picture has no halo: that is faster, and true of no larger picture.
    """
    header = _header(course.picture.width_px, course.picture.height_px)
    ways: list[_Way] = []
    assert best.upscaler is not None  # it has run
    target = course.target
    seen = {(best.upscaler.tiles(header, target), best.upscaler.tile_px(header, target))}
    for tile_px in TILE_SIZES_PX:
        way = course.network(best.precision, tile_px)
        way.upscaler = way.open()
        used_px = way.upscaler.tile_px(header, target) or 0
        cut = way.upscaler.tiles(header, target), used_px
        is_whole = used_px >= course.shown_px and not course.is_given_size
        if cut in seen or is_whole:
            continue
        seen.add(cut)
        ways.append(way)
        if not _fits(way.upscaler, header, target):
            way.give_up("not tried: by estimate it takes more than half of the free memory")
    _spare_time([way for way in ways if not way.note], best, course.race)
    return ways


def _spare_time(ways: Sequence[_Way], best: _Way, race: Race) -> None:
    """Let those give up that the budget is too short for; the nearest to automatic tiles stay."""
    assert best.probe_s is not None  # it has run, as has what it found out
    assert best.facts is not None
    rounds_s = MIN_ROUNDS * sum(e.probe_s or 0.0 for e in race.entrants if e.is_racing)
    left_s = race.budget_s - race.spent_s - rounds_s
    count = max(0, int(left_s / ((2 + MIN_ROUNDS) * best.probe_s)))
    near_px = best.facts.tile_px or 1
    nearest = sorted(ways, key=lambda way: abs(math.log((way.tile_px or 1) / near_px)))
    for way in nearest[count:]:
        way.give_up(f"not tried: {race.budget_s:g} s are too short for it")


def _fits(upscaler: Upscaler, header: Header, target: Target) -> bool:
    size_px = target.size_px(header.width_px, header.height_px)
    needed_bytes = upscaler.memory_bytes(header, size_px)
    return needed_bytes <= memory.free_host_bytes() * _MEMORY_SHARE


def _header(width_px: int, height_px: int) -> Header:
    return Header(
        format="", width_px=width_px, height_px=height_px, channels=3, has_alpha=False, depth_bits=8
    )


def _fitting_px(upscaler: Upscaler, target: Target, *, limit_s: float) -> tuple[int, int]:
    """The largest square that is probably enlarged within `limit_s`, or the smallest there is."""
    for side_px, larger_px in itertools.pairwise(PICTURE_SIDES_PX):
        picture, growth = natural_picture(side_px, side_px), (larger_px / side_px) ** 2
        # First runs are slower: a second is made only when the first says no.
        runs = (timed(lambda p=picture: upscaler.upscale(p, target))[0] for _ in range(2))
        if all(spent_s * growth > limit_s for spent_s in runs):
            return side_px, side_px
        if not _fits(upscaler, _header(larger_px, larger_px), target):
            return side_px, side_px
    return PICTURE_SIDES_PX[-1], PICTURE_SIDES_PX[-1]


def _notes(course: _Course) -> list[str]:
    race, notes, largest_px = course.race, [], course.shown_px // 2
    if course.shown_px and not course.is_given_size and largest_px < TILE_SIZES_PX[-1]:
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


def _agreement_db(result: object | None, exact: object | None) -> float | None:
    """PSNR of two (H, W, C) uint8, in bands of rows: pictures here may be large."""
    if not isinstance(result, np.ndarray) or not isinstance(exact, np.ndarray):
        return None
    total = 0
    for top in range(0, len(exact), _BAND_ROWS):
        bands = (image[top : top + _BAND_ROWS].astype(np.int64) for image in (result, exact))
        total += int(np.square(np.subtract(*bands)).sum())
    return math.inf if total == 0 else 10.0 * math.log10(255.0**2 * exact.size / total)


def _report(course: _Course, bicubic: _Way, ways: Sequence[_Way]) -> SpeedReport:
    device, device_name, threads = "cpu", "CPU", None
    if (runner := course.automatic.runner) is not None:
        import torch

        from waifu4x import devices

        device, device_name = str(runner.device), devices.describe(runner.device)
        threads = torch.get_num_threads()
    width, height = course.picture.width_px, course.picture.height_px
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
        notes=tuple(_notes(course)),
    )
