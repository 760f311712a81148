"""Draws examples/compare.webp: crops of the examples, bicubic on the left, waifu4x on the right.

python examples/compare.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import waifu4x

HERE = Path(__file__).parent
SCALE = 4
GAP_PX = 8
# Left, top, width and height of the crop, in pixels of the small picture.
CROPS = {
    "meme.png": (30, 0, 120, 90),
    "anime.png": (78, 100, 120, 90),
    "photo.png": (70, 60, 120, 90),
}


def main() -> None:
    ways = [waifu4x.open_upscaler("bicubic"), waifu4x.open_upscaler()]
    target = waifu4x.Target(scale=SCALE)
    rows = []
    for name, crop in CROPS.items():
        left, top, width, height = (SCALE * n for n in crop)
        picture = waifu4x.read(HERE / name)
        large = [upscaler.upscale(picture, target)[0].pixels for upscaler in ways]
        cells = [pixels[top : top + height, left : left + width] for pixels in large]
        gap = np.full((height, GAP_PX, 3), 255, dtype=np.uint8)
        rows.append(np.concatenate([cells[0], gap, cells[1]], axis=1))
    gap = np.full((GAP_PX, rows[0].shape[1], 3), 255, dtype=np.uint8)
    sheet = np.concatenate([rows[0], *(part for row in rows[1:] for part in (gap, row))])
    waifu4x.write(waifu4x.Picture(pixels=sheet), HERE / "compare.webp", quality=92)


if __name__ == "__main__":
    main()
