"""Tables of plain values, as TOML has them, become typed dataclasses, and back.

Unknown keys and values of a wrong type are errors that name the place and the nearest key.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from waifu4x.errors import UsageError
from waifu4x.train.options import unknown


def from_table(kind: type, table: Any, where: str) -> Any:
    """An instance of the dataclass `kind`, each value of the declared type.

    Raises:
        UsageError: an unknown key, a wrong type, or numbers that `kind` refuses; the message begins
            with `where`.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: this must be a table of options, not {table!r}")
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            wrong = f"{where}: unknown key {key!r}"
            raise UsageError(unknown(wrong, str(key), known=list(hints)))
    values = {key: _settled(hints[key], table[key], f"{where}: {key}") for key in table}
    try:
        return kind(**values)
    except (UsageError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from error


def facts(value: Any) -> Any:
    """The value as plain ones, which `from_table` takes again; what is None is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {each.name: facts(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {key: each for key, each in found.items() if each is not None}
    if isinstance(value, Mapping):
        return {key: facts(each) for key, each in value.items()}
    return [facts(each) for each in value] if isinstance(value, tuple | list) else value


def to_toml(table: Mapping[str, Any]) -> str:
    """Plain values as a TOML document: tables first level by level, lists of tables as such."""
    lines = [f"{key} = {_inline(value)}" for key, value in table.items() if not _is_nested(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{k} = {_inline(v)}" for k, v in value.items())]
        elif _is_nested(value):
            for entry in value:
                lines += ["", f"[[{key}]]", *(f"{k} = {_inline(v)}" for k, v in entry.items())]
    return "\n".join(lines).strip() + "\n"


def _is_nested(value: Any) -> bool:
    tables = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    return tables or isinstance(value, Mapping)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    # JSON's texts, numbers, true and false are TOML's, too.
    return json.dumps(value)


def overridden(table: Mapping[str, Any], path: str, text: str) -> dict[str, Any]:
    """A copy of plain values in which ``stages.1.losses.gan_weight`` is what `text` says in TOML.

    Negative numbers count list entries from the end. A text that is no TOML value is taken as it
    is, so that ``data.degradation=jpeg`` needs no quotes.

    Raises:
        UsageError: a list entry that is not there, or a path through what holds nothing.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    keys = path.split(".")
    copy = _copied(table)
    place: Any = copy
    for number, key in enumerate(keys):
        is_last = number == len(keys) - 1
        try:
            if isinstance(place, list):
                place[int(key)] = value if is_last else place[int(key)]
                place = place[int(key)]
            elif is_last:
                place[key] = value
            else:
                place = place.setdefault(key, {})
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            missing = ".".join(keys[: number + 1])
            raise UsageError(f"{path}={text}: there is no {missing}") from error
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def _settled(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` declares; whole numbers serve as fractions."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [each for each in arguments if each is not type(None)]
        return None if value is None else _settled(inner[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_table(hint, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        wrong = f"{where}: unknown value {value!r}"
        raise UsageError(unknown(wrong, str(value), known=[str(each) for each in arguments]))
    if origin is tuple and isinstance(value, list | tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_settled(k, v, where) for k, v in zip(kinds, value, strict=True))
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(k): _settled(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is float and type(value) is int:
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UsageError(f"{where} = {value!r} is not of type {name}")
