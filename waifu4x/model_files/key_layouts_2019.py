"""The key layouts of SRFBN and SAN, as `key_layouts` knows those of others.

Both were published with layers that shift the mean color, whose weights are left out here: the
networks shift it by themselves. What SAN's files hold beside that without using it is left out,
too; see `waifu4x.networks.san`.
"""

from __future__ import annotations

import re

from waifu4x.model_files.key_shapes import (
    Found,
    Metadata,
    State,
    conv_shape,
    count_of,
    rekeyed,
    root_of,
)
from waifu4x.networks.san import LongSkip, SANConfig
from waifu4x.networks.srfbn import SRFBNConfig

_SHIFTS = r"(sub|add)_mean\."

_SRFBN_RULES = (
    (r"conv_in\.", "conv_first."),
    (r"feat_in\.", "conv_features."),
    (r"block\.compress_in\.", "feedback.conv_in."),
    (r"block\.compress_out\.", "feedback.conv_out."),
    (r"block\.upBlocks\.(\d+)\.", r"feedback.up.\1."),
    (r"block\.downBlocks\.(\d+)\.", r"feedback.down.\1."),
    (r"block\.uptranBlocks\.(\d+)\.", r"feedback.join_small.\1."),
    (r"block\.downtranBlocks\.(\d+)\.", r"feedback.join_large.\1."),
    (r"out\.(\d+)\.", r"upsample.\1."),
    (r"conv_out\.0\.", "conv_last."),
)

_SAN_RULES = (
    (r"head\.0\.", "conv_first."),
    (r"non_local\.non_local\.theta\.", "regions.query."),
    (r"non_local\.non_local\.phi\.", "regions.key."),
    (r"non_local\.non_local\.g\.", "regions.value."),
    (r"non_local\.non_local\.W\.", "regions.conv_out."),
    (r"gamma$", "share"),
    (r"RG\.(\d+)\.rcab\.(\d+)\.conv_first\.0\.", r"groups.\1.blocks.\2.conv1."),
    (r"RG\.(\d+)\.rcab\.(\d+)\.conv_first\.2\.", r"groups.\1.blocks.\2.conv2."),
    (r"RG\.(\d+)\.soca\.conv_du\.0\.", r"groups.\1.attention.down."),
    (r"RG\.(\d+)\.soca\.conv_du\.2\.", r"groups.\1.attention.up."),
    (r"RG\.(\d+)\.conv_last\.", r"groups.\1.conv."),
    (r"tail\.0\.(\d+)\.", r"upsample.\1."),
    (r"tail\.1\.", "conv_last."),
)
# A γ in each group, the trunk's convolution, attention within the non-local block.
_SAN_UNUSED = r"RG\.\d+\.gamma$|conv_last\.|non_local\.soca\."


def srfbn(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and the authors' (block.upBlocks …).

    How many steps it takes is in no key, and 4 in all that was published.
    """
    if "block.compress_in.0.weight" in state:
        state = rekeyed(_without(state, _SHIFTS), _SRFBN_RULES)
    groups = count_of(state, r"feedback\.up\.(\d+)\.0\.weight")
    if groups == 0:
        return None
    channels, _, _, kernel = state["feedback.up.0.0.weight"].shape
    config = SRFBNConfig(scale=kernel - 4, channels=channels, groups=groups)
    return "srfbn", config, dict(state)


def san(state: State, metadata: Metadata) -> Found | None:
    """Own keys, and the authors' (RG.N.rcab.N …), of which there are two kinds.

    In the code that the published weights are for, groups hold a γ that nothing uses; in the later
    one they do not, and another long skip is added at the end.
    """
    long_skip: LongSkip = "head"
    if "RG.0.rcab.0.conv_first.0.weight" in state:
        long_skip = "head" if "RG.0.gamma" in state else "region"
        state = rekeyed(_without(state, f"{_SHIFTS}|{_SAN_UNUSED}"), _SAN_RULES)
    groups = count_of(state, r"groups\.(\d+)\.conv\.weight")
    if groups == 0 or "regions.query.weight" not in state:
        return None
    channels, _, _ = conv_shape(state, "conv_first")
    stages = sum(key.startswith("upsample.") and key.endswith(".weight") for key in state)
    factor = root_of(conv_shape(state, "upsample.0")[0] // channels)
    config = SANConfig(
        scale=factor**stages if stages <= 3 else 0,
        groups=groups,
        blocks=count_of(state, r"groups\.0\.blocks\.(\d+)\.conv1\.weight"),
        channels=channels,
        reduction=channels // conv_shape(state, "groups.0.attention.down")[0],
        looking=conv_shape(state, "regions.query")[0],
        long_skip=long_skip,
    )
    return "san", config, dict(state)


def _without(state: State, pattern: str) -> State:
    """All but the keys that begin as the regular expression says."""
    regex = re.compile(pattern)
    return {key: tensor for key, tensor in state.items() if not regex.match(key)}
