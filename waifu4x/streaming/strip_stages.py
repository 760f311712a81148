"""`enlarging` for pictures that come in rows: each stage pulls what it needs from the one before.

The stages are those of `enlarging.Enlargement`, whose every decision they share: passes of the
network -> one resample to the exact size -> colour lock, strength -> integers. Between them lie
`RowWindow`s, which hold what a network's next row of tiles or a kernel will look at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from waifu4x.canvas import FloatArray, from_unit
from waifu4x.enlarging import LAST_RESAMPLE, Way, to_gray, to_rgb, to_ycbcr
from waifu4x.resample import resize_rows
from waifu4x.sizes import Pass
from waifu4x.streaming.strip_colors import locked
from waifu4x.strips import Rows, RowWindow

if TYPE_CHECKING:
    from waifu4x.model_files.checkpoints import Model  # it needs torch, and kernels do not

_BAND_ROWS = 64


class Bands(Protocol):
    """One pass of a network over a picture that comes in rows: `TiledRunner.bands`."""

    def __call__(
        self,
        rows: Rows,
        size_px: tuple[int, int],
        *,
        channels: int,
        dtype: npt.DTypeLike,
        to: Pass | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[npt.NDArray]: ...


class Parts:
    """Shares of several parts that advance together become one share of the whole."""

    def __init__(self, report: Callable[[float], None] | None) -> None:
        self._report = report
        self._weights: list[float] = []
        self._shares: list[float] = []

    def __bool__(self) -> bool:
        return bool(self._weights)

    def add(self, weight: float) -> Callable[[float], None]:
        """One part more; what is returned is to be told its share. All are added before that."""
        number = len(self._weights)
        self._weights.append(weight)
        self._shares.append(0.0)

        def inside(share: float) -> None:
            self._shares[number] = share
            if self._report is not None:
                done = sum(w * s for w, s in zip(self._weights, self._shares, strict=True))
                self._report(min(1.0, done / sum(self._weights)))

        return inside


@dataclass(kw_only=True)
class StripEnlargement(Way):
    """One picture, or its alpha, on its way."""

    bands: Bands | None
    """What runs the model; None for a kernel."""
    in_px: tuple[int, int]
    """(height, width) of the original."""
    channels: int
    parts: Parts
    """Passes of networks add themselves, weighted by their pixels."""

    def enlarge(self, source: Callable[[], Rows]) -> Iterator[npt.NDArray]:
        """(n, W, C) of `dtype` from the top to the bottom; their rows add up to the height.

        source: makes readers of the original, (n, w, C) float in [0, 1]; all that are needed are
        made at once.
        """
        model = self.model
        if isinstance(model, str) or not self.factors:
            kernel = model if isinstance(model, str) else LAST_RESAMPLE
            return self._rounded(resize_rows(source(), self.in_px, self.size_px, kernel=kernel))
        if self.needs_no_floats(self.in_px, model):
            return self._passes(source(), model, channels=self.channels, dtype=self.dtype)[0]
        if model.channels_in == 1:
            bands = self._enlarge_luma(source, model)
        else:
            bands = self._run_network(source(), model, channels=self.channels)
        return self._rounded(self._mixed(bands, source))

    def _enlarge_luma(self, source: Callable[[], Rows], model: Model) -> Iterator[FloatArray]:
        """Y through the network, Cb and Cr by bicubic interpolation, as the papers do."""
        rows = source()
        # A window, because what the network is shown at once may be many rows, and only luma.
        shown = RowWindow(
            lambda start, stop: to_ycbcr(rows(start, stop))[..., :1].copy(), self.in_px[0]
        )
        luma = self._run_network(shown.reader(), model, channels=1)
        if self.channels == 1:
            return mapped(luma, to_gray)
        again = source()
        chroma = resize_rows(
            lambda start, stop: to_ycbcr(again(start, stop))[..., 1:], self.in_px, self.size_px
        )
        beside = Beside(RowWindow.of(chroma, self.size_px[0]).reader())
        return mapped(luma, lambda band: to_rgb(band, beside(len(band))))

    def _run_network(self, rows: Rows, model: Model, *, channels: int) -> Iterator[FloatArray]:
        """All passes, then the one resample to the exact size: none where they reach it."""
        bands, reached_px = self._passes(rows, model, channels=channels, dtype=np.float32)
        if reached_px == self.size_px:
            return _sliced(bands)
        passed = RowWindow.of(bands, reached_px[0]).reader()
        resized = resize_rows(passed, reached_px, self.size_px, kernel=LAST_RESAMPLE)
        return mapped(resized, lambda band: np.clip(band, 0.0, 1.0, out=band))

    def _passes(
        self, rows: Rows, model: Model, *, channels: int, dtype: npt.DTypeLike
    ) -> tuple[Iterator[npt.NDArray], tuple[int, int]]:
        """What the last pass gives, in [0, 1] or as integers of `dtype`; its height and width."""
        assert self.bands is not None  # the constructor of the upscaler saw to it
        shown_px = self.in_px
        bands: Iterator[npt.NDArray] = iter(())
        for number in range(len(self.factors)):
            final = number == len(self.factors) - 1
            if number:
                rows = RowWindow.of(bands, shown_px[0]).reader()
            if model.pre_upsampled:
                larger_px = self.shown_px(number, shown_px)
                resized = resize_rows(rows, shown_px, larger_px)
                rows, shown_px = RowWindow.of(resized, larger_px[0]).reader(), larger_px
            to = self.pass_of(number, shown_px, model)
            bands = self.bands(
                rows,
                shown_px,
                channels=channels,
                dtype=dtype if final else np.float32,
                to=to,
                on_progress=self.parts.add(float(shown_px[0] * shown_px[1])),
            )
            shown_px = to.size_px if to else (shown_px[0] * model.scale, shown_px[1] * model.scale)
        return bands, shown_px

    def _mixed(
        self, bands: Iterator[FloatArray], source: Callable[[], Rows]
    ) -> Iterator[FloatArray]:
        """Colour lock and strength."""
        if self.color_fix:
            output = RowWindow.of(bands, self.size_px[0])
            bands = locked(output.reader, source(), self.in_px, self.size_px)
        if self.strength < 1.0:
            plain = resize_rows(source(), self.in_px, self.size_px)
            beside = Beside(RowWindow.of(plain, self.size_px[0]).reader())
            bands = mapped(bands, lambda band: self._blended(band, beside(len(band))))
        return bands

    def _blended(self, band: FloatArray, plain: FloatArray) -> FloatArray:
        band *= np.float32(self.strength)
        band += plain * np.float32(1.0 - self.strength)
        return band

    def _rounded(self, bands: Iterator[FloatArray]) -> Iterator[npt.NDArray]:
        return mapped(bands, lambda band: from_unit(band, self.dtype))


def _sliced(bands: Iterator[npt.NDArray]) -> Iterator[npt.NDArray]:
    """The same in fewer rows at a time, for those who make several arrays of each."""
    for band in bands:
        for start in range(0, len(band), _BAND_ROWS):
            yield band[start : start + _BAND_ROWS]
        del band


class Beside:
    """The rows of something else that belong to bands, taken from the top to the bottom."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._top = 0

    def __call__(self, count: int) -> npt.NDArray:
        start, self._top = self._top, self._top + count
        return self._rows(start, self._top)


def mapped(
    bands: Iterator[npt.NDArray], change: Callable[[npt.NDArray], npt.NDArray]
) -> Iterator[npt.NDArray]:
    """Each band changed. Held is none of them while the next one is computed: they may be large."""
    for band in bands:
        changed = change(band)
        del band
        yield changed
        del changed
