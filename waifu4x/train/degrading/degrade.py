"""How low-resolution pictures are made from high-resolution ones, as values.

    bicubic   MATLAB's imresize, as the papers measure
    jpeg      that, then a JPEG of random quality
    web       shrunk by any program, then a JPEG or WebP, now and then saved again
    real      Real-ESRGAN's second-order degradation, and what memes suffer besides

A degradation is a frozen dataclass of its options, and callable; it can be pickled, compared, and
told in plain values (`facts`) from which `build` makes it again. The same Generator state gives the
same picture. The grid of the low-resolution pixels stays aligned with the high-resolution picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from waifu4x.errors import UsageError
from waifu4x.resample import imresize
from waifu4x.train.degrading import spoiling
from waifu4x.train.degrading.degradation import Captioned, Degradation, whole
from waifu4x.train.degrading.real import Real
from waifu4x.train.degrading.spoiling import Uint8Array
from waifu4x.train.options import changed, unknown


@dataclass(frozen=True, kw_only=True)
class Bicubic(Degradation):
    """Exact MATLAB imresize, which is what published networks are measured on."""

    kind = "bicubic"

    def _degrade(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        return imresize(hr, 1.0 / self.scale)


@dataclass(frozen=True, kw_only=True)
class Jpeg(Degradation):
    """MATLAB's bicubic, then one JPEG."""

    kind = "jpeg"
    none_chance: float = 0.1
    """Of staying as it is, so that clean pictures are not forgotten."""
    quality: tuple[int, int] = (30, 95)
    half_chroma_chance: float = 0.7
    """Of 4:2:0, which is what most encoders do unasked; else 4:4:4."""

    def _degrade(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        lr = imresize(hr, 1.0 / self.scale)
        if random.random() < self.none_chance:
            return lr
        done = spoiling.compressed(
            lr.astype(np.float32),
            codec="JPEG",
            quality=whole(random, self.quality),
            half_chroma=random.random() < self.half_chroma_chance,
            origin_px=spoiling.draw_origin(random),
        )
        return spoiling.to_uint8(done)


@dataclass(frozen=True, kw_only=True)
class Web(Captioned):
    """What most pictures go through on their way to a user, and a tenth of `Real`'s work.

    Shrunk by one of the common filters, a little soft or too sharp at times, then compressed, not
    always, and at times again.
    """

    kind = "web"
    soft_chance: float = 0.15
    soft_px: tuple[float, float] = (0.2, 0.6)
    """Deviation of the Gaussian in low-resolution pixels."""
    halo_chance: float = 0.07
    halo_radius_px: tuple[float, float] = (0.5, 1.5)
    halo_amount: tuple[float, float] = (0.3, 1.0)
    noise_chance: float = 0.1
    noise_sigma: tuple[float, float] = (0.5, 5.0)
    """In levels of 255."""
    none_chance: float = 0.2
    """Of not being compressed, so that clean pictures are not forgotten."""
    quality: tuple[int, int] = (30, 95)
    half_chroma_chance: float = 0.7
    webp_chance: float = 0.1
    resave_chance: float = 0.15
    """Of being saved twice."""

    def _degrade(self, hr: Uint8Array, random: np.random.Generator) -> Uint8Array:
        soft_px = 0.0
        if random.random() < self.soft_chance:
            soft_px = self.scale * random.uniform(*self.soft_px)
        small = spoiling.shrunk(hr, self.scale, soft_px=soft_px, random=random)
        image = small.astype(np.float32)
        if random.random() < self.halo_chance:
            radius_px, amount = (
                random.uniform(*limits) for limits in (self.halo_radius_px, self.halo_amount)
            )
            image = spoiling.oversharpened(image, radius_px=radius_px, amount=amount)
        if random.random() < self.noise_chance:
            sigma, gray = random.uniform(*self.noise_sigma), random.random() < 0.5
            image = spoiling.gaussian_noise(image, sigma, gray=gray, random=random)
        if random.random() >= self.none_chance:
            for _ in range(2 if random.random() < self.resave_chance else 1):
                image = spoiling.compressed(
                    image,
                    codec="WEBP" if random.random() < self.webp_chance else "JPEG",
                    quality=whole(random, self.quality),
                    half_chroma=random.random() < self.half_chroma_chance,
                    origin_px=spoiling.draw_origin(random),
                )
        return spoiling.to_uint8(image)


DEGRADATIONS: dict[str, type[Degradation]] = {
    made.kind: made for made in (Bicubic, Jpeg, Web, Real)
}


def build(kind: str, *, scale: int, options: Mapping[str, Any] | None = None) -> Degradation:
    """A degradation from plain values, as TOML and checkpoints hold them.

    Args:
        kind: a key of DEGRADATIONS.
        options: of its fields those that differ from the default; a stage is a table of its own.

    Raises:
        UsageError: no such kind or option (the nearest is named), or a value that makes no sense.
    """
    if kind not in DEGRADATIONS:
        raise UsageError(unknown(f"no degradation {kind!r}", kind, known=list(DEGRADATIONS)))
    values = {} if options is None else options
    if "scale" in values:
        raise UsageError(f"degradation {kind}: the scale is the network's, not an option here")
    made = DEGRADATIONS[kind](scale=scale)
    return changed(made, values, where=f"degradation {kind}")
