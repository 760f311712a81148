"""Models are measured on sets of pictures, one model in memory at a time.

Pictures go through one after the other; with several workers the measures of one picture are taken
while the next ones are enlarged. What is measured does not depend on that, but times do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

import numpy as np

from waifu4x import weights
from waifu4x.bench import published, references
from waifu4x.bench.measures import Measure
from waifu4x.bench.peaks import PeakMemory
from waifu4x.bench.protocol import (
    DEFAULT_PROTOCOL,
    Enlarged,
    Protocol,
    check_jpeg,
    check_sizes,
    enlarge,
    protocol_named,
)
from waifu4x.bench.published import Figure
from waifu4x.bench.results import PictureResult, Report, Result, is_comparable, place_name
from waifu4x.bench.sets import DataSet
from waifu4x.errors import UnknownModelError, UsageError
from waifu4x.models import open_upscaler
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

ModelName = str | Path
Progress = Callable[[str, int, int], None]

BASELINE = "bicubic"
# Shown to each model before any time is taken: the first call also pays for setting up.
_WARM_UP_PX = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured, and how. Raises UsageError for what makes no sense."""

    models: tuple[ModelName, ...]
    sets: tuple[DataSet, ...]
    scales: tuple[float, ...]
    """Whole ones as int."""
    measures: tuple[Measure, ...]
    protocol: str = DEFAULT_PROTOCOL
    lr_folder: Path | None = None
    """Low-resolution pictures to take instead of shrinking."""
    jpeg_qualities: tuple[int | None, ...] = (None,)
    """How to compress what was shrunk, each measured by itself: 1..100, None for not at all."""
    workers: int = 1
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    offline: bool = False
    with_published: bool = False
    """Put what papers report beside what is measured and was not compressed."""
    references: str | None = None
    """For models that take references: a folder of pictures under the same names, or ``blank``."""

    def __post_init__(self) -> None:
        conventions = self.conventions
        for scale in self.scales:
            if not 1.0 < scale < math.inf:
                raise UsageError(f"a scale to measure at is more than 1, not {scale}")
        for quality in self.jpeg_qualities:
            if quality is not None:
                is_small_given = self.lr_folder is not None
                check_jpeg(quality, protocol=conventions, is_small_given=is_small_given)
        if not (self.models and self.places and self.measures):
            raise UsageError("there is nothing to measure")
        if self.workers < 1:
            raise UsageError(f"there must be at least one worker, not {self.workers}")
        if self.lr_folder is not None and conventions.is_luma_alone:
            raise UsageError(f"the protocol {self.protocol} shrinks luma itself: leave out --lr")
        for measure in self.measures:
            if measure.needs_colour and conventions.is_luma_alone:
                raise UsageError(
                    f"{measure.column.title} is measured in colour: choose another protocol than "
                    f"{self.protocol}"
                )

    @property
    def conventions(self) -> Protocol:
        """The protocol itself. Raises UsageError when there is none of this name."""
        return protocol_named(self.protocol)

    @property
    def places(self) -> list[tuple[DataSet, float, int | None]]:
        """(set, scale, JPEG quality) of all that each model is measured on, in this order."""
        return list(product(self.sets, self.scales, self.jpeg_qualities))

    @property
    def total(self) -> int:
        """How many pictures will be enlarged."""
        return sum(len(dataset.pictures) for dataset, _, _ in self.places) * len(self.models)


def run(
    plan: Plan,
    *,
    on_progress: Progress | None = None,
    on_download: Callable[[int, int], None] | None = None,
) -> Report:
    """Measure everything of a plan.

    Args:
        on_progress: called as each picture begins, with (what is worked on, pictures done,
            `plan.total`), and once more when all are done.
        on_download: as `open_upscaler`.

    Raises, the first two before anything is measured:
        UsageError: pictures that are too small, or without a partner in `plan.lr_folder`.
        Waifu4xError: what `open_upscaler` raises, for any of the models.
        PictureReadError, NumericsError, OutOfMemoryError: as reading and enlarging.
    """
    partners = {
        (dataset.folder, scale): dataset.partners(plan.lr_folder, scale=scale)
        for dataset in plan.sets
        for scale in plan.scales
        if plan.lr_folder is not None
    }
    _check_pictures(plan, partners)
    beside = references.find(plan.references, plan.sets)
    # Each is let go again: a later one that is damaged should not cost what an earlier one took.
    for model in plan.models:
        if not is_filter(model):
            for scale in plan.scales:
                _network(model, plan, scale=scale, on_download=on_download)
    told = _Told(call=on_progress, total=plan.total)
    by_model: list[list[Result]] = []
    for model in plan.models:
        subjects = {scale: _open(model, plan, scale=scale) for scale in plan.scales}
        by_model.append(
            [
                _measure(
                    subjects[scale],
                    plan,
                    dataset,
                    scale=scale,
                    jpeg_quality=quality,
                    lr=partners.get((dataset.folder, scale), {}),
                    beside=beside.get(dataset.folder, {}),
                    told=told,
                )
                for dataset, scale, quality in plan.places
            ]
        )
    told.finished()
    # The models were measured one after the other, but are compared place by place.
    results = tuple(chain.from_iterable(zip(*by_model, strict=True)))
    return Report(
        columns=tuple(measure.column for measure in plan.measures),
        results=results,
        published=_published(results) if plan.with_published else (),
    )


@dataclass(kw_only=True)
class _Told:
    """Progress over everything."""

    call: Progress | None
    total: int
    done: int = 0

    def starting(self, text: str) -> None:
        if self.call is not None:
            self.call(text, self.done, self.total)
        self.done += 1

    def finished(self) -> None:
        if self.call is not None:
            self.call("", self.done, self.total)


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model that is measured."""

    upscaler: Upscaler
    device: str
    precision: str
    engine: str
    parameters: int | None
    multiply_adds_hd: float | None


def _check_pictures(plan: Plan, partners: Mapping[tuple[Path, float], Mapping[Path, Path]]) -> None:
    for dataset, scale, quality in plan.places:
        lr = partners.get((dataset.folder, scale), {})
        for path in dataset.pictures:
            check_sizes(path, scale=scale, lr=lr.get(path), jpeg_quality=quality)


def _network(
    model: ModelName,
    plan: Plan,
    *,
    scale: float,
    on_download: Callable[[int, int], None] | None = None,
) -> Upscaler:
    return open_upscaler(
        model,
        device=plan.device,
        precision=plan.precision,
        engine=plan.engine,
        offline=plan.offline,
        on_download=on_download,
        scale=scale,
        references=references.at_first(plan.references),
    )


def _open(model: ModelName, plan: Plan, *, scale: float) -> _Subject:
    """A filter is no network, and has neither device nor precision nor engine."""
    if is_filter(model):
        return _Subject(
            upscaler=open_upscaler(model),
            device="cpu",
            precision="fp32",
            engine="numpy",
            parameters=None,
            multiply_adds_hd=None,
        )
    from waifu4x.bench.cost import measure_cost  # imports torch

    upscaler = _network(model, plan, scale=scale)
    opened, runner = upscaler.model, upscaler.runner
    assert runner is not None
    assert not isinstance(opened, str)
    # The graph of an .onnx file has no layers that could be counted; what a search in references
    # takes depends on those.
    uncounted = opened.architecture == "onnx" or opened.reference != "none"
    cost = None if uncounted else measure_cost(opened.network, opened)
    return _Subject(
        upscaler=upscaler,
        device=str(runner.device),
        precision=runner.precision,
        engine=runner.engine,
        parameters=opened.parameters if cost is None else cost.parameters,
        multiply_adds_hd=None if cost is None else cost.multiply_adds_hd,
    )


def is_filter(model: ModelName) -> bool:
    """Whether it is the name of a resampling kernel."""
    if isinstance(model, Path):
        return False
    try:
        return weights.find(model).kind == "resample"
    except UnknownModelError:
        return False  # a file, or nothing: `open_upscaler` says which


def _measure(
    subject: _Subject,
    plan: Plan,
    dataset: DataSet,
    *,
    scale: float,
    jpeg_quality: int | None,
    lr: Mapping[Path, Path],
    beside: Mapping[Path, Path],
    told: _Told,
) -> Result:
    upscaler, protocol = subject.upscaler, plan.conventions
    place = place_name(dataset.name, scale, jpeg_quality=jpeg_quality)
    notes: dict[str, None] = {}
    pictures: list[PictureResult] = []
    _warm_up(upscaler, scale, protocol)
    with PeakMemory(subject.device) as memory, _Measuring(plan) as measuring:
        for path in dataset.pictures:
            told.starting(f"{upscaler.name} on {place}")
            references.show(upscaler, beside.get(path))
            enlarged = enlarge(
                upscaler,
                path,
                scale=scale,
                protocol=protocol,
                lr=lr.get(path),
                jpeg_quality=jpeg_quality,
            )
            if enlarged.facts is not None:
                notes |= dict.fromkeys(enlarged.facts.notes)
            pictures += measuring.take(dataset.name_of(path), enlarged)
        pictures += measuring.rest()
    return Result(
        model=upscaler.name,
        dataset=dataset.name,
        scale=scale,
        protocol=protocol.name,
        jpeg_quality=jpeg_quality,
        pictures=tuple(pictures),
        device=subject.device,
        precision=subject.precision,
        engine=subject.engine,
        parameters=subject.parameters,
        multiply_adds_hd=subject.multiply_adds_hd,
        peak_memory_bytes=memory.peak_bytes,
        notes=(*_passes_note(upscaler, scale), *references.note(upscaler, plan.references), *notes),
    )


class _Measuring:
    """Takes measures, in workers when there are several, and gives results in the order of asking.

    At most one picture more than there are workers is held at a time.
    """

    def __init__(self, plan: Plan) -> None:
        self._measures = plan.measures
        self._limit = plan.workers
        self._pool = ThreadPoolExecutor(plan.workers) if plan.workers > 1 else None
        self._pending: deque[Future[PictureResult]] = deque()

    def __enter__(self) -> _Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, name: str, enlarged: Enlarged) -> list[PictureResult]:
        """What is finished by now; it may be nothing."""
        if self._pool is None:
            return [self._one(name, enlarged)]
        self._pending.append(self._pool.submit(self._one, name, enlarged))
        return [self._pending.popleft().result()] if len(self._pending) > self._limit else []

    def rest(self) -> list[PictureResult]:
        """What was not given yet."""
        return [self._pending.popleft().result() for _ in range(len(self._pending))]

    def _one(self, name: str, enlarged: Enlarged) -> PictureResult:
        return PictureResult(
            name=name,
            values={m.column.key: m.take(enlarged.pair) for m in self._measures},
            time_s=enlarged.time_s,
            megapixels=enlarged.megapixels,
        )


def _warm_up(upscaler: Upscaler, scale: float, protocol: Protocol) -> None:
    if upscaler.runner is None:
        return
    if protocol.is_luma_alone:
        small = np.zeros((_WARM_UP_PX, _WARM_UP_PX), np.float32)
        side_px = math.floor(scale * _WARM_UP_PX)
        upscaler.enlarge_plane(small, (side_px, side_px))
    else:
        small = np.zeros((_WARM_UP_PX, _WARM_UP_PX, 3), np.uint8)
        upscaler.upscale(Picture(pixels=small), Target(scale=scale))


def _passes_note(upscaler: Upscaler, scale: float) -> tuple[str, ...]:
    """What to know of a network that was made for another scale."""
    passes = upscaler.passes(float(scale))
    if upscaler.runner is None or passes == (scale,):
        return ()
    if math.prod(passes) == scale:
        return (f"{upscaler.name} enlarges {passes[0]:g} times: for {scale} it was applied again",)
    times = " and ".join(f"{factor:g}" for factor in passes)
    return (f"{upscaler.name} enlarges {times} times, not {scale}; the rest is interpolation",)


def _published(results: Sequence[Result]) -> tuple[Figure, ...]:
    """Of every set and scale that was measured."""
    return tuple(
        figure
        for figure in published.figures()
        if any(is_comparable(figure, result) for result in results)
    )
