"""Lay out anime pictures that no model here was trained on, to judge them by.

    apt-get download renpy-demo renpy-thequestion
    for each: dpkg -x PACKAGE FOLDER
    python weights/recipes/anime.py FOLDER OUT

They are the characters and backgrounds of Ren'Py's demonstrations (MIT licence and others, see the
packages' `copyright`), the former over one of the latter, or over white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

_CHARACTERS = {
    "eileen happy": "bg washington.jpg",
    "eileen concerned": None,
    "lucy happy": "bg cave.jpg",
    "lucy mad": None,
    "sylvie blue normal": "bg uni.jpg",
    "sylvie blue giggle": None,
    "sylvie green smile": "bg uni.jpg",
    "sylvie green surprised": None,
}
_SCENES = ("bg club.jpg", "bg lecturehall.jpg", "bg meadow.jpg", "bg uni.jpg", "concert1.png")
# A multiple of every scale.
_MULTIPLE_PX = 12


def lay_out(unpacked: Path, out: Path) -> int:
    """Write the pictures; gives how many."""
    out.mkdir(parents=True, exist_ok=True)
    found = {path.name: path for path in sorted(unpacked.rglob("images/*"))}
    made = 0
    for name, background in _CHARACTERS.items():
        figure = Image.open(found[f"{name}.png"]).convert("RGBA")
        ground = Image.new("RGB", figure.size, "white")
        if background is not None:
            scene = Image.open(found[background]).convert("RGB")
            left = (scene.width - figure.width) // 2
            box = (left, 0, left + figure.width, figure.height)
            ground = scene.crop(box)
        ground.paste(figure, mask=figure)
        made += _write(ground, out / f"{name.replace(' ', '-')}.png")
    for name in _SCENES:
        if name in found:
            scene = Image.open(found[name]).convert("RGB")
            made += _write(scene, out / f"{Path(name).stem.replace(' ', '-')}.png")
    return made


def _write(picture: Image.Image, path: Path) -> int:
    width, height = (side - side % _MULTIPLE_PX for side in picture.size)
    picture.crop((0, 0, width, height)).save(path)
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(f"{lay_out(given.unpacked, given.out)} pictures")
