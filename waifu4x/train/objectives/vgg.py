"""The features of VGG-19, and the content losses that compare pictures by them.

Simonyan, Zisserman (2014), https://arxiv.org/abs/1409.1556, in torchvision's layout: convolutions,
ReLUs and poolings are numbered in one row, "features.N". `conv2_2` is what the second convolution
of the second block gives, before its ReLU; `relu2_2` is that after it. SRGAN's "VGG22" and "VGG54"
are `relu2_2` (features.8) and `relu5_4` (features.35); ESRGAN takes `conv5_4` (features.34).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x import weights
from waifu4x.model_files.given_files import fail, printable
from waifu4x.model_files.tensor_files import read_tensor_file
from waifu4x.model_files.tensor_values import take_floats
from waifu4x.train.objectives.losses import check_same_shape

CATALOG_NAME = "vgg19"
"""Under which the catalogue has torchvision's published file."""

SRGAN_RESCALE = 1.0 / 12.75**2
"""0.00615: SRGAN divides features by 12.75, so that their MSE is of the order of the pixels'."""

Criterion = Literal["mse", "l1"]

_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; then a pool
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_CURE = "give a whole one with --vgg PATH, or none, and the published file is downloaded"


def _number_layers() -> tuple[dict[str, int], dict[int, tuple[int, int]], frozenset[int]]:
    """Index by name; (channels in, out) of each convolution by index; the poolings' indices."""
    names: dict[str, int] = {}
    convolutions: dict[int, tuple[int, int]] = {}
    pools: set[int] = set()
    index, channels = 0, 3
    for block, (wide, count) in enumerate(_BLOCKS, start=1):
        for number in range(1, count + 1):
            convolutions[index] = (channels, wide)
            names |= {f"conv{block}_{number}": index, f"relu{block}_{number}": index + 1}
            index, channels = index + 2, wide
        pools.add(index)
        index += 1
    return names, convolutions, frozenset(pools)


_NAMES, _CONVOLUTIONS, _POOLS = _number_layers()
_ALIASES = {"vgg22": "relu2_2", "vgg54": "relu5_4"}

LAYERS: Mapping[str, int] = _NAMES | {alias: _NAMES[name] for alias, name in _ALIASES.items()}
"""Every name of a layer, and its index in torchvision's ``features``: conv1_1 0 … relu5_4 35."""


def check_layers(layers: Sequence[str]) -> None:
    """Raises ValueError unless there is at least one layer, and each is one of LAYERS."""
    unknown = [name for name in layers if name not in LAYERS]
    if unknown or not layers:
        what = f"no layer {unknown[0]!r}" if unknown else "no layer was named"
        raise ValueError(f"{what}: VGG-19 has {', '.join(LAYERS)}")


class VGG19Features(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1] -> {layer: (N, C, h, w)}, for the layers it was built for.

    Built only up to the deepest of `layers`; ImageNet's mean and deviation are applied inside.
    Weights are frozen and fresh ones random: see `load_vgg19`. Gradients flow to x. Its state dict
    is the beginning of torchvision's. Raises ValueError for unknown layers, for an x that is no
    RGB, and for one smaller than the poolings need (16 px a side for block 5).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        check_layers(layers)
        self.layers = tuple(layers)
        self._wanted = frozenset(LAYERS[name] for name in layers)
        self._deepest = max(self._wanted)
        self.smallest_px = 2 ** sum(pool < self._deepest for pool in _POOLS)
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(into, out, 3, padding=1)
                for index, (into, out) in _CONVOLUTIONS.items()
                if index <= self._deepest
            }
        )
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < self.smallest_px:
            raise ValueError(
                f"VGG-19 up to {self.layers} takes (N, 3, H, W) of at least {self.smallest_px} px "
                f"a side, not {tuple(x.shape)}"
            )
        x = (x - self.mean) / self.std
        found: dict[int, Tensor] = {}
        for index in range(self._deepest + 1):
            if index in _CONVOLUTIONS:
                x = self.features[str(index)](x)
            elif index in _POOLS:
                x = functional.max_pool2d(x, 2)
            else:
                # In place halves the memory, but would change a convolution that was asked for.
                x = functional.relu(x, inplace=index - 1 not in self._wanted)
            if index in self._wanted:
                found[index] = x
        return {name: found[LAYERS[name]] for name in self.layers}


def load_vgg19(path: Path, layers: Sequence[str]) -> VGG19Features:
    """The features of a VGG-19 file (``.pth`` or ``.safetensors``) in torchvision's layout.

    Only the convolutions up to the deepest of `layers` are looked at; whatever lies after them, and
    the classifier, may be missing. They are guaranteed to be all there, of the right shape and
    finite. Raises CheckpointError (a WeightsError) when they are not, or when the file is another
    network's or cannot be read safely; ValueError for unknown layers.
    """
    network = VGG19Features(layers)
    file = read_tensor_file(path)
    content = file.content if isinstance(file.content, dict) else {}
    problem = _layout_problem(content, network)
    if problem is not None:
        fail(path, f"{problem}; {_CURE}", sha256=file.sha256)
    state = {
        key: take_floats(file, key, path=path, shape=own.shape, what="VGG-19", cure=_CURE)
        for key, own in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network


def open_vgg19(
    layers: Sequence[str],
    *,
    path: Path | None = None,
    offline: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> VGG19Features:
    """`load_vgg19` of `path`, or of torchvision's published file, downloaded (575 MB) if need be.

    Raises what `load_vgg19` and `waifu4x.weights.resolve` raise.
    """
    check_layers(layers)  # a misspelt one should not cost a download
    if path is None:
        path = weights.resolve(CATALOG_NAME, offline=offline, on_progress=on_progress).path
    return load_vgg19(path, layers)


def _layout_problem(content: dict[Any, Any], network: VGG19Features) -> str | None:
    """What is wrong with a file's keys, as a clause; None when every wanted layer is there."""
    weighted = {f"features.{index}.weight" for index in _CONVOLUTIONS}
    present = [key for key in dict.keys(content) if isinstance(key, str)]
    present = [key for key in present if key.startswith("features.") and key.endswith(".weight")]
    if not present:
        return "is no VGG-19 in torchvision's layout (it has no features.0.weight)"
    # VGG-16 begins with the same layers in the same places, and its features would be others.
    foreign = [key for key in present if key not in weighted]
    if foreign:
        return f"is no VGG-19 but another network: it has {printable(foreign[0], limit=40)}"
    names = {index: name for name, index in LAYERS.items()}
    missing = [
        f"{names[int(index)]} (features.{index})"
        for index in network.features
        if any(f"features.{index}.{part}" not in content for part in ("weight", "bias"))
    ]
    if not missing:
        return None
    shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"does not reach {max(network.layers, key=LAYERS.__getitem__)}: it has no {shown}"


class ContentLoss(nn.Module):
    """rescale · Σ weight · criterion(φ(prediction), φ(target)), over the layers φ.

    `rescale` multiplies the loss, not the features: SRGAN's division of the features by 12.75 is
    `SRGAN_RESCALE` with "mse" (and would be 1 / 12.75 with "l1"). SRGAN is ``{"vgg54": 1.0}``,
    "mse", SRGAN_RESCALE; ESRGAN is ``{"conv5_4": 1.0}``, "l1". The weights suit the features of
    torchvision's file: a VGG with rescaled activations needs others.

    Pictures are in [0, 1]. The target is never given gradients. Under autocast the features are
    computed in its dtype, and compared in float32.
    """

    def __init__(
        self,
        features: VGG19Features,
        layers: Mapping[str, float],
        *,
        criterion: Criterion = "mse",
        rescale: float = 1.0,
    ) -> None:
        super().__init__()
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion must be 'mse' or 'l1', not {criterion!r}")
        absent = [name for name in layers if name not in features.layers]
        if absent or not layers:
            raise ValueError(f"the features are {', '.join(features.layers)}, not {absent}")
        if not all(0.0 <= value < math.inf for value in (*layers.values(), rescale)):
            raise ValueError("the layers' weights and rescale must be 0 or more")
        self.features = features
        self.layers = dict(layers)
        self.criterion = criterion
        self.rescale = rescale

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction, target)
        with torch.no_grad():
            wanted = self.features(target)
        given = self.features(prediction)
        total = prediction.new_zeros(())
        for name, weight in self.layers.items():
            wide = torch.promote_types(given[name].dtype, torch.float32)
            difference = given[name].to(wide) - wanted[name].to(wide)
            distance = difference.square() if self.criterion == "mse" else difference.abs()
            total = total + weight * distance.mean()
        return self.rescale * total
