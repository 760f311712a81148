"""What a picture is taken for: kinds, traces of compression, sizes, depths, and what is refused."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes
from PIL import Image, ImageDraw

from waifu4x.auto import picking
from waifu4x.auto.picking import Look, look
from waifu4x.catalog import shipped_folder
from waifu4x.errors import WeightsError

EXAMPLES = Path(__file__).parents[1] / "examples"


def opened(name: str) -> np.ndarray:
    return np.asarray(Image.open(EXAMPLES / name).convert("RGB"))


def saved(pixels: np.ndarray, quality: int, *, codec: str = "JPEG") -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, codec, quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def drawn() -> np.ndarray:
    """Flat shapes with outlines on a flat ground."""
    picture = Image.new("RGB", (640, 480), (250, 220, 160))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((80, 60, 400, 400), fill=(60, 140, 220), outline=(20, 20, 30), width=12)
    draw.polygon([(350, 420), (600, 90), (610, 440)], fill=(200, 40, 70), outline=(20, 20, 30))
    draw.rectangle((180, 180, 230, 250), fill=(255, 255, 255))
    return np.asarray(picture.resize((160, 120), Image.Resampling.BICUBIC))


# -- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("anime.png", "art"), ("meme.png", "art"), ("photo.png", "photo")]
)
@pytest.mark.parametrize("quality", [None, 75, 40])
def test_the_examples(name: str, kind: str, quality: int | None) -> None:
    pixels = opened(name)
    seen = look(pixels if quality is None else saved(pixels, quality))
    assert (seen.kind, seen.compressed) == (kind, quality is not None)


def test_the_meme_as_the_web_hands_it_around() -> None:
    seen = look(opened("meme.jpg"))
    assert seen.kind == "art"
    assert seen.compressed


def test_shapes_are_drawn() -> None:
    assert look(drawn()).kind == "art"
    assert look(saved(drawn(), 50)).kind == "art"


def test_a_gray_photograph_and_one_with_a_caption_are_photographs() -> None:
    photo = Image.fromarray(opened("photo.png"))
    assert look(np.asarray(photo.convert("L"))[..., None]).kind == "photo"
    draw = ImageDraw.Draw(photo)
    for corner in ((20, 10), (60, 210)):
        draw.text(corner, "ME AT 3 AM", font_size=28, fill="white", stroke_width=2, stroke_fill=0)
    assert look(np.asarray(photo)).kind == "photo"


@pytest.mark.parametrize("corner", [(0, 0), (3, 5), (7, 1)])
def test_blocks_are_found_wherever_their_grid_begins(corner: tuple[int, int]) -> None:
    top, left = corner
    assert look(saved(opened("photo.png"), 75)[top:, left:]).compressed
    assert not look(opened("photo.png")[top:, left:]).compressed


@pytest.mark.parametrize("name", ["anime.png", "photo.png"])
def test_a_large_picture_is_judged_by_windows_as_a_small_one_is(name: str) -> None:
    tiled = np.tile(opened(name), (4, 6, 1))
    clean, blocky = look(tiled), look(saved(tiled, 60))
    assert clean.kind == blocky.kind == look(opened(name)).kind
    assert (clean.compressed, blocky.compressed) == (False, True)


# -- any picture -----------------------------------------------------------------------------------


def test_shares_and_answers_agree() -> None:
    for pixels in (opened("photo.png"), saved(drawn(), 40), opened("anime.png")[:9, :9]):
        seen = look(pixels)
        assert (seen.kind == "art") == (seen.art_share >= 0.5)
        assert seen.compressed == (seen.compressed_share >= 0.5)


def test_the_same_pixels_give_the_same_look_however_they_lie_in_memory() -> None:
    pixels = opened("photo.png")
    turned = np.asfortranarray(pixels)
    spaced = np.repeat(pixels, 2, axis=1)[:, ::2]
    assert look(pixels) == look(pixels) == look(turned) == look(spaced)


@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (500, 700)])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_colour_is_art_and_not_compressed(shape: tuple[int, int], channels: int) -> None:
    pixels = np.empty((*shape, channels), dtype=np.uint8)
    pixels[:] = [7, 130, 255][:channels]
    assert look(pixels) == Look(kind="art", compressed=False, art_share=1.0, compressed_share=0.0)


def test_gray_is_the_same_in_one_channel_and_three() -> None:
    gray = opened("anime.png")[..., 1:2]
    assert look(gray) == look(np.repeat(gray, 3, axis=2))


@pytest.mark.parametrize("name", ["anime.png", "photo.png"])
def test_sixteen_bits_are_judged_as_eight(name: str) -> None:
    pixels = opened(name)
    assert look(pixels.astype(np.uint16) * 257) == look(pixels)


@settings(max_examples=40, deadline=None)
@given(
    shapes.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    )
)
def test_every_small_picture_can_be_looked_at(pixels: np.ndarray) -> None:
    seen = look(pixels)
    assert 0.0 <= seen.art_share <= 1.0
    assert 0.0 <= seen.compressed_share <= 1.0


@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (3, 4000), (4000, 17)])
def test_narrow_strips(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert 0.0 <= look(pixels).art_share <= 1.0


def test_a_huge_picture_takes_no_more_memory_than_a_small_one() -> None:
    row = np.random.default_rng(0).integers(0, 256, (1, 10_000, 3), dtype=np.uint8)
    huge = np.broadcast_to(row, (10_000, 10_000, 3))
    tracemalloc.start()
    try:
        look(huge)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40 * 2**20  # a copy would take 300 MB


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
    ],
    ids=lambda pixels: f"{pixels.shape} {pixels.dtype}",
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(h, w, 1 or 3\) uint8 or uint16, not"):
        look(pixels)


@pytest.fixture
def other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fitted numbers are read from here."""
    monkeypatch.setattr(picking, "shipped_folder", lambda: tmp_path)
    picking._fitted.cache_clear()
    yield tmp_path
    picking._fitted.cache_clear()


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{}", '{"mean": [0], "deviation": [1], "hidden": [[1], [1]], "output": [1]}'],
)
def test_damaged_numbers_are_one_line(other_folder: Path, text: str | None) -> None:
    if text is not None:
        (other_folder / picking.WEIGHTS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"picking\.json is damaged \(.+\); reinstall waifu4x"):
        look(drawn())


def test_the_numbers_that_ship_are_small() -> None:
    assert (shipped_folder() / picking.WEIGHTS_FILE).stat().st_size < 60_000
