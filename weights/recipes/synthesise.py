"""Draw pictures that no collection of openly licensed ones holds enough of, with perfect edges.

    python weights/recipes/synthesise.py OUT --count 480 [--photos FOLDER]

Four kinds in turn, 512×512 px each: captions as memes have them over photographs (of FOLDER) or
gradients, screens with text and boxes, drawings of flat colours with outlines, and line art with
hatching and screentones. Everything is drawn in four times the size and averaged down. Texts are in
the open fonts that this machine has (DejaVu, Liberation, Lato, Open Sans, Comic Neue, Roboto,
League Spartan, Noto CJK; see _OPEN_FONTS); which of them it found is printed. The same fonts and
the same seed give the same pictures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE_PX = 512
_TIMES = 4
_DRAWN_PX = _SIDE_PX * _TIMES
_FONT_FOLDERS = (Path("/usr/share/fonts"), Path.home() / ".local/share/fonts")
_OPEN_FONTS = (
    *("DejaVuSans", "DejaVuSerif", "Liberation", "Lato-", "OpenSans", "ComicNeue"),
    *("Roboto-", "LeagueSpartan", "NotoSansCJK", "NotoSerifCJK"),
)
_BOLD = ("Bold", "Black", "Heavy")
_PROSE = (
    "when you open the door and the cat has been waiting there all night long again nobody me at "
    "three in the morning why is it always like this please send help before Monday 100% real 2026 "
    "settings account privacy cancel OK download file edit view search results for version error "
    "lorem ipsum quick brown fox jumps over lazy dog sphinx of black quartz judge my vow"
)
_KANA = (
    "これは猫ではありません。今日も雨が降っているのに、空は青い。大きな声で笑った！ありがとう？漫画"
)

Point = tuple[float, float]
Colour = tuple[int, int, int]


@lru_cache(maxsize=1)
def open_fonts() -> tuple[Path, ...]:
    """The fonts of _OPEN_FONTS that are installed, in the order of their names."""
    found = {
        path.name: path
        for folder in _FONT_FOLDERS
        for path in sorted(folder.rglob("*.[to]t[fc]"))
        if path.name.startswith(_OPEN_FONTS)
    }
    if not found:
        raise SystemExit("none of the open fonts is installed; see the top of this file")
    return tuple(found[name] for name in sorted(found))


def _font(random: np.random.Generator, size_px: float, *, bold: bool = False, kana: bool = False):
    fitting = [path for path in open_fonts() if ("CJK" in path.name) == kana]
    if bold:
        fitting = [path for path in fitting if any(b in path.name for b in _BOLD)] or fitting
    fitting = fitting or list(open_fonts())
    return ImageFont.truetype(str(fitting[int(random.integers(len(fitting)))]), size_px)


def _text(random: np.random.Generator, words: int, *, kana: bool = False) -> str:
    if kana:
        start = int(random.integers(len(_KANA) - 8))
        return _KANA[start : start + 2 * words]
    return " ".join(random.choice(_PROSE.split(), size=words))


def _colour(random: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = (int(v) for v in random.integers(low, high, 3))
    return red, green, blue


def _gradient(random: np.random.Generator) -> Image.Image:
    first, second = np.array(_colour(random)), np.array(_colour(random))
    angle = random.uniform(0.0, 2.0 * math.pi)
    y, x = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX] / _SIDE_PX - 0.5
    along = np.clip(0.5 + math.cos(angle) * x + math.sin(angle) * y, 0.0, 1.0)[..., None]
    mixed = np.rint(first + along * (second - first)).astype(np.uint8)
    return Image.fromarray(mixed)


def _curve(random: np.random.Generator, knots: int, centre: Point, reach: float) -> list[Point]:
    """A closed smooth curve around `centre`: a circle whose radius wavers."""
    angles = np.linspace(0.0, 2.0 * math.pi, 180, endpoint=False)
    radius = np.ones_like(angles)
    for wave in range(1, knots + 1):
        height, phase = random.normal(0.0, 0.35 / wave), random.uniform(0.0, 2.0 * math.pi)
        radius += height * np.cos(wave * angles + phase)
    radius = reach * np.maximum(radius, 0.15)
    stretch = random.uniform(0.5, 1.5)
    xs, ys = centre[0] + stretch * radius * np.cos(angles), centre[1] + radius * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _strand(random: np.random.Generator, reach: float) -> list[Point]:
    """An open cubic Bezier curve somewhere in the picture."""
    knots = random.uniform(-0.1, 1.1, 2) * _DRAWN_PX + random.normal(0.0, reach, (4, 2)).cumsum(0)
    t = np.linspace(0.0, 1.0, 60)[:, None]
    points = (
        (1 - t) ** 3 * knots[0]
        + 3 * t * (1 - t) ** 2 * knots[1]
        + 3 * t**2 * (1 - t) * knots[2]
        + t**3 * knots[3]
    )
    return [(float(x), float(y)) for x, y in points]


def _stroke(
    draw: ImageDraw.ImageDraw, points: Sequence[Point], width: float, colour: Colour
) -> None:
    """A brush stroke that is thin at its ends."""
    for k, (x, y) in enumerate(points):
        radius = 0.5 * width * (0.25 + 0.75 * math.sin(math.pi * k / (len(points) - 1)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        if k:
            draw.line((points[k - 1], (x, y)), fill=colour, width=max(1, round(2 * radius)))


def meme(random: np.random.Generator, photos: Sequence[Path]) -> Image.Image:
    """A photograph, or a gradient, with white capitals outlined in black above and below."""
    if photos and random.random() < 0.8:
        picture = Image.open(photos[int(random.integers(len(photos)))]).convert("RGB")
        picture = picture.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    else:
        picture = _gradient(random)
    canvas = picture.resize((_DRAWN_PX, _DRAWN_PX), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for place in random.permutation([0.02, 0.3, 0.6, 0.98])[: int(random.integers(1, 4))]:
        size_px = _TIMES * random.uniform(18.0, 72.0)
        words = max(1, int(random.integers(2, 9) * 30 * _TIMES / size_px))
        text = _text(random, words)
        draw.text(
            (_DRAWN_PX / 2 + random.normal(0.0, 0.1) * _DRAWN_PX, place * _DRAWN_PX),
            text.upper() if random.random() < 0.8 else text,
            font=_font(random, size_px, bold=random.random() < 0.7),
            fill=(255, 255, 255) if random.random() < 0.8 else _colour(random),
            stroke_width=size_px * random.choice([0.0, 0.05, 0.08, 0.11]),
            stroke_fill=(0, 0, 0),
            anchor="ma" if place < 0.5 else "md",
        )
    small = canvas.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    # Where nothing was drawn the photograph stays as it was, not blurred by the way there and back.
    untouched = np.asarray(picture.resize((_DRAWN_PX, _DRAWN_PX), Image.Resampling.BICUBIC))
    touched = Image.fromarray((np.asarray(canvas) != untouched).any(axis=2))
    mask = touched.convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    return Image.composite(small, picture, mask.point(lambda share: 255 if share else 0))


def screen(random: np.random.Generator, photos: Sequence[Path]) -> Image.Image:
    """A page, a window or a chat: boxes, lines and paragraphs, on a light or dark ground."""
    dark = random.random() < 0.4
    ground = _colour(random, 0, 50) if dark else _colour(random, 215, 256)
    ink = _colour(random, 190, 256) if dark else _colour(random, 0, 90)
    accent = _colour(random)
    canvas = Image.new("RGB", (_DRAWN_PX, _DRAWN_PX), ground)
    draw = ImageDraw.Draw(canvas)
    y = random.uniform(0.0, 0.05) * _DRAWN_PX
    while y < _DRAWN_PX:
        kana = random.random() < 0.15
        size_px = _TIMES * random.choice([9.0, 11.0, 12.0, 13.0, 14.0, 16.0, 20.0, 28.0, 40.0])
        height, left = 1.35 * size_px, random.choice([0.02, 0.05, 0.1, 0.3]) * _DRAWN_PX
        lines = int(random.integers(1, 6))
        font, colour = _font(random, size_px, kana=kana), ink
        kind = random.random()
        if kind < 0.3:
            box = (left, y, left + random.uniform(0.2, 0.8) * _DRAWN_PX, y + (lines + 0.7) * height)
            filled = accent if random.random() < 0.5 else _colour(random)
            draw.rounded_rectangle(
                box,
                radius=random.choice([0.0, 3.0, 8.0, 16.0]) * _TIMES,
                fill=filled if random.random() < 0.6 else None,
                outline=ink if random.random() < 0.6 else None,
                width=_TIMES * int(random.integers(1, 3)),
            )
            colour = (255, 255, 255) if sum(filled) < 380 else (20, 20, 20)
        elif kind < 0.4:
            draw.line((left, y, _DRAWN_PX, y), fill=ink, width=_TIMES)
        elif kind < 0.5:
            radius = random.uniform(8.0, 30.0) * _TIMES
            draw.ellipse((left, y, left + 2 * radius, y + 2 * radius), fill=_colour(random))
            left += 2.2 * radius
        for line in range(lines):
            text = _text(random, int(random.integers(2, 14)), kana=kana)
            top = y + 0.2 * height + line * height
            draw.text((left + 0.4 * size_px, top), text, font=font, fill=colour)
        y += (lines + random.uniform(0.9, 2.0)) * height
    return canvas.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)


def drawing(random: np.random.Generator, photos: Sequence[Path]) -> Image.Image:
    """Flat colours with a shade each, most of them outlined, and strands over them."""
    canvas = _gradient(random).resize((_DRAWN_PX, _DRAWN_PX), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    outline = _colour(random, 0, 60)
    width = _TIMES * random.uniform(1.0, 5.0)
    for _ in range(int(random.integers(6, 22))):
        centre: Point = (random.uniform(0, _DRAWN_PX), random.uniform(0, _DRAWN_PX))
        reach = _DRAWN_PX * random.uniform(0.03, 0.28)
        curve = _curve(random, int(random.integers(1, 7)), centre, reach)
        fill = _colour(random)
        draw.polygon(curve, fill=fill)
        if random.random() < 0.6:  # the shade, a second tone within the first
            shade = tuple(int(0.7 * v) for v in fill)
            shift, size = random.uniform(0.1, 0.4) * reach, random.uniform(0.4, 0.8)
            inner = [
                (centre[0] + size * (x - centre[0]) + shift, centre[1] + size * (y - centre[1]))
                for x, y in curve
            ]
            draw.polygon(inner, fill=shade)
        if random.random() < 0.75:
            draw.line([*curve, curve[0]], fill=outline, width=round(width), joint="curve")
    for _ in range(int(random.integers(0, 25))):
        colour = outline if random.random() < 0.6 else _colour(random)
        _stroke(draw, _strand(random, 0.12 * _DRAWN_PX), width * random.uniform(0.5, 2.5), colour)
    return canvas.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)


def line_art(random: np.random.Generator, photos: Sequence[Path]) -> Image.Image:
    """Black on white, or the reverse: outlines, strands, hatching, screentones and lettering."""
    canvas = Image.new("RGB", (_DRAWN_PX, _DRAWN_PX), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(random.integers(1, 4))):
        tone = Image.new("RGB", canvas.size, (255, 255, 255))
        (_dots if random.random() < 0.5 else _hatching)(ImageDraw.Draw(tone), random)
        mask = Image.new("1", canvas.size)
        centre: Point = (random.uniform(0, _DRAWN_PX), random.uniform(0, _DRAWN_PX))
        area = _curve(random, 4, centre, _DRAWN_PX * random.uniform(0.1, 0.3))
        ImageDraw.Draw(mask).polygon(area, fill=1)
        canvas.paste(tone, (0, 0), mask)
        draw.line([*area, area[0]], fill=(0, 0, 0), width=_TIMES * int(random.integers(1, 5)))
    for _ in range(int(random.integers(10, 45))):
        width = _TIMES * random.uniform(0.7, 5.0)
        _stroke(draw, _strand(random, random.uniform(0.03, 0.2) * _DRAWN_PX), width, (0, 0, 0))
    for _ in range(int(random.integers(0, 4))):
        kana = random.random() < 0.4
        place = (random.uniform(0.0, 0.8) * _DRAWN_PX, random.uniform(0.0, 0.9) * _DRAWN_PX)
        font = _font(random, _TIMES * random.uniform(10.0, 44.0), kana=kana)
        text = _text(random, int(random.integers(1, 4)), kana=kana)
        box = draw.textbbox(place, text, font=font)
        margin = 6 * _TIMES
        bubble = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
        draw.rounded_rectangle(
            bubble, radius=20 * _TIMES, fill=(255, 255, 255), outline=(0, 0, 0), width=2 * _TIMES
        )
        draw.text(place, text, font=font, fill=(0, 0, 0))
    small = canvas.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    return Image.eval(small, lambda level: 255 - level) if random.random() < 0.15 else small


def _dots(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    pitch = _TIMES * random.uniform(3.0, 9.0)
    radius = pitch * random.uniform(0.2, 0.45)
    for row in range(int(_DRAWN_PX / pitch) + 1):
        for column in range(int(_DRAWN_PX / pitch) + 1):
            x, y = (column + 0.5 * (row % 2)) * pitch, row * pitch
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 0, 0))


def _hatching(draw: ImageDraw.ImageDraw, random: np.random.Generator) -> None:
    pitch, angle = _TIMES * random.uniform(3.0, 12.0), random.uniform(0.0, math.pi)
    along, across = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    middle, reach = _DRAWN_PX / 2, _DRAWN_PX
    width = max(1, round(pitch * random.uniform(0.15, 0.4)))
    for k in range(-int(reach / pitch), int(reach / pitch) + 1):
        x, y = middle + k * pitch * across[0], middle + k * pitch * across[1]
        ends = [(x + t * along[0], y + t * along[1]) for t in (-reach, reach)]
        draw.line(ends, fill=(0, 0, 0), width=width)


KINDS: tuple[Callable[[np.random.Generator, Sequence[Path]], Image.Image], ...] = (
    meme,
    screen,
    drawing,
    line_art,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--photos", type=Path, help="photographs for the captions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    photos = sorted(given.photos.iterdir()) if given.photos else []
    for number in range(given.count):
        random = np.random.default_rng([given.seed, number])
        kind = KINDS[number % len(KINDS)]
        kind(random, photos).save(given.out / f"{kind.__name__}-{number:04}.png")
    print(f"{given.count} pictures; fonts: {', '.join(path.stem for path in open_fonts())}")


if __name__ == "__main__":
    main()
