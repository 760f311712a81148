"""Which named models exist: one frozen row each.

The rows of models with weights are the tables of ``weights/catalog.toml``, which lies beside the
files that ship; the four resampling filters need no weights and are listed here. Models that the
user added are rows too, kept by `waifu4x.weights`. One kind of row is no model: "features", which
training compares pictures by.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from waifu4x.errors import UnknownModelError, WeightsError

AUTO = "auto"
"""What is taken unasked: one of the shipped models, by the look of each picture."""
DEFAULT_MODEL = "waifu4x-clean"
"""Where one model is needed, and none is named: measured on clean pictures it is the best."""
CATALOG_FILE = "catalog.toml"

Kind = Literal["resample", "shipped", "download", "user", "features"]
FETCHED: frozenset[Kind] = frozenset({"download", "features"})
"""The kinds whose files are published somewhere else, and kept in the downloads folder."""


@dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """One model that can be asked for by name, or ("features") a file that training needs.

    `sha256` and `size_bytes` are guaranteed to be those of the file for every kind but "resample",
    which has no file: there `file`, `sha256` and `size_bytes` are None.
    """

    name: str
    kind: Kind
    architecture: str
    scale: int | None
    """Output pixels to a side of one input pixel; None when it runs at any scale that is asked for
    (filters, and networks that are given an upscaled picture), and for features."""
    licence: str
    good_for: str
    """What to use it for, in one line."""
    url: str | None = None
    """Where the file is published; None unless `kind` is in FETCHED."""
    file: str | None = None
    """The file's name, without a folder: in the shipped, the download or the user's folder."""
    sha256: str | None = None
    """64 lower-case hexadecimal digits."""
    size_bytes: int | None = None
    aliases: tuple[str, ...] = ()
    up_to: Mapping[int, str] = field(default_factory=dict, hash=False)
    """The models for enlarging less, by how much at most: those of the same kind for other scales,
    as {2: "waifu4x-art-x2"}."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything the row answers to, its own name first."""
        return (self.name, *self.aliases)


def _filter(name: str, good_for: str) -> CatalogRow:
    return CatalogRow(
        name=name,
        kind="resample",
        architecture="resample",
        scale=None,
        licence="none needed",
        good_for=good_for,
    )


RESAMPLERS: tuple[CatalogRow, ...] = (
    _filter("nearest", "pixel art; every pixel becomes a block, nothing is invented"),
    _filter("bilinear", "soft enlargements without ringing"),
    _filter("bicubic", "the baseline that every paper compares with"),
    _filter("lanczos", "the sharpest of the plain filters; slight ringing at edges"),
)


def shipped_folder() -> Path:
    """The folder that holds the catalogue and the weights that ship with waifu4x.

    A wheel carries it inside the package; an editable install finds it in the checkout. Both are
    looked for from this file on, never from the current directory. Raises WeightsError when the
    installation has neither.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_weights", package.parent / "weights"):
        if (folder / CATALOG_FILE).is_file():
            return folder
    raise WeightsError(
        f"{package / '_weights' / CATALOG_FILE} is missing: the installation is incomplete; "
        "try `pip install --force-reinstall waifu4x`"
    )


@cache
def rows() -> tuple[CatalogRow, ...]:
    """Every row of the catalogue: shipped ones first, then downloads, plain filters, features.

    Raises WeightsError when the catalogue file cannot be read.
    """
    path = shipped_folder() / CATALOG_FILE
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
        weighted = [_row_from_table(table) for table in tables]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the catalogue {path} is damaged ({error}); reinstall waifu4x"
        ) from error
    order = ("shipped", "download", "resample", "features")
    return tuple(sorted((*weighted, *RESAMPLERS), key=lambda row: order.index(row.kind)))


def find(name: str, *, also: Iterable[CatalogRow] = ()) -> CatalogRow:
    """The row that answers to `name` (upper and lower case are the same), or one of `also`.

    The catalogue comes before `also`. Raises UnknownModelError, which names the nearest, when there
    is none.
    """
    known = {
        known: row for row in (*also, *reversed(rows())) for known in map(str.casefold, row.names)
    }
    found = known.get(name.casefold())
    if found is not None:
        return found
    nearest = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)
    # Several aliases of one model may be near; each model is offered once, the nearest first.
    offers = " or ".join(dict.fromkeys(known[near].name for near in nearest))
    hint = f"did you mean {offers}? " if offers else ""
    raise UnknownModelError(
        f"there is no model called {name!r}; {hint}`waifu4x models list` shows all of them"
    )


def for_scale(row: CatalogRow, scale: float | None) -> CatalogRow:
    """The row for output over input = `scale`: the least of its siblings that is enough.

    None for a scale that is not known, or not the same for all pictures.
    """
    if scale is None:
        return row
    enough = [most for most in row.up_to if scale <= most]
    return find(row.up_to[min(enough)]) if enough else row


def _row_from_table(table: dict[str, Any]) -> CatalogRow:
    facts = dict(table)
    url = facts.get("url")
    if url is not None:
        facts["file"] = urlsplit(url).path.rpartition("/")[2]
    for required in ("file", "sha256", "size_bytes"):
        if required not in facts:
            raise ValueError(f"{facts.get('name')} has no {required}")
    facts["aliases"] = tuple(facts.get("aliases", ()))
    facts["up_to"] = {int(most): name for most, name in facts.get("up_to", {}).items()}
    kind = facts.pop("kind", "shipped" if url is None else "download")
    if kind not in (FETCHED if url is not None else {"shipped"}):
        raise ValueError(f"{facts.get('name')} cannot be of kind {kind!r}")
    return CatalogRow(kind=kind, **{"scale": None, **facts})
