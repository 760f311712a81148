"""``.onnx`` files: found out by running them, or refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import errors, save, upscale
from PIL import Image
from toys import random_model

import waifu4x
from waifu4x import exporting, onnx_bytes, onnx_files
from waifu4x.engines.onnxruntime import OnnxNetwork
from waifu4x.errors import CheckpointError, NumericsError, UnsafeCheckpointError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.tiled import TiledRunner

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FloatArray = npt.NDArray[np.float32]
TINY = SRVGGNetCompactConfig(scale=2, channels=4, convs=1)

# A blur of radius 1 that is the same in no two directions.
KERNEL = np.array([[0.0, 0.1, 0.05], [0.2, 0.4, 0.1], [0.05, 0.1, 0.0]], dtype=np.float32)
OFFSET = np.float32(0.02)
SIDES = {"chw": [1, 3, "h", "w"], "hwc": [1, "h", "w", 3]}


def blurred(image: FloatArray, *, scale: int = 2) -> FloatArray:
    """What the toys below make of (h, w, C): a blur, brighter, each pixel repeated."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    height, width = image.shape[:2]
    total = np.zeros_like(image)
    for row in range(3):
        for column in range(3):
            part = padded[row : row + height, column : column + width]
            total += KERNEL[row, column] * part
    total = np.minimum(total + OFFSET, 1.0)
    return total.repeat(scale, axis=0).repeat(scale, axis=1)


def tensor(values: Any, name: str, *, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def node(kind: str, taken: str, given: str, **attributes: Any) -> Any:
    return helper.make_node(kind, taken.split(), given.split(), **attributes)


def model_proto(
    nodes: list[Any],
    weights: list[Any],
    *,
    taken: list[Any],
    given: list[Any] | None = None,
    kind: int = TensorProto.FLOAT,
    more: list[Any] | None = None,
    **told: str,
) -> Any:
    sides = [helper.make_tensor_value_info("x", kind, taken), *(more or [])]
    results = [helper.make_tensor_value_info("y", kind, given)]
    graph = helper.make_graph(nodes, "toy", sides, results, initializer=weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, told)
    return made


def blur(
    *,
    layout: str = "chw",
    out: str | None = None,
    white: float = 1.0,
    dtype: Any = np.float32,
    channels: int = 3,
    scale: int = 2,
    sides: list[Any] | None = None,
    **told: str,
) -> Any:
    """The toy: [transpose,] divide, blur, add, repeat, clip, multiply[, transpose]."""
    kernel = np.broadcast_to(KERNEL, (channels, 1, 3, 3))
    weights = [
        tensor(kernel, "k", dtype=dtype),
        tensor([OFFSET] * channels, "b", dtype=dtype),
        tensor([1, 1, scale, scale], "s"),
        tensor(0, "zero", dtype=dtype),
        tensor(1, "one", dtype=dtype),
        tensor(white, "white", dtype=dtype),
    ]
    nodes = [
        node("Transpose", "x", "x1", perm=[0, 3, 1, 2])
        if layout == "hwc"
        else node("Identity", "x", "x1"),
        node("Div", "x1 white", "x2"),
        node("Conv", "x2 k b", "x3", pads=[1, 1, 1, 1], group=channels),
        helper.make_node("Resize", ["x3", "", "s"], ["x4"], mode="nearest"),
        node("Clip", "x4 zero one", "x5"),
        node("Mul", "x5 white", "x6"),
        node("Transpose", "x6", "y", perm=[0, 2, 3, 1])
        if (out or layout) == "hwc"
        else node("Identity", "x6", "y"),
    ]
    taken = sides or [channels if side == 3 else side for side in SIDES[layout]]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model_proto(nodes, weights, taken=taken, kind=kind, **told)


def written(folder: Path, made: Any, name: str = "toy.onnx") -> Path:
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def loaded(folder: Path, made: Any) -> Model:
    return onnx_files.load(written(folder, made))


def run(model: Model, image: FloatArray, **how: Any) -> FloatArray:
    return TiledRunner(model, device="cpu", engine="onnxruntime", **how).run(image)


def noise(height: int, width: int, channels: int = 3) -> FloatArray:
    rng = np.random.default_rng(height * width)
    return rng.random((height, width, channels), dtype=np.float32)


# -- what is found out -----------------------------------------------------------------------------

TOYS = {
    "channels first": blur(),
    "channels last": blur(layout="hwc"),
    "from first to last": blur(out="hwc"),
    "from last to first": blur(layout="hwc", out="chw"),
    "nothing said": blur(sides=["n", "c", "h", "w"]),
    "nothing said, last": blur(layout="hwc", sides=[None, None, None, None]),
    "white is 255": blur(white=255.0),
    "white is 255, said": blur(white=255.0, value_range="0-255"),
    "two at once": blur(sides=[2, 3, "h", "w"]),
    "32 px alone": blur(sides=[1, 3, 32, 32]),
    "40 px high, channels last": blur(layout="hwc", sides=[1, 40, "w", 3]),
    "24 by 33 px": blur(sides=[1, 3, 24, 33]),
}


@pytest.mark.parametrize("toy", TOYS)
def test_every_form_of_picture(toy: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, TOYS[toy])
    assert (model.name, model.scale, model.channels_in) == ("toy", 2, 3)
    assert (model.receptive_radius_px, model.size_multiple) == (1, 1)
    assert (model.pre_upsampled, model.scales, model.licence) == (False, (2,), None)
    assert isinstance(model.network, OnnxNetwork)
    assert model.network.config.form.white == (255.0 if "255" in toy else 1.0)
    assert model.network.config.precision == "fp32"
    form = model.network.config.form
    fixed = form.height_px is not None, form.width_px is not None
    for image in (noise(50, 61), noise(5, 3), noise(32, 40)):
        expected = blurred(image)
        if any(fixed):
            # There a picture goes on as it ends, where the graph alone would see zeros.
            continued = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
            continued[[0, -1]] *= fixed[0]
            continued[:, [0, -1]] *= fixed[1]
            expected = blurred(continued)[2:-2, 2:-2]
        for how in ({"tile_px": 4096}, {"tile_px": 16}):
            np.testing.assert_allclose(run(model, image, **how), expected, atol=1e-6)


def test_a_far_reach_in_a_small_fixed_window(tmp_path: Path) -> None:
    """Half of the window overlaps at most; this one's reach is not seen to end in it."""
    wide = np.zeros((3, 1, 1, 25), dtype=np.float32)
    wide[..., 0], wide[..., 12] = 0.1, 0.9
    weights = [tensor(wide, "k")]
    nodes = [node("Conv", "x k", "y", pads=[0, 12, 0, 12], group=3)]
    model = loaded(tmp_path, model_proto(nodes, weights, taken=[1, 3, 20, 20]))
    assert isinstance(model.network, OnnxNetwork)
    assert model.receptive_radius_px == onnx_files.FARTHEST_PX
    assert model.network.config.form.halo_px == 5
    assert run(model, noise(50, 60)).shape == (50, 60, 3)


def test_fp16_and_bytes(tmp_path: Path) -> None:
    model = loaded(tmp_path, blur(dtype=np.float16))
    assert isinstance(model.network, OnnxNetwork)
    assert model.network.config.precision == "fp16"
    image = noise(20, 31)
    result = run(model, image)
    assert result.dtype == np.float32
    assert 1e-6 < np.abs(result - blurred(image)).max() < 2e-3
    for wish in ("fp32", "bf16"):
        with pytest.raises(UsageError, match="computes in fp16, and in nothing else"):
            run(model, image, precision=wish)

    weights = [tensor([1, 1, 2, 2], "s")]
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")]
    kind = TensorProto.UINT8
    model = loaded(tmp_path, model_proto(nodes, weights, taken=SIDES["chw"], kind=kind))
    expected = np.rint(image * 255.0) / np.float32(255.0)
    np.testing.assert_allclose(
        run(model, image), expected.repeat(2, axis=0).repeat(2, axis=1), atol=1e-6
    )


def test_numbers_that_are_none_end_a_run_in_fp16(tmp_path: Path) -> None:
    """They cannot be computed again in fp32, as those of networks are."""
    weights = [tensor(0.0625, "dark", dtype=np.float16), tensor([1, 1, 2, 2], "s")]
    nodes = [
        node("Sub", "x dark", "x1"),
        node("Sqrt", "x1", "x2"),
        node("Mul", "x2 x2", "x3"),
        node("Add", "x3 dark", "x4"),
        helper.make_node("Resize", ["x4", "", "s"], ["y"], mode="nearest"),
    ]
    made = model_proto(nodes, weights, taken=SIDES["chw"], kind=TensorProto.FLOAT16)
    model = loaded(tmp_path, made)
    assert np.allclose(run(model, np.full((4, 4, 3), 0.5, dtype=np.float32)), 0.5, atol=1e-3)
    with pytest.raises(NumericsError, match=r"gives NaN or infinity .* in fp16, its own"):
        run(model, np.zeros((4, 4, 3), dtype=np.float32))


def test_luma_that_was_enlarged_before(tmp_path: Path) -> None:
    path = written(tmp_path, blur(channels=1, scale=1))
    model = onnx_files.load(path)
    assert (model.scale, model.channels_in, model.pre_upsampled) == (1, 1, True)
    assert model.scales is None
    upscaler = waifu4x.open_upscaler(path)
    picture = waifu4x.read(save(tmp_path / "a.png", size=(9, 7)))
    larger, facts = upscaler.upscale(picture, waifu4x.Target(scale=3))
    assert (larger.width_px, larger.height_px) == (27, 21)
    assert (facts.engine, facts.precision, facts.notes) == ("onnxruntime", "fp32", ())


def test_sizes_that_must_be_multiples(tmp_path: Path) -> None:
    nodes = [
        node("SpaceToDepth", "x", "x1", blocksize=2),
        node("DepthToSpace", "x1", "x2", blocksize=2, mode="DCR"),
        helper.make_node("Resize", ["x2", "", "s"], ["y"], mode="nearest"),
    ]
    weights = [tensor([1, 1, 3, 3], "s")]
    model = loaded(tmp_path, model_proto(nodes, weights, taken=SIDES["chw"]))
    assert (model.scale, model.size_multiple, model.receptive_radius_px) == (3, 2, 0)
    image = noise(7, 9)
    expected = image.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_allclose(run(model, image), expected, atol=1e-6)


def test_what_looks_at_all_of_a_picture_reaches_farthest(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMean", "x axes", "m"),
        node("Mul", "m tenth", "m1"),
        node("Add", "x m1", "x1"),
        helper.make_node("Resize", ["x1", "", "s"], ["y"], mode="nearest"),
    ]
    weights = [
        tensor([2, 3], "axes", dtype=np.int64),
        tensor(0.1, "tenth"),
        tensor([1, 1, 2, 2], "s"),
    ]
    model = loaded(tmp_path, model_proto(nodes, weights, taken=SIDES["chw"]))
    assert model.receptive_radius_px == onnx_files.FARTHEST_PX


def test_parameters_and_the_module(tmp_path: Path) -> None:
    model = loaded(tmp_path, blur())
    assert model.parameters == 27 + 3 + 4  # kernel, bias, and the four factors
    x = torch.from_numpy(noise(6, 5)).permute(2, 0, 1)[None]
    y = model.network(x)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(y, blurred(noise(6, 5)), atol=1e-6)


# -- what files say about themselves ---------------------------------------------------------------


def exported(folder: Path, config: Any, **told: str) -> tuple[Path, Model]:
    source = random_model(config, scales=(2, 3))
    path = folder / "toy.onnx"
    exporting.export(source, path, to="onnx", overwrite=True)
    if told:
        made = onnx.load(path)
        facts = {entry.key: entry.value for entry in made.metadata_props}
        helper.set_model_props(made, {**facts, **told})
        onnx.save(made, path)
    return path, source


CONFIGS = [
    TINY,
    SRCNNConfig(kernels=(9, 1, 5), channels=(8, 4)),
    RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2),
    RRDBNetConfig(blocks=1, channels=4, growth=2, upsamplings=0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_what_was_exported_here_comes_back(config: Any, tmp_path: Path) -> None:
    path, source = exported(tmp_path, config, licence="CC0-1.0")
    model = onnx_files.load(path)
    for fact in ("scale", "channels_in", "pre_upsampled", "size_multiple", "receptive_radius_px"):
        assert getattr(model, fact) == getattr(source, fact), fact
    assert model.licence == "CC0-1.0"
    assert model.scales == ((2, 3) if source.pre_upsampled else (source.scale,))
    assert model.metadata["source_sha256"] == source.sha256
    assert abs(model.parameters - source.parameters) <= 0.05 * source.parameters
    image = noise(40, 52, source.channels_in)
    expected = TiledRunner(source, device="cpu", precision="fp32", engine="torch").run(image)
    np.testing.assert_allclose(run(model, image), expected, atol=1e-5)
    np.testing.assert_allclose(run(model, image, tile_px=16), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"scale": "4"}, "says that its scale is 4, but it is 2; export it again"),
        ({"color": "luma"}, "says that its color is luma, but it is RGB"),
        ({"size_multiple": "2"}, "says that its size_multiple is 2, but it is 1"),
        ({"receptive_radius_px": "2"}, "radius_px is 2, but a pixel reached 3 px"),
        ({"value_range": "-1 to 1"}, "has values in -1 to 1, where 0 to 1 or 0 to 255"),
    ],
)
def test_what_is_not_true_is_an_error(told: dict[str, str], words: str, tmp_path: Path) -> None:
    path, _ = exported(tmp_path, TINY, **told)
    assert words in refused(path)


def test_a_larger_reach_than_was_seen_is_believed(tmp_path: Path) -> None:
    path, _ = exported(tmp_path, TINY, receptive_radius_px="9")
    assert onnx_files.load(path).receptive_radius_px == 9


def test_what_was_found_out_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = written(tmp_path, blur(white=255.0)), tmp_path / "kept"
    first = onnx_files.load(path, folder=folder)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    find_out, calls = onnx_files._find_out, []
    monkeypatch.setattr(onnx_files, "_find_out", lambda f: calls.append(f) or find_out(f))
    assert onnx_files.load(path, folder=folder).network.config == first.network.config
    assert calls == []
    file.write_bytes(whole[:-1])
    assert onnx_files.load(path, folder=folder).network.config == first.network.config
    assert len(calls) == 1
    assert file.read_bytes() == whole


# -- what is refused -------------------------------------------------------------------------------


def refused(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        onnx_files.load(path)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


WHOLE = blur().SerializeToString()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; download it again"),
        (WHOLE[:200], "is no ONNX file, or is cut short; download it again"),
        (WHOLE[:-5], "cut short|ONNX Runtime cannot run it"),
        (np.random.default_rng(0).bytes(3000), "is no ONNX file, or is cut short"),
        (WHOLE.replace(b"Resize", b"Re\xffize"), "holds names that are no text"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not a model; download it again"),
        (b"PK\x03\x04 and so on", r"is a PyTorch file, not ONNX: name it toy\.pth"),
        (b"\x90\0\0\0\0\0\0\0{}", r"is a safetensors file: name it toy\.safetensors"),
    ],
)
def test_what_is_no_onnx_file(content: bytes, words: str, tmp_path: Path) -> None:
    assert re.search(words, refused(written(tmp_path, content)))


def test_onnx_under_another_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is an ONNX file: name it toy\.onnx"):
        checkpoints.load(written(tmp_path, blur(), "toy.pth"))
    with pytest.raises(CheckpointError, match="only upscale, compare and bench take it"):
        checkpoints.load(written(tmp_path, blur()))
    with pytest.raises(CheckpointError, match=r"gone\.onnx: cannot be read: No such file"):
        onnx_files.load(tmp_path / "gone.onnx")


def enlarging(*nodes: Any, weights: tuple[Any, ...] = (), **how: Any) -> Any:
    """Nodes from x to x1, and then a picture twice as large."""
    last = helper.make_node("Resize", ["x1", "", "s"], ["y"], mode="nearest")
    how = {"taken": SIDES["chw"], **how}
    return model_proto([*nodes, last], [tensor([1, 1, 2, 2], "s"), *weights], **how)


SECOND_INPUT = [helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1])]
GRAPHS = {
    "unknown operation": (
        enlarging(node("Foo", "x", "x1")),
        "ONNX Runtime cannot run it (This is an invalid model. In Node",
    ),
    "foreign operation": (
        enlarging(node("Foo", "x", "x1", domain="of.somebody")),
        "ONNX Runtime cannot run it (",
    ),
    "two inputs": (
        enlarging(node("Mul", "x sigma", "x1"), more=SECOND_INPUT),
        "takes 2 inputs (x, sigma), where one picture is given",
    ),
    "no picture": (
        model_proto([node("Identity", "x", "y")], [], taken=["h", "w"]),
        "takes tensor(float) of 2 dimensions",
    ),
    "four channels": (
        enlarging(node("Identity", "x", "x1"), taken=[1, 4, "h", "w"]),
        "has no place for one or three channels",
    ),
    "one number": (
        enlarging(node("GlobalAveragePool", "x", "x1")),
        "does not enlarge pictures (it makes (2, 2, 3) of (25, 27, 3))",
    ),
    "a negative": (
        enlarging(node("Sub", "one x", "x1"), weights=(tensor(1.0, "one"),)),
        "does not look like the picture, with values of 0 to 1 and of 0 to 255",
    ),
    "another size inside": (
        enlarging(
            node("Reshape", "x to", "x1"), weights=(tensor([1, 3, 7, 7], "to", dtype=np.int64),)
        ),
        "does not enlarge pictures (Non-zero status code",
    ),
    "more memory than there is": (
        enlarging(
            node("ConstantOfShape", "many", "n"),
            node("ReduceMax", "n", "n1", keepdims=0),
            node("Add", "x n1", "x1"),
            weights=(tensor([1 << 10, 1 << 22], "many", dtype=np.int64),),
        ),
        "needs more memory than any known network",
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_that_are_of_no_use(graph: str, tmp_path: Path) -> None:
    made, words = GRAPHS[graph]
    assert words in refused(written(tmp_path, made))


def claiming(*sides: int) -> Any:
    """A tensor that is said to be of this size, and holds nothing."""
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=sides)
    return enlarging(node("Mul", "x w", "x1"), weights=(made,))


def test_sizes_that_are_only_claimed(tmp_path: Path) -> None:
    message = refused(written(tmp_path, claiming(1 << 20, 1 << 20)))
    assert "has over 100,000,000 parameters" in message
    assert "of negative size" in refused(written(tmp_path, claiming(-1, 5)))
    assert "ONNX Runtime cannot run it" in refused(written(tmp_path, claiming(1000, 1000)))


def test_what_might_never_end(tmp_path: Path) -> None:
    body = helper.make_graph([], "body", [], [])
    loop = enlarging(node("Loop", "n c x", "x1", body=body))
    inside = helper.make_graph(list(loop.graph.node[:1]), "inside", [], [])
    hidden = enlarging(node("If", "c", "x1", then_branch=inside, else_branch=inside))
    for made in (loop, hidden):
        message = refused(written(tmp_path, made), UnsafeCheckpointError)
        assert "holds the operation Loop, which might never end" in message
    made = enlarging(node("EPContext", "x", "x1", domain="com.microsoft"))
    assert "reads other files" in refused(written(tmp_path, made), UnsafeCheckpointError)


def with_functions(names: list[str], calls: list[list[str]]) -> Any:
    made = enlarging(node(names[0], "x", "x1", domain="f"))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    made.opset_import.append(opsets[1])
    for name, called in zip(names, calls, strict=True):
        nodes = [
            node(kind, f"v{n}", f"v{n + 1}", domain="f" if kind in names else "")
            for n, kind in enumerate(called)
        ]
        ends = [["v0"], [f"v{len(called)}"]]
        made.functions.append(helper.make_function("f", name, *ends, nodes, opsets))
    return made


def test_functions(tmp_path: Path) -> None:
    few = with_functions(["A", "B"], [["B", "B"], ["Identity", "Identity"]])
    assert onnx_files.load(written(tmp_path, few)).scale == 2
    names = [f"F{n}" for n in range(40)]
    doubling = [[below, below] for below in [*names[1:], "Relu"]]
    message = refused(written(tmp_path, with_functions(names, doubling)))
    assert "holds more operations than any known network" in message
    endless = with_functions(["A", "B"], [["B"], ["A"]])
    assert "functions that call themselves" in refused(written(tmp_path, endless))


# -- weights in other files ------------------------------------------------------------------------


def outside(location: str, **places: int) -> Any:
    """The toy with its kernel in another file."""
    made = blur()
    kernel = made.graph.initializer[0]
    data = kernel.raw_data
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **places}.items():
        kernel.external_data.add(key=key, value=str(value))
    assert len(data) == 4 * 27
    return made


KERNEL_BYTES = np.broadcast_to(KERNEL, (3, 1, 3, 3)).tobytes()


def test_weights_beside_the_file_belong_to_it(tmp_path: Path) -> None:
    data = tmp_path / "toy.onnx.data"
    data.write_bytes(b"1234" + KERNEL_BYTES)
    model = loaded(tmp_path, outside("toy.onnx.data", offset=4, length=108))
    image = noise(20, 31)
    np.testing.assert_allclose(run(model, image), blurred(image), atol=1e-6)
    data.write_bytes(b"1234" + b"\0\0\0\0" + KERNEL_BYTES[4:-4] + b"\0\0\0\1")
    assert onnx_files.load(model.path).sha256 != model.sha256


@pytest.mark.parametrize(
    "location",
    ["../secret", "sub/secret", "/etc/hostname", "..", ".", "", "sub\\secret", "C:secret", "a\0b"],
)
def test_weights_elsewhere_are_not_read(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for secret in (tmp_path / "secret", folder / "sub" / "secret"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_bytes(KERNEL_BYTES)
    monkeypatch.chdir(tmp_path / "folder" / "sub")
    made = written(folder, outside(location))
    message = refused(made, UnsafeCheckpointError)
    assert "does not lie beside it; nothing was read from there" in message


def test_links_do_not_lead_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(KERNEL_BYTES)
    try:
        (folder / "data").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("needs symbolic links")
    refused(written(folder, outside("data")), UnsafeCheckpointError)
    # Caches of downloads link the model and its weights from one folder into another.
    written(tmp_path, outside("data"), "blob")
    (folder / "toy.onnx").unlink()
    (folder / "toy.onnx").symlink_to(tmp_path / "blob")
    assert onnx_files.load(folder / "toy.onnx").scale == 2


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"offset": 1}, "ONNX Runtime cannot run it"),
        ({"offset": 100, "length": 108}, "does not belong to data, which is too short"),
        ({"length": 10**11}, "which is too short"),
        ({"offset": -4}, "says no number where its weights begin"),
    ],
)
def test_weights_that_do_not_fit(places: dict[str, int], words: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(KERNEL_BYTES)
    assert words in refused(written(tmp_path, outside("data", **places)))


def test_weights_that_are_missing(tmp_path: Path) -> None:
    assert "in data, which is not beside it" in refused(written(tmp_path, outside("data")))


def test_fields_that_a_newer_runtime_might_read_are_dropped(tmp_path: Path) -> None:
    """What this reader does not know, it cannot have checked: field 99, a text."""
    made = WHOLE + b"\x9a\x06\x06secret"
    assert b"secret" not in onnx_bytes.read(written(tmp_path, made)).graph
    assert loaded(tmp_path, made).scale == 2


# -- the command -----------------------------------------------------------------------------------


def test_the_command_gives_the_pixels_that_torch_gives(tmp_path: Path, own_home: Path) -> None:
    path, source = exported(tmp_path, TINY)
    checkpoints.save(source.network, tmp_path / "same.safetensors", metadata={})
    picture = save(tmp_path / "a.png", size=(70, 50))
    results = []
    for model in (path, tmp_path / "same.safetensors"):
        done = upscale(
            picture,
            "-m",
            model,
            "-s",
            2,
            "--precision",
            "fp32",
            "--json",
            "-o",
            tmp_path / "b.png",
            "--overwrite",
        )
        assert done.exit_code == 0, done.stderr
        results.append((json.loads(done.stdout), np.asarray(Image.open(tmp_path / "b.png"))))
    (by_onnx, pixels), (by_torch, expected) = results
    assert (by_onnx["engine"], by_onnx["precision"]) == ("onnxruntime", "fp32")
    assert (by_onnx["notes"], by_torch["engine"]) == ([], "torch")
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99
    assert len(list((own_home / "engines").iterdir())) == 1


def test_the_command_refuses_other_engines(tmp_path: Path) -> None:
    path = written(tmp_path, blur())
    picture = save(tmp_path / "a.png")
    for engine in ("torch", "openvino"):
        done = upscale(picture, "-m", path, "--engine", engine)
        assert done.exit_code == 2
        assert errors(done) == [
            f"error: {engine} cannot run an .onnx file, only ONNX Runtime can: --engine onnxruntime"
        ]
