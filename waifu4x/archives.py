"""Comic books and other ZIP files of pictures: members in, members out, nothing unpacked to disk.

A ZIP is read as hostile: what it claims about sizes is checked before anything is decompressed, and
no more than that is decompressed. Its names are kept, so they are checked as if
somebody will unpack them: absolute ones, ones with ``..`` and symbolic links refuse the whole file.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Container, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from waifu4x import failures, files
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import PictureReadError, PictureWriteError
from waifu4x.remote.urls import Location

ARCHIVE_SUFFIXES: tuple[str, ...] = (".cbz", ".zip")

MEMBER_MAX_BYTES = 1024**3
TOTAL_MAX_BYTES = 16 * 1024**3
MEMBERS_MAX = 50_000
RATIO_MAX = 200
"""How much larger than its compressed bytes a member may be, from 64 MiB on. Deflate ends at 1,032,
which only a blank page comes near, and only where no picture format has compressed it before."""

_RATIO_FREE_BYTES = 64 * 1024 * 1024
_ENCRYPTED, _UTF_8 = 0x1, 0x800
# In zipfile bzip2 and LZMA decompress without a bound, whatever size a member claims.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# The earliest date of the format, so that equal inputs give equal bytes.
_DATE = (1980, 1, 1, 0, 0, 0)
_PICTURE_SUFFIXES = frozenset(suffix for facts in FORMATS.values() for suffix in facts.suffixes)
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
    IndexError,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of an archive, decompressed."""

    name: str
    """With ``/`` between folders; guaranteed to be relative and without ``..``."""
    data: bytes

    @property
    def is_picture(self) -> bool:
        """Whether it is named like a picture; its content decides when it is read."""
        return named_like_a_picture(self.name)


def is_archive(path: Location) -> bool:
    """Whether the name of `path` is that of an archive."""
    return path.suffix.lower() in ARCHIVE_SUFFIXES


def named_like_a_picture(name: str) -> bool:
    """By its suffix, as in folders; hidden files, and what macOS adds to ZIP files, are none."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in _PICTURE_SUFFIXES


def member_names(source: Path | BinaryIO) -> tuple[str, ...]:
    """The names of all members, folders left out, in the archive's order; nothing is decompressed.

    source: a file, or a seekable stream, of which no more is read than is needed.

    Raises PictureReadError as `read_members` does.
    """
    with _opened(source) as archive:
        return tuple(name for name, _ in _checked(archive, source))


def read_members(source: Path | BinaryIO) -> Iterator[Member]:
    """Every member in the archive's order, one in memory at a time.

    Raises PictureReadError, on the first step or while going on, for a file that is missing or no
    ZIP; with an encrypted or damaged member; with a name or a link that could lead out of a folder;
    with a name twice; and for a bomb, which is one member above MEMBER_MAX_BYTES, all of them above
    TOTAL_MAX_BYTES, more than MEMBERS_MAX, or a ratio above RATIO_MAX.
    """
    with _opened(source) as archive:
        for name, info in _checked(archive, source):
            with _readable(source, name):
                # ZipFile.read would decompress up to 2 GiB before it looks at the size.
                with archive.open(info) as stream:
                    data = stream.read(info.file_size)
                if len(data) != info.file_size:
                    raise zipfile.BadZipFile("it ends early")
            yield Member(name=name, data=data)


def member_name(name: str, suffix: str, *, taken: Container[str]) -> str:
    """The name of what a picture member becomes: `suffix` in place of its own.

    Where that is taken already (``1.jpg`` and ``1.png`` both become WebP) the old name keeps its
    suffix below the new one. Raises PictureWriteError when that is taken too.
    """
    path = PurePosixPath(name)
    renamed = str(path.with_suffix(suffix))
    if renamed not in taken:
        return renamed
    doubled = f"{path}{suffix}"
    if doubled in taken:
        raise PictureWriteError(f"two members of the archive would be called {_shown(doubled)}")
    return doubled


class ArchiveWriter:
    """Adds members to a ZIP that is being written; see `write_archive`."""

    def __init__(self, archive: zipfile.ZipFile, target: Path) -> None:
        self._archive = archive
        self._target = target
        self._names: set[str] = set()

    @property
    def names(self) -> Set[str]:
        """What was added so far."""
        return self._names

    def add(self, name: str, data: bytes) -> None:
        """Append one member, stored as it is: pictures are compressed already.

        Raises PictureWriteError for a name that is there already or leads out of a folder, and
        when the disk is full.
        """
        if (fault := _name_fault(name)) is not None:
            raise PictureWriteError(f"a member cannot be called {_shown(name)}: {fault}")
        if name in self._names:
            raise PictureWriteError(f"two members of the archive would be called {_shown(name)}")
        info = zipfile.ZipInfo(name, date_time=_DATE)
        info.compress_type = zipfile.ZIP_STORED
        # What ZipInfo would take from the machine: Unix, an ordinary file that all may read.
        info.create_system = 3
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        try:
            self._archive.writestr(info, data)
        except OSError as error:
            raise failures.write_error(error, self._target, size_bytes=len(data)) from error
        self._names.add(name)


@contextmanager
def write_archive(target: Path) -> Iterator[ArchiveWriter]:
    """A new ZIP that is there, whole, when the block ends, and not at all when it raises.

    Equal members in equal order give equal bytes. Raises PictureWriteError when it cannot be
    written; an existing `target` is then guaranteed to be untouched.
    """
    try:
        with (
            files.atomic_path(target) as temporary,
            zipfile.ZipFile(temporary, "w", allowZip64=True) as archive,
        ):
            yield ArchiveWriter(archive, target)
    except OSError as error:
        raise failures.write_error(error, target, size_bytes=0) from error


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[zipfile.ZipFile]:
    shown = failures.shown(source)
    with _readable(source, None):
        # A FIFO would wait for a writer that never comes.
        if isinstance(source, Path) and not _is_regular(source):
            raise PictureReadError(f"{shown} is no regular file: name a ZIP or CBZ file")
        try:
            archive = zipfile.ZipFile(source)
        except zipfile.BadZipFile as error:
            raise PictureReadError(
                f"{shown} is not a ZIP file, or its end is cut off ({failures.one_line(error)})"
            ) from error
    with archive:
        yield archive


def _is_regular(source: Path) -> bool:
    """A folder passes, too: opening it says that it is one."""
    return stat.S_ISREG(source.stat().st_mode) or source.is_dir()


@contextmanager
def _readable(source: Path | BinaryIO, member: str | None) -> Iterator[None]:
    shown = failures.shown(source)
    try:
        yield
    except PictureReadError:
        raise
    except FileNotFoundError as error:
        raise PictureReadError(f"{shown} {failures.read_failure(error)}") from error
    except MemoryError as error:
        raise PictureReadError(f"{shown} does not fit into memory: unpack it yourself") from error
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureReadError(f"{shown} {failures.read_failure(error)}") from error
        where = "" if member is None else f": its member {_shown(member)}"
        reason = failures.one_line(error) or type(error).__name__
        raise PictureReadError(f"{shown} is damaged{where} ({reason})") from error


def _checked(
    archive: zipfile.ZipFile, source: Path | BinaryIO
) -> list[tuple[str, zipfile.ZipInfo]]:
    """Every member that is no folder, under its true name, when nothing speaks against any."""
    shown = failures.shown(source)
    infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MEMBERS_MAX:
        raise PictureReadError(
            f"{shown} has {len(infos):,} members, more than {MEMBERS_MAX:,}: split it up"
        )
    total_bytes = sum(info.file_size for info in infos)
    if total_bytes > TOTAL_MAX_BYTES:
        raise PictureReadError(
            f"{shown} would unpack to {total_bytes:,} bytes, more than the limit of "
            f"{TOTAL_MAX_BYTES:,}: split it up"
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = _true_name(info)
        if (fault := _member_fault(name, info)) is not None:
            raise PictureReadError(f"{shown} is refused: its member {_shown(name)} {fault}")
        if name in members:
            raise PictureReadError(f"{shown} is refused: it has two members called {_shown(name)}")
        members[name] = info
    return list(members.items())


def _true_name(info: zipfile.ZipInfo) -> str:
    """The member's name; without the flag for it, UTF-8 where it is valid, else code page 437."""
    name = info.filename
    if not info.flag_bits & _UTF_8:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    # Old programs on Windows wrote backslashes.
    return name.replace("\\", "/")


def _member_fault(name: str, info: zipfile.ZipInfo) -> str | None:
    if (fault := _name_fault(name)) is not None:
        return fault
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted: unpack it with its password first"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}, not deflate: pack it anew"
    size_bytes = info.file_size
    if size_bytes > MEMBER_MAX_BYTES:
        return f"has {size_bytes:,} bytes, more than the limit of {MEMBER_MAX_BYTES:,}"
    if size_bytes > _RATIO_FREE_BYTES and size_bytes > RATIO_MAX * info.compress_size:
        return f"unpacks to more than {RATIO_MAX} times its size, as only bombs do"
    return None


def _name_fault(name: str) -> str | None:
    parts = name.split("/")
    if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is not a relative name"
    if ".." in parts:
        return "leads out of its folder"
    if any(character < " " for character in name) or "" in parts[:-1] or not parts[-1]:
        return "has an impossible name"
    return None


def _shown(name: str) -> str:
    return repr(failures.one_line(name))
