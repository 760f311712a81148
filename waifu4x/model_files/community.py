"""Networks that are not known here, by spandrel, an extra: SwinIR, HAT, DAT and some forty others.

spandrel (https://github.com/chaiNNer-org/spandrel) recognises a dict of tensors and builds its
network. It is given tensors that were read here, and never a file: what a file may do while it is
read is for `waifu4x.model_files.tensor_files` alone to decide.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from waifu4x.errors import UnknownNetworkError
from waifu4x.model_files.given_files import printable

EXTRA = 'pip install "waifu4x[community]"'
PREFIX = "community:"
"""What `Model.architecture` begins with; spandrel's name of the architecture follows."""

# Windows of attention are multiples of it: so tiles begin where windows do.
_WINDOW_PX = 8
# Networks continue a picture to whole windows by reflection, which fails for one that is smaller
# than what is missing. These sides are tried.
_SIDES_PX = (8, 16, 32, 64)
# Nobody says how far they look: farther than any tiles overlap.
_UNKNOWN_RADIUS_PX = 512
# Of these spandrel's form is known to be convolutions alone.
_LOCAL = frozenset({"Compact", "ESRGAN", "SPAN"})


@dataclass(frozen=True, kw_only=True)
class CommunityConfig:
    """What spandrel says about one network, as `networks.NetworkConfig` has it."""

    architecture: str
    """As spandrel calls it."""
    scale: int
    channels_in: int
    size_multiple: int

    # Facts every network of this project states in its config.
    pre_upsampled = False
    receptive_radius_px = _UNKNOWN_RADIUS_PX

    @property
    def global_context(self) -> bool:
        """Whether every pixel may look at the whole input: so it is where nothing is known."""
        return self.architecture not in _LOCAL


class CommunityNetwork(nn.Module):
    """x: (N, C, h, w) in [0, 1] -> (N, C, s·h, s·w) float32 in [0, 1], clamped by spandrel.

    h and w may be anything. Computes in fp32 where spandrel says that the network does not stand
    the number format of the surrounding autocast.
    """

    def __init__(self, descriptor: Any, config: CommunityConfig, *, smallest_px: int) -> None:
        """
        Args:
            descriptor: spandrel's ``ImageModelDescriptor``, on the CPU and in fp32.
            smallest_px: a picture is continued to so many pixels a side by repeating its border.
        """
        super().__init__()
        self.config = config
        self.network: nn.Module = descriptor.model
        self._descriptor = descriptor
        self._smallest_px = smallest_px
        self._stands = {torch.float32}
        self._stands |= {torch.float16} if descriptor.supports_half else set()
        self._stands |= {torch.bfloat16} if descriptor.supports_bfloat16 else set()

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        # Modes that say operations in others know the networks of this project only.
        with torch._C.DisableTorchFunction():
            if dtype in self._stands:
                return self._enlarged(x)
            with torch.autocast(kind, enabled=False):
                return self._enlarged(x)

    def _enlarged(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        down, right = (max(self._smallest_px - side, 0) for side in (height, width))
        if down or right:
            x = functional.pad(x, (0, right, 0, down), mode="replicate")
        # It is documented for one picture at a time; a graph is made of one for any number.
        is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        pictures = (x,) if is_traced else x.split(1)
        y = torch.cat([self._descriptor(picture) for picture in pictures])
        scale = self.config.scale
        wide = torch.promote_types(x.dtype, torch.float32)
        return y[:, :, : height * scale, : width * scale].to(wide)


def build(state: Mapping[str, Tensor]) -> CommunityNetwork:
    """The network of these tensors, which are copied; in eval mode, without gradients.

    state: flat, without prefixes, and checked to be plain numbers.
    Raises UnknownNetworkError, whose message is what is to be added to a sentence: spandrel is not
    installed or does not load, does not know the network either, or it enlarges no pictures.
    """
    spandrel = _spandrel()
    owned = {
        key: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in state.items()
    }
    try:
        with warnings.catch_warnings(action="ignore"):  # about its own operations
            loader = spandrel.ModelLoader(device=torch.device("cpu"))
            descriptor = loader.load_from_state_dict(owned)
    except spandrel.UnsupportedModelError:
        raise UnknownNetworkError("spandrel does not know it either") from None
    except Exception as error:  # of every kind: of keys, of shapes, of each network's own code
        raise UnknownNetworkError(f"spandrel cannot build it ({_reason(error)})") from error
    config = _config(spandrel, descriptor)
    smallest_px = _smallest_px(descriptor, config)
    network = CommunityNetwork(descriptor, config, smallest_px=smallest_px)
    return network.eval().requires_grad_(False)


def _spandrel() -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what it imports
            import spandrel  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            raise UnknownNetworkError(f"{EXTRA} brings forty more") from None
        raise UnknownNetworkError(_unusable(error)) from error
    except Exception as error:  # torchvision raises RuntimeError where it is of another torch
        raise UnknownNetworkError(_unusable(error)) from error
    return spandrel


def _unusable(error: Exception) -> str:
    return f"spandrel, which knows more, does not load ({_reason(error)}): try {EXTRA}"


def _config(spandrel: Any, descriptor: Any) -> CommunityConfig:
    name = printable(str(descriptor.architecture.id), limit=40)
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise UnknownNetworkError(f"it is {name}, which fills holes in pictures")
    if descriptor.purpose == "FaceSR" or descriptor.size_requirements.square:
        raise UnknownNetworkError(f"it is {name}, which takes only faces or squares")
    channels = descriptor.input_channels
    if channels not in (1, 3) or descriptor.output_channels != channels:
        raise UnknownNetworkError(
            f"it is {name} for {channels} channels in and {descriptor.output_channels} out, "
            f"and pictures have 1 or 3"
        )
    return CommunityConfig(
        architecture=name,
        scale=descriptor.scale,
        channels_in=channels,
        size_multiple=math.lcm(_WINDOW_PX, max(1, descriptor.size_requirements.multiple_of)),
    )


def _smallest_px(descriptor: Any, config: CommunityConfig) -> int:
    """The first of `_SIDES_PX` that the network takes. UnknownNetworkError where it takes none, or
    does not give what it says."""
    problem = ""
    for side_px in _SIDES_PX:
        black = torch.zeros(1, config.channels_in, side_px, side_px)
        try:
            with warnings.catch_warnings(action="ignore"):  # about its own operations
                shape = tuple(descriptor(black).shape)
        except Exception as error:  # of every kind: it is each network's own code
            problem = _reason(error)
            continue
        wanted = (1, config.channels_in, side_px * config.scale, side_px * config.scale)
        if shape != wanted:
            raise UnknownNetworkError(
                f"it is {config.architecture}, and makes {shape}, not {wanted}"
            )
        return side_px
    raise UnknownNetworkError(f"it is {config.architecture}, which does not run here ({problem})")


def _reason(error: Exception) -> str:
    text = printable(str(error).strip().partition("\n")[0], limit=120)
    return text or type(error).__name__
