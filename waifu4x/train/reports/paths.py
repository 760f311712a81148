"""The same start, trained by different losses: what each of them makes of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from waifu4x.errors import UsageError
from waifu4x.train.options import unknown
from waifu4x.train.recipe import LossOptions, Recipe

_VGG = {"pixel_weight": 0.0, "content_criterion": "mse", "content_weight": 0.006}

LOSSES: Mapping[str, LossOptions] = {
    "mse": LossOptions(pixel="mse"),
    "l1": LossOptions(pixel="l1"),
    "charbonnier": LossOptions(pixel="charbonnier"),
    "vgg22": LossOptions(content={"relu2_2": 1.0}, **_VGG),
    "vgg54": LossOptions(content={"relu5_4": 1.0}, **_VGG),
}
"""Losses that a path can be named by; "vgg" is SRGAN's, vgg54."""


def start_of(recipe: Recipe) -> Recipe | None:
    """What comes before the last stage, as a recipe of its own; None when nothing does."""
    if len(recipe.stages) == 1:
        return None
    return dataclasses.replace(recipe, stages=recipe.stages[:-1])


def split(recipe: Recipe, names: Sequence[str]) -> dict[str, Recipe]:
    """For each name the recipe's last stage, by that loss alone; "recipe" is the stage as it is.

    Raises:
        UsageError: an unknown name, one name twice, or fewer than two.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError("--paths compares two losses or more, such as mse,vgg22")
    last = recipe.stages[-1]
    found: dict[str, Recipe] = {}
    for name in names:
        stage = last
        if name != "recipe":
            key = "vgg54" if name == "vgg" else name
            if key not in LOSSES:
                known = [*LOSSES, "vgg", "recipe"]
                raise UsageError(unknown(f"--paths: no loss {name!r}", name, known=known))
            stage = dataclasses.replace(last, name=name, losses=LOSSES[key], discriminator={})
        found[name] = dataclasses.replace(recipe, stages=(stage,))
    return found
