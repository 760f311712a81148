"""Several devices share the windows of a picture: an engine and a thread for each.

    calling thread ── parts of batches ──▶ thread of cuda:0 ──┐
           ▲        └────────────────────▶ thread of cuda:1 ──┤
           └──────────── what is done, in any order ──────────┘

A batch is cut into as many parts as there are devices, so that all of them work on pictures of few
tiles, too. Threads do, because kernels and copies run without Python's lock.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from waifu4x.engines import Engine, FloatArray, NetworkEngine, Results

# Parts for each device that were begun and not given yet: one under way, one that waits for it.
_PARTS_EACH = 2
# How often a signal is looked for, where waiting keeps it off (Windows).
_POLL_S = 0.2


class SpreadEngine:
    """One network on several devices; its name and precision are those of its first engine."""

    def __init__(self, engines: Sequence[NetworkEngine]) -> None:
        """`engines`: at least one, of one network, in one precision, each on its own device."""
        first = engines[0]
        self._engines = tuple(engines)
        self.name = first.name
        self.scale = first.scale
        self.channels = first.channels
        self.precision = first.precision

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`; of the engine that takes the most."""
        return max(engine.bytes_per_px() for engine in self._engines)

    def run(self, batch: FloatArray) -> FloatArray:
        """See `Engine.run`; a batch of one window runs on the first device."""
        (results,) = self.stream([batch], dtype=np.dtype(np.float32))
        return results.values

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """See `Engine.stream`.

        What a device raises is raised in the place of its batch, when all devices have stopped;
        they also stop when the generator is closed.
        """
        crew = _Crew(self._engines, dtype)
        remaining = iter(batches)
        under_way: deque[_Whole] = deque()
        most = _PARTS_EACH * len(self._engines)
        try:
            crew.start()
            while True:
                while sum(whole.parts for whole in under_way) < most:
                    batch = next(remaining, None)
                    if batch is None:
                        break
                    under_way.append(crew.deal(batch))
                if not under_way:
                    return
                whole = under_way.popleft()
                while whole.missing and whole.error is None:
                    crew.hear()
                yield whole.results()
        finally:
            crew.stop()


@dataclass(eq=False)
class _Whole:
    """One batch, put together from its parts."""

    size: int
    parts: int
    missing: int
    """Parts that nothing was heard of."""
    error: BaseException | None = None
    _values: npt.NDArray | None = None
    _finite: npt.NDArray[np.bool_] = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._finite = np.empty(self.size, dtype=np.bool_)

    def put(self, place: slice, results: Results) -> None:
        """A copy, because an engine may use its memory again; called in threads of devices."""
        with self._lock:
            if self._values is None:
                shape = self.size, *results.values.shape[1:]
                self._values = np.empty(shape, dtype=results.values.dtype)
        self._values[place] = results.values
        self._finite[place] = results.finite

    def results(self) -> Results:
        """Raises what one of the devices has raised."""
        if self.error is not None:
            raise self.error
        assert self._values is not None, "its parts are there"
        return Results(self._values, self._finite)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some windows of a batch, dealt to a device."""

    whole: _Whole
    place: slice
    windows: FloatArray
    device: int


_Tasks = queue.SimpleQueue[_Part | None]


class _Crew:
    """The threads of the devices. Everything but `_work` is called in one and the same thread."""

    def __init__(self, engines: Sequence[Engine], dtype: np.dtype) -> None:
        self._stopped = False
        self._tasks: list[_Tasks] = [queue.SimpleQueue() for _ in engines]
        self._loads = [0] * len(engines)
        self._heard: queue.SimpleQueue[tuple[_Part, BaseException | None]] = queue.SimpleQueue()
        # As daemons they do not keep a program alive that a second signal has ended.
        self._threads = [
            threading.Thread(
                target=self._work, args=(engine, tasks, dtype), name=f"device-{number}", daemon=True
            )
            for number, (engine, tasks) in enumerate(zip(engines, self._tasks, strict=True))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def deal(self, batch: FloatArray) -> _Whole:
        """Give every device a part of `batch`, the next one to whichever has the least to do."""
        parts = min(len(batch), len(self._loads))
        whole = _Whole(size=len(batch), parts=parts, missing=parts)
        edges = [number * len(batch) // parts for number in range(parts + 1)]
        for start, stop in itertools.pairwise(edges):
            device = self._loads.index(min(self._loads))
            self._loads[device] += 1
            part = _Part(whole, slice(start, stop), batch[start:stop], device)
            self._tasks[device].put(part)
        return whole

    def hear(self) -> None:
        """Wait until one more part is there, or has failed."""
        while True:
            with suppress(queue.Empty):
                part, error = self._heard.get(timeout=_POLL_S)
                break
        self._loads[part.device] -= 1
        part.whole.missing -= 1
        part.whole.error = part.whole.error or error

    def stop(self) -> None:
        """Let the devices finish what they have under way, and nothing else."""
        self._stopped = True
        for tasks in self._tasks:
            tasks.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self, engine: Engine, tasks: _Tasks, dtype: np.dtype) -> None:
        while (part := tasks.get()) is not None and not self._stopped:
            taken = deque([part])
            try:
                for results in engine.stream(self._windows(taken, tasks), dtype=dtype):
                    done = taken.popleft()
                    done.whole.put(done.place, results)
                    self._heard.put((done, None))
                    if self._stopped:
                        return
            except BaseException as error:  # whatever it is, the calling thread must hear of it
                # Where all was given already, it is the next one that cannot be had.
                if (lost := taken[0] if taken else tasks.get()) is not None:
                    self._heard.put((lost, error))
                return

    def _windows(self, taken: deque[_Part], tasks: _Tasks) -> Iterator[FloatArray]:
        """What waits for this device. It ends where nothing does: an engine that takes batches
        ahead would else keep back results that the next batch may depend on."""
        yield taken[0].windows
        while not self._stopped:
            try:
                part = tasks.get_nowait()
            except queue.Empty:
                return
            if part is None:
                tasks.put(None)  # it is for `_work`
                return
            taken.append(part)
            yield part.windows
