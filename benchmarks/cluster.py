"""What Ray costs: the same pictures by one process and by workers of a local cluster, in turn.

    python benchmarks/cluster.py [-m MODEL] [--pictures 200] [--runs 3] [--side 128] [--cores 2]

Three contestants with the same cores in all (two, unless said otherwise):

    one process    all cores, as without --ray
    workers        one for each core
    one worker     with all cores: what is left when nothing is shared out

Each run is a process of its own, and they take turns. The clock runs from when the models are open
(on all workers) until the last picture is there; what it takes to start Ray, and then the workers,
is shown apart. CPU is of all processes together, Ray's own among them: where other programs run,
that is what to look at. The outputs must be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from measure import photo, run_alone, spread

GOAL = 1.15
_START_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", default="waifu4x-clean")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=128, help="of a picture, in px, about")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.workers is not None:
        print(json.dumps(measure(asked.model, asked.place, asked.workers, asked.cores)))
        return
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place) / "in", count=asked.pictures, side_px=asked.side)
        compare(asked.model, Path(place), cores=asked.cores, runs=asked.runs)


def fill(folder: Path, *, count: int, side_px: int) -> None:
    import waifu4x

    folder.mkdir()
    whole = photo(3 * side_px, 3 * side_px)
    for number in range(count):
        left, top = number % (2 * side_px), number // 2 % (2 * side_px)
        width, height = side_px - number % 7, side_px - number % 5
        pixels = whole[top : top + height, left : left + width].copy()
        ending = ("png", "jpg", "webp")[number % 3]
        waifu4x.write(waifu4x.Picture(pixels=pixels), folder / f"{number:04}.{ending}")


def compare(model: str, place: Path, *, cores: int, runs: int) -> None:
    contestants = {"one process": 0, f"{cores} workers x 1 core": cores, "one worker": 1}
    told: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    trees: dict[str, dict[str, bytes]] = {}
    for run in range(runs):
        for name, workers in contestants.items():
            out = place / f"out-{workers}-{run}"
            command = [
                *(sys.executable, __file__, "-m", model, "--place", str(place), "--cores"),
                *(str(cores), "--workers", str(workers)),
            ]
            os.environ["OMP_NUM_THREADS"] = str(cores)
            told[name].append(json.loads(run_alone(command)[1]))
            (place / "out").rename(out)
            trees[name] = tree(out)
    (first, *others) = trees.values()
    assert all(other == first for other in others), "the outputs differ"
    for name, rows in told.items():
        rates = [row["files"] / row["work_s"] for row in rows]
        starts = ", ".join(
            f"{what} {statistics.median(row[key] for row in rows):.1f} s"
            for what, key in (("Ray starts in", "ray_s"), ("workers in", "workers_s"))
            if key in rows[0]
        )
        print(f"{name:<20} {spread(rates)} files/s{'; ' if starts else ''}{starts}")
    alone = told["one process"]
    for name in [*contestants][1:]:
        ratio = {
            key: [row[key] / one[key] for row, one in zip(told[name], alone, strict=True)]
            for key in ("work_s", "cpu_s")
        }
        reached = "reached" if statistics.median(ratio["work_s"]) <= GOAL else "missed"
        print(
            f"{name} / one process: time {spread(ratio['work_s'])} (goal {GOAL}: {reached}), CPU "
            f"{spread(ratio['cpu_s'])}"
        )
    print(f"{len(first)} outputs are the same, byte for byte")


def tree(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".waifu4x" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def measure(model: str, place: Path, workers: int, cores: int) -> dict[str, float]:
    """Seconds of one contestant; `workers` is 0 for one process. To be run as a process."""
    import waifu4x
    from waifu4x.batch import plan
    from waifu4x.batch.request import Request
    from waifu4x.batch.run import run
    from waifu4x.cli.allocator import keep_large_blocks

    keep_large_blocks()
    target = waifu4x.Target(scale=4)
    request = Request(inputs=(str(place / "in"),), output=str(place / "out"), target=target)
    upscaler = waifu4x.open_upscaler(model, device="cpu", scale=4)
    planned = plan.make(request, upscaler)
    clock = Clock(len(planned.jobs))
    facts: dict[str, float] = {}
    do: Callable[..., Any] = run
    if workers:
        do = distributed(model, request, clock, facts, workers=workers, cores=cores // workers)
    else:
        clock.start()
    do(
        planned,
        upscaler,
        on_outcome=clock.tell,
        on_progress=lambda job, share: None,
        workers=max(1, cores // workers) if workers else cores,
    )
    assert clock.ended == len(planned.jobs), "some failed"
    return {
        **facts,
        "files": len(planned.jobs),
        "work_s": clock.last_s - clock.started_s,
        "cpu_s": clock.last_cpu_s - clock.started_cpu_s,
    }


class Clock:
    """When the work began, and when its last picture was there."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ended = 0

    def start(self) -> None:
        self.started_s, self.started_cpu_s = time.perf_counter(), cpu_s()

    def tell(self, outcome: Any) -> None:
        self.ended += outcome.status == "done"
        if self.ended == self.count:
            self.last_s, self.last_cpu_s = time.perf_counter(), cpu_s()


def distributed(
    model: str, request: Any, clock: Clock, facts: dict[str, float], *, workers: int, cores: int
) -> Callable[..., Any]:
    """The jobs by Ray, whose workers wait for each other before they begin."""
    from waifu4x.cluster.driver import Distribution
    from waifu4x.cluster.messages import Order
    from waifu4x.cluster.ray_cluster import LOCAL, RayCluster

    began = time.perf_counter()
    cluster = RayCluster(LOCAL, cores=cores, gpus=False)
    cluster.connect()
    facts["ray_s"] = time.perf_counter() - began
    open_, places = cluster.open, cluster.places
    there = threading.Barrier(workers, timeout=_START_S, action=clock.start)
    called = time.perf_counter()

    class Held:
        """A worker that is ready when all are."""

        def __init__(self, handle: Any) -> None:
            self._handle, self.kill = handle, handle.kill

        def call(self, method: str, *arguments: Any, wanted: Callable[[], bool]) -> Any:
            told = self._handle.call(method, *arguments, wanted=wanted)
            if method == "exchange" and told.ready:
                there.wait()
                facts["workers_s"] = clock.started_s - called
            return told

    cluster.open = lambda place: Held(open_(place))  # type: ignore[method-assign]
    cluster.places = lambda: places()[:workers]  # type: ignore[method-assign]
    wishes = {"device": "cpu", "scale": 4}
    order = Order(request=request, model=model, wishes=wishes, filters=False)
    return Distribution(cluster=cluster, order=order).run


def cpu_s() -> float:
    """Of this process and all below it that live, those of a local cluster among them."""
    family = {os.getpid()}
    parents = {pid: (parent, spent) for pid, parent, spent in processes()}
    grew = True
    while grew:
        more = {pid for pid, (parent, _) in parents.items() if parent in family} - family
        family |= more
        grew = bool(more)
    return sum(parents[pid][1] for pid in family if pid in parents) / os.sysconf("SC_CLK_TCK")


def processes() -> Iterator[tuple[int, int, int]]:
    """(number, parent's number, ticks at work) of every process; Linux only."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                # The name may hold anything, so fields are counted from its end: proc_pid_stat(5).
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(fields[1]), int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
