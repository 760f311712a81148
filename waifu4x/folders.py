"""Which files of a folder are pictures."""

from __future__ import annotations

from pathlib import Path

from waifu4x.formats import FORMATS

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
