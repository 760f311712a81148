"""A file of weights becomes a flat dict of tensors; nothing in it is executed.

Two kinds of file are read. ``.safetensors`` holds numbers and nothing else. ``.pth`` is a pickle,
which torch reads with its restricted unpickler and never any other way: a second try without the
restriction is exactly what an attacker asks for (https://github.com/advisories, Stanza's case).
Everything else is refused, by its name and by what lies in it.

The order is: kind and size, sha256, container (records, checksums, claims), parse. What comes out
is still a stranger's: `waifu4x.model_files.checkpoints` decides whether it is a network.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from safetensors import safe_open
from torch import Tensor

from waifu4x.errors import CheckpointError, UnsafeCheckpointError
from waifu4x.files import atomic_path
from waifu4x.model_files.given_files import MAX_FILE_BYTES, check_file, fail, printable

# RRDBNet-23 has 702 tensors and a header of 70 KB; both limits are far above any network here.
MAX_TENSORS = 20_000
_MAX_HEADER_BYTES = 8 << 20
_MAX_RECORDS = 2 * MAX_TENSORS
# A tensor takes about 30 instructions and 200 bytes of a pickle.
_MAX_INSTRUCTIONS = 50 * MAX_TENSORS
_MAX_TUPLE_DEPTH = 64
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
# magic number, version, the writer's machine, content, names of the storages
_LEGACY_PICKLES = 5
# Trained weights hardly shrink (7 % for a Real-ESRGAN release); ten-fold is a bomb.
_MAX_INFLATION = 10
_CHUNK_BYTES = 1 << 20

_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_START = b"PK\x03\x04"
_EXECUTABLE_RECORD = re.compile(r"(^|/)(constants\.pkl|code/|models/|archive_format$)")
# How torch names what it would not import; without a match the pickle may merely be damaged.
_FORBIDDEN = re.compile(r"\b(?:GLOBAL|class|function|instantiate|execute) ([A-Za-z_][\w.]{1,120})")
_SAVE_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """What a file of weights holds, before anybody says what it means."""

    content: Any
    """A dict of tensors for ``.safetensors``; for ``.pth`` whatever the restricted unpickler
    made, which is numbers, strings, tensors and nestings of dicts, lists and tuples of those."""
    metadata: dict[str, str]
    sha256: str


def read_tensor_file(path: Path) -> TensorFile:
    """Read a ``.safetensors`` or ``.pth`` file from disk onto the CPU.

    Nothing in the file is executed. Raises UnsafeCheckpointError when reading it would mean
    executing what is in it, or when it is of a kind that can; CheckpointError when it is missing,
    too large, damaged or no checkpoint at all.
    """
    suffix = path.suffix.lower()
    start = _first_bytes(path)
    if suffix not in (".safetensors", ".pth"):
        _refuse_suffix(path, start)
    sha256 = _sha256(path)
    _check_start(path, start, sha256=sha256)
    if suffix == ".safetensors":
        content, metadata = _read_safetensors(path, sha256)
        return TensorFile(content=content, metadata=metadata, sha256=sha256)
    mapped = _check_zip(path, sha256) if start.startswith(_ZIP_START) else None
    return TensorFile(content=_read_pickle(path, sha256, mapped), metadata={}, sha256=sha256)


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str]
) -> None:
    """Write tensors to `path` atomically; equal input gives equal bytes, whatever the machine.

    The bytes are laid out here because the safetensors library orders the metadata differently in
    every process, and a trained model should have one sha256. Raises CheckpointError for a tensor
    that is not float32, float16 or bfloat16, or when the disk refuses.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for key in sorted(state):
        tensor = state[key]
        if tensor.dtype not in _SAVE_DTYPES:
            fail(path, f"cannot be written: {key} is {tensor.dtype}, not a float of 32 or 16 bits")
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _SAVE_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key in sorted(state):
                flat = state[key].detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().tobytes())
    except OSError as error:
        fail(path, f"cannot be written: {printable(error.strerror or error)}")


def _first_bytes(path: Path) -> bytes:
    check_file(path)
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        fail(path, f"cannot be read: {printable(error.strerror or error)}")


def _refuse_suffix(path: Path, start: bytes) -> NoReturn:
    """Say why a file of this name is not read, and what to do about it."""
    suffix = printable(path.suffix, limit=20) or "no suffix"
    if path.suffix.lower() == ".onnx":
        problem = "is a graph: only upscale, compare and bench take it, by -m and its path"
        fail(path, problem, kind=UnsafeCheckpointError)
    if path.suffix.lower() in (".pt", ".ckpt", ".bin") and _is_tensor_zip(path, start):
        way_out = f"it seems to hold plain tensors: rename it to {printable(path.stem)}.pth"
    else:
        way_out = "save its state dict as .safetensors, or as .pth"
    problem = f"{suffix} files may hold code and are not read; {way_out}"
    fail(path, problem, kind=UnsafeCheckpointError)


def _is_tensor_zip(path: Path, start: bytes) -> bool:
    if not start.startswith(_ZIP_START):
        return start.startswith(_LEGACY_START)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # only picks the wording of a refusal that comes in any case
        return False
    pickled = any(name.endswith("/data.pkl") for name in names)
    return pickled and not any(_EXECUTABLE_RECORD.search(name) for name in names)


def _check_start(path: Path, start: bytes, *, sha256: str) -> None:
    """Refuse a file that already by its first bytes is not what its name says."""
    # First: the length before the brace may have any bytes, those of a pickle too.
    is_safetensors = start[8:9] == b"{"
    is_pickle = start.startswith((_ZIP_START, b"\x80")) and not is_safetensors
    stem = printable(path.stem)
    if path.suffix.lower() == ".safetensors":
        if is_pickle:
            fail(path, f"is a PyTorch file, not safetensors: name it {stem}.pth", sha256=sha256)
        return
    if is_safetensors:
        fail(path, f"is a safetensors file: name it {stem}.safetensors", sha256=sha256)
    if not is_pickle:
        if re.match(rb"\x08[\x01-\x1f][\x12\x1a:B]", start):
            fail(path, f"is an ONNX file: name it {stem}.onnx", sha256=sha256)
        looks = start.lstrip()[:64].lower()
        page = looks.startswith((b"<!doctype", b"<html", b"<?xml"))
        what = "is a web page, not weights" if page else "is not a PyTorch checkpoint"
        fail(path, f"{what}; download it again", sha256=sha256)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        fail(path, f"cannot be read: {printable(error.strerror or error)}")
    return digest.hexdigest()


def _read_safetensors(path: Path, sha256: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that own their memory, and the metadata."""
    with path.open("rb") as file:
        head = file.read(8)
    header_bytes = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    # The library allows headers of 100 MB; parsing those takes minutes and gigabytes.
    if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, path.stat().st_size - 8):
        fail(path, "is no safetensors file, or is cut short; download it again", sha256=sha256)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            if len(keys) > MAX_TENSORS:
                fail(path, f"holds {len(keys)} tensors, which no known network does", sha256=sha256)
            return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except CheckpointError:
        raise
    except Exception as error:  # SafetensorError and what the bindings let through
        problem = f"is a damaged safetensors file ({_in_words(error)}); download it again"
    fail(path, problem, sha256=sha256)


def _check_zip(path: Path, sha256: str) -> dict[str, int] | None:
    """Check the container of a ``.pth``: records, sizes, checksums, no code.

    Returns the size in bytes of every storage record when all records are stored as they are, so
    that the file may be mapped; None when some are deflated. torch ignores the CRCs, so a flipped
    bit would load silently: here they are compared.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            problem = _records_problem(records, path.stat().st_size)
            if problem is None:
                for record in records:
                    with archive.open(record) as file:
                        while file.read(_CHUNK_BYTES):
                            pass
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, struct.error, …
        problem = f"is a damaged zip archive ({_in_words(error)}); download it again"
        records = []
    if any(_EXECUTABLE_RECORD.search(record.filename) for record in records):
        problem = "holds code (TorchScript or an exported program); export its state dict instead"
        fail(path, problem, sha256=sha256, kind=UnsafeCheckpointError)
    if problem is not None:
        fail(path, problem, sha256=sha256)
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return None
    return {record.filename: record.file_size for record in records}


def _records_problem(records: list[zipfile.ZipInfo], size_bytes: int) -> str | None:
    """What is wrong with the list of records, as a clause; None when it may be read."""
    names = [record.filename for record in records]
    if len(names) > _MAX_RECORDS or len(set(names)) != len(names):
        return "is no checkpoint: its records are too many, or some appear twice"
    if any(name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) for name in names):
        return "is no checkpoint: a record points outside the archive"
    if any(record.flag_bits & 0x1 for record in records):
        return "is an encrypted zip archive; save it without a password"
    if not any(name.endswith("/data.pkl") for name in names):
        return "is a zip archive, but no PyTorch checkpoint; unpack it first"
    if any(r.file_size > _MAX_HEADER_BYTES for r in records if r.filename.endswith("/data.pkl")):
        return f"has over {_MAX_HEADER_BYTES >> 20} MiB beside its tensors, as no known network has"
    total_bytes = sum(record.file_size for record in records)
    if total_bytes > min(MAX_FILE_BYTES, _MAX_INFLATION * size_bytes):
        return f"would unpack to {total_bytes >> 20} MiB, which no known network needs"
    return None


def _read_pickle(path: Path, sha256: str, mapped: dict[str, int] | None) -> Any:
    """torch's restricted unpickler, every way it can fail turned into one line."""
    try:
        _check_pickles(path)
        # A warning about what a stranger's file holds is of no use to anybody.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=mapped is not None
            )
        if mapped is not None:
            _check_claims(content, frozenset(mapped.values()))
    except pickle.UnpicklingError as error:
        found = _FORBIDDEN.search(str(error))
        what = f"holds more than tensors ({found.group(1)})" if found else "is damaged or unsafe"
        problem = f"{what}; nothing in it was run: get its state dict, best as .safetensors"
        kind = UnsafeCheckpointError if found else CheckpointError
    except Exception as error:  # RuntimeError, EOFError, IndexError, KeyError, MemoryError, …
        problem = f"is damaged or no checkpoint ({_in_words(error)}); download it again"
        kind = CheckpointError
    else:
        return content
    fail(path, problem, sha256=sha256, kind=kind)


def _in_words(error: Exception) -> str:
    """What a library said, first line only; some (EOFError, MemoryError) say nothing at all."""
    return printable(str(error).strip().partition("\n")[0]) or "its content makes no sense"


def _check_pickles(path: Path) -> None:
    """Refuse pickles that would overflow the native stack: Python hashes a tuple by recursion.

    A million nested tuples are a file of one megabyte; as a key of a dict, or in a set, they end
    the process. Raises what torch.load might, or ValueError.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            # By torch's own reader: another one might find another record under that name.
            record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
            _check_nesting(io.BytesIO(record))
            return
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _check_nesting(file)


def _check_nesting(file: IO[bytes]) -> None:
    """Follow one pickle's instructions, keeping of each value only how deep its tuples nest."""
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number > _MAX_INSTRUCTIONS:
            raise ValueError("it holds more values than any known network")
        name = opcode.name
        if name == "MARK":
            marks.append(len(depths))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = depths[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = depths[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            depths.append(memo[argument])
        elif name == "DUP":
            depths.append(depths[-1])
        else:
            before = opcode.stack_before
            start = len(depths) - len(before)
            if pickletools.markobject in before:
                start = marks.pop() - before.index(pickletools.markobject)
            if start < 0:
                raise ValueError("it takes more than it has")
            depth = max(depths[start:], default=0) + (name in _TUPLES)
            if depth > _MAX_TUPLE_DEPTH:
                raise ValueError(f"its tuples nest deeper than {_MAX_TUPLE_DEPTH}")
            depths[start:] = [depth] * len(opcode.stack_after)


def _check_claims(content: object, record_sizes: frozenset[int]) -> None:
    """Refuse storages whose claimed size is no record's: they would show foreign bytes.

    A mapped storage is cut out of the file by the pickle's own word; unmapped ones torch checks.
    Methods are the classes' own: a pickle can set attributes that hide them. Raises ValueError.
    """
    pending: list[Any] = [content]
    seen = 0
    while pending:
        item = pending.pop()
        seen += 1
        if seen > 10 * MAX_TENSORS:
            raise ValueError("it holds more values than any known network")
        if isinstance(item, dict):
            pending.extend(dict.values(item))
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)
        elif isinstance(item, Tensor) and item.layout == torch.strided and not item.is_nested:
            size_bytes = Tensor.untyped_storage(item).nbytes()
            if size_bytes and size_bytes not in record_sizes:
                raise ValueError("it claims more bytes for a tensor than it holds")
