"""Options that check themselves, and are made from plain values such as TOML's and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from waifu4x.errors import UsageError

Made = TypeVar("Made", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks itself: ``*_chance`` lies in 0..1, ``*_chances`` sum to 1, ranges are in order."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_chance"):
                require(0.0 <= value <= 1.0, f"{name} must lie in 0..1, not {value}")
            elif name.endswith("_chances"):
                right = min(value) >= 0.0 and math.isclose(sum(value), 1.0, abs_tol=1e-6)
                require(right, f"{name} must be 0 or more and sum to 1, not {value}")
            elif isinstance(value, tuple):
                right = 0.0 < value[0] <= value[1] < math.inf
                require(right, f"{name} must be a range above 0, low end first, not {value}")
            if name.endswith("quality"):
                require(value[0] >= 1 and value[1] <= 100, f"{name} must lie in 1..100")


def changed(options: Made, values: Mapping[str, Any], *, where: str) -> Made:
    """The same options with other values; lists become tuples, tables options of their own.

    Raises:
        UsageError: an unknown key (the nearest is named), a value that is not like the present one,
            or one that makes no sense; the message begins with `where`.
    """
    hints = get_type_hints(type(options))
    settled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise UsageError(unknown(f"{where}: unknown key {key!r}", key, known=list(hints)))
        present = getattr(options, key)
        if isinstance(present, Options) and isinstance(value, Mapping):
            settled[key] = changed(present, value, where=f"{where}.{key}")
            continue
        settled[key] = tuple(value) if isinstance(value, list | tuple) else value
        if not _alike(settled[key], present):
            raise UsageError(f"{where}: {key} = {value!r} must be like {plain(present)!r}")
    try:
        return dataclasses.replace(options, **settled)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _alike(value: object, present: object) -> bool:
    """Whether a value has the kind of the present one; whole numbers do for others."""
    if isinstance(present, tuple):
        return (
            isinstance(value, tuple)
            and len(value) == len(present)
            and all(_alike(v, p) for v, p in zip(value, present, strict=True))
        )
    return type(value) is type(present) or (type(value) is int and type(present) is float)


def plain(value: Any) -> Any:
    """The value with lists for tuples, as JSON and TOML have them."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def unknown(wrong: str, key: str, *, known: list[str]) -> str:
    """`wrong`, and which key may have been meant."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"{wrong}; " + (
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    )


def require(holds: bool, otherwise: str) -> None:
    """Raises UsageError with that message unless it holds."""
    if not holds:
        raise UsageError(otherwise)
