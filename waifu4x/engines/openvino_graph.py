"""A network becomes a graph that OpenVINO compiles, traced so that precision is kept.

The graph takes and gives pictures as they lie in memory, (N, h, w, C) float32, of any N, h and w.
It serves every precision, which OpenVINO is told when it compiles. In bf16 it would also compute
two things that torch keeps in float32, because they are the picture and not features:

- the enlarged input that a residual is added to: here it is a sum of shifted copies;
- a last convolution with no such input beside it: it is marked.

`openvino.convert_model` would do the rest, and report it to its makers (see `openvino_quietly`), so
what it calls is called here.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from waifu4x.engines import openvino_quietly

# Any size would do that all networks accept; another than `openvino` compares the results at.
_TRACED_UNITS = 8


class Graph(NamedTuple):
    """What OpenVINO reads: the operations as XML, and the constants they name."""

    operations: bytes
    constants: bytes


def convert(network: nn.Module) -> Graph:
    """The graph of a network on the CPU, in float32 and eval mode.

    Raises whatever tracing and OpenVINO raise for a network that they cannot express.
    """
    config: Any = network.config
    side_px = _TRACED_UNITS * config.size_multiple
    example = torch.zeros(1, config.channels_in, side_px, side_px)
    model = _channels_last(_translated(_traced(network, example), config.channels_in))
    exact = _last_convolutions(model) if _ends_exactly(network, example) else []
    return _written(model, exact=exact)


def _traced(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """TorchScript with its weights as constants: OpenVINO reads those in a tenth of the time."""
    with warnings.catch_warnings(), torch.no_grad(), _Portably(example.shape[1]):
        # torch.export, which shall replace it, takes seconds to be imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Sizes that Python sees are warned of; `openvino` compares another size with torch.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore
        traced = torch.jit.trace(network, example, check_trace=False)
        return torch.jit.freeze(traced)


def _translated(traced: torch.jit.ScriptModule, channels: int) -> Any:
    """OpenVINO's model of it, for (N, C, h, w) of any N, h and w."""
    openvino = openvino_quietly.load()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # must live until all of it is read
    model = frontend.load(decoder)
    (place,) = model.get_inputs()
    model.set_element_type(place, openvino.Type.f32)
    model.set_partial_shape(place, openvino.PartialShape([-1, channels, -1, -1]))
    return frontend.convert(model)


def _channels_last(model: Any) -> Any:
    """The same model with (N, h, w, C) in and out."""
    layout = openvino_quietly.load().Layout
    from openvino.preprocess import PrePostProcessor

    process = PrePostProcessor(model)
    for side in (process.input(), process.output()):
        side.model().set_layout(layout("NCHW"))
        side.tensor().set_layout(layout("NHWC"))
    return process.build()


def _ends_exactly(network: nn.Module, example: Tensor) -> bool:
    """Whether the network computes its last convolution in float32 when others are in bf16."""
    kinds: list[torch.dtype] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return kinds[-1:] == [torch.float32]


def _last_convolutions(model: Any) -> list[Any]:
    """The convolutions with no other convolution between them and the result."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    pending = [*model.get_results()]
    while pending:
        for entry in pending.pop().inputs():
            node = entry.get_source_output().get_node()
            name = node.get_name()
            if node.get_type_name() == "Convolution":
                found[name] = node
            elif name not in seen:
                seen.add(name)
                pending.append(node)
    return [*found.values()]


def _written(model: Any, *, exact: list[Any]) -> Graph:
    """The model's files, where the nodes in `exact` are marked to stay in float32."""
    names = [f"exact {number}" for number, _ in enumerate(exact)]
    for node, name in zip(exact, names, strict=True):
        node.set_friendly_name(name)
    with tempfile.TemporaryDirectory() as folder:
        operations, constants = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        openvino_quietly.load().serialize(model, str(operations), str(constants))
        text, values = operations.read_bytes(), constants.read_bytes()
    tree = ElementTree.fromstring(text)
    for layer in tree.iter("layer"):
        if layer.get("name") in names:
            _keep_exact(layer)
    return Graph(operations=ElementTree.tostring(tree), constants=values)


def _keep_exact(layer: ElementTree.Element) -> None:
    """Python can set no such attribute of a node, but OpenVINO reads it from files."""
    notes = layer.find("rt_info")
    if notes is None:
        notes = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, notes)
    # The first is what the second was called in 2026.0 and before.
    for mark in (
        {"name": "precise", "version": "0"},
        {
            "name": "DisablePrecisionConversion",
            "version": "0",
            "value": "dynamic:bf16;dynamic:f16",
        },
    ):
        ElementTree.SubElement(notes, "attribute", mark)


# -- operations that OpenVINO would round, or cannot read ------------------------------------------

# Its ReLU is a maximum, which makes 0 of NaN, and nobody would know that there was one. This slope
# is below the last bit of anything that negative activations are added to.
_NEARLY_ZERO = 1e-30


class _Portably(TorchFunctionMode):
    """Says some operations in others while a network is traced, to the same result."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.pixel_unshuffle:
            return gathered(*args, **kwargs)
        if func is functional.relu:
            return functional.leaky_relu(args[0], _NEARLY_ZERO)
        # Features may be enlarged in bf16; whatever has as many channels as the picture may be it.
        if func is functional.interpolate and args[0].shape[1] == self._channels:
            return _enlarged(*args, **kwargs)
        return func(*args, **kwargs)


def _enlarged(x: Tensor, **how: Any) -> Tensor:
    factor, mode = how.get("scale_factor"), how.get("mode", "nearest")
    if isinstance(factor, int) and not how.get("align_corners") and how.get("size") is None:
        if mode == "nearest":
            return repeated(x, factor)
        if mode == "bilinear":
            return interpolated(x, factor)
    return functional.interpolate(x, **how)


def repeated(x: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) -> (N, C, f·h, f·w): `functional.interpolate` in the mode nearest."""
    copies = x[:, :, None].expand(-1, -1, factor**2, -1, -1)
    return functional.pixel_shuffle(copies.flatten(1, 2), factor)


def interpolated(x: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) -> (N, C, f·h, f·w): `functional.interpolate` in the mode bilinear, to 3e-7."""
    # Where the new pixels of one old pixel lie from its middle, in old pixels.
    offsets = (torch.arange(factor, dtype=x.dtype) + 0.5) / factor - 0.5
    before = (-offsets).clamp(min=0.0).view(1, 1, factor, 1, 1)
    after = offsets.clamp(min=0.0).view(1, 1, factor, 1, 1)

    def mixed(one: Tensor, previous: Tensor, following: Tensor) -> Tensor:
        sums = [plane[:, :, None] for plane in (one, previous, following)]
        sums = [sums[0] * (1.0 - before - after), sums[1] * before, sums[2] * after]
        return (sums[0] + sums[1] + sums[2]).flatten(1, 2)

    above = torch.cat((x[:, :, :1], x[:, :, :-1]), 2)
    below = torch.cat((x[:, :, 1:], x[:, :, -1:]), 2)
    x = mixed(x, above, below)
    left = torch.cat((x[..., :1], x[..., :-1]), 3)
    right = torch.cat((x[..., 1:], x[..., -1:]), 3)
    return functional.pixel_shuffle(mixed(x, left, right), factor)


def gathered(x: Tensor, factor: int) -> Tensor:
    """(N, C, f·h, f·w) -> (N, C·f², h, w): `functional.pixel_unshuffle`."""
    phases = [x[:, :, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return torch.stack(phases, 2).flatten(1, 2)
