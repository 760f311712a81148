"""Windows through an engine: what comes out is finite, or it is an error.

fp16 overflows in some networks, and a NaN that becomes an integer is a black pixel that nobody
explains. So every result is checked before it is clamped, and computed again in fp32 where that is
allowed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt

from waifu4x.engines import AnyScaleEngine, Engine, FloatArray
from waifu4x.errors import NumericsError


class WindowRunner:
    """One model's engine, and what stands in for it where its number format does not suffice."""

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        exact: Callable[[], Engine] | None,
        note: Callable[[str], None],
    ) -> None:
        """
        Args:
            name: the model's, for messages.
            exact: makes an engine for the same network in fp32; None where the number format was
                chosen explicitly, or there is no other.
            note: is told what was decided on the way, one sentence each.
        """
        self.engine = engine
        self._name = name
        self._exact = exact
        self._note = note
        self._scale: Fraction | None = None
        self._placed: dict[tuple[int, int], WindowRunner] = {}

    def at(self, scale: Fraction, origin: tuple[int, int]) -> WindowRunner:
        """The same for windows that begin at `origin`; see `AnyScaleEngine.at`.

        Kept are those of the latest scale.
        """

        def there(engine: Engine) -> Engine:
            return cast(AnyScaleEngine, engine).at(scale, origin)

        if scale != self._scale:
            self._scale, self._placed = scale, {}
        if origin not in self._placed:
            exact = self._exact
            # From one of the same scale, whose kernels are made already.
            near = next(iter(self._placed.values()), self)
            self._placed[origin] = WindowRunner(
                there(near.engine),
                name=self._name,
                exact=None if exact is None else lambda: there(exact()),
                note=self._note,
            )
        return self._placed[origin]

    def stream(
        self, batches: Iterable[FloatArray], *, dtype: npt.DTypeLike
    ) -> Iterator[npt.NDArray]:
        """The results of batches of windows, in their order, all finite.

        Args:
            batches: each (N, h, w, C) float32 in [0, 1]; C is the engine's, or 1 for an engine of
                three channels, which then sees three equal ones.
            dtype: what the results will become; see `Engine.stream`.

        Yields:
            (N, s·h, s·w, C): float32, neither clamped nor rounded, or integers of `dtype`.

        Raises:
            NumericsError: NaN or infinity, also in fp32.
            Whatever the device raises when its memory is full.
        """
        under_way: deque[FloatArray] = deque()

        def handed() -> Iterator[FloatArray]:
            for batch in batches:
                if batch.shape[3] == 1 and self.engine.channels == 3:
                    batch = np.repeat(batch, 3, axis=3)
                under_way.append(batch)
                yield batch

        for values, finite in self.engine.stream(handed(), dtype=np.dtype(dtype)):
            windows = under_way.popleft()
            yield values if finite.all() else self._mended(windows, values, ~finite)

    def _mended(
        self, windows: FloatArray, values: npt.NDArray, spoiled: npt.NDArray[np.bool_]
    ) -> npt.NDArray:
        """With the `spoiled` results computed again, which makes floats of integers."""
        precision = self.engine.precision
        if precision != "fp32" and self._exact is not None:
            self._note(f"{precision} gave NaN or infinity: such tiles were computed again in fp32")
            again = self._exact().run(windows[spoiled])
            if np.isfinite(again).all():
                if values.dtype != again.dtype:
                    values = values / np.float32(np.iinfo(values.dtype).max)
                values[spoiled] = again
                return values
            precision = "fp32"
        raise NumericsError(
            f"{self._name} gives NaN or infinity in {precision} for this picture; "
            + ("try another model" if precision == "fp32" else "try --precision fp32")
        )
