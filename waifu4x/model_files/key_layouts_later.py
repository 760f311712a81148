"""The key layouts of EDSR, RCAN, SPAN and PLKSR, as `key_layouts` knows those of others.

Some of what these networks do is in no key: whether values go up to 255 or to 1, and by how much
EDSR's blocks are damped. Where the file has the layers that shift the mean color, those say; else
it is as their authors published it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
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
from waifu4x.networks.edsr import MEAN_RGB, EDSRConfig
from waifu4x.networks.plksr import Kind, PLKSRConfig
from waifu4x.networks.rcan import RCANConfig
from waifu4x.networks.span import SPANConfig

Found = tuple[str, NetworkConfig, dict[str, Tensor]]

_BASICSR = ("conv_first", "body", "conv_after_body", "upsample", "conv_last")
# EDSR of this width diverges undamped, and all that were published are damped by 0.1.
_DAMPED_FROM_CHANNELS = 256
# Of a stack: a stranger's file must not make work.
_MAX_CHANNELS = 1024


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
        state = rekeyed(
            state,
            [(rf"upsample\.{n}\.upsample_conv\.", f"upsample.{2 * n}.") for n in range(4)],
        )
    blocks = count_of(state, r"body\.(\d+)\.conv1\.weight")
    if blocks == 0 or not _has_only(state, _BASICSR):
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


def _has_only(state: State, modules: tuple[str, ...]) -> bool:
    """Whether no key is of another module: networks of others begin and end alike."""
    return {key.partition(".")[0] for key in state} <= {*modules}


def _shift(state: State) -> tuple[int, bool]:
    """(range of pixels, whether the mean color is shifted) of the authors' layout.

    ValueError where the layers that shift it do something else.
    """
    if "sub_mean.weight" not in state:
        return 1, False
    wanted = torch.tensor(MEAN_RGB), torch.eye(3).flatten()
    for name, sign in (("sub_mean", -1.0), ("add_mean", 1.0)):
        bias, weight = state[f"{name}.bias"], state[f"{name}.weight"]
        if (bias.numel(), weight.numel()) != (3, 9):
            raise ValueError(name)
        if not torch.equal(weight.float().flatten(), wanted[1]):
            raise ValueError(name)
        # As near as half precision comes; the mean of ImageNet is 8 % away.
        shift = sign * bias.float().flatten()
        ranges = [n for n in (255, 1) if torch.allclose(shift, n * wanted[0], rtol=1e-2)]
        if not ranges:
            raise ValueError(name)
    return ranges[0], True


def _without_shift(state: State) -> dict[str, Tensor]:
    shifts = ("sub_mean.", "add_mean.")
    return {key: tensor for key, tensor in state.items() if not key.startswith(shifts)}


def _ends_rules(blocks: int) -> tuple[tuple[str, str], ...]:
    """What is before and after the blocks, in the authors' layout of EDSR and RCAN."""
    return (
        (r"head\.0\.", "conv_first."),
        (rf"body\.{blocks}\.", "conv_after_body."),
        (r"tail\.0\.", "upsample."),
        (r"tail\.1\.", "conv_last."),
    )


def _scale(state: State, channels: int) -> int:
    """Of convolutions with a pixel shuffle behind each: upsample.0, upsample.2, …"""
    stages = sum(f"upsample.{2 * number}.weight" in state for number in range(4))
    return root_of(conv_shape(state, "upsample.0")[0] // channels) ** stages if stages else 1


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
    if not _has_only(state, _BASICSR):
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
        blocks = len({key.partition(".")[0] for key in state if key.startswith("block_")})
        rules = [
            (r"conv_1\.", "conv_first."),
            (r"conv_2\.", "conv_after_blocks."),
            (r"upsampler\.0\.", "conv_last."),
            *((rf"block_{n + 1}\.c(\d)_r\.", rf"blocks.{n}.conv\1.") for n in range(blocks)),
        ]
        state = rekeyed({k: v for k, v in state.items() if k != "no_norm"}, rules)
        state = _without_stacks(state)
    channels, colors, _ = conv_shape(state, "conv_first")
    tail, joined, _ = conv_shape(state, "conv_cat")
    ours = "conv_first", "blocks", "conv_after_blocks", "conv_cat", "conv_last"
    if joined != 4 * channels or not _has_only(state, ours):
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


_STACK = ("conv.0", "conv.1", "conv.2", "sk")
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
    into, kernel, out, beside = (state[f"{key}.{part}.weight"] for part in _STACK)
    between = [state[f"{key}.{part}.bias"] for part in _STACK]
    if any(tensor.dim() != 4 for tensor in (into, kernel, out, beside)):
        raise ValueError(key)
    colors, middle, wide, channels = into.shape[1], kernel.shape[1], len(kernel), len(out)
    shapes = (
        *((middle, colors, 1, 1), (wide, middle, 3, 3), (channels, wide, 1, 1)),
        *((channels, colors, 1, 1), (middle,), (wide,), (channels,), (channels,)),
    )
    found = [tensor.shape for tensor in (into, kernel, out, beside, *between)]
    if found != [*shapes] or max(colors, middle, wide, channels) > _MAX_CHANNELS:
        raise ValueError(key)
    ends = out.double()[:, :, 0, 0], into.double()[:, :, 0, 0]
    weight = torch.einsum("om,mnyx,ni->oiyx", ends[0], kernel.double(), ends[1])
    weight[:, :, 1, 1] += beside.double()[:, :, 0, 0]
    # The first one's bias is there around the input, too: at the border it counts as elsewhere.
    bias = torch.einsum("mnyx,n->m", kernel.double(), between[0].double()) + between[1]
    return weight, ends[0] @ bias + between[2] + between[3]


def plksr(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and the published ones: channe_mixer is PLKSR, channel_mixer RealPLKSR."""
    if "feats.0.weight" in state and "feats.1.lk.conv.weight" in state:
        state = _authors_plksr(state)
    elif "blocks.0.large.weight" not in state:
        return None
    if not _has_only(state, ("conv_first", "blocks", "conv_last")):
        return None  # such as an upsampler with weights
    channels, colors, _ = conv_shape(state, "conv_first")
    large_channels, _, large_kernel = conv_shape(state, "blocks.0.large")
    kind: Kind = "group" if "blocks.0.norm.weight" in state else "plain"
    config = PLKSRConfig(
        scale=root_of(conv_shape(state, "conv_last")[0] // as_colors(colors)),
        blocks=count_of(state, r"blocks\.(\d+)\.refine\.weight"),
        channels=channels,
        kind="layer" if "blocks.0.layer_norm.weight" in state else kind,
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


def _authors_plksr(state: State) -> dict[str, Tensor]:
    """One sequence: feats.0 first, then the blocks, the last one last; RealPLKSR skips a number."""
    blocks = sum(re.fullmatch(r"feats\.\d+\.refine\.weight", key) is not None for key in state)
    rules = [
        (r"feats\.0\.", "conv_first."),
        (rf"feats\.{blocks + 1}\.|feats\.{blocks + 2}\.", "conv_last."),
    ]
    for number in range(blocks):
        old, new = rf"feats\.{number + 1}\.", f"blocks.{number}."
        rules += [
            (old + r"channel?_mixer\.0\.", new + "mixer1."),
            (old + r"channel?_mixer\.2\.", new + "mixer2."),
            (old + r"lk\.conv\.", new + "large."),
            (old + r"attn\.f\.0\.", new + "gate."),
            (old, new),
        ]
    return rekeyed(state, rules)
