"""Animations and pages: what frames look like, timing, loops, palettes, damage, limits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from waifu4x import animations, pictures
from waifu4x.animations import ANIMATED, Animation, count_frames, encode, read, write
from waifu4x.codecs import metadata, palettes
from waifu4x.errors import PictureError, PictureReadError, PictureWriteError, UsageError
from waifu4x.pictures import Picture

imagecodecs = pytest.importorskip("imagecodecs")

SIDE = 24
TIMES = (100.0, 50.0, 30.0, 1000.0, 20.0)


def _noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def _frames(count: int = 5, *, alpha: bool = False, colors: int = 3) -> tuple[Picture, ...]:
    """A block that moves over a plain ground; with alpha a window that moves with it."""
    found = []
    for k in range(count):
        pixels = np.full((SIDE, SIDE, colors), 40, dtype=np.uint8)
        pixels[..., 0] = 90
        pixels[4:12, 2 + 3 * k : 8 + 3 * k] = 200
        window = np.zeros((SIDE, SIDE), dtype=np.uint8)
        window[2:20, 3 * k : 3 * k + 12] = 255
        found.append(Picture(pixels=pixels, alpha=window if alpha else None))
    return tuple(found)


def _animation(format: str = "PNG", *, alpha: bool = False, loop: int = 0) -> Animation:
    frames = _frames(alpha=alpha)
    return Animation(frames=frames, durations_ms=TIMES, loop=loop, format=format)


def _seen(picture: Picture) -> np.ndarray:
    """(H, W, 4) uint8 with nothing below full transparency: what a viewer shows."""
    pixels = np.broadcast_to(picture.pixels, (*picture.pixels.shape[:2], 3))
    alpha = picture.alpha
    if alpha is None:
        alpha = np.full(pixels.shape[:2], 255, dtype=np.uint8)
    return np.concatenate([pixels * (alpha > 0)[..., None], alpha[..., None]], axis=2)


def _pillow_frames(data: bytes) -> list[np.ndarray]:
    found = []
    with Image.open(io.BytesIO(data)) as image:
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            rgba = np.asarray(image.convert("RGBA")).copy()
            rgba[rgba[..., 3] == 0] = 0
            found.append(rgba)
    return found


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("format", ANIMATED)
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("loop", [0, 1, 2, 7])
def test_round_trip(format: str, alpha: bool, loop: int) -> None:
    animation = _animation(format, alpha=alpha, loop=loop)
    lossless = format in ("PNG", "WEBP")
    data = encode(animation, lossless=lossless)
    back = read(data)
    assert count_frames(data) == len(back.frames) == 5
    assert (back.format, back.kind, back.loop) == (format, "animation", loop)
    assert back.durations_ms == TIMES
    tolerance = 0 if format != "AVIF" else 12
    for wanted, frame, other in zip(
        animation.frames, back.frames, _pillow_frames(data), strict=True
    ):
        assert (frame.alpha is not None) == alpha
        assert frame.frames_total == 1
        difference = _seen(wanted).astype(int) - _seen(frame)
        assert np.abs(difference).max() <= tolerance
        np.testing.assert_array_equal(_seen(frame), other)


@pytest.mark.parametrize("target", ANIMATED)
@pytest.mark.parametrize("source", ANIMATED)
def test_every_kind_becomes_every_other(source: str, target: str) -> None:
    first = read(encode(_animation(source, alpha=True, loop=3)))
    back = read(encode(first, format=target))
    assert (back.format, back.loop, back.durations_ms) == (target, 3, TIMES)
    assert [f.alpha is not None for f in back.frames] == [True] * 5


def test_gif_that_does_not_mention_loops_is_shown_once_and_written_so() -> None:
    assert b"NETSCAPE" not in encode(_animation("GIF", loop=1))
    once = encode(_animation("GIF", loop=1))
    assert read(once).loop == 1
    assert b"NETSCAPE2.0\x03\x01\x00\x00\x00" in encode(_animation("GIF", loop=0))
    assert b"NETSCAPE2.0\x03\x01\x06\x00\x00" in encode(_animation("GIF", loop=7))
    assert read(encode(_animation("GIF", loop=10**6))).loop == 65_536
    assert read(encode(_animation("WEBP", loop=10**6))).loop == 65_535


@pytest.mark.parametrize("format", ANIMATED)
def test_frames_that_are_alike_stay_frames(format: str) -> None:
    still = _frames(1)[0]
    times = (40.0, 70.0, 110.0, 10.0)
    data = encode(Animation(frames=(still,) * 4, durations_ms=times, format=format))
    assert count_frames(data) == 4
    assert read(data).durations_ms == times
    assert len(_pillow_frames(data)) == 4


def test_fractions_of_seconds_are_kept_and_rounding_does_not_add_up() -> None:
    thirtieth = 1000 / 30
    animation = Animation(
        frames=_frames(1) * 30, durations_ms=(thirtieth,) * 30, format="PNG", loop=2
    )
    data = encode(animation)
    assert data.count(struct.pack(">HH", 1, 30)) == 30
    assert read(data).durations_ms == pytest.approx((thirtieth,) * 30)
    for format in ("GIF", "WEBP", "AVIF"):
        back = read(encode(animation, format=format))
        assert sum(back.durations_ms) == 1000.0
        assert max(back.durations_ms) - min(back.durations_ms) <= (10 if format == "GIF" else 1)


@pytest.mark.parametrize(
    ("ms", "fraction"),
    [(0.0, (0, 1)), (1.0, (1, 1000)), (65_535.0, (13107, 200)), (100_001.0, (65_501, 655)),
     (65_535_000.0, (65_535, 1))],
)  # fmt: skip
def test_apng_delays_are_two_numbers_of_16_bits(ms: float, fraction: tuple[int, int]) -> None:
    data = encode(Animation(frames=_frames(2), durations_ms=(ms, 20.0), format="PNG"))
    assert struct.pack(">HH", *fraction) in data
    assert read(data).durations_ms[0] == pytest.approx(ms, rel=2e-5)


@pytest.mark.parametrize(("format", "ms"), [("GIF", 1_400_000.0), ("WEBP", 20_000_000.0)])
def test_a_frame_longer_than_the_format_can_say_is_stored_again(format: str, ms: float) -> None:
    frames = _frames(2, alpha=True)
    back = read(encode(Animation(frames=frames, durations_ms=(ms, 20.0), format=format)))
    assert sum(back.durations_ms) == ms + 20
    np.testing.assert_array_equal(_seen(back.frames[0])[..., 3], frames[0].alpha)
    np.testing.assert_array_equal(_seen(back.frames[-1])[..., 3], frames[1].alpha)
    for frame in back.frames[1:-1]:
        np.testing.assert_array_equal(_seen(frame), _seen(back.frames[0]))


@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_16_bits_in_apng(colors: int, alpha: bool) -> None:
    frames = tuple(
        Picture(
            pixels=_noise(5, 7, colors, dtype="uint16", seed=k),
            alpha=_noise(5, 7, dtype="uint16", seed=k + 9) if alpha else None,
        )
        for k in range(3)
    )
    back = read(encode(Animation(frames=frames, durations_ms=(10.0,) * 3, format="PNG")))
    for wanted, frame in zip(frames, back.frames, strict=True):
        np.testing.assert_array_equal(wanted.pixels, frame.pixels)
        if wanted.alpha is not None:
            np.testing.assert_array_equal(wanted.alpha, frame.alpha)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "AVIF"])
def test_metadata_comes_with_every_frame_and_is_written_once(format: str) -> None:
    exif = Image.Exif()
    exif[271], exif[256] = "Maker", SIDE
    packed = exif.tobytes()
    xmp = b'<x tiff:ImageWidth="24"/>'
    frames = tuple(
        Picture(
            pixels=frame.pixels.repeat(2, 0).repeat(2, 1),
            exif=packed,
            xmp=xmp,
            icc_profile=metadata.srgb_profile(),
            in_profile_space=True,
        )
        for frame in _frames(3)
    )
    animation = Animation(frames=frames, durations_ms=(10.0,) * 3, format=format)
    data = encode(animation, lossless=format != "AVIF")
    assert data.count(b"Maker") == 1
    for frame in read(data).frames:
        assert frame.icc_profile == metadata.srgb_profile()
        assert frame.xmp == xmp.replace(b"24", b"48")
        loaded = Image.Exif()
        loaded.load(frame.exif or b"")
        assert (loaded[271], loaded[256]) == ("Maker", 2 * SIDE)
    stripped = read(encode(animation, strip_metadata=True)).frames[0]
    assert (stripped.exif, stripped.xmp) == (None, None)
    assert stripped.icc_profile == metadata.srgb_profile()


def test_orientation_turns_every_frame() -> None:
    exif = Image.Exif()
    exif[274] = 6
    images = [Image.fromarray(_noise(4, 6, 3, seed=k)) for k in range(2)]
    file = io.BytesIO()
    images[0].save(file, "PNG", save_all=True, append_images=images[1:], duration=50, exif=exif)
    for image, frame in zip(images, read(file.getvalue()).frames, strict=True):
        np.testing.assert_array_equal(np.rot90(np.asarray(image), -1), frame.pixels)


def test_one_frame_outside_srgb_keeps_all_in_their_own_space() -> None:
    # Red and green change places: what is mild stays in sRGB, what is pure does not.
    profile = _wide_profile()
    mild, pure = np.full((4, 4, 3), 128, np.uint8), np.zeros((4, 4, 3), np.uint8)
    mild[..., 0] = 120
    pure[..., 1] = 255
    frames = tuple(
        Picture(pixels=p, icc_profile=profile, in_profile_space=True) for p in (mild, pure)
    )
    back = read(encode(Animation(frames=frames, durations_ms=(10.0,) * 2, format="PNG")))
    assert [frame.in_profile_space for frame in back.frames] == [True, True]
    np.testing.assert_array_equal(back.frames[0].pixels, mild)
    np.testing.assert_array_equal(back.frames[1].pixels, pure)
    one = pictures.read(pictures.encode(frames[0], format="PNG"))
    assert not one.in_profile_space


def _wide_profile() -> bytes:
    """sRGB with a greener green: its colorant is moved in the bytes of the profile."""
    data = bytearray(metadata.srgb_profile())
    count = int.from_bytes(data[128:132], "big")
    for k in range(count):
        name, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * k)
        if name == b"gXYZ":
            struct.pack_into(
                ">3i", data, offset + 8, *(round(v * 65536) for v in (0.2, 0.75, 0.06))
            )
    return bytes(data)


# ------------------------------------------------------------------------------------- GIF by hand

TABLE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)


def _lzw(indices: np.ndarray) -> bytes:
    """Not compressed at all: nine bits a pixel, and a new start before ten would be needed."""
    codes: list[int] = []
    for k, index in enumerate(indices.ravel()):
        codes += [256] * (k % 250 == 0) + [int(index)]
    bits = sum(code << 9 * k for k, code in enumerate([*codes, 257]))
    packed = bits.to_bytes((9 * (len(codes) + 1) + 7) // 8, "little")
    blocks = [packed[k : k + 255] for k in range(0, len(packed), 255)]
    return b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def _part(
    indices: np.ndarray,
    *,
    at: tuple[int, int] = (0, 0),
    disposal: int | None = None,
    clear: int | None = None,
    delay: int = 5,
    table: np.ndarray | None = None,
) -> bytes:
    """One frame of a GIF; without a disposal it has no control block."""
    control = b""
    if disposal is not None:
        packed = disposal << 2 | (clear is not None)
        control = b"!\xf9\x04" + struct.pack("<BHBB", packed, delay, clear or 0, 0)
    place = struct.pack("<HHHH", at[0], at[1], indices.shape[1], indices.shape[0])
    own = b"\0" if table is None else b"\x81" + table.tobytes()
    return control + b"," + place + own + _lzw(indices)


def _gif(*parts: bytes, size: tuple[int, int] = (6, 4), end: bytes = b";") -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x81, 0, 0) + TABLE.tobytes()
    return head + b"".join(parts) + end


def _full(index: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width), index, dtype=np.uint8)


@pytest.mark.parametrize("disposal", range(8))
def test_gif_disposals(disposal: int) -> None:
    hole = np.array([[2, 0, 2], [2, 2, 2]], dtype=np.uint8)
    data = _gif(
        _part(_full(1), disposal=1),
        _part(hole, at=(1, 1), disposal=disposal, clear=0),
        _part(_full(3, 1, 1), at=(5, 3)),
        _part(_full(3, 1, 1), at=(0, 0), disposal=0),
    )
    first = np.zeros((4, 6, 4), np.uint8)
    first[:] = (255, 0, 0, 255)
    second = first.copy()
    second[1:3, 1:4] = (0, 255, 0, 255)
    second[1, 2] = (255, 0, 0, 255)
    # 4 is an old way to say 3; what is not defined keeps.
    third = (first if disposal in (3, 4) else second).copy()
    if disposal == 2:
        third[1:3, 1:4] = 0
    third[3, 5] = (0, 0, 255, 255)
    # A disposal is of one frame; the one without stays.
    fourth = third.copy()
    fourth[0, 0] = (0, 0, 255, 255)
    animation = read(data)
    assert count_frames(data) == 4
    assert animation.durations_ms == (50.0, 50.0, 0.0, 50.0)
    assert animation.loop == 1
    for wanted, frame in zip((first, second, third, fourth), animation.frames, strict=True):
        np.testing.assert_array_equal(_seen(frame), wanted)
    again = read(encode(animation))
    for wanted, frame in zip(animation.frames, again.frames, strict=True):
        np.testing.assert_array_equal(_seen(frame), _seen(wanted))


def test_gif_screen_and_frames_of_other_sizes() -> None:
    small = read(_gif(_part(_full(1, 2, 2), at=(1, 1)), _part(_full(2, 9, 9), at=(4, 2))))
    first, second = (_seen(frame) for frame in small.frames)
    assert first.shape == (4, 6, 4)
    assert first[..., 3].sum() == 4 * 255
    # What lies beyond the screen is not shown.
    assert second[..., 1].sum() == 4 * 255
    large = read(_gif(_part(_full(1, 5, 9)), _part(_full(2)), size=(0, 0)))
    assert large.frames[1].pixels.shape == (5, 9, 3)
    assert large.frames[0].alpha is None


def test_gif_tables_interlacing_and_grays() -> None:
    own = TABLE[::-1].copy()
    frames = read(_gif(_part(_full(1)), _part(_full(1), table=own))).frames
    assert frames[0].pixels[0, 0].tolist() == [255, 0, 0]
    assert frames[1].pixels[0, 0].tolist() == [0, 255, 0]
    images = [Image.fromarray(_noise(33, 20, seed=k)) for k in range(2)]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], interlace=1)
    for image, frame in zip(images, read(file.getvalue()).frames, strict=True):
        assert frame.is_gray
        np.testing.assert_array_equal(np.asarray(image), frame.pixels[..., 0])


def test_gif_is_what_other_decoders_see() -> None:
    data = encode(_animation("GIF"))
    decoded = imagecodecs.gif_decode(data)
    for frame, other in zip(read(data).frames, decoded, strict=True):
        np.testing.assert_array_equal(frame.pixels, other[..., :3])


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_gif_without_its_end_is_refused_if_it_may_have_had_more(end: bytes) -> None:
    loops = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    for parts in ([_part(_full(1)), _part(_full(2))], [loops, _part(_full(1))]):
        with pytest.raises(PictureReadError, match="cut off"):
            count_frames(_gif(*parts, end=end))
    assert count_frames(_gif(_part(_full(1)), end=end)) == 1
    assert count_frames(_gif(_part(_full(1)), _part(_full(2)), end=b"\0;junk")) == 2


# ---------------------------------------------------------------------------------- GIF palettes


def _photo(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.stack([3 * x, 3 * y, 128 + 60 * np.sin(x * y / 99)], axis=-1).astype(np.uint8)


def test_colors_that_fit_are_exact() -> None:
    for most in (2, 255, 256):
        pixels = _noise(64, 64, 3)
        pixels = pixels.reshape(-1, 3)[_noise(64, 64).astype(int) % most]
        data = pictures.encode(Picture(pixels=pixels), format="GIF")
        np.testing.assert_array_equal(pictures.read(data).pixels, pixels)
        assert pictures.losses(Picture(pixels=pixels), "GIF") == ()
    # 256 opaque colours leave no entry to say "this stays"; it has to be drawn again.
    grays = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    other = grays.copy()
    other[3, 3] = 0
    frames = tuple(Picture(pixels=p) for p in (grays, other, other))
    back = read(encode(Animation(frames=frames, durations_ms=(10.0,) * 3, format="GIF")))
    for wanted, frame in zip(frames, back.frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, wanted.pixels)


def test_each_frame_with_few_colors_of_its_own_is_exact() -> None:
    frames = tuple(Picture(pixels=_noise(12, 12, 3, seed=k)) for k in range(4))
    data = encode(Animation(frames=frames, durations_ms=(10.0,) * 4, format="GIF"))
    for wanted, frame in zip(frames, read(data).frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, wanted.pixels)


def test_what_does_not_move_does_not_flicker() -> None:
    ground = _photo()
    pixels = [ground.copy() for _ in range(6)]
    for k, frame in enumerate(pixels):
        frame[10:20, 9 * k : 9 * k + 9] = _noise(10, 9, 3, seed=k)
    frames = tuple(Picture(pixels=p) for p in pixels)
    back = read(encode(Animation(frames=frames, durations_ms=(50.0,) * 6, format="GIF")))
    for k in range(1, 6):
        still = (pixels[k] == pixels[k - 1]).all(axis=2)
        assert still.sum() > 3800
        before, after = back.frames[k - 1].pixels, back.frames[k].pixels
        np.testing.assert_array_equal(before[still], after[still])


def test_scenes_without_a_common_color_have_palettes_of_their_own() -> None:
    ramp = _photo(128)
    scenes = [ramp * np.array(mask, np.uint8) for mask in ((1, 1, 0), (0, 1, 1), (1, 0, 1))]
    frames = tuple(Picture(pixels=p) for p in scenes)
    data = encode(Animation(frames=frames, durations_ms=(50.0,) * 3, format="GIF"))
    errors = [
        np.sqrt(np.mean((frame.pixels.astype(float) - wanted) ** 2))
        for wanted, frame in zip(scenes, read(data).frames, strict=True)
    ]
    joint = palettes.build(np.concatenate(scenes).reshape(-1, 3), most=255)
    shared = [palettes.reduce(scene, joint) for scene in scenes]
    worse = [
        np.sqrt(np.mean((joint[i].astype(float) - wanted) ** 2))
        for wanted, i in zip(scenes, shared, strict=True)
    ]
    assert max(errors) < 0.8 * max(worse)


def test_dither_keeps_the_mean_and_flat_areas_flat() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (64, 256, 3))
    few = np.array([[v] * 3 for v in range(0, 256, 51)], dtype=np.uint8)
    result = few[palettes.reduce(ramp, few)].astype(float)
    blocks = (result - ramp).reshape(8, 8, 32, 8, 3).mean(axis=(1, 3))
    assert np.abs(blocks).max() < 8
    picture = np.concatenate([np.full((64, 64, 3), 254, np.uint8), _photo()], axis=1)
    back = pictures.read(pictures.encode(Picture(pixels=picture), format="GIF"))
    np.testing.assert_array_equal(back.pixels[:, :64], picture[:, :64])


def test_what_gif_loses_is_said() -> None:
    frames = tuple(
        Picture(pixels=_noise(40, 40, 3, seed=k), alpha=_noise(40, 40)) for k in range(2)
    )
    animation = Animation(frames=frames, durations_ms=(15.0, 20.0), format="PNG")
    lost = " ".join(animations.losses(animation, "GIF"))
    assert all(word in lost for word in ("256 colours", "half transparency", "hundredths"))
    assert animations.losses(animation, "PNG") == ()
    still = " ".join(pictures.losses(frames[0], "GIF"))
    assert "256 colours" in still
    opaque = Picture(pixels=_noise(20, 20, 1))
    assert pictures.losses(opaque, "GIF") == ()


# ------------------------------------------------------------------------------------ APNG by hand


def _chunk(name: bytes, part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))


def _apng(
    frames: Sequence[tuple[tuple[int, int], np.ndarray, int, int]],
    *,
    extra: np.ndarray | None = None,
    declared: int | None = None,
    shift: int = 0,
    end: bool = True,
) -> bytes:
    """Frames are (left, top), RGBA, disposal, blend; `extra` is a still that is none of them."""
    height, width = (frames[0][1] if extra is None else extra).shape[:2]
    data = b"\x89PNG\r\n\x1a\n" + _chunk(
        b"IHDR", struct.pack(">2I5B", width, height, 8, 6, 0, 0, 0)
    )
    count = len(frames) if declared is None else declared
    data += _chunk(b"acTL", struct.pack(">2I", count, 3))
    number = 0
    if extra is not None:
        data += _chunk(b"IDAT", _rows(extra))
    for k, ((left, top), rgba, disposal, blend) in enumerate(frames):
        size = (rgba.shape[1], rgba.shape[0])
        control = struct.pack(">5I2H2B", number, *size, left, top, 5, 0, disposal, blend)
        data += _chunk(b"fcTL", control)
        number += 1
        if k == 0 and extra is None:
            data += _chunk(b"IDAT", _rows(rgba))
            continue
        packed = _rows(rgba)
        for piece in (packed[:9], packed[9:]):
            data += _chunk(b"fdAT", struct.pack(">I", number + shift) + piece)
            number += 1
    return data + (_chunk(b"IEND", b"") if end else b"")


def _rows(rgba: np.ndarray) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgba))


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Of two (h, w, 4), by premultiplied floats."""
    a, b = above / 255.0, below / 255.0
    share, rest = a[..., 3:], b[..., 3:] * (1 - a[..., 3:])
    total = share + rest
    colors = (a[..., :3] * share + b[..., :3] * rest) / np.maximum(total, 1e-12)
    return np.rint(np.concatenate([colors, total], axis=2) * 255).astype(np.uint8)


def _layered(
    frames: Sequence[tuple[tuple[int, int], np.ndarray, bool, bool, bool]], size: tuple[int, int]
) -> list[np.ndarray]:
    """What is shown of frames (left, top), RGBA, blends, clears after, restores after."""
    canvas = np.zeros((*size, 4), dtype=np.uint8)
    shown = []
    for (left, top), rgba, blends, clears, restores in frames:
        before = canvas.copy()
        box = np.s_[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        canvas[box] = _over(rgba, canvas[box]) if blends else rgba
        shown.append(canvas.copy())
        if restores:
            canvas = before
        elif clears:
            canvas[box] = 0
    return shown


@pytest.mark.parametrize("disposal", [0, 1, 2])
@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("extra", [False, True])
def test_apng_disposals_and_blends(disposal: int, blend: int, extra: bool) -> None:
    parts = [((0, 0), _noise(6, 8, 4)), ((2, 1), _noise(3, 4, 4, seed=1))]
    parts += [((1, 2), _noise(4, 5, 4, seed=2)), ((7, 5), _noise(1, 1, 4, seed=3))]
    parts[1][1][0, :3, 3] = (0, 255, 128)
    frames = [(place, rgba, disposal, blend) for place, rgba in parts]
    data = _apng(frames, extra=_noise(6, 8, 4, seed=9) if extra else None)
    wanted = _layered(
        [(place, rgba, blend == 1, disposal == 1, disposal == 2) for place, rgba in parts], (6, 8)
    )
    animation = read(data)
    assert count_frames(data) == 4
    assert (animation.durations_ms, animation.loop) == ((50.0,) * 4, 3)
    assert any("was left out" in note for note in animation.frames[0].notes) == extra
    for frame, expected in zip(animation.frames, wanted, strict=True):
        np.testing.assert_array_equal(_seen(frame)[..., 3], expected[..., 3])
        shown = expected[..., 3] > 0
        difference = frame.pixels[shown].astype(int) - expected[..., :3][shown]
        assert np.abs(difference).max() <= 1
    again = encode(animation)
    for frame, back, other in zip(
        animation.frames, read(again).frames, _pillow_frames(again), strict=True
    ):
        np.testing.assert_array_equal(_seen(frame), _seen(back))
        np.testing.assert_array_equal(_seen(frame), other)


def test_apng_of_palettes_and_grays() -> None:
    images = [Image.fromarray(_noise(9, 7, seed=k)) for k in range(3)]
    for mode in ("L", "P", "1"):
        converted = [image.convert(mode) for image in images]
        file = io.BytesIO()
        converted[0].save(file, "PNG", save_all=True, append_images=converted[1:], duration=20)
        for image, frame in zip(converted, read(file.getvalue()).frames, strict=True):
            wanted = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(_seen(frame)[..., :3], wanted)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"declared": 3}, "2 frames and says 3"),
        ({"declared": 2**31}, "more than 10,000"),
        ({"shift": 1}, "not in its place"),
        ({"end": False}, "cut off"),
    ],
)
def test_apng_that_contradicts_itself_is_refused(changes: dict, reason: str) -> None:
    frames = [((0, 0), _noise(4, 4, 4), 0, 0), ((1, 1), _noise(2, 2, 4), 0, 0)]
    assert len(read(_apng(frames)).frames) == 2
    with pytest.raises(PictureReadError, match=reason):
        read(_apng(frames, **changes))
    outside = [frames[0], ((3, 3), _noise(2, 2, 4), 0, 0)]
    with pytest.raises(PictureReadError, match="outside"):
        read(_apng(outside))


# ------------------------------------------------------------------------------------ WebP by hand


def _riff(name: bytes, part: bytes) -> bytes:
    return name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) & 1)


@pytest.mark.parametrize("blends", [False, True])
@pytest.mark.parametrize("clears", [False, True])
def test_webp_disposals_and_blends(blends: bool, clears: bool) -> None:
    parts = [((0, 0), _noise(6, 8, 4)), ((2, 2), _noise(3, 4, 4, seed=1))]
    parts += [((4, 0), _noise(4, 3, 4, seed=2)), ((0, 4), _noise(1, 1, 4, seed=3))]
    for _, rgba in parts:
        rgba[..., 3] = np.where(rgba[..., 3] > 128, 255, 0)
    body = b"WEBP" + _riff(b"VP8X", struct.pack("<B3xHBHB", 0x12, 7, 0, 5, 0))
    body += _riff(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 4))
    for (left, top), rgba in parts:
        file = io.BytesIO()
        Image.fromarray(rgba).save(file, "WEBP", lossless=True, exact=True)
        height, width = rgba.shape[:2]
        place = (left // 2, top // 2, width - 1, height - 1, 70)
        control = b"".join(n.to_bytes(3, "little") for n in place)
        flags = (not blends) << 1 | clears
        body += _riff(b"ANMF", control + bytes([flags]) + file.getvalue()[12:])
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    wanted = _layered([(place, rgba, blends, clears, False) for place, rgba in parts], (6, 8))
    animation = read(data)
    assert count_frames(data) == 4
    assert (animation.durations_ms, animation.loop) == ((70.0,) * 4, 4)
    again = encode(animation, lossless=True)
    for expected, frame, back in zip(wanted, animation.frames, read(again).frames, strict=True):
        expected[expected[..., 3] == 0] = 0
        np.testing.assert_array_equal(_seen(frame), expected)
        np.testing.assert_array_equal(_seen(back), expected)


# ------------------------------------------------------------------------------------------ pages


def _pages() -> Animation:
    exif = Image.Exif()
    exif[271] = "Maker"
    return Animation(
        frames=(
            Picture(
                pixels=_noise(7, 9, 3, dtype="uint16"),
                dpi=(300.0, 300.0),
                exif=exif.tobytes(),
                icc_profile=metadata.srgb_profile(),
                in_profile_space=True,
            ),
            Picture(pixels=_noise(17, 3, 1)),
            Picture(pixels=_noise(5, 5, 3), alpha=_noise(5, 5), dpi=(72.0, 72.0)),
            Picture(pixels=_noise(3, 4, 1, dtype="uint16")),
            Picture(pixels=_noise(2, 2, 3, dtype="uint16"), alpha=_noise(2, 2, dtype="uint16")),
        ),
        format="TIFF",
        kind="pages",
    )


def test_every_page_is_kept_as_it_is() -> None:
    pages = _pages()
    data = encode(pages)
    back = read(data)
    assert (back.kind, back.format, back.durations_ms) == ("pages", "TIFF", ())
    assert count_frames(data) == len(back.frames) == 5
    for wanted, page in zip(pages.frames, back.frames, strict=True):
        np.testing.assert_array_equal(wanted.pixels, page.pixels)
        assert (wanted.alpha is None) == (page.alpha is None)
        if wanted.alpha is not None:
            np.testing.assert_array_equal(wanted.alpha, page.alpha)
        assert page.dpi == wanted.dpi
        assert page.icc_profile == wanted.icc_profile
        assert page.notes == ()
    loaded = Image.Exif()
    loaded.load(back.frames[0].exif or b"")
    assert loaded[271] == "Maker"
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 5


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("big", [False, True])
def test_pages_of_others(compression: str | None, big: bool) -> None:
    images = [Image.fromarray(_noise(6 + k, 9, 3, seed=k)) for k in range(4)]
    images.append(images[0].convert("1"))
    file = io.BytesIO()
    images[0].save(
        file, "TIFF", save_all=True, append_images=images[1:], compression=compression,
        big_tiff=big,
    )  # fmt: skip
    back = read(file.getvalue())
    for image, page in zip(images, back.frames, strict=True):
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), _seen(page)[..., :3])


def test_previews_and_masks_are_no_pages() -> None:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for kind, size in ((0, 8), (1, 4), (0, 6), (1, 8), (2, 5)):
            writer.write(_noise(size, size), subfiletype=kind, metadata=None, contiguous=False)
    # tifffile writes no masks of 8 bits.
    preview, mask = (struct.pack("<HHII", 254, 4, 1, kind) for kind in (1, 4))
    first, second, third = file.getvalue().split(preview)
    data = first + preview + second + mask + third
    assert count_frames(data) == 3
    assert [page.width_px for page in read(data).frames] == [8, 6, 5]


def test_pages_in_a_circle_come_once() -> None:
    data = bytearray(encode(_pages()))
    links = [4]
    while (start := int.from_bytes(data[links[-1] : links[-1] + 4], "little")) != 0:
        links.append(start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"))
    data[links[-1] : links[-1] + 4] = data[4:8]
    assert count_frames(bytes(data)) == 5
    data[links[-1] : links[-1] + 4] = struct.pack("<I", len(data) + 100)
    with pytest.raises(PictureReadError, match="missing"):
        count_frames(bytes(data))


# --------------------------------------------------------------------------------- stills, damage


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"])
def test_a_still_is_one_page(format: str) -> None:
    picture = _frames(1)[0]
    data = pictures.encode(picture, format=format)
    assert count_frames(data) == 1
    still = read(data)
    assert (still.kind, still.format, len(still.frames)) == ("pages", format, 1)
    np.testing.assert_array_equal(still.frames[0].pixels, pictures.read(data).pixels)
    assert pictures.read(encode(still)).format == format
    assert pictures.read(encode(still, format="PNG")).format == "PNG"


def test_a_phones_several_jpegs_are_one_picture() -> None:
    images = [Image.fromarray(_noise(16, 16, 3, seed=k)) for k in range(2)]
    file = io.BytesIO()
    images[0].save(file, "MPO", save_all=True, append_images=images[1:])
    assert count_frames(file.getvalue()) == 1
    assert len(read(file.getvalue()).frames) == 1


def _samples() -> dict[str, bytes]:
    return {
        **{format: encode(_animation(format, alpha=True)) for format in ANIMATED},
        "PNG extra": _apng(
            [((0, 0), _noise(4, 4, 4, seed=k), k % 3, k % 2) for k in range(3)],
            extra=_noise(4, 4, 4),
        ),
        "TIFF": encode(_pages()),
    }


@pytest.mark.parametrize("kind", [*ANIMATED, "PNG extra", "TIFF"])
def test_what_is_cut_off_is_refused_or_complete(kind: str) -> None:
    whole = _samples()[kind]
    wanted = read(whole)
    step = max(1, len(whole) // 150)
    refused: list[str] = []
    for end in {*range(0, len(whole), step), *range(len(whole) - 24, len(whole))}:
        try:
            back = read(whole[:end])
        except PictureReadError as error:
            refused.append(str(error))
            continue
        assert len(back.frames) == len(wanted.frames), end
        assert back.durations_ms == wanted.durations_ms
        for a, b in zip(wanted.frames, back.frames, strict=True):
            np.testing.assert_array_equal(a.pixels, b.pixels)
    assert len(refused) >= 150
    assert all(line.isprintable() for line in refused)


@pytest.mark.parametrize("kind", [*ANIMATED, "PNG extra", "TIFF"])
def test_what_is_damaged_raises_nothing_else(kind: str) -> None:
    whole = _samples()[kind]
    random = np.random.default_rng(len(kind))
    refused = 0
    for case in range(120):
        broken = bytearray(whole)
        for _ in range(1 + case % 3):
            near = len(whole) if case % 2 else min(300, len(whole))
            broken[random.integers(near)] = random.integers(256)
        try:
            read(bytes(broken), max_pixels=10**6)
        except PictureReadError:
            refused += 1
    assert refused > 10


# ----------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("kind", [*ANIMATED, "TIFF"])
def test_too_many_pixels_are_refused_before_decoding(kind: str) -> None:
    data = _samples()[kind]
    total = sum(f.width_px * f.height_px for f in read(data).frames)
    assert len(read(data, max_pixels=total).frames) == 5
    with pytest.raises(PictureReadError, match=rf"{total:,} pixels in 5 .*--max-pixels"):
        read(data, max_pixels=total - 1)


def test_one_frame_is_limited_like_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger limit is for all frames together, not for a still or one of two."""
    monkeypatch.setattr("waifu4x.pictures.MAX_PIXELS", 100)
    for kind in (*ANIMATED, "TIFF"):
        data = _samples()[kind]
        side = max(f.width_px * f.height_px for f in read(data, max_pixels=10**6).frames)
        monkeypatch.setattr("waifu4x.pictures.MAX_PIXELS", side)
        assert len(read(data).frames) == 5
        monkeypatch.setattr("waifu4x.pictures.MAX_PIXELS", side - 1)
        with pytest.raises(PictureReadError, match=rf"of {side:,} pixels.*--max-pixels"):
            read(data)
    still = pictures.encode(_frames(1)[0], format="PNG")
    monkeypatch.setattr("waifu4x.pictures.MAX_PIXELS", 10)
    with pytest.raises(PictureReadError, match="limit of 10"):
        read(still)


def test_deep_frames_of_avif_are_told() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    frames = np.full((3, 16, 16, 3), 700, dtype=np.uint16)
    data = imagecodecs.avif_encode(frames, level=90, bitspersample=10)
    assert count_frames(data) == 3
    assert all("10-bit" in frame.notes[0] for frame in read(data).frames)


def test_bombs_are_refused_by_their_headers() -> None:
    tiny = _part(_full(1, 1, 1))
    many = _gif(*[tiny] * 30, size=(65_535, 65_535))
    with pytest.raises(PictureReadError, match="pixels in 30"):
        read(many)
    wide = bytearray(_part(_full(1, 1, 1)))
    wide[5:9] = b"\xff\xff\xff\xff"
    with pytest.raises(PictureReadError, match="pixels in 2"):
        read(_gif(tiny, bytes(wide)))
    with pytest.raises(PictureReadError, match="more than 10,000"):
        read(_gif(*[tiny] * 10_001, size=(1, 1)))
    assert count_frames(_gif(*[tiny] * 10_001, size=(1, 1))) == 10_001


def test_what_the_encoder_cannot_hold_is_refused_up_front() -> None:
    animation = _animation("GIF")
    check = animations.check_writable_as
    check(animation, "GIF", sizes_px=[(65_535, 100)] * 5)
    check(animation, "WEBP", sizes_px=[(16_383, 16_383)] * 5)
    for format, size in (("GIF", (65_536, 1)), ("WEBP", (1, 16_384)), ("AVIF", (32_769, 1))):
        with pytest.raises(PictureWriteError, match="px a side"):
            check(animation, format, sizes_px=[size] * 5)
    for format in ("JPEG", "BMP", "TIFF"):
        with pytest.raises(PictureWriteError, match="holds no animation"):
            encode(animation, format=format)
    for format in ("PNG", "GIF", "JPEG"):
        with pytest.raises(PictureWriteError, match="not 5 pages"):
            encode(_pages(), format=format)
    with pytest.raises(PictureWriteError, match="without loss"):
        encode(animation, lossless=True)
    with pytest.raises(UsageError, match="1 to 100"):
        encode(animation, quality=0)
    check(_pages(), "TIFF", sizes_px=[(15_000, 15_000)] * 4 + [(1, 1)])
    with pytest.raises(PictureWriteError, match="5 pages"):
        check(_pages(), "TIFF", sizes_px=[(20_000, 20_000)] * 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"durations_ms": (1.0,)},
        {"durations_ms": (-1.0,) * 5},
        {"loop": -1},
        {"frames": ()},
        {"frames": (*_frames(4), Picture(pixels=_noise(2, 2, 3)))},
        {"frames": (*_frames(4), _frames(5, alpha=True)[4])},
    ],
)
def test_an_animation_is_of_one_kind(changes: dict) -> None:
    right = {"frames": _frames(), "durations_ms": TIMES, "format": "PNG"}
    Animation(**right)
    with pytest.raises(PictureError):
        Animation(**right | changes)


# ------------------------------------------------------------------------------------------ files


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    animation = _animation("GIF")
    write(animation, path)
    assert count_frames(path) == 5
    assert read(path).format == read(io.BytesIO(path.read_bytes())).format == "GIF"
    write(animation, tmp_path / "b.webp", quality=50)
    assert read(tmp_path / "b.webp").format == "WEBP"
    before = path.read_bytes()
    with pytest.raises(PictureWriteError):
        write(animation, path, format="JPEG")
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.gif", "b.webp"}
    with pytest.raises(PictureWriteError, match="is a folder"):
        write(animation, tmp_path, format="GIF")
    with pytest.raises(PictureReadError, match="does not exist"):
        count_frames(tmp_path / "none.gif")
    (tmp_path / "no.gif").write_bytes(b"no picture")
    assert count_frames(tmp_path / "no.gif") == 1
    with pytest.raises(PictureReadError, match="not a picture"):
        read(tmp_path / "no.gif")


def test_other_frames_with_the_same_timing() -> None:
    animation = _animation("PNG", loop=4)
    larger = tuple(
        f.with_pixels(f.pixels.repeat(4, 0).repeat(4, 1), None) for f in animation.frames
    )
    back = read(encode(animation.with_frames(larger)))
    assert (back.durations_ms, back.loop) == (TIMES, 4)
    np.testing.assert_array_equal(back.frames[2].pixels, larger[2].pixels)
