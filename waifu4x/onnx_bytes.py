"""The bytes of an ``.onnx`` file become a graph that refers to nothing outside of itself.

A graph is data: ONNX Runtime knows its operations, and a file can bring none of its own. What is
looked for here is what a graph could do all the same: name other files as its weights, never end,
or be much larger than it looks. The content is read once, so what was checked is what is run.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waifu4x.errors import CheckpointError, UnsafeCheckpointError
from waifu4x.model_files.checkpoints import MAX_PARAMETERS
from waifu4x.model_files.given_files import MAX_FILE_BYTES, check_file, fail, printable

# What may not end, and what names a file for a compiler of some device.
_REFUSED = frozenset({"Loop", "Scan", "SequenceMap", "EPContext"})
_MAX_MESSAGES = 1_000_000
_MAX_NODES = 100_000
_MAX_FUNCTIONS = 200
_MAX_METADATA = 100
_QUANTISED = re.compile(r"QuantizeLinear|QLinear\w+|\w*Integer")


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A graph that ONNX Runtime may read, and what stands beside it."""

    graph: bytes
    """The whole model, external weights put into it."""
    metadata: dict[str, str]
    parameters: int
    """The numbers in its weights, without those that say shapes and sizes."""
    precision: str
    """``fp32``, ``fp16`` or ``int8``: the least of what it computes in."""
    sha256: str
    """Of the file's bytes; where others belong to it, of the digests of all of them."""


def read(path: Path) -> OnnxFile:
    """Read an ``.onnx`` file and the files of weights that it names, all of which lie beside it.

    It needs the package ``onnx``.

    Raises:
        UnsafeCheckpointError: it names files elsewhere, or its graph might never end.
        CheckpointError: it is missing, too large, damaged or something else.
    """
    data = _bytes_of(path)
    digests = [hashlib.sha256(data).hexdigest()]
    model = _parsed(path, data, digests[0])
    try:
        parts = list(_parts(model))
        _check_nodes(model, parts)
        tensors = [part for part in parts if _kind(part) == "TensorProto"]
        _check_sizes(tensors)
        digests += _put_inside(path, tensors)
    except CheckpointError as error:
        fail(path, str(error), sha256=digests[0], kind=type(error))
    del model.training_info[:]
    # What this reader does not know, it could not check.
    model.DiscardUnknownFields()
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode())
    told = [(printable(p.key), printable(p.value)) for p in model.metadata_props[:_MAX_METADATA]]
    return OnnxFile(
        graph=model.SerializeToString(),
        metadata=dict(told),
        parameters=sum(math.prod(t.dims) for t in tensors if not _is_about_shapes(t)),
        precision=_precision(parts),
        sha256=whole if isinstance(whole, str) else whole.hexdigest(),
    )


def _bytes_of(path: Path) -> bytes:
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        fail(path, f"cannot be read: {printable(error.strerror or error)}")


def _parsed(path: Path, data: bytes, sha256: str) -> Any:
    """onnx.ModelProto; what is no model is refused by what it is instead."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's DecodeError, and what else a parser in C may raise
        model = None
    if model is None or not model.graph.node or not model.graph.output:
        stem, looks = printable(path.stem), data[:512].lstrip()[:64].lower()
        if data.startswith((b"PK\x03\x04", b"\x80")):
            fail(path, f"is a PyTorch file, not ONNX: name it {stem}.pth", sha256=sha256)
        if data[8:9] == b"{":
            fail(path, f"is a safetensors file: name it {stem}.safetensors", sha256=sha256)
        page = looks.startswith((b"<!doctype", b"<html", b"<?xml"))
        what = "is a web page, not a model" if page else "is no ONNX file, or is cut short"
        fail(path, f"{what}; download it again", sha256=sha256)
    return model


def _parts(model: Any) -> Iterator[Any]:
    """Every message in the model, itself first: graphs in nodes, functions, tensors in either.

    Raises CheckpointError where there are too many, or where a text is none.
    """
    from google.protobuf.message import Message

    pending, seen = [model], 0
    while pending:
        part = pending.pop()
        seen += 1
        if seen > _MAX_MESSAGES:
            raise CheckpointError("holds more parts than any known network")
        yield part
        for field, value in part.ListFields():
            if field.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)
            elif field.type == field.TYPE_STRING:
                # Python gives bytes for what is not UTF-8, and ONNX Runtime might read it.
                texts = [value] if isinstance(value, str | bytes) else value
                if any(isinstance(text, bytes) for text in texts):
                    raise CheckpointError("holds names that are no text; download it again")


def _kind(part: Any) -> str:
    return part.DESCRIPTOR.name


def _check_nodes(model: Any, parts: list[Any]) -> None:
    for part in parts:
        if _kind(part) == "NodeProto" and part.op_type in _REFUSED:
            raise UnsafeCheckpointError(
                f"holds the operation {part.op_type}, which "
                + ("reads other files" if part.op_type == "EPContext" else "might never end")
                + "; export it without"
            )
    if len(model.functions) > _MAX_FUNCTIONS or _operations(model) > _MAX_NODES:
        raise CheckpointError("holds more operations than any known network")


def _operations(model: Any) -> int:
    """How many there are once functions are written out, which may double with each of them.

    Raises CheckpointError when a function calls itself, by others or not.
    """
    bodies = {_called(f, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def count(nodes: Any, depth: int) -> int:
        total = 0
        for node in nodes:
            key = _called(node, node.op_type)
            if key in bodies and key not in sizes:
                if depth > len(bodies):
                    raise CheckpointError("holds functions that call themselves; export it again")
                sizes[key] = count(bodies[key].node, depth + 1)
            total += sizes.get(key, 1)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    total += count(graph.node, depth)
        return total

    return count(model.graph.node, 0)


def _called(part: Any, name: str) -> tuple[str, str, str]:
    return "" if part.domain == "ai.onnx" else part.domain, name, part.overload


def _check_sizes(tensors: list[Any]) -> None:
    total = 0
    for tensor in tensors:
        if any(side < 0 for side in tensor.dims):
            raise CheckpointError("holds a tensor of negative size; download it again")
        total += math.prod(tensor.dims)
    if total > MAX_PARAMETERS:
        raise CheckpointError(f"has over {MAX_PARAMETERS:,} parameters, which is too many")


def _put_inside(path: Path, tensors: list[Any]) -> list[str]:
    """Read the weights that lie in other files into the model; the digests of those files."""
    found: dict[str, bytes] = {}
    for tensor in tensors:
        if not tensor.external_data and not tensor.data_location:
            continue
        told = {entry.key: entry.value for entry in tensor.external_data}
        name = told.get("location", "")
        if name not in found:
            found[name] = _neighbour(path, name)
            if sum(map(len, found.values())) > MAX_FILE_BYTES:
                raise CheckpointError(f"names over {MAX_FILE_BYTES >> 20} MiB of weights")
        start, data = _number(told.get("offset", "0")), found[name]
        length = _number(told["length"]) if "length" in told else len(data) - start
        if length > len(data) - start:
            raise CheckpointError(f"does not belong to {printable(name)}, which is too short")
        tensor.raw_data = data[start : start + length]
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return [hashlib.sha256(found[name]).hexdigest() for name in sorted(found)]


def _neighbour(path: Path, name: str) -> bytes:
    """The content of a file in the same folder, named by nothing but its name."""
    target = path.parent / name if name and name.isprintable() else path.parent
    plain = target.name == name and not re.search(r"[/\\:]", name)
    # Links may lead to where the model itself was linked from, as in caches of downloads.
    if not plain or target.resolve().parent not in (path.parent.resolve(), path.resolve().parent):
        raise UnsafeCheckpointError(
            f"names {printable(name) or 'nothing'} as a file of weights, which does not lie beside "
            f"it; nothing was read from there"
        )
    if not target.is_file():
        raise CheckpointError(f"has its weights in {printable(name)}, which is not beside it")
    return _bytes_of(target)


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text):
        raise CheckpointError("says no number where its weights begin or end; download it again")
    return int(text)


def _is_about_shapes(tensor: Any) -> bool:
    """Whether a tensor says where and how much, and is no weight: all of 64 bits, and scalars."""
    import onnx

    return tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL) or not tensor.dims


def _precision(parts: list[Any]) -> str:
    import onnx

    half = onnx.TensorProto.FLOAT16
    nodes = [part for part in parts if _kind(part) == "NodeProto"]
    if any(_QUANTISED.fullmatch(node.op_type) for node in nodes):
        return "int8"
    casts = any(a.name == "to" and a.i == half for n in nodes for a in n.attribute)
    sides = [part for part in parts if _kind(part) == "ValueInfoProto"]
    takes = any(side.type.tensor_type.elem_type == half for side in sides)
    return "fp16" if casts or takes else "fp32"
