"""HEIC and JPEG XL: with their plugins the guarantees of every format, without them a sentence."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from waifu4x import pictures, provenance
from waifu4x.codecs import decoders, jxl_header, metadata, plugins
from waifu4x.codecs.formats import FORMATS, check_writable_as, format_of
from waifu4x.errors import PictureReadError, PictureWriteError
from waifu4x.pictures import Picture, encode, read, write

imagecodecs = pytest.importorskip("imagecodecs")

JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


needs_heif = pytest.mark.skipif(not _has("pillow_heif"), reason="needs the extra heif")
needs_jxl = pytest.mark.skipif(not _has("pillow_jxl"), reason="needs the extra jxl")
BOTH = [pytest.param("HEIF", marks=needs_heif), pytest.param("JXL", marks=needs_jxl)]


def _smooth(height: int = 24, width: int = 36, *, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [120 + 60 * np.sin(x / 9), 100 + 3 * (y % 40), 40 + 2 * (x % 60) + (y % 40)]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def _noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    return exif


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    assert plugins.problem(format) is None
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _ftyp(major: bytes, *compatible: bytes) -> bytes:
    brands = b"".join(compatible)
    return (16 + len(brands)).to_bytes(4, "big") + b"ftyp" + major + bytes(4) + brands


# --------------------------------------------------------------------------- without the plugins


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (_ftyp(b"heic"), "HEIF"),
        (_ftyp(b"heix", b"mif1"), "HEIF"),
        (_ftyp(b"hevc"), "HEIF"),
        (_ftyp(b"mif1", b"mif1", b"heic"), "HEIF"),
        (_ftyp(b"mif1", b"mif1", b"avif"), None),
        (_ftyp(b"mif1"), None),
        (_ftyp(b"avif", b"mif1"), None),
        (_ftyp(b"mp42"), None),
        (b"\xff\x0a\0", "JXL"),
        (JXL_CONTAINER, "JXL"),
        (b"\xff\xd8\xff", None),
        (b"", None),
    ],
)
def test_first_bytes(head: bytes, expected: str | None) -> None:
    assert plugins.plugin_format_of(head + bytes(300)) == expected


@pytest.mark.parametrize(
    ("content", "suffix", "sentence"),
    [
        (_ftyp(b"heic") + bytes(99), ".heic", r"is HEIC: pip install 'waifu4x\[heif\]'"),
        (b"\xff\x0a" + bytes(99), ".jxl", r"is JPEG XL: pip install 'waifu4x\[jxl\]'"),
    ],
)
def test_a_missing_plugin_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, suffix: str, sentence: str
) -> None:
    for plugin in plugins.PLUGINS.values():
        monkeypatch.setitem(sys.modules, plugin.module, None)
    # Content decides: the name may lie.
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for attempt in (read, provenance.read) if suffix == ".heic" else (read,):
        with pytest.raises(PictureReadError, match=sentence) as caught:
            attempt(path)
        assert str(caught.value).startswith(str(path))
    target = tmp_path / f"out{suffix}"
    target.write_bytes(b"precious")
    with pytest.raises(PictureWriteError, match=sentence.split(": ")[1]):
        write(Picture(pixels=_smooth()), target)
    assert target.read_bytes() == b"precious"
    # Known before any work is done.
    with pytest.raises(PictureWriteError, match="needs a plugin"):
        check_writable_as(format_of(suffix), 4, 4)


def test_a_plugin_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pillow_heif.py").write_text("raise ImportError('libheif.so.1: not\\nfound')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    with pytest.raises(PictureReadError, match="pillow-heif is installed but does not load") as e:
        read(_ftyp(b"heic") + bytes(99))
    assert "libheif.so.1: not found" in str(e.value)


def test_other_formats_import_no_plugin() -> None:
    import subprocess

    code = (
        "import sys, numpy as np\n"
        "from waifu4x.pictures import Picture, encode, read\n"
        "for name in ('PNG', 'AVIF', 'TIFF'):\n"
        "    read(encode(Picture(pixels=np.zeros((4, 4, 3), np.uint8)), format=name))\n"
        "assert not {'pillow_heif', 'pillow_jxl', 'torch'} & set(sys.modules)\n"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": root})


def test_suffixes() -> None:
    assert [format_of(n) for n in ("a.HEIC", "a.heif", ".hif", "a.jxl")] == ["HEIF"] * 3 + ["JXL"]


# ------------------------------------------------------------------------------- with the plugins


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 17), (24, 36)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_lossless_round_trip(
    format: str, shape: tuple[int, int], channels: int, transparent: bool
) -> None:
    alpha = _noise(*shape, seed=1) if transparent else None
    picture = Picture(pixels=_noise(*shape, channels), alpha=alpha)
    data = encode(picture, format=format, lossless=True)
    assert data == encode(picture, format=format, lossless=True)
    back = read(data)
    np.testing.assert_array_equal(np.broadcast_to(picture.pixels, back.pixels.shape), back.pixels)
    np.testing.assert_array_equal(back.alpha, alpha)
    assert (back.format, back.notes, back.icc_profile) == (format, (), None)
    # HEIC has no gray with alpha.
    assert back.is_gray == (channels == 1) or (format == "HEIF" and transparent)


@pytest.mark.parametrize("format", BOTH)
def test_quality(format: str) -> None:
    picture = Picture(pixels=_smooth(120, 160))
    sizes = [len(encode(picture, format=format, quality=q)) for q in (1, 50, 95)]
    assert sizes == sorted(set(sizes))
    best = read(encode(picture, format=format, quality=100))
    assert np.abs(best.pixels.astype(int) - picture.pixels).mean() < 1.5
    default = read(encode(picture, format=format))
    assert np.abs(default.pixels.astype(int) - picture.pixels).mean() < 2.0
    assert encode(picture, format=format) == encode(picture, format=format, quality=90)


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(format: str, orientation: int) -> None:
    image = Image.fromarray(_smooth())
    if format == "HEIF":
        data = _saved(image, "HEIF", quality=90, exif=_exif(orientation).tobytes())
        wanted = metadata.apply_orientation(_smooth(), orientation)
    else:
        # EXIF has no say in a JPEG XL codestream: no viewer turns this one.
        data = _saved(image, "JXL", quality=90, exif=_exif(orientation).tobytes())
        wanted = _smooth()
    picture = read(data)
    assert picture.pixels.shape == wanted.shape
    assert np.abs(picture.pixels.astype(int) - wanted).mean() < 4
    again = read(encode(picture, format=format))
    assert again.pixels.shape == wanted.shape
    assert again.exif is not None
    exif = Image.Exif()
    exif.load(again.exif)
    assert (exif[271], exif.get(274, 1)) == ("Maker", 1)
    as_jpeg = read(encode(picture, format="JPEG"))
    assert as_jpeg.pixels.shape == wanted.shape


@needs_jxl
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_within_jpeg_xl_is_turned_as_the_jpeg(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(_smooth()).save(path, exif=_exif(orientation), quality=95)
    with Image.open(path) as jpeg:
        data = _saved(jpeg, "JXL", lossless_jpeg=True)
    np.testing.assert_array_equal(read(data).pixels, read(path).pixels)


@pytest.mark.parametrize("format", BOTH)
def test_metadata_travels_and_is_corrected(format: str) -> None:
    exif = _exif(6)
    exif[256] = 36
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" a="me"/></x:xmpmeta>'
    first = Picture(pixels=_smooth(), exif=exif.tobytes(), xmp=packet, dpi=(200.0, 100.0))
    data = encode(first.with_pixels(_smooth(48, 72), None), format=format)
    back = read(data)
    assert back.pixels.shape == (48, 72, 3)
    assert back.notes == ()
    assert back.dpi == pytest.approx((200.0, 100.0), abs=0.5)
    assert back.xmp is not None
    assert b'n="1"' in back.xmp or b"tiff:Orientation" not in back.xmp
    assert b'a="me"' in back.xmp
    held = Image.Exif()
    held.load(back.exif or b"")
    assert (held[271], held[256]) == ("Maker", 72)
    bare = encode(back, format=format, strip_metadata=True)
    assert b"Maker" not in bare
    back = read(bare)
    assert (back.xmp, back.dpi) == (None, None)


@pytest.mark.parametrize("format", BOTH)
def test_provenance_round_trip(tmp_path: Path, format: str) -> None:
    made = provenance.Provenance(tool="t", version="1", model="m", sha256=None, scale=2.0)
    path = tmp_path / "a.bin"
    path.write_bytes(encode(provenance.stamp(Picture(pixels=_smooth()), made), format=format))
    assert provenance.read(path) == (made,)
    assert provenance.read(read(path)) == (made,)


@pytest.mark.parametrize("format", BOTH)
def test_profiles(format: str) -> None:
    # Values far from the borders of sRGB, so the picture is converted and the profile kept.
    profile = imagecodecs.cms_profile(
        "rgb",
        whitepoint=[0.3127, 0.329, 1.0],
        primaries=[0.64, 0.33, 1.0, 0.3, 0.6, 1.0, 0.15, 0.06, 1.0],
        gamma=1.8,
    )
    pixels = (_smooth() // 8 + 110).astype(np.uint8)
    picture = Picture(pixels=pixels, icc_profile=profile)
    data = encode(picture, format=format, lossless=True)
    back = read(data)
    assert np.abs(back.pixels.astype(int) - pixels).max() <= 2
    if format == "HEIF":
        assert back.icc_profile == profile
        # What is stored are values of the profile.
        with Image.open(io.BytesIO(data)) as image:
            assert np.abs(np.asarray(image).astype(int) - pixels).mean() > 5
    else:
        assert back.icc_profile is None
        assert any("sRGB" in loss for loss in pictures.losses(picture, format))


@needs_jxl
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_profile_that_libjxl_makes_up_for_srgb_is_forgotten(channels: int) -> None:
    samples = _noise(8, 9, channels)
    squeezed = samples[..., 0] if channels == 1 else samples
    picture = read(imagecodecs.jpegxl_encode(squeezed, lossless=True))
    assert picture.icc_profile is None
    np.testing.assert_array_equal(picture.pixels, samples[..., : 1 if channels < 3 else 3])


@pytest.mark.parametrize("format", BOTH)
def test_16_bits_are_rounded_and_told(format: str) -> None:
    deep = _smooth().astype(np.uint16) * 257
    assert any("rounded" in loss for loss in pictures.losses(Picture(pixels=deep), format))
    back = read(encode(Picture(pixels=deep), format=format, lossless=True))
    np.testing.assert_array_equal(back.pixels, _smooth())


@needs_heif
@pytest.mark.parametrize(("mode", "channels"), [("RGB;16", 3), ("RGBA;16", 4), ("L;16", 1)])
def test_10_bits_of_heic_are_all_read(mode: str, channels: int) -> None:
    import pillow_heif

    samples = _noise(20, 30, channels, dtype="uint16")
    samples[0, 0], samples[0, 1] = 65535, 0
    file = io.BytesIO()
    held = pillow_heif.from_bytes(mode, (30, 20), samples.tobytes())
    held.save(file, quality=-1, chroma=444, matrix_coefficients=0)
    picture = read(file.getvalue())
    wanted = np.rint((samples >> 6) * (65535 / 1023)).astype(np.uint16)
    colors = min(channels, 3)
    np.testing.assert_array_equal(picture.pixels, wanted[..., :colors])
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.max() == 65535
    if channels == 4:
        np.testing.assert_array_equal(picture.alpha, wanted[..., 3])
    else:
        assert picture.alpha is None


@needs_heif
def test_colours_that_heic_gives_as_code_points_are_told() -> None:
    image = Image.fromarray(_smooth())
    data = _saved(image, "HEIF", color_primaries=12, transfer_characteristics=16)
    assert "primaries 12, transfer 16" in read(data).notes[0]
    assert read(_saved(image, "HEIF")).notes == ()


@needs_heif
def test_the_primary_picture_of_several_is_read() -> None:
    frames = [Image.new("RGB", (64, 64), (80 * k, 0, 0)) for k in range(3)]
    options = {"save_all": True, "append_images": frames[1:], "primary_index": 1, "quality": 95}
    picture = read(_saved(frames[0], "HEIF", **options))
    assert picture.frames_total == 3
    assert abs(int(picture.pixels[..., 0].mean()) - 80) < 4


@needs_jxl
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [10, 12, 16])
def test_deep_jpeg_xl_is_read_exactly(channels: int, depth: int) -> None:
    samples = _noise(9, 11, channels, dtype="uint16") >> (16 - depth)
    samples[0, 0] = (1 << depth) - 1
    squeezed = samples[..., 0] if channels == 1 else samples
    data = imagecodecs.jpegxl_encode(squeezed, lossless=True, bitspersample=depth)
    stored = decoders.decode(io.BytesIO(data), max_pixels=99)
    wanted = np.rint(samples * (65535 / ((1 << depth) - 1))).astype(np.uint16)
    colors = 1 if channels < 3 else 3
    np.testing.assert_array_equal(stored.pixels, wanted[..., :colors])
    assert stored.pixels[0, 0, 0] == 65535
    if channels in (2, 4):
        np.testing.assert_array_equal(stored.alpha, wanted[..., -1])
    else:
        assert stored.alpha is None
    # imagecodecs declares 16 bits as linear light: such colours are managed like any others.
    picture = read(data)
    assert picture.depth_bits == 16
    profile = stored.info.get("icc_profile")
    if colors == 3:
        np.testing.assert_array_equal(picture.pixels, metadata.to_srgb(stored.pixels, profile))
        assert picture.pixels.mean() > stored.pixels.mean() * 1.2


@needs_jxl
def test_float_and_animated_jpeg_xl_are_told() -> None:
    values = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32)
    assert "8 bits" in read(imagecodecs.jpegxl_encode(values, lossless=True)).notes[0]
    frames = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (10, 100, 200)])
    picture = read(imagecodecs.jpegxl_encode(frames, lossless=True))
    assert (picture.pixels == 10).all()
    assert "first frame" in picture.notes[0]


@pytest.mark.parametrize("format", BOTH)
def test_the_limit_of_pixels_comes_before_decoding(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(Picture(pixels=_smooth(64, 64)), format=format)
    if format == "JXL":
        import pillow_jxl.JpegXLImagePlugin as plugin

        # The plugin decodes on opening: it must not even be asked.
        monkeypatch.setattr(plugin, "Decoder", None)
    with pytest.raises(PictureReadError, match=r"4,096 pixels.*--max-pixels"):
        read(data, max_pixels=4095)


@pytest.mark.parametrize("format", BOTH)
def test_damage_is_refused_or_survived(format: str) -> None:
    picture = Picture(pixels=_smooth(48, 64), exif=_exif(1).tobytes(), xmp=b"<x/>")
    whole = encode(picture, format=format)
    read(whole)
    refused = []
    random = np.random.default_rng(5)
    for case in range(24 + 120):
        broken = bytearray(whole)
        if case < 24:
            del broken[len(whole) * case // 24 :]
        elif case < 84:
            broken[random.integers(min(500, len(whole)))] = random.integers(256)
        else:
            broken[random.integers(len(whole))] ^= 1 << random.integers(8)
        try:
            read(bytes(broken))
        except PictureReadError as error:
            refused.append(str(error))
    assert len(refused) > 24
    assert all(line.isprintable() and "libjxl" not in line for line in refused)


@pytest.mark.parametrize("format", BOTH)
def test_write_and_the_plugin_without_an_encoder(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / f"a{FORMATS[format].suffixes[0]}"
    write(Picture(pixels=_smooth()), target)
    assert read(target).format == format
    monkeypatch.delitem(Image.SAVE, format)
    with pytest.raises(PictureWriteError, match="has no encoder"):
        write(Picture(pixels=_smooth()), target)


# ---------------------------------------------------------------------------- the JPEG XL header


@pytest.mark.parametrize("size", [(1, 1), (8, 256), (40, 24), (5, 1234), (160, 90), (300, 513)])
@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 12), ("float32", 32)])
def test_the_header_of_jpeg_xl(size: tuple[int, int], dtype: str, bits: int) -> None:
    options = {"bitspersample": bits} if dtype == "uint16" else {}
    samples = np.zeros((size[1], size[0], 3), dtype)
    data = bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=1, **options))
    header = jxl_header.read_header(data)
    assert (header.width_px, header.height_px, header.depth_bits) == (*size, bits)
    assert (header.is_float, header.is_animated) == (dtype == "float32", False)
    if data.startswith(JXL_CONTAINER):
        # libjxl puts 32-bit floats into one by itself.
        return
    # In a container, in parts.
    parts = [b"\0\0\0\0" + data[:5], b"\x80\0\0\1" + data[5:]]
    boxes = b"".join((8 + len(p)).to_bytes(4, "big") + b"jxlp" + p for p in parts)
    assert jxl_header.read_header(JXL_CONTAINER + boxes) == header
    for cut in (2, 3):
        with pytest.raises(ValueError, match="cut off"):
            jxl_header.read_header(data[:cut])
    with pytest.raises(ValueError, match="no JPEG XL"):
        jxl_header.read_header(JXL_CONTAINER)
