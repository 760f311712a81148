"""The ways of running one model that race against each other: engines, precisions, tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from waifu4x import memory
from waifu4x.bench.sets import DataSet
from waifu4x.bench.speed import speed_truth
from waifu4x.bench.speed.speed_advice import NOISE, SpeedRow, may_be_advised
from waifu4x.bench.speed.speed_openers import Opener, choices
from waifu4x.bench.speed.speed_race import MIN_ROUNDS, Entrant, Race, timed
from waifu4x.errors import DeviceError, NumericsError, OutOfMemoryError
from waifu4x.headers import Header
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Upscaler

# A filter needs no torch.
if TYPE_CHECKING:
    from waifu4x.engines import Opened
    from waifu4x.resample import Kernel

Uint8Array = npt.NDArray[np.uint8]

# Of the free memory, what a picture and its tile may take by an estimate that may be half of the
# truth: a CPU's memory, once overfull, ends the process without an error to be caught.
_MEMORY_SHARE = 0.5
_BAND_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Course:
    """What all ways of running one model have in common."""

    race: Race
    opener: Opener
    automatic: Upscaler
    opened: Opened | None
    """The engine of `automatic`; None for a filter."""
    ready_s: float
    """What opening that took."""
    picture: Picture
    scale: float
    is_given_size: bool
    """The picture is as large as the user asked for."""
    truth: tuple[DataSet, ...]
    """True pictures, for ways that change more than rounding does."""

    @property
    def target(self) -> Target:
        return Target(scale=self.scale)

    @property
    def output_px(self) -> tuple[int, int]:
        return self.target.size_px(self.picture.width_px, self.picture.height_px)

    @property
    def shown_px(self) -> int:
        """The shorter side of what the network is shown; 0 for a filter."""
        if isinstance(self.opener.model, str):
            return 0
        larger = self.opener.model.pre_upsampled
        return min(self.output_px if larger else (self.picture.width_px, self.picture.height_px))

    def filter(self, kernel: Kernel) -> Way:
        """A filter, entered in the race."""
        way = Way(
            name=kernel,
            may_fail=False,
            may_be_dropped=False,
            course=self,
            engine="numpy",
            upscaler=Upscaler(model=kernel),
        )
        self.race.enter(way)
        return way

    def network(self, engine: str, precision: str) -> Way:
        """A way in automatic tiles, that has not entered the race yet."""
        runner = self.automatic.runner
        assert runner is not None  # it is no filter
        is_own = (engine, precision) == (runner.engine, runner.precision)
        # The automatic precision may compute a tile again in fp32; the same one by name may not.
        wish = "auto" if precision == self._automatic_precision(engine) else precision
        flags = [] if engine == runner.engine else [f"--engine {engine}"]
        flags += [] if wish == "auto" else [f"--precision {wish}"]
        name = f"{engine} {precision}"
        return Way(
            name=name,
            may_fail=not is_own,
            may_be_dropped=not (is_own or name == "torch fp32"),
            course=self,
            opened=self.opened if is_own else None,
            upscaler=self.automatic if is_own else None,
            ready_s=self.ready_s if is_own and engine != "torch" else None,
            flags=" ".join(flags),
            engine=engine,
            precision=precision,
            wish=wish,
        )

    def _automatic_precision(self, engine: str) -> str:
        """What it computes in where no --precision is given."""
        from waifu4x import devices  # it needs torch

        runner = self.automatic.runner
        assert runner is not None
        if engine == runner.engine:
            return runner.precision
        if engine == "onnxruntime":
            return "fp32"
        return devices.precision_name(devices.pick_dtype("auto", runner.device))


@dataclass(kw_only=True, eq=False)
class Way(Entrant):
    """One way of enlarging the picture."""

    course: Course
    engine: str
    precision: str = "fp32"
    wish: str = "auto"
    """What --precision is given."""
    tile_px: int | None = None
    flags: str = ""
    opened: Opened | None = None
    upscaler: Upscaler | None = None
    ready_s: float | None = None
    facts: Facts | None = None
    notes: list[str] = field(default_factory=list)
    agreement_db: float | None = None
    loss_db: float | None = None

    def tiled(self, tile_px: int) -> Way:
        """The same by the same engine, in explicit tiles; this one has run."""
        assert self.opened is not None
        opened = self.opened._replace(note="")  # said by this one
        return Way(
            name=f"{self.name} in tiles of {tile_px} px",
            course=self.course,
            opened=opened,
            upscaler=self.course.opener.upscaler(opened, precision=self.wish, tile_px=tile_px),
            flags=" ".join(filter(None, [self.flags, f"--tile {tile_px}"])),
            engine=self.engine,
            precision=self.precision,
            wish=self.wish,
            tile_px=tile_px,
            loss_db=self.loss_db,
        )

    def run(self) -> Uint8Array:
        # Not before: a precision that the device does not have is refused here.
        upscaler = self.upscaler or self._ready()
        picture, self.facts = upscaler.upscale(self.course.picture, self.course.target)
        self.notes += [note for note in self.facts.notes if note not in self.notes]
        return picture.pixels

    def _ready(self) -> Upscaler:
        """A conversion is made once in the life of a cache folder: it costs nothing here."""
        race, opener = self.course.race, self.course.opener
        converts = self.engine != "torch"
        if converts:
            race.tell(f"getting ready: {self.name}")
        with race.paused():
            spent_s, self.opened = timed(lambda: opener.engine(self.engine, self.wish))
        self.ready_s = spent_s if converts else None
        self.upscaler = opener.upscaler(self.opened, precision=self.wish)
        return self.upscaler

    def row(self) -> SpeedRow:
        """What it took, so far."""
        has_run = self.probe_s is not None
        return SpeedRow(
            flags=self.flags,
            engine=self.engine,
            precision=self.precision,
            tile_px=self.tile_px,
            megapixels=math.prod(self.course.output_px) / 1e6,
            times_s=tuple(self.times_s),
            probe_s=self.probe_s,
            used_tile_px=self.facts.tile_px if self.facts and has_run else None,
            waste=self.facts.waste if self.facts and has_run else None,
            agreement_db=self.agreement_db if has_run else None,
            loss_db=self.loss_db if has_run else None,
            ready_s=self.ready_s,
            note="; ".join(filter(None, [*self.notes, self.note])),
        )


def enter_network(course: Course) -> list[Way]:
    """Every engine and precision in automatic tiles, then explicit tiles in the best of them."""
    race = course.race
    runner = course.automatic.runner
    assert runner is not None  # it is no filter
    plain = [course.network(*choice) for choice in choices(course.opener, runner)]
    exact: object | None = None
    for way in plain:
        result = race.enter(way)
        exact = result if way.name == "torch fp32" else exact  # it is the first
        way.agreement_db = _agreement_db(result, exact)
    race.drop_hopeless(plain)
    for way in plain[1:]:
        if way.precision == "int8":
            _compare_with_truth(way, plain[0])
    best = _best(plain)
    tiles = _explicit_tiles(course, best)
    for way in tiles:
        if not way.note:
            way.agreement_db = _agreement_db(race.enter(way), exact)
    race.drop_hopeless([*plain, *tiles])
    return [*plain, *tiles]


def _compare_with_truth(way: Way, exact: Way) -> None:
    """Measure what `way` loses, on the worst of the sets; it gives up where it fails there."""
    course = way.course
    if exact.probe_s is None or way.probe_s is None:
        return
    assert exact.upscaler is not None  # both have run
    assert way.upscaler is not None
    opened = exact.upscaler, way.upscaler

    def tell(name: str) -> None:
        course.race.tell(f"comparing {way.name} with the truth: {name}")

    try:
        with course.race.paused():
            losses_db = [
                speed_truth.loss_db(*opened, dataset, scale=course.scale, on_picture=tell)
                for dataset in course.truth
            ]
    except (DeviceError, NumericsError, OutOfMemoryError) as error:
        way.give_up(str(error))
        return
    way.loss_db = max(losses_db, default=None)


def _best(plain: Sequence[Way]) -> Way:
    """The fastest by its probe of those that may be advised; the automatic one where that is as
    fast but for noise."""
    (own,) = [way for way in plain if not way.may_fail]
    probes = {
        way: way.probe_s
        for way in plain
        if way.probe_s is not None and may_be_advised(way.row(), own.row())
    }
    best = min(probes, key=lambda way: probes[way])
    return best if probes[best] * NOISE <= probes[own] else own


def _explicit_tiles(course: Course, best: Way) -> list[Way]:
    """Those that cut the picture in another way than automatic tiles and each other do; those that
    memory or time is lacking for have given up.

    A tile that holds the whole picture has no halo: that is faster, and true of no larger picture.
    """
    from waifu4x.tiled.tile_sizes import TILES_PX  # it needs torch

    header = header_of(course.picture.width_px, course.picture.height_px)
    ways: list[Way] = []
    assert best.upscaler is not None  # it has run
    target = course.target
    seen = {(best.upscaler.tiles(header, target), best.upscaler.tile_px(header, target))}
    for tile_px in TILES_PX:
        way = best.tiled(tile_px)
        assert way.upscaler is not None  # from the beginning
        used_px = way.upscaler.tile_px(header, target) or 0
        cut = way.upscaler.tiles(header, target), used_px
        is_whole = used_px >= course.shown_px and not course.is_given_size
        if cut in seen or is_whole:
            continue
        seen.add(cut)
        ways.append(way)
        if not fits(way.upscaler, header, target):
            way.give_up("not tried: by estimate it takes more than half of the free memory")
    _spare_time([way for way in ways if not way.note], best, course.race)
    return ways


def _spare_time(ways: Sequence[Way], best: Way, race: Race) -> None:
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


def fits(upscaler: Upscaler, header: Header, target: Target) -> bool:
    """Whether enlarging such a picture takes no more memory than is safe, by estimate."""
    size_px = target.size_px(header.width_px, header.height_px)
    needed_bytes = upscaler.memory_bytes(header, size_px)
    return needed_bytes <= memory.free_host_bytes() * _MEMORY_SHARE


def header_of(width_px: int, height_px: int) -> Header:
    """Of an 8-bit RGB picture."""
    return Header(
        format="", width_px=width_px, height_px=height_px, channels=3, has_alpha=False, depth_bits=8
    )


def _agreement_db(result: object | None, exact: object | None) -> float | None:
    """PSNR of two (H, W, C) uint8, in bands of rows: pictures here may be large."""
    if not isinstance(result, np.ndarray) or not isinstance(exact, np.ndarray):
        return None
    total = 0
    for top in range(0, len(exact), _BAND_ROWS):
        bands = (image[top : top + _BAND_ROWS].astype(np.int64) for image in (result, exact))
        total += int(np.square(np.subtract(*bands)).sum())
    return math.inf if total == 0 else 10.0 * math.log10(255.0**2 * exact.size / total)
