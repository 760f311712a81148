"""Which files of a store a run means: as `sources` says it for those of this machine."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from waifu4x.batch import looks
from waifu4x.errors import PictureReadError, UsageError
from waifu4x.failures import shown
from waifu4x.remote import stores, urls
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.stores import Entry
from waifu4x.remote.urls import Url

_MOST_LOOKED_INTO = 32
"""Files without a suffix: each takes a request, and a bucket may be full of them."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a folder of a store."""

    url: Url
    place: str
    """Below the folder that was given, with forward slashes."""
    stamp: Stamp
    fault: str | None
    """Why it is nothing to work on; None for a picture."""
    unreadable: bool = False
    """It is a folder that cannot be listed."""


def is_folder(text: str) -> bool:
    """Whether a URL is that of a folder; what is named like a picture is not asked for.

    Raises:
        UsageError: its store cannot be used; see `stores.check`.
        PictureReadError: the store cannot be asked.
    """
    url = urls.location(text)
    assert isinstance(url, Url), "paths are asked for elsewhere"
    stores.check(url)
    if text.endswith("/"):
        return True
    return not looks.is_named_like_one(url.name) and stores.is_folder(url)


def means_several(text: str) -> bool:
    """Whether a URL may be more than one file. Raises as `is_folder`."""
    if is_folder(text):
        return True
    url = urls.location(text)
    assert isinstance(url, Url), "paths are asked for elsewhere"
    return has_magic(text) and stores.find(url) is None


def has_magic(text: str) -> bool:
    """Whether a URL may be a pattern. In web addresses ? begins a query."""
    return glob.has_magic(text) and not text.lower().startswith(("http://", "https://"))


def expanded(text: str) -> list[str]:
    """A URL, or those that it means as a pattern, where it is not the name of something itself.

    Raises UsageError where a pattern matches nothing, and what `is_folder` raises.
    """
    url = urls.location(text)
    assert isinstance(url, Url), "paths are expanded elsewhere"
    stores.check(url)
    if not has_magic(text) or stores.find(url) is not None or stores.is_folder(url):
        return [text]
    if not (matching := stores.glob(url)):
        raise UsageError(f"nothing matches {shown(url)}: check the pattern, or quote it")
    return [found.text for found in matching]


def read_list(text: str) -> bytes:
    """The content of a list of inputs that lies in a store. Raises UsageError."""
    url = urls.location(text)
    assert isinstance(url, Url), "paths are read elsewhere"
    try:
        return stores.read(url)
    except PictureReadError as error:
        raise UsageError(f"the list {error}") from error


def walk(folder: Url, *, recursive: bool, barred: str | None) -> Iterator[Found]:
    """What lies in a folder, in the order in which `sources` has it.

    Args:
        recursive: also what lies in folders below.
        barred: the output folder, as `urls.real` names it.

    Raises:
        PictureReadError: there is no such folder, or it cannot be listed.
    """
    sniffed = 0
    for found in _walk(folder, recursive=recursive, barred=barred):
        if isinstance(found, Found):
            yield found
            continue
        url, entry = folder / found.place, found
        name = url.name
        fault = "no regular file" if entry.kind == "other" else None
        if fault is None and not looks.is_named_like_one(name):
            fault = "no picture"
            # Of others the suffix says enough: looking into each would take a request.
            if "." not in name and sniffed < _MOST_LOOKED_INTO:
                sniffed += 1
                fault = _fault_inside(url, entry)
            elif "." not in name:
                fault = f"has no suffix, and {_MOST_LOOKED_INTO} others were looked into: name it"
        yield Found(url, entry.place, entry.stamp, fault)


def _fault_of_name(place: str) -> str | None:
    """Why nothing of this name can be worked on, whatever it is."""
    parts = place.split("/")
    if "\0" in place or {".", ".."}.intersection(parts):
        return "its name is none that a file can have"
    return "an empty name is in its path (//)" if "" in parts else None


def _fault_inside(url: Url, entry: Entry) -> str | None:
    if entry.stamp[0] == 0:
        return "no picture"
    stop = looks.HEAD_BYTES if entry.stamp[0] < 0 else min(looks.HEAD_BYTES, entry.stamp[0])
    try:
        return None if looks.starts_like_one(stores.read(url, 0, stop)) else "no picture"
    except PictureReadError:
        return "cannot be read"


def _walk(folder: Url, *, recursive: bool, barred: str | None) -> Iterator[Entry | Found]:
    """Files as the store has them, and what was left out on the way to them."""
    listed = _lister(folder, recursive=recursive)
    pending = [""]
    while pending:
        current = pending.pop()
        try:
            entries = sorted(listed(current), key=lambda entry: entry.place)
        except PictureReadError as error:
            if not current:
                raise
            reason = f"cannot be listed ({error})"
            yield Found(folder / current, current, (0, 0), reason, unreadable=True)
            continue
        for entry in entries:
            url, is_folder = folder / entry.place, entry.kind == "folder"
            if (fault := _fault_of_name(entry.place)) is not None:
                yield Found(url, entry.place, entry.stamp, fault)
            elif looks.is_hidden(url.name):
                yield Found(url, entry.place, entry.stamp, "hidden")
            elif not is_folder:
                yield entry
            elif barred is not None and url.identity == barred:
                yield Found(url, entry.place, entry.stamp, "the output folder")
            elif recursive:
                pending.append(entry.place)
            else:
                yield Found(url, entry.place, entry.stamp, "a folder (-r goes into it)")


def _lister(folder: Url, *, recursive: bool) -> Callable[[str], list[Entry]]:
    """What lies directly in a folder below: asked of the store, or out of a list of all.

    Raises PictureReadError where there is no such folder.
    """
    if recursive and stores.is_flat(folder):
        folders = _tree(stores.list_all(folder))
        if not folders[""] and not stores.is_folder(folder):
            raise PictureReadError(f"there is nothing in {shown(folder)}/: check the name")
        return lambda place: list(folders[place].values())

    def ask(place: str) -> list[Entry]:
        below = f"{place}/" if place else ""
        entries = stores.list_folder(folder / place)
        return [Entry(below + entry.place, entry.kind, entry.stamp) for entry in entries]

    return ask


def _tree(entries: list[Entry]) -> dict[str, dict[str, Entry]]:
    """Folders by their places, and in each what it holds, by name."""
    folders: dict[str, dict[str, Entry]] = {"": {}}
    for entry in entries:
        if _fault_of_name(entry.place) is not None:
            folders[""][entry.place] = entry  # no folders can be made of its parts
            continue
        child = entry
        while True:
            above, _, name = child.place.rpartition("/")
            is_known = above in folders
            # A file and a folder of one name lie side by side in an object store.
            folders.setdefault(above, {})[name if child.kind == "file" else f"{name}/"] = child
            if is_known:
                break
            child = Entry(above, "folder", (0, 0))
    return folders
