"""The key layouts of Meta-SR, as `key_layouts` knows those of others.

No key tells the largest scale that it was trained for; the authors' is 4.
"""

from __future__ import annotations

from torch import Tensor

from waifu4x.model_files.key_shapes import (
    Found,
    Metadata,
    State,
    as_colors,
    conv_shape,
    count_of,
    rekeyed,
)
from waifu4x.networks.metasr import MetaSRConfig, Trunk

_SHIFTS = ("sub_mean", "add_mean")
_PERCEPTRON_RULES = (
    (r"P2W\.meta_block\.0\.", "upscale.hidden."),
    (r"P2W\.meta_block\.2\.", "upscale.kernel."),
)
_RDN_RULES = (
    (r"SFENet1\.", "conv_first."),
    (r"SFENet2\.", "conv_second."),
    (r"RDBs\.(\d+)\.convs\.(\d+)\.conv\.0\.", r"body.\1.convs.\2."),
    (r"RDBs\.(\d+)\.LFF\.", r"body.\1.fuse."),
    (r"GFF\.0\.", "fuse."),
    (r"GFF\.1\.", "conv_body."),
)


def metasr(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and those of XuecaiHu/Meta-SR-Pytorch with the trunk of RDN or of EDSR."""
    pixel_range, mean_shift = 255, True
    if "P2W.meta_block.0.weight" in state:
        mean_shift = "sub_mean.bias" in state
        # White less the mean of DIV2K: it is 0.45 at most where white is 1.
        if mean_shift and state["sub_mean.bias"].abs().max() < 1.0:
            pixel_range = 1
        state = _ours(state)
    elif "upscale.kernel.weight" not in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    trunk: Trunk = "rdn" if "conv_second.weight" in state else "edsr"
    first = "fuse" if trunk == "rdn" else "conv1"
    config = MetaSRConfig(
        trunk=trunk,
        blocks=count_of(state, rf"body\.(\d+)\.{first}\.weight"),
        convs=count_of(state, r"body\.0\.convs\.(\d+)\.weight") if trunk == "rdn" else 2,
        growth=conv_shape(state, "body.0.convs.0")[0] if trunk == "rdn" else 64,
        channels=channels,
        hidden=state["upscale.hidden.weight"].shape[0],
        pixel_range=pixel_range,
        mean_shift=mean_shift and colors == 3,
        channels_in=as_colors(colors),
    )
    return "metasr", config, dict(state)


def _ours(state: State) -> dict[str, Tensor]:
    """The blocks of EDSR are numbered, and what follows them is body.(their number)."""
    state = {key: tensor for key, tensor in state.items() if key.split(".")[0] not in _SHIFTS}
    rules = [*_PERCEPTRON_RULES, *_RDN_RULES]
    if "head.0.weight" in state:
        blocks = count_of(state, r"body\.(\d+)\.body\.0\.weight")
        rules += [
            (r"head\.0\.", "conv_first."),
            (r"body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
            (r"body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
            (rf"body\.{blocks}\.", "conv_body."),
        ]
    return rekeyed(state, rules)
