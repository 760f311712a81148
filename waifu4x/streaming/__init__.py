"""A picture too large for memory becomes a larger one, in strips from its top to its bottom.

What comes out is, pixel for pixel, what `Upscaler.upscale` gives, and memory holds some rows of
tiles, whatever the picture's height. A picture with alpha is read twice, because only all of it
tells whether anything is transparent, and three times where something is: see
`strip_colors.VisibleColors`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from waifu4x import color
from waifu4x.canvas import to_unit
from waifu4x.streaming.strip_colors import VisibleColors
from waifu4x.streaming.strip_stages import Parts, StripEnlargement
from waifu4x.strips import Rows, RowWindow, Strip, StripSource

if TYPE_CHECKING:
    from waifu4x.headers import Header
    from waifu4x.sizes import Target
    from waifu4x.tiling import TileGrid
    from waifu4x.upscaler import Facts, Progress, Upscaler

_BAND_ROWS = 256


def enlarge(
    upscaler: Upscaler,
    source: StripSource,
    target: Target,
    *,
    again: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[Strip]:
    """The enlarged picture in strips, which together are what `upscaler.upscale` makes of it.

    Every pixel is guaranteed to be equal where the same tiles are taken, but with the option
    `color_fix`: there float32 may round the other way, by one level in a few pixels.

    Each strip is a row of tiles or less, and none is held while the next one is computed, unless
    the caller holds it.

    Args:
        again: another try after MemoryFullError; what was noted during the first one stays.
        on_progress: called with the share done, 0..1.

    Raises:
        tiled.MemoryFullError: the device's memory was full: what was given is to be thrown away,
            and another try takes smaller tiles.
        NumericsError, OutOfMemoryError: as `Upscaler.upscale`.
    """
    if upscaler.runner is not None and not again:
        upscaler.runner.forget()
    parts = Parts(on_progress)
    way = _way(upscaler, source, target, parts)
    low, high = _alpha_range(source)
    visible = _visible_colors(source, high) if low == 0 < high else None
    with source.open() as strips:
        samples = RowWindow(_samples(strips), source.height_px)
        colors = _unit(samples, slice(0, source.channels))
        if visible is not None:
            colors = visible.read(samples.reader()).reader
        bands = way.enlarge(colors)
        alpha = None
        if source.has_alpha and low == high:
            alpha = _flat(low, way)
        elif source.has_alpha:
            alpha = _alpha(way, samples, by_network=upscaler.options.alpha == "network")
        inside = None if parts else parts.add(1.0)
        height_px, done_px = way.size_px[0], 0
        for band in bands:
            rows = slice(done_px, done_px + len(band))
            strip = Strip(band, None if alpha is None else alpha(rows))
            del band  # as in `mapped`
            yield strip
            del strip
            done_px = rows.stop
            if inside is not None:
                inside(done_px / height_px)
        assert done_px == height_px
    if on_progress is not None:
        on_progress(1.0)


def facts(upscaler: Upscaler, source: StripSource, target: Target, *, spent_s: float) -> Facts:
    """What `Upscaler.upscale` tells, after all strips of `enlarge`.

    spent_s: how long they took: only for kernels, a network's time is known.
    """
    factors = upscaler.passes(target.factor(source.width_px, source.height_px))
    return upscaler.facts_of(factors, spent_s)


def refusal(header: Header) -> str | None:
    """Why a picture cannot be enlarged in strips, as a clause; None where it can."""
    if header.kind == "picture":
        return None
    return f"it has {header.frames} frames, and each must lie in memory"


def memory_bytes(upscaler: Upscaler, header: Header, size_px: tuple[int, int]) -> int:
    """Main memory that `enlarge` takes at its peak, estimated; reading and writing come on top.

    The picture's height counts for a 64th of what has alpha, and for how it is cut into tiles.
    `size_px` is (width, height) of the output. Measured (6 to 12 MP): 0.7 to 2.0 of what is taken.
    """
    factor = max(size_px[0] / header.width_px, size_px[1] / header.height_px)
    grids = upscaler.grids(header, factor)
    held = _stages_bytes(upscaler, header, size_px, channels=header.channels, grids=grids)
    rows_px = _BAND_ROWS + (grids[0].window_px[0] if grids else 0)
    samples_bytes = (header.channels + header.has_alpha) * header.depth_bits // 8
    held += rows_px * header.width_px * samples_bytes
    if header.has_alpha:
        of_alpha = grids if upscaler.options.alpha == "network" else []
        held += _stages_bytes(upscaler, header, size_px, channels=1, grids=of_alpha)
        # Colours below transparency: as they were, as they will be, and the coarse ones.
        filled_px = (2 * rows_px + header.height_px // 64) * header.width_px
        held += 4 * (header.channels + 1) * filled_px
    network = [upscaler.runner.main_memory_bytes(grid) for grid in grids] if upscaler.runner else []
    return int(held + max(network, default=0))


def _stages_bytes(
    upscaler: Upscaler,
    header: Header,
    size_px: tuple[int, int],
    *,
    channels: int,
    grids: Sequence[TileGrid],
) -> float:
    """What lies in memory between reading and writing, of the colours or of the alpha."""
    model, options = upscaler.model, upscaler.options
    # What a block of a kernel's rows is made of, and some arrays of what is made of them.
    shrinking = max(1.0, header.height_px / size_px[1])
    rows_px = _BAND_ROWS * shrinking * header.width_px + _BAND_ROWS * size_px[0]
    resampled = 4.0 * channels * rows_px
    if isinstance(model, str) or not grids:
        return resampled
    reached = model.scale ** len(grids)
    exact = model.any_scale or (header.width_px * reached, header.height_px * reached) == size_px
    direct = exact and upscaler.ends_in_integers((float(model.scale),))
    held = 0.0 if direct else resampled
    if model.channels_in == 1:
        channels = 1
    for number, grid in enumerate(grids, 1):
        core_px = max(span.core_stop - span.core_start for span in grid.rows)
        width_px = grid.columns[-1].core_stop
        # The rows that a row of tiles is shown, in a window and put together; what it gives.
        held += 2 * 4 * channels * grid.window_px[0] * width_px
        result = channels * core_px * width_px * model.scale**2
        if number == len(grids):
            held += result * (header.depth_bits // 8 if direct else 4)
            held += 4 * result if options.color_fix else 0
        else:
            held += 4 * result
    return held


def _samples(strips: Callable[[int, int], Strip]) -> Rows:
    """(n, w, C) or, with alpha as the last channel, (n, w, C + 1)."""

    def rows(start: int, stop: int) -> npt.NDArray:
        pixels, alpha = strips(start, stop)
        return pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)

    return rows


def _unit(samples: RowWindow, channels: slice) -> Callable[[], Rows]:
    """What makes readers of some channels, as float32 in [0, 1]."""

    def reader() -> Rows:
        rows = samples.reader()
        return lambda start, stop: to_unit(rows(start, stop)[..., channels])

    return reader


def _way(upscaler: Upscaler, source: StripSource, target: Target, parts: Parts) -> StripEnlargement:
    runner = upscaler.runner
    width_px, height_px = target.size_px(source.width_px, source.height_px)
    return StripEnlargement(
        model=upscaler.model,
        bands=None if runner is None else runner.bands,
        in_px=(source.height_px, source.width_px),
        channels=source.channels,
        size_px=(height_px, width_px),
        factors=upscaler.passes(target.factor(source.width_px, source.height_px)),
        dtype=np.dtype(source.dtype),
        parts=parts,
        strength=upscaler.options.strength,
        color_fix=upscaler.options.color_fix,
    )


def _flat(value: int, way: StripEnlargement) -> Callable[[slice], npt.NDArray]:
    width_px, dtype = way.size_px[1], way.dtype
    return lambda rows: np.full((rows.stop - rows.start, width_px), value, dtype=dtype)


def _alpha(
    way: StripEnlargement, samples: RowWindow, *, by_network: bool
) -> Callable[[slice], npt.NDArray]:
    """Gives rows of the enlarged alpha, (n, W)."""
    original = samples.reader()
    # Strength and colour lock are about colours; the alpha is the network's alone.
    model = way.model if by_network else "bicubic"
    bare = dataclasses.replace(way, model=model, channels=1, strength=1.0, color_fix=False)
    bands = bare.enlarge(_unit(samples, slice(-1, None)))
    enlarged = RowWindow.of(bands, way.size_px[0]).reader()

    def alpha(rows: slice) -> npt.NDArray:
        return color.restore_plateaus_rows(
            enlarged(rows.start, rows.stop)[..., 0],
            lambda start, stop: original(start, stop)[..., -1],
            way.in_px,
            way.size_px,
            rows=rows,
        )

    return alpha


def _alpha_range(source: StripSource) -> tuple[int, int]:
    """The smallest and the largest alpha, from reading the picture once."""
    if not source.has_alpha:
        return 1, 1
    low, high = np.iinfo(source.dtype).max, 0
    with source.open() as strips:
        for start in range(0, source.height_px, _BAND_ROWS):
            alpha = strips(start, min(start + _BAND_ROWS, source.height_px)).alpha
            assert alpha is not None
            low, high = min(low, int(alpha.min())), max(high, int(alpha.max()))
    return low, high


def _visible_colors(source: StripSource, most: int) -> VisibleColors:
    with source.open() as strips:
        return VisibleColors(_samples(strips), (source.height_px, source.width_px), most=most)
