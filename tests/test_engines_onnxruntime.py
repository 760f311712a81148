"""ONNX Runtime gives what torch gives, whatever the cache, the memory or the accelerators do."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional
from toys import GRAPHLESS, random_model

from waifu4x import devices
from waifu4x.engines import choice, onnx_graph, onnx_windows, onnxruntime, openvino_cache
from waifu4x.engines.onnxruntime import ONNXRuntimeEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, NumericsError, UsageError
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks import NETWORKS
from waifu4x.networks.autoencoder import AutoencoderConfig
from waifu4x.networks.edsr import EDSRConfig
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.plksr import PLKSRConfig
from waifu4x.networks.ranksrgan import RankSRGANConfig
from waifu4x.networks.rcan import RCANConfig
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.san import SANConfig
from waifu4x.networks.span import SPANConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srfbn import SRFBNConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.tiled import TiledRunner

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FloatArray = npt.NDArray[np.float32]
CPU = torch.device("cpu")

# Every architecture, each kind of input and of tail.
CONFIGS = [
    SRCNNConfig(kernels=(9, 5, 5), channels=(8, 4)),
    VDSRConfig(depth=8, channels=6),
    SRResNetConfig(blocks=2, channels=8),
    SRResNetConfig(blocks=1, channels=8, scale=3, norm=False, middle="plain", output="tanh"),
    RRDBNetConfig(blocks=1, channels=8, growth=4),
    RRDBNetConfig(blocks=1, channels=8, growth=4, unshuffle=2),
    SRVGGNetCompactConfig(channels=8, convs=4),
    MSRResNetConfig(blocks=1, channels=8),
    MSRResNetConfig(blocks=1, channels=8, scale=3, tail="direct"),
    RankSRGANConfig(blocks=1, channels=8),
    EDSRConfig(blocks=2, channels=8),
    RCANConfig(groups=1, blocks=2, channels=8, reduction=2),
    SPANConfig(blocks=2, channels=8, tail_channels=8, pixel_range=1),
    PLKSRConfig(blocks=2, channels=8, large_kernel=5, large_channels=2),
    PLKSRConfig(blocks=1, channels=8, large_kernel=5, large_channels=2, kind="group"),
    PLKSRConfig(blocks=1, channels=8, large_kernel=5, large_channels=2, kind="layer"),
    AutoencoderConfig(channels=(8, 8, 8)),
    SRFBNConfig(channels=8, groups=2, steps=2),
    SANConfig(groups=1, blocks=1, channels=8, reduction=4, looking=2, scale=2),
]
SMALL = SRVGGNetCompactConfig(channels=8, convs=1, scale=2)


@cache
def model_of(config: Any) -> Model:
    return random_model(config)


@cache
def engine_of(config: Any) -> ONNXRuntimeEngine:
    return ONNXRuntimeEngine(model_of(config).network)


def by_torch(config: Any, batch: FloatArray) -> FloatArray:
    return TorchEngine(model_of(config).network, device=CPU, dtype=torch.float32).run(batch)


def noise(height: int, width: int, channels: int = 3, *, count: int = 1) -> FloatArray:
    rng = np.random.default_rng(height * width)
    return rng.random((count, height, width, channels), dtype=np.float32)


def difference(one: FloatArray, other: FloatArray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other).max())


# -- agreement -------------------------------------------------------------------------------------


def test_every_architecture_is_tested_here() -> None:
    kinds = {entry.config for entry in NETWORKS.values()}
    # Those of any scale are torch's alone.
    kinds = {k for k in kinds if not getattr(k, "any_scale", False)}
    assert {type(c) for c in CONFIGS} == kinds - GRAPHLESS


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_fp32_is_that_of_torch_in_every_size(config: Any) -> None:
    engine, multiple = engine_of(config), config.size_multiple
    assert (engine.name, engine.precision) == ("onnxruntime", "fp32")
    for count, height, width in ((1, 1, 1), (1, 1, 9), (3, 2, 3), (2, 33, 17)):
        batch = noise(height * multiple, width * multiple, config.channels_in, count=count)
        result = engine.run(batch)
        assert result.dtype == np.float32
        assert difference(result, by_torch(config, batch)) <= 1e-5
    assert result.std() > 0.05  # it is not agreed upon nothing


def test_turned_and_mirrored_windows() -> None:
    """Views of others' memory, in another order."""
    batch = noise(12, 20)
    for view in (np.rot90(batch, 1, axes=(1, 2)), batch[:, :, ::-1], noise(1, 6)[:, :, ::-1]):
        assert difference(engine_of(SMALL).run(view), by_torch(SMALL, view)) <= 1e-5


def run(image: FloatArray, config: Any = SMALL, **how: Any) -> FloatArray:
    how = {"precision": "fp32", "engine": "onnxruntime", **how}
    return TiledRunner(model_of(config), device="cpu", **how).run(image)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[7]], ids=str)
def test_tiled_equals_whole(config: Any) -> None:
    image = noise(60, 90)[0]
    whole = run(image, config, tile_px=4096)
    assert difference(run(image, config, tile_px=16), whole) <= 1e-5
    assert difference(run(image, config, engine="torch"), whole) <= 1e-5


def test_eightfold_is_that_of_torch() -> None:
    image = noise(20, 33)[0]
    engines = ("onnxruntime", "torch")
    results = [run(image, engine=engine, tta=True, tile_px=16) for engine in engines]
    assert difference(*results) <= 1e-5


def test_not_a_number_is_not_hidden() -> None:
    batch = noise(8, 8)
    batch[0, 4, 4, 0] = np.nan
    assert not np.isfinite(engine_of(SMALL).run(batch)).all()
    with pytest.raises(NumericsError, match="toy gives NaN or infinity in fp32"):
        run(batch[0])


# -- choice ----------------------------------------------------------------------------------------


def test_auto_is_another_engine_and_its_name_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.ENGINE_VARIABLE)
    assert TiledRunner(model_of(SMALL), device="cpu", engine="auto").engine != "onnxruntime"
    runner = TiledRunner(model_of(SMALL), device="auto", engine="onnxruntime")
    # Also where torch would take bf16.
    assert (runner.engine, runner.precision, str(runner.device)) == ("onnxruntime", "fp32", "cpu")
    runner.run(noise(9, 9)[0])
    assert runner.notes == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_there_is_one_precision(precision: str) -> None:
    with pytest.raises(UsageError, match=f"in fp32, not {precision}: use --precision fp32"):
        TiledRunner(model_of(SMALL), device="cpu", engine="onnxruntime", precision=precision)


def test_devices_says_what_the_environment_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.ENGINE_VARIABLE, "onnxruntime")
    (cpu,) = [each for each in devices.available() if each.name == "cpu"]
    assert (cpu.engine, cpu.precision) == ("onnxruntime", "fp32")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_onnxruntime", lambda: False)
    onnxruntime.runtime.cache_clear()
    with pytest.raises(DeviceError) as caught:
        run(noise(4, 4)[0])
    assert str(caught.value) == (
        "ONNX Runtime is not installed: pip install 'waifu4x[onnx]', or try --engine torch"
    )


def test_a_device_that_it_has_not_is_an_error() -> None:
    for kind, label in (("cuda", "CUDA"), ("mps", "CoreML")):
        with pytest.raises(DeviceError, match=f"no {label}: use --device cpu"):
            onnxruntime.open_best(model_of(SMALL).network, device=torch.device(kind))


class Accelerated:
    """ONNX Runtime on a machine with DirectML, which is its CPU in truth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = ""
        self.factor = 1.0
        self.real = onnxruntime.runtime()
        fake = SimpleNamespace(**vars(self.real))
        fake.get_available_providers = lambda: ["DmlExecutionProvider", "CPUExecutionProvider"]
        fake.InferenceSession = self.session
        monkeypatch.setattr(onnxruntime, "runtime", lambda: fake)

    def session(self, graph: bytes, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        made = self.real.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        if providers[0][0] != "DmlExecutionProvider":
            return made
        assert providers == [("DmlExecutionProvider", {}), "CPUExecutionProvider"]
        assert enable_fallback == 0  # it would print, and say nothing to us
        if self.error:
            raise RuntimeError(self.error)
        names = ["DmlExecutionProvider", "CPUExecutionProvider"]
        return SimpleNamespace(
            get_inputs=made.get_inputs,
            get_outputs=made.get_outputs,
            get_providers=lambda: names,
            run=lambda *args: [made.run(*args)[0] * np.float32(self.factor)],
        )


def opened(device: str = "auto") -> tuple[str, str]:
    """The label of what runs the network, and what is said."""
    network = model_of(SMALL).network
    made = choice.open_engine(network, engine="onnxruntime", device=device)
    assert isinstance(made.engine, ONNXRuntimeEngine)
    assert difference(made.engine.run(noise(9, 9)), by_torch(SMALL, noise(9, 9))) <= 1e-5
    return made.engine._provider.label, made.note


def test_an_accelerator_is_taken_where_no_device_was_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Accelerated(monkeypatch)
    assert opened("cpu") == ("the CPU", "")
    assert opened() == ("DirectML", "DirectML ran the network, not the CPU")
    machine.error = "[ONNXRuntimeError] : 1 : FAIL : no adapter\nand a trace"
    assert opened() == (
        "the CPU",
        "the CPU ran the network: ONNX Runtime cannot run this network on DirectML (no adapter)",
    )


def test_an_accelerator_that_computes_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Accelerated(monkeypatch).factor = 1.01
    said = "the CPU ran the network: DirectML does not give what others give"
    assert opened() == ("the CPU", said)


# -- memory ----------------------------------------------------------------------------------------

# All were met: with and without an arena of its own, and with one that has a limit.
FULL = [
    ("RuntimeException", "6 : RUNTIME_EXCEPTION", "std::bad_alloc"),
    (
        "Fail",
        "1 : FAIL",
        "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
        "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory for "
        "requested buffer of size 64000000\n",
    ),
    (
        "Fail",
        "1 : FAIL",
        "Available memory of 1073741312 is smaller than requested bytes of 2147483648\n",
    ),
]


def full(kind: str, code: str, words: str) -> Exception:
    from onnxruntime.capi import onnxruntime_pybind11_state as classes

    where = "Non-zero status code returned while running Conv node. Name:'/body/Conv' "
    error = getattr(classes, kind)(f"[ONNXRuntimeError] : {code} : {where}Status Message: {words}")
    assert not isinstance(error, RuntimeError)
    return error


@pytest.mark.parametrize("words", FULL, ids=lambda words: words[1])
def test_a_full_memory_makes_tiles_smaller(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, str, str]
) -> None:
    error = full(*words)
    assert devices.is_out_of_memory(error)
    call, seen = onnx_windows.call, []

    def limited(session: Any, window: FloatArray, *, form: onnx_windows.Form) -> FloatArray:
        seen.append(window.shape[0])
        if window.shape[0] > 150:
            raise error
        return call(session, window, form=form)

    runner = TiledRunner(model_of(SMALL), device="cpu", engine="onnxruntime")
    monkeypatch.setattr(onnx_windows, "call", limited)
    image = noise(180, 20)
    result = runner.run(image[0])
    assert difference(result, np.clip(by_torch(SMALL, image)[0], 0, 1)) <= 1e-5
    refused = seen.index(180)  # after those that memory was estimated by
    assert max(seen[:refused]) < 150
    assert max(seen[refused + 1 :]) <= 150
    assert len(runner.notes) == 1
    assert "cpu ran out of memory: tiles of" in runner.notes[0]


def test_other_failures_are_one_line_and_no_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    error = full("Fail", "1 : FAIL", "input_shape_size == requested_shape_size was false\nmore")
    assert not devices.is_out_of_memory(error)
    engine = ONNXRuntimeEngine(model_of(SMALL).network)

    def fail(session: Any, window: FloatArray, *, form: onnx_windows.Form) -> FloatArray:
        raise error

    monkeypatch.setattr(onnx_windows, "call", fail)
    with pytest.raises(DeviceError, match=r"failed at a window of 7×5 px \(Non-zero") as caught:
        engine.run(noise(5, 7))
    assert "\n" not in str(caught.value)


def test_memory_is_estimated_from_the_widest_layer() -> None:
    engine = engine_of(SMALL)
    widest_bytes = 4 * (8 + 12)  # the last convolution: 8 channels in, 3 colours of 2x2 pixels out
    assert widest_bytes <= engine._peak_bytes_per_px() <= 3 * widest_bytes
    assert engine.bytes_per_px() > engine._peak_bytes_per_px()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("left_mib", [5, 40, 70, 100])
def test_a_memory_that_is_really_full(left_mib: int) -> None:
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_engines_onnxruntime import MSRResNetConfig, ONNXRuntimeEngine, noise, random_model
model = random_model(MSRResNetConfig(blocks=1, channels=64, tail="direct"))
engine = ONNXRuntimeEngine(model.network)
small, large = noise(32, 32), noise(500, 500)
expected = engine.run(small)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + large.nbytes * 17 + ({left_mib} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    engine.run(large)
except MemoryError:
    pass
else:
    raise SystemExit("500 px fit into nothing")
assert (engine.run(small) == expected).all()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- what it is told -------------------------------------------------------------------------------


def test_threads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Session:
        def __init__(self, graph: bytes, options: Any, **how: Any) -> None:
            told.append(options)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime.runtime(), "InferenceSession", Session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    onnxruntime.open_session(b"")
    assert told[0].intra_op_num_threads == 3
    assert not told[0].enable_cpu_mem_arena


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """As published it writes an identifier of the machine into the user's cache, to begin with."""
    script = """
import os
from waifu4x.engines import onnxruntime_quietly
library = onnxruntime_quietly.load()
assert "ORT_DISABLE_TELEMETRY" not in os.environ
from onnx import TensorProto, helper
sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", sides[:1], sides[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
library.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
    homes = ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")
    environment = {**os.environ, **dict.fromkeys(homes, str(tmp_path))}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    root = str(Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", script], check=True, env={**environment, "PYTHONPATH": root}
    )
    assert list(tmp_path.rglob("*onnxruntime*")) == []


# -- what it cannot run ----------------------------------------------------------------------------


def test_a_graph_that_is_not_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = onnx_graph.convert(random_model(SMALL, seed=1).network)
    monkeypatch.setattr(onnx_graph, "convert", lambda network: graph)
    with pytest.raises(DeviceError, match="the CPU does not give what others give"):
        ONNXRuntimeEngine(model_of(SMALL).network)


def test_a_network_that_it_cannot_express_is_an_error_of_one_line() -> None:
    class Odd(nn.Module):
        config = SMALL

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.pinv(functional.interpolate(x, scale_factor=2))

    with pytest.raises(DeviceError, match=r"cannot run this network on the CPU \(.+\)") as caught:
        ONNXRuntimeEngine(Odd())
    assert "\n" not in str(caught.value)


# -- the cache -------------------------------------------------------------------------------------


def kept_in(folder: Path, *, sha256: str = "a" * 64) -> ONNXRuntimeEngine:
    return ONNXRuntimeEngine(model_of(SMALL).network, sha256=sha256, folder=folder)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for every conversion."""
    made: list[object] = []
    convert = onnx_graph.convert

    def count(network: nn.Module) -> bytes:
        made.append(network)
        return convert(network)

    monkeypatch.setattr(onnx_graph, "convert", count)
    return made


def test_a_model_is_converted_once(tmp_path: Path, conversions: list[object]) -> None:
    batch = noise(9, 14)
    expected = kept_in(tmp_path).run(batch)
    np.testing.assert_array_equal(kept_in(tmp_path).run(batch), expected)
    assert len(conversions) == 1
    kept_in(tmp_path, sha256="b" * 64)
    assert len(conversions) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, conversions: list[object], damage: str
) -> None:
    batch = noise(9, 14)
    engine = kept_in(tmp_path)
    expected = engine.run(batch)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "foreign":
        # All is well with the file, but it is no graph.
        openvino_cache.write(tmp_path, engine._key("a" * 64), b"nothing that it knows")
    else:
        changed = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
        file.write_bytes({"truncated": whole[: len(whole) // 2], "changed": changed}[damage])
    np.testing.assert_array_equal(kept_in(tmp_path).run(batch), expected)
    assert len(conversions) == 2
    assert file.read_bytes() == whole
