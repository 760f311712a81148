"""Files of weights: genuine ones load, damaged ones are refused, hostile ones run nothing."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import json
import os
import pickle
import random
import runpy
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from waifu4x.errors import CheckpointError, UnknownNetworkError, UnsafeCheckpointError
from waifu4x.model_files.checkpoints import Model, load, read_state, recognise, save
from waifu4x.networks import NETWORKS
from waifu4x.networks.aplus import Aplus, AplusConfig
from waifu4x.networks.autoencoder import Autoencoder, AutoencoderConfig
from waifu4x.networks.edsr import EDSR, EDSRConfig
from waifu4x.networks.metasr import MetaSR, MetaSRConfig
from waifu4x.networks.msrresnet import MSRResNet, MSRResNetConfig
from waifu4x.networks.plksr import PLKSR, PLKSRConfig
from waifu4x.networks.ranksrgan import RankSRGAN, RankSRGANConfig
from waifu4x.networks.rcan import RCAN, RCANConfig
from waifu4x.networks.rrdbnet import RRDBNet, RRDBNetConfig
from waifu4x.networks.san import SAN, SANConfig
from waifu4x.networks.scsr import ScSR, ScSRConfig
from waifu4x.networks.span import SPAN, SPANConfig
from waifu4x.networks.srcnn import SRCNN, SRCNNConfig
from waifu4x.networks.srfbn import SRFBN, SRFBNConfig
from waifu4x.networks.srresnet import SRResNet, SRResNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSR, VDSRConfig

NETS: list[Callable[[], nn.Module]] = [
    lambda: SRCNN(SRCNNConfig(kernels=(9, 1, 5), channels=(6, 4))),
    lambda: SRCNN(SRCNNConfig(channels_in=3)),
    lambda: VDSR(VDSRConfig(depth=4, channels=6)),
    lambda: VDSR(VDSRConfig(depth=3, channels=6, bias=False, channels_in=3)),
    lambda: SRResNet(SRResNetConfig(blocks=2, channels=6)),
    lambda: SRResNet(SRResNetConfig(blocks=1, channels=6, scale=3, slope_per_channel=True)),
    lambda: SRResNet(SRResNetConfig(blocks=1, channels=6, scale=2, norm=False, middle="plain")),
    lambda: SRResNet(SRResNetConfig(blocks=1, channels=6, scale=1, middle="prelu", body_bias=True)),
    lambda: RRDBNet(RRDBNetConfig(blocks=2, channels=6, growth=3)),
    lambda: RRDBNet(RRDBNetConfig(blocks=1, channels=6, growth=3, unshuffle=2)),
    lambda: RRDBNet(RRDBNetConfig(blocks=1, channels=6, growth=3, unshuffle=4, channels_in=1)),
    lambda: RRDBNet(RRDBNetConfig(blocks=1, channels=6, growth=3, upsamplings=1)),
    lambda: SRVGGNetCompact(SRVGGNetCompactConfig(convs=2, channels=6)),
    lambda: SRVGGNetCompact(SRVGGNetCompactConfig(convs=0, channels=6, scale=3, channels_in=1)),
    lambda: MSRResNet(MSRResNetConfig(blocks=2, channels=6)),
    lambda: MSRResNet(MSRResNetConfig(blocks=1, channels=6, scale=3)),
    lambda: MSRResNet(MSRResNetConfig(blocks=1, channels=6, scale=2)),
    lambda: MSRResNet(MSRResNetConfig(blocks=1, channels=6, scale=2, tail="direct")),
    lambda: EDSR(EDSRConfig(blocks=2, channels=6)),
    lambda: EDSR(EDSRConfig(blocks=1, channels=6, scale=3, mean_shift=False, channels_in=1)),
    lambda: RCAN(RCANConfig(groups=2, blocks=2, channels=6, reduction=3)),
    lambda: SPAN(SPANConfig(blocks=2, channels=6, tail_channels=5)),
    lambda: PLKSR(PLKSRConfig(blocks=2, channels=8, large_kernel=5, large_channels=2)),
    lambda: PLKSR(PLKSRConfig(blocks=1, channels=8, large_channels=2, kind="group", gate=False)),
    lambda: PLKSR(PLKSRConfig(blocks=1, channels=8, large_channels=2, kind="layer", scale=1)),
    lambda: RankSRGAN(RankSRGANConfig(blocks=2, channels=6)),
    lambda: RankSRGAN(RankSRGANConfig(blocks=1, channels=6, scale=3)),
    lambda: MetaSR(MetaSRConfig(blocks=2, channels=6, hidden=5)),
    lambda: MetaSR(MetaSRConfig(trunk="rdn", blocks=2, convs=3, growth=4, channels=6, hidden=5)),
    lambda: Autoencoder(AutoencoderConfig(channels=(4, 6, 8), scale=4)),
    lambda: Autoencoder(AutoencoderConfig(channels=(4, 6, 8), head="plain", channels_in=1)),
    lambda: Aplus(AplusConfig(scale=2, anchors=6, features=5)),
    lambda: ScSR(ScSRConfig(atoms=6)),
    lambda: SRFBN(SRFBNConfig(channels=4, groups=2, scale=3)),
    lambda: SAN(SANConfig(groups=2, blocks=2, channels=8, reduction=4, looking=3)),
    lambda: SAN(SANConfig(groups=1, blocks=1, channels=6, reduction=3, looking=1, scale=3)),
]


def small_net() -> SRVGGNetCompact:
    torch.manual_seed(0)
    return SRVGGNetCompact(SRVGGNetCompactConfig(convs=1, channels=4))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def written(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_same_network(model: Model, network: nn.Module) -> None:
    assert type(model.network) is type(network)
    assert model.network.config == network.config
    for key, tensor in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.network.state_dict()[key], tensor.float()), key


def refusal(path: Path) -> CheckpointError:
    """The error that loading raises; it must be one printable line with the path."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 700
    return caught.value


# --- what is written can be read -----------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_a_saved_network_comes_back(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = make()
    path = tmp_path / "mine.safetensors"
    save(network, path, metadata={"licence": "CC0-1.0", "trained_on": "nothing"})
    model = load(path)
    assert_same_network(model, network)
    config: Any = network.config
    assert model.name == "mine"
    assert model.licence == "CC0-1.0"
    assert model.metadata["trained_on"] == "nothing"
    assert model.path == path
    assert (model.scale, model.channels_in) == (config.scale, config.channels_in)
    assert model.receptive_radius_px == config.receptive_radius_px
    assert model.size_multiple == config.size_multiple
    assert model.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert os.listdir(tmp_path) == ["mine.safetensors"]


@pytest.mark.parametrize("make", NETS)
def test_a_plain_state_dict_is_recognised_by_its_shapes(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    network = make()
    model = load(written(tmp_path / "plain.pth", network.state_dict()))
    assert_same_network(model, network)
    assert model.licence is None


def test_every_network_is_covered() -> None:
    assert {type(make()) for make in NETS} == {entry.module for entry in NETWORKS.values()}


def test_saving_twice_gives_the_same_bytes_which_safetensors_reads(tmp_path: Path) -> None:
    network = small_net()
    facts = {str(number): "x" for number in range(20)}
    for name in ("a", "b"):
        save(network, tmp_path / f"{name}.safetensors", metadata=facts)
    first = (tmp_path / "a.safetensors").read_bytes()
    assert first == (tmp_path / "b.safetensors").read_bytes()
    for key, tensor in load_file(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[key])


def test_half_precision_is_saved_as_it_is_and_loaded_as_float32(tmp_path: Path) -> None:
    for name, network in (("f16", small_net().half()), ("bf16", small_net().bfloat16())):
        path = tmp_path / f"{name}.safetensors"
        save(network, path, metadata={})
        assert {tensor.dtype for tensor in load(path).network.parameters()} == {torch.float32}
        assert_same_network(load(path), network)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        save(small_net(), tmp_path / "x.pth", metadata={})
    with pytest.raises(CheckpointError, match="Sequential"):
        save(nn.Sequential(), tmp_path / "x.safetensors", metadata={})
    broken = small_net()
    nn.init.constant_(broken.get_parameter("body.0.bias"), float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        save(broken, tmp_path / "x.safetensors", metadata={})
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(small_net(), tmp_path / "absent" / "x.safetensors", metadata={})
    assert os.listdir(tmp_path) == []


def test_the_loaded_tensors_outlive_the_file(tmp_path: Path) -> None:
    network = small_net()
    path = written(tmp_path / "m.pth", network.state_dict())
    model = load(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert_same_network(model, network)


def test_loading_is_quick_and_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    # In a process of its own: this one may have imported anything.
    networks = [
        MSRResNet(MSRResNetConfig(blocks=1, channels=4)),
        SRCNN(SRCNNConfig(channels=(4, 2))),
        VDSR(VDSRConfig(depth=3, channels=4)),
        SRVGGNetCompact(SRVGGNetCompactConfig(channels=4, convs=1)),
    ]
    for number, network in enumerate(networks):
        save(network, tmp_path / f"{number}.safetensors", metadata={})
    program = (
        "import sys, torch; from pathlib import Path\n"
        "from waifu4x.model_files.checkpoints import load\n"
        "before = torch.get_rng_state()\n"
        "for path in Path(sys.argv[1]).iterdir(): load(path)\n"
        "assert torch.equal(before, torch.get_rng_state())\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    network = small_net().to(dtype)
    assert_same_network(load(written(tmp_path / "m.pth", network.state_dict())), network)


# --- wrappers, prefixes, key layouts -------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda good, bad: {"params": bad, "params_ema": good},
        lambda good, bad: {"params": good},
        lambda good, bad: {"state_dict": good, "epoch": 3, "optimizer": {"lr": 1e-4}},
        lambda good, bad: {"model_state_dict": good},
        lambda good, bad: {"model": {"state_dict": good}, "args": ["a", "b"]},
        lambda good, bad: {"generator": good, "discriminator": bad},
        lambda good, bad: {"g_ema": good, "g": bad, "d": bad},
        lambda good, bad: {"net_g": good, "net_d": bad},
        lambda good, bad: {f"module.{key}": tensor for key, tensor in good.items()},
        lambda good, bad: {f"_orig_mod.module.{key}": tensor for key, tensor in good.items()},
        lambda good, bad: {"params": {f"module.net.{key}": t for key, t in good.items()}},
        lambda good, bad: {f"model.{key}": tensor for key, tensor in good.items()},
        lambda good, bad: {
            "state_dict": {
                **{f"netG.{key}": tensor for key, tensor in good.items()},
                **{f"netD.{key}": tensor for key, tensor in bad.items()},
            }
        },
        lambda good, bad: {
            **{f"module.generator.{key}": tensor for key, tensor in good.items()},
            **{f"module.discriminator.{key}": tensor for key, tensor in bad.items()},
        },
        lambda good, bad: collections.OrderedDict(good),
    ],
)
def test_wrappers_and_prefixes(tmp_path: Path, wrap: Callable[[dict, dict], Any]) -> None:
    network = small_net()
    good = state_of(network)
    bad = {key: tensor + 1.0 for key, tensor in good.items()}
    assert_same_network(load(written(tmp_path / "m.pth", wrap(good, bad))), network)


def to_first_esrgan(key: str) -> str:
    for new, old in (
        ("conv_body.", "trunk_conv."),
        ("body.", "RRDB_trunk."),
        (".rdb", ".RDB"),
        ("conv_up", "upconv"),
        ("conv_hr.", "HRconv."),
    ):
        key = key.replace(new, old)
    return key


def to_sequential(key: str, blocks: int, ups: int) -> str:
    name, _, kind = key.rpartition(".")
    if name.startswith("body."):
        number, dense, conv = name.removeprefix("body.").split(".")
        return f"model.1.sub.{number}.{dense.upper()}.{conv}.0.{kind}"
    fixed = {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{blocks}",
        "conv_hr": f"model.{3 * ups + 2}",
        "conv_last": f"model.{3 * ups + 4}",
    }
    return f"{fixed.get(name) or f'model.{3 * int(name[-1])}'}.{kind}"


@pytest.mark.parametrize(
    "config",
    [
        RRDBNetConfig(blocks=12, channels=4, growth=2),
        RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2),
        RRDBNetConfig(blocks=1, channels=4, growth=2, upsamplings=1),
        RRDBNetConfig(blocks=1, channels=4, growth=2, upsamplings=3),
        RRDBNetConfig(blocks=1, channels=4, growth=2, upsamplings=0),
    ],
)
def test_the_three_key_layouts_of_esrgan(tmp_path: Path, config: RRDBNetConfig) -> None:
    network = RRDBNet(config)
    state = state_of(network)
    first = {to_first_esrgan(key): tensor for key, tensor in state.items()}
    oldest = {
        to_sequential(key, config.blocks, config.upsamplings): tensor
        for key, tensor in state.items()
    }
    assert "RRDB_trunk.0.RDB1.conv1.weight" in first
    assert "model.1.sub.0.RDB1.conv1.0.weight" in oldest
    for number, layout in enumerate((state, first, oldest)):
        assert_same_network(load(written(tmp_path / f"{number}.pth", layout)), network)


def test_the_published_sequential_positions() -> None:
    # The keys of RRDB_ESRGAN_x4.pth, and of everything the community trained from it.
    state = RRDBNet(RRDBNetConfig(blocks=1, channels=4, growth=2)).state_dict()
    keys = {to_sequential(key, 1, 2) for key in state if key.endswith("weight")}
    dense = {f"model.1.sub.0.RDB{d}.conv{c}.0.weight" for d in (1, 2, 3) for c in range(1, 6)}
    ends = {f"model.{number}.weight" for number in (0, 3, 6, 8, 10)}
    assert keys == dense | ends | {"model.1.sub.1.weight"}


def test_the_keys_of_twtygqyy_and_leftthomas(tmp_path: Path) -> None:
    vdsr = VDSR(VDSRConfig(depth=5, channels=4, bias=False))
    names = {"conv_first.weight": "input.weight", "conv_last.weight": "output.weight"}
    for number in range(3):
        names[f"body.{number}.weight"] = f"residual_layer.{number}.conv.weight"
    state = {names[key]: tensor for key, tensor in vdsr.state_dict().items()}
    assert_same_network(load(written(tmp_path / "v.pth", state)), vdsr)

    # The current form of leftthomas/SRGAN, with a normalisation in the middle.
    config = SRResNetConfig(blocks=5, channels=4, body_bias=True, output="tanh")
    srgan = SRResNet(config)
    rules = {"conv_in": "block1.0", "prelu_in": "block1.1", "conv_mid": "block7.0"}
    rules |= {"bn_mid": "block7.1", "up.0": "block8.0", "up.1": "block8.1", "conv_out": "block8.2"}
    rules |= {f"blocks.{number}": f"block{number + 2}" for number in range(5)}
    state = {}
    for key, tensor in srgan.state_dict().items():
        (start,) = [start for start in rules if key.startswith(f"{start}.")]
        state[key.replace(start, rules[start], 1)] = tensor
    assert "block2.bn1.num_batches_tracked" in state
    assert_same_network(load(written(tmp_path / "s.pth", state)), srgan)


@pytest.mark.parametrize(
    ("stated", "output"),
    [("(y+1)/2, no tanh", "signed"), ("(tanh(y)+1)/2", "tanh"), ("unit", "unit"), ("?", "signed")],
)
def test_metadata_tell_the_output_range_of_srresnet(stated: str, output: str) -> None:
    state = SRResNet(SRResNetConfig(blocks=1, channels=4)).state_dict()
    _, config, _ = recognise(state, {"output": stated})
    assert isinstance(config, SRResNetConfig)
    assert config.output == output


@pytest.mark.parametrize(
    ("facts", "scales"),
    [
        ({"scale": "3"}, (3,)),
        ({"scales": "4,2, 3"}, (2, 3, 4)),
        ({}, None),
        ({"scale": "all of them"}, None),
    ],
)
def test_the_scales_an_upscaled_input_was_trained_for(
    tmp_path: Path, facts: dict[str, str], scales: tuple[int, ...] | None
) -> None:
    path = tmp_path / "m.safetensors"
    save(SRCNN(SRCNNConfig()), path, metadata=facts)
    model = load(path, name="given", licence="MIT")
    assert model.scales == scales
    assert (model.name, model.licence, model.scale) == ("given", "MIT", 1)
    assert model.pre_upsampled


# --- networks that are not known, or nearly ------------------------------------------------------


def test_an_unknown_network_says_what_was_seen(tmp_path: Path) -> None:
    state = {"head.weight": torch.ones(2, 3), "tail\n\x1b[31m.bias": torch.ones(7)}
    error = refusal(written(tmp_path / "m.pth", state))
    assert isinstance(error, UnknownNetworkError)
    assert "2 tensors" in str(error)
    assert "head.weight (2, 3), tail [31m.bias (7,)" in str(error)
    assert "sha256" in str(error)


@pytest.mark.parametrize("make", NETS)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_refused(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    state = state_of(make())
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    chooser = random.Random(0)
    for number in range(4):
        key = chooser.choice(keys)
        shape = list(state[key].shape)
        shape[0] += 1
        lacking = {k: tensor for k, tensor in state.items() if k != key}
        for content in (
            lacking,
            {**state, "more.weight": torch.ones(3)},
            {**state, key: torch.ones(shape)},
            {**state, key: state[key].flatten()[:0]},
        ):
            error = refusal(written(tmp_path / f"{number}.pth", content))
            assert "looks like" in str(error) or isinstance(error, UnknownNetworkError)


@pytest.mark.parametrize("make", NETS)
def test_a_tensor_with_other_axes_is_refused(make: Callable[[], nn.Module]) -> None:
    state = state_of(make())
    for key in state:
        for shape in ((), (0,), (3,), (1,) * 8):
            # What is recognised all the same is refused as its shapes are compared.
            with contextlib.suppress(UnknownNetworkError):
                recognise({**state, key: torch.zeros(shape)}, {})


@pytest.mark.parametrize(
    "shapes",
    [
        {"atoms": (), "patches": ()},
        {
            "upscale.kernel.weight": (4, 4),
            "upscale.hidden.weight": (),
            "conv_first.weight": (4, 3, 3, 3),
        },
        {"P2W.meta_block.0.weight": (3, 3), "sub_mean.bias": (0,)},
    ],
)
def test_keys_of_a_layout_whose_tensors_lack_axes(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    content = {key: torch.zeros(shape) for key, shape in shapes.items()}
    error = refusal(written(tmp_path / "m.pth", content))
    assert isinstance(error, UnknownNetworkError)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"scale": 4}',
        '{"scale": 4, "channels": 4, "convs": 1, "channels_in": 3, "more": 1}',
        '{"scale": 4, "channels": 4, "convs": 1000000000, "channels_in": 3}',
        '{"scale": 4, "channels": 4, "convs": 4000, "channels_in": 3}',
        '{"scale": 4, "channels": 1e9, "convs": 1, "channels_in": 3}',
        '{"scale": -4, "channels": 4, "convs": 1, "channels_in": 3}',
        '{"scale": true, "channels": 4, "convs": 1, "channels_in": 3}',
        '{"scale": 2, "channels": 4, "convs": 1, "channels_in": 3}',
        "[" * 100_000,
    ],
)
def test_a_stated_config_is_checked_against_the_tensors(tmp_path: Path, config: str) -> None:
    path = tmp_path / "m.safetensors"
    facts = {"architecture": "srvggnetcompact", "config": config}
    save_file(small_net().state_dict(), path, metadata=facts)
    refusal(path)


# --- hostile files -------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile_objects(canary: Path) -> dict[str, Any]:
    touch = f"touch {canary}"
    python = f"open({str(canary)!r}, 'w')"
    script = canary.with_name("script.py")
    script.write_text(python)
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "open": Call(open, str(canary), "w"),
        "getattr": Call(getattr, "text", "upper"),
        "reduce": Call(functools.reduce, eval, [python, {}]),
        "import": Call(__import__, "os"),
        "runpy": Call(runpy.run_path, str(script)),
        "partial": functools.partial(os.system, touch),
        "nested": {"params": {"conv.weight": [Call(os.system, touch)]}},
        "numpy object": np.array([Call(os.system, touch)], dtype=object),
        "module": nn.Linear(2, 2),
        "load": Call(torch.load, str(canary)),
        "bytes": Call(bytes, 10),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_hostile_pickles_run_nothing(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    for name, thing in hostile_objects(canary).items():
        path = tmp_path / "hostile.pth"
        torch.save(thing, path, _use_new_zipfile_serialization=zipped)
        error = refusal(path)
        assert "sha256" in str(error), name
        assert not canary.exists(), name
        if name != "bytes":  # harmless, and torch makes it; a dict of tensors it is not
            assert isinstance(error, UnsafeCheckpointError), name


# Written by hand, as attackers do: opcodes that name a function and call it.
RAW_PICKLES = {
    "protocol 0": b"cos\nsystem\n(S'touch CANARY'\ntR.",
    "protocol 2": b"\x80\x02cposix\nsystem\n(X\x0c\x00\x00\x00touch CANARYtR.",
    "getattr chain": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\nX\x02\x00\x00\x00os\x85R"
    b"X\x06\x00\x00\x00systemtR(X\x0c\x00\x00\x00touch CANARYtR.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch CANARY\x85R.",
    "inst": b"\x80\x02(X\x0c\x00\x00\x00touch CANARYios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\nX\x0c\x00\x00\x00touch CANARYo.",
    "runpy": b"\x80\x02crunpy\n_run_code\n(X\x13\x00\x00\x00open('CANARY', 'w')}tR.",
    "extension": b"\x80\x02\x82\x01)R.",
    "endless memo": b"\x80\x02" + b"]" + b"2" * 10_000 + b".",
    "no stop": b"\x80\x02}",
}


@pytest.mark.parametrize("name", RAW_PICKLES)
def test_hand_written_pickles_run_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = RAW_PICKLES[name]
    legacy = written(
        tmp_path / "legacy.pth", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False
    )
    # A legacy file is five pickles; the payload takes the place of the fourth, the content.
    head = legacy.read_bytes()
    cut = head.index(b"\x80\x02", head.index(b"little_endian"))
    for number, content in enumerate((payload, head[:cut] + payload)):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content)
        refusal(path)
    path = tmp_path / "zipped.pth"
    rewritten(written(path, {"a": torch.ones(2)}), {"data.pkl": payload})
    refusal(path)
    assert not (tmp_path / "CANARY").exists()


def rewritten(
    path: Path,
    changes: dict[str, bytes],
    *,
    compression: int = zipfile.ZIP_STORED,
    more: dict[str, bytes] | None = None,
) -> Path:
    """Write the zip at `path` anew, with the records whose names end so replaced, and `more`."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            found = [new for end, new in changes.items() if name.endswith(end)]
            archive.writestr(name, found[0] if found else content)
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return path


def test_files_that_can_hold_code_are_refused_by_name(tmp_path: Path) -> None:
    for suffix in (".pt", ".pt2", ".ckpt", ".bin", ".pkl", ".onnx", ".PT", ""):
        path = written(tmp_path / f"model{suffix}", small_net().state_dict())
        error = refusal(path)
        assert isinstance(error, UnsafeCheckpointError)
        if suffix in (".pt", ".ckpt", ".bin"):
            assert "rename it to model.pth" in str(error)
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"PK\x03\x04 no zip at all")
    assert "rename" not in str(refusal(garbage))


def test_programs_are_refused_by_content(tmp_path: Path) -> None:
    for record in ("m/constants.pkl", "m/code/__torch__.py", "m/models/model.json"):
        path = written(tmp_path / "program.pth", small_net().state_dict())
        error = refusal(rewritten(path, {}, more={record: b"x"}))
        assert isinstance(error, UnsafeCheckpointError)
        assert "holds code" in str(error)
        path = path.rename(tmp_path / "program.pt")
        assert "rename" not in str(refusal(path))


def test_archives_with_tricks_are_refused(tmp_path: Path) -> None:
    def fresh(**options: Any) -> Path:
        path = written(tmp_path / "m.pth", small_net().state_dict())
        return rewritten(path, {}, **options)

    assert "outside" in str(refusal(fresh(more={"../../escape": b"x"})))
    assert "outside" in str(refusal(fresh(more={"/etc/escape": b"x"})))
    bomb = {"m/data/bomb": b"\0" * (30 << 20)}
    assert "unpack" in str(refusal(fresh(more=bomb, compression=zipfile.ZIP_DEFLATED)))
    # The encryption bit, set in every local and central header.
    path = fresh()
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(magic)
        while start >= 0:
            content[start + at] |= 1
            start = content.find(magic, start + 1)
    path.write_bytes(content)
    assert "encrypted" in str(refusal(path))
    # A record twice: two readers could see two files.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"a")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m/data.pkl", b"b")
    assert "twice" in str(refusal(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", b"weights are in the other archive")
    assert "no PyTorch checkpoint" in str(refusal(path))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_storage_that_claims_more_than_it_holds(tmp_path: Path, compression: int) -> None:
    path = written(tmp_path / "m.pth", {"a": torch.arange(8.0), "b": torch.ones(1000)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("m/data.pkl")
    eight, many = b"K\x08", b"M\xd0\x07"
    assert pickled.count(eight) == 2
    # Once for the storage alone, once for storage and shape.
    for count in (1, 2):
        claim = pickled.replace(eight, many, count)
        error = refusal(rewritten(path, {"data.pkl": claim}, compression=compression))
        assert not isinstance(error, UnknownNetworkError)


def test_a_tensor_that_is_small_but_claims_to_be_huge(tmp_path: Path) -> None:
    state = state_of(small_net())
    state["body.0.weight"] = torch.ones(1).expand(40_000, 40_000, 3, 3)
    assert "parameters" in str(refusal(written(tmp_path / "m.pth", state)))


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {**state, "epoch": 3},
        lambda state: {**state, 5: torch.ones(1)},
        lambda state: {**state, "body.0.weight": state["body.0.weight"].int()},
        lambda state: {**state, "body.0.weight": state["body.0.weight"].to(torch.complex64)},
        lambda state: {**state, "body.0.weight": state["body.0.weight"].to_sparse()},
        lambda state: {**state, "body.0.weight": state["body.0.weight"].to("meta")},
        lambda state: {**state, "body.0.bias": torch.full((4,), float("nan"))},
        lambda state: {**state, "body.0.bias": torch.full((4,), -float("inf"))},
        lambda state: {**state, "body.0.bias": torch.full((4,), 1e300, dtype=torch.float64)},
        lambda state: {"a": {"b": {"c": state}}},
        lambda state: {"params": {}},
        lambda state: list(state.values()),
        lambda state: torch.ones(3),
        lambda state: "weights",
        lambda state: None,
        lambda state: {},
    ],
)
def test_what_is_no_flat_dict_of_finite_floats_is_refused(
    tmp_path: Path, content: Callable[[dict[str, Tensor]], Any]
) -> None:
    error = refusal(written(tmp_path / "m.pth", content(state_of(small_net()))))
    assert not isinstance(error, UnknownNetworkError)


# --- damaged files -------------------------------------------------------------------------------


def sample_files(folder: Path) -> list[Path]:
    """The same weights three times: zip, legacy, safetensors."""
    state = small_net().state_dict()
    save_file(state, folder / "m.safetensors")
    legacy = written(folder / "legacy.pth", state, _use_new_zipfile_serialization=False)
    return [written(folder / "zip.pth", state), legacy, folder / "m.safetensors"]


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    for path in sample_files(tmp_path):
        load(path)
        content = path.read_bytes()
        for part in range(24):
            path.write_bytes(content[: len(content) * part // 24])
            refusal(path)
        path.write_bytes(content[:-1])
        refusal(path)


def test_flipped_bits_are_refused_or_harmless(tmp_path: Path) -> None:
    chooser = random.Random(0)
    known = state_of(small_net())
    for path in sample_files(tmp_path):
        content = path.read_bytes()
        for _ in range(64):
            damaged = bytearray(content)
            damaged[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
            path.write_bytes(damaged)
            try:
                model = load(path)
            except CheckpointError:
                continue
            # A zip has checksums, and they are compared. The others only a known sha256 protects.
            if path.name == "zip.pth":
                for key, tensor in known.items():
                    assert torch.equal(model.network.state_dict()[key], tensor)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 67040989\n",
        b"PK\x03\x04",
        b"PK\x05\x06" + b"\0" * 18,
        b"\x80",
        b"\x80\x02.",
        b"\x80\x02}.",
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 50 << 20) + b"{}",
        struct.pack("<Q", 30) + b'{"a": null}'.ljust(30),
        *(random.Random(seed).randbytes(3000) for seed in range(20)),
        *(b"\x80" + random.Random(seed).randbytes(300) for seed in range(40)),
    ],
)
def test_garbage_is_refused_under_either_name(tmp_path: Path, content: bytes) -> None:
    for name in ("m.pth", "m.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        assert not isinstance(refusal(path), UnknownNetworkError) or b"{}" in content


def test_old_tar_files_and_wrong_names(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "not a PyTorch checkpoint" in str(refusal(path))
    zipped, legacy, tensors = sample_files(tmp_path)
    assert "name it m.safetensors" in str(refusal(tensors.replace(tmp_path / "m.pth")))
    for other in (zipped, legacy):
        renamed = other.replace(other.with_suffix(".safetensors"))
        assert f"name it {other.name}" in str(refusal(renamed))


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_lying_safetensors_headers_are_refused(tmp_path: Path) -> None:
    def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    path = tmp_path / "m.safetensors"
    for header in (
        {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
        {"a": entry(0, 800, [200])},
        {"a": entry(0, 8, [3])},
        {"a": entry(4, 12, [2])},
        {"a": entry(0, 12, [1 << 62, 1 << 62])},
        {"a": entry(0, 12, [-3])},
        {"a": entry(0, 12, [3], "F99")},
        {"a": entry(0, 12, [3], "I32")},
        {"a": 5},
        [],
    ):
        path.write_bytes(safetensors_bytes(header, b"\0" * 12))
        assert not isinstance(refusal(path), UnknownNetworkError), header


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in str(refusal(tmp_path / "absent.pth"))
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    assert "regular file" in str(refusal(folder))
    if hasattr(os, "mkfifo"):
        fifo = tmp_path / "fifo.pth"
        os.mkfifo(fifo)
        assert "regular file" in str(refusal(fifo))
    huge = tmp_path / "huge.pth"
    with huge.open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert "larger" in str(refusal(huge))


# --- genuine files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "architecture", "parameters", "scales", "output"),
    [
        ("realesrgan/realesr-animevideov3.pth", "srvggnetcompact", 621_424, (4,), None),
        ("realesrgan/RealESRGAN_General_x4_v3_fp16", "srvggnetcompact", 1_213_296, (4,), None),
        ("srcnn/srcnn_9-1-5_91images_x3", "srcnn", 8_129, (3,), None),
        ("srcnn/srcnn_9-3-5_ImageNet_x3", "srcnn", 24_513, (3,), None),
        ("srcnn/srcnn_9-5-5_ImageNet_x4", "srcnn", 57_281, (4,), None),
        ("vdsr/vdsr_twtygqyy", "vdsr", 664_704, (2, 3, 4), None),
        ("srresnet/srresnet8_pytorch_tutorial_x4", "srresnet", 956_163, (4,), "signed"),
        ("srgan/srgan16_krasserm_x4_bnfolded_int8deq", "srresnet", 1_546_435, (4,), "tanh"),
        ("srgan/leftthomas_netG_epoch_4_100.pth", "srresnet", 734_092, (4,), "tanh"),
    ],
)
def test_published_files_are_recognised(
    shared: Path,
    file: str,
    architecture: str,
    parameters: int,
    scales: tuple[int, ...],
    output: str | None,
) -> None:
    name = file if file.endswith(".pth") else f"{file}.safetensors"
    model = load(shared / "weights" / name)
    assert (model.architecture, model.parameters) == (architecture, parameters)
    assert model.scales == scales
    if output is not None:
        assert isinstance(model.network, SRResNet)
        assert model.network.config.output == output


def test_published_files_that_are_refused(shared: Path, tmp_path: Path) -> None:
    folder = shared / "weights" / "loader"
    for name in ("twtygqyy_model_epoch_50.pth", "bup_model_epoch_50.pth"):
        assert isinstance(refusal(folder / name), UnsafeCheckpointError)
    assert "rename it to fastsrgan_model.pth" in str(refusal(folder / "fastsrgan_model.pt"))
    renamed = tmp_path / "fastsrgan_model.pth"
    renamed.write_bytes((folder / "fastsrgan_model.pt").read_bytes())
    for path in (renamed, folder / "IMDN_x4.pth", folder / "PANx4_DF2K.pth"):
        error = refusal(path)
        assert isinstance(error, UnknownNetworkError)
        assert "module." not in str(error)
        assert "_orig_mod." not in str(error)


def test_averaged_weights_win_in_a_published_file(shared: Path) -> None:
    path = shared / "weights" / "loader" / "team46_span.pth"
    both = torch.load(path, weights_only=True, map_location="cpu")
    state = read_state(path)
    assert state.keys() == both["params_ema"].keys()
    assert all(torch.equal(state[key], both["params_ema"][key]) for key in state)
    assert any(not torch.equal(state[key], both["params"][key]) for key in state)


def test_a_rezipped_release_gives_the_same_network(shared: Path) -> None:
    release = load(shared / "weights" / "realesrgan" / "realesr-animevideov3.pth")
    again = load(shared / "weights" / "loader" / "realesr-animevideov3.rezipped.pth")
    assert release.sha256 == "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d"
    assert again.sha256 != release.sha256
    assert_same_network(again, release.network)
