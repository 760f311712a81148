"""A network becomes an ONNX graph, as it is exported and as ONNX Runtime runs it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import nn

# The first with everything that is used here; later ones would shut out older runtimes.
OPSET = 18

_TRACED_UNITS = 8


def convert(network: nn.Module) -> bytes:
    """The graph of a network on the CPU, in float32 and eval mode, as a whole ONNX model.

    It maps ``input`` (N, C, h, w) float32 to ``output`` (N, C, s·h, s·w), for every N, h and w that
    the network accepts.

    The exporter is the one that goes through TorchScript: that through torch.export needs two
    packages more, and for RRDB-23 79 s instead of 4 s. It is the way from the torch on that has no
    other. It needs the package ``onnx``.

    Raises whatever the exporter raises for a network that it cannot express.
    """
    config: Any = network.config
    side_px = _TRACED_UNITS * config.size_multiple
    example = torch.zeros(1, config.channels_in, side_px, side_px)
    times = "" if config.scale == 1 else f"{config.scale}*"
    axes = {
        name: {0: "batch", 2: f"{factor}height", 3: f"{factor}width"}
        for name, factor in (("input", ""), ("output", times))
    }
    buffer = io.BytesIO()
    # It has been deprecated, and every call says so.
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            network,
            (example,),
            buffer,  # pyright: ignore[reportArgumentType]
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=axes,
        )
    return buffer.getvalue()
