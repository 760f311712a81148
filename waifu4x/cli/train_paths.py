"""``waifu4x train --paths mse,vgg``: one start, several losses, one film of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from waifu4x.cli import train_judges, train_run
from waifu4x.cli.console import say
from waifu4x.cli.train_request import Request
from waifu4x.train.reports import paths, previews


def run(request: Request, names: Sequence[str]) -> None:
    """Train what comes before the recipe's last stage once, then that stage by each of the losses.

    Each path is a run of its own below the run's folder, and a model of its own, ``NAME-mse``.
    Running it again goes on where it stopped.

    Raises:
        UsageError: an unknown loss.
        What `train_run.run` raises.
    """
    recipes = paths.split(request.recipe, names)
    first = paths.start_of(request.recipe)
    initial = request.initial
    if first is not None:
        folder = request.run_folder / "start"
        model = f"{request.name}-start"
        target = folder / f"{model}.safetensors"
        if not target.is_file():
            start = train_judges.with_recipe(request, first)
            start = dataclasses.replace(start, run_folder=folder, name=model)
            train_run.run(start, estimate=False)
        initial = str(target)
    for name, recipe in recipes.items():
        train_run.run(
            dataclasses.replace(
                train_judges.with_recipe(request, recipe),
                run_folder=request.run_folder / name,
                name=f"{request.name}-{name}",
                initial=initial,
            ),
            estimate=False,
        )
    film = previews.side_by_side([request.run_folder / name for name in names], list(names))
    webp, gif = previews.write_path(film, request.run_folder)
    say(f"wrote {webp} and {gif.name}: {' and '.join(names)} side by side")
