"""A picture and sharp pictures of something similar become a larger picture.

`ReferenceRunner` stands in the place of a `TiledRunner`, so colours, alpha, sizes, strips and files
are those of every other model. It shows the network windows: for CrossNet of the enlarged picture
and of its reference, which lie upon each other, for SRNTT of the small picture, whose textures are
looked for in all of the references. Everything is computed in float32, by torch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from waifu4x import devices, tiling
from waifu4x.canvas import Canvas, FloatArray
from waifu4x.errors import NumericsError, OutOfMemoryError, UsageError
from waifu4x.model_files.model_facts import Model
from waifu4x.networks.srntt import SRNTT
from waifu4x.references.reference_pictures import References, read_references
from waifu4x.references.shown import Aligned, Searched, Shown, tensor
from waifu4x.tiled import MemoryFullError, TiledRunner
from waifu4x.tiling import Tile, TileGrid
from waifu4x.upscaler import Options, Upscaler

if TYPE_CHECKING:
    from waifu4x.sizes import Pass

_SMALLEST_TILE_PX = 16


class ReferenceRunner:
    """One network that takes references, on one device; as much of a `TiledRunner` as is asked.

    Windows change what is made: CrossNet's flow, and what SRNTT's search sees around a patch, end
    at a window's border. The same picture, references and tile are guaranteed to give the same
    result, and a picture that fits into one window is made in one piece.
    """

    engine = "torch"
    precision = "fp32"

    def __init__(
        self,
        model: Model,
        references: References,
        *,
        device: str = "auto",
        tile_px: int | None = None,
    ) -> None:
        """
        Args:
            tile_px: the side of a window's core, in pixels of the network's input.

        Raises:
            UsageError: references that the network cannot take, or a tile likewise.
            DeviceError: see `devices.pick`.
        """
        self.device = devices.pick(device)
        self.devices_name = str(self.device)
        self._model = model
        self._multiple = model.size_multiple
        smallest_px = max(self._multiple, _SMALLEST_TILE_PX)
        if tile_px is not None and (tile_px < smallest_px or tile_px % self._multiple):
            raise UsageError(
                f"a tile of {model.name} has {smallest_px} px or more, in steps of "
                f"{self._multiple}, not {tile_px}"
            )
        self._wished_px = tile_px
        self._network: Any = model.network.to(self.device)
        self.show(references)
        self._core_px = tile_px or self._shown.core_px
        self.forget()

    def show(self, references: References) -> None:
        """Take other references from now on. Raises UsageError as the constructor does."""
        name = self._model.name
        self._shown: Shown
        if isinstance(self._network, SRNTT):
            self._shown = Searched(references, name=name, device=self.device, network=self._network)
        else:
            self._shown = Aligned(references, name=name, device=self.device)
        self.references = references
        # A search takes as long as there is much to look into.
        self._cost_s: tuple[float, float] | None = None

    def forget(self) -> None:
        """Begin a new picture's facts."""
        self.notes: list[str] = []
        self.spent_s = 0.0
        self.last_tile_px: int | None = None
        self.last_waste = 1.0

    def plan(self, height_px: int, width_px: int) -> TileGrid:
        """The windows of a picture of this size, a multiple of the model's."""
        return tiling.plan(
            (height_px, width_px),
            tile_px=self._core_px,
            halo_px=self._shown.halo_px,
            multiple=self._multiple,
        )

    def images_at_once(self, grid: TileGrid) -> int:
        """One: windows are computed one by one."""
        return 1

    def main_memory_bytes(self, grid: TileGrid) -> int:
        """What a window, and all that is kept of the references, take at most, about."""
        images = self.references.images
        kept_px = sum(image.shape[0] * image.shape[1] for image in images)
        window_bytes = math.prod(grid.window_px) * self._shown.bytes_per_px
        return window_bytes + kept_px * self._shown.kept_bytes_per_px

    def estimate_s(self, grid: TileGrid) -> float:
        """Seconds for a picture cut like `grid`, from timing two small windows.

        To look into references takes a time for each window, and one for each of its pixels.
        """
        if self._cost_s is None:
            side_px = max(self._multiple, _SMALLEST_TILE_PX)
            if not self._shown.prepare():
                self._timed_s(side_px)  # the first one also pays for setting up
            small_s, large_s = self._timed_s(side_px), self._timed_s(2 * side_px)
            of_px_s = max(0.0, large_s - small_s) / (3 * side_px**2)
            self._cost_s = max(0.0, small_s - of_px_s * side_px**2), of_px_s
        of_window_s, of_px_s = self._cost_s
        return len(grid) * (of_window_s + of_px_s * math.prod(grid.window_px))

    def _timed_s(self, side_px: int) -> float:
        window = np.zeros((side_px, side_px, 3), dtype=np.float32)
        started = time.perf_counter()
        self._run(window, window)
        return time.perf_counter() - started

    def run_all(
        self,
        images: Sequence[FloatArray],
        *,
        canvases: Sequence[Canvas] | None = None,
        to: Pass | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> list[npt.NDArray]:
        """As `TiledRunner.run_all`, one picture after the other.

        Raises UsageError, too, where the reference does not fit the picture.
        """
        found: list[npt.NDArray] = []
        for number, image in enumerate(images):

            def inside(share: float, done: int = number) -> None:
                if on_progress is not None:
                    on_progress((done + share) / len(images))

            canvas = None if canvases is None else canvases[number]
            found.append(self._one(image, canvas, inside))
        return found

    def _one(
        self, image: FloatArray, canvas: Canvas | None, on_progress: Callable[[float], None]
    ) -> npt.NDArray:
        height, width, channels = image.shape
        if canvas is None:
            scale = self._model.scale
            size_px = (height * scale, width * scale)
            canvas = Canvas(size_px, channels=channels, dtype=np.float32)
        while True:
            bands = self.bands(
                lambda start, stop: image[start:stop],
                (height, width),
                channels=channels,
                dtype=canvas.values.dtype,
                on_progress=on_progress,
            )
            top = 0
            try:
                for band in bands:
                    canvas.values[top : top + len(band)] = band
                    top += len(band)
                return canvas.values
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
        """As `TiledRunner.bands`."""
        height, width = size_px
        scale = self._model.scale
        grid = self.plan(*(side + -side % self._multiple for side in size_px))
        beside = self._upon(size_px)
        self.last_tile_px, self.last_waste = grid.core_px, grid.waste
        for number, span in enumerate(grid.rows):
            stop = min(span.window_start + span.window_px, height)
            image = _mirrored(
                _as_rgb(rows(span.window_start, stop)), span.window_px, self._multiple
            )
            size = ((min(span.core_stop, height) - span.core_start) * scale, width * scale)
            canvas = Canvas(size, channels=channels, dtype=dtype)
            for columns in grid.columns:
                tile = Tile(span, columns)
                window = tile.cut(image, top_px=span.window_start)
                shown = None if beside is None else tile.cut(beside)
                core = tile.core(self._window(window, shown), scale)
                place = tile.place(scale)[1]
                right = min(place.stop, size[1])
                canvas.put(
                    (slice(0, size[0]), slice(place.start, right)),
                    core[: size[0], : right - place.start],
                )
            if on_progress is not None:
                on_progress((number + 1) / len(grid.rows))
            yield canvas.values

    def _upon(self, size_px: tuple[int, int]) -> FloatArray | None:
        """What lies upon a picture of that size, continued as the picture is."""
        image, note = self._shown.upon(size_px)
        if note is not None and note not in self.notes:
            self.notes.append(note)
        if image is None:
            return None
        return _mirrored(image, size_px[0] + -size_px[0] % self._multiple, self._multiple)

    def _window(self, window: FloatArray, beside: FloatArray | None) -> FloatArray:
        """What the network makes of one window; see `bands` for what is raised."""
        started = time.perf_counter()
        try:
            values = self._run(window, beside)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            self.spent_s += time.perf_counter() - started
            if not np.isfinite(values).all():
                raise NumericsError(f"{self._model.name} gave NaN or infinity: its file may be bad")
            return values
        # Outside the block: the traceback holds the tensors alive.
        devices.release_memory(self.device)
        smaller_px = self._core_px // 2 // self._multiple * self._multiple
        if self._wished_px is not None or smaller_px < _SMALLEST_TILE_PX:
            raise OutOfMemoryError(
                f"{self.device} cannot hold a window of {window.shape[1]}×{window.shape[0]} px of "
                f"{self._model.name}: give a smaller --tile, or smaller references"
            )
        self._core_px = smaller_px
        self.notes.append(f"the memory was full: windows of {smaller_px} px")
        raise MemoryFullError

    def _run(self, window: FloatArray, beside: FloatArray | None) -> FloatArray:
        with torch.inference_mode(), devices.true_fp32(self.device):
            x = tensor(window, self.device)
            y = self._network(x[None], *self._shown.beside(x, beside))
            return y[0].permute(1, 2, 0).float().cpu().numpy()


def _as_rgb(image: FloatArray) -> FloatArray:
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _mirrored(image: FloatArray, height_px: int, multiple: int) -> FloatArray:
    """Continued to that height, and to a width that is a multiple, as in a mirror."""
    missing = height_px - image.shape[0], -image.shape[1] % multiple
    if not any(missing):
        return image
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")


@dataclass(kw_only=True)
class ReferenceUpscaler(Upscaler):
    """An upscaler by a network that takes references, the same for every picture.

    A picture passes the network once, at its size or the network's scale, whichever is smaller, and
    what is missing to its size is resampled: after that it is as large as the reference, which has
    no more to give. Transparency, of which a reference says nothing, is enlarged by bicubic
    interpolation.
    """

    def passes(self, factor: float) -> tuple[float, ...]:
        once = super().passes(factor)[:1]
        if isinstance(self.model, str) or not self.model.pre_upsampled:
            return once
        return tuple(min(by, factor) for by in once)

    @property
    def references(self) -> References:
        """What is shown beside pictures."""
        return self._runner.references

    @property
    def identity(self) -> str:
        """As an upscaler's, and the references."""
        told = self.references.told
        return f"{super().identity} {told}" if told else super().identity

    @property
    def beside(self) -> str:
        return self.references.told

    def show(self, references: References) -> None:
        """Take other references from now on. Raises UsageError where the network cannot."""
        self._runner.show(references)

    @property
    def _runner(self) -> ReferenceRunner:
        return cast(ReferenceRunner, self.runner)


def open_reference(
    model: Model,
    references: Sequence[str | Path],
    *,
    device: str = "auto",
    tile_px: int | None = None,
    options: Options | None = None,
) -> ReferenceUpscaler:
    """The upscaler for a model that takes references; `read_references` reads them.

    Raises:
        UsageError, PictureReadError, DeviceError: as `read_references` and `ReferenceRunner`.
    """
    read = read_references(references)
    runner = ReferenceRunner(model, read, device=device, tile_px=tile_px)
    chosen = dataclasses.replace(options or Options(), alpha="bicubic")
    # It offers what an upscaler asks of a runner.
    return ReferenceUpscaler(model=model, runner=cast(TiledRunner, runner), options=chosen)
