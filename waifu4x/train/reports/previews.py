"""What training does to a few fixed pictures: a labelled grid per step, and the way as a film.

A grid is an ordinary PNG that also says, in a text chunk, where its tiles lie. So one file per step
is all that is kept: the film and the report cut the network's outputs out of the grids again, pixel
by pixel as they were.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from waifu4x import animations, files
from waifu4x.animations import Animation
from waifu4x.errors import TrainError
from waifu4x.pictures import Picture
from waifu4x.resample import imresize

Uint8Array = npt.NDArray[np.uint8]

FOLDER = "previews"
PATH_NAMES = ("path.webp", "path.gif")
FRAME_MS = 150.0
FIRST_FRAME_MS = 1000.0
LAST_FRAME_MS = 2500.0

_NAME = re.compile(r"\d{8,}\.png")
_CHUNK = "waifu4x"
_FORMAT = 1
_PAPER, _INK, _FAINT = (24, 25, 29), (240, 240, 242), (160, 163, 172)
_FONT_PX = 14
_LINE_PX = 20
_GAP_PX = 8
_RUNS_GAP_PX = 24
_FILM_QUALITY = 90


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One fixed picture and what the network makes of it; all arrays are uint8 RGB."""

    name: str
    lr: Uint8Array
    """(h, w, 3): what the network is given."""
    output: Uint8Array
    """(s·h, s·w, 3) with a whole s >= 1: what it gave."""
    truth: Uint8Array | None = None
    """(s·h, s·w, 3), when it is known."""

    def __post_init__(self) -> None:
        for part in ("lr", "output", "truth"):
            array = getattr(self, part)
            if part == "truth" and array is None:
                continue
            if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
                raise ValueError(f"{part} is (H, W, 3) uint8, not {array.shape} {array.dtype}")
        height, width = self.lr.shape[:2]
        if self.output.shape != (height * self.scale, width * self.scale, 3) or self.scale < 1:
            raise ValueError(f"{self.output.shape} is no multiple of {self.lr.shape}")
        if self.truth is not None and self.truth.shape != self.output.shape:
            raise ValueError(f"the truth is {self.truth.shape}, the output {self.output.shape}")

    @property
    def scale(self) -> int:
        """Output pixels to a side of one input pixel."""
        return self.output.shape[0] // self.lr.shape[0]

    @property
    def tiles(self) -> dict[str, Uint8Array]:
        """What is shown, in order, all of the output's size: nothing but enlarged."""
        enlarged = self.lr.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        tiles = {
            "input": enlarged,
            "bicubic": imresize(self.lr, float(self.scale)),
            "output": self.output,
        }
        return tiles if self.truth is None else {**tiles, "truth": self.truth}


def save_preview(run_folder: Path, step: int, samples: Sequence[Sample]) -> Path:
    """Write the grid of `samples` after `step` steps as ``previews/{step:08d}.png``; returns it.

    One row a sample: the input enlarged by repeating pixels, bicubic, the output, and the truth
    where it is known. No pixel is resampled, so grids of the same samples are of one size and
    `load_preview` gives the arrays back as they were. An older grid of that step is replaced.

    Raises:
        TrainError: the file cannot be written.
        ValueError: no samples, or a step below 0.
    """
    if step < 0 or not samples:
        raise ValueError("a preview needs a step of 0 or more and at least one sample")
    image, places = _grid(f"step {step:,}", samples)
    facts = {"format": _FORMAT, "step": step, "samples": places}
    info = PngInfo()
    info.add_itxt(_CHUNK, json.dumps(facts))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", pnginfo=info)
    target = run_folder / FOLDER / f"{step:08d}.png"
    _store(target, encoded.getvalue())
    return target


def list_previews(run_folder: Path) -> dict[int, Path]:
    """The grids of a run by their steps, in order; empty when there are none."""
    found = (run_folder / FOLDER).glob("*.png")
    return dict(sorted((int(path.stem), path) for path in found if _NAME.fullmatch(path.name)))


def load_preview(path: Path) -> tuple[Sample, ...]:
    """The samples that `save_preview` was given.

    Raises:
        TrainError: it is missing, damaged, or no grid of this project.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
            facts = json.loads(image.text[_CHUNK])  # pyright: ignore[reportAttributeAccessIssue]
        if facts["format"] != _FORMAT:
            raise ValueError("made by another version")
        return tuple(_sample(pixels, place) for place in facts["samples"])
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            f"{path} is no preview that can be read ({type(error).__name__}: {error}); delete it"
        ) from error


def _sample(pixels: Uint8Array, place: dict) -> Sample:
    (height, width), scale = place["size_px"], place["scale"]

    def cut(tile: str) -> Uint8Array:
        x, y = place["tiles"][tile]
        return pixels[y : y + height, x : x + width]

    return Sample(
        name=place["name"],
        lr=cut("input")[::scale, ::scale],
        output=cut("output"),
        truth=cut("truth") if "truth" in place["tiles"] else None,
    )


def _grid(title: str, samples: Sequence[Sample]) -> tuple[Image.Image, list[dict]]:
    """The picture, and where in it the tiles of each sample lie: (x, y) of their corners."""
    rows = [sample.tiles for sample in samples]
    columns = list(dict.fromkeys(label for tiles in rows for label in tiles))
    widths_px = [
        max(_text_px(label), *(t[label].shape[1] for t in rows if label in t)) for label in columns
    ]
    lefts_px = [_GAP_PX + sum(widths_px[:n]) + n * _GAP_PX for n in range(len(columns))]
    width_px = _GAP_PX + sum(widths_px) + len(columns) * _GAP_PX
    # The title and the names of the columns; then each row under the name of its sample.
    height_px = 2 * _LINE_PX + _GAP_PX
    tops_px = []
    for sample in samples:
        tops_px.append(height_px + _LINE_PX)
        height_px += _LINE_PX + sample.output.shape[0] + _GAP_PX
    canvas = np.full((height_px, width_px, 3), _PAPER, dtype=np.uint8)
    places = []
    for sample, tiles, top_px in zip(samples, rows, tops_px, strict=True):
        corners = {label: (lefts_px[columns.index(label)], top_px) for label in tiles}
        for label, (x, y) in corners.items():
            _paste(canvas, tiles[label], x, y=y)
        size_px = sample.output.shape[:2]
        places.append(
            {"name": sample.name, "scale": sample.scale, "size_px": size_px, "tiles": corners}
        )
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    room_px = width_px - 2 * _GAP_PX
    _write(draw, (_GAP_PX, 2), title, room_px=room_px)
    for label, left_px, wide_px in zip(columns, lefts_px, widths_px, strict=True):
        _write(draw, (left_px, _LINE_PX + 2), label, room_px=wide_px)
    for sample, top_px in zip(samples, tops_px, strict=True):
        at = (_GAP_PX, top_px - _LINE_PX + 2)
        _write(draw, at, sample.name, room_px=room_px, color=_FAINT)
    return image, places


def learning_path(run_folder: Path, *, max_side_px: int = 1024, max_frames: int = 120) -> Animation:
    """The outputs of a run over its steps, each with its step in the corner below.

    Frames that show nothing new are dropped, the first and the last stay longer. No pixel is
    resampled: where not all samples fit into `max_side_px` the later ones are left out (a first one
    that is too large is cut to its middle), and of more than `max_frames` frames an even choice is
    taken, with the first and the last.

    Raises:
        TrainError: there are no previews, one is damaged, or they are not of the same pictures.
    """
    return _film([run_folder], None, max_side_px=max_side_px, max_frames=max_frames)


def side_by_side(
    run_folders: Sequence[Path],
    labels: Sequence[str],
    *,
    max_side_px: int = 1024,
    max_frames: int = 120,
) -> Animation:
    """As `learning_path`, of several runs next to each other, a label with each.

    A run that has no preview of some step keeps showing its previous one.

    Raises:
        TrainError: as `learning_path`, for any of them.
        ValueError: not as many labels as runs, or none.
    """
    if len(run_folders) != len(labels) or not labels:
        raise ValueError(f"{len(run_folders)} runs and {len(labels)} labels")
    return _film(run_folders, labels, max_side_px=max_side_px, max_frames=max_frames)


def write_path(animation: Animation, folder: Path) -> tuple[Path, Path]:
    """Write the film as ``path.webp`` and ``path.gif`` into `folder`; returns both.

    Raises:
        TrainError: a file cannot be written.
    """
    webp, gif = (folder / name for name in PATH_NAMES)
    _store(webp, animations.encode(animation, format="WEBP", quality=_FILM_QUALITY))
    _store(gif, animations.encode(animation, format="GIF"))
    return webp, gif


def _film(
    run_folders: Sequence[Path],
    labels: Sequence[str] | None,
    *,
    max_side_px: int,
    max_frames: int,
) -> Animation:
    if max_side_px < 16 or max_frames < 2:
        raise ValueError("a film has 2 frames or more, of 16 px or more")
    listed = [list_previews(folder) for folder in run_folders]
    for folder, found in zip(run_folders, listed, strict=True):
        if not found:
            raise TrainError(f"{folder} has no previews to animate: train it first")
    steps = sorted({step for found in listed for step in found})
    # Evenly over the previews, not over the steps: whoever sets the steps knows where much happens.
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(max_frames, len(steps))).round())
    shown: list[tuple[int, Uint8Array]] = []
    for step in (steps[int(number)] for number in chosen):
        # The newest that is not newer; before a run's first, its first.
        paths = [
            found[max((s for s in found if s <= step), default=min(found))] for found in listed
        ]
        joined = _joined(paths, max_side_px)
        if shown and joined.shape != shown[-1][1].shape:
            raise TrainError(f"{paths[0]} is of other pictures than those before it; delete those")
        if shown and np.array_equal(shown[-1][1], joined):
            # Of equal ones the earliest step is told, but the film ends with the last.
            if step == steps[-1]:
                shown[-1] = (step, joined)
            continue
        shown.append((step, joined))
    pitch_px = (shown[0][1].shape[1] + _RUNS_GAP_PX) // len(listed)
    frames = [_captioned(pixels, step, labels, pitch_px=pitch_px) for step, pixels in shown]
    durations = [FRAME_MS] * len(frames)
    durations[0] = FIRST_FRAME_MS
    durations[-1] = LAST_FRAME_MS
    return Animation(
        frames=tuple(Picture(pixels=frame, format="WEBP") for frame in frames),
        durations_ms=tuple(durations),
        format="WEBP",
    )


def _joined(paths: Sequence[Path], max_side_px: int) -> Uint8Array:
    """The outputs in one grid of each run, next to each other."""
    room_px = max(_LINE_PX, (max_side_px + _RUNS_GAP_PX) // len(paths) - _RUNS_GAP_PX)
    panels = [_panel(load_preview(path), room_px) for path in paths]
    tall = max(panel.shape[0] for panel in panels)
    pitch_px = max(panel.shape[1] for panel in panels) + _RUNS_GAP_PX
    size_px = (tall, len(panels) * pitch_px - _RUNS_GAP_PX)
    canvas = np.full((*size_px, 3), _PAPER, dtype=np.uint8)
    for n, panel in enumerate(panels):
        _paste(canvas, panel, n * pitch_px, y=0)
    return canvas


def _panel(samples: Sequence[Sample], side_px: int) -> Uint8Array:
    """The outputs of as many samples as fit into `side_px`, as near to a square as may be."""
    outputs = [sample.output for sample in samples]
    best: Uint8Array | None = None
    for count in range(1, len(outputs) + 1):
        across = math.ceil(math.sqrt(count))
        rows = [outputs[first : first + across] for first in range(0, count, across)]
        cell_y, cell_x = (max(o.shape[axis] for o in outputs[:count]) for axis in (0, 1))
        tall = len(rows) * (cell_y + _GAP_PX) - _GAP_PX
        wide = across * (cell_x + _GAP_PX) - _GAP_PX
        if max(tall, wide) > side_px:
            break
        best = np.full((tall, wide, 3), _PAPER, dtype=np.uint8)
        for y, row in enumerate(rows):
            for x, output in enumerate(row):
                _paste(best, output, x * (cell_x + _GAP_PX), y=y * (cell_y + _GAP_PX))
    return _middle(outputs[0], side_px) if best is None else best


def _middle(pixels: Uint8Array, side_px: int) -> Uint8Array:
    top, left = (max(0, (size - side_px) // 2) for size in pixels.shape[:2])
    return pixels[top : top + side_px, left : left + side_px]


def _captioned(
    pixels: Uint8Array, step: int, labels: Sequence[str] | None, *, pitch_px: int
) -> Uint8Array:
    """With lines below, so that no pixel of a picture is hidden: the labels, and the step.

    pitch_px: from one label to the next.
    """
    lines = 1 if labels is None else 2
    height_px, width_px = pixels.shape[:2]
    wide_px = max(width_px, _text_px("step 99,999,999") + 8)
    canvas = np.full((height_px + lines * _LINE_PX + 2, wide_px, 3), _PAPER, dtype=np.uint8)
    _paste(canvas, pixels, 0, y=0)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for n, label in enumerate(labels or ()):
        _write(draw, (4 + n * pitch_px, height_px + 2), label, room_px=pitch_px - 8)
    at = (4, height_px + (lines - 1) * _LINE_PX + 2)
    _write(draw, at, f"step {step:,}", room_px=wide_px - 8, color=_FAINT)
    return np.asarray(image)


def _paste(canvas: Uint8Array, tile: Uint8Array, x: int, *, y: int) -> None:
    canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_PX)


def _text_px(text: str) -> int:
    return math.ceil(_font().getlength(text))


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    room_px: int,
    color: tuple[int, int, int] = _INK,
) -> None:
    """One line of text, cut where the room ends; the built-in font has western letters only."""
    shown = text.encode("latin-1", "replace").decode("latin-1")
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    if _text_px(shown) > room_px:
        while shown and _text_px(f"{shown}...") > room_px:
            shown = shown[:-1]
        shown = f"{shown}..." if shown else ""
    draw.text(at, shown, font=_font(), fill=color)


def _store(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(target, data)
    except OSError as error:
        raise TrainError(f"cannot write {target}: {error.strerror or error}") from error
