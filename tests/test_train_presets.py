"""Every recipe that ships, made small: from the command line to a model that enlarges a picture.

What each stage's losses are at its first step is computed here once more, term by term, from the
formulas of the papers.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from training import rows, save_picture, trainer
from typer.testing import CliRunner

from waifu4x import pictures, weights
from waifu4x.cli.app import app
from waifu4x.model_files import checkpoints
from waifu4x.train import building, recipe
from waifu4x.train.data import open_cache
from waifu4x.train.loop import Trainer
from waifu4x.train.objectives import regions
from waifu4x.train.objectives.vgg import VGG19Features
from waifu4x.train.ranked.ranker import Ranker, RankerConfig, save_ranker
from waifu4x.train.recipe import Recipe

_RRDB = {"generator.blocks": "1", "generator.channels": "8", "generator.growth": "4"}
_RESNET = {"generator.blocks": "1", "generator.channels": "8"}
_DENSE = {
    "stages.1.discriminator.channels": "2",
    "stages.1.discriminator.hidden": "8",
}
# In tenths of a scale pixels meet at every tenth of the small picture.
_META = _RESNET | {"generator.hidden": "8", "data.patch_px": "10"}
_UNET = {"stages.1.discriminator.channels": "2"}
SMALL: dict[str, dict[str, str]] = {
    "autoencoder": {"generator.channels": "[4, 4, 4]"},
    "compact": {"generator.convs": "1", "generator.channels": "8"},
    "edsr": _RESNET,
    "edsr-baseline": _RESNET,
    "esrgan": _RRDB | _DENSE,
    "fast": _RESNET,
    "meta-edsr": _META,
    "meta-rdn": _META | {"generator.convs": "2", "generator.growth": "4"},
    "ranksrgan": _RESNET | _DENSE,
    "rcan": _RESNET | {"generator.groups": "1", "generator.reduction": "4"},
    "realesrgan": _RRDB | _UNET,
    "realesrnet": _RRDB,
    "realplksr": {
        "generator.blocks": "1",
        "generator.channels": "8",
        "generator.large_channels": "4",
        "generator.large_kernel": "5",
    },
    "san": {
        "generator.groups": "1",
        "generator.blocks": "1",
        "generator.channels": "8",
        "generator.reduction": "4",
    },
    "small": _RESNET,
    "small-web": _RESNET,
    "span": _RESNET | {"generator.tail_channels": "8"},
    "srcnn": {"generator.channels": "[4, 4]"},
    "srfbn": {"generator.channels": "4", "generator.groups": "2", "generator.steps": "2"},
    "srfbn-s": {"generator.channels": "4", "generator.groups": "1"},
    "srgan": _RESNET | _DENSE,
    "srgan-modern": _RESNET | _DENSE,
    "srgan-vgg22": _RESNET | _DENSE,
    "srobb": _RESNET | _DENSE,
    "srresnet": _RESNET,
    "srresnet-vgg22": _RESNET,
    "vdsr": {"generator.depth": "3", "generator.channels": "8"},
    "web": _RESNET,
    "web-gan": _RESNET | {"stages.0.discriminator.channels": "2"},
}
"""What makes each of them small; also the list of all that ship."""
OTHERS = ("aplus", "crossnet", "ranker", "scsr", "srntt", "srntt-l2")
"""Recipes that make something else than a model, fit one (tests/test_train_sparse.py), or take
references (tests/test_train_reference.py)."""
_EVERYWHERE = {"data.batch": "2", "data.patch_px": "8"}


def small(name: str) -> Recipe:
    return recipe.load(name, overrides=[*_EVERYWHERE.items(), *SMALL[name].items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        save_picture(place / f"{number}.png", seed=number, size=(64, 56))
    return place


@pytest.fixture(scope="module")
def features() -> VGG19Features:
    """All of VGG-19 up to its last convolution; random weights that keep features of one size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = VGG19Features(["conv5_4"])
        for layer in network.features.values():
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight)
    return network


@pytest.fixture(scope="module")
def vgg_path(features: VGG19Features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file({name: value.half() for name, value in features.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    """A small ranker whose values for small pictures are neither all alike nor far from 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Ranker(RankerConfig(channels=2, hidden=4)).eval()


@pytest.fixture(scope="module")
def ranker_path(ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranker") / "ranker.safetensors"
    save_ranker(ranker, path, metadata={})
    return path


def test_no_recipe_is_left_out() -> None:
    assert recipe.preset_names() == tuple(sorted((*SMALL, *OTHERS)))


@pytest.mark.parametrize("name", [*SMALL, *OTHERS])
def test_recipes_as_they_ship_can_be_built(name: str) -> None:
    chosen = recipe.load(name)
    building.check(chosen)
    assert recipe.from_facts(json.loads(json.dumps(chosen.facts()))) == chosen


# The numbers of parameters that the papers' networks have.
@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("srresnet", 1_547_350, None),
        ("srgan", 1_547_350, 23_563_649),
        ("srgan-modern", 1_517_571, 14_499_401),
        ("esrgan", 16_697_987, 14_499_401),
        ("ranksrgan", 1_554_499, 17_827_401),
        ("realesrgan", 16_697_987, 4_376_897),
        ("vdsr", 665_921, None),
        ("edsr-baseline", 1_517_571, None),
        ("edsr", 43_089_923, None),
        ("rcan", 15_592_355, None),
        ("realplksr", 7_389_680, None),
        ("span", 426_288, None),
        ("meta-edsr", 1_665_536, None),
        ("meta-rdn", 22_419_072, None),
        ("srfbn", 3_631_454, None),
        ("srfbn-s", 483_122, None),
        ("san", 15_860_488 - 38_044, None),
    ],
)
def test_they_are_of_the_published_sizes(
    name: str, generator: int, discriminator: int | None
) -> None:
    chosen = recipe.load(name)

    def count(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    assert count(building.generator(chosen)) == generator
    if discriminator is not None:
        crop_px = chosen.data.patch_px * chosen.scale
        assert count(building.discriminator(chosen.stages[1], crop_px)) == discriminator


@pytest.mark.parametrize("name", SMALL)
def test_end_to_end(
    *,
    name: str,
    folder: Path,
    vgg_path: Path,
    ranker_path: Path,
    tmp_path: Path,
) -> None:
    chosen = small(name)
    settings = {**_EVERYWHERE, **SMALL[name]}
    overrides = [f"--set={place}={value}" for place, value in settings.items()]
    arguments = [
        *("train", str(folder), "--recipe", name, "--name", "own", *overrides),
        *("--steps", "4", "--report-every", "1", "--precision", "fp32", "--device", "cpu"),
        *("--vgg", str(vgg_path), "--out", str(tmp_path / "run")),
        *(("--ranker", str(ranker_path)) if chosen.stages[-1].losses.rank_weight else ()),
    ]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, ""), (done.stderr, done.exception)
    told = rows(tmp_path / "run")
    assert [row["step"] for row in told] == [1, 2, 3, 4]
    assert list(dict.fromkeys(row["stage"] for row in told)) == [s.name for s in chosen.stages]
    assert all(np.isfinite(value) for row in told for value in row["losses"].values())

    model = checkpoints.load(tmp_path / "run" / "own.safetensors")
    assert model.architecture == chosen.generator["network"]
    assert json.loads(model.metadata["recipe"])["generator"] == dict(chosen.generator)
    assert weights.find("own") is not None
    small_picture = save_picture(tmp_path / "small.png", seed=9, size=(12, 10))
    used = CliRunner().invoke(app, ["upscale", str(small_picture), "-m", "own", "-s", "4"])
    assert used.exit_code == 0, used.stderr
    assert pictures.read(tmp_path / "small_own_4x.png").pixels.shape == (40, 48, 3)
    for name_ in ("report.html", "own.md", "recipe.toml", "facts.json"):
        assert (tmp_path / "run" / name_).stat().st_size > 0
    again = recipe.load(str(tmp_path / "run" / "recipe.toml"))
    assert again.generator == chosen.generator
    assert [s.losses for s in again.stages] == [s.losses for s in chosen.stages]


# The first step of every stage, by hand.


def _features_by_hand(
    x: Tensor, weights: dict[str, Tensor], layers: list[str]
) -> dict[str, Tensor]:
    """Simonyan and Zisserman's table, line by line."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x = (x - mean) / std
    found: dict[str, Tensor] = {}
    index = 0
    for block, convolutions in enumerate((2, 2, 4, 4, 4), start=1):
        for number in range(1, convolutions + 1):
            kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            x = functional.conv2d(x, kernel, bias, padding=1)
            found[f"conv{block}_{number}"] = x
            x = x.clamp(min=0.0)
            found[f"relu{block}_{number}"] = x
            index += 2
        x = functional.max_pool2d(x, 2)
        index += 1
    return {layer: found[layer] for layer in layers}


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)


@torch.no_grad()
def _by_hand(
    chosen: Recipe, number: int, subject: Trainer, features: VGG19Features, *, ranker: Ranker
) -> dict[str, float]:
    """All terms of a stage's first step, each times its weight."""
    losses = chosen.stages[number].losses
    batch = subject._feed._batches[subject.state.step]
    x, truth, target = (
        t.float() / 255.0 if t.dtype == torch.uint8 else t
        for t in (batch.x, batch.truth, batch.target)
    )
    scale = () if chosen.data.from_scale is None else (batch.scale,)
    made = copy.deepcopy(subject.state.generator).train()(x, *scale)
    target = torch.cat([target] * (len(made) // len(target)))  # of SRFBN every step counts
    difference = (made - target).double().numpy()
    if losses.pixel_range == "11":
        difference = 2.0 * difference
    found: dict[str, float] = {}
    if losses.pixel_weight > 0.0:
        measure = {"l1": np.abs, "mse": np.square}[losses.pixel]
        found[losses.pixel] = losses.pixel_weight * float(measure(difference).mean())
    if losses.content:
        layers = list(losses.content)
        state = {name: value.half().float() for name, value in features.state_dict().items()}
        mine, wanted = (_features_by_hand(image, state, layers) for image in (made, target))
        total = 0.0
        for layer, weight in losses.content.items():
            apart = (mine[layer] - wanted[layer]).double().numpy()
            measure = {"l1": np.abs, "mse": np.square}[losses.content_criterion]
            total += weight * float(measure(apart).mean())
        found["content"] = losses.content_weight * total
    if losses.regions is not None:
        state = {name: value.half().float() for name, value in features.state_dict().items()}
        options = losses.regions
        parts = zip(("boundary", "background", "objects"), options.weights, strict=True)
        where = regions.guess(target, options)
        for value, (part, weight) in enumerate(parts):
            ((layer, one),) = getattr(options, part).items()
            masked = ((image * (where == value)) for image in (made, target))
            mine, wanted = (_features_by_hand(image, state, [layer])[layer] for image in masked)
            apart = (mine - wanted).double().square().mean()
            found[f"regions/{part}"] = options.weight * weight * one * float(apart)
    if losses.rank_weight > 0.0:
        values = ranker(made).double().numpy()
        found["rank"] = losses.rank_weight * float((1.0 / (1.0 + np.exp(-values))).sum())
    if losses.tv_weight > 0.0:
        image = made.double().numpy()
        steps = np.abs(np.diff(image, axis=3)).sum() + np.abs(np.diff(image, axis=2)).sum()
        found["tv"] = losses.tv_weight * float(steps) / image.size
    if losses.gan != "none":
        # Spectral normalisation changes with every picture it is shown: the order matters.
        judge = copy.deepcopy(subject.state.discriminator)
        assert judge is not None
        judge.train()
        real = judge(truth).double().numpy() if losses.gan == "ragan" else None
        fake = judge(made).double().numpy()
        gan = _softplus(-fake).mean()
        if real is not None:
            seems_made, seems_real = real - fake.mean(), fake - real.mean()
            gan = 0.5 * (_softplus(seems_made).mean() + _softplus(-seems_real).mean())
        found["gan"] = losses.gan_weight * float(gan)
        real, fake = judge(truth).double().numpy(), judge(made).double().numpy()
        d = _softplus(-real).mean() + _softplus(fake).mean()
        if losses.gan == "ragan":
            apart = _softplus(fake.mean() - real).mean() + _softplus(fake - real.mean()).mean()
            d = 0.5 * apart
        found["d"] = float(d)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_the_terms_of_the_first_step_of_each_stage(
    name: str, folder: Path, features: VGG19Features, ranker: Ranker, tmp_path: Path
) -> None:
    chosen = small(name)
    scales = chosen.data.scales or (chosen.scale,)
    caches = [open_cache([folder], tmp_path / "cache", scale=s, patch_px=8) for s in scales]
    state = {key: value.half().float() for key, value in features.state_dict().items()}

    def open_features(layers: Any) -> VGG19Features:
        network = VGG19Features(layers)
        network.load_state_dict({key: state[key] for key in network.state_dict()})
        return network

    for number in range(len(chosen.stages)):
        run = tmp_path / str(number)
        subject = trainer(
            caches[0],
            chosen,
            run,
            open_features=open_features,
            open_ranker=lambda losses: copy.deepcopy(ranker),
        )
        subject._feed._batches._caches = tuple(caches)
        for _ in range(number):
            subject.next_stage()
        wanted = _by_hand(chosen, number, subject, features, ranker=ranker)
        subject.run(
            on_report=lambda report: None,
            report_every=1,
            stop=lambda state=subject.state: int(state.step >= 1),
        )
        (row,) = rows(run)
        assert row["stage"] == chosen.stages[number].name
        assert row["losses"].keys() == wanted.keys()
        for term, value in wanted.items():
            assert row["losses"][term] == pytest.approx(value, rel=2e-4), term
            assert value > 0.0
