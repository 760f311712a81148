"""What a folder of very many files takes beside the pictures: planning, the journal, going on.

    python benchmarks/plans.py [--files 10000,30000,100000] [--folder DIR]

Tiny pictures in folders of a thousand, by `-m nearest -s 2`, each command in a process of its own:
a plan alone, one shard's plan alone, a run, the same run again when all is done, and one that is
killed at half and started again, whose outputs are compared with those of the first, byte for byte.
Where planning is linear, what a file takes is the same in every row. CPU is time at work, which
says more than the clock does where other programs run.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import run_alone

from waifu4x import files

_SIDE_PX = 4
_IN_A_FOLDER = 1000
_SHARDS = 8
_POLL_S = 0.005
_JOURNAL = Path(".waifu4x/journal.jsonl")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured with one number of files."""

    files: int
    plan_s: float
    plan_cpu_s: float
    """Of it, what the process was at work: where others are, too, this is what to look at."""
    plan_bytes: int
    """Peak memory of the process that planned; so are the others."""
    shard_s: float
    shard_bytes: int
    """Of the plan of one shard of `_SHARDS`."""
    run_s: float
    run_bytes: int
    journal_bytes: int
    again_s: float
    """The same command, when all is done."""
    again_bytes: int
    killed_at: int
    """How many files were noted then."""
    first_s: float
    """From the start of the resumed run until its first new file is noted."""
    first_cpu_s: float
    """Of it, what the process was at work; 0 where that cannot be told."""
    rest_s: float
    """The whole resumed run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", default="10000,30000,100000")
    parser.add_argument("--folder", help="where it all lies; by default the system's temporary one")
    parser.add_argument("--plan", nargs=3, metavar=("IN", "OUT", "SHARD"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plan is not None:
        _plan(*asked.plan)
        return
    rows: list[Row] = []
    for count in map(int, asked.files.split(",")):
        with tempfile.TemporaryDirectory(prefix="waifu4x-plans-", dir=asked.folder) as place:
            rows.append(_row(Path(place), count))
        print("\n".join(_table(rows)), flush=True)


def _plan(source: str, output: str, shard: str) -> None:
    """In a process of its own: seconds and peak bytes of a plan, as JSON."""
    from waifu4x.batch import plan, shards
    from waifu4x.batch.request import Request
    from waifu4x.models import open_upscaler
    from waifu4x.sizes import Target

    upscaler = open_upscaler("nearest")
    request = Request(
        inputs=(source,),
        output=output,
        recursive=True,
        target=Target(scale=2.0),
        shard=None if shard == "-" else shards.parse(shard),
    )
    began, worked_s = time.perf_counter(), time.process_time()
    made = plan.make(request, upscaler)
    spent_s, worked_s = time.perf_counter() - began, time.process_time() - worked_s
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps([spent_s, worked_s, peak_bytes, len(made.jobs)]))


def _row(place: Path, count: int) -> Row:
    source, whole, cut = place / "in", place / "whole", place / "cut"
    fill(source, count)
    plan_s, plan_cpu_s, plan_bytes, jobs = _planned(source, whole, "-")
    assert jobs == count
    shard_s, _, shard_bytes, _ = _planned(source, whole, f"1/{_SHARDS}")
    run_s, run_bytes = _timed(lambda: run_alone(_command(source, whole))[0])
    journal_bytes = (whole / _JOURNAL).stat().st_size
    again_s, again_bytes = _timed(lambda: run_alone(_command(source, whole))[0])
    killed_at = _killed(_command(source, cut), cut / _JOURNAL, at_bytes=journal_bytes // 2)
    first_s, first_cpu_s, rest_s = _resumed(_command(source, cut), cut / _JOURNAL)
    _compare(whole, cut)
    shutil.rmtree(place / "cut")
    return Row(
        files=count,
        plan_s=plan_s,
        plan_cpu_s=plan_cpu_s,
        plan_bytes=plan_bytes,
        shard_s=shard_s,
        shard_bytes=shard_bytes,
        run_s=run_s,
        run_bytes=run_bytes,
        journal_bytes=journal_bytes,
        again_s=again_s,
        again_bytes=again_bytes,
        killed_at=killed_at,
        first_s=first_s,
        first_cpu_s=first_cpu_s,
        rest_s=rest_s,
    )


def fill(folder: Path, count: int) -> None:
    """Write `count` PNG files of 4×4 px, no two alike."""
    for number in range(count):
        below = folder / f"{number // _IN_A_FOLDER:04}"
        if number % _IN_A_FOLDER == 0:
            below.mkdir(parents=True)
        (below / f"{number:07}.png").write_bytes(_png(number))


def _png(number: int) -> bytes:
    """By hand: an encoder would take most of the time."""
    size = struct.pack(">IIBBBBB", _SIDE_PX, _SIDE_PX, 8, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">Q", number) + bytes(3 * _SIDE_PX - 8)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(row * _SIDE_PX)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _planned(source: Path, output: Path, shard: str) -> tuple[float, float, int, int]:
    """Seconds, those at work, peak bytes, jobs."""
    command = [sys.executable, __file__, "--plan", str(source), str(output), shard]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    spent_s, worked_s, peak_bytes, jobs = json.loads(done.stdout)
    return spent_s, worked_s, peak_bytes, jobs


def _command(source: Path, output: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "waifu4x", "upscale", str(source), "-o", str(output), "-r"),
        *("-m", "nearest", "-s", "2", "--quiet"),
    ]


def _timed(work: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    peak_bytes = work()
    return time.perf_counter() - began, peak_bytes


def _killed(command: list[str], journal: Path, *, at_bytes: int) -> int:
    """Kill a run when its journal has so many bytes; how many lines that are."""
    with subprocess.Popen(command) as child:
        while _size_bytes(journal) < at_bytes and child.poll() is None:
            time.sleep(_POLL_S)
        child.send_signal(signal.SIGKILL)
    if child.returncode != -signal.SIGKILL:
        sys.exit(f"{' '.join(command)} ended by itself, with {child.returncode}")
    return journal.read_bytes().count(b"\n")


def _resumed(command: list[str], journal: Path) -> tuple[float, float, float]:
    """Seconds until a run notes its first file, those of them at work, and until it ends."""
    before_bytes, first_s, worked_s = _size_bytes(journal), 0.0, 0.0
    began = time.perf_counter()
    with subprocess.Popen(command) as child:
        while child.poll() is None:
            if not first_s and _size_bytes(journal) > before_bytes:
                first_s, worked_s = time.perf_counter() - began, _worked_s(child.pid)
            time.sleep(_POLL_S)
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")
    return first_s, worked_s, time.perf_counter() - began


def _worked_s(pid: int) -> float:
    """CPU seconds of a process so far: proc(5), the 14th and 15th field of its stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _compare(one: Path, other: Path) -> None:
    """Ends the program where two trees of outputs differ."""
    outputs = [set(_outputs(one)), set(_outputs(other))]
    if outputs[0] != outputs[1]:
        sys.exit(f"{one} and {other} hold other files: {len(outputs[0] ^ outputs[1])} of them")
    for path in outputs[0]:
        if not filecmp.cmp(one / path, other / path, shallow=False):
            sys.exit(f"{path} differs between {one} and {other}")


def _outputs(folder: Path) -> Iterator[Path]:
    """What lies below, but the journal, and what a killed run left, which goes after a day."""
    for current, _, names in os.walk(folder):
        for name in names:
            path = Path(current, name).relative_to(folder)
            if path != _JOURNAL and path.suffix != files.PARTIAL_SUFFIX:
                yield path


def _table(rows: list[Row]) -> list[str]:
    """Markdown; times are for the whole process, but for the plans'."""
    head = (
        *("files", "plan", "CPU a file", "peak", f"plan of 1/{_SHARDS}", "peak", "run", "peak"),
        *("journal", "run again", "peak", "killed at", "first new file after", "CPU", "rest"),
    )
    lines = [head, ["---:"] * len(head)]
    for row in rows:
        lines.append(
            (
                f"{row.files:,}",
                *(f"{row.plan_s:.1f} s", f"{row.plan_cpu_s / row.files * 1e6:.0f} µs"),
                _mib(row.plan_bytes),
                *(f"{row.shard_s:.1f} s", _mib(row.shard_bytes)),
                *(
                    f"{row.run_s:.0f} s",
                    _mib(row.run_bytes),
                    f"{row.journal_bytes / row.files:.0f} B a file",
                ),
                *(f"{row.again_s:.1f} s", _mib(row.again_bytes)),
                *(f"{row.killed_at:,}", f"{row.first_s:.1f} s"),
                *(f"{row.first_cpu_s:.1f} s", f"{row.rest_s:.0f} s"),
            )
        )
    return [f"| {' | '.join(line)} |" for line in lines]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
