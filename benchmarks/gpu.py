"""How fast waifu4x is on CUDA, and how much of what the card can do that is.

    python benchmarks/gpu.py [--json FILE] [--only PART …] [--ways WAY …] [--seconds S]
    python benchmarks/gpu.py --small        the same on a CPU with tiny networks: does this run?

matmul    what the card makes of one large product of bf16 matrices, in TFLOP/s
networks  the share of that which networks reach, in windows and batches as waifu4x cuts a picture
          of 4 MP: forward alone, and `stream` from array to array, copies and all; how well the
          result agrees with fp32 on the CPU; the memory that it took over what was estimated
folder    pictures of 1 MP a second, from PNG to PNG, and where the time went
devices   the same on two cards

Goals are 40 % and 50 dB. Ways: eager, tuned (cuDNN tries its algorithms), compiled (--compile),
default (torch.compile without trying). RRDB-23 and SRResNet-16 have random weights: they are as
fast as any.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import photo
from torch import nn

import waifu4x
from waifu4x import devices
from waifu4x.batch import plan
from waifu4x.batch import run as pipeline
from waifu4x.batch.request import Request
from waifu4x.bench.cost import count_multiply_adds
from waifu4x.bench.metrics import psnr
from waifu4x.engines import FloatArray, cuda
from waifu4x.engines.cuda import CUDAEngine
from waifu4x.engines.torch import TorchEngine
from waifu4x.model_files import checkpoints
from waifu4x.networks.rrdbnet import RRDBNET_SIZES, RRDBNet, RRDBNetConfig
from waifu4x.networks.srresnet import SRRESNET_SIZES, SRResNet, SRResNetConfig
from waifu4x.tiled import MAX_HALO_PX
from waifu4x.tiled.tile_sizes import TileSizes

SHIPPED = Path(__file__).parents[1] / "weights" / "waifu4x-clean.safetensors"
PARTS = ("matmul", "networks", "folder", "devices")
WAYS = ("eager", "tuned", "compiled", "default")
GOAL_SHARE, GOAL_DB = 0.40, 50.0
CPU = torch.device("cpu")
# What of a result is compared, and how much more of the input the CPU sees on two sides.
_COMPARED_PX, _AROUND_PX = 128, 64
_MOST_WORKERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="all figures go here, too")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--networks", nargs="+", help="only those with such a name")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timing, at least")
    parser.add_argument("--small", action="store_true", help="tiny networks, on a CPU if need be")
    asked = parser.parse_args()
    on_cuda = torch.cuda.is_available()
    if not on_cuda and not asked.small:
        parser.error("there is no CUDA device; --small tries this script without one")
    bench = Bench(asked, torch.device("cuda", 0) if on_cuda else CPU)
    figures: dict[str, Any] = {"machine": bench.machine()}
    print(*(f"{key}: {value}" for key, value in figures["machine"].items()), sep="\n")
    try:
        for part in asked.only:
            print(f"\n-- {part}", flush=True)
            figures[part] = getattr(bench, part)()
    finally:  # what was measured is not lost with what fails
        if asked.json is not None:
            asked.json.write_text(json.dumps(figures, indent=1) + "\n")


class Bench:
    """What was asked for, on one device."""

    def __init__(self, asked: argparse.Namespace, device: torch.device) -> None:
        self.device = device
        self.small: bool = asked.small
        self.seconds: float = 0.05 if asked.small else asked.seconds
        self.ways = [way for way in asked.ways if way == "eager" or device.type == "cuda"]
        if left := [way for way in asked.ways if way not in self.ways]:
            print(f"left out, because it takes CUDA: {', '.join(left)}")
        self.named: list[str] | None = asked.networks
        self.dtype = devices.pick_dtype("auto", device)
        self.matmul_flops: float | None = None

    def machine(self) -> dict[str, Any]:
        return {
            "device": devices.describe(self.device),
            "precision": devices.precision_name(self.dtype),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cores": os.cpu_count(),
        }

    # -- the card ----------------------------------------------------------------------------------

    def matmul(self) -> float:
        """FLOP/s of the best of several sizes."""
        best = 0.0
        for side in (256,) if self.small else (4096, 8192, 16384):
            one, other = (
                torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2)
            )
            spent_s = self._timed(lambda a=one, b=other: torch.mm(a, b))
            flops = 2 * side**3 / spent_s
            print(f"{side:>6}: {flops / 1e12:8.2f} TFLOP/s")
            best = max(best, flops)
        self.matmul_flops = best
        return best

    # -- networks ----------------------------------------------------------------------------------

    def networks(self) -> list[dict[str, Any]]:
        if self.matmul_flops is None:
            self.matmul()
        assert self.matmul_flops is not None
        print(
            f"\n{'network':<14} {'way':<9} {'batch':>16} {'forward':>8} {'share':>6} "
            f"{'stream':>8} {'share':>6} {'dB':>6} {'memory':>7} {'first':>7}"
        )
        rows = []
        for name, network in self._networks():
            for way in self.ways:
                row = {"network": name, "way": way, **self._network(network, way)}
                row["forward_share"] = row["forward_flops"] / self.matmul_flops
                row["stream_share"] = row["stream_flops"] / self.matmul_flops
                rows.append(row)
                print(
                    f"{name:<14} {way:<9} {row['batch']:>16} "
                    f"{row['forward_flops'] / 1e12:8.2f} {row['forward_share']:6.1%} "
                    f"{row['stream_flops'] / 1e12:8.2f} {row['stream_share']:6.1%} "
                    f"{row['agreement_db']:6.1f} {row['memory_of_estimate'] or math.nan:7.2f} "
                    f"{row['first_s']:5.1f} s",
                    flush=True,
                )
                if row["agreement_db"] < GOAL_DB:
                    print(f"  below the goal of {GOAL_DB:g} dB")
            best = max(row["stream_share"] for row in rows if row["network"] == name)
            says = "reached" if best >= GOAL_SHARE else "not reached"
            print(f"{name}: best {best:.1%} from array to array; {GOAL_SHARE:.0%} {says}")
        return rows

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        torch.manual_seed(0)
        tiny = RRDBNetConfig(blocks=1, channels=8, growth=4), SRResNetConfig(blocks=1, channels=8)
        full = RRDBNET_SIZES["rrdb-23-x4"], SRRESNET_SIZES["srresnet-x4"]
        rrdb, srresnet = tiny if self.small else full
        for name, network in (
            ("waifu4x-clean", checkpoints.load(SHIPPED).network),
            ("rrdb-23", _picturelike(RRDBNet(rrdb))),
            ("srresnet-16", _picturelike(SRResNet(srresnet))),
        ):
            if self.named is None or name in self.named:
                yield name, network

    def _network(self, network: nn.Module, way: str) -> dict[str, Any]:
        cuda._MODE = "default" if way == "default" else "max-autotune-no-cudagraphs"
        engine = self._engine(network, way)
        batch = self._batch(network, engine)
        flops = 2 * count_multiply_adds(network, (len(batch), batch.shape[3], *batch.shape[1:3]))
        forward = self._forward(engine, batch)
        # A compiled one compiles what comes a third time, for minutes.
        first_s = max(self._seconds(forward) for _ in range(4))
        forward_s = self._timed(forward)
        before = self._reset_peak()
        times = max(4, math.ceil(self.seconds / forward_s))
        target = np.empty(self._result_shape(engine, batch), dtype=np.uint8)
        list(engine.stream([batch], dtype=target.dtype))  # pinned memory is slow to be had
        began = time.perf_counter()
        for results in engine.stream((batch for _ in range(times)), dtype=target.dtype):
            np.copyto(target, results.values)
        stream_s = (time.perf_counter() - began) / times
        taken_bytes = self._peak(before)
        estimate_bytes = engine.bytes_per_px() * math.prod(batch.shape[:3])
        return {
            "batch": "×".join(map(str, batch.shape[:3])),
            "flops": flops,
            "forward_s": forward_s,
            "forward_flops": flops / forward_s,
            "stream_s": stream_s,
            "stream_flops": flops / stream_s,
            "first_s": first_s,
            "agreement_db": _agreement_db(network, batch[0], target[0]),
            "memory_of_estimate": taken_bytes and taken_bytes / estimate_bytes,
        }

    def _engine(self, network: nn.Module, way: str) -> TorchEngine:
        if self.device.type != "cuda":
            return TorchEngine(copy.deepcopy(network), device=self.device, dtype=self.dtype)
        compiled = way in ("compiled", "default")
        engine = CUDAEngine(network, device=self.device, dtype=self.dtype, compiled=compiled)
        engine._tuned = way != "eager"
        return engine

    def _batch(self, network: nn.Module, engine: TorchEngine) -> FloatArray:
        """The first batch of windows that a picture of 4 MP gives."""
        side_px = 96 if self.small else 2048
        config: Any = network.config
        sizes = TileSizes(
            engine,
            device=self.device,
            halo_px=min(config.receptive_radius_px, MAX_HALO_PX),
            multiple=config.size_multiple,
            wished_px=48 if self.small else None,
        )
        grid = sizes.plan(side_px, side_px)
        image = photo(side_px, side_px).astype(np.float32) / np.float32(255)
        windows = [tile.cut(image) for tile in grid][: sizes.batch_size(grid)]
        return np.stack(windows)

    def _forward(self, engine: TorchEngine, batch: FloatArray) -> Callable[[], object]:
        """The network alone, on what lies on the device."""
        if not isinstance(engine, CUDAEngine):
            return lambda: engine._forward(batch)
        with torch.inference_mode():
            x = torch.from_numpy(batch).to(self.device)

        @torch.inference_mode()
        def forward() -> None:
            engine._on_device(x)

        return forward

    def _result_shape(self, engine: TorchEngine, batch: FloatArray) -> tuple[int, ...]:
        count, height, width, channels = batch.shape
        return count, height * engine.scale, width * engine.scale, channels

    # -- folders -----------------------------------------------------------------------------------

    def folder(self, wish: str | None = None) -> list[dict[str, Any]]:
        """Twice each: the first time warms up, and compiles."""
        rows = []
        side_px, count = (64, 4) if self.small else (1000, 24)
        ways = [way for way in ("eager", "compiled") if way in self.ways]
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / "in"
            source.mkdir()
            pixels = photo(side_px + count, side_px)
            for number in range(count):
                picture = waifu4x.Picture(pixels=pixels[:, number : number + side_px].copy())
                waifu4x.write(picture, source / f"{number:03}.png")
            for name, network in self._networks():
                if name == "srresnet-16":
                    continue
                model = Path(place) / f"{name}.safetensors"
                checkpoints.save(network, model, metadata={})
                for way in ways:
                    upscaler = waifu4x.open_upscaler(
                        model,
                        device=wish or str(self.device),
                        engine="torch",
                        compiled=way == "compiled",
                    )
                    for turn in ("first", "second"):
                        target = Path(place) / f"{name}-{way}-{turn}"
                        split = _upscale_all(source, target, upscaler)
                    row = _split_row(split, count) | {"network": name, "way": way}
                    rows.append(row | {"devices": wish or str(self.device)})
                    print(f"{name:<14} {way:<9} {_in_words(row)}", flush=True)
        return rows

    def devices(self) -> list[dict[str, Any]]:
        if torch.cuda.device_count() < 2:
            print("left out: it takes two CUDA devices")
            return []
        return self.folder("cuda:0,cuda:1")

    # -- clocks ------------------------------------------------------------------------------------

    def _timed(self, work: Callable[[], object]) -> float:
        """Seconds of one call, of many in a row."""
        for _ in range(2):
            work()
        self._finish()
        times, began = 0, time.perf_counter()
        while True:
            for _ in range(5):
                work()
            self._finish()
            times, spent_s = times + 5, time.perf_counter() - began
            if spent_s >= self.seconds:
                return spent_s / times

    def _seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""
        began = time.perf_counter()
        work()
        self._finish()
        return time.perf_counter() - began

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _reset_peak(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def _peak(self, before: int) -> int | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - before


def _picturelike(network: nn.Module) -> nn.Module:
    """Shift and scale the last layer, so that values do not all leave [0, 1] and get equal."""
    network = network.eval().requires_grad_(False)
    crop = torch.from_numpy(photo(48, 48) / np.float32(255)).permute(2, 0, 1)[None]
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.inference_mode():
        last.weight.mul_(0.2 / network(crop).std())
        last.bias.add_(0.5 - network(crop).mean())
    return network


def _agreement_db(network: nn.Module, window: FloatArray, result: np.ndarray) -> float:
    """PSNR of a corner of `result`, uint8, against fp32 on the CPU."""
    exact = TorchEngine(copy.deepcopy(network), device=CPU, dtype=torch.float32)
    seen_px = _COMPARED_PX + _AROUND_PX
    (right,) = exact.stream([window[None, :seen_px, :seen_px]], dtype=np.dtype(np.uint8))
    most = [n if n < seen_px else _COMPARED_PX for n in window.shape[:2]]
    rows, columns = (slice(n * exact.scale) for n in most)
    return min(psnr(result[rows, columns], right.values[0][rows, columns]), 99.0)


def _upscale_all(source: Path, target: Path, upscaler: waifu4x.Upscaler) -> pipeline.Split:
    request = Request(inputs=(str(source),), output=str(target), target=waifu4x.Target(scale=4.0))
    failed: list[object] = []
    split = pipeline.run(
        plan.make(request, upscaler),
        upscaler,
        on_outcome=lambda outcome: failed.append(outcome.error) if outcome.error else None,
        on_progress=lambda job, share: None,
        workers=min(_MOST_WORKERS, os.cpu_count() or 1),
    )
    assert not failed, failed
    return split


def _split_row(split: pipeline.Split, count: int) -> dict[str, Any]:
    return {
        "pictures_per_s": count / split.wall_s,
        "wall_s": split.wall_s,
        "stages_s": dict(split.stages_s),
        "starved_s": split.starved_s,
        "blocked_s": split.blocked_s,
    }


def _in_words(row: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {spent_s:.2f}" for name, spent_s in row["stages_s"].items())
    return (
        f"{row['pictures_per_s']:.2f} pictures/s; {row['wall_s']:.2f} s: {stages}; "
        f"waited {row['starved_s']:.2f} for pictures, {row['blocked_s']:.2f} for encoders"
    )


if __name__ == "__main__":
    main()
