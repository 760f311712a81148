"""Which device, which number format, how much memory, and is this error an out-of-memory.

torch is imported where it is asked: a command that needs none shall not wait a second for it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from waifu4x import memory
from waifu4x.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

Engine = Literal["auto", "torch", "openvino", "onnxruntime"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

ENGINE_VARIABLE = "WAIFU4X_ENGINE"
"""The environment variable that says which engine ``auto`` is."""

# OpenVINO's own words, and those of the library below it.
_OPENVINO_FULL = ("Failed to allocate", "can't alloc")
# Of its GPU plugin, as its source code has them, and OpenCL's codes; none of them was met.
_INTEL_GPU_FULL = re.compile(
    "Exceeded max size of memory|out of GPU resources|error code: -[456]\\b|"
    "CL_(OUT_OF_RESOURCES|MEM_OBJECT_ALLOCATION_FAILURE|OUT_OF_HOST_MEMORY)"
)
# Of C++ on Linux and Windows, of ONNX Runtime's own allocator (with and without a limit), of CUDA
# and of Windows, which DirectML reports.
_ONNXRUNTIME_FULL = (
    *("std::bad_alloc", "bad allocation", "Failed to allocate memory"),
    *("smaller than requested bytes", "out of memory", "ALLOC_FAILED", "8007000E"),
)

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# As torch calls them.
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def pick(wish: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        wish: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``mps``, ``cuda``, ``cuda:N``, or
            ``gpu:N``, which is ``cuda:N``, or MPS for ``gpu:0`` where there is no CUDA.

    Raises:
        UsageError: no such kind of device.
        DeviceError: that device is not in this machine.
    """
    import torch

    if wish == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if wish.startswith("gpu:"):
        # The first GPU of a Mac has another name than everyone else's.
        only_mps = torch.backends.mps.is_available() and not torch.cuda.is_available()
        wish = "mps" if wish == "gpu:0" and only_mps else wish.replace("gpu", "cuda", 1)
    kind, _, number = wish.partition(":")
    numbered = kind == "cuda" and number.isdecimal()
    if kind not in ("cpu", "mps", "cuda") or (number and not numbered):
        raise UsageError(
            f"no device {wish!r}: use auto, cpu, mps, cuda or cuda:N; to enlarge also xpu or xpu:N"
        )
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise DeviceError(f"no {wish} here: {count} CUDA devices found; try --device cpu")
        return torch.device("cuda", int(number or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no mps here: it needs an Apple GPU; try --device cpu")
    return torch.device(kind)


def pick_all(wish: str) -> tuple[torch.device, ...]:
    """The devices to compute on together: what `pick` takes, or several of CUDA's with commas.

    Raises:
        UsageError: no such kind of device, one twice, or several that are not all CUDA's.
        DeviceError: one of them is not in this machine.
    """
    picked = tuple(pick(name.strip()) for name in wish.split(","))
    if len(picked) > 1:
        if other := [device for device in picked if device.type != "cuda"]:
            raise UsageError(f"{other[0]} cannot share the work: several devices are cuda:0,cuda:1")
        if len(set(picked)) < len(picked):
            raise UsageError(f"--device {wish} names a device twice: name each once")
    return picked


def pick_xpu(wish: str) -> torch.device:
    """An Intel GPU, which OpenVINO computes on and PyTorch, as it is installed here, does not.

    Args:
        wish: ``xpu`` or ``xpu:N``; without a number the one that is likely to be the fastest.

    Raises:
        UsageError: no such kind of device.
        DeviceError: that device is not in this machine, or OpenVINO is not installed.
    """
    import torch

    from waifu4x.engines import openvino_gpus  # it loads OpenVINO when it is asked

    kind, colon, number = wish.partition(":")
    if kind != "xpu" or (colon and not number.isdecimal()):
        raise UsageError(f"no device {wish!r}: an Intel GPU is xpu or xpu:N")
    if not has_openvino():
        raise DeviceError(
            "Intel GPUs need OpenVINO: pip install 'waifu4x[openvino]', or try --device cpu"
        )
    found = openvino_gpus.found()
    if not found or (number and int(number) not in found):
        raise DeviceError(
            f"no {wish} here: OpenVINO finds {len(found)} Intel GPUs; try --device cpu"
        )
    return torch.device("xpu", int(number) if number else found[0])


def find_xpus() -> list[torch.device]:
    """The Intel GPUs of this machine, the one for ``auto`` first; none without OpenVINO."""
    from waifu4x.engines import openvino_gpus

    # Most machines have none, and should not wait for OpenVINO to say so.
    if not openvino_gpus.may_be_here() or not has_openvino():
        return []
    import torch

    return [torch.device("xpu", number) for number in openvino_gpus.found()]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: AMX or AVX512-BF16 on a CPU, Ampere or newer on CUDA.

    On other CPUs bf16 is emulated and slower than fp32.
    """
    import torch

    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def pick_dtype(wish: str, device: torch.device) -> torch.dtype:
    """The number format of the convolutions.

    ``auto`` is bf16 where it is fast, else fp16 on CUDA and Intel GPUs and fp32 on everything else.
    (fp16 on MPS is left to an explicit wish: it could not be verified there.)

    Raises:
        UsageError: no such precision; one that is none of torch's (int8); fp16 on a CPU, where it
            is slower than fp32, or bf16 on an Intel GPU, where OpenVINO has none.
    """
    import torch

    if wish == "auto":
        if has_fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type in ("cuda", "xpu") else torch.float32
    if wish == "int8":
        raise UsageError("int8 is for OpenVINO on a CPU: use --engine openvino --device cpu")
    if wish == "bf16" and device.type == "xpu":
        raise UsageError("Intel GPUs compute in fp16 or fp32: leave out --precision bf16")
    if wish not in _DTYPES:
        raise UsageError(f"no precision {wish!r}: use {', '.join(PRECISIONS)}")
    if wish == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not pay on a CPU: use --precision auto, bf16 or fp32")
    return getattr(torch, _DTYPES[wish])


def wished_engine(engine: str = "auto") -> str:
    """`engine`, or for ``auto`` what the environment says.

    Raises:
        UsageError: there is no such engine.
    """
    wish, where = engine, "engine"
    if engine == "auto" and os.environ.get(ENGINE_VARIABLE):
        wish, where = os.environ[ENGINE_VARIABLE], f"{ENGINE_VARIABLE}:"
    if wish not in ENGINES:
        raise UsageError(f"no {where} {wish!r}: use {', '.join(ENGINES)}")
    return wish


# What Linux has where there is a GPU: NVIDIA's, AMD's, one of Windows below it, Intel's or others'.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")


def may_have_accelerator() -> bool:
    """False where there is nothing but the CPU for ``auto`` to pick; torch is not asked.

    True may be wrong: whoever hears it asks torch.
    """
    return sys.platform != "linux" or any(map(os.path.exists, _GPU_FILES))


def has_openvino() -> bool:
    """Whether the package OpenVINO is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def has_nncf() -> bool:
    """Whether NNCF, which makes networks of int8 for OpenVINO, is installed; not imported."""
    return importlib.util.find_spec("nncf") is not None


def has_onnxruntime() -> bool:
    """Whether ONNX Runtime, and what reads and writes its files, is installed; not imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnx"))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run convolutions in `dtype`; nothing at all for float32."""
    import torch

    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


class _CuDNNFlags:
    """cuDNN's flags are those of the whole process: of threads that need the same ones at a time,
    the first one sets them, and the last one sets them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._set = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, *, benchmark: bool) -> Iterator[None]:
        import torch

        flags = torch.backends.cudnn.flags(
            enabled=True, benchmark=benchmark, deterministic=not benchmark, allow_tf32=False
        )
        with self._lock:
            if self._holders == 0:
                self._set.enter_context(flags)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if self._holders == 0:
                    self._set.close()


_cudnn = _CuDNNFlags()


def true_fp32(device: torch.device, *, tuned: bool = False) -> AbstractContextManager[object]:
    """Let float32 convolutions be float32: cuDNN would take TF32, with 10 bits of mantissa.

    `tuned` lets it try which of its ways is the fastest, which may be another one the next time;
    else the same input gives the same output.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return _cudnn.held(benchmark=tuned)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's memory is full, as the engines say it."""
    torch = sys.modules.get("torch")  # what was not imported raised nothing
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    message = str(error)
    if message.startswith("[ONNXRuntimeError]"):  # of a class for each kind, below Exception
        return any(says in message for says in _ONNXRUNTIME_FULL)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in message
        or "DefaultCPUAllocator: not enough memory" in message
        or "MPS backend out of memory" in message
        or ("intel_cpu" in message and any(says in message for says in _OPENVINO_FULL))
        or ("[GPU]" in message and _INTEL_GPU_FULL.search(message) is not None)
    )


def release_memory(device: torch.device) -> None:
    """Give cached blocks back to the device after an out-of-memory error."""
    gc.collect()
    if device.type == "cpu":
        return
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that can still be taken, in bytes; for the CPU the machine's.

    Of an Intel GPU it is all memory, also what others have taken: OpenVINO does not say more.
    """
    if device.type == "cpu":
        return memory.free_host_bytes()
    if device.type == "xpu":
        from waifu4x.engines import openvino_gpus

        number = device.index or 0
        all_bytes = openvino_gpus.memory_bytes(number)
        shared = openvino_gpus.is_integrated(number)
        return min(all_bytes, memory.free_host_bytes()) if shared else all_bytes
    import torch

    if device.type == "cuda":
        # What torch has reserved and does not use is free to it, though the driver calls it taken.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        left = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        # An Apple GPU takes its memory from the machine's.
        return max(0, min(left, memory.free_host_bytes()))
    return memory.free_host_bytes()


@dataclass(frozen=True)
class DeviceInfo:
    """One line of `waifu4x devices`."""

    name: str
    description: str
    free_bytes: int
    precision: str
    engine: str
    """What ``auto`` tries first there; a network that it cannot run is torch's."""


def available() -> list[DeviceInfo]:
    """Every device of this machine, the one that ``auto`` picks first.

    Raises:
        UsageError: the environment names an engine that there is not.
    """
    import torch

    wish = wished_engine()
    on_cpu = "openvino" if wish == "openvino" or (wish == "auto" and has_openvino()) else "torch"
    on_cpu = "onnxruntime" if wish == "onnxruntime" else on_cpu
    found = [*(find_xpus() if wish in ("auto", "openvino") else []), torch.device("cpu")]
    if torch.backends.mps.is_available():
        found.insert(0, torch.device("mps"))
    if torch.cuda.is_available():
        found = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] + found
    return [
        DeviceInfo(
            name=str(device),
            description=describe(device),
            free_bytes=free_bytes(device),
            precision="fp32" if engine == "onnxruntime" else precision_name(dtype),
            engine=engine,
        )
        for device in found
        for engine in [{"cpu": on_cpu, "xpu": "openvino"}.get(device.type, "torch")]
        for dtype in [pick_dtype("auto", device)]
    ]


def describe(device: torch.device) -> str:
    """The device's name and what makes it fast, for people."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    if device.type == "xpu":
        from waifu4x.engines import openvino_gpus

        return openvino_gpus.describe(device.index or 0)
    extras = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_amx_tile_supported():
        extras.append("AMX")
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}, {', '.join(extras)}"


def precision_name(dtype: torch.dtype) -> str:
    """``fp32``, ``fp16`` or ``bf16``."""
    return next(name for name, kind in _DTYPES.items() if str(dtype) == f"torch.{kind}")
