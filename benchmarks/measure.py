"""Figures that a test cannot hold, because machines differ: run them on yours.

    python benchmarks/measure.py precision [-m MODEL]     bf16 against fp32: agreement and speed
    python benchmarks/measure.py large [-m MODEL]         4000×3000 to 16000×12000: memory and time
    python benchmarks/measure.py startup                  --help and a 64×64 picture, end to end

Speed is always a ratio of two things measured in turn in one run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = ("meme.png", "anime.png", "photo.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", choices=("precision", "large", "startup"))
    parser.add_argument("-m", "--model", default="waifu4x-fast")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    if asked.figure == "precision":
        precision(asked.model, asked.runs)
    elif asked.figure == "large":
        large(asked.model)
    else:
        startup(asked.runs)


def precision(model: str, runs: int) -> None:
    """Agreement of bf16 with fp32 in dB on the example pictures, and how much faster it is."""
    import waifu4x
    from waifu4x.bench.metrics import psnr

    exact = waifu4x.open_upscaler(model, precision="fp32")
    fast = waifu4x.open_upscaler(model, precision="bf16")
    target = waifu4x.Target(scale=4)
    for name in PICTURES:
        picture = waifu4x.read(EXAMPLES / name)
        small, large_ = (u.upscale(picture, target)[0].pixels for u in (fast, exact))
        print(f"{name:<12} bf16 agrees with fp32 to {psnr(small, large_):.1f} dB")
    picture = waifu4x.Picture(pixels=photo(768, 768))
    pairs = [
        tuple(timed(lambda u=u: u.upscale(picture, target)) for u in (exact, fast))
        for _ in range(runs + 1)
    ][1:]
    print(f"fp32 time / bf16 time, 768×768 to x4: {spread([a / b for a, b in pairs])}")


def large(model: str) -> None:
    """Peak memory of the whole command on a 12 MP photo, and where its time goes."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "photo.png", Path(folder) / "large.png"
        import waifu4x

        waifu4x.write(waifu4x.Picture(pixels=photo(4000, 3000)), source)
        for options in ([], ["-t", "128"], ["-t", "64"]):
            command = [
                *(sys.executable, "-m", "waifu4x", "upscale", str(source), "-o", str(result)),
                *("-m", model, "--json", "--quiet", "--overwrite", *options),
            ]
            began = time.perf_counter()
            peak_bytes, text = run_alone(command)
            whole_s = time.perf_counter() - began
            facts = json.loads(text)
            width, height = facts["output_size"]
            megapixels = width * height / 1e6
            network_s = facts["seconds"]["network"]
            print(
                f"{' '.join(options) or 'default':<8} {width}×{height} ({megapixels:.0f} MP), tile "
                f"{facts['tile']}, waste {facts['waste']:.2f}: peak {peak_bytes / 2**30:.2f} GiB; "
                f"a megapixel of output takes {network_s / megapixels:.3f} s in the network and "
                f"{whole_s / megapixels:.3f} s in all ({whole_s / network_s:.2f} times); "
                f"{facts['seconds']}"
            )


def startup(runs: int) -> None:
    """`waifu4x --help` against a bare interpreter, and a tiny picture against both."""
    with tempfile.TemporaryDirectory() as folder:
        import waifu4x

        source = Path(folder) / "tiny.png"
        waifu4x.write(waifu4x.Picture(pixels=photo(64, 64)), source)
        python = [sys.executable]
        commands = {
            "python -c pass": [*python, "-c", "pass"],
            "python -c 'import torch'": [*python, "-c", "import torch"],
            "waifu4x --help": [*python, "-m", "waifu4x", "--help"],
            "64×64 by bicubic": upscale_command(source, "bicubic"),
            "64×64 by the default model": upscale_command(source, "waifu4x-fast"),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs + 1):
            for name, command in commands.items():
                times[name].append(timed(lambda c=command: run_alone(c)))
        bare = times["python -c pass"][1:]
        for name, values in times.items():
            ratios = [value / b for value, b in zip(values[1:], bare, strict=True)]
            print(
                f"{name:<28} {statistics.median(values[1:]):.3f} s, {spread(ratios)} bare pythons"
            )


def upscale_command(source: Path, model: str) -> list[str]:
    return [
        *(sys.executable, "-m", "waifu4x", "upscale", str(source), "-m", model),
        *("-o", str(source.with_name("out.png")), "--overwrite", "--quiet"),
    ]


def photo(width_px: int, height_px: int) -> np.ndarray:
    """(H, W, 3) uint8: the example photo, repeated with mirrored neighbours, and a little grain."""
    import waifu4x

    tile = waifu4x.read(EXAMPLES / "photo.png").pixels
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    repeats = [math.ceil(n / m) for n, m in zip((height_px, width_px), tile.shape[:2], strict=True)]
    whole = np.tile(tile, (*repeats, 1))[:height_px, :width_px].astype(np.int16)
    grain = np.random.default_rng(0).normal(0.0, 2.0, whole.shape)
    return np.clip(whole + grain, 0, 255).astype(np.uint8)


def run_alone(command: list[str]) -> tuple[int, str]:
    """Run a command; its own peak memory in bytes and what it printed on standard output."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(f"{' '.join(command)} failed")
        output.seek(0)
        # Linux counts KiB, macOS bytes.
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), output.read()


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
