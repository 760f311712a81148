"""LPIPS and DISTS: how different two pictures look to a network that learned to tell things apart.

Lower is better, 0 is equal. Both compare the features of an image classifier (here: own code in
torchvision's layout, so that its published files fit) and weigh them by a small file of numbers
that was fitted to what people said:

- LPIPS v0.1, Zhang, Isola, Efros, Shechtman, Wang (2018), https://arxiv.org/abs/1801.03924, over
  AlexNet (what papers mean unless they say otherwise), VGG-16 or SqueezeNet 1.1.
- DISTS, Ding, Ma, Wang, Simoncelli (2020), https://arxiv.org/abs/2004.07728, over VGG-16 whose
  poolings are replaced by blurred ones. Its ``weights.pt`` is read under the name ``weights.pth``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x import weights
from waifu4x.bench.metrics import shaved
from waifu4x.model_files.given_files import fail, printable
from waifu4x.model_files.tensor_files import TensorFile, read_tensor_file
from waifu4x.model_files.tensor_values import take_floats

Uint8Array = npt.NDArray[np.uint8]
Net = Literal["alex", "vgg", "squeeze"]
Progress = Callable[[int, int], None]

BACKBONES: dict[Net, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""Under which name the catalogue has torchvision's published file of each."""
HEADS: dict[Net, str] = {"alex": "lpips-alex", "vgg": "lpips-vgg", "squeeze": "lpips-squeeze"}
"""Under which name the catalogue has LPIPS's published weights for each."""

_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions; then a pool
_VGG16_TAPS = (3, 8, 15, 22, 29)
_TAPS: dict[Net, tuple[int, ...]] = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": _VGG16_TAPS,
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
_CHANNELS: dict[Net, tuple[int, ...]] = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
_SMALLEST_PX: dict[Net, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
# ImageNet's mean and deviation, for pictures in [-1, 1] (as LPIPS rounds them) and in [0, 1].
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LPIPS_EPS = 1e-10
_DISTS_CHANNELS = [3, *_CHANNELS["vgg"]]
_DISTS_C = 1e-6


class _Fire(nn.Module):
    """SqueezeNet's block: few channels, then many by 1×1 and 3×3 side by side."""

    def __init__(self, into: int, few: int, many: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(into, few, 1)
        self.expand1x1 = nn.Conv2d(few, many, 1)
        self.expand3x3 = nn.Conv2d(few, many, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze(x))
        return torch.cat(
            [functional.relu(self.expand1x1(x)), functional.relu(self.expand3x3(x))], dim=1
        )


class _BlurredPool(nn.Module):
    """DISTS's pooling: the root of the Hann-weighted mean of squares, 3×3, every second one."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("kernel", row[:, None] * row, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, 3, 3)
        mean = functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=channels)
        return (mean + 1e-12).sqrt()


def _vgg16(pool: Callable[[], nn.Module]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    into = 3
    for wide, count in _VGG16:
        for _ in range(count):
            layers += [nn.Conv2d(into, wide, 3, padding=1), nn.ReLU()]
            into = wide
        layers.append(pool())
    return layers[:-1]  # nothing looks beyond relu5_3


def _alexnet() -> list[nn.Module]:
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


def _squeezenet() -> list[nn.Module]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()),
        *(_Fire(64, 16, 64), _Fire(128, 16, 64), pool()),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128), pool()),
        *(_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
    ]


_LAYERS: dict[Net, Callable[[], list[nn.Module]]] = {
    "alex": _alexnet,
    "vgg": lambda: _vgg16(lambda: nn.MaxPool2d(2)),
    "squeeze": _squeezenet,
}


class _Compared(nn.Module):
    """What LPIPS and DISTS share: frozen features, and a look at what they are given."""

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: list[nn.Module],
        taps: tuple[int, ...],
        *,
        shift: Sequence[float],
        scale: Sequence[float],
        smallest_px: int,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps = taps
        self.smallest_px = smallest_px
        for name, values in (("shift", shift), ("scale", scale)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def check(self, prediction: Tensor, target: Tensor) -> None:
        shape = tuple(prediction.shape)
        if shape != tuple(target.shape) or len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"two of (N, 3, H, W) are compared, not {shape}, {target.shape}")
        if min(shape[2:]) < self.smallest_px:
            raise ValueError(f"at least {self.smallest_px} px a side are needed, not {shape}")

    def look(self, x: Tensor) -> list[Tensor]:
        """The features at every tap, the shallowest first."""
        x = (x - self.shift) / self.scale
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class Lpips(_Compared):
    """(N, 3, H, W) RGB in [-1, 1], twice -> (N,): LPIPS v0.1 of each pair, 0 or more.

    Fresh ones are random, and useless: see `load_lpips`. Weights are frozen; gradients flow to the
    pictures. Raises ValueError for two shapes, for what is no RGB, and below `smallest_px` a side.
    """

    def __init__(self, net: Net = "alex") -> None:
        if net not in get_args(Net):
            raise ValueError(f"LPIPS has {', '.join(get_args(Net))}, not {net!r}")
        super().__init__(
            _LAYERS[net](),
            _TAPS[net],
            shift=_LPIPS_SHIFT,
            scale=_LPIPS_SCALE,
            smallest_px=_SMALLEST_PX[net],
        )
        self.net: Net = net
        self.heads = nn.ParameterList(torch.rand(1, wide, 1, 1) for wide in _CHANNELS[net])
        self.freeze()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        self.check(prediction, target)
        total = prediction.new_zeros(len(prediction))
        pairs = zip(self.look(prediction), self.look(target), strict=True)
        for head, (one, other) in zip(self.heads, pairs, strict=True):
            difference = (_of_unit_length(one) - _of_unit_length(other)).square()
            total = total + (head * difference).sum(dim=1).mean(dim=(1, 2))
        return total


class Dists(_Compared):
    """(N, 3, H, W) RGB in [0, 1], twice -> (N,): DISTS of each pair, 0 for equal ones.

    The authors' script first shrinks pictures to 256 px on the shorter side; nothing is shrunk
    here. Fresh ones are random: see `load_dists`. Raises ValueError as `Lpips` does.
    """

    def __init__(self) -> None:
        super().__init__(_vgg16(_BlurredPool), _VGG16_TAPS, shift=_MEAN, scale=_STD, smallest_px=16)
        count = sum(_DISTS_CHANNELS)
        self.alpha = nn.Parameter(torch.rand(1, count, 1, 1))
        self.beta = nn.Parameter(torch.rand(1, count, 1, 1))
        self.freeze()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        self.check(prediction, target)
        whole = self.alpha.sum() + self.beta.sum()
        alphas = torch.split(self.alpha / whole, _DISTS_CHANNELS, dim=1)
        betas = torch.split(self.beta / whole, _DISTS_CHANNELS, dim=1)
        # The pictures themselves are the first features, as they are.
        ones, others = [prediction, *self.look(prediction)], [target, *self.look(target)]
        likeness = prediction.new_zeros(len(prediction))
        for one, other, alpha, beta in zip(ones, others, alphas, betas, strict=True):
            means = [x.mean(dim=(2, 3), keepdim=True) for x in (one, other)]
            a, b = (x - mean for x, mean in zip((one, other), means, strict=True))
            texture = (2 * means[0] * means[1] + _DISTS_C) / (
                means[0].square() + means[1].square() + _DISTS_C
            )
            covariance = (a * b).mean(dim=(2, 3), keepdim=True)
            variances = (a.square() + b.square()).mean(dim=(2, 3), keepdim=True)
            structure = (2 * covariance + _DISTS_C) / (variances + _DISTS_C)
            likeness = likeness + (alpha * texture + beta * structure).sum(dim=(1, 2, 3))
        return 1.0 - likeness


def load_lpips(net: Net, *, backbone: Path, head: Path) -> Lpips:
    """LPIPS from torchvision's file of a backbone, and the authors' of its head (v0.1).

    Whatever else is in the files (a classifier) is not looked at. What is needed is guaranteed to
    be all there, of the right shape and finite. Raises CheckpointError when it is not, or when a
    file cannot be read safely; ValueError for an unknown net.
    """
    network = Lpips(net)
    _fill_features(network, backbone, BACKBONES[net])
    keys = {f"heads.{k}": f"lin{k}.model.1.weight" for k in range(len(network.heads))}
    _fill(network, read_tensor_file(head), head, keys=keys, what=f"LPIPS v0.1 for {net}")
    return network


def open_lpips(
    net: Net = "alex",
    *,
    backbone: Path | None = None,
    head: Path | None = None,
    offline: bool = False,
    on_progress: Progress | None = None,
) -> Lpips:
    """`load_lpips` of these files, or of the published ones, downloaded if need be.

    The backbones are 244 MB (alex), 553 MB (vgg) and 5 MB (squeeze). Raises what `load_lpips` and
    `waifu4x.weights.resolve` raise.
    """
    if net not in get_args(Net):  # a misspelt one should not cost a download
        raise ValueError(f"LPIPS has {', '.join(get_args(Net))}, not {net!r}")
    head = head or weights.resolve(HEADS[net], offline=offline).path
    if backbone is None:
        backbone = weights.resolve(BACKBONES[net], offline=offline, on_progress=on_progress).path
    return load_lpips(net, backbone=backbone, head=head)


def load_dists(*, backbone: Path, head: Path) -> Dists:
    """DISTS from torchvision's VGG-16 and the authors' ``weights.pt``, renamed to ``.pth``.

    Raises CheckpointError as `load_lpips` does.
    """
    network = Dists()
    _fill_features(network, backbone, BACKBONES["vgg"])
    keys = {"alpha": "alpha", "beta": "beta"}
    _fill(network, read_tensor_file(head), head, keys=keys, what="DISTS")
    return network


def lpips(network: Lpips, prediction: Uint8Array, target: Uint8Array, *, border_px: int) -> float:
    """LPIPS of two pictures (H, W, 3) uint8 RGB, with `border_px` cut off every side."""
    one, other = (_batch(image, border_px, network) * 2.0 - 1.0 for image in (prediction, target))
    with torch.no_grad():
        return float(network(one, other))


def dists(network: Dists, prediction: Uint8Array, target: Uint8Array, *, border_px: int) -> float:
    """DISTS of two pictures (H, W, 3) uint8 RGB, with `border_px` cut off every side."""
    one, other = (_batch(image, border_px, network) for image in (prediction, target))
    with torch.no_grad():
        return float(network(one, other))


def _of_unit_length(x: Tensor) -> Tensor:
    """Each pixel's features over their length."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _LPIPS_EPS)


def _batch(image: Uint8Array, border_px: int, network: _Compared) -> Tensor:
    """(1, 3, h, w) float32 in [0, 1], where the network is."""
    plane = np.ascontiguousarray(shaved(image, border_px).transpose(2, 0, 1))
    return torch.from_numpy(plane)[None].to(network.shift.device).float() / 255.0


def _fill_features(network: _Compared, path: Path, name: str) -> None:
    file = read_tensor_file(path)
    wanted = [key for key in network.state_dict() if key.startswith("features.")]
    content = file.content if isinstance(file.content, dict) else {}
    convolutions = {".".join(key.split(".")[:2]) for key in wanted}
    # VGG-19 begins with the same layers in the same places, and its features would be others.
    foreign = [
        key
        for key in dict.keys(content)
        if isinstance(key, str)
        and key.startswith("features.")
        and ".".join(key.split(".")[:2]) not in convolutions
    ]
    if foreign:
        problem = f"is no {name} but another network: it has {printable(foreign[0], limit=40)}"
        fail(path, f"{problem}; {_cure(name)}", sha256=file.sha256)
    _fill(network, file, path, keys={key: key for key in wanted}, what=name)


def _cure(what: str) -> str:
    return f"give the published file of {what}"


def _fill(
    network: nn.Module, file: TensorFile, path: Path, *, keys: dict[str, str], what: str
) -> None:
    """Set what `keys` names on the left to the file's tensor that it names on the right."""
    own = network.state_dict()
    state = {
        key: take_floats(file, theirs, path=path, shape=own[key].shape, what=what, cure=_cure(what))
        for key, theirs in keys.items()
    }
    network.load_state_dict(state, strict=False)
