"""Where an output goes, and what it is called."""

from __future__ import annotations

import difflib
import os
import string
from pathlib import Path

from waifu4x.codecs.formats import FORMATS, format_of
from waifu4x.errors import UsageError
from waifu4x.remote import urls
from waifu4x.remote.urls import Location, Url
from waifu4x.sizes import Target

TEMPLATE_FIELDS = ("stem", "model", "scale", "width", "height", "ext", "parent")


def size_label(target: Target, size_px: tuple[int, int]) -> str:
    """``4x`` for a scale, ``1920x1080`` for every other kind of target."""
    if target.scale is not None:
        return f"{target.scale:g}x"
    return f"{size_px[0]}x{size_px[1]}"


def target_label(target: Target) -> str:
    """As `size_label`, for pictures of any size: ``4x``, ``width1920``, ``fit1920x1080``."""
    if target.scale is not None:
        return f"{target.scale:g}x"
    (kind, wish), *_ = ((k, v) for k, v in target.__dict__.items() if v is not None)
    numbers = wish if isinstance(wish, tuple) else (wish,)
    return kind.removesuffix("_px").replace("_", "-") + "x".join(map(str, numbers))


def means_folder(output: str) -> bool:
    """Whether ``-o`` names a folder: one that exists, or a name that ends in a separator.

    Raises PictureReadError where it is a URL, of a store that cannot be asked.
    """
    url = urls.location(output)
    if isinstance(url, Url):
        from waifu4x.remote import stores  # with it comes Pillow, which --help does without

        is_named_like_one = format_named(url.suffix) is not None
        return output.endswith("/") or (not is_named_like_one and stores.is_folder(url))
    separators = tuple(s for s in (os.sep, os.altsep) if s)
    return output.endswith(separators) or Path(output).is_dir()


def suffix_for(format: str, *, source: Location, wish: str | None = None) -> str:
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
        meant = format_named(Path(named).suffix) if named is not None else None
        if meant not in (None, format):
            raise UsageError(f"{named} is named like {meant}, and --format asks for {format}")
        return format
    if named is not None:
        return format_of(Path(named).name)
    # What came from nowhere is best kept as PNG.
    return read_as if read_as is not None and FORMATS[read_as].writable else "PNG"


def format_named(suffix: str) -> str | None:
    """The format that a file's suffix (".jpg") stands for; None for any other ending."""
    matching = (name for name, facts in FORMATS.items() if suffix.lower() in facts.suffixes)
    return next(matching, None)


def template_format(template: str) -> str | None:
    """The format that a template's own suffix names, as the user wrote it: ``webp``; else None."""
    suffix = Path(template).suffix
    return suffix.removeprefix(".") if format_named(suffix) else None


def check_template(template: str) -> None:
    """Refuse a ``--name`` that could not be filled in.

    Raises:
        UsageError: unknown fields, broken braces, or a path in place of a name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"--name {template!r}: {error}") from error
    for field in (part[1] for part in parts if part[1] is not None):
        if field not in TEMPLATE_FIELDS:
            near = difflib.get_close_matches(field, TEMPLATE_FIELDS, n=1)
            known = ", ".join(TEMPLATE_FIELDS)
            hint = f"did you mean {{{near[0]}}}?" if near else f"known are {known}"
            raise UsageError(f"--name {template!r}: unknown field {{{field}}}; {hint}")
    if not template or any(s in template for s in (os.sep, os.altsep) if s):
        raise UsageError(f"--name {template!r} must be the name of a file; give its folder with -o")


def fill_template(
    template: str,
    *,
    source: Location,
    model: str,
    scale: float,
    size_px: tuple[int, int],
    suffix: str,
) -> str:
    """The file name that ``--name`` gives, with `suffix` where the template has none."""
    parent = source.parent if isinstance(source, Url) else source.absolute().parent
    name = template.format_map(
        {
            "stem": source.stem,
            "model": model,
            "scale": f"{scale:g}",
            "width": size_px[0],
            "height": size_px[1],
            "ext": suffix.lstrip("."),
            "parent": parent.name,
        }
    )
    has_suffix = "{ext}" in template or template_format(template) is not None
    return name if has_suffix else name + suffix


def refuse_input(path: Location, source: Location) -> None:
    """Raise UsageError where an output would be its own input."""
    # Not Path.resolve: before Python 3.13 it raises RuntimeError for links in a circle.
    if urls.real(path) == urls.real(source) or _is_same_file(path, source):
        raise UsageError(f"{path} is the input itself: give another name or folder with -o")


def _is_same_file(one: Location, other: Location) -> bool:
    """Names alone do not tell: on Windows and macOS A.PNG and a.png are one file."""
    if isinstance(one, Url) or isinstance(other, Url):
        return False
    try:
        return one.samefile(other)
    except OSError:
        return False  # one of them does not exist
