"""Networks that spandrel builds: with a stand-in for it, and with itself where it is installed."""

from __future__ import annotations

import math
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from waifu4x.bench.cost import measure_cost
from waifu4x.cli.app import app
from waifu4x.engines import choice
from waifu4x.engines.torch import TorchEngine, peak_values_per_px
from waifu4x.errors import CheckpointError, DeviceError, UnknownNetworkError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import load, read_state
from waifu4x.tiled import TiledRunner

CPU = torch.device("cpu")
HINT = 'pip install "waifu4x[community]"'


# -- the stand-in: as much of spandrel's documented interface as is used ---------------------------


@dataclass
class SizeRequirements:
    minimum: int = 0
    multiple_of: int = 1
    square: bool = False


class ImageModelDescriptor:
    """What spandrel gives for a network that makes pictures of pictures."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor], **facts: Any) -> None:
        self.model = model
        self.architecture = types.SimpleNamespace(id=facts.get("id", "Toy"))
        self.purpose = facts.get("purpose", "SR")
        self.scale = facts.get("scale", 2)
        self.input_channels = facts.get("input_channels", 3)
        self.output_channels = facts.get("output_channels", 3)
        self.supports_half = facts.get("supports_half", True)
        self.supports_bfloat16 = facts.get("supports_bfloat16", True)
        self.size_requirements = facts.get("size_requirements", SizeRequirements())
        model.load_state_dict(state)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        assert image.shape[0] == 1, "it is documented for one picture"
        return self.model(image).clamp(0, 1)


class MaskedImageModelDescriptor:
    architecture = types.SimpleNamespace(id="LaMa")


class UnsupportedModelError(Exception):
    pass


class Halves(nn.Module):
    """Takes sizes beside pictures, and slices what a convolution gives."""

    def forward(self, x: Tensor, size_px: tuple[int, int]) -> Tensor:
        assert x.shape[2:] == size_px
        return x[:, :3] + x[:, 3:]


class Toy(nn.Module):
    """Nearest-neighbour x2 of what two convolutions make together; refuses small pictures."""

    def __init__(self, smallest_px: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.halves = Halves()
        self.smallest_px = smallest_px
        self.register_buffer("table", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.smallest_px:
            raise RuntimeError("Padding size should be less than the input dimension\nat x")
        y = self.halves(self.conv(x), tuple(x.shape[2:]))
        return functional.interpolate(y, scale_factor=2)


TABLE = torch.tensor([3, 4])
STATE = {
    # The two halves add up to the picture again.
    "conv.weight": torch.cat((torch.eye(3) * 0.75, torch.eye(3) * 0.25)).view(6, 3, 1, 1),
    "conv.bias": torch.zeros(6),
    "table": TABLE,
}


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The stand-in; `spandrel.toy` is what it gives for the tensors of a Toy."""
    module: Any = types.ModuleType("spandrel")
    module.toy = lambda state: ImageModelDescriptor(Toy(), state)
    module.given = []

    class ModelLoader:
        def __init__(self, device: torch.device | None = None) -> None:
            assert device == CPU

        def load_from_state_dict(self, state: dict[str, Any]) -> Any:
            module.given.append(state)
            if "conv.weight" not in state:
                raise UnsupportedModelError
            return module.toy(dict(state))

        def load_from_file(self, path: object) -> Any:
            raise AssertionError("it is never given a file")

    for kind in (
        *(ModelLoader, ImageModelDescriptor, MaskedImageModelDescriptor),
        *(UnsupportedModelError, SizeRequirements),
    ):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "spandrel", module)
    return module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "toy.pth", {"params_ema": STATE})


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    return caught.value


# -- what is built ---------------------------------------------------------------------------------


def test_a_network_that_only_spandrel_knows(spandrel: Any, path: Path) -> None:
    spandrel.toy = lambda state: ImageModelDescriptor(
        Toy(), state, size_requirements=SizeRequirements(multiple_of=6)
    )
    model = load(path, name="given", licence="MIT")
    assert model.architecture == "community:Toy"
    assert (model.name, model.licence, model.scale, model.channels_in) == ("given", "MIT", 2, 3)
    assert (model.pre_upsampled, model.scales, model.global_context) == (False, (2,), True)
    assert model.size_multiple == math.lcm(6, 8) == 24
    assert model.parameters == 6 * 3 + 6
    assert not model.network.training
    assert not any(each.requires_grad for each in model.network.parameters())
    x = torch.rand(2, 3, 9, 5, generator=torch.Generator().manual_seed(0))
    y = model.network(x)
    torch.testing.assert_close(y, functional.interpolate(x, scale_factor=2))
    assert y.dtype == torch.float32
    # Its index tables come through, and the numbers are copies in float32.
    (given,) = spandrel.given
    assert torch.equal(given["table"], TABLE)
    assert {tensor.dtype for tensor in given.values()} == {torch.float32, torch.int64}


def test_what_is_known_here_never_reaches_it(spandrel: Any, tmp_path: Path) -> None:
    from waifu4x.networks.vdsr import VDSR, VDSRConfig

    network = VDSR(VDSRConfig(depth=3, channels=4))
    assert load(written(tmp_path / "v.pth", network.state_dict())).architecture == "vdsr"
    assert spandrel.given == []


def test_convolutions_alone_have_no_global_context(spandrel: Any, path: Path) -> None:
    spandrel.toy = lambda state: ImageModelDescriptor(Toy(), state, id="Compact")
    assert not load(path).global_context


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (40, 3)])
def test_small_pictures_are_continued(spandrel: Any, path: Path, size: tuple[int, int]) -> None:
    spandrel.toy = lambda state: ImageModelDescriptor(Toy(smallest_px=13), state)
    network = load(path).network
    x = torch.rand(1, 3, *size)
    torch.testing.assert_close(network(x), functional.interpolate(x, scale_factor=2))
    # The first of the sides tried that is large enough, by repeating the border.
    sizes: list[tuple[int, ...]] = []
    hook = network.network.register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape))
    network(x)
    hook.remove()
    assert sizes == [(1, 3, max(16, size[0]), max(16, size[1]))]


@pytest.mark.parametrize("stands", [True, False])
def test_what_does_not_stand_bf16_computes_in_fp32(spandrel: Any, path: Path, stands: bool) -> None:
    spandrel.toy = lambda state: ImageModelDescriptor(Toy(), state, supports_bfloat16=stands)
    network = load(path).network
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, network(x)) is not stands
    torch.testing.assert_close(y, network(x), atol=0.01, rtol=0.0)


def test_it_runs_in_tiles_by_torch(
    spandrel: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAIFU4X_ENGINE", "auto")
    image = np.random.default_rng(0).random((50, 70, 3), dtype=np.float32)
    for precision in ("fp32", "bf16"):
        runner = TiledRunner(load(path), device="cpu", engine="auto", precision=precision)
        assert runner.engine == "torch"
        result = TiledRunner(load(path), device="cpu", precision=precision, tile_px=16).run(image)
        np.testing.assert_allclose(result, image.repeat(2, 0).repeat(2, 1), atol=0.01)


def test_nothing_but_torch_runs_it(spandrel: Any, path: Path) -> None:
    network = load(path).network
    for how in (
        {"engine": "openvino"},
        {"engine": "onnxruntime"},
        {"precision": "int8"},
        {"device": "xpu"},
        {"compiled": True},
    ):
        with pytest.raises(DeviceError, match=r"not for networks that spandrel builds: try"):
            choice.open_engine(network, **how)


def test_convolutions_are_not_joined_in_a_network_of_others(spandrel: Any, path: Path) -> None:
    """What stands for a convolution that waits cannot be sliced."""
    engine = TorchEngine(load(path).network, device=CPU, dtype=torch.bfloat16)
    batch = np.full((1, 8, 8, 3), 0.5, dtype=np.float32)
    np.testing.assert_array_equal(engine.run(batch), np.full((1, 16, 16, 3), 0.5))


def test_its_cost_and_its_memory_are_counted(spandrel: Any, path: Path) -> None:
    network = load(path).network
    assert measure_cost(network, network.config).multiply_adds_per_pixel == 6 * 3
    # The widest: the two halves go in with their sum behind them, or the convolution.
    assert peak_values_per_px(network, CPU) == 6 + 3


def test_from_file_to_picture(spandrel: Any, path: Path, tmp_path: Path) -> None:
    from PIL import Image

    source = tmp_path / "a.png"
    Image.fromarray(np.full((6, 7, 3), 99, dtype=np.uint8)).save(source)
    added = CliRunner().invoke(app, ["models", "add", str(path), "--name", "toy"])
    assert added.exit_code == 0, added.stderr
    assert "community:Toy" in added.stderr
    used = CliRunner().invoke(app, ["upscale", str(source), "-m", "toy", "-s", "2"])
    assert used.exit_code == 0, used.stderr
    with Image.open(tmp_path / "a_toy_2x.png") as made:
        np.testing.assert_array_equal(np.asarray(made), np.full((12, 14, 3), 99))


# -- what is not -----------------------------------------------------------------------------------


def test_without_spandrel_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    error = refusal(path)
    assert isinstance(error, UnknownNetworkError)
    assert "first: conv.weight (6, 3, 1, 1)" in str(error)
    assert HINT in str(error)


@pytest.mark.parametrize(
    "line",
    ["raise RuntimeError('operator torchvision::nms does not exist')", "import missing_package"],
)
def test_a_spandrel_that_does_not_load(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "spandrel.py").write_text(line, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    message = str(refusal(path))
    assert "does not load" in message
    assert "torchvision::nms" in message or "missing_package" in message
    assert HINT in message


def broken(state: dict[str, Tensor]) -> Any:
    raise KeyError("layers.0\nand more")


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (lambda state: MaskedImageModelDescriptor(), "LaMa, which fills holes"),
        (
            lambda state: ImageModelDescriptor(Toy(), state, purpose="FaceSR"),
            "only faces or squares",
        ),
        (
            lambda state: ImageModelDescriptor(
                Toy(), state, size_requirements=SizeRequirements(square=True)
            ),
            "only faces or squares",
        ),
        (
            lambda state: ImageModelDescriptor(Toy(), state, input_channels=4),
            "4 channels in and 3 out",
        ),
        (lambda state: ImageModelDescriptor(Toy(), state, scale=4), "makes (1, 3, 16, 16), not"),
        (
            lambda state: ImageModelDescriptor(Toy(smallest_px=65), state),
            "does not run here (Padding size should be less than the input dimension)",
        ),
        (lambda state: ImageModelDescriptor(nn.Linear(1, 1), state), "cannot build it"),
        (broken, "cannot build it ('layers.0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    spandrel: Any, path: Path, toy: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    spandrel.toy = toy
    error = refusal(path)
    assert isinstance(error, UnknownNetworkError)
    assert message in str(error)
    assert HINT not in str(error)


def test_what_spandrel_does_not_know_either(spandrel: Any, tmp_path: Path) -> None:
    error = refusal(written(tmp_path / "m.pth", {"other.weight": torch.ones(3)}))
    assert isinstance(error, UnknownNetworkError)
    assert "spandrel does not know it either" in str(error)


def test_damage_is_found_out(spandrel: Any, tmp_path: Path) -> None:
    state = {**STATE, "conv.bias": torch.full((6,), math.nan)}
    error = refusal(written(tmp_path / "m.pth", state))
    assert "NaN or infinity in network.conv.bias" in str(error)


def test_whole_numbers_are_for_tables_alone(spandrel: Any, path: Path, tmp_path: Path) -> None:
    for key, tensor in (
        ("conv.weight", STATE["conv.weight"].long()),
        ("conv.bias", torch.zeros(6, dtype=torch.int64)),
        ("table", TABLE.int()),
    ):
        error = refusal(written(tmp_path / "m.pth", {**STATE, key: tensor}))
        assert "not floats" in str(error)
        assert not isinstance(error, UnknownNetworkError)
    # Who asks for the floats in a file gets nothing else.
    with pytest.raises(CheckpointError, match="not floats: 'table' is int64"):
        read_state(path)


def test_it_cannot_be_saved_as_one_of_this_project(
    spandrel: Any, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="none of the networks that can be loaded again"):
        checkpoints.save(load(path).network, tmp_path / "m.safetensors", metadata={})


# -- spandrel itself -------------------------------------------------------------------------------


def test_a_transformer_by_spandrel_itself(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        try:
            from spandrel.architectures.SwinIR import SwinIR
        except Exception as error:  # torchvision raises RuntimeError where it is of another torch
            pytest.skip(f"needs the extra community ({type(error).__name__})")
        torch.manual_seed(0)
        theirs = SwinIR(
            embed_dim=12,
            depths=[2],
            num_heads=[2],
            window_size=8,
            upscale=2,
            upsampler="pixelshuffle",
        )
    model = load(written(tmp_path / "swinir.pth", {"params": theirs.state_dict()}))
    assert (model.architecture, model.scale, model.global_context) == ("community:SwinIR", 2, True)
    image = np.random.default_rng(0).random((24, 32, 3), dtype=np.float32)
    result = TiledRunner(model, device="cpu", precision="fp32").run(image)
    with torch.inference_mode():
        y = theirs.eval()(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(result, y.clamp(0.0, 1.0).numpy(), atol=1e-5)
