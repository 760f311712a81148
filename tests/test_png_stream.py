"""PNGs made strip by strip hold what was given, whatever the strips and threads."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from waifu4x.codecs import png_stream


def encoded(samples: np.ndarray, *, cuts: tuple[int, ...] = (), threads: int = 2) -> bytes:
    strips = [strip for strip in np.split(samples, sorted(cuts)) if len(strip)]
    head = png_stream.head(samples.shape, depth_bits=samples.itemsize * 8)
    return b"".join((head, *png_stream.idat(strips, threads=threads), png_stream.END))


def noise(height: int, width: int, samples: int, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(height * width * samples)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, samples), dtype, endpoint=True)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size_px", [(1, 1), (1, 50), (50, 1), (37, 23)])
def test_every_kind_comes_back(
    samples: int, dtype: type, size_px: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png_stream, "_STRIP_BYTES", 400)  # a few rows
    pixels = noise(*size_px, samples, dtype)
    back = imagecodecs.png_decode(encoded(pixels))
    np.testing.assert_array_equal(back.reshape(pixels.shape), pixels)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 60), max_size=8), st.integers(1, 4), st.sampled_from([1, 700, 10**6]))
def test_the_bytes_depend_on_the_pixels_alone(
    cuts: set[int], threads: int, strip_bytes: int
) -> None:
    pixels = noise(60, 31, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png_stream, "_STRIP_BYTES", strip_bytes)
        whole = encoded(pixels)
        assert encoded(pixels, cuts=tuple(cuts), threads=threads) == whole
    with Image.open(io.BytesIO(whole)) as image:
        image.load()  # Pillow checks the checksums of chunks
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_all_checksums_are_right() -> None:
    """Some readers check what others do not: zlib's own sum, and that its stream ends there."""
    data = encoded(noise(1500, 1000, 3))
    position, stream = 8, b""
    while position < len(data):
        (size_bytes,) = struct.unpack_from(">I", data, position)
        name, body = data[position + 4 : position + 8], data[position + 8 :][:size_bytes]
        (sum_told,) = struct.unpack_from(">I", data, position + 8 + size_bytes)
        assert zlib.crc32(name + body) == sum_told
        stream += body if name == b"IDAT" else b""
        position += 12 + size_bytes
    inflate = zlib.decompressobj()
    assert len(inflate.decompress(stream)) == 1500 * (1 + 3000)
    assert inflate.eof
    assert inflate.unused_data == b""


def test_no_more_strips_are_taken_than_can_be_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_stream, "_STRIP_BYTES", 300)
    taken = 0

    def strips():  # type: ignore[no-untyped-def]
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield noise(1, 100, 3)

    for number, _ in enumerate(png_stream.idat(strips(), threads=2)):
        assert taken <= number + 4


def test_an_error_of_the_source_comes_through() -> None:
    def strips():  # type: ignore[no-untyped-def]
        yield noise(2, 2, 3)
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError, match="went away"):
        list(png_stream.idat(strips(), threads=2))
