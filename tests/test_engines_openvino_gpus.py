"""Intel's GPUs, by a stand-in for OpenVINO that computes on the CPU: there is none to test on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from toys import random_model

from waifu4x import devices, memory
from waifu4x.engines import choice, openvino, openvino_compiled, openvino_gpus, openvino_quietly
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, UsageError
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.tiled import TiledRunner

if not devices.has_openvino():
    pytest.skip("needs the extra openvino", allow_module_level=True)

FloatArray = npt.NDArray[np.float32]
CPU = torch.device("cpu")
SMALL = SRVGGNetCompactConfig(channels=8, convs=1, scale=2)
GIB = 2**30


class Compiled:
    """What OpenVINO compiled, and what the GPU says of it."""

    def __init__(self, compiled: Any, precision: str, gain: float) -> None:
        self._compiled = compiled
        self._precision = precision
        self._gain = gain

    def __call__(self, window: FloatArray) -> list[FloatArray]:
        return [self._compiled(window)[0] * np.float32(self._gain)]

    def create_infer_request(self) -> Any:
        return self._compiled.create_infer_request()

    def get_property(self, name: str) -> Any:
        return getattr(openvino_quietly.load().Type, self._precision)


class Core:
    """An integrated GPU and one of its own."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.available_devices = ["CPU", "GPU.0", "GPU.1", "NPU"]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.gain = 1.0
        self.precisions = {"f16": "f16", "f32": "f32"}

    def get_property(self, place: str, name: str) -> Any:
        return {
            ("GPU.0", "DEVICE_TYPE"): "Type.INTEGRATED",
            ("GPU.1", "DEVICE_TYPE"): "Type.DISCRETE",
            ("GPU.0", "GPU_DEVICE_TOTAL_MEM_SIZE"): 30 * GIB,
            ("GPU.1", "GPU_DEVICE_TOTAL_MEM_SIZE"): 16 * GIB,
            ("GPU.0", "FULL_DEVICE_NAME"): "Intel(R) Graphics (iGPU)",
            ("GPU.1", "FULL_DEVICE_NAME"): "Intel(R) Arc(TM) A770 Graphics (dGPU)",
        }.get((place, name)) or self._real.get_property(place, name)

    def read_model(self, *arguments: Any) -> Any:
        return self._real.read_model(*arguments)

    def compile_model(self, model: Any, place: str, settings: dict[str, Any]) -> Any:
        self.asked.append((place, settings))
        if place == "CPU":
            return self._real.compile_model(model, place, settings)
        here = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = self._real.compile_model(model, "CPU", here)
        precision = self.precisions[settings["INFERENCE_PRECISION_HINT"]]
        return Compiled(compiled, precision, self.gain)


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Core]:
    """A machine with two Intel GPUs and nothing else."""
    stand_in = Core(openvino_quietly.core())
    monkeypatch.delenv(devices.ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(openvino_quietly, "core", lambda: stand_in)
    monkeypatch.setattr(openvino, "runtime", lambda: stand_in)
    monkeypatch.setattr(openvino_compiled, "runtime", lambda: stand_in)
    monkeypatch.setattr(openvino_gpus, "may_be_here", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    openvino_gpus.found.cache_clear()
    yield stand_in
    openvino_gpus.found.cache_clear()


def noise(height: int, width: int) -> FloatArray:
    rng = np.random.default_rng(height * width)
    return rng.random((1, height, width, 3), dtype=np.float32)


def by_torch(batch: FloatArray) -> FloatArray:
    return TorchEngine(random_model(SMALL).network, device=CPU, dtype=torch.float32).run(batch)


# -- which ones there are --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "numbers"),
    [
        (["CPU"], ()),
        (["CPU", "GPU"], (0,)),
        (["CPU", "GPU.0", "GPU.1", "NPU"], (1, 0)),  # the integrated one last
        (["GPU.nonsense"], ()),
    ],
)
def test_what_openvino_lists(core: Core, listed: list[str], numbers: tuple[int, ...]) -> None:
    core.available_devices = listed
    assert openvino_gpus.found() == numbers
    assert devices.find_xpus() == [torch.device("xpu", number) for number in numbers]


def test_where_none_can_be_nobody_asks_openvino(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise AssertionError("OpenVINO was loaded")

    monkeypatch.undo()
    monkeypatch.setattr(openvino_quietly, "core", fail)
    monkeypatch.setattr(openvino_gpus, "_WINDOWS_BELOW", tmp_path / "dxg")
    nodes, facts = tmp_path / "dri", tmp_path / "drm"
    monkeypatch.setattr(openvino_gpus, "_NODES", nodes)
    monkeypatch.setattr(openvino_gpus, "_FACTS", facts)
    for platform in ("linux", "darwin"):
        monkeypatch.setattr("sys.platform", platform)
        assert devices.find_xpus() == []
    monkeypatch.setattr("sys.platform", "win32")
    assert openvino_gpus.may_be_here()

    monkeypatch.setattr("sys.platform", "linux")
    for name in ("renderD128", "renderD129"):
        (facts / name / "device").mkdir(parents=True)
        nodes.mkdir(exist_ok=True)
        (nodes / name).touch()
    (facts / "renderD128" / "device" / "vendor").write_text("0x1002\n")  # AMD
    vendor = facts / "renderD129" / "device" / "vendor"
    vendor.write_text("0x10de\n")
    assert not openvino_gpus.may_be_here()
    vendor.write_text("0x8086\n")
    assert openvino_gpus.may_be_here()
    vendor.unlink()  # it is not said who made it
    assert openvino_gpus.may_be_here()


def test_an_openvino_that_fails_lists_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no OpenCL")

    monkeypatch.setattr(openvino_quietly, "core", fail)
    assert devices.find_xpus() == []


@pytest.mark.parametrize(
    ("engine", "wish", "found"),
    [
        ("auto", "auto", "xpu:1"),
        ("openvino", "auto", "xpu:1"),
        ("auto", "xpu", "xpu:1"),
        ("openvino", "xpu:0", "xpu:0"),
        ("auto", "gpu:0", "xpu:0"),
        ("torch", "auto", "cpu"),
        ("onnxruntime", "auto", "cpu"),
        ("auto", "cpu", "cpu"),
    ],
)
def test_which_one_is_picked(engine: str, wish: str, found: str) -> None:
    assert str(choice.pick_device(engine, wish)) == found


def test_other_gpus_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choice.pick_device("auto", "auto") == torch.device("cuda", 0)
    assert choice.pick_device("openvino", "auto") == torch.device("xpu", 1)


def test_what_is_not_there_or_cannot_be(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no xpu:2 here: OpenVINO finds 2 Intel GPUs; try --dev"):
        choice.pick_device("auto", "xpu:2")
    for wish in ("xpu:", "xpu:x", "xpu:-1"):
        with pytest.raises(UsageError, match="an Intel GPU is xpu or xpu:N"):
            choice.pick_device("auto", wish)
    for engine in ("torch", "onnxruntime"):
        with pytest.raises(UsageError, match=f"Intel GPUs are OpenVINO's here, not {engine}'s"):
            choice.pick_device(engine, "xpu")
    with pytest.raises(UsageError, match=r"no device 'xpu': .*; to enlarge also xpu"):
        devices.pick("xpu")  # training is torch's
    monkeypatch.setattr(devices, "has_openvino", lambda: False)
    with pytest.raises(
        DeviceError, match=r"pip install 'waifu4x\[openvino\]', or try --device cpu"
    ):
        choice.pick_device("auto", "xpu")


def test_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 5 * GIB)
    found = devices.available()
    assert [(info.name, info.engine, info.precision, info.free_bytes) for info in found[:2]] == [
        ("xpu:1", "openvino", "fp16", 16 * GIB),
        ("xpu:0", "openvino", "fp16", 5 * GIB),  # the machine's memory
    ]
    assert found[0].description == "Intel(R) Arc(TM) A770 Graphics (dGPU)"
    assert found[2].name == "cpu"
    monkeypatch.setenv(devices.ENGINE_VARIABLE, "torch")
    assert [info.name for info in devices.available()] == ["cpu"]


@pytest.mark.parametrize(
    ("message", "full"),
    [
        (
            "Exception from src/plugins/intel_gpu/src/runtime/engine.cpp:319:\n[GPU] Exceeded max "
            "size of memory object allocation: requested 25600122880 bytes, but max alloc size "
            "supported by device is 4294959104 bytes.",
            True,
        ),
        ("Exception from ocl_engine.cpp:1:\n[GPU] out of GPU resources", True),
        ("[GPU] clFlush, error code: -5 CL_OUT_OF_RESOURCES", True),
        ("[GPU] clFlush, error code: -5", True),
        ("[GPU] clEnqueueNDRangeKernel, error code: -4", True),
        ("[GPU] clFlush, error code: -52", False),
        ("[GPU] ProgramBuilder build failed!", False),
        ("error code: -5", False),
    ],
)
def test_what_a_full_memory_is(message: str, full: bool) -> None:
    assert devices.is_out_of_memory(RuntimeError(message)) is full


# -- what they compute -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "precision", "hint"), [("auto", "fp16", "f16"), ("fp32", "fp32", "f32")]
)
def test_the_network_is_compiled_for_the_gpu(
    core: Core, tmp_path: Path, wish: str, precision: str, hint: str
) -> None:
    runner = TiledRunner(
        random_model(SMALL),
        device="xpu:0",
        precision=wish,
        engine="auto",
        engines_folder=tmp_path,
    )
    assert (runner.engine, runner.precision, str(runner.device)) == ("openvino", precision, "xpu:0")
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    assert core.asked == [("GPU.0", settings)]  # and nothing else
    image = noise(20, 31)
    expected = np.clip(by_torch(image)[0], 0, 1)
    np.testing.assert_allclose(runner.run(image[0]), expected, atol=1e-5)
    assert runner.notes == []
    assert list(tmp_path.glob("*.compiled")) == []  # it would depend on the driver


def test_what_is_not_finite_is_computed_by_torch_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = TiledRunner(random_model(SMALL), device="auto", precision="auto", engine="auto")
    nothing = np.full((1, 18, 24, 3), np.inf, dtype=np.float32)
    monkeypatch.setattr(OpenVINOEngine, "run", lambda engine, batch: nothing.copy())
    image = noise(9, 12)
    np.testing.assert_array_equal(runner.run(image[0]), np.clip(by_torch(image)[0], 0, 1))
    assert runner.notes == ["fp16 gave NaN or infinity: such tiles were computed again in fp32"]


@pytest.mark.parametrize("fault", ["gives something else", "has no fp16"])
def test_one_that_cannot_is_an_error_and_for_auto_a_reason_to_take_the_cpu(
    core: Core, fault: str
) -> None:
    if fault == "has no fp16":
        core.precisions["f16"] = "f32"
        reason = "OpenVINO has no fp16 on GPU.1"
    else:
        core.gain = 0.5
        reason = "OpenVINO does not give what torch gives"
    network = random_model(SMALL).network
    with pytest.raises(DeviceError, match=f"^{reason}; try --device cpu$"):
        choice.open_engine(network, device="xpu")
    opened = choice.open_engine(network, device="auto")
    assert opened.devices == (CPU,)
    assert opened.engine.name == "openvino"
    assert opened.note == f"the CPU ran the network: {reason}"
    image = noise(12, 9)
    assert np.abs(opened.engine.run(image) - by_torch(image)).max() <= 0.05  # perhaps in bf16


def test_precisions_that_it_has_not() -> None:
    network = random_model(SMALL).network
    with pytest.raises(UsageError, match="Intel GPUs compute in fp16 or fp32: leave out"):
        choice.open_engine(network, device="xpu", precision="bf16")
    with pytest.raises(UsageError, match="int8 runs on the CPU, not on xpu:1: use --device cpu"):
        choice.open_engine(network, device="xpu", precision="int8")
    with pytest.raises(UsageError, match="--compile makes CUDA faster, and not xpu"):
        choice.open_engine(network, device="xpu", compiled=True)
    # Nobody chose the GPU, and somebody bf16.
    assert choice.open_engine(network, device="auto", precision="bf16").devices == (CPU,)
