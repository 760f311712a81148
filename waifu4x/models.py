"""A name becomes an upscaler: its file is found or fetched, loaded, and put on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from waifu4x import catalog, kept_starts, weights
from waifu4x.auto import automatic
from waifu4x.engines import Opened
from waifu4x.errors import UnknownModelError, UsageError
from waifu4x.model_files.model_facts import Model
from waifu4x.references.reference_pictures import BLANK
from waifu4x.resample import Kernel
from waifu4x.tiled import TiledRunner
from waifu4x.upscaler import Options, Upscaler


def open_upscaler(
    model: str | Path = catalog.AUTO,
    *,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    tile_px: int | None = None,
    tta: bool = False,
    compiled: bool = False,
    options: Options | None = None,
    offline: bool = False,
    on_download: Callable[[int, int], None] | None = None,
    memory_bytes: int | None = None,
    scale: float | None = None,
    references: Sequence[str | Path] = (),
) -> Upscaler:
    """An upscaler for a model of the catalogue, a model of the user's, or a file of weights.

    Args:
        model: a name, an alias, or the path of a ``.safetensors``, ``.pth`` or ``.onnx`` file;
            ``auto`` looks at each picture and chooses, see `AutoUpscaler`.
        device: ``auto``, ``cpu``, ``mps``, ``xpu``, ``xpu:N``, ``cuda`` or ``cuda:N``; several of
            the last with commas share the work.
        precision: ``auto``, ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        engine: ``auto``, ``torch``, ``openvino`` or ``onnxruntime``, which alone runs ``.onnx``
            files; see `engines.choice.open_engine`.
        tile_px: the side of a tile, never changed; by default what memory allows.
        tta: average over the eight flips and turns of the picture.
        compiled: compile the network for pictures of one size, on CUDA; see `CUDAEngine`.
        offline: never download.
        on_download: called with (done, total) bytes.
        memory_bytes: what a tile may take of the device's memory at most.
        scale: output over input, if all pictures have the same: a model with a sibling for x2
            gives way to it where that is enough.
        references: sharp pictures of the same scene, for models that take them; see `reference`.

    Raises:
        UnknownModelError, WeightsError, DeviceError, UsageError; PictureReadError for references.
    """
    kind = _kind(model) if isinstance(model, str) else None
    wishes = _Wishes(
        device=device,
        precision=precision,
        engine=engine,
        compiled=compiled,
        tile_px=tile_px,
        tta=tta,
        memory_bytes=memory_bytes,
        options=options or Options(),
        references=tuple(references),
    )
    if kind == "resample":
        return _filter(str(model), wishes)
    if model == catalog.AUTO:
        return _auto(wishes, scale)
    if kind is not None:
        model = catalog.for_scale(weights.find(str(model)), scale).name
    return _network(weights.resolve(model, offline=offline, on_progress=on_download), wishes)


def _auto(wishes: _Wishes, scale: float | None) -> Upscaler:
    _refuse_references(catalog.AUTO, wishes.references)

    def open_row(row: catalog.CatalogRow) -> Upscaler:
        return _network(weights.resolve(row.name), wishes)

    return automatic.open_auto(open_row, scale=scale, options=wishes.options)


def _filter(name: str, wishes: _Wishes) -> Upscaler:
    kernel = cast(Kernel, weights.find(name).name)
    _refuse_references(kernel, wishes.references)
    choices = wishes.device, wishes.precision, wishes.engine, wishes.tile_px, wishes.tta
    if choices != ("auto", "auto", "auto", None, False) or wishes.compiled:
        raise UsageError(
            f"{kernel} is no network: --device, -g, --precision, --compile, --engine, --tile "
            f"and --tta have nothing to act on"
        )
    return Upscaler(model=kernel, options=wishes.options)


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What runs a network, and how; see `open_upscaler`."""

    device: str
    precision: str
    engine: str
    compiled: bool
    tile_px: int | None
    tta: bool
    memory_bytes: int | None
    options: Options
    references: tuple[str | Path, ...]


def _network(found: weights.ResolvedWeights, wishes: _Wishes) -> Upscaler:
    ready = None if wishes.references else _recalled(found, wishes)
    if ready is None:
        loaded = _loaded(found)
        if loaded.reference != "none":
            return _with_references(loaded, wishes)
        _refuse_references(loaded.name, wishes.references)
        ready = loaded, _opened(loaded, wishes)
    loaded, opened = ready
    runner = TiledRunner(
        loaded,
        precision=wishes.precision,
        engines_folder=conversions_folder(),
        tile_px=wishes.tile_px,
        tta=wishes.tta,
        memory_bytes=wishes.memory_bytes,
        opened=opened,
    )
    return Upscaler(model=loaded, runner=runner, options=wishes.options)


def _recalled(found: weights.ResolvedWeights, wishes: _Wishes) -> tuple[Model, Opened] | None:
    """A model that ran here before; without torch, which takes a second to import."""
    if wishes.compiled:
        return None
    return kept_starts.recall(
        found.path,
        name=found.name,
        sha256=found.sha256,
        licence=found.row.licence if found.row else None,
        folder=conversions_folder(),
        engine=wishes.engine,
        device=wishes.device,
        precision=wishes.precision,
    )


def _loaded(found: weights.ResolvedWeights) -> Model:
    from waifu4x import onnx_files
    from waifu4x.model_files import checkpoints

    if found.path.suffix.lower() == onnx_files.SUFFIX:
        return onnx_files.load(found.path, name=found.name, folder=conversions_folder())
    licence = found.row.licence if found.row else None
    return checkpoints.load(found.path, name=found.name, licence=licence)


def _refuse_references(name: str, references: Sequence[str | Path]) -> None:
    """A blank one is none, and is of no harm to a model that takes none."""
    if any(str(each) != BLANK for each in references):
        raise UsageError(
            f"{name} takes no reference: leave --reference out, or give a model that does by -m"
        )


def _with_references(loaded: Model, wishes: _Wishes) -> Upscaler:
    from waifu4x.references import reference

    plain = wishes.engine in ("auto", "torch") and wishes.precision in ("auto", "fp32")
    if not plain or wishes.tta or wishes.compiled:
        raise UsageError(
            f"{loaded.name} takes references, and runs in fp32 by torch alone: leave --engine, "
            f"--precision, --compile and --tta out"
        )
    return reference.open_reference(
        loaded,
        wishes.references,
        device=wishes.device,
        tile_px=wishes.tile_px,
        options=wishes.options,
    )


def _opened(loaded: Model, wishes: _Wishes) -> Opened:
    from waifu4x import onnx_files
    from waifu4x.engines import choice

    engine, folder = wishes.engine, conversions_folder()
    if loaded.path.suffix.lower() == onnx_files.SUFFIX:
        engine = "onnxruntime" if engine == "auto" else engine
    opened = choice.open_engine(
        loaded.network,
        engine=engine,
        device=wishes.device,
        precision=wishes.precision,
        compiled=wishes.compiled,
        sha256=loaded.sha256,
        folder=folder,
    )
    kept_starts.keep(loaded, opened, folder, precision=wishes.precision)
    return opened


def conversions_folder() -> Path:
    """Where engines keep what they convert; it need not exist, and may be deleted at any time."""
    return weights.downloads_folder().with_name("engines")


def _kind(name: str) -> catalog.Kind | None:
    """Raises UsageError where it is no model."""
    try:
        kind = weights.find(name).kind
    except UnknownModelError:
        return None  # a path, or nothing at all: `weights.resolve` says which
    if kind == "features":
        raise UsageError(
            f"{name} enlarges nothing: it holds the features that training compares pictures by; "
            f"`waifu4x models list` shows the models"
        )
    return kind
