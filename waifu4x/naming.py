"""Where an output goes, and what it is called."""

from __future__ import annotations

import os
from pathlib import Path

from waifu4x.errors import UsageError
from waifu4x.formats import FORMATS, format_of
from waifu4x.sizes import Target


def size_label(target: Target, size_px: tuple[int, int]) -> str:
    """``4x`` for a scale, ``1920x1080`` for every other kind of target."""
    if target.scale is not None:
        return f"{target.scale:g}x"
    return f"{size_px[0]}x{size_px[1]}"


def means_folder(output: str) -> bool:
    """Whether ``-o`` names a folder: one that exists, or a name that ends in a separator."""
    separators = tuple(s for s in (os.sep, os.altsep) if s)
    return output.endswith(separators) or Path(output).is_dir()


def suffix_for(format: str, *, source: Path, wish: str | None = None) -> str:
    """With the dot: as the user wrote it, as the source has it where that fits, else the usual."""
    if wish is not None:
        return f".{wish.lower().rsplit('.', 1)[-1]}"
    if source.suffix.lower() in FORMATS[format].suffixes:
        return source.suffix
    return FORMATS[format].suffixes[0]


def output_format(read_as: str | None, *, wish: str | None, output: str | None) -> str:
    """The format to write: the one asked for, that of the output's name, or the input's.

    Raises:
        UsageError: the wish or the output's suffix is no format, or they are two formats.
    """
    named = output if output is not None and output != "-" and not means_folder(output) else None
    if wish is not None:
        format = format_of(wish)
        meant = _format_named(Path(named).suffix) if named is not None else None
        if meant not in (None, format):
            raise UsageError(f"{named} is named like {meant}, and --format asks for {format}")
        return format
    if named is not None:
        return format_of(Path(named).name)
    # What came from nowhere is best kept as PNG.
    return read_as if read_as is not None and FORMATS[read_as].writable else "PNG"


def _format_named(suffix: str) -> str | None:
    matching = (name for name, facts in FORMATS.items() if suffix.lower() in facts.suffixes)
    return next(matching, None)


def output_path(
    source: Path,
    output: str | None,
    *,
    suffix: str,
    model: str,
    size: str,
    several: bool,
) -> Path:
    """The file that the enlarged `source` becomes.

    Args:
        output: ``-o``: a file, a folder (then the name is the source's own), or None for
            ``{stem}_{model}_{size}{suffix}`` beside the source.
        several: more than one source, so `output` must be a folder.

    Raises:
        UsageError: the output would be the source itself, or one file for several sources.
    """
    if output is None:
        path = source.with_name(f"{source.stem}_{model}_{size}{suffix}")
    elif means_folder(output) or several:
        if Path(output).is_file():
            raise UsageError(f"{output} is a file: give a folder for several pictures")
        path = Path(output) / f"{source.stem}{suffix}"
    else:
        path = Path(output)
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for links in a circle.
    if os.path.realpath(path) == os.path.realpath(source) or _is_same_file(path, source):
        raise UsageError(f"{path} is the input itself: give another name or folder with -o")
    return path


def _is_same_file(one: Path, other: Path) -> bool:
    """Names alone do not tell: on Windows and macOS A.PNG and a.png are one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False  # one of them does not exist
