"""The key layouts of RankSRGAN's generator, as `key_layouts` knows those of others."""

from __future__ import annotations

from torch import Tensor

from waifu4x.model_files.key_shapes import (
    Metadata,
    State,
    as_colors,
    conv_shape,
    count_of,
    rekeyed,
    root_of,
)
from waifu4x.networks import NetworkConfig
from waifu4x.networks.ranksrgan import RankSRGANConfig

Found = tuple[str, NetworkConfig, dict[str, Tensor]]

_RULES = (
    (r"recon_trunk\.", "body."),
    (r"LRconv\.", "conv_body."),
    (r"HRconv\.", "conv_hr."),
)


def ranksrgan(state: State, metadata: Metadata) -> Found | None:
    """Own keys; the authors' of today (recon_trunk, LRconv); and the sequence of their first ones.

    The last are those of the first ``RankSRGAN_NIQE.pth``, and of BasicSR's first SRResNet.
    """
    if "LRconv.weight" in state:
        state = rekeyed(state, _RULES)
    elif "model.1.sub.0.res.0.weight" in state:
        state = _sequential(state)
    blocks = count_of(state, r"body\.(\d+)\.conv1\.weight")
    if blocks == 0 or "conv_body.weight" not in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    stages = sum(f"upconv{number}.weight" in state for number in (1, 2, 3))
    factor = root_of(conv_shape(state, "upconv1")[0] // channels)
    config = RankSRGANConfig(
        scale=factor**stages, blocks=blocks, channels=channels, channels_in=as_colors(colors)
    )
    return "ranksrgan", config, dict(state)


def _sequential(state: State) -> dict[str, Tensor]:
    """Positions in one sequence: an upsampling every three (2, 5, …), then the final two."""
    blocks = count_of(state, r"model\.1\.sub\.(\d+)\.res\.0\.weight")
    tops = {int(key.split(".")[1]) for key in state if key.startswith("model.")}
    ups = len(tops) - 4
    if not 1 <= ups <= 3:
        raise ValueError("model")
    rules = [
        (r"model\.0\.", "conv_first."),
        (rf"model\.1\.sub\.{blocks}\.", "conv_body."),
        (r"model\.1\.sub\.(\d+)\.res\.0\.", r"body.\1.conv1."),
        (r"model\.1\.sub\.(\d+)\.res\.2\.", r"body.\1.conv2."),
        *((rf"model\.{3 * up - 1}\.", f"upconv{up}.") for up in range(1, ups + 1)),
        (rf"model\.{3 * ups + 2}\.", "conv_hr."),
        (rf"model\.{3 * ups + 4}\.", "conv_last."),
    ]
    return rekeyed(state, rules)
