"""Network interpolation, and the names that other programs look for in a saved file."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from torch import nn
from typer.testing import CliRunner

from waifu4x import weights
from waifu4x.blending import blend
from waifu4x.cli.app import app
from waifu4x.errors import UsageError
from waifu4x.model_files import checkpoints
from waifu4x.model_files.checkpoints import Model
from waifu4x.model_files.tensor_files import read_tensor_file
from waifu4x.networks.rrdbnet import RRDBNet, RRDBNetConfig
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srresnet import SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig

TINY = SRVGGNetCompactConfig(scale=2, channels=4, convs=2)


def model(name: str, *, seed: int = 0, config: Any = TINY, **facts: Any) -> Model:
    made = toys.random_model(config, seed=seed, scales=facts.pop("scales", None))
    return dataclasses.replace(made, name=name, **{"architecture": "srvggnetcompact", **facts})


def nudged(start: Model, *, name: str, by: float = 0.05) -> Model:
    """A network not far from `start`, as fine-tuning makes it."""
    network = copy.deepcopy(start.network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return dataclasses.replace(start, name=name, network=network, sha256="1" * 64)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return network.state_dict()


def test_every_parameter_is_the_weighted_sum() -> None:
    a, b = model("a", seed=1), model("b", seed=2)
    before = {key: value.clone() for key, value in state(a.network).items()}
    mixed = state(blend(a, b, alpha=0.8).network)
    for key, value in mixed.items():
        wanted = 0.8 * state(a.network)[key].double() + 0.2 * state(b.network)[key].double()
        assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-7), key
        assert torch.equal(state(a.network)[key], before[key])
    assert mixed.keys() == state(a.network).keys()


def test_the_ends_are_the_parents_bit_for_bit() -> None:
    a, b = model("a", seed=1), model("b", seed=2)
    for alpha, parent in ((1.0, a), (0.0, b)):
        made = blend(a, b, alpha=alpha)
        assert all(torch.equal(v, state(parent.network)[k]) for k, v in state(made.network).items())
    for network in (blend(a, b, alpha=0.5).network,):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not {id(p) for p in network.parameters()} & {id(p) for p in a.network.parameters()}


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_alpha_is_a_share(alpha: float) -> None:
    a = model("a")
    with pytest.raises(UsageError, match=r"alpha is 0 \(all of b\) to 1"):
        blend(a, nudged(a, name="b"), alpha=alpha)


def test_statistics_are_averaged_and_counters_copied() -> None:
    config = SRResNetConfig(scale=2, blocks=1, channels=4)
    a = model("a", config=config, architecture="srresnet")
    b = nudged(a, name="b")
    for each, mean, variance, count in ((a, 1.0, 2.0, 7), (b, 3.0, 6.0, 9)):
        for module in each.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                assert module.num_batches_tracked is not None
                module.running_mean.fill_(mean)
                module.running_var.fill_(variance)
                module.num_batches_tracked.fill_(count)
    made = blend(a, b, alpha=0.25)
    (note,) = made.notes
    assert "batch normalisation" in note
    norms = [m for m in made.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert torch.equal(norm.running_mean, torch.full((4,), 2.5))
        assert torch.equal(norm.running_var, torch.full((4,), 5.0))
        assert norm.num_batches_tracked == 7


def test_strangers_are_told_from_relatives() -> None:
    a = model("a", seed=1)
    assert blend(a, nudged(a, name="b"), alpha=0.5).notes == ()
    (note,) = blend(a, model("b", seed=2), alpha=0.5).notes
    assert note.startswith("a and b have little in common")
    # What starts alike in every network does not make relatives: slopes, normalisation's weights.
    config = SRResNetConfig(scale=2, blocks=1, channels=4)
    with_norm = [model(n, seed=s, config=config) for n, s in (("a", 1), ("b", 2))]
    assert len(blend(*with_norm, alpha=0.5).notes) == 2


def test_only_equal_networks_are_blended() -> None:
    a = model("a")
    others = {
        "a is srvggnetcompact and b rrdbnet": model(
            "b", config=RRDBNetConfig(blocks=1, channels=4, growth=4), architecture="rrdbnet"
        ),
        "differ in scale 2 and 4, convs 2 and 3: only": model(
            "b", config=dataclasses.replace(TINY, scale=4, convs=3)
        ),
    }
    for words, b in others.items():
        with pytest.raises(UsageError, match=words) as raised:
            blend(a, b, alpha=0.5)
        assert "\n" not in str(raised.value)
    # Equal shapes are not enough: here the numbers that come out mean different things.
    ways: Any = ("signed", "tanh")
    pair = [model(way, config=SRResNetConfig(scale=2, blocks=1, output=way)) for way in ways]
    with pytest.raises(UsageError, match="differ in output signed and tanh"):
        blend(*pair, alpha=0.5)
    odd = nudged(a, name="b")
    odd.network.get_submodule("body").append(nn.Conv2d(1, 1, 1))  # pyright: ignore[reportCallIssue]
    with pytest.raises(UsageError, match=r"differ in the shape of body\.7\.weight"):
        blend(a, odd, alpha=0.5)


def test_where_a_blend_comes_from() -> None:
    a = model("a", licence="MIT", metadata={"trained_on": "owls"})
    b = dataclasses.replace(nudged(a, name="b"), licence=None, metadata={})
    facts = blend(a, b, alpha=0.8).metadata
    assert (facts["parent_a"], facts["parent_b"]) == ("a", "b")
    assert (facts["parent_a_sha256"], facts["parent_b_sha256"]) == ("0" * 64, "1" * 64)
    assert (facts["alpha"], facts["licence"]) == ("0.8", "MIT AND unknown")
    assert facts["parent_a_trained_on"] == "owls"
    assert not {"parent_b_trained_on", "scales"} & facts.keys()
    assert blend(a, nudged(a, name="b"), alpha=0.8).metadata["licence"] == "MIT"


def test_a_blend_of_pre_upsampled_networks_knows_their_common_factors() -> None:
    config = SRCNNConfig(channels=(4, 2))
    a, b = (model(n, config=config, scales=s) for n, s in (("a", (2, 3, 4)), ("b", (3, 4, 8))))
    assert blend(a, b, alpha=0.5).metadata["scales"] == "3,4"
    none = dataclasses.replace(b, scales=None)
    assert "scales" not in blend(a, none, alpha=0.5).metadata


@pytest.fixture
def parents(tmp_path: Path) -> tuple[Model, Model]:
    """Two models of the user's own, by the names gan and psnr."""
    start = model("psnr")
    for each, licence in ((start, "MIT"), (nudged(start, name="gan"), "BSD-3-Clause")):
        path = tmp_path / f"{each.name}.safetensors"
        checkpoints.save(each.network, path, metadata={"licence": licence})
        weights.add(path, name=each.name)
    gan, psnr = (checkpoints.load(tmp_path / f"{name}.safetensors") for name in ("gan", "psnr"))
    return gan, psnr


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_command_makes_a_model_that_has_a_name(parents: tuple[Model, Model]) -> None:
    gan, psnr = parents
    done = run("blend", "gan", "PSNR", "--alpha", "0.75", "--name", "mixed")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "added: mixed (0.75 of gan, 0.25 of psnr, licence BSD-3-Clause AND MIT); use it with -m "
        "mixed"
    ]
    row = weights.find("mixed")
    assert (row.kind, row.licence, row.scale) == ("user", "BSD-3-Clause AND MIT", 2)
    made = checkpoints.load(weights.resolve("mixed").path)
    assert (made.metadata["parent_a_sha256"], made.metadata["parent_b_sha256"]) == (
        gan.sha256, psnr.sha256
    )  # fmt: skip
    assert (made.metadata["name"], made.metadata["alpha"]) == ("mixed", "0.75")
    for key, value in state(made.network).items():
        wanted = 0.75 * state(gan.network)[key] + 0.25 * state(psnr.network)[key]
        assert torch.allclose(value, wanted, atol=1e-6), key


def test_the_command_takes_files_and_says_what_is_wrong(
    parents: tuple[Model, Model], tmp_path: Path
) -> None:
    gan = str(tmp_path / "gan.safetensors")
    assert run("blend", gan, "psnr", "--name", "mixed").exit_code == 0
    assert weights.resolve("mixed").sha256
    assert checkpoints.load(weights.resolve("mixed").path).metadata["alpha"] == "0.8"
    first = weights.find("mixed").sha256
    for arguments, words in (
        (("gan", "psnr", "--name", "Mixed"), "you have a model called mixed already"),
        (("gan", "psnr", "--name", "a/b"), "cannot be a model's name"),
        (("gan", "absent", "--name", "new"), "no model called 'absent'"),
        (("gan", "bicubic", "--name", "new"), "resampling filter"),
        (("gan", "psnr", "--alpha", "1.5", "--name", "new"), "alpha is 0"),
        (("gan", "waifu4x-clean", "--name", "new"), "only a model and one that was trained on"),
    ):
        done = run("blend", *arguments)
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert words in line
    assert {row.name for row in weights.user_rows()} == {"gan", "psnr", "mixed"}
    done = run("blend", "gan", "psnr", "--alpha", "0.1", "--name", "mixed", "--overwrite")
    assert done.exit_code == 0
    assert weights.find("mixed").sha256 != first


def test_strangers_are_blended_with_a_note(parents: tuple[Model, Model], tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    checkpoints.save(model("other", seed=9).network, path, metadata={})
    done = run("blend", "gan", str(path), "--name", "odd")
    assert done.exit_code == 0
    note, added = done.stderr.splitlines()
    assert note.startswith("note: gan and other have little in common")
    assert "licence BSD-3-Clause AND unknown" in added


# Written down from BasicSR's description of the networks, not from ours; spandrel 0.4.2 recognises
# files of both kinds and computes the same with them, where `growth` is 32:
# https://github.com/XPixelGroup/BasicSR/blob/master/basicsr/archs/rrdbnet_arch.py
RRDB_1_KEYS = {
    "conv_first": (64, 3), "conv_body": (64, 64), "conv_up1": (64, 64), "conv_up2": (64, 64),
    "conv_hr": (64, 64), "conv_last": (3, 64),
    "body.0.rdb1.conv1": (32, 64), "body.0.rdb1.conv2": (32, 96), "body.0.rdb1.conv3": (32, 128),
    "body.0.rdb1.conv4": (32, 160), "body.0.rdb1.conv5": (64, 192),
    "body.0.rdb2.conv1": (32, 64), "body.0.rdb2.conv2": (32, 96), "body.0.rdb2.conv3": (32, 128),
    "body.0.rdb2.conv4": (32, 160), "body.0.rdb2.conv5": (64, 192),
    "body.0.rdb3.conv1": (32, 64), "body.0.rdb3.conv2": (32, 96), "body.0.rdb3.conv3": (32, 128),
    "body.0.rdb3.conv4": (32, 160), "body.0.rdb3.conv5": (64, 192),
}  # fmt: skip
COMPACT_2_SHAPES = {
    "body.0.weight": (64, 3, 3, 3), "body.0.bias": (64,), "body.1.weight": (64,),
    "body.2.weight": (64, 64, 3, 3), "body.2.bias": (64,), "body.3.weight": (64,),
    "body.4.weight": (64, 64, 3, 3), "body.4.bias": (64,), "body.5.weight": (64,),
    "body.6.weight": (48, 64, 3, 3), "body.6.bias": (48,),
}  # fmt: skip


def saved_shapes(network: nn.Module, path: Path) -> dict[str, tuple[int, ...]]:
    """Saved and read by the safetensors library, not by ours; our loader must know it too."""
    from safetensors.torch import load_file

    checkpoints.save(network, path, metadata={})
    loaded = checkpoints.load(path)
    assert type(loaded.network) is type(network)
    assert loaded.network.config == network.config
    assert json.loads(loaded.metadata["config"]) == dataclasses.asdict(network.config)  # pyright: ignore[reportArgumentType]
    own = network.state_dict()
    read = load_file(path)
    assert all(torch.equal(value, own[key]) for key, value in read.items())
    return {key: tuple(value.shape) for key, value in read.items()}


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_rrdb_is_saved_under_the_published_keys(tmp_path: Path, unshuffle: int) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for key, (out, into) in RRDB_1_KEYS.items():
        # Real-ESRGAN's x2 differs in what goes into the first convolution alone.
        into = into * unshuffle**2 if key == "conv_first" else into
        wanted |= {f"{key}.weight": (out, into, 3, 3), f"{key}.bias": (out,)}
    network = RRDBNet(RRDBNetConfig(blocks=1, unshuffle=unshuffle))
    assert saved_shapes(network, tmp_path / "x.safetensors") == wanted


def test_compact_is_saved_under_the_published_keys(tmp_path: Path) -> None:
    network = SRVGGNetCompact(SRVGGNetCompactConfig(convs=2))
    assert saved_shapes(network, tmp_path / "x.safetensors") == COMPACT_2_SHAPES


def test_the_published_compact_file_has_the_keys_that_we_save(shared: Path, tmp_path: Path) -> None:
    path = shared / "weights/realesrgan/realesr-animevideov3.pth"
    content: Any = read_tensor_file(path).content
    theirs = {key: tuple(value.shape) for key, value in content["params"].items()}
    assert saved_shapes(checkpoints.load(path).network, tmp_path / "x.safetensors") == theirs
