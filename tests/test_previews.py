"""Previews and the learning path: what is shown is what the network gave, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from waifu4x import animations
from waifu4x.errors import TrainError
from waifu4x.resample import imresize
from waifu4x.train.reports import previews
from waifu4x.train.reports.previews import (
    Sample,
    learning_path,
    list_previews,
    load_preview,
    save_preview,
    side_by_side,
    write_path,
)

BLACK, WHITE = 0, 255


def noise(seed: int, height: int, width: int) -> previews.Uint8Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(
    *,
    seed: int = 0,
    size_px: tuple[int, int] = (9, 12),
    scale: int = 2,
    name: str = "owl",
    level: int | None = None,
    truth: bool = True,
) -> Sample:
    """Noise; with `level` the output is flat."""
    height, width = size_px[0] * scale, size_px[1] * scale
    output = noise(seed + 1, height, width)
    return Sample(
        name=name,
        lr=noise(seed, *size_px),
        output=output if level is None else np.full_like(output, level),
        truth=noise(seed + 2, height, width) if truth else None,
    )


def contains(picture: np.ndarray, tile: np.ndarray) -> bool:
    """Whether the tile lies somewhere in the picture exactly as it is."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, tile.shape)
    return bool((windows == tile).all(axis=(-3, -2, -1)).any())


def test_the_grid_shows_every_tile_as_it_is(tmp_path: Path) -> None:
    shown = sample(scale=3)
    path = save_preview(tmp_path, 1200, [shown])
    assert path == tmp_path / "previews" / "00001200.png"
    picture = np.asarray(Image.open(path))
    assert picture.shape[2] == 3
    enlarged = np.kron(shown.lr, np.ones((3, 3, 1), dtype=np.uint8))
    assert shown.truth is not None
    for tile in (enlarged, imresize(shown.lr, 3.0), shown.output, shown.truth):
        assert contains(picture, tile)


def test_a_preview_comes_back_as_it_was(tmp_path: Path) -> None:
    given = [
        sample(name="<owl>\n\u732b & \u00e9"),
        sample(seed=5, size_px=(20, 3), scale=4, truth=False, name="x" * 300),
        sample(seed=9, size_px=(1, 1), scale=1),
    ]
    read = load_preview(save_preview(tmp_path, 0, given))
    assert [each.name for each in read] == [each.name for each in given]
    for one, other in zip(read, given, strict=True):
        assert one.scale == other.scale
        assert np.array_equal(one.lr, other.lr)
        assert np.array_equal(one.output, other.output)
        assert (one.truth is None) == (other.truth is None)
        if one.truth is not None and other.truth is not None:
            assert np.array_equal(one.truth, other.truth)


def test_grids_are_of_one_size_and_labels_change_the_picture(tmp_path: Path) -> None:
    paths = [save_preview(tmp_path, step, [sample()]) for step in (0, 7, 12_345_678, 123_456_789)]
    assert list(list_previews(tmp_path).items()) == [
        (0, paths[0]), (7, paths[1]), (12_345_678, paths[2]), (123_456_789, paths[3])
    ]  # fmt: skip
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert len({picture.shape for picture in pictures}) == 1
    # The same samples: only the step in the first line differs.
    changed = (pictures[0] != pictures[1]).any(axis=(1, 2)).nonzero()[0]
    assert 0 < len(changed) < 20
    assert changed.max() < 20
    other_name = save_preview(tmp_path, 0, [sample(name="cat")])
    assert (np.asarray(Image.open(other_name)) != pictures[0]).any()
    (tmp_path / "previews" / "notes.png").write_bytes(b"")
    assert len(list_previews(tmp_path)) == 4


def test_what_is_no_sample() -> None:
    lr = noise(0, 4, 5)
    wrong: list[tuple[Any, Any]] = [
        (noise(0, 8, 11), None),
        (noise(0, 8, 15), None),
        (noise(0, 2, 2), None),
        (noise(0, 8, 10).astype(np.float32), None),
        (noise(0, 8, 10), noise(0, 8, 9)),
        (noise(0, 8, 10)[..., :1], None),
    ]
    for output, truth in wrong:
        with pytest.raises(ValueError, match=r"output|truth|multiple"):
            Sample(name="x", lr=lr, output=output, truth=truth)


def test_a_preview_that_is_none(tmp_path: Path) -> None:
    path = save_preview(tmp_path, 0, [sample()])
    data = path.read_bytes()
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    for content in (b"", b"no picture", data[: len(data) // 2], (tmp_path / "plain.png")):
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        with pytest.raises(TrainError, match=r"00000000\.png is no preview") as raised:
            load_preview(path)
        assert "\n" not in str(raised.value)
    with pytest.raises(TrainError):
        load_preview(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="at least one"):
        save_preview(tmp_path, 0, [])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainError, match="cannot write"):
        save_preview(tmp_path / "file", 0, [sample()])


def test_the_path_shows_every_change_once_and_rests_at_both_ends(tmp_path: Path) -> None:
    for step, level in ((0, 10), (5, 10), (10, 90), (20, 160), (30, 160)):
        save_preview(tmp_path, step, [sample(level=level)])
    film = learning_path(tmp_path)
    assert [int(frame.pixels[0, 0, 0]) for frame in film.frames] == [10, 90, 160]
    assert film.durations_ms == (1000.0, 150.0, 2500.0)
    assert film.loop == 0
    output = sample(level=90).output
    assert np.array_equal(film.frames[1].pixels[: output.shape[0], : output.shape[1]], output)
    # Nothing is drawn over the picture; the step stands below, and each frame has its own.
    captions = [frame.pixels[output.shape[0] :] for frame in film.frames]
    assert all(not np.array_equal(captions[0], other) for other in captions[1:])
    again = tmp_path / "again"
    save_preview(again, 30, [sample(level=160)])
    # Of the equal frames 20 and 30 the last says where the training ended.
    assert np.array_equal(learning_path(again).frames[0].pixels, film.frames[-1].pixels)


def test_the_path_as_files(tmp_path: Path) -> None:
    for step, level in ((0, BLACK), (100, WHITE)):
        save_preview(tmp_path, step, [sample(level=level)])
    webp, gif = write_path(learning_path(tmp_path), tmp_path)
    assert (webp.name, gif.name) == ("path.webp", "path.gif")
    for path in (webp, gif):
        film = animations.read(path)
        assert film.durations_ms == (1000.0, 2500.0)
        assert film.loop == 0
        first, last = (frame.pixels[:18, :24].mean() for frame in film.frames)
        assert first < 4
        assert last > 251


def test_limits_of_the_path(tmp_path: Path) -> None:
    flat = [sample(size_px=(20, 20), level=level) for level in (10, 60, 110, 160, 210)]
    for step in range(9):
        save_preview(tmp_path, step, [sample(seed=step, size_px=(20, 20)), *flat])
    film = learning_path(tmp_path, max_frames=4)
    assert len(film.frames) == 4
    for frame, step in ((film.frames[0], 0), (film.frames[-1], 8)):
        assert contains(frame.pixels, sample(seed=step, size_px=(20, 20)).output)
    # Tiles of 40 px with 8 between: two by two fit into 90, one into 60, its middle into 32.
    for side_px, levels in ((200, {10, 60, 110, 160, 210}), (90, {10, 60, 110}), (60, set())):
        pixels = learning_path(tmp_path, max_side_px=side_px).frames[0].pixels
        seen = {
            level
            for level in (10, 60, 110, 160, 210)
            if contains(pixels, flat[0].output * 0 + level)
        }
        assert seen == levels
    middle = sample(seed=0, size_px=(20, 20)).output[4:36, 4:36]
    assert contains(learning_path(tmp_path, max_side_px=32).frames[0].pixels, middle)
    with pytest.raises(ValueError, match="2 frames"):
        learning_path(tmp_path, max_frames=1)


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    mse, vgg = tmp_path / "mse", tmp_path / "vgg"
    for step, level in ((0, 0), (10, 50), (20, 100)):
        save_preview(mse, step, [sample(level=level)])
    for step, level in ((0, 0), (20, 200)):
        save_preview(vgg, step, [sample(level=level)])
    film = side_by_side([mse, vgg], ["mse", "vgg"])
    shown = [
        (int(frame.pixels[0, 0, 0]), int(frame.pixels[0, 24 + 24, 0])) for frame in film.frames
    ]
    assert shown == [(0, 0), (50, 0), (100, 200)]
    other = side_by_side([mse, vgg], ["mse", "gan"])
    assert (other.frames[0].pixels != film.frames[0].pixels).any()
    with pytest.raises(ValueError, match="labels"):
        side_by_side([mse, vgg], ["mse"])


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no previews"):
        learning_path(tmp_path)
    save_preview(tmp_path, 0, [sample()])
    save_preview(tmp_path, 1, [sample(size_px=(4, 4))])
    with pytest.raises(TrainError, match="other pictures"):
        learning_path(tmp_path)
