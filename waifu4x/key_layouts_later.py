"""The key layouts of EDSR, RCAN, SPAN and PLKSR, as `waifu4x.key_layouts` knows those of others.

Some of what these networks do is in no key: whether values go up to 255 or to 1, and by how much
EDSR's blocks are damped. Where the file has the layers that shift the mean color, those say; else
it is as their authors published it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from waifu4x.key_shapes import (
    Metadata,
    State,
    as_colors,
    conv_shape,
    count_of,
    rekeyed,
    root_of,
)
from waifu4x.networks import NetworkConfig
from waifu4x.networks.edsr import MEAN_RGB, EDSRConfig
from waifu4x.networks.plksr import Kind, PLKSRConfig
from waifu4x.networks.rcan import RCANConfig
from waifu4x.networks.span import SPANConfig

Found = tuple[str, NetworkConfig, dict[str, Tensor]]

# EDSR of this width diverges undamped, and all that were published are damped by 0.1.
_DAMPED_FROM_CHANNELS = 256
_SHIFTS = ("sub_mean", "add_mean")


def edsr(state: State, metadata: Metadata) -> Found | None:
    """Own keys, which are BasicSR's; the authors' (head, body, tail); and mmagic's."""
    pixel_range, mean_shift = 255, True
    if "head.0.weight" in state:
        pixel_range, mean_shift = _shift(state)
        blocks = count_of(state, r"body\.(\d+)\.body\.0\.weight")
        rules = (
            *_ends_rules(blocks),
            (r"body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
            (r"body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
        )
        state = rekeyed(_without_shift(state), rules)
    elif "upsample.0.upsample_conv.weight" in state:
        pixel_range = 1
        state = _plain_upsampling(state)
    blocks = count_of(state, r"body\.(\d+)\.conv1\.weight")
    if "conv_after_body.weight" not in state or any(".rcab." in key for key in state):
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    config = EDSRConfig(
        scale=_scale(state, channels),
        blocks=blocks,
        channels=channels,
        residual_divisor=10 if channels >= _DAMPED_FROM_CHANNELS else 1,
        pixel_range=pixel_range,
        mean_shift=mean_shift and colors == 3,
        channels_in=as_colors(colors),
    )
    return "edsr", config, dict(state)


def rcan(state: State, metadata: Metadata) -> Found | None:
    """Own keys; BasicSR's (residual_group, rcab); and the authors' (head, body, tail)."""
    pixel_range, mean_shift = 255, True
    if "body.0.body.0.body.3.conv_du.0.weight" in state:
        pixel_range, mean_shift = _shift(state)
        state = _authors_rcan(_without_shift(state))
    elif "body.0.residual_group.0.rcab.0.weight" in state:
        block = r"body\.(\d+)\.residual_group\.(\d+)\.rcab\."
        rules = (
            (block + r"0\.", r"body.\1.blocks.\2.conv1."),
            (block + r"2\.", r"body.\1.blocks.\2.conv2."),
            (block + r"3\.attention\.1\.", r"body.\1.blocks.\2.attention.down."),
            (block + r"3\.attention\.3\.", r"body.\1.blocks.\2.attention.up."),
        )
        state = rekeyed(state, rules)
    if "body.0.blocks.0.attention.down.weight" not in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    config = RCANConfig(
        scale=_scale(state, channels),
        groups=count_of(state, r"body\.(\d+)\.conv\.weight"),
        blocks=count_of(state, r"body\.0\.blocks\.(\d+)\.conv1\.weight"),
        channels=channels,
        reduction=channels // conv_shape(state, "body.0.blocks.0.attention.down")[0],
        pixel_range=pixel_range,
        mean_shift=mean_shift and colors == 3,
        channels_in=as_colors(colors),
    )
    return "rcan", config, dict(state)


def _authors_rcan(state: State) -> dict[str, Tensor]:
    """Groups, blocks and what follows them are numbered alike: body.(groups) is a convolution."""
    groups = count_of(state, r"body\.(\d+)\.body\.0\.body\.0\.weight")
    blocks = count_of(state, r"body\.0\.body\.(\d+)\.body\.0\.weight")
    block = r"body\.(\d+)\.body\.(\d+)\.body\."
    rules = (
        *_ends_rules(groups),
        (block + r"0\.", r"body.\1.blocks.\2.conv1."),
        (block + r"2\.", r"body.\1.blocks.\2.conv2."),
        (block + r"3\.conv_du\.0\.", r"body.\1.blocks.\2.attention.down."),
        (block + r"3\.conv_du\.2\.", r"body.\1.blocks.\2.attention.up."),
        (rf"body\.(\d+)\.body\.{blocks}\.", r"body.\1.conv."),
    )
    return rekeyed(state, rules)


def span(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and the authors': of training, folded here, or folded already (eval_conv).

    The buffer ``no_norm`` of traiNNer-redux says that neither range nor mean color are changed.
    """
    if "conv_cat.weight" not in state:
        return None
    plain = "no_norm" in state
    if "block_1.c1_r.eval_conv.weight" in state or "block_1.c1_r.sk.weight" in state:
        rules = [
            (r"conv_1\.", "conv_first."),
            (r"conv_2\.", "conv_after_blocks."),
            (r"upsampler\.0\.", "conv_last."),
            *(
                (rf"block_{n + 1}\.c(\d)_r\.", rf"blocks.{n}.conv\1.")
                for n in range(len({key.split(".")[0] for key in state if key[:6] == "block_"}))
            ),
        ]
        state = rekeyed({k: v for k, v in state.items() if k != "no_norm"}, rules)
        state = _without_stacks(state)
    channels, colors, _ = conv_shape(state, "conv_first")
    tail, joined, _ = conv_shape(state, "conv_cat")
    if joined != 4 * channels:
        return None
    config = SPANConfig(
        scale=root_of(conv_shape(state, "conv_last")[0] // as_colors(colors)),
        blocks=count_of(state, r"blocks\.(\d+)\.conv1\.weight"),
        channels=channels,
        tail_channels=tail,
        pixel_range=1 if plain else 255,
        mean_shift=not plain and colors == 3,
        channels_in=colors,
    )
    return "span", config, dict(state)


_PART = re.compile(r"(?P<conv>.+)\.(?:sk|conv\.[012]|eval_conv)\.(?P<kind>weight|bias)")


def _without_stacks(state: State) -> dict[str, Tensor]:
    """One convolution in the place of every stack of training; the others as they are.

    The folded copy (eval_conv) that lies beside a stack may be of an earlier step, and is left out.
    """
    kept: dict[str, Tensor] = {}
    for key, tensor in state.items():
        part = _PART.fullmatch(key)
        if part is None:
            kept[key] = tensor
        elif f"{part['conv']}.sk.weight" not in state:
            kept[f"{part['conv']}.{part['kind']}"] = tensor
    for key in state:
        if key.endswith(".sk.weight"):
            conv = key.removesuffix(".sk.weight")
            weight, bias = folded(state, conv)
            kept |= {f"{conv}.weight": weight.float(), f"{conv}.bias": bias.float()}
    return kept


def folded(state: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """The weight (C', C, 3, 3) and bias (C',), float64, of the one convolution that is a stack.

    The stack under `key`: a 1x1, a 3x3 and a 1x1 convolution (``conv.0``, ``conv.1``, ``conv.2``)
    of the input with one pixel of zeros around it, plus a 1x1 one (``sk``). KeyError and ValueError
    where a part is missing or does not fit the others.
    """
    tensors = {
        name: state[f"{key}.{name}"].double()
        for part in ("conv.0", "conv.1", "conv.2", "sk")
        for name in (f"{part}.weight", f"{part}.bias")
    }
    into, kernel, out, beside = (
        tensors[f"{part}.weight"] for part in ("conv.0", "conv.1", "conv.2", "sk")
    )
    if kernel.shape[1:] != (len(into), 3, 3) or out.shape[1:] != (len(kernel), 1, 1):
        raise ValueError(key)
    if into.shape[2:] != (1, 1) or beside.shape != (len(out), into.shape[1], 1, 1):
        raise ValueError(key)
    weight = torch.einsum("om,mnyx,ni->oiyx", out[:, :, 0, 0], kernel, into[:, :, 0, 0])
    weight[:, :, 1, 1] += beside[:, :, 0, 0]
    # The first one's bias is there around the input, too: at the border it counts as elsewhere.
    bias = torch.einsum("mnyx,n->m", kernel, tensors["conv.0.bias"]) + tensors["conv.1.bias"]
    return weight, out[:, :, 0, 0] @ bias + tensors["conv.2.bias"] + tensors["sk.bias"]


def plksr(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and the published ones: channe_mixer is PLKSR, channel_mixer RealPLKSR."""
    if "feats.0.weight" in state and "feats.1.lk.conv.weight" in state:
        state = _authors_plksr(state)
    elif "blocks.0.large.weight" not in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    large_channels, _, large_kernel = conv_shape(state, "blocks.0.large")
    kind: Kind = "plain"
    if "blocks.0.norm.weight" in state:
        kind = "layer" if _NORM_BEFORE in metadata else "group"
    config = PLKSRConfig(
        scale=root_of(conv_shape(state, "conv_last")[0] // as_colors(colors)),
        blocks=count_of(state, r"blocks\.(\d+)\.refine\.weight"),
        channels=channels,
        kind=kind,
        large_kernel=large_kernel,
        large_channels=large_channels,
        mixer_kernels=(
            conv_shape(state, "blocks.0.mixer1")[2],
            conv_shape(state, "blocks.0.mixer2")[2],
        ),
        gate="blocks.0.gate.weight" in state,
        channels_in=colors,
    )
    return "plksr", config, dict(state)
