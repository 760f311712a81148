"""Which files a run means: files, folders, globs and lists, each with its place.

Nothing outside the given folders is ever reached through them: links that leave a folder, and links
to folders, are left out with a reason, as is everything hidden and all that is no regular file.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from waifu4x.batch import looks, remote_sources
from waifu4x.errors import UsageError
from waifu4x.remote import urls
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.urls import Location, Url

LIST_MARK = "@"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file to work on."""

    path: Location
    relative: Path
    """Its place below the folder that it was found in; its name alone when it was named itself.

    Where several folders are given, each keeps its own name, as with ``cp -r``."""
    found: bool = False
    """It was found in a folder, and not named."""
    stamp: Stamp | None = None
    """What the store says of it, where it lies in one and that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Something that was found in a folder, and is nothing to work on."""

    path: Location
    reason: str
    unreadable: bool = False
    """It is a folder that cannot be listed: pictures in it are missed."""


def means_several(inputs: Sequence[str]) -> bool:
    """Whether `inputs` may be more than one file, so that the output is a folder.

    Raises:
        UsageError, PictureReadError: a URL, of a store that cannot be asked.
    """
    return len(inputs) > 1 or any(map(_means_several, inputs))


def _means_several(text: str) -> bool:
    if urls.is_url(text):
        return remote_sources.means_several(text)
    is_more = text.startswith(LIST_MARK) or glob.has_magic(text) or os.path.isdir(text)
    return is_more and not os.path.isfile(text)


def is_folder(text: str) -> bool:
    """Whether an input is a folder. Raises as `means_several`."""
    # Unlike Path.is_dir, os.path.isdir raises nothing: whoever reads the file says what is wrong.
    return remote_sources.is_folder(text) if urls.is_url(text) else os.path.isdir(text)


def gather(
    inputs: Sequence[str],
    *,
    recursive: bool,
    exclude: Location | None = None,
    wanted: Callable[[str, str], bool] | None = None,
) -> tuple[list[Source], list[LeftOut]]:
    """All files that `inputs` mean, in their order, none twice; a folder's are sorted by name.

    Args:
        inputs: files, folders and globs, as paths and URLs, and ``@list.txt``, a file with one of
            these a line.
        recursive: also what lies in folders below the given ones.
        exclude: the output folder, which is never taken for input.
        wanted: asked of every file, by its path and its place (with forward slashes); what it
            refuses is not returned, and takes no memory.

    Raises:
        UsageError: a glob that matches nothing, a list that cannot be read, or a given folder that
            is the output folder.
        PictureReadError: a store that cannot be asked, or a given folder in one that is not there.
    """
    sources: dict[str, Source] = {}
    left_out: list[LeftOut] = []
    barred = None if exclude is None else urls.real(exclude)
    given = [(urls.location(text), is_folder(text)) for text in _expanded(inputs)]
    roots = {urls.real(path) for path, is_one in given if is_one}
    if barred in roots:
        raise UsageError(f"{exclude} is input and output folder: give another one with -o")
    for path, is_one in given:
        is_url = isinstance(path, Url)
        if not is_one:
            if wanted is None or wanted(path.text if is_url else str(path), path.name):
                named = Source(path=path, relative=Path(path.name))
                sources.setdefault(path.identity if is_url else os.path.abspath(path), named)
            continue
        full = path.identity if is_url else os.path.abspath(path)
        # Pictures of two folders may have the same names.
        below = f"{path.name if is_url else os.path.basename(full)}/" if len(roots) > 1 else ""
        for found in _found_in(path, recursive=recursive, barred=barred):
            if isinstance(found, LeftOut):
                left_out.append(found)
                continue
            # Texts and no paths: of millions of files, most of the time went into those.
            text, place, stamp = found
            if wanted is not None and not wanted(text, below + place):
                continue
            key = f"{full}/{place}" if is_url else os.path.join(full, place.replace("/", os.sep))
            if key not in sources:
                location = Url(text) if is_url else Path(text)
                relative = Path(below + place)
                sources[key] = Source(path=location, relative=relative, found=True, stamp=stamp)
    return list(sources.values()), left_out


def _expanded(inputs: Sequence[str]) -> Iterator[str]:
    for text in map(urls.plain, inputs):
        if urls.is_url(text):
            yield from remote_sources.expanded(text)
        elif os.path.lexists(text):
            yield text
        elif text.startswith(LIST_MARK):
            yield from _expanded(_lines(text[len(LIST_MARK) :]))
        elif glob.has_magic(text):
            if not (matching := sorted(glob.glob(text, recursive=True))):
                raise UsageError(f"nothing matches {text}: check the pattern, or quote it")
            yield from matching
        else:
            yield text  # whoever reads it says that it is not there


def _lines(path: str) -> list[str]:
    try:
        data = remote_sources.read_list(path) if urls.is_url(path) else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the list {path} cannot be read: {error.strerror}") from error
    # Editors on Windows begin a text with a mark, and end its lines with two characters.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # Not splitlines: names may hold what Unicode takes for the end of a line.
    lines = [line for line in text.split("\n") if line.strip()]
    if any(line.startswith(LIST_MARK) and not os.path.lexists(line) for line in lines):
        raise UsageError(f"the list {path} names another list: put its lines into this one")
    return lines


_Found = tuple[str, str, Stamp | None]
"""A file's path or URL, its place in the folder, with forward slashes, and what a store says."""


def _found_in(
    folder: Location, *, recursive: bool, barred: str | None
) -> Iterator[_Found | LeftOut]:
    if isinstance(folder, Path):
        yield from _walk(folder, recursive=recursive, barred=barred)
        return
    for found in remote_sources.walk(folder, recursive=recursive, barred=barred):
        if found.fault is None:
            yield found.url.text, found.place, found.stamp
        else:
            yield LeftOut(path=found.url, reason=found.fault, unreadable=found.unreadable)


def _walk(folder: Path, *, recursive: bool, barred: str | None) -> Iterator[_Found | LeftOut]:
    root = os.path.realpath(folder)
    # Folders may lie deeper than Python can call itself.
    pending = [(str(folder), "")]
    while pending:
        current, place = pending.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            reason = f"cannot be listed ({error.strerror})"
            yield LeftOut(path=Path(current), reason=reason, unreadable=True)
            continue
        for entry in entries:
            path = os.path.join(current, entry.name)
            if looks.is_hidden(entry.name):
                yield LeftOut(path=Path(path), reason="hidden")
            elif not entry.is_dir(follow_symlinks=False):
                reason = _fault(path, entry, root=root)
                if reason is None:
                    yield path, place + entry.name, None
                else:
                    yield LeftOut(path=Path(path), reason=reason)
            elif barred is not None and _is_same(path, barred):
                yield LeftOut(path=Path(path), reason="the output folder")
            elif recursive:
                pending.append((path, f"{place}{entry.name}/"))
            else:
                yield LeftOut(path=Path(path), reason="a folder (-r goes into it)")


def _is_same(folder: str, barred: str) -> bool:
    try:
        # Not by their names: following all links of a path at every level of a tree takes long.
        return os.path.samefile(folder, barred)
    except OSError:
        return False  # it was not made yet, or it cannot be listed either


def _fault(path: str, entry: os.DirEntry[str], *, root: str) -> str | None:
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
    named = looks.is_named_like_one(entry.name)
    try:
        if not stat.S_ISREG(entry.stat().st_mode):
            return "no regular file"
        return None if named or _starts_like_a_picture(path) else "no picture"
    except OSError as error:
        return None if named else f"cannot be read ({error.strerror})"


def _starts_like_a_picture(path: str) -> bool:
    with open(path, "rb") as file:
        return looks.starts_like_one(file.read(looks.HEAD_BYTES))
