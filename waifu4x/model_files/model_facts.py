"""What is known of a model; nothing of what makes it run is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A network with its facts."""

    name: str
    architecture: str
    """A key of `waifu4x.networks.ALL_NETWORKS`; ``onnx`` for the graph of a file,
    ``community:…`` for what spandrel builds."""
    network: nn.Module
    """On the CPU, float32, in eval mode, without gradients."""
    scale: int
    """Output pixels to a side of one input pixel; 1 for a network whose input is upscaled first."""
    channels_in: int
    """3 for RGB, 1 for luma alone (then chroma is interpolated)."""
    pre_upsampled: bool
    scales: tuple[int, ...] | None
    """The factors the weights were trained for; None when the file does not say (any will run)."""
    size_multiple: int
    receptive_radius_px: int
    """In pixels of the network's input: nothing farther away has any influence, unless
    `global_context`."""
    parameters: int
    sha256: str
    """Of the file's bytes, as they were when it was loaded."""
    licence: str | None
    metadata: dict[str, str]
    path: Path
    any_scale: bool = False
    """It enlarges by any factor from 1 to `scale` in one pass, whole or not; see
    `networks.metasr`."""
    global_context: bool = False
    """Every pixel of a tile has some influence on every other; see `NetworkConfig`."""
    reference: Literal["none", "optional", "needed"] = "none"
    """Whether it is shown a sharp picture of something similar, too: see `networks`."""
