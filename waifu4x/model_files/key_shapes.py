"""What the keys and shapes of a state dict say, for the functions that recognise a network by them.

Each raises KeyError or ValueError where they say something else: then it is another layout, as it
is where a tensor has fewer axes than are asked for, or no numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
"""Flat: every key with its tensor."""
Metadata = Mapping[str, str]
Found = tuple[str, Any, dict[str, Tensor]]
"""A key of `networks.NETWORKS`, its config, and the state by this project's keys."""


def conv_shape(state: State, key: str) -> tuple[int, int, int]:
    """(outputs, inputs, kernel size) of a square convolution; KeyError or ValueError if not one."""
    out, into, height, width = state[f"{key}.weight"].shape
    if height != width or height % 2 == 0 or min(out, into) < 1:
        raise ValueError(key)
    return out, into, height


def count_of(state: Iterable[str], pattern: str) -> int:
    """How many keys match, when their one group counts from 0 without a gap; else ValueError."""
    regex = re.compile(pattern)
    numbers = {int(found.group(1)) for key in state if (found := regex.fullmatch(key))}
    if numbers != set(range(len(numbers))):
        raise ValueError(pattern)
    return len(numbers)


def root_of(number: int) -> int:
    """The integer whose square is `number`; ValueError if there is none."""
    root = math.isqrt(number)
    if root < 1 or root * root != number:
        raise ValueError(str(number))
    return root


def as_colors(count: int) -> int:
    """`count` where it is 1 or 3, else ValueError."""
    if count not in (1, 3):
        raise ValueError(f"{count} colors")
    return count


def rekeyed(state: State, rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Every key rewritten by the first rule (regular expression, replacement) that matches it."""
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        new_key = key
        for regex, new in compiled:
            if regex.match(key):
                new_key = regex.sub(new, key, count=1)
                break
        if new_key in renamed:
            raise ValueError(new_key)
        renamed[new_key] = tensor
    return renamed
