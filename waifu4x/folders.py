"""Which files of a folder are pictures, and which of two folders belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import UsageError

_NAMED = 3
_SUFFIXES = frozenset(suffix for facts in FORMATS.values() for suffix in facts.suffixes)


def find_pictures(folder: Path) -> list[Path]:
    """Every file below `folder` that is named like a picture, sorted; hidden ones are left out.

    Whether it really is one, its content decides when it is read.
    """
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return sorted(found)


def find_partners(folders: Sequence[Path], lr_folder: Path, *, scale: float) -> dict[Path, Path]:
    """For every picture of `folders` the one of `lr_folder` with the same path but for its suffix.

    A name may end in the scale, as DIV2K's do: ``0001.png`` and ``0001x4.png``.

    Raises:
        UsageError: no such folder, or pictures without a partner, or with two; the first are named.
    """
    if not lr_folder.is_dir():
        raise UsageError(f"{lr_folder} is no folder of pictures")
    small: dict[Path, list[Path]] = {}
    for path in find_pictures(lr_folder):
        small.setdefault(path.relative_to(lr_folder).with_suffix(""), []).append(path)
    found: dict[Path, Path] = {}
    wrong: list[str] = []
    for folder in folders:
        for path in find_pictures(folder):
            stem = path.relative_to(folder).with_suffix("")
            scaled = stem.with_name(f"{stem.name}x{scale}")
            candidates = small.get(stem, []) + small.get(scaled, [])
            if len(candidates) == 1:
                found[path] = candidates[0]
            else:
                wrong.append(f"{path} has {len(candidates) or 'no'} partners in {lr_folder}")
    if wrong:
        raise UsageError(told(wrong, "each needs one, of the same name"))
    return found


def told(wrong: Sequence[str], cure: str) -> str:
    """The first sentences, how many more there are, and what to do."""
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return f"{'; '.join(wrong[:_NAMED])}{more}: {cure}"
