"""What to train and how: a TOML file of typed options, where an unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from waifu4x.errors import UsageError

_RECIPES = resources.files("waifu4x.train") / "recipes"


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The weighted terms of the generator's loss."""

    pixel: str = "l1"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How crops are drawn. `patch_px` is the side of the low-resolution crop."""

    batch: int = 16
    patch_px: int = 48

    def __post_init__(self) -> None:
        _require(self.batch >= 1 and self.patch_px >= 1, "batch and patch_px must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Adam with a linear warm-up and one cosine decay.

    The schedule spans `steps`, or, when `minutes` is set, that many minutes of training time; the
    run then ends by the clock and `steps` is not used.
    """

    steps: int = 30_000
    minutes: float | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup_steps: int = 500
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"steps must be 1 or more, not {self.steps}")
        minutes = 1.0 if self.minutes is None else self.minutes
        _require(0.0 < minutes < math.inf, f"minutes must be more than 0, not {minutes}")
        _require(0.0 < self.learning_rate < math.inf, "learning_rate must be more than 0")
        _require(0.0 <= self.final_learning_rate < math.inf, "final_learning_rate is 0 or more")
        _require(self.warmup_steps >= 0, "warmup_steps must be 0 or more")
        _require(all(0.0 <= beta < 1.0 for beta in self.betas), "betas must lie in 0 <= b < 1")
        _require(self.clip_norm > 0.0, "clip_norm must be more than 0")
        _require(0.0 <= self.ema_decay < 1.0, "ema_decay must lie in 0 <= d < 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run: the network's numbers, its loss, its data and its schedule."""

    name: str
    network: Mapping[str, Any]
    loss: LossOptions = field(default_factory=LossOptions)
    data: DataOptions = field(default_factory=DataOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)

    @property
    def scale(self) -> int:
        return int(self.network["scale"])

    def facts(self) -> dict[str, Any]:
        """The recipe as plain values, for checkpoints and model cards."""
        facts = dataclasses.asdict(self)
        facts["network"] = dict(self.network)
        facts["schedule"]["betas"] = list(self.schedule.betas)
        return facts


def preset_names() -> tuple[str, ...]:
    """The names of the recipes that ship."""
    return tuple(sorted(f.name[:-5] for f in _RECIPES.iterdir() if f.name.endswith(".toml")))


def load(name_or_path: str) -> Recipe:
    """The shipped recipe of that name, or the recipe in that TOML file.

    Raises:
        UsageError: no such recipe, no valid TOML, an unknown key, or a value of the wrong type.
    """
    path = Path(name_or_path)
    if name_or_path in preset_names():
        text = (_RECIPES / f"{name_or_path}.toml").read_text("utf-8")
    elif path.suffix == ".toml" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as text: {error}") from error
    else:
        known = ", ".join(preset_names())
        raise UsageError(f"no recipe {name_or_path!r}: give a .toml file or one of {known}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name_or_path} is not valid TOML: {error}") from error
    return _from_table(path.stem, table)


def _from_table(name: str, table: Mapping[str, Any]) -> Recipe:
    sections = {"loss": LossOptions, "data": DataOptions, "schedule": ScheduleOptions}
    for key in table:
        if key != "network" and key not in sections:
            raise UsageError(_unknown(name, key, ["network", *sections]))
    network = table.get("network")
    if not isinstance(network, dict) or "architecture" not in network or "scale" not in network:
        raise UsageError(f"recipe {name}: [network] must name an architecture and a scale")
    scale = network["scale"]
    if not isinstance(network["architecture"], str) or type(scale) is not int or scale < 1:
        raise UsageError(f"recipe {name} [network]: architecture is a text, scale a whole number")
    parts = {k: _options(kind, table.get(k, {}), f"{name} [{k}]") for k, kind in sections.items()}
    return Recipe(name=name, network=dict(network), **parts)


def _options(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` from plain values, each of the declared type."""
    if not isinstance(values, Mapping):
        raise UsageError(f"recipe {where}: this must be a table of options, not {values!r}")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise UsageError(_unknown(where, key, list(hints)))
        if not _fits(value, str(hints[key])):
            raise UsageError(f"recipe {where}: {key} = {value!r} is not of type {hints[key]}")
    settled = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**settled)
    except UsageError as error:
        raise UsageError(f"recipe {where}: {error}") from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)


def _fits(value: object, hint: str) -> bool:
    if isinstance(value, bool):
        return "bool" in hint
    if isinstance(value, list):
        numbers = all(type(each) in (int, float) for each in value)
        return hint.startswith("tuple") and len(value) == hint.count("float") and numbers
    if isinstance(value, int):
        return ("int" in hint or "float" in hint) and not hint.startswith("tuple")
    return type(value).__name__ in hint and not hint.startswith("tuple")


def _unknown(where: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"recipe {where}: unknown key {key!r}; {hint}"
