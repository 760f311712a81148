"""Runs a network over a picture of any size, tile by tile, whatever the device's memory.

Tiles are stitched in main memory, so the device never holds more than one batch of them. Two
ladders keep a run alive, and neither touches what the user chose explicitly:

- a full memory halves the tile and starts the picture again (after tiles one by one were too
  much); the size that worked is kept;
- a tile with NaN or infinity (fp16 overflows in some networks) is computed again in fp32.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from waifu4x import devices, tiling
from waifu4x.canvas import Canvas
from waifu4x.checkpoints import Model
from waifu4x.engines import Engine, FloatArray
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
# Larger tiles waste less on halos and are slower all the same: on a CPU their activations leave the
# cache. On one core with AMX the default model enlarges 0.35, 0.50, 0.38, 0.30 and 0.22 MP of input
# a second in tiles of 128, 192, 256, 384 and 512 px.
_MAX_TILE_PX = {"cpu": 192, "mps": 512, "cuda": 1024}
# One by one on MPS: an array above 4 GiB there ends the process, and no error could be caught
# (https://github.com/pytorch/pytorch/issues/143859).
_MAX_BATCH = {"cpu": 1, "mps": 1, "cuda": 16}
# Of the memory that is free now; the rest is for fragmentation and for others.
_MEMORY_SHARE = 0.5


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
        tile_px: int | None = None,
        tta: bool = False,
    ) -> None:
        if tile_px is not None and tile_px < SMALLEST_CHOICE_PX:
            raise UsageError(f"a tile must be at least {SMALLEST_CHOICE_PX} px, not {tile_px}")
        self.device = devices.pick(device)
        self._model = model
        self._network = TorchEngine(
            model.network,
            device=self.device,
            dtype=devices.pick_dtype(precision, self.device),
        )
        self._engine: Engine = EightfoldEngine(self._network) if tta else self._network
        self._tta = tta
        self._may_change_precision = precision == "auto"
        self._wished_tile_px = tile_px
        self._tile_limit_px: int | None = None
        self._batch_limit = _MAX_BATCH[self.device.type]
        self.halo_px = min(model.receptive_radius_px, MAX_HALO_PX)
        self.forget()

    @property
    def precision(self) -> str:
        return self._engine.precision

    def forget(self) -> None:
        """Begin a new picture's facts; the tile size that memory allowed is kept."""
        self.notes: list[str] = []
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
        """One pass of the network over the whole picture.

        Args:
            image: (h, w, C) float32 in [0, 1]; C is the network's, or 1 for an RGB network, which
                then sees three equal channels and whose result is made gray again.
            canvas: where the result goes; by default a new one of float32.
            on_progress: called with the share done, 0..1.

        Returns:
            The canvas' values (s·h, s·w, C), in [0, 1] or integers.

        Raises:
            NumericsError, OutOfMemoryError: see the two ladders above.
        """
        height, width, channels = image.shape
        scale = self._engine.scale
        if canvas is None:
            canvas = Canvas((height * scale, width * scale), channels=channels, dtype=np.float32)
        padded = _pad_to_multiple(image, self._model.size_multiple)
        while True:
            grid = self.plan(padded.shape[0], padded.shape[1])
            batch_size = self._batch_size(grid)
            report = on_progress or (lambda share: None)
            if self._fill(canvas, padded, grid, batch_size=batch_size, on_progress=report):
                return canvas.values
            devices.release_memory(self.device)
            if batch_size > 1:
                # Else smaller tiles would come in larger batches and need the same memory again.
                self._batch_limit = 1
            else:
                self._lower_tile(grid)

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

    def time_tile(self, grid: TileGrid) -> float:
        """Seconds that one tile of `grid` takes here, the first and slower run not counted."""
        window = np.full((1, *grid.window_px, self._engine.channels), 0.5, dtype=np.float32)
        self._engine.run(window)
        started = time.perf_counter()
        self._engine.run(window)
        return time.perf_counter() - started

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
        canvas: Canvas,
        image: FloatArray,
        grid: TileGrid,
        *,
        batch_size: int,
        on_progress: Callable[[float], None],
    ) -> bool:
        """Compute every tile into `canvas`; False when the device's memory was full."""
        started = time.perf_counter()
        scale = self._engine.scale
        self.last_tile_px = grid.core_px
        self.last_waste = grid.waste
        done = 0
        for tiles in _batches(grid, batch_size):
            try:
                results = self._run_tiles(image, tiles)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                # Leave the block before retrying: the traceback holds the tensors alive.
                return False
            for tile, result in zip(tiles, results, strict=True):
                rows, columns = tile.place(scale)
                height, width = canvas.values.shape[:2]
                core = tile.core(result, scale)
                core = core[: height - rows.start, : width - columns.start]
                canvas.put((rows, columns), core)
            done += len(tiles)
            on_progress(done / len(grid))
        self.spent_s += time.perf_counter() - started
        return True

    def _batch_size(self, grid: TileGrid) -> int:
        area_px = grid.window_px[0] * grid.window_px[1]
        affordable = int(self._affordable_px() // area_px)
        return max(1, min(self._batch_limit, len(grid), affordable))

    def _run_tiles(self, image: FloatArray, tiles: list[Tile]) -> FloatArray:
        """The windows' results (n, s·h, s·w, C), all finite."""
        windows = np.stack([tile.cut(image) for tile in tiles])
        if windows.shape[3] == 1 and self._engine.channels == 3:
            windows = np.repeat(windows, 3, axis=3)
        results = self._engine.run(windows)
        if np.isfinite(results).all():
            return results
        precision = self._engine.precision
        if precision != "fp32" and self._may_change_precision:
            self._note(f"{precision} gave NaN or infinity: such tiles were computed again in fp32")
            results = self._exact_engine().run(windows)
            if np.isfinite(results).all():
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


def _batches(grid: TileGrid, size: int) -> Iterator[list[Tile]]:
    tiles = iter(grid)
    while batch := list(itertools.islice(tiles, size)):
        yield batch


def _pad_to_multiple(image: FloatArray, multiple: int) -> FloatArray:
    """Repeat the last row and column until both sides are multiples; cut off again afterwards."""
    missing = [-n % multiple for n in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
