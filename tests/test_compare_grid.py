"""The grid and the animation: every pixel of a result is in them as it is."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from waifu4x import animations
from waifu4x.compare import captions, flip, grid, subjects
from waifu4x.compare.crops import Crop
from waifu4x.compare.results import Comparison, Result
from waifu4x.compare.subjects import Wish
from waifu4x.errors import UsageError
from waifu4x.pictures import Picture
from waifu4x.upscaler import Facts


def facts(model: str) -> Facts:
    return Facts(
        model=model,
        passes=(),
        tile_px=None,
        waste=1.0,
        device="cpu",
        precision="fp32",
        network_s=0.1,
        notes=(),
    )


def comparison(
    *,
    size: tuple[int, int] = (60, 45),
    scale: int = 4,
    models: int = 2,
    truth: bool = True,
    name: str = "a.png",
    window: Crop | None = None,
) -> Comparison:
    """Noise, so that nothing is found in a wrong place by chance."""
    rng = np.random.default_rng(len(name))
    width, height = size

    def large() -> np.ndarray:
        return rng.integers(0, 256, (height * scale, width * scale, 3), dtype=np.uint8)

    results = tuple(
        Result(
            model="bicubic" if not n else f"model-{n}",
            pixels=large(),
            time_s=0.01 + n,
            parameters=None if not n else 1000 * n,
            psnr_db=20.0 + n if truth else None,
            ssim=0.5 + n / 10 if truth else None,
            facts=facts("x"),
        )
        for n in range(models + 1)
    )
    region = Crop(x=7, y=3, width_px=width, height_px=height)
    return Comparison(
        name=name,
        scale=scale,
        region=region,
        window=window or dataclasses.replace(region, x=0, y=0),
        chosen="the whole picture",
        is_whole=False,
        lr=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        results=results,
        truth=large() if truth else None,
    )


def found_at(canvas: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Every (x, y) at which `tile` is, exactly."""
    height, width = tile.shape[:2]
    first = (
        canvas[: canvas.shape[0] - height + 1, : canvas.shape[1] - width + 1] == tile[0, 0]
    ).all(axis=2)
    return [
        (int(x), int(y))
        for y, x in zip(*np.nonzero(first), strict=True)
        if np.array_equal(canvas[y : y + height, x : x + width], tile)
    ]


def test_results_and_truth_are_there_pixel_by_pixel_in_order() -> None:
    shown = comparison()
    picture = grid.draw([shown])
    assert shown.truth is not None
    places = [found_at(picture.pixels, r.pixels) for r in shown.results]
    places.append(found_at(picture.pixels, shown.truth))
    assert all(len(place) == 1 for place in places)
    xs = [place[0][0] for place in places]
    assert xs == sorted(set(xs))
    assert len({place[0][1] for place in places}) == 1


def test_the_input_is_repeated_pixels_but_for_the_marks() -> None:
    shown = comparison()
    canvas = grid.draw([shown]).pixels
    enlarged = shown.lr.repeat(4, axis=0).repeat(4, axis=1)
    (x, y), *_ = found_at(canvas, shown.results[0].pixels)
    left = x - enlarged.shape[1] - 16
    tile = canvas[y : y + enlarged.shape[0], left : left + enlarged.shape[1]]
    differs = (tile != enlarged).any(axis=2)
    assert 0.005 < differs.mean() < 0.1
    colors = {tuple(color) for color in tile[differs].tolist()}
    assert colors == {*grid.MARKS, (255, 255, 255)}


def test_insets_repeat_pixels_of_marked_places() -> None:
    shown = comparison()
    canvas = grid.draw([shown]).pixels
    for result, inset in itertools.product(shown.results, grid._insets(shown)):
        large = inset.cut(result.pixels).repeat(3, axis=0).repeat(3, axis=1)
        ((x, y),) = found_at(canvas, large)
        # Framed in one of the two colours.
        assert tuple(canvas[y - 1, x].tolist()) in grid.MARKS
        assert inset.x % 4 == inset.y % 4 == 0


def test_a_window_is_cut_out_of_the_results() -> None:
    window = Crop(x=10, y=5, width_px=30, height_px=20)
    shown = comparison(window=window)
    canvas = grid.draw([shown]).pixels
    assert len(found_at(canvas, shown.results[1].pixels[20:100, 40:160])) == 1
    assert found_at(canvas, shown.results[1].pixels) == []
    assert captions.heading(shown)[1].startswith("4x: 30x20 to 120x80 px")


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (8, 8)])
def test_small_pictures_have_no_insets_but_room_for_their_labels(size: tuple[int, int]) -> None:
    shown = comparison(size=size, scale=2)
    assert grid._insets(shown) == ()
    picture = grid.draw([shown])
    assert picture.width_px >= 3 * 230
    assert len(found_at(picture.pixels, shown.results[2].pixels)) >= 1


def test_several_pictures_are_rows_and_many_models_are_broken_into_lines() -> None:
    rows = [comparison(name="a.png"), comparison(name="bb.png", size=(30, 20))]
    canvas = grid.draw(rows).pixels
    tops = [found_at(canvas, row.results[0].pixels)[0][1] for row in rows]
    assert tops[1] > tops[0] + 45 * 4
    many = comparison(models=12, truth=False, size=(90, 20))
    picture = grid.draw([many])
    assert picture.width_px <= 2600
    places = [found_at(picture.pixels, result.pixels)[0] for result in many.results]
    assert len({y for _, y in places}) == 3
    assert len(set(places)) == 13


def test_the_background_is_light_and_labels_are_dark_on_it() -> None:
    canvas = grid.draw([comparison(size=(20, 20))]).pixels
    assert canvas[0, 0].min() >= 245
    # The title's letters.
    assert canvas[28:56, 28:120].min() < 60


def test_labels_that_no_font_has_and_that_are_too_long() -> None:
    shown = comparison(name="画像\x1b[31m\n" + "long" * 200)
    drawn = grid.draw([shown])
    assert drawn.pixels.shape == grid.draw([dataclasses.replace(shown, name="a.png")]).pixels.shape


def test_too_much_is_refused_before_any_work() -> None:
    large = Picture(pixels=np.zeros((2000, 2000, 3), dtype=np.uint8))
    subject = subjects.prepare(large, "a.png", wish=Wish(crop="all"))
    grid.check([subject], 1)
    with pytest.raises(UsageError, match=r"192 million pixels, and the limit is 150 million"):
        grid.check([subject], 2)
    for nothing in (grid.draw, flip.flip):
        with pytest.raises(UsageError):
            nothing([])


# ---------------------------------------------------------------------------------------- animation


def test_each_result_has_a_frame_at_the_same_place() -> None:
    shown = comparison(models=2)
    film = flip.flip([shown])
    assert len(film.frames) == 4
    assert film.loop == 0
    places = {
        tuple(found_at(frame.pixels, pixels))
        for frame, pixels in zip(
            film.frames, [*(r.pixels for r in shown.results), shown.truth], strict=True
        )
        if pixels is not None
    }
    assert places == {((0, 0),)}
    labels = [frame.pixels[-60:].tobytes() for frame in film.frames]
    assert len(set(labels)) == 4


def test_several_pictures_share_the_frames() -> None:
    rows = [
        comparison(name=name, size=size, truth=False)
        for name, size in (("a.png", (20, 10)), ("bb.png", (10, 20)), ("ccc.png", (30, 30)))
    ]
    film = flip.flip(rows)
    assert len(film.frames) == 3
    for number, frame in enumerate(film.frames):
        assert all(len(found_at(frame.pixels, row.results[number].pixels)) == 1 for row in rows)


def test_a_gif_has_all_frames_and_their_times(tmp_path: Path) -> None:
    film = flip.flip([comparison(size=(20, 15))])
    animations.write(film, tmp_path / "a.gif")
    again = animations.read(tmp_path / "a.gif")
    assert (again.durations_ms, again.loop) == ((1200.0,) * 4, 0)
    lossless = tmp_path / "a.webp"
    animations.write(film, lossless, lossless=True)
    for ours, theirs in zip(film.frames, animations.read(lossless).frames, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
