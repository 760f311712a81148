"""`headers.read` says, without decoding, what `pictures.read` and `animations.read` then find."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from waifu4x import animations, headers, pictures
from waifu4x.codecs import plugins
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import PictureReadError
from waifu4x.pictures import Picture

WIDTH, HEIGHT = 7, 5
EXTRAS = [name for name in plugins.PLUGINS if plugins.problem(name, writing=True) is None]
HERE = [name for name in FORMATS if name not in plugins.PLUGINS or name in EXTRAS]


def picture(*, channels: int = 3, alpha: bool = False, bits: int = 8) -> Picture:
    rng = np.random.default_rng(channels + bits)
    shape = (HEIGHT, WIDTH, channels + alpha)
    dtype = np.uint8 if bits == 8 else np.uint16
    samples = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    return Picture(pixels=samples[..., :channels], alpha=samples[..., -1] if alpha else None)


@pytest.mark.parametrize(
    ("format", "channels", "alpha", "bits"),
    [*itertools.product(HERE, (1, 3), (False, True), (8, 16))],
)
def test_what_this_program_writes(format: str, channels: int, alpha: bool, bits: int) -> None:
    alpha = alpha and FORMATS[format].holds_alpha
    data = pictures.encode(picture(channels=channels, alpha=alpha, bits=bits), format=format)
    found, header = pictures.read(data), headers.read(data)
    assert (header.format, header.frames, header.kind) == (format, 1, "picture")
    assert (header.width_px, header.height_px) == (WIDTH, HEIGHT)
    if format == "JXL":  # what its short header does not tell is assumed at its most
        assert (header.channels, header.has_alpha) == (3, True)
        return
    assert header.depth_bits == found.depth_bits
    # GIF: a palette of grays is told from one of colours only by looking at it.
    assert header.channels == (3 if format == "GIF" else found.pixels.shape[2])
    assert header.has_alpha >= (found.alpha is not None)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, format, exif=exif)
    header, found = headers.read(file.getvalue()), pictures.read(file.getvalue())
    assert (header.width_px, header.height_px) == (found.width_px, found.height_px)
    assert (header.width_px == HEIGHT) == (orientation >= 5)


def test_exif_behind_the_samples_of_a_png_counts() -> None:
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, "PNG")
    exif = Image.Exif()
    exif[0x112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = file.getvalue().rindex(b"IEND") - 4
    data = file.getvalue()[:end] + chunk + file.getvalue()[end:]
    header, found = headers.read(data), pictures.read(data)
    assert (header.width_px, header.height_px) == (found.width_px, found.height_px)
    assert header.width_px == HEIGHT


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I", "F", "I;16", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_every_mode(mode: str, format: str) -> None:
    base = Image.fromarray(np.arange(WIDTH * HEIGHT * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3))
    gray = mode in ("I", "F", "I;16", "LA")
    image = base.convert("L").convert(mode) if gray else base.convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, format)
    except (OSError, ValueError):
        pytest.skip(f"{format} has no mode {mode}")
    header, found = headers.read(file.getvalue()), pictures.read(file.getvalue())
    assert header.depth_bits == found.depth_bits
    assert header.channels >= found.pixels.shape[2]
    assert header.has_alpha >= (found.alpha is not None)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_frames_and_pages(format: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:])
    header, found = headers.read(file.getvalue()), animations.read(file.getvalue())
    assert (header.frames, header.kind) == (3, found.kind)
    assert (header.width_px, header.height_px) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"no picture at all", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (b"II*\0\x08\0\0\0", "damaged"),
        (b"GIF89a", "cut off"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(PictureReadError, match=words) as caught:
        headers.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_are_those_of_decoding() -> None:
    data = pictures.encode(picture(), format="PNG")
    assert headers.read(data, max_pixels=WIDTH * HEIGHT).width_px == WIDTH
    with pytest.raises(PictureReadError, match="--max-pixels"):
        headers.read(data, max_pixels=WIDTH * HEIGHT - 1)


def test_of_a_picture_in_memory() -> None:
    header = headers.of(picture(channels=1, alpha=True, bits=16))
    assert (header.channels, header.has_alpha, header.depth_bits) == (1, True, 16)
    assert (header.width_px, header.height_px) == (WIDTH, HEIGHT)
