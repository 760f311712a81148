"""Captions as memes have them: white capitals with a black outline, drawn into a picture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_WORDS = (
    *("WHEN YOU", "NOBODY:", "ME AT 3 AM", "THAT FACE", "ONE DOES NOT SIMPLY", "WAIT, WHAT?"),
    *("QUICK", "JUMPY", "FOX", "LAZY", "DOGS", "VEXED", "WIZARD", "EVERY", "SINGLE", "TIME"),
    *("MONDAY", "AGAIN", "100%", "2 x 4 = 8", "no", "yes & more", "But why", "please", "help!"),
    *("GRANDMA", "IS NOT", "SURE IF", "OR JUST", "BRACE YOURSELVES", "KEEP CALM", "(PART 2)"),
)
_MOST_WORDS = 3
# Sizes are drawn in steps, so that fonts can be kept: making one takes longer than using it.
_SIZE_STEP_PX = 2


def with_caption(
    picture: npt.NDArray[np.uint8], random: np.random.Generator, *, height_px: tuple[float, float]
) -> npt.NDArray[np.uint8]:
    """A copy of (H, W, 3) uint8 with one or two lines of text somewhere, cut off at the borders.

    The edges are the font renderer's own, antialiased and nothing else, whatever the picture is
    like. Pillow's built-in font is used, so that the same text looks the same everywhere.

    Args:
        height_px: from which the size of the font is drawn.
    """
    size_px = max(_SIZE_STEP_PX, round(random.uniform(*height_px) / _SIZE_STEP_PX) * _SIZE_STEP_PX)
    image = Image.fromarray(picture)
    lines = [
        " ".join(random.choice(_WORDS, size=int(random.integers(1, _MOST_WORDS + 1))))
        for _ in range(int(random.integers(1, 3)))
    ]
    height, width = picture.shape[:2]
    ImageDraw.Draw(image).multiline_text(
        (random.uniform(0.2, 0.8) * width, random.uniform(0.1, 0.9) * height),
        "\n".join(lines),
        font=_font(size_px),
        fill=(255, 255, 255),
        stroke_width=max(1.0, size_px * random.uniform(0.04, 0.1)),
        stroke_fill=(0, 0, 0),
        anchor="mm",
        align="center",
    )
    return np.array(image)


@lru_cache(maxsize=64)
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
