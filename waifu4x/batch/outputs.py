"""Which files a run may write: none that is an input, none twice, none that is no file."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from waifu4x import files, naming
from waifu4x.batch import remote_outputs, sources
from waifu4x.batch.request import STREAM, Request
from waifu4x.errors import DiskFullError, PictureWriteError, UsageError
from waifu4x.failures import shown
from waifu4x.remote import urls
from waifu4x.remote.urls import Location, Url

SPACE_FACTOR = 1.2
"""How much more than estimated must be free: pictures differ."""


def folder_for(request: Request, model: str) -> Location | None:
    """The folder that all outputs go to; None where there is none, or standard output.

    Raises:
        UsageError: it is a file, or must be given; or nothing can be written to its store.
        PictureReadError: a store cannot be asked.
    """
    output, inputs = request.output, request.inputs
    if output == STREAM:
        return None
    if output is None:
        folders = [text for text in inputs if sources.is_folder(text)]
        if not folders:
            return None
        if len(inputs) > 1:
            raise UsageError(f"give the folder for what {urls.shown(folders[0])} becomes with -o")
        if urls.is_url(folders[0]):
            label = naming.target_label(request.target)
            return remote_outputs.folder_beside(folders[0], f"{model}_{label}")
        # Beside it and not in it, where the next run would take them for inputs.
        full = Path(os.path.abspath(folders[0]))
        if not full.name:
            raise UsageError(f"nothing lies beside {full}: give a folder with -o")
        label = naming.target_label(request.target)
        return full.with_name(f"{full.name}_{model}_{label}")
    is_file = os.path.isfile
    if urls.is_url(output):
        is_file = remote_outputs.is_file
        remote_outputs.check(output)
    if sources.means_several(inputs) or naming.means_folder(output) or request.name is not None:
        if is_file(output):
            raise UsageError(f"{urls.shown(output)} is a file: give a folder for several pictures")
        return urls.location(output)
    return None


@dataclass(kw_only=True)
class Claims:
    """Which files a run reads and which it writes, so that no picture is lost to another."""

    inside: Location | None = None
    """The folder that every output must lie in; None where they may lie anywhere."""
    _inputs: dict[str, Location] = field(default_factory=dict)
    _outputs: dict[str, Location] = field(default_factory=dict)
    _real_folders: dict[str, str] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    """Of folders."""
    _is_inside: dict[str, bool] = field(default_factory=dict)

    def read(self, source: Location) -> None:
        """Note that the run reads `source`."""
        self._inputs.setdefault(self.key(source), source)

    def owner(self, target: Location) -> Location | None:
        """The input that becomes `target`; None where that is free."""
        return self._outputs.get(self.key(target))

    def write(self, target: Location, source: Location) -> None:
        """Note that `source` becomes `target`.

        Raises:
            UsageError: another input of this run is `target`, or becomes it; or a link in the
                output folder leads out of it.
        """
        key = self.key(target)
        # Stores have no links, or none that lead out of them.
        if isinstance(self.inside, Path) and isinstance(target, Path):
            folder = os.path.dirname(target)
            real, root = self._real(folder), self._real(str(self.inside))
            if folder not in self._is_inside:
                self._is_inside[folder] = os.path.commonpath([real, root]) == root
            if not self._is_inside[folder]:
                raise UsageError(
                    f"{shown(target)} would lie in {shown(Path(real))}, where a link leads out of "
                    f"{shown(self.inside)}: "
                    f"remove the link, or choose another folder with -o"
                )
        if (other := self._inputs.get(key, source)) != source:
            raise UsageError(
                f"{shown(source)} would become {shown(target)}, which is an input too "
                f"({shown(other)})"
            )
        owner = self._outputs.setdefault(key, source)
        if owner != source:
            raise UsageError(
                f"{shown(source)} and {shown(owner)} would both become {shown(target)}: "
                f"rename one of them, or use --name or other folders with -o"
            )

    def key(self, path: Location) -> str:
        """The same for all paths that some file system takes for one file.

        Windows and macOS do not tell a.PNG from a.png, nor macOS one way of writing é in Unicode
        from the other.
        """
        if isinstance(path, Url):
            return _as_one(path.identity)
        folder, name = os.path.split(path)
        if folder not in self._keys:
            # Joined here, and once: what ends in a separator does not change what follows it.
            self._keys[folder] = _as_one(os.path.join(self._real(folder), ""))
        return self._keys[folder] + _as_one(name)

    def _real(self, folder: str) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]


def _as_one(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def is_one_file(one: Location, other: Location) -> bool:
    """Whether both are there, and are one file by whatever names."""
    if isinstance(one, Url) or isinstance(other, Url):
        return urls.real(one) == urls.real(other)
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return False


def exists(target: Path) -> bool:
    """Whether there is a file at `target`. Raises PictureWriteError as `found` does."""
    return found(target) is not None


def found(target: Path, *, check: Callable[[Path], object] | None = None) -> os.stat_result | None:
    """What there is at `target`; None for nothing.

    check: what is asked in the place of `check_folder`, such as one that remembers.

    Raises:
        PictureWriteError: nothing could be written there, as far as can be told beforehand.
    """
    try:
        facts = target.stat()
    except FileNotFoundError:
        (check or check_folder)(target.parent)
        return None
    except OSError as error:
        raise PictureWriteError(
            f"{shown(target)} cannot be written: {error.strerror}; choose another with -o"
        ) from error
    if not stat.S_ISREG(facts.st_mode):
        # It would be replaced by a file: nobody wants that of /dev/null.
        raise PictureWriteError(f"{shown(target)} is no regular file; choose another with -o")
    return facts


def check_folder(folder: Path) -> Path:
    """The nearest folder above that exists, `folder` itself included.

    Raises:
        PictureWriteError: it is no folder, or may not be written.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise PictureWriteError(f"{shown(folder)} is no folder; choose another with -o")
    if not os.access(folder, os.W_OK):
        raise PictureWriteError(
            f"the folder {shown(folder)} may not be written; choose another with -o"
        )
    return folder


def prepare_folder(folder: Path) -> None:
    """Make the folder where there is none, and remove what killed runs left in it.

    Raises:
        PictureWriteError: it cannot be made.
    """
    try:
        # One after the other: Path.mkdir calls itself for every parent, and Python ends that.
        missing = itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents))
        for path in reversed([*missing]):
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise PictureWriteError(
            f"cannot make the folder {shown(folder)} ({error.strerror}); choose another with -o"
        ) from error
    files.sweep_orphans(folder)


def check_space(needs: Iterable[tuple[Path, int]]) -> None:
    """Refuse work whose outputs would not fit onto the disk.

    needs: (target, its estimated size in bytes) of every output.

    Raises:
        DiskFullError: a disk has less than SPACE_FACTOR times the sum free.
    """
    total_bytes: defaultdict[int, int] = defaultdict(int)
    folder_of: dict[int, Path] = {}
    device_of: dict[Path, tuple[int, Path]] = {}
    for target, size_bytes in needs:
        if target.parent not in device_of:
            folder = check_folder(target.parent)
            device_of[target.parent] = folder.stat().st_dev, folder
        device, folder = device_of[target.parent]
        total_bytes[device] += size_bytes
        folder_of.setdefault(device, folder)
    for device, folder in folder_of.items():
        need_bytes, free_bytes = int(total_bytes[device] * SPACE_FACTOR), _free_bytes(folder)
        if need_bytes > free_bytes:
            raise DiskFullError(
                f"the outputs in {shown(folder)} need about {_gib(need_bytes)}, and "
                f"{_gib(free_bytes)} are free: free some space, choose a format that needs less "
                f"(-f webp), or go on all the same with --no-space-check"
            )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _gib(size_bytes: int) -> str:
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.1f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"
