"""The references of ``waifu4x train``: a folder of them, where the recipe does not make its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress

from waifu4x import weights
from waifu4x.errors import UsageError

if TYPE_CHECKING:
    from waifu4x.cli.train_request import Request
    from waifu4x.train.data import PairCache


def check(request: Request) -> None:
    """Raises UsageError where a folder is missing, or given to what takes no references."""
    recipe, folder = request.recipe, request.references
    options = recipe.data.reference
    if folder is None:
        if options is not None and options.source == "folder":
            raise UsageError(
                f"recipe {recipe.name} takes references from a folder: give it by --references, "
                f'or make them with --set data.reference.source="warped"'
            )
        return
    if options is None:
        raise UsageError(
            f"--references: {recipe.generator['network']} takes none; give --recipe crossnet or "
            f"srntt"
        )
    if not folder.is_dir():
        raise UsageError(f"--references {folder}: there is no such folder of pictures")


def with_references(request: Request, cache: PairCache, bar: Progress) -> PairCache:
    """The same cache, with the references of the folder that was given.

    Raises:
        UsageError: a picture has no reference of its name, or one of another shape where that must
            lie upon it.
        TrainError: one cannot be read.
    """
    if request.references is None:
        return cache
    from waifu4x.networks import ALL_NETWORKS
    from waifu4x.references.reference_inputs import kind_of
    from waifu4x.train.references import reference_pictures

    network = ALL_NETWORKS[request.recipe.generator["network"]]
    task = bar.add_task("decoding references", total=None)
    found = reference_pictures.with_references(
        cache,
        request.folders,
        request.references,
        weights.downloads_folder().parent / "pairs",
        upon=kind_of(network.config) == "needed",
        on_progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    bar.remove_task(task)
    return found
