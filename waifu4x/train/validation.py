"""How good a network is while it is trained: Y-PSNR on pictures that it never sees otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from waifu4x import color
from waifu4x.bench.datasets import as_rgb, cut_to_multiple, read_8bit
from waifu4x.bench.metrics import psnr_y
from waifu4x.canvas import from_unit, to_unit
from waifu4x.errors import TrainError
from waifu4x.folders import find_pictures
from waifu4x.references import reference_inputs
from waifu4x.resample import imresize, resize
from waifu4x.train.data import PairCache
from waifu4x.train.recipe import DataOptions
from waifu4x.train.references.referencing import reference_for

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True, kw_only=True)
class ValidationPair:
    """A picture to measure on: (h, w, 3) and (s·h, s·w, 3) uint8."""

    name: str
    scale: int
    lr: npt.NDArray[np.uint8]
    hr: npt.NDArray[np.uint8]


def validation_pairs(folder: Path, scale: int) -> list[ValidationPair]:
    """All pictures of `folder`, cut to a multiple of the scale, with their MATLAB-bicubic LR.

    Raises:
        TrainError: there is none, or one is too small.
    """
    pairs = []
    for path in find_pictures(folder):
        hr = cut_to_multiple(as_rgb(read_8bit(path)), scale)
        # `scale` px are cut off every border before comparing: something must be left.
        if min(hr.shape[:2]) <= 2 * scale:
            raise TrainError(f"{path} is too small to validate on at x{scale}")
        lr = imresize(hr, 1.0 / scale)
        pairs.append(ValidationPair(name=path.stem, scale=scale, lr=lr, hr=hr))
    if not pairs:
        raise TrainError(f"no pictures to validate on in {folder}")
    return pairs


def crop(pair: ValidationPair, side_px: int) -> ValidationPair:
    """The middle of a pair, at most `side_px` of the small picture a side."""
    height, width = (min(n, side_px) for n in pair.lr.shape[:2])
    top, left = (pair.lr.shape[0] - height) // 2, (pair.lr.shape[1] - width) // 2
    s = pair.scale
    return ValidationPair(
        name=pair.name,
        scale=s,
        lr=pair.lr[top : top + height, left : left + width],
        hr=pair.hr[top * s : (top + height) * s, left * s : (left + width) * s],
    )


def shown(
    pairs: Sequence[ValidationPair], cache: PairCache, *, count: int, side_px: int
) -> list[ValidationPair]:
    """The middles of the first pairs, or, where there are none, of pictures of the cache."""
    samples = list(pairs[:count])
    if not samples:
        for number in range(min(count, len(cache))):
            lr, hr = cache.pair(number)
            name = f"picture {number + 1}"
            samples.append(ValidationPair(name=name, scale=cache.scale, lr=lr, hr=hr))
    return [crop(pair, side_px) for pair in samples]


@torch.no_grad()
def enlarge(
    network: nn.Module,
    lr: npt.NDArray[np.uint8],
    *,
    scale: int,
    fabric: Fabric,
    reference: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """What the network makes of a small picture: (h, w, 3) -> (s·h, s·w, 3) uint8 RGB.

    Networks of luma are shown Y; the colours are enlarged by bicubic interpolation. `reference`,
    (s·h, s·w, 3), is for those that take one.
    """
    config: Any = network.config
    size_px = (lr.shape[0] * scale, lr.shape[1] * scale)
    image = to_unit(lr)
    if config.pre_upsampled:
        image = np.clip(resize(image, size_px), 0.0, 1.0)
    if reference is not None:
        return from_unit(_run_beside(network, image, to_unit(reference), fabric), np.uint8)
    if config.channels_in == 3:
        return from_unit(_run(network, image, fabric), np.uint8)
    ycbcr = color.rgb_to_ycbcr(image)
    y = np.clip(_run(network, ycbcr[..., :1], fabric), 0.0, 1.0)
    chroma = ycbcr[..., 1:]
    if not config.pre_upsampled:
        chroma = resize(chroma, size_px)
    return from_unit(color.ycbcr_to_rgb(np.concatenate([y, chroma], axis=2)), np.uint8)


def _run(network: nn.Module, image: npt.NDArray[np.float32], fabric: Fabric) -> npt.NDArray:
    config: Any = network.config
    height, width = (side * config.scale for side in image.shape[:2])
    # As when it is used: the last row and column are repeated.
    missing = [-side % config.size_multiple for side in image.shape[:2]]
    image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).to(fabric.device)
    with fabric.autocast():
        output = network(x.contiguous(memory_format=torch.channels_last))
    return output[0, :, :height, :width].float().permute(1, 2, 0).cpu().numpy()


def _run_beside(
    network: nn.Module,
    image: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    fabric: Fabric,
) -> npt.NDArray:
    """As `_run`, of a picture of any size: continued in a mirror to what the network takes."""
    config: Any = network.config
    height, width = (side * config.scale for side in image.shape[:2])

    def shown(pixels: npt.NDArray[np.float32]) -> torch.Tensor:
        missing = [-side % config.size_multiple for side in pixels.shape[:2]]
        padded = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
        return torch.from_numpy(padded.transpose(2, 0, 1).copy()).to(fabric.device)

    inputs = reference_inputs.inputs_of(network, shown(image)[None], [shown(reference)])
    with fabric.autocast():
        output = network(*inputs)
    return output[0, :, :height, :width].float().permute(1, 2, 0).cpu().numpy()


def validate(
    network: nn.Module,
    pairs: Sequence[ValidationPair],
    *,
    fabric: Fabric,
    data: DataOptions | None = None,
) -> float:
    """Mean Y-PSNR in dB, `scale` px cut off every border.

    Where `data` have references the network is shown the truth, from beside: `reference_for`.
    """
    was_training = network.training
    network.eval()
    try:
        values = [
            psnr_y(
                enlarge(
                    network,
                    pair.lr,
                    scale=pair.scale,
                    fabric=fabric,
                    reference=None if data is None else reference_for(pair.hr, data.reference),
                ),
                pair.hr,
                border_px=pair.scale,
            )
            for pair in pairs
        ]
    finally:
        network.train(was_training)
    return float(np.mean(values))
