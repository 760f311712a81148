"""Several devices share the work: engines on the CPU stand in for them."""

from __future__ import annotations

import copy
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import errors, save, upscale
from torch import nn
from toys import FakeConfig, FakeNetwork, as_model, random_model

from waifu4x import devices
from waifu4x.cli import upscale_run
from waifu4x.engines import FloatArray, Results, choice
from waifu4x.engines.cuda import LANES
from waifu4x.engines.spread import SpreadEngine, _Crew
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.tiled import TiledRunner
from waifu4x.tiled.tile_sizes import TileSizes
from waifu4x.upscaler import Upscaler

CPU = torch.device("cpu")
FLOATS = np.dtype(np.float32)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))


class Double:
    """An engine that doubles, and asks `meddle` first; `ahead` it takes before it gives anything.

    Like one on a real device it gives the same memory again and again.
    """

    name = "double"
    scale = 1
    channels = 3
    precision = "fp32"

    def __init__(
        self, meddle: Callable[[FloatArray], None] = lambda windows: None, *, ahead: int = 0
    ) -> None:
        self.seen: list[FloatArray] = []
        self.closed = 0
        self._meddle = meddle
        self._ahead = ahead

    def bytes_per_px(self) -> float:
        return 100.0

    def run(self, batch: FloatArray) -> FloatArray:
        raise NotImplementedError

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        memory: FloatArray | None = None
        waiting: list[FloatArray] = []
        try:
            for windows in batches:
                self.seen.append(windows)
                self._meddle(windows)
                waiting.append(windows)
                if len(waiting) > self._ahead:
                    memory = self._doubled(waiting.pop(0), memory)
                    yield Results(memory, memory[:, 0, 0, 0] >= 0)
            for windows in waiting:
                memory = self._doubled(windows, memory)
                yield Results(memory, memory[:, 0, 0, 0] >= 0)
        finally:
            self.closed += 1

    def _doubled(self, windows: FloatArray, memory: FloatArray | None) -> FloatArray:
        if memory is None or memory.shape != windows.shape:
            return 2.0 * windows
        return np.multiply(windows, 2.0, out=memory)


def batch(first: float, size: int = 2) -> FloatArray:
    """Windows that are told apart by their value: `first`, `first` + 0.1 …"""
    numbers = np.float32(first) + np.arange(size, dtype=np.float32) / 10
    return np.broadcast_to(numbers[:, None, None, None], (size, 2, 2, 3)).copy()


def check(given: list[FloatArray], engine: SpreadEngine) -> None:
    taken = list(engine.stream(iter(given), dtype=FLOATS))
    assert len(taken) == len(given)
    for windows, results in zip(given, taken, strict=True):
        np.testing.assert_array_equal(results.values, 2.0 * windows)
        np.testing.assert_array_equal(results.finite, windows[:, 0, 0, 0] >= 0)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if "device-" in thread.name] == []


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_several_devices_give_what_one_gives(dtype: type) -> None:
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2)).network
    rng = np.random.default_rng(0)
    given = [rng.random((size, 9, 8, 3), dtype=np.float32) for size in (4, 4, 3, 1)]
    one = TorchEngine(network, device=CPU, dtype=torch.float32)
    engine = SpreadEngine(
        [TorchEngine(copy.deepcopy(network), device=CPU, dtype=torch.float32) for _ in range(3)]
    )
    expected = one.stream(given, dtype=np.dtype(dtype))
    taken = engine.stream(iter(given), dtype=np.dtype(dtype))
    for results, right in zip(taken, expected, strict=True):
        assert results.values.dtype == dtype
        np.testing.assert_allclose(
            results.values, right.values, atol=1e-6 if dtype is np.float32 else 0
        )
        assert results.finite.all()
    assert (engine.name, engine.precision, engine.scale, engine.channels) == ("torch", "fp32", 2, 3)
    np.testing.assert_allclose(engine.run(given[0]), one.run(given[0]), atol=1e-6)
    assert engine.bytes_per_px() == one.bytes_per_px()


@pytest.mark.parametrize("ahead", [0, LANES - 1, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_engines_that_take_batches_ahead_hold_nothing_back(ahead: int, size: int) -> None:
    engines = [Double(ahead=ahead) for _ in range(2)]
    given = [batch(number, size) for number in range(7)]
    check(given, SpreadEngine(engines))
    assert all(engine.seen for engine in engines)
    assert sum(len(windows) for engine in engines for windows in engine.seen) == 7 * size


def test_every_device_has_a_part_of_every_batch() -> None:
    engines = [Double() for _ in range(3)]
    check([batch(0, 7), batch(1, 7)], SpreadEngine(engines))
    for engine in engines:
        assert sorted(len(windows) for windows in engine.seen) in ([2, 2], [2, 3], [3, 3])


def test_what_is_not_finite_is_told_in_its_place() -> None:
    given = batch(0, 5)
    given[3] = -1  # what these engines call not finite
    check([given], SpreadEngine([Double(), Double()]))


def test_results_come_in_order_whoever_is_faster() -> None:
    second_has_done = threading.Event()
    seen = 0

    def slow(windows: FloatArray) -> None:
        assert second_has_done.wait(10)

    def fast(windows: FloatArray) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            second_has_done.set()

    # The first part of all is held until the other device has done two.
    check([batch(number, 1) for number in range(6)], SpreadEngine([Double(slow), Double(fast)]))


def test_the_next_part_goes_to_whichever_device_has_the_least_to_do() -> None:
    crew = _Crew([Double(), Double(), Double()], FLOATS)  # its threads do not run

    def waiting() -> list[int]:
        return [tasks.qsize() for tasks in crew._tasks]

    for number in range(4):
        crew.deal(batch(number, 1))
    assert waiting() == [2, 1, 1]
    done = crew._tasks[2].get()
    assert done is not None
    crew._heard.put((done, None))
    crew.hear()
    assert done.whole.missing == 0
    crew.deal(batch(4, 1))
    assert waiting() == [2, 1, 1]


def test_what_waits_for_a_device_that_stops_is_not_begun() -> None:
    engine = Double()
    crew = _Crew([engine], FLOATS)  # its thread does not run
    for number in range(3):
        crew.deal(batch(number))
    crew.stop()
    crew._work(engine, crew._tasks[0], FLOATS)
    assert engine.seen == []


def test_an_engine_that_looks_ahead_leaves_the_end_to_its_thread() -> None:
    crew = _Crew([Double()], FLOATS)
    for number in range(2):
        crew.deal(batch(number))
    (tasks,) = crew._tasks
    tasks.put(None)
    first = tasks.get()
    assert first is not None
    assert [windows[0, 0, 0, 0] for windows in crew._windows(deque([first]), tasks)] == [0, 1]
    assert tasks.get(timeout=1) is None


def test_no_more_is_taken_than_two_parts_for_each_device() -> None:
    taken: list[int] = []

    def given() -> Iterator[FloatArray]:
        for number in range(20):
            taken.append(number)
            yield batch(number, 1)

    done = 0
    for _ in SpreadEngine([Double(), Double()]).stream(given(), dtype=FLOATS):
        assert len(taken) <= done + 4
        done += 1
    assert done == 20


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_comes_in_the_place_of_its_batch(failing: int, ahead: int) -> None:
    lost: list[int] = []

    def meddle(windows: FloatArray) -> None:
        if windows[0, 0, 0, 0] >= 2:
            lost.append(int(windows[0, 0, 0, 0]))
            raise FULL

    engines = [Double(ahead=ahead), Double(ahead=ahead)]
    engines[failing] = Double(meddle, ahead=ahead)
    results = SpreadEngine(engines).stream((batch(n) for n in range(50)), dtype=FLOATS)
    given: list[Results] = []
    with pytest.raises(torch.OutOfMemoryError) as caught:
        given.extend(results)
    assert caught.value is FULL
    # One that took a batch ahead has lost what it had not given, too.
    assert lost[0] - 2 * ahead <= len(given) <= lost[0] <= 4
    for number, taken in enumerate(given):
        np.testing.assert_array_equal(taken.values, 2.0 * batch(number))
    assert max(len(engine.seen) for engine in engines) < 10
    assert [thread for thread in threading.enumerate() if "device-" in thread.name] == []


def test_an_engine_that_cannot_even_begin_is_an_error() -> None:
    class Broken(Double):
        def stream(self, batches: Any, *, dtype: np.dtype) -> Iterator[Results]:
            raise ZeroDivisionError

    results = SpreadEngine([Double(), Broken()]).stream([batch(0), batch(1)], dtype=FLOATS)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_when_all_was_given_is_that_of_the_next_batch() -> None:
    ended = threading.Event()

    class Closing(Double):
        def stream(self, batches: Any, *, dtype: np.dtype) -> Iterator[Results]:
            yield from super().stream(batches, dtype=dtype)
            ended.set()  # because nothing waits for it
            raise ZeroDivisionError

    def given() -> Iterator[FloatArray]:
        yield batch(0, 1)
        assert ended.wait(10)
        yield batch(1, 1)

    results = SpreadEngine([Closing()]).stream(given(), dtype=FLOATS)
    np.testing.assert_array_equal(next(results).values, 2.0 * batch(0, 1))
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_whoever_gives_the_batches_stops_all() -> None:
    def broken() -> Iterator[FloatArray]:
        yield batch(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(SpreadEngine([Double(), Double()]).stream(broken(), dtype=FLOATS))


@pytest.mark.parametrize("leave", ["close", "interrupt", "forget"])
def test_whoever_leaves_early_stops_all_devices(leave: str) -> None:
    engines = [Double(ahead=1), Double(ahead=1)]
    results: Any = SpreadEngine(engines).stream((batch(n) for n in range(50)), dtype=FLOATS)
    next(results)
    if leave == "close":
        results.close()
    elif leave == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    del results
    assert max(len(engine.seen) for engine in engines) < 10
    assert all(engine.closed for engine in engines)


def test_nothing_begins_before_a_result_is_asked_for() -> None:
    engine = Double()
    results = SpreadEngine([engine]).stream([batch(0)], dtype=FLOATS)
    assert not engine.seen
    assert len(list(results)) == 1


# -- which devices ---------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, as far as anybody asks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.usefixtures("gpus")
def test_several_devices_are_named_with_commas() -> None:
    assert devices.pick_all("cuda:0,cuda:1") == GPUS
    assert devices.pick_all("gpu:1, gpu:0") == GPUS[::-1]
    assert devices.pick_all("cpu") == (CPU,)
    assert choice.pick_devices("auto", "cuda:1,cuda") == GPUS[::-1]
    assert choice.pick_devices("openvino", "auto") == (CPU,)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ("cuda:0,cuda:2", DeviceError, "no cuda:2 here: 2 CUDA devices found"),
        ("cuda:0,cpu", UsageError, "cpu cannot share the work: several devices are cuda:0,cuda:1"),
        ("cuda,gpu:0", UsageError, "--device cuda,gpu:0 names a device twice"),
        ("cuda:0,", UsageError, "no device '': use auto"),
    ],
)
def test_devices_that_cannot_share_the_work(wish: str, error: type, says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        devices.pick_all(wish)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="openvino runs on one device, not on"):
        choice.pick_devices("openvino", wish)


class OnCUDA(TorchEngine):
    """What opens in the place of an engine on CUDA."""

    def __init__(
        self, network: nn.Module, *, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        super().__init__(copy.deepcopy(network), device=CPU, dtype=torch.float32)
        self.opened = device, dtype, compiled


@pytest.fixture
def opened(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "CUDAEngine", OnCUDA)


def toy() -> Any:
    return as_model(FakeNetwork(FakeConfig(), lambda x: None))


@pytest.mark.usefixtures("opened")
def test_each_device_has_an_engine_in_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    network = toy().network
    one = choice.open_engine(network, device="cuda:1", compiled=True)
    assert isinstance(one.engine, OnCUDA)
    assert one.engine.opened == (GPUS[1], torch.bfloat16, True)
    assert (one.devices, one.note) == (GPUS[1:], "")

    both = choice.open_engine(network, device="cuda:0,cuda:1")
    assert isinstance(both.engine, SpreadEngine)
    assert both.devices == GPUS
    opened = [engine.opened for engine in both.engine._engines]  # type: ignore[attr-defined]
    assert opened == [(gpu, torch.bfloat16, False) for gpu in GPUS]

    # An older one beside a newer one: fp16 is what both have.
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: device == GPUS[0])
    mixed: Any = choice.open_engine(network, engine="torch", device="cuda:0,cuda:1").engine
    assert [engine.opened[1] for engine in mixed._engines] == [torch.float16] * 2


@pytest.mark.usefixtures("gpus")
def test_only_cuda_is_compiled_for() -> None:
    network = toy().network
    for engine in ("auto", "torch", "openvino"):
        with pytest.raises(UsageError, match="--compile makes CUDA faster, and not cpu: leave it"):
            choice.open_engine(network, engine=engine, device="cpu", compiled=True)
    with pytest.raises(UsageError, match="--compile makes CUDA faster, and not ONNX Runtime"):
        choice.open_engine(network, engine="onnxruntime", device="cuda", compiled=True)


# -- as users ask for it ---------------------------------------------------------------------------


@pytest.mark.usefixtures("opened")
def test_a_picture_on_two_devices_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2))
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2**33)
    runner = TiledRunner(model, device="cuda:0,cuda:1", tile_px=24)
    image = np.random.default_rng(0).random((70, 50, 3), dtype=np.float32)
    whole = TiledRunner(model, device="cpu", precision="fp32").run(image)
    np.testing.assert_allclose(runner.run(image), whole, atol=1e-6)
    assert runner.device == GPUS[0]
    upscaler = Upscaler(model=model, runner=runner)
    picture = Picture(pixels=np.zeros((9, 9, 3), dtype=np.uint8))
    assert upscaler.upscale(picture, Target(scale=2))[1].device == "cuda:0,cuda:1"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("-1", "cpu"),
        ("0", "gpu:0"),
        ("12", "gpu:12"),
        ("0,1", "gpu:0,gpu:1"),
        ("1, 0", "gpu:1,gpu:0"),
    ],
)
def test_numbers_of_gpus(text: str, device: str) -> None:
    assert upscale_run.parse_gpus(text) == device


@pytest.mark.parametrize("text", ["", "-2", "0,-1", "0,", "cuda", "²", "0;1"])
def test_numbers_that_are_no_gpus(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-g .*: give a number, several as 0,1, or -1 for the C"):
        upscale_run.parse_gpus(text)


def test_the_command_says_what_it_cannot_share_or_compile(tmp_path: Path) -> None:
    picture, model = save(tmp_path / "a.png"), tmp_path / "tiny.safetensors"
    network = SRVGGNetCompact(SRVGGNetCompactConfig(channels=4, convs=0, scale=2))
    checkpoints.save(network, model, metadata={})
    for options, code, says in (
        (["-g", "-1", "--compile"], 2, "--compile makes CUDA faster, and not cpu: leave it out"),
        (["-g", "x"], 2, "-g x is no GPU: give a number, several as 0,1, or -1 for the CPU"),
        (
            ["--device", "cpu,cpu"],
            2,
            "cpu cannot share the work: several devices are cuda:0,cuda:1",
        ),
    ):
        done = upscale(picture, "-m", model, *options)
        assert (done.exit_code, errors(done)) == (code, [f"error: {says}"])
    done = upscale(picture, "--compile")
    assert "nearest is no network:" in errors(done)[0]


# -- how pictures are cut --------------------------------------------------------------------------


def sizes(monkeypatch: pytest.MonkeyPatch, free: dict[torch.device, int], **how: Any) -> TileSizes:
    monkeypatch.setattr(devices, "free_bytes", free.__getitem__)
    return TileSizes(
        Double(),
        device=GPUS[0],
        halo_px=16,
        multiple=1,
        wished_px=how.pop("wished_px", None),
        **how,
    )


def test_pictures_are_cut_so_that_all_devices_have_done_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    much = dict.fromkeys(GPUS, 2**40)
    one, two = sizes(monkeypatch, much), sizes(monkeypatch, much, beside=GPUS[1:])
    assert len(one.plan(1000, 1000)) == 1
    shared = two.plan(1000, 1000)
    # Each device is shown little more than half: a side of 500 px, and the halo.
    assert len(shared) % 2 == 0
    assert len(shared) / 2 * math.prod(shared.window_px) <= 1000 * (1000 / 2 + 4 * 16)
    # What is small is shown to one device alone in less time than in parts with halos to two.
    assert len(two.plan(40, 40)) == 1
    wished = sizes(monkeypatch, much, beside=GPUS[1:], wished_px=1000)
    assert len(wished.plan(1000, 1000)) == 1


def test_the_smallest_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half of it, at 100 bytes a pixel, is 100×100 px at once.
    free = {GPUS[0]: 2**40, GPUS[1]: 2 * 100 * 100 * 100}
    alone = sizes(monkeypatch, free)
    assert alone.batch_size(alone.plan(1000, 1000)) == 2  # of a megapixel each
    shared = sizes(monkeypatch, free, beside=GPUS[1:])
    grid = shared.plan(1000, 1000)
    assert grid.window_px[0] * grid.window_px[1] <= 100 * 100
    assert shared.batch_size(grid) == 1
