"""INT8 is asked for by name, changes little, is cached like the rest, and prints nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import errors, save, upscale
from PIL import Image
from toys import random_model

from waifu4x import devices
from waifu4x.bench.metrics import psnr
from waifu4x.bench.protocol import Protocol, enlarge, protocol_named
from waifu4x.bench.sets import open_sets
from waifu4x.catalog import shipped_folder
from waifu4x.engines import Opened, choice, openvino_compiled, openvino_int8, openvino_quietly
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, NumericsError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.networks.msrresnet import MSRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.tiled import TiledRunner
from waifu4x.upscaler import Upscaler

if not (devices.has_openvino() and devices.has_nncf()):
    pytest.skip("needs the extra int8", allow_module_level=True)

FloatArray = npt.NDArray[np.float32]
CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[1] / "examples"
CHAIN = SRVGGNetCompactConfig(channels=16, convs=4, scale=2)
RESIDUAL = MSRResNetConfig(blocks=2, channels=16, scale=2, tail="direct")
SHORT = SRVGGNetCompactConfig(channels=4, convs=0, scale=2)
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="says what OpenVINO does on x86"
)


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.ENGINE_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def chain(folder: Path) -> OpenVINOEngine:
    return opened(folder)


@pytest.fixture(scope="module")
def residual() -> OpenVINOEngine:
    return OpenVINOEngine(random_model(RESIDUAL).network, precision="int8")


def by_torch(config: Any, batch: FloatArray) -> FloatArray:
    return TorchEngine(random_model(config).network, device=CPU, dtype=torch.float32).run(batch)


def psnr_db(one: FloatArray, other: FloatArray) -> float:
    return float(-10.0 * np.log10(np.mean(np.square(one.astype(np.float64) - other))))


def photo(height: int, width: int) -> FloatArray:
    """A part of the example that is not among the crops alone: it lies across them."""
    with Image.open(EXAMPLES / "photo.png") as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=np.float32)
    return np.ascontiguousarray(pixels[None, 30 : 30 + height, 40 : 40 + width]) / np.float32(255.0)


def opened(folder: Path) -> OpenVINOEngine:
    network = random_model(CHAIN).network
    return OpenVINOEngine(network, precision="int8", sha256="a" * 64, folder=folder)


# -- what it gives ---------------------------------------------------------------------------------


def test_it_is_near_fp32_and_not_it_in_every_size(
    chain: OpenVINOEngine, residual: OpenVINOEngine
) -> None:
    for config, engine in ((CHAIN, chain), (RESIDUAL, residual)):
        assert (engine.name, engine.precision) == ("openvino", "int8")
        for size_px in ((90, 61), (1, 7), (16, 200)):
            window = photo(*size_px)
            result, exact = engine.run(window), by_torch(config, window)
            assert result.shape == exact.shape
            assert not np.array_equal(result, exact)
            assert psnr_db(result, exact) >= 36.0  # measured: 40.5 to 46


@on_x86
@pytest.mark.parametrize("name", ["chain", "residual"])
def test_the_convolutions_between_the_first_and_the_last_are_in_int8(
    name: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)._request.get_compiled_model().get_runtime_model()
    facts = [node.get_rt_info() for node in model.get_ordered_ops()]
    kinds = [
        fact["runtimePrecision"].astype(str)
        for fact in facts
        if fact["layerType"].astype(str) == "Convolution"
    ]
    # Of six that compute features, and perhaps one that enlarges the picture.
    assert len([kind for kind in kinds if kind in ("i8", "u8")]) == 4
    assert len(kinds) >= 6


def test_the_note_says_how_near(residual: OpenVINOEngine) -> None:
    note = residual.note
    assert note.startswith("converted to int8 in ")
    assert note.endswith(" dB on the calibration picture")


def test_a_tiled_picture_has_the_same_size_and_no_seam(chain: OpenVINOEngine) -> None:
    image, ready = photo(70, 90)[0], Opened(chain, (CPU,))
    model = random_model(CHAIN)
    whole = TiledRunner(model, precision="int8", tile_px=4096, opened=ready).run(image)
    tiles = TiledRunner(model, precision="int8", tile_px=32, opened=ready).run(image)
    assert np.abs(tiles - whole).max() <= 1 / 255


def test_what_is_not_finite_is_an_error_that_names_fp32(
    chain: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Opened(chain, (CPU,))
    runner = TiledRunner(random_model(CHAIN), precision="int8", opened=ready)
    nothing = np.full((1, 8, 8, 3), np.nan, dtype=np.float32)
    monkeypatch.setattr(OpenVINOEngine, "run", lambda engine, batch: nothing)
    with pytest.raises(NumericsError, match=r"NaN or infinity in int8 .*; try --precision fp32"):
        runner.run(photo(4, 4)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "waifu4x-clean.safetensors",
        "realesr-animevideov3.pth",
        "RealESRGAN_General_x4_v3_fp16.safetensors",
    ],
)
def test_on_set5_it_loses_no_more_than_half_a_tenth_of_a_db(shared: Path, file: str) -> None:
    """Measured: 0.031, -0.020 and -0.175 dB."""
    path = shipped_folder() / file
    model = checkpoints.load(path if path.exists() else shared / "weights" / "realesrgan" / file)
    engine = OpenVINOEngine(model.network, precision="int8")
    sets = open_sets((str(shared / "data" / "bench" / "Set5"),))
    exact, int8 = (
        Upscaler(model=model, runner=TiledRunner(model, precision=name, opened=ready))
        for name, ready in (
            ("fp32", choice.open_engine(model.network, device="cpu", precision="fp32")),
            ("int8", Opened(engine, (CPU,))),
        )
    )
    luma = protocol_named("rgb8")
    db = [
        np.mean([_psnr_y(upscaler, path, luma) for path in sets[0].pictures])
        for upscaler in (exact, int8)
    ]
    assert db[0] - db[1] <= 0.05


def _psnr_y(upscaler: Upscaler, path: Path, protocol: Protocol) -> float:
    pair = enlarge(upscaler, path, scale=4, protocol=protocol).pair
    return psnr(pair.luma, pair.true_luma)


# -- how it is found -------------------------------------------------------------------------------


def test_the_calibration_picture() -> None:
    path = shipped_folder() / openvino_compiled.CALIBRATION_PICTURE
    assert path.stat().st_size < 150_000  # it is in the wheel
    crops = openvino_int8.calibration(channels=3, multiple=1)
    assert len(crops) == 24
    assert {crop.shape for crop in crops} == {(1, 64, 64, 3)}
    assert {crop.dtype for crop in crops} == {np.dtype(np.float32)}
    assert 0.0 <= min(crop.min() for crop in crops) < 0.1
    assert 0.9 < max(crop.max() for crop in crops) <= 1.0
    with Image.open(EXAMPLES / "photo.png") as opened_photo:
        pixels = np.asarray(opened_photo.convert("RGB"), dtype=np.float32) / np.float32(255.0)
    cells = pixels.reshape(4, 64, 4, 64, 3).swapaxes(1, 2).reshape(16, 64, 64, 3)
    assert all(any(np.array_equal(crop[0], cell) for cell in cells) for crop in crops[:6])
    luma = openvino_int8.calibration(channels=1, multiple=3)
    assert {crop.shape for crop in luma} == {(1, 63, 63, 1)}


def test_only_what_lies_between_convolutions_is_quantised() -> None:
    """Sums of features are, the sum with the enlarged picture is not."""
    model = _read(RESIDUAL)
    kinds = {n.get_friendly_name(): n.get_type_name() for n in model.get_ordered_ops()}
    kept = openvino_int8._picture_nodes(model)
    sums = [name for name, kind in kinds.items() if kind == "Add" and name not in kept]
    assert len([name for name in sums if name.endswith("/aten::add/Add")]) == 2  # of two blocks
    final = model.get_results()[0].input_value(0).get_node()
    while final.get_type_name() != "Add":
        final = final.input_value(0).get_node()
    assert final.get_friendly_name() in kept


def test_the_last_convolution_is_fitted_channel_by_channel() -> None:
    """Where only it is wrong, by factors, the fit makes all right."""
    model, exact = _read(CHAIN), _read(CHAIN)
    last = openvino_int8._convolutions(model)[-1]
    weights = last.input_value(1).get_node().data
    factors = np.linspace(0.5, 2.0, len(weights), dtype=np.float32)
    opset = sys.modules["openvino.opset13"]
    wrong = opset.constant(weights * factors[:, None, None, None])
    last.input(1).replace_source_output(wrong.output(0))
    windows = openvino_int8.calibration(channels=3, multiple=1)[:4]
    expected = _compile(exact, "fp32")(windows[0])[0]
    assert np.abs(_compile(model, "fp32")(windows[0])[0] - expected).max() > 0.1
    openvino_int8._refit(model, exact, _compile, windows)
    assert np.abs(_compile(model, "fp32")(windows[0])[0] - expected).max() < 1e-4


def _read(config: Any) -> Any:
    from waifu4x.engines import openvino_graph

    graph = openvino_graph.convert(random_model(config).network)
    return openvino_quietly.core().read_model(graph.operations, graph.constants)


def _compile(model: Any, precision: str) -> Any:
    """In fp32, whatever is asked for."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino_quietly.core().compile_model(model, "CPU", settings)


# -- what it refuses -------------------------------------------------------------------------------


def test_networks_that_are_none_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"too few convolutions for int8: use another --prec"):
        OpenVINOEngine(random_model(SHORT).network, precision="int8")
    spoiled = random_model(CHAIN).network
    with torch.no_grad():
        for parameter in spoiled.parameters():
            parameter.fill_(3e38)
    with pytest.raises(DeviceError, match="gives NaN or infinity, and has no ranges for int8"):
        OpenVINOEngine(spoiled, precision="int8")
    monkeypatch.setattr(openvino_int8, "_quantised", lambda model, windows, kept_last: model)
    monkeypatch.setattr(openvino_int8, "_psnr_db", lambda one, other: 12.4)
    with pytest.raises(DeviceError, match="in int8 is only within 12 dB of fp32: use another"):
        OpenVINOEngine(random_model(CHAIN).network, precision="int8")


def test_it_is_never_picked_and_never_given_up() -> None:
    network = random_model(CHAIN).network
    assert choice.open_engine(network, engine="auto", device="cpu").engine.precision != "int8"
    with pytest.raises(UsageError, match="int8 is OpenVINO's, not torch's: leave out --engine"):
        choice.open_engine(network, engine="torch", device="cpu", precision="int8")
    with pytest.raises(UsageError, match="ONNX Runtime runs models in fp32, not int8"):
        choice.open_engine(network, engine="onnxruntime", device="cpu", precision="int8")
    with pytest.raises(DeviceError, match="too few convolutions"):
        choice.open_engine(random_model(SHORT).network, device="cpu", precision="int8")
    with pytest.raises(UsageError, match="int8 is for OpenVINO on a CPU"):
        devices.pick_dtype("int8", CPU)


def test_on_another_device_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(devices, "pick", lambda wish, kind=kind: torch.device(kind))
        with pytest.raises(UsageError, match=f"int8 runs on the CPU, not on {kind}: use --device"):
            choice.open_engine(random_model(CHAIN).network, precision="int8")


@pytest.mark.parametrize("missing", ["has_nncf", "has_openvino"])
def test_without_nncf_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str, tmp_path: Path
) -> None:
    tiny = tmp_path / "tiny.safetensors"
    checkpoints.save(SRVGGNetCompact(SHORT), tiny, metadata={})
    monkeypatch.setattr(devices, missing, lambda: False)
    picture = save(tmp_path / "a.png")
    done = upscale(picture, "-m", tiny, "-g", "-1", "-s", 2, "--precision", "int8")
    assert done.exit_code == 1
    assert errors(done) == [
        "error: int8 needs OpenVINO and NNCF: pip install 'waifu4x[int8]', or use --precision bf16 "
        "or fp32"
    ]


# -- the cache -------------------------------------------------------------------------------------


def test_it_is_converted_once_and_anew_for_another_nncf_or_picture(
    chain: OpenVINOEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = photo(20, 31)
    expected = chain.run(window)
    (file,) = folder.iterdir()

    def fail(*arguments: Any, **how: Any) -> None:
        raise AssertionError("it was converted already")

    monkeypatch.setattr(openvino_int8, "convert", fail)
    kept = opened(folder)
    np.testing.assert_array_equal(kept.run(window), expected)
    assert kept.note == ""
    assert list(folder.iterdir()) == [file]

    core = openvino_quietly.core()
    keys = [kept.key(core)]
    monkeypatch.setattr(openvino_int8, "version", lambda name: "9.9.9")
    keys.append(kept.key(core))
    monkeypatch.setattr(openvino_int8, "_picture", lambda: b"another")
    keys.append(kept.key(core))
    assert len(set(keys)) == 3
    assert hashlib.sha256(b"another").hexdigest() in keys[2]
    fp32 = OpenVINOEngine(random_model(CHAIN).network, precision="fp32", sha256="a" * 64)
    assert "nncf" not in fp32.key(core)


# -- what is said ----------------------------------------------------------------------------------


def test_the_command_says_once_how_near_it_is(tmp_path: Path, own_home: Path) -> None:
    tiny = tmp_path / "tiny.safetensors"
    checkpoints.save(random_model(CHAIN).network, tiny, metadata={})
    picture = save(tmp_path / "a.png")
    how = ("-m", tiny, "-s", 2, "-g", "-1", "--precision", "int8", "--json", "--overwrite")
    for notes in (1, 0):
        done = upscale(picture, *how)
        assert done.exit_code == 0, done.stderr
        facts = json.loads(done.stdout)
        assert (facts["engine"], facts["precision"]) == ("openvino", "int8")
        assert len(facts["notes"]) == notes


def test_nncf_prints_nothing_leaves_logging_alone_and_does_the_same_again(
    chain: OpenVINOEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    again = OpenVINOEngine(random_model(CHAIN).network, precision="int8")
    assert capfd.readouterr() == ("", "")
    window = photo(40, 30)
    np.testing.assert_array_equal(again.run(window), chain.run(window))
    assert logging.getLoggerClass() is logging.Logger
    track = sys.modules["nncf.common.logging.track_progress"]
    assert track.Progress.__module__.startswith("rich.")


@pytest.mark.slow
def test_nncf_reports_nothing_to_anybody(tmp_path: Path) -> None:
    """In a process of its own, because NNCF reports nothing where there is pytest."""
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('it would report')\n")
    (tmp_path / "home").mkdir()
    script = f"""
import socket, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]
def refuse(*arguments, **how):
    raise SystemExit("it asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from toys import random_model
from waifu4x.engines.openvino import OpenVINOEngine
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
config = SRVGGNetCompactConfig(channels=16, convs=4, scale=2)
OpenVINOEngine(random_model(config).network, precision="int8")
assert "nncf" in sys.modules and "pytest" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path / "home"), "NNCF_CI": "", "NNCF_DEV": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list((tmp_path / "home").iterdir()) == []
