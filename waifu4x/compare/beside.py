"""Sharp pictures beside those that are compared, for models that take a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from waifu4x.compare.crops import Crop
from waifu4x.compare.subjects import Subject
from waifu4x.errors import UsageError
from waifu4x.references.reference_pictures import BLANK, aligned, read_references
from waifu4x.upscaler import Upscaler

NEEDED_BY = frozenset({"crossnet"})
"""Networks that cannot run without one: said here, as asking them takes PyTorch."""


def for_each(given: Sequence[str], subjects: Sequence[Subject]) -> tuple[str, ...]:
    """One reference for every subject; a single one is for all. Raises UsageError otherwise."""
    if len(given) == 1:
        return (*given,) * len(subjects)
    if given and len(given) != len(subjects):
        raise UsageError(
            f"give one --beside for all pictures, or one for each: {len(subjects)}, not "
            f"{len(given)}"
        )
    return tuple(given)


def at_first(given: Sequence[str]) -> tuple[str, ...]:
    """What a model is opened with; each subject's own comes with `show`."""
    return (BLANK,) if given else ()


def show(upscaler: Upscaler, given: str, subject: Subject, seen: Crop) -> None:
    """Give a model that takes references the one of a subject; others stay as they are.

    seen: the part of the subject that is enlarged. Where the network lays the reference upon the
    enlargement, it gets the same part of that; where it searches, it gets all of it.

    Raises UsageError and PictureReadError as `read_references` and `aligned` do.
    """
    model = upscaler.model
    if isinstance(model, str) or model.reference == "none":
        return
    from waifu4x.references.reference import ReferenceUpscaler  # torch was imported for the model

    assert isinstance(upscaler, ReferenceUpscaler), "a model of this kind makes one"
    references = read_references([Path(given) if given != BLANK else BLANK])
    if model.reference == "needed" and not references.is_blank:
        height, width = subject.picture.pixels.shape[:2]
        whole, _ = aligned(references, (subject.scale * height, subject.scale * width))
        part = seen.scaled(subject.scale)
        rows = slice(part.y, part.y + part.height_px)
        columns = slice(part.x, part.x + part.width_px)
        references = dataclasses.replace(references, images=(whole[rows, columns],))
    upscaler.show(references)
