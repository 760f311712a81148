"""What a run on a cluster leaves in the output folder for a while, and what its dead workers left.

A mark is a file by which workers see that their output folder is the one of this machine, and not
another one of the same name: on a disk of their own, or in a store with another address.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from waifu4x import failures, files
from waifu4x.batch import outputs
from waifu4x.batch.journal import FOLDER
from waifu4x.batch.limits import POLL_S
from waifu4x.errors import PictureReadError, PictureWriteError
from waifu4x.remote import stores
from waifu4x.remote.urls import Location, Url

_SEEN_WITHIN_S = 30.0
"""By other machines: NFS may keep the listing of a folder for so long."""


def new_mark(folder: Location) -> Location:
    """A name that no other run has. As a temporary it is swept where a run was killed."""
    return folder / FOLDER / files.partial_path(Path("cluster")).name


def make(mark: Location) -> None:
    """Raises PictureWriteError."""
    if isinstance(mark, Url):
        stores.prepare_folder(mark.parent)
        stores.put(b"waifu4x", mark)
        return
    outputs.prepare_folder(mark.parent)
    try:
        mark.touch()
    except OSError as error:
        raise failures.write_error(error, mark, size_bytes=0) from error


def refresh(mark: Location) -> None:
    """Make it young again: what is temporary is swept by whoever comes, when it is a day old."""
    with suppress(OSError, PictureWriteError):
        if isinstance(mark, Url):
            stores.put(b"waifu4x", mark)
        else:
            os.utime(mark)


def remove(mark: Location) -> None:
    """Nothing is raised: it does no harm where it stays."""
    with suppress(OSError, PictureWriteError):
        if isinstance(mark, Url):
            stores.remove(mark)
        else:
            mark.unlink()


def is_seen(mark: Location) -> bool:
    """Whether it is there, or comes soon. Raises PictureReadError where a store cannot be asked."""
    until_s = time.monotonic() + _SEEN_WITHIN_S
    while not _is_there(mark):
        if time.monotonic() > until_s:
            return False
        time.sleep(POLL_S)
    return True


def _is_there(mark: Location) -> bool:
    if isinstance(mark, Url):
        return stores.find(mark) is not None
    with suppress(OSError):
        # Unlike asking for one name, listing the folder makes NFS look again.
        return mark.name in os.listdir(mark.parent)
    return False


def sweep(targets: Iterable[Location | None], *, pid: int) -> None:
    """Remove what a process that is dead, on whichever machine, had begun to write."""
    here: list[Path] = []
    there: defaultdict[Url, list[str]] = defaultdict(list)
    for target in targets:
        if isinstance(target, Url):
            # Where an object appears as a whole there is nothing of it before.
            if not stores.is_flat(target):
                there[target.parent].append(target.name)
        elif target is not None:
            here.append(target)
    files.sweep_partials(here, pid=pid)
    for folder, names in there.items():
        with suppress(PictureReadError, PictureWriteError):
            for entry in stores.list_folder(folder):
                if files.is_partial(entry.place, of=names, pid=pid):
                    stores.remove(folder / entry.place)
