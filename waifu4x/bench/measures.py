"""The measures that can be asked for by name, each made ready once and then taken of many pairs.

PSNR, SSIM and MS-SSIM are of luma, GMSD of gray, the others of RGB; the conventions are those of
the functions that are called. NIQE alone looks at no truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from waifu4x import weights
from waifu4x.bench import similarity
from waifu4x.bench.metrics import psnr
from waifu4x.bench.niqe import BLOCK_PX, load_prior, niqe
from waifu4x.bench.protocol import Pair
from waifu4x.bench.results import Column
from waifu4x.errors import UsageError

Uint8Array = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
Find = Callable[[str], Path]

DEFAULT_MEASURES = ("psnr", "ssim")
LPIPS_NETS = {"lpips": "alex", "lpips-vgg": "vgg", "lpips-squeeze": "squeeze"}
DISTS_HEAD = "dists"
"""The measure, and under which name its authors' file is given: it is in no catalogue."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One way to compare an enlarged picture with the truth."""

    column: Column
    of: Callable[[Pair], float]
    smallest_px: int = 1
    needs_colour: bool = True

    def take(self, pair: Pair) -> float | None:
        """None when the pair is smaller than the measure's windows, or has nothing to be measured.

        Raises UsageError when colour is needed and only luma is there.
        """
        if self.needs_colour and pair.rgb is None:
            raise UsageError(
                f"{self.column.title} is measured in colour: choose another protocol than luma"
            )
        if min(pair.luma.shape) < self.smallest_px:
            return None
        value = self.of(pair)
        return None if math.isnan(value) else value


def names() -> tuple[str, ...]:
    """Everything that `open_measures` knows."""
    return (*_PLAIN, "niqe", *LPIPS_NETS, DISTS_HEAD)


def needs_file(name: str) -> bool:
    """Whether a file is needed that does not come with the program."""
    return name not in _PLAIN


def open_measures(
    wanted: Sequence[str],
    *,
    files: Mapping[str, Path] | None = None,
    offline: bool = False,
    on_download: Progress | None = None,
) -> tuple[Measure, ...]:
    """The measures of these names, each once and in this order, ready to be taken.

    Args:
        files: by the names of the catalogue ("niqe", "lpips-alex", "alexnet", "vgg16", …) or
            "dists", files to be taken instead of the published ones.
        offline: never download.

    Raises:
        UsageError: an unknown name, a file that no measure needs, or DISTS without its file, all
            before anything is fetched; and for a file that is no model of NIQE.
        WeightsError: as `waifu4x.weights.resolve`, and for files that hold something else.
    """
    chosen = tuple(dict.fromkeys(wanted))
    given = dict(files or {})
    _check(chosen, given)

    def find(name: str) -> Path:
        if name in given:
            return given[name]
        return weights.resolve(name, offline=offline, on_progress=on_download).path

    return tuple(_open(name, find) for name in chosen)


def _check(chosen: Sequence[str], given: Mapping[str, Path]) -> None:
    """What can be refused before files of hundreds of megabytes are fetched."""
    for name in chosen:
        if name not in names():
            raise UsageError(f"no measure {name!r}: there are {', '.join(names())}")
    needed = {file for name in chosen for file in _files_of(name)}
    unused = sorted(set(given) - needed)
    if unused:
        raise UsageError(
            f"no measure that was asked for needs a file {unused[0]!r}: the files are "
            f"{', '.join(sorted(needed)) or 'none'}"
        )
    if DISTS_HEAD in chosen and DISTS_HEAD not in given:
        raise UsageError(
            "DISTS needs its authors' weights.pt, which is in their package dists-pytorch: rename "
            "it to weights.pth and give it with --metric-file dists=weights.pth"
        )


def _files_of(name: str) -> tuple[str, ...]:
    if name in _PLAIN:
        return ()
    if name == "niqe":
        return ("niqe",)
    from waifu4x.bench import perceptual  # imports torch

    if name == DISTS_HEAD:
        return (perceptual.BACKBONES["vgg"], DISTS_HEAD)
    net = cast(perceptual.Net, LPIPS_NETS[name])
    return (perceptual.HEADS[net], perceptual.BACKBONES[net])


def _open(name: str, find: Find) -> Measure:
    if name in _PLAIN:
        return _PLAIN[name]
    paths = [find(file) for file in _files_of(name)]
    if name == "niqe":
        return _niqe(*paths)
    return _dists(*paths) if name == DISTS_HEAD else _lpips(name, *paths)


def _colours(pair: Pair) -> tuple[Uint8Array, Uint8Array]:
    assert pair.rgb is not None  # `Measure.take` has seen to it
    assert pair.true_rgb is not None
    return pair.rgb, pair.true_rgb


def _niqe(path: Path) -> Measure:
    prior = load_prior(path)
    return Measure(
        column=Column(key="niqe", title="NIQE", digits=3, is_lower_better=True),
        of=lambda pair: niqe(_colours(pair)[0], prior),
        smallest_px=BLOCK_PX,
    )


def _lpips(name: str, head: Path, backbone: Path) -> Measure:
    from waifu4x.bench import perceptual  # imports torch

    net = cast(perceptual.Net, LPIPS_NETS[name])
    network = perceptual.load_lpips(net, backbone=backbone, head=head)
    title = "LPIPS" if net == "alex" else f"LPIPS-{net}"
    return Measure(
        column=Column(key=name, title=title, digits=4, is_lower_better=True),
        of=lambda pair: perceptual.lpips(network, *_colours(pair), border_px=0),
        smallest_px=network.smallest_px,
    )


def _dists(backbone: Path, head: Path) -> Measure:
    from waifu4x.bench import perceptual  # imports torch

    network = perceptual.load_dists(backbone=backbone, head=head)
    return Measure(
        column=Column(key=DISTS_HEAD, title="DISTS", digits=4, is_lower_better=True),
        of=lambda pair: perceptual.dists(network, *_colours(pair), border_px=0),
        smallest_px=network.smallest_px,
    )


_PLAIN: dict[str, Measure] = {
    measure.column.key: measure
    for measure in (
        Measure(
            column=Column(key="psnr", title="PSNR", digits=2, unit="dB"),
            of=lambda pair: psnr(pair.luma, pair.true_luma),
            needs_colour=False,
        ),
        Measure(
            column=Column(key="ssim", title="SSIM", digits=4),
            of=lambda pair: similarity.ssim(pair.luma, pair.true_luma),
            smallest_px=similarity.WINDOW_PX,
            needs_colour=False,
        ),
        Measure(
            column=Column(key="ms-ssim", title="MS-SSIM", digits=4),
            of=lambda pair: similarity.ms_ssim(pair.luma, pair.true_luma),
            smallest_px=similarity.MS_SSIM_SMALLEST_PX,
            needs_colour=False,
        ),
        Measure(
            column=Column(key="gmsd", title="GMSD", digits=4, is_lower_better=True),
            of=lambda pair: similarity.gmsd_gray(*_colours(pair), border_px=0),
            smallest_px=4,
        ),
        Measure(
            column=Column(key="psnr-rgb", title="PSNR-RGB", digits=2, unit="dB"),
            of=lambda pair: psnr(*_colours(pair)),
        ),
    )
}
