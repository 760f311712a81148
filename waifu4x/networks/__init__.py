"""The networks: one file per published network, each of which can be copied out alone.

Every network class takes one `config`, keeps it as `.config`, and maps x (N, C, h, w) in [0, 1] to
(N, C, s·h, s·w) float32 in [0, 1], not clamped. Every config states the same facts (see
`NetworkConfig`), which is how the rest of the program learns them. One that gives several pictures
of each input in train mode, (k·N, C, s·h, s·w) with the best last, states their number as
`outputs_in_training`. Modules of which nothing may be computed in half precision, whoever runs
them, state `in_float32`. One that enlarges by any factor up to `scale` states `any_scale`, and has
a method `at` (see `metasr`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import nn

from waifu4x.networks.aplus import Aplus, AplusConfig
from waifu4x.networks.autoencoder import Autoencoder, AutoencoderConfig
from waifu4x.networks.crossnet import CrossNet, CrossNetConfig
from waifu4x.networks.edsr import EDSR, EDSRConfig
from waifu4x.networks.metasr import MetaSR, MetaSRConfig
from waifu4x.networks.msrresnet import MSRResNet, MSRResNetConfig
from waifu4x.networks.plksr import PLKSR, PLKSRConfig
from waifu4x.networks.ranksrgan import RankSRGAN, RankSRGANConfig
from waifu4x.networks.rcan import RCAN, RCANConfig
from waifu4x.networks.rrdbnet import RRDBNet, RRDBNetConfig
from waifu4x.networks.san import SAN, SANConfig
from waifu4x.networks.scsr import ScSR, ScSRConfig
from waifu4x.networks.span import SPAN, SPANConfig
from waifu4x.networks.srcnn import SRCNN, SRCNNConfig
from waifu4x.networks.srfbn import SRFBN, SRFBNConfig
from waifu4x.networks.srntt import SRNTT, SRNTTConfig
from waifu4x.networks.srresnet import SRResNet, SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSR, VDSRConfig

__all__ = ["ALL_NETWORKS", "NETWORKS", "REFERENCE_NETWORKS", "Network", "NetworkConfig"]


class NetworkConfig(Protocol):
    """What every network's config states."""

    @property
    def scale(self) -> int:
        """Output pixels to a side of one input pixel; 1 when the input is already upscaled."""
        ...

    @property
    def channels_in(self) -> int:
        """3 for RGB, 1 for luma alone."""
        ...

    @property
    def pre_upsampled(self) -> bool:
        """Whether the input must be upscaled (bicubic) before the network sees it."""
        ...

    @property
    def size_multiple(self) -> int:
        """Height and width of the input are guaranteed to be accepted when multiples of this."""
        ...

    @property
    def receptive_radius_px(self) -> int:
        """In input pixels: no pixel farther away is guaranteed to have any influence."""
        ...

    @property
    def global_context(self) -> bool:
        """Whether pooling or attention also lets every pixel look at the whole input.

        If so, `receptive_radius_px` is that of the convolutions alone, and a picture in tiles is
        not guaranteed to be that in one piece: each tile is its own whole.
        """
        ...


class Network(NamedTuple):
    """The two classes that make a network: `module(config(...))`."""

    config: type[Any]
    module: type[nn.Module]


NETWORKS: dict[str, Network] = {
    "aplus": Network(AplusConfig, Aplus),
    "autoencoder": Network(AutoencoderConfig, Autoencoder),
    "edsr": Network(EDSRConfig, EDSR),
    "metasr": Network(MetaSRConfig, MetaSR),
    "msrresnet": Network(MSRResNetConfig, MSRResNet),
    "plksr": Network(PLKSRConfig, PLKSR),
    "ranksrgan": Network(RankSRGANConfig, RankSRGAN),
    "rcan": Network(RCANConfig, RCAN),
    "rrdbnet": Network(RRDBNetConfig, RRDBNet),
    "san": Network(SANConfig, SAN),
    "scsr": Network(ScSRConfig, ScSR),
    "span": Network(SPANConfig, SPAN),
    "srcnn": Network(SRCNNConfig, SRCNN),
    "srfbn": Network(SRFBNConfig, SRFBN),
    "srresnet": Network(SRResNetConfig, SRResNet),
    "srvggnetcompact": Network(SRVGGNetCompactConfig, SRVGGNetCompact),
    "vdsr": Network(VDSRConfig, VDSR),
}

REFERENCE_NETWORKS: dict[str, Network] = {
    "crossnet": Network(CrossNetConfig, CrossNet),
    "srntt": Network(SRNTTConfig, SRNTT),
}
"""Networks that are shown a sharp picture of something similar, too: `module(x, …)`. Their configs
also state `reference`: "needed", or "optional" where `module(x)` does. What the second argument is,
`waifu4x.references.reference_inputs` knows."""

ALL_NETWORKS: dict[str, Network] = NETWORKS | REFERENCE_NETWORKS
