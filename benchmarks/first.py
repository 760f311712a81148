"""How long the first picture takes from the command on, and where that time goes.

    python benchmarks/first.py [-m MODEL] [--runs N]

A 256×256 picture, by each engine that is installed, with an empty cache folder (the network is
converted, and kept) and with a filled one. The whole is timed without looking into it, in multiples
of what `import torch` takes in a process of its own; its parts in runs of their own under -X
importtime, which makes them a little slower. Imports are their modules' own time, whenever they
come, and are taken off the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engines_serve import last_line
from measure import photo, spread

_SIDE_PX = 256
_TRACED = Path(__file__).with_name("first_traced.py")
_PACKAGES = ("torch", "openvino", "onnxruntime", "onnx", "numpy", "PIL", "waifu4x")
# One thing to whoever reads the table.
_TOGETHER: dict[str, str] = dict.fromkeys(
    ("typer", "rich", "click", "pygments", "shellingham"), "typer, rich"
)
_IMPORT = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)")
_START, _END = "start of Python", "end of the process"
_PARTS = (_START, "weights", "engine", "decoding", "inference", "encoding", _END)


@dataclass(kw_only=True)
class Course:
    """One engine with one state of the cache."""

    engine: str
    kept: bool
    command: Callable[[], list[str]]
    whole_s: list[float] = field(default_factory=list)
    multiples: list[float] = field(default_factory=list)
    parts_s: list[dict[str, float]] = field(default_factory=list)
    network_s: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.engine}, {'kept' if self.kept else 'converted'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="waifu4x-clean")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    os.environ.pop("WAIFU4X_ENGINE", None)
    with tempfile.TemporaryDirectory() as place:
        courses = _courses(Path(place), asked.model)
        for course in courses:
            _run([sys.executable, "-m", "waifu4x", *course.command()])  # fills what is kept
        for _ in range(asked.runs):
            bare_s = _timed([sys.executable, "-c", "import torch"])[0]
            for course in courses:
                _round(course, bare_s)
    print("\n".join(_table(courses)))


def _courses(place: Path, model: str) -> list[Course]:
    """Cold and warm for every engine that can run the model here."""
    import waifu4x
    from waifu4x import devices

    source = place / "in.png"
    waifu4x.write(waifu4x.Picture(pixels=photo(_SIDE_PX, _SIDE_PX)), source)
    homes = iter(range(10**6))

    def command(engine: str, home: Path | None) -> list[str]:
        os.environ["WAIFU4X_HOME"] = str(home or place / f"home{next(homes)}")
        return [
            *("upscale", str(source), "-o", str(place / "out.png"), "--overwrite", "--json"),
            *("--quiet", "--device", "cpu", "--engine", engine, "-m", model),
        ]

    courses: list[Course] = []
    for engine in (name for name in devices.ENGINES if name != "auto"):
        kept_home = place / engine
        try:
            _run([sys.executable, "-m", "waifu4x", *command(engine, kept_home)])
        except RuntimeError as error:
            print(f"{engine} is left out: {error}", file=sys.stderr)
            continue
        for home in (None, kept_home):
            if engine == "torch" and home is None:
                continue  # it converts nothing
            courses.append(
                Course(
                    engine=engine,
                    kept=home is not None,
                    command=lambda engine=engine, home=home: command(engine, home),
                )
            )
    return courses


def _round(course: Course, bare_s: float) -> None:
    """Time the command once as it is, and once with a look into it."""
    whole_s, done = _timed([sys.executable, "-m", "waifu4x", *course.command()])
    course.whole_s.append(whole_s)
    course.multiples.append(whole_s / bare_s)
    course.network_s.append(json.loads(done.stdout)["seconds"]["network"])
    traced = [sys.executable, "-X", "importtime", str(_TRACED), *course.command()]
    began = time.time()
    done = _run(traced)
    course.parts_s.append(_parts(done.stderr, began, time.time()))


def _parts(text: str, began: float, ended: float) -> dict[str, float]:
    """Seconds by import and by part, from what the command wrote that was traced between these."""
    spent_s: dict[str, float] = defaultdict(float)
    inside = [_START]
    for line in text.splitlines():
        if line.startswith("@begin "):
            inside.append(line.split()[1])
        elif line.startswith("@end "):
            _, part, seconds = line.split()
            spent_s[part] += float(seconds)
            inside.remove(part)
        elif line.startswith("@started "):
            spent_s[_START] += float(line.split()[1]) - began
            inside.remove(_START)
        elif line.startswith("@ended "):
            spent_s[_END] += ended - float(line.split()[1])
            inside.append(_END)
        elif found := _IMPORT.match(line):
            seconds, package = int(found[1]) / 1e6, found[2].partition(".")[0]
            package = _TOGETHER.get(package, package)
            known = package in _PACKAGES or package in _TOGETHER.values()
            spent_s[f"import {package if known else 'others'}"] += seconds
            if inside:
                spent_s[inside[-1]] -= seconds
    spent_s["the rest"] = ended - began - sum(spent_s.values())
    return spent_s


def _table(courses: list[Course]) -> list[str]:
    """Markdown, a column for every course; seconds."""
    columns = [
        {name: statistics.median(p.get(name, 0.0) for p in c.parts_s) for name in _names(courses)}
        for c in courses
    ]
    rows = [
        ["in all", *(spread(course.whole_s) for course in courses)],
        ["in multiples of import torch", *(spread(course.multiples) for course in courses)],
        ["network, by --json", *(spread(course.network_s) for course in courses)],
    ]
    for name in _names(courses):
        rows.append([name, *(f"{column[name]:.3f}" for column in columns)])
    head = ["seconds", *(course.name for course in courses)]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _names(courses: list[Course]) -> list[str]:
    """Imports, the largest first, then the parts in the order in which they come."""
    imports: dict[str, float] = defaultdict(float)
    for course in courses:
        for parts in course.parts_s:
            for name, seconds in parts.items():
                if name.startswith("import "):
                    imports[name] += seconds
    return [*sorted(imports, key=lambda name: -imports[name]), *_PARTS, "the rest"]


def _timed(command: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.perf_counter()
    done = _run(command)
    return time.perf_counter() - began, done


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Raises RuntimeError with the last line of what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(last_line(done.stderr))
    return done


if __name__ == "__main__":
    main()
