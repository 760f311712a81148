"""What goes wrong with the files of pictures, in the words for it: one printable line each."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from waifu4x.errors import DiskFullError, PictureWriteError
from waifu4x.remote.urls import Url

# What Pillow raises on bad content, found with 8,751 broken files of seven public collections;
# RuntimeError is what its AVIF decoder raises, and it divides by the time scale of sequences.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    EOFError,
    struct.error,
    RuntimeError,
    ZeroDivisionError,
)


class RefusedError(ValueError):
    """The content is refused; the message goes on after the name of its file."""


def shown(source: Path | Url | bytes | BinaryIO) -> str:
    """A name for messages: one printable line, whatever bytes the file name is made of."""
    if isinstance(source, Path | Url):
        return one_line(str(source))
    return "the picture" if isinstance(source, bytes) else "the picture on the stream"


def one_line(text: object) -> str:
    """Its text with whatever would not print, line ends among it, escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def read_failure(error: BaseException) -> str:
    """Why a picture could not be read, as the end of a sentence that its name begins."""
    if isinstance(error, OSError) and error.errno is not None:
        hints = {
            errno.ENOENT: "does not exist: check the name",
            errno.EISDIR: "is a folder: name a picture in it",
            errno.EACCES: "may not be read: check its permissions",
        }
        return hints.get(error.errno, f"cannot be read: {one_line(os.strerror(error.errno))}")
    if isinstance(error, MemoryError):
        return "does not fit into memory: lower --max-pixels to skip such pictures"
    return f"is damaged or cut off: {one_line(error) or type(error).__name__}"


def write_error(error: OSError, target: Path, *, size_bytes: int) -> PictureWriteError:
    """What to raise for `error`, which came from writing `size_bytes` bytes to `target`."""
    name = shown(target)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{name} needs {size_bytes:,} bytes, but the disk is full: free some space"
        )
    if not target.parent.is_dir():
        reason = f"cannot be written: the folder {shown(target.parent)} does not exist, make it"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "may not be written: check the permissions of its folder, or write elsewhere"
    else:
        reason = f"cannot be written: {one_line(error.strerror or error)}; try another folder"
    return PictureWriteError(f"{name} {reason}")


def missing_module(error: ModuleNotFoundError) -> str:
    """What to say when a module for deep colour is not installed."""
    return f"16-bit colour needs the package {error.name}: pip install {error.name}"
