"""What `waifu4x bench` found out, before anybody draws a table or a page of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from waifu4x.bench.published import Figure


@dataclass(frozen=True, kw_only=True)
class Column:
    """A measure, as a reader of a table has to know it."""

    key: str
    """Of `PictureResult.values`: "psnr", "ssim", "ms-ssim", "gmsd", "psnr-rgb", "niqe", …"""
    title: str
    digits: int
    """After the decimal point."""
    is_lower_better: bool = False
    unit: str = ""

    def text(self, value: float | None) -> str:
        """The value as tables show it; "–" for none, "∞" for the PSNR of equal pictures."""
        if value is None:
            return "–"
        return "∞" if math.isinf(value) else f"{value:.{self.digits}f}"


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """One model on one picture."""

    name: str
    """As `DataSet.name_of`."""
    values: dict[str, float | None]
    """By the keys of the columns; None where the picture is too small for it, or too even."""
    time_s: float
    """Of enlarging alone, without reading and measuring."""
    megapixels: float
    """Of the enlarged picture, in millions of pixels."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one set at one scale, of pictures that were all compressed alike."""

    model: str
    dataset: str
    scale: float
    protocol: str
    pictures: tuple[PictureResult, ...]
    """At least one, in the order of their names."""
    device: str
    precision: str
    engine: str
    """What ran the network: torch, openvino or onnxruntime; numpy for a filter."""
    jpeg_quality: int | None = None
    """Of the small pictures, 1..100; None where they were not compressed."""
    parameters: int | None = None
    """Of the network; None for a filter, which has none. `multiply_adds_hd` likewise."""
    multiply_adds_hd: float | None = None
    """For a result of 1280×720 px."""
    peak_memory_bytes: int | None = None
    """The most that the whole process held (on CUDA, the device) meanwhile; None where the system
    does not tell."""
    notes: tuple[str, ...] = ()

    def mean(self, key: str) -> float | None:
        """Over the pictures that have it (for PSNR the mean of dB, as papers average)."""
        found = [value for p in self.pictures if (value := p.values.get(key)) is not None]
        return sum(found) / len(found) if found else None

    def count(self, key: str) -> int:
        """How many pictures have this value."""
        return sum(picture.values.get(key) is not None for picture in self.pictures)

    @property
    def place(self) -> str:
        """Of what it is, as `place_name`."""
        return place_name(self.dataset, self.scale, jpeg_quality=self.jpeg_quality)

    @property
    def way(self) -> str:
        """How it was computed, for people: "cpu in bf16 by openvino"."""
        return f"{self.device} in {self.precision} by {self.engine}"

    @property
    def seconds_per_megapixel(self) -> float:
        """Over all pictures together; of the enlarged ones."""
        spent_s = sum(picture.time_s for picture in self.pictures)
        return spent_s / sum(picture.megapixels for picture in self.pictures)

    def facts(self) -> dict[str, object]:
        """All of it as plain values for JSON; None for an infinite PSNR, which JSON cannot say.

        `jpeg_quality` is there only where the small pictures were compressed.
        """
        keys = self.pictures[0].values
        left_out = {"pictures", "notes", *(["jpeg_quality"] if self.jpeg_quality is None else [])}
        return {
            **{k: v for k, v in self.__dict__.items() if k not in left_out},
            "notes": list(self.notes),
            "seconds_per_megapixel": self.seconds_per_megapixel,
            "means": {key: _finite(self.mean(key)) for key in keys},
            "pictures": [
                {**p.__dict__, "values": {k: _finite(v) for k, v in p.values.items()}}
                for p in self.pictures
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that one run of the command measured."""

    columns: tuple[Column, ...]
    results: tuple[Result, ...]
    """Of a set at a scale and a compression all models follow each other, bicubic first."""
    published: tuple[Figure, ...] = ()
    """What papers say of the same sets and scales, where it was asked for."""

    @property
    def has_jpeg(self) -> bool:
        """Whether any small pictures were compressed."""
        return any(result.jpeg_quality is not None for result in self.results)

    def groups(self) -> list[tuple[str, float, tuple[Result, ...], tuple[Figure, ...]]]:
        """(set, scale, what was measured, what was published), in the order of measuring.

        What was measured is of one compression, so that a set at a scale may come several times.
        Nothing that was published is of compressed pictures.
        """
        found: dict[tuple[str, float, int | None], list[Result]] = {}
        for result in self.results:
            place = (result.dataset, result.scale, result.jpeg_quality)
            found.setdefault(place, []).append(result)
        return [
            (
                dataset,
                scale,
                tuple(results),
                tuple(f for f in self.published if self._is_beside(f, results[0])),
            )
            for (dataset, scale, _), results in found.items()
        ]

    def _is_beside(self, figure: Figure, result: Result) -> bool:
        values = (figure.value(column.key) for column in self.columns)
        return is_comparable(figure, result) and any(value is not None for value in values)

    def best(self, results: Sequence[Result], key: str) -> float | None:
        """The best mean of several results; None when fewer than two have one."""
        column = next(column for column in self.columns if column.key == key)
        found = [value for result in results if (value := result.mean(key)) is not None]
        if len(found) < 2:
            return None
        return min(found) if column.is_lower_better else max(found)


def place_name(dataset: str, scale: float, *, jpeg_quality: int | None = None) -> str:
    """A set at a scale, and how it was compressed, for people: "Set5 x4, JPEG 75"."""
    compression = "" if jpeg_quality is None else f", JPEG {jpeg_quality}"
    return f"{dataset} x{scale}{compression}"


def is_comparable(figure: Figure, result: Result) -> bool:
    """Whether what was published is of the same set and scale; it is never of a compressed one."""
    return result.jpeg_quality is None and figure.applies_to(result.dataset, result.scale)


def ways(results: Sequence[Result]) -> list[str]:
    """The ways in which networks were computed, each once; a filter, which has no device to choose
    and rounds nowhere, counts only where nothing else is."""
    networks = [result for result in results if result.parameters is not None] or results
    return list(dict.fromkeys(result.way for result in networks))


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
