"""A dict of tensors becomes a network's name, its numbers, and the keys this project uses.

Published weights of one network come under different keys. Each function here knows one layout: it
looks at keys and shapes only, and gives None unless they are its own. It need not be thorough:
afterwards the state must fit the network strictly, key by key and shape by shape.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from waifu4x.errors import CheckpointError, UnknownNetworkError
from waifu4x.model_files import (
    key_layouts_2019,
    key_layouts_early,
    key_layouts_later,
    key_layouts_meta,
    key_layouts_rank,
)
from waifu4x.model_files.given_files import printable
from waifu4x.model_files.key_shapes import (
    Metadata,
    State,
    as_colors,
    conv_shape,
    count_of,
    rekeyed,
    root_of,
)
from waifu4x.networks import ALL_NETWORKS, NetworkConfig
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srresnet import Middle, Output, SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig

ARCHITECTURE_KEY = "architecture"
CONFIG_KEY = "config"

Found = tuple[str, NetworkConfig, dict[str, Tensor]]
# No number of a published network is larger; a stranger's config must not build a giant.
_MAX_NUMBER = 4096


def recognise(state: State, metadata: Metadata) -> Found:
    """Which network is this? Gives its name in ALL_NETWORKS, its config, and the state re-keyed.

    state: flat, prefixes stripped. metadata: of the file; a file written by this project states
    its network there, for others the output range of SRResNet may be stated (``output``).
    Raises UnknownNetworkError that names what was seen, and CheckpointError for a config that
    makes no sense. Nothing is computed from the values of the tensors, but for the stacks of
    convolutions that SPAN is trained with: they are folded.
    """
    if metadata.get(ARCHITECTURE_KEY) in ALL_NETWORKS and CONFIG_KEY in metadata:
        name = metadata[ARCHITECTURE_KEY]
        return name, _stated_config(name, metadata[CONFIG_KEY], len(state)), dict(state)
    for layout in _LAYOUTS:
        try:
            found = layout(state, metadata)
        # A key is missing, axes are, or a shape is absurd: not this layout.
        except (LookupError, ValueError, RuntimeError):
            found = None
        if found is not None:
            return found
    shown = ", ".join(
        f"{printable(key, limit=60)} {tuple(state[key].shape)}" for key in list(state)[:3]
    )
    raise UnknownNetworkError(
        f"{len(state)} tensors of a network waifu4x does not know, first: {shown or 'none'}; "
        f"known are {', '.join(sorted(ALL_NETWORKS))}"
    )


def _stated_config(name: str, text: str, tensors: int) -> NetworkConfig:
    """The config a file of this project states, each value checked against its field's type."""
    kind = ALL_NETWORKS[name].config
    try:
        values = json.loads(text)
        hints = get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError("its fields are not those of the network")
        checked = {key: _checked(value, hints[key]) for key, value in values.items()}
        # Every block holds tensors, so their number bounds the depth.
        numbers = ("groups", "blocks", "convs", "depth")
        if math.prod(checked.get(number, 1) for number in numbers) > tensors:
            raise ValueError("it is deeper than the file has tensors")
        return kind(**checked)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"states a config of {name} that is wrong: {printable(error)}"
        ) from None


def _checked(value: object, hint: Any) -> Any:
    if get_origin(hint) is Literal and value in get_args(hint):
        return value
    if get_origin(hint) is tuple and isinstance(value, list) and len(value) == len(get_args(hint)):
        return tuple(_checked(item, part) for item, part in zip(value, get_args(hint), strict=True))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and type(value) is int and 0 <= value <= _MAX_NUMBER:
        return value
    raise ValueError(f"{value!r} is out of place")


def _srcnn(state: State, metadata: Metadata) -> Found | None:
    """conv1, conv2, conv3 and nothing else."""
    if {key.partition(".")[0] for key in state} != {"conv1", "conv2", "conv3"}:
        return None
    convs = [conv_shape(state, f"conv{number}") for number in (1, 2, 3)]
    config = SRCNNConfig(
        kernels=(convs[0][2], convs[1][2], convs[2][2]),
        channels=(convs[0][0], convs[1][0]),
        channels_in=as_colors(convs[0][1]),
    )
    return "srcnn", config, dict(state)


def _vdsr(state: State, metadata: Metadata) -> Found | None:
    """Own keys, or twtygqyy's: input, residual_layer.N.conv, output."""
    if "input.weight" in state and "output.weight" in state:
        state = rekeyed(
            state,
            (
                (r"input\.", "conv_first."),
                (r"output\.", "conv_last."),
                (r"residual_layer\.(\d+)\.conv\.", r"body.\1."),
            ),
        )
    hidden = count_of(state, r"body\.(\d+)\.weight")
    channels, colors, _ = conv_shape(state, "conv_first")
    if hidden == 0 or any(state[f"body.{n}.weight"].dim() != 4 for n in range(hidden)):
        return None
    bias = "conv_first.bias" in state
    config = VDSRConfig(
        depth=hidden + 2, channels=channels, bias=bias, channels_in=as_colors(colors)
    )
    return "vdsr", config, dict(state)


def _srvggnet(state: State, metadata: Metadata) -> Found | None:
    """body.0, body.1, …: convolutions with PReLU slopes between them; the published keys."""
    layers = count_of(state, r"body\.(\d+)\.weight")
    if layers < 3 or layers % 2 == 0 or any(not key.startswith("body.") for key in state):
        return None
    if any(state[f"body.{number}.weight"].dim() != 1 for number in range(1, layers, 2)):
        return None
    channels, colors, _ = conv_shape(state, "body.0")
    config = SRVGGNetCompactConfig(
        scale=root_of(conv_shape(state, f"body.{layers - 1}")[0] // as_colors(colors)),
        channels=channels,
        convs=(layers - 3) // 2,
        channels_in=colors,
    )
    return "srvggnetcompact", config, dict(state)


def _msrresnet(state: State, metadata: Metadata) -> Found | None:
    """BasicSR's keys; without upconv1 the tail is direct."""
    blocks = count_of(state, r"body\.(\d+)\.conv1\.weight")
    if blocks == 0 or "conv_after_body.weight" in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_first")
    if "upconv1.weight" in state:
        scale = (
            4 if "upconv2.weight" in state else root_of(conv_shape(state, "upconv1")[0] // channels)
        )
        tail: Literal["staged", "direct"] = "staged"
    else:
        scale, tail = root_of(conv_shape(state, "conv_last")[0] // as_colors(colors)), "direct"
    config = MSRResNetConfig(
        scale=scale, blocks=blocks, channels=channels, tail=tail, channels_in=as_colors(colors)
    )
    return "msrresnet", config, dict(state)


_FIRST_RRDB_RULES = (
    (r"RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"trunk_conv\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
)


def _sequential_rrdb(state: State) -> dict[str, Tensor]:
    """The oldest ESRGAN keys, where everything is a position in one sequence.

    model.0 first, model.1.sub.N the blocks, model.1.sub.(last) body, then an upsampling every three
    positions (3, 6, …), and two and four positions after the last of them the final two.
    """
    blocks = count_of(state, r"model\.1\.sub\.(\d+)\.RDB1\.conv1\.0\.weight")
    tops = {int(found.group(1)) for k in state if (found := re.match(r"model\.(\d+)\.", k))}
    ups = (len(tops) - 4) if blocks else -1
    if not 0 <= ups <= 4:
        raise ValueError("model")
    rules = [
        (r"model\.0\.", "conv_first."),
        (rf"model\.1\.sub\.{blocks}\.", "conv_body."),
        (r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
        *((rf"model\.{3 * up}\.", f"conv_up{up}.") for up in range(1, ups + 1)),
        (rf"model\.{3 * ups + 2}\.", "conv_hr."),
        (rf"model\.{3 * ups + 4}\.", "conv_last."),
    ]
    return rekeyed(state, rules)


def _rrdbnet(state: State, metadata: Metadata) -> Found | None:
    """BasicSR's keys, ESRGAN's first ones (RRDB_trunk), and the sequential ones before those."""
    if "RRDB_trunk.0.RDB1.conv1.weight" in state:
        state = rekeyed(state, _FIRST_RRDB_RULES)
    elif "model.1.sub.0.RDB1.conv1.0.weight" in state:
        state = _sequential_rrdb(state)
    blocks = count_of(state, r"body\.(\d+)\.rdb1\.conv1\.weight")
    if blocks == 0:
        return None
    channels, colors_in, _ = conv_shape(state, "conv_first")
    colors = as_colors(conv_shape(state, "conv_last")[0])
    config = RRDBNetConfig(
        blocks=blocks,
        channels=channels,
        growth=conv_shape(state, "body.0.rdb1.conv1")[0],
        upsamplings=sum(f"conv_up{number}.weight" in state for number in (1, 2, 3, 4)),
        unshuffle=root_of(colors_in // colors),
        channels_in=colors,
    )
    return "rrdbnet", config, dict(state)


_LEFTTHOMAS_RULES = (
    (r"block1\.0\.", "conv_in."),
    (r"block1\.1\.", "prelu_in."),
)


def _leftthomas(state: State) -> dict[str, Tensor]:
    """block1 first, block2 … the residual ones, then the middle, then upsampling and the end."""
    last = max(int(found.group(1)) for k in state if (found := re.match(r"block(\d{1,4})\.", k)))
    stages = count_of(state, rf"block{last}\.(\d+)\.conv\.weight")
    middle = "bn_mid" if f"block{last - 1}.1.running_mean" in state else "prelu_mid"
    rules = [
        *_LEFTTHOMAS_RULES,
        (rf"block{last}\.{stages}\.", "conv_out."),
        (rf"block{last}\.(\d+)\.", r"up.\1."),
        (rf"block{last - 1}\.0\.", "conv_mid."),
        (rf"block{last - 1}\.1\.", f"{middle}."),
        *((rf"block{number}\.", f"blocks.{number - 2}.") for number in range(2, last - 1)),
    ]
    return rekeyed(state, rules)


def _stated_output(metadata: Metadata, otherwise: Output) -> Output:
    """The output range in the file's metadata: one of ours, or the formula in words."""
    stated = "".join(metadata.get("output", "").lower().split())
    if stated in ("tanh", "(tanh(y)+1)/2"):
        return "tanh"
    if stated in ("signed", "(y+1)/2,notanh", "(y+1)/2"):
        return "signed"
    return "unit" if stated in ("unit", "y") else otherwise


def _srresnet(state: State, metadata: Metadata) -> Found | None:
    """Own keys (normalised or folded), and leftthomas/SRGAN's, whose output goes through tanh."""
    output: Output = "signed"
    if "block1.0.weight" in state and "block2.conv1.weight" in state:
        state, output = _leftthomas(state), "tanh"
    blocks = count_of(state, r"blocks\.(\d+)\.conv1\.weight")
    if blocks == 0 or "conv_mid.weight" not in state:
        return None
    channels, colors, _ = conv_shape(state, "conv_in")
    stages = count_of(state, r"up\.(\d+)\.conv\.weight")
    factor = root_of(conv_shape(state, "up.0.conv")[0] // channels) if stages else 1
    middle: Middle = "norm" if "bn_mid.weight" in state else "plain"
    config = SRResNetConfig(
        scale=factor**stages if stages <= 4 else 0,
        blocks=blocks,
        channels=channels,
        norm="blocks.0.bn1.weight" in state,
        middle="prelu" if "prelu_mid.weight" in state else middle,
        body_bias="blocks.0.conv1.bias" in state,
        slope_per_channel=state["prelu_in.weight"].numel() > 1,
        output=_stated_output(metadata, output),
        channels_in=as_colors(colors),
    )
    return "srresnet", config, dict(state)


_LAYOUTS: tuple[Callable[[State, Metadata], Found | None], ...] = (
    _srcnn,
    _vdsr,
    _srvggnet,
    _rrdbnet,
    _srresnet,
    key_layouts_rank.ranksrgan,
    _msrresnet,
    key_layouts_meta.metasr,
    key_layouts_later.edsr,
    key_layouts_later.rcan,
    key_layouts_later.span,
    key_layouts_later.plksr,
    key_layouts_2019.srfbn,
    key_layouts_2019.san,
    key_layouts_early.autoencoder,
    key_layouts_early.aplus,
    key_layouts_early.scsr,
)
