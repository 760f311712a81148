"""The flags of ``waifu4x train`` change its recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path

from waifu4x.errors import UsageError
from waifu4x.train import recipe
from waifu4x.train.recipe import Recipe

_LAST = "stages.-1"
_EXTRA = ("tv", "fft", "gradient", "magnitude", "rank", "texture")
_REGIONS = "obb"


def recipe_of(
    name: str,
    *,
    scale: int | None,
    generator: str | None,
    degradation: str | None,
    batch: int | None,
    patch: int | None,
    pixel_loss: str | None,
    content_loss: str | None,
    content_criterion: str | None,
    content_weight: float | None,
    gan: str | None,
    discriminator: str | None,
    extra_loss: tuple[str, ...],
    learning_rate: float | None,
    settings: tuple[str, ...],
    steps: int | None,
    minutes: float | None,
) -> Recipe:
    """The recipe called `name` with everything that flags say otherwise.

    Raises:
        UsageError: an unknown recipe or option, or a value of the wrong kind.
    """
    if steps is not None and minutes is not None:
        raise UsageError("give --steps or --minutes, not both")
    if minutes is not None and not 0.0 < minutes < math.inf:
        raise UsageError(f"--minutes must be more than 0, not {minutes}")
    overrides = _generator(name, generator, scale=scale)
    plain = {
        "data.degradation": degradation,
        "data.batch": batch,
        "data.patch_px": patch,
        f"{_LAST}.losses.content_criterion": content_criterion,
        f"{_LAST}.losses.content_weight": content_weight,
        f"{_LAST}.learning_rate": learning_rate,
    }
    overrides += [(place, str(value)) for place, value in plain.items() if value is not None]
    if pixel_loss is not None:
        overrides += _pixel(pixel_loss)
    if content_loss is not None:
        overrides.append((f"{_LAST}.losses.content", _layers(content_loss)))
    if gan is not None:
        overrides += _gan(gan)
    if discriminator is not None:
        overrides.append((f"{_LAST}.discriminator", f'{{ kind = "{discriminator}" }}'))
    overrides += [_extra(text) for text in extra_loss]
    for text in settings:
        place, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}: write it as data.batch=8")
        overrides.append((place.strip(), value.strip()))
    chosen = recipe.load(name, overrides=overrides)
    return chosen if steps is None else chosen.with_steps(steps)


def _generator(name: str, generator: str | None, *, scale: int | None) -> list[tuple[str, str]]:
    if generator is None and scale is None:
        return []
    before = recipe.load(name)
    wanted = before.scale if scale is None else scale
    if generator is None:
        one_of_several = ("data.scales", f"[{wanted}]")
        return [one_of_several if before.data.scales else ("generator.scale", str(wanted))]
    numbers = f"network = {json.dumps(generator)}"
    # Networks that are shown enlarged pictures state no scale.
    if generator in ("srcnn", "vdsr"):
        return [("generator", f"{{ {numbers} }}"), ("data.scales", f"[{wanted}]")]
    return [("generator", f"{{ {numbers}, scale = {wanted} }}"), ("data.scales", "[]")]


def _pixel(text: str) -> list[tuple[str, str]]:
    kind, weight = _weighted(text, "--pixel-loss")
    if kind == "none":
        return [(f"{_LAST}.losses.pixel_weight", "0.0")]
    found = [(f"{_LAST}.losses.pixel", kind)]
    if weight is not None:
        found.append((f"{_LAST}.losses.pixel_weight", str(weight)))
    return found


def _gan(text: str) -> list[tuple[str, str]]:
    kind, weight = _weighted(text, "--gan")
    found = [(f"{_LAST}.losses.gan", kind)]
    if kind == "none":
        found.append((f"{_LAST}.discriminator", "{}"))
    elif weight is not None:
        found.append((f"{_LAST}.losses.gan_weight", str(weight)))
    return found


def of_references(folder: Path | None) -> tuple[str, ...]:
    """The settings that go with a folder of references."""
    return () if folder is None else ("data.reference.source=folder",)


def _extra(text: str) -> tuple[str, str]:
    """``fft:0.05``; and ``obb:2,1,1``, what boundaries, backgrounds and objects weigh."""
    kind, _, weights = text.partition(":")
    if kind == _REGIONS:
        return f"{_LAST}.losses.regions.weights", f"[{weights or '1, 1, 1'}]"
    kind, weight = _weighted(text, "--extra-loss")
    if kind not in _EXTRA:
        raise UsageError(f"--extra-loss {kind!r}: known are {', '.join((*_EXTRA, _REGIONS))}")
    return f"{_LAST}.losses.{kind}_weight", str(1.0 if weight is None else weight)


def _layers(text: str) -> str:
    """``conv1_2:0.1,conv5_4`` as a TOML table."""
    if text == "none":
        return "{}"
    layers = (_weighted(each, "--content-loss") for each in text.split(","))
    inner = (f"{layer} = {1.0 if weight is None else weight}" for layer, weight in layers)
    return "{ " + ", ".join(inner) + " }"


def _weighted(text: str, flag: str) -> tuple[str, float | None]:
    """``ragan:5e-3`` -> ("ragan", 0.005)."""
    kind, colon, number = text.strip().partition(":")
    if not colon:
        return kind, None
    try:
        return kind, float(number)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {number!r} is no weight; write {kind}:0.01") from error
