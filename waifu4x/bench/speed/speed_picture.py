"""A picture out of nothing to measure speed and agreement with, where no file of anybody's is."""

from __future__ import annotations

import numpy as np

from waifu4x.pictures import Picture

# They cover nearly all of the picture.
_LEAVES = 2000


def natural_picture(width_px: int, height_px: int, *, seed: int = 0) -> Picture:
    """8-bit RGB with traits of photos: things in front of each other, shading and grain.

    Dead leaves, whose edges and sizes are distributed like those of photos: Lee, Mumford and Huang
    (2001), "Occlusion Models for Natural Images". The same for the same size and seed.
    """
    rng = np.random.default_rng(seed)
    pixels = np.full((height_px, width_px, 3), 120.0, dtype=np.float32)
    largest_px = max(1.0, max(width_px, height_px) / 4.0)
    smallest_px = max(1.0, largest_px / 32.0)
    for _ in range(_LEAVES):
        # Of density r^-3: leaves of every size cover as much.
        u = rng.random()
        radius_px = (u * smallest_px**-2 + (1.0 - u) * largest_px**-2) ** -0.5
        middle_y, middle_x = rng.random(2) * (height_px, width_px)
        top, left = (max(0, int(middle - radius_px)) for middle in (middle_y, middle_x))
        part = pixels[top : int(middle_y + radius_px) + 2, left : int(middle_x + radius_px) + 2]
        y, x = np.ogrid[: part.shape[0], : part.shape[1]]
        y, x = (y + top - middle_y) / radius_px, (x + left - middle_x) / radius_px
        color = rng.uniform(20.0, 235.0) + rng.normal(0.0, 25.0, 3)
        shades = rng.normal(0.0, 30.0, 2)
        leaf = (shades[0] * y + shades[1] * x)[..., None] + color
        # Where an edge passes through a pixel, the pixel is a mixture.
        cover = np.clip(radius_px * (1.0 - np.hypot(y, x)) + 0.5, 0.0, 1.0)[..., None]
        part += cover * (leaf - part)
    pixels += rng.normal(0.0, 2.0, pixels.shape)
    return Picture(pixels=np.clip(pixels, 0.0, 255.0).astype(np.uint8))
