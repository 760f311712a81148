"""Looks at folders of pictures before hours are spent on learning from them.

The thresholds were measured on 2,334 sharp crops of photographs and drawings of 512 px, and on 300
of them enlarged and compressed; what each finds and wrongly finds stands beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x import pictures
from waifu4x.bench.datasets import as_rgb, read_8bit
from waifu4x.errors import PictureReadError, TrainError
from waifu4x.folders import find_pictures
from waifu4x.train import symptoms
from waifu4x.train.degrading.degradation import Degradation

Uint8Array = npt.NDArray[np.uint8]
Kind = Literal[
    "unreadable",
    "small",
    "duplicate",
    "near-duplicate",
    "upscaled",
    "compressed",
    "flat",
    "gray",
    "transparent",
]

UNUSABLE: tuple[Kind, ...] = ("unreadable", "small")
"""Pictures that training leaves out by itself; all others it would learn from."""

ADVICE: dict[Kind, str] = {
    "unreadable": "remove or replace them; training leaves them out",
    "small": "take larger originals, or a smaller patch_px; training leaves them out",
    "duplicate": "remove all but one, or they count several times",
    "near-duplicate": "keep the largest and least compressed of them",
    "upscaled": "scale them down to the resolution given, or the network learns to blur",
    "compressed": "find better originals or scale them down by 2, or it learns to draw blocks",
    "flat": "remove them: there is nothing to learn from",
    "gray": "a few are good; a network that sees mostly gray loses its colours",
    "transparent": "lay them over a background: training ignores alpha and sees what lies below it",
}
"""What to do about each kind of finding."""

# Wrongly found: 0.2 % (soft ones). Of those enlarged x2 by bicubic 93 % are found, and all others
# but 0.3 % are flat by then; saved as JPEG 92 after that, 88 % of drawings, 76 % of photographs.
RESOLUTION_LIMIT = 0.8
JPEG_QUALITY_LIMIT = 75
# Wrongly found: 0.4 % (drawings on a grid). Of JPEGs that were saved as PNG: quality 20, 82 % of
# drawings and all photographs; 40, 67 and 98 %; 75, 35 and 72 %; 90, 3 and 12 %.
BLOCKINESS_LIMIT = 0.35
# 1 of 2,334 is flatter.
TEXTURE_LIMIT = 0.4
# Of copies at 3/4 of the size and JPEG 75, 99 % are found; no two others of 1,167 are that near.
NEAR_BITS = 12

# A rule of thumb, not measured: SRGAN-like training repeats what it sees of fewer. DIV2K, on which
# published networks are trained, has 800 pictures of 2,200 megapixels in all.
FEW_PICTURES = 50
FEW_MEGAPIXELS = 20.0
_MANY_SHARE = 0.2

_PREVIEW_CROPS = 6
_PREVIEW_PX = 192
_GAP_PX = 8
_GAP_LEVEL = 128


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or at least worth knowing, about one picture."""

    kind: Kind
    path: Path
    says: str
    """Some words: what was measured, or the reason."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found. Nothing was changed."""

    pictures_total: int
    pictures_usable: int
    megapixels: float
    """Of the usable ones."""
    crops: int
    """How many high-resolution crops fit into the usable ones side by side."""
    findings: tuple[Finding, ...]
    """In the order of ADVICE, then of the files."""
    advice: tuple[str, ...]
    """About all of them together, one sentence each; empty when there is nothing to say."""

    def of(self, kind: Kind) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def facts(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        facts = dataclasses.asdict(self)
        facts["findings"] = [{**f, "path": str(f["path"])} for f in facts["findings"]]
        return facts | {"advice": list(self.advice)}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What is remembered of a picture after it was looked at."""

    path: Path
    size_px: tuple[int, int]
    digest: bytes
    fingerprint: npt.NDArray[np.bool_] | None
    findings: tuple[Finding, ...]


def examine(
    folders: Sequence[Path],
    *,
    scale: int,
    patch_px: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Look at every picture of `folders` as training would use it.

    Args:
        scale: HR size divided by LR size.
        patch_px: the side of the low-resolution crops.
        on_progress: called with (done, total) pictures, before each.

    Raises:
        TrainError: a folder is missing, or there is no picture in any.
    """
    paths = _list(folders)
    findings: list[Finding] = []
    looks: list[_Look] = []
    for done, path in enumerate(paths):
        if on_progress is not None:
            on_progress(done, len(paths))
        try:
            look = _look_at(path, crop_px=scale * patch_px)
        except PictureReadError as error:
            findings.append(Finding(kind="unreadable", path=path, says=str(error)))
            continue
        findings += look.findings
        looks.append(look)
    findings += _duplicates(looks)
    usable = [look for look in looks if min(look.size_px) >= scale * patch_px]
    crops = [np.prod(np.array(look.size_px) // (scale * patch_px)) for look in usable]
    order = {kind: number for number, kind in enumerate(ADVICE)}
    diagnosis = Diagnosis(
        pictures_total=len(paths),
        pictures_usable=len(usable),
        megapixels=sum(look.size_px[0] * look.size_px[1] for look in usable) / 1e6,
        crops=int(sum(crops)),
        findings=tuple(sorted(findings, key=lambda f: (order[f.kind], f.path))),
        advice=(),
    )
    return dataclasses.replace(diagnosis, advice=_advice(diagnosis))


def _list(folders: Sequence[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise TrainError(f"{folder} is no folder of pictures")
    paths = [path for folder in folders for path in find_pictures(folder)]
    if not paths:
        raise TrainError(f"no pictures in {', '.join(map(str, folders))}")
    return paths


def _look_at(path: Path, *, crop_px: int) -> _Look:
    picture = pictures.read(path)
    pixels, luma = picture.pixels, symptoms.luma_of(picture.pixels)
    found: list[tuple[Kind, str]] = []
    height, width = luma.shape
    if min(height, width) < crop_px:
        found.append(("small", f"{width}×{height} px, less than the crop of {crop_px} px"))
    detail = symptoms.texture(luma)
    if detail < TEXTURE_LIMIT:
        found.append(("flat", f"neighbouring pixels differ by {detail:.2f} of 255 levels"))
    elif (times := symptoms.repeats(luma)) > 1:
        found.append(("upscaled", f"every pixel is repeated {times}×{times} times"))
    else:
        used = symptoms.effective_resolution(luma)
        if used is not None and used < RESOLUTION_LIMIT:
            says = f"its detail ends at {used:.0%} of its resolution: enlarged, or not sharp"
            found.append(("upscaled", says))
        # Repeated pixels are blocks, too, and flat pictures have next to no edges of blocks.
        if says := _compressed(path, luma, format=picture.format):
            found.append(("compressed", says))
    if picture.is_gray or bool((pixels == pixels[..., :1]).all()):
        found.append(("gray", "it has no colours"))
    if picture.is_transparent:
        found.append(("transparent", "some of its pixels are not opaque"))
    shape = f"{pixels.shape} {pixels.dtype} ".encode()
    return _Look(
        path=path,
        size_px=(height, width),
        digest=hashlib.sha256(shape + pixels.tobytes()).digest(),
        fingerprint=symptoms.fingerprint(luma),
        findings=tuple(Finding(kind=kind, path=path, says=says) for kind, says in found),
    )


def _compressed(path: Path, luma: npt.NDArray[np.float32], *, format: str | None) -> str | None:
    if format == "JPEG":
        with pictures.opened(path) as stream, Image.open(stream) as image:
            tables: dict[int, list[int]] = getattr(image, "quantization", {})
        if tables:
            quality = symptoms.jpeg_quality(tables[min(tables)])
            if quality < JPEG_QUALITY_LIMIT:
                return f"a JPEG of quality {quality}"
    # Also a JPEG of high quality may hold the blocks of an earlier one.
    blocks = symptoms.blockiness(luma)
    if blocks > BLOCKINESS_LIMIT:
        return f"blocks of 8 px whose edges stand out by {blocks:.1f} of 255 levels"
    return None


def _duplicates(looks: Sequence[_Look]) -> list[Finding]:
    firsts: dict[bytes, Path] = {}
    found: list[Finding] = []
    unlike: list[_Look] = []
    for look in looks:
        first = firsts.setdefault(look.digest, look.path)
        if first is not look.path:
            found.append(Finding(kind="duplicate", path=look.path, says=f"the same as {first}"))
        elif look.fingerprint is not None:
            unlike.append(look)
    prints = [look.fingerprint for look in unlike if look.fingerprint is not None]
    if prints:
        for earlier, later in symptoms.alike(np.stack(prints), distance_bits=NEAR_BITS):
            says = f"nearly the same as {unlike[earlier].path}"
            found.append(Finding(kind="near-duplicate", path=unlike[later].path, says=says))
    return found


def _advice(diagnosis: Diagnosis) -> tuple[str, ...]:
    usable = diagnosis.pictures_usable
    if usable == 0:
        return ("no picture can be used: each side must hold a whole crop",)
    advice = []
    if usable < FEW_PICTURES or diagnosis.megapixels < FEW_MEGAPIXELS:
        advice.append(
            f"{usable} pictures of {diagnosis.megapixels:.1f} megapixels are few: from less than "
            f"{FEW_PICTURES}, or {FEW_MEGAPIXELS:.0f} megapixels, a network learns these pictures "
            "by heart (a rule of thumb); add more, or start from a trained model"
        )
    counts = Counter(finding.kind for finding in diagnosis.findings)
    for kind, what in ADVICE.items():
        share = counts[kind] / diagnosis.pictures_total
        if share > _MANY_SHARE:
            advice.append(f"{share:.0%} of the pictures are {kind}: {what}")
    return tuple(advice)


def preview(folders: Sequence[Path], degradation: Degradation, *, seed: int) -> Uint8Array:
    """Six crops, and below each what the degradation makes of it, its pixels as squares.

    The same folders, degradation and seed give the same sheet.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        TrainError: a folder is missing, or no picture can be read and holds a crop of 192 px.
    """
    random = np.random.default_rng(seed)
    scale = degradation.scale
    side_px = max(1, _PREVIEW_PX // scale) * scale
    columns = []
    for hr in _random_crops(_list(folders), side_px=side_px, random=random):
        lr, shown = degradation.pair(hr, random)
        enlarged = lr.repeat(scale, axis=0).repeat(scale, axis=1)
        gap = np.full((_GAP_PX, side_px, 3), _GAP_LEVEL, dtype=np.uint8)
        column = np.concatenate([gap, shown, gap, enlarged, gap])
        columns.append(np.pad(column, ((0, 0), (_GAP_PX, 0), (0, 0)), constant_values=_GAP_LEVEL))
    sheet = np.concatenate(columns, axis=1)
    return np.pad(sheet, ((0, 0), (0, _GAP_PX), (0, 0)), constant_values=_GAP_LEVEL)


def _random_crops(
    paths: Sequence[Path], *, side_px: int, random: np.random.Generator
) -> list[Uint8Array]:
    """From as many pictures as there are; when these are few, several from each."""
    large: list[Uint8Array] = []
    for number in random.permutation(len(paths)):
        try:
            picture = as_rgb(read_8bit(paths[number]))
        except PictureReadError:
            continue
        if min(picture.shape[:2]) >= side_px:
            large.append(picture)
        if len(large) == _PREVIEW_CROPS:
            break
    if not large:
        raise TrainError(f"no picture to show: none is readable and at least {side_px} px high")
    crops = []
    for number in range(_PREVIEW_CROPS):
        picture = large[number % len(large)]
        top = int(random.integers(picture.shape[0] - side_px + 1))
        left = int(random.integers(picture.shape[1] - side_px + 1))
        crops.append(picture[top : top + side_px, left : left + side_px].copy())
    return crops
