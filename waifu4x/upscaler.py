"""A picture becomes a larger picture: colours, alpha, passes, tiles, exact size.

Picture -> float32 in [0, 1] -> passes of the network, tile by tile -> one resample to the exact
size -> strength, colour lock -> integers of the input's depth -> Picture
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from waifu4x import color, sizes
from waifu4x.canvas import Canvas, from_unit, to_unit
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture
from waifu4x.resample import KERNELS, Kernel, resize
from waifu4x.sizes import Target

# The resampling kernels need no torch, and importing it takes longer than enlarging a meme.
if TYPE_CHECKING:
    from waifu4x.checkpoints import Model
    from waifu4x.tiled import TiledRunner
    from waifu4x.tiling import TileGrid

_SHRUNK = "the output is smaller than the input: it was only resampled, by lanczos"

AlphaMode = Literal["network", "bicubic"]
FloatArray = npt.NDArray[np.float32]
Progress = Callable[[float], None]

# Beyond the network's own scale this filter is the sharpest that does not invent structure.
_LAST_RESAMPLE: Kernel = "lanczos"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a picture is upscaled, beside by which model and to which size."""

    strength: float = 1.0
    """0 is bicubic, 1 the network, between them a blend."""
    color_fix: bool = False
    """Keep the input's low frequencies, for networks that shift colours."""
    alpha: AlphaMode = "network"
    """What enlarges the transparency: the same network, or bicubic interpolation."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError(f"--strength must lie between 0 and 1, not {self.strength}")
        if self.alpha not in ("network", "bicubic"):
            raise UsageError(f"alpha is upscaled by 'network' or 'bicubic', not {self.alpha!r}")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How a picture came to be, for reports; times in seconds."""

    model: str
    passes: tuple[float, ...]
    tile_px: int | None
    waste: float
    """Pixels shown to the network over pixels of its input; 1.0 for untiled pictures."""
    device: str
    precision: str
    network_s: float
    notes: tuple[str, ...]
    """What was decided on the way (smaller tiles, fp32 for one tile), one sentence each."""


@dataclass(kw_only=True)
class Upscaler:
    """Enlarges pictures by one model; holds what is worth keeping from one picture to the next.

    `model` is a loaded network, or the name of a resampling kernel, which needs no `runner`.
    """

    model: Model | Kernel
    runner: TiledRunner | None = None
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        if isinstance(self.model, str):
            if self.model not in KERNELS:
                raise UsageError(f"no resampling kernel {self.model!r}")
            if self.options.strength != 1.0 or self.options.color_fix:
                raise UsageError(
                    f"{self.model} is no network: --strength and --color-fix have nothing to act on"
                )
        elif self.runner is None:
            raise UsageError(f"the model {self.model.name} needs a runner")

    def passes(self, factor: float) -> tuple[float, ...]:
        """By how much each pass of the network enlarges, for output over input = `factor`."""
        if isinstance(self.model, str):
            return ()
        if not self.model.pre_upsampled:
            return sizes.passes(factor, native=self.model.scale)
        trained = self.model.scales
        if trained is None:
            # The file does not say what it was trained for: whoever asks for a factor knows.
            return (factor,) if factor >= 1.0 else ()
        return sizes.passes(factor, native=max(trained), any_factor=len(trained) > 1)

    @property
    def name(self) -> str:
        """The model's name, as it appears in output names."""
        return self.model if isinstance(self.model, str) else self.model.name

    def tiles(self, picture: Picture, target: Target) -> int:
        """How many tiles the first pass over `picture` takes; 0 when no network is used."""
        grid = self._first_grid(picture, target)
        return 0 if grid is None else len(grid)

    def tile_px(self, picture: Picture, target: Target) -> int | None:
        """The longest side of a tile of the first pass; None when no network is used."""
        grid = self._first_grid(picture, target)
        return None if grid is None else grid.core_px

    def estimate_s(self, picture: Picture, target: Target) -> float:
        """About how long the network takes for `picture`, in seconds, from timing one tile here."""
        grid = self._first_grid(picture, target)
        if grid is None or self.runner is None:
            return 0.0
        upsampled = not isinstance(self.model, str) and self.model.pre_upsampled
        shown: list[float] = []  # how many times the picture's pixels each pass shows the network
        growth = 1.0
        for factor in self.passes(target.factor(picture.width_px, picture.height_px)):
            shown.append(growth * (factor**2 if upsampled else 1.0))
            growth *= factor**2
        planes = 1 if _is_flat(picture.alpha) else 2
        first_s = len(grid) * self.runner.time_tile(grid)
        return planes * first_s * sum(shown) / shown[0]

    def _first_grid(self, picture: Picture, target: Target) -> TileGrid | None:
        passes = self.passes(target.factor(picture.width_px, picture.height_px))
        if self.runner is None or isinstance(self.model, str) or not passes:
            return None
        first = passes[0] if self.model.pre_upsampled else 1.0
        multiple = self.model.size_multiple
        sides_px = (round(n * first) for n in (picture.height_px, picture.width_px))
        height_px, width_px = (n + -n % multiple for n in sides_px)
        return self.runner.plan(height_px, width_px)

    def memory_bytes(self, picture: Picture, size_px: tuple[int, int]) -> int:
        """Main memory that `upscale` takes at its peak beside the network's own, estimated.

        `size_px` is (width, height) of the output.
        """
        channels, bytes_each = picture.pixels.shape[2], picture.depth_bits // 8
        output_px = size_px[0] * size_px[1]
        passes = self.passes(max(size_px[0] / picture.width_px, size_px[1] / picture.height_px))
        model = self.model
        rgb = not isinstance(model, str) and model.channels_in == 3 and not model.pre_upsampled
        plain = self.options.strength == 1.0 and not self.options.color_fix
        canvas_px = picture.width_px * picture.height_px
        for factor in passes:
            canvas_px = int(canvas_px * factor**2)
        # The integers, and in encoding their compressed form, which can be as large.
        need_bytes = 2 * output_px * (channels + (picture.alpha is not None)) * bytes_each
        if not (rgb and plain and canvas_px == output_px):
            # After a network: its float canvas, what that is resampled to, and a temporary of that
            # size; a kernel alone has one float picture.
            floats_px = canvas_px + 2 * output_px if passes else output_px + canvas_px
            need_bytes += 4 * channels * floats_px
        return need_bytes

    def upscale(
        self, picture: Picture, target: Target, *, on_progress: Progress | None = None
    ) -> tuple[Picture, Facts]:
        """Enlarge `picture`; the result has its depth, mode and metadata.

        Args:
            picture: 8 or 16 bit, gray or RGB, with or without alpha.
            target: the wished size; the output is guaranteed to have exactly `target.size_px`.
            on_progress: called with the share done, 0..1.

        Raises:
            NumericsError: the network gave NaN or infinity, also in fp32.
            OutOfMemoryError: not even the smallest tile fits, or the tile that was asked for.
        """
        started = time.perf_counter()
        width, height = target.size_px(picture.width_px, picture.height_px)
        job = _Job(
            upscaler=self,
            size_px=(height, width),
            factors=self.passes(target.factor(picture.width_px, picture.height_px)),
            dtype=picture.pixels.dtype,
            progress=_Progress(on_progress, 1 if _is_flat(picture.alpha) else 2),
        )
        if self.runner is not None:
            self.runner.forget()
        pixels = to_unit(picture.pixels)
        if picture.alpha is not None:
            pixels = color.bleed_alpha(pixels, picture.alpha)
        enlarged = job.enlarge(pixels)
        alpha = None if picture.alpha is None else job.enlarge_alpha(picture.alpha)
        assert enlarged.shape[:2] == (height, width)
        result = picture.with_pixels(enlarged, alpha)
        return result, self._facts(job.factors, time.perf_counter() - started)

    def enlarge_plane(self, plane: FloatArray, size_px: tuple[int, int]) -> FloatArray:
        """Enlarge one plane of numbers, as it is: no colour conversion, no profile, no rounding.

        Args:
            plane: (h, w) float32 in [0, 1]: studio-range luma for networks that work on luma.
            size_px: (height, width) of the result.

        Returns:
            (H, W) float32; a network's is clamped to [0, 1].
        """
        image = plane[..., None]
        if isinstance(self.model, str):
            return resize(image, size_px, kernel=self.model)[..., 0]
        factor = max(size_px[0] / plane.shape[0], size_px[1] / plane.shape[1])
        job = _Job(
            upscaler=self,
            size_px=size_px,
            factors=self.passes(factor),
            dtype=np.dtype(np.float32),
            progress=_Progress(None, 1),
        )
        return job.run_network(image, self.model)[..., 0]

    def _facts(self, factors: tuple[float, ...], spent_s: float) -> Facts:
        runner = self.runner
        if runner is None or isinstance(self.model, str):
            return Facts(
                model=str(self.model),
                passes=(),
                tile_px=None,
                waste=1.0,
                device="cpu",
                precision="fp32",
                network_s=spent_s,
                notes=(),
            )
        return Facts(
            model=self.model.name,
            passes=factors,
            tile_px=runner.last_tile_px,
            waste=runner.last_waste,
            device=str(runner.device),
            precision=runner.precision,
            network_s=runner.spent_s,
            notes=tuple(runner.notes) if factors else (_SHRUNK,),
        )


class _Progress:
    """Shares of several equal parts become one share of the whole."""

    def __init__(self, report: Progress | None, parts: int) -> None:
        self._report = report
        self._parts = parts
        self._finished = 0.0
        self._told = 0.0

    def inside(self, share: float) -> None:
        # A pass that begins again with smaller tiles may not take back what was told.
        self._told = max(self._told, min(1.0, (self._finished + share) / self._parts))
        if self._report is not None:
            self._report(self._told)

    def finish_part(self) -> None:
        self._finished += 1.0
        self.inside(0.0)


@dataclass(kw_only=True)
class _Job:
    """One picture on its way: what its colours and its alpha have in common."""

    upscaler: Upscaler
    size_px: tuple[int, int]
    factors: tuple[float, ...]
    dtype: np.dtype
    progress: _Progress

    def enlarge(self, image: FloatArray) -> npt.NDArray:
        """(h, w, C) float in [0, 1] -> (H, W, C) of the picture's dtype."""
        options, model = self.upscaler.options, self.upscaler.model
        if isinstance(model, str) or not self.factors:
            kernel = model if isinstance(model, str) else _LAST_RESAMPLE
            done = from_unit(resize(image, self.size_px, kernel=kernel), self.dtype)
            self.progress.finish_part()
            return done
        plain = options.strength == 1.0 and not options.color_fix
        if model.channels_in == 3 and plain and self._ends_exactly(image, model):
            canvas = Canvas(self.size_px, channels=image.shape[2], dtype=self.dtype)
            self._run_passes(image, model, canvas)
            self.progress.finish_part()
            return canvas.values
        if model.channels_in == 1:
            result = self._enlarge_luma(image, model)
        else:
            result = self.run_network(image, model)
        if options.color_fix:
            result = color.lock_low_frequencies(result, image)
        if options.strength < 1.0:
            result *= np.float32(options.strength)
            result += np.float32(1.0 - options.strength) * resize(image, self.size_px)
        self.progress.finish_part()
        return from_unit(result, self.dtype)

    def enlarge_alpha(self, alpha: npt.NDArray) -> npt.NDArray:
        """(h, w) -> (H, W), both of the picture's dtype; 0 and full stay exactly 0 and full."""
        if _is_flat(alpha):
            return np.full(self.size_px, alpha.flat[0], dtype=alpha.dtype)
        if self.upscaler.options.alpha == "bicubic":
            enlarged = from_unit(resize(to_unit(alpha[..., None]), self.size_px), alpha.dtype)[
                ..., 0
            ]
            self.progress.finish_part()
        else:
            # Strength and colour lock are about colours; the alpha is the network's alone.
            bare = _Job(
                upscaler=Upscaler(model=self.upscaler.model, runner=self.upscaler.runner),
                size_px=self.size_px,
                factors=self.factors,
                dtype=alpha.dtype,
                progress=self.progress,
            )
            enlarged = bare.enlarge(to_unit(alpha)[..., None])[..., 0]
        return color.restore_plateaus(enlarged, alpha)

    def _ends_exactly(self, image: FloatArray, model: Model) -> bool:
        """Whether the last pass gives the wished size, so that nothing is resampled after it."""
        if model.pre_upsampled:
            return False
        reached = model.scale ** len(self.factors)
        return (image.shape[0] * reached, image.shape[1] * reached) == self.size_px

    def _enlarge_luma(self, image: FloatArray, model: Model) -> FloatArray:
        """Y through the network, Cb and Cr by bicubic interpolation, as the papers do."""
        gray = image.shape[2] == 1
        ycbcr = color.rgb_to_ycbcr(np.broadcast_to(image, (*image.shape[:2], 3)))
        y = self.run_network(ycbcr[..., :1], model)
        if gray:
            return (y - np.float32(16.0 / 255.0)) * np.float32(255.0 / 219.0)
        chroma = resize(ycbcr[..., 1:], self.size_px)
        return color.ycbcr_to_rgb(np.concatenate([y, chroma], axis=2))

    def _run_passes(self, image: FloatArray, model: Model, last: Canvas | None) -> FloatArray:
        """All passes of the network; the last one writes into `last` when that is given."""
        runner = self.upscaler.runner
        assert runner is not None  # the constructor saw to it
        for number, factor in enumerate(self.factors):
            if model.pre_upsampled:
                final = number == len(self.factors) - 1
                size_px = self.size_px if final else _times(image, factor)
                image = resize(image, size_px)
            canvas = last if number == len(self.factors) - 1 else None

            def inside(share: float, done: int = number) -> None:
                self.progress.inside((done + share) / len(self.factors))

            image = runner.run(image, canvas=canvas, on_progress=inside)
        return image

    def run_network(self, image: FloatArray, model: Model) -> FloatArray:
        """All passes, then the one resample to the exact size, which is none where they reach it.

        `image` is (h, w, C) in the network's own colour space; the result is clamped to [0, 1].
        """
        image = self._run_passes(image, model, None)
        if image.shape[:2] == self.size_px:
            return image
        return np.clip(resize(image, self.size_px, kernel=_LAST_RESAMPLE), 0.0, 1.0)


def _times(image: FloatArray, factor: float) -> tuple[int, int]:
    return round(image.shape[0] * factor), round(image.shape[1] * factor)


def _is_flat(alpha: npt.NDArray | None) -> bool:
    return alpha is None or bool((alpha == alpha.flat[0]).all())
