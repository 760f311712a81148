"""The references of pictures that are measured, for models that take some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from waifu4x.bench.sets import DataSet
from waifu4x.errors import UsageError
from waifu4x.references.reference_pictures import BLANK, read_references
from waifu4x.upscaler import Upscaler

Found = Mapping[Path, Mapping[Path, Path]]


def find(wish: str | None, sets: Sequence[DataSet]) -> Found:
    """The reference of every picture, by the set's folder and the picture's path.

    Args:
        wish: a folder of pictures under the same names; with None or BLANK there are none.

    Raises UsageError for a picture without one, and for a folder that is none.
    """
    if wish is None or wish == BLANK:
        return {}
    folder = Path(wish)
    if not folder.is_dir():
        raise UsageError(
            f"--references {wish}: there is no such folder of pictures; or say {BLANK}"
        )
    return {dataset.folder: dataset.partners(folder, scale=1) for dataset in sets}


def at_first(wish: str | None) -> tuple[str, ...]:
    """What a model is opened with: those of a folder are each picture's own, and come later."""
    return () if wish is None else (BLANK,)


def show(upscaler: Upscaler, path: Path | None) -> None:
    """Give a picture's own reference to a model that takes one. Raises as `read_references`."""
    if path is None or isinstance(upscaler.model, str) or upscaler.model.reference == "none":
        return
    from waifu4x.references.reference import ReferenceUpscaler  # torch was imported for the model

    assert isinstance(upscaler, ReferenceUpscaler), "a model of this kind makes one"
    upscaler.show(read_references([path]))


def note(upscaler: Upscaler, wish: str | None) -> tuple[str, ...]:
    """What to know of a model that takes references; nothing of others."""
    if isinstance(upscaler.model, str) or upscaler.model.reference == "none":
        return ()
    if wish is None:
        return (f"{upscaler.name} takes references, and was shown none",)
    shown = "a black one" if wish == BLANK else f"those of {wish}"
    return (f"{upscaler.name} takes references, and was shown {shown}",)
