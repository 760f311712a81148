"""Batches for one step after the other, prepared ahead of time by other processes if so wished."""

from __future__ import annotations

import itertools
import signal
import time
import warnings
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from waifu4x.train.batches import Batch, Batches

_AHEAD = 4


class Feed:
    """Gives the batch of a step; those that follow it are prepared meanwhile.

    Args:
        workers: processes that prepare batches; 0 prepares them in this one.
    """

    def __init__(self, batches: Batches, *, device: torch.device, workers: int) -> None:
        self._batches = batches
        self._device = device
        self._workers = workers
        self._iterator: Iterator[Batch] | None = None
        self._next_step = 0

    def take(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, on the device, and for how long it was waited, in seconds."""
        began = time.monotonic()
        if self._iterator is None or step != self._next_step:
            self._iterator = self._start(step)
        batch = next(self._iterator).to(self._device)
        self._next_step = step + 1
        return batch, time.monotonic() - began

    def close(self) -> None:
        """End the workers."""
        self._iterator = None

    def _start(self, step: int) -> Iterator[Batch]:
        self._iterator = None  # ends the workers of another one
        with warnings.catch_warnings():
            # Of more processes than cores: whoever asks for them has reasons.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = DataLoader(
                self._batches,
                batch_size=None,
                sampler=itertools.count(step),
                num_workers=self._workers,
                prefetch_factor=_AHEAD if self._workers else None,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_ignore_interrupts,
                # Forking a process of many threads may leave a lock taken for ever.
                multiprocessing_context="spawn" if self._workers else None,
                # Its own: torch's would be drawn from at every start, and a run that goes on would
                # not be the one that was never stopped.
                generator=torch.Generator(),
            )
            return iter(loader)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains ends its step, and these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
