"""Runs a network over pictures of any size, tile by tile, whatever the device's memory.

Tiles are stitched in main memory, so the device never holds more than one batch of them; a batch
may hold tiles of several pictures that are alike. Two ladders keep a run alive, and neither touches
what the user chose explicitly:

- a full memory makes the tile smaller and starts the pictures again (after tiles one by one were
  too much); the size that worked is kept: `tile_sizes`;
- a tile with NaN or infinity (fp16 overflows in some networks) is computed again in fp32:
  `windows`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x import devices
from waifu4x.canvas import Canvas
from waifu4x.engines import Engine, FloatArray, Opened
from waifu4x.engines.ensemble import EightfoldEngine
from waifu4x.errors import UsageError
from waifu4x.model_files.model_facts import Model
from waifu4x.sizes import Pass
from waifu4x.tiled.tile_sizes import TileSizes
from waifu4x.tiled.windows import WindowRunner
from waifu4x.tiling import Tile, TileGrid

SMALLEST_CHOICE_PX = 16
"""What a user may choose as a tile."""
# A receptive radius can exceed 300 px on paper (RRDBNet) while nothing beyond 32 px moves an 8-bit
# value: tests/test_tiled.py measures it for every network.
MAX_HALO_PX = 32


class MemoryFullError(Exception):
    """A band could not be computed: begin the picture again, the tiles will be smaller."""


class TiledRunner:
    """One model on one device.

    Attributes:
        device: the first one, where there are several.
        devices_name: of all of them, with commas between.
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
        compiled: bool = False,
        memory_bytes: int | None = None,
        opened: Opened | None = None,
    ) -> None:
        """
        Args:
            device, precision, engine, compiled: see `choice.open_engine`.
            engines_folder: where what engines convert is kept, and how fast tiles were.
            tile_px: the side of a tile, never changed.
            tta: average over the eight flips and turns of the picture.
            memory_bytes: what the network may take of the device's memory for a tile.
            opened: the model's engine, where there is one already; the other choices led to it.

        Raises:
            UsageError, DeviceError: choices that make no sense, or cannot be met here.
        """
        _check(model, tile_px=tile_px, tta=tta)
        how = {"engine": engine, "device": device, "precision": precision, "compiled": compiled}
        opened = opened or _opened(model, engines_folder, **how)
        self.device = opened.devices[0]
        self.devices_name = ",".join(map(str, opened.devices))
        self._model = model
        self._network = opened.engine
        self._engine: Engine = EightfoldEngine(self._network) if tta else self._network
        self._tta = tta
        self._windows = WindowRunner(
            self._engine,
            name=model.name,
            exact=self._exact_engine if precision == "auto" else None,
            note=self._note,
        )
        self._sizes = TileSizes(
            self._network,
            device=self.device,
            beside=opened.devices[1:],
            halo_px=min(model.receptive_radius_px, MAX_HALO_PX),
            multiple=model.size_multiple,
            wished_px=tile_px,
            memory_bytes=memory_bytes,
            name=model.sha256,
            folder=engines_folder,
        )
        # Said with the first picture, and not with every one of a folder.
        self._unsaid = [opened.note] if opened.note else []
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
        to: Pass | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> npt.NDArray:
        """One pass of the network over one picture: see `run_all`."""
        canvases = None if canvas is None else [canvas]
        return self.run_all([image], canvases=canvases, to=to, on_progress=on_progress)[0]

    def run_all(
        self,
        images: Sequence[FloatArray],
        *,
        canvases: Sequence[Canvas] | None = None,
        to: Pass | None = None,
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
            to: what a network of any scale shall give, by default what one of its `scale` would.
            on_progress: called with the share done, 0..1.

        Returns:
            The canvases' values (s·h, s·w, C), or of the size in `to`; in [0, 1] or integers.

        Raises:
            ValueError: no pictures, or of several shapes; or they are too small for what `to` says.
            NumericsError, OutOfMemoryError: see the two ladders above.
        """
        if len({image.shape for image in images}) != 1:
            raise ValueError("the pictures of one run must be of one shape")
        height, width, channels = images[0].shape
        plain = self._engine.scale
        scale, size_px = to or (plain, (height * plain, width * plain))
        if math.ceil(height * scale) < size_px[0] or math.ceil(width * scale) < size_px[1]:
            raise ValueError(f"{height}×{width} px times {scale} are less than {size_px}")
        if canvases is None:
            canvases = [Canvas(size_px, channels=channels, dtype=np.float32) for _ in images]
        padded = [_pad_to_multiple(image, self._model.size_multiple) for image in images]
        report = on_progress or (lambda share: None)
        while True:
            sample_bytes = canvases[0].values.itemsize
            grid = self._sizes.plan(*padded[0].shape[:2], sample_bytes=sample_bytes)
            pairs = list(itertools.product(range(len(images)), grid))
            batch_size = min(self._sizes.batch_size(grid), len(pairs))
            try:
                cores = self._cores(
                    padded, pairs, grid, canvas=canvases[0], batch_size=batch_size, scale=scale
                )
                for number, (n, tile, core) in enumerate(cores, 1):
                    canvases[n].put(*_fitted(tile.place(scale), core, canvases[n]))
                    if number % batch_size == 0 or number == len(pairs):
                        report(number / len(pairs))
                return [canvas.values for canvas in canvases]
            except MemoryFullError:
                continue

    def bands(
        self,
        rows: Callable[[int, int], FloatArray],
        size_px: tuple[int, int],
        *,
        channels: int,
        dtype: npt.DTypeLike,
        to: Pass | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[npt.NDArray]:
        """One pass of the network over one picture, in bands of rows from its top to its bottom.

        Put together they are guaranteed to be what `run` gives in a canvas of `dtype`.

        Args:
            rows: gives rows `start` to `stop` of the picture, (stop - start, w, C) float32 in
                [0, 1]; both numbers never fall from one call to the next.
            size_px: height and width of the picture.
            channels: the picture's.
            to: as in `run_all`.

        Yields:
            (n, s·w, C) arrays, whose rows add up to s·h; or those of the size in `to`.

        Raises:
            MemoryFullError: the device's memory was full: begin again, it may fit now.
            NumericsError, OutOfMemoryError: see the two ladders above.
        """
        height_px, width_px = size_px
        multiple = self._model.size_multiple
        plain = self._engine.scale
        scale, out_px = to or (plain, (height_px * plain, width_px * plain))
        height, width = (n + -n % multiple for n in size_px)
        grid = self._sizes.plan(height, width, sample_bytes=np.dtype(dtype).itemsize)
        for number, span in enumerate(grid.rows):
            stop = min(span.window_start + span.window_px, height_px)
            image = _pad_to_multiple(rows(span.window_start, stop), multiple)
            place = span.outer(scale)
            height = min(place.stop, out_px[0]) - place.start
            canvas = Canvas((height, out_px[1]), channels=channels, dtype=dtype)
            pairs = [(0, Tile(span, columns)) for columns in grid.columns]
            batch_size = min(self._sizes.batch_size(grid), len(pairs))
            for _, tile, core in self._cores(
                *([image], pairs, grid),
                canvas=canvas,
                batch_size=batch_size,
                scale=scale,
                top_px=span.window_start,
            ):
                place = slice(0, height), tile.place(scale)[1]
                canvas.put(*_fitted(place, core, canvas))
            if on_progress is not None:
                on_progress((number + 1) / len(grid.rows))
            yield canvas.values

    def images_at_once(self, grid: TileGrid) -> int:
        """How many pictures cut like `grid` fill one batch of tiles, at least 1."""
        return max(1, self._sizes.batch_size(grid) // len(grid))

    def plan(self, height_px: int, width_px: int) -> TileGrid:
        """The tiles that a picture of this size (a multiple of the model's) would be cut into."""
        return self._sizes.plan(height_px, width_px)

    def main_memory_bytes(self, grid: TileGrid) -> int:
        """What the network takes of the machine's main memory for one tile; on a GPU with memory of
        its own, for the buffers of two batches. Measured on five networks on a CPU: between 0.7 and
        1.8 of what it says."""
        window_px = math.prod(grid.window_px)
        if self.device.type == "cuda":
            batch = min(self._sizes.batch_size(grid), len(grid))
            values = self._engine.channels * (1 + self._engine.scale**2)
            return 2 * batch * window_px * 4 * values
        return int(window_px * self._network.bytes_per_px())

    def estimate_s(self, grid: TileGrid) -> float:
        """Seconds in the network for one picture cut like `grid`: see `TileSizes.estimate_s`."""
        return self._sizes.estimate_s(grid)

    def _cores(
        self,
        images: Sequence[FloatArray],
        pairs: Sequence[tuple[int, Tile]],
        grid: TileGrid,
        *,
        canvas: Canvas,
        batch_size: int,
        scale: int | Fraction,
        top_px: int = 0,
    ) -> Iterator[tuple[int, Tile, npt.NDArray]]:
        """The core of the result for every pair of an image's number and a tile, in their order.

        `grid` is what the tiles were planned as, `canvas` one of those that the results are for,
        `top_px` the row of the picture that the images begin at.
        Raises MemoryFullError after having seen to it that less is taken the next time.
        """
        started = time.perf_counter()
        self.last_tile_px = grid.core_px
        self.last_waste = grid.waste
        self._unsaid.clear()
        # What three channels gave becomes one by a sum of floats.
        kept = canvas.values.shape[2] == self._engine.channels
        dtype = canvas.values.dtype if kept else np.dtype(np.float32)
        remaining = iter(pairs)
        try:
            for windows, alike in self._alike(pairs, scale):
                batches = _batched(alike, batch_size)
                stacks = (
                    np.stack([tile.cut(images[n], top_px=top_px) for n, tile in batch])
                    for batch in batches
                )
                for results in windows.stream(stacks, dtype=dtype):
                    for result in results:
                        n, tile = next(remaining)
                        yield n, tile, tile.core(result, scale)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
            full = True
        else:
            full = False
        # Outside the block: the traceback holds the tensors alive.
        self.spent_s += time.perf_counter() - started
        if full:
            note = self._sizes.give_way(grid, batch_size=batch_size)
            if note is not None:
                self._note(note)
            raise MemoryFullError

    def _alike(
        self, pairs: Sequence[tuple[int, Tile]], scale: int | Fraction
    ) -> Iterator[tuple[WindowRunner, Iterable[tuple[int, Tile]]]]:
        """Pairs that follow each other and can be in one batch, and what runs them.

        A network of any scale is another one for windows of other remainders, see `AnyScaleEngine`.
        """
        if isinstance(scale, int):
            yield self._windows, pairs
            return

        def remainders(pair: tuple[int, Tile]) -> tuple[int, int]:
            row, column = pair[1].origin
            return row % scale.denominator, column % scale.denominator

        for origin, alike in itertools.groupby(pairs, key=remainders):
            yield self._windows.at(scale, origin), alike

    def _exact_engine(self) -> Engine:
        from waifu4x.engines import choice

        exact = choice.open_exact(self._model.network, self.device)
        return EightfoldEngine(exact) if self._tta else exact

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _check(model: Model, *, tile_px: int | None, tta: bool) -> None:
    """Raises UsageError for choices that make no sense."""
    if tile_px is not None and tile_px < SMALLEST_CHOICE_PX:
        raise UsageError(f"a tile must be at least {SMALLEST_CHOICE_PX} px, not {tile_px}")
    if tta and model.any_scale:
        raise UsageError(
            f"{model.name} enlarges by any factor, which gives no picture that could be turned "
            f"back pixel by pixel: leave --tta out"
        )


def _opened(model: Model, folder: Path | None, **how: Any) -> Opened:
    from waifu4x.engines import choice  # it needs torch

    return choice.open_engine(model.network, sha256=model.sha256, folder=folder, **how)


def _batched(
    pairs: Iterable[tuple[int, Tile]], size: int
) -> Iterator[tuple[tuple[int, Tile], ...]]:
    remaining = iter(pairs)
    while batch := tuple(itertools.islice(remaining, size)):
        yield batch


def _fitted(
    place: tuple[slice, slice], core: npt.NDArray, canvas: Canvas
) -> tuple[tuple[slice, slice], npt.NDArray]:
    """Without what lies beyond the canvas: the picture was continued there."""
    height, width = canvas.values.shape[:2]
    rows, columns = place
    return place, core[: height - rows.start, : width - columns.start]


def _pad_to_multiple(image: FloatArray, multiple: int) -> FloatArray:
    """Repeat the last row and column until both sides are multiples; cut off again afterwards."""
    missing = [-n % multiple for n in image.shape[:2]]
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
