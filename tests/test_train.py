"""`waifu4x train`: recipes and their flags, schedules, and the command from end to end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from training import (
    GAN,
    PIXEL,
    features,
    rows,
    save_picture,
    save_three,
    train,
    trainer,
    with_losses,
)
from typer.testing import CliRunner

from waifu4x import pictures, weights
from waifu4x.bench.metrics import psnr_y
from waifu4x.canvas import from_unit, to_unit
from waifu4x.cli import train_flags, train_run
from waifu4x.cli.app import app
from waifu4x.errors import TrainError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.resample import imresize, resize
from waifu4x.train import building, recipe, tables, validation
from waifu4x.train.data import open_cache
from waifu4x.train.loop import Trainer
from waifu4x.train.objectives import vgg
from waifu4x.train.recipe import DataOptions, LossOptions, Recipe, StageOptions
from waifu4x.train.reports import previews
from waifu4x.train.schedule import Pace, is_stalled, rate_at

ROOT = Path(__file__).parents[1]
TINY = """
[generator]
network = "msrresnet"
scale = 2
blocks = 1
channels = 8
tail = "direct"
[data]
batch = 2
patch_px = 8
[[stages]]
name = "pixel"
steps = 8
learning_rate = 5e-3
warmup_steps = 3
[[stages]]
name = "gan"
steps = 4
learning_rate = 1e-3
discriminator = { kind = "srgan", channels = 2, hidden = 8 }
losses = { pixel_weight = 0.5, gan = "vanilla", gan_weight = 1e-2 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_three(tmp_path / "photos")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


# Recipes.


def test_a_recipe_of_ones_own(tiny: Path) -> None:
    loaded = recipe.load(str(tiny))
    assert (loaded.name, loaded.scale, loaded.steps) == ("tiny", 2, 12)
    assert loaded.generator["blocks"] == 1
    assert loaded.data == DataOptions(batch=2, patch_px=8)
    first, second = loaded.stages
    assert (first.steps, first.learning_rate, first.warmup_steps) == (8, 5e-3, 3)
    assert first.losses == LossOptions()
    assert first.betas == StageOptions().betas
    assert second.losses == LossOptions(pixel_weight=0.5, gan="vanilla", gan_weight=1e-2)
    assert second.discriminator == {"kind": "srgan", "channels": 2, "hidden": 8}


GENERATOR = '[generator]\nnetwork = "msrresnet"\nscale = 2\n'
STAGE = GENERATOR + "[[stages]]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[generator", "is not valid TOML"),
        ("", "generator"),
        ("generator = 3", "generator = 3 is not of type"),
        ("[generator]\nscale = 2", "must name a network"),
        ('[generator]\nnetwork = ["x"]\nscale = 2', "must name a network"),
        ('[generator]\nnetwork = "msrresnet"', "needs a scale"),
        *(
            (f'[generator]\nnetwork = "msrresnet"\nscale = {scale}', "scale is a whole number")
            for scale in ("0", "-4", "2.0", '"2"', "true")
        ),
        ("stages = []\n" + GENERATOR, "one stage or more"),
        (GENERATOR + "[dta]\nbatch = 3", "did you mean 'data'?"),
        (STAGE + "learning_rat = 1.0", "did you mean 'learning_rate'?"),
        (STAGE + "losses = { pixl = 'l1' }", "did you mean 'pixel'?"),
        (GENERATOR + "[data]\nzzz = 1", "known are batch, patch_px"),
        ("data = 3\n" + GENERATOR, "must be a table"),
        (GENERATOR + '[data]\nbatch = "many"', "batch = 'many' is not of type"),
        (GENERATOR + "[data]\nbatch = 2.5", "batch = 2.5 is not of type"),
        (GENERATOR + "[data]\nbatch = true", "batch = True is not of type"),
        (GENERATOR + '[data]\nscales = ["2"]', "'2' is not of type"),
        (STAGE + "betas = [0.9]", "betas = [0.9] is not of type"),
        (STAGE + "betas = 3", "betas = 3 is not of type"),
        (STAGE + 'betas = ["a", "b"]', "'a' is not of type"),
        (STAGE + "betas = [0.9, 1.0]", "betas must lie in"),
        (STAGE + "steps = 0", "steps must be 1 or more"),
        (STAGE + "learning_rate = nan", "learning rates must be more than 0"),
        (STAGE + "learning_rate = -1.0", "learning rates must be more than 0"),
        (STAGE + "discriminator_rate = inf", "learning rates must be more than 0"),
        (STAGE + "final_rate = -1.0", "final_rate is 0 or more"),
        (STAGE + "warmup_steps = -1", "warmup_steps must be 0 or more"),
        (STAGE + "ema_decay = 1.0", "ema_decay must lie in"),
        (STAGE + "clip_norm = -1.0", "clip_norm must be 0 or more"),
        (STAGE + "milestones = [1.5]", "milestones lie in"),
        (STAGE + 'optimizer = "adm"', "did you mean 'adam'?"),
        (STAGE + 'decay = "cosin"', "did you mean 'cosine'?"),
        (STAGE + "losses = { pixel = 'msee' }", "did you mean 'mse'?"),
        (STAGE + "losses = { pixel_weight = -1 }", "weights of losses are 0 or more"),
        (STAGE + "losses = { pixel_weight = 0 }", "some loss must compare with the truth"),
        (STAGE + "losses = { pixel_weight = 0, tv_weight = 1 }", "some loss must compare"),
        (
            STAGE + "losses = { pixel_weight = 0, content = { relu2_2 = 1 }, content_weight = 0 }",
            "some loss must compare",
        ),
        (STAGE + "losses = { gan = 'vanilla' }", "gan and discriminator need each other"),
        (STAGE + "discriminator = { kind = 'srgan' }", "gan and discriminator need each other"),
        (GENERATOR + "[data]\nbatch = 0", "must be 1 or more"),
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


def _with(recipe_: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe_, **changes)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (_with(PIXEL, generator={"network": "msresnet", "scale": 4}), "did you mean 'msrresnet'?"),
        (
            _with(PIXEL, generator={"network": "msrresnet", "scale": 4, "blokcs": 3}),
            "did you mean 'blocks'?",
        ),
        (_with(PIXEL, generator={"network": "msrresnet", "scale": 4, "blocks": 0}), "positive"),
        (_with(PIXEL, generator={"network": "msrresnet", "scale": 4, "blocks": "x"}), "blocks"),
        (_with(PIXEL, generator={"network": "msrresnet", "scale": 5}), "not x5"),
        (_with(PIXEL, generator={"network": "rrdbnet", "scale": 3}), "is not that of the data"),
        (_with(PIXEL, generator={"network": "vdsr", "scale": 4}), "unknown key 'scale'"),
        (
            _with(PIXEL, data=DataOptions(patch_px=8, scales=(4,))),
            "scale 2 is not that of the data, 4",
        ),
        (with_losses(PIXEL, content={"relu9_1": 1.0}), "VGG-19 has no layer 'relu9_1'"),
        (
            _with(with_losses(PIXEL, content={"relu5_4": 1.0}), data=DataOptions(patch_px=7)),
            "relu5_4 need crops of 16 px, and these have 14",
        ),
        (
            _with(GAN, data=DataOptions(patch_px=7)),
            "discriminator srgan, for crops of 14 px: crop_px must be 16 or more",
        ),
        (
            _with(
                PIXEL,
                generator={"network": "srcnn"},
                data=DataOptions(scales=(4,)),
                stages=(StageOptions(losses=LossOptions(content={"relu2_2": 1.0})),),
            ),
            "works on luma",
        ),
        (
            _with(GAN, generator={"network": "vdsr"}, data=DataOptions(scales=(2, 3))),
            "crops of several scales differ in size",
        ),
        (
            _with(PIXEL, data=DataOptions(patch_px=8, scales=(2, 1))),
            "msrresnet is a network of one scale, and data.scales mixes 1, 2: give one of them",
        ),
        (
            _with(
                PIXEL,
                generator={"network": "autoencoder", "scale": 2},
                data=DataOptions(patch_px=18),
            ),
            "autoencoder takes crops in steps of 4 px, not 18",
        ),
        (
            _with(PIXEL, data=DataOptions(degradation="jpeg", degrade={"qualty": 3})),
            "did you mean 'quality'?",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_work(chosen: Recipe, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        building.check(chosen)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "scales"), [("vdsr", "[2, 4]"), ("meta-edsr", "[2, 3, 4]"), ("fast", "[4]")]
)
def test_scales_that_can_be_mixed(name: str, scales: str) -> None:
    given = recipe.load(name).data
    chosen = recipe.load(name, overrides=[("data.scales", scales)])
    # Tenths, and a list of scales, do not go together.
    building.check(_with(chosen, data=dataclasses.replace(chosen.data, from_scale=None)))
    assert chosen.data.scales != given.scales


@pytest.mark.parametrize("scales", ["[2, 0]", "[2, -3]"])
def test_scales_are_from_1_on(scales: str) -> None:
    with pytest.raises(UsageError, match="scales are whole numbers from 1 on"):
        recipe.load("vdsr", overrides=[("data.scales", scales)])


@pytest.mark.parametrize(
    ("name", "more"), [("crossnet", " --reference sharp.png"), ("srntt", ""), ("fast", "")]
)
def test_the_command_that_is_told_at_the_end_can_be_given(name: str, more: str) -> None:
    with torch.device("meta"):
        network: Any = building.generator(recipe.load(name))
    told = train_run._usage("own", network.config)
    assert told == f"waifu4x upscale meme.png -m own{more}"


def test_scales_of_networks_that_count_in_doublings() -> None:
    for scale in (1, 2, 4, 8):
        network = {"network": "rrdbnet", "scale": scale, "blocks": 1, "channels": 4, "growth": 2}
        config: Any = building.generator(_with(PIXEL, generator=network)).config
        assert (config.scale, config.unshuffle) == (scale, 1)
    same = {"network": "rrdbnet", "scale": 2, "blocks": 1, "upsamplings": 2, "unshuffle": 2}
    config = building.generator(_with(PIXEL, generator=same)).config
    assert (config.scale, config.upsamplings) == (2, 2)


@pytest.mark.parametrize("chosen", [PIXEL, GAN, *map(recipe.load, recipe.preset_names())])
def test_a_recipe_survives_being_written(chosen: Recipe) -> None:
    """As the facts of a checkpoint, and as TOML beside the run."""
    facts = chosen.facts()
    assert recipe.from_facts(json.loads(json.dumps(facts))) == chosen
    assert recipe.from_facts(tomllib.loads(tables.to_toml(facts))) == chosen


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 10, 11, 999, 1_200_000, 5_000_000])
def test_fewer_steps_keep_the_proportions(steps: int) -> None:
    for name in ("srgan", "srresnet-vgg22", "esrgan"):
        whole = recipe.load(name)
        fitted = whole.with_steps(steps)
        assert fitted.steps == steps
        for before, after in zip(whole.stages, fitted.stages, strict=True):
            assert after.steps == pytest.approx(before.steps * steps / whole.steps, abs=1.0)
            assert after.warmup_steps <= max(0, after.steps // 4)
            same = dataclasses.replace(after, steps=before.steps, warmup_steps=before.warmup_steps)
            assert same == before
    with pytest.raises(UsageError, match="steps must be 2 or more"):
        recipe.load("srgan").with_steps(1)


# Overrides and flags.


def test_any_option_can_be_set() -> None:
    chosen = recipe.load(
        "srgan",
        overrides=[
            ("stages.1.losses.gan_weight", "5e-3"),
            ("stages.-1.losses.pixel", "charbonnier"),
            ("stages.0.betas", "[0.8, 0.99]"),
            ("data.degradation", "jpeg"),
            ("data.degrade.quality", "[20, 40]"),
            ("generator.blocks", "3"),
        ],
    )
    assert chosen.stages[1].losses.gan_weight == 5e-3
    assert chosen.stages[1].losses.pixel == "charbonnier"
    assert chosen.stages[0].betas == (0.8, 0.99)
    assert chosen.data.degradation == "jpeg"
    assert chosen.data.degrade == {"quality": [20, 40]}
    assert chosen.generator["blocks"] == 3
    for place, words in (
        ("stages.5.steps", "there is no stages.5"),
        ("stages.one.steps", "there is no stages.one"),
        ("stages.0.steps.more", "there is no stages.0.steps.more"),
        ("stages.0.stps", "did you mean 'steps'?"),
        ("generator.scale.x", "there is no generator.scale.x"),
    ):
        with pytest.raises(UsageError) as caught:
            recipe.load("srgan", overrides=[(place, "3")])
        assert words in str(caught.value)


NO_FLAGS: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("scale", "generator", "degradation", "batch", "patch", "pixel_loss", "content_loss"),
            *("content_criterion", "content_weight", "gan", "discriminator", "learning_rate"),
            *("steps", "minutes"),
        )
    ),
    "extra_loss": (),
    "settings": (),
}


def by_flags(name: str, **flags: Any) -> Recipe:
    return train_flags.recipe_of(name, **{**NO_FLAGS, **flags})


def test_flags_change_the_recipe() -> None:
    assert by_flags("srgan") == recipe.load("srgan")
    chosen = by_flags(
        "srgan",
        scale=2,
        batch=3,
        patch=40,
        degradation="jpeg",
        learning_rate=3e-4,
        pixel_loss="l1:0.01",
        content_loss="conv1_2:0.1,conv5_4",
        content_criterion="l1",
        content_weight=2.0,
        gan="ragan:5e-3",
        discriminator="unet-sn",
        extra_loss=("fft:0.05", "gradient"),
        settings=("stages.0.ema_decay = 0.99", "data.sharpen=true"),
        steps=120,
    )
    assert (chosen.scale, chosen.data.batch, chosen.data.patch_px) == (2, 3, 40)
    assert (chosen.data.degradation, chosen.data.sharpen) == ("jpeg", True)
    first, last = chosen.stages
    assert (first.steps, last.steps, first.ema_decay) == (100, 20, 0.99)
    assert (first.learning_rate, last.learning_rate) == (4e-4, 3e-4)
    assert last.discriminator == {"kind": "unet-sn"}
    assert last.losses == LossOptions(
        pixel="l1",
        pixel_weight=0.01,
        content={"conv1_2": 0.1, "conv5_4": 1.0},
        content_criterion="l1",
        content_weight=2.0,
        gan="ragan",
        gan_weight=5e-3,
        fft_weight=0.05,
        gradient_weight=1.0,
    )
    assert first.losses == recipe.load("srgan").stages[0].losses
    building.check(chosen)


def test_flags_take_parts_away() -> None:
    without = by_flags("srgan-modern", gan="none", content_loss="none")
    assert without.stages[1].losses.gan == "none"
    assert without.stages[1].discriminator == {}
    assert without.stages[1].losses.content == {}
    assert by_flags("esrgan", pixel_loss="none").stages[1].losses.pixel_weight == 0.0


@pytest.mark.parametrize("name", ["esrgan", "fast", "srcnn", "srresnet-vgg22", "vdsr"])
def test_every_network_goes_with_every_recipe_of_pixels(name: str) -> None:
    for generator in ("srresnet", "rrdbnet"):
        chosen = by_flags(name, generator=generator)
        building.check(chosen)
        assert (chosen.generator["network"], chosen.scale) == (generator, recipe.load(name).scale)
    if all(not (s.losses.content or s.discriminator) for s in recipe.load(name).stages):
        for generator in ("srcnn", "vdsr"):
            building.check(by_flags(name, generator=generator, scale=3))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", recipe.preset_names())
def test_every_recipe_takes_other_scales(name: str, scale: int) -> None:
    chosen = by_flags(name, scale=scale)
    assert chosen.scale == scale
    # srntt enlarges 4 times and no other.
    small = ("srgan-modern", "esrgan", "srgan", "srgan-vgg22", "srntt", "srntt-l2")
    if not (name in small and scale == 2):
        building.check(chosen)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"steps": 5, "minutes": 5.0}, "give --steps or --minutes, not both"),
        ({"minutes": 0.0}, "--minutes must be more than 0"),
        ({"minutes": float("nan")}, "--minutes must be more than 0"),
        ({"minutes": float("inf")}, "--minutes must be more than 0"),
        ({"steps": 1}, "steps must be 2 or more"),
        ({"pixel_loss": "l1:many"}, "'many' is no weight; write l1:0.01"),
        ({"pixel_loss": "l7"}, "known are l1, mse, charbonnier"),
        ({"gan": "vanila"}, "did you mean 'vanilla'?"),
        ({"extra_loss": ("dft:1",)}, "known are tv, fft, gradient"),
        ({"settings": ("data.batch",)}, "write it as data.batch=8"),
        ({"settings": ("data.batsh=8",)}, "did you mean 'batch'?"),
        ({"settings": ("batch=8",)}, "unknown key 'batch'"),
    ],
)
def test_flags_that_make_no_sense(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        by_flags("srgan", **flags)
    assert words in str(caught.value)


# Schedules.


def test_learning_rate() -> None:
    stage = StageOptions(learning_rate=1.0, final_rate=0.1, warmup_steps=4)

    def rate(step: int, progress: float, stage: StageOptions = stage) -> float:
        return rate_at(stage, step=step, progress=progress)

    assert [rate(step, 0.0) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert rate(99, 0.5) == pytest.approx(0.55)
    assert rate(99, 1 / 3) == pytest.approx(0.1 + 0.9 * 0.75)
    assert rate(99, 1.0) == rate(99, 1.7) == pytest.approx(0.1)
    without = dataclasses.replace(stage, warmup_steps=0)
    assert rate(0, 0.0, without) == 1.0
    constant = dataclasses.replace(stage, decay="constant")
    assert (rate(1, 0.0, constant), rate(99, 0.9, constant)) == (0.5, 1.0)
    steps = dataclasses.replace(stage, decay="steps", milestones=(0.5, 0.75), decay_factor=0.1)
    assert [rate(99, progress, steps) for progress in (0.4, 0.5, 0.74, 0.75, 1.0)] == pytest.approx(
        [1.0, 0.1, 0.1, 0.01, 0.01]
    )


def test_a_warm_up_ends_within_a_quarter() -> None:
    """However few steps a time limit leaves."""
    stage = StageOptions(learning_rate=1.0, decay="constant", warmup_steps=1000)
    shares = [rate_at(stage, step=step, progress=step / 20) for step in range(20)]
    assert shares[:6] == pytest.approx([0.001, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(shares[5:]) == {1.0}
    # Where there is time, it takes the steps that it should.
    long = [rate_at(stage, step=step, progress=step / 8000) for step in (0, 499, 999)]
    assert long == pytest.approx([0.001, 0.5, 1.0])


def test_stages_share_a_time_limit() -> None:
    pace = Pace(GAN, minutes=1.0)
    assert [pace.length_s(stage) for stage in GAN.stages] == pytest.approx([24.0, 36.0])
    assert pace.stage_progress(GAN.stages[0], step=999, elapsed_s=12.0) == 0.5
    assert pace.progress(step=999, elapsed_s=90.0) == 1.0
    counted = Pace(GAN)
    assert counted.progress(step=5, elapsed_s=1e9) == 0.5
    assert counted.stage_progress(GAN.stages[1], step=3, elapsed_s=1e9) == 0.5


@pytest.mark.parametrize(
    ("history", "patience", "stalled"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 3.0], 1, True),
        ([3.0, 2.0], 1, True),
        ([3.0, 3.1], 1, False),
        ([3.0, 2.0, 2.9], 2, True),
        ([3.0, 2.0, 3.1], 2, False),
        ([3.0, 2.0, 1.0], 0, False),
    ],
)
def test_when_a_stage_is_stalled(history: list[float], patience: int, stalled: bool) -> None:
    assert is_stalled(history, patience) == stalled


def test_validation_pictures(folder: Path, tmp_path: Path) -> None:
    gray = np.arange(33 * 35, dtype=np.uint16).reshape(33, 35) * 50
    Image.fromarray(gray).save(folder / "gray16.png")
    pairs = validation.validation_pairs(folder, 4)
    assert [pair.name for pair in pairs] == ["0", "1", "2", "gray16"]
    for pair in pairs:
        assert pair.hr.dtype == np.uint8
        assert pair.hr.shape == (pair.lr.shape[0] * 4, pair.lr.shape[1] * 4, 3)
        np.testing.assert_array_equal(pair.lr, imresize(pair.hr, 0.25))
        part = validation.crop(pair, 5)
        assert part.lr.shape == (5, 5, 3)
        np.testing.assert_array_equal(part.hr[::4, ::4].shape, part.lr.shape)
    with pytest.raises(TrainError, match="no pictures to validate on"):
        validation.validation_pairs(tmp_path / "absent", 4)
    save_picture(folder / "tiny.png", seed=0, size=(9, 9))
    with pytest.raises(TrainError, match="too small to validate on"):
        validation.validation_pairs(folder, 4)


@pytest.mark.parametrize("network", ["srcnn", "vdsr"])
def test_networks_of_luma_are_measured_on_luma(folder: Path, tmp_path: Path, network: str) -> None:
    """One that changes nothing has the PSNR of bicubic interpolation."""
    numbers = {"channels": (2, 2)} if network == "srcnn" else {"depth": 2, "channels": 2}
    chosen = Recipe(
        name="luma",
        generator={"network": network, **numbers},
        data=DataOptions(batch=2, patch_px=6, scales=(2,)),
    )
    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=6)
    pairs = validation.validation_pairs(folder, 2)
    subject = trainer(cache, chosen, tmp_path / "run", validation=pairs)
    with torch.no_grad():
        for parameter in subject.state.ema.parameters():
            parameter.zero_()
        if network == "srcnn":  # the middle tap of every layer's first channel
            for name, parameter in subject.state.ema.named_parameters():
                if name.endswith("weight"):
                    parameter[0, 0, parameter.shape[2] // 2, parameter.shape[3] // 2] = 1.0
    bicubic = [
        psnr_y(
            from_unit(np.clip(resize(to_unit(pair.lr), pair.hr.shape[:2]), 0.0, 1.0), np.uint8),
            pair.hr,
            border_px=2,
        )
        for pair in pairs
    ]
    assert subject.validate() == pytest.approx(float(np.mean(bicubic)), abs=0.1)


# The command.


def command(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def refused(done: Any, *, code: int) -> str:
    assert (done.exit_code, done.stdout) == (code, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_pictures_in_a_model_out(folder: Path, tiny: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"junk")
    held_out = tmp_path / "val"
    save_picture(held_out / "v.png", seed=7)
    out = tmp_path / "run"
    arguments = (folder, "--recipe", tiny, "--out", out, "--name", "own", "--licence", "CC0-1.0")
    options = ("--val", held_out, "--report-every", 4, "--precision", "fp32", "--tensorboard")
    done = command(*arguments, *options)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    start = "3 pictures; msrresnet x2, pixel → gan, in 32-true on cpu; starting at step 0"
    assert start in done.stderr
    assert "skipped 1: " in done.stderr
    assert "100.0%  gan  step 12" in done.stderr
    assert "D(real) 0." in done.stderr
    assert " dB" in done.stderr

    model = checkpoints.load(out / "own.safetensors")
    assert (model.scale, model.architecture, model.licence) == (2, "msrresnet", "CC0-1.0")
    facts = model.metadata
    assert facts["name"] == "own"
    assert facts["steps"] == "12"
    assert facts["trained_on"] == "3 pictures of photos"
    assert json.loads(facts["recipe"])["stages"][0]["learning_rate"] == 5e-3
    assert float(facts["psnr_db"]) > 5
    for name in ("own.json", "facts.json"):
        assert json.loads((out / name).read_text())["psnr_db"] == facts["psnr_db"]
    assert facts["psnr_db"] in (out / "own.md").read_text()
    assert weights.find("own").licence == "CC0-1.0"
    for name in ("report.html", "path.webp", "path.gif", "recipe.toml"):
        assert (out / name).stat().st_size > 0
    assert recipe.load(str(out / "recipe.toml")).stages == recipe.load(str(tiny)).stages

    used = CliRunner().invoke(app, ["upscale", str(held_out / "v.png"), "-m", "own", "-s", "2"])
    assert used.exit_code == 0, used.stderr
    assert pictures.read(held_out / "v_own_2x.png").width_px == 80
    _check_board(out)
    again = command(*arguments, "--precision", "fp32")
    assert again.exit_code == 0, again.stderr
    assert "going on at step 12" in again.stderr
    # Though --val was left out this time, previews stay of the same pictures.
    last = max(previews.list_previews(out).values())
    assert [sample.name for sample in previews.load_preview(last)] == ["v"]


def _check_board(out: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = accumulator.EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    told = rows(out)
    assert [event.step for event in board.Scalars("learning rate")] == [row["step"] for row in told]
    gan = {row["step"]: row["losses"]["gan"] for row in told if "gan" in row["losses"]}
    assert {e.step: e.value for e in board.Scalars("losses/gan")} == pytest.approx(gan, rel=1e-5)
    assert len(board.Scalars("PSNR in dB")) == 2
    assert len(board.Scalars("D/fake")) == len(gan)


def test_the_estimate_alone(folder: Path, tiny: Path, tmp_path: Path) -> None:
    done = command(folder, "--recipe", tiny, "--out", tmp_path / "run", "--estimate")
    assert done.exit_code == 0
    assert "about 0.00 h: pixel 0.00 h at " in done.stderr
    assert "(8 steps), gan" in done.stderr
    assert not (tmp_path / "run").exists()


def test_low_resolution_pictures_of_ones_own(folder: Path, tiny: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.png"):
        hr = np.asarray(Image.open(path))
        small = imresize(hr[: hr.shape[0] // 2 * 2, : hr.shape[1] // 2 * 2], 0.5)
        (tmp_path / "lr").mkdir(exist_ok=True)
        Image.fromarray(small).save(tmp_path / "lr" / path.name)
    arguments = (folder, "--recipe", tiny, "--precision", "fp32", "--report-every", 1)
    one, other = tmp_path / "one", tmp_path / "other"
    own = ("--lr", tmp_path / "lr", "--name", "own", "--out", one)
    assert command(*arguments, *own).exit_code == 0
    assert command(*arguments, "--name", "made", "--out", other).exit_code == 0
    # The very pictures that would have been made of the large ones.
    assert [row["losses"] for row in rows(one)] == [row["losses"] for row in rows(other)]
    Image.fromarray(np.roll(small, 2, axis=1)).save(tmp_path / "lr" / path.name)
    shifted = ("--lr", tmp_path / "lr", "--name", "no", "--out", tmp_path / "no")
    line = refused(command(*arguments, *shifted), code=1)
    assert f"{path.name} is shifted by +2.0 px to the right" in line
    assert not (tmp_path / "no").exists()


def test_a_part_of_a_batch_at_a_time(folder: Path, tiny: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = (folder, "--recipe", tiny, "--precision", "fp32", "--report-every", 1)
    arguments += ("--steps", 6, "--set", "stages.1.discriminator.norm=false")
    assert command(*arguments, "--name", "whole", "--out", whole).exit_code == 0
    done = command(*arguments, "--name", "parts", "--out", parts, "--accumulate", 2)
    assert done.exit_code == 0
    for mine, wanted in zip(rows(parts), rows(whole), strict=True):
        assert mine["losses"] == pytest.approx(wanted["losses"], rel=1e-4)


def test_starting_from_another_model(folder: Path, tiny: Path, tmp_path: Path) -> None:
    arguments = (folder, "--recipe", tiny, "--precision", "fp32", "--report-every", 1)
    assert command(*arguments, "--name", "first", "--out", tmp_path / "first").exit_code == 0
    done = command(*arguments, "--name", "next", "--init", "first", "--out", tmp_path / "next")
    assert done.exit_code == 0
    model = tmp_path / "first" / "first.safetensors"
    before = checkpoints.load(model).network.state_dict()
    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)
    chosen = recipe.load(str(tiny))
    by_hand = trainer(cache, chosen, tmp_path / "by-hand", initial=before)
    losses = train(by_hand)
    assert [row["losses"] for row in rows(tmp_path / "next")] == losses
    wider = ("--set", "generator.channels=9", "--out", tmp_path / "wide", "--name", "wide")
    line = refused(command(*arguments, "--init", "first", *wider), code=2)
    assert "--init is of another network than that of recipe tiny" in line


def test_starting_from_a_model_of_twice_the_scale() -> None:
    """Its pixels are averaged two by two, so it starts as that model, shrunk."""
    overrides = [("generator.blocks", "1"), ("generator.channels", "4")]
    large = building.generator(recipe.load("fast", overrides=overrides))
    half = recipe.load("fast", overrides=[*overrides, ("generator.scale", "2")])
    small = building.begin(half, large.state_dict())
    x = torch.rand(1, 3, 6, 7)
    ups = [functional.interpolate(x, scale_factor=s, mode="bilinear") for s in (4, 2)]
    wanted = functional.avg_pool2d(large(x) - ups[0], 2) + ups[1]
    torch.testing.assert_close(small(x), wanted)
    third = recipe.load("fast", overrides=[*overrides, ("generator.scale", "3")])
    with pytest.raises(UsageError, match="of another network"):
        building.begin(third, large.state_dict())


def test_what_is_refused_before_any_work(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = folder / "val"
    save_picture(inside / "v.png", seed=0)
    lr = ("--lr", inside)
    for options, words in (
        (("--recipe", "fst"), "no recipe"),
        (("--name", "fast"), "is a model of the catalogue"),
        (("--name", "../up"), "cannot be a model's name"),
        (("--name", "my model"), "cannot be a model's name"),
        (("--steps", 0), "steps must be 2 or more"),
        (("--minutes", 0), "minutes must be more than 0"),
        (("--steps", 5, "--minutes", 5), "not both"),
        (("--device", "tpu"), "no device"),
        (("--precision", "fp8"), "no precision"),
        (("--precision", "fp16", "--device", "cpu"), "fp16 does not pay on a CPU"),
        (("--report-every", 0), "are 1 step or more"),
        (("--val", inside), "would be trained on"),
        (("--lr", "0.001"), "the learning rate is --learning-rate"),
        ((*lr, inside), "--lr goes with one folder"),
        ((*lr, "--degradation", "jpeg"), "give --degradation bicubic"),
        ((*lr, "--recipe", "vdsr"), "has pictures of one scale"),
        (("--generator", "msresnet"), "did you mean 'msrresnet'?"),
        (("--discriminator", "srgn"), "did you mean 'srgan'?"),
        (("--vgg", tiny, "--content-loss", "relu1_9"), "VGG-19 has no layer 'relu1_9'"),
    ):
        recipe_option = () if "--recipe" in options else ("--recipe", tiny)
        assert words in refused(command(folder, *recipe_option, *options), code=2)
    for place in (tmp_path / "absent", tiny):
        assert "is no folder" in refused(command(place, "--recipe", tiny), code=1)
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken(folder: Path, tiny: Path, tmp_path: Path) -> None:
    arguments = (folder, "--recipe", tiny, "--name", "own", "--steps", 2)
    assert command(*arguments, "--out", tmp_path / "one").exit_code == 0
    line = refused(command(*arguments, "--out", tmp_path / "two"), code=2)
    assert "you have a model called own already" in line
    assert command(*arguments, "--out", tmp_path / "one").exit_code == 0  # its own run


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …\nmore"),
            "error: cpu cannot hold a single sample: lower --patch",
        ),
        (MemoryError(), "error: cpu cannot hold a single sample: lower --patch"),
        (OSError(28, "No space left on device"), "(No space left on device): what was saved is"),
    ],
)
def test_what_ends_a_run_is_one_line(
    *,
    folder: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    def fail(self: Trainer, batch: Any) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_update", fail)
    done = command(folder, "--recipe", tiny, "--out", tmp_path / "run")
    assert words in refused(done, code=1)


def test_notes_are_said(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a run that fails in the end."""
    whole, counter = Trainer._update, itertools.count()

    def noted(self: Trainer, batch: Any) -> Any:
        self.notes.append(f"this is note {next(counter)}")
        return whole(self, batch)

    monkeypatch.setattr(Trainer, "_update", noted)
    arguments = (folder, "--recipe", tiny, "--steps", 2)
    done = command(*arguments, "--out", tmp_path / "run")
    assert "note: this is note 0" in done.stderr
    assert "note: this is note 1" in done.stderr

    def fail(self: Trainer) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_write", fail)
    (tmp_path / "run" / "last.pth").write_bytes(b"junk")
    done = command(*arguments, "--out", tmp_path / "run", "--steps", 3)
    assert "note: " in done.stderr
    assert "last.pth is damaged" in done.stderr


def test_workers_do_not_hear_ctrl_c() -> None:
    """It reaches all processes of a terminal; the step in hand still needs its batch."""
    from waifu4x.train.feeding import _ignore_interrupts

    before = signal.getsignal(signal.SIGINT)
    try:
        _ignore_interrupts(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    *, folder: Path, tiny: Path, tmp_path: Path, number: int, code: int
) -> None:
    """To all processes of the terminal, as Ctrl-C: the one that trains, and its workers."""
    steps = 400
    arguments = [
        *(sys.executable, "-W", "error", "-m", "waifu4x", "train", str(folder)),
        *("--recipe", str(tiny), "--out", str(tmp_path / "run"), "--name", "own"),
        *("--steps", str(steps), "--precision", "fp32", "--device", "cpu", "--report-every", "1"),
        *("--workers", "1" if number == signal.SIGINT else "0"),
    ]
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        process_group=0,
        # A shell's background job inherits a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "step 5 " in line:
                if number == signal.SIGINT:
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)
                break
        told = process.stderr.read()
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert "is saved: run the same command again to go on" in told
    chosen = recipe.load(str(tiny)).with_steps(steps)
    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)
    again = trainer(cache, chosen, tmp_path / "run")
    assert 5 <= again.state.step < steps
    assert not (tmp_path / "run" / "own.safetensors").exists()
    ends = again.state.step + 3
    resumed = train(again, stop=lambda: again.state.step >= ends)
    whole = trainer(cache, chosen, tmp_path / "whole")
    wanted = train(whole, stop=lambda: whole.state.step >= ends)
    assert resumed == wanted[-3:]
    assert [row["losses"] for row in rows(tmp_path / "run")] == wanted


def test_a_vgg_that_is_needed_later_is_looked_at_now(
    folder: Path, tiny: Path, tmp_path: Path
) -> None:
    arguments = (folder, "--recipe", tiny, "--content-loss", "relu1_2", "--vgg", tiny)
    line = refused(command(*arguments, "--out", tmp_path / "run"), code=1)
    assert str(tiny) in line
    assert not (tmp_path / "run").exists()


def test_vgg_is_opened_once_it_is_needed(folder: Path, tmp_path: Path) -> None:
    opened: list[tuple[str, ...]] = []

    def count(layers: Any) -> vgg.VGG19Features:
        opened.append(tuple(layers))
        return features(layers)

    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)
    subject = trainer(cache, GAN, tmp_path / "run", open_features=count)
    train(subject, stop=lambda: subject.state.step >= 3)
    assert opened == []
    train(subject)
    assert opened == [("conv1_2",)]
