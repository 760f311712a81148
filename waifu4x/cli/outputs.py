"""Which files a run may write: none that is an input, none twice, none that is no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from waifu4x import files
from waifu4x.errors import PictureWriteError, UsageError


@dataclass(kw_only=True)
class Claims:
    """Which files this run reads and writes, so that no picture is lost to another."""

    inputs: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Iterable[str]) -> Claims:
        """Nothing is written yet, and `sources` are read."""
        return cls(inputs={_key(Path(source)): source for source in sources})

    def claim(self, target: Path, source: str) -> None:
        """Note that `source` becomes `target`.

        Raises:
            UsageError: another input of this run is `target`, or becomes it.
        """
        key = _key(target)
        if self.inputs.get(key, source) != source:
            raise UsageError(f"{source} would become {target}, which is an input too; use -o")
        owner = self.outputs.setdefault(key, source)
        if owner != source:
            raise UsageError(f"{source} and {owner} would both become {target}; use -o")


def _key(path: Path) -> str:
    # Windows and macOS take a.PNG and a.png for one file.
    return os.path.realpath(path).casefold()


def exists(target: Path) -> bool:
    """Whether there is a file at `target`.

    Raises:
        PictureWriteError: nothing could be written there, as far as can be told beforehand.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        _check_folder(target.parent)
        return False
    except OSError as error:
        raise PictureWriteError(
            f"{target} cannot be written: {error.strerror}; choose another with -o"
        ) from error
    if not stat.S_ISREG(mode):
        # It would be replaced by a file: nobody wants that of /dev/null.
        raise PictureWriteError(f"{target} is no regular file; choose another with -o")
    return True


def _check_folder(folder: Path) -> None:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise PictureWriteError(f"{folder} is no folder; choose another with -o")
    if not os.access(folder, os.W_OK):
        raise PictureWriteError(f"the folder {folder} may not be written; choose another with -o")


def prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PictureWriteError(
            f"cannot make the folder {folder} ({error.strerror}); choose another with -o"
        ) from error
    files.sweep_orphans(folder)
