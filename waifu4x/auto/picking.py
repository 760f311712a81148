"""What kind of picture it is, so that a model can be chosen for it: photograph or art, compressed?

`traits` takes numbers from windows of the picture, of its steps, blocks, colours and edges.
A network with one hidden layer, fitted by ``weights/recipes/fit_picking.py``, turns them into two
shares. numpy alone: some ten milliseconds for 256×256 px, some thirty for any larger size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from waifu4x.auto.traits import TRAITS, measured, windows_of
from waifu4x.catalog import shipped_folder
from waifu4x.errors import WeightsError

Kind = Literal["photo", "art"]
WEIGHTS_FILE = "picking.json"

Float64Array = npt.NDArray[np.float64]

LIMIT = 4.0
"""In deviations: what is rarer than any training picture has says no more than the rarest there."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen in a picture.

    `kind` is guaranteed to be "art" where `art_share` is at least one half, and `compressed` True
    where `compressed_share` is.
    """

    kind: Kind
    """ "art": drawings, comics, vector art, icons, screenshots, text; else "photo", also with a
    caption."""
    compressed: bool
    """Shows what JPEG below a quality of about 90 leaves behind, or WebP below about 76."""
    art_share: float
    """How sure it is art, 0..1."""
    compressed_share: float
    """How sure it is compressed, 0..1."""


def look(pixels: np.ndarray) -> Look:
    """Say what kind of picture this is. The same pixels always give the same answer.

    Args:
        pixels: (h, w, 1 or 3) uint8 or uint16, full range, gray or RGB; any size from 1×1.

    Raises:
        WeightsError: the installation lacks the fitted numbers, or they are damaged.
        ValueError: another kind of array.
    """
    good = pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size > 0
    if not good or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"looked at is (h, w, 1 or 3) uint8 or uint16, not {pixels.shape} {pixels.dtype}"
        )
    windows = windows_of(pixels)
    if bool((windows == windows[:1, :1, :1]).all()):
        # Nothing is to be seen: flat colour is drawn, and no block differs from another.
        return Look(kind="art", compressed=False, art_share=1.0, compressed_share=0.0)
    art_share, compressed_share = _shares(measured(windows))
    return Look(
        kind="art" if art_share >= 0.5 else "photo",
        compressed=compressed_share >= 0.5,
        art_share=art_share,
        compressed_share=compressed_share,
    )


def features(pixels: np.ndarray) -> Float64Array:
    """The numbers (f,) float64 that `look` judges by, before they are standardised."""
    return measured(windows_of(pixels))


# -- the fitted network ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    mean: Float64Array
    deviation: Float64Array
    hidden: Float64Array
    """(f + 1, hidden units); the last row is the bias, as in `output`."""
    output: Float64Array
    """(hidden units + 1, 2): the log odds of art and of compressed."""


@cache
def _fitted() -> _Fitted:
    path = shipped_folder() / WEIGHTS_FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = ("mean", "deviation", "hidden", "output")
        read = {name: np.asarray(stored[name], dtype=np.float64) for name in names}
        fitted = _Fitted(**read)
        units = fitted.hidden.shape[1]
        shapes = [read[name].shape for name in names]
        expected = [(TRAITS,), (TRAITS,), (TRAITS + 1, units), (units + 1, 2)]
        if shapes != expected:
            raise ValueError(f"shapes {shapes}, not {expected}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise WeightsError(f"{path} is damaged ({error}); reinstall waifu4x") from error
    return fitted


def _shares(measured: Float64Array) -> tuple[float, float]:
    fitted = _fitted()
    scaled = np.clip((measured - fitted.mean) / fitted.deviation, -LIMIT, LIMIT)
    units = np.tanh(scaled @ fitted.hidden[:-1] + fitted.hidden[-1])
    art, compressed = (
        1.0 / (1.0 + np.exp(-(units @ fitted.output[:-1] + fitted.output[-1])))
    ).tolist()
    return float(art), float(compressed)
