"""What of a picture survives being enlarged and written: every mode, format and profile, as tables.

Each test goes the real way: the bytes of a small chart, made by other code than ours, are read,
enlarged twice, encoded and read back. What is to be expected is computed from `FORMATS` where that
says it, and stands in the tables here where it does not. `rendered()` is the whole matrix as text.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from waifu4x import animations, pictures
from waifu4x.codecs import metadata, plugins
from waifu4x.codecs.formats import FORMATS
from waifu4x.pictures import Picture
from waifu4x.resample import Kernel
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

imagecodecs = pytest.importorskip("imagecodecs")
skimage_color = pytest.importorskip("skimage.color")
tifffile = pytest.importorskip("tifffile")

EXIF = 34665
PATCH = 8
ROWS, COLUMNS = 3, 4
# Flat patches: their centres are what they were, whatever a kernel or a codec does to the edges.
MUTED = np.array(
    [
        [[128, 128, 128], [150, 110, 100], [100, 140, 110], [110, 115, 160]],
        [[200, 190, 185], [60, 70, 75], [170, 150, 90], [90, 150, 160]],
        [[150, 100, 140], [120, 120, 80], [40, 40, 45], [220, 215, 225]],
    ],
    dtype=np.uint8,
)
SATURATED = np.array(
    [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]],
        [[255, 255, 0], [0, 255, 255], [255, 0, 255], [0, 0, 0]],
        [[255, 128, 0], [0, 200, 100], [100, 0, 200], [230, 30, 60]],
    ],
    dtype=np.uint8,
)
ALPHA = np.array([[255, 255, 255, 255], [255, 200, 255, 255], [160, 255, 0, 255]], dtype=np.uint8)


def _needs(format: str) -> None:
    if format in plugins.PLUGINS and (reason := plugins.problem(format, writing=True)):
        pytest.skip(reason)


def _chart(patches: np.ndarray, *, patch: int = PATCH) -> np.ndarray:
    return patches.repeat(patch, axis=0).repeat(patch, axis=1)


def _centres(samples: np.ndarray, *, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """(rows, columns, ...): the means of the middle quarter of each patch, as float."""
    height, width = samples.shape[0] // rows, samples.shape[1] // columns
    assert (height * rows, width * columns) == samples.shape[:2]
    blocks = samples.astype(np.float64).reshape(rows, height, columns, width, *samples.shape[2:])
    middle = blocks[:, height * 3 // 8 : height * 5 // 8, :, width * 3 // 8 : width * 5 // 8]
    return middle.mean(axis=(1, 3))


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    """By Pillow, with the least loss that it offers."""
    gray = image.mode in ("1", "L", "I;16")
    best: dict[str, dict[str, object]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 100, "subsampling": "4:0:0" if gray else "4:4:4"},
        "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
        "JXL": {"lossless": True},
    }
    file = io.BytesIO()
    image.save(file, format, **best.get(format, {}) | options)
    return file.getvalue()


def _enlarge(picture: Picture, kernel: Kernel = "nearest") -> Picture:
    return Upscaler(model=kernel).upscale(picture, Target(scale=2))[0]


def _written(picture: Picture, format: str, **options: object) -> bytes:
    """By ours, with the least loss that it offers."""
    facts = FORMATS[format]
    if facts.quality is not None:
        options |= {"lossless": True} if facts.lossless else {"quality": 100}
    return pictures.encode(picture, format=format, **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------- modes x formats


@dataclass(frozen=True, kw_only=True)
class Mode:
    """What a picture of one of Pillow's modes is, or of 16-bit colour, which Pillow has not."""

    gray: bool = False
    alpha: bool = False
    deep: bool = False
    coarse: float = 0.0
    """By how many levels of 255 the mode itself, or its 8-bit conversions, are off."""


MODES: dict[str, Mode] = {
    "1": Mode(gray=True),
    "L": Mode(gray=True),
    "LA": Mode(gray=True, alpha=True),
    "La": Mode(gray=True, alpha=True, coarse=1.0),
    "P": Mode(),
    "P+tRNS": Mode(alpha=True),
    "PA": Mode(alpha=True),
    "RGB": Mode(),
    "RGBA": Mode(alpha=True),
    "RGBa": Mode(alpha=True, coarse=1.0),
    "CMYK": Mode(coarse=1.0),
    "YCbCr": Mode(coarse=2.0),
    "LAB": Mode(coarse=2.5),
    "HSV": Mode(coarse=3.0),
    "I": Mode(gray=True, deep=True),
    "F": Mode(gray=True, deep=True),
    "I;16": Mode(gray=True, deep=True),
    "I;16B": Mode(gray=True, deep=True),
    "LA;16": Mode(gray=True, alpha=True, deep=True),
    "RGB;16": Mode(deep=True),
    "RGBA;16": Mode(alpha=True, deep=True),
    "RGBa;16": Mode(alpha=True, deep=True, coarse=0.01),
    "I;16_inverted": Mode(gray=True, deep=True),
}

# What can be stored: by Pillow, else by imagecodecs or tifffile. Left out is what Pillow itself
# makes 8 bits of before it writes (I, F, I;16 in WebP, AVIF, GIF): nothing of ours could keep that.
STORED: dict[str, str] = {
    "PNG": "1 L LA P P+tRNS RGB RGBA I;16 I;16B LA;16 RGB;16 RGBA;16",
    "JPEG": "1 L RGB CMYK YCbCr",
    "WEBP": "1 L LA P P+tRNS PA RGB RGBA RGBa CMYK YCbCr LAB HSV",
    "AVIF": "1 L LA P P+tRNS PA RGB RGBA RGBa CMYK YCbCr LAB HSV RGB;16 RGBA;16",
    "TIFF": "1 L LA La P PA RGB RGBA RGBa CMYK YCbCr LAB I F I;16 I;16B "
    "I;16_inverted LA;16 RGB;16 RGBA;16 RGBa;16",
    "HEIF": "1 L LA P RGB RGBA I;16 RGB;16 RGBA;16",
    "JXL": "L LA RGB RGBA F I;16 LA;16 RGB;16 RGBA;16",
    "BMP": "1 L P RGB",
    "GIF": "1 L P P+tRNS RGB RGBA",
}

# Without alpha, and with it: does gray come back as gray?
KEEPS_GRAY: dict[str, tuple[bool, bool]] = {
    "PNG": (True, True),
    "JPEG": (True, False),
    "WEBP": (False, False),
    "AVIF": (True, False),
    "TIFF": (True, True),
    "HEIF": (True, False),
    "JXL": (True, True),
    "BMP": (True, False),
    "GIF": (True, True),
}

# Largest error at the centre of a patch, in levels of 255, at the best quality that there is. The
# lossless ones are exact; GIF has 256 colours, and the chart fewer. AVIF rounds to YCbCr, which is
# up to 2 levels, in the source and again in the output.
LOSSY = {"JPEG": 3.0, "AVIF": 4.0}
# Bits of the samples in a deep file: what is stored, not what is held in memory.
STORED_BITS = {"AVIF": 10, "HEIF": 10}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix: a mode in a format, enlarged and written as that format again."""

    mode: str
    format: str
    gray: bool
    alpha: bool
    depth_bits: int
    says: str
    """What `losses` must tell; empty: nothing."""
    off: float
    """Levels of 255."""


def matrix() -> Iterator[Row]:
    """What is to be expected of every mode in every format that stores it."""
    for format, names in STORED.items():
        facts = FORMATS[format]
        for name in names.split():
            mode = MODES[name]
            alpha = mode.alpha and facts.holds_alpha
            reduced = mode.deep and not facts.holds_16_bit
            yield Row(
                mode=name,
                format=format,
                gray=mode.gray and KEEPS_GRAY[format][alpha],
                alpha=alpha,
                depth_bits=16 if mode.deep and facts.holds_16_bit else 8,
                says="rounded" if reduced else "",
                off=mode.coarse + LOSSY.get(format, 0.0) + (0.51 if reduced else 0.0),
            )


def rendered() -> str:
    """The matrix for readers: a line for each mode, a column for each format."""
    rows = {(row.mode, row.format): row for row in matrix()}

    def cell(row: Row | None) -> str:
        if row is None:
            return "-"
        kind = ("gray" if row.gray else "rgb") + ("+a" if row.alpha else "")
        return f"{kind} {row.depth_bits}" + ("!" if row.says else "")

    lines = [f"{'mode':8}" + "".join(f"{format:>10}" for format in FORMATS)]
    for mode in MODES:
        cells = "".join(f"{cell(rows.get((mode, format))):>10}" for format in FORMATS)
        lines.append(f"{mode:8}" + cells)
    return "\n".join(lines)


def _gray_patches() -> np.ndarray:
    return np.asarray(Image.fromarray(MUTED).convert("L"))


def _deep(levels: np.ndarray) -> np.ndarray:
    """8 bits as 16, with values between the 256 levels: not one is a multiple of 257."""
    return levels.astype(np.uint16) * 257 + 128


def _image_of(mode: str) -> Image.Image:
    alpha = Image.fromarray(_chart(ALPHA))
    rgb, gray = Image.fromarray(_chart(MUTED)), Image.fromarray(_chart(_gray_patches()))
    if mode == "1":
        return Image.fromarray(np.asarray(gray) > 120)
    if mode in ("L", "LA", "La"):
        if mode != "L":
            gray.putalpha(alpha)
        return gray if gray.mode == mode else gray.convert(mode)
    if mode in ("P", "P+tRNS", "PA"):
        image = rgb.quantize(16, method=Image.Quantize.FASTOCTREE, kmeans=3)
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(alpha)
        elif mode == "P+tRNS":
            index = image.getpixel((2 * PATCH + 1, 2 * PATCH + 1))
            image.info["transparency"] = index
        return image
    if mode in ("RGBA", "RGBa"):
        rgb.putalpha(alpha)
        return rgb.convert(mode) if mode == "RGBa" else rgb
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB")
        assert converted is not None
        return converted
    deep = _deep(_chart(_gray_patches()))
    if mode == "I":
        return Image.fromarray(deep.astype(np.int32))
    if mode == "F":
        return Image.fromarray((deep / 65535).astype(np.float32))
    if mode.startswith("I;16"):
        image = Image.fromarray(deep)
        return image if mode == "I;16" else image.convert("I").convert(mode)
    return rgb if mode == "RGB" else rgb.convert(mode)


def _stored(mode: str, format: str) -> bytes:
    """The file of a mode that Pillow, or else another library, writes."""
    if mode == "La" or (mode == "RGBa" and format == "TIFF"):
        image = _image_of(mode)
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.frombuffer(image.tobytes(), np.uint8).reshape(*image.size[::-1], -1),
            photometric="minisblack" if mode == "La" else "rgb",
            extrasamples=["assocalpha"],
            planarconfig="contig",
            metadata=None,
        )
        return file.getvalue()
    if mode == "I;16_inverted":
        return _deep_stored("inverted", format)
    if mode.endswith(";16") and mode != "I;16":
        return _deep_stored(mode.partition(";")[0], format)
    if mode in ("I;16", "F") and format in ("HEIF", "JXL"):
        return _deep_stored("F" if mode == "F" else "L", format)
    return _saved(_image_of(mode), format)


def _deep_stored(bands: str, format: str) -> bytes:
    patches = _gray_patches()[..., None] if bands[0] in "LFi" else MUTED
    samples = _deep(_chart(patches))
    if format == "JXL":
        # libjxl's encoder says of deep samples that they are linear light.
        values = samples / 65535
        linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
        samples = np.rint(linear * 65535).astype(np.uint16)
    if bands[-1] in "Aa":
        samples = np.concatenate(
            [samples, _chart(ALPHA)[..., None].astype(np.uint16) * 257], axis=2
        )
    if bands.endswith("a"):
        samples[..., :-1] = np.rint(samples[..., :-1] / 65535 * samples[..., -1:])
    plain = samples[..., 0] if samples.shape[2] == 1 else samples
    if format == "PNG":
        return imagecodecs.png_encode(plain)
    if format == "JXL":
        plain = (plain / 65535).astype(np.float32) if bands == "F" else plain
        return imagecodecs.jpegxl_encode(plain, lossless=True)
    if format == "AVIF":
        return imagecodecs.avif_encode(plain >> 6, level=100, bitspersample=10, pixelformat="444")
    if format == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        size = plain.shape[1::-1]
        file = io.BytesIO()
        heif = pillow_heif.from_bytes(mode=f"{bands};16", size=size, data=plain.tobytes())
        heif.save(file, quality=-1, chroma=444, matrix_coefficients=0)
        return file.getvalue()
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        65535 - plain if bands == "inverted" else samples,
        photometric={"L": "minisblack", "i": "miniswhite", "R": "rgb"}[bands[0]],
        extrasamples={"A": ["unassalpha"], "a": ["assocalpha"]}.get(bands[-1]),
        planarconfig="contig",
        metadata=None,
    )
    return file.getvalue()


def _wanted(row: Row) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha of the patches, in levels of 255."""
    mode = MODES[row.mode]
    alpha = ALPHA.astype(float) if mode.alpha else None
    if row.mode == "P+tRNS":
        alpha = np.where(ALPHA == 0, 0.0, 255.0)
    if row.mode == "RGBA" and row.format == "GIF":
        # Pillow writes what is not fully transparent as opaque.
        alpha = np.where(ALPHA == 0, 0.0, 255.0)
    if row.mode == "1":
        return np.where(_gray_patches() > 120, 255.0, 0.0)[..., None], alpha
    values = (_gray_patches()[..., None] if mode.gray else MUTED).astype(float)
    return (values + 128 / 257 if mode.deep else values), alpha


@pytest.mark.parametrize("row", [*matrix()], ids=lambda row: f"{row.mode} in {row.format}")
def test_mode(row: Row) -> None:
    _needs(row.format)
    data = _stored(row.mode, row.format)
    picture = pictures.read(data)
    assert picture.format == row.format
    # What is read is never less than what is stored.
    assert picture.depth_bits == (16 if MODES[row.mode].deep else 8)
    large = _enlarge(picture)
    losses = " ".join(pictures.losses(large, row.format))
    assert (row.says in losses) if row.says else not losses
    back = pictures.read(_written(large, row.format))
    assert (back.width_px, back.height_px) == (2 * COLUMNS * PATCH, 2 * ROWS * PATCH)
    assert back.is_gray == row.gray
    assert back.depth_bits == row.depth_bits
    colors, alpha = _wanted(row)
    full = np.iinfo(back.pixels.dtype).max
    stored_off = 255 / (2 ** STORED_BITS.get(row.format, 16) - 1) if MODES[row.mode].deep else 0.0
    off = np.abs(_centres(back.pixels) / full * 255 - colors)
    seen = np.ones((ROWS, COLUMNS), bool) if alpha is None else alpha > 0
    assert off[seen].max() <= row.off + stored_off + 1e-6
    if row.depth_bits == 16:
        assert (back.pixels % 257 != 0).any(), "no more than 256 levels came back"
    assert back.is_transparent == row.alpha
    if row.alpha:
        assert alpha is not None
        assert back.alpha is not None
        off = np.abs(_centres(back.alpha) / full * 255 - alpha)
        assert off.max() <= LOSSY.get(row.format, 0.0) + stored_off + 1e-6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P+tRNS", "RGB", "RGBA", "I;16", "RGBA;16"])
def test_mode_by_a_filter(mode: str) -> None:
    """Nearest copies pixels; a filter goes through float, where alpha and depth could get lost."""
    picture = pictures.read(_stored(mode, "PNG"))
    large = _enlarge(picture, "bicubic")
    back = pictures.read(_written(large, "PNG"))
    (row,) = (row for row in matrix() if (row.mode, row.format) == (mode, "PNG"))
    assert (back.is_gray, back.depth_bits) == (row.gray, row.depth_bits)
    colors, alpha = _wanted(row)
    full = np.iinfo(back.pixels.dtype).max
    seen = np.ones((ROWS, COLUMNS), bool) if alpha is None else alpha > 0
    assert np.abs(_centres(back.pixels) / full * 255 - colors)[seen].max() < 0.01
    if alpha is not None:
        assert back.alpha is not None
        assert np.abs(_centres(back.alpha) / full * 255 - alpha).max() < 0.01


# ------------------------------------------------------------------------ orientation and metadata

# Where the corners (top left, top right, bottom left, bottom right) of what is stored are shown;
# EXIF 2.32, table 6.
SHOWN: dict[int, str] = {
    1: "ABCD",
    2: "BADC",
    3: "DCBA",
    4: "CDAB",
    5: "ACBD",
    6: "CADB",
    7: "DBCA",
    8: "BDAC",
}
CORNERS = {"A": (200, 60, 60), "B": (60, 170, 60), "C": (60, 60, 190), "D": (220, 220, 220)}
CARRIES_METADATA = [name for name, facts in FORMATS.items() if facts.holds_metadata]
# In a JPEG XL the codestream tells how to turn; EXIF has no say (ISO/IEC 18181-2, annex A).
TURNED_BY_EXIF = {name: name != "JXL" for name in CARRIES_METADATA}
WIDE, HIGH = 48, 32
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="%d" exif:PixelXDimension="48">'
    b"<exif:PixelYDimension>32</exif:PixelYDimension><dc:creator>me</dc:creator></r></x:xmpmeta>"
)


def _marked() -> np.ndarray:
    corners = np.array([[CORNERS["A"], CORNERS["B"]], [CORNERS["C"], CORNERS["D"]]], np.uint8)
    return corners.repeat(HIGH // 2, axis=0).repeat(WIDE // 2, axis=1)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "Maker"
    exif[282], exif[283], exif[296] = 200.0, 100.0, 2
    exif[EXIF] = {36867: "2020:01:02 03:04:05", 40962: WIDE, 40963: HIGH}
    loaded = Image.Exif()
    loaded.load(exif.tobytes())
    return loaded


def _tagged(format: str, orientation: int) -> bytes:
    options: dict[str, object] = {"exif": _exif(orientation), "xmp": PACKET % orientation}
    if format in ("HEIF", "JXL"):
        options["exif"] = _exif(orientation).tobytes()
    if format == "PNG":
        options["pnginfo"] = text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", (PACKET % orientation).decode())
        del options["xmp"]
    if format == "TIFF":
        options["exif"] = exif = _exif(orientation)
        exif[700] = options.pop("xmp")
    if FORMATS[format].holds_dpi:
        options["dpi"] = (200, 100)
    return _saved(Image.fromarray(_marked()), format, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", CARRIES_METADATA)
def test_orientation_and_metadata(format: str, orientation: int) -> None:
    _needs(format)
    turned = orientation if TURNED_BY_EXIF[format] else 1
    width, height = (2 * WIDE, 2 * HIGH) if turned < 5 else (2 * HIGH, 2 * WIDE)
    data = _written(_enlarge(pictures.read(_tagged(format, orientation))), format)
    # Read by ours, and by Pillow alone, which must not turn it a second time.
    back = pictures.read(data)
    assert back.notes == ()
    assert (back.width_px, back.height_px) == (width, height)
    wanted = np.array([CORNERS[name] for name in SHOWN[turned]]).reshape(2, 2, 3)
    assert np.abs(_centres(back.pixels, rows=2, columns=2) - wanted).max() < 4
    assert back.dpi == pytest.approx((200, 100) if turned < 5 else (100, 200), abs=0.5)
    assert back.xmp is not None
    assert back.exif is not None
    with Image.open(io.BytesIO(data)) as file:
        exif = file.getexif()
        nested = exif.get_ifd(EXIF)
        file.load()
        assert file.size == (width, height)
    assert (exif.get(274, 1), exif[271], nested[36867]) == (1, "Maker", "2020:01:02 03:04:05")
    assert (nested[40962], nested[40963]) == (width, height)
    # Pillow takes it out of a TIFF, and the plugin out of HEIC, where they have turned the picture.
    gone = format in ("TIFF", "HEIF") and b"tiff:Orientation" not in back.xmp
    assert gone or b'tiff:Orientation="1"' in back.xmp
    assert b'XDimension="%d"' % width in back.xmp
    assert b"YDimension>%d<" % height in back.xmp
    assert b"<dc:creator>me" in back.xmp


# ---------------------------------------------------------------------------------- ICC x formats


def _cmyk_profile() -> bytes:
    """Coated paper, roughly: a table of the 16 full overprints (ICC.1:2010, 10.10 lut8Type)."""
    tones = [
        (100, 128, 128), (62, 118, 105), (58, 180, 128), (40, 145, 95),
        (88, 124, 190), (60, 90, 150), (56, 170, 165), (38, 128, 128),
    ]  # fmt: skip
    table = bytearray()
    for cyan in (0, 1):
        for magenta in (0, 1):
            for yellow in (0, 1):
                for black in (0, 1):
                    lightness, a, b = tones[cyan + 2 * magenta + 4 * yellow]
                    dark = (0, 128, 128)
                    table += bytes(dark if black else (lightness * 255 // 100, a, b))
    ramp = bytes(range(256))
    identity = b"".join((65536 * (k % 4 == 0)).to_bytes(4, "big") for k in range(9))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + bytes(table) + ramp * 3
    lut += bytes(-len(lut) % 4)
    white = b"XYZ " + bytes(4) + b"".join(n.to_bytes(4, "big") for n in (63190, 65536, 54061))
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    described = b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"test\0" + bytes(12 + 67 + 3)
    described += bytes(-len(described) % 4)
    tags, body = b"", b""
    parts = {b"desc": described, b"cprt": text, b"wtpt": white, b"A2B0": lut}
    for name, part in parts.items():
        at = 128 + 4 + 12 * len(parts) + len(body)
        tags += name + at.to_bytes(4, "big") + len(part).to_bytes(4, "big")
        body += part
    rest = len(parts).to_bytes(4, "big") + tags + body
    head = bytearray(128)
    head[0:4] = (128 + len(rest)).to_bytes(4, "big")
    head[8:12] = b"\x02\x40\0\0"
    head[12:24] = b"prtrCMYKLab "
    head[36:40] = b"acsp"
    head[68:80] = b"".join(n.to_bytes(4, "big") for n in (63190, 65536, 54061))
    return bytes(head) + rest


@functools.cache
def _profile(case: str) -> bytes | None:
    if case == "none":
        return None
    if case == "sRGB":
        return metadata.srgb_profile()
    if case == "Display P3":
        return imagecodecs.cms_profile(
            "rgb",
            whitepoint=[0.3127, 0.329, 1.0],
            primaries=[0.68, 0.32, 1.0, 0.265, 0.69, 1.0, 0.15, 0.06, 1.0],
            gamma=2.2,
        )
    if case.startswith("gray"):
        return imagecodecs.cms_profile("gray", gamma=1.8)
    if case == "CMYK":
        return _cmyk_profile()
    adobe = imagecodecs.cms_profile("adobergb")
    return adobe if case == "AdobeRGB" else adobe[:300]


@dataclass(frozen=True, kw_only=True)
class Icc:
    """What becomes of a profile."""

    mode: str = "RGB"
    """Of the picture that has it."""
    stays: bool = True
    """In a format that holds profiles; elsewhere the colours become sRGB."""
    note: str = ""
    """What reading it says."""


ICC: dict[str, Icc] = {
    "none": Icc(stays=False),
    "sRGB": Icc(),
    "Display P3": Icc(),
    "AdobeRGB": Icc(),
    "gray": Icc(mode="L"),
    "gray, with alpha": Icc(mode="LA"),
    "CMYK": Icc(mode="CMYK", stays=False, note="converted to sRGB by its ICC profile"),
    "broken": Icc(stays=False, note="ignored"),
}
# Where the picture with that profile comes from: the format itself, where it can have it.
ICC_SOURCE = {
    case: {
        name: name
        if facts.holds_profile
        and (icc.mode != "CMYK" or "CMYK" in STORED[name])
        and (icc.mode != "CMYK" or name not in ("WEBP", "AVIF"))
        and (icc.mode[0] != "L" or KEEPS_GRAY[name][icc.mode == "LA"])
        else ("TIFF" if icc.mode == "CMYK" else "PNG")
        for name, facts in FORMATS.items()
    }
    for case, icc in ICC.items()
}


# CIEDE2000, where it is not 1: AVIF is written with YCbCr of 8 bits, and one level of green of a
# dark gray is 1.2 already.
DELTA_E = {"AVIF": 2.5}


def _lab(data: bytes, *, plain: bool = False) -> np.ndarray:
    """The patches as they look through the profile that the file has, or as sRGB; plain: in any
    case as sRGB."""
    with Image.open(io.BytesIO(data)) as image:
        profile = None if plain else image.info.get("icc_profile")
        if image.mode == "LA":
            image = image.getchannel("L")
        elif image.mode not in ("L", "RGB", "CMYK"):
            image = image.convert("RGB")
        space = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}[image.mode]
        samples = np.asarray(image).astype(np.uint16) * 257
    if profile is None and space == "gray":
        samples, space = samples[..., None].repeat(3, axis=2), "rgb"
    lab = imagecodecs.cms_transform(
        np.ascontiguousarray(samples),
        profile or metadata.srgb_profile(),
        imagecodecs.cms_profile("lab4"),
        colorspace=space,
        outcolorspace="lab",
        outdtype="float32",
        intent=int(ImageCms.Intent.RELATIVE_COLORIMETRIC),
    )
    return _centres(lab)


@pytest.mark.parametrize(
    ("case", "format", "patches"), [*itertools.product(ICC, FORMATS, ("muted", "saturated"))]
)
def test_colors_look_the_same(case: str, format: str, patches: str) -> None:
    source = ICC_SOURCE[case][format]
    _needs(source)
    _needs(format)
    icc, facts = ICC[case], FORMATS[format]
    wide = case in ("Display P3", "AdobeRGB")
    if patches == "saturated" and not facts.holds_profile and wide:
        pytest.skip("sRGB, which is all that the format has, does not hold these colours")
    values = MUTED if patches == "muted" else SATURATED
    image = Image.fromarray(_chart(values)).convert(icc.mode)
    if icc.mode == "LA":
        image.putalpha(Image.fromarray(_chart(np.where(ALPHA > 0, ALPHA, 255))))
    options = {} if _profile(case) is None else {"icc_profile": _profile(case)}
    data = _saved(image, source, **options)
    picture = pictures.read(data)
    assert icc.note in " ".join(picture.notes)
    assert (picture.icc_profile is not None) == icc.stays
    large = _enlarge(picture)
    below = None if facts.holds_alpha else (0, 0, 0)
    losses = " ".join(pictures.losses(large, format, background=below))
    gray_fits = icc.mode[0] != "L" or KEEPS_GRAY[format][icc.mode == "LA" and facts.holds_alpha]
    holds = icc.stays and facts.holds_profile and gray_fits
    assert ("ICC" in losses) == (icc.stays and not holds)
    if icc.mode == "LA":
        # Seen over nothing: alpha has its own tests.
        large = large.with_pixels(large.pixels, np.maximum(large.alpha, 254))
    written = _written(large, format, background=below)
    with Image.open(io.BytesIO(written)) as file:
        profile = file.info.get("icc_profile")
    if format != "JXL":  # libjxl makes up a profile that means sRGB
        assert profile == (_profile(case) if holds else None)
    off = skimage_color.deltaE_ciede2000(_lab(data, plain=case == "broken"), _lab(written))
    assert off.max() < DELTA_E.get(format, 1.0), off


def test_the_measure_of_colors_sees_a_lost_profile() -> None:
    image = Image.fromarray(_chart(MUTED))
    for case in ("Display P3", "AdobeRGB"):
        tagged = _saved(image, "PNG", icc_profile=_profile(case))
        assert skimage_color.deltaE_ciede2000(_lab(tagged), _lab(_saved(image, "PNG"))).max() > 1.2


# ----------------------------------------------------------------------------------- across formats


def _rich(format: str) -> bytes:
    """All that the format can hold: depth, alpha, P3, EXIF, XMP, resolution."""
    facts = FORMATS[format]
    dtype = np.uint16 if facts.holds_16_bit else np.uint8
    values = _deep(MUTED) if facts.holds_16_bit else MUTED
    exif = _exif(1)
    picture = Picture(
        pixels=_chart(values),
        alpha=_chart(ALPHA).astype(dtype) * np.array(np.iinfo(dtype).max // 255, dtype)
        if facts.holds_alpha
        else None,
        icc_profile=_profile("Display P3") if facts.holds_profile else None,
        in_profile_space=facts.holds_profile,
        exif=exif.tobytes(),
        xmp=PACKET % 1,
        dpi=(200.0, 100.0),
    )
    return _written(picture, format)


@pytest.mark.parametrize("target", [*FORMATS])
@pytest.mark.parametrize("source", [*FORMATS])
def test_across_formats(source: str, target: str) -> None:
    """Each format's richest picture as every other format: what is lost is what the facts say."""
    _needs(source)
    _needs(target)
    has, holds = FORMATS[source], FORMATS[target]
    picture = pictures.read(_rich(source))
    large = _enlarge(picture)
    background = None if holds.holds_alpha else (255, 255, 255)
    told = " ".join(pictures.losses(large, target, background=background))
    back = pictures.read(_written(large, target, background=background))
    assert (back.width_px, back.height_px) == (2 * COLUMNS * PATCH, 2 * ROWS * PATCH)
    assert back.depth_bits == (16 if has.holds_16_bit and holds.holds_16_bit else 8)
    assert ("rounded" in told) == (has.holds_16_bit and not holds.holds_16_bit)
    assert back.is_transparent == (has.holds_alpha and holds.holds_alpha)
    assert ("laid over" in told) == (has.holds_alpha and not holds.holds_alpha)
    profile = _profile("Display P3") if has.holds_profile and holds.holds_profile else None
    assert back.icc_profile == profile
    assert ("ICC" in told) == (has.holds_profile and not holds.holds_profile)
    tags = has.holds_metadata and holds.holds_metadata
    assert (back.xmp is not None) == tags
    assert ("EXIF" in told) == (has.holds_metadata and not holds.holds_metadata)
    if tags:
        exif = Image.Exif()
        exif.load(back.exif or b"")
        assert exif.get_ifd(EXIF)[40962] == 2 * COLUMNS * PATCH
    if not (holds.holds_dpi or holds.holds_metadata):
        assert back.dpi is None
    elif has.holds_dpi or has.holds_metadata:
        assert back.dpi == pytest.approx((200, 100), abs=0.5)
    else:
        # A BMP always tells one; 96 is Pillow's.
        assert back.dpi == (pytest.approx((96, 96), abs=0.5) if target == "BMP" else None)


# -------------------------------------------------------------------------------- sizes, animations

SIZES = [(1, 1), (1, 13), (13, 1), (2, 2), (3, 5), (7, 31)]


@pytest.mark.parametrize("kernel", ["nearest", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", [*FORMATS])
def test_odd_sizes(format: str, size: tuple[int, int], kernel: Kernel) -> None:
    _needs(format)
    width, height = size
    level = (180, 120, 60)
    data = _saved(Image.new("RGB", size, level), format)
    picture = pictures.read(data)
    assert (picture.width_px, picture.height_px) == size
    back = pictures.read(_written(_enlarge(picture, kernel), format))
    assert (back.width_px, back.height_px) == (2 * width, 2 * height)
    assert np.abs(back.pixels.astype(int) - level).max() <= LOSSY.get(format, 0)
    # And as it is, which is what a scale of 1 comes to.
    same = pictures.read(_written(picture, format))
    assert (same.width_px, same.height_px) == size
    assert np.abs(same.pixels.astype(int) - level).max() <= LOSSY.get(format, 0)


HOLDS_SEVERAL = [*animations.ANIMATED, "TIFF", "JXL"]
FIRST, OTHERS = (200, 40, 40), ((40, 200, 40), (40, 40, 200))


def _film(format: str) -> bytes:
    shots = [Image.new("RGB", (12, 9), color) for color in (FIRST, *OTHERS)]
    if format == "JXL":
        return imagecodecs.jpegxl_encode(np.stack([np.asarray(s) for s in shots]), lossless=True)
    options = {"duration": 100} if format in animations.ANIMATED else {}
    return _saved(shots[0], format, save_all=True, append_images=shots[1:], **options)


@pytest.mark.parametrize("format", HOLDS_SEVERAL)
def test_the_first_frame(format: str) -> None:
    _needs(format)
    picture = pictures.read(_film(format))
    # Our reader of JPEG XL has no count, and says so in words.
    assert picture.frames_total == 3 or "first frame" in " ".join(picture.notes)
    data = _written(_enlarge(picture), format)
    back = pictures.read(data)
    assert (back.width_px, back.height_px, back.frames_total) == (24, 18, 1)
    assert np.abs(back.pixels.astype(int) - FIRST).max() <= LOSSY.get(format, 0)


@pytest.mark.parametrize("format", [name for name in HOLDS_SEVERAL if name != "JXL"])
def test_all_frames(format: str) -> None:
    _needs(format)
    film = animations.read(_film(format))
    large = film.with_frames([_enlarge(frame) for frame in film.frames])
    back = animations.read(animations.encode(large))
    assert back.durations_ms == film.durations_ms
    assert len(back.frames) == 3
    for frame, color in zip(back.frames, (FIRST, *OTHERS), strict=True):
        assert (frame.width_px, frame.height_px) == (24, 18)
        # AVIF and WebP are compressed at their usual quality here.
        assert np.abs(frame.pixels.astype(int) - color).max() <= 8


# --------------------------------------------------------------------------------- nothing left out


def test_the_matrix_is_complete() -> None:
    """A new format, or a mode of Pillow's that is in no table, has to be thought of here."""
    assert set(STORED) == set(KEEPS_GRAY) == set(FORMATS)
    tested = {row.mode for row in matrix()}
    assert tested == set(MODES)
    issue = "1 L LA La P P+tRNS PA RGB RGBA RGBa CMYK YCbCr LAB HSV I F I;16 I;16B"
    assert set(issue.split()) <= tested
    deep = [name for name, mode in MODES.items() if mode.deep]
    assert all(
        set(deep) & set(STORED[name].split()) for name, f in FORMATS.items() if f.holds_16_bit
    )
    text = rendered()
    assert len(text.splitlines()) == 1 + len(MODES)
    assert all(name in text for name in FORMATS)
