"""Ctrl-C while something is trained: what is under way ends, and is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def signals_between_steps() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted, so that the step can end; a second does not wait."""
    caught: list[int] = []
    # One that is ignored (nohup, a shell's background job) stays so.
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            restore()
            signal.raise_signal(number)
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
