"""Which engine is taken: an explicit choice is kept or refused, ``auto`` says when it gave way."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import errors, save, upscale
from toys import FakeConfig, FakeNetwork, as_model

from waifu4x import devices, models
from waifu4x.batch.request import Request
from waifu4x.engines import Opened, choice, in_order, openvino_compiled
from waifu4x.engines.ensemble import EightfoldEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.sizes import Target
from waifu4x.tiled import TiledRunner
from waifu4x.upscaler import Upscaler

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(devices.ENGINE_VARIABLE, raising=False)


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name)
    )
    openvino_compiled.runtime.cache_clear()


@pytest.fixture
def unable_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is installed, and can run nothing."""

    def fail(network: object, **how: object) -> None:
        raise DeviceError("OpenVINO cannot run this network; try --engine torch")

    monkeypatch.setattr(devices, "has_openvino", lambda: True)
    monkeypatch.setattr(choice, "OpenVINOEngine", fail)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    network = SRVGGNetCompact(SRVGGNetCompactConfig(channels=4, convs=0, scale=2))
    checkpoints.save(network, path, metadata={})
    return path


def toy(**facts: Any) -> Model:
    return as_model(FakeNetwork(FakeConfig(**facts), lambda x: None))


def image(height: int = 9, width: int = 12) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


# -- what is wished --------------------------------------------------------------------------------


def test_the_environment_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.wished_engine("auto") == "auto"
    monkeypatch.setenv(devices.ENGINE_VARIABLE, "openvino")
    assert devices.wished_engine("auto") == "openvino"
    assert devices.wished_engine("torch") == "torch"
    monkeypatch.setenv(devices.ENGINE_VARIABLE, "")
    assert devices.wished_engine("auto") == "auto"
    monkeypatch.setenv(devices.ENGINE_VARIABLE, "tensorrt")
    with pytest.raises(UsageError, match=r"no WAIFU4X_ENGINE: 'tensorrt': use auto, torch, openv"):
        devices.wished_engine("auto")


def test_engines_of_nonsense() -> None:
    with pytest.raises(UsageError, match="no engine 'onnx': use auto, torch, openvino"):
        TiledRunner(toy(), device="cpu", engine="onnx")


def test_openvino_means_the_cpu_where_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pick", lambda wish: torch.device("cuda", 0))
    assert choice.pick_device("openvino", "auto") == CPU
    assert choice.pick_device("auto", "auto") == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="OpenVINO runs on the CPU here, not on cuda:0"):
        choice.pick_device("openvino", "cuda")


# -- what is taken ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_openvino")
def test_without_openvino_auto_is_torch_and_nothing_is_said() -> None:
    runner = TiledRunner(toy(), device="cpu", engine="auto")
    runner.run(image())
    assert (runner.engine, runner.notes) == ("torch", [])


@pytest.mark.usefixtures("no_openvino")
def test_openvino_that_is_not_installed_is_an_error_and_not_torch() -> None:
    with pytest.raises(DeviceError, match=r"not installed: pip install 'waifu4x\[openvino\]'"):
        TiledRunner(toy(), device="cpu", engine="openvino")


@pytest.mark.usefixtures("unable_openvino")
def test_auto_says_once_why_openvino_was_not_taken() -> None:
    runner = TiledRunner(toy(), device="cpu", engine="auto")
    assert runner.engine == "torch"
    runner.forget()
    np.testing.assert_array_equal(runner.run(image())[::2, ::2], image())
    assert runner.notes == ["torch ran the network: OpenVINO cannot run this network"]
    runner.forget()
    runner.run(image())
    assert runner.notes == []


@pytest.mark.usefixtures("unable_openvino")
def test_openvino_that_cannot_run_the_network_is_an_error_and_not_torch() -> None:
    with pytest.raises(DeviceError, match="OpenVINO cannot run this network; try --engine torch"):
        TiledRunner(toy(), device="cpu", engine="openvino")


@pytest.mark.usefixtures("unable_openvino")
def test_torch_is_torch_and_auto_is_torch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy().network
    engine, _, note = choice.open_engine(network, engine="torch", device="cpu", precision="fp32")
    assert (engine.name, note) == ("torch", "")
    gpu = torch.device("mps")
    monkeypatch.setattr(devices, "pick", lambda wish: gpu)
    monkeypatch.setattr(choice, "TorchEngine", lambda network, device, dtype: device)
    taken = choice.open_engine(network, engine="auto", device="mps", precision="fp16")
    assert taken == (gpu, (gpu,), "")


def test_a_filter_has_no_engine() -> None:
    with pytest.raises(UsageError, match=r"nearest is no network: .*--engine, --tile and --tta"):
        models.open_upscaler("nearest", engine="torch")


def test_the_library_takes_the_engine_that_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    given: dict[str, Any] = {}

    def open_engine(network: torch.nn.Module, **how: Any) -> Opened:
        given.update(how)
        return Opened(TorchEngine(network, device=CPU, dtype=torch.float32), (CPU,))

    monkeypatch.setattr(choice, "open_engine", open_engine)
    loaded = models.open_upscaler(tiny, device="cpu", precision="fp32").model
    assert isinstance(loaded, Model)
    assert given == {
        "engine": "auto",
        "device": "cpu",
        "precision": "fp32",
        "compiled": False,
        "sha256": loaded.sha256,
        "folder": own_home / "engines",
    }
    models.open_upscaler(tiny, device="cpu", engine="openvino")
    assert given["engine"] == "openvino"


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_openvino")
def test_the_command_keeps_to_the_engine_and_names_it(tiny: Path, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    done = upscale(picture, "-m", tiny, "-g", "-1", "-s", 2, "--engine", "openvino")
    assert done.exit_code == 1
    assert errors(done) == [
        "error: OpenVINO is not installed: pip install 'waifu4x[openvino]', or try --engine torch"
    ]
    done = upscale(picture, "-m", tiny, "-g", "-1", "-s", 2, "--engine", "torch", "--json", "-v")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["engine"] == "torch"
    assert "by torch, tiles of" in done.stderr


def test_filters_only_resample() -> None:
    kernel = Upscaler(model="bicubic")
    assert kernel.facts_of((), 0.0).engine == "numpy"
    runner = TiledRunner(toy(), device="cpu", precision="fp32")
    upscaler = Upscaler(model=toy(), runner=runner)
    assert upscaler.facts_of((2.0,), 0.0).engine == "torch"
    assert upscaler.facts_of((), 0.0).engine == "numpy"


def test_an_engine_that_was_chosen_is_part_of_what_decides_an_output() -> None:
    upscaler = Upscaler(model="nearest")
    keys = {
        Request(inputs=("a",), target=Target(scale=2), engine=engine).settings_key(upscaler)
        for engine in devices.ENGINES
    }
    assert len(keys) == len(devices.ENGINES)


def test_devices_say_which_engine_auto_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, engine in ((True, "openvino"), (False, "torch")):
        monkeypatch.setattr(devices, "has_openvino", lambda found=installed: found)
        assert devices.available()[-1].engine == engine
    for wish in ("openvino", "torch"):
        monkeypatch.setenv(devices.ENGINE_VARIABLE, wish)
        assert devices.available()[-1].engine == wish


# -- what engines share ----------------------------------------------------------------------------


def test_a_mirrored_column_is_put_in_order() -> None:
    mirrored = image(7, 1)[None, :, ::-1]
    assert mirrored.flags.c_contiguous  # says numpy, and torch refuses it
    np.testing.assert_array_equal(in_order(mirrored), mirrored)
    assert min(in_order(mirrored).strides) > 0
    kept = image()[None]
    assert in_order(kept) is kept

    engine = TorchEngine(toy().network, device=CPU, dtype=torch.float32)
    eightfold = EightfoldEngine(engine)
    assert eightfold.name == "torch"
    column = image(7, 1)[None]
    expected = column.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(eightfold.run(column), expected, atol=1e-6)
