"""Several processes train as one does: two of them on a CPU, joined by gloo."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training import GAN, rows, save_picture, train, trainer, with_stage

from waifu4x.train import tables
from waifu4x.train.data import open_cache
from waifu4x.train.state import CHECKPOINT_NAME

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="needs gloo",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

# Without batch normalisation, whose statistics are each process's own.
SHARED = dataclasses.replace(
    with_stage(
        GAN, discriminator={"kind": "srgan", "channels": 2, "hidden": 8, "norm": False}, steps=4
    ),
    data=dataclasses.replace(GAN.data, batch=4),
)

# What each of two processes runs: one case after the other, each in a run folder of its own. They
# print what each ended with.
WORKER = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from training import trainer
from waifu4x.train import machine, recipe
from waifu4x.train.data import open_cache
from waifu4x.train.objectives.objective import Objective
from waifu4x.train.validation import validation_pairs
folder, pictures = map(Path, sys.argv[2:])
whole = Objective.generator

def spoiled(*arguments, **keywords):
    calls.append(1)
    loss, terms = whole(*arguments, **keywords)
    if len(calls) != 3:
        return loss, terms
    return loss * float("nan"), {**terms, "l1": loss.detach() * float("nan")}

for what in ("whole", "parts", "continued", "signal", "nan", "minutes"):
    fabric = machine.open_fabric(torch.device("cpu"), torch.float32)
    here, calls = fabric.global_rank, []
    with fabric.rank_zero_first(local=True):
        cache = open_cache([pictures], folder / "cache", scale=2, patch_px=8)
    subject = trainer(
        cache, recipe.load(str(folder / "shared.toml")), folder / what, fabric=fabric,
        validation=validation_pairs(pictures, 2), minutes=0.02 if what == "minutes" else None,
        accumulate=2 if what == "parts" else 1,
    )
    Objective.generator = spoiled if what == "nan" and here == 1 else whole
    asked = subject.run(
        on_report=lambda report: None, report_every=1, validate_every=3, save_every_s=0.0,
        stop=lambda: int(15 * (what == "signal" and here == 1 and subject.state.step >= 5)),
    )
    weights = sum(p.detach().double().sum() for p in subject.state.generator.parameters())
    print(json.dumps({
        "what": what, "rank": here, "asked": asked, "step": subject.state.step,
        "rate": subject.state.rate_factor, "weights": float(weights).hex(),
    }), flush=True)
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        save_picture(folder / f"{number}.png", seed=number)
    return folder


@pytest.fixture(scope="module")
def folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything was trained, by one process and by two."""
    place = tmp_path_factory.mktemp("runs")
    (place / "shared.toml").write_text(tables.to_toml(SHARED.facts()))
    cache = open_cache([pictures], place / "cache", scale=2, patch_px=8)
    train(trainer(cache, SHARED, place / "alone"))
    begun = trainer(cache, SHARED, place / "continued")
    train(begun, stop=lambda: begun.state.step >= 3)
    return place


@pytest.fixture(scope="module")
def told(folder: Path, pictures: Path) -> dict[str, list[dict[str, Any]]]:
    """What both processes, started as torchrun does it, told of each case."""
    (folder / "worker.py").write_text(WORKER)
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCHELASTIC_RUN_ID": "test",
    }
    command = [sys.executable, "-W", "error", str(folder / "worker.py"), str(TESTS)]
    started = [
        subprocess.Popen(
            [*command, str(folder), str(pictures)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        done = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], done
    assert [err for _, err in done] == ["", ""]
    lines = [json.loads(line) for out, _ in done for line in out.splitlines()]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: line["rank"]):
        found.setdefault(line.pop("what"), []).append(line)
    return found


def test_both_processes_end_alike(told: dict[str, list[dict[str, Any]]]) -> None:
    """Bit for bit the same weights, at the same step, though clocks and signals differ."""
    assert list(told) == ["whole", "parts", "continued", "signal", "nan", "minutes"]
    for first, second in told.values():
        assert (first.pop("rank"), second.pop("rank")) == (0, 1)
        assert first == second


@pytest.mark.parametrize("what", ["whole", "parts", "continued"])
def test_two_processes_do_what_one_does_with_both_batches(
    told: dict[str, list[dict[str, Any]]], folder: Path, what: str
) -> None:
    """Also in parts, and from where one process had stopped."""
    assert told[what][0]["step"] == 8
    wanted, found = rows(folder / "alone"), rows(folder / what)
    assert len(found) == len(wanted) == 8
    for mine, other in zip(found, wanted, strict=True):
        assert mine["losses"] == pytest.approx(other["losses"], rel=1e-4)
        for judged in ("d_real", "d_fake"):
            assert mine.get(judged, 0.5) == pytest.approx(other.get(judged, 0.5), rel=1e-4)
    measured = [row["step"] for row in found if "psnr_db" in row]
    assert measured == ([4, 6, 8] if what == "continued" else [3, 4, 6, 8])


def test_a_signal_that_one_of_them_gets_stops_both(
    told: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    assert [(each["asked"], each["step"]) for each in told["signal"]] == [(15, 5)] * 2
    saved = torch.load(folder / "signal" / CHECKPOINT_NAME, weights_only=True)
    assert (saved["step"], saved["stage"]) == (5, 1)


def test_what_is_not_finite_in_one_of_them_brings_both_back(
    told: dict[str, list[dict[str, Any]]],
) -> None:
    assert [(each["step"], each["rate"]) for each in told["nan"]] == [(8, 0.5)] * 2


def test_a_time_limit_is_the_same_for_both(
    told: dict[str, list[dict[str, Any]]], folder: Path
) -> None:
    last = rows(folder / "minutes")[-1]
    assert told["minutes"][0]["step"] == last["step"] > 8
    assert 1.2 <= last["elapsed_s"] < 3.0
    assert (last["stage"], last["progress"]) == ("gan", 1.0)
