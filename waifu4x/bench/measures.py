"""The measures that can be asked for by name, each made ready once and then taken of many pairs.

PSNR, SSIM and MS-SSIM are of luma, GMSD of gray, the others of RGB; the conventions are those of
the functions that are called. NIQE alone looks at no truth.
"""

from __future__ import annotations

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
        """None when the pair is smaller than the measure's windows.

        Raises UsageError when colour is needed and only luma is there.
        """
        if self.needs_colour and pair.rgb is None:
            raise UsageError(
                f"{self.column.title} is measured in colour: choose another protocol than luma"
            )
        return self.of(pair) if min(pair.luma.shape) >= self.smallest_px else None


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
        UsageError: an unknown name, a file that no measure needs, or DISTS without its file.
        WeightsError: as `waifu4x.weights.resolve`, and for files that hold something else.
    """
    given = dict(files or {})
    opened = _Files(given=given, offline=offline, on_download=on_download)
    measures = tuple(_open(name, opened) for name in dict.fromkeys(wanted))
    unused = sorted(set(given) - opened.asked)
    if unused:
        raise UsageError(
            f"no measure that was asked for needs a file {unused[0]!r}: the files are "
            f"{', '.join(sorted(opened.asked)) or 'none'}"
        )
    return measures


@dataclass(kw_only=True)
class _Files:
    """Where the files of measures are: given ones, else published ones."""

    given: Mapping[str, Path]
    offline: bool
    on_download: Progress | None

    def __post_init__(self) -> None:
        self.asked: set[str] = set()

    def find(self, name: str) -> Path:
        self.asked.add(name)
        if name in self.given:
            return self.given[name]
        found = weights.resolve(name, offline=self.offline, on_progress=self.on_download)
        return found.path


def _open(name: str, files: _Files) -> Measure:
    if name in _PLAIN:
        return _PLAIN[name]
    if name == "niqe":
        return _niqe(files.find("niqe"))
    if name in LPIPS_NETS:
        return _lpips(name, files)
    if name == DISTS_HEAD:
        return _dists(files)
    raise UsageError(f"no measure {name!r}: there are {', '.join(names())}")


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


def _lpips(name: str, files: _Files) -> Measure:
    from waifu4x.bench import perceptual  # imports torch

    net = cast(perceptual.Net, LPIPS_NETS[name])
    head, backbone = files.find(perceptual.HEADS[net]), files.find(perceptual.BACKBONES[net])
    network = perceptual.load_lpips(net, backbone=backbone, head=head)
    title = "LPIPS" if net == "alex" else f"LPIPS-{net}"
    return Measure(
        column=Column(key=name, title=title, digits=4, is_lower_better=True),
        of=lambda pair: perceptual.lpips(network, *_colours(pair), border_px=0),
        smallest_px=network.smallest_px,
    )


def _dists(files: _Files) -> Measure:
    from waifu4x.bench import perceptual  # imports torch

    if DISTS_HEAD not in files.given:
        raise UsageError(
            "DISTS needs its authors' weights.pt, which is in their package dists-pytorch: rename "
            "it to weights.pth and give it with --metric-file dists=weights.pth"
        )
    network = perceptual.load_dists(
        backbone=files.find(perceptual.BACKBONES["vgg"]), head=files.find(DISTS_HEAD)
    )
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
