"""Small files that ask for gigabytes or for hours: each is refused, or read, within bounds.

All are read in one fresh process, which measures what each of them costs; here are the bounds.
"""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from PIL import Image, features

MIB = 1024 * 1024
MAX_GROWTH_MIB = 200
MAX_TIME_S = 5.0
MAX_FILE_BYTES = 3 * MIB
LIMITED = r"more than the limit"


# ------------------------------------------------------------------------------------------- PNG


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(MIB, count - at))) for at in range(0, count, MIB)]
    return b"".join(parts) + packer.flush()


def _repeated(unit: bytes, count_bytes: int) -> bytes:
    return unit * (count_bytes // len(unit))


def _chunk(name: bytes, part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))


def _png(
    width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 1, color: int = 0
) -> bytes:
    """Black pixels; the further chunks lie before them."""
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    raw_bytes = ((width * bits * samples + 7) // 8 + 1) * height
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)),
            *(_chunk(*chunk) for chunk in chunks),
            _chunk(b"IDAT", _zeros(raw_bytes)),
            _chunk(b"IEND", b""),
        ]
    )


def _apng(canvas: tuple[int, int], *, frames: int, declared: int | None = None) -> bytes:
    """A canvas, and frames of one pixel in it."""
    pixel = zlib.compress(b"\0\0")
    parts: list[tuple[bytes, bytes]] = [
        (b"acTL", struct.pack(">II", frames if declared is None else declared, 0))
    ]
    number = 0
    for k in range(frames):
        parts.append((b"fcTL", struct.pack(">5I2H2B", number, 1, 1, 0, 0, 1, 10, 0, 0)))
        parts.append((b"fdAT", struct.pack(">I", number + 1) + pixel) if k else (b"IDAT", pixel))
        number += 2 if k else 1
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", *canvas, 8, 0, 0, 0, 0)),
            *(_chunk(*part) for part in parts),
            _chunk(b"IEND", b""),
        ]
    )


def _international(keyword: bytes, text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", keyword + b"\0\x01\0\0\0" + text


# ------------------------------------------------------------------------------------------- GIF


def _gif(screen: tuple[int, int], *frames: tuple[int, int]) -> bytes:
    """Frames of these sizes, each with the data of one pixel."""
    data = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    for size in frames:
        data += b"!\xf9\x04\0\x0a\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, *size, 0)
        data += b"\x02\x02\x44\x01\0"
    return data + b";"


# ------------------------------------------------------------------------------------------ TIFF


def _tiff(entries: dict[int, tuple[int, int, int]], *, tail: bytes = b"", link: int = 0) -> bytes:
    """tag: (type, count, value or offset); `tail` lies behind the directory."""
    body = b"".join(struct.pack("<HHLL", tag, *entries[tag]) for tag in sorted(entries))
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<L", link) + tail
    )


def _strip_tiff(width: int, height: int, *, bits: int, samples: int, **changes: int) -> bytes:
    """One strip of 20 bytes; `changes` say other things of it."""
    tail_at = 8 + 2 + 12 * 10 + 4
    numbers = {"offset": tail_at + 2 * samples, "size": 20, "rows": height, "compression": 1}
    numbers |= changes
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, samples, tail_at if samples > 2 else bits * (1 + (samples - 1) * 65536)),
        259: (3, 1, numbers["compression"]),
        262: (3, 1, 2 if samples > 2 else 1),
        273: (4, 1, numbers["offset"]),
        277: (3, 1, samples),
        278: (4, 1, numbers["rows"]),
        279: (4, 1, numbers["size"]),
        284: (3, 1, 1),
    }
    tail = struct.pack("<H", bits) * samples + bytes(20)
    return _tiff(entries, tail=tail)


def _tiff_of_one_strip_many_times(samples: int) -> bytes:
    """Rows of zeros, all of them the same bytes of the file."""
    width, height = 1000, 1000
    packed = _zeros(width * samples * 2)
    count = 11
    bits_at = 8 + 2 + 12 * count + 4
    offsets_at = bits_at + 2 * samples
    sizes_at = offsets_at + 4 * height
    strip_at = sizes_at + 4 * height
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, samples, bits_at),
        259: (3, 1, 8),
        262: (3, 1, 2),
        273: (4, height, offsets_at),
        277: (3, 1, samples),
        278: (4, 1, 1),
        279: (4, height, sizes_at),
        284: (3, 1, 1),
        338: (3, 1, 0),
    }
    tail = struct.pack("<H", 16) * samples
    tail += struct.pack("<L", strip_at) * height + struct.pack("<L", len(packed)) * height + packed
    return _tiff(entries, tail=tail)


def _tiff_of_pages(count: int) -> bytes:
    first = _strip_tiff(2, 2, bits=8, samples=1)
    at = len(first) + (len(first) & 1)
    data = bytearray(first.ljust(at, b"\0"))
    struct.pack_into("<L", data, 8 + 2 + 12 * 10, at)
    page = b"".join(struct.pack("<HHLL", tag, 4, 1, 1) for tag in (256, 257, 273))
    for k in range(count):
        link = at + 42 * (k + 1) if k + 1 < count else 0
        data += struct.pack("<H", 3) + page + struct.pack("<L", link)
    return bytes(data)


def _overlapping_tags(count: int, size: int) -> bytes:
    """A directory of EXIF whose entries all say that the same bytes are theirs."""
    at = 8 + 2 + 12 * count + 4
    entries = {40_000 + k if count < 20_000 else k: (7, size, at) for k in range(count)}
    return _tiff(entries, tail=bytes(size))


# --------------------------------------------------------------------------------- WebP, AVIF, JPEG


def _riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)


def _webp(*chunks: bytes) -> bytes:
    return _riff(b"RIFF", b"WEBP" + b"".join(chunks))


def _three(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 120, 40)).save(file, format, **options)
    return file.getvalue()


def _animated_webp(side: int, *, frames: int) -> bytes:
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "WEBP", lossless=True)
    frame = _riff(b"ANMF", bytes(6) + _three(0) * 2 + _three(40) + b"\0" + pixel.getvalue()[12:])
    canvas = b"\x02\0\0\0" + _three(side - 1) * 2
    return _webp(_riff(b"VP8X", canvas), _riff(b"ANIM", bytes(6)), frame * frames)


def _webp_with(kind: bytes, flag: int, content: bytes) -> bytes:
    still = _saved("WEBP", lossless=True)[12:]
    head = _riff(b"VP8X", bytes([flag, 0, 0, 0]) + _three(15) * 2)
    own = _riff(kind, content)
    return _webp(head, *((own, still) if kind == b"ICCP" else (still, own)))


def _avif(side: int) -> bytes:
    """The size is what the container says; the samples are of 16 pixels a side."""
    data = bytearray(_saved("AVIF"))
    at = data.index(b"ispe") + 8
    struct.pack_into(">II", data, at, side, side)
    return bytes(data)


def _jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _jpeg_with(*segments: bytes) -> bytes:
    data = _saved("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def _jpeg_of_scans(side: int, *, scans: int) -> bytes:
    """Progressive: every scan is a few bytes, and goes through all blocks of the picture."""
    table = bytes([0x10, 1, *bytes(15), 0xE0])  # one code: a run of 2^14 empty blocks, and more
    data = b"\xff\xd8" + _jpeg_segment(0xDB, bytes([0]) + b"\x01" * 64)
    data += _jpeg_segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    data += _jpeg_segment(0xC4, bytes([0x00, 1, *bytes(15), 0x00])) + _jpeg_segment(0xC4, table)
    for k in range(scans):
        start = 0 if k == 0 else 1
        stop = 0 if k == 0 else 63
        data += _jpeg_segment(0xDA, bytes([1, 1, 0, start, stop, 0])) + bytes(4)
    return data + b"\xff\xd9"


# --------------------------------------------------------------------------------- tags, profiles


def _profile_of_gigabytes() -> bytes:
    """A profile whose tags say that they are 4 GB, in a file of 200 bytes."""
    head = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", head, 0, 200, b"lcms", 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head[36:40] = b"acsp"
    tags = b"".join(
        struct.pack(">4sII", name, 176, 0xFFFFFFF0)
        for name in (b"rTRC", b"gTRC", b"bTRC", b"A2B0", b"rXYZ")
    )
    body = struct.pack(">I", 5) + tags
    return bytes(head) + body + b"curv" + bytes(4) + b"\xff\xff\xff\xff" + bytes(8)


_LONG_XMP = b"<x:xmpmeta>" + _repeated(b"<xmp:Thumbnails>", 900_000)


# ------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Bomb:
    """What it is made of, and what reading it must come to."""

    make: Callable[[], bytes]
    still: str | None
    """The reason for which `pictures.read` refuses it; None: it is read, within the bounds."""
    film: str | None
    """The same for `animations.read`."""
    needs: str | None = None
    """What Pillow may have been built without."""


def _bomb(
    make: Callable[[], bytes], still: str | None, film: str | None = "", *, needs: str | None = None
) -> Bomb:
    """film: by default as `still`."""
    return Bomb(make=make, still=still, film=still if film == "" else film, needs=needs)


BOMBS: dict[str, Bomb] = {
    # 1, 2, 3: many pixels in few bytes.
    "png 18,000 squared": _bomb(lambda: _png(18_000, 18_000), r"324,000,000 pixels, " + LIMITED),
    "png 13,000 squared": _bomb(lambda: _png(13_000, 13_000), r"169,000,000 pixels, " + LIMITED),
    "png 1 x 83,886,336": _bomb(lambda: _png(1, 83_886_336), r"a side of 83,886,336"),
    "png 83,886,336 x 1": _bomb(lambda: _png(83_886_336, 1), r"a side of 83,886,336"),
    "png of frames": _bomb(lambda: _apng((2_000, 2_000), frames=200), None, LIMITED),
    "png 13,000 squared of frames": _bomb(
        lambda: _apng((13_000, 13_000), frames=2), LIMITED, r"limit"
    ),
    "png of 4 billion frames": _bomb(
        lambda: _apng((1, 1), frames=2, declared=2**32 - 1), None, "more than 10,000"
    ),
    # 4: frames.
    "gif giant second frame": _bomb(
        lambda: _gif((2, 2), (1, 1), (65_535, 65_535)), None, r"in 2 frames.*limit"
    ),
    "gif giant screen": _bomb(lambda: _gif((13_000, 13_000), (1, 1), (1, 1)), LIMITED, r"limit"),
    # 5, 9: not in the allow-list, whatever Pillow could do with it.
    "ico": _bomb(lambda: _saved("ICO"), "not a picture of a kind known"),
    "ico of a png": _bomb(
        lambda: (
            struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 50_000, 22)
            + _png(18_000, 18_000)
        ),
        "not a picture of a kind known",
    ),
    "jp2": _bomb(lambda: _saved("JPEG2000"), "not a picture of a kind known", needs="jpg_2000"),
    "eps": _bomb(lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    # 6: texts.
    "png zTXt": _bomb(
        lambda: _png(8, 8, (b"zTXt", b"Comment\0\0" + _zeros(64 * MIB))), "too large"
    ),
    "png iTXt": _bomb(
        lambda: _png(8, 8, _international(b"XML:com.adobe.xmp", _zeros(64 * MIB))), "too large"
    ),
    "png 16 bit zTXt": _bomb(
        lambda: _png(8, 8, (b"zTXt", b"Comment\0\0" + _zeros(64 * MIB)), bits=16, color=2),
        "too large",
    ),
    "png many zTXt": _bomb(
        lambda: _png(8, 8, *[(b"zTXt", b"Comment\0\0" + _zeros(MIB))] * 200), "[Tt]oo much memory"
    ),
    # 7: TIFF strips, samples, pages.
    **{
        f"tiff {bits} bit, {what}": _bomb(
            lambda bits=bits, changes=changes: _strip_tiff(
                5_000, 5_000, bits=bits, samples=3, **changes
            ),
            "damaged or cut off",
        )
        for bits in (8, 16)
        for what, changes in {
            "strip of 4 GB": {"size": 0xFFFFFFFF},
            "strip beyond the end": {"offset": 0xFFFFFFF0},
            "4 billion rows a strip": {"rows": 0xFFFFFFFF},
            "deflate of nothing": {"compression": 8},
            "LZW of nothing": {"compression": 5},
        }.items()
    },
    "tiff 65,535 samples": _bomb(lambda: _tiff_of_one_strip_many_times(65_535), "samples"),
    "tiff 500 samples": _bomb(lambda: _tiff_of_one_strip_many_times(500), "samples"),
    "tiff 60,000 pages": _bomb(lambda: _tiff_of_pages(60_000), "more than 10,000"),
    # 8: AVIF.
    "avif 17,000 squared": _bomb(lambda: _avif(17_000), "known|damaged|limit", needs="avif"),
    "avif 16,000 squared": _bomb(lambda: _avif(16_000), LIMITED, needs="avif"),
    # 10: animated WebP.
    "webp canvas and frames": _bomb(
        lambda: _animated_webp(16_383, frames=1_000), LIMITED, r"in 1,000 frames.*limit"
    ),
    "webp canvas beyond": _bomb(lambda: _animated_webp(65_536, frames=2), "known|limit|damaged"),
    # 11: profiles.
    "png profile of 64 MB": _bomb(
        lambda: _png(8, 8, (b"iCCP", b"icc\0\0" + _zeros(64 * MIB)), bits=8, color=2), "too large"
    ),
    "jpeg profile with tags of 4 GB": _bomb(
        lambda: _jpeg_with(_jpeg_segment(0xE2, b"ICC_PROFILE\0\x01\x01" + _profile_of_gigabytes())),
        None,
    ),
    "webp profile of 2 MB": _bomb(lambda: _webp_with(b"ICCP", 0x20, bytes(2 * MIB)), None),
    # 12: EXIF and XMP.
    "png exif in text": _bomb(
        lambda: _png(
            8, 8, (b"zTXt", b"Raw profile type exif\0\0" + _zeros(64 * MIB)), bits=8, color=2
        ),
        "too large",
    ),
    "png exif, one value for all": _bomb(
        lambda: _png(8, 8, (b"eXIf", _overlapping_tags(60_000, 700_000)), bits=8, color=2), None
    ),
    "webp exif, one value for all": _bomb(
        lambda: _webp_with(b"EXIF", 0x08, _overlapping_tags(60_000, 700_000)), None
    ),
    "jpeg exif, one value for all": _bomb(
        lambda: _jpeg_with(_jpeg_segment(0xE1, b"Exif\0\0" + _overlapping_tags(2_500, 30_000))),
        None,
    ),
    "jpeg exif of 4 GB": _bomb(
        lambda: _jpeg_with(
            _jpeg_segment(0xE1, b"Exif\0\0" + _tiff({271: (2, 0xFFFFFFFF, 8), 305: (12, 2**29, 8)}))
        ),
        None,
    ),
    "tiff, one value for all tags": _bomb(lambda: _overlapping_tags(60_000, 700_000), "damaged"),
    "webp xmp": _bomb(lambda: _webp_with(b"XMP ", 0x04, _LONG_XMP), None),
    "png xmp": _bomb(
        lambda: _png(8, 8, _international(b"XML:com.adobe.xmp", zlib.compress(_LONG_XMP))), None
    ),
    # Time instead of memory.
    "jpeg of 5,000 scans": _bomb(lambda: _jpeg_of_scans(9_000, scans=5_000), "scans"),
}

_MEASURED = r"""
import json, resource, sys, time
from pathlib import Path
from waifu4x import animations, pictures
from waifu4x.errors import PictureReadError


def peak_bytes():
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def forget_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # The peak of all so far: what is found is then too much, never too little.


def still(path):
    picture = pictures.read(path)
    # What was read is used: its tags are corrected and written, its pixels compressed.
    pictures.encode(picture, format="PNG")


def film(path):
    animations.count_frames(path)
    animations.read(path)


pictures.read(Path(sys.argv[1]))
for path in map(Path, sys.argv[2:]):
    for name, read in (("still", still), ("film", film)):
        forget_peak()
        before, started, line = peak_bytes(), time.perf_counter(), None
        try:
            read(path)
        except PictureReadError as error:
            line = str(error)
        except BaseException as error:
            line = f"UNEXPECTED {type(error).__name__}: {error}"
        spent = time.perf_counter() - started
        print(json.dumps([path.stem, name, line, peak_bytes() - before, spent]), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    line: str | None
    growth_bytes: int
    spent_s: float


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Cost]:
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "plain.png").write_bytes(_png(8, 8, bits=16, color=2))
    paths = []
    for k, bomb in enumerate(BOMBS.values()):
        if bomb.needs is None or features.check(bomb.needs):
            path = folder / f"{k}.bin"
            path.write_bytes(bomb.make())
            assert path.stat().st_size <= MAX_FILE_BYTES
            paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MEASURED, str(folder / "plain.png"), *paths],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        stem, name, reason, growth_bytes, spent_s = json.loads(line)
        found[int(stem), name] = Cost(line=reason, growth_bytes=growth_bytes, spent_s=spent_s)
    return found


def _cases() -> Iterator[tuple[str, str]]:
    for name in BOMBS:
        yield name, "still"
        yield name, "film"


@pytest.mark.parametrize(("name", "way"), [*_cases()])
def test_a_bomb_costs_little(name: str, way: str, costs: dict[tuple[int, str], Cost]) -> None:
    bomb = BOMBS[name]
    if bomb.needs is not None and not features.check(bomb.needs):
        pytest.skip(f"Pillow was built without {bomb.needs}")
    cost = costs[list(BOMBS).index(name), way]
    wanted = bomb.still if way == "still" else bomb.film
    if wanted is None:
        assert cost.line is None
    else:
        assert cost.line is not None
        assert cost.line.isprintable()
        assert re.search(wanted, cost.line), cost.line
    assert cost.growth_bytes < MAX_GROWTH_MIB * MIB
    assert cost.spent_s < MAX_TIME_S
