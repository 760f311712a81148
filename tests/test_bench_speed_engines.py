"""Speed of several engines: which take part, what they cost, and when int8 is named."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benches import drawn, three_pictures
from benches import measure as measured
from benches import unswept as unswept
from PIL import Image
from torch import nn
from toys import FakeConfig, FakeNetwork, as_model, random_model
from typer.testing import CliRunner

from waifu4x import devices, enlarging
from waifu4x.bench import speed
from waifu4x.bench.sets import DataSet, open_set
from waifu4x.bench.speed import measure, speed_openers, speed_race, speed_truth
from waifu4x.bench.speed.speed_advice import SpeedReport, SpeedRow
from waifu4x.catalog import DEFAULT_MODEL
from waifu4x.cli import bench_speed
from waifu4x.cli.app import app
from waifu4x.engines import FloatArray, Opened, Results, choice
from waifu4x.engines.torch import TorchEngine
from waifu4x.errors import DeviceError, NumericsError, UsageError
from waifu4x.models import conversions_folder
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.upscaler import Upscaler

CONVERSION_S = 100.0
LEVEL = 1.0 / 255.0
SECONDS = {
    ("torch", "fp32"): 0.4,
    ("torch", "bf16"): 0.2,
    ("openvino", "fp32"): 0.3,
    ("openvino", "bf16"): 0.1,
    ("openvino", "int8"): 0.05,
    ("onnxruntime", "fp32"): 0.35,
}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed_race, "perf_counter", clock)
    return clock


class Scripted(TorchEngine):
    """torch's fp32 under another name: 96×96 px take some seconds of the clock, and all values are
    shifted by some levels."""

    def __init__(
        self, network: nn.Module, clock: Clock, *, name: str, precision: str, shift: float
    ) -> None:
        super().__init__(network, device=torch.device("cpu"), dtype=torch.float32)
        self.name, self.precision = name, precision
        self._clock, self._shift = clock, np.float32(shift)

    def stream(self, batches: Iterable[FloatArray], *, dtype: np.dtype) -> Iterator[Results]:
        for batch in batches:
            self._clock.now_s += SECONDS[self.name, self.precision] * batch[..., 0].size / 96**2
            values = self.run(batch) + self._shift
            yield Results(values, np.isfinite(values).all(axis=(1, 2, 3)))


@pytest.fixture
def scripted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts all engines in place, int8 shifted by `int8_levels`; OpenVINO is the automatic one."""

    def put(*, int8_levels: float = 0.0, lacking: tuple[str, str] | None = None) -> None:
        def open_engine(
            network: nn.Module, *, engine: str, precision: str, **choices: Any
        ) -> Opened:
            assert choices["device"] == "cpu"
            name = "openvino" if engine == "auto" else engine
            automatic = "fp32" if name == "onnxruntime" else "bf16"
            kind = automatic if precision == "auto" else precision
            if (name, kind) == lacking or (name, kind) not in SECONDS:
                raise DeviceError(f"{name} has no {kind} on this CPU")
            clock.now_s += 0.0 if name == "torch" else CONVERSION_S
            shift = int8_levels * LEVEL if kind == "int8" else 0.0
            made = Scripted(network, clock, name=name, precision=kind, shift=shift)
            return Opened(made, (torch.device("cpu"),))

        monkeypatch.setattr(choice, "open_engine", open_engine)

    def resized(*arguments: Any, **options: Any) -> Any:
        clock.now_s += 0.01
        return resize(*arguments, **options)

    resize = enlarging.resize
    monkeypatch.setattr(enlarging, "resize", resized)
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(devices, "has_openvino", lambda: True)
    monkeypatch.setattr(devices, "has_onnxruntime", lambda: True)
    monkeypatch.setattr(devices, "has_nncf", lambda: True)
    monkeypatch.setattr(speed, "natural_picture", drawn)
    return put


def toy() -> Any:
    """It doubles each pixel, 10 levels too bright."""
    return as_model(FakeNetwork(FakeConfig(), lambda x: torch.tensor(10.0 * LEVEL)))


def flat(folder: Path, level: int) -> DataSet:
    """A set of one gray picture."""
    folder.mkdir()
    Image.new("RGB", (24, 20), (level,) * 3).save(folder / "a.png")
    return open_set(folder)


def run(**options: Any) -> SpeedReport:
    wish: dict[str, Any] = {"scale": 2, "device": "cpu", "size_px": (96, 96), "budget_s": 6.0}
    return measure(toy(), **(wish | options))


def by_flags(made: SpeedReport) -> dict[str, SpeedRow]:
    return {row.flags: row for row in made.rows}


# Who takes part.


def test_every_engine_in_each_of_its_precisions(scripted: Callable[..., None]) -> None:
    scripted()
    told: list[str] = []
    made = run(on_progress=lambda doing, share: told.append(doing))
    rows = by_flags(made)
    ways = {flags: (row.engine, row.precision) for flags, row in rows.items()}
    # What an engine takes by itself needs no --precision.
    assert ways == {
        "--engine torch --precision fp32": ("torch", "fp32"),
        "--engine torch --precision fp16": ("torch", "fp16"),
        "--engine torch": ("torch", "bf16"),
        "--precision fp32": ("openvino", "fp32"),
        "": ("openvino", "bf16"),
        "--precision int8": ("openvino", "int8"),
        "--engine onnxruntime": ("onnxruntime", "fp32"),
        "--precision int8 --tile 64": ("openvino", "int8"),
    }
    assert made.automatic is rows[""]
    assert made.fp32 is rows["--engine torch --precision fp32"]
    assert rows["--precision fp32"].ratio_to(made.fp32) == pytest.approx(0.4 / 0.3)
    # fp32 of torch stays in, by which others are judged; of others it would be three times as slow.
    # Torch's stays in, because others are judged by it; other fp32 takes more than three times as
    # long as int8.
    racing = [flags for flags, row in rows.items() if row.rounds == made.rounds]
    assert racing == [
        "--engine torch --precision fp32",
        "",
        "--precision int8",
        "--precision int8 --tile 64",
    ]
    assert {row.agreement_db for row in made.rows if row.probe_s} == {math.inf}
    assert told.index("getting ready: openvino int8") > told.index("warming up: openvino int8")


def test_conversions_are_told_and_cost_nothing(scripted: Callable[..., None]) -> None:
    scripted()
    made = run(folder=Path("kept"), truth=())
    ready = {f"{row.engine} {row.precision}": row.ready_s for row in made.rows if row.ready_s}
    # Explicit tiles are by the same engine as automatic ones.
    assert ready == dict.fromkeys(
        ["openvino fp32", "openvino bf16", "openvino int8", "onnxruntime fp32"], CONVERSION_S
    )
    assert made.spent_s <= 6.0
    assert max(max(row.times_s, default=0.0) for row in made.rows) < 1.0
    told = "openvino fp32 100 s, openvino bf16 100 s, openvino int8 100 s, onnxruntime fp32 100 s"
    assert made.notes == (f"to get ready, in no round: {told}; what was converted is kept",)


def test_what_cannot_run_says_why(scripted: Callable[..., None]) -> None:
    scripted(lacking=("openvino", "int8"))
    made = run()
    failed = by_flags(made)["--precision int8"]
    assert (failed.note, failed.megapixels_per_second) == ("openvino has no int8 on this CPU", None)
    assert failed.loss_db is failed.ready_s is None
    assert (made.truth, "int8" in " ".join((*made.notes, *made.advice))) == ((), False)


@pytest.mark.parametrize(
    ("device", "wish", "installed", "engines"),
    [
        ("cpu", "auto", "openvino nncf onnxruntime", "torch openvino int8 onnxruntime"),
        ("cpu", "auto", "openvino onnxruntime", "torch openvino onnxruntime"),
        ("cpu", "auto", "nncf", "torch"),
        # Beside a GPU that is taken, an engine for the CPU is none to choose.
        ("cuda", "auto", "openvino nncf onnxruntime", "torch"),
        ("cuda", "cuda:0", "openvino nncf onnxruntime", "torch onnxruntime"),
        ("xpu", "auto", "openvino nncf onnxruntime", "torch openvino"),
        ("xpu", "xpu", "openvino nncf onnxruntime", "openvino"),
    ],
)
def test_who_is_asked(
    monkeypatch: pytest.MonkeyPatch, device: str, wish: str, installed: str, engines: str
) -> None:
    monkeypatch.setattr(devices, "has_openvino", lambda: "openvino" in installed)
    monkeypatch.setattr(devices, "has_onnxruntime", lambda: "onnxruntime" in installed)
    monkeypatch.setattr(devices, "has_nncf", lambda: "nncf" in installed)
    opener = speed_openers.Opener(model=toy(), device=wish, folder=None)
    runner: Any = SimpleNamespace(device=torch.device(device))
    found = list(speed_openers.choices(opener, runner))
    assert found[0] == ("openvino" if wish == "xpu" else "torch", "fp32")
    # What torch computes on the CPU beside an Intel GPU is what others are compared with.
    assert (("torch", "bf16") in found) == (device != "xpu")
    assert (("openvino", "fp16") in found) == (device == "xpu")
    named = dict.fromkeys(p if p == "int8" else engine for engine, p in found)
    assert list(named) == engines.split()


def test_the_precisions_of_every_engine_are_known() -> None:
    assert set(speed_openers.PRECISIONS) == set(devices.ENGINES) - {"auto"}


def test_a_graph_has_one_engine_and_its_own_precision(
    scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted()
    monkeypatch.setitem(SECONDS, ("onnxruntime", "fp16"), 0.2)
    original = choice.open_engine

    def open_engine(network: nn.Module, *, engine: str, precision: str, **rest: Any) -> Opened:
        assert (engine, precision) == ("onnxruntime", "auto")
        return original(network, engine=engine, precision="fp16", **rest)

    monkeypatch.setattr(choice, "open_engine", open_engine)
    graph = dataclasses.replace(toy(), architecture="onnx")
    made = measure(graph, scale=2, device="cpu", size_px=(96, 96), budget_s=6.0)
    assert [row.flags for row in made.rows] == ["", "--tile 64"]
    assert made.fp32 is made.automatic
    assert (made.automatic.precision, made.automatic.agreement_db) == ("fp16", None)
    assert made.advice[0].startswith("nothing: the automatic choice, onnxruntime fp16 in tiles of ")


# What int8 costs.


@pytest.mark.parametrize(
    ("levels", "loss_db"),
    [
        # torch makes 110 of 100: luma 110 instead of 102. 109 is of luma 110 too, 111 of 111.
        (-1.0, 0.0),
        (1.0, 20.0 * math.log10(9 / 8)),
    ],
)
def test_int8_is_named_where_it_loses_next_to_nothing(
    scripted: Callable[..., None], tmp_path: Path, levels: float, loss_db: float
) -> None:
    scripted(int8_levels=levels)
    made = run(truth=[flat(tmp_path / "flat", 100)])
    row = by_flags(made)["--precision int8"]
    assert row.loss_db == pytest.approx(loss_db, abs=1e-9)
    # One level, but where white is white: that alone would be too much.
    assert row.agreement_db == pytest.approx(48.13, abs=0.1)
    tiled = [row for row in made.rows if row.tile_px is not None]
    assert made.truth == ("flat",)
    if loss_db > 0.05:
        assert {row.precision for row in tiled} == {"bf16"}
        (advice,) = made.advice
        assert advice.startswith("nothing: the automatic choice, openvino bf16 in tiles of 96 px")
        assert "int8" not in advice
        assert made.notes[-1] == (
            "openvino int8 loses 1.023 dB of PSNR on flat: it is not advised above 0.05 dB"
        )
    else:
        assert {(row.precision, row.loss_db) for row in tiled} == {("int8", row.loss_db)}
        (advice,) = made.advice
        assert advice.startswith("--precision int8: 2.00 times as fast as the automatic choice (2.")
        assert advice.endswith(" rounds); it loses 0.000 dB of PSNR on flat")
        assert "int8 loses" not in " ".join(made.notes)


def test_the_worst_set_counts(scripted: Callable[..., None], tmp_path: Path) -> None:
    scripted(int8_levels=1.0)
    sets = [flat(tmp_path / "A", 103), flat(tmp_path / "B", 100), flat(tmp_path / "C", 103)]
    made = run(truth=sets)
    # 103 is of luma 104, 113 of 113 and 114 of 114: it loses 0.92 dB there.
    assert by_flags(made)["--precision int8"].loss_db == pytest.approx(20 * math.log10(9 / 8))
    assert made.notes[-1].startswith("openvino int8 loses 1.023 dB of PSNR on the worst of A, B, C")


def test_without_truth_int8_is_not_named(
    scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted()
    monkeypatch.setattr(speed, "example_set", lambda *, scale: None)
    made = run()
    assert by_flags(made)["--precision int8"].rounds == made.rounds
    assert "int8" not in " ".join(made.advice)
    assert made.truth == ()
    assert made.notes[-1] == (
        "what openvino int8 loses could not be measured, so that it is not advised: name a folder "
        "of pictures"
    )


def test_int8_that_fails_on_true_pictures_gives_up(
    scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss_db(*_: Any, **__: Any) -> float:
        raise NumericsError("toy gives NaN")

    scripted()
    monkeypatch.setattr(speed_truth, "loss_db", loss_db)
    row = by_flags(run())["--precision int8"]
    assert (row.note, row.rounds, row.megapixels_per_second) == ("toy gives NaN", 0, None)


def test_true_pictures_that_are_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small to measure at x12"):
        measure("bicubic", scale=12, truth=[flat(tmp_path / "flat", 9)])


def test_the_loss_is_that_of_the_benchmark(tmp_path: Path) -> None:
    folder, told = three_pictures(tmp_path / "Set3"), []
    exact, other = Upscaler(model="bicubic"), Upscaler(model="nearest")
    found = speed_truth.loss_db(exact, other, open_set(folder), scale=2, on_picture=told.append)
    means = [measured(name, folder, scale=2).mean("psnr") or 0.0 for name in ("bicubic", "nearest")]
    assert found == pytest.approx(means[0] - means[1], abs=1e-9)
    assert found > 0.1
    assert told == ["gray", "gray16", "rgb"]


def test_equal_pictures_count_as_100_db(tmp_path: Path) -> None:
    exact = Upscaler(model="nearest")
    truth = flat(tmp_path / "flat", 77)
    assert speed_truth.loss_db(exact, exact, truth, scale=2, on_picture=lambda name: None) == 0.0


def test_the_example_pictures() -> None:
    found = speed_truth.example_set(scale=4)
    assert found is not None
    assert [path.name for path in found.pictures] == ["anime.png", "meme.png", "photo.png"]
    assert found.name == "3 example pictures"
    # Of the meme's 240 px only 170 are left, and as many are cut off the borders.
    found = speed_truth.example_set(scale=85)
    assert found is not None
    assert (found.name, len(found.pictures)) == ("2 example pictures", 2)
    assert speed_truth.example_set(scale=128) is None


# With real engines.


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_real_engine(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(engine)
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setattr(devices, f"has_{name}", lambda name=name: name == engine)
    monkeypatch.setattr(devices, "has_nncf", lambda: False)
    # Converting does not depend on what the automatic precision is.
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: False)
    network = random_model(SRVGGNetCompactConfig(channels=4, convs=1, scale=2))
    made = measure(
        network, scale=2, device="cpu", size_px=(40, 24), budget_s=0.1, folder=tmp_path / "engines"
    )
    row = by_flags(made)[f"--engine {engine}"]
    assert (row.engine, row.precision) == (engine, "fp32")
    assert row.megapixels_per_second is not None
    assert row.agreement_db is not None
    assert row.agreement_db > 59.0
    assert row.ready_s is not None
    assert row.ready_s > 0.0
    assert list((tmp_path / "engines").iterdir())


# The command.


def bench(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["bench", "--speed", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `measure` is asked; it answers with what was measured once."""
    asked: list[dict[str, Any]] = []

    def row(flags: str, *times_s: float, **facts: Any) -> SpeedRow:
        plain = {"tile_px": None, "megapixels": 6.0, "engine": "openvino", "probe_s": 1.0}
        return SpeedRow(flags=flags, times_s=times_s, **(plain | facts))

    def answer(model: Any, **options: Any) -> SpeedReport:
        asked.append({"model": model, **options})
        has_truth = bool(options["truth"])
        return SpeedReport(
            model="toy",
            scale=options["scale"],
            device="cpu",
            device_name="2 threads",
            threads=2,
            input_px=(1000, 1500),
            output_px=(2000, 3000),
            budget_s=60.0,
            spent_s=50.0,
            bicubic=row("", *[0.1] * 3, engine="numpy", precision="fp32"),
            rows=(
                row("--engine torch", precision="fp32", engine="torch", probe_s=None, note="no"),
                row("", *[1.0] * 3, precision="bf16", agreement_db=51.0),
                row(
                    "--precision int8",
                    *[0.5] * 3,
                    precision="int8",
                    loss_db=0.0321 if has_truth else None,
                ),
            ),
            truth=("Set3",) if has_truth else (),
        )

    monkeypatch.setattr(bench_speed.speed, "measure", answer)
    return asked


def test_the_command(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = three_pictures(tmp_path / "Set3")
    done = bench(folder, "-s", 2)
    assert done.exit_code == 0, done.stderr
    (wish,) = asked
    assert [dataset.name for dataset in wish["truth"]] == ["Set3"]
    assert (wish["scale"], wish["folder"]) == (2, conversions_folder())
    assert wish["model"].name == DEFAULT_MODEL
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["(automatic)", "openvino", "bf16", "6", "0.1", "–", "–", "51.0"] in lines
    assert ["--precision", "int8", "openvino", "int8", "12", "0.2", "–", "–", "0.032"] in lines
    assert done.stdout.splitlines()[-2] == "torch fp32: no"
    assert done.stdout.splitlines()[-1].startswith("advice: --precision int8: 2.00 times as fast")
    assert "PyTorch" not in done.stdout + done.stderr
    without = bench("-m", "bicubic")
    assert "lost" not in without.stdout
    assert asked[-1]["model"] == "bicubic"
    assert "int8" not in without.stdout.splitlines()[-1]


def test_the_command_as_json(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    facts = json.loads(bench(three_pictures(tmp_path / "Set3"), "--json").stdout)
    assert facts["truth"] == ["Set3"]
    assert [(row["engine"], row["precision"]) for row in facts["rows"]] == [
        *(("torch", "fp32"), ("openvino", "bf16"), ("openvino", "int8")),
    ]
    assert [row["loss_db"] for row in facts["rows"]] == [None, None, 0.0321]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "torch"), "leave out --engine and --precision"),
        (("--precision", "fp32"), "leave out --engine and --precision"),
        (("-o", "a.md"), "leave out --lr and -o"),
        (("-s", "0"), "1 or more, not 0"),
        (("absent",), "no pictures in absent"),
    ],
)
def test_what_the_command_refuses(
    asked: list[dict[str, Any]], options: tuple[str, ...], words: str
) -> None:
    done = bench(*options)
    assert (done.exit_code, done.stdout, asked) == (2, "", [])
    assert words in done.stderr
