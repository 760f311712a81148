"""Real-ESRGAN's second-order degradation (Wang et al., https://arxiv.org/abs/2107.10833), and what
memes suffer besides."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast, get_args

import numpy as np

from waifu4x.train.degrading import spoiling
from waifu4x.train.degrading.degradation import Captioned, whole
from waifu4x.train.degrading.spoiling import Codec, Float32Array, Mode, Shape, Uint8Array
from waifu4x.train.options import Options, require

_SHAPES: tuple[Shape, ...] = get_args(Shape)
_RESIZES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
# Of what is resized on the way; the last size is what was asked for.
_SMALLEST_SIDE_PX = 4


@dataclass(frozen=True, kw_only=True)
class Stage(Options):
    """One round of blur, resizing, noise and JPEG; the defaults are Real-ESRGAN's first.

    https://github.com/xinntao/Real-ESRGAN/blob/master/options/train_realesrgan_x4plus.yml
    """

    blur_chance: float = 1.0
    kernel_px: tuple[int, int] = (7, 21)
    """Odd sizes between these, ends included."""
    sinc_chance: float = 0.1
    """Of a ringing low pass instead of a bell."""
    bell_chances: tuple[float, float, float, float, float, float] = (
        0.45,
        0.25,
        0.12,
        0.03,
        0.12,
        0.03,
    )
    """Gaussian, generalized Gaussian, plateau; of each the isotropic, then the anisotropic."""
    blur_sigma_px: tuple[float, float] = (0.2, 3.0)
    generalized_beta: tuple[float, float] = (0.5, 4.0)
    plateau_beta: tuple[float, float] = (1.0, 2.0)
    resize_chances: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_factor: tuple[float, float] = (0.15, 1.5)
    """Of the high-resolution size in the first stage, of the low-resolution size in the second."""
    noise_chance: float = 1.0
    gaussian_chance: float = 0.5
    """Of Gaussian noise; else it is Poisson noise."""
    noise_sigma: tuple[float, float] = (1.0, 30.0)
    """In levels of 255."""
    poisson_strength: tuple[float, float] = (0.05, 3.0)
    gray_noise_chance: float = 0.4
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = all(size % 2 == 1 for size in self.kernel_px)
        require(odd, f"kernel_px must be two odd sizes, not {self.kernel_px}")


SECOND_STAGE = Stage(
    blur_chance=0.8,
    blur_sigma_px=(0.2, 1.5),
    resize_chances=(0.3, 0.4, 0.3),
    resize_factor=(0.3, 1.2),
    noise_sigma=(1.0, 25.0),
    poisson_strength=(0.05, 2.5),
)
"""Real-ESRGAN's second stage."""


@dataclass(frozen=True, kw_only=True)
class Real(Captioned):
    """Real-ESRGAN's two stages, sharpening halos in the second, and saving again and again.

    Unlike there, resizing is antialiased, and grids of blocks begin anywhere, as in crops of whole
    pictures they do.
    """

    kind = "real"
    first: Stage = field(default_factory=Stage)
    second: Stage = SECOND_STAGE
    final_sinc_chance: float = 0.8
    half_chroma_chance: float = 0.7
    halo_chance: float = 0.15
    halo_radius_px: tuple[float, float] = (0.5, 2.0)
    halo_amount: tuple[float, float] = (0.3, 1.5)
    webp_chance: float = 0.15
    """Of WebP instead of JPEG, each time it is saved after the second stage."""
    resave_chance: float = 0.25
    """Of being saved more than once after the second stage."""
    resaves: tuple[int, int] = (2, 4)
    rescale_chance: float = 0.3
    """Of being rescaled, and back, before it is saved again."""
    rescale_factor: tuple[float, float] = (0.6, 1.6)

    def _degrade(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        lr_px = (hr.shape[0] // self.scale, hr.shape[1] // self.scale)
        image = _blurred(hr.astype(np.float32), self.first, random)
        image = _rescaled(image, hr.shape[:2], stage=self.first, random=random)
        image = _noisy(image, self.first, random)
        image = self._save(image, random, stage=self.first, webp_chance=0.0)
        image = _blurred(image, self.second, random)
        image = _rescaled(image, lr_px, stage=self.second, random=random)
        if random.random() < self.halo_chance:
            radius_px, amount = (
                random.uniform(*self.halo_radius_px),
                random.uniform(*self.halo_amount),
            )
            image = spoiling.oversharpened(image, radius_px=radius_px, amount=amount)
        image = _noisy(image, self.second, random)
        if random.random() < 0.5:
            image = self._to_lr(image, lr_px, random=random)
            image = self._save_again_and_again(image, random)
        else:
            image = self._save_again_and_again(image, random)
            image = self._to_lr(image, lr_px, random=random)
        return spoiling.to_uint8(image)

    def _to_lr(
        self, image: Float32Array, lr_px: tuple[int, int], *, random: np.random.Generator
    ) -> Float32Array:
        image = spoiling.resized(image, lr_px, mode=_pick(random, _RESIZES), random=random)
        if random.random() < self.final_sinc_chance:
            size_px = _odd(random, self.second.kernel_px)
            kernel = spoiling.sinc_kernel(size_px, random.uniform(math.pi / 3.0, math.pi))
            image = spoiling.convolve(image, kernel)
        return image

    def _save_again_and_again(
        self, image: Float32Array, random: np.random.Generator
    ) -> Float32Array:
        times = whole(random, self.resaves) if random.random() < self.resave_chance else 1
        size_px = image.shape[:2]
        for time in range(times):
            if time > 0 and random.random() < self.rescale_chance:
                factor = random.uniform(*self.rescale_factor)
                for target_px in (_scaled(size_px, factor), size_px):
                    mode = _pick(random, ("bilinear", "nearest"))
                    image = spoiling.resized(image, target_px, mode=mode, random=random)
            image = self._save(image, random, stage=self.second, webp_chance=self.webp_chance)
        return image

    def _save(
        self,
        image: Float32Array,
        random: np.random.Generator,
        *,
        stage: Stage,
        webp_chance: float,
    ) -> Float32Array:
        return spoiling.compressed(
            image,
            codec=cast(Codec, "WEBP" if random.random() < webp_chance else "JPEG"),
            quality=whole(random, stage.quality),
            half_chroma=random.random() < self.half_chroma_chance,
            origin_px=spoiling.draw_origin(random),
        )


# Each step draws its own numbers, in the order in which it is done.


def _blurred(image: Float32Array, stage: Stage, random: np.random.Generator) -> Float32Array:
    if random.random() >= stage.blur_chance:
        return image
    size_px = _odd(random, stage.kernel_px)
    if random.random() < stage.sinc_chance:
        # A lower cutoff rings wider than a small kernel reaches.
        lowest = math.pi / 3.0 if size_px < 13 else math.pi / 5.0
        return spoiling.convolve(
            image, spoiling.sinc_kernel(size_px, random.uniform(lowest, math.pi))
        )
    kind = int(random.choice(6, p=stage.bell_chances))
    sigma_px = random.uniform(*stage.blur_sigma_px)
    sigmas_px, angle = (sigma_px, sigma_px), 0.0
    if kind % 2 == 1:
        sigmas_px = (sigma_px, random.uniform(*stage.blur_sigma_px))
        angle = random.uniform(-math.pi, math.pi)
    shape = _SHAPES[kind // 2]
    beta = 1.0
    if shape != "gaussian":
        beta = _beta(random, stage.plateau_beta if shape == "plateau" else stage.generalized_beta)
    kernel = spoiling.bell_kernel(size_px, sigmas_px, angle=angle, shape=shape, beta=beta)
    return spoiling.convolve(image, kernel)


def _beta(random: np.random.Generator, limits: tuple[float, float]) -> float:
    """Below and above 1, where a bell is the plain one, equally often."""
    low, high = limits
    middle = min(max(1.0, low), high)
    return random.uniform(low, middle) if random.random() < 0.5 else random.uniform(middle, high)


def _rescaled(
    image: Float32Array, base_px: tuple[int, int], *, stage: Stage, random: np.random.Generator
) -> Float32Array:
    low, high = stage.resize_factor
    direction, factor = int(random.choice(3, p=stage.resize_chances)), 1.0
    if direction == 0:
        factor = random.uniform(min(max(1.0, low), high), high)
    elif direction == 1:
        factor = random.uniform(low, max(min(1.0, high), low))
    mode = _pick(random, _RESIZES)
    return spoiling.resized(image, _scaled(base_px, factor), mode=mode, random=random)


def _noisy(image: Float32Array, stage: Stage, random: np.random.Generator) -> Float32Array:
    if random.random() >= stage.noise_chance:
        return image
    gaussian = random.random() < stage.gaussian_chance
    gray = random.random() < stage.gray_noise_chance
    if gaussian:
        sigma = random.uniform(*stage.noise_sigma)
        return spoiling.gaussian_noise(image, sigma, gray=gray, random=random)
    strength = random.uniform(*stage.poisson_strength)
    return spoiling.poisson_noise(image, strength, gray=gray, random=random)


def _scaled(size_px: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(_SMALLEST_SIDE_PX, round(side_px * factor)) for side_px in size_px)
    return height, width


def _odd(random: np.random.Generator, limits: tuple[int, int]) -> int:
    return 2 * whole(random, (limits[0] // 2, limits[1] // 2)) + 1


def _pick(random: np.random.Generator, modes: tuple[Mode, ...]) -> Mode:
    return modes[int(random.integers(len(modes)))]
