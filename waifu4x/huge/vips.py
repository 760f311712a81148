"""libvips decodes a file from its top to its bottom, and holds some of its rows at a time.

It is an extra, imported only when a picture needs it. Each file is given to the one loader that
its format has in `LOADERS`, and never to one that libvips would choose.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from waifu4x import failures
from waifu4x.errors import PictureReadError

EXTRA = "pip install 'waifu4x[huge]'"
"""What installs libvips."""

LOADERS = {"PNG": "pngload_source", "JPEG": "jpegload_source", "TIFF": "tiffload_source"}
"""The formats that libvips reads without ever holding the picture; it holds others as a whole."""

_DTYPES = {"uchar": np.dtype(np.uint8), "ushort": np.dtype(np.uint16)}


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A file that is being decoded."""

    width_px: int
    height_px: int
    samples: int
    """1 to 4 of each pixel."""
    dtype: np.dtype
    next_rows: Callable[[int], npt.NDArray]
    """The next so many rows, (n, w, samples); raises PictureReadError where they are damaged."""


def is_installed() -> bool:
    """Whether `opened` can be used."""
    return importlib.util.find_spec("pyvips") is not None


@contextlib.contextmanager
def opened(source: Path | bytes, format: str) -> Iterator[Decoding]:
    """Begin at the top of a file in `format`; to be read in the thread that opened it.

    Samples come as they are stored, uint8 or uint16, but palettes as gray, RGB or RGBA, 0 black.

    Raises:
        PictureReadError: it is damaged, cut off, or not what `format` says.
    """
    name, vips = failures.shown(source), _vips()
    with contextlib.ExitStack() as open_files:
        with _failures_named(name, vips):
            # Of whatever else this process does with libvips.
            vips.vips_lib.vips_error_clear()
            if isinstance(source, Path) and os.name == "nt":
                # There a library may have descriptors of its own, and names are always text.
                connection = vips.Source.new_from_file(str(source))
            elif isinstance(source, Path):
                stream = open_files.enter_context(source.open("rb"))
                connection = vips.Source.new_from_descriptor(stream.fileno())
            else:
                connection = vips.Source.new_from_memory(source)
            load = getattr(vips.Image, LOADERS[format])
            # "error" and not "truncated": that lets damaged strips of a TIFF pass.
            image = load(connection, access="sequential", fail_on="error")
            region = vips.Region.new(image)
        if image.format not in _DTYPES:
            raise PictureReadError(f"{name} has samples of a kind that is not read: {image.format}")
        done = 0

        def next_rows(number: int) -> npt.NDArray:
            nonlocal done
            with _failures_named(name, vips):
                data = region.fetch(0, done, image.width, number)
                # What is wrong with a tile of a TIFF is noted there, and only there.
                if vips.vips_lib.vips_error_buffer()[0] != b"\0":
                    raise vips.Error("")
            done += number
            samples = np.frombuffer(data, dtype=_DTYPES[image.format])
            return samples.reshape(number, image.width, image.bands)

        yield Decoding(
            width_px=image.width,
            height_px=image.height,
            samples=image.bands,
            dtype=_DTYPES[image.format],
            next_rows=next_rows,
        )


@functools.cache
def _vips() -> Any:
    vips: Any = importlib.import_module("pyvips")
    # What it would keep of an operation: an open file, and rows that nobody asks for again.
    vips.cache_set_max(0)
    vips.block_untrusted_set(True)
    # Rows are decoded in the thread that asks for them.
    vips.concurrency_set(1)
    return vips


@contextlib.contextmanager
def _failures_named(name: str, vips: Any) -> Iterator[None]:
    """Whatever fails within becomes a PictureReadError."""
    try:
        yield
    except vips.Error as error:
        told = (error.detail.strip() or error.message).splitlines()[0]
        raise PictureReadError(
            f"{name} is damaged or cut off: {failures.one_line(told)}"
        ) from error
    except UnicodeDecodeError as error:  # from what libvips said
        raise PictureReadError(f"{name} is damaged or cut off") from error
    except OSError as error:
        raise PictureReadError(f"{name} {failures.read_failure(error)}") from error
