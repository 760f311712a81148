"""A name becomes an upscaler: its file is found or fetched, loaded, and put on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from waifu4x import catalog, weights
from waifu4x.errors import UnknownModelError, UsageError
from waifu4x.resample import Kernel
from waifu4x.upscaler import Options, Upscaler


def open_upscaler(
    model: str | Path = catalog.DEFAULT_MODEL,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    tile_px: int | None = None,
    tta: bool = False,
    options: Options | None = None,
    offline: bool = False,
    on_download: Callable[[int, int], None] | None = None,
) -> Upscaler:
    """An upscaler for a model of the catalogue, a model of the user's, or a file of weights.

    Args:
        model: a name, an alias, or the path of a ``.safetensors`` or ``.pth`` file.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``.
        engine: ``auto``, ``torch`` or ``openvino``; see `engines.choice.open_engine`.
        tile_px: the side of a tile, never changed; by default what memory allows.
        tta: average over the eight flips and turns of the picture.
        offline: never download.
        on_download: called with (done, total) bytes.

    Raises:
        UnknownModelError, WeightsError, DeviceError, UsageError.
    """
    chosen = options or Options()
    kind = _kind(model) if isinstance(model, str) else None
    if kind == "features":
        raise UsageError(
            f"{model} enlarges nothing: it holds the features that training compares pictures by; "
            f"`waifu4x models list` shows the models"
        )
    if kind == "resample":
        kernel = cast(Kernel, weights.find(str(model)).name)
        if (device, precision, engine, tile_px, tta) != ("auto", "auto", "auto", None, False):
            raise UsageError(
                f"{kernel} is no network: --device, -g, --precision, --engine, --tile and --tta "
                f"have nothing to act on"
            )
        return Upscaler(model=kernel, options=chosen)
    found = weights.resolve(model, offline=offline, on_progress=on_download)

    from waifu4x import checkpoints  # they need torch; see above
    from waifu4x.tiled import TiledRunner

    licence = found.row.licence if found.row else None
    loaded = checkpoints.load(found.path, name=found.name, licence=licence)
    runner = TiledRunner(
        loaded,
        device=device,
        precision=precision,
        engine=engine,
        engines_folder=weights.downloads_folder().with_name("engines"),
        tile_px=tile_px,
        tta=tta,
    )
    return Upscaler(model=loaded, runner=runner, options=chosen)


def _kind(name: str) -> catalog.Kind | None:
    try:
        return weights.find(name).kind
    except UnknownModelError:
        return None  # a path, or nothing at all: `weights.resolve` says which
