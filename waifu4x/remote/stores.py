"""What is asked of a store: what lies where, its bytes, and to keep a file. By fsspec, lazily.

Whatever a store raises becomes one line that names the URL: stores are many, with errors of many
kinds, and what they have in common is `Exception`. What a store knows of its users (keys, hosts,
regions) comes from where its package looks for it: the environment, its own files, and those of
fsspec (https://filesystem-spec.readthedocs.io/en/latest/features.html#configuration).

A file is put whole or not at all, as far as the store can: object stores make an object visible
when all of it has arrived, so it is put under its name. All others show a file while it grows: it
is sent under a hidden name beside its own, and renamed.
"""

from __future__ import annotations

import errno
import re
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from waifu4x import files
from waifu4x.errors import (
    DiskFullError,
    PictureReadError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.failures import one_line, shown
from waifu4x.remote import stamps, urls
from waifu4x.remote.stamps import Stamp
from waifu4x.remote.urls import Url

EXTRA = "pip install 'waifu4x[remote]'"

_OBJECT_STORES = frozenset({"s3", "gs", "az", "oss", "oci", "tos", "memory"})
"""Protocols, see `Url.protocol`, of stores where an object appears as a whole, and that have no
folders, only names with slashes: they list whatever is below one in one go."""
_READ_ONLY = frozenset({"http", "https", "data", "github", "gist", "git", "zip", "tar"})
# Packages whose names differ from those of their modules.
_PACKAGES = {"smbclient": "smbprotocol", "git": "pygit2", "libarchive": "libarchive-c"}
# Larger files are sent from the disk, in parts where the store wants that.
_IN_ONE_BYTES = 32 * 2**20
# Of what a store says: some enclose pages.
_MOST_CHARACTERS = 200
_MAGIC = re.compile(r"[*?\[]")
# What comes to the same when it is tried in another way.
_CERTAIN = (ConnectionError, TimeoutError, PermissionError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a folder."""

    place: str
    """Below the folder that was listed, with forward slashes."""
    kind: Literal["file", "folder", "other"]
    stamp: Stamp


def check(url: Url, *, writing: bool = False) -> None:
    """Refuse what no store can be asked for; none is.

    Raises:
        UsageError: fsspec, or the package for the protocol, is not installed; or there is no such
            protocol, or nothing can be written by it.
    """
    name = shown(url)
    if "::" in url.text:
        raise UsageError(f"{name} is a chain of URLs: give a single one, or copy the file first")
    if writing and url.protocol in _READ_ONLY:
        raise UsageError(f"nothing can be written to {url.protocol}://: choose another with -o")
    try:
        from fsspec import get_filesystem_class
    except ModuleNotFoundError as error:
        raise UsageError(f"{name} needs the package fsspec: {EXTRA}") from error
    protocol = url.text.partition("://")[0]
    try:
        get_filesystem_class(protocol)
    except ImportError as error:
        missing = _missing_module(error)
        package = _PACKAGES.get(missing, missing)
        reason = f"the package {package}: pip install {package}" if package else f"{error}"
        raise UsageError(f"{name} needs {reason}") from error
    except ValueError as error:
        raise UsageError(f"{name}: fsspec knows no protocol {protocol}: check the URL") from error


def _missing_module(error: ImportError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name.partition(".")[0]
        cause = cause.__cause__
    return ""


def is_flat(url: Url) -> bool:
    """It has no folders: `list_all` gives whatever is below a name, and nothing needs be made."""
    return url.protocol in _OBJECT_STORES


def most_at_once(url: Url) -> int:
    """How many threads may ask a store: those of SFTP and FTP each open a connection."""
    return 16 if is_flat(url) or url.protocol in ("http", "https", "hf") else 4


def find(url: Url) -> Stamp | None:
    """What is known of a file; None where there is none.

    Raises:
        PictureReadError: the store cannot be asked.
    """
    with _asking(url, PictureReadError):
        file_system, path = _opened(url)
        try:
            info = file_system.info(path)
        except FileNotFoundError:
            return None
        return stamps.of(info) if info.get("type") == "file" else None


def is_folder(url: Url) -> bool:
    """Whether there is something below. Raises PictureReadError."""
    with _asking(url, PictureReadError):
        file_system, path = _opened(url)
        try:
            return file_system.info(path).get("type") == "directory"
        except FileNotFoundError:
            return False


def list_folder(folder: Url) -> list[Entry]:
    """What lies in a folder. Raises PictureReadError; where there is no folder, too."""
    with _asking(folder, PictureReadError):
        file_system, path = _opened(folder)
        file_system.invalidate_cache()
        return _entries(file_system.ls(path, detail=True), path)


def list_all(folder: Url) -> list[Entry]:
    """All files below a folder of a store that `is_flat`; none where there is no such folder.

    A thousand with each request, where the store has that. Raises PictureReadError.
    """
    with _asking(folder, PictureReadError):
        file_system, path = _opened(folder)
        # What others have changed meanwhile is to be seen, and a list of all is not to be kept.
        file_system.invalidate_cache()
        try:
            found = file_system.find(path, detail=True)
        except FileNotFoundError:
            return []
        finally:
            file_system.invalidate_cache()
        return _entries(found.values(), path)


def glob(pattern: Url) -> list[Url]:
    """The files and folders that a pattern means, sorted. Raises PictureReadError."""
    with _asking(pattern, PictureReadError):
        file_system, path = _opened(pattern)
        # Not all of a URL is in the paths of its store, so what is no pattern is taken from itself.
        start = pattern.text[: _magic_at(pattern.text)]
        above = file_system._strip_protocol(start).rstrip("/")
        inside = above + start[len(start.rstrip("/")) :] if above else "/"
        names = sorted(map(str, file_system.glob(path)))
        return [Url(start + name.removeprefix(inside)) for name in names]


def _magic_at(text: str) -> int:
    """Where, in the URL of a pattern, the first part begins that is one."""
    first = text.index("://") + 3
    # A password may have any characters.
    user, at, _ = text[first:].partition("/")[0].rpartition("@")
    found = _MAGIC.search(text, first + len(user + at))
    assert found is not None, "it is a pattern"
    return text.rindex("/", 0, found.start()) + 1


def read(url: Url, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes of a file, or a part of it. Raises PictureReadError."""
    with _asking(url, PictureReadError):
        file_system, path = _opened(url)
        return file_system.cat_file(path, start=start, end=stop)


def fetch(url: Url, target: Path) -> None:
    """Copy a file to this machine.

    Raises:
        PictureReadError: it cannot be read.
        DiskFullError: there is no room for it here.
    """
    with _asking(url, PictureReadError, here=target):
        file_system, path = _opened(url)
        file_system.get_file(path, str(target))


def put(content: bytes | Path, url: Url) -> None:
    """Make a file of what is in memory or on this machine; see the head of this module.

    Raises:
        PictureWriteError: it cannot be written; what was there before is as it was.
    """
    with _asking(url, PictureWriteError):
        file_system, path = _opened(url)
        if is_flat(url):
            _send(file_system, content, path)
            return
        partial = _beside(url)
        try:
            _send(file_system, content, partial)
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            sent = file_system.info(partial).get("size")
            if sent not in (None, size):
                raise OSError(f"only {sent} of {size} bytes arrived")
            _rename(file_system, partial, path, url)
        except BaseException:
            with suppress(Exception):
                _remove(file_system, partial)
            raise


def remove(url: Url) -> None:
    """Remove a file. Raises PictureWriteError; where there is none, too."""
    with _asking(url, PictureWriteError):
        file_system, path = _opened(url)
        _remove(file_system, path)


def prepare_folder(folder: Url, *, of: str = "") -> None:
    """Make a folder, where the store has such; remove what killed runs left in it.

    of: only of files whose names begin so.

    Raises PictureWriteError.
    """
    if is_flat(folder):
        return
    with _asking(folder, PictureWriteError):
        file_system, path = _opened(folder)
        _make_folder(file_system, path)
        limit_ns = int((time.time() - files.ORPHAN_AGE_S) * 1e9)
        for info in file_system.ls(path, detail=True):
            path, written_ns = str(info["name"]), stamps.time_ns(info)
            name = PurePosixPath(path).name
            is_ours = files.is_partial(name) and name.startswith(f".{of}")
            if is_ours and 0 < written_ns < limit_ns:
                with suppress(Exception):  # it is another run's, and gone meanwhile
                    _remove(file_system, path)


def _opened(url: Url) -> tuple[Any, str]:
    check(url)
    from fsspec.core import url_to_fs

    # fsspec keeps file systems, one for each thread where they need that.
    file_system, path = url_to_fs(url.text)
    return file_system, path


def _entries(infos: Any, root: str) -> list[Entry]:
    kinds: dict[str, Literal["file", "folder", "other"]] = {"file": "file", "directory": "folder"}
    found: list[Entry] = []
    inside = f"{root.rstrip('/')}/"
    for info in infos:
        name = str(info["name"])
        place = name.removeprefix(inside).rstrip("/")
        # An object that ends in a slash stands for a folder, and a folder may list itself.
        is_one = name.startswith(inside) if root else True
        if is_one and place and not (info.get("type") == "file" and name.endswith("/")):
            kind: Literal["file", "folder", "other"] = kinds.get(str(info.get("type")), "other")
            found.append(Entry(place=place, kind=kind, stamp=stamps.of(info)))
    return found


def _make_folder(file_system: Any, path: str) -> None:
    """With those above; that another machine makes one of them at the same time does no harm."""
    # Some ask first, and fail where a folder came between: each time there is one more of them.
    for left in reversed(range(path.count("/") + 1)):
        try:
            file_system.makedirs(path, exist_ok=True)
            return
        except _CERTAIN:
            raise
        except Exception:
            file_system.invalidate_cache()
            if file_system.isdir(path):
                return
            if not left:
                raise


def _send(file_system: Any, content: bytes | Path, path: str) -> None:
    if isinstance(content, Path):
        is_small = content.stat().st_size <= _IN_ONE_BYTES
        # What is in memory appears at once, unless it is written piece by piece.
        if not is_small and "memory" not in file_system.protocol:
            file_system.put_file(str(content), path)
            return
        content = content.read_bytes()
    file_system.pipe_file(path, content)


def _rename(file_system: Any, partial: str, path: str, url: Url) -> None:
    """With what is there replaced; a store that cannot do that in one step needs three."""
    from fsspec import AbstractFileSystem

    if type(file_system).mv is AbstractFileSystem.mv:
        # It would take what is in brackets in a name for a pattern.
        file_system.cp_file(partial, path)
        _remove(file_system, partial)
        return
    try:
        _move(file_system, partial, path)
    except (*_CERTAIN, FileNotFoundError):
        raise
    except Exception:
        if not file_system.exists(path):
            raise
        kept = _beside(url)
        _move(file_system, path, kept)
        try:
            _move(file_system, partial, path)
        except BaseException:
            _move(file_system, kept, path)
            raise
        _remove(file_system, kept)


def _move(file_system: Any, source: str, target: str) -> None:
    file_system.mv(source, target)
    # WebHDFS does nothing onto what is there, and says so where fsspec does not look.
    file_system.invalidate_cache()
    try:
        file_system.info(source)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENOENT:
            return
        raise
    raise OSError("the store did not rename what was sent")


def _beside(url: Url) -> str:
    """A path in the folder of a file, hidden, that is known for a temporary one."""
    return _opened(url.with_name(files.partial_path(Path(url.name)).name))[1]


def _remove(file_system: Any, path: str) -> None:
    try:
        file_system.rm_file(path)
    except NotImplementedError:
        file_system.rm(path)


@contextmanager
def _asking(
    url: Url, kind: type[PictureReadError | PictureWriteError], *, here: Path | None = None
) -> Iterator[None]:
    """Whatever the store raises becomes one line. here: a file of this machine that is written."""
    try:
        yield
    except (Waifu4xError, MemoryError):
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full and here is not None:
            raise DiskFullError(
                f"{shown(url)} does not fit into {shown(here.parent.parent)} for the time that "
                f"it is worked on: free some space, or let TMPDIR name another folder"
            ) from error
        verb = "read" if kind is PictureReadError else "written"
        kind = DiskFullError if full else kind
        raise kind(f"{shown(url)} {_reason(error, url, verb=verb)}") from error


def _reason(error: Exception, url: Url, *, verb: str) -> str:
    """Why it could not be done, as the end of a sentence that the URL begins."""
    text = one_line(" ".join(str(error).split())) or type(error).__name__
    for secret in {url.password, urllib.parse.unquote(url.password)}:
        text = text.replace(secret, "***") if secret else text
    text = urls.without_secrets(text)
    text = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
    if isinstance(error, FileNotFoundError):
        if verb == "read":
            return "does not exist: check the name"
        return "cannot be written: there is no such bucket or folder; make it, or check the name"
    if isinstance(error, PermissionError):
        return f"may not be {verb}: check its permissions, and your credentials ({text})"
    if isinstance(error, IsADirectoryError):
        return "is a folder: put a slash behind it"
    return f"cannot be {verb}: {text}; check the network and your credentials, or do it again"
