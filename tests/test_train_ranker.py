"""RankSRGAN: the ranker, its losses and its files; patches and their NIQE; its training."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from training import GAN, PIXEL, assert_equal, rows, save_three, train, trainer, with_losses
from typer.testing import CliRunner

from waifu4x import weights
from waifu4x.bench.metrics import luma_8bit
from waifu4x.bench.niqe import Prior, load_prior, niqe
from waifu4x.cli.app import app
from waifu4x.errors import CheckpointError, TrainError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.networks.ranksrgan import RankSRGAN, RankSRGANConfig
from waifu4x.train import building, machine, recipe
from waifu4x.train.data import open_cache
from waifu4x.train.ranked import ranking
from waifu4x.train.ranked.ranker import (
    RankContentLoss,
    Ranker,
    RankerConfig,
    load_ranker,
    margin_ranking_loss,
    save_ranker,
)
from waifu4x.train.ranked.ranker_loop import Pairs, RankerTrainer
from waifu4x.train.ranked.ranking import Patches, Place, Plan
from waifu4x.train.recipe import DataOptions, RankingOptions, Recipe, StageOptions
from waifu4x.train.systems import System

SMALL = RankerConfig(channels=2, hidden=4)


def small_ranker(seed: int = 0) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Ranker(SMALL)


def pictures(count: int, *, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# The network.


def test_the_ranker_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        whole = Ranker(RankerConfig())
    assert sum(parameter.numel() for parameter in whole.parameters()) == 13_734_281


@torch.no_grad()
def test_the_ranker_layer_by_layer() -> None:
    ranker = small_ranker().eval()
    for name, buffer in ranker.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    state = ranker.state_dict()
    x = pictures(2, side=48)
    y = x
    for stage in range(5):
        for part, stride in ((0, 1), (1, 2)):
            conv = f"conv{stage}_{part}"
            kernel, bias = state[f"{conv}.weight"], state[f"{conv}.bias"]
            assert kernel.shape[2:] == ((3, 3), (4, 4))[part]
            y = functional.conv2d(y, kernel, bias, stride=stride, padding=1)
            if (stage, part) != (0, 0):
                norm = f"bn{stage}_{part}"
                mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
                y = (y - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
                gain, shift = state[f"{norm}.weight"], state[f"{norm}.bias"]
                y = y * gain.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
            y = torch.where(y > 0, y, 0.2 * y)
    assert y.shape == (2, 16, 1, 1)
    y = y.mean((2, 3)) @ state["classifier.0.weight"].t() + state["classifier.0.bias"]
    y = torch.where(y > 0, y, 0.2 * y)
    y = y @ state["classifier.2.weight"].t() + state["classifier.2.bias"]
    torch.testing.assert_close(ranker(x), y, atol=1e-5, rtol=1e-5)
    for wrong in (pictures(1, side=31), pictures(1)[:, :1]):
        with pytest.raises(ValueError, match="32 px or more"):
            ranker(wrong)


# The losses.


def test_the_margin_ranking_loss_by_hand() -> None:
    first = torch.tensor([[1.0], [0.2], [9.0]], requires_grad=True)
    second = torch.tensor([[0.0], [0.5], [2.0]], requires_grad=True)
    sign = torch.tensor([[1.0], [1.0], [-1.0]])
    loss = margin_ranking_loss(first, second, sign)
    # In order by more than the margin; the wrong way round; 9 counts as 5.
    assert loss.item() == pytest.approx((0.0 + (0.5 + 0.3) + (0.5 + 3.0)) / 3, rel=1e-6)
    loss.backward()
    assert first.grad is not None
    assert second.grad is not None
    # The worse of the second pair is to rise; what was clamped has no gradient.
    assert first.grad.flatten().tolist() == pytest.approx([0.0, -1 / 3, 0.0])
    assert second.grad.flatten().tolist() == pytest.approx([0.0, 1 / 3, -1 / 3])


def test_the_rank_content_is_a_sum_over_the_batch() -> None:
    ranker, x = small_ranker(), pictures(4)
    loss = RankContentLoss(ranker, batch=4).train()
    values = ranker(x).detach().double().flatten()
    wanted = float((1.0 / (1.0 + torch.exp(-values))).sum())
    assert float(loss(x, x)) == pytest.approx(wanted, rel=1e-6)
    # As a trainer adds up the parts of a batch: each by its share.
    parts = sum(float(loss(part, part)) * len(part) / 4 for part in (x[:1], x[1:]))
    assert parts == pytest.approx(wanted, rel=1e-6)


def test_the_rank_content_teaches_the_picture_and_leaves_the_ranker_alone() -> None:
    ranker = small_ranker()
    loss = RankContentLoss(ranker, batch=2).train()
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    made = pictures(2, seed=3).requires_grad_()
    loss(made, pictures(2)).backward()
    assert made.grad is not None
    assert bool(made.grad.abs().sum((1, 2, 3)).gt(0.0).all())
    assert all(parameter.grad is None for parameter in ranker.parameters())
    assert not ranker.training
    assert not any(module.training for module in ranker.modules())
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())
    # Downhill is where the ranker says less, which is better.
    better = made.detach() - 1e-2 * made.grad / made.grad.norm()
    assert float(ranker(better).detach().sum()) < float(ranker(made).detach().sum())


def test_a_rank_loss_is_counted_once_for_the_whole_batch(tmp_path: Path) -> None:
    """Whatever the number of parts that a batch goes through in."""
    cache = open_cache([save_three(tmp_path / "in")], tmp_path / "cache", scale=2, patch_px=16)
    chosen = with_losses(GAN, content={}, rank_weight=0.5)
    chosen = dataclasses.replace(chosen, data=DataOptions(batch=4, patch_px=16))
    chosen = dataclasses.replace(chosen, stages=(chosen.stages[1],))
    told = []
    for parts in (1, 4):
        subject = trainer(
            cache, chosen, tmp_path / str(parts), accumulate=parts, open_ranker=opened
        )
        told.append(train(subject, stop=lambda s=subject: int(s.state.step >= 1))[0]["rank"])
    assert told[0] == pytest.approx(told[1], rel=1e-5)
    # Σ of 4 values of a sigmoid, which for this ranker are near a half.
    assert 0.5 * 4 * 0.3 < told[0] < 0.5 * 4 * 0.7


def opened(losses: object) -> Ranker:
    return small_ranker()


def test_a_stage_with_a_ranker_goes_on_bit_for_bit(tmp_path: Path) -> None:
    cache = open_cache([save_three(tmp_path / "in")], tmp_path / "cache", scale=2, patch_px=16)
    chosen = with_losses(GAN, content={}, rank_weight=0.1)
    chosen = dataclasses.replace(chosen, data=DataOptions(batch=2, patch_px=16)).with_steps(6)
    whole = trainer(cache, chosen, tmp_path / "whole", open_ranker=opened)
    train(whole)
    first = trainer(cache, chosen, tmp_path / "cut", open_ranker=opened)
    train(first, stop=lambda: int(first.state.step >= 4))
    second = trainer(cache, chosen, tmp_path / "cut", open_ranker=opened)
    assert (second.state.step, second.stage.name) == (4, "gan")
    train(second)
    assert_equal(second, whole)


def test_a_run_from_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    cache = open_cache([save_three(tmp_path / "in")], tmp_path / "cache", scale=2, patch_px=8)
    first = trainer(cache, PIXEL, tmp_path / "run")
    train(first, stop=lambda: int(first.state.step >= 2))
    path = tmp_path / "run" / "last.pth"
    payload = torch.load(path, weights_only=True)
    losses = payload["recipe"]["stages"][0]["losses"]
    assert losses.pop("rank_weight") == 0.0
    torch.save(payload, path)
    assert trainer(cache, PIXEL, tmp_path / "run").state.step == 2
    losses["rank_weight"] = 0.5
    torch.save(payload, path)
    with pytest.raises(TrainError, match=r"made by another recipe \(stages differ\)"):
        trainer(cache, PIXEL, tmp_path / "run")


# Files.


def test_a_saved_ranker_comes_back(tmp_path: Path) -> None:
    ranker, path = small_ranker(), tmp_path / "r.safetensors"
    ranker.train()(pictures(4))  # statistics that are not those of a fresh one
    save_ranker(ranker, path, metadata={"patch_px": "296", "licence": "CC0-1.0"})
    loaded = load_ranker(path)
    assert (loaded.ranker.config, loaded.patch_px) == (SMALL, 296)
    assert not loaded.ranker.training
    assert not any(parameter.requires_grad for parameter in loaded.ranker.parameters())
    assert torch.equal(loaded.ranker(pictures(2)), ranker.eval()(pictures(2)))


def to_first_release(key: str) -> str:
    """conv0_0 is features.0; then convolution, norm and activation in turn, from 2 on."""
    layer, _, rest = key.partition(".")
    if layer == "classifier":
        return key
    kind, stage, part = layer[:-3], int(layer[-3]), int(layer[-1])
    number = 2 * stage + part
    return f"features.{3 * number - 1 + (kind == 'bn') if number else 0}.{rest}"


def test_both_published_key_layouts_of_the_ranker(tmp_path: Path) -> None:
    ranker = small_ranker()
    first = {to_first_release(key): value for key, value in ranker.state_dict().items()}
    assert {"features.2.weight", "features.3.running_mean", "features.26.bias"} <= first.keys()
    for number, state in enumerate((ranker.state_dict(), first)):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        loaded = load_ranker(path)
        assert loaded.patch_px is None
        assert torch.equal(loaded.ranker(pictures(1)), ranker.eval()(pictures(1)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state.pop("bn4_1.running_var"), "bn4_1.running_var is not there"),
        (lambda state: state.pop("conv0_0.weight"), "is no ranker"),
        (lambda state: state["conv2_0.bias"].fill_(torch.nan), "NaN or infinity in conv2_0.bias"),
        (
            lambda state: state.update({"conv1_1.weight": torch.rand(4, 4, 3, 3)}),
            r"conv1_1.weight is \(4, 4, 3, 3\), not floats of \(4, 4, 4, 4\)",
        ),
    ],
)
def test_files_that_are_no_ranker(
    spoil: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    state = small_ranker().state_dict()
    spoil(state)
    torch.save(state, tmp_path / "r.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_ranker(tmp_path / "r.pth")
    assert "\n" not in str(caught.value)


def test_the_published_key_layouts_of_the_generator(tmp_path: Path) -> None:
    for scale, ups in ((4, 2), (3, 1), (2, 1)):
        network = RankSRGAN(RankSRGANConfig(blocks=12, channels=4, scale=scale))
        today, oldest = {}, {}
        ends = {"conv_first": "model.0", "conv_body": "model.1.sub.12"}
        ends |= {f"upconv{n}": f"model.{3 * n - 1}" for n in (1, 2)}
        ends |= {"conv_hr": f"model.{3 * ups + 2}", "conv_last": f"model.{3 * ups + 4}"}
        for key, tensor in network.state_dict().items():
            layer, _, rest = key.rpartition(".")
            renamed = layer.replace("body.", "recon_trunk.").replace("conv_body", "LRconv")
            today[f"{renamed.replace('conv_hr', 'HRconv')}.{rest}"] = tensor
            if layer.startswith("body."):
                _, block, conv = layer.split(".")
                ends[layer] = f"model.1.sub.{block}.res.{2 * (conv == 'conv2')}"
            oldest[f"{ends[layer]}.{rest}"] = tensor
        assert {"recon_trunk.11.conv2.bias", "LRconv.weight", "HRconv.bias"} <= today.keys()
        for number, state in enumerate((network.state_dict(), today, oldest)):
            path = tmp_path / f"{scale}-{number}.pth"
            torch.save(state, path)
            model = checkpoints.load(path)
            assert (model.architecture, model.scale) == ("ranksrgan", scale)
            x = pictures(1, side=6)
            assert torch.equal(model.network(x), network.eval()(x))


# Patches and their NIQE.

PATCH_PX = 104  # one block of NIQE, and its border of 4 px


@pytest.fixture
def prior_path(tmp_path: Path) -> Path:
    """A model of NIQE whose features are centred and do not depend on each other."""
    path = tmp_path / "prior.npz"
    window = np.full((7, 7), 1 / 49)
    np.savez(
        path, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36), gaussian_window=window
    )
    return path


@pytest.fixture
def prior(prior_path: Path) -> Prior:
    return load_prior(prior_path)


def doubled(lr: np.ndarray) -> np.ndarray:
    return lr.repeat(2, axis=0).repeat(2, axis=1)


def noisy(lr: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(lr.size).integers(-40, 41, (lr.shape[0] * 2, lr.shape[1] * 2, 3))
    return np.clip(doubled(lr) + noise, 0, 255).astype(np.uint8)


SYSTEMS = [
    System(name="doubled", identity="1", enlarge=doubled),
    System(name="noisy, too", identity="2", enlarge=noisy),
]
OPTIONS = RankingOptions(
    systems=("doubled", "noisy, too"), stride_px=52, least_sharpness=1.0, least_difference=1e-4
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a: of noise; b: flat; c: too small; d: flat on its left, and noise on its right."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (160, 212, 3), dtype=np.uint8)
    flat = np.full_like(noise, 90)
    half = np.concatenate([flat[:104, :104], noise[:104, :104]], axis=1)
    for name, pixels in (("a", noise), ("b", flat), ("c", noise[:, :90]), ("d", half)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def make(
    photos: Path,
    folder: Path,
    prior: Prior,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> Patches:
    settings: dict[str, Any] = {
        "systems": SYSTEMS,
        "options": OPTIONS,
        "scale": 2,
        "patch_px": PATCH_PX,
        "prior": prior,
        **changes,
    }
    return ranking.make([photos], folder, plan=Plan(**settings), on_progress=on_progress)


def test_patches_are_labelled_by_niqe(photos: Path, tmp_path: Path, prior: Prior) -> None:
    seen: list[tuple[int, int]] = []
    patches = make(photos, tmp_path / "out", prior, on_progress=lambda *told: seen.append(told))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [sentence.rpartition("/")[2] for sentence in patches.skipped] == [
        "c.png: smaller than 104 px"
    ]
    assert patches.systems == ("doubled", "noisy, too")
    places = [(Path(p.picture).name, p.y_px, p.x_px) for p in patches.places]
    # Of 160 x 212 px, two rows and three columns; of the half picture not where it is flat.
    grid = [("a.png", y, x) for y in (0, 52) for x in (0, 52, 104)]
    assert places == [*grid, ("d.png", 0, 52), ("d.png", 0, 104)]
    assert patches.data.shape == (8, 2, 104, 104, 3)
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["lines"] for line in lines] == ["6"] * 6 + ["0"] + ["2"] * 2
    written = [line for line in lines if line["lines"] != "0"]
    for place, data, line in zip(patches.places, patches.data, written, strict=True):
        for number, system in enumerate(patches.systems):
            wanted = niqe(np.asarray(data[number]), prior, border_px=4)
            assert place.niqe[number] == wanted
            assert float(line[system]) == wanted
        with Image.open(place.picture) as image:
            true = luma_8bit(np.asarray(image))
        y, x = place.y_px, place.x_px
        true = true[y : y + 104, x : x + 104]
        assert place.sharpness == pytest.approx(ranking.sharpness_of(true), abs=1e-3)
        assert place.sharpness >= 1.0
    # A patch is what the system made of the whole picture, cut at its place.
    with Image.open(photos / "a.png") as image:
        made = noisy(ranking.imresize(np.asarray(image), 0.5))
    np.testing.assert_array_equal(patches.data[5, 1], made[52:156, 104:208])


def test_places_where_all_systems_are_alike_are_left_out(
    photos: Path, tmp_path: Path, prior: Prior
) -> None:
    every = make(photos, tmp_path / "all", prior).places
    apart = [abs(place.niqe[0] - place.niqe[1]) for place in every]
    least = sorted(apart)[3] + 1e-9
    options = dataclasses.replace(OPTIONS, least_difference=least)
    some = make(photos, tmp_path / "some", prior, options=options)
    assert some.places == tuple(p for p, a in zip(every, apart, strict=True) if a > least)
    assert len(some.data) == len(some.places) == 4


def test_sharpness_by_hand() -> None:
    assert ranking.sharpness_of(np.full((20, 20), 7.0)) == pytest.approx(0.0, abs=1e-6)
    # Of a checkerboard of ±a the Gaussian takes all but next to nothing away: it deviates by a.
    board = 10.0 * (-1.0) ** np.add.outer(np.arange(60), np.arange(60))
    assert ranking.sharpness_of(board) == pytest.approx(10.0, rel=0.02)


def test_making_patches_goes_on_where_it_was_killed(
    photos: Path, tmp_path: Path, prior: Prior
) -> None:
    whole = tmp_path / "whole"
    make(photos, whole, prior)
    names = ("labels.csv", "patches.u8", "patches.json")
    wanted = {name: (whole / name).read_bytes() for name in names}
    labels, data = wanted["labels.csv"], wanted["patches.u8"]
    lines = labels.splitlines(keepends=True)
    states = {
        "in a line": (b"".join(lines[:8]) + lines[8][:-3], data),
        "between lines": (b"".join(lines[:9]), data),
        "data without lines": (b"".join(lines[:8]), data[:-77]),
        "lines without data": (labels, data[: 7 * len(data) // 8]),
    }
    for told, (some_labels, some_data) in states.items():
        cut = tmp_path / told
        cut.mkdir()
        for name, content in zip(names, (some_labels, some_data, wanted[names[2]]), strict=True):
            (cut / name).write_bytes(content)
        make(photos, cut, prior)
        assert {name: (cut / name).read_bytes() for name in names} == wanted, told


def test_what_is_done_is_not_done_again(
    photos: Path, tmp_path: Path, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(photos, tmp_path / "out", prior)
    # Nor one without a place, though it is looked at first.
    looked_at: list[np.ndarray] = []
    monkeypatch.setattr(ranking, "_places", lambda hr, plan: looked_at.append(hr) or [])

    def never(lr: np.ndarray) -> np.ndarray:
        raise AssertionError("a picture is enlarged again")

    idle = [dataclasses.replace(system, enlarge=never) for system in SYSTEMS]
    assert len(make(photos, tmp_path / "out", prior, systems=idle).places) == 8
    assert not looked_at


def test_patches_of_other_options_are_refused(photos: Path, tmp_path: Path, prior: Prior) -> None:
    make(photos, tmp_path / "out", prior)
    other = [SYSTEMS[0], dataclasses.replace(SYSTEMS[1], identity="3")]
    for changes, words in (
        ({"systems": other}, "systems differ"),
        ({"patch_px": 108, "scale": 4}, "scale, patch_px differ"),
        ({"options": dataclasses.replace(OPTIONS, stride_px=50)}, "stride_px differ"),
    ):
        with pytest.raises(TrainError, match=words):
            make(photos, tmp_path / "out", prior, **changes)
    (tmp_path / "out" / "patches.json").write_bytes(b"[")
    with pytest.raises(TrainError, match="is damaged"):
        make(photos, tmp_path / "out", prior)


def test_systems_that_do_not_differ_teach_nothing(
    photos: Path, tmp_path: Path, prior: Prior
) -> None:
    twins = [SYSTEMS[0], dataclasses.replace(SYSTEMS[0], name="again")]
    with pytest.raises(TrainError, match="the systems must differ"):
        make(photos, tmp_path / "out", prior, systems=twins)
    with pytest.raises(TrainError, match="is no folder"):
        make(photos / "a.png", tmp_path / "out", prior)


def test_some_places_of_a_picture_are_spread_over_it(
    photos: Path, tmp_path: Path, prior: Prior
) -> None:
    few = dataclasses.replace(OPTIONS, most_patches=2)
    patches = make(photos, tmp_path / "out", prior, options=few)
    # Of six places the second and the fifth; of two both.
    assert [(p.y_px, p.x_px) for p in patches.places] == [(0, 52), (52, 52), (0, 52), (0, 104)]


# Pairs, and learning from them.


def places(scores: list[tuple[float, ...]], names: list[str]) -> tuple[Place, ...]:
    return tuple(
        Place(picture=name, y_px=0, x_px=0, sharpness=9.0, niqe=niqe_)
        for niqe_, name in zip(scores, names, strict=True)
    )


def test_which_pairs_there_are_and_which_is_worse() -> None:
    data = np.arange(3 * 3, dtype=np.uint8).reshape(3, 3, 1, 1, 1)
    data = np.broadcast_to(data, (3, 3, 32, 32, 3))
    scores = [(5.0, 3.0, 5.05), (2.0, float("nan"), 9.0), (4.0, 4.05, 4.1)]
    patches = Patches(systems=("a", "b", "c"), places=places(scores, ["1", "2", "3"]), data=data)
    pairs = Pairs(patches, RankingOptions(held_out=0.0))
    images, signs = pairs.load(pairs.learned)
    found = images[:, 0, 0, 0].tolist()
    # 5 and 5.05 are alike, and so are all of the last place; without NIQE nothing is said.
    assert list(zip(found[:3], found[3:], signs.flatten().tolist(), strict=True)) == [
        (0, 1, 1.0),
        (1, 2, -1.0),
        (3, 5, -1.0),
    ]


def test_whole_pictures_are_held_out() -> None:
    names = [str(number // 2) for number in range(20)]
    patches = Patches(
        systems=("a", "b"),
        places=places([(1.0, 2.0)] * 20, names),
        data=np.zeros((20, 2, 32, 32, 3), np.uint8),
    )
    pairs = Pairs(patches, RankingOptions(held_out=0.2))
    assert pairs.held_out.tolist() == [4, 5, 14, 15]
    assert sorted({*pairs.learned, *pairs.held_out}) == list(range(20))
    assert set(pairs.drawn(3, seed=1, batch=200)) == set(pairs.learned)
    assert np.array_equal(pairs.drawn(3, seed=1, batch=9), pairs.drawn(3, seed=1, batch=9))


RECIPE = Recipe(
    name="tiny ranker",
    generator={"network": "ranker", "scale": 2, "channels": 2, "hidden": 8},
    data=DataOptions(batch=4, patch_px=16),
    stages=(
        StageOptions(
            name="rank", steps=40, learning_rate=1e-2, warmup_steps=0, clip_norm=0.0, ema_decay=0.0
        ),
    ),
    ranking=RankingOptions(held_out=0.25),
)


@pytest.fixture
def easy() -> Patches:
    """Smooth patches of little NIQE by the one system, and noise of much by the other."""
    random = np.random.default_rng(5)
    smooth = np.broadcast_to(random.integers(60, 200, (8, 1, 1, 3)), (8, 32, 32, 3))
    noise = np.clip(smooth + random.integers(-60, 61, smooth.shape), 0, 255)
    data = np.stack([smooth, noise], axis=1).astype(np.uint8)
    names = [str(number) for number in range(8)]
    return Patches(systems=("a", "b"), places=places([(3.0, 7.0)] * 8, names), data=data)


def ranker_trainer(patches: Patches, folder: Path, chosen: Recipe = RECIPE) -> RankerTrainer:
    fabric = machine.open_fabric(torch.device("cpu"), torch.float32)
    return RankerTrainer(chosen, patches, run_folder=folder, fabric=fabric)


def test_a_higher_niqe_is_a_higher_value(easy: Patches, tmp_path: Path) -> None:
    subject = ranker_trainer(easy, tmp_path / "run")
    reports = []
    assert subject.run(on_report=reports.append, report_every=10, validate_every=40) == 0
    assert [report.step for report in reports] == [10, 20, 30, 40]
    first, last = reports[0].losses, reports[-1].losses
    assert last["rank"] < first["rank"]
    assert last["order"] == last["held out"] == 1.0
    assert "held out" not in first
    assert [row["losses"] for row in rows(tmp_path / "run")] == [r.losses for r in reports]
    path = tmp_path / "r.safetensors"
    subject.export(path, metadata={})
    loaded = load_ranker(path)
    assert loaded.patch_px == 32
    shown = torch.from_numpy(np.ascontiguousarray(easy.data).transpose(0, 1, 4, 2, 3) / 255.0)
    smooth, noise = (loaded.ranker(shown[:, k].float()).flatten() for k in (0, 1))
    assert bool((noise > smooth).all())


def test_the_first_step_by_hand(easy: Patches, tmp_path: Path) -> None:
    subject = ranker_trainer(easy, tmp_path / "run")
    images, signs = subject.pairs.load(subject.pairs.drawn(0, seed=0, batch=4))
    ranker: Any = subject.state.generator
    with torch.no_grad():
        values = ranker.train()(images.float() / 255.0).double()
    wanted = np.maximum(0.0, 0.5 - (signs * (values[:4] - values[4:])).numpy()).mean()
    reports = []
    fresh = ranker_trainer(easy, tmp_path / "run")
    fresh.run(on_report=reports.append, report_every=1, stop=lambda: int(fresh.state.step >= 1))
    assert reports[0].losses["rank"] == pytest.approx(float(wanted), rel=1e-5)
    assert reports[0].learning_rate == 1e-2


def test_a_ranker_goes_on_bit_for_bit(easy: Patches, tmp_path: Path) -> None:
    chosen = RECIPE.with_steps(8)
    whole, first = (ranker_trainer(easy, tmp_path / name, chosen) for name in ("whole", "cut"))
    assert whole.run(on_report=lambda report: None) == 0
    assert first.run(on_report=lambda report: None, stop=lambda: 2 * (first.state.step >= 3)) == 2
    second = ranker_trainer(easy, tmp_path / "cut", chosen)
    assert second.state.step == 3
    second.run(on_report=lambda report: None)
    mine, wanted = second.state.payload(chosen), whole.state.payload(chosen)
    for name, value in wanted["generator"].items():
        assert torch.equal(mine["generator"][name], value), name
    for one, other in zip(
        mine["optimizer"]["state"].values(), wanted["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(one[key], other[key]) for key in other)
    with pytest.raises(TrainError, match="made by another recipe"):
        ranker_trainer(easy, tmp_path / "cut", dataclasses.replace(chosen, data=DataOptions()))


def test_a_ranker_that_diverges_keeps_what_was_saved(easy: Patches, tmp_path: Path) -> None:
    subject = ranker_trainer(easy, tmp_path / "run")
    with torch.no_grad():
        next(subject.state.generator.parameters()).fill_(torch.inf)
    with pytest.raises(TrainError, match="NaN or infinite at step 0: lower --learning-rate"):
        subject.run(on_report=lambda report: None)
    none_left = dataclasses.replace(easy, places=places([(3.0, 3.0)] * 8, ["1"] * 8))
    with pytest.raises(TrainError, match="no pair of patches is left"):
        ranker_trainer(none_left, tmp_path / "other")


# The commands.


def command(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def refused(done: Any, *, code: int = 2) -> str:
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


TINY = (
    *("--set", "generator.channels=2", "--set", "generator.hidden=4", "--scale", 2, "--batch", 2),
    *("--patch", 52, "--set", "ranking.stride_px=52", "--set", 'ranking.systems=["bicubic","box"]'),
    *("--set", "ranking.least_difference=0.0001"),
    *("--set", "ranking.held_out=0.5", "--steps", 4, "--report-every", 2, "--device", "cpu"),
    *("--precision", "fp32"),
)


def test_pictures_in_a_ranker_out(photos: Path, prior_path: Path, tmp_path: Path) -> None:
    names = [row.name for row in weights.catalog.rows() if row.kind == "resample"]
    other = next(name for name in names if name != "bicubic")
    tiny = [str(each).replace('"box"', json.dumps(other)) for each in TINY]
    out = tmp_path / "run"
    arguments = (photos, "--recipe", "ranker", "--name", "judge", "--out", out)
    done = command(*arguments, "--niqe", prior_path, *tiny)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert f"8 places of bicubic, {other} at x2: 6 pairs to learn from, 2 held" in done.stderr
    assert "skipped 1: smaller than 104 px" in done.stderr
    assert "100.0%  step 4  rank 0." in done.stderr
    assert "--recipe ranksrgan --ranker" in done.stderr
    loaded = load_ranker(out / "judge.safetensors")
    assert (loaded.ranker.config, loaded.patch_px) == (SMALL, 104)
    facts = json.loads((out / "judge.json").read_text())
    assert facts["steps"] == "4"
    assert facts["trained_on"].startswith("6 pairs of patches of 2 pictures of photos")
    assert 0.0 <= float(facts["held_out_in_order"]) <= 1.0
    assert (out / "patches" / "labels.csv").is_file()
    again = recipe.load(str(out / "recipe.toml"))
    assert (again.ranking, again.generator) == (
        RankingOptions(
            systems=("bicubic", other), stride_px=52, least_difference=1e-4, held_out=0.5
        ),
        {"network": "ranker", "scale": 2, "channels": 2, "hidden": 4},
    )
    done = command(*arguments, "--niqe", prior_path, *tiny)
    assert "going on at step 4" in done.stderr
    # It is no model that enlarges anything.
    assert not weights.user_rows()


def test_what_is_refused_before_a_ranker_is_trained(
    photos: Path, prior_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (("--val", tmp_path / "none"), "leave out --val"),
        (("--estimate",), "leave out --estimate"),
        (("--accumulate", 2), "leave out --accumulate"),
        (("--paths", "mse,l1"), "makes a ranker"),
        (("--set", 'ranking.systems=["bicubic"]'), "two or more"),
        (("--set", 'ranking.systems=["bicubic","bicubic"]'), "another one"),
        (("--set", 'ranking.systems=["bicubic","bicubick"]'), "bicubick"),
        (("--patch", 20), "NIQE needs patches of 104 px, and these have 80: raise patch_px to 26"),
        (("--set", "generator.channels=0"), "must be positive"),
        (("--set", "generator.width=4"), "unknown key 'width'"),
        (("--generator", "srresnet"), 'trains network = "ranker"'),
        (("--gan", "vanilla", "--discriminator", "srgan"), "no discriminator"),
        (("--niqe", photos / "a.png"), "is no model of NIQE"),
    ):
        line = refused(command(photos, "--recipe", "ranker", "--niqe", prior_path, *options))
        assert words in line
    with pytest.raises(UsageError, match="no network 'ranker'"):
        building.check(dataclasses.replace(recipe.load("ranker"), ranking=None))


def test_a_rank_loss_needs_its_ranker(photos: Path, tmp_path: Path) -> None:
    save_ranker(small_ranker(), tmp_path / "r.safetensors", metadata={"patch_px": "296"})
    tiny = ("--set", "generator.blocks=1", "--set", "generator.channels=4", "--device", "cpu")
    tiny += ("--out", tmp_path / "run", "--scale", 2, "--patch", 16, "--batch", 2)
    ranked = (photos, "--recipe", "srresnet", "--extra-loss", "rank:0.1", *tiny)
    assert "give its file with --ranker FILE, or make one" in refused(command(*ranked))
    missing = tmp_path / "none.safetensors"
    assert "there is no such file" in refused(command(*ranked, "--ranker", missing))
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 9)
    junk = refused(command(*ranked, "--ranker", tmp_path / "junk.safetensors"), code=1)
    assert "junk.safetensors" in junk
    given = ("--ranker", tmp_path / "r.safetensors")
    without = command(photos, "--recipe", "srresnet", *tiny, *given)
    assert "has no rank loss; give --extra-loss rank:0.03" in refused(without)
    assert "measures no NIQE" in refused(command(photos, "--niqe", tmp_path / "x", *tiny))
    small = refused(command(*ranked, *given, "--patch", 15))
    assert "a ranker needs crops of 32 px, and these have 30" in small
    assert not (tmp_path / "run").exists()
    luma = (photos, "--recipe", "srcnn", "--extra-loss", "rank:0.1", *given, "--scale", 2)
    assert "works on luma" in refused(command(*luma, "--patch", 20))
    # From the recipe in the place of a flag; and the crops are not what it learned from.
    own = ("--set", f"stages.0.losses.ranker={json.dumps(str(given[1]))}")
    done = command(*ranked, *own, "--steps", 2, "--report-every", 1, "--precision", "fp32")
    assert done.exit_code == 0, done.stderr
    assert (
        "note: stage mse: the ranker learned from patches of 296 px, and is shown crops of 32"
        in (done.stderr)
    )
    for row in rows(tmp_path / "run"):
        assert 0.1 * 2 * 0.2 < row["losses"]["rank"] < 0.1 * 2 * 0.8
