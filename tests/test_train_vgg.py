"""VGG-19's features against an independent computation, its files, and the content losses."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from waifu4x import models, weights
from waifu4x.cli.app import app
from waifu4x.errors import CheckpointError, OfflineError, UsageError, WeightsError
from waifu4x.train.objectives.losses import L1Loss, WeightedSum
from waifu4x.train.objectives.vgg import (
    CATALOG_NAME,
    LAYERS,
    SRGAN_RESCALE,
    ContentLoss,
    VGG19Features,
    load_vgg19,
    open_vgg19,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    """Trained weights of conv1_1 … conv3_1."""
    return shared / "weights" / "perceptual" / "vgg19_features_0-10_from_normalised.safetensors"


def beginning(layers: int = 2, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of VGG-19's first convolutions, as torchvision names them."""
    random = np.random.default_rng(seed)
    state: dict[str, Tensor] = {}
    channels = 3
    for index, out in list({0: 64, 2: 64, 5: 128, 7: 128}.items())[:layers]:
        weight = random.normal(0.0, (2.0 / (9 * channels)) ** 0.5, (out, channels, 3, 3))
        state[f"features.{index}.weight"] = torch.from_numpy(weight).float()
        state[f"features.{index}.bias"] = torch.from_numpy(random.normal(0.0, 0.1, out)).float()
        channels = out
    return state


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, path)
    return path


# Layers.


def test_every_layer_has_torchvisions_index() -> None:
    """The layout written down as torchvision's configuration "E" is: C for a channel count."""
    plan = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
    expected: dict[str, int] = {}
    index, block, number = 0, 1, 1
    for item in plan:
        if item == "M":
            index, block, number = index + 1, block + 1, 1
            continue
        expected |= {f"conv{block}_{number}": index, f"relu{block}_{number}": index + 1}
        index, number = index + 2, number + 1
    assert index == 37
    expected |= {"vgg22": 8, "vgg54": 35}
    assert expected == LAYERS
    assert (LAYERS["conv5_4"], LAYERS["conv3_1"], LAYERS["relu1_2"]) == (34, 10, 3)


def test_it_is_built_only_up_to_the_deepest_layer() -> None:
    features = VGG19Features(["relu2_2", "conv1_1"])
    assert list(features.state_dict()) == [
        f"features.{index}.{part}" for index in (0, 2, 5, 7) for part in ("weight", "bias")
    ]
    with torch.device("meta"):
        deepest = VGG19Features(["conv5_4"])
    assert sum(parameter.numel() for parameter in deepest.parameters()) == 20_024_384


@pytest.mark.parametrize("layers", [[], ["relu2_3"], ["conv1_1", "vgg11"]])
def test_layers_that_do_not_exist(layers: list[str]) -> None:
    with pytest.raises(ValueError, match=r"VGG-19 has conv1_1, relu1_1, conv1_2"):
        VGG19Features(layers)
    with pytest.raises(ValueError, match="VGG-19 has"):
        open_vgg19(layers, offline=True)  # before any file is looked for


@pytest.mark.parametrize(
    ("layer", "smallest_px"),
    [("relu1_2", 1), ("conv2_1", 2), ("relu2_2", 2), ("conv4_1", 8), ("relu5_4", 16)],
)
def test_pictures_may_be_as_small_as_the_poolings_allow(layer: str, smallest_px: int) -> None:
    with torch.device("meta"):
        features = VGG19Features([layer])
        (found,) = features(torch.empty(1, 3, smallest_px, smallest_px)).values()
        assert found.shape[2:] == (1, 1)
        for wrong in ((1, 3, smallest_px, smallest_px - 1), (1, 1, 32, 32), (3, 32, 32)):
            with pytest.raises(ValueError, match=f"at least {smallest_px} px"):
                features(torch.empty(*wrong))


# Values.


def convolved(x: np.ndarray, state: dict[str, Tensor], index: int) -> np.ndarray:
    """(C, H, W) through one 3x3 convolution with zero padding, in float64, by its definition."""
    weight = state[f"features.{index}.weight"].double().numpy()
    bias = state[f"features.{index}.bias"].double().numpy()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("ochw,cyxhw->oyx", weight, windows) + bias[:, None, None]


def pooled(x: np.ndarray) -> np.ndarray:
    channels, height, width = x.shape
    cut = x[:, : height // 2 * 2, : width // 2 * 2]
    return cut.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))


def by_hand(x: np.ndarray, state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Features of (3, H, W) RGB in [0, 1], written out."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found: dict[str, np.ndarray] = {}
    x = (x - mean[:, None, None]) / std[:, None, None]
    for name, index in (("1_1", 0), ("1_2", 2), ("2_1", 5), ("2_2", 7)):
        if name == "2_1":
            x = pooled(x)
        found[f"conv{name}"] = convolved(x, state, index)
        x = found[f"relu{name}"] = np.maximum(found[f"conv{name}"], 0.0)
    return found


def test_features_are_those_of_the_definition(published: Path) -> None:
    x = np.random.default_rng(1).random((3, 14, 11))
    expected = by_hand(x, load_file(published))
    features = load_vgg19(published, ["vgg22", "conv2_2", "relu1_1", "conv1_2", "relu2_1"])
    found = features.double()(torch.from_numpy(x)[None])
    assert list(found) == ["vgg22", "conv2_2", "relu1_1", "conv1_2", "relu2_1"]
    for name, value in found.items():
        wanted = expected["relu2_2" if name == "vgg22" else name]
        # The mean and deviation are kept in float32, which is all that differs.
        np.testing.assert_allclose(value[0].numpy(), wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    # Index 8 is after the activation, index 7 before it; the one did not overwrite the other.
    assert float(found["vgg22"].min()) == 0.0
    assert float(found["conv2_2"].min()) < -0.01
    assert torch.equal(found["vgg22"], found["conv2_2"].clamp(min=0.0))


def test_gradients_reach_the_picture_and_not_the_weights(tmp_path: Path) -> None:
    features = load_vgg19(saved(tmp_path / "vgg.safetensors", beginning(4)), ["vgg22"])
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    features(x)["vgg22"].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    assert not features.training
    for parameter in features.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


# Files.


def test_torchvisions_kind_of_file_loads(tmp_path: Path) -> None:
    """Of 2017: torch's old container, parameters instead of tensors, and a classifier."""
    state = beginning()
    content = OrderedDict((key, nn.Parameter(tensor)) for key, tensor in state.items())
    content["classifier.0.weight"] = nn.Parameter(torch.rand(2, 3))
    path = tmp_path / "vgg19-dcbb9e9d.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    loaded = load_vgg19(path, ["relu1_2"]).state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in beginning().items()}
    loaded = load_vgg19(saved(tmp_path / "half.safetensors", half), ["conv1_2"])
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].float())


def test_a_file_of_early_layers_serves_those_and_names_what_it_lacks(published: Path) -> None:
    load_vgg19(published, ["conv3_1"])
    for layer, missing in (
        ("conv3_2", "it has no conv3_2 (features.12)"),
        ("vgg54", "it has no conv3_2 (features.12), conv3_3 (features.14), conv3_4 (features.16)"),
    ):
        with pytest.raises(WeightsError) as caught:
            load_vgg19(published, ["relu1_1", layer])
        message = str(caught.value)
        assert published.name in message
        assert f"does not reach {layer}: {missing}" in message
        assert "--vgg PATH" in message
        assert "\n" not in message
    assert "and 8 more" in message


def broken(change: str) -> dict[str, Tensor]:
    """A file of VGG-19's beginning with one thing wrong."""
    state = beginning()
    if change == "vgg16":
        state["features.17.weight"] = torch.rand(512, 512, 3, 3).half()
    elif change == "batch norm":
        state["features.1.weight"] = torch.rand(64)
    elif change == "shape":
        state["features.2.weight"] = torch.rand(64, 64, 5, 5)
    elif change == "integers":
        state["features.2.bias"] = torch.zeros(64, dtype=torch.int32)
    elif change == "nan":
        state["features.2.bias"][7] = float("nan")
    elif change == "no bias":
        del state["features.2.bias"]
    else:
        state = {f"vgg.{key}": tensor for key, tensor in state.items()}
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("vgg16", "is no VGG-19 but another network: it has features.17.weight"),
        ("batch norm", "is no VGG-19 but another network: it has features.1.weight"),
        ("shape", "features.2.weight is (64, 64, 5, 5), not floats of (64, 64, 3, 3)"),
        ("integers", "features.2.bias is (64,), not floats of (64,)"),
        ("nan", "holds NaN or infinity in features.2.bias"),
        ("no bias", "it has no conv1_2 (features.2)"),
        ("other keys", "is no VGG-19 in torchvision's layout"),
    ],
)
def test_files_that_are_not_a_whole_vgg19(change: str, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.safetensors", broken(change))
    with pytest.raises(CheckpointError) as caught:
        load_vgg19(path, ["relu1_2"])
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if change in ("shape", "integers", "nan", "no bias"):
        load_vgg19(path, ["relu1_1"])  # layers that nobody asked for are not looked at


def test_a_list_is_no_vgg19(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.rand(3)], path)
    with pytest.raises(CheckpointError, match="is no VGG-19"):
        load_vgg19(path, ["relu1_1"])


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(nn.Conv2d(3, 64, 3), path)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_vgg19(path, ["relu1_1"])


def test_without_a_file_the_published_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OfflineError, match="waifu4x models download vgg19"):
        open_vgg19(["vgg54"], offline=True)
    # A given file is used as it is, whatever the catalogue says.
    monkeypatch.setattr(weights, "resolve", lambda *_, **__: pytest.fail("asked for"))
    with pytest.raises(WeightsError, match="cannot be read"):
        open_vgg19(["vgg54"], path=Path("no-such.pth"))


# The catalogue's row.


def test_it_is_listed_and_enlarges_nothing(tmp_path: Path) -> None:
    row = weights.find(CATALOG_NAME)
    assert row.kind == "features"
    listed = CliRunner().invoke(app, ["models", "list"]).stdout.splitlines()
    place = next(n for n, line in enumerate(listed) if line.startswith("vgg19 "))
    assert listed[place].split() == ["vgg19", "-", "574.7", "MB", "not", "downloaded"]
    assert "no upscaler" in listed[place + 1]
    lines = CliRunner().invoke(app, ["models", "list", "--json"]).stdout.splitlines()
    told: dict[str, dict[str, Any]] = {f["name"]: f for f in map(json.loads, lines)}
    assert told["vgg19"]["kind"] == "features"
    # Refused before half a gigabyte is fetched.
    for name in ("vgg19", "VGG19"):
        with pytest.raises(UsageError, match="enlarges nothing"):
            models.open_upscaler(name)


def test_a_downloaded_one_is_found_and_a_damaged_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "vgg.safetensors", beginning())
    folder = weights.downloads_folder()
    folder.mkdir(parents=True)
    row = weights.find(CATALOG_NAME)
    (folder / str(row.file)).write_bytes(path.read_bytes())
    (state,) = [each.state for each in weights.list_available() if each.row == row]
    assert state == "damaged"
    with pytest.raises(WeightsError, match="models download vgg19"):
        open_vgg19(["relu1_2"], offline=True)


# Content losses.


@pytest.fixture
def features(tmp_path: Path) -> VGG19Features:
    path = saved(tmp_path / "vgg.safetensors", beginning(4))
    return load_vgg19(path, ["vgg22", "conv1_2"])


def test_content_losses_by_hand(features: VGG19Features) -> None:
    random = np.random.default_rng(2)
    prediction, target = random.random((2, 3, 8, 8)), random.random((2, 3, 8, 8))
    state = features.state_dict()
    pairs = [
        (by_hand(p, state), by_hand(t, state)) for p, t in zip(prediction, target, strict=True)
    ]
    a = np.stack([p["relu2_2"] - t["relu2_2"] for p, t in pairs])
    b = np.stack([p["conv1_2"] - t["conv1_2"] for p, t in pairs])
    given = torch.from_numpy(prediction), torch.from_numpy(target)
    features = features.double()
    srgan = ContentLoss(features, {"vgg22": 1.0}, rescale=SRGAN_RESCALE)
    assert float(srgan(*given)) == pytest.approx(np.square(a / 12.75).mean(), rel=1e-6)
    mixed = ContentLoss(features, {"conv1_2": 0.1, "vgg22": 2.0}, criterion="l1", rescale=0.5)
    expected = 0.5 * (0.1 * np.abs(b).mean() + 2.0 * np.abs(a).mean())
    assert float(mixed(*given)) == pytest.approx(expected, rel=1e-6)
    assert pytest.approx(0.00615, abs=2e-6) == SRGAN_RESCALE


def test_content_has_gradients_for_the_prediction_alone(features: VGG19Features) -> None:
    prediction = torch.rand(1, 3, 8, 8, requires_grad=True)
    target = torch.rand(1, 3, 8, 8, requires_grad=True)
    whole = WeightedSum(
        {"l1": (L1Loss(), 0.0), "content": (ContentLoss(features, {"vgg22": 1.0}), 1.0)}
    )
    whole(prediction, target).backward()
    assert prediction.grad is not None
    assert bool(prediction.grad.any())
    assert target.grad is None
    assert all(parameter.grad is None for parameter in features.parameters())


def test_content_loss_is_zero_for_equal_pictures_and_float32_under_autocast(
    features: VGG19Features,
) -> None:
    loss = ContentLoss(features, {"vgg22": 1.0, "conv1_2": 1.0})
    x = torch.rand(1, 3, 8, 8)
    assert float(loss(x, x)) == 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = loss(x, 1.0 - x)
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(loss(x, 1.0 - x)), rel=0.02)


def test_content_losses_that_make_no_sense(features: VGG19Features) -> None:
    for layers in ({}, {"relu5_4": 1.0}, {"vgg22": 1.0, "relu2_2": 1.0}):
        with pytest.raises(ValueError, match="the features are vgg22, conv1_2, not"):
            ContentLoss(features, layers)
    with pytest.raises(ValueError, match="'mse' or 'l1'"):
        ContentLoss(features, {"vgg22": 1.0}, criterion="l2")  # type: ignore[arg-type]
    for numbers in ({"vgg22": -1.0}, {"vgg22": float("nan")}):
        with pytest.raises(ValueError, match="0 or more"):
            ContentLoss(features, numbers)
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\), not \(1, 3, 8, 8\)"):
        ContentLoss(features, {"vgg22": 1.0})(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8))
