"""What a ranker learns from: patches of several systems, each with its NIQE, in a folder of a run.

Pictures are shrunk, enlarged again by every system, and cut into patches at the same places. Two
files grow picture by picture: ``patches.u8`` has the patches, ``labels.csv`` a line for each place
with the NIQE of every system's patch there. A process that was killed leaves at most one picture
half done, which is done anew; see `Patches.open`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from waifu4x import files
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.bench.metrics import luma_8bit
from waifu4x.bench.niqe import Prior, niqe
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_pictures
from waifu4x.resample import imresize
from waifu4x.train.recipe import RankingOptions
from waifu4x.train.systems import System

FOLDER = "patches"
FACTS_NAME, LABELS_NAME, DATA_NAME = "patches.json", "labels.csv", "patches.u8"

# MATLAB's fspecial('gaussian', 7, 7/6), by which NIQE's authors measure sharpness.
_REACH_PX = 3
_SIGMA_PX = 7.0 / 6.0
# Of a line: which picture, how many lines it has in all, where; then a NIQE for each system.
_COLUMNS = ("picture", "lines", "y_px", "x_px", "sharpness")

Uint8Array = npt.NDArray[np.uint8]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one patch of every system was cut out, and what is known of them."""

    picture: str
    y_px: int
    x_px: int
    sharpness: float
    """Of the true picture there; see `sharpness_of`."""
    niqe: tuple[float, ...]
    """One for each system; NaN for a patch that has none."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """All patches of a folder, memory-mapped.

    Attributes:
        systems: their names.
        places: (n,)
        data: (n, systems, p, p, 3) uint8 RGB.
        skipped: one sentence for each file that could not be used.
    """

    systems: tuple[str, ...]
    places: tuple[Place, ...]
    data: Uint8Array
    skipped: tuple[str, ...] = ()

    @property
    def patch_px(self) -> int:
        return int(self.data.shape[2])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How pictures become patches."""

    systems: Sequence[System]
    options: RankingOptions
    scale: int
    """High-resolution size over that which the systems are shown."""
    patch_px: int
    """The side of a patch, in high-resolution pixels."""
    prior: Prior

    @property
    def names(self) -> list[str]:
        return [system.name for system in self.systems]

    def facts(self) -> dict[str, object]:
        """All that decides the patches, as plain values."""
        own = ("stride_px", "most_patches", "least_sharpness", "least_difference", "border_px")
        return {
            "systems": {system.name: system.identity for system in self.systems},
            "scale": self.scale,
            "patch_px": self.patch_px,
            **{name: getattr(self.options, name) for name in own},
        }


def make(
    folders: Sequence[Path],
    folder: Path,
    *,
    plan: Plan,
    on_progress: Callable[[int, int], None] | None = None,
) -> Patches:
    """Make the patches of all pictures of `folders` in `folder`, or go on where it was stopped.

    A place is kept when the true picture is sharp there, and at least two systems differ in NIQE;
    see `RankingOptions`. The same pictures and options give the same patches. Pictures that are
    done are known by their paths.

    Args:
        on_progress: called with (done, total) pictures.

    Raises:
        TrainError: a folder is missing or has no picture, no place could be kept, or what is in
            `folder` was made with other options or systems.
        OSError: the disk refuses; what was made before is kept.
    """
    listed = _list(folders)
    patch_px = plan.patch_px
    folder.mkdir(parents=True, exist_ok=True)
    _agree_with(folder / FACTS_NAME, plan.facts())
    known = _repaired(folder, systems=plan.names, patch_px=patch_px)
    skipped: list[str] = []
    for done, path in enumerate(listed):
        if on_progress is not None:
            on_progress(done, len(listed))
        name = os.fspath(path.resolve())
        if name in known:
            continue
        try:
            hr = cut_to_multiple(as_rgb(read_8bit(path)), plan.scale)
        except PictureReadError as error:
            skipped.append(str(error))
            continue
        if min(hr.shape[:2]) < patch_px:
            skipped.append(f"{path}: smaller than {patch_px} px")
            continue
        kept = _measured(hr, _places(hr, plan), name=name, plan=plan)
        _append(folder, name, kept, systems=len(plan.systems))
    patches = open_patches(folder, patch_px=patch_px, skipped=skipped)
    if not len(patches.places):
        raise TrainError(
            f"no place in {', '.join(map(str, folders))} can be ranked: pictures must be sharp and "
            f"have {patch_px} px a side ({len(skipped)} were skipped), and the systems must differ"
        )
    return patches


def open_patches(folder: Path, *, patch_px: int, skipped: Sequence[str] = ()) -> Patches:
    """What `make` made."""
    systems, rows = _read_labels(folder / LABELS_NAME)
    places = tuple(_place_of(row, systems) for row in rows if row["lines"] != "0")
    shape = (len(places), len(systems), patch_px, patch_px, 3)
    # An empty file cannot be mapped.
    data = (
        np.memmap(folder / DATA_NAME, dtype=np.uint8, mode="r", shape=shape)
        if places
        else np.zeros(shape, np.uint8)
    )
    return Patches(systems=tuple(systems), places=places, data=data, skipped=tuple(skipped))


def sharpness_of(luma: Float64Array) -> float:
    """The mean local deviation of luma (H, W), in its units: from a Gaussian of 7×7 px around it.

    RankSRGAN's code adds up the means of blocks, and its patches of 296 px have 40 or more; with
    blocks of 96 px, as NIQE has them, that is a mean of 4.2 levels of 255.
    """
    around = luma - _filtered(luma)
    return float(np.sqrt(np.maximum(_filtered(around**2), 0.0)).mean())


def _filtered(plane: Float64Array) -> Float64Array:
    at = np.arange(-_REACH_PX, _REACH_PX + 1)
    taps = np.exp(-0.5 * (at / _SIGMA_PX) ** 2)
    taps /= taps.sum()
    padded = np.pad(plane, _REACH_PX, mode="edge")
    height, width = plane.shape
    rows = np.sum([tap * padded[:, k : k + width] for k, tap in enumerate(taps)], axis=0)
    return np.sum([tap * rows[k : k + height] for k, tap in enumerate(taps)], axis=0)


def _list(folders: Sequence[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise TrainError(f"{folder} is no folder of pictures")
    listed = [path for folder in folders for path in find_pictures(folder)]
    if not listed:
        raise TrainError(f"no pictures in {', '.join(map(str, folders))}")
    return listed


def _agree_with(path: Path, facts: dict[str, object]) -> None:
    """The options of what lies there, or written now that nothing does."""
    if not path.is_file():
        files.write_bytes(path, json.dumps(facts, indent=1).encode())
        return
    try:
        before = json.loads(path.read_bytes())
        changed = [key for key in facts if before.get(key) != facts[key]]
    except (ValueError, AttributeError) as error:
        raise TrainError(f"{path} is damaged ({error}); remove its folder to start anew") from error
    if changed:
        raise TrainError(
            f"{path.parent} has patches of other options ({', '.join(changed)} differ); choose "
            f"another --name, or remove that folder"
        )


def _places(hr: Uint8Array, plan: Plan) -> list[tuple[int, int, float]]:
    """(y, x, sharpness) of all places of a picture that are sharp enough, or of so many."""
    luma, options, patch_px = luma_8bit(hr), plan.options, plan.patch_px
    found = []
    for y in range(0, hr.shape[0] - patch_px + 1, options.stride_px):
        for x in range(0, hr.shape[1] - patch_px + 1, options.stride_px):
            sharpness = sharpness_of(luma[y : y + patch_px, x : x + patch_px])
            if sharpness >= options.least_sharpness:
                found.append((y, x, sharpness))
    most = options.most_patches
    if 0 < most < len(found):
        return [found[(2 * k + 1) * len(found) // (2 * most)] for k in range(most)]
    return found


def _measured(
    hr: Uint8Array,
    found: Sequence[tuple[int, int, float]],
    *,
    name: str,
    plan: Plan,
) -> list[tuple[Place, Uint8Array]]:
    """The places whose patches differ enough in NIQE, and the patches (systems, p, p, 3)."""
    if not found:
        return []
    options, patch_px = plan.options, plan.patch_px
    lr = imresize(hr, 1.0 / plan.scale)
    made = [system.enlarge(lr) for system in plan.systems]
    kept: list[tuple[Place, Uint8Array]] = []
    for y, x, sharpness in found:
        patches = np.stack([image[y : y + patch_px, x : x + patch_px] for image in made])
        scores = tuple(niqe(patch, plan.prior, border_px=options.border_px) for patch in patches)
        known = [score for score in scores if math.isfinite(score)]
        if len(known) > 1 and max(known) - min(known) > options.least_difference:
            place = Place(picture=name, y_px=y, x_px=x, sharpness=sharpness, niqe=scores)
            kept.append((place, patches))
    return kept


def _append(
    folder: Path, name: str, kept: Sequence[tuple[Place, Uint8Array]], *, systems: int
) -> None:
    """The patches of one picture, and then its lines: those say that the patches are there."""
    with (folder / DATA_NAME).open("ab") as data:
        for _, patches in kept:
            data.write(patches.tobytes())
        data.flush()
        os.fsync(data.fileno())
    rows: list[list[object]] = [
        [name, len(kept), p.y_px, p.x_px, f"{p.sharpness:.3f}", *map(repr, p.niqe)] for p, _ in kept
    ]
    with (folder / LABELS_NAME).open("ab") as labels:
        # As long as every line: one that ends earlier is taken for what a kill left.
        labels.write(_csv(rows or [[name, 0, *[""] * (len(_COLUMNS) - 2 + systems)]]))
        labels.flush()
        os.fsync(labels.fileno())


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")


def _read_labels(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The systems, and all whole lines: one that a kill cut off has no end."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    reader = csv.DictReader(io.StringIO(whole.decode(errors="surrogateescape"), newline=""))
    rows = [row for row in reader if None not in row.values()]
    return list(reader.fieldnames or ())[len(_COLUMNS) :], rows


def _repaired(folder: Path, *, systems: list[str], patch_px: int) -> set[str]:
    """The pictures that are done; what is left of one that was not is cut off both files."""
    labels, data = folder / LABELS_NAME, folder / DATA_NAME
    if not labels.is_file():
        files.write_bytes(labels, _csv([[*_COLUMNS, *systems]]))
        data.write_bytes(b"")
        return set()
    _, rows = _read_labels(labels)
    each_bytes = len(systems) * patch_px * patch_px * 3
    has = data.stat().st_size // each_bytes if data.is_file() else 0
    done: list[dict[str, str]] = []
    count = start = 0
    while start < len(rows):
        lines = _whole(rows[start]["lines"], labels)
        own = rows[start : start + max(1, lines)]
        if len(own) < lines or count + lines > has:
            break
        done += own
        count, start = count + lines, start + len(own)
    content = _csv([[*_COLUMNS, *systems], *(list(row.values()) for row in done)])
    if content != labels.read_bytes():
        files.write_bytes(labels, content)
    data.touch()
    os.truncate(data, count * each_bytes)
    return {row["picture"] for row in done}


def _whole(text: str, path: Path) -> int:
    if not text.isdecimal():
        raise TrainError(f"{path} is damaged; remove its folder to start anew")
    return int(text)


def _place_of(row: Mapping[str, str], systems: Sequence[str]) -> Place:
    return Place(
        picture=row["picture"],
        y_px=int(row["y_px"]),
        x_px=int(row["x_px"]),
        sharpness=float(row["sharpness"]),
        niqe=tuple(float(row[name]) for name in systems),
    )
