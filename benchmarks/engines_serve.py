"""One contestant in a process of its own, which enlarges the same array whenever it is told to.

    python benchmarks/engines_serve.py SPEC PICTURE.npy

A process each, because contestants differ in their threads and in what they make of the allocator.
For each line on standard input it enlarges once and says how many seconds that took; a line with a
path has the result written there. SPEC is one of `engines_plain`, or ``{"by": "waifu4x", "weights":
PATH, "engine": NAME, "precision": NAME}``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from engines_plain import SCALE, Enlarge, Uint8Array, open_enlarger

_FRAME = " \t│╭╮╰╯─"


class ContestantError(Exception):
    """A contestant cannot do it; the message is its own last line."""


@dataclass(frozen=True)
class Server:
    """The other end of such a process; `serving` makes one."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def run(self, result: Path | None = None) -> float:
        """Seconds for one picture, which is written to `result`.

        Raises ContestantError.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):
            stdin.write(f"{result or ''}\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise ContestantError(last_line(self.errors.read()))
        return float(line)


@contextmanager
def serving(spec: dict[str, Any], picture: Path) -> Iterator[Server]:
    """A process that has begun to load what `spec` names; it ends with the block."""
    command = [sys.executable, __file__, json.dumps(spec), str(picture)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        yield Server(process, errors)


def last_line(text: str) -> str:
    """What a program that failed said last; most say there what is wrong, some in a frame."""
    lines = [line.strip(_FRAME) for line in text.splitlines()]
    return next(filter(None, reversed(lines)), "it said nothing")


def main() -> None:
    spec, picture = json.loads(sys.argv[1]), np.load(sys.argv[2])
    # Libraries print on standard output what they please.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    enlarge = _open_waifu4x(spec) if spec["by"] == "waifu4x" else open_enlarger(spec)
    for line in sys.stdin:
        began = time.perf_counter()
        result = enlarge(picture)
        spent_s = time.perf_counter() - began
        if line.strip():
            np.save(line.strip(), result)
        print(spent_s, file=answers, flush=True)


def _open_waifu4x(spec: dict[str, Any]) -> Enlarge:
    import waifu4x
    from waifu4x.cli.allocator import keep_large_blocks

    keep_large_blocks()  # the command does it, too
    upscaler = waifu4x.open_upscaler(
        spec["weights"], device="cpu", engine=spec["engine"], precision=spec["precision"]
    )
    target = waifu4x.Target(scale=SCALE)

    def enlarge(pixels: Uint8Array) -> Uint8Array:
        return upscaler.upscale(waifu4x.Picture(pixels=pixels), target)[0].pixels

    return enlarge


if __name__ == "__main__":
    main()
