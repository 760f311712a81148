"""A model becomes a file that other programs run: ONNX, OpenVINO, TorchScript, safetensors.

What is written is loaded again by the runtime that it is for, run on random pictures of two sizes,
and compared with the network in fp32; only a file that agrees gets the name that was asked for.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from waifu4x.engines import FloatArray, onnx_graph, onnxruntime_quietly, openvino_quietly
from waifu4x.errors import UsageError, WeightsError
from waifu4x.files import atomic_path
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.model_files.given_files import printable
from waifu4x.version import __version__

Format = Literal["onnx", "openvino", "torchscript", "safetensors"]
Run = Callable[[FloatArray], FloatArray]

BOUND = 1e-4
"""By how much a file's output may differ from the network's, where white is 1. Runtimes add in
other orders: for the published networks that made 6e-6 at most."""
HALF_BOUND = 8e-3
"""The same for weights rounded to fp16, two steps of an 8-bit picture; 2.7e-3 was the most."""

# Two shapes, so that nothing that tracing took for a constant can pass: (batch, height, width).
_SHAPES = ((1, 37, 23), (2, 19, 41))


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` wrote."""

    files: tuple[Path, ...]
    """The one to open first; OpenVINO's weights are a second one."""
    size_bytes: int
    """Of all of them."""
    difference: float
    """The largest from the network in fp32, of all pixels of the random pictures."""
    facts: dict[str, str]
    """What the file says about itself; see `facts`."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    suffix: str
    runtime: str
    """What runs it, as people call it."""
    write: Callable[[Model, Path, bool], None]
    """With the weights in fp16 when the last is true."""
    open: Callable[[Path], Run]
    modules: tuple[str, ...] = ()
    """What must be importable to write and to check it."""
    extra: str = ""
    """Of waifu4x, which brings those."""
    halves: bool = True
    second_suffix: str | None = None
    """Of the file beside it without which it cannot be opened."""


def export(
    model: Model, target: Path, *, to: Format, half: bool = False, overwrite: bool = False
) -> Exported:
    """Write `model` to `target` for other programs, and make sure that it computes the same.

    The graph maps x (N, C, h, w) float32 in [0, 1] to (N, C, s·h, s·w) float32, about [0, 1] and
    not clamped, for every N, and h and w that are multiples of `model.size_multiple`; C is 3 for
    RGB, 1 for studio-range luma. For a pre-upsampled network x has been enlarged. ``safetensors``
    holds no graph: it is the file that waifu4x itself reads, with the keys that ESRGAN, Real-ESRGAN
    and BasicSR published their networks with.

    `half` stores the weights in fp16; runtimes still calculate in fp32. `target` is guaranteed to
    appear only after the check, whole, and to be left alone without `overwrite`.

    Raises:
        UsageError: a package is missing, the suffix is another format's, `half` cannot be had,
            `target` exists or is the model's own file.
        WeightsError: conversion failed, the result differs by more than BOUND (HALF_BOUND), or the
            disk refuses.
    """
    kind = FORMATS[to]
    check_format(to, half=half)
    if model.any_scale and to != "safetensors":
        raise UsageError(
            f"{model.name} enlarges by any factor, and a graph by one: it cannot be exported but "
            f"as safetensors"
        )
    if model.reference != "none":
        raise UsageError(f"{model.name} takes references, as no graph does: it cannot be exported")
    check_target(model, target, to=to, overwrite=overwrite)
    # On Windows a runtime may keep its file mapped for longer than we hold it.
    with tempfile.TemporaryDirectory(prefix="waifu4x-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / f"model{kind.suffix}"
        try:
            kind.write(model, made, half)
            difference = _largest_difference(model, kind.open(made))
        except Exception as error:  # exporters and runtimes have errors of their own
            reason = printable(str(error).strip().partition("\n")[0]) or type(error).__name__
            raise WeightsError(
                f"{model.name} cannot be written for {kind.runtime} ({reason}); try another --to"
            ) from error
        bound, cure = (HALF_BOUND, "leave --half out") if half else (BOUND, "try another --to")
        if not difference <= bound:  # also when it is no number
            raise WeightsError(
                f"{target} was not written: by {kind.runtime} its values differ from the network's "
                f"by {difference:.2g}, where {bound:g} is allowed; {cure}"
            )
        files = _files(target, kind)
        _move(_files(made, kind), files)
    return Exported(
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        difference=difference,
        facts=facts(model, half=half),
    )


def default_target(model: Model, *, to: Format) -> Path:
    """``./NAME-x4.onnx``; without the factor where the name ends in it, or where there is none."""
    scale = f"x{model.scale}"
    ends_so = re.search(rf"(^|[^a-z0-9]){scale}$", model.name, re.IGNORECASE)
    tail = "" if model.pre_upsampled or ends_so else f"-{scale}"
    return Path(f"{model.name}{tail}{FORMATS[to].suffix}")


def facts(model: Model, *, half: bool = False) -> dict[str, str]:
    """What an exported file says about itself, as plain text per fact."""
    rgb = model.channels_in == 3
    told = {
        "name": printable(model.name),
        "architecture": model.architecture,
        "scale": str(model.scale),
        "scales": ",".join(map(str, model.scales)) if model.scales else "any",
        "color": "RGB" if rgb else "luma, BT.601, studio range",
        "layout": "NCHW float32",
        "value_range": "0 to 1, output not clamped",
        "pre_upsampled": "yes, bicubic" if model.pre_upsampled else "no",
        "size_multiple": str(model.size_multiple),
        "receptive_radius_px": str(model.receptive_radius_px),
        "parameters": str(model.parameters),
        "weights": "fp16" if half else "fp32",
        "source_sha256": model.sha256,
        "made_by": f"waifu4x {__version__}",
    }
    if model.licence is not None:
        told["licence"] = printable(model.licence)
    return told


def check_format(to: Format, *, half: bool) -> None:
    """Raises UsageError when a package is missing, or weights cannot be stored in fp16."""
    kind = FORMATS[to]
    if half and not kind.halves:
        raise UsageError(f"{kind.runtime} stores weights as they are used, in fp32: no --half")
    for module in kind.modules:
        try:
            _import(module)
        except ImportError as error:  # not there, or a library below it is not
            raise UsageError(
                f"--to {to} needs {module} ({printable(error)}): "
                f"pip install 'waifu4x[{kind.extra}]'"
            ) from error


def check_target(model: Model, target: Path, *, to: Format, overwrite: bool) -> None:
    """Raises UsageError when `target` has a wrong suffix, exists, or is the model's own file."""
    kind = FORMATS[to]
    if target.suffix.lower() != kind.suffix:
        raise UsageError(f"{target}: a file for {kind.runtime} ends in {kind.suffix}")
    for file in _files(target, kind):
        if file.is_dir():
            raise UsageError(f"{file} is a folder; name a file in it")
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists already: --overwrite replaces it, -o names another")
        if file.exists() and model.path.exists() and file.samefile(model.path):
            raise UsageError(f"{file} is what {model.name} is read from; name another with -o")


def _files(path: Path, kind: _Kind) -> tuple[Path, ...]:
    return (path,) if kind.second_suffix is None else (path, path.with_suffix(kind.second_suffix))


def _largest_difference(model: Model, run: Run) -> float:
    """Of what `run` and the network make of random pictures; NaN when either gives one."""
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch, *sides in _SHAPES:
        height_px, width_px = (side * model.size_multiple for side in sides)
        shape = (batch, model.channels_in, height_px, width_px)
        x = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            wanted = model.network(x).numpy()
        got = run(x.numpy())
        if got.shape != wanted.shape:
            raise ValueError(f"it makes {got.shape} of {shape}, and not {wanted.shape}")
        differences.append(np.abs(got - wanted).max())
    return float(np.max(differences))


def _move(made: tuple[Path, ...], files: tuple[Path, ...]) -> None:
    """Copy what was checked to where it shall be; the first file appears last."""
    try:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporaries = [stack.enter_context(atomic_path(file)) for file in files]
            for source, temporary in zip(made, temporaries, strict=True):
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise WeightsError(f"{files[0]} cannot be written: {error.strerror or error}") from error


def _import(name: str) -> Any:
    quietly = {"openvino": openvino_quietly, "onnxruntime": onnxruntime_quietly}
    return quietly[name].load() if name in quietly else importlib.import_module(name)


@contextmanager
def _deprecated() -> Iterator[None]:
    """Meanwhile torch does not warn: it has deprecated TorchScript, and every call says so.

    There is nothing else that programs in C++ load.
    """
    with warnings.catch_warnings(action="ignore"):
        yield


def _example(model: Model) -> torch.Tensor:
    side_px = 8 * model.size_multiple
    return torch.zeros(1, model.channels_in, side_px, side_px)


def _run_by_torch(network: nn.Module) -> Run:
    def run(x: FloatArray) -> FloatArray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run


def _write_torchscript(model: Model, path: Path, half: bool) -> None:
    told = {"waifu4x.json": json.dumps(facts(model, half=half))}
    with _deprecated():
        traced = torch.jit.trace(model.network, (_example(model),), check_trace=False)
        torch.jit.save(traced, path, _extra_files=told)


def _open_torchscript(path: Path) -> Run:
    with _deprecated():
        return _run_by_torch(torch.jit.load(path, map_location="cpu"))


def _write_onnx(model: Model, path: Path, half: bool) -> None:
    onnx = _import("onnx")
    written = onnx.load_model_from_string(onnx_graph.convert(model.network))
    if half:
        _halve(onnx, written.graph)
    onnx.helper.set_model_props(written, facts(model, half=half))
    onnx.checker.check_model(written)
    onnx.save_model(written, path)


def _halve(onnx: Any, graph: Any) -> None:
    """Store the kernels in fp16, each cast to fp32 before it is used; runtimes do so only once."""
    casts = []
    for stored in graph.initializer:
        if len(stored.dims) == 4 and stored.data_type == onnx.TensorProto.FLOAT:
            name = stored.name
            values = onnx.numpy_helper.to_array(stored).astype(np.float16)
            stored.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.fp16"))
            cast = onnx.helper.make_node(
                "Cast", [stored.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
            casts.append(cast)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _open_onnx(path: Path) -> Run:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["output"], {"input": x})[0]


def _write_openvino(model: Model, path: Path, half: bool) -> None:
    openvino = _import("openvino")
    read = openvino.Core().read_model(io.BytesIO(onnx_graph.convert(model.network)))
    for key, value in facts(model, half=half).items():
        read.set_rt_info(value, ["waifu4x", key])
    openvino.save_model(read, path, compress_to_fp16=half)


def _open_openvino(path: Path) -> Run:
    core = _import("openvino").Core()
    # By itself it calculates in bf16 where the processor can.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(path), "CPU", exact)
    return lambda x: compiled([x])[0]


def _write_safetensors(model: Model, path: Path, half: bool) -> None:
    network: nn.Module = copy.deepcopy(model.network).half() if half else model.network
    checkpoints.save(network, path, metadata={**model.metadata, **facts(model, half=half)})


def _open_safetensors(path: Path) -> Run:
    return _run_by_torch(checkpoints.load(path).network)


FORMATS: dict[Format, _Kind] = {
    "onnx": _Kind(
        suffix=".onnx",
        runtime="ONNX Runtime",
        modules=("onnx", "onnxruntime"),
        extra="onnx",
        write=_write_onnx,
        open=_open_onnx,
    ),
    "openvino": _Kind(
        suffix=".xml",
        second_suffix=".bin",
        runtime="OpenVINO",
        modules=("onnx", "openvino"),  # it reads what the exporter of ONNX makes
        extra="onnx,openvino",
        write=_write_openvino,
        open=_open_openvino,
    ),
    "torchscript": _Kind(
        suffix=".pt",
        runtime="TorchScript",
        halves=False,
        write=_write_torchscript,
        open=_open_torchscript,
    ),
    "safetensors": _Kind(
        suffix=".safetensors",
        runtime="waifu4x",
        write=_write_safetensors,
        open=_open_safetensors,
    ),
}
