"""Which files a run may write: none that is an input, none twice, none that is no file."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from waifu4x import files, naming
from waifu4x.batch import sources
from waifu4x.batch.request import STREAM, Request
from waifu4x.errors import DiskFullError, PictureWriteError, UsageError
from waifu4x.failures import shown

SPACE_FACTOR = 1.2
"""How much more than estimated must be free: pictures differ."""


def folder_for(request: Request, model: str) -> Path | None:
    """The folder that all outputs go to; None where there is none, or standard output.

    Raises:
        UsageError: it is a file, or must be given.
    """
    output, inputs = request.output, request.inputs
    if output == STREAM:
        return None
    if output is None:
        folders = [text for text in inputs if os.path.isdir(text)]
        if not folders:
            return None
        if len(inputs) > 1:
            raise UsageError(f"give the folder for what {folders[0]} becomes with -o")
        # Beside it and not in it, where the next run would take them for inputs.
        full = Path(os.path.abspath(folders[0]))
        if not full.name:
            raise UsageError(f"nothing lies beside {full}: give a folder with -o")
        label = naming.target_label(request.target)
        return full.with_name(f"{full.name}_{model}_{label}")
    if sources.means_several(inputs) or naming.means_folder(output) or request.name is not None:
        if os.path.isfile(output):
            raise UsageError(f"{output} is a file: give a folder for several pictures")
        return Path(output)
    return None


@dataclass(kw_only=True)
class Claims:
    """Which files a run reads and which it writes, so that no picture is lost to another."""

    inside: Path | None = None
    """The folder that every output must lie in; None where they may lie anywhere."""
    _inputs: dict[str, Path] = field(default_factory=dict)
    _outputs: dict[str, Path] = field(default_factory=dict)
    _real_folders: dict[Path, str] = field(default_factory=dict)

    def read(self, source: Path) -> None:
        """Note that the run reads `source`."""
        self._inputs.setdefault(self.key(source), source)

    def owner(self, target: Path) -> Path | None:
        """The input that becomes `target`; None where that is free."""
        return self._outputs.get(self.key(target))

    def write(self, target: Path, source: Path) -> None:
        """Note that `source` becomes `target`.

        Raises:
            UsageError: another input of this run is `target`, or becomes it; or a link in the
                output folder leads out of it.
        """
        key = self.key(target)
        if self.inside is not None and target.parent != self.inside:
            real, root = self._real(target.parent), self._real(self.inside)
            if os.path.commonpath([real, root]) != root:
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

    def key(self, path: Path) -> str:
        """The same for all paths that some file system takes for one file.

        Windows and macOS do not tell a.PNG from a.png, nor macOS one way of writing é in Unicode
        from the other.
        """
        full = os.path.join(self._real(path.parent), path.name)
        return unicodedata.normalize("NFC", full).casefold()

    def _real(self, folder: Path) -> str:
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return self._real_folders[folder]


def exists(target: Path) -> bool:
    """Whether there is a file at `target`.

    Raises:
        PictureWriteError: nothing could be written there, as far as can be told beforehand.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        check_folder(target.parent)
        return False
    except OSError as error:
        raise PictureWriteError(
            f"{shown(target)} cannot be written: {error.strerror}; choose another with -o"
        ) from error
    if not stat.S_ISREG(mode):
        # It would be replaced by a file: nobody wants that of /dev/null.
        raise PictureWriteError(f"{shown(target)} is no regular file; choose another with -o")
    return True


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
