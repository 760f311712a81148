"""Figures that a test cannot hold, because machines differ: run them on yours.

    python benchmarks/measure.py precision [-m MODEL]     bf16 against fp32: agreement and speed
    python benchmarks/measure.py large [-m MODEL]         4000×3000 to 16000×12000: memory and time
    python benchmarks/measure.py startup                  --help and a 64×64 picture, end to end
    python benchmarks/measure.py folder [-m MODEL]        60 mixed pictures: stages side by side
    python benchmarks/measure.py growth [-m MODEL]        500 small pictures: does memory grow
    python benchmarks/measure.py train [--recipe NAME]    the loop against bare forward and backward

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
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from waifu4x.batch.request import Request
    from waifu4x.upscaler import Upscaler

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = ("meme.png", "anime.png", "photo.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "figure", choices=("precision", "large", "startup", "folder", "growth", "train")
    )
    parser.add_argument("-m", "--model", default="waifu4x-clean")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--recipe", default="fast")
    asked = parser.parse_args()
    if asked.figure == "precision":
        precision(asked.model, asked.runs)
    elif asked.figure == "large":
        large(asked.model)
    elif asked.figure == "folder":
        folder(asked.model)
    elif asked.figure == "growth":
        growth(asked.model)
    elif asked.figure == "train":
        train(asked.recipe, asked.runs)
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
            "64×64 by the default model": upscale_command(source, "waifu4x-clean"),
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


def folder(model: str) -> None:
    """The pipeline's time against its slowest stage, and against one stage after the other."""
    import waifu4x
    from waifu4x.batch.request import Request

    upscaler = waifu4x.open_upscaler(model)
    walls = {"side by side": 0.0, "one by one": 0.0}
    stages: dict[str, dict[str, float]] = {name: {} for name in walls}
    waited_s = 0.0
    with tempfile.TemporaryDirectory() as place:
        # In three parts, in turn, so that a machine that slows down slows both.
        for part in range(3):
            source = Path(place) / f"in{part}"
            mixed_pictures(source, count=20, seed=part)
            for name, ways in (("side by side", pipelined), ("one by one", sequential)):
                request = Request(
                    inputs=(str(source),),
                    output=str(Path(place) / f"{name}{part}"),
                    target=waifu4x.Target(scale=4),
                )
                began = time.perf_counter()
                spent, waited = ways(request, upscaler)
                walls[name] += time.perf_counter() - began
                waited_s += waited
                for stage, seconds in spent.items():
                    stages[name][stage] = stages[name].get(stage, 0.0) + seconds
    for name, spent in stages.items():
        texts = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in sorted(spent.items()))
        print(f"{name}: {walls[name]:.1f} s in all; {texts}")
    both = walls["side by side"]
    print(f"the network waited {waited_s:.1f} s for other stages")
    print(f"against its slowest stage:          {both / max(stages['side by side'].values()):.3f}")
    print(f"against that stage run one by one:  {both / max(stages['one by one'].values()):.3f}")
    print(f"against all stages run one by one:  {both / walls['one by one']:.3f}")


def pipelined(request: Request, upscaler: Upscaler) -> tuple[dict[str, float], float]:
    from waifu4x.batch import plan
    from waifu4x.batch.run import run

    planned = plan.make(request, upscaler)
    split = run(
        planned,
        upscaler,
        on_outcome=lambda outcome: None,
        on_progress=lambda job, share: None,
        workers=os.cpu_count() or 1,
    )
    return dict(split.stages_s), split.starved_s + split.blocked_s


def sequential(request: Request, upscaler: Upscaler) -> tuple[dict[str, float], float]:
    """The same stages for the same files, one after the other in this thread."""
    from waifu4x.batch import plan, stages
    from waifu4x.batch.assembly import Assembly, Folders

    spent: dict[str, float] = {}
    for job in plan.make(request, upscaler).jobs:
        assembly = Assembly(job, wish=None, folders=Folders(), stdout=None)
        for part in stages.parts(job, upscaler, request):
            stages.decode(part, request)
            stages.enlarge(part, upscaler, request, on_progress=lambda share: None)
            stages.encode(part, upscaler, request)
            assembly.add(part)
        for stage, seconds in assembly.seconds.items():
            spent[stage] = spent.get(stage, 0.0) + seconds
    return spent, 0.0


def mixed_pictures(target: Path, *, count: int, seed: int) -> None:
    """About a megapixel each, of the kinds and formats that folders hold."""
    import waifu4x

    target.mkdir()
    rng = np.random.default_rng(seed)
    endings = ("png", "jpg", "webp", "png", "jpg", "tiff", "png", "jpg", "gif", "png")
    for number in range(count):
        width, height = (int(n) for n in rng.integers(850, 1150, 2))
        pixels = photo(width, height)
        kind = number % len(endings)
        if kind == 3:
            pixels = pixels[..., :1]
        if kind == 6:
            pixels = pixels.astype(np.uint16) * 257
        alpha = None
        if kind == 9:
            alpha = np.where(np.hypot(*np.mgrid[:height, :width]) < width, 255, 60).astype(np.uint8)
        picture = waifu4x.Picture(pixels=np.ascontiguousarray(pixels), alpha=alpha)
        waifu4x.write(picture, target / f"{number:03}.{endings[kind]}")


def growth(model: str) -> None:
    """Resident memory after 50 and after 500 small pictures of one run."""
    import waifu4x
    from waifu4x.batch import plan
    from waifu4x.batch.request import Request
    from waifu4x.batch.run import run
    from waifu4x.cli.allocator import keep_large_blocks

    keep_large_blocks()
    upscaler = waifu4x.open_upscaler(model)
    rng = np.random.default_rng(0)
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "in"
        source.mkdir()
        for number in range(500):
            width, height = (int(n) for n in rng.integers(60, 100, 2))
            ending = ("png", "jpg", "webp")[number % 3]
            waifu4x.write(
                waifu4x.Picture(pixels=photo(width, height)), source / f"{number:03}.{ending}"
            )
        request = Request(
            inputs=(str(source),), output=f"{place}/out", target=waifu4x.Target(scale=4)
        )
        run(
            plan.make(request, upscaler),
            upscaler,
            on_outcome=lambda outcome: seen.append(resident_bytes()),
            on_progress=lambda job, share: None,
            workers=os.cpu_count() or 1,
        )
    for files in (1, 50, 100, 250, 500):
        print(f"after {files:>3} files {seen[files - 1] / 2**20:.1f} MiB")
    print(f"growth from 50 to 500 files: {seen[499] / seen[49] - 1:+.1%}")


def train(name: str, runs: int) -> None:
    """Steps a second of the loop, over those of its network alone on random tensors."""
    import torch
    from lightning_fabric import Fabric

    import waifu4x
    from waifu4x.train import building, recipe
    from waifu4x.train.data import open_cache
    from waifu4x.train.loop import Trainer
    from waifu4x.train.objectives.vgg import VGG19Features

    chosen = recipe.load(name)
    fabric = Fabric(accelerator="auto", devices=1, precision="bf16-mixed")
    fabric.launch()
    data, steps = chosen.data, 8
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        for number in range(6):
            pixels = photo(700 + 40 * number, 600)
            waifu4x.write(waifu4x.Picture(pixels=pixels), folder / f"{number}.png")
        caches = [
            open_cache([folder], Path(place) / "cache", scale=scale, patch_px=data.patch_px)
            for scale in (data.scales or (chosen.scale,))
        ]
        trainer = Trainer(
            chosen,
            caches,
            run_folder=Path(place) / "run",
            fabric=fabric,
            open_features=VGG19Features,
        )
        network = building.generator(chosen).to(fabric.device, memory_format=torch.channels_last)
        config = network.config
        side_px = data.patch_px * (chosen.scale if config.pre_upsampled else 1)
        shape = (data.batch, config.channels_in, side_px, side_px)
        x = torch.rand(shape, device=fabric.device).to(memory_format=torch.channels_last)

        def bare() -> None:
            for _ in range(steps):
                with fabric.autocast():
                    y = network(x)
                y.float().square().mean().backward()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()

        trainer.take_steps(3)
        bare()
        pairs = [
            (timed(bare), timed(lambda: trainer.take_steps(steps))) for _ in range(max(3, runs))
        ]
    print(
        f"{name}, {fabric.device}: {steps / statistics.median(b for _, b in pairs):.2f} steps/s, "
        f"of bare forward and backward {spread([a / b for a, b in pairs])}"
    )


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


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
