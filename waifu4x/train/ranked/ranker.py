"""RankSRGAN's ranker: a network that says how bad a picture looks, and the losses around it.

Zhang et al., "RankSRGAN: Generative Adversarial Networks with Ranker for Image Super-Resolution"
(ICCV 2019), https://arxiv.org/abs/1908.06382. It is shown two pictures at a time and learns which
of them has the higher NIQE, so the *higher* its value, the worse the picture. Then it judges what
a generator makes, where NIQE itself, which has no gradient, could not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.bench.niqe import BLOCK_PX
from waifu4x.errors import UsageError
from waifu4x.model_files.given_files import fail
from waifu4x.model_files.tensor_files import read_tensor_file, write_safetensors
from waifu4x.model_files.tensor_values import take_floats
from waifu4x.train import tables
from waifu4x.train.recipe import Recipe

ARCHITECTURE = "ranker"
PATCH_KEY = "patch_px"
MARGIN = 0.5
LIMIT = 5.0
SMALLEST_PX = 32

_STAGES = 5
_COUNTER = "num_batches_tracked"
_CURE = "give one that `waifu4x train --recipe ranker` wrote"
# The first release numbered all layers in one row: conv, conv, norm, conv, norm, ...
_NUMBERED = re.compile(r"features\.(\d{1,2})\.(.+)")


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """The numbers of one ranker."""

    channels: int = 64
    hidden: int = 100

    def __post_init__(self) -> None:
        if min(self.channels, self.hidden) < 1:
            raise ValueError("channels and hidden must be positive")


class Ranker(nn.Module):
    """x: (N, 3, H, W) RGB in [0, 1], sides of 32 px or more -> (N, 1): higher is worse.

    The paper's VGG of twelve layers: five stages of a 3x3 convolution and a 4x4 one that halves,
    with batch normalisation (but for the very first) and LeakyReLU 0.2, an average over all
    positions, and two dense layers. Its keys are those of the published ``Ranker_NIQE.pth``.
    Raises ValueError for smaller pictures.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        channels = 3
        for stage in range(_STAGES):
            wide = config.channels * min(2**stage, 8)
            self.add_module(f"conv{stage}_0", nn.Conv2d(channels, wide, 3, padding=1))
            if stage > 0:
                self.add_module(f"bn{stage}_0", nn.BatchNorm2d(wide))
            self.add_module(f"conv{stage}_1", nn.Conv2d(wide, wide, 4, 2, padding=1))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(wide))
            channels = wide
        self.classifier = nn.Sequential(
            nn.Linear(channels, config.hidden), nn.LeakyReLU(0.2), nn.Linear(config.hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST_PX:
            raise ValueError(
                f"a ranker takes (N, 3, H, W) of {SMALLEST_PX} px or more a side, not "
                f"{tuple(x.shape)}"
            )
        for stage in range(_STAGES):
            for part in (0, 1):
                x = self.get_submodule(f"conv{stage}_{part}")(x)
                if stage + part > 0:
                    x = self.get_submodule(f"bn{stage}_{part}")(x)
                x = functional.leaky_relu(x, 0.2, inplace=True)
        return self.classifier(x.mean((2, 3)))


def margin_ranking_loss(
    first: Tensor, second: Tensor, sign: Tensor, *, margin: float = MARGIN, limit: float = LIMIT
) -> Tensor:
    """Mean of max(0, margin - sign · (first - second)), values clamped to [-limit, limit].

    Args:
        first, second: (N, 1), what the ranker says of two pictures.
        sign: (N, 1), +1 where the first one is to have the higher value (is the worse one), else
            -1.
    """
    apart = _wide(first).clamp(-limit, limit) - _wide(second).clamp(-limit, limit)
    return functional.relu(margin - sign * apart).mean()


class RankContentLoss(nn.Module):
    """Σ over the batch of σ(ranker(prediction)); the target is unused.

    A *sum*, as published: the paper's weight of 0.03 is for batches of 8. So that the weight means
    the same however a batch is shared by parts and processes, this is `batch` times the mean over
    the pictures that it is shown, and means and gradients over all parts make up the sum.

    Args:
        ranker: is guaranteed to stay in eval mode, and its weights to get no gradients; gradients
            flow to the prediction.
        batch: how many pictures there are in a whole batch.
    """

    def __init__(self, ranker: Ranker, *, batch: int) -> None:
        super().__init__()
        if batch < 1:
            raise ValueError(f"batch must be 1 or more, not {batch}")
        self.ranker = ranker.requires_grad_(False).eval()
        self.batch = batch

    def train(self, mode: bool = True) -> RankContentLoss:
        super().train(mode)
        # Batch statistics would be those of the generator's pictures, and change with every step.
        self.ranker.eval()
        return self

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.batch * torch.sigmoid(_wide(self.ranker(prediction))).mean()


def build_ranker(recipe: Recipe) -> Ranker:
    """The fresh ranker that a recipe is about. Raises UsageError as `check` does."""
    where = f"recipe {recipe.name} [generator]"
    numbers = dict(recipe.generator)
    numbers.pop("scale", None)
    if numbers.pop("network") != ARCHITECTURE:
        raise UsageError(f'{where}: a recipe with [ranking] trains network = "{ARCHITECTURE}"')
    try:
        return Ranker(tables.from_table(RankerConfig, numbers, where))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: {error}") from error


def check(recipe: Recipe) -> None:
    """Find out what is wrong with the recipe of a ranker before any picture is enlarged for it.

    Raises UsageError: unknown numbers, stages or patches that do not suit a ranker.
    """
    with torch.device("meta"):
        build_ranker(recipe)
    options, patch_px = recipe.ranking, patch_px_of(recipe)
    assert options is not None, "only recipes of rankers are checked here"
    smallest_px = BLOCK_PX + 2 * options.border_px
    if patch_px < smallest_px:
        raise UsageError(
            f"recipe {recipe.name}: NIQE needs patches of {smallest_px} px, and these have "
            f"{patch_px}: raise patch_px to {-(-smallest_px // recipe.scale)}"
        )
    if len(recipe.stages) != 1 or any(stage.discriminator for stage in recipe.stages):
        raise UsageError(f"recipe {recipe.name}: a ranker has one stage, and no discriminator")


def patch_px_of(recipe: Recipe) -> int:
    """The side of a ranker's patches, in high-resolution pixels."""
    return recipe.data.patch_px * recipe.scale


def save_ranker(ranker: Ranker, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a ranker as ``.safetensors``, atomically; `load_ranker` gives it back.

    `metadata` are further facts; PATCH_KEY among them is the side of the patches that it learned
    from. Raises CheckpointError when a weight is not finite, or when the disk refuses.
    """
    state = {k: v for k, v in ranker.state_dict().items() if not k.endswith(_COUNTER)}
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            fail(path, f"is not written: {key} holds NaN or infinity")
    stated = {
        "architecture": ARCHITECTURE,
        "config": json.dumps(asdict(ranker.config), sort_keys=True),
    }
    write_safetensors(state, path, metadata={**metadata, **stated})


@dataclass(frozen=True, kw_only=True)
class LoadedRanker:
    """A ranker from a file: frozen, in eval mode, on the CPU."""

    ranker: Ranker
    patch_px: int | None
    """The side of the patches that it learned from; None where the file does not say so."""


def load_ranker(path: Path) -> LoadedRanker:
    """A ranker that `save_ranker` wrote, or a published one (``Ranker_NIQE.pth``).

    Both of the published key layouts are known. The tensors are guaranteed to be all there, of the
    right shapes and finite. Raises CheckpointError when they are not, or when the file is another
    network's or cannot be read safely.
    """
    file = read_tensor_file(path)
    content = file.content if isinstance(file.content, dict) else {}
    names = {_key(key): key for key in dict.keys(content) if isinstance(key, str)}
    sizes = [_outputs(content, names.get(key)) for key in ("conv0_0.weight", "classifier.0.weight")]
    if not all(1 <= size <= 4096 for size in sizes):
        fail(path, f"is no ranker; {_CURE}", sha256=file.sha256)
    with torch.device("meta"):
        ranker = Ranker(RankerConfig(channels=sizes[0], hidden=sizes[1]))
    state = {
        key: torch.zeros((), dtype=torch.long)
        if key.endswith(_COUNTER)
        else take_floats(
            file, names.get(key, key), path=path, shape=own.shape, what="ranker", cure=_CURE
        )
        for key, own in ranker.state_dict().items()
    }
    ranker.load_state_dict(state, assign=True)
    stated = file.metadata.get(PATCH_KEY, "")
    patch_px = int(stated) if re.fullmatch(r"[1-9]\d{0,4}", stated) else None
    return LoadedRanker(ranker=ranker.requires_grad_(False).eval(), patch_px=patch_px)


def _outputs(content: dict[Any, Any], key: str | None) -> int:
    """How many outputs a weight has; 0 where it is none."""
    tensor = None if key is None else dict.get(content, key)
    if not isinstance(tensor, Tensor) or Tensor.dim(tensor) < 2:
        return 0
    return int(Tensor.size(tensor, 0))


def _key(key: str) -> str:
    """By our name, where a key is one of the first release's: features.8 is conv1_1."""
    found = _NUMBERED.fullmatch(key)
    if found is None:
        return key
    index, rest = int(found[1]), found[2]
    if index == 0:
        return f"conv0_0.{rest}"
    number, place = divmod(index + 1, 3)  # every layer but the first: convolution, norm, LeakyReLU
    kind = ("conv", "bn", "act")[place]
    return f"{kind}{number // 2}_{number % 2}.{rest}"


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
