"""Stores for tests: fsspec's own in memory, and one with folders that fails when it is told to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class ShakyFileSystem(AbstractFileSystem):
    """A server with folders, whose files are seen while they grow. Its state is the class's own."""

    protocol = "shaky"
    files: ClassVar[dict[str, bytes]] = {}
    written: ClassVar[dict[str, datetime]] = {}
    folders: ClassVar[set[str]] = set()
    meddle: ClassVar[Callable[[str, str], None] | None] = None
    """Called with every operation and its path; in the middle of a write, too ("half")."""
    asked: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        host_and_path = path.removeprefix("shaky://")
        inside = host_and_path.partition("/")[2] if path.startswith("shaky://") else path
        return "/" + inside.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        return {"host": path.removeprefix("shaky://").partition("/")[0]}

    def _ask(self, operation: str, path: str) -> str:
        self.asked.append((operation, path))
        if (meddle := type(self).meddle) is not None:
            meddle(operation, path)
        return self._strip_protocol(path)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        path = self._ask("info", path)
        if path in self.files:
            size, mtime = len(self.files[path]), self.written[path]
            return {"name": path, "size": size, "type": "file", "mtime": mtime}
        if path in self.folders or path == "/":
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        path = self._ask("ls", path)
        if self.info(path)["type"] == "file":
            return [self.info(path)]
        inside = f"{path.rstrip('/')}/"
        names = [n for n in (*self.files, *self.folders) if n.startswith(inside) and n != path]
        found = [self.info(n) for n in names if "/" not in n.removeprefix(inside)]
        return found if detail else [entry["name"] for entry in found]

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        path = self._ask("makedirs", path)
        while path != "/":
            self.folders.add(path)
            path = path.rpartition("/")[0] or "/"

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        path = self._ask("cat_file", path)
        self.info(path)
        return self.files[path][start:end]

    def get_file(self, rpath: str, lpath: Any = None, *rest: Any, **options: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        path = self._ask("pipe_file", path)
        if (folder := path.rpartition("/")[0] or "/") not in {*self.folders, "/"}:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        self.written[path] = datetime.now(UTC)
        self.files[path] = value[: len(value) // 2]
        self._ask("half", path)
        self.files[path] = value

    def put_file(self, lpath: str, rpath: str, *rest: Any, **options: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def mv(self, path1: str, path2: str, *rest: Any, **options: Any) -> None:
        path1, path2 = self._ask("mv", path1), self._strip_protocol(path2)
        self.files[path2] = self.files.pop(path1)
        self.written[path2] = self.written.pop(path1)

    def rm_file(self, path: str) -> None:
        path = self._ask("rm_file", path)
        del self.files[path]


fsspec.register_implementation("shaky", ShakyFileSystem, clobber=True)


class Shop:
    """A store as tests fill it and look into it."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.root = "memory://" if protocol == "memory" else f"{protocol}://host/"

    @property
    def files(self) -> dict[str, bytes]:
        """All files by their paths, temporary ones too; without journals."""
        if self.protocol == "shaky":
            found = dict(ShakyFileSystem.files)
        else:
            found = {name: file.getvalue() for name, file in MemoryFileSystem.store.items()}
        return {name[1:]: data for name, data in found.items() if "/.waifu4x/" not in name}

    def put(self, place: str, data: bytes) -> str:
        """Make a file, and its folders; returns its URL."""
        file_system = fsspec.filesystem(self.protocol)
        file_system.makedirs(f"/{place}".rpartition("/")[0] or "/", exist_ok=True)
        file_system.pipe_file(f"/{place}", data)
        return self.root + place

    def fill(self, folder: Path, below: str = "in") -> str:
        """Put all files of a folder; returns the URL of what it became."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{below}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.root}{below}"

    def remove(self, place: str) -> None:
        fsspec.filesystem(self.protocol).rm_file(f"/{place}")

    def below(self, folder: str) -> dict[str, bytes]:
        """Files by their places in a folder, as `command.contents` has them."""
        inside = f"{folder}/"
        files = self.files.items()
        return {name.removeprefix(inside): data for name, data in files if name.startswith(inside)}

    def journal(self, folder: str = "out") -> bytes:
        """What was put of the journal of an output folder."""
        return fsspec.filesystem(self.protocol).cat_file(f"/{folder}/.waifu4x/journal.jsonl")


def empty() -> None:
    """Forget everything."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    for kept in (ShakyFileSystem.files, ShakyFileSystem.written, ShakyFileSystem.folders):
        kept.clear()
    ShakyFileSystem.asked.clear()
    ShakyFileSystem.meddle = None


@contextmanager
def failing(
    operation: str, part: str, error: BaseException, *, times: int = 10**6
) -> Iterator[None]:
    """Let an operation of `shaky://` fail where the path contains a part."""
    left = times

    def meddle(asked: str, path: str) -> None:
        nonlocal left
        if asked == operation and part in path and left > 0:
            left -= 1
            raise error

    ShakyFileSystem.meddle = staticmethod(meddle)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ShakyFileSystem.meddle = None
