"""What lies in a store where outputs are to go."""

from __future__ import annotations

from waifu4x.errors import PictureReadError, PictureWriteError, UsageError
from waifu4x.failures import shown
from waifu4x.remote import stores, urls
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.urls import Url

_FEW = 8
"""Files that are asked for one by one: beyond that the whole folder is listed."""


class There:
    """Which files are there already; once told, it is not asked for again."""

    def __init__(self, folder: Url | None) -> None:
        """folder: the one that all outputs go to; None where they lie beside their inputs."""
        self._folder = folder
        self._asked = 0
        self._listed: dict[str, Stamp] | None = None
        self._failure: PictureWriteError | None = None

    def find(self, target: Url) -> Stamp | None:
        """What is there under this name; None for nothing. Raises PictureWriteError."""
        if self._failure is not None:
            raise self._failure  # a store that does not answer is not asked again for every file
        place = None if self._folder is None else target.below(self._folder)
        try:
            if self._folder is None or place is None or self._asked < _FEW:
                self._asked += 1
                return stores.find(target)
            if self._listed is None:
                self._listed = _all_in(self._folder)
        except PictureReadError as error:
            self._failure = PictureWriteError(str(error))
            raise self._failure from error
        return self._listed.get(place)


def _all_in(folder: Url) -> dict[str, Stamp]:
    if stores.is_flat(folder):
        return {entry.place: entry.stamp for entry in stores.list_all(folder)}
    found: dict[str, Stamp] = {}
    pending = [""]
    while pending:
        place = pending.pop()
        try:
            entries = stores.list_folder(folder / place)
        except PictureReadError:
            # There is none yet; or what cannot be listed cannot be written either.
            if stores.is_folder(folder / place):
                raise
            continue
        for entry in entries:
            full = f"{place}/{entry.place}" if place else entry.place
            if entry.kind == "folder":
                pending.append(full)
            elif entry.kind == "file":
                found[full] = entry.stamp
    return found


def check(text: str) -> Url:
    """The URL that outputs go to. Raises UsageError where nothing can be written by it."""
    url = urls.location(text)
    assert isinstance(url, Url), "paths are checked elsewhere"
    stores.check(url, writing=True)
    return url


def is_file(text: str) -> bool:
    """Whether a URL is that of a file that is there. Raises PictureReadError."""
    return stores.find(check(text)) is not None


def folder_beside(text: str, name: str) -> Url:
    """A folder called ``{folder}_{name}`` beside one of a store. Raises UsageError."""
    url = check(text)
    if url.is_root or not url.name:
        raise UsageError(f"nothing lies beside {shown(url)}: give a folder with -o")
    return url.with_name(f"{url.name}_{name}")
