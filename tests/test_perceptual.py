"""LPIPS and DISTS: the arithmetic on random weights, written out; and which files are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from waifu4x import catalog
from waifu4x.bench import perceptual
from waifu4x.bench.perceptual import BACKBONES, HEADS, Dists, Lpips, Net, load_dists, load_lpips
from waifu4x.errors import CheckpointError, OfflineError, UnsafeCheckpointError

NETS: tuple[Net, ...] = ("alex", "vgg", "squeeze")
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def networks() -> dict[str, torch.nn.Module]:
    """One random network of each kind; tests do not change them."""
    torch.manual_seed(1)
    return {**{net: Lpips(net) for net in NETS}, "dists": Dists()}


def pictures(height: int = 37, width: int = 45) -> tuple[Tensor, Tensor]:
    one = torch.rand(2, 3, height, width)
    return one, (one + 0.2 * torch.randn(2, 3, height, width)).clamp(0, 1)


# The features, written out layer by layer in torchvision's numbering.


def alex(w: State, x: Tensor) -> list[Tensor]:
    def conv(x: Tensor, n: int, stride: int, padding: int) -> Tensor:
        return conv_relu(w, x, f"features.{n}", stride=stride, padding=padding)

    a = conv(x, 0, 4, 2)
    b = conv(functional.max_pool2d(a, 3, 2), 3, 1, 2)
    c = conv(functional.max_pool2d(b, 3, 2), 6, 1, 1)
    d = conv(c, 8, 1, 1)
    return [a, b, c, d, conv(d, 10, 1, 1)]


def vgg(w: State, x: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    found = []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        if found:
            x = pool(x) if pool else functional.max_pool2d(x, 2)
        for n in block:
            x = conv_relu(w, x, f"features.{n}", padding=1)
        found.append(x)
    return found


def squeeze(w: State, x: Tensor) -> list[Tensor]:
    def fire(x: Tensor, n: int) -> Tensor:
        x = conv_relu(w, x, f"features.{n}.squeeze")
        narrow = conv_relu(w, x, f"features.{n}.expand1x1")
        return torch.cat([narrow, conv_relu(w, x, f"features.{n}.expand3x3", padding=1)], dim=1)

    def pool(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 3, 2, ceil_mode=True)

    a = conv_relu(w, x, "features.0", stride=2)
    b = fire(fire(pool(a), 3), 4)
    c = fire(fire(pool(b), 6), 7)
    d = fire(pool(c), 9)
    e = fire(d, 10)
    f = fire(e, 11)
    return [a, b, c, d, e, f, fire(f, 12)]


def conv_relu(w: State, x: Tensor, name: str, **options: int) -> Tensor:
    return functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options).clamp(min=0)


FEATURES = {"alex": alex, "vgg": vgg, "squeeze": squeeze}


@pytest.mark.parametrize("net", NETS)
def test_lpips_written_out(net: Net, networks: dict[str, Any]) -> None:
    network = networks[net]
    w = {key: value.double() for key, value in network.state_dict().items()}
    one, other = (2 * x.double() - 1 for x in pictures())
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    given = [FEATURES[net](w, (x - shift) / scale) for x in (one, other)]
    for index in range(2):
        wanted = 0.0
        for layer, (a, b) in enumerate(zip(*given, strict=True)):
            unit_a, unit_b = (f[index] / (f[index].norm(dim=0) + 1e-10) for f in (a, b))
            apart = ((unit_a - unit_b) ** 2).numpy()
            weighed = np.einsum("c,chw->hw", w[f"heads.{layer}"][0, :, 0, 0].numpy(), apart)
            wanted += weighed.mean()
        got = float(network(one.float(), other.float())[index])
        assert got == pytest.approx(wanted, rel=1e-4)
        assert got > 1e-3


def test_dists_written_out(networks: dict[str, Any]) -> None:
    network = networks["dists"]
    w = {key: value.double() for key, value in network.state_dict().items()}
    hann = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)  # of five, without the zeros

    def pool(x: Tensor) -> Tensor:
        kernel = torch.outer(hann, hann)[None, None] / 16
        squares = [functional.conv2d(p[:, None] ** 2, kernel, stride=2, padding=1) for p in x]
        return (torch.stack([square[:, 0] for square in squares]) + 1e-12).sqrt()

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    one, other = (x.double() for x in pictures())
    given = [[x, *vgg(w, (x - mean) / std, pool)] for x in (one, other)]
    whole = float(w["alpha"].sum() + w["beta"].sum())
    for index in range(2):
        likeness, channel = 0.0, 0
        for a, b in zip(*given, strict=True):
            for p, q in zip(a[index].numpy(), b[index].numpy(), strict=True):
                texture = (2 * p.mean() * q.mean() + 1e-6) / (p.mean() ** 2 + q.mean() ** 2 + 1e-6)
                covariance = (p * q).mean() - p.mean() * q.mean()
                structure = (2 * covariance + 1e-6) / (p.var() + q.var() + 1e-6)
                likeness += float(w["alpha"][0, channel]) * texture / whole
                likeness += float(w["beta"][0, channel]) * structure / whole
                channel += 1
        got = float(network(one.float(), other.float())[index])
        assert channel == 1475
        assert got == pytest.approx(1 - likeness, abs=1e-5)
        assert got > 1e-3


@pytest.mark.parametrize("name", [*NETS, "dists"])
def test_what_a_distance_must_do(name: str, networks: dict[str, Any]) -> None:
    network = networks[name]
    one, other = pictures()
    assert network(one, one).abs().max() < 1e-5
    assert torch.allclose(network(one, other), network(other, one), rtol=1e-4)
    halfway = network(one, (one + other) / 2)
    assert (halfway < network(one, other)).all()
    # Gradients flow to the picture, and to no weight.
    moving = other.clone().requires_grad_()
    network(one, moving).sum().backward()
    assert moving.grad is not None
    assert bool(moving.grad.abs().sum() > 0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training


@pytest.mark.parametrize(
    ("name", "smallest"), [("alex", 31), ("vgg", 16), ("squeeze", 17), ("dists", 16)]
)
def test_what_cannot_be_compared(name: str, smallest: int, networks: dict[str, Any]) -> None:
    network = networks[name]
    fits = torch.rand(1, 3, smallest, smallest)
    assert bool(torch.isfinite(network(fits, fits.flip(3))).all())
    small = fits[..., 1:]
    with pytest.raises(ValueError, match=f"at least {smallest} px"):
        network(small, small)
    for one, two in ((fits, small), (fits[0], fits[0]), (fits[:, :1], fits[:, :1])):
        with pytest.raises(ValueError, match="are compared"):
            network(one, two)


@pytest.mark.parametrize(
    ("name", "features"), [("alex", 2_469_696), ("vgg", 14_714_688), ("squeeze", 722_496)]
)
def test_parameter_counts(name: str, features: int, networks: dict[str, Any]) -> None:
    """Those of torchvision's networks without their classifiers."""
    counted = networks[name].features.parameters()
    assert sum(parameter.numel() for parameter in counted) == features
    if name == "vgg":
        counted = networks["dists"].features.parameters()
        assert sum(parameter.numel() for parameter in counted) == features


def test_pictures_of_8_bit(networks: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (48, 50, 3), dtype=np.uint8) for _ in range(2))
    x, y = (torch.from_numpy(image[3:-3, 3:-3]).permute(2, 0, 1)[None] for image in (one, other))
    got = perceptual.lpips(networks["squeeze"], one, other, border_px=3)
    wanted = networks["squeeze"](x / 127.5 - 1, y / 127.5 - 1)
    assert got == pytest.approx(float(wanted), rel=1e-4)
    got = perceptual.dists(networks["dists"], one, other, border_px=3)
    assert got == pytest.approx(float(networks["dists"](x / 255, y / 255)), rel=1e-4)
    framed = one.copy()
    framed[:3] = 0
    assert perceptual.lpips(networks["squeeze"], framed, one, border_px=3) == pytest.approx(0)
    assert perceptual.lpips(networks["squeeze"], framed, one, border_px=2) > 1e-4


def test_an_unknown_net() -> None:
    with pytest.raises(ValueError, match="LPIPS has alex, vgg, squeeze, not 'vgg16'"):
        Lpips("vgg16")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="not 'vgg16'"):  # before any file is looked for
        perceptual.open_lpips("vgg16", offline=True)  # pyright: ignore[reportArgumentType]


# Files.


def backbone_of(network: torch.nn.Module) -> State:
    """As torchvision's file, with a classifier."""
    state = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
    return {**state, "classifier.6.weight": torch.zeros(10, 4)}


def head_of(network: Lpips) -> State:
    return {f"lin{k}.model.1.weight": head.data for k, head in enumerate(network.heads)}


@pytest.fixture
def files(tmp_path: Path, networks: dict[str, Any]) -> dict[str, Path]:
    """Of LPIPS with the smallest backbone."""
    found = {name: tmp_path / f"{name}.pth" for name in ("backbone", "head")}
    torch.save(backbone_of(networks["squeeze"]), found["backbone"])
    torch.save(head_of(networks["squeeze"]), found["head"], _use_new_zipfile_serialization=False)
    return found


def test_files_are_loaded(files: dict[str, Path], networks: dict[str, Any]) -> None:
    one, other = pictures()
    loaded = load_lpips("squeeze", **files)
    assert torch.equal(loaded(one, other), networks["squeeze"](one, other))
    # In half precision, and as safetensors, the same within that precision.
    half = files["head"].with_suffix(".safetensors")
    save_file({k: v.half() for k, v in head_of(networks["squeeze"]).items()}, half)
    halved = load_lpips("squeeze", backbone=files["backbone"], head=half)
    assert halved.heads[0].dtype == torch.float32
    assert torch.allclose(halved(one, other), loaded(one, other), rtol=1e-3)


def test_dists_is_loaded(tmp_path: Path, networks: dict[str, Any]) -> None:
    network = networks["dists"]
    backbone, head = tmp_path / "vgg16.pth", tmp_path / "weights.pth"
    torch.save(backbone_of(network), backbone)
    content = {"alpha": network.alpha, "beta": network.beta}  # parameters, as the authors saved
    torch.save(content, head)
    one, other = pictures()
    loaded = load_dists(backbone=backbone, head=head)
    assert torch.equal(loaded(one, other), network(one, other))
    assert not loaded.alpha.requires_grad
    torch.save({"alpha": network.alpha}, head)
    with pytest.raises(CheckpointError, match="is no DISTS: beta is not there"):
        load_dists(backbone=backbone, head=head)
    original = head.rename(tmp_path / "weights.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"rename it to weights\.pth"):
        load_dists(backbone=backbone, head=original)


def _without(key: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != key}


def _with(key: str, value: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, key: value}


@pytest.mark.parametrize(
    ("which", "change", "words"),
    [
        ("backbone", _without("features.9.squeeze.bias"), r"features\.9\.squeeze\.bias is not th"),
        ("backbone", _with("features.30.weight", torch.zeros(1)), r"another .* features\.30\.we"),
        ("backbone", _with("features.0.bias", torch.full((64,), torch.nan)), "NaN or infinity in"),
        ("backbone", _with("features.0.bias", torch.zeros(64, dtype=torch.int64)), "not floats"),
        ("backbone", _with("features.0.bias", torch.zeros(63)), r"is \(63,\), not floats of \(64"),
        ("backbone", lambda _: {"a": torch.zeros(1)}, r"is no squeezenet1_1: features\.0\.weight"),
        ("backbone", lambda _: [1], "is no squeezenet1_1"),
        ("head", _without("lin6.model.1.weight"), r"no LPIPS v0\.1 for squeeze: lin6\.model\.1"),
        ("head", _with("lin1.model.1.weight", torch.zeros(1, 192, 1, 1)), r"\(1, 192, 1, 1\)"),
        ("head", _with("lin0.model.1.weight", torch.full((1, 64, 1, 1), torch.inf)), "infinity"),
        ("head", lambda _: None, r"is no LPIPS v0\.1"),
    ],
)
def test_other_files_are_refused(
    which: str, change: Callable, words: str, files: dict[str, Path], networks: dict[str, Any]
) -> None:
    network = networks["squeeze"]
    whole = backbone_of(network) if which == "backbone" else head_of(network)
    torch.save(change(whole), files[which])
    with pytest.raises(CheckpointError, match=words) as caught:
        load_lpips("squeeze", **files)
    message = str(caught.value)
    assert message.startswith(str(files[which]))
    assert "give the published file of" in message
    assert "\n" not in message


def test_a_pickle_that_would_run_code(files: dict[str, Path]) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 1), files["head"])  # a whole module
    with pytest.raises(UnsafeCheckpointError, match="nothing in it was run"):
        load_lpips("squeeze", **files)


@pytest.mark.parametrize("net", NETS)
def test_the_published_heads(net: Net, shared: Path, tmp_path: Path, networks) -> None:
    path = shared / "weights" / "metrics" / f"v0.1_{net}.pth"
    backbone = tmp_path / "backbone.safetensors"
    save_file({k: v.contiguous() for k, v in backbone_of(networks[net]).items()}, backbone)
    network = load_lpips(net, backbone=backbone, head=path)
    assert all(bool((head >= 0).all()) for head in network.heads)
    one, other = pictures()
    assert network(one, one).abs().max() < 1e-6
    assert network(one, other).min() > 1e-4
    row = catalog.find(HEADS[net])
    assert row.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert row.size_bytes == path.stat().st_size


@pytest.mark.parametrize("net", NETS)
def test_the_catalogue_has_the_files(net: Net, files: dict[str, Path]) -> None:
    row, head = catalog.find(BACKBONES[net]), catalog.find(HEADS[net])
    assert {row.kind, head.kind} == {"features"}
    # torch.hub's convention: it checks downloads by it.
    assert f"-{str(row.sha256)[:8]}." in str(row.file)
    with pytest.raises(OfflineError, match=f"waifu4x models download {HEADS[net]}"):
        perceptual.open_lpips(net, offline=True)
    with pytest.raises(OfflineError, match=f"waifu4x models download {BACKBONES[net]}"):
        perceptual.open_lpips(net, head=files["head"], offline=True)


def test_open_takes_paths(files: dict[str, Path]) -> None:
    one, other = pictures()
    opened = perceptual.open_lpips("squeeze", **files, offline=True)
    assert torch.equal(opened(one, other), load_lpips("squeeze", **files)(one, other))
