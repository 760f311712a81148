"""What some losses of ``waifu4x train`` ask for beside pictures: a ranker, and label maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from waifu4x import weights
from waifu4x.errors import UsageError
from waifu4x.train.degrading import degrade
from waifu4x.train.objectives.labels import with_regions
from waifu4x.train.ranked import ranker

if TYPE_CHECKING:
    from waifu4x.cli.train_request import Request
    from waifu4x.train.data import PairCache
    from waifu4x.train.ranked.ranker import LoadedRanker, Ranker
    from waifu4x.train.recipe import LossOptions, Recipe

_MAKE = "make one: waifu4x train DIR --recipe ranker"


def check(request: Request) -> None:
    """What is asked for is there and can be used, and nothing is given that no loss asks for.

    Raises:
        UsageError: a ranker is missing, or there is no such file; flags without a loss for them.
        CheckpointError: the file is no ranker.
    """
    recipe = request.recipe
    losses = [stage.losses for stage in recipe.stages]
    ranked = [each for each in losses if each.rank_weight > 0.0]
    if request.ranker is not None and not ranked:
        raise UsageError(
            f"--ranker: recipe {recipe.name} has no rank loss; give --extra-loss rank:0.03, too"
        )
    if request.niqe is not None and recipe.ranking is None:
        raise UsageError(f"--niqe is for rankers: recipe {recipe.name} measures no NIQE")
    if request.labels is not None:
        _check_labels(request)
    for each in ranked:
        _load(request, each)


def with_recipe(request: Request, recipe: Recipe) -> Request:
    """The same request for another recipe, without what that one's losses do not ask for."""
    losses = [stage.losses for stage in recipe.stages]
    is_ranked = any(each.rank_weight > 0.0 for each in losses)
    has_regions = any(each.regions is not None for each in losses)
    return dataclasses.replace(
        request,
        recipe=recipe,
        ranker=request.ranker if is_ranked else None,
        labels=request.labels if has_regions else None,
    )


def _check_labels(request: Request) -> None:
    recipe = request.recipe
    if all(stage.losses.regions is None for stage in recipe.stages):
        raise UsageError(
            f"--labels: recipe {recipe.name} has no loss by regions; give --extra-loss obb:1,1,1, "
            f"too"
        )
    data = recipe.data
    if data.from_scale is not None:
        raise UsageError(f"--labels goes with whole scales, and recipe {recipe.name} has others")
    made = degrade.build(data.degradation, scale=recipe.scale, options=data.degrade)
    if getattr(made, "caption_chance", 0.0) > 0.0:
        raise UsageError(
            f"--labels: recipe {recipe.name} draws captions into pictures, which no label map "
            f"knows of; give --set data.degrade.caption_chance=0.0"
        )


def _path(request: Request, losses: LossOptions) -> Path:
    if request.ranker is not None:
        return request.ranker
    if losses.ranker is None:
        raise UsageError(
            f"recipe {request.recipe.name} has a ranker judge what is made: give its file with "
            f"--ranker FILE, or {_MAKE}"
        )
    return Path(losses.ranker)


def _load(request: Request, losses: LossOptions) -> LoadedRanker:
    path = _path(request, losses)
    if not path.is_file():
        raise UsageError(f"--ranker {path}: there is no such file; {_MAKE}")
    return ranker.load_ranker(path)


def open_ranker(request: Request, losses: LossOptions) -> Ranker:
    """The ranker that these losses ask for; raises as `check` does."""
    return _load(request, losses).ranker


def notes(request: Request) -> list[str]:
    """What is worth knowing before hours are spent, one sentence each."""
    recipe = request.recipe
    crop_px = recipe.data.patch_px * recipe.scale
    told: list[str] = []
    for stage in recipe.stages:
        learned_px = (
            _load(request, stage.losses).patch_px if stage.losses.rank_weight > 0.0 else crop_px
        )
        if learned_px not in (None, crop_px):
            told.append(
                f"stage {stage.name}: the ranker learned from patches of {learned_px} px, and is "
                f"shown crops of {crop_px} px"
            )
    return told


def with_labels(request: Request, cache: PairCache, bar: Progress) -> PairCache:
    """The cache with the regions of the user's label maps, where some were given.

    Raises what `labels.with_regions` raises.
    """
    options = [stage.losses.regions for stage in request.recipe.stages if stage.losses.regions]
    if request.labels is None:
        return cache
    task = bar.add_task("reading label maps", total=None)
    # Of several stages with regions, the last one's: their maps would differ by that alone.
    found = with_regions(
        cache,
        request.folders,
        request.labels,
        weights.downloads_folder().parent / "pairs",
        options=options[-1],
        on_progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.remove_task(task)
    return found
