"""What every system of the line takes: parameters, multiply-adds, and time for a megapixel.

    python benchmarks/systems.py [--side 160] [--runs 3] [--only NAME] [--precision bf16]

Each network at the size of its paper, enlarging one picture four times by PyTorch. Weights are
fresh ones, as time does not depend on them; what is fitted (A+, ScSR) is taken from the files in
``--fitted DIR``, and left out without. Those that take a reference are shown a blank one. All take
turns; seconds are those of this machine, and mean something beside each other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import photo

import waifu4x
from waifu4x.bench.cost import measure_cost
from waifu4x.model_files import checkpoints
from waifu4x.networks import ALL_NETWORKS
from waifu4x.networks.autoencoder import AUTOENCODER_SIZES
from waifu4x.networks.crossnet import CROSSNET_SIZES
from waifu4x.networks.edsr import EDSR_SIZES
from waifu4x.networks.metasr import METASR_SIZES
from waifu4x.networks.plksr import PLKSR_SIZES
from waifu4x.networks.ranksrgan import RANKSRGAN_SIZES
from waifu4x.networks.rcan import RCAN_SIZES
from waifu4x.networks.rrdbnet import RRDBNET_SIZES
from waifu4x.networks.san import SAN_SIZES
from waifu4x.networks.span import SPAN_SIZES
from waifu4x.networks.srcnn import SRCNN_SIZES
from waifu4x.networks.srfbn import SRFBN_SIZES
from waifu4x.networks.srntt import SRNTT_SIZES
from waifu4x.networks.srresnet import SRRESNET_SIZES
from waifu4x.networks.vdsr import VDSR_SIZES

SCALE = 4
SIZES: dict[str, Any] = {
    "autoencoder": AUTOENCODER_SIZES["autoencoder-x4"],
    "srcnn": SRCNN_SIZES["srcnn-9-5-5"],
    "vdsr": VDSR_SIZES["vdsr"],
    "srresnet, srgan, srobb": SRRESNET_SIZES["srresnet-x4"],
    "edsr-baseline": EDSR_SIZES["edsr-baseline-x4"],
    "ranksrgan": RANKSRGAN_SIZES["ranksrgan-x4"],
    "span": SPAN_SIZES["span-x4"],
    "realplksr": PLKSR_SIZES["realplksr-x4"],
    "srfbn-s": SRFBN_SIZES["srfbn-s-x4"],
    "srfbn": SRFBN_SIZES["srfbn-x4"],
    "meta-edsr": METASR_SIZES["meta-edsr"],
    "meta-rdn": METASR_SIZES["meta-rdn"],
    "esrgan (RRDB-23)": RRDBNET_SIZES["rrdb-23-x4"],
    "rcan": RCAN_SIZES["rcan-x4"],
    "san": SAN_SIZES["san-x4"],
    "crossnet": CROSSNET_SIZES["crossnet"],
    "srntt": SRNTT_SIZES["srntt-x4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=160, help="of the small picture, in px")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[*SIZES])
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--fitted", type=Path, help="a folder with aplus.safetensors and the like")
    asked = parser.parse_args()
    picture = waifu4x.Picture(pixels=photo(asked.side, asked.side))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: fresh(name, Path(folder)) for name in asked.only or SIZES}
        if asked.fitted is not None:
            files |= {path.stem: path for path in sorted(asked.fitted.glob("*.safetensors"))}
        show(files, picture, runs=asked.runs, precision=asked.precision)


def fresh(name: str, folder: Path) -> Path:
    """A file with the network of that name, untrained."""
    config = SIZES[name]
    entry = next(each for each in ALL_NETWORKS.values() if each.config is type(config))
    path = folder / f"{len(list(folder.iterdir()))}.safetensors"
    torch.manual_seed(0)
    metadata = {"scales": str(SCALE)} if config.pre_upsampled else {}
    checkpoints.save(entry.module(config), path, metadata=metadata)
    return path


def show(files: dict[str, Path], picture: waifu4x.Picture, *, runs: int, precision: str) -> None:
    """One row each; the first round is not counted."""
    target = waifu4x.Target(scale=SCALE)
    upscalers = {}
    for name, path in files.items():
        config = checkpoints.load(path).network.config
        blank = ("blank",) if hasattr(config, "reference") else ()
        upscalers[name] = waifu4x.open_upscaler(
            path, precision=precision, engine="torch", references=blank
        )
    spent: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(runs + 1):
        for name, upscaler in upscalers.items():
            spent[name].append(upscaler.upscale(picture, target)[1].network_s)
    megapixels = picture.width_px * picture.height_px * SCALE**2 / 1e6
    print("| system | parameters | multiply-adds to 1280×720 | s for a megapixel of output |")
    print("|---|---|---|---|")
    for name, path in files.items():
        model = checkpoints.load(path)
        parameters, hd = sum(each.numel() for each in model.network.parameters()), "–"
        if not hasattr(model.network.config, "reference"):
            cost = measure_cost(model.network, model.network.config)
            hd = f"{cost.multiply_adds_hd / 1e9:.1f} G"
        each_s = statistics.median(spent[name][1:]) / megapixels
        print(f"| {name} | {parameters:,} | {hd} | {each_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
