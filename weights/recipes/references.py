"""References for pictures that have none: each seen from a little beside, under the same name.

    python weights/recipes/references.py Set5 references/Set5 --shift 1 --rotation 0.3 --zoom 0.003

What a camera would see that was moved: shifted, turned, nearer or farther, brighter or darker, each
by up to so much and drawn anew for every picture; `waifu4x.train.references.warping` does the same
to crops.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from waifu4x.train.references import warping
from waifu4x.train.references.reference_options import ReferenceOptions


def make(folder: Path, target: Path, options: ReferenceOptions) -> None:
    """One PNG in `target` for each picture in `folder`; a name always gets the same warp."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        random = np.random.default_rng(zlib.crc32(path.stem.encode()))
        whole = slice(0, image.shape[0]), slice(0, image.shape[1])
        seen = warping.warped(image, whole, warping.draw(options, random))
        Image.fromarray(seen).save(target / f"{path.stem}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--shift", type=float, default=1.0, help="in px")
    parser.add_argument("--rotation", type=float, default=0.3, help="in degrees")
    parser.add_argument("--zoom", type=float, default=0.003)
    parser.add_argument("--brightness", type=float, default=0.05)
    asked = parser.parse_args()
    limits = ReferenceOptions(
        shift_px=asked.shift,
        rotation_deg=asked.rotation,
        zoom=asked.zoom,
        brightness=asked.brightness,
    )
    make(asked.folder, asked.target, limits)
