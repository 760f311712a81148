"""Runs a network on CUDA: what goes to the device and comes back does so beside the network.

    calling thread   stack k+1 │ … wait for k-1 … │ stitch k-1 │ stack k+2
    stream up          copy k+1 │                               │ copy k+2
    stream compute     network of k, to integers │ network of k+1 …
    stream down      copy k-1 │                   │ copy k

Copies run beside kernels from and to pinned memory, on streams of their own, and events say what
waits for what: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams. Windows go up as
float32: the networks' last sums take them as exactly as they are, and a copy costs nothing where
the network takes longer. Results come down as the integers that they will become.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from waifu4x import devices
from waifu4x.engines import FloatArray, Results
from waifu4x.engines.torch import TorchEngine, rounded, sums_are_finite
from waifu4x.errors import DeviceError

LANES = 2
"""Batches that are under way at once: more would wait, and take memory."""

Forward = Callable[[Tensor], Tensor]

# Of a value of the input, that lies there as float32 in every lane; and of one of the output: as
# float32, clamped, and in every lane as what leaves (float32 leave as they are, without a copy).
_INPUT_BYTES = 4 * LANES
_OUTPUT_BYTES = 4 + 4 + 2 * LANES

# Fuses what follows a convolution, which takes as long as the convolution itself, and tries ways of
# computing each. CUDA graphs ("reduce-overhead") only save launches, which large windows hide, and
# take static memory for every shape.
_MODE = "max-autotune-no-cudagraphs"
# What must have come so often is compiled: that takes as long as hundreds of batches do.
_COMPILED_AT = 3
_MOST_COMPILED = 4


class Lanes(Protocol):
    """A device that takes batches in `LANES` lanes, each of which has one under way at most.

    The first three calls begin something and do not wait for it, but each for the one before.
    """

    def upload(self, lane: int, batch: FloatArray) -> None:
        """`batch` may be changed after the call."""
        ...

    def compute(self, lane: int) -> None: ...

    def download(self, lane: int) -> None: ...

    def wait(self, lane: int) -> Results:
        """The results, when they are there; valid until the lane's next upload."""
        ...

    def close(self) -> None:
        """Wait for all that is under way, and let go of all memory."""
        ...


def pipelined(lanes: Lanes, batches: Iterable[FloatArray]) -> Iterator[Results]:
    """The results of `batches`, in their order, while the next one is under way.

    Each is valid until the next is asked for. After an error, and when the generator is closed,
    nothing is under way any more.
    """
    under_way: deque[int] = deque()
    try:
        for number, batch in enumerate(batches):
            lane = number % LANES
            lanes.upload(lane, batch)
            lanes.compute(lane)
            lanes.download(lane)
            under_way.append(lane)
            if len(under_way) == LANES:
                yield lanes.wait(under_way.popleft())
        while under_way:
            yield lanes.wait(under_way.popleft())
    finally:
        lanes.close()


class CUDAEngine(TorchEngine):
    """One network on one CUDA device, its convolutions in `dtype`; see `TorchEngine`.

    `run` computes one batch as `TorchEngine` does; `stream` is the fast way. The network is a copy:
    the one that is given stays where it lies.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compiled: bool = False,
    ) -> None:
        """
        Args:
            compiled: compile what `stream` computes in windows of one size again and again, for
                half a minute or more, and let cuDNN try which of its ways is the fastest. Results
                may then differ from run to run by what `dtype` rounds.
        """
        super().__init__(copy.deepcopy(network), device=device, dtype=dtype)
        self._streams = Streams.on(device)
        self._tuned = compiled
        self._forward_there: Forward = self._plain
        if compiled:
            self._forward_there = FixedShapes(self._plain, lambda: _compiled(self._plain))

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        """See `Engine.stream`; each result is valid until the next is asked for.

        Raises:
            DeviceError: the network cannot be compiled here.
        """
        lanes = CUDALanes(self._on_device, self._streams, device=self.device, dtype=dtype)
        return pipelined(lanes, batches)

    def bytes_per_px(self) -> float:
        """See `NetworkEngine.bytes_per_px`; with what is on its way to and from the network."""
        values = _INPUT_BYTES + _OUTPUT_BYTES * self.scale**2
        return super().bytes_per_px() + values * self.channels

    def _on_device(self, x: Tensor) -> Tensor:
        with (
            devices.autocast(self.device, self._dtype),
            devices.true_fp32(self.device, tuned=self._tuned),
        ):
            return self._forward_there(x)

    def _plain(self, x: Tensor) -> Tensor:
        """(N, h, w, C) float32 -> (N, s·h, s·w, C) float32."""
        # In order, or whatever reads it next makes a copy of its own.
        return self._network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).float().contiguous()


class FixedShapes:
    """A function of batches of windows that is made anew for windows that come again and again.

    What is made for a batch of one size takes smaller ones, too, filled up; the few that were used
    last are kept. A size that comes once or twice is left to the plain function.
    """

    def __init__(
        self,
        plain: Forward,
        make: Callable[[], Forward],
        *,
        made_at: int = _COMPILED_AT,
        most: int = _MOST_COMPILED,
    ) -> None:
        """
        Args:
            plain: (N, h, w, C) -> (N, …), window by window, for any shape.
            make: gives the same for one shape, that of its first call.
            made_at: how often windows of a size must have come.
            most: how many are kept.
        """
        self._plain = plain
        self._make = make
        self._made_at = made_at
        self._most = most
        self._kept: OrderedDict[torch.Size, tuple[int, Forward]] = OrderedDict()
        # How often windows of a size came, and in how large batches.
        self._seen: dict[torch.Size, tuple[int, int]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        window = x.shape[1:]
        times, largest = self._seen.get(window, (0, 0))
        self._seen[window] = times, largest = times + 1, max(largest, len(x))
        if times < self._made_at:
            return self._plain(x)
        count, forward = self._kept.get(window, (0, self._plain))
        if count < largest:
            count, forward = largest, self._make()
        self._kept[window] = count, forward
        self._kept.move_to_end(window)
        if len(self._kept) > self._most:
            # It must earn its place again.
            self._seen.pop(self._kept.popitem(last=False)[0])
        filled = x.new_zeros(count - len(x), *window)
        return forward(torch.cat([x, filled]) if len(filled) else x)[: len(x)]


def _compiled(forward: Forward) -> Forward:
    """`forward` for one shape, compiled by its first call."""
    from torch._dynamo.exc import TorchDynamoException  # it takes seconds

    def alone(x: Tensor) -> Tensor:
        return forward(x)

    # What is compiled is kept with the code of a function, eight times at most, whatever the
    # number of functions: https://docs.pytorch.org/docs/stable/generated/torch.compile.html
    alone.__code__ = alone.__code__.replace()
    options: dict[str, Any] = {
        **torch._inductor.list_mode_options(_MODE),
        "autotune_num_choices_displayed": 0,  # it writes tables to standard error
    }
    compiled = torch.compile(alone, fullgraph=True, dynamic=False, options=options)

    began = False

    def run(x: Tensor) -> Tensor:
        nonlocal began
        # Compiling gives advice, which is for whoever writes programs.
        quiet = nullcontext() if began else warnings.catch_warnings(action="ignore")
        began = True
        try:
            with quiet:
                return compiled(x)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            if devices.is_out_of_memory(cause):
                raise cause from None
            reason = str(cause).strip().partition("\n")[0]
            raise DeviceError(
                f"PyTorch cannot compile this network here ({reason}): leave --compile out"
            ) from error

    return run


class Streams(NamedTuple):
    """What runs beside each other on one device.

    They are kept, because torch keeps memory that was freed for each stream alone.
    """

    up: torch.cuda.Stream
    network: torch.cuda.Stream
    down: torch.cuda.Stream

    @classmethod
    def on(cls, device: torch.device) -> Streams:
        return cls(*(torch.cuda.Stream(device) for _ in cls._fields))


@dataclass
class _Lane:
    """One batch on its way: what is copied from and to, and what must not be freed before."""

    copied: torch.cuda.Event
    windows: Tensor | None = None
    values: Tensor | None = None
    finite: Tensor | None = None
    x: Tensor | None = None
    y: Tensor | None = None
    y_finite: Tensor | None = None
    count: int = 0


class CUDALanes:
    """The lanes of one CUDA device; see `Lanes`."""

    def __init__(
        self, forward: Forward, streams: Streams, *, device: torch.device, dtype: np.dtype
    ) -> None:
        """
        Args:
            forward: (N, h, w, C) float32 -> (N, s·h, s·w, C) float32, both on `device`.
            dtype: what the values become there; see `Engine.stream`.
        """
        self._forward = forward
        self._device = device
        self._dtype = dtype
        self._streams = streams
        # The weights came by the stream that everybody uses.
        streams.network.wait_stream(torch.cuda.current_stream(device))
        # An event that blocks leaves the core to the threads that encode.
        self._lanes = [_Lane(torch.cuda.Event(blocking=True)) for _ in range(LANES)]

    # In inference mode all along: what is compiled for a batch of one kind is not for another.
    @torch.inference_mode()
    def upload(self, lane: int, batch: FloatArray) -> None:
        """See `Lanes.upload`."""
        here = self._lanes[lane]
        here.windows, windows = _buffer(here.windows, torch.Size(batch.shape), torch.float32)
        np.copyto(windows.numpy(), batch)
        with torch.cuda.stream(self._streams.up):
            here.x = windows.to(self._device, non_blocking=True)

    @torch.inference_mode()
    def compute(self, lane: int) -> None:
        """See `Lanes.compute`."""
        here = self._lanes[lane]
        assert here.x is not None, "nothing was uploaded"
        with torch.cuda.stream(self._streams.network):
            self._streams.network.wait_stream(self._streams.up)
            y = self._forward(here.x)
            here.y_finite = sums_are_finite(y)
            here.y = rounded(y, self._dtype)

    @torch.inference_mode()
    def download(self, lane: int) -> None:
        """See `Lanes.download`."""
        here = self._lanes[lane]
        assert here.y is not None, "nothing was computed"
        assert here.y_finite is not None
        here.values, values = _buffer(here.values, here.y.shape, here.y.dtype)
        here.finite, finite = _buffer(here.finite, here.y_finite.shape, torch.bool)
        here.count = len(values)
        with torch.cuda.stream(self._streams.down):
            self._streams.down.wait_stream(self._streams.network)
            values.copy_(here.y, non_blocking=True)
            finite.copy_(here.y_finite, non_blocking=True)
            here.copied.record(self._streams.down)

    def wait(self, lane: int) -> Results:
        """See `Lanes.wait`."""
        here = self._lanes[lane]
        assert here.values is not None, "nothing was downloaded"
        assert here.finite is not None
        here.copied.synchronize()
        # Not before: other streams might be given their memory while these still use it.
        here.x = here.y = here.y_finite = None
        return Results(here.values[: here.count].numpy(), here.finite[: here.count].numpy())

    def close(self) -> None:
        """See `Lanes.close`."""
        try:
            for stream in self._streams:
                stream.synchronize()
        finally:
            self._lanes.clear()


def _buffer(kept: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A buffer in pinned memory, which is `kept` where that suits, and its part of this shape."""
    if kept is None or kept.dtype != dtype or kept.shape[1:] != shape[1:] or len(kept) < shape[0]:
        try:
            kept = torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError:
            # The system pins no more: slower, and as right.
            kept = torch.empty(shape, dtype=dtype)
    return kept, kept[: shape[0]]
