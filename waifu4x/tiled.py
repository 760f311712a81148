"""Runs a network over pictures of any size, tile by tile, whatever the device's memory.

Tiles are stitched in main memory, so the device never holds more than one batch of them; a batch
may hold tiles of several pictures that are alike. Two ladders keep a run alive, and neither touches
what the user chose explicitly:

- a full memory halves the tile and starts the pictures again (after tiles one by one were too
  much); the size that worked is kept;
- a tile with NaN or infinity (fp16 overflows in some networks) is computed again in fp32.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from waifu4x import devices, tiling
from waifu4x.canvas import Canvas
from waifu4x.checkpoints import Model
from waifu4x.engines import Engine, FloatArray, choice
from waifu4x.engines.ensemble import EightfoldEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import NumericsError, OutOfMemoryError, UsageError
from waifu4x.tiling import Tile, TileGrid

# What memory may push a tile down to, and what a user may choose.
MIN_TILE_PX = 64
SMALLEST_CHOICE_PX = 16
# A receptive radius can exceed 300 px on paper (RRDBNet) while nothing beyond 32 px moves an 8-bit
# value: tests/test_tiled.py measures it for every network.
MAX_HALO_PX = 32
# Larger tiles waste less on halos and are no faster on a CPU: their activations leave the cache. On
# two cores with AMX, freed blocks being kept (waifu4x/cli/allocator.py), the default model enlarges
# 0.54, 0.65, 0.87, 0.81, 0.84 and 0.72 MP of input a second in tiles of 96, 128, 192, 256, 384 and
# 512 px; on one core that gave such blocks back 0.35, 0.50, 0.38, 0.30 and 0.22 from 128 px on.
_MAX_TILE_PX = {"cpu": 192, "mps": 512, "cuda": 1024}
# One by one on MPS: an array above 4 GiB there ends the process, and no error could be caught
# (https://github.com/pytorch/pytorch/issues/143859).
_MAX_BATCH = {"cpu": 1, "mps": 1, "cuda": 16}
# Of the memory that is free now; the rest is for fragmentation and for others.
_MEMORY_SHARE = 0.5
# The side of the window that is timed on behalf of small pictures.
_SMALL_WINDOW_PX = 64
# Runs of a few milliseconds differ by half from one to the next.
_TIMED_AT_LEAST_S = 0.1


class TiledRunner:
    """One model on one device.

    Attributes:
        notes: what was decided on the way since `forget`, one sentence each.
        spent_s: time inside the network since `forget`, in seconds.
        last_tile_px, last_waste: of the latest run; see `TileGrid.waste`.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "torch",
        engines_folder: Path | None = None,
        tile_px: int | None = None,
        tta: bool = False,
    ) -> None:
        """`engine` is one of `devices.ENGINES`; what OpenVINO converts is kept in `engines_folder`.

        Raises:
            UsageError, DeviceError: choices that make no sense, or cannot be met here.
        """
        if tile_px is not None and tile_px < SMALLEST_CHOICE_PX:
            raise UsageError(f"a tile must be at least {SMALLEST_CHOICE_PX} px, not {tile_px}")
        wish = devices.wished_engine(engine)
        self.device = choice.pick_device(wish, device)
        self._model = model
        self._network, note = choice.open_engine(
            model.network,
            engine=wish,
            device=self.device,
            precision=precision,
            sha256=model.sha256,
            folder=engines_folder,
        )
        self._engine: Engine = EightfoldEngine(self._network) if tta else self._network
        self._tta = tta
        self._may_change_precision = precision == "auto"
        self._wished_tile_px = tile_px
        self._tile_limit_px: int | None = None
        self._batch_limit = _MAX_BATCH[self.device.type]
        self._rates: dict[bool, float] = {}
        self.halo_px = min(model.receptive_radius_px, MAX_HALO_PX)
        # Said with the first picture, and not with every one of a folder.
        self._unsaid = [note] if note else []
        self.forget()

    @property
    def engine(self) -> str:
        """The name of the engine that was picked."""
        return self._engine.name

    @property
    def precision(self) -> str:
        return self._engine.precision

    def forget(self) -> None:
        """Begin a new picture's facts; the tile size that memory allowed is kept."""
        self.notes: list[str] = [*self._unsaid]
        self.spent_s = 0.0
        self.last_tile_px: int | None = None
        self.last_waste = 1.0

    def run(
        self,
        image: FloatArray,
        *,
        canvas: Canvas | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> npt.NDArray:
        """One pass of the network over one picture: see `run_all`."""
        canvases = None if canvas is None else [canvas]
        return self.run_all([image], canvases=canvases, on_progress=on_progress)[0]

    def run_all(
        self,
        images: Sequence[FloatArray],
        *,
        canvases: Sequence[Canvas] | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[npt.NDArray]:
        """One pass of the network over pictures that are alike, their tiles in common batches.

        The results are guaranteed to be those of one picture after the other, but for the order in
        which the device sums in a batch of another size.

        Args:
            images: each (h, w, C) float32 in [0, 1], all of one shape; C is the network's, or 1 for
                an RGB network, which then sees three equal channels and whose result is made gray
                again.
            canvases: where the results go; by default new ones of float32.
            on_progress: called with the share done, 0..1.

        Returns:
            The canvases' values (s·h, s·w, C), in [0, 1] or integers.

        Raises:
            ValueError: no pictures, or of several shapes.
            NumericsError, OutOfMemoryError: see the two ladders above.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError("the pictures of one run must be of one shape")
        height, width, channels = images[0].shape
        scale = self._engine.scale
        if canvases is None:
            size_px = height * scale, width * scale
            canvases = [Canvas(size_px, channels=channels, dtype=np.float32) for _ in images]
        padded = [_pad_to_multiple(image, self._model.size_multiple) for image in images]
        while True:
            grid = self.plan(*padded[0].shape[:2])
            batch_size = min(self._batch_size(grid), len(grid) * len(images))
            report = on_progress or (lambda share: None)
            if self._fill(canvases, padded, grid, batch_size=batch_size, on_progress=report):
                return [canvas.values for canvas in canvases]
            devices.release_memory(self.device)
            if batch_size > 1:
                # Else smaller tiles would come in larger batches and need the same memory again.
                self._batch_limit = 1
            else:
                self._lower_tile(grid)

    def images_at_once(self, grid: TileGrid) -> int:
        """How many pictures cut like `grid` fill one batch of tiles, at least 1."""
        return max(1, self._batch_size(grid) // len(grid))

    def plan(self, height_px: int, width_px: int) -> TileGrid:
        """The tiles that a picture of this size (a multiple of the model's) would be cut into."""
        multiple = self._model.size_multiple
        tile_px = self._wished_tile_px or self._automatic_tile_px()
        return tiling.plan(
            (height_px, width_px),
            tile_px=max(tile_px, multiple),
            halo_px=self.halo_px,
            multiple=multiple,
        )

    def main_memory_bytes(self, grid: TileGrid) -> int:
        """What the network takes of the machine's main memory for one tile; 0 where a GPU has its
        own. Measured on five networks: between 0.7 and 1.8 of what it says."""
        if self.device.type == "cuda":
            return 0
        return int(math.prod(grid.window_px) * self._network.bytes_per_px())

    def estimate_s(self, grid: TileGrid) -> float:
        """Seconds in the network for one picture cut like `grid`, from timing at most two windows.

        That of a full tile stands for all larger ones and, per pixel, for those down to a size in
        between; a small one for the rest. Each is timed once in a runner's life. On an idle CPU
        core this was within 15 % from 48 px on, and too low below (16 px take five times as long:
        2 ms). Batches are not considered, so small tiles on a GPU take less.
        """
        area_px = math.prod(grid.window_px)
        full_px = self._full_window_px()
        large = area_px > full_px * _SMALL_WINDOW_PX
        if large not in self._rates:
            side_px = full_px if large else _SMALL_WINDOW_PX
            self._rates[large] = self._seconds_per_px(side_px)
        return len(grid) * area_px * self._rates[large]

    def _full_window_px(self) -> int:
        """The side of a full tile's window; an explicit tile beyond all sense is not timed."""
        tile_px = self._wished_tile_px or self._automatic_tile_px()
        tile_px = min(tile_px, _MAX_TILE_PX[self.device.type])
        return max(_SMALL_WINDOW_PX, tile_px + 2 * self.halo_px)

    def _seconds_per_px(self, side_px: int) -> float:
        """Of a square window, or of a smaller one where that does not fit into memory."""
        while True:
            side_px += -side_px % self._model.size_multiple
            window = np.full((1, side_px, side_px, self._engine.channels), 0.5, dtype=np.float32)
            try:
                self._engine.run(window)  # the first and slower run is not counted
                started, runs, spent_s = time.perf_counter(), 0, 0.0
                while spent_s < _TIMED_AT_LEAST_S:
                    self._engine.run(window)
                    spent_s, runs = time.perf_counter() - started, runs + 1
                return spent_s / runs / side_px**2
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            devices.release_memory(self.device)
            if side_px <= _SMALL_WINDOW_PX:
                raise OutOfMemoryError(
                    f"{self.device} has not enough memory even for {side_px} px; "
                    f"try --device cpu or a smaller model"
                )
            side_px = max(_SMALL_WINDOW_PX, side_px // 2)

    def _automatic_tile_px(self) -> int:
        affordable_px = math.isqrt(int(self._affordable_px())) - 2 * self.halo_px
        tile_px = _MAX_TILE_PX[self.device.type]
        if self._tile_limit_px is not None:
            affordable_px = min(affordable_px, self._tile_limit_px)
        # In steps, so that what others take of the memory seldom changes how a picture is cut:
        # bf16 results differ in their last bit from one tile size to another.
        while tile_px > max(affordable_px, MIN_TILE_PX):
            tile_px = _next_smaller(tile_px)
        return tile_px

    def _affordable_px(self) -> float:
        """How many input pixels the device can take at once."""
        return devices.free_bytes(self.device) * _MEMORY_SHARE / self._network.bytes_per_px()

    def _lower_tile(self, grid: TileGrid) -> None:
        """Halve the tile after the memory was full; an explicit one is never changed."""
        tile_px = grid.core_px
        if self._wished_tile_px is not None:
            raise OutOfMemoryError(
                f"{self.device} has not enough memory for tiles of {self._wished_tile_px} px; "
                f"choose a smaller one, or leave --tile out"
            )
        if tile_px <= MIN_TILE_PX:
            raise OutOfMemoryError(
                f"{self.device} has not enough memory even for tiles of {tile_px} px; "
                f"try --device cpu or a smaller model"
            )
        limit_px = _MAX_TILE_PX[self.device.type]
        while limit_px >= tile_px:
            limit_px = _next_smaller(limit_px)
        self._tile_limit_px = limit_px
        self._note(
            f"{self.device} ran out of memory: tiles of {self._tile_limit_px} px from now on"
        )

    def _fill(
        self,
        canvases: Sequence[Canvas],
        images: Sequence[FloatArray],
        grid: TileGrid,
        *,
        batch_size: int,
        on_progress: Callable[[float], None],
    ) -> bool:
        """Compute every tile of every image; False when the device's memory was full."""
        started = time.perf_counter()
        scale = self._engine.scale
        self.last_tile_px = grid.core_px
        self.last_waste = grid.waste
        self._unsaid.clear()
        done = 0
        pairs = itertools.product(range(len(images)), grid)
        for batch in _batches(pairs, batch_size):
            try:
                results = self._run_windows([tile.cut(images[n]) for n, tile in batch])
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                # Leave the block before retrying: the traceback holds the tensors alive.
                return False
            for (number, tile), result in zip(batch, results, strict=True):
                rows, columns = tile.place(scale)
                height, width = canvases[number].values.shape[:2]
                core = tile.core(result, scale)
                core = core[: height - rows.start, : width - columns.start]
                canvases[number].put((rows, columns), core)
            done += len(batch)
            on_progress(done / (len(grid) * len(images)))
        self.spent_s += time.perf_counter() - started
        return True

    def _batch_size(self, grid: TileGrid) -> int:
        """How many tiles of `grid` the device takes at once, however many there are."""
        affordable = int(self._affordable_px() // math.prod(grid.window_px))
        return max(1, min(self._batch_limit, affordable))

    def _run_windows(self, views: list[FloatArray]) -> FloatArray:
        """The windows' results (n, s·h, s·w, C), all finite."""
        windows = np.stack(views)
        if windows.shape[3] == 1 and self._engine.channels == 3:
            windows = np.repeat(windows, 3, axis=3)
        results = self._engine.run(windows)
        spoiled = ~np.isfinite(results).reshape(len(results), -1).all(axis=1)
        if not spoiled.any():
            return results
        precision = self._engine.precision
        if precision != "fp32" and self._may_change_precision:
            self._note(f"{precision} gave NaN or infinity: such tiles were computed again in fp32")
            again = self._exact_engine().run(windows[spoiled])
            if np.isfinite(again).all():
                results[spoiled] = again
                return results
            precision = "fp32"
        raise NumericsError(
            f"{self._model.name} gives NaN or infinity in {precision} for this picture; "
            + ("try another model" if precision == "fp32" else "try --precision fp32")
        )

    def _exact_engine(self) -> Engine:
        exact = TorchEngine(self._model.network, device=self.device, dtype=torch.float32)
        return EightfoldEngine(exact) if self._tta else exact

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _next_smaller(tile_px: int) -> int:
    return max(MIN_TILE_PX, tile_px // 2)


def _batches(pairs: Iterable[tuple[int, Tile]], size: int) -> Iterator[list[tuple[int, Tile]]]:
    remaining = iter(pairs)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _pad_to_multiple(image: FloatArray, multiple: int) -> FloatArray:
    """Repeat the last row and column until both sides are multiples; cut off again afterwards."""
    missing = [-n % multiple for n in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
