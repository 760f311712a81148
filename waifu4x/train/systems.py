"""Models as things that enlarge a picture by one factor, for whatever compares them in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import catalog, weights
from waifu4x.errors import UnknownModelError
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

Uint8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that enlarges pictures."""

    name: str
    identity: str
    """What decides the pixels that it makes, such as the sha256 of its weights."""
    enlarge: Callable[[Uint8Array], Uint8Array]
    """(h, w, 3) -> (s·h, s·w, 3), both uint8 RGB."""


def check_systems(names: Sequence[str]) -> None:
    """Raises UnknownModelError for a name that no model has, and no file."""
    for name in names:
        if name != catalog.AUTO and not Path(name).is_file():
            weights.find(name)


def open_systems(names: Sequence[str], *, scale: int, device: str = "auto") -> list[System]:
    """The models of these names, or files, each enlarging by `scale`.

    Raises what `models.open_upscaler` raises: UnknownModelError, WeightsError, DeviceError.
    """
    from waifu4x import models  # brings torch with it

    opened = []
    for name in names:
        # A filter has no device, and says so.
        upscaler = models.open_upscaler(name, device="auto" if _is_filter(name) else device)
        enlarge = partial(_enlarged, upscaler=upscaler, scale=scale)
        opened.append(System(name=name, identity=upscaler.identity, enlarge=enlarge))
    return opened


def _enlarged(lr: Uint8Array, *, upscaler: Upscaler, scale: int) -> Uint8Array:
    picture, _ = upscaler.upscale(Picture(pixels=lr), Target(scale=float(scale)))
    return picture.pixels.astype(np.uint8, copy=False)


def _is_filter(name: str) -> bool:
    try:
        return weights.find(name).kind == "resample"
    except UnknownModelError:
        return False  # a file, or `auto`
