"""What a network is shown beside a window of its picture: the reference there, or its textures."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from waifu4x import devices
from waifu4x.canvas import FloatArray
from waifu4x.errors import UsageError
from waifu4x.references import reference_inputs
from waifu4x.references.matching import PATCH
from waifu4x.references.reference_pictures import References, aligned

LARGEST_TOTAL_PX = 2046**2
"""Of all references together, where textures are searched: the limit of SRNTT's authors."""

# A reference itself is kept as float32, and once more as it is shown.
_KEPT_BYTES_PER_PX = 24


class Shown(Protocol):
    """References, as one kind of network takes them; windows are (core, halo) of its input."""

    core_px: int
    halo_px: int
    bytes_per_px: int
    """Of a window, at the peak, about: measured as features of the network's widths, in float32."""
    kept_bytes_per_px: int
    """Of all references."""

    def prepare(self) -> bool:
        """Do what takes time once, if there is such a thing."""
        ...

    def upon(self, size_px: tuple[int, int]) -> tuple[FloatArray | None, str | None]:
        """What windows are cut from, as those of a picture of that size; and a note about it."""
        ...

    def beside(self, x: Tensor, cut: FloatArray | None) -> tuple[Any, ...]:
        """What the network is given beside the window x (3, h, w); `cut` is what `upon` has."""
        ...


class Aligned:
    """CrossNet's: a reference that lies upon the enlarged picture, and is cut where that is."""

    core_px, halo_px = 256, 64  # its flow sees farther than any halo
    bytes_per_px = 6_000
    kept_bytes_per_px = _KEPT_BYTES_PER_PX

    def __init__(self, references: References, *, name: str, device: torch.device) -> None:
        """Raises UsageError where there is none, or several."""
        if not (references.images or references.is_blank):
            raise UsageError(
                f"{name} needs a sharp picture of the same scene: waifu4x upscale picture.png "
                f"-m {name} --reference FILE"
            )
        if len(references.images) > 1:
            raise UsageError(f"{name} takes one --reference, not {len(references.images)}")
        self._references = references
        self._device = device
        self._fitted: dict[tuple[int, int], tuple[FloatArray, str | None]] = {}

    def prepare(self) -> bool:
        return False

    def upon(self, size_px: tuple[int, int]) -> tuple[FloatArray, str | None]:
        if size_px not in self._fitted:
            self._fitted = {size_px: aligned(self._references, size_px)}
        return self._fitted[size_px]

    def beside(self, x: Tensor, cut: FloatArray | None) -> tuple[Tensor]:
        assert cut is not None, "whoever runs an aligned network cuts its reference"
        return (tensor(cut, self._device)[None],)


class Searched:
    """SRNTT's: every patch of the picture is looked for in all of the references."""

    core_px, halo_px = 100, 14  # the published 128 px every 100
    bytes_per_px = 48_000
    kept_bytes_per_px = _KEPT_BYTES_PER_PX + reference_inputs.TEXTURE_BYTES_PER_PX

    def __init__(
        self, references: References, *, name: str, device: torch.device, network: Any
    ) -> None:
        """Raises UsageError where they are too large together."""
        total_px = sum(image.shape[0] * image.shape[1] for image in references.images)
        if total_px > LARGEST_TOTAL_PX:
            raise UsageError(
                f"the references have {total_px / 1e6:.1f} megapixels, and {name} searches "
                f"{LARGEST_TOTAL_PX / 1e6:.1f} at most: make them smaller, or give fewer"
            )
        self._images = references.images
        if references.is_blank:
            self._images = (np.zeros((64, 64, 3), dtype=np.float32),)
        self._network = network
        self._device = device
        self._textures: reference_inputs.Textures | None = None

    def prepare(self) -> bool:
        return self._made() is not None

    def upon(self, size_px: tuple[int, int]) -> tuple[None, None]:
        return None, None

    def beside(self, x: Tensor, cut: FloatArray | None) -> tuple[Any, ...]:
        """The maps; nothing where there are no references, or no patch."""
        textures = self._made()
        if textures is None or min(x.shape[1:]) < PATCH:
            return ()
        matches = reference_inputs.match(self._network, x, textures)
        return (reference_inputs.maps_of(textures, matches),)

    def _made(self) -> reference_inputs.Textures | None:
        """What patches are looked for in, made when it is first asked for; None without any."""
        if self._textures is None and self._images:
            shown = [tensor(image, self._device) for image in self._images]
            with torch.inference_mode(), devices.true_fp32(self._device):
                self._textures = reference_inputs.textures_of(self._network, shown)
        return self._textures


def tensor(image: FloatArray, device: torch.device) -> Tensor:
    """(h, w, 3) -> (3, h, w), on the device."""
    # A copy always: what is shown may be a view that nobody may write into.
    return torch.from_numpy(image.transpose(2, 0, 1).copy()).to(device)
