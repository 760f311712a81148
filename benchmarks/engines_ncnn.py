"""SRVGGNetCompact as the two files that ncnn reads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from waifu4x.networks.srvggnet import SRVGGNetCompact

_MAGIC = 7767517
# Before the weights of a convolution: float32 follows. PReLU's slopes and biases have no such mark.
_FLOAT32 = bytes(4)

_OPTIONS = {
    "": {},
    "bf16": {"use_bf16_storage": True, "use_bf16_packed": True},
}
"""ncnn's own defaults (fp16 where the processor has it, which on x86 is none), and bf16."""

CANDIDATES: tuple[dict[str, Any], ...] = tuple(
    {
        "name": ", ".join(part for part in (name or "defaults", larger, tiles) if part),
        "options": options | ({"use_winograd63_convolution": False} if larger else {}),
        "tile_px": 200 if tiles else None,
    }
    for (name, options), larger, tiles in itertools.product(
        _OPTIONS.items(), ("", "no winograd63"), ("", "tiles of 200 px")
    )
)
"""What made a difference of those that ncnn can be told; the others cost time wherever tried.

Packing, sgemm and Winograd convolutions are on by default, and twice to three times slower off.
realesrgan-ncnn-vulkan takes tiles of 200 px where it has the memory.
"""


def write(network: nn.Module, stem: Path) -> bool:
    """Write `stem`.param and `stem`.bin; False for a network of another kind.

    The input blob is ``x``, the output ``y``: planes of RGB in [0, 1].
    https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
    """
    if not isinstance(network, SRVGGNetCompact):
        return False
    scale = network.config.scale
    lines, weights = ["Input x 0 1 x", "Split split 1 2 x body0 skip"], []
    blobs = ["x", "body0", "skip"]
    for number, layer in enumerate(network.body):
        ends = f"{number} 1 1 body{number} body{number + 1}"
        if isinstance(layer, nn.Conv2d):
            facts = f"0={layer.out_channels} 1=3 4=1 5=1 6={layer.weight.numel()}"
            lines.append(f"Convolution conv{ends} {facts}")
            weights += [_FLOAT32, _bytes(layer.weight), _bytes(layer.bias)]
        elif isinstance(layer, nn.PReLU):
            lines.append(f"PReLU prelu{ends} 0={layer.num_parameters}")
            weights.append(_bytes(layer.weight))
        blobs.append(f"body{number + 1}")
    lines += [
        f"PixelShuffle shuffle 1 1 {blobs[-1]} residual 0={scale}",
        f"Interp nearest 1 1 skip larger 0=1 1={float(scale)} 2={float(scale)}",
        "BinaryOp add 2 1 residual larger y 0=0",
    ]
    blobs += ["residual", "larger", "y"]
    text = "\n".join([str(_MAGIC), f"{len(lines)} {len(blobs)}", *lines, ""])
    stem.with_suffix(".param").write_text(text, "utf-8")
    stem.with_suffix(".bin").write_bytes(b"".join(weights))
    return True


def _bytes(values: Tensor | None) -> bytes:
    assert values is not None  # every convolution of this network has a bias
    return values.detach().numpy().astype("<f4").tobytes()
