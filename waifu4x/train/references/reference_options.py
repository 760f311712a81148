"""Where the sharp pictures come from that networks are shown beside small ones in training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from waifu4x.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """How references are made or found; see `warping` and `reference_batches`.

    Everything that is drawn depends on the seed and the sample alone.
    """

    source: Literal["warped", "folder"] = "warped"
    """The picture itself, seen from a little beside; or one of the same name (`--references`)."""
    shift_px: float = 8.0
    """At most, up or down, left or right, in pixels of the large picture."""
    rotation_deg: float = 2.0
    """At most, to either side; of warped ones, as the two that follow."""
    zoom: float = 0.03
    """At most larger or smaller, as a share of the size."""
    brightness: float = 0.05
    """At most brighter or darker, as a share of the levels."""
    blank_share: float = 0.0
    """Of so many samples the reference is black: a network must also do without help."""
    pairs: int = 0
    """So many different samples are drawn and used again and again, so that what is found in their
    references is searched for once; 0 draws new ones for ever."""
    own_maps: bool = False
    """Every batch is used twice: then with the textures of the truth itself, as SRNTT's are."""

    def __post_init__(self) -> None:
        amounts = (self.shift_px, self.rotation_deg, self.zoom, self.brightness)
        if not all(0.0 <= amount < math.inf for amount in amounts) or self.zoom >= 1.0:
            raise UsageError("shift_px, rotation_deg, zoom and brightness are 0 or more")
        if not 0.0 <= self.blank_share <= 1.0:
            raise UsageError(f"blank_share must lie in 0..1, not {self.blank_share}")
        if self.pairs < 0:
            raise UsageError(f"pairs must be 0 or more, not {self.pairs}")
