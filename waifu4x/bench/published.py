"""What papers report: the figures of ``weights/published.toml``, each with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from waifu4x.catalog import shipped_folder
from waifu4x.errors import WeightsError

PUBLISHED_FILE = "published.toml"
DATASETS = ("Set5", "Set14", "B100", "Urban100")
"""The sets that there are figures of, in the order of papers."""

Channel = Literal["y", "rgb"]

_SET_ALIASES = {"bsd100": "b100", "bsds100": "b100"}
_SCALES = {f"x{scale}": scale for scale in (2, 3, 4, 8)}
# A figure outside is a slip of the keyboard. PI is half of (10 - Ma + NIQE).
_LIMITS = {"psnr_db": (15.0, 60.0), "ssim": (0.0, 1.0), "lpips": (0.0, 1.0), "pi": (0.0, 15.0)}
_SOURCE_KEYS = {"name", "title", "url", "channel"}
_OPTIONAL_SOURCE_KEYS = {"read_in", "note"}
_TABLE_KEYS = {"model", "source", "columns"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where figures were published."""

    name: str
    """Short, for a column of a table."""
    title: str
    url: str
    channel: Channel
    """What was measured: luma, or all of RGB; never to be compared with each other."""
    read_in: str | None = None
    """Whose copy of the table was read, where it was not the source itself."""
    note: str | None = None
    """What to know before comparing, in one line."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one source reports of one model on one set at one scale; None is "not reported"."""

    model: str
    dataset: str
    """One of DATASETS."""
    scale: int
    source: Source
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    """Lower is better, as PI."""
    pi: float | None = None

    def applies_to(self, dataset: str, scale: float) -> bool:
        """Whether it is of this set and scale; case does not matter, and BSD100 is B100."""
        return (self.dataset.casefold(), self.scale) == (_folded_set(dataset), scale)

    def value(self, key: str) -> float | None:
        """What stands beside a measure of this key; None where the source measured otherwise."""
        if key == "lpips":
            return self.lpips
        keys = {"y": ("psnr", "ssim"), "rgb": ("psnr-rgb",)}[self.source.channel]
        if key not in keys:
            return None
        return self.ssim if key == "ssim" else self.psnr_db


@cache
def figures() -> tuple[Figure, ...]:
    """All of the shipped file, in its order. Raises WeightsError when it cannot be read."""
    return load(shipped_folder() / PUBLISHED_FILE)


def lookup(model: str, dataset: str, scale: int) -> tuple[Figure, ...]:
    """Every figure of a model on a set at a scale, one a source; empty when none is known.

    Upper and lower case are the same, and BSD100 is B100. Raises what `figures` raises.
    """
    return tuple(
        figure
        for figure in figures()
        if figure.model.casefold() == model.casefold() and figure.applies_to(dataset, scale)
    )


def load(path: Path) -> tuple[Figure, ...]:
    """The figures of a file of this kind; its head says how it is laid out.

    Raises WeightsError for a file that cannot be read, and for one with an unknown key, a figure
    that cannot be, a source that nobody cites, or two figures of one thing by one source.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return _figures(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the published figures {path} are damaged ({error}); reinstall waifu4x"
        ) from error


def _figures(document: dict[str, Any]) -> tuple[Figure, ...]:
    _check_keys(document, required={"source", "table"}, where="the file")
    sources = [_source(table) for table in document["source"]]
    by_name = {source.name: source for source in sources}
    if len(by_name) < len(sources):
        raise ValueError("two sources have one name")
    found: dict[tuple[str, str, int, str], Figure] = {}
    for table in document["table"]:
        for figure in _of_table(table, by_name):
            key = (figure.model.casefold(), figure.dataset, figure.scale, figure.source.name)
            if key in found:
                raise ValueError(f"there are two of {figure.model} {figure.dataset} x{key[2]}")
            found[key] = figure
    uncited = set(by_name) - {figure.source.name for figure in found.values()}
    if uncited:
        raise ValueError(f"nothing cites {sorted(uncited)[0]}")
    return tuple(found.values())


def _source(table: dict[str, Any]) -> Source:
    where = f"the source {table.get('name')!r}"
    _check_keys(table, required=_SOURCE_KEYS, optional=_OPTIONAL_SOURCE_KEYS, where=where)
    for key, value in table.items():
        if not isinstance(value, str) or not value or "\n" in value:
            raise ValueError(f"{key} of {where} must be one line of text")
        if key in ("url", "read_in") and not value.startswith("https://"):
            raise ValueError(f"{key} of {where} must begin with https://")
    if table["channel"] not in get_args(Channel):
        raise ValueError(f"the channel of {where} must be 'y' or 'rgb'")
    return Source(**table)


def _of_table(table: dict[str, Any], sources: dict[str, Source]) -> Iterable[Figure]:
    model = table.get("model")
    where = f"the table of {model!r}"
    if not isinstance(model, str) or not model:
        raise ValueError(f"{where} needs a model's name")
    _check_keys(table, required=_TABLE_KEYS, optional=set(DATASETS), where=where)
    if table["source"] not in sources:
        raise ValueError(f"{where} cites {table['source']!r}, which is no source")
    columns: list[str] = table["columns"]
    if not columns or len(set(columns)) < len(columns) or not set(columns) <= set(_LIMITS):
        raise ValueError(f"the columns of {where} must be some of {', '.join(_LIMITS)}")
    for dataset in (key for key in table if key in DATASETS):
        place = f"{dataset} of {where}"
        _check_keys(table[dataset], optional=set(_SCALES), where=place)
        for scale, row in table[dataset].items():
            _check_row(row, columns, where=f"{scale} in {place}")
            yield Figure(
                model=model,
                dataset=dataset,
                scale=_SCALES[scale],
                source=sources[table["source"]],
                **dict(zip(columns, map(float, row), strict=True)),
            )


def _check_row(row: object, columns: list[str], *, where: str) -> None:
    if not isinstance(row, list) or len(row) != len(columns):
        raise ValueError(f"{where} must have {', '.join(columns)}")
    for column, value in zip(columns, row, strict=True):
        low, high = _LIMITS[column]
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{column} of {where} cannot be {value!r}")


def _check_keys(
    table: dict[str, Any],
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] = (),
    where: str,
) -> None:
    missing = sorted(set(required) - set(table))
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}")
    unknown = sorted(set(table) - set(required) - set(optional))
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}, which means nothing")


def _folded_set(dataset: str) -> str:
    folded = dataset.casefold()
    return _SET_ALIASES.get(folded, folded)
