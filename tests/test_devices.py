"""Which device and number format is picked, what a full memory looks like, how much is left."""

from __future__ import annotations

import contextlib
import gc
import weakref
from pathlib import Path

import pytest
import torch

from waifu4x import devices, memory
from waifu4x.errors import DeviceError, UsageError

CPU = torch.device("cpu")


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False, bf16: bool = True
) -> None:
    """Pretend to have these accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "wish", "found"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, True, "mps", "mps"),
        (2, True, "cpu", "cpu"),
    ],
)
def test_picking(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, wish: str, found: str
) -> None:
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert str(devices.pick(wish)) == found


@pytest.mark.parametrize("wish", ["cuda", "cuda:0", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_an_error_and_not_the_cpu(
    monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    machine(monkeypatch)
    with pytest.raises(DeviceError, match=r"here: .*try --device cpu"):
        devices.pick(wish)
    machine(monkeypatch, cuda=2)
    with pytest.raises(DeviceError, match=r"no cuda:2 here: 2 CUDA devices found"):
        devices.pick("cuda:2")


@pytest.mark.parametrize(
    "wish", ["", "gpu", "CPU", "cpu:0", "mps:0", "cuda:-1", "cuda:x", "cuda:²", "xpu", "meta"]
)
def test_devices_of_nonsense(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    machine(monkeypatch, cuda=2, mps=True)
    with pytest.raises(UsageError, match=r"use auto, cpu, mps, cuda or cuda:N"):
        devices.pick(wish)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "found"),
    [
        (True, True, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_automatic_precision_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, found: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert devices.pick_dtype("auto", CPU) == found


def test_automatic_precision_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, found in ((True, torch.bfloat16), (False, torch.float16)):
        machine(monkeypatch, cuda=1, bf16=bf16)
        assert devices.pick_dtype("auto", torch.device("cuda", 0)) == found
    assert devices.pick_dtype("auto", torch.device("mps")) == torch.float32


def test_explicit_precisions() -> None:
    assert devices.pick_dtype("fp32", CPU) == torch.float32
    assert devices.pick_dtype("bf16", CPU) == torch.bfloat16
    assert devices.pick_dtype("fp16", torch.device("mps")) == torch.float16
    with pytest.raises(UsageError, match="fp16 does not pay on a CPU"):
        devices.pick_dtype("fp16", CPU)
    with pytest.raises(UsageError, match="no precision 'half': use auto, fp32, fp16, bf16"):
        devices.pick_dtype("half", CPU)
    for name in ("fp32", "fp16", "bf16"):
        dtype = devices.pick_dtype(name, torch.device("mps"))
        assert devices.precision_name(dtype) == name


def test_autocast_is_off_for_float32_and_ends_with_the_block() -> None:
    assert isinstance(devices.autocast(CPU, torch.float32), contextlib.nullcontext)
    with devices.autocast(CPU, torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_a_real_full_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert devices.is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as host:
        bytearray(2**60)
    assert devices.is_out_of_memory(host.value)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried …"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("MPS backend out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_a_full_memory_is_and_is_not(error: BaseException, full: bool) -> None:
    assert devices.is_out_of_memory(error) is full


def test_releasing_memory_collects_what_cycles_hold() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    gc.disable()
    try:
        held = weakref.ref(Cycle())
        assert held() is not None
        devices.release_memory(CPU)
        assert held() is None
    finally:
        gc.enable()


def test_what_this_machine_has() -> None:
    found = devices.available()
    assert found[-1].name == "cpu"
    assert found[0].name == str(devices.pick("auto"))
    for info in found:
        assert info.description
        assert info.free_bytes > 0
        assert info.precision in devices.PRECISIONS
    assert devices.free_bytes(CPU) > 10 * 2**20
    assert "thread" in devices.describe(CPU)


# -- main memory -----------------------------------------------------------------------------------


def pretend_files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    def read_text(self: Path) -> str:
        if self.as_posix() not in contents:
            raise FileNotFoundError(self)
        return contents[self.as_posix()]

    monkeypatch.setattr(Path, "read_text", read_text)


MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:    8000 kB\n"
LIMITED = {
    "/proc/meminfo": MEMINFO,
    "/sys/fs/cgroup/memory.max": "4000000\n",
    "/sys/fs/cgroup/memory.current": "3000000\n",
    "/sys/fs/cgroup/memory.stat": "anon 900000\ninactive_file 2000000\nactive_file 100000\n",
}


@pytest.mark.parametrize(
    ("contents", "free_bytes"),
    [
        ({"/proc/meminfo": MEMINFO}, 8000 * 1024),
        ({**LIMITED, "/sys/fs/cgroup/memory.max": "max\n"}, 8000 * 1024),
        # What the container used, less the files it has merely read.
        (LIMITED, 3_000_000),
        ({**LIMITED, "/sys/fs/cgroup/memory.stat": "anon 5\n"}, 1_000_000),
        ({**LIMITED, "/sys/fs/cgroup/memory.max": "1000"}, 0),
        ({**LIMITED, "/sys/fs/cgroup/memory.max": "400000000000"}, 8000 * 1024),
    ],
)
def test_free_memory_on_linux(
    monkeypatch: pytest.MonkeyPatch, contents: dict[str, str], free_bytes: int
) -> None:
    pretend_files(monkeypatch, contents)
    assert memory.free_host_bytes() == free_bytes


def test_free_memory_elsewhere_is_half_of_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_files(monkeypatch, {})
    assert memory.free_host_bytes() == memory._installed_bytes() // 2
    assert memory.free_host_bytes() > 2**28
