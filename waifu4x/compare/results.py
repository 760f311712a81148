"""Models are run on the same pictures: what each makes of them, how long it takes, how near it is.

Bicubic interpolation always comes first. One model is held in memory at a time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import weights
from waifu4x.bench.metrics import psnr_y
from waifu4x.bench.similarity import WINDOW_PX, ssim_y
from waifu4x.compare import beside
from waifu4x.compare.crops import Crop
from waifu4x.compare.subjects import CONTEXT_PX, Subject
from waifu4x.errors import UnknownModelError, UsageError, Waifu4xError
from waifu4x.models import open_upscaler
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Upscaler

Uint8Array = npt.NDArray[np.uint8]
ModelName = str | Path
Progress = Callable[[str, float], None]

BASELINE = "bicubic"
# Shown to each model before its time is taken: the first call also pays for setting up.
_WARM_UP_PX = 16
_PRESENT = ("shipped", "downloaded", "yours")


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What one model made of one picture."""

    model: str
    pixels: Uint8Array
    """(scale·h, scale·w, 3) sRGB, of the compared region."""
    time_s: float
    """Of the region and the context around it, without reading and writing."""
    parameters: int | None
    """Of the network; None for a filter, which has none."""
    psnr_db: float | None = None
    """On luma, with `scale` px cut off each side; None where nothing is known to be true."""
    ssim: float | None = None
    """As `psnr_db`; None also where the region is smaller than a window of SSIM."""
    facts: Facts


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """One picture, and what every model made of it; bicubic first."""

    name: str
    scale: int
    region: Crop
    """In pixels of what was enlarged; all pictures below are of this part."""
    window: Crop
    """What a grid shows, counted from the corner of `region`."""
    chosen: str
    """How `window` was chosen."""
    is_whole: bool
    """`region` is the whole picture."""
    lr: Uint8Array
    """(h, w, 3) sRGB: what was enlarged."""
    results: tuple[Result, ...]
    truth: Uint8Array | None = None
    """(scale·h, scale·w, 3) sRGB."""

    def best(self, measure: str) -> float | None:
        """The highest of "psnr_db" or "ssim"; None when it was not measured of several."""
        values = [v for r in self.results if (v := getattr(r, measure)) is not None]
        return max(values) if len(values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A model that was to be compared and could not."""

    model: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Every comparison has the results of the same models, in the same order."""

    comparisons: tuple[Comparison, ...]
    left_out: tuple[LeftOut, ...] = ()


def at_hand(*, with_references: bool = False) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """The models that can run without a download, and those whose files are damaged or missing.

    Shipped ones come first, then downloaded ones, then the user's own. Nothing is hashed yet.
    Those that stand in for another at smaller scales are not listed: it gives way to them. Those
    that need a reference are, where there is one.
    """
    models: list[str] = []
    damaged: list[LeftOut] = []
    found = weights.list_available()
    stand_ins = {name for available in found for name in available.row.up_to.values()}
    for available in found:
        if available.row.kind in ("resample", "features") or available.row.name in stand_ins:
            continue
        if not with_references and available.row.architecture in beside.NEEDED_BY:
            continue
        if available.state in _PRESENT:
            models.append(available.row.name)
        elif available.state in ("damaged", "missing"):
            damaged.append(
                LeftOut(
                    model=available.row.name,
                    reason=f"its file {available.path} is {available.state}; `waifu4x models "
                    f"verify` says more",
                )
            )
    return tuple(models), tuple(damaged)


def run(
    subjects: Sequence[Subject],
    models: Sequence[ModelName] | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    offline: bool = False,
    on_progress: Progress | None = None,
    on_download: Callable[[int, int], None] | None = None,
    references: Sequence[str] = (),
) -> Outcome:
    """Run models on every subject; bicubic is always run, and is the first.

    Args:
        models: names, aliases or files; None means every model `at_hand`, none of which is ever
            downloaded, and of which those that fail are left out instead of raising.
        device, precision, offline, on_download: as in `open_upscaler`; a model that is named and
            not here is downloaded unless `offline`.
        references: for models that take one, see `beside`; one for all subjects, or one for each.
        on_progress: called with a model's name and the share of all work that is done, 0..1.

    Raises:
        UsageError: no subjects, or none of the models can run.
        Waifu4xError: what `open_upscaler` and `Upscaler.upscale` raise, for models that are named.
    """
    if not subjects:
        raise UsageError("there is no picture to compare models on")
    named = models is not None
    left_out: list[LeftOut] = []
    chosen: Sequence[ModelName] = models or ()
    if models is None:
        chosen, damaged = at_hand(with_references=bool(references))
        left_out += damaged
    wanted = _distinct((BASELINE, *chosen))
    scale = subjects[0].scale if len({subject.scale for subject in subjects}) == 1 else None
    shown = beside.for_each(references, subjects)
    rows: list[list[Result]] = [[] for _ in subjects]
    for number, model in enumerate(wanted):
        told = _Told(model, number, of=len(wanted), call=on_progress)
        try:
            upscaler = _open(
                model,
                scale=scale,
                device=device,
                precision=precision,
                offline=offline or not named,
                on_download=on_download,
                references=beside.at_first(shown),
            )
            found = _run_one(upscaler, subjects, shown, told)
        except Waifu4xError as error:
            if named or model == BASELINE:
                raise
            left_out.append(LeftOut(model=str(model), reason=str(error)))
            continue
        for row, result in zip(rows, found, strict=True):
            row.append(_named_apart(result, row))
    comparisons = tuple(map(_comparison, subjects, rows))
    return Outcome(comparisons=comparisons, left_out=tuple(left_out))


@dataclass(frozen=True)
class _Told:
    """Progress of one model among several."""

    model: ModelName
    number: int
    of: int
    call: Progress | None

    def __call__(self, share: float) -> None:
        if self.call is not None:
            name = self.model if isinstance(self.model, str) else self.model.stem
            self.call(name, (self.number + share) / self.of)


def _distinct(models: Sequence[ModelName]) -> list[ModelName]:
    """Each once, in order, whichever of its names it is called by."""
    found: dict[object, ModelName] = {}
    for model in models:
        key: object = model
        if isinstance(model, str):
            try:
                key = weights.find(model).name
            except UnknownModelError:
                key = model  # a file, or nothing: `open_upscaler` says which
        found.setdefault(key, model)
    return list(found.values())


def _open(
    model: ModelName,
    *,
    scale: float | None,
    device: str,
    precision: str,
    offline: bool,
    on_download: Callable[[int, int], None] | None,
    references: tuple[str, ...],
) -> Upscaler:
    if isinstance(model, str) and _is_filter(model):
        return open_upscaler(model)
    return open_upscaler(
        model,
        device=device,
        precision=precision,
        offline=offline,
        on_download=on_download,
        scale=scale,
        references=references,
    )


def _is_filter(model: str) -> bool:
    try:
        return weights.find(model).kind == "resample"
    except UnknownModelError:
        return False


def _run_one(
    upscaler: Upscaler, subjects: Sequence[Subject], shown: Sequence[str], told: _Told
) -> list[Result]:
    results = []
    for number, subject in enumerate(subjects):
        target = Target(scale=subject.scale)
        if not number and upscaler.runner is not None:
            corner = Crop(x=0, y=0, width_px=_WARM_UP_PX, height_px=_WARM_UP_PX)
            upscaler.upscale(_part(subject.picture, corner), target)

        def step(share: float, before: int = number) -> None:
            told((before + share) / len(subjects))

        size = subject.picture.pixels.shape[:2]
        seen = subject.region.grown(CONTEXT_PX, within=(size[0], size[1]))
        if shown:
            beside.show(upscaler, shown[number], subject, seen)
        results.append(_result(upscaler, subject, seen, step))
    return results


def _result(
    upscaler: Upscaler, subject: Subject, seen: Crop, on_progress: Callable[[float], None]
) -> Result:
    """seen: the part of the subject that is enlarged; its region and what lies around that."""
    part = _part(subject.picture, seen)
    started = time.perf_counter()
    target = Target(scale=subject.scale)
    enlarged, facts = upscaler.upscale(part, target, on_progress=on_progress)
    spent_s = time.perf_counter() - started
    inner = subject.region.relative_to(seen).scaled(subject.scale)
    pixels = np.ascontiguousarray(inner.cut(subject.flattened(enlarged)))
    psnr_db, ssim = _measured(pixels, subject)
    model = upscaler.model
    return Result(
        model=upscaler.name,
        pixels=pixels,
        time_s=spent_s,
        parameters=None if isinstance(model, str) else model.parameters,
        psnr_db=psnr_db,
        ssim=ssim,
        facts=facts,
    )


def _part(picture: Picture, crop: Crop) -> Picture:
    alpha = picture.alpha
    return picture.with_pixels(
        np.ascontiguousarray(crop.cut(picture.pixels)),
        None if alpha is None else np.ascontiguousarray(crop.cut(alpha)),
    )


def _measured(pixels: Uint8Array, subject: Subject) -> tuple[float | None, float | None]:
    if subject.truth is None:
        return None, None
    border_px = subject.scale
    left_px = min(pixels.shape[:2]) - 2 * border_px
    truth = subject.region.scaled(subject.scale).cut(subject.truth)
    psnr_db = psnr_y(pixels, truth, border_px=border_px) if left_px >= 1 else None
    ssim = ssim_y(pixels, truth, border_px=border_px) if left_px >= WINDOW_PX else None
    return psnr_db, ssim


def _named_apart(result: Result, others: Sequence[Result]) -> Result:
    """Files in two folders may have one name; a number behind it tells them apart."""
    taken = {other.model for other in others}
    if result.model not in taken:
        return result
    number = next(n for n in range(2, len(taken) + 3) if f"{result.model} ({n})" not in taken)
    return dataclasses.replace(result, model=f"{result.model} ({number})")


def _comparison(subject: Subject, results: Sequence[Result]) -> Comparison:
    region = subject.region
    truth = None
    if subject.truth is not None:
        truth = np.ascontiguousarray(region.scaled(subject.scale).cut(subject.truth))
    height, width = subject.shown.shape[:2]
    return Comparison(
        name=subject.name,
        scale=subject.scale,
        region=region,
        window=subject.window.relative_to(region),
        chosen=subject.chosen,
        is_whole=(region.width_px, region.height_px) == (width, height),
        lr=np.ascontiguousarray(region.cut(subject.shown)),
        results=tuple(results),
        truth=truth,
    )
