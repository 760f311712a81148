"""What the machine that has the plan and its workers say to each other: all can be pickled."""

from __future__ import annotations

import pickle
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waifu4x.batch.jobs import Job
from waifu4x.batch.request import Request
from waifu4x.batch.run import Outcome, Split
from waifu4x.errors import Waifu4xError
from waifu4x.remote.urls import Location

Ticket = tuple[int, Job]
"""A job as `inputs.as_sent` gives it, and which of the plan it is."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one worker runs."""

    node: str
    """The machine's name, for messages."""
    key: str
    """The machine's name, for the cluster."""
    cores: int
    """Threads that the worker may keep busy; 0 where it has none of its own."""
    gpu: bool = False
    """It has a GPU of its own."""
    share: float = 1.0
    """Of the machine's free memory."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that a worker must know to do any job of a plan."""

    request: Request
    model: str
    wishes: dict[str, Any]
    """How the model is opened: the other arguments of `models.open_upscaler`."""
    filters: bool
    """The model is a resampling filter, which runs on no device."""
    settings: str = ""
    """What `Request.settings_key` gives here, and must give there."""
    encoders: int = 0
    """How many threads encode; 0 is one for each core."""
    mark: Location = Path()
    """A file in the output folder that is there for this run: see `traces`."""
    here: str = ""
    """The folder that what was given is relative to; empty where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a worker is told."""

    tickets: tuple[Ticket, ...] = ()
    """Further jobs."""
    close: bool = False
    """There will be no further ones: end when all are done."""
    stop: bool = False
    """Begin nothing any more; finish what is being encoded, and end."""
    wait_s: float = 0.0
    """How long the answer may wait for something to tell."""


@dataclass(frozen=True, kw_only=True)
class End:
    """A worker does nothing any more."""

    error: BaseException | None = None
    """What ended it, when it was not told to."""
    split: Split | None = None
    """When it ended as it should."""


@dataclass(kw_only=True)
class Reply:
    """What a worker tells since it was last asked."""

    ready: bool = False
    """It has opened the model, and found all to be as it is at home."""
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    progress: tuple[int, float] | None = None
    """Which job the network is at, and how much of it is done, 0..1."""
    end: End | None = None


def bare(error: Waifu4xError) -> Waifu4xError:
    """The error without frames, which hold whatever there was."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def portable(error: BaseException) -> BaseException:
    """The error as it can be sent: without frames, and as one that any process can make."""
    if isinstance(error, Waifu4xError):
        return bare(error)
    told = "".join(traceback.format_exception(error))
    sent: BaseException = RuntimeError(f"{type(error).__name__}: {error}")
    if type(error).__module__ == "builtins":
        # Those that others define may take arguments that pickle knows nothing of.
        with suppress(Exception):
            pickle.dumps(error.args)
            sent = error.with_traceback(None)
            sent.__cause__ = sent.__context__ = None
    sent.add_note(f"It was raised by a worker:\n{told}")
    return sent
