"""A network becomes a graph that OpenVINO compiles, traced so that precision is kept.

The graph takes and gives pictures as they lie in memory, (N, h, w, C) float32, of any N, h and w.
It serves every precision, which OpenVINO is told when it compiles. In bf16 it would also compute
what torch keeps in float32; that is marked:

- the enlarged input that a residual is added to, which is made by a convolution;
- a last convolution with no such input beside it: both are the picture, and not features;
- all that modules do which state `in_float32`.

What comes after the last convolution is done to sixteen times the pixels, and took OpenVINO a third
of all time. So a residual and the enlarged input are added before either is shuffled into place,
and that is done once, right into the form in which pictures lie in memory.

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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from waifu4x.engines import openvino_quietly

PICTURE = "enlarged picture"
"""What the convolution is called that enlarges the input for a residual to be added."""

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
    model = _translated(_traced(network, example), config.channels_in)
    last = _last_convolutions(model)
    enlarging = [node for node in last if not _convolutions_before(node)]
    for node in enlarging:
        node.set_friendly_name(PICTURE)
    kept = last if _ends_exactly(network, example) else enlarging
    # What leads to them would be rounded for them.
    leading = [n for node in enlarging for n in _leading_to(node)]
    return _written(model, exact=[*kept, *leading, *_within_exact_modules(model, network)])


def _traced(network: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """TorchScript with its weights as constants: OpenVINO reads those in a tenth of the time."""
    with warnings.catch_warnings(), torch.no_grad(), _Portably(example.shape[1]):
        # torch.export, which shall replace it, takes seconds to be imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Sizes that Python sees are warned of; `openvino` compares another size with torch.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore
        module = _ChannelsLast(network)
        traced = torch.jit.trace(module, example.permute(0, 2, 3, 1), check_trace=False)
        return torch.jit.freeze(traced.eval())  # pyright: ignore[reportAttributeAccessIssue]


class _ChannelsLast(nn.Module):
    """The same network with (N, h, w, C) in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x.permute(0, 3, 1, 2))
        return y.channels_last() if isinstance(y, _Shuffled) else y.permute(0, 2, 3, 1)


def _translated(traced: torch.jit.ScriptModule, channels: int) -> Any:
    """OpenVINO's model of it, for (N, h, w, C) of any N, h and w."""
    openvino = openvino_quietly.load()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)  # must live until all of it is read
    model = frontend.load(decoder)
    (place,) = model.get_inputs()
    model.set_element_type(place, openvino.Type.f32)
    model.set_partial_shape(place, openvino.PartialShape([-1, -1, -1, channels]))
    return frontend.convert(model)


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
    return _convolutions_before(*model.get_results())


def _convolutions_before(*nodes: Any) -> list[Any]:
    """The convolutions with no other convolution between them and `nodes`."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    pending = [*nodes]
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


def _within_exact_modules(model: Any, network: nn.Module) -> list[Any]:
    """The nodes that modules became which state that they compute in float32."""
    names = [name for name, m in network.named_modules() if getattr(m, "in_float32", False)]
    # As the frontend names what a module does, and what the modules in it do.
    marks = tuple(f"__module.network.{name}{end}" for name in names for end in "/.")
    return [n for n in model.get_ops() if marks and n.get_friendly_name().startswith(marks)]


def _leading_to(node: Any) -> list[Any]:
    """The nodes that the input goes through before it gets to `node`."""
    found: dict[str, Any] = {}
    pending = [node]
    while pending:
        for entry in pending.pop().inputs():
            source = entry.get_source_output().get_node()
            kind, name = source.get_type_name(), source.get_friendly_name()
            if kind not in ("Parameter", "Constant") and name not in found:
                found[name] = source
                pending.append(source)
    return [*found.values()]


def _written(model: Any, *, exact: list[Any]) -> Graph:
    """The model's files, where the nodes in `exact` are marked to stay in float32."""
    names = [node.get_friendly_name() for node in exact]
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
        args = tuple(map(_whole, args))
        kwargs = {key: _whole(value) for key, value in (kwargs or {}).items()}
        if func is functional.pixel_shuffle:
            return _Shuffled(*args, **kwargs)
        if func is functional.pixel_unshuffle:
            return gathered(*args, **kwargs)
        if func is functional.relu:
            return functional.leaky_relu(args[0], _NEARLY_ZERO)
        # Features may be enlarged in bf16; whatever has as many channels as the picture may be it.
        if func is functional.interpolate and args[0].shape[1] == self._channels:
            return _enlarged(*args, **kwargs)
        return func(*args, **kwargs)


class _Shuffled:
    """What `functional.pixel_shuffle` would give, before it is: sums are made of its phases."""

    def __init__(self, phases: Tensor, factor: int) -> None:
        """phases: (N, C·f², h, w)."""
        self.phases = phases
        self.factor = factor

    @property
    def whole(self) -> Tensor:
        """(N, C, f·h, f·w)."""
        # By its full name it does not come back to the mode.
        shuffled: Tensor = torch.ops.aten.pixel_shuffle.default(self.phases, self.factor)
        return shuffled

    def channels_last(self) -> Tensor:
        """(N, f·h, f·w, C), by one transposition."""
        count, planes, height, width = self.phases.shape
        f, channels = self.factor, planes // self.factor**2
        # Of several ways to say it this is the one that OpenVINO takes least time for.
        split = self.phases.view(count, channels, f, f, height, width)
        return split.permute(0, 4, 2, 5, 3, 1).reshape(count, height * f, width * f, channels)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # That functions take it; the mode has made it whole by then.
        return func(*map(_whole, args), **(kwargs or {}))

    def to(self, dtype: torch.dtype) -> _Shuffled:
        return _Shuffled(self.phases.to(dtype), self.factor)

    def __add__(self, other: Any) -> Any:
        if isinstance(other, _Shuffled) and other.phases.shape == self.phases.shape:
            return _Shuffled(self.phases + other.phases, self.factor)
        return self.whole + _whole(other)

    __radd__ = __add__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def _whole(value: Any) -> Any:
    return value.whole if isinstance(value, _Shuffled) else value


def _enlarged(x: Tensor, **how: Any) -> Any:
    factor, mode = how.get("scale_factor"), how.get("mode", "nearest")
    if isinstance(factor, int) and not how.get("align_corners") and how.get("size") is None:
        if mode == "nearest":
            return _Shuffled(repeated(x, factor), factor)
        if mode == "bilinear":
            return _Shuffled(interpolated(x, factor), factor)
    return functional.interpolate(x, **how)


def repeated(x: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) -> (N, C·f², h, w): phases of `functional.interpolate` in the mode nearest."""
    return x[:, :, None].expand(-1, -1, factor**2, -1, -1).flatten(1, 2)


def interpolated(x: Tensor, factor: int) -> Tensor:
    """(N, C, h, w) -> (N, C·f², h, w): phases of the mode bilinear, to 3e-7, by a convolution."""
    channels = x.shape[1]
    # By numpy, so that tracing sees its result and not how it came to be.
    weight = np.zeros((channels, factor**2, channels, 3, 3), dtype=np.float32)
    for channel in range(channels):
        weight[channel, :, channel] = _bilinear(factor)
    padded = torch.cat((x[:, :, :1], x, x[:, :, -1:]), 2)
    padded = torch.cat((padded[..., :1], padded, padded[..., -1:]), 3)
    return functional.conv2d(padded, torch.from_numpy(weight.reshape(-1, channels, 3, 3)))


def _bilinear(factor: int) -> npt.NDArray[np.float64]:
    """(f², 3, 3): how much each old pixel counts for the new ones of the middle one."""
    # Where the new pixels of one old pixel lie from its middle, in old pixels.
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    before, after = np.maximum(-offsets, 0.0), np.maximum(offsets, 0.0)
    taps = np.stack((before, 1.0 - before - after, after), axis=1)
    return np.einsum("ia,jb->ijab", taps, taps).reshape(factor**2, 3, 3)


def gathered(x: Tensor, factor: int) -> Tensor:
    """(N, C, f·h, f·w) -> (N, C·f², h, w): `functional.pixel_unshuffle`."""
    phases = [x[:, :, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return torch.stack(phases, 2).flatten(1, 2)
