"""OpenVINO gives what torch gives, whatever the size, the cache or the memory do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import save, upscale
from torch import nn
from torch.nn import functional
from toys import GRAPHLESS, random_model

from waifu4x import devices
from waifu4x.bench.speed.speed_picture import natural_picture
from waifu4x.canvas import to_unit
from waifu4x.catalog import shipped_folder
from waifu4x.engines import openvino_cache, openvino_graph, openvino_quietly
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError
from waifu4x.model_files import checkpoints
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
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.tiled import TiledRunner

if not devices.has_openvino():
    pytest.skip("needs the extra openvino", allow_module_level=True)
openvino = openvino_quietly.load()

FloatArray = npt.NDArray[np.float32]
CPU = torch.device("cpu")
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="needs a CPU with bf16")

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
    SPANConfig(blocks=2, channels=8, tail_channels=8),
    PLKSRConfig(blocks=2, channels=8, large_kernel=5, large_channels=2),
    PLKSRConfig(blocks=1, channels=8, large_kernel=5, large_channels=2, kind="group"),
    PLKSRConfig(blocks=1, channels=8, large_kernel=5, large_channels=2, kind="layer"),
    AutoencoderConfig(channels=(8, 8, 8)),
    SRFBNConfig(channels=8, groups=2, steps=2),
    SANConfig(groups=1, blocks=1, channels=8, reduction=4, looking=2, scale=2),
]
SMALL = SRVGGNetCompactConfig(channels=8, convs=1, scale=2)
# Measured: 0 for most networks and 7e-6 for the deepest; the sums are of another order.
LARGEST_FP32_DIFFERENCE = 2e-5


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.ENGINE_VARIABLE, raising=False)


@cache
def model_of(config: Any) -> Model:
    return random_model(config)


@cache
def engine_of(config: Any, precision: str = "fp32") -> OpenVINOEngine:
    return OpenVINOEngine(model_of(config).network, precision=precision)


def by_torch(config: Any, batch: FloatArray, *, bf16: bool = False) -> FloatArray:
    dtype = torch.bfloat16 if bf16 else torch.float32
    return TorchEngine(model_of(config).network, device=CPU, dtype=dtype).run(batch)


def noise(height: int, width: int, channels: int = 3, *, count: int = 1) -> FloatArray:
    rng = np.random.default_rng(height * width)
    return rng.random((count, height, width, channels), dtype=np.float32)


def difference(one: FloatArray, other: FloatArray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(np.float64) - other).max())


def psnr_db(one: FloatArray, other: FloatArray) -> float:
    return float(-10.0 * np.log10(np.mean(np.square(one.astype(np.float64) - other)) + 1e-12))


# -- agreement -------------------------------------------------------------------------------------


def test_every_architecture_is_tested_here() -> None:
    kinds = {entry.config for entry in NETWORKS.values()}
    # Those of any scale are torch's alone.
    kinds = {k for k in kinds if not getattr(k, "any_scale", False)}
    assert {type(c) for c in CONFIGS} == kinds - GRAPHLESS


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_fp32_is_that_of_torch_in_every_size(config: Any) -> None:
    engine, multiple = engine_of(config), config.size_multiple
    for count, height, width in ((1, 1, 1), (1, 1, 9), (3, 2, 3), (2, 33, 17), (1, 40, 64)):
        size_px = height * multiple, width * multiple
        batch = noise(*size_px, config.channels_in, count=count)
        result = engine.run(batch)
        assert result.dtype == np.float32
        assert difference(result, by_torch(config, batch)) <= LARGEST_FP32_DIFFERENCE
    assert result.std() > 0.05  # it is not agreed upon nothing


@needs_bf16
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_bf16_loses_no_more_than_that_of_torch(config: Any) -> None:
    """By 3 to 8 dB it would, were the picture itself computed in bf16."""
    picture = to_unit(natural_picture(64, 48).pixels)[None, ..., : config.channels_in]
    exact = by_torch(config, picture)
    result = engine_of(config, "bf16").run(picture)
    assert not np.array_equal(result, exact)
    # torch's sums behind convolutions are rounded once, OpenVINO's twice.
    assert psnr_db(result, exact) >= psnr_db(by_torch(config, picture, bf16=True), exact) - 1.0


@needs_bf16
def test_the_shipped_model_in_bf16_agrees_to_60_db() -> None:
    model = checkpoints.load(shipped_folder() / "waifu4x-clean.safetensors")
    engine = OpenVINOEngine(model.network, precision="bf16")
    picture = to_unit(natural_picture(96, 80).pixels)[None]
    exact = TorchEngine(model.network, device=CPU, dtype=torch.float32).run(picture)
    assert psnr_db(engine.run(picture), exact) >= 60.0  # measured: 64.7


def test_the_operations_that_are_said_in_others() -> None:
    x = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    for factor in (2, 3, 4):
        shuffled = partial(functional.pixel_shuffle, upscale_factor=factor)
        nearest = functional.interpolate(x, scale_factor=factor)
        assert torch.equal(shuffled(openvino_graph.repeated(x, factor)), nearest)
        bilinear = functional.interpolate(x, scale_factor=factor, mode="bilinear")
        assert (shuffled(openvino_graph.interpolated(x, factor)) - bilinear).abs().max() <= 5e-7
        packed = functional.pixel_unshuffle(nearest, factor)
        assert torch.equal(openvino_graph.gathered(nearest, factor), packed)


def test_what_ran_before_does_not_matter() -> None:
    engine, batch = engine_of(SMALL), noise(20, 31)
    first = engine.run(batch)
    kept = first.copy()
    for size_px in ((64, 64), (5, 5), (31, 20)):
        engine.run(noise(*size_px))
    np.testing.assert_array_equal(engine.run(batch), kept)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(
        OpenVINOEngine(model_of(SMALL).network, precision="fp32").run(batch), kept
    )


def test_turned_and_mirrored_windows() -> None:
    """Views of others' memory, in another order."""
    batch = noise(12, 20)
    views = [np.rot90(batch, 1, axes=(1, 2)), batch[:, :, ::-1], noise(1, 6)[:, :, ::-1]]
    for view in views:
        assert difference(engine_of(SMALL).run(view), by_torch(SMALL, view)) <= 1e-6


def test_not_a_number_is_not_hidden_by_relu() -> None:
    """A ReLU that is a maximum would make 0 of it."""
    config = VDSRConfig(depth=4, channels=4)
    network = random_model(config).network
    engine = OpenVINOEngine(network, precision="fp32")
    batch = noise(8, 8, 1)
    assert np.isfinite(engine.run(batch)).all()
    batch[0, 4, 4, 0] = np.nan
    spoiled = ~np.isfinite(engine.run(batch)[0, ..., 0])
    assert spoiled.all()  # the radius is 4, and in each direction the picture ends before


# -- tiles -----------------------------------------------------------------------------------------


def run(image: FloatArray, config: Any = SMALL, **how: Any) -> FloatArray:
    how = {"precision": "fp32", "engine": "openvino", **how}
    return TiledRunner(model_of(config), device="cpu", **how).run(image)


@pytest.mark.parametrize("config", [CONFIGS[2], CONFIGS[7]], ids=str)
def test_tiled_equals_whole(config: Any) -> None:
    image = noise(60, 90)[0]
    whole = run(image, config, tile_px=4096)
    assert difference(run(image, config, tile_px=16), whole) <= 1e-5
    assert difference(run(image, config, engine="torch"), whole) <= 1e-5


@needs_bf16
def test_tiles_in_bf16_leave_no_seam() -> None:
    config = CONFIGS[7]
    image = to_unit(natural_picture(90, 60).pixels)
    whole = run(image, config, tile_px=4096, precision="bf16")
    tiles = run(image, config, tile_px=16, precision="bf16")
    assert np.sqrt(np.mean(np.square(tiles - whole))) <= 0.5 / 255


def test_eightfold_is_that_of_torch() -> None:
    image = noise(20, 33)[0]
    results = [run(image, engine=engine, tta=True, tile_px=16) for engine in ("openvino", "torch")]
    assert difference(*results) <= 1e-5


def test_auto_takes_openvino_and_the_precision_that_torch_would() -> None:
    runner = TiledRunner(model_of(SMALL), device="cpu", engine="auto")
    dtype = devices.pick_dtype("auto", CPU)
    assert (runner.engine, runner.precision) == ("openvino", devices.precision_name(dtype))
    runner.run(noise(9, 9)[0])
    assert runner.notes == []


@needs_bf16
def test_a_spoiled_tile_is_computed_again_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pick_dtype", lambda wish, device: torch.bfloat16)
    runner = TiledRunner(model_of(SMALL), device="cpu", engine="openvino")
    nothing = np.full((1, 40, 60, 3), np.nan, dtype=np.float32)
    monkeypatch.setattr(OpenVINOEngine, "run", lambda engine, batch: nothing.copy())
    image = noise(20, 30)
    np.testing.assert_array_equal(runner.run(image[0]), np.clip(by_torch(SMALL, image)[0], 0, 1))
    assert runner.notes == ["bf16 gave NaN or infinity: such tiles were computed again in fp32"]


# -- memory ----------------------------------------------------------------------------------------

# Two that were met, without their middles.
FULL = [
    "Exception from src/plugins/intel_cpu/src/node.cpp:794: [CPU] Multiply node with name "
    "'aten::mul/Multiply_4' Check 'ptr' failed at src/plugins/intel_cpu/src/cpu_memory.cpp:257:\n"
    "Failed to allocate 48000000 bytes of memory\n",
    "Exception from src/plugins/intel_cpu/src/node.cpp:823:\n[CPU] Convolution node with name "
    "'__module.conv_last/aten::_convolution/Convolution' can't alloc\n",
]


@pytest.mark.parametrize("message", FULL)
def test_a_full_memory_makes_tiles_smaller(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    assert devices.is_out_of_memory(RuntimeError(message))
    infer, seen = OpenVINOEngine.run, []

    def limited(engine: OpenVINOEngine, batch: FloatArray) -> FloatArray:
        seen.append(batch.shape[1])
        if batch.shape[1] > 150:
            raise RuntimeError(message)
        return infer(engine, batch)

    monkeypatch.setattr(OpenVINOEngine, "run", limited)
    runner = TiledRunner(model_of(SMALL), device="cpu", precision="fp32", engine="openvino")
    image = noise(180, 20)
    result = runner.run(image[0])
    assert difference(result, np.clip(by_torch(SMALL, image)[0], 0, 1)) <= 1e-5
    assert seen == [180, 66, 66, 66]  # three tiles of 60 px, and twice the halo of 3
    assert runner.notes == ["cpu ran out of memory: tiles of 64 px from now on"]


def test_after_an_error_the_network_is_prepared_anew() -> None:
    """One whose memory was full gave results of the size before, or none at all."""

    class Full:
        def set_input_tensor(self, tensor: object) -> None:
            raise RuntimeError(FULL[0])

        def wait(self) -> None:
            raise RuntimeError("it was not started")

    engine = OpenVINOEngine(model_of(SMALL).network, precision="fp32")
    batch = noise(10, 11)
    expected = engine.run(batch)
    engine._request = Full()
    with pytest.raises(RuntimeError, match="Failed to allocate"):
        engine.run(batch)
    np.testing.assert_array_equal(engine.run(batch), expected)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
@pytest.mark.parametrize("left_mib", [5, 40, 70, 100])
def test_a_memory_that_is_really_full(left_mib: int, tmp_path: Path) -> None:
    """`InferRequest.infer` says nothing then, and gives the result of the run before."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_engines_openvino import MSRResNetConfig, OpenVINOEngine, devices, noise, random_model
model = random_model(MSRResNetConfig(blocks=1, channels=64, tail="direct"))
engine = OpenVINOEngine(
    model.network, precision="fp32", sha256="0" * 64, folder=Path({str(tmp_path)!r})
)
small, large = noise(32, 32), noise(500, 500)
expected = engine.run(small)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = taken + large.nbytes * 17 + ({left_mib} << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    engine.run(large)
except (RuntimeError, MemoryError) as error:
    assert devices.is_out_of_memory(error), error
else:
    raise SystemExit("500 px fit into nothing")
del large
assert (engine.run(small) == expected).all()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threads_are_those_of_torch() -> None:
    compiled = engine_of(SMALL)._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


# -- what it cannot run ----------------------------------------------------------------------------


def test_a_graph_that_is_not_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = openvino_graph.convert(random_model(SMALL, seed=1).network)
    monkeypatch.setattr(openvino_graph, "convert", lambda network: graph)
    with pytest.raises(DeviceError, match="does not give what torch gives; try --engine torch"):
        OpenVINOEngine(model_of(SMALL).network, precision="fp32")


def test_what_is_no_number_in_torch_is_not_for_the_comparison() -> None:
    config = SRVGGNetCompactConfig(channels=4, convs=1, scale=2)
    network = random_model(config).network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3e38)
    engine = OpenVINOEngine(network, precision="fp32")
    assert not np.isfinite(engine.run(noise(6, 6))).any()


def test_a_network_that_it_cannot_express_is_an_error_of_one_line() -> None:
    class Odd(nn.Module):
        config = SMALL

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.pinv(functional.interpolate(x, scale_factor=2))

    with pytest.raises(DeviceError, match=r"cannot run this network in fp32 \(.*\); try") as caught:
        OpenVINOEngine(Odd(), precision="fp32")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(HAS_BF16, reason="needs a CPU without bf16")
def test_bf16_that_the_cpu_has_not_is_an_error_and_not_fp32() -> None:
    with pytest.raises(DeviceError, match="OpenVINO has no bf16 on this CPU; try --engine torch"):
        OpenVINOEngine(model_of(SMALL).network, precision="bf16")


def test_nothing_is_reported_to_anybody() -> None:
    """Neither by the import nor by converting: what would do it is not even there."""
    engine_of(SMALL)
    assert [name for name in sys.modules if name.startswith("openvino_telemetry")] == []
    assert openvino.tools.ovc.telemetry_utils.tm.__name__.endswith("telemetry_stub")


# -- the cache -------------------------------------------------------------------------------------


def opened(folder: Path, *, sha256: str = "a" * 64) -> OpenVINOEngine:
    network = model_of(SMALL).network
    return OpenVINOEngine(network, precision="fp32", sha256=sha256, folder=folder)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for every conversion."""
    made: list[object] = []
    convert = openvino_graph.convert

    def count(network: nn.Module) -> openvino_graph.Graph:
        made.append(network)
        return convert(network)

    monkeypatch.setattr(openvino_graph, "convert", count)
    return made


def test_a_model_is_converted_once(tmp_path: Path, conversions: list[object]) -> None:
    batch = noise(9, 14)
    expected = opened(tmp_path).run(batch)
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    np.testing.assert_array_equal(opened(tmp_path).run(batch), expected)
    assert len(conversions) == 1
    assert file.stat().st_mtime > 0  # it was used: others go first
    opened(tmp_path, sha256="b" * 64)
    assert len(conversions) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "foreign", "of another"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, conversions: list[object], damage: str
) -> None:
    batch = noise(9, 14)
    expected = opened(tmp_path).run(batch)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "foreign":
        # All is well with the file, but OpenVINO never wrote such a thing.
        key = opened(tmp_path).key(openvino.Core())
        openvino_cache.write(tmp_path, key, b"nothing that it knows")
    else:
        file.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "empty": b"",
                "changed": whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:],
                "of another": _of_another(tmp_path),
            }[damage]
        )
    np.testing.assert_array_equal(opened(tmp_path).run(batch), expected)
    assert file.read_bytes()[:32] != b""
    before = len(conversions)
    np.testing.assert_array_equal(opened(tmp_path).run(batch), expected)
    assert len(conversions) == before
    assert before >= 2


def _of_another(folder: Path) -> bytes:
    """A whole file that was written for another key."""
    openvino_cache.write(folder / "other", "another key", b"content")
    (file,) = (folder / "other").iterdir()
    return file.read_bytes()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert difference(opened(blocked).run(noise(5, 5)), by_torch(SMALL, noise(5, 5))) <= 1e-6
    assert blocked.read_bytes() == b""


def test_what_the_cache_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert openvino_cache.read(tmp_path / "none", "a") is None
    openvino_cache.write(tmp_path, "a", b"1" * 1000)
    assert openvino_cache.read(tmp_path, "a") == b"1" * 1000
    assert openvino_cache.read(tmp_path, "b") is None
    (first,) = tmp_path.iterdir()
    os.utime(first, (0, 0))
    monkeypatch.setattr(openvino_cache, "MOST_BYTES", 2500)
    openvino_cache.write(tmp_path, "b", b"2" * 1000)
    assert openvino_cache.read(tmp_path, "a") == b"1" * 1000  # and so it is the youngest
    os.utime(openvino_cache._path(tmp_path, "b"), (0, 0))
    openvino_cache.write(tmp_path, "c", b"3" * 1000)
    assert openvino_cache.read(tmp_path, "b") is None
    assert openvino_cache.read(tmp_path, "a") == b"1" * 1000
    assert openvino_cache.read(tmp_path, "c") == b"3" * 1000


# -- the command -----------------------------------------------------------------------------------


def test_the_command_runs_it_and_keeps_the_conversion(tmp_path: Path, own_home: Path) -> None:
    tiny = tmp_path / "tiny.safetensors"
    checkpoints.save(SRVGGNetCompact(SMALL), tiny, metadata={})
    picture = save(tmp_path / "a.png")
    how = ("-m", tiny, "-s", 2, "-g", "-1", "--engine", "openvino", "--precision", "fp32", "--json")
    done = upscale(picture, *how)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["engine"], facts["precision"], facts["notes"]) == ("openvino", "fp32", [])
    # What was compiled, and how the model starts from it the next time.
    assert len(list((own_home / "engines").iterdir())) == 2
    assert (tmp_path / "a_tiny_2x.png").exists()
