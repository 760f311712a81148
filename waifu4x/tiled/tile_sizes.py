"""How large tiles are: what is fastest, within what memory allows.

A large tile shows the network less of its neighbours; a small one stays in a CPU's caches. Which
counts for more depends on the network, the engine and the machine. Seconds per pixel were measured
for one network on one machine, and stand for all in pictures below 4 MP. For larger ones they are
measured once, here, and kept: also so that a picture is cut alike the next time, because bf16
results differ in their last bit from one tile size to another.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from waifu4x import devices, files, tiling
from waifu4x.engines import NetworkEngine
from waifu4x.errors import OutOfMemoryError
from waifu4x.tiling import TileGrid

if TYPE_CHECKING:
    import torch

# What memory may push a tile down to.
MIN_TILE_PX = 64
TILES_PX = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280)
"""The sides to choose from: in steps, so that what others take of the memory seldom changes how a
picture is cut."""
_MAX_TILE_PX = {"cpu": 1280, "xpu": 1024, "mps": 512, "cuda": 1024}
# One by one on MPS: an array above 4 GiB there ends the process, and no error could be caught
# (https://github.com/pytorch/pytorch/issues/143859).
_MAX_BATCH = {"cpu": 1, "xpu": 1, "mps": 1, "cuda": 16}
# A batch goes up while the one before it is computed and the one before that comes down: a picture
# should be several, and buffers for them are main memory that cannot be swapped.
_MOST_BATCH_PX = 2_000_000
# Of the memory that is free now; the rest is for fragmentation and for others.
_MEMORY_SHARE = 0.5
# A CPU is no faster with larger tiles, and others need the memory, too; a picture that is not large
# shall not take as much.
_MOST_TILE_BYTES = 3 * 2**29
_MODEST_TILE_BYTES = 3 * 2**28
# A row of tiles lies in memory while it is put together, where a picture is streamed.
_MOST_BAND_BYTES = 2**29
# A way that is so much slower than the fastest is taken where it shows the network less twice:
# smaller differences are noise, and a large picture is a lot to show twice.
_AS_FAST = 1.02
_AS_FAST_IF_LARGE = 1.1
_LONGEST = 3

# Seconds per pixel by a square window's side, over those of the best one: the default model, on two
# cores with AMX, in PyTorch; OpenVINO's are nearly the same. A GPU has no such caches.
_CPU_CURVE = {128: 1.19, 192: 1.0, 256: 1.0, 384: 1.12, 512: 1.25, 768: 1.33, 1024: 1.37}
_FLAT_CURVE = {128: 1.0}

CALIBRATED_FROM_PX = 4_000_000
"""Smaller pictures do not take long enough for a calibration to pay."""
_CALIBRATED_PX = (256, 512, 1024)
# A network that takes longer for a window computes so much that caches do not count.
_LONGEST_WINDOW_S = 0.5
_FORMAT = 1

# The side of the window that is timed on behalf of small pictures.
_SMALL_WINDOW_PX = 64
# Runs of a few milliseconds differ by half from one to the next.
_TIMED_AT_LEAST_S = 0.1


class _Cut(NamedTuple):
    """One way of cutting an axis: tiles of at most `side_px` become `tiles` windows."""

    side_px: int
    tiles: int
    window_px: int


class _Way(NamedTuple):
    """One way of cutting a picture."""

    cost: float
    shown_px: int
    tiles: int
    sides_px: tuple[int, int]


class TileSizes:
    """The sizes of one model's tiles on one device."""

    def __init__(
        self,
        engine: NetworkEngine,
        *,
        device: torch.device,
        beside: Sequence[torch.device] = (),
        halo_px: int,
        multiple: int,
        wished_px: int | None,
        memory_bytes: int | None = None,
        name: str = "",
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            beside: further devices, which share the tiles of a picture.
            halo_px, multiple: see `tiling.plan`.
            wished_px: a side that is never changed; None for the best.
            memory_bytes: what a tile, or a batch of them, may take of the device's memory at most.
            name: of the weights, for calibrations: their sha256.
            folder: where calibrations are kept; without it none is made.
        """
        self.halo_px = halo_px
        self._engine = engine
        self._device = device
        self._devices = device, *beside
        self._multiple = multiple
        self._wished_px = wished_px
        self._memory_bytes = memory_bytes
        self._limit_px = _MAX_TILE_PX[device.type]
        self._batch_limit = _MAX_BATCH[device.type]
        self._curve = _CPU_CURVE if device.type == "cpu" else _FLAT_CURVE
        self._name = name
        self._folder = folder
        self._calibrated = folder is None or not name or device.type != "cpu"
        self._rates: dict[int, float] = {}

    def plan(self, height_px: int, width_px: int, *, sample_bytes: int = 1) -> TileGrid:
        """The tiles that a picture of this size (a multiple of the network's) is cut into.

        sample_bytes: of each value of the result.
        """
        if self._wished_px is not None:
            return self._cut((height_px, width_px), self._wished_px, self._wished_px)
        if height_px * width_px >= CALIBRATED_FROM_PX:
            self._calibrate()
        size_px = height_px, width_px
        return self._cut(size_px, *self._best_sides(size_px, sample_bytes))

    def _best_sides(self, size_px: tuple[int, int], sample_bytes: int) -> tuple[int, int]:
        """The most rows and the most columns that a core shall have."""
        large = math.prod(size_px) >= CALIBRATED_FROM_PX
        affordable_px = self._affordable_px(large=large)
        ways = [
            _Way(
                cost=self._cost(down.tiles * across.tiles, down.window_px * across.window_px),
                shown_px=down.tiles * down.window_px * across.tiles * across.window_px,
                tiles=down.tiles * across.tiles,
                sides_px=(down.side_px, across.side_px),
            )
            for down in self._cuts(size_px[0], most_px=self._most_rows(size_px[1], sample_bytes))
            for across in self._cuts(size_px[1])
            if down.window_px * across.window_px <= affordable_px
            # What windows cost was measured for squares, and a strip of a few rows is none.
            and max(down.side_px, across.side_px) <= _LONGEST * min(down.side_px, across.side_px)
        ]
        if not ways:
            return MIN_TILE_PX, MIN_TILE_PX
        limit = min(ways).cost * (_AS_FAST_IF_LARGE if large else _AS_FAST)
        best = min((way for way in ways if way.cost <= limit), key=lambda way: way[1:])
        return best.sides_px

    def _cuts(self, size_px: int, *, most_px: int | None = None) -> list[_Cut]:
        """Every way of cutting an axis that another side of tiles gives."""
        sides_px = [side_px for side_px in TILES_PX if side_px <= self._limit_px]
        if most_px is not None and most_px < sides_px[-1]:
            sides_px = [*(s for s in sides_px if s < most_px), max(most_px, MIN_TILE_PX)]
        cuts = {
            tiling.windows(
                size_px,
                tile_px=max(side_px, self._multiple),
                halo_px=self.halo_px,
                multiple=self._multiple,
            ): side_px
            for side_px in sides_px
        }
        return [_Cut(side_px, *cut) for cut, side_px in cuts.items()]

    def _most_rows(self, width_px: int, sample_bytes: int) -> int:
        """A row of tiles is put together in memory where a picture is streamed."""
        row_bytes = width_px * self._engine.scale**2 * self._engine.channels * sample_bytes
        return _MOST_BAND_BYTES // row_bytes

    def batch_size(self, grid: TileGrid) -> int:
        """How many tiles of `grid` the device takes at once, however many there are."""
        most_px = min(self._affordable_px(), _MOST_BATCH_PX)
        return max(1, min(self._batch_limit, int(most_px // math.prod(grid.window_px))))

    def give_way(self, grid: TileGrid, *, batch_size: int) -> str | None:
        """Take less memory after it was full for `batch_size` tiles of `grid` at once.

        An explicit tile is never changed. Returns what was decided, None where nobody need know.

        Raises:
            OutOfMemoryError: less is not possible.
        """
        devices.release_memory(self._device)
        if batch_size > 1:
            # Else smaller tiles would come in larger batches and need the same memory again.
            self._batch_limit = 1
            return None
        tile_px = grid.core_px
        if self._wished_px is not None:
            raise OutOfMemoryError(
                f"{self._device} has not enough memory for tiles of {self._wished_px} px; "
                f"choose a smaller one, or leave --tile out"
            )
        if tile_px <= MIN_TILE_PX:
            raise OutOfMemoryError(
                f"{self._device} has not enough memory even for tiles of {tile_px} px; "
                f"try --device cpu or a smaller model"
            )
        half_px = max(MIN_TILE_PX, tile_px // 2)
        self._limit_px = max(side_px for side_px in TILES_PX if side_px <= half_px)
        return f"{self._device} ran out of memory: tiles of {self._limit_px} px from now on"

    def estimate_s(self, grid: TileGrid) -> float:
        """Seconds in the network for one picture cut like `grid`, from timing at most two windows.

        The larger one stands, by the curve, for all that are larger and for those down to a size in
        between; the small one for the rest. Each is timed once. Batches are not considered, so
        small tiles on a GPU take less.
        """
        area_px = math.prod(grid.window_px)
        side_px = _CALIBRATED_PX[0]
        if area_px <= _SMALL_WINDOW_PX * side_px:
            side_px = _SMALL_WINDOW_PX
        if side_px not in self._rates:
            self._rates[side_px] = self._seconds_per_px(side_px) / self._relative(side_px**2)
        return self._cost(len(grid), area_px) * self._rates[side_px]

    def _cut(self, size_px: tuple[int, int], rows_px: int, columns_px: int) -> TileGrid:
        return tiling.plan(
            size_px,
            tile_px=max(columns_px, self._multiple),
            halo_px=self.halo_px,
            multiple=self._multiple,
            rows_px=max(rows_px, self._multiple),
        )

    def _cost(self, count: int, area_px: int) -> float:
        """Of so many windows, until the last device has done its share; in any unit of time."""
        return math.ceil(count / len(self._devices)) * area_px * self._relative(area_px)

    def _relative(self, area_px: int) -> float:
        """What a pixel costs in a window of this area, by the curve: linear between its points."""
        sides, costs = list(self._curve), list(self._curve.values())
        return float(np.interp(math.sqrt(area_px), sides, costs))  # constant beyond its ends

    def _affordable_px(self, *, large: bool = True) -> float:
        """How many input pixels a device can take at once; fewer of a picture that is not large."""
        most_bytes = min(map(devices.free_bytes, self._devices)) * _MEMORY_SHARE
        if self._device.type == "cpu":
            most_bytes = min(most_bytes, _MOST_TILE_BYTES if large else _MODEST_TILE_BYTES)
        if self._memory_bytes is not None:
            most_bytes = min(most_bytes, self._memory_bytes)
        return most_bytes / self._engine.bytes_per_px()

    def _calibrate(self) -> None:
        """Learn what a pixel costs in larger windows, once in the life of a cache folder."""
        if self._calibrated or self._folder is None:
            return
        self._calibrated = True
        kept = self._folder / _kept_as(self._engine, device=self._device, name=self._name)
        curve = _read_curve(kept)
        if curve is None:
            try:
                curve = _first_kept(kept, self._measured_curve())
            except OSError:
                return  # measured anew every time, a picture might be cut anew every time
        self._curve = curve

    def _measured_curve(self) -> dict[int, float]:
        curve: dict[int, float] = {}
        affordable_px = self._affordable_px()
        for side_px in _CALIBRATED_PX:
            if curve and side_px**2 > affordable_px:
                break
            cost = self._seconds_per_px(side_px, at_least_s=0.0)
            curve[side_px] = cost
            if cost * side_px**2 > _LONGEST_WINDOW_S:
                break
        best = min(curve.values())
        return {side_px: round(cost / best, 3) for side_px, cost in curve.items()}

    def _seconds_per_px(self, side_px: int, *, at_least_s: float = _TIMED_AT_LEAST_S) -> float:
        """Of a square window, or of a smaller one where that does not fit into memory."""
        while True:
            side_px += -side_px % self._multiple
            window = np.full((1, side_px, side_px, self._engine.channels), 0.5, dtype=np.float32)
            try:
                self._engine.run(window)  # the first and slower run is not counted
                started, runs, spent_s = time.perf_counter(), 0, 0.0
                while not runs or spent_s < at_least_s:
                    self._engine.run(window)
                    spent_s, runs = time.perf_counter() - started, runs + 1
                return spent_s / runs / side_px**2
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            devices.release_memory(self._device)
            if side_px <= _SMALL_WINDOW_PX:
                raise OutOfMemoryError(
                    f"{self._device} has not enough memory even for {side_px} px; "
                    f"try --device cpu or a smaller model"
                )
            side_px = max(_SMALL_WINDOW_PX, side_px // 2)


def _kept_as(engine: NetworkEngine, *, device: torch.device, name: str) -> str:
    """What the calibration of a network on a device is called: it says all that counts."""
    facts = [_FORMAT, name, engine.name, engine.precision, str(device), devices.describe(device)]
    return f"tiles-{sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


def _first_kept(path: Path, curve: dict[int, float]) -> dict[int, float]:
    """What is kept from now on: `curve`, or that of a process that was sooner. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps({str(side): cost for side, cost in curve.items()}).encode()
    temporary = files.partial_path(path)
    try:
        temporary.write_bytes(data)
        os.link(temporary, path)  # unlike renaming it replaces nothing
        return curve
    except FileExistsError:
        if (first := _read_curve(path)) is not None:
            return first
    except OSError:
        pass  # not every file system has links
    finally:
        temporary.unlink(missing_ok=True)
    files.write_bytes(path, data)
    return _read_curve(path) or curve


def _read_curve(path: Path) -> dict[int, float] | None:
    """What `_calibrate` wrote; None when there is nothing, or something else."""
    try:
        curve = {int(side): float(cost) for side, cost in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    usable = 0 < len(curve) <= len(_CALIBRATED_PX) and sorted(curve) == list(curve)
    return curve if usable and all(0 < c < math.inf for c in curve.values()) else None
