"""A picture becomes a larger picture: colours, alpha, passes, tiles, exact size.

Picture -> float32 in [0, 1], colour below transparency filled -> `enlarging` -> Picture. What that
takes is planned here too, from the header of a file alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from waifu4x import color, memory, sizes
from waifu4x.canvas import FloatArray, to_unit
from waifu4x.codecs import png_stream
from waifu4x.enlarging import Enlargement, Shares, is_flat
from waifu4x.errors import UsageError
from waifu4x.headers import Header
from waifu4x.pictures import Picture
from waifu4x.resample import KERNELS, Kernel, resize
from waifu4x.sizes import Target

# The resampling kernels need no torch, and importing it takes longer than enlarging a meme.
if TYPE_CHECKING:
    from waifu4x.model_files.checkpoints import Model
    from waifu4x.tiled import TiledRunner
    from waifu4x.tiling import TileGrid

_SHRUNK = "the output is smaller than the input: it was only resampled, by lanczos"

AlphaMode = Literal["network", "bicubic"]
Progress = Callable[[float], None]

# Of the free main memory, what the pictures of one call may take together.
_HOST_SHARE = 0.5


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
    """How a picture, or several together, came to be, for reports; times in seconds."""

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
    engine: str = "numpy"
    """What ran the network: torch, openvino or onnxruntime; numpy only resampled."""
    picked: str | None = None
    """What the picture looked like to `-m auto`, which chose the model by that."""


@dataclass(kw_only=True)
class Upscaler:
    """Enlarges pictures by one model; holds what is worth keeping from one picture to the next.

    `model` is a loaded network, or the name of a resampling kernel, which needs no `runner`.
    """

    model: Model | Kernel
    runner: TiledRunner | None = None
    options: Options = field(default_factory=Options)
    picked: str | None = None
    """Why this model was chosen, for `Facts`; None when the user named it."""

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
            any_factor = self.model.any_scale
            return sizes.passes(factor, native=self.model.scale, any_factor=any_factor)
        trained = self.model.scales
        if trained is None:
            # The file does not say what it was trained for: whoever asks for a factor knows.
            return (factor,) if factor >= 1.0 else ()
        return sizes.passes(factor, native=max(trained), any_factor=len(trained) > 1)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def label(self) -> str:
        """What it is called in the names of outputs."""
        return self.name

    @property
    def identity(self) -> str:
        """What decides the pixels that it makes: the sha256 of the model's file, or the kernel."""
        return self.model if isinstance(self.model, str) else self.model.sha256

    @property
    def beside(self) -> str:
        """What else decides the pixels, for the provenance: references. Nothing of most models."""
        return ""

    def for_picture(self, picture: Picture) -> Upscaler:
        """What enlarges this picture: itself, but for one that chooses among models."""
        return self

    def tiles(self, header: Header, target: Target) -> int:
        """How many tiles the first pass over a frame takes; 0 when no network is used."""
        grids = self.grids(header, target.factor(header.width_px, header.height_px))
        return len(grids[0]) if grids else 0

    def tile_px(self, header: Header, target: Target) -> int | None:
        """The longest side of a tile of the first pass; None when no network is used."""
        grids = self.grids(header, target.factor(header.width_px, header.height_px))
        return grids[0].core_px if grids else None

    def estimate_s(self, header: Header, target: Target) -> float:
        """About how long the network takes for one frame, in seconds: see `TiledRunner.estimate_s`.

        Alpha counts wherever there may be some, though an opaque one is not computed.
        """
        if self.runner is None:
            return 0.0
        planes = 2 if header.has_alpha and self.options.alpha == "network" else 1
        grids = self.grids(header, target.factor(header.width_px, header.height_px))
        return planes * sum(self.runner.estimate_s(grid) for grid in grids)

    def grids(self, header: Header, factor: float) -> list[TileGrid]:
        """How each pass cuts a frame; none when no network is used."""
        if self.runner is None or isinstance(self.model, str):
            return []
        grids: list[TileGrid] = []
        height_px, width_px = header.height_px, header.width_px
        multiple = self.model.size_multiple
        for by in self.passes(factor):
            enlarged_px = round(height_px * by), round(width_px * by)
            shown_px = enlarged_px if self.model.pre_upsampled else (height_px, width_px)
            grids.append(self.runner.plan(*(n + -n % multiple for n in shown_px)))
            height_px, width_px = enlarged_px
        return grids

    def frames_at_once(self, picture: Picture, target: Target) -> int:
        """How many such pictures `upscale_all` best takes at once, at least 1.

        They fill one batch of the first pass, and together take half of the free memory at most; a
        picture that fills a batch alone, or is only resampled, comes alone.
        """
        header = _header_of(picture)
        grids = self.grids(header, target.factor(header.width_px, header.height_px))
        batch = self.runner.images_at_once(grids[0]) if self.runner is not None and grids else 1
        if batch == 1:
            return 1
        size_px = target.size_px(header.width_px, header.height_px)
        each_bytes = self.memory_bytes(header, size_px)
        affordable = int(memory.free_host_bytes() * _HOST_SHARE) // each_bytes
        return max(1, min(batch, affordable))

    def memory_bytes(self, header: Header, size_px: tuple[int, int]) -> int:
        """Main memory that reading, `upscale` and encoding one frame take at their peak, estimated.

        `size_px` is (width, height) of the output. Measured (PNG, 12 MP, noise and photos): at most
        10 % too low, and at most twice what is taken, but for outputs that compress to nothing.
        """
        samples_bytes = (header.channels + header.has_alpha) * header.depth_bits // 8
        input_px, output_px = header.width_px * header.height_px, size_px[0] * size_px[1]
        factor = max(size_px[0] / header.width_px, size_px[1] / header.height_px)
        passes, grids = self.passes(factor), self.grids(header, factor)
        passed_px = input_px * math.prod(by**2 for by in passes)
        # As float32: the input, in copies while colours below transparency are filled; then, unless
        # the last pass writes integers, what the network gives, that resampled along one axis and
        # along both. Strength, colour lock and luma take no more when some of these are gone.
        floats_px = input_px * (3 if header.has_alpha else 1)
        any_scale = not isinstance(self.model, str) and self.model.any_scale
        reached = passed_px == output_px or any_scale
        if not self.ends_in_integers(passes) or not reached:
            floats_px += output_px + math.sqrt(passed_px * output_px) + (passed_px if passes else 0)
        float_bytes = 4 * header.channels * floats_px
        # As integers: the input, with the blocks that its decoder leaves behind, and the result;
        # later a copy of it (in its profile's colours, alpha beside them), what the encoder makes
        # of that, and the file, which is as large for noise.
        integer_bytes = samples_bytes * (4 * input_px + output_px)
        encoder_bytes = 3 * samples_bytes * output_px
        # Strips of a PNG on their way, in copies while they are filtered.
        encoder_bytes += 4 * min(samples_bytes * output_px, png_stream.UNDER_WAY_BYTES)
        network_bytes = self.runner.main_memory_bytes(grids[-1]) if self.runner and grids else 0
        return int(integer_bytes + network_bytes + max(float_bytes, encoder_bytes))

    def ends_in_integers(self, passes: tuple[float, ...]) -> bool:
        """Whether the last pass may write the result itself, where it has the right size."""
        if isinstance(self.model, str) or not passes:
            return False
        direct = self.model.channels_in == 3 and not self.model.pre_upsampled
        return direct and self.options.strength == 1.0 and not self.options.color_fix

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
        (enlarged,), facts = self.upscale_all([picture], target, on_progress=on_progress)
        return enlarged, facts

    def upscale_all(
        self, pictures: Sequence[Picture], target: Target, *, on_progress: Progress | None = None
    ) -> tuple[list[Picture], Facts]:
        """Enlarge pictures that are alike, such as frames; their tiles share batches.

        Each result is guaranteed to be what `upscale` makes of its picture, but for the order in
        which the device sums in a batch of another size. All results are held in memory at once:
        give as many as `frames_at_once` says.

        Raises:
            ValueError: no pictures, or some differ in size, channels, depth or in having alpha.
            NumericsError, OutOfMemoryError: as `upscale`, for any of them.
        """
        kinds = {(p.pixels.shape, p.pixels.dtype, p.alpha is None) for p in pictures}
        if len(kinds) != 1:
            raise ValueError("pictures of one call must be alike in size, channels, depth, alpha")
        started = time.perf_counter()
        first = pictures[0]
        width, height = target.size_px(first.width_px, first.height_px)
        alphas = [picture.alpha for picture in pictures if picture.alpha is not None]
        job = Enlargement(
            model=self.model,
            run=None if self.runner is None else self.runner.run_all,
            size_px=(height, width),
            factors=self.passes(target.factor(first.width_px, first.height_px)),
            dtype=first.pixels.dtype,
            progress=Shares(on_progress, 1 if all(map(is_flat, alphas)) else 2),
            strength=self.options.strength,
            color_fix=self.options.color_fix,
        )
        if self.runner is not None:
            self.runner.forget()
        enlarged = job.enlarge([_visible_colors(picture) for picture in pictures])
        assert all(pixels.shape[:2] == (height, width) for pixels in enlarged)
        by_network = self.options.alpha == "network"
        larger_alphas = job.enlarge_alphas(alphas, by_network=by_network) or [None] * len(enlarged)
        results = [
            picture.with_pixels(pixels, alpha)
            for picture, pixels, alpha in zip(pictures, enlarged, larger_alphas, strict=True)
        ]
        return results, self.facts_of(job.factors, time.perf_counter() - started)

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
        job = Enlargement(
            model=self.model,
            run=None if self.runner is None else self.runner.run_all,
            size_px=size_px,
            factors=self.passes(factor),
            dtype=np.dtype(np.float32),
            progress=Shares(None, 1),
        )
        return job.run_network([image], self.model)[0][..., 0]

    def facts_of(self, factors: tuple[float, ...], spent_s: float) -> Facts:
        """How what was enlarged since `runner.forget` came to be, in `factors`; a filter took
        `spent_s`."""
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
            device=runner.devices_name,
            precision=runner.precision,
            network_s=runner.spent_s,
            notes=tuple(runner.notes) if factors else (_SHRUNK,),
            engine=runner.engine if factors else "numpy",
            picked=self.picked,
        )


def _visible_colors(picture: Picture) -> FloatArray:
    """(h, w, C) float32 in [0, 1]: below full transparency the colours of what is around it."""
    pixels = to_unit(picture.pixels)
    return pixels if picture.alpha is None else color.bleed_alpha(pixels, picture.alpha)


def _header_of(picture: Picture) -> Header:
    return Header(
        format=picture.format or "",
        width_px=picture.width_px,
        height_px=picture.height_px,
        channels=picture.pixels.shape[2],
        has_alpha=picture.alpha is not None,
        depth_bits=picture.depth_bits,
    )
