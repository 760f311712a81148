"""Hostile and damaged weights through the command line: one line, and nothing runs."""

from __future__ import annotations

import collections
import functools
import io
import json
import marshal
import os
import random
import re
import runpy
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from waifu4x import weights
from waifu4x.cli.app import app
from waifu4x.errors import CheckpointError
from waifu4x.model_files.checkpoints import load
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig

ROOT = Path(__file__).parents[1]
# Names of exceptions: whoever reads them learns nothing.
RAW = re.compile(
    "Index|EOF|Runtime|Safetensor|Key|Type|Unpickling|BadZip|Memory|Recursion|Value".replace(
        "|", "Error|"
    )
    + "Error|BadZipFile|Traceback"
)


def small_net() -> SRVGGNetCompact:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SRVGGNetCompact(SRVGGNetCompactConfig(convs=1, channels=4))


def good() -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in small_net().state_dict().items()}


def saved(path: Path, content: Any, *, legacy: bool = False) -> Path:
    with warnings.catch_warnings(action="ignore"):  # torch about its own prototypes
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def rezipped(
    path: Path,
    *,
    pickled: bytes | None = None,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A good checkpoint at `path` whose content is the pickle `pickled`, with `more` records."""
    with zipfile.ZipFile(saved(path, good())) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    stem = next(iter(records)).partition("/")[0]
    if pickled is not None:
        records[f"{stem}/data.pkl"] = pickled
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {**records, **(more or {})}.items():
            archive.writestr(name, content)
    return path


def with_legacy_pickle(path: Path, pickled: bytes) -> Path:
    """The old format is five pickles in a row; the fourth is the content."""
    head = saved(path, good(), legacy=True).read_bytes()
    path.write_bytes(head[: head.index(b"\x80\x02", head.index(b"little_endian"))] + pickled)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def edited(path: Path, change: Callable[[bytearray], Any]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    return written(path, bytes(content))


# -- what would run --------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def called(module: str, name: str, *texts: str) -> bytes:
    """A hand-written pickle that calls module.name with these texts."""
    return b"\x80\x02" + _call(module, name, *map(_text, texts)) + b"."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def code_of(canary: Path) -> bytes:
    return marshal.dumps(compile(f"open({str(canary)!r}, 'w')", "m", "exec"))


def _bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    """The name of the way, and a pickle that goes it."""
    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    imported = _call("builtins", "__import__", _text("os"))
    system = b"cbuiltins\ngetattr\n(" + imported + _text("system") + b"tR"
    code = _call("marshal", "loads", _bytes(code_of(canary)))
    empty = b"}"
    return {
        "os.system": called("os", "system", touch),
        "posix.system": called("posix", "system", touch),
        "nt.system": called("nt", "system", touch),
        "subprocess": called("subprocess", "getoutput", touch),
        "builtins.eval": called("builtins", "eval", python),
        "builtins.exec": called("builtins", "exec", python),
        "python 2 eval": called("__builtin__", "eval", python),
        "getattr chain": b"\x80\x02" + system + b"(" + _text(touch) + b"tR.",
        "dotted name": b"\x80\x04" + _short("os") + _short("path.os.system") + b"\x93("
        b"" + _text(touch) + b"tR.",
        "runpy": called("runpy", "run_path", str(canary.with_name("script.py"))),
        "functools.partial": b"\x80\x02cfunctools\npartial\n(cos\nsystem\n"
        b"" + _text(touch) + b"tR)R.",
        # What cloudpickle writes for a function: its skeleton, made of code …
        "cloudpickle": b"\x80\x02ccloudpickle.cloudpickle\n_make_function\n("
        b"" + code + empty + b"NNNtR)R.",
        # … and the same without the library.
        "code object": b"\x80\x02ctypes\nFunctionType\n(" + code + b"}tR)R.",
        "torch.load": called("torch", "load", str(canary)),
        "torch.hub": called("torch.hub", "load", str(canary.parent), "m"),
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0a\x00\x00\x00__reduce__"
        b"cos\nsystem\nsb.",
        "inst": b"\x80\x02(" + _text(touch) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + _text(touch) + b"o.",
        "protocol 0": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "in a state dict": b"\x80\x02}" + _text("a") + called("os", "system", touch)[2:-1] + b"s.",
    }


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def hostile_objects(canary: Path) -> dict[str, Any]:
    """The same from real objects, so that torch's own writer makes the file."""
    touch = f"touch {canary}"
    return {
        "numpy object": np.array([Call(os.system, touch)], dtype=object),
        "partial": functools.partial(os.system, touch),
        "a function": runpy.run_path,
        "a module": nn.Linear(2, 2),
        "in a wrapper": {"params": {"a.weight": torch.ones(1), "b": [Call(eval, touch)]}},
    }


# -- what is broken, or lies -----------------------------------------------------------------------


def tensors(path: Path, header: Any, data: bytes = b"\0" * 12) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(path, struct.pack("<Q", len(text)) + text + data)


def entry(start: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def torchscript(path: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # deprecated, and all over the web
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 4, 4)), str(path))
    return path


def encrypted(path: Path) -> Path:
    def mark(content: bytearray) -> None:
        for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            for found in re.finditer(re.escape(magic), bytes(content)):
                content[found.start() + at] |= 1

    return edited(rezipped(path), mark)


def lying_bomb(path: Path) -> Path:
    """The content says that it unpacks to 100 bytes, with the checksum of those; it is 20 MB."""
    large = b"\x80\x02}" + bytes(20 << 20)
    rezipped(path, pickled=large, compression=zipfile.ZIP_DEFLATED)

    def lie(content: bytearray) -> None:
        for old, new in ((len(large), 100), (zlib.crc32(large), zlib.crc32(large[:100]))):
            truth = struct.pack("<I", old)
            assert content.count(truth) == 2
            content[:] = bytes(content).replace(truth, struct.pack("<I", new))

    return edited(path, lie)


def ragged() -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype, says torch
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def claim(path: Path, *, storage: int, shape: int | None = None, legacy: bool = False) -> Path:
    """Eight floats that are said to be `storage` floats, viewed as `shape` of them."""
    saved(path, {"a": torch.arange(8.0)}, legacy=legacy)
    eight = b"K\x08"
    with_claim = [b"\x8a\x08" + struct.pack("<q", n) for n in (storage, shape or 8)]

    def lie(content: bytes) -> bytes:
        assert content.count(eight) == 2
        first, _, rest = content.partition(eight)
        return first + with_claim[0] + rest.replace(eight, with_claim[1])

    if legacy:
        content = path.read_bytes()
        start = content.index(b"\x80\x02", content.index(b"little_endian"))
        end = content.index(b".\x80\x02", start)
        return written(path, content[:start] + lie(content[start:end]) + content[end:])
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, lie(content) if name.endswith("data.pkl") else content)
    return path


def hiding(hidden: str) -> dict[str, Any]:
    """A state dict whose objects carry attributes that hide their methods, and one NaN."""
    state: Any = collections.OrderedDict(good())
    parameter: Any = nn.Parameter(torch.full((4,), float("nan")))
    for method in ("numel", "detach", "to", "untyped_storage"):
        parameter.__dict__[method] = 5
    state["body.0.bias"] = parameter
    state.__dict__[hidden] = 5
    return state


def nested_key(depth: int) -> bytes:
    """A dict with a key of nested tuples: Python hashes it by native recursion."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def replaced(key: str, tensor: Any) -> dict[str, Any]:
    return {**good(), key: tensor}


def tar(path: Path, name: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


BROKEN: dict[str, Callable[[Path], Path]] = {
    # containers
    "legacy tar": lambda d: tar(d / "m.pth", "storages"),
    "tar that begins like a pickle": lambda d: tar(d / "m.pth", "\x80\x02storages"),
    "TorchScript": lambda d: torchscript(d / "m.pth"),
    "TorchScript by name": lambda d: torchscript(d / "m.pt"),
    "zip ../": lambda d: rezipped(d / "m.pth", more={"../../escape": b"x"}),
    "zip \\..\\": lambda d: rezipped(d / "m.pth", more={"a\\..\\..\\escape": b"x"}),
    "zip absolute": lambda d: rezipped(d / "m.pth", more={"/tmp/escape": b"x"}),
    "zip flag 0x1": lambda d: encrypted(d / "m.pth"),
    "zip bomb": lambda d: rezipped(
        d / "m.pth", more={"m/data/9": bytes(30 << 20)}, compression=zipfile.ZIP_DEFLATED
    ),
    "zip bomb that lies": lambda d: lying_bomb(d / "m.pth"),
    "pickle of 9 MiB": lambda d: rezipped(
        d / "m.pth", pickled=b"\x80\x02}" + _text("a" * (9 << 20)) + b"K\x01s."
    ),
    # claims
    "oversize storage": lambda d: claim(d / "m.pth", storage=2000),
    "oversize storage, and shape": lambda d: claim(d / "m.pth", storage=2000, shape=2000),
    "a storage of 4 TB": lambda d: claim(d / "m.pth", storage=1 << 40, shape=1 << 40),
    "shape beyond the storage": lambda d: claim(d / "m.pth", storage=8, shape=1 << 20),
    "negative shape": lambda d: claim(d / "m.pth", storage=8, shape=-8),
    "legacy oversize storage": lambda d: claim(d / "m.pth", storage=1 << 31, legacy=True),
    "legacy storage of 4 TB": lambda d: claim(d / "m.pth", storage=1 << 40, legacy=True),
    "stride 0": lambda d: saved(
        d / "m.pth", replaced("body.0.weight", torch.ones(1).expand(40_000, 40_000, 3, 3))
    ),
    # content
    "NaN": lambda d: saved(d / "m.pth", replaced("body.0.bias", torch.full((4,), float("nan")))),
    "infinity": lambda d: saved(d / "m.pth", replaced("body.0.bias", torch.full((4,), np.inf))),
    "int": lambda d: saved(d / "m.pth", replaced("body.0.bias", torch.ones(4).int())),
    "complex": lambda d: saved(
        d / "m.pth", replaced("body.0.bias", torch.ones(4, dtype=torch.complex64))
    ),
    "float8": lambda d: saved(
        d / "m.pth", replaced("body.0.bias", torch.ones(4).to(torch.float8_e5m2))
    ),
    "sparse": lambda d: saved(d / "m.pth", replaced("body.0.bias", torch.ones(4).to_sparse())),
    "ragged": lambda d: saved(d / "m.pth", replaced("body.0.bias", ragged())),
    "missing keys": lambda d: saved(
        d / "m.pth", {k: t for k, t in good().items() if k != "body.2.bias"}
    ),
    "extra keys": lambda d: saved(d / "m.pth", replaced("body.9.weight", torch.ones(3))),
    "wrong shape": lambda d: saved(d / "m.pth", replaced("body.0.bias", torch.ones(5))),
    "key of a million nested tuples": lambda d: rezipped(
        d / "m.pth", pickled=nested_key(1_000_000)
    ),
    "key of 60 nested tuples": lambda d: rezipped(d / "m.pth", pickled=nested_key(60)),
    "legacy key of a million nested tuples": lambda d: with_legacy_pickle(
        d / "m.pth", nested_key(1_000_000)
    ),
    "set of a million nested tuples": lambda d: rezipped(
        d / "m.pth", pickled=b"\x80\x02cbuiltins\nset\n])" + b"\x85" * 1_000_000 + b"a\x85R."
    ),
    "a million nested lists": lambda d: rezipped(
        d / "m.pth", pickled=b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b"."
    ),
    "hidden get": lambda d: saved(d / "m.pth", hiding("get")),
    "hidden items": lambda d: saved(d / "m.pth", {"params": hiding("values")}),
    "hidden values": lambda d: saved(d / "m.pth", hiding("values"), legacy=True),
    # no checkpoint at all
    "HTML": lambda d: written(d / "m.pth", b"<!DOCTYPE html><html>404: Not Found</html>"),
    "HTML as safetensors": lambda d: written(d / "m.safetensors", b"<html>log in</html>" * 9),
    "empty": lambda d: written(d / "m.pth", b""),
    "empty safetensors": lambda d: written(d / "m.safetensors", b""),
    "random": lambda d: written(d / "m.pth", random.Random(0).randbytes(5000)),
    "random pickle": lambda d: written(d / "m.pth", b"\x80\x02" + random.Random(1).randbytes(500)),
    "no stop": lambda d: rezipped(d / "m.pth", pickled=b"\x80\x02}"),
    "stack underflow": lambda d: rezipped(d / "m.pth", pickled=b"\x80\x02tR."),
    "truncated": lambda d: edited(
        saved(d / "m.pth", good()), lambda c: c.__delitem__(slice(-40, None))
    ),
    "truncated legacy": lambda d: edited(
        saved(d / "m.pth", good(), legacy=True), lambda c: c.__delitem__(slice(-40, None))
    ),
    "bit flip": lambda d: edited(saved(d / "m.pth", good()), flip_a_weight),
    # safetensors
    "huge header": lambda d: written(d / "m.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
    "header of 90 MB": lambda d: tensors(d / "m.safetensors", b"{" + b" " * (90 << 20) + b"}"),
    "overlapping offsets": lambda d: tensors(
        d / "m.safetensors", {"a": entry(0, 8, 2), "b": entry(4, 12, 2)}
    ),
    "offsets beyond the end": lambda d: tensors(d / "m.safetensors", {"a": entry(0, 800, 200)}),
    "shape unlike offsets": lambda d: tensors(d / "m.safetensors", {"a": entry(0, 12, 4)}),
    "overflowing shape": lambda d: tensors(
        d / "m.safetensors", {"a": entry(0, 12, 1 << 62, 1 << 62)}
    ),
    "truncated safetensors": lambda d: edited(
        safetensors(d / "m.safetensors"), lambda c: c.__delitem__(slice(-8, None))
    ),
}


def safetensors(path: Path) -> Path:
    save_file(good(), path)
    return path


def flip_a_weight(content: bytearray) -> None:
    """One bit of one weight: nothing is malformed, only wrong."""
    value = good()["body.0.weight"].numpy().tobytes()[:16]
    content[content.index(value) + 3] ^= 0x08


def hostile_files() -> dict[str, Callable[[Path], Path]]:
    """Every file of the battery; each is made in a folder where `canary` must not appear."""
    made: dict[str, Callable[[Path], Path]] = {}
    nowhere = Path("canary")
    for way in hostile_pickles(nowhere):
        made[f"{way}, zip"] = lambda d, w=way: rezipped(
            d / "m.pth", pickled=hostile_pickles(d / "canary")[w]
        )
        made[f"{way}, legacy"] = lambda d, w=way: with_legacy_pickle(
            d / "m.pth", hostile_pickles(d / "canary")[w]
        )
    for thing in hostile_objects(nowhere):
        made[thing] = lambda d, t=thing: saved(d / "m.pth", hostile_objects(d / "canary")[t])
    return made


RUNS_NOTHING = hostile_files()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one small picture, and a script that would leave the canary."""
    Image.new("RGB", (9, 7), (200, 100, 50)).save(tmp_path / "x.png")
    (tmp_path / "script.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    return tmp_path


def check_refusal(line: str, file: Path) -> None:
    assert line.startswith(f"error: {file}: "), line
    assert line.isprintable()
    assert len(line) < 800
    assert not RAW.search(line), line


def check_untouched(place: Path, file: Path) -> None:
    left = {path.name for path in place.iterdir()}
    assert left == {"x.png", "script.py", file.name}


@pytest.mark.parametrize("case", [*RUNS_NOTHING, *BROKEN])
def test_one_line_and_nothing_runs(place: Path, case: str) -> None:
    file = {**RUNS_NOTHING, **BROKEN}[case](place)
    done = CliRunner().invoke(app, ["upscale", str(place / "x.png"), "-m", str(file)])
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    check_refusal(line, file)
    if case in RUNS_NOTHING:
        assert "nothing in it was run" in line or "damaged" in line, line
    check_untouched(place, file)


HEAVY: dict[str, Callable[[Path], Path]] = {
    "posix.system, zip": RUNS_NOTHING["posix.system, zip"],
    "key of a million nested tuples": BROKEN["key of a million nested tuples"],
    "legacy storages of 8 GB": lambda d: claim(d / "m.pth", storage=1 << 31, legacy=True),
    "zip bomb of 1.5 GB": lambda d: bomb(d / "m.pth", 1536 << 20),
    "pickle of 900 MB": lambda d: rezipped(
        d / "m.pth", pickled=b"\x80\x02}" + _text("a" * (900 << 20)) + b"K\x01s."
    ),
    "safetensors of 1 GB that is a header": lambda d: tensors(
        d / "m.safetensors", b"{" + b" " * (1000 << 20) + b"}"
    ),
}


def bomb(path: Path, size_bytes: int) -> Path:
    rezipped(path)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("m/data/9", "w", force_zip64=True) as record,
    ):
        for _ in range(size_bytes >> 20):
            record.write(bytes(1 << 20))
    return path


# Fetched by the system for the child alone: the largest it ever was.
MEASURED = """
import resource, subprocess, sys
program = [sys.executable, "-m", "waifu4x", *sys.argv[1:]]
done = subprocess.run(program, capture_output=True, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(done.stdout + done.stderr, end="")
"""
IN_A_PROCESS = [
    "posix.system, zip",
    "key of a million nested tuples",
    "legacy storages of 8 GB",
]


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in IN_A_PROCESS else [pytest.mark.slow])
        for case in {**HEAVY, **RUNS_NOTHING, **BROKEN}
    ],
)
def test_the_real_program_says_one_line_and_stays_small(place: Path, case: str) -> None:
    """Warnings of torch, a native crash and the memory do not show in this process."""
    file = {**RUNS_NOTHING, **BROKEN, **HEAVY}[case](place)
    arguments = ["upscale", str(place / "x.png"), "-m", str(file)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    facts, *lines = done.stdout.splitlines()
    code, peak = map(int, facts.split())
    assert code == 1, lines
    (line,) = lines
    check_refusal(line, file)
    peak_bytes = peak if sys.platform == "darwin" else peak << 10
    assert peak_bytes < 1 << 30
    check_untouched(place, file)


@pytest.mark.parametrize("command", [["upscale", "x.png", "-m"], ["models", "add"]], ids=" ".join)
def test_a_file_too_large_is_not_even_hashed(
    place: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 GB of nothing would take a minute to hash, for no use."""
    monkeypatch.chdir(place)
    huge = place / "huge.pth"
    with huge.open("wb") as file:
        file.truncate(64 << 30)
    monkeypatch.setattr(weights, "_sha256_of", lambda path: pytest.fail("it was hashed"))
    done = CliRunner().invoke(app, [*command, str(huge)])
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    check_refusal(line, huge)
    assert "is larger than 1024 MiB" in line


# -- what only a hash can tell ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_bit_flipped_in_a_file_of_known_hash_is_never_parsed(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place / ("m.safetensors" if kind == "safetensors" else "m.pth")
    if kind == "safetensors":
        safetensors(file)
    else:
        saved(file, good(), legacy=kind == "legacy")
    weights.add(file, name="mine")
    arguments = ["upscale", str(place / "x.png"), "-m", "mine", "-o", str(place / "y.png")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (place / "y.png").unlink()
    kept = weights.resolve("mine").path
    edited(kept, flip_a_weight)
    monkeypatch.setattr(
        "waifu4x.model_files.checkpoints.load", lambda *a, **k: pytest.fail("it was parsed")
    )
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {kept} is not mine: expected sha256 ")
    check_untouched(place, file)


def test_a_bit_flipped_in_a_stranger_is_noticed_only_where_the_file_has_checksums(
    tmp_path: Path,
) -> None:
    """The limit of what can be promised without a hash; a zip has checksums, the others none."""
    with pytest.raises(CheckpointError, match="CRC"):
        load(edited(saved(tmp_path / "zip.pth", good()), flip_a_weight))
    for silent in (
        saved(tmp_path / "legacy.pth", good(), legacy=True),
        safetensors(tmp_path / "m.safetensors"),
    ):
        sound = load(silent)
        damaged = load(edited(silent, flip_a_weight))
        assert damaged.sha256 != sound.sha256
        old, new = (m.network.state_dict()["body.0.weight"] for m in (sound, damaged))
        assert not torch.equal(old, new)


# -- at random -------------------------------------------------------------------------------------

OPCODES = bytes(range(0x28, 0x7E)) + bytes(range(0x80, 0x98))


def mutated(content: bytes, chooser: random.Random) -> bytes:
    """A few bytes changed, put in, taken out or copied from elsewhere, opcodes preferred."""
    damaged = bytearray(content)
    for _ in range(chooser.choice([1, 1, 1, 2, 3, 8])):
        at, way = chooser.randrange(len(damaged)), chooser.random()
        if way < 0.3:
            damaged[at] = chooser.randrange(256)
        elif way < 0.6:
            damaged[at] = chooser.choice(OPCODES)
        elif way < 0.75:
            damaged.insert(at, chooser.choice(OPCODES))
        elif way < 0.85:
            del damaged[at : at + chooser.randrange(1, 6)]
        else:
            start = chooser.randrange(len(damaged))
            damaged[at:at] = damaged[start : start + chooser.randrange(1, 40)]
    return bytes(damaged)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(s, marks=[pytest.mark.slow] if s >= 100 else []) for s in (0, *range(100, 110))],
)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_mutations_load_or_are_refused_in_words(tmp_path: Path, kind: str, seed: int) -> None:
    chooser = random.Random(f"{kind} {seed}")
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pth")
    refused = 0
    for _ in range(60 if seed < 100 else 1000):
        if kind == "zip":
            with zipfile.ZipFile(saved(path, good())) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
                rezipped(path, pickled=mutated(archive.read(name), chooser))
        elif kind == "legacy":
            content = saved(path, good(), legacy=True).read_bytes()
            written(path, mutated(content[:-1200], chooser) + content[-1200:])
        else:
            content = safetensors(path).read_bytes()
            (length,) = struct.unpack("<Q", content[:8])
            tensors(path, mutated(content[8 : 8 + length], chooser), content[8 + length :])
        try:
            load(path)
        except CheckpointError as error:
            refused += 1
            check_refusal(f"error: {error}", path)
    assert refused > 0
