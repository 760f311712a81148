"""Training: recipes, pairs of crops, the loop, and what is left when it is killed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from waifu4x import checkpoints, devices, pictures, weights
from waifu4x.cli.app import app
from waifu4x.errors import TrainError, UsageError
from waifu4x.resample import imresize
from waifu4x.train import loop, recipe
from waifu4x.train.data import CropSampler, PairCache, open_cache
from waifu4x.train.loop import Report, Trainer, learning_rate_at, training_dtype
from waifu4x.train.losses import PIXEL_LOSSES, CharbonnierLoss
from waifu4x.train.recipe import DataOptions, Recipe, ScheduleOptions
from waifu4x.train.state import TrainState, ema_decay_at

ROOT = Path(__file__).parents[1]
STEPS = 12
TINY = """
[network]
architecture = "msrresnet"
scale = 2
blocks = 1
channels = 8
tail = "direct"
[data]
batch = 2
patch_px = 8
[schedule]
steps = 12
learning_rate = 5e-3
warmup_steps = 3
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For these sizes more only wait for each other, 40 times as long where cores are few."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


def save_picture(path: Path, *, seed: int, size: tuple[int, int] = (40, 32)) -> None:
    """Waves: smooth, so that a network first learns to disturb nothing, then to do better."""
    y, x = np.mgrid[: size[1], : size[0]]
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    planes = [np.sin(x / 3 + phase[c]) * np.cos(y / 4 + phase[c + 3]) for c in range(3)]
    Image.fromarray((np.stack(planes, axis=2) * 100 + 120).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(3):
        save_picture(place / f"{number}.png", seed=number, size=(40 + 2 * number, 32))
    return place


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> PairCache:
    return open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)


# Recipes.


def test_training_is_never_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a mean over a batch is below what fp16 can hold."""
    cpu = torch.device("cpu")
    assert training_dtype("bf16", cpu) == torch.bfloat16
    assert training_dtype("fp32", cpu) == torch.float32
    # As on a GPU that is too old for bf16.
    monkeypatch.setattr(devices, "pick_dtype", lambda wish, device: torch.float16)
    assert training_dtype("auto", cpu) == torch.float32
    with pytest.raises(UsageError, match="fp16 loses its gradients"):
        training_dtype("fp16", cpu)


def test_the_recipes_that_ship() -> None:
    assert "fast" in recipe.preset_names()
    for name in recipe.preset_names():
        loaded = recipe.load(name)
        loop.check(loaded)
        assert loaded.name == name
        assert json.loads(json.dumps(loaded.facts()))["network"] == dict(loaded.network)


def test_a_recipe_of_ones_own(tiny: Path) -> None:
    loaded = recipe.load(str(tiny))
    assert loaded.scale == 2
    assert loaded.network["blocks"] == 1
    assert loaded.data == DataOptions(batch=2, patch_px=8)
    assert (loaded.schedule.steps, loaded.schedule.learning_rate) == (12, 5e-3)
    assert loaded.schedule.betas == ScheduleOptions().betas
    assert loaded.loss.pixel == "l1"


NETWORK = '[network]\narchitecture = "msrresnet"\nscale = 2\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network", "is not valid TOML"),
        ("", "must name an architecture and a scale"),
        ("network = 3", "must name an architecture and a scale"),
        ('[network]\narchitecture = "msrresnet"', "must name an architecture and a scale"),
        ('[network]\narchitecture = ["x"]\nscale = 2', "architecture is a text"),
        *(
            (f'[network]\narchitecture = "msrresnet"\nscale = {scale}', "scale a whole number")
            for scale in ("0", "-4", "2.0", '"2"', "true")
        ),
        (NETWORK + "[shedule]\nsteps = 3", "did you mean 'schedule'?"),
        (NETWORK + "[schedule]\nlearning_rat = 1.0", "did you mean 'learning_rate'?"),
        (NETWORK + "[data]\nzzz = 1", "known are batch, patch_px"),
        ("loss = 3\n" + NETWORK, "must be a table"),
        (NETWORK + '[data]\nbatch = "many"', "batch = 'many' is not of type"),
        (NETWORK + "[data]\nbatch = 2.5", "batch = 2.5 is not of type"),
        (NETWORK + "[data]\nbatch = true", "batch = True is not of type"),
        (NETWORK + "[loss]\npixel = 1", "pixel = 1 is not of type"),
        (NETWORK + "[schedule]\nbetas = [0.9]", "betas = [0.9] is not of type"),
        (NETWORK + "[schedule]\nbetas = 3", "betas = 3 is not of type"),
        (NETWORK + '[schedule]\nbetas = ["a", "b"]', "betas = ['a', 'b'] is not of type"),
        (NETWORK + "[schedule]\nbetas = [0.9, 1.0]", "betas must lie in"),
        (NETWORK + "[schedule]\nsteps = 0", "steps must be 1 or more"),
        (NETWORK + "[schedule]\nminutes = 0", "minutes must be more than 0"),
        (NETWORK + "[schedule]\nlearning_rate = nan", "learning_rate must be more than 0"),
        (NETWORK + "[schedule]\nlearning_rate = -1.0", "learning_rate must be more than 0"),
        (NETWORK + "[schedule]\nwarmup_steps = -1", "warmup_steps must be 0 or more"),
        (NETWORK + "[schedule]\nema_decay = 1.0", "ema_decay must lie in"),
        (NETWORK + "[schedule]\nclip_norm = 0.0", "clip_norm must be more than 0"),
        (NETWORK + "[data]\nbatch = 0", "must be 1 or more"),
    ],
)
def test_recipes_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipe.load(str(path))
    assert words in str(caught.value)
    assert "odd" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipes_and_unreadable_ones(tmp_path: Path) -> None:
    for name in ("fst", str(tmp_path / "absent.toml"), str(tmp_path)):
        with pytest.raises(UsageError, match=r"no recipe .* give a .toml file or one of .*fast"):
            recipe.load(name)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as text"):
        recipe.load(str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"architecture": "srresnett", "scale": 4}, "no network 'srresnett': known are"),
        ({"architecture": "msrresnet", "scale": 4, "blokcs": 3}, "blokcs"),
        ({"architecture": "msrresnet", "scale": 4, "blocks": 0}, "must be positive"),
        ({"architecture": "msrresnet", "scale": 4, "blocks": "x"}, "[network]"),
        ({"architecture": "msrresnet", "scale": 5}, "not x5"),
        ({"architecture": "msrresnet", "scale": 4, "channels_in": 1}, "only networks from RGB"),
        ({"architecture": "vdsr", "scale": 4}, "scale"),
    ],
)
def test_networks_that_cannot_be_trained(network: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        loop.check(Recipe(name="odd", network=network))
    assert words in str(caught.value)


def test_an_unknown_loss() -> None:
    odd = dataclasses.replace(recipe.load("fast"), loss=recipe.LossOptions(pixel="l3"))
    with pytest.raises(UsageError, match="no loss 'l3': known are l1, mse, charbonnier"):
        loop.check(odd)


def test_losses_have_known_values() -> None:
    a, b = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    got = {name: float(kind()(a, b)) for name, kind in PIXEL_LOSSES.items()}
    assert got["l1"] == 0.5
    assert got["mse"] == 0.25
    assert got["charbonnier"] == pytest.approx(math.sqrt(0.25 + 1e-6))
    assert float(CharbonnierLoss(epsilon=0.1)(a, a)) == pytest.approx(0.1)


# Data.


def test_low_resolution_is_imresize_of_high(folder: Path, cache: PairCache) -> None:
    assert len(cache) == 3
    for number in range(3):
        lr, hr = cache.pair(number)
        np.testing.assert_array_equal(hr, pictures.read(folder / f"{number}.png").pixels)
        np.testing.assert_array_equal(lr, imresize(np.asarray(hr), 0.5))
    assert cache.sizes_px.tolist() == [[16, 20], [16, 21], [16, 22]]


def test_odd_kinds_of_pictures(tmp_path: Path) -> None:
    """Gray, 16 bit, alpha, and sides that are no multiple of the scale."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (33, 35), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    rgba = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    cache = open_cache([tmp_path], tmp_path / "cache", scale=2, patch_px=8)
    hrs = [np.asarray(cache.pair(number)[1]) for number in range(3)]
    np.testing.assert_array_equal(hrs[0], np.repeat(gray[:32, :34, None], 3, axis=2))
    np.testing.assert_array_equal(hrs[1], hrs[0])
    np.testing.assert_array_equal(hrs[2], rgba[..., :3])


def test_the_cache_is_used_again_and_made_anew_when_a_picture_changes(
    folder: Path, tmp_path: Path
) -> None:
    decoded: list[int] = []

    def look() -> PairCache:
        return open_cache(
            *([folder], tmp_path / "cache"),
            scale=2,
            patch_px=8,
            on_progress=lambda done, total: decoded.append(total),
        )

    look()
    assert decoded == [3, 3, 3]
    look()
    assert len(decoded) == 3
    save_picture(folder / "1.png", seed=9, size=(42, 32))
    os.utime(folder / "1.png", ns=(0, 12345))
    changed = look()
    assert len(decoded) == 6
    np.testing.assert_array_equal(changed.pair(1)[1], pictures.read(folder / "1.png").pixels)
    for lost in (tmp_path / "cache").glob("*.hr"):
        lost.unlink()
    assert len(look()) == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_unusable_pictures_are_skipped_with_their_reasons(folder: Path, tmp_path: Path) -> None:
    save_picture(folder / "small.png", seed=5, size=(40, 15))
    (folder / "bad.png").write_bytes(b"junk")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"junk")
    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)
    assert len(cache) == 3
    assert len(cache.skipped) == 2
    assert any("bad.png" in s and "not a picture" in s for s in cache.skipped)
    assert any("small.png: smaller than 16 px" in s for s in cache.skipped)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, words in ((tmp_path / "absent", "is no folder"), (empty, "no pictures in")):
        with pytest.raises(TrainError, match=words):
            open_cache([place], tmp_path / "cache", scale=2, patch_px=8)
    save_picture(empty / "small.png", seed=0, size=(8, 8))
    for _ in range(2):  # also when the cache knows already
        with pytest.raises(TrainError, match=r"at least 16 px; 1 were skipped"):
            open_cache([empty], tmp_path / "cache", scale=2, patch_px=8)


def numbered(sizes: list[tuple[int, int]], groups: list[int], *, scale: int) -> PairCache:
    """Pictures whose pixels say where they lie: red is the picture, green the row, blue the column;
    the high-resolution ones in low-resolution pixels, so that aligned crops look alike."""
    lr, hr = [], []
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        small = np.stack([np.full_like(y, number), y, x], axis=2)
        lr.append(small.ravel())
        hr.append(small.repeat(scale, axis=0).repeat(scale, axis=1).ravel())
    return PairCache(
        scale=scale,
        sizes_px=np.array(sizes),
        groups=np.array(groups),
        hr=np.concatenate(hr),
        lr=np.concatenate(lr),
        skipped=(),
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_aligned_whatever_the_turn(scale: int) -> None:
    cache = numbered([(20, 9), (8, 30), (11, 11)], [0, 0, 0], scale=scale)
    lr, hr = CropSampler(cache, patch_px=7, seed=0).batch(64)
    assert lr.shape == (64, 3, 7, 7)
    assert hr.shape == (64, 3, 7 * scale, 7 * scale)
    assert (lr.dtype, hr.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(lr.repeat(scale, axis=2).repeat(scale, axis=3), hr)
    # A crop is a window of one picture: one picture's number, 7 rows and 7 columns next to
    # each other; all eight turns and the farthest corner come up.
    assert all(len(np.unique(crop[0])) == 1 for crop in lr)
    steps = {
        (
            *(int(crop[1, 1, 0]) - int(crop[1, 0, 0]), int(crop[1, 0, 1]) - int(crop[1, 0, 0])),
            int(crop[2, 0, 1]) - int(crop[2, 0, 0]) + int(crop[2, 1, 0]) - int(crop[2, 0, 0]),
        )
        for crop in lr
    }
    assert steps == {(a, b, c) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)) for c in (1, -1)}


def test_every_place_is_equally_likely_and_folders_are_balanced() -> None:
    # Folder 0 has pictures of 1 and of 9 places, folder 1 one of 100 places.
    cache = numbered([(4, 4), (6, 6), (13, 13)], [0, 0, 1], scale=2)
    lr, _ = CropSampler(cache, patch_px=4, seed=1).batch(6000)
    counts = Counter(int(crop[0, 0, 0]) for crop in lr)
    assert counts[2] == pytest.approx(3000, abs=200)
    assert counts[0] == pytest.approx(300, abs=80)
    corners = Counter((int(c[1].min()), int(c[2].min())) for c in lr if c[0, 0, 0] == 1)
    assert len(corners) == 9
    assert min(corners.values()) > 220  # of 300 expected


def test_the_sampler_is_deterministic_and_its_state_is_all_of_it(cache: PairCache) -> None:
    one, other = (CropSampler(cache, patch_px=8, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.batch(4)[0], other.batch(4)[0])
    state = one.state
    first = one.batch(4)
    one.batch(5)
    another = CropSampler(cache, patch_px=8, seed=99)
    another.state = state
    for got, wanted in zip(another.batch(4), first, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert (CropSampler(cache, patch_px=8, seed=4).batch(4)[0] != first[0]).any()


# The schedule and the average.


def test_learning_rate() -> None:
    schedule = ScheduleOptions(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=4)

    def rate(step: int, progress: float) -> float:
        return learning_rate_at(schedule, step=step, progress=progress)

    assert [rate(step, 0.0) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert rate(99, 0.5) == pytest.approx(0.55)
    assert rate(99, 1 / 3) == pytest.approx(0.1 + 0.9 * 0.75)
    assert rate(99, 1.0) == rate(99, 1.7) == pytest.approx(0.1)
    without = dataclasses.replace(schedule, warmup_steps=0)
    assert learning_rate_at(without, step=0, progress=0.0) == 1.0


def test_the_average_starts_quickly_and_ends_slowly(cache: PairCache) -> None:
    assert [ema_decay_at(step, 0.999) for step in (0, 8)] == [0.1, 0.5]
    assert ema_decay_at(10**6, 0.999) == 0.999
    ramp = [ema_decay_at(step, 0.999) for step in range(20_000)]
    assert ramp == sorted(ramp)

    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    sampler = CropSampler(cache, patch_px=8, seed=0)
    state = TrainState.start(network, sampler, recipe.load("fast"))
    start = {k: v.clone() for k, v in state.ema.state_dict().items()}
    with torch.no_grad():
        for value in network.state_dict().values():
            value += 1
    state.step = 8
    state.average(0.999)
    for name, value in state.ema.state_dict().items():
        moved = 1 if name.endswith("num_batches_tracked") else 0.5
        torch.testing.assert_close(value, start[name] + torch.tensor(moved, dtype=value.dtype))
    assert not any(p.requires_grad for p in state.ema.parameters())


# The loop.


def trainer(cache: PairCache, tiny: Path, run_folder: Path, **options: Any) -> Trainer:
    schedule = options.pop("schedule", {})
    chosen = recipe.load(str(tiny))
    chosen = dataclasses.replace(chosen, schedule=dataclasses.replace(chosen.schedule, **schedule))
    return Trainer(chosen, cache, run_folder=run_folder, device="cpu", precision="fp32", **options)


def train(subject: Trainer, **options: Any) -> list[float]:
    """The losses of all steps."""
    losses: list[float] = []
    subject.run(on_report=lambda r: losses.append(r.loss), report_every=1, **options)
    return losses


def weights_of(subject: Trainer) -> list[torch.Tensor]:
    state = subject.state
    return [*state.network.state_dict().values(), *state.ema.state_dict().values()]


def assert_equal(one: Trainer, other: Trainer) -> None:
    for got, wanted in zip(weights_of(one), weights_of(other), strict=True):
        assert torch.equal(got, wanted)


@pytest.fixture
def whole(cache: PairCache, tiny: Path, tmp_path: Path) -> tuple[Trainer, list[float]]:
    """The run that nothing interrupted, and its losses."""
    subject = trainer(cache, tiny, tmp_path / "whole")
    return subject, train(subject)


def test_it_learns(cache: PairCache, tiny: Path, tmp_path: Path) -> None:
    pairs = loop.validation_pairs(tmp_path / "photos", 2)
    subject = trainer(cache, tiny, tmp_path / "run", schedule={"steps": 300}, validation=pairs)
    before = subject.validate()
    losses = train(subject, validate_every=150)
    assert len(losses) == 300
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])
    assert subject.validate() > before + 1.0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    facts = [json.loads(line) for line in lines]
    assert [each["step"] for each in facts] == list(range(1, 301))
    measured = [each["step"] for each in facts if each["psnr_db"] is not None]
    assert measured == [150, 300]
    assert facts[-1]["progress"] == 1.0
    assert facts[149]["learning_rate"] == pytest.approx(
        learning_rate_at(subject.recipe.schedule, step=149, progress=149 / 300)
    )


def test_equal_seeds_give_equal_runs_and_others_do_not(
    whole: tuple[Trainer, list[float]], cache: PairCache, tiny: Path, tmp_path: Path
) -> None:
    again = trainer(cache, tiny, tmp_path / "again")
    assert train(again) == whole[1]
    assert_equal(again, whole[0])
    assert train(trainer(cache, tiny, tmp_path / "other", seed=1)) != whole[1]


@pytest.mark.parametrize("points", [(1,), (5,), (11,), (3, 4, 9)])
def test_a_stopped_run_goes_on_bit_for_bit(
    *,
    whole: tuple[Trainer, list[float]],
    cache: PairCache,
    tiny: Path,
    tmp_path: Path,
    points: tuple[int, ...],
) -> None:
    losses: list[float] = []
    for point in points:
        subject = trainer(cache, tiny, tmp_path / "run")
        state = subject.state
        losses += train(subject, stop=lambda state=state, point=point: state.step >= point)
        assert state.step == point
    last = trainer(cache, tiny, tmp_path / "run")
    assert last.state.step == points[-1]
    losses += train(last)
    assert losses == whole[1]
    assert_equal(last, whole[0])
    assert train(trainer(cache, tiny, tmp_path / "run")) == []  # it is done


class Cut(BaseException):
    """What a signal's handler may raise anywhere."""


def _cut_at(step: int, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Cut once, within that step: before its forward pass, or when the weights were changed
    and the step was not counted yet."""
    owner, name = {
        "early": (Trainer, "_draw"),
        "late": (TrainState, "average"),
    }[part]
    calls: list[int] = []
    whole: Callable[..., Any] = getattr(owner, name)

    def cut(self: Any, *arguments: Any) -> Any:
        done = whole(self, *arguments)
        calls.append(1)
        if len(calls) == step:
            raise Cut
        return done

    monkeypatch.setattr(owner, name, cut)


@pytest.mark.parametrize("part", ["early", "late"])
def test_a_step_cut_in_two_is_never_gone_on_from(
    *,
    whole: tuple[Trainer, list[float]],
    cache: PairCache,
    tiny: Path,
    tmp_path: Path,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = trainer(cache, tiny, tmp_path / "run")
    with monkeypatch.context() as patched:
        _cut_at(6, part, patched)
        with pytest.raises(Cut):
            train(subject, save_every_s=0.0)
    again = trainer(cache, tiny, tmp_path / "run")
    assert again.state.step == 5
    assert train(again) == whole[1][5:]
    assert_equal(again, whole[0])


def test_an_error_between_steps_saves_what_is_done(
    whole: tuple[Trainer, list[float]], cache: PairCache, tiny: Path, tmp_path: Path
) -> None:
    def fail(report: Report) -> None:
        if report.step == 4:
            raise Cut

    with pytest.raises(Cut):
        trainer(cache, tiny, tmp_path / "run").run(on_report=fail, report_every=1)
    again = trainer(cache, tiny, tmp_path / "run")
    assert again.state.step == 4
    assert train(again) == whole[1][4:]


def test_a_failing_save_keeps_the_state_before(
    cache: PairCache, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = trainer(cache, tiny, tmp_path / "run")
    train(subject, stop=lambda: subject.state.step >= 3)
    before = subject.checkpoint.read_bytes()

    def fail(payload: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space"):
            train(trainer(cache, tiny, tmp_path / "run"))
    assert subject.checkpoint.read_bytes() == before
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"last.pth", "metrics.jsonl"}
    assert trainer(cache, tiny, tmp_path / "run").state.step == 3


def test_damaged_and_foreign_states(cache: PairCache, tiny: Path, tmp_path: Path) -> None:
    subject = trainer(cache, tiny, tmp_path / "run")
    train(subject, stop=lambda: subject.state.step >= 2)
    content = subject.checkpoint.read_bytes()
    payload = torch.load(subject.checkpoint, weights_only=True)

    def contents() -> list[bytes]:
        path = tmp_path / "x.pth"
        found = [b"", b"junk", content[: len(content) // 2]]
        for odd in (
            {"a": 1},
            [1],
            {**payload, "format": 99},
            {k: v for k, v in payload.items() if k != "ema"},
            {**payload, "network": {}},
            {**payload, "sampler": "{}"},
            {**payload, "torch_rng": torch.zeros(3)},
        ):
            torch.save(odd, path)
            found.append(path.read_bytes())
        return found

    for odd in contents():
        subject.checkpoint.write_bytes(odd)
        with pytest.raises(TrainError, match=r"last\.pth is .*remove it to start anew") as caught:
            trainer(cache, tiny, tmp_path / "run")
        assert "\n" not in str(caught.value)
    subject.checkpoint.write_bytes(content)
    with pytest.raises(TrainError, match=r"another recipe \(schedule differ\)"):
        trainer(cache, tiny, tmp_path / "run", schedule={"learning_rate": 1e-4})
    assert trainer(cache, tiny, tmp_path / "run", schedule={"steps": 99}).state.step == 2
    torch.save({**payload, "recipe": None}, subject.checkpoint)
    with pytest.raises(TrainError, match="another recipe"):
        trainer(cache, tiny, tmp_path / "run")


def test_a_state_that_would_execute_something_is_refused(
    cache: PairCache, tiny: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(canary),)

    (tmp_path / "run").mkdir()
    torch.save({"format": 1, "x": Evil()}, tmp_path / "run" / "last.pth")
    with pytest.raises(TrainError, match="is damaged"):
        trainer(cache, tiny, tmp_path / "run")
    assert not canary.exists()


def test_minutes_instead_of_steps(cache: PairCache, tiny: Path, tmp_path: Path) -> None:
    subject = trainer(cache, tiny, tmp_path / "run", schedule={"minutes": 0.5 / 60, "steps": 1})
    losses = train(subject)
    assert len(losses) > 1
    assert 0.5 <= subject.state.elapsed_s < 2.0
    assert subject.progress == 1.0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["learning_rate"] < 1e-3  # the cosine was fitted to the time


def test_a_loss_that_is_not_finite_ends_it(cache: PairCache, tiny: Path, tmp_path: Path) -> None:
    subject = trainer(cache, tiny, tmp_path / "run")
    train(subject, stop=lambda: subject.state.step >= 3)
    before = subject.checkpoint.read_bytes()
    with torch.no_grad():
        next(subject.state.network.parameters()).fill_(math.nan)
    with pytest.raises(TrainError, match="the loss became nan at step 3; lower the learning rate"):
        train(subject)
    assert subject.checkpoint.read_bytes() == before


@pytest.mark.parametrize("every", [{"validate_every": 0}, {"report_every": 0}])
def test_reports_every_0_steps(
    cache: PairCache, tiny: Path, tmp_path: Path, every: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="every 1 step or more"):
        trainer(cache, tiny, tmp_path / "run").run(on_report=lambda report: None, **every)


def test_validation_pictures(folder: Path, tmp_path: Path) -> None:
    gray = np.arange(33 * 35, dtype=np.uint16).reshape(33, 35) * 50
    Image.fromarray(gray).save(folder / "gray16.png")
    pairs = loop.validation_pairs(folder, 4)
    assert [pair.name for pair in pairs] == ["0", "1", "2", "gray16"]
    for pair in pairs:
        assert pair.hr.dtype == np.uint8
        assert pair.hr.shape == (pair.lr.shape[0] * 4, pair.lr.shape[1] * 4, 3)
        np.testing.assert_array_equal(pair.lr, imresize(pair.hr, 0.25))
    with pytest.raises(TrainError, match="no pictures to validate on"):
        loop.validation_pairs(tmp_path / "absent", 4)
    save_picture(folder / "tiny.png", seed=0, size=(9, 9))
    with pytest.raises(TrainError, match="too small to validate on"):
        loop.validation_pairs(folder, 4)


# The command.


def command(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def refused(done: Any, *, code: int) -> str:
    assert (done.exit_code, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_pictures_in_a_model_out(folder: Path, tiny: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"junk")
    held_out = tmp_path / "val"
    held_out.mkdir()
    save_picture(held_out / "v.png", seed=7)
    out = tmp_path / "run"
    arguments = (folder, "--recipe", tiny, "--out", out, "--name", "own", "--licence", "CC0-1.0")
    done = command(*arguments, "--val", held_out, "--report-every", 4, "--precision", "fp32")
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert "3 pictures; msrresnet x2 in fp32 on cpu; starting at step 0" in done.stderr
    assert "skipped 1: " in done.stderr
    assert "100.0%  step 12" in done.stderr
    assert " dB" in done.stderr

    model = checkpoints.load(out / "own.safetensors")
    assert (model.scale, model.architecture, model.licence) == (2, "msrresnet", "CC0-1.0")
    facts = model.metadata
    assert facts["name"] == "own"
    assert facts["steps"] == "12"
    assert facts["trained_on"] == "3 pictures of photos"
    assert json.loads(facts["recipe"])["schedule"]["learning_rate"] == 5e-3
    assert float(facts["psnr_db"]) > 5
    assert json.loads((out / "own.json").read_text())["psnr_db"] == facts["psnr_db"]
    assert weights.find("own").licence == "CC0-1.0"

    used = CliRunner().invoke(app, ["upscale", str(held_out / "v.png"), "-m", "own", "-s", "2"])
    assert used.exit_code == 0, used.stderr
    assert pictures.read(held_out / "v_own_2x.png").width_px == 80
    again = command(*arguments, "--precision", "fp32")
    assert again.exit_code == 0
    assert "going on at step 12" in again.stderr


def test_what_is_refused_before_any_work(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = folder / "val"
    inside.mkdir()
    save_picture(inside / "v.png", seed=0)
    for options, words in (
        (("--recipe", "fst"), "no recipe"),
        (("--name", "fast"), "is a model of the catalogue"),
        (("--name", "../up"), "cannot be a model's name"),
        (("--name", "my model"), "cannot be a model's name"),
        (("--steps", 0), "steps must be 1 or more"),
        (("--minutes", 0), "minutes must be more than 0"),
        (("--minutes", -1), "minutes must be more than 0"),
        (("--steps", 5, "--minutes", 5), "not both"),
        (("--device", "tpu"), "no device"),
        (("--precision", "fp8"), "no precision"),
        (("--report-every", 0), "are 1 step or more"),
        (("--val", inside), "would be trained on"),
    ):
        recipe_option = () if "--recipe" in options else ("--recipe", tiny)
        assert words in refused(command(folder, *recipe_option, *options), code=2)
    for place in (tmp_path / "absent", tmp_path / "tiny.toml"):
        assert "is no folder" in refused(command(place, "--recipe", tiny), code=1)
    assert not (tmp_path / "runs").exists()


def test_a_device_that_cannot_hold_a_batch(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …\nmore")

    monkeypatch.setattr(Trainer, "_step", fail)
    done = command(folder, "--recipe", tiny, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "error: cpu cannot hold a batch of 2: lower batch or patch_px" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    *, folder: Path, tiny: Path, tmp_path: Path, cache: PairCache, number: int, code: int
) -> None:
    steps = 200
    arguments = [
        *(sys.executable, "-W", "error", "-m", "waifu4x", "train", str(folder)),
        *("--recipe", str(tiny), "--out", str(tmp_path / "run"), "--name", "own"),
        *("--steps", str(steps), "--precision", "fp32", "--device", "cpu", "--report-every", "1"),
    ]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A shell's background job inherits a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "step 5 " in line:
                process.send_signal(number)
                break
        told = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in told
    assert "is saved: run the same command again to go on" in told
    again = trainer(cache, tiny, tmp_path / "run", schedule={"steps": steps})
    assert 5 <= again.state.step < steps
    train(again)
    uninterrupted = trainer(cache, tiny, tmp_path / "whole", schedule={"steps": steps})
    train(uninterrupted)
    assert_equal(again, uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.slow
def test_killed_at_any_instant(folder: Path, tiny: Path, tmp_path: Path, cache: PairCache) -> None:
    """kill -9, half of them within a save: the state is always one that can be gone on from."""
    script = (
        "import sys; from pathlib import Path; from waifu4x.train import recipe, data, loop\n"
        "folder, tiny, run, cache = map(Path, sys.argv[1:])\n"
        "pairs = data.open_cache([folder], cache, scale=2, patch_px=8)\n"
        "t = loop.Trainer(recipe.load(str(tiny)), pairs, run_folder=run, device='cpu',"
        " precision='fp32')\n"
        "print('ready', flush=True)\n"
        "t.run(on_report=lambda r: None, report_every=1, save_every_s=0.0)\n"
    )
    tiny.write_text(TINY.replace("steps = 12", "steps = 400"))
    paths = [str(p) for p in (folder, tiny, tmp_path / "run", tmp_path / "cache")]
    rng = np.random.default_rng(0)
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(timeout=float(rng.uniform(0.0, 0.5)))
            except subprocess.TimeoutExpired:
                process.kill()
    last = trainer(cache, tiny, tmp_path / "run")
    assert last.state.step > 0
    train(last)
    undisturbed = trainer(cache, tiny, tmp_path / "whole")
    train(undisturbed)
    assert_equal(last, undisturbed)
