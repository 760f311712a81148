"""Exported files compute what the network does, say what they are, and appear only then."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from test_networks import SMALL

from waifu4x import exporting
from waifu4x.errors import UsageError, WeightsError
from waifu4x.exporting import FORMATS, Format
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks import NETWORKS
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig

TINY = SRVGGNetCompactConfig(scale=2, channels=4, convs=1)
# A network of any scale is no graph.
ONE_SCALE = [config for config in SMALL if not getattr(config, "any_scale", False)]
GRAPHS = [config for config in ONE_SCALE if type(config) not in toys.GRAPHLESS]
WITH_BIAS = [config for config in GRAPHS if getattr(config, "bias", True)]
# The first of each network, and one whose size multiple is not 1.
ONE_OF_EACH = [
    *{type(config): config for config in reversed(WITH_BIAS)}.values(),
    RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2),
]
formats = pytest.mark.parametrize("to", FORMATS)


def model_of(config: Any, **facts: Any) -> Model:
    made = toys.random_model(config, scales=facts.pop("scales", None))
    (name,) = [key for key, entry in NETWORKS.items() if entry.config is type(config)]
    return dataclasses.replace(made, architecture=name, **facts)


def target_of(folder: Path, to: Format) -> Path:
    return folder / f"toy{FORMATS[to].suffix}"


def run(path: Path, x: np.ndarray, *, to: Format) -> np.ndarray:
    """As another program would, which knows nothing but the file."""
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    if to == "openvino":
        import openvino

        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        return openvino.Core().compile_model(path, "CPU", exact)([x])[0]
    if to == "torchscript":
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            network = torch.jit.load(path)
    else:
        network = checkpoints.load(path).network
    with torch.inference_mode():
        return network(torch.from_numpy(x)).numpy()


def expect_equal(config: Any, folder: Path, *, to: Format) -> float:
    """Also at sizes and in numbers that were not checked on the way; how far outputs spread."""
    model = model_of(config)
    made = exporting.export(model, target_of(folder, to), to=to)
    assert made.difference < 2e-5
    generator = torch.Generator().manual_seed(5)
    spread = 1.0
    for batch, height, width in ((3, 5, 9), (1, 8, 1)):
        k = model.size_multiple
        shape = (batch, model.channels_in, k * height, k * width)
        x = torch.rand(shape, generator=generator)
        with torch.inference_mode():
            wanted = model.network(x).numpy()
        got = run(made.files[0], x.numpy(), to=to)
        assert got.dtype == np.float32
        spread = min(spread, float(np.std(wanted)))
        np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=0)
    return spread


# Torch's trace is the same for TorchScript as for ONNX, and safetensors has tests of its own.
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("config", ONE_OF_EACH, ids=lambda c: f"{type(c).__name__}-{c.scale}")
def test_every_network(config: Any, to: Format, tmp_path: Path) -> None:
    assert expect_equal(config, tmp_path, to=to) > 0.005  # else anything would be equal


@pytest.mark.parametrize("to", ["torchscript", "safetensors"])
def test_the_other_formats(to: Format, tmp_path: Path) -> None:
    expect_equal(ONE_OF_EACH[-1], tmp_path, to=to)


@pytest.mark.slow
@formats
@pytest.mark.parametrize("config", WITH_BIAS, ids=str)
def test_every_form_of_every_network_in_every_format(
    config: Any, to: Format, tmp_path: Path
) -> None:
    expect_equal(config, tmp_path, to=to)


def test_no_network_is_left_out() -> None:
    kinds = {each.config for each in NETWORKS.values()}
    expected = {kind for kind in kinds if not getattr(kind, "any_scale", False)}
    assert {type(config) for config in ONE_OF_EACH} == expected - toys.GRAPHLESS


def facts_in(path: Path, to: Format) -> dict[str, str]:
    if to == "onnx":
        import onnx

        return {each.key: each.value for each in onnx.load(path).metadata_props}
    if to == "openvino":
        import openvino

        read = openvino.Core().read_model(path)
        return read.get_rt_info(["waifu4x"]).value
    if to == "torchscript":
        files = {"waifu4x.json": ""}
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.load(path, _extra_files=files)
        return json.loads(files["waifu4x.json"])
    return checkpoints.load(path).metadata


@formats
def test_what_a_file_says_about_itself(to: Format, tmp_path: Path) -> None:
    config = SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4))
    model = model_of(
        config, scales=(2, 3), name="a<b>\n", licence="CC0-1.0", metadata={"steps": "7"}
    )
    exporting.export(model, target_of(tmp_path, to), to=to)
    told = facts_in(target_of(tmp_path, to), to)
    assert (
        told
        | {
            "name": "a<b>",
            "architecture": "srcnn",
            "scale": "1",
            "scales": "2,3",
            "color": "luma, BT.601, studio range",
            "layout": "NCHW float32",
            "value_range": "0 to 1, output not clamped",
            "pre_upsampled": "yes, bicubic",
            "size_multiple": "1",
            "receptive_radius_px": "6",  # 4 + 0 + 2
            "licence": "CC0-1.0",
            "source_sha256": "0" * 64,
            "weights": "fp32",
        }
        == told
    )
    assert told["made_by"].startswith("waifu4x ")
    # Whatever else the source said stays with the file that is read as a model again.
    assert told.get("steps") == ("7" if to == "safetensors" else None)


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    model = model_of(SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4)))
    exporting.export(model, tmp_path / "a.safetensors", to="safetensors")
    again = checkpoints.load(tmp_path / "a.safetensors")
    assert (again.scales, again.licence) == (None, None)
    assert exporting.facts(model_of(TINY))["color"] == "RGB"


def test_the_sides_of_a_graph_have_names(tmp_path: Path) -> None:
    import onnx

    exporting.export(model_of(TINY), tmp_path / "a.onnx", to="onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    sides = [
        [side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in (*graph.input, *graph.output)
    ]
    assert sides == [["batch", 3, "height", "width"], ["batch", 3, "2*height", "2*width"]]
    assert [each.name for each in (*graph.input, *graph.output)] == ["input", "output"]


@pytest.mark.parametrize("to", ["onnx", "openvino", "safetensors"])
def test_half(to: Format, tmp_path: Path) -> None:
    # Enough weights to outweigh the graph.
    model = model_of(SRResNetConfig(blocks=2, channels=32, scale=2))
    full = exporting.export(model, target_of(tmp_path, to), to=to)
    half = exporting.export(model, target_of(tmp_path / "half", to), to=to, half=True)
    weights = [made.files[-1].stat().st_size for made in (full, half)]
    assert weights[1] < 0.6 * weights[0]
    assert full.difference < 1e-5
    assert 1e-5 < half.difference <= exporting.HALF_BOUND
    assert half.facts["weights"] == "fp16"


def test_half_rounds_kernels_alone_in_onnx(tmp_path: Path) -> None:
    import onnx

    model = model_of(TINY)
    exporting.export(model, tmp_path / "a.onnx", to="onnx", half=True)
    stored = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in onnx.load(tmp_path / "a.onnx").graph.initializer
    }
    wanted = model.network.state_dict()["body.0.weight"].half().numpy()
    np.testing.assert_array_equal(stored["body.0.weight.fp16"], wanted)
    assert {value.dtype for value in stored.values() if value.ndim != 4} == {np.dtype("float32")}


def meddled(change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """How to open an ONNX file whose runtime gets its sums wrong."""

    kind = FORMATS["onnx"]

    def opened(path: Path) -> exporting.Run:
        honest = kind.open(path)
        return lambda x: change(honest(x))

    return dataclasses.replace(kind, open=opened)


def nan_somewhere(y: np.ndarray) -> np.ndarray:
    y[0, 0, 0, 0] = np.nan
    return y


def far_in_the_second(y: np.ndarray) -> np.ndarray:
    return y if y.shape[0] == 1 else y + np.float32(2e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y + np.float32(0.02), r"differ from the network's by 0\.02, where 0\.0001 is"),
        (far_in_the_second, r"by 0\.0002, where 0\.0001 is allowed"),
        (nan_somewhere, r"by nan, where"),
        (lambda y: y[..., 1:], r"cannot be written for ONNX Runtime \(it makes \(1, 3, 74, 45\)"),
    ],
)
def test_a_file_that_computes_something_else_is_not_left(
    change: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.onnx"
    target.write_bytes(b"old")
    monkeypatch.setitem(FORMATS, "onnx", meddled(change))
    with pytest.raises(WeightsError, match=words):
        exporting.export(model_of(TINY), target, to="onnx", overwrite=True)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_conversion_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(model: Model, path: Path, half: bool) -> None:
        path.write_bytes(b"part")
        raise RuntimeError("no such operator\nand a long trace")

    kind = dataclasses.replace(FORMATS["torchscript"], write=write)
    monkeypatch.setitem(FORMATS, "torchscript", kind)
    with pytest.raises(WeightsError) as caught:
        exporting.export(model_of(TINY), tmp_path / "a.pt", to="torchscript")
    assert str(caught.value) == (
        "toy cannot be written for TorchScript (no such operator); try another --to"
    )
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_fp16(tmp_path: Path) -> None:
    model = model_of(TINY)
    model.network.state_dict()["body.0.weight"][0, 0, 0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"leave --half out|body\.0\.weight"):
        exporting.export(model, tmp_path / "a.safetensors", to="safetensors", half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "onnx,openvino"),
    ],
)
def test_a_missing_package_is_named_first(
    to: Format, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        exporting.export(model_of(TINY), target_of(tmp_path, to), to=to)
    assert f"--to {to} needs {module} " in str(caught.value)
    assert f"pip install 'waifu4x[{extra}]'" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_torchscript_has_no_half() -> None:
    with pytest.raises(UsageError, match=r"TorchScript .* no --half"):
        exporting.check_format("torchscript", half=True)


def test_openvino_reports_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import would send a line to Google Analytics; here a stand-in for it."""
    (tmp_path / "openvino_telemetry.py").write_text("")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    reports = False\n"
        "else:\n    reports = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is put back afterwards
        del sys.modules[name]
    assert exporting._import("openvino").reports is False
    importlib.import_module("openvino_telemetry")  # others may still have it


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("a.png", r"a\.png: a file for OpenVINO ends in \.xml"),
        ("there.xml", r"there\.xml exists already: --overwrite"),
        ("beside.xml", r"beside\.bin exists already"),
        ("folder.xml", r"folder\.xml is a folder"),
    ],
)
def test_targets_that_are_refused(target: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "there.xml").touch()
    (tmp_path / "beside.bin").touch()
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(UsageError, match=words):
        exporting.export(model_of(TINY), tmp_path / target, to="openvino")
    assert len(list(tmp_path.iterdir())) == 3


def test_overwrite_replaces_all_but_the_source(tmp_path: Path) -> None:
    model = model_of(TINY)
    path = tmp_path / "deep" / "a.safetensors"
    exporting.export(model, path, to="safetensors")
    before = path.read_bytes()
    exporting.export(model, path, to="safetensors", half=True, overwrite=True)
    assert len(path.read_bytes()) < len(before)
    loaded = checkpoints.load(path)
    with pytest.raises(UsageError, match="is what a is read from"):
        exporting.export(loaded, path, to="safetensors", overwrite=True)


@pytest.mark.parametrize(
    ("name", "config", "wanted"),
    [
        ("waifu4x-clean", TINY, "waifu4x-clean-x2.onnx"),
        ("sharp-x2", TINY, "sharp-x2.onnx"),
        ("RealESRGAN_X2", TINY, "RealESRGAN_X2.onnx"),
        ("max2", TINY, "max2-x2.onnx"),
        ("vdsr", SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4)), "vdsr.onnx"),
    ],
)
def test_default_names(name: str, config: Any, wanted: str) -> None:
    model = dataclasses.replace(model_of(config), name=name)
    assert exporting.default_target(model, to="onnx") == Path(wanted)
