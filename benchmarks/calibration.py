"""Makes weights/calibration.png, by which int8 learns how large a network's numbers become.

    python benchmarks/calibration.py

A mosaic of crops of the example pictures, of CROP_PX each: of every picture as many, evenly from
the flattest to the most detailed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x.engines.openvino_int8 import CROP_PX

ROOT = Path(__file__).parents[1]
NAMES = ("photo.png", "anime.png", "meme.png", "meme.jpg")
EACH = 6

Uint8Array = npt.NDArray[np.uint8]


def crops(path: Path) -> list[Uint8Array]:
    """(CROP_PX, CROP_PX, 3) each."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    height, width, _ = pixels.shape
    cells = [
        pixels[top : top + CROP_PX, left : left + CROP_PX]
        for top in range(0, height - CROP_PX + 1, CROP_PX)
        for left in range(0, width - CROP_PX + 1, CROP_PX)
    ]
    cells.sort(key=lambda cell: float(np.abs(np.diff(cell.astype(np.int16), axis=1)).mean()))
    return [cells[round(n)] for n in np.linspace(0, len(cells) - 1, EACH)]


def main() -> None:
    rows = [np.concatenate(crops(ROOT / "examples" / name), axis=1) for name in NAMES]
    target = ROOT / "weights" / "calibration.png"
    Image.fromarray(np.concatenate(rows)).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
