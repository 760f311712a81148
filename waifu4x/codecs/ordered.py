"""Work on several threads whose results come in the order of what it was done to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def made_of(
    given: Iterable[Given], make: Callable[[Given], Made], *, threads: int, name: str
) -> Iterator[Made]:
    """What `make` makes of each, in their order, up to `threads` of them at once.

    No more than one is taken ahead of what the threads can hold. What `given` and `make` raise
    comes through.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        under_way: deque[Future[Made]] = deque()
        for one in given:
            under_way.append(pool.submit(make, one))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
