"""``--paths``: the last stage of a recipe by several losses, from one start."""

from __future__ import annotations

import pytest

from waifu4x.errors import UsageError
from waifu4x.train import recipe
from waifu4x.train.reports import paths


def test_each_path_is_the_last_stage_by_one_loss() -> None:
    whole = recipe.load("srgan")
    split = paths.split(whole, ["mse", "vgg", "recipe"])
    assert list(split) == ["mse", "vgg", "recipe"]
    for name, path in split.items():
        (stage,) = path.stages
        assert stage.steps == whole.stages[-1].steps
        assert bool(stage.discriminator) == (name == "recipe")
    assert split["mse"].stages[0].losses.pixel == "mse"
    assert split["vgg"].stages[0].losses.content == {"relu5_4": 1.0}
    assert split["recipe"].stages[0] == whole.stages[-1]
    for path in split.values():
        assert recipe.from_facts(path.facts()) == path


def test_what_comes_before_is_trained_once() -> None:
    first = paths.start_of(recipe.load("srgan"))
    assert first is not None
    assert [stage.name for stage in first.stages] == ["mse"]
    assert paths.start_of(recipe.load("srresnet")) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [(["mse"], "two losses"), (["mse", "mse"], "two losses"), (["mse", "vgg45"], "vgg54")],
)
def test_names_that_make_no_sense(names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        paths.split(recipe.load("srgan"), names)
