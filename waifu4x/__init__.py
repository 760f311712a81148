"""waifu4x enlarges pictures by super-resolution networks.

    import waifu4x

    upscaler = waifu4x.open_upscaler()                      # the model that ships in the box
    picture = waifu4x.read("meme.png")
    larger, facts = upscaler.upscale(picture, waifu4x.Target(scale=4))
    waifu4x.write(larger, "meme_4x.png")

Everything named in `__all__` is public. Names are loaded when they are first used, so that
``import waifu4x`` is instant and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from waifu4x.version import __version__ as __version__

if TYPE_CHECKING:
    from waifu4x.errors import (
        CheckpointError,
        DeviceError,
        NumericsError,
        OutOfMemoryError,
        PictureError,
        TrainError,
        UsageError,
        Waifu4xError,
        WeightsError,
    )
    from waifu4x.models import open_upscaler
    from waifu4x.pictures import Picture, encode, read, write
    from waifu4x.resample import imresize, resize
    from waifu4x.sizes import Target
    from waifu4x.upscaler import Facts, Options, Upscaler

_HOMES = {
    "CheckpointError": "errors",
    "DeviceError": "errors",
    "Facts": "upscaler",
    "NumericsError": "errors",
    "Options": "upscaler",
    "OutOfMemoryError": "errors",
    "Picture": "pictures",
    "PictureError": "errors",
    "Target": "sizes",
    "TrainError": "errors",
    "Upscaler": "upscaler",
    "UsageError": "errors",
    "Waifu4xError": "errors",
    "WeightsError": "errors",
    "encode": "pictures",
    "imresize": "resample",
    "open_upscaler": "models",
    "read": "pictures",
    "resize": "resample",
    "write": "pictures",
}

__all__ = [
    "CheckpointError",
    "DeviceError",
    "Facts",
    "NumericsError",
    "Options",
    "OutOfMemoryError",
    "Picture",
    "PictureError",
    "Target",
    "TrainError",
    "Upscaler",
    "UsageError",
    "Waifu4xError",
    "WeightsError",
    "encode",
    "imresize",
    "open_upscaler",
    "read",
    "resize",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
