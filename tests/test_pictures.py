"""Pictures in and out: modes, formats, orientation, colours, metadata, damage, full disks."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from waifu4x import files, pictures
from waifu4x.codecs import metadata
from waifu4x.codecs.formats import FORMATS
from waifu4x.codecs.plugins import PLUGINS
from waifu4x.errors import PictureError, PictureReadError, PictureWriteError, UsageError
from waifu4x.pictures import Picture, encode, read, write

imagecodecs = pytest.importorskip("imagecodecs")

EXIF, GPS = 34665, 34853
# Formats of plugins have tests of their own.
WRITABLE = [n for n, facts in FORMATS.items() if facts.writable and n not in PLUGINS]


def _smooth(height: int = 24, width: int = 36, *, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    y, x = y * 24 / height, x * 36 / width
    planes = [120 + 60 * np.sin(x / 9), 100 + 3 * y, 40 + 2 * x + y]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def _noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271], exif[33432] = orientation, "Maker", "me"
    exif[256] = 36
    exif[EXIF] = {36867: "2020:01:02 03:04:05", 40962: 36, 40963: 24, 40965: {1: "R98"}}
    exif[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


# ------------------------------------------------------------------------------ modes and formats


def _image_of(mode: str) -> Image.Image:
    rgb = Image.fromarray(_smooth())
    alpha = Image.fromarray(np.tile(np.linspace(255, 60, 36).astype(np.uint8), (24, 1)))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
        assert converted is not None
        return converted
    if mode in ("LA", "RGBA", "PA"):
        image = rgb.convert("L" if mode == "LA" else "RGB")
        image.putalpha(alpha)
        return image.convert("PA") if mode == "PA" else image
    if mode == "RGBa":
        return _image_of("RGBA").convert("RGBa")
    if mode.startswith("I;16"):
        return rgb.convert("I").convert(mode)
    return rgb.convert(mode)


# Mean error allowed: 0 exact, more where the mode itself (palette, CMYK, LAB) is coarser.
MODES = {
    "1": ("gray", 0.0),
    "L": ("gray", 0.0),
    "LA": ("gray+alpha", 0.0),
    "P": ("rgb", 20.0),
    "PA": ("rgb+alpha", 20.0),
    "RGB": ("rgb", 0.0),
    "RGBA": ("rgb+alpha", 0.0),
    "CMYK": ("rgb", 0.0),
    "YCbCr": ("rgb", 2.0),
    "LAB": ("rgb", 2.0),
    "I;16": ("gray", 0.0),
    "I;16B": ("gray", 0.0),
}


# What Pillow can store; RGBa and La have a test of their own, HSV is in no file.
_TIFF_ONLY = ("PA", "CMYK", "YCbCr", "LAB")


@pytest.mark.parametrize(
    ("mode", "format"),
    [(m, f) for m in MODES for f in ("PNG", "TIFF") if f == "TIFF" or m not in _TIFF_ONLY],
)
def test_modes(mode: str, format: str) -> None:
    image = _image_of(mode)
    picture = read(_saved(image, format))
    kind, allowed = MODES[mode]
    gray = image.convert("L") if mode == "1" else _image_of("L")
    wanted = _smooth() if "rgb" in kind else np.asarray(gray)[..., None]
    assert picture.pixels.shape == wanted.shape
    assert picture.depth_bits == (16 if mode.startswith("I;16") else 8)
    assert np.abs(picture.pixels.astype(float) - wanted).mean() <= allowed
    assert (picture.alpha is not None) == ("alpha" in kind)
    if picture.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, np.asarray(image.getchannel("A")))
    assert picture.format == format


@pytest.mark.parametrize("associated", ["La", "RGBa"])
def test_premultiplied_tiff_is_read_straight(associated: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = np.full((4, 4, 2 if associated == "La" else 4), 64, dtype=np.uint8)
    samples[..., -1] = 128
    file = io.BytesIO()
    kind = "minisblack" if associated == "La" else "rgb"
    tifffile.imwrite(file, samples, photometric=kind, extrasamples=["assocalpha"], metadata=None)
    if associated == "La":
        # Pillow knows no such TIFF; the mode itself is what is tested.
        image = Image.merge("LA", [Image.new("L", (4, 4), 128)] * 2).convert("La")
        assert image.mode == "La"
        from waifu4x.codecs.decoders import _planes

        pixels, alpha, _ = _planes(image, raw_mode="")
    else:
        picture = read(file.getvalue())
        pixels, alpha = picture.pixels, picture.alpha
    assert alpha is not None
    assert (alpha == 128).all()
    assert (np.abs(pixels.astype(int) - 128) <= 1).all()


@pytest.mark.parametrize(
    ("mode", "key", "shape"),
    [("1", 0, 1), ("L", 100, 1), ("P", 3, 3), ("RGB", (120, 100, 40), 3), ("I;16", 100, 1)],
)
def test_png_transparency_chunk(mode: str, key: int | tuple, shape: int) -> None:
    image = _image_of(mode)
    picture = read(_saved(image, "PNG", transparency=key))
    assert picture.pixels.shape[2] == shape
    assert picture.alpha is not None
    values = np.asarray(image).astype(int).reshape(24, 36, -1)
    hidden = (values == np.array(key)).all(axis=-1)
    np.testing.assert_array_equal(picture.alpha == 0, hidden)
    assert picture.alpha.max() == np.iinfo(picture.alpha.dtype).max


def test_gray_palette_is_gray() -> None:
    image = Image.fromarray(_smooth(channels=1)[..., 0]).convert("P")
    assert read(_saved(image, "GIF")).is_gray


@pytest.mark.parametrize(
    ("values", "white"), [([0.0, 0.5, 1.0], 1.0), ([0, 128, 255], 255.0), ([0, 9, 60000], 65535.0)]
)
def test_float_and_integer_samples_say_what_white_is(values: list[float], white: float) -> None:
    for mode in ("F", "I") if white > 1 else ("F",):
        dtype = np.float32 if mode == "F" else np.int32
        picture = read(_saved(Image.fromarray(np.array([values], dtype)), "TIFF"))
        wanted = np.array(values) * 65535 / white
        np.testing.assert_allclose(picture.pixels[0, :, 0], wanted, atol=1)
        assert f"{white:g} as white" in picture.notes[0]


def test_float_with_nan_is_refused_and_negative_is_stretched() -> None:
    with pytest.raises(PictureReadError, match="not finite"):
        read(_saved(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF"))
    picture = read(_saved(Image.fromarray(np.array([[-1.0, 1.0]], np.float32)), "TIFF"))
    assert picture.pixels.ravel().tolist() == [0, 65535]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (13, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_round_trip(format: str, shape: tuple[int, int], channels: int) -> None:
    alpha = _noise(*shape, seed=1) if FORMATS[format].holds_alpha else None
    picture = Picture(pixels=_noise(*shape, channels), alpha=alpha)
    back = read(encode(picture, format=format, lossless=True))
    # WebP has no gray.
    np.testing.assert_array_equal(np.broadcast_to(picture.pixels, back.pixels.shape), back.pixels)
    assert back.is_gray == (channels == 1) or format == "WEBP"
    assert (back.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(alpha, back.alpha)
    assert back.notes == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_16_bits_are_kept_exactly(format: str, channels: int, transparent: bool) -> None:
    alpha = _noise(33, 41, dtype="uint16", seed=1) if transparent else None
    pixels = _noise(33, 41, channels, dtype="uint16")
    picture = Picture(
        pixels=pixels, alpha=alpha, exif=_exif().tobytes(), xmp=b"<x/>", dpi=(300.0, 300.0)
    )
    back = read(encode(picture, format=format))
    assert back.depth_bits == 16
    np.testing.assert_array_equal(back.pixels, pixels)
    np.testing.assert_array_equal(back.alpha, alpha)
    assert back.xmp == b"<x/>"
    assert back.dpi == pytest.approx((300.0, 300.0), rel=1e-4)
    assert back.exif is not None
    exif = Image.Exif()
    exif.load(back.exif)
    assert (exif[271], exif.get_ifd(EXIF)[36867]) == ("Maker", "2020:01:02 03:04:05")
    assert exif.get_ifd(GPS)[1] == "N"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw", "byteorder": ">"},
        {"planarconfig": "separate"},
        {"tile": (16, 16), "compression": "zlib"},
        {"bigtiff": True},
    ],
)
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_tiff_of_other_programs(options: dict, channels: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    samples = _noise(33, 41, channels, dtype="uint16")
    stored = np.moveaxis(samples, -1, 0) if "planarconfig" in options else samples
    file = io.BytesIO()
    extra = ["unassalpha"] if channels == 4 else None
    tifffile.imwrite(file, stored, photometric="rgb", extrasamples=extra, metadata=None, **options)
    picture = read(file.getvalue())
    np.testing.assert_array_equal(picture.pixels, samples[..., :3])
    assert (picture.alpha is None) == (channels == 3)


def test_16_bit_png_with_a_transparent_colour() -> None:
    pixels = _noise(5, 6, 3, dtype="uint16")
    data = imagecodecs.png_encode(pixels)
    import struct
    import zlib

    chunk = b"tRNS" + pixels[0, 0].astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
    picture = read(data[:33] + chunk + data[33:])
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.alpha is not None
    assert np.argwhere(picture.alpha == 0).tolist() == [[0, 0]]


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_deep_avif_is_read_with_all_bits(bits: int, channels: int, transparent: bool) -> None:
    """Pillow gives 8 bits of any AVIF, without a word."""
    full = (1 << bits) - 1
    ramp = np.tile(np.linspace(0, full, 64).astype("uint16" if bits > 8 else "uint8"), (8, 1))
    planes = [ramp] * channels + [ramp[:, ::-1]] * transparent
    samples = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
    data = imagecodecs.avif_encode(samples, level=100, bitspersample=bits, pixelformat="444")
    picture = read(data)
    assert picture.notes == ()
    assert picture.depth_bits == (8 if bits == 8 else 16)
    wanted = np.rint(ramp * ((255 if bits == 8 else 65535) / full))
    step = np.iinfo(picture.pixels.dtype).max / full
    assert np.abs(picture.pixels.astype(float) - wanted[..., None]).max() <= 2 * step + 1
    assert (picture.alpha is not None) == transparent
    if picture.alpha is not None:
        np.testing.assert_allclose(picture.alpha, wanted[:, ::-1], atol=1)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "BMP"])
def test_16_bits_are_rounded_not_wrapped_where_8_are_all(format: str) -> None:
    deep = _smooth().astype(np.uint16) * 257
    deep[deep < 65000] += 127
    back = read(encode(Picture(pixels=deep), format=format, quality=100))
    assert back.depth_bits == 8
    assert np.abs(back.pixels.astype(int) - _smooth()).max() <= 6
    assert any("rounded" in loss for loss in pictures.losses(Picture(pixels=deep), format))
    exact = read(encode(Picture(pixels=deep), format="BMP"))
    np.testing.assert_array_equal(exact.pixels, _smooth())


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_quality(format: str) -> None:
    picture = Picture(pixels=_smooth(120, 160))
    sizes = [len(encode(picture, format=format, quality=q)) for q in (20, 90)]
    assert sizes[0] < sizes[1]
    default = read(encode(picture, format=format))
    assert np.abs(default.pixels.astype(int) - picture.pixels).mean() < 1.5
    if format == "JPEG":
        with Image.open(io.BytesIO(encode(picture, format="JPEG"))) as image:
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_gray_stays_gray(format: str) -> None:
    assert read(encode(Picture(pixels=_smooth(channels=1)), format=format)).is_gray


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(Picture(pixels=_smooth()), format="PNG"))
    assert read(path).format == "PNG"


def test_sources_path_bytes_stream(tmp_path: Path) -> None:
    data = encode(Picture(pixels=_smooth()), format="PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", data, io.BytesIO(data)):
        np.testing.assert_array_equal(read(source).pixels, _smooth())


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_read_and_the_number_told(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), (80 * k, 0, 0)) for k in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read(_saved(frames[0], format, save_all=True, append_images=frames[1:], **options))
    assert picture.frames_total == 3
    assert picture.pixels.max() == 0


# ------------------------------------------------------------------------- orientation, metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_once_and_reset(format: str, orientation: int) -> None:
    image = Image.fromarray(_smooth())
    options: dict = {"quality": 100} if format in ("JPEG", "WEBP", "AVIF") else {}
    picture = read(_saved(image, format, exif=_exif(orientation), **options))
    upright = image.copy()
    upright.getexif()[274] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(upright))
    assert picture.pixels.shape == wanted.shape
    assert np.abs(picture.pixels.astype(int) - wanted).max() <= 12
    again = read(encode(picture, format=format))
    assert again.pixels.shape == wanted.shape
    with Image.open(io.BytesIO(encode(picture, format=format))) as file:
        assert file.getexif().get(274, 1) == 1


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_in_16_bit_files(orientation: int) -> None:
    picture = Picture(pixels=_noise(5, 9, 3, dtype="uint16"), exif=_exif().tobytes())
    for format in ("PNG", "TIFF"):
        data = bytearray(encode(picture, format=format))
        # The entry: tag, type, count, value; EXIF in the PNG is big-endian, the TIFF is not.
        entry = {"PNG": "0112 0003 00000001", "TIFF": "1201 0300 01000000"}[format]
        where = data.index(bytes.fromhex(entry)) + 8
        data[where : where + 2] = orientation.to_bytes(2, "big" if format == "PNG" else "little")
        if format == "PNG":
            import zlib

            start = data.index(b"eXIf")
            length = int.from_bytes(data[start - 4 : start], "big")
            checksum = zlib.crc32(data[start : start + 4 + length])
            data[start + 4 + length : start + 8 + length] = checksum.to_bytes(4, "big")
        wanted = np.rot90(picture.pixels, 2 if orientation == 3 else -1)
        np.testing.assert_array_equal(read(bytes(data)).pixels, wanted)


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("target", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_metadata_travels_and_is_corrected(source: str, target: str) -> None:
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" exif:PixelXDimension="36">'
        b"<tiff:ImageLength>24</tiff:ImageLength><dc:creator>me</dc:creator>"
        b"<xmp:Thumbnails><big/></xmp:Thumbnails></r></x:xmpmeta>"
    )
    first = Picture(pixels=_smooth(), exif=_exif(6).tobytes(), xmp=packet, dpi=(200.0, 100.0))
    picture = read(encode(first, format=source))
    assert picture.notes == ()
    large = picture.with_pixels(_smooth(96, 144), None)
    data = encode(large, format=target)
    back = read(data)
    assert back.pixels.shape == (96, 144, 3)
    assert back.dpi == pytest.approx((200.0, 100.0), abs=0.5)
    assert back.xmp is not None
    for wanted in (b'n="1"', b'XDimension="144"', b"Length>96<", b"<dc:creator>me"):
        assert wanted in back.xmp
    assert b"Thumbnails" not in back.xmp
    with Image.open(io.BytesIO(data)) as file:
        exif = file.getexif()
        nested, gps = exif.get_ifd(EXIF), exif.get_ifd(GPS)
        assert (exif[271], exif[33432], exif.get(274, 1), exif[256]) == ("Maker", "me", 1, 144)
        assert (nested[36867], nested[40962], nested[40963]) == ("2020:01:02 03:04:05", 144, 96)
        assert exif.get_ifd(40965)[1] == "R98"
        assert (gps[1], tuple(map(float, gps[2]))) == ("N", (1.0, 2.0, 3.0))
    bare = encode(large, format=target, strip_metadata=True)
    back = read(bare)
    assert (back.xmp, back.dpi) == (None, None)
    assert b"Maker" not in bare
    assert b"dc:creator" not in bare


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_two_resolutions_of_a_tiff_turn_with_it(orientation: int) -> None:
    """Pillow turns the pixels of a TIFF in loading them, but not these two numbers."""
    exif = _exif(orientation)
    exif[282], exif[283], exif[296] = 200.0, 100.0, 2
    picture = read(_saved(Image.fromarray(_smooth()), "TIFF", exif=exif))
    assert picture.dpi == ((200.0, 100.0) if orientation < 5 else (100.0, 200.0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_a_row_of_pixels_leaves_plain_memory(
    shape: tuple[int, int], orientation: int
) -> None:
    """Strides of a side of one pixel mean nothing to NumPy, but imagecodecs refuses odd ones."""
    turned = metadata.apply_orientation(_noise(*shape, 3), orientation)
    assert turned.strides == (3 * turned.shape[1], 3, 1)


def test_thumbnails_in_xmp_are_found_in_little_time() -> None:
    start, end = b"<xmp:Thumbnails>", b"</xmp:Thumbnails>"
    hostile = b"<x>" + start * 50_000
    packet = hostile + end + b"<a/>" + start + b"1" + end + b"<b/><xmp:ThumbnailsOf/>" + start
    began = time.perf_counter()
    found = metadata.xmp_for(packet, width_px=1, height_px=1)
    assert metadata.xmp_for(hostile, width_px=1, height_px=1) == hostile
    assert time.perf_counter() - began < 2
    assert found == b"<x><a/><b/><xmp:ThumbnailsOf/>" + start


def test_the_thumbnail_goes() -> None:
    # A second directory as cameras write it, made by hand: Pillow never writes one.
    body = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x01\0\0\0" + b"\x1a\0\0\0"
    thumbnail = b"\xff\xd8THUMBNAIL\xff\xd9"
    body += b"\x02\0" + b"\x01\x02\x04\0\x01\0\0\0\x38\0\0\0" + b"\x02\x02\x04\0\x01\0\0\0"
    body += len(thumbnail).to_bytes(4, "little") + b"\0\0\0\0" + thumbnail
    data = _saved(Image.fromarray(_smooth()), "JPEG", exif=b"Exif\0\0" + body)
    assert b"THUMBNAIL" in data
    picture = read(data)
    assert picture.exif is not None
    assert b"THUMBNAIL" not in encode(picture, format="JPEG")


def test_damaged_exif_is_left_out_with_a_note() -> None:
    data = _saved(Image.fromarray(_smooth()), "JPEG", exif=b"Exif\0\0XXXXjunk" + bytes(40))
    picture = read(data)
    assert picture.exif is None
    assert "damaged" in picture.notes[0]


def test_metadata_too_large_for_jpeg_is_told() -> None:
    picture = Picture(pixels=_smooth(), xmp=b"<x>" + b"y" * 70_000 + b"</x>")
    assert any("XMP" in loss for loss in pictures.losses(picture, "JPEG"))
    assert read(encode(picture, format="JPEG")).xmp is None
    assert read(encode(picture, format="PNG")).xmp == picture.xmp


# ---------------------------------------------------------------------------------------- colours


def _delta_e(data: bytes, reference: bytes) -> float:
    """The largest CIE76 difference between two pictures, each seen through its own profile."""
    labs = []
    for file in (data, reference):
        with Image.open(io.BytesIO(file)) as image:
            profile = image.info.get("icc_profile") or metadata.srgb_profile()
            rgb = np.asarray(image.convert("RGB")).astype(np.uint16) * 257
        lab = imagecodecs.cms_profile("lab4")
        labs.append(
            imagecodecs.cms_transform(
                rgb, profile, lab, colorspace="rgb", outcolorspace="lab", outdtype="float32"
            )
        )
    return float(np.sqrt(((labs[0] - labs[1]) ** 2).sum(axis=-1)).max())


@cache  # it holds the time at which it was made
def _profile(name: str) -> bytes:
    if name == "p3":
        return imagecodecs.cms_profile(
            "rgb",
            whitepoint=[0.3127, 0.329, 1.0],
            primaries=[0.68, 0.32, 1.0, 0.265, 0.69, 1.0, 0.15, 0.06, 1.0],
            gamma=2.2,
        )
    return imagecodecs.cms_profile(name)


@pytest.mark.parametrize("name", ["adobergb", "p3", "srgb"])
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_profiles_give_the_same_colours_back(name: str, saturated: bool, format: str) -> None:
    levels = np.array([0, 51, 102, 153, 204, 255] if saturated else [115, 128, 140, 150], np.uint8)
    patches = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
    original = _saved(Image.fromarray(patches), format, icc_profile=_profile(name))
    picture = read(original)
    assert picture.icc_profile == _profile(name)
    assert picture.in_profile_space == (saturated or name == "srgb")
    written = encode(picture, format=format)
    assert _delta_e(written, original) < 1.0
    # What the network sees is sRGB: seen without a profile it looks the same.
    if not picture.in_profile_space:
        assert _delta_e(_saved(Image.fromarray(picture.pixels), "PNG"), original) < 1.0
    # BMP has no profiles: the colours are converted, and clipped if they have to be.
    assert any("sRGB" in loss for loss in pictures.losses(picture, "BMP"))
    if not saturated:
        assert _delta_e(encode(picture, format="BMP"), original) < 1.5


def test_the_oracle_of_colours_sees_a_dropped_profile() -> None:
    image = Image.fromarray(_smooth())
    tagged = _saved(image, "PNG", icc_profile=_profile("adobergb"))
    assert _delta_e(_saved(image, "PNG"), tagged) > 5.0


def test_16_bit_profile_round_trip() -> None:
    deep = _noise(20, 20, 3, dtype="uint16") // 8 + 30_000
    original = Picture(pixels=deep, icc_profile=_profile("adobergb"), in_profile_space=True)
    picture = read(encode(original, format="PNG"))
    assert not picture.in_profile_space
    assert np.abs(picture.pixels.astype(int) - deep).mean() > 200
    stored = imagecodecs.png_decode(encode(picture, format="PNG"))
    assert np.abs(stored.astype(int) - deep).max() < 64


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gray_profile_stays_with_gray_pixels(dtype: str) -> None:
    profile = imagecodecs.cms_profile("gray", gamma=1.8)
    gray = _noise(9, 9, 1, dtype=dtype)
    first = Picture(pixels=gray, icc_profile=profile, in_profile_space=True)
    picture = read(encode(first, format="PNG"))
    assert picture.icc_profile == profile
    np.testing.assert_array_equal(picture.pixels, gray)
    plain = read(encode(picture, format="BMP"))
    assert plain.is_gray
    full = np.iinfo(dtype).max
    # A profile stores gamma in 256ths.
    linear = (gray / full) ** (round(1.8 * 256) / 256)
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    # Near black littleCMS interpolates the steep start of the curve.
    allowed = np.where(expected * 255 < 16, 2.0, 1.0)
    assert (np.abs(plain.pixels - expected * 255) <= allowed).all()


@pytest.mark.parametrize("bad", [b"junk", bytes(200), "cut", "gray"])
def test_profiles_of_no_use_are_ignored_with_a_note(bad: bytes | str) -> None:
    profile = {"cut": _profile("adobergb")[:300], "gray": imagecodecs.cms_profile("gray")}.get(
        str(bad), bad
    )
    picture = read(_saved(Image.fromarray(_smooth()), "PNG", icc_profile=profile))
    assert picture.icc_profile is None
    assert "ignored" in picture.notes[0]
    np.testing.assert_array_equal(picture.pixels, _smooth())


def test_a_profile_leaves_when_gray_becomes_colour() -> None:
    picture = Picture(
        pixels=_smooth(channels=1),
        icc_profile=imagecodecs.cms_profile("gray"),
        in_profile_space=True,
    )
    changed = picture.with_pixels(_smooth(), None)
    assert changed.icc_profile is None
    assert "ICC" in changed.notes[0]


def test_cmyk_without_profile_is_told() -> None:
    picture = read(_saved(Image.fromarray(_smooth()).convert("CMYK"), "TIFF"))
    assert "plain formula" in picture.notes[0]
    np.testing.assert_array_equal(picture.pixels, _smooth())


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gray_is_converted_by_the_curve_itself(dtype: str) -> None:
    """LittleCMS would put 33 points in the place of linear light: 5 levels off near black."""
    full = np.iinfo(dtype).max
    levels = np.arange(full + 1, dtype=dtype).reshape(-1, 256, 1)
    linear = levels / full
    wanted = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    found = metadata.to_srgb(levels, imagecodecs.cms_profile("gray", gamma=1.0))
    assert (found.shape, found.dtype) == (levels.shape, levels.dtype)
    assert np.abs(found / full - wanted).max() * 255 < 0.6


# ----------------------------------------------------------------------------------- transparency


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_background_below_transparency(dtype: str) -> None:
    full = np.iinfo(dtype).max
    alpha = np.array([[0, full, full // 2 + 1]], dtype)
    picture = Picture(pixels=np.zeros((1, 3, 1), dtype), alpha=alpha)
    with pytest.raises(PictureWriteError, match="--background"):
        encode(picture, format="BMP")
    white = read(encode(picture, format="BMP", background=(255, 255, 255)))
    assert white.pixels.ravel().tolist() == [255, 0, 127]
    red = read(encode(picture, format="BMP", background=(255, 0, 0)))
    assert red.pixels.tolist() == [[[255, 0, 0], [0, 0, 0], [127, 0, 0]]]
    assert any("background" in s for s in pictures.losses(picture, "BMP", background=(0, 0, 0)))


def test_an_alpha_that_hides_nothing_goes_into_jpeg() -> None:
    picture = Picture(pixels=_smooth(), alpha=np.full((24, 36), 255, np.uint8))
    assert read(encode(picture, format="JPEG")).alpha is None


# ---------------------------------------------------------------------------------------- refusals


def _samples() -> dict[str, bytes]:
    rich = Picture(
        pixels=_smooth(48, 64),
        exif=_exif(6).tobytes(),
        icc_profile=metadata.srgb_profile(),
        in_profile_space=True,
        xmp=b'<x tiff:Orientation="6"/>',
        dpi=(72.0, 72.0),
    )
    deep = rich.with_pixels(_smooth(48, 64).astype(np.uint16) * 257, None)
    return {
        **{format: encode(rich, format=format) for format in WRITABLE},
        "PNG 16": encode(deep, format="PNG"),
        "TIFF 16": encode(deep, format="TIFF"),
        "GIF": _saved(Image.fromarray(_smooth(48, 64)), "GIF"),
    }


@pytest.mark.parametrize("kind", [*WRITABLE, "PNG 16", "TIFF 16", "GIF"])
def test_damage_is_refused_or_survived(kind: str) -> None:
    samples = _samples()
    whole = samples[kind]
    read(whole)
    for part in range(64):
        with pytest.raises(PictureReadError):
            read(whole[: len(whole) * part // 64])
    random = np.random.default_rng(len(kind))
    others = list(samples.values())
    refused = []
    for case in range(64 + 64 + 16):
        broken = bytearray(whole)
        if case < 64:
            broken[random.integers(len(whole))] ^= 1 << random.integers(8)
        elif case < 128:
            broken[random.integers(min(400, len(whole)))] = random.integers(256)
        else:
            other = others[random.integers(len(others))]
            at, cut = random.integers(len(whole)), random.integers(len(other))
            broken[at:at] = other[cut : cut + 500]
        try:
            read(bytes(broken))
        except PictureReadError as error:
            refused.append(str(error))
    assert refused
    assert all(line.isprintable() for line in refused)


def test_png_without_its_end_is_refused() -> None:
    data = encode(Picture(pixels=_smooth()), format="PNG")
    for missing in range(1, 13):
        with pytest.raises(PictureReadError, match="cut off"):
            read(data[:-missing])


def test_the_limit_of_pixels_is_ours_and_comes_before_decoding() -> None:
    bomb = _saved(Image.new("1", (18_000, 18_000)), "PNG")
    assert len(bomb) < 60_000
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PictureReadError, match=r"324,000,000 pixels.*--max-pixels"):
        read(bomb)
    assert before == Image.MAX_IMAGE_PIXELS
    warning_zone = _saved(Image.new("1", (10_000, 9_000)), "PNG")
    with pytest.raises(PictureReadError, match="limit"):
        read(warning_zone)
    assert read(warning_zone, max_pixels=90_000_000).width_px == 10_000
    with pytest.raises(PictureReadError, match="limit"):
        read(encode(Picture(pixels=_noise(5, 5, 3, dtype="uint16")), format="TIFF"), max_pixels=24)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(b"<html>no</html>"), "not a picture"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500)), "not a picture"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, make: object, reason: str) -> None:
    path = tmp_path / "odd\nname.png"
    make(path)  # type: ignore[operator]
    with pytest.raises(PictureReadError, match=reason) as caught:
        read(path)
    assert str(caught.value).isprintable()
    assert r"odd\nname.png" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureReadError, match="no regular file"):
        read(tmp_path / "pipe.png")


@pytest.mark.skipif(sys.platform != "linux", reason="names of arbitrary bytes")
def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    with pytest.raises(PictureReadError, match="does not exist") as caught:
        read(path)
    str(caught.value).encode()
    write(Picture(pixels=_smooth()), path)
    assert read(path).width_px == 36


def test_16_bit_colour_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode(Picture(pixels=_noise(4, 4, 3, dtype="uint16")), format="PNG")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(PictureReadError, match="pip install imagecodecs"):
        read(data)
    with pytest.raises(PictureWriteError, match="pip install imagecodecs"):
        encode(Picture(pixels=_noise(4, 4, 3, dtype="uint16")), format="PNG")


def test_pixels_of_the_wrong_kind() -> None:
    for pixels in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(PictureError):
            Picture(pixels=pixels)
    with pytest.raises(PictureError):
        Picture(pixels=_smooth(), alpha=np.zeros((24, 36), np.uint16))


# ---------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("format", WRITABLE)
def test_write_then_read(tmp_path: Path, format: str) -> None:
    target = tmp_path / f"out{FORMATS[format].suffixes[0]}"
    write(Picture(pixels=_smooth()), target)
    assert read(target).format == format
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_format_beats_suffix_and_an_unknown_suffix_needs_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write(Picture(pixels=_smooth()), tmp_path / "out.data")
    write(Picture(pixels=_smooth()), tmp_path / "out.data", format="png")
    assert read(tmp_path / "out.data").format == "PNG"


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, format: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / f"out{FORMATS[format].suffixes[0]}"
    target.write_bytes(b"precious")

    def fail(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_sync", fail)
    with pytest.raises(PictureWriteError, match=target.name) as caught:
        write(Picture(pixels=_smooth()), target)
    assert ("disk is full" in str(caught.value)) == (code == errno.ENOSPC)
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_really_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The temporary is a link to the device that is always full: the write itself fails.
    def full(target: Path) -> Path:
        link = target.with_name(".full.partial")
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(files, "partial_path", full)
    (tmp_path / "out.png").write_bytes(b"precious")
    with pytest.raises(PictureWriteError, match="disk is full"):
        write(Picture(pixels=_smooth()), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_refusals_of_the_encoder_leave_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.jpg"
    target.write_bytes(b"precious")
    with pytest.raises(PictureWriteError, match="transparency"):
        write(Picture(pixels=_smooth(), alpha=np.zeros((24, 36), np.uint8)), target)
    with pytest.raises(PictureWriteError, match="65,500"):
        write(Picture(pixels=np.zeros((1, 65_501, 1), np.uint8)), target)
    assert target.read_bytes() == b"precious"


def test_a_missing_folder_and_a_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(PictureWriteError, match="does not exist"):
        write(Picture(pixels=_smooth()), tmp_path / "no" / "out.png")
    with pytest.raises(PictureWriteError, match="is a folder"):
        write(Picture(pixels=_smooth()), tmp_path, format="PNG")


def test_paths_may_be_plain_text(tmp_path: Path) -> None:
    picture = Picture(pixels=np.zeros((2, 3, 3), dtype=np.uint8))
    write(picture, f"{tmp_path}/a.png")
    assert read(f"{tmp_path}/a.png").width_px == 3
    with pytest.raises(PictureReadError, match="does not exist"):
        read(f"{tmp_path}/b.png")


@pytest.mark.parametrize("mode", ["RGB", "LAB"])
def test_converting_band_by_band_is_converting_at_once(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 rows are two whole bands and a part of one."""
    samples = np.random.default_rng(0).integers(0, 256, (600, 9, 3), dtype=np.uint8)

    def convert() -> np.ndarray:
        if mode == "RGB":
            return metadata.to_srgb(samples, _profile("adobergb"))
        return metadata.lab_to_srgb(Image.frombytes("LAB", (9, 600), samples.tobytes()))

    in_bands = convert()
    monkeypatch.setattr(metadata, "_BAND_ROWS", 1000)
    np.testing.assert_array_equal(in_bands, convert())
    assert in_bands.shape == (600, 9, 3)
    assert not np.array_equal(in_bands, samples)
