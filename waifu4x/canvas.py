"""An output that is filled piece by piece, in the form in which it will be written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

_ROWS_AT_ONCE = 256
# BT.601 full range: how three channels that started equal become one again.
_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


class Canvas:
    """An output that is filled piece by piece: clamped to [0, 1], rounded when it holds integers.

    Integers are written as they come, so a picture of 200 MP takes 600 MB and not 2.4 GB.
    """

    def __init__(self, size_px: tuple[int, int], *, channels: int, dtype: npt.DTypeLike) -> None:
        self.values = np.empty((*size_px, channels), dtype=dtype)
        integer = self.values.dtype.kind == "u"
        self._full = np.float32(np.iinfo(self.values.dtype).max) if integer else None

    def put(self, place: tuple[slice, slice], values: npt.NDArray) -> None:
        """Write `values` (h, w, C) at `place`: floats, or integers of the canvas's own dtype.

        RGB becomes gray where the canvas is gray; that takes floats.
        """
        target = self.values[place]
        if values.dtype == self.values.dtype and self._full is not None:
            target[...] = values
            return
        if target.shape[2] == 1 and values.shape[2] == 3:
            values = (values @ _GRAY_WEIGHTS)[..., None]
        clamped = np.clip(values, 0.0, 1.0)
        if self._full is not None:
            clamped *= self._full
            np.rint(clamped, out=clamped)
        np.copyto(target, clamped, casting="unsafe")

    def fill(self, values: FloatArray) -> None:
        """Write the whole of `values` (H, W, C), some rows at a time to keep temporaries small."""
        for top in range(0, values.shape[0], _ROWS_AT_ONCE):
            rows = slice(top, top + _ROWS_AT_ONCE)
            self.put((rows, slice(None)), values[rows])


def to_unit(values: npt.NDArray) -> FloatArray:
    """uint8 or uint16 -> float32 in [0, 1], the type's maximum being 1."""
    floats = values.astype(np.float32)
    floats /= np.float32(np.iinfo(values.dtype).max)
    return floats


def from_unit(values: npt.NDArray[np.floating], dtype: npt.DTypeLike) -> npt.NDArray:
    """(H, W, C) float -> uint8 or uint16, clamped to [0, 1] and rounded."""
    canvas = Canvas(values.shape[:2], channels=values.shape[2], dtype=dtype)
    canvas.fill(values)
    return canvas.values
