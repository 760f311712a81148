"""Files that are read row by row give the very samples, tags and refusals of `pictures.read`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from waifu4x import headers, pictures
from waifu4x.codecs import metadata
from waifu4x.errors import PictureReadError
from waifu4x.huge import reading, vips
from waifu4x.pictures import Picture

pyvips = pytest.importorskip("pyvips")

HEIGHT, WIDTH = 39, 52
FACTS = ("icc_profile", "in_profile_space", "exif", "xmp", "dpi", "format", "frames_total", "notes")


def samples(count: int, *, bits: int = 8) -> np.ndarray:
    """Waves with some grain, (H, W, count)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [127 + 100 * np.sin(x / 7 + y / 11 + k) for k in range(count)]
    grain = np.random.default_rng(0).normal(0, 9, (HEIGHT, WIDTH, count))
    values = np.clip(np.stack(waves, axis=2) + grain, 0, 255)
    return (values * 257).astype(np.uint16) if bits == 16 else values.astype(np.uint8)


def image(mode: str) -> Image.Image:
    count = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = samples(count)
    return Image.fromarray(values[..., 0] if count == 1 else values)


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def tiff(count: int, *, bits: int = 8, **options: Any) -> bytes:
    """By libvips, which knows tiles and BigTIFF."""
    names = {8: ("b-w", "srgb"), 16: ("grey16", "rgb16")}[bits]
    made = pyvips.Image.new_from_array(samples(count, bits=bits))
    return made.copy(interpretation=names[count > 2]).tiffsave_buffer(**options)


def profile(primaries: str) -> bytes:
    """Of RGB with a gamma of 2.2: `wide` has colours that sRGB has not, `narrow` has none."""
    other = bytearray(metadata.srgb_profile())
    names = {b"rXYZ": 0, b"gXYZ": 1, b"bXYZ": 2}
    # Primaries in D50, of Display P3 and of a space inside sRGB.
    columns = {
        "wide": [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)],
        "narrow": [(0.40, 0.25, 0.05), (0.38, 0.65, 0.15), (0.1842, 0.1, 0.6249)],
    }[primaries]
    count = int.from_bytes(other[128:132], "big")
    for entry in range(132, 132 + 12 * count, 12):
        tag = bytes(other[entry : entry + 4])
        if tag in names:
            at = int.from_bytes(other[entry + 4 : entry + 8], "big") + 8
            for value in columns[names[tag]]:
                other[at : at + 4] = round(value * 65536).to_bytes(4, "big", signed=True)
                at += 4
    return bytes(other)


def exif(**tags: int) -> bytes:
    data = Image.Exif()
    data[0x010F] = "maker"
    data[274] = tags.get("orientation", 1)
    return data.tobytes()


KINDS: dict[str, Callable[[], bytes]] = {
    **{f"png {m}": lambda m=m: saved(image(m), "PNG") for m in ("L", "LA", "RGB", "RGBA")},
    **{
        f"png of {count} times 16 bits": lambda c=count: bytes(
            imagecodecs.png_encode(np.squeeze(samples(c, bits=16)))
        )
        for count in (1, 2, 3, 4)
    },
    "png of 1 bit": lambda: saved(image("L").convert("1"), "PNG"),
    "png of 16 colours": lambda: saved(image("RGB").quantize(16), "PNG"),
    "png of 99 clear colours": lambda: saved(image("RGBA").quantize(99), "PNG"),
    "png of gray colours": lambda: saved(image("L").convert("P"), "PNG"),
    "png with a clear colour": lambda: saved(image("RGB"), "PNG", transparency=(1, 2, 3)),
    "png with tags": lambda: saved(
        image("RGB"), "PNG", exif=exif(), dpi=(300, 300), icc_profile=metadata.srgb_profile()
    ),
    "png that is mirrored": lambda: saved(image("RGBA"), "PNG", exif=exif(orientation=2)),
    **{f"jpeg {s}": lambda s=s: saved(image("RGB"), "JPEG", subsampling=s) for s in (0, 1, 2)},
    "jpeg L": lambda: saved(image("L"), "JPEG", quality=30),
    "jpeg with tags": lambda: saved(
        image("RGB"), "JPEG", exif=exif(), dpi=(72, 144), xmp=b"<x:xmpmeta/>"
    ),
    "jpeg that is mirrored": lambda: saved(image("RGB"), "JPEG", exif=exif(orientation=2)),
    "jpeg CMYK": lambda: saved(image("RGB").convert("CMYK"), "JPEG"),
    "jpeg CMYK with a profile of RGB": lambda: saved(
        image("RGB").convert("CMYK"), "JPEG", icc_profile=metadata.srgb_profile()
    ),
    "in a wider space": lambda: saved(image("RGB"), "PNG", icc_profile=profile("wide")),
    "in a space inside sRGB": lambda: saved(image("RGB"), "PNG", icc_profile=profile("narrow")),
    "with a broken profile": lambda: saved(image("RGB"), "PNG", icc_profile=b"none"),
    "gray with a profile of RGB": lambda: saved(
        image("L"), "PNG", icc_profile=metadata.srgb_profile()
    ),
    **{
        f"tiff {mode} {packed}": lambda m=mode, c=packed: saved(image(m), "TIFF", compression=c)
        for mode in ("L", "RGB", "RGBA")
        for packed in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "tiff of 1 bit": lambda: saved(image("L").convert("1"), "TIFF", compression="group4"),
    "tiff of 99 colours": lambda: saved(image("RGB").quantize(99), "TIFF"),
    "tiff of gray colours": lambda: saved(image("L").convert("P"), "TIFF"),
    "tiff CMYK": lambda: saved(image("RGB").convert("CMYK"), "TIFF"),
    "tiff in JPEG": lambda: saved(image("RGB"), "TIFF", compression="jpeg"),
    "tiff of white 0": lambda: tiff(1, miniswhite=True),
    **{
        f"tiff of {count} times {bits} bits, {'big, ' if big else ''}{options}": (
            lambda c=count, b=bits, g=big, o=options: tiff(c, bits=b, bigtiff=g, **o)
        )
        for count, bits, big in [(1, 16, False), (2, 16, True), (3, 8, True), (4, 16, False)]
        for options in (
            {"compression": "deflate", "predictor": "horizontal"},
            {"tile": True, "tile_width": 32, "tile_height": 16, "compression": "lzw"},
        )
    },
    "tiff of two pages": lambda: saved(
        image("RGB"), "TIFF", save_all=True, append_images=[image("RGB")]
    ),
}


def read(data: bytes, **options: Any) -> reading.Reading:
    header = headers.read(data)
    given = {"max_pixels": 10**6, "whole": False, "ask_alpha": False, **options}
    return reading.read(data, header, **given)


def together(made: reading.Reading, *, step: int = 10, overlap: int = 3) -> Picture:
    """All rows, some of them asked for twice."""
    pixels, alphas, height = [], [], made.source.height_px
    with made.source.open() as rows:
        for top in range(0, height, step):
            start = max(0, top - overlap)
            strip = rows(start, min(top + step + overlap, height))
            own = slice(top - start, top - start + step)
            pixels.append(strip.pixels[own])
            alphas += [] if strip.alpha is None else [strip.alpha[own]]
    return Picture(pixels=np.concatenate(pixels), alpha=np.concatenate(alphas) if alphas else None)


def assert_same(got: Picture, wanted: Picture) -> None:
    assert got.pixels.dtype == wanted.pixels.dtype
    assert np.array_equal(got.pixels, wanted.pixels)
    assert (got.alpha is None) == (wanted.alpha is None)
    if got.alpha is not None and wanted.alpha is not None:
        assert np.array_equal(got.alpha, wanted.alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_row_by_row_as_at_once(kind: str) -> None:
    data = KINDS[kind]()
    wanted, header = pictures.read(data), headers.read(data)
    assert reading.why_whole(data, header) is None
    made = read(data)
    for _ in range(2):  # it can be read again
        assert_same(together(made), wanted)
    source = made.source
    assert (source.width_px, source.height_px) == (wanted.width_px, wanted.height_px)
    assert (source.channels, source.has_alpha) == (wanted.pixels.shape[2], wanted.alpha is not None)
    assert source.dtype == wanted.pixels.dtype
    for name in FACTS:
        # Pillow cannot read what `pictures.read` makes of the tags of a BigTIFF.
        if name != "exif" or data[2:3] != b"+":
            assert getattr(made.facts, name) == getattr(wanted, name), name


def test_what_the_colours_are_is_not_decided_by_the_first_pixel() -> None:
    """Gray above, and one green at the end that sRGB does not have."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    inside = saved(Image.fromarray(pixels), "PNG", icc_profile=profile("wide"))
    assert not read(inside).facts.in_profile_space
    pixels[-1, -1] = (0, 255, 0)
    outside = saved(Image.fromarray(pixels), "PNG", icc_profile=profile("wide"))
    made, wanted = read(outside), pictures.read(outside)
    assert made.facts.in_profile_space
    assert made.facts.notes == wanted.notes == pictures.read(outside).notes
    assert "lie outside sRGB" in made.facts.notes[0]
    assert_same(together(made), wanted)
    colours = Image.fromarray(pixels).quantize(3)
    assert read(saved(colours, "PNG")).source.channels == 3


def test_transparency_is_looked_for_where_it_is_asked_for() -> None:
    clear = samples(4)
    clear[..., 3] = 255
    opaque = saved(Image.fromarray(clear), "PNG")
    clear[-1, 0, 3] = 254
    almost = saved(Image.fromarray(clear), "PNG")
    assert read(almost, ask_alpha=True).facts.is_transparent
    assert not read(opaque, ask_alpha=True).facts.is_transparent
    assert not read(almost).facts.is_transparent
    assert read(almost, ask_alpha=True, whole=True).facts.is_transparent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (saved(image("RGB"), "WEBP", lossless=True), "WEBP is read as a whole"),
        (saved(image("RGB"), "BMP"), "BMP is read as a whole"),
        (saved(image("RGB"), "JPEG", progressive=True), "it is progressive"),
        (
            saved(image("L"), "PNG", save_all=True, append_images=[image("L").rotate(180)]),
            "it is an animation",
        ),
        (saved(image("RGB"), "PNG", exif=exif(orientation=6)), "it is turned by its EXIF data"),
        (saved(image("RGB"), "TIFF", tiffinfo={274: 3}), "it is a TIFF of a rarer kind"),
        (saved(image("L").convert("F"), "TIFF"), "it is a TIFF of a rarer kind"),
        (tiff(4, premultiply=True), "it is a TIFF of a rarer kind"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_decoded_as_a_whole(data: bytes, why: str) -> None:
    assert reading.why_whole(data, headers.read(data)) == why
    made, wanted = read(data, whole=True), pictures.read(data)
    assert_same(together(made), wanted)
    assert (made.facts.notes, made.facts.exif) == (wanted.notes, wanted.exif)


def test_an_interlaced_png_is_decoded_as_a_whole() -> None:
    made = pyvips.Image.new_from_array(samples(3)).copy(interpretation="srgb")
    data = made.pngsave_buffer(interlace=True)
    assert reading.why_whole(data, headers.read(data)) == "it is interlaced"


def test_rows_that_are_compressed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip, or a tile, of many megabytes must lie in memory."""
    one_strip = saved(image("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={278: HEIGHT})
    raw = saved(image("RGB"), "TIFF", tiffinfo={278: HEIGHT})
    tiles = tiff(3, tile=True, tile_width=64, tile_height=64)
    monkeypatch.setattr("waifu4x.huge.kinds._MOST_PIECE_BYTES", 1000)
    for data, why in [(one_strip, "too many"), (tiles, "too many"), (raw, None)]:
        found = reading.why_whole(data, headers.read(data))
        assert (found or "").startswith(why or "")
        assert (found is None) == (why is None)


def test_without_libvips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = saved(image("RGB"), "PNG")
    assert "pip install 'waifu4x[huge]'" in str(reading.why_whole(data, headers.read(data)))


@pytest.mark.parametrize(
    "kind",
    [
        "png RGB",
        "png of 3 times 16 bits",
        "jpeg 2",
        *(f"tiff RGB {packed}" for packed in ("raw", "tiff_lzw", "tiff_adobe_deflate")),
        "tiff in JPEG",
        "tiff of 4 times 16 bits, {'tile': True, 'tile_width': 32, 'tile_height': 16, "
        "'compression': 'lzw'}",
    ],
)
def test_damaged_files_are_refused_in_a_line(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = KINDS[kind]()
    header = headers.read(whole)
    path = tmp_path / "damaged"
    for share in (0.3, 0.6, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(PictureReadError) as caught:
            together(reading.read(path, header, max_pixels=10**6, whole=False, ask_alpha=False))
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damage_within_is_refused_where_it_is_refused_at_once() -> None:
    """Or what comes is what `pictures.read` gives: some damage cannot be seen."""
    refused = 0
    for kind, make in KINDS.items():
        if "tiff" not in kind and "16 bits" not in kind:
            continue
        data = bytearray(make())
        at = len(data) // 3
        data[at : at + 20] = bytes(77 ^ byte for byte in data[at : at + 20])
        try:
            wanted = pictures.read(bytes(data))
        except PictureReadError:
            with pytest.raises(PictureReadError):
                together(read(bytes(data)))
            refused += 1
            continue
        with contextlib.suppress(PictureReadError):  # of fax data it lets less pass
            assert_same(together(read(bytes(data))), wanted)
    assert refused > 10


def test_a_file_that_changes_between_two_readings(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image("RGB").save(path)
    made = reading.read(path, headers.read(path), max_pixels=10**6, whole=False, ask_alpha=False)
    image("RGB").resize((WIDTH, 20)).save(path)
    with pytest.raises(PictureReadError, match="was changed while it was read"):
        together(made)
    path.unlink()
    with pytest.raises(PictureReadError, match="does not exist"):
        together(made)


def test_a_loader_reads_its_own_format_only(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(saved(image("RGB"), "PNG"))
    with pytest.raises(PictureReadError), vips.opened(path, "JPEG"):
        pass


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """And those that libvips would take for options."""
    for name in ("a[page=1].png", "é\udcff.png"):
        path = tmp_path / name
        try:
            image("L").save(path)
        except (OSError, UnicodeEncodeError):
            continue  # file systems of macOS and Windows have no such names
        with vips.opened(path, "PNG") as decoding:
            assert decoding.next_rows(HEIGHT).shape == (HEIGHT, WIDTH, 1)


def test_profiles_are_what_they_are_taken_for() -> None:
    for name in ("wide", "narrow"):
        assert metadata.profile_space(profile(name)) == "RGB"
        assert not metadata.is_srgb(profile(name))
        assert ImageCms.ImageCmsProfile(io.BytesIO(profile(name)))
