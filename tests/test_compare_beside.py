"""References of what is compared: who gets which part of which, and who is left out without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command import errors
from PIL import Image
from typer.testing import CliRunner

from waifu4x import pictures, weights
from waifu4x.cli.app import app
from waifu4x.compare import beside, results, subjects
from waifu4x.compare.crops import Crop
from waifu4x.compare.subjects import Wish
from waifu4x.errors import UsageError
from waifu4x.model_files import checkpoints
from waifu4x.models import open_upscaler
from waifu4x.networks import REFERENCE_NETWORKS
from waifu4x.networks.crossnet import CrossNet, CrossNetConfig
from waifu4x.references.reference import ReferenceUpscaler
from waifu4x.sizes import Target


@pytest.fixture(scope="module")
def crossnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = CrossNet(CrossNetConfig(channels=2, flow_channels=4, residual=True))
    path = tmp_path_factory.mktemp("models") / "cross.safetensors"
    checkpoints.save(network, path, metadata={"scales": "4"})
    return path


def saved(path: Path, *, height: int, width: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)
    return path


def test_networks_that_need_a_reference_are_those_that_say_so() -> None:
    needing = {
        name for name, each in REFERENCE_NETWORKS.items() if each.config.reference == "needed"
    }
    assert needing == beside.NEEDED_BY


def test_each_picture_gets_its_own_reference(crossnet: Path, tmp_path: Path) -> None:
    small = [saved(tmp_path / f"{k}.png", height=20, width=16, seed=k) for k in range(2)]
    sharp = [saved(tmp_path / f"{k}-sharp.png", height=80, width=64, seed=9 + k) for k in range(2)]
    found = [subjects.read(path, Wish(crop="all")) for path in small]
    outcome = results.run(found, [crossnet], references=[str(path) for path in sharp])
    for path, reference, comparison in zip(small, sharp, outcome.comparisons, strict=True):
        upscaler = open_upscaler(crossnet, references=[reference])
        wanted, _ = upscaler.upscale(pictures.read(path), Target(scale=4))
        assert [each.model for each in comparison.results] == ["bicubic", "cross"]
        np.testing.assert_array_equal(comparison.results[1].pixels, wanted.pixels)


def test_a_network_that_lays_it_upon_a_part_gets_that_part(crossnet: Path, tmp_path: Path) -> None:
    subject = subjects.read(saved(tmp_path / "a.png", height=30, width=40, seed=0), Wish())
    reference = saved(tmp_path / "b.png", height=120, width=160, seed=1)
    upscaler = open_upscaler(crossnet, references=["blank"])
    assert isinstance(upscaler, ReferenceUpscaler)
    seen = Crop(x=5, y=3, width_px=20, height_px=10)
    beside.show(upscaler, str(reference), subject, seen)
    with Image.open(reference) as whole:
        wanted = np.asarray(whole, np.float32)[12:52, 20:100] / 255.0
    (shown,) = upscaler.references.images
    np.testing.assert_allclose(shown, wanted, atol=1e-6)


def test_one_reference_is_for_all_pictures_and_two_are_not_for_three(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", height=20, width=20, seed=0)
    three = [subjects.read(path, Wish())] * 3
    assert beside.for_each(["x.png"], three) == ("x.png",) * 3
    assert beside.for_each([], three) == ()
    with pytest.raises(UsageError, match="one for each: 3, not 2"):
        beside.for_each(["x.png", "y.png"], three)


def test_without_a_reference_models_that_need_one_are_not_among_all(
    crossnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAIFU4X_HOME", str(tmp_path / "home"))
    weights.add(crossnet, name="bends")
    assert "bends" not in results.at_hand()[0]
    assert "bends" in results.at_hand(with_references=True)[0]


def test_the_command(crossnet: Path, tmp_path: Path) -> None:
    small = saved(tmp_path / "a.png", height=20, width=16, seed=0)
    sharp = saved(tmp_path / "b.png", height=80, width=64, seed=1)
    arguments = ["compare", str(small), "-m", str(crossnet), "-m", "nearest"]
    done = CliRunner().invoke(app, [*arguments, "--beside", str(sharp)])
    assert done.exit_code == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()]
    assert rows == ["model", "bicubic", "cross", "nearest"]
    done = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert done.exit_code == 2
    assert "needs a sharp picture of the same scene" in errors(done)[0]
