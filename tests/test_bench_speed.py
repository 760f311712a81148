"""Speed: who runs when, what counts, and what is advised; time itself is a clock that tests set."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from benches import drawn
from torch import Tensor
from toys import FakeConfig, FakeNetwork, as_model, random_model

from waifu4x import devices, enlarging
from waifu4x.bench import speed
from waifu4x.bench.speed import measure, speed_race
from waifu4x.bench.speed.speed_advice import SpeedReport, SpeedRow
from waifu4x.bench.speed.speed_picture import natural_picture
from waifu4x.bench.speed.speed_race import MAX_ROUNDS, Entrant, Race
from waifu4x.errors import NumericsError, UsageError
from waifu4x.model_files.checkpoints import Model
from waifu4x.networks.srcnn import SRCNNConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig
from waifu4x.tiled import tile_sizes
from waifu4x.upscaler import Upscaler


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is installed: `test_bench_speed_engines` is about that."""
    monkeypatch.setattr(devices, "has_openvino", lambda: False)
    monkeypatch.setattr(devices, "has_onnxruntime", lambda: False)
    monkeypatch.setattr(speed, "natural_picture", drawn)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed_race, "perf_counter", clock)
    return clock


# The race.


@dataclass(kw_only=True, eq=False)
class Scripted(Entrant):
    """Takes the scripted seconds, the last of them for ever; an exception there is raised."""

    clock: Clock
    script: list[float | BaseException]
    log: list[str] = field(default_factory=list)

    def run(self) -> str:
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.log.append(self.name)
        if isinstance(step, BaseException):
            raise step
        self.clock.now_s += step
        return f"result of {self.name}"


def scripted(clock: Clock, name: str, *script: float | BaseException, **facts: Any) -> Scripted:
    return Scripted(name=name, clock=clock, script=list(script), **facts)


def test_entrants_run_in_turn_and_warm_ups_do_not_count(clock: Clock) -> None:
    race, log = Race(budget_s=1.0), []
    entrants = [
        scripted(clock, "A", 50.0, 1.0, 2.0, 3.0, 4.0, log=log),
        scripted(clock, "B", 60.0, 5.0, 6.0, 7.0, 8.0, log=log),
        scripted(clock, "C", 70.0, 0.1, 0.2, 0.3, 0.4, log=log),
    ]
    assert [race.enter(entrant) for entrant in entrants] == [f"result of {n}" for n in "ABC"]
    race.run()
    assert "".join(log) == "AABBCC" + "ABC" * 3
    assert [entrant.probe_s for entrant in entrants] == pytest.approx([1.0, 5.0, 0.1])
    for entrant, wanted in zip(entrants, ([2, 3, 4], [6, 7, 8], [0.2, 0.3, 0.4]), strict=True):
        assert entrant.times_s == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("budget_s", "rounds"),
    [
        (0.5, 3),  # at least
        (17.9, 3),  # warming up takes 6, a round 3: a fourth would end at 18
        (18.0, 4),
        (20.9, 4),
        (21.0, 5),
        (1e6, MAX_ROUNDS),
    ],
)
def test_as_many_rounds_as_the_budget_allows(clock: Clock, budget_s: float, rounds: int) -> None:
    race = Race(budget_s=budget_s)
    for name, seconds in (("A", 1.0), ("B", 2.0)):
        race.enter(scripted(clock, name, seconds))
    race.run()
    assert race.rounds == rounds
    assert [len(entrant.times_s) for entrant in race.entrants] == [rounds, rounds]
    assert race.spent_s == 6.0 + 3.0 * rounds


def test_the_longest_round_decides_whether_another_one_fits(clock: Clock) -> None:
    race = Race(budget_s=20.0)
    race.enter(scripted(clock, "A", 1.0, 1.0, 1.0, 12.0, 1.0))
    race.run()
    # 2 + 1 + 12 + 1 = 16, and 8 would be left by the mean, but not by the longest.
    assert race.rounds == 3


def test_the_budget_counts_from_the_beginning(clock: Clock) -> None:
    clock.now_s = 1000.0
    race = Race(budget_s=10.0)
    clock.now_s += 5.0
    race.enter(scripted(clock, "A", 0.5))
    race.run()
    assert race.rounds == 8  # 5 + 2 · 0.5 + 8 · 0.5 = 10


def test_the_hopelessly_slow_are_dropped_and_that_is_said(clock: Clock) -> None:
    race = Race(budget_s=1.0)
    yardstick = scripted(clock, "bicubic", 0.001)
    entrants = [
        scripted(clock, "fast", 2.0),
        scripted(clock, "three times", 6.0),
        scripted(clock, "more", 6.5),
        scripted(clock, "kept", 60.0, may_be_dropped=False),
    ]
    for entrant in (yardstick, *entrants):
        race.enter(entrant)
    race.drop_hopeless(entrants)
    race.run()
    assert [entrant.is_dropped for entrant in entrants] == [False, False, True, False]
    assert [len(entrant.times_s) for entrant in entrants] == [3, 3, 0, 3]
    assert entrants[2].note == (
        "left out of the rounds: its first run took 3.2 times as long as the fastest's"
    )
    assert (entrants[2].probe_s, entrants[1].note) == (6.5, "")


@pytest.mark.parametrize("script", [["E"], [1.0, "E"], [1.0, 1.0, "E"], [1.0, 1.0, 1.0, "E"]])
def test_who_fails_takes_no_further_part(clock: Clock, script: list[Any]) -> None:
    race, log = Race(budget_s=1.0), []
    error = RuntimeError("not implemented for 'Half'\nsee https://…")
    steps = [error if step == "E" else step for step in script]
    failing = scripted(clock, "F", *steps, log=log)
    results = [race.enter(e) for e in (scripted(clock, "A", 1.0, log=log), failing)]
    assert (results[1] is None) == (len(script) <= 2)
    race.drop_hopeless(race.entrants)
    race.run()
    assert (failing.probe_s, failing.times_s) == (None, [])
    assert failing.note == "not implemented for 'Half'"
    assert log.count("F") == len(script)
    assert len(race.entrants[0].times_s) == 3


def test_which_errors_are_failures(clock: Clock) -> None:
    race = Race(budget_s=1.0)
    for error, note in (
        (MemoryError(), "out of memory"),
        (NumericsError("toy gives NaN"), "toy gives NaN"),
    ):
        entrant = scripted(clock, "F", error)
        assert race.enter(entrant) is None
        assert entrant.note == note
    for error, may_fail in ((KeyboardInterrupt(), True), (RuntimeError("needed"), False)):
        with pytest.raises(type(error)):
            race.enter(scripted(clock, "F", error, may_fail=may_fail))
    late = scripted(clock, "late", 1.0, 1.0, 1.0, NumericsError("late"), may_fail=False)
    race = Race(budget_s=1.0)
    race.enter(late)
    with pytest.raises(NumericsError, match="late"):
        race.run()


def test_pauses_cost_nothing(clock: Clock) -> None:
    race = Race(budget_s=10.0)
    for _ in range(2):
        with race.paused():
            clock.now_s += 100.0
    race.enter(scripted(clock, "A", 1.0))
    race.run()
    assert (race.rounds, race.spent_s) == (8, 10.0)


def test_progress_says_what_and_how_much_of_the_budget(clock: Clock) -> None:
    told: list[tuple[str, float]] = []
    race = Race(budget_s=20.0, on_progress=lambda doing, share: told.append((doing, share)))
    for name in "AB":
        race.enter(scripted(clock, name, 2.0))
    race.run()
    race.tell("done")
    assert told == [
        ("warming up: A", 0.0),
        ("warming up: B", 0.2),
        ("round 1: A", 0.4),
        ("round 1: B", 0.5),
        ("round 2: A", 0.6),
        ("round 2: B", 0.7),
        ("round 3: A", 0.8),
        ("round 3: B", 0.9),
        ("done", 1.0),
    ]


# Rows, ratios and advice.


def row(flags: str, *times_s: float, **facts: Any) -> SpeedRow:
    words = [*flags.split(), "", ""]
    if "--precision" in words:
        facts.setdefault("precision", words[words.index("--precision") + 1])
    if "--tile" in words:
        facts.setdefault("tile_px", int(words[words.index("--tile") + 1]))
    facts = {"engine": "torch", "precision": "fp32", "tile_px": None, "megapixels": 6.0} | facts
    return SpeedRow(flags=flags, times_s=times_s, **({"probe_s": 1.0} | facts))


def report(*rows: SpeedRow, bicubic: SpeedRow | None = None) -> SpeedReport:
    return SpeedReport(
        model="toy",
        scale=2,
        device="cpu",
        device_name="2 threads",
        threads=2,
        input_px=(1000, 1500),
        output_px=(2000, 3000),
        budget_s=60.0,
        spent_s=50.0,
        bicubic=bicubic or row("", *[0.1] * 3, engine="numpy"),
        rows=rows,
    )


def test_speeds_and_ratios_by_hand() -> None:
    one, other = row("", 1.0, 10.0, 1.0), row("--tile 64", 2.0, 20.0, 30.0)
    assert one.megapixels_per_second == 6.0
    assert one.spread == (0.6, 6.0)
    assert other.megapixels_per_second == 0.3
    # Round by round, 2, 2 and 30: not 20 / 1, the ratio of the medians.
    assert one.ratios_to(other) == [2.0, 2.0, 30.0]
    assert one.ratio_to(other) == 2.0
    assert other.ratio_to(one) == 0.5
    assert one.ratio_to(one) == 1.0


def test_of_those_that_were_dropped_the_probe_is_known() -> None:
    auto = row("", 1.0, 1.0, 1.0, probe_s=2.0)
    dropped = row("--tile 64", probe_s=8.0)
    failed = row("--tile 512", probe_s=None)
    assert (dropped.rounds, dropped.megapixels_per_second, dropped.spread) == (0, 0.75, (0.75,) * 2)
    assert dropped.ratio_to(auto) == 0.25
    assert auto.ratio_to(dropped) == 4.0
    assert (failed.rounds, failed.megapixels_per_second, failed.spread) == (0, None, None)
    assert failed.ratio_to(auto) is auto.ratio_to(failed) is None
    assert not failed.is_faster_than(auto)
    # One slow probe of the automatic choice is no reason for advice.
    assert report(row("", 1.0, 1.0, 1.0, probe_s=99.0), dropped).advice[0].startswith("nothing: ")


AUTO = row("", 1.05, 1.05, 1.05, 1.05, used_tile_px=192, agreement_db=math.inf)


@pytest.mark.parametrize(
    ("times_s", "advice"),
    [
        (
            (1.1,) * 4,
            "nothing: the automatic choice, torch fp32 in tiles of 192 px, is the fastest here",
        ),
        (
            (1.05,) * 4,
            "nothing: the automatic choice, torch fp32 in tiles of 192 px, is the fastest h",
        ),
        (
            (1.001,) * 4,
            "nothing: the automatic choice, torch fp32 in tiles of 192 px, is within 5% of ",
        ),
        ((1.0,) * 4, "--tile 256: 1.05 times as fast as the automatic choice (1.05 to 1.05 in 4"),
        ((0.5,) * 4, "--tile 256: 2.10 times as fast as the automatic choice (2.10 to 2.10 in 4"),
        ((0.5, 1.0, 0.84, 9.0), "--tile 256: 1.15 times as fast as the automatic choice (0.12 to"),
        # Faster by the median, but in half of the rounds.
        ((0.5, 0.5, 1.05, 1.04), "nothing yet: --tile 256 was 1.55 times as fast as the automatic"),
    ],
)
def test_advice_at_its_thresholds(times_s: tuple[float, ...], advice: str) -> None:
    sentences = report(AUTO, row("--tile 256", *times_s)).advice
    assert len(sentences) == 1
    assert sentences[0].startswith(advice)


def test_what_is_not_certain_yet_says_how_often() -> None:
    (sentence,) = report(AUTO, row("--tile 256", 0.5, 0.5, 1.05, 1.04)).advice
    assert sentence == (
        "nothing yet: --tile 256 was 1.55 times as fast as the automatic choice, but faster by 5% "
        "in only 2 of 4 rounds; measure again, for longer"
    )


def test_fewer_flags_are_better_where_speed_is_the_same() -> None:
    exact = {"agreement_db": math.inf}
    shorter = row("--precision bf16", *[0.52] * 4, **exact)
    longer = row("--precision bf16 --tile 64", *[0.5] * 4, **exact)
    assert report(AUTO, shorter, longer).advice[0].startswith("--precision bf16: 2.02 times")
    shorter = row("--precision bf16", *[0.53] * 4, **exact)
    assert report(AUTO, shorter, longer).advice[0].startswith("--precision bf16 --tile 64: 2.10 ")
    # Of as many flags, the fastest.
    tiles = [row(f"--tile {n}", *[time] * 4) for n, time in ((64, 0.51), (96, 0.5), (128, 0.52))]
    assert report(AUTO, *tiles).advice[0].startswith("--tile 96: 2.10 times")


def test_a_precision_is_advised_from_50_db_on() -> None:
    good = row("--precision fp16", *[0.5] * 4, agreement_db=50.0)
    assert report(AUTO, good).advice == (
        "--precision fp16: 2.10 times as fast as the automatic choice (2.10 to 2.10 in 4 rounds)",
    )
    bad = row("--precision fp16", *[0.5] * 4, agreement_db=48.1308)  # 20 lg 255: one level
    assert report(AUTO, bad).advice == (
        "nothing: the automatic choice, torch fp32 in tiles of 192 px, is the fastest here",
        "not --precision fp16: 2.10 times as fast as the automatic choice, but it agrees with fp32 "
        "to 48.1 dB only (values differ by 1.0 of 255, root mean square)",
    )
    # Nobody need be warned of what is no faster.
    slow = row("--precision fp16", *[1.05] * 4, agreement_db=20.0)
    assert len(report(AUTO, slow).advice) == 1


def test_what_an_inexact_automatic_precision_costs() -> None:
    own = row("", *[1.0] * 4, precision="bf16", agreement_db=40.0, used_tile_px=64)
    exact = row("--precision fp32", *[3.0] * 4, agreement_db=math.inf)
    tiled = row("--tile 128", *[0.5] * 4, precision="bf16", agreement_db=40.0)
    # The tile makes it no worse than it is.
    assert report(exact, own, tiled).advice == (
        "--tile 128: 2.00 times as fast as the automatic choice (2.00 to 2.00 in 4 rounds)",
        "bf16, the automatic choice, agrees with fp32 to 40.0 dB only (values differ by 2.6 of "
        "255, root mean square): --precision fp32 takes 3.00 times as long",
    )
    failed = row("--precision fp32", probe_s=None)
    own = row("", *[1.0] * 4, precision="bf16", used_tile_px=64)
    other = row("--precision fp16", *[0.5] * 4)
    assert report(failed, own, other).advice == (
        "nothing: the automatic choice, torch bf16 in tiles of 64 px, is the fastest here",
        "not --precision fp16: 2.00 times as fast as the automatic choice, but it could not be "
        "compared with fp32, which failed",
    )


def test_the_fastest_exact_way_is_named() -> None:
    """Beside an inexact automatic choice, whichever engine it is by."""
    own = row("", *[1.0] * 4, engine="openvino", precision="bf16", agreement_db=40.0)
    exact = row("--engine torch --precision fp32", *[3.0] * 4, agreement_db=math.inf)
    faster = row("--precision fp32", *[2.0] * 4, engine="openvino", agreement_db=90.0)
    sentence = report(exact, faster, own).advice[1]
    assert sentence.endswith(": --precision fp32 takes 2.00 times as long")


@pytest.mark.parametrize(
    ("engine", "precision", "agreement_db", "is_allowed"),
    [
        ("torch", "bf16", 49.9, False),
        ("torch", "bf16", 50.0, True),
        ("torch", "bf16", None, False),
        ("openvino", "bf16", 20.0, True),  # it is what is done anyway
        ("openvino", "fp32", 20.0, False),
    ],
)
def test_another_engine_must_agree(
    engine: str, precision: str, agreement_db: float | None, is_allowed: bool
) -> None:
    own = row("", *[1.0] * 4, engine="openvino", precision="bf16", agreement_db=60.0)
    flags = f"--engine {engine} --precision {precision} --tile 64"
    other = row(flags, *[0.5] * 4, engine=engine, agreement_db=agreement_db)
    assert report(own, other).advice[0].startswith(flags) == is_allowed
    # What is no worse than what is done anyway is no loss.
    own = dataclasses.replace(own, agreement_db=49.0)
    assert report(own, other).advice[0].startswith(flags) == (is_allowed or agreement_db == 49.9)


@pytest.mark.parametrize(
    ("loss_db", "is_named"),
    [(-0.01, True), (0.0, True), (0.05, True), (0.0501, False), (None, False)],
)
def test_int8_is_named_up_to_a_loss(loss_db: float | None, is_named: bool) -> None:
    own = row("", *[1.0] * 4, engine="openvino", precision="bf16", agreement_db=60.0)
    for times_s in ([0.5] * 4, [0.5, 0.5, 1.0, 1.0]):
        int8 = row("--precision int8", *times_s, agreement_db=40.0, loss_db=loss_db)
        made = dataclasses.replace(report(own, int8), truth=("a", "b"))
        said = " ".join(made.advice)
        assert ("int8" in said) == is_named
        if is_named:
            verb = "gains" if loss_db == -0.01 else "loses"
            assert said.endswith(
                f"; it {verb} {abs(loss_db or 0.0):.3f} dB of PSNR on the worst of a, b"
            )


def test_facts_are_plain_json() -> None:
    own = row("", 1.0, 2.0, 3.0, precision="bf16", agreement_db=55.0, used_tile_px=64, waste=1.5)
    exact = row("--precision fp32", 2.0, 2.0, 6.0, agreement_db=math.inf)
    failed = row("--precision fp16", probe_s=None, note="not here")
    bicubic = row("", 0.5, 0.5, 0.5, engine="numpy")
    made = report(exact, failed, own, bicubic=bicubic)
    facts = json.loads(json.dumps(made.facts(), allow_nan=False))
    assert (facts["input_size"], facts["output_size"]) == ([1000, 1500], [2000, 3000])
    assert facts["rounds"] == 3
    assert facts["advice"] == list(made.advice)
    first, second, third = facts["rows"]
    assert (first["agreement_db"], first["equals_fp32"]) == (None, True)
    assert (second["agreement_db"], second["equals_fp32"]) == (None, None)
    assert (second["note"], second["megapixels_per_second"]) == ("not here", None)
    assert second["ratio_to_fp32"] is second["slowest"] is None
    assert third == {
        "flags": "",
        "engine": "torch",
        "precision": "bf16",
        "tile": None,
        "used_tile": 64,
        "megapixels_per_second": 3.0,
        "slowest": 2.0,
        "fastest": 6.0,
        "ratio_to_bicubic": 0.25,
        "ratio_to_fp32": 2.0,
        "ratio_to_automatic": 1.0,
        "waste": 1.5,
        "agreement_db": 55.0,
        "equals_fp32": False,
        "loss_db": None,
        "ready_s": None,
        "rounds": 3,
        "note": "",
    }


# Measuring a network whose every pass takes what the test says.

WINDOW_S, PX_S, BICUBIC_S = 0.001, 1e-6, 0.5
Meddle = Callable[[Tensor], Tensor | None]


@pytest.fixture
def timed_toy(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """Makes toy models that take WINDOW_S a window and `factors[precision]` · PX_S a pixel."""

    def resized(*args: Any, **kwargs: Any) -> Any:
        clock.now_s += BICUBIC_S
        return resize(*args, **kwargs)

    def make(
        *,
        fast_bf16: bool,
        fp32: float = 1.0,
        bf16: float = 1.0,
        radius_px: int = 0,
        meddle: Meddle = lambda x: None,
    ) -> Model:
        monkeypatch.setattr(devices, "has_fast_bf16", lambda device: fast_bf16)

        def wait(x: Tensor) -> Tensor | None:
            factor = bf16 if torch.is_autocast_enabled("cpu") else fp32
            clock.now_s += len(x) * WINDOW_S + x[:, 0].numel() * factor * PX_S
            return meddle(x)

        return as_model(FakeNetwork(FakeConfig(receptive_radius_px=radius_px), wait))

    resize = enlarging.resize
    monkeypatch.setattr(enlarging, "resize", resized)
    # By far the best tiles are of 128 px, with a halo of 8.
    monkeypatch.setattr(tile_sizes, "_CPU_CURVE", {100: 1.5, 144: 1.0, 256: 2.0})
    return make


def seconds(windows: int, side_px: int, factor: float = 1.0) -> float:
    return windows * (WINDOW_S + side_px**2 * factor * PX_S)


def by_flags(made: SpeedReport) -> dict[str, SpeedRow]:
    return {row.flags: row for row in made.rows}


def test_precisions_then_tiles_of_the_best(timed_toy: Callable[..., Model]) -> None:
    told: list[str] = []
    made = measure(
        timed_toy(fast_bf16=True, fp32=4.0, radius_px=8),
        scale=2,
        device="cpu",
        size_px=(256, 256),
        budget_s=9.0,
        on_progress=lambda doing, share: told.append(doing),
    )
    # Explicit tiles of 128 and 192 px are the same as automatic ones, and larger ones as 256.
    rows = by_flags(made)
    tiles = {"--tile 64": (16, 80), "--tile 96": (9, 102), "": (4, 144), "--tile 256": (1, 256)}
    assert list(rows) == [
        "--precision fp32",
        "--precision fp16",
        "",
        *list(tiles)[:2],
        *[*tiles][3:],
    ]
    for flags, cut in tiles.items():
        assert rows[flags].times_s == pytest.approx([seconds(*cut)] * made.rounds)
        assert (rows[flags].precision, rows[flags].rounds) == ("bf16", made.rounds)
        assert rows[flags].waste == pytest.approx(cut[0] * cut[1] ** 2 / 256**2)
        assert rows[flags].agreement_db == math.inf
    assert [row.used_tile_px for row in made.rows] == [128, None, 128, 64, 86, 256]
    assert made.bicubic.megapixels_per_second == pytest.approx(512 * 512 / 1e6 / BICUBIC_S)
    assert made.automatic is rows[""]
    assert made.automatic.ratio_to(made.bicubic) == pytest.approx(BICUBIC_S / seconds(4, 144))
    # fp32 stays in, though it takes five times as long as the fastest.
    assert made.fp32.ratio_to(rows["--tile 256"]) == pytest.approx(
        seconds(1, 256) / seconds(4, 144, 4.0)
    )
    assert rows["--precision fp16"].rounds == 0
    assert rows["--precision fp16"].note.startswith("fp16 does not pay on a CPU")
    assert made.advice == (
        "--tile 256: 1.31 times as fast as the automatic choice (1.31 to 1.31 in 5 rounds)",
    )
    tiled = [f"torch bf16 in tiles of {n} px" for n in (64, 96, 256)]
    names = ["bicubic", "torch fp32", "torch bf16", *tiled]
    assert told[8:] == [f"round {n}: {name}" for n in (1, 2, 3, 4, 5) for name in names] + ["done"]
    warmed = ["bicubic", "torch fp32", "torch fp16"]
    assert told[:4] == ["getting ready", *(f"warming up: {name}" for name in warmed)]
    assert (made.input_px, made.output_px, made.device) == ((256, 256), (512, 512), "cpu")
    assert (made.notes, made.threads) == ((), 1)
    assert 8.0 < made.spent_s <= 9.0


def test_a_better_precision_than_the_automatic_one(timed_toy: Callable[..., Model]) -> None:
    """As fp16 on an Apple GPU may be."""
    toy = timed_toy(fast_bf16=False, bf16=0.5)
    made = measure(toy, scale=2, device="cpu", size_px=(96, 96), budget_s=8.0)
    assert [row.flags for row in made.rows] == [
        "",
        "--precision fp16",
        "--precision bf16",
        "--precision bf16 --tile 64",
    ]
    assert made.fp32 is made.automatic
    ratio = seconds(1, 96) / seconds(1, 96, 0.5)
    assert made.advice[0].startswith(f"--precision bf16: {ratio:.2f} times as fast")


def test_an_inexact_precision_is_not_built_upon(timed_toy: Callable[..., Model]) -> None:
    def spoil(x: Tensor) -> Tensor | None:
        return torch.full((), 0.02) if torch.is_autocast_enabled("cpu") else None

    toy = timed_toy(fast_bf16=False, bf16=0.1, meddle=spoil)
    made = measure(toy, scale=2, device="cpu", size_px=(96, 96), budget_s=8.0)
    assert by_flags(made)["--tile 64"].precision == "fp32"
    # 0.02 is 5.1 levels, and what is rounded to 5 or 6 and clipped at white makes no difference.
    assert by_flags(made)["--precision bf16"].agreement_db == pytest.approx(34.0, abs=0.4)
    assert made.advice[0].startswith("nothing: the automatic choice, torch fp32 in tiles of 96 px")
    assert made.advice[1].startswith("not --precision bf16: ")


def test_what_is_hopeless_runs_twice_only(timed_toy: Callable[..., Model]) -> None:
    """As bf16 where it is emulated."""
    made = measure(
        timed_toy(fast_bf16=False, bf16=50.0),
        scale=2,
        device="cpu",
        size_px=(96, 96),
        budget_s=4.0,
    )
    emulated = by_flags(made)["--precision bf16"]
    assert (emulated.rounds, emulated.probe_s) == (0, pytest.approx(seconds(1, 96, 50.0)))
    assert emulated.note.startswith("left out of the rounds: its first run took 45.2 times")
    assert emulated.ratio_to(made.fp32) == pytest.approx(1 / 45.2, rel=0.01)
    # In time that three rounds of it would have taken.
    assert by_flags(made)["--tile 64"].rounds == made.rounds


def test_hopeless_tiles_run_twice_only(timed_toy: Callable[..., Model]) -> None:
    toy = timed_toy(fast_bf16=False, radius_px=32)
    made = measure(toy, scale=2, device="cpu", size_px=(256, 256), budget_s=8.0)
    small = by_flags(made)["--tile 64"]
    assert (small.rounds, small.probe_s) == (0, pytest.approx(seconds(16, 128)))
    assert (small.waste, small.used_tile_px, small.agreement_db) == (4.0, 64, math.inf)


def test_what_fails_says_why(timed_toy: Callable[..., Model]) -> None:
    def meddle(x: Tensor) -> Tensor | None:
        if x.shape[2] > 200:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")
        return torch.full((), torch.nan) if torch.is_autocast_enabled("cpu") else None

    toy = timed_toy(fast_bf16=False, meddle=meddle)
    rows = by_flags(measure(toy, scale=2, device="cpu", size_px=(256, 256), budget_s=8.0))
    assert rows["--tile 256"].megapixels_per_second is None
    assert rows["--tile 256"].note.startswith("cpu has not enough memory for tiles of 256 px")
    assert rows["--precision bf16"].note.startswith("toy gives NaN or infinity in bf16")
    assert rows["--tile 64"].rounds >= 3


def test_the_automatic_choice_must_work(timed_toy: Callable[..., Model]) -> None:
    toy = timed_toy(fast_bf16=True, meddle=lambda x: torch.full((), torch.nan))
    with pytest.raises(NumericsError, match="toy gives NaN or infinity in fp32"):
        measure(toy, scale=2, device="cpu", size_px=(32, 32), budget_s=8.0)


def test_what_was_decided_on_the_way_is_noted(timed_toy: Callable[..., Model]) -> None:
    def meddle(x: Tensor) -> Tensor | None:
        return torch.full((), torch.nan) if torch.is_autocast_enabled("cpu") else None

    toy = timed_toy(fast_bf16=True, meddle=meddle)
    made = measure(toy, scale=2, device="cpu", size_px=(32, 32), budget_s=8.0)
    assert (
        made.automatic.note == "bf16 gave NaN or infinity: such tiles were computed again in fp32"
    )


def test_tiles_beyond_memory_are_not_tried(
    timed_toy: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory_bytes(self: Upscaler, header: Any, size_px: tuple[int, int]) -> int:
        assert (header.width_px, header.height_px, size_px) == (256, 256, (512, 512))
        assert self.runner is not None
        return 10**18 if self.runner.plan(256, 256).core_px > 128 else 1

    seen: list[tuple[int, int]] = []
    toy = timed_toy(fast_bf16=False, meddle=lambda x: seen.append(tuple(x.shape[2:])))
    monkeypatch.setattr(Upscaler, "memory_bytes", memory_bytes)
    made = measure(toy, scale=2, device="cpu", size_px=(256, 256), budget_s=8.0)
    large = by_flags(made)["--tile 256"]
    assert (large.note, large.megapixels_per_second) == (
        "not tried: by estimate it takes more than half of the free memory",
        None,
    )
    assert (256, 256) not in seen
    assert by_flags(made)["--tile 96"].rounds >= 3


def test_a_short_budget_keeps_the_tiles_next_to_the_automatic(
    timed_toy: Callable[..., Model],
) -> None:
    # Two runs and three rounds of bicubic, fp32 and bf16 take 5 · (0.5 + 2 · 0.0695) = 3.2 s, the
    # same of one tile 0.35 s.
    toy = timed_toy(fast_bf16=True)
    made = measure(toy, scale=2, device="cpu", size_px=(256, 256), budget_s=3.7)
    short = "not tried: 3.7 s are too short for it"
    notes = {row.tile_px: row.note for row in made.rows if row.tile_px}
    assert notes == {64: short, 96: "", 256: short}
    assert made.rounds == 3
    assert made.notes == ()
    made = measure(toy, scale=2, device="cpu", size_px=(256, 256), budget_s=1.0)
    assert {row.note for row in made.rows if row.tile_px} == {"not tried: 1 s are too short for it"}
    assert made.notes == (
        f"the least there is to measure took {made.spent_s:.3g} s, more than the 1 s it was given",
    )
    assert made.spent_s == pytest.approx(3.2, abs=0.01)


@pytest.mark.parametrize("cold_s", [0.0, 1.0])
def test_the_picture_is_as_large_as_the_budget_allows(
    timed_toy: Callable[..., Model], clock: Clock, cold_s: float
) -> None:
    colds = [cold_s]

    def meddle(x: Tensor) -> None:
        clock.now_s += colds.pop() if colds else 0.0

    # A sixtieth of it is 0.12 s. 192 px take 0.038 s, so 256 px about 0.067 s; those take 0.07 s,
    # so 384 px 0.156 s.
    toy = timed_toy(fast_bf16=False, meddle=meddle)
    made = measure(toy, scale=2, device="cpu", budget_s=7.2)
    assert made.input_px == (256, 256)
    # A tile that holds all of it would say nothing of larger pictures.
    assert [row.tile_px for row in made.rows if row.tile_px] == [64, 96]
    assert made.notes == (
        "tiles of more than 128 px were not compared: that takes a larger picture, and more than "
        "7.2 s",
    )
    assert made.spent_s <= 7.2


def test_the_picture_fits_into_memory(
    timed_toy: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory_bytes(self: Upscaler, header: Any, size_px: tuple[int, int]) -> int:
        return 10**18 if header.width_px >= 192 else 1

    monkeypatch.setattr(Upscaler, "memory_bytes", memory_bytes)
    toy = timed_toy(fast_bf16=False)
    assert measure(toy, scale=2, device="cpu", budget_s=4.0).input_px == (128, 128)


@pytest.mark.parametrize(
    "wish",
    [
        {"scale": 0},
        {"budget_s": 0.0},
        {"budget_s": math.nan},
        {"budget_s": math.inf},
        {"size_px": (0, 5)},
    ],
)
def test_wishes_that_make_no_sense(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        measure("bicubic", **({"scale": 2, "size_px": (8, 8)} | wish))


# With the real clock.


def test_a_real_network() -> None:
    toy = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2))
    made = measure(toy, scale=2, device="cpu", budget_s=0.5)
    assert made.rounds >= 3
    assert made.input_px[0] in speed.PICTURE_SIDES_PX
    assert (made.fp32.rounds, made.automatic.rounds) == (made.rounds, made.rounds)
    assert made.fp32.agreement_db == math.inf
    (bf16,) = [row for row in made.rows if row.precision == "bf16" and row.tile_px is None]
    assert bf16.agreement_db is not None
    assert 30.0 < bf16.agreement_db < 90.0
    for row in (made.bicubic, made.fp32, made.automatic):
        assert row.spread is not None
        assert 0.0 < row.spread[0] <= (row.megapixels_per_second or 0.0) <= row.spread[1]
    assert made.advice
    json.dumps(made.facts(), allow_nan=False)


@pytest.mark.parametrize("config", [SRCNNConfig(channels=(4, 4)), VDSRConfig(depth=3, channels=4)])
def test_networks_that_are_given_an_enlarged_picture(config: Any) -> None:
    toy = random_model(config, scales=(2, 3, 4))
    made = measure(toy, scale=4, device="cpu", size_px=(40, 24), budget_s=0.2)
    assert made.output_px == (160, 96)
    # What is cut is the enlarged picture.
    assert made.automatic.used_tile_px == 160
    assert 64 in {row.used_tile_px for row in made.rows} | {row.tile_px for row in made.rows}
    assert made.automatic.rounds == made.rounds
    made = measure(toy, scale=4, device="cpu", budget_s=0.1)
    assert made.notes[0].startswith(f"tiles of more than {made.output_px[0] // 2} px were not")


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
def test_filters(name: Any) -> None:
    made = measure(name, scale=3, size_px=(32, 24), budget_s=5.0)
    (only,) = made.rows
    assert (made.model, made.device, made.threads) == (name, "cpu", None)
    assert (only.engine, only.flags, only.tile_px, only.used_tile_px) == ("numpy", "", None, None)
    assert only.megapixels == 96 * 72 / 1e6
    ratio = only.ratio_to(made.bicubic)
    assert ratio == 1.0 if name == "bicubic" else (ratio or 0.0) > 0.0
    assert made.advice == (f"nothing: {name} is no network, and no flag changes its speed",)
    assert made.notes == ()
    json.dumps(made.facts(), allow_nan=False)


def test_the_picture_is_always_the_same_one() -> None:
    one = natural_picture(50, 40).pixels
    assert (one.shape, one.dtype) == ((40, 50, 3), np.uint8)
    assert np.array_equal(one, natural_picture(50, 40).pixels)
    assert not np.array_equal(one, natural_picture(50, 40, seed=1).pixels)
    assert natural_picture(1, 1).pixels.shape == (1, 1, 3)
    # It fills the range, has flat places and edges, and is grainy.
    large = natural_picture(128, 128).pixels.astype(np.int64)
    steps = np.abs(np.diff(large, axis=1))
    assert large.std() > 40.0
    assert 1 <= np.median(steps) < 12
    assert np.percentile(steps, 99) > 60
