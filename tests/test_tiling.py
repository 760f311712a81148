"""Where tiles lie: every output pixel once, windows alike, halos wherever the picture has them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from waifu4x.tiling import Span, Tile, TileGrid, plan

SIDES = st.integers(1, 600)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, int], int, int, int, TileGrid]:
    """A picture's size, a tile, a halo and a multiple that go together, and their grid."""
    multiple = draw(st.sampled_from([1, 1, 2, 4, 8]))
    height, width = (-(-draw(SIDES) // multiple) * multiple for _ in range(2))
    # Tiles from tiny to larger than the picture, halos from nothing to larger than the tile.
    tile_px = draw(st.integers(multiple, 700))
    halo_px = draw(st.integers(0, 80))
    if (height // tile_px + 1) * (width // tile_px + 1) > 2000:
        tile_px = 64
    grid = plan((height, width), tile_px=tile_px, halo_px=halo_px, multiple=multiple)
    return (height, width), tile_px, halo_px, multiple, grid


@settings(max_examples=150, deadline=None)
@given(grids(), st.integers(1, 4))
def test_every_output_pixel_is_written_exactly_once(
    drawn: tuple[tuple[int, int], int, int, int, TileGrid], scale: int
) -> None:
    (height, width), _, _, _, grid = drawn
    written = np.zeros((height * scale, width * scale), dtype=np.uint16)
    for tile in grid:
        written[tile.place(scale)] += 1
    assert (written == 1).all()
    assert len(grid) == sum(1 for _ in grid)


@settings(max_examples=350, deadline=None)
@given(grids())
def test_windows_are_alike_inside_aligned_and_hold_core_and_halo(
    drawn: tuple[tuple[int, int], int, int, int, TileGrid],
) -> None:
    size_px, tile_px, halo_px, multiple, grid = drawn
    for length_px, spans, window_px in zip(
        size_px, (grid.rows, grid.columns), grid.window_px, strict=True
    ):
        assert spans[0].core_start == 0
        assert spans[-1].core_stop == length_px
        for before, after in pairwise(spans):
            assert before.core_stop == after.core_start
        cores = [span.core_stop - span.core_start for span in spans]
        assert max(cores) <= tile_px
        assert min(cores) * 2 >= max(cores), "a tiny last tile costs a whole window"
        for span in spans:
            assert span.window_px == window_px
            stop = span.window_start + span.window_px
            assert 0 <= span.window_start <= span.core_start < span.core_stop <= stop <= length_px
            for edge in (span.window_start, stop, span.core_start, span.core_stop):
                assert edge % multiple == 0
            assert span.window_start <= max(0, span.core_start - halo_px)
            assert stop >= min(length_px, span.core_stop + halo_px)


@settings(max_examples=60, deadline=None)
@given(grids(), st.integers(1, 4))
@example(((7, 5), 2, 3, 1, plan((7, 5), tile_px=2, halo_px=3)), 3)
def test_cores_of_an_exact_enlargement_put_together_are_the_enlargement(
    drawn: tuple[tuple[int, int], int, int, int, TileGrid], scale: int
) -> None:
    """`cut`, `core` and `place` agree with each other: nearest neighbour needs no halo."""
    (height, width), _, _, _, grid = drawn
    image = np.arange(height * width, dtype=np.int64).reshape(height, width, 1)
    enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
    result = np.full_like(enlarged, -1)
    for tile in grid:
        window = tile.cut(image)
        assert window.shape[:2] == grid.window_px
        result[tile.place(scale)] = tile.core(
            window.repeat(scale, axis=0).repeat(scale, axis=1), scale
        )
    np.testing.assert_array_equal(result, enlarged)


def test_a_grid_worked_out_by_hand() -> None:
    grid = plan((10, 4), tile_px=4, halo_px=1)
    # 10 px in tiles of at most 4 are three of 3, 3 and 4; the longest core and two halos are 6.
    assert grid.rows == (
        Span(window_start=0, window_px=6, core_start=0, core_stop=3),
        Span(window_start=2, window_px=6, core_start=3, core_stop=6),
        Span(window_start=4, window_px=6, core_start=6, core_stop=10),
    )
    assert grid.columns == (Span(window_start=0, window_px=4, core_start=0, core_stop=4),)
    assert grid.window_px == (6, 4)
    assert grid.waste == pytest.approx(3 * 6 * 4 / 40)
    tile = Tile(grid.rows[1], grid.columns[0])
    assert tile.place(2) == (slice(6, 12), slice(0, 8))
    assert grid.rows[1].inner(2) == slice(2, 8)
    assert grid.rows[1].window == slice(2, 8)


def test_a_picture_of_one_tile_is_shown_whole_and_wastes_nothing() -> None:
    grid = plan((100, 60), tile_px=100, halo_px=32)
    assert len(grid) == 1
    assert grid.window_px == (100, 60)
    assert grid.waste == 1.0


def test_a_halo_that_is_no_multiple_grows_and_a_tile_shrinks() -> None:
    grid = plan((400, 400), tile_px=103, halo_px=31, multiple=4)
    core_px = max(span.core_stop - span.core_start for span in grid.rows)
    assert core_px == 100
    assert grid.window_px == (100 + 2 * 32, 100 + 2 * 32)


@pytest.mark.parametrize(
    ("size_px", "tile_px", "halo_px", "multiple"),
    [
        ((0, 5), 8, 0, 1),
        ((5, -1), 8, 0, 1),
        ((5, 6), 8, 0, 2),
        ((8, 8), 3, 0, 4),
        ((8, 8), 0, 0, 1),
        ((8, 8), 4, -1, 1),
    ],
)
def test_what_cannot_be_tiled_is_refused(
    size_px: tuple[int, int], tile_px: int, halo_px: int, multiple: int
) -> None:
    with pytest.raises(ValueError, match="cannot tile"):
        plan(size_px, tile_px=tile_px, halo_px=halo_px, multiple=multiple)
