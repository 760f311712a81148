"""Colour arithmetic: against published numbers, exact inverses, and plain slow versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waifu4x import color


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    # MATLAB's rgb2ycbcr of black, white, red, green, blue, before rounding.
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
    ],
)
def test_luma_of_the_primaries(rgb: tuple[int, int, int], expected: float) -> None:
    assert color.luma(np.array(rgb, dtype=np.uint8)) == pytest.approx(expected, abs=1e-9)


def test_luma_is_the_first_channel_of_ycbcr() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    y = color.rgb_to_ycbcr(rgb / np.float32(255))[..., 0] * 255
    assert color.luma(rgb).dtype == np.float64
    np.testing.assert_allclose(y, color.luma(rgb), atol=1e-4)


def test_ycbcr_agrees_with_scikit_image() -> None:
    oracle = pytest.importorskip("skimage.color")
    rgb = _noise(20, 30, 3)
    np.testing.assert_allclose(
        color.rgb_to_ycbcr(rgb) * 255, oracle.rgb2ycbcr(rgb.astype(np.float64)), atol=1e-3
    )


def test_ycbcr_round_trip() -> None:
    rgb = _noise(50, 60, 3)
    back = color.ycbcr_to_rgb(color.rgb_to_ycbcr(rgb))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, rgb, atol=2e-6)


def test_bleed_keeps_what_is_visible_and_fills_the_rest_from_near() -> None:
    pixels = np.zeros((70, 90, 3), dtype=np.float32)
    alpha = np.zeros((70, 90), dtype=np.uint8)
    pixels[10:30, 10:30], alpha[10:30, 10:30] = (1.0, 0.5, 0.2), 255
    pixels[40:60, 60:80], alpha[40:60, 60:80] = (0.1, 0.2, 0.9), 128
    filled = color.bleed_alpha(pixels, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], pixels[alpha > 0])
    np.testing.assert_allclose(filled[9, 15], (1.0, 0.5, 0.2), atol=0.02)
    np.testing.assert_allclose(filled[61, 70], (0.1, 0.2, 0.9), atol=0.02)
    for channel in range(3):
        visible = pixels[alpha > 0][:, channel]
        assert filled[..., channel].min() >= visible.min() - 1e-6
        assert filled[..., channel].max() <= visible.max() + 1e-6


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_bleed_at_any_size(height: int, width: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    pixels = random.random((height, width, 1), dtype=np.float32)
    alpha = np.where(random.random((height, width)) < share, 0, 255).astype(np.uint8)
    hidden_nan = pixels.copy()
    hidden_nan[alpha == 0] = 0.0
    filled = color.bleed_alpha(hidden_nan, alpha)
    visible = pixels[alpha > 0]
    np.testing.assert_array_equal(filled[alpha > 0], visible)
    if visible.size:
        assert visible.min() - 1e-6 <= filled.min() <= filled.max() <= visible.max() + 1e-6
    else:
        np.testing.assert_array_equal(filled, hidden_nan)


def test_bleed_of_an_opaque_picture_is_a_copy() -> None:
    pixels = _noise(8, 8, 3)
    filled = color.bleed_alpha(pixels, np.full((8, 8), 255, dtype=np.uint8))
    np.testing.assert_array_equal(filled, pixels)
    assert not np.shares_memory(filled, pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(120, 160), (75, 101)])
def test_lock_removes_a_colour_cast_and_keeps_detail(channels: int, size: tuple[int, int]) -> None:
    rows = np.linspace(0.3, 0.6, size[0], dtype=np.float32)[:, None, None]
    output = np.broadcast_to(rows, (*size, channels)) + (_noise(*size, channels) - 0.5) * 0.1
    reference = color._area_average(output, 30, 40)
    locked = color.lock_low_frequencies(output + 0.08, reference, radius_px=4)
    assert locked.dtype == np.float32
    np.testing.assert_allclose(locked, output, atol=2e-3)


def test_lock_changes_nothing_where_nothing_is_wrong() -> None:
    output = _noise(64, 48, 3)
    locked = color.lock_low_frequencies(output, color._area_average(output, 16, 12))
    np.testing.assert_allclose(locked, output, atol=1e-6)


def test_lock_of_one_pixel_and_within_range() -> None:
    locked = color.lock_low_frequencies(np.full((4, 4, 1), 0.9), np.ones((1, 1, 1)))
    np.testing.assert_allclose(locked, 1.0)
    locked = color.lock_low_frequencies(_noise(40, 40, 3), np.ones((10, 10, 3)), radius_px=2)
    assert 0.0 <= locked.min() <= locked.max() <= 1.0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.integers(0)
)
def test_plateaus_against_a_plain_version(
    h: int, w: int, big_h: int, big_w: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    alpha_in = random.choice(np.array([0, 255, 90], np.uint8), (h, w), p=[0.48, 0.48, 0.04])
    alpha_out = random.integers(1, 255, (big_h, big_w), dtype=np.uint8)
    result = color.restore_plateaus(alpha_out, alpha_in)
    for y in range(big_h):
        for x in range(big_w):
            seen = alpha_in[np.ix_(_support(y, h, big_h), _support(x, w, big_w))]
            flat = seen.min() == seen.max() and seen.min() in (0, 255)
            assert result[y, x] == (seen.min() if flat else alpha_out[y, x])


def _support(place: int, size: int, larger: int) -> list[int]:
    scale = larger / size
    reach = int(np.ceil(2 * max(1.0, 1 / scale)))
    left = int(np.floor((place + 0.5) / scale - 0.5))
    return sorted({min(max(k, 0), size - 1) for k in range(left - reach + 1, left + reach + 1)})


def test_plateaus_in_float_and_16_bit() -> None:
    alpha_in = np.full((6, 6), 65535, dtype=np.uint16)
    result = color.restore_plateaus(np.full((24, 24), 0.98, dtype=np.float32), alpha_in)
    np.testing.assert_array_equal(result, 1.0)
    assert result.dtype == np.float32
