"""What to train and how: a TOML file of typed options, where an unknown key is an error.

A recipe has a generator, data, and stages that follow each other, each with its losses and its
schedule: SRGAN is a stage by MSE, then a stage by VGG-19 features and a discriminator. The table of
presets is that of the papers; see each file in `recipes/`.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from waifu4x.errors import UsageError
from waifu4x.train import tables
from waifu4x.train.references.reference_options import ReferenceOptions

_RECIPES = resources.files("waifu4x.train") / "recipes"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


@dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """Content of three regions of a picture, each by layers of its own: SROBB's loss.

    Weighs `weight` · Σ of `weights` (boundary, background, objects) times the content of the
    region, which is compared by `criterion`; see `regions`.
    """

    boundary: Mapping[str, float] = field(default_factory=lambda: {"relu1_2": 1.0})
    background: Mapping[str, float] = field(default_factory=lambda: {"relu4_3": 1.0})
    objects: Mapping[str, float] = field(default_factory=lambda: {"relu5_4": 1.0})
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    criterion: Literal["l1", "mse"] = "mse"
    weight: float = 0.006
    boundary_px: int = 3
    """The radius of the disk by which boundaries are widened, in high-resolution pixels."""
    background_classes: tuple[int, ...] = ()
    """Indices of label maps (``--labels``) that are background; every other one is an object."""
    blur_px: float = 2.0
    """Without labels: of what is sharper than this deviation, nothing is a boundary."""
    edge_level: float = 0.04
    """Without labels: a boundary is steeper, in the range of luma (0..1) a pixel."""
    texture_px: float = 4.0
    """Without labels: over which deviation texture is averaged."""
    texture_level: float = 0.025
    """Without labels: a background has more texture, as a deviation of luma (0..1)."""

    def __post_init__(self) -> None:
        weights = (*self.weights, self.weight, self.edge_level, self.texture_level)
        _require(all(0.0 <= w < math.inf for w in weights), "weights and levels are 0 or more")
        _require(self.boundary_px >= 0, "boundary_px is 0 or more")
        _require(min(self.blur_px, self.texture_px) > 0.0, "blur_px and texture_px are above 0")
        _require(bool(self.layers()), "some region must have a layer and a weight")

    def layers(self) -> dict[str, Mapping[str, float]]:
        """The layers of each region that counts, and their weights."""
        found = {"boundary": self.boundary, "background": self.background, "objects": self.objects}
        return {
            name: layers
            for (name, layers), weight in zip(found.items(), self.weights, strict=True)
            if self.weight * weight * sum(layers.values()) > 0.0
        }


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The weighted terms of a generator's loss; a weight of 0 leaves a term out."""

    pixel: Literal["l1", "mse", "charbonnier"] = "l1"
    pixel_weight: float = 1.0
    pixel_range: Literal["01", "11"] = "01"
    """Pixels are taken in [0, 1], or as the SRGAN paper does, in [-1, 1]."""
    content: Mapping[str, float] = field(default_factory=dict)
    """Layers of VGG-19 and their weights: {"relu5_4" = 1.0}; "conv5_4" is before the activation."""
    content_criterion: Literal["l1", "mse"] = "l1"
    content_weight: float = 1.0
    """Of the whole term. SRGAN divides features by 12.75: 0.006 for mse."""
    gan: Literal["none", "vanilla", "ragan", "lsgan", "hinge", "wgan-gp"] = "none"
    gan_weight: float = 1e-3
    tv_weight: float = 0.0
    fft_weight: float = 0.0
    gradient_weight: float = 0.0
    magnitude_weight: float = 0.0
    rank_weight: float = 0.0
    """Of the sum over a batch of what a ranker says: 0.03 for batches of 8; see `ranker`."""
    ranker: str | None = None
    """The ranker's file, where `--ranker` does not name one."""
    regions: RegionOptions | None = None
    texture_weight: float = 0.0
    """Of SRNTT's textures, which grow with the fourth power of VGG's features: see `textures`."""
    texture_by_similarity: bool = False

    def __post_init__(self) -> None:
        weights = (
            *(self.pixel_weight, self.content_weight, self.gan_weight, self.tv_weight),
            *(
                self.fft_weight,
                self.gradient_weight,
                self.magnitude_weight,
                *self.content.values(),
                self.rank_weight,
                self.texture_weight,
            ),
        )
        _require(all(0.0 <= w < math.inf for w in weights), "weights of losses are 0 or more")
        content = self.content_weight * sum(self.content.values())
        _require(
            self.pixel_weight + self.fft_weight + self.gradient_weight + content > 0.0
            or self.regions is not None,
            "some loss must compare with the truth: pixel, content, regions, fft or gradient",
        )

    def layers(self) -> tuple[str, ...]:
        """Every layer of VGG-19 that is asked for, sorted."""
        regions = {} if self.regions is None else self.regions.layers()
        textures = ("relu1_1", "relu2_1", "relu3_1") if self.texture_weight > 0.0 else ()
        of_regions = (each for layers in regions.values() for each in layers)
        return tuple(sorted({*self.content, *of_regions, *textures}))


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How crops are drawn. `patch_px` is the side of the low-resolution crop."""

    batch: int = 16
    patch_px: int = 48
    degradation: Literal["bicubic", "jpeg", "web", "real"] = "bicubic"
    degrade: Mapping[str, Any] = field(default_factory=dict)
    """Options of the degradation; see `degrade`."""
    scales: tuple[int, ...] = ()
    """For networks of several scales: those that are mixed; by default the generator's."""
    from_scale: float | None = None
    """For networks of any scale: every tenth from here to the generator's is mixed, one a batch."""
    sharpen: bool = False
    """Pixel and content losses compare with a sharpened truth, as Real-ESRGAN's do."""
    reference: ReferenceOptions | None = None
    """For networks that take references: where those come from."""

    def __post_init__(self) -> None:
        _require(self.batch >= 1 and self.patch_px >= 1, "batch and patch_px must be 1 or more")
        _require(all(scale >= 1 for scale in self.scales), "scales are whole numbers from 1 on")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """One part of a run: its losses, its discriminator, its optimizer and its schedule."""

    name: str = "train"
    steps: int = 30_000
    """With ``--minutes``, only the proportions of the stages' steps count."""
    losses: LossOptions = field(default_factory=LossOptions)
    discriminator: Mapping[str, Any] = field(default_factory=dict)
    """{kind = "srgan"} and the numbers of its config; for stages with `losses.gan`."""
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    discriminator_rate: float | None = None
    """By default the generator's."""
    last_layer_rate: float = 1.0
    """Of the last convolution, times the others': SRCNN has 0.1."""
    decay: Literal["cosine", "steps", "constant"] = "cosine"
    final_rate: float = 1e-6
    """Where the cosine ends."""
    milestones: tuple[float, ...] = ()
    """Shares of the stage after which the rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.5
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """0 does not clip."""
    ema_decay: float = 0.999
    reference: bool = True
    """Whether a network that can do without is shown its references, or is trained without."""
    discriminator_steps: int = 1
    """For each of the generator, by the same batch."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps must be 1 or more, not {self.steps}")
        _require(self.discriminator_steps >= 1, "discriminator_steps must be 1 or more")
        rates = (self.learning_rate, self.discriminator_rate or self.learning_rate)
        _require(all(0.0 < r < math.inf for r in rates), "learning rates must be more than 0")
        _require(0.0 <= self.final_rate < math.inf, "final_rate is 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps must be 0 or more")
        _require(all(0.0 <= beta < 1.0 for beta in self.betas), "betas must lie in 0 <= b < 1")
        _require(self.clip_norm >= 0.0, "clip_norm must be 0 or more")
        _require(0.0 <= self.ema_decay < 1.0, "ema_decay must lie in 0 <= d < 1")
        _require(all(0.0 < m < 1.0 for m in self.milestones), "milestones lie in 0 < m < 1")
        has_gan = self.losses.gan != "none"
        _require(has_gan == bool(self.discriminator), "gan and discriminator need each other")


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """What a ranker learns from: patches of several systems, and which of them has more NIQE."""

    systems: tuple[str, ...] = ("bicubic", "waifu4x-clean", "waifu4x-photo")
    """Names of models, or files; the pictures that they enlarge are shrunk by `scale`."""
    stride_px: int = 148
    """From patch to patch, in high-resolution pixels."""
    most_patches: int = 0
    """Of one picture, spread evenly over those that can be used; 0 takes all."""
    least_sharpness: float = 4.2
    """The mean local deviation of luma, in levels of 255, that a patch must have; see `ranking`."""
    least_difference: float = 0.1
    """Pairs with less difference in NIQE are left out."""
    border_px: int = 4
    """Cut off every side of a patch before NIQE is measured."""
    held_out: float = 0.1
    """Share of the pictures that are not trained on, but asked about."""
    margin: float = 0.5
    limit: float = 5.0
    """The ranker's values are clamped to -limit..limit in its loss."""

    def __post_init__(self) -> None:
        names = self.systems
        _require(len(names) >= 2, "systems must be two or more, to be compared")
        _require(len(set(names)) == len(names), "each of the systems must be another one")
        _require(self.stride_px >= 1 and self.most_patches >= 0, "stride_px must be 1 or more")
        levels = (self.least_sharpness, self.least_difference, self.border_px)
        _require(all(0.0 <= level < math.inf for level in levels), "levels are 0 or more")
        _require(0.0 <= self.held_out < 1.0, "held_out must lie in 0 <= h < 1")
        _require(0.0 < self.margin < math.inf and self.limit > 0.0, "margin and limit are above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    name: str
    generator: Mapping[str, Any]
    """{network = "srresnet", scale = 4} and the numbers of its config."""
    stages: tuple[StageOptions, ...] = (StageOptions(),)
    data: DataOptions = field(default_factory=DataOptions)
    fit: Mapping[str, Any] | None = None
    """Options of a network that is fitted and not trained, which has no stages: see `sparse`."""
    ranking: RankingOptions | None = None
    """Of a run that makes no generator but a ranker: {network = "ranker"}."""

    def __post_init__(self) -> None:
        network = self.generator.get("network")
        _require(isinstance(network, str), "[generator] must name a network")
        one_way = bool(self.stages) == (self.fit is None)
        _require(one_way, "a recipe has one stage or more; with [fit] it has stages = []")
        scale = self.generator.get("scale", 1)
        _require(type(scale) is int and scale >= 1, "[generator] scale is a whole number")
        _require(
            "scale" in self.generator or bool(self.data.scales),
            "[generator] needs a scale, or [data] scales",
        )

    @property
    def scale(self) -> int:
        """HR size over LR size; the largest of several."""
        return max(self.data.scales) if self.data.scales else int(self.generator["scale"])

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def facts(self) -> dict[str, Any]:
        """The recipe as plain values, for checkpoints, model cards and `from_facts`."""
        return tables.facts(self)

    def with_steps(self, steps: int) -> Recipe:
        """The same stages in the same proportions, `steps` together."""
        _require(self.fit is None, "a network that is fitted has no steps: leave out --steps")
        _require(steps >= len(self.stages), f"steps must be {len(self.stages)} or more")
        # Where each stage ends, rounded; every one, and every one after it, has a step at least.
        lengths: list[int] = []
        planned, done = 0, 0
        for number, stage in enumerate(self.stages):
            planned += stage.steps
            latest = steps - (len(self.stages) - number - 1)
            end = min(max(round(steps * planned / self.steps), done + 1), latest)
            lengths.append(end - done)
            done = end
        stages = (
            dataclasses.replace(
                stage, steps=length, warmup_steps=min(stage.warmup_steps, length // 4)
            )
            for stage, length in zip(self.stages, lengths, strict=True)
        )
        return dataclasses.replace(self, stages=tuple(stages))


def from_facts(table: Mapping[str, Any]) -> Recipe:
    """What `Recipe.facts` gave. Raises UsageError as `load` does."""
    name = str(table.get("name", "unnamed"))
    return tables.from_table(Recipe, dict(table, name=name), f"recipe {name}")


def preset_names() -> tuple[str, ...]:
    """The names of the recipes that ship."""
    return tuple(sorted(f.name[:-5] for f in _RECIPES.iterdir() if f.name.endswith(".toml")))


def load(name_or_path: str, *, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """The shipped recipe of that name, or the recipe in that TOML file.

    Args:
        overrides: (path, value) as ("stages.1.losses.gan_weight", "1e-3"); see
            `tables.overridden`.

    Raises:
        UsageError: no such recipe, no valid TOML, an unknown key, or a value of the wrong type.
    """
    path = Path(name_or_path)
    if name_or_path in preset_names():
        text = (_RECIPES / f"{name_or_path}.toml").read_text("utf-8")
    elif path.suffix == ".toml" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as text: {error}") from error
    else:
        known = ", ".join(preset_names())
        raise UsageError(f"no recipe {name_or_path!r}: give a .toml file or one of {known}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name_or_path} is not valid TOML: {error}") from error
    for place, value in overrides:
        table = tables.overridden(table, place, value)
    return from_facts({"name": path.stem, **table})
