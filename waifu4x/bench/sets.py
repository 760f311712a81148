"""The sets of pictures that papers measure on: by their names, or any folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from waifu4x import weights
from waifu4x.errors import UsageError
from waifu4x.folders import find_partners, find_pictures


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A set that papers measure on; waifu4x ships none, since no licence of theirs allows it."""

    name: str
    pictures: int
    where: str
    """The page that offers it."""
    aliases: tuple[str, ...] = ()


KNOWN_SETS = (
    KnownSet(name="Set5", pictures=5, where="https://github.com/jbhuang0604/SelfExSR"),
    KnownSet(name="Set14", pictures=14, where="https://github.com/jbhuang0604/SelfExSR"),
    KnownSet(
        name="B100",
        pictures=100,
        where="https://github.com/jbhuang0604/SelfExSR",
        aliases=("BSD100", "BSDS100"),
    ),
    KnownSet(name="Urban100", pictures=100, where="https://github.com/jbhuang0604/SelfExSR"),
    KnownSet(name="Manga109", pictures=109, where="http://www.manga109.org/en/"),
    KnownSet(
        name="DIV2K",
        pictures=100,
        where="https://data.vision.ee.ethz.ch/cvl/DIV2K/ (the validation pictures)",
        aliases=("DIV2K-val", "DIV2K_valid_HR"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Pictures to measure on."""

    name: str
    folder: Path
    pictures: tuple[Path, ...]
    """At least one, sorted, all below `folder`."""

    def name_of(self, picture: Path) -> str:
        """Its path below `folder`, with "/" and without a suffix: such as "baby"."""
        return picture.relative_to(self.folder).with_suffix("").as_posix()

    def partners(self, lr_folder: Path, *, scale: float) -> dict[Path, Path]:
        """The low-resolution picture of each, as `waifu4x.folders.find_partners`.

        `lr_folder` may hold a folder with the set's name, and that one named ``X4`` or ``x4``.
        """
        parts = [self.name, self.folder.name, f"X{scale}", f"x{scale}"]
        # A set may be named by its path, and what that leads to are the large pictures.
        for part in (part for part in parts if part == Path(part).name):
            lr_folder = lr_folder / part if (lr_folder / part).is_dir() else lr_folder
        return find_partners([self.folder], lr_folder, scale=scale)


def open_set(text: str | Path) -> DataSet:
    """A folder of pictures, or a set of papers by its name that lies in the folder of sets.

    Raises UsageError when it is neither, saying where the set can be got, or holds no pictures.
    """
    known = _known(str(text))
    path = Path(text)
    if not path.is_dir() and known is not None:
        path = _cached(known)
    if not path.is_dir():
        problem = "is a file: name its folder" if path.exists() else "does not exist"
        raise UsageError(f"no pictures in {path}: it {problem}")
    found = tuple(find_pictures(path))
    if not found:
        raise UsageError(f"no pictures in {path}")
    # Of "." and ".." it is the folder's own name that tells anything.
    own = Path(os.path.abspath(path)).name or path.as_posix()
    return DataSet(name=known.name if known else own, folder=path, pictures=found)


def open_sets(texts: Sequence[str | Path]) -> tuple[DataSet, ...]:
    """`open_set` of each, once; sets of one name in different places are named by their paths."""
    opened = list(dict.fromkeys(open_set(text) for text in texts))
    names = [dataset.name for dataset in opened]
    return tuple(
        dataset
        if names.count(dataset.name) == 1
        else replace(dataset, name=dataset.folder.as_posix())
        for dataset in opened
    )


def sets_folder() -> Path:
    """Where sets are looked for by name, beside downloaded weights; it need not exist."""
    return weights.downloads_folder().with_name("datasets")


def _known(text: str) -> KnownSet | None:
    wanted = text.rstrip("/\\").casefold()
    for known in KNOWN_SETS:
        if wanted in (name.casefold() for name in (known.name, *known.aliases)):
            return known
    return None


def _cached(known: KnownSet) -> Path:
    folder = sets_folder()
    names = {name.casefold() for name in (known.name, *known.aliases)}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name.casefold() in names:
                return path
    raise UsageError(
        f"{known.name} is not here: get its {known.pictures} high-resolution pictures from "
        f"{known.where} and put them into {folder / known.name}, or name their folder"
    )
