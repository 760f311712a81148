"""What the CUDA engine does in which order, on stand-ins: no test here needs a GPU."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import FakeConfig, FakeNetwork, random_model

from waifu4x import devices
from waifu4x.engines import FloatArray, Results, cuda
from waifu4x.engines.cuda import LANES, CUDAEngine, FixedShapes, pipelined
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig

CPU = torch.device("cpu")
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def batch(number: int, size: int = 1) -> FloatArray:
    return np.full((size, 2, 2, 3), number, dtype=np.float32)


def batches(count: int, taken: list[int] | None = None) -> Iterator[FloatArray]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield batch(number)


# -- what is done when -----------------------------------------------------------------------------


class Recorder:
    """Lanes of a device that negates, and complains about what a real one would get wrong.

    With `late` nothing happens before it is waited for, else everything at once: a real device does
    either, or something between.
    """

    def __init__(self, *, late: bool = False, fails: tuple[str, int] = ("", 0)) -> None:
        self.log: list[str] = []
        self.closed = 0
        self.most_under_way = 0
        self._late = late
        self._fails = fails
        self._calls = dict.fromkeys(("upload", "compute", "download", "wait"), 0)
        self._stage = ["free"] * LANES
        self._given = np.zeros((LANES, 1, 2, 2, 3), dtype=np.float32)
        self._copied = np.zeros((LANES, 1, 2, 2, 3), dtype=np.float32)

    def _enter(self, stage: str, lane: int, *, after: str, becomes: str) -> None:
        assert not self.closed, "used after it was closed"
        assert self._stage[lane] == after, f"{stage} of a lane that is {self._stage[lane]}"
        self.log.append(f"{stage} {lane}")
        number, self._calls[stage] = self._calls[stage], self._calls[stage] + 1
        if self._fails == (stage, number):
            raise FULL
        self._stage[lane] = becomes
        self.most_under_way = max(self.most_under_way, LANES - self._stage.count("free"))

    def _copy(self, lane: int) -> None:
        np.negative(self._given[lane], out=self._copied[lane])

    def upload(self, lane: int, batch: FloatArray) -> None:
        self._enter("upload", lane, after="free", becomes="uploaded")
        self._given[lane] = batch

    def compute(self, lane: int) -> None:
        self._enter("compute", lane, after="uploaded", becomes="computed")

    def download(self, lane: int) -> None:
        self._enter("download", lane, after="computed", becomes="downloaded")
        if not self._late:
            self._copy(lane)

    def wait(self, lane: int) -> Results:
        self._enter("wait", lane, after="downloaded", becomes="free")
        if self._late:
            self._copy(lane)
        return Results(self._copied[lane], np.ones(1, dtype=np.bool_))

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_results_come_in_order_and_two_batches_are_under_way(count: int, late: bool) -> None:
    lanes = Recorder(late=late)
    taken: list[int] = []
    given = 0
    for results in pipelined(lanes, batches(count, taken)):
        # It was not asked for yet, and is what this one is copied over.
        assert len(taken) <= given + LANES
        np.testing.assert_array_equal(results.values, -batch(given))
        given += 1
    assert given == count
    assert lanes.most_under_way == min(count, LANES)
    assert lanes.closed == 1


def test_the_next_batch_is_uploaded_before_a_result_is_waited_for() -> None:
    lanes = Recorder()
    for _ in pipelined(lanes, batches(3)):
        lanes.log.append("stitch")
    assert lanes.log == [
        *("upload 0", "compute 0", "download 0"),
        *("upload 1", "compute 1", "download 1"),
        *("wait 0", "stitch"),
        *("upload 0", "compute 0", "download 0"),
        *("wait 1", "stitch"),
        *("wait 0", "stitch"),
    ]


@pytest.mark.parametrize("stage", ["upload", "compute", "download", "wait"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_error_comes_through_and_leaves_nothing_under_way(stage: str, number: int) -> None:
    lanes = Recorder(fails=(stage, number))
    results = pipelined(lanes, batches(4))
    given: list[Results] = []
    with pytest.raises(torch.OutOfMemoryError) as caught:
        given.extend(results)
    assert caught.value is FULL
    assert len(given) == (number if stage == "wait" else max(0, number - LANES + 1))
    assert lanes.closed == 1
    assert next(results, None) is None


def test_an_error_of_whoever_gives_the_batches_comes_through() -> None:
    def broken() -> Iterator[FloatArray]:
        yield batch(0)
        raise ZeroDivisionError

    lanes = Recorder()
    with pytest.raises(ZeroDivisionError):
        list(pipelined(lanes, broken()))
    assert (lanes.closed, lanes.log[-1]) == (1, "download 0")


@pytest.mark.parametrize("leave", ["close", "interrupt"])
def test_whoever_leaves_early_leaves_nothing_under_way(leave: str) -> None:
    lanes = Recorder()
    results = pipelined(lanes, batches(9))
    next(results)
    if leave == "close":
        results.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert (lanes.closed, lanes.log[-1]) == (1, "wait 0")


# -- one function for each shape -------------------------------------------------------------------


class Made:
    """Functions that double, and insist on the shape of their first call."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.filled: list[float] = []

    def __call__(self) -> Callable[[Tensor], Tensor]:
        shape: list[tuple[int, ...]] = []

        def double(x: Tensor) -> Tensor:
            if not shape:
                shape.append(tuple(x.shape))
                self.shapes.append(shape[0])
            assert tuple(x.shape) == shape[0]
            self.filled.append(float(x[-1].sum()))
            return 2.0 * x

        return double


def fixed(made: Made, **how: int) -> tuple[FixedShapes, list[tuple[int, ...]]]:
    plain: list[tuple[int, ...]] = []

    def double(x: Tensor) -> Tensor:
        plain.append(tuple(x.shape))
        return 2.0 * x

    return FixedShapes(double, made, **how), plain


def windows(count: int, side_px: int = 4) -> Tensor:
    return torch.ones(count, side_px, side_px, 3)


def check(run: FixedShapes, x: Tensor) -> None:
    assert torch.equal(run(x), 2.0 * x)


def test_a_size_that_comes_a_third_time_is_made_and_smaller_batches_are_filled_up() -> None:
    made = Made()
    run, plain = fixed(made)
    for count in (4, 1):
        check(run, windows(count))
    assert (plain, made.shapes) == ([(4, 4, 4, 3), (1, 4, 4, 3)], [])
    for count in (2, 4, 3):  # the largest so far had four
        check(run, windows(count))
    assert made.shapes == [(4, 4, 4, 3)]
    assert made.filled == [0.0, 48.0, 0.0]
    assert len(plain) == 2


def test_a_larger_batch_is_made_anew_once() -> None:
    made = Made()
    run, _ = fixed(made, made_at=1)
    for count in (2, 3, 2, 3):
        check(run, windows(count))
    assert made.shapes == [(2, 4, 4, 3), (3, 4, 4, 3)]


def test_of_many_sizes_those_that_were_used_last_are_kept() -> None:
    made = Made()
    run, plain = fixed(made, made_at=2, most=2)
    for side_px in (4, 5):
        for _ in range(2):
            check(run, windows(1, side_px))
    check(run, windows(1, 4))  # used again: 5 is the one that goes
    for _ in range(2):
        check(run, windows(1, 6))
    check(run, windows(1, 4))
    assert [shape[1] for shape in made.shapes] == [4, 5, 6]
    plain.clear()
    check(run, windows(1, 5))
    assert plain == [(1, 5, 5, 3)]  # from the beginning
    check(run, windows(1, 5))
    assert [shape[1] for shape in made.shapes] == [4, 5, 6, 5]


# -- compiling -------------------------------------------------------------------------------------


def test_compiling_advises_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def advise(x: Tensor) -> Tensor:
        warnings.warn("TensorFloat32 is available but not enabled", stacklevel=1)
        return x

    monkeypatch.setattr(torch, "compile", lambda run, **how: advise)
    run = cuda._compiled(lambda x: x)
    run(torch.zeros(1))
    with pytest.raises(UserWarning):  # of what runs later nothing is hidden
        run(torch.zeros(1))


def test_every_compiled_function_has_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is kept with the code, and there is a limit for each."""
    asked: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(torch, "compile", lambda run, **how: asked.append((run, how)) or run)
    made = [cuda._compiled(lambda x: x + 1) for _ in range(3)]
    assert len({id(run.__code__) for run, _ in asked}) == 3
    assert torch.equal(made[2](torch.zeros(2)), torch.ones(2))
    how = asked[0][1]
    assert (how["fullgraph"], how["dynamic"]) == (True, False)
    assert set(how["options"]) <= set(torch._inductor.list_options())


@pytest.mark.parametrize(
    ("inner", "raised", "says"),
    [
        (RuntimeError("no Triton\nat line 3"), DeviceError, r"here \(no Triton\): leave --compile"),
        (FULL, torch.OutOfMemoryError, "CUDA out of memory"),
    ],
)
def test_what_cannot_be_compiled_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, inner: Exception, raised: type[Exception], says: str
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fail(x: Tensor) -> Tensor:
        raise BackendCompilerFailed(lambda: None, inner, None)

    monkeypatch.setattr(torch, "compile", lambda run, **how: fail)
    with pytest.raises(raised, match=says) as caught:
        cuda._compiled(lambda x: x)(torch.zeros(1))
    assert "\n" not in str(caught.value)


# -- the lanes of a device -------------------------------------------------------------------------


class Machine:
    """As much of `torch.cuda` as the engine uses, done at once by the CPU, and written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = self
        self.log: list[str] = []
        names = itertools.cycle(("up", "network", "down"))

        class Stream:
            def __init__(self, device: torch.device) -> None:
                self.name = next(names)

            def wait_stream(self, other: Stream | None) -> None:
                machine.log.append(f"{self.name} waits for {other.name if other else 'all'}")

            def synchronize(self) -> None:
                machine.log.append(f"{self.name} ends")

        class Event:
            def __init__(self, blocking: bool) -> None:
                assert blocking

            def record(self, stream: Stream) -> None:
                machine.log.append(f"{stream.name} is noted")

            def synchronize(self) -> None:
                machine.log.append("waited")

        @contextlib.contextmanager
        def stream(one: Stream) -> Iterator[None]:
            machine.log.append(f"on {one.name}")
            yield

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def noise(count: int, *, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((count, 12, 10, 3), dtype=np.float32)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_stream_gives_what_the_plain_engine_gives(dtype: type, precision: torch.dtype) -> None:
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2)).network
    # Smaller batches before larger ones and after; windows of another size, which are no copy.
    given = [noise(count, seed=seed) for seed, count in enumerate((2, 1, 3, 3, 3, 1))]
    given += [np.rot90(noise(2), axes=(1, 2))]
    plain = TorchEngine(network, device=CPU, dtype=precision)
    engine = CUDAEngine(network, device=CPU, dtype=precision)
    expected = list(plain.stream(given, dtype=np.dtype(dtype)))
    for results, right in zip(
        engine.stream(iter(given), dtype=np.dtype(dtype)), expected, strict=True
    ):
        assert results.values.dtype == dtype
        np.testing.assert_array_equal(results.values, right.values)
        np.testing.assert_array_equal(results.finite, right.finite)
    np.testing.assert_array_equal(engine.run(given[0]), plain.run(given[0]))


def test_streams_wait_for_each_other(machine: Machine) -> None:
    network = FakeNetwork(FakeConfig(), lambda x: None)
    engine = CUDAEngine(network, device=CPU, dtype=torch.float32)
    (results,) = engine.stream([noise(1)], dtype=np.dtype(np.uint8))
    assert machine.log == [
        "network waits for all",
        "on up",
        *("on network", "network waits for up"),
        *("on down", "down waits for network", "down is noted", "waited"),
        *("up ends", "network ends", "down ends"),
    ]
    # They were the engine's own, and the memory of the last result is still there.
    assert results.values.shape == (1, 24, 20, 3)


@pytest.mark.usefixtures("machine")
def test_what_is_not_finite_is_told_for_each_window() -> None:
    def meddle(x: Tensor) -> Tensor:
        extra = torch.zeros(len(x), 3, 24, 20)
        extra[1, 2, 3, 4] = torch.nan
        return extra

    network = FakeNetwork(FakeConfig(), meddle)
    engine = CUDAEngine(network, device=CPU, dtype=torch.float32)
    (results,) = engine.stream([noise(3)], dtype=np.dtype(np.uint8))
    assert results.finite.tolist() == [True, False, True]


def test_a_full_memory_comes_through_and_everything_is_let_go(machine: Machine) -> None:
    seen: list[int] = []

    def meddle(x: Tensor) -> None:
        seen.append(len(x))
        if len(seen) == 3:
            raise FULL

    engine = CUDAEngine(FakeNetwork(FakeConfig(), meddle), device=CPU, dtype=torch.float32)
    results = engine.stream(iter([noise(1)] * 5), dtype=np.dtype(np.uint8))
    next(results)
    with pytest.raises(torch.OutOfMemoryError):
        next(results)
    assert machine.log[-3:] == ["up ends", "network ends", "down ends"]
    # The same engine goes on with the next picture.
    assert len(list(engine.stream([noise(1)], dtype=np.dtype(np.uint8)))) == 1


@pytest.mark.usefixtures("machine")
def test_compiled_networks_take_whole_batches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compiled(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            assert x.is_inference(), "it would be compiled again for the other kind of tensor"
            sizes.append(len(x))
            return forward(x)

        return run

    monkeypatch.setattr(cuda, "_compiled", compiled)
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2)).network
    engine = CUDAEngine(network, device=CPU, dtype=torch.float32, compiled=True)
    given = [noise(2, seed=0), noise(2, seed=1), noise(2, seed=2), noise(1, seed=3)]
    plain = TorchEngine(network, device=CPU, dtype=torch.float32)
    stream = engine.stream(iter(given), dtype=np.dtype(np.float32))
    for windows, results in zip(given, stream, strict=True):
        np.testing.assert_allclose(results.values, plain.run(windows), atol=1e-6)
    assert sizes == [2, 2]
    engine.run(given[0])  # what is timed, or computed again, is not worth it
    assert sizes == [2, 2]


@pytest.mark.usefixtures("machine")
def test_the_network_that_was_given_is_left_where_it_lies() -> None:
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2)).network
    engine = CUDAEngine(network, device=CPU, dtype=torch.float32)
    for own, given in zip(engine._network.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, given)
        assert own.data_ptr() != given.data_ptr()


@pytest.mark.usefixtures("machine")
def test_memory_counts_what_is_on_its_way() -> None:
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2)).network
    plain = TorchEngine(network, device=CPU, dtype=torch.bfloat16)
    engine = CUDAEngine(network, device=CPU, dtype=torch.bfloat16)
    # Two float32 windows; then as float32, clamped, and twice as uint16, each 2×2 as large.
    on_its_way = 3 * (2 * 4 + 4 * (4 + 4 + 2 * 2))
    assert engine.bytes_per_px() == plain.bytes_per_px() + on_its_way


# -- what is shared by threads ---------------------------------------------------------------------


def test_cudnn_is_exact_until_the_last_thread_has_done() -> None:
    gpu, cudnn = torch.device("cuda"), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    first, second = devices.true_fp32(gpu), devices.true_fp32(gpu, tuned=True)
    with first:
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, False, True)
        second.__enter__()
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)  # the first one decides
    assert cudnn.allow_tf32 is False
    second.__exit__(None, None, None)
    assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == before
    with devices.true_fp32(gpu, tuned=True):
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (False, True, False)
    assert cudnn.benchmark == before[1]
