"""Which files a run means: files, folders, globs and lists, each with its place.

Nothing outside the given folders is ever reached through them: links that leave a folder, and links
to folders, are left out with a reason, as is everything hidden and all that is no regular file.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from waifu4x import archives, plugins
from waifu4x.errors import UsageError
from waifu4x.formats import FORMATS

LIST_MARK = "@"
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SUFFIXES = frozenset(suffix for facts in FORMATS.values() for suffix in facts.suffixes)
_MAGICS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file to work on."""

    path: Path
    relative: Path
    """Its place below the folder that it was found in; its name alone when it was named itself.

    Where several folders are given, each keeps its own name, as with ``cp -r``."""
    found: bool = False
    """It was found in a folder, and not named."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that was found in a folder, and is nothing to work on."""

    path: Path
    reason: str
    unreadable: bool = False
    """It is a folder that cannot be listed: pictures in it are missed."""


def means_several(inputs: Sequence[str]) -> bool:
    """Whether `inputs` may be more than one file, so that the output is a folder."""
    return len(inputs) > 1 or any(
        text.startswith(LIST_MARK) or glob.has_magic(text) or os.path.isdir(text)
        for text in inputs
        if not os.path.isfile(text)
    )


def gather(
    inputs: Sequence[str], *, recursive: bool, exclude: Path | None = None
) -> tuple[list[Source], list[LeftOut]]:
    """All files that `inputs` mean, in their order, none twice; a folder's are sorted by name.

    Args:
        inputs: files, folders, globs, and ``@list.txt``, a file with one of these a line.
        recursive: also what lies in folders below the given ones.
        exclude: the output folder, which is never taken for input.

    Raises:
        UsageError: a glob that matches nothing, a list that cannot be read, or a given folder that
            is the output folder.
    """
    sources: dict[str, Source] = {}
    left_out: list[LeftOut] = []
    barred = None if exclude is None else os.path.realpath(exclude)
    # Unlike Path.is_dir, os.path.isdir raises nothing: whoever reads the file says what is wrong.
    given = [(path, os.path.isdir(path)) for path in _expanded(inputs)]
    roots = {os.path.realpath(path) for path, is_folder in given if is_folder}
    if barred in roots:
        raise UsageError(f"{exclude} is input and output folder: give another one with -o")
    for path, is_folder in given:
        if not is_folder:
            named = Source(path=path, relative=Path(path.name))
            sources.setdefault(os.path.abspath(path), named)
            continue
        # Pictures of two folders may have the same names.
        place = Path(os.path.basename(os.path.abspath(path)) if len(roots) > 1 else "")
        for found in _walk(path, recursive=recursive, barred=barred):
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                source = Source(path=found, relative=place / found.relative_to(path), found=True)
                sources.setdefault(os.path.abspath(found), source)
    return list(sources.values()), left_out


def _expanded(inputs: Sequence[str]) -> Iterator[Path]:
    for text in inputs:
        if os.path.lexists(text):
            yield Path(text)
        elif text.startswith(LIST_MARK):
            yield from _expanded(_lines(Path(text[len(LIST_MARK) :])))
        elif glob.has_magic(text):
            if not (matching := sorted(glob.glob(text, recursive=True))):
                raise UsageError(f"nothing matches {text}: check the pattern, or quote it")
            yield from map(Path, matching)
        else:
            yield Path(text)  # whoever reads it says that it is not there


def _lines(path: Path) -> list[str]:
    try:
        # Editors on Windows begin a text with a mark.
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"the list {path} cannot be read: {error.strerror}") from error
    # Not splitlines: names may hold what Unicode takes for the end of a line.
    lines = [line for line in text.split("\n") if line.strip()]
    if any(line.startswith(LIST_MARK) and not os.path.lexists(line) for line in lines):
        raise UsageError(f"the list {path} names another list: put its lines into this one")
    return lines


def _walk(folder: Path, *, recursive: bool, barred: str | None) -> Iterator[Path | LeftOut]:
    root = os.path.realpath(folder)
    # Folders may lie deeper than Python can call itself.
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            reason = f"cannot be listed ({error.strerror})"
            yield LeftOut(path=current, reason=reason, unreadable=True)
            continue
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
                yield LeftOut(path=path, reason="hidden")
            elif not entry.is_dir(follow_symlinks=False):
                reason = _fault(path, entry, root=root)
                yield path if reason is None else LeftOut(path=path, reason=reason)
            elif barred is not None and _is_same(path, barred):
                yield LeftOut(path=path, reason="the output folder")
            elif recursive:
                pending.append(path)
            else:
                yield LeftOut(path=path, reason="a folder (-r goes into it)")


def _is_same(folder: Path, barred: str) -> bool:
    try:
        # Not by their names: following all links of a path at every level of a tree takes long.
        return os.path.samefile(folder, barred)
    except OSError:
        return False  # it was not made yet, or it cannot be listed either


def _fault(path: Path, entry: os.DirEntry[str], *, root: str) -> str | None:
    """Why what was found in a folder is nothing to work on; None when it is a picture's file."""
    if entry.is_symlink():
        real = os.path.realpath(path)
        if not real.startswith(os.path.join(root, "")):
            return "a link that leaves the folder"
        if not os.path.exists(real):
            return "a link to nothing"
        if os.path.isdir(real):
            return "a link to a folder"
    # What cannot be read but is named like a picture may well be one: that is a failure.
    named = path.suffix.lower() in _SUFFIXES or archives.is_archive(path)
    try:
        if not stat.S_ISREG(entry.stat().st_mode):
            return "no regular file"
        return None if named or _starts_like_a_picture(path) else "no picture"
    except OSError as error:
        return None if named else f"cannot be read ({error.strerror})"


def _starts_like_a_picture(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(plugins.HEAD_BYTES)
    if head.startswith(_MAGICS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    is_avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return is_avif or plugins.plugin_format_of(head) is not None
