"""Strips become the files that whole pictures would have become."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import os
import struct
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from waifu4x import pictures
from waifu4x.codecs import encoders, metadata
from waifu4x.errors import PictureWriteError
from waifu4x.huge import jpeg, tiff, writing
from waifu4x.huge.writing import Settings
from waifu4x.pictures import Picture
from waifu4x.strips import Strip

FACTS = ("icc_profile", "exif", "xmp", "dpi", "notes")


def picture(
    height: int = 150, width: int = 70, *, gray: bool = False, alpha: bool = False, bits: int = 8
) -> Picture:
    """Noise, with all that can be said of a picture."""
    dtype, rng = {8: np.uint8, 16: np.uint16}[bits], np.random.default_rng(0)
    full = np.iinfo(dtype).max
    pixels = rng.integers(0, full + 1, (height, width, 1 if gray else 3)).astype(dtype)
    tags = Image.Exif()
    tags[0x010F], tags[256], tags[0x8769] = "maker", 7, {0x9003: "2020:01:01 00:00:00"}
    return Picture(
        pixels=pixels,
        alpha=rng.integers(0, full + 1, (height, width)).astype(dtype) if alpha else None,
        icc_profile=None if gray else metadata.srgb_profile(),
        in_profile_space=not gray,
        exif=tags.tobytes(),
        xmp=b'<x:xmpmeta tiff:ImageWidth="7"/>',
        dpi=(300.0, 300.0),
    )


def strips(whole: Picture, *, seed: int = 1) -> Iterator[Strip]:
    """Of 1 to 40 rows."""
    rng, top = np.random.default_rng(seed), 0
    while top < whole.height_px:
        rows = slice(top, top := top + int(rng.integers(1, 41)))
        yield Strip(whole.pixels[rows], None if whole.alpha is None else whole.alpha[rows])


def facts_of(whole: Picture) -> Picture:
    """What is known of a picture before its strips come."""
    alpha = None
    if whole.alpha is not None:
        full = np.iinfo(whole.alpha.dtype).max
        alpha = np.full((1, 1), 0 if whole.is_transparent else full, dtype=whole.alpha.dtype)
    return dataclasses.replace(whole, pixels=np.zeros_like(whole.pixels[:1, :1]), alpha=alpha)


def written(target: Path, whole: Picture, settings: Settings) -> bytes:
    size_px = whole.width_px, whole.height_px
    with writing.writing(target, facts_of(whole), size_px, settings) as put:
        for strip in strips(whole):
            put(strip)
    return target.read_bytes()


def encoded(whole: Picture, settings: Settings) -> bytes:
    """By the encoders for pictures that lie in memory."""
    options = dataclasses.asdict(settings)
    del options["layout"]
    return pictures.encode(whole, **options)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_the_same_bytes_as_from_memory(
    tmp_path: Path, format: str, gray: bool, alpha: bool, bits: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(encoders, "_TIFF_STRIP_BYTES", 3000)
    monkeypatch.setattr(tiff, "_STRIP_BYTES", 3000)
    whole = picture(gray=gray, alpha=alpha, bits=bits)
    settings = Settings(format=format, lossless=format == "WEBP")
    assert written(tmp_path / "a", whole, settings) == encoded(whole, settings)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(format="PNG", strip_metadata=True),
        Settings(format="TIFF", strip_metadata=True),
        Settings(format="WEBP", quality=30),
    ],
    ids=str,
)
def test_settings_are_kept(tmp_path: Path, settings: Settings) -> None:
    whole = picture()
    assert written(tmp_path / "a", whole, settings) == encoded(whole, settings)


@pytest.mark.parametrize("size", [(1, 1), (63, 9), (64, 65), (65, 8), (700, 33)], ids=str)
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("quality", [None, 30])
def test_jpeg_has_the_same_pixels_as_from_memory(
    tmp_path: Path, size: tuple[int, int], gray: bool, quality: int | None
) -> None:
    """Also where the last piece is not as high as a block, and markers are counted again."""
    whole = picture(*size, gray=gray)
    settings = Settings(format="JPEG", quality=quality)
    got = pictures.read(written(tmp_path / "a.jpg", whole, settings))
    wanted = pictures.read(encoded(whole, settings))
    assert np.array_equal(got.pixels, wanted.pixels)
    assert [getattr(got, n) for n in FACTS] == [getattr(wanted, n) for n in FACTS]
    assert got.exif is not None
    tags = Image.Exif()
    tags.load(got.exif)
    assert tags[256] == size[1], "of the whole, not of a piece"


def test_a_background_that_makes_colours_of_gray(tmp_path: Path) -> None:
    """Where nothing is transparent the gray stays, and must become three equal channels."""
    whole = picture(gray=True, alpha=True)
    assert whole.alpha is not None
    whole.alpha[:80] = 255
    settings = Settings(format="JPEG", background=(255, 0, 0))
    got = pictures.read(written(tmp_path / "a.jpg", whole, settings))
    assert np.array_equal(got.pixels, pictures.read(encoded(whole, settings)).pixels)
    assert got.pixels.shape == (150, 70, 3)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", tiff.LAYOUTS)
def test_layouts_of_a_tiff(
    tmp_path: Path, layout: tiff.Layout, bits: int, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "_STRIP_BYTES", 20_000)
    if big:
        monkeypatch.setattr(tiff, "_is_big", lambda levels, pixel_bytes: True)
    whole = picture(600, 513, alpha=True, bits=bits)
    data = written(tmp_path / "a.tif", whole, Settings(format="TIFF", layout=layout))
    assert data[:4] == (b"II+\0" if big else b"II*\0")
    got = pictures.read(data)
    assert np.array_equal(got.pixels, whole.pixels)
    assert got.alpha is not None
    assert whole.alpha is not None
    assert np.array_equal(got.alpha, whole.alpha)
    assert (got.icc_profile, got.xmp) == (
        whole.icc_profile,
        b'<x:xmpmeta tiff:ImageWidth="513"/>',
    )
    tags = ImageFileDirectory_v2(data[: 16 if big else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    assert (322 in tags) == (layout != "strips")
    assert tags[339] == (1, 1, 1, 1)
    assert (tags.next != 0) == (layout == "pyramid")


def test_a_pyramid_holds_means_of_four(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    whole = picture(600, 513)
    data = written(tmp_path / "a.tif", whole, Settings(format="TIFF", layout="pyramid"))
    loaded = [pyvips.Image.new_from_buffer(data, "", page=page) for page in range(3)]
    assert [(v.height, v.width, v.get("n-pages")) for v in loaded] == [
        (600, 513, 3),
        (300, 257, 3),
        (150, 129, 3),
    ]
    for larger, smaller in ((loaded[0], loaded[1]), (loaded[1], loaded[2])):
        odd = np.pad(larger.numpy(), ((0, 0), (0, larger.width % 2), (0, 0)), mode="edge")
        sums = odd.astype(int).reshape(smaller.height, 2, smaller.width, 2, 3).sum(axis=(1, 3))
        assert np.array_equal((sums + 2) // 4, smaller.numpy())


def test_four_gibibytes_decide() -> None:
    """65,536 squared as RGB are 12 GiB; 37,000 squared are 3.8, and 5.1 as a pyramid."""
    for side_px, layout, is_big in [
        (65_536, None, True),
        (37_000, None, False),
        (37_000, "pyramid", True),
    ]:
        size_px = side_px, side_px
        chosen = tiff.layout_for(size_px, 3, layout)
        assert chosen == (layout or ("tiled" if is_big else "strips"))
        assert tiff._is_big(tiff._levels(size_px, 3, chosen), 3) == is_big
    assert tiff.layout_for((65_536, 65_536), 3, "strips") == "strips"


def test_which_pictures_in_memory_are_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture()
    for format in ("PNG", "TIFF", "JPEG", "WEBP", "AVIF"):
        assert not writing.is_in_strips(Settings(format=format), whole)
    assert writing.is_in_strips(Settings(format="TIFF", layout="tiled"), whole)
    monkeypatch.setattr(writing, "_IN_STRIPS_FROM_PX", 150 * 70)
    assert writing.is_in_strips(Settings(format="JPEG"), whole)
    settings = Settings(format="JPEG")
    assert np.array_equal(
        pictures.read(writing.encode(whole, settings)).pixels,
        pictures.read(encoded(whole, settings)).pixels,
    )


def test_what_is_written_does_not_depend_on_how_strips_were_cut(tmp_path: Path) -> None:
    whole = picture()
    for settings in (
        Settings(format="JPEG"),
        Settings(format="TIFF", layout="tiled"),
        Settings(format="TIFF", layout="pyramid"),
    ):
        assert written(tmp_path / "a", whole, settings) == writing.encode(whole, settings)


def test_a_full_disk_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Iterator[bytes]:
        yield b""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("waifu4x.codecs.png_stream.idat", fail)
    with pytest.raises(OSError, match="No space") as caught:
        written(tmp_path / "a.png", picture(), Settings(format="PNG"))
    assert caught.value.errno == errno.ENOSPC


def test_an_encoder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(jpeg, "image_of", fail)
    with pytest.raises(PictureWriteError, match="the JPEG encoder failed"):
        written(tmp_path / "a.jpg", picture(), Settings(format="JPEG"))


@pytest.mark.parametrize("format", writing.FORMATS)
@pytest.mark.parametrize("alpha", [False, True])
def test_no_strip_is_held_while_the_next_one_is_made(
    tmp_path: Path, format: str, alpha: bool
) -> None:
    """Each may be as large as memory allows."""
    whole = picture(alpha=alpha)
    settings = Settings(format=format, background=(0, 0, 0) if format == "JPEG" else None)
    with writing.writing(tmp_path / "a", facts_of(whole), (70, 150), settings) as put:
        for top in range(0, 150, 50):
            pixels, rows = whole.pixels[top : top + 50].copy(), slice(top, top + 50)
            known = weakref.ref(pixels)
            put(Strip(pixels, None if whole.alpha is None else whole.alpha[rows]))
            del pixels
            assert known() is None


@pytest.mark.parametrize("given", [0, 2])
def test_whoever_stops_in_the_middle_leaves_no_open_file(tmp_path: Path, given: int) -> None:
    """On Windows an open one could not be removed."""
    whole, target = picture(), tmp_path / "a.png"

    def stopped() -> None:
        with writing.writing(target, facts_of(whole), (70, 150), Settings(format="PNG")) as put:
            for strip, _ in zip(strips(whole), range(given), strict=False):
                put(strip)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    target.unlink(missing_ok=True)
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        open_files = [os.readlink(entry) for entry in descriptors.iterdir() if entry.is_symlink()]
        assert not [name for name in open_files if str(tmp_path) in name]


def test_restart_markers_are_counted_on() -> None:
    """17 rows of blocks: RST0 to RST7, again from RST0 behind the first 8."""
    whole = picture(17 * 8, 8, gray=True)
    data = writing.encode(whole, Settings(format="JPEG"))
    scan = data[data.index(b"\xff\xda") :]
    markers = [byte for mark, byte in itertools.pairwise(scan) if mark == 0xFF and byte]
    assert markers[1:-1] == [0xD0 + k % 8 for k in range(16)]
    (height,) = struct.unpack_from(">H", data, data.index(b"\xff\xc0") + 5)
    assert height == 136
