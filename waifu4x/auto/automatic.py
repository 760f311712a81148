"""``-m auto``: every picture is enlarged by the shipped model for its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from waifu4x import catalog
from waifu4x.auto import picking
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Options, Progress, Upscaler

MODEL_FOR: Mapping[tuple[picking.Kind, bool], str] = {
    ("art", True): "waifu4x-art",
    ("photo", True): "waifu4x-photo",
    ("art", False): "waifu4x-clean",
    ("photo", False): "waifu4x-clean",
}
"""By what `picking.look` says, kind and compressed. All of them are of one network, so that what is
planned for one holds for every other."""


@dataclass(kw_only=True)
class AutoUpscaler(Upscaler):
    """Chooses among models by looking at each picture; those that are chosen are opened then.

    Plans (passes, tiles, memory) are those of the first model of MODEL_FOR, which is `model`.

    Args:
        open: gives the upscaler of a row of the catalogue.
        rows: those of the names of MODEL_FOR, for the scale that is asked for.
    """

    open: Callable[[catalog.CatalogRow], Upscaler]
    rows: Mapping[str, catalog.CatalogRow]
    _opened: dict[str, Upscaler] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return catalog.AUTO

    @property
    def label(self) -> str:
        # Known before any picture is looked at, and the same for all of a folder.
        return "waifu4x"

    @property
    def identity(self) -> str:
        return " ".join((catalog.AUTO, *(str(row.sha256) for row in self.rows.values())))

    def for_picture(self, picture: Picture) -> Upscaler:
        """The upscaler of the model for it, opened now if it was not before.

        Raises WeightsError where that model's file, or what pictures are judged by, is damaged.
        """
        look = picking.look(picture.pixels)
        name = MODEL_FOR[look.kind, look.compressed]
        if name not in self._opened:
            self._opened[name] = self.open(self.rows[name])
        return dataclasses.replace(self._opened[name], picked=_in_words(look))

    def upscale_all(
        self, pictures: Sequence[Picture], target: Target, *, on_progress: Progress | None = None
    ) -> tuple[list[Picture], Facts]:
        """As `Upscaler.upscale_all`, by the model for the first of them."""
        chosen = self.for_picture(pictures[0])
        return chosen.upscale_all(pictures, target, on_progress=on_progress)


def open_auto(
    open: Callable[[catalog.CatalogRow], Upscaler], *, scale: float | None, options: Options
) -> AutoUpscaler:
    """All models of MODEL_FOR for one scale; the first, by which is planned, is opened already.

    Args:
        open: as in `AutoUpscaler`; what it raises passes.
        scale: output over input; None when it is not known, or not the same for all pictures.
    """
    rows = {name: catalog.for_scale(catalog.find(name), scale) for name in MODEL_FOR.values()}
    planned = next(iter(rows))
    first = open(rows[planned])
    return AutoUpscaler(
        model=first.model,
        runner=first.runner,
        options=options,
        open=open,
        rows=rows,
        _opened={planned: first},
    )


def _in_words(look: picking.Look) -> str:
    share = look.art_share if look.kind == "art" else 1.0 - look.art_share
    state = "compressed" if look.compressed else "clean"
    return f"{look.kind}, {state} ({share:.0%} sure)"
