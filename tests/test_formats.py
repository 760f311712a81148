"""Names of formats, and refusals that have to come before any work is done."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from waifu4x.codecs.formats import FORMATS, READABLE, check_writable_as, format_of
from waifu4x.codecs.plugins import PLUGINS
from waifu4x.errors import PictureWriteError, UsageError


def test_every_readable_name_is_one_that_pillow_opens() -> None:
    # A name that Pillow lists but cannot open (MPO) turns every unknown file into a KeyError.
    Image.init()
    assert set(READABLE) <= set(Image.OPEN)
    writable = {name for name, facts in FORMATS.items() if facts.writable}
    assert writable - set(PLUGINS) <= set(Image.SAVE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.b/photo.JPG", "JPEG"),
        (".jpeg", "JPEG"),
        ("webp", "WEBP"),
        ("AVIF", "AVIF"),
        ("x.tif", "TIFF"),
        ("TIFF", "TIFF"),
        ("x.y.png", "PNG"),
        ("gif", "GIF"),
        ("bmp", "BMP"),
    ],
)
def test_format_of(name: str, expected: str) -> None:
    assert format_of(name) == expected


@pytest.mark.parametrize(
    ("name", "hint"), [("a.jpgg", "did you mean .jpg"), ("a.xyz", ".png"), ("noext", ".png")]
)
def test_an_unknown_suffix_names_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="names no picture format") as caught:
        format_of(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("format", "width", "height"),
    [
        ("JPEG", 65_501, 1),
        ("JPEG", 1, 65_501),
        ("WEBP", 16_384, 1),
        ("AVIF", 32_769, 1),
        ("AVIF", 16_385, 16_385),
        ("GIF", 65_536, 1),
        ("PNG", 2**31, 1),
        ("BMP", 40_000, 40_000),
        ("TIFF", 40_000, 40_000),
        ("PNG", 0, 5),
    ],
)
def test_too_large_is_refused(format: str, width: int, height: int) -> None:
    with pytest.raises(PictureWriteError):
        check_writable_as(format, width, height)


@pytest.mark.parametrize(
    ("format", "width", "height"),
    [
        ("JPEG", 65_500, 65_500),
        ("WEBP", 16_383, 16_383),
        ("AVIF", 32_768, 8_192),
        ("GIF", 65_535, 65_535),
        ("PNG", 100_000, 100_000),
        ("BMP", 30_000, 40_000),
        ("TIFF", 30_000, 40_000),
    ],
)
def test_the_largest_is_accepted(format: str, width: int, height: int) -> None:
    check_writable_as(format, width, height)


@pytest.mark.parametrize(
    ("format", "side"), [("JPEG", 65_500), ("WEBP", 16_383), ("AVIF", 32_768), ("GIF", 65_535)]
)
def test_the_limit_is_true_of_the_encoder_and_decoder(format: str, side: int) -> None:
    file = io.BytesIO()
    Image.new("L", (side, 1)).save(file, format, **({"speed": 10} if format == "AVIF" else {}))
    with Image.open(file) as image:
        image.load()
        assert image.size == (side, 1)
    assert FORMATS[format].max_side_px == side


def test_16_bits_and_alpha_count_towards_the_limit_of_tiff() -> None:
    check_writable_as("TIFF", 30_000, 30_000, depth_bits=8)
    with pytest.raises(PictureWriteError, match="GiB"):
        check_writable_as("TIFF", 30_000, 30_000, depth_bits=16)


@pytest.mark.parametrize("format", ["JPEG", "BMP"])
def test_transparency_needs_a_background_where_there_is_no_alpha(format: str) -> None:
    with pytest.raises(PictureWriteError, match="--background white"):
        check_writable_as(format, 4, 4, transparent=True)
    check_writable_as(format, 4, 4, transparent=True, background=(255, 255, 255))


@pytest.mark.parametrize(
    ("format", "options", "error"),
    [
        ("JPEG", {"quality": 0}, UsageError),
        ("PNG", {"quality": 101}, UsageError),
        ("WEBP", {"quality": 90, "lossless": True}, UsageError),
        ("JPEG", {"lossless": True}, PictureWriteError),
        ("AVIF", {"lossless": True}, PictureWriteError),
        ("GIF", {"lossless": True}, PictureWriteError),
        ("JPEG", {"background": (0, 0, 256)}, UsageError),
    ],
)
def test_options_that_make_no_sense(format: str, options: dict, error: type) -> None:
    with pytest.raises(error):
        check_writable_as(format, 4, 4, **options)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_where_it_is(format: str) -> None:
    check_writable_as(format, 4, 4, lossless=True)
