"""How many times as fast as plain PyTorch waifu4x is, and ncnn, on this machine's CPU.

    python benchmarks/engines.py [--only MODEL] [--runs N] [--megapixels M] [--minutes T]
                                 [--json FILE] [--write-readme]

Against the same network in fp32 PyTorch as Real-ESRGAN's own script runs it (`engines_plain`), from
PNG file to PNG file as whole processes, and from array to array in processes that are warm. All
take turns, so figures are ratios of what ran within a minute or two. With ``--json`` rounds add up
over several invocations, which go on with what has the fewest. ncnn takes part where it is
installed (pip install ncnn) and the network is a compact one. Published weights are looked for in
``weights/realesrgan`` of a folder ``shared`` beside the repository, or of WAIFU4X_SHARED; without
them random ones of the same shape stand in, whose agreement says little.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import engines_ncnn
import engines_plain
import engines_table
import numpy as np
import torch
from engines_serve import ContestantError, Server, last_line, serving
from engines_table import BASELINE, GOAL_DB, NCNN, OPENVINO, Record
from measure import photo
from PIL import Image
from torch import nn

from waifu4x import devices
from waifu4x.bench.metrics import psnr
from waifu4x.engines.torch import peak_values_per_px
from waifu4x.model_files import checkpoints
from waifu4x.networks.rrdbnet import RRDBNET_SIZES, RRDBNet
from waifu4x.networks.srvggnet import SRVGGNET_SIZES, SRVGGNetCompact

ROOT = Path(__file__).parents[1]
_PLAIN = Path(engines_plain.__file__)
_SHIPPED = ROOT / "weights" / "waifu4x-clean.safetensors"
_RRDB = "rrdb-23-x4"
PUBLISHED = {
    "realesr-animevideov3": ("realesr-animevideov3.pth",),
    "realesr-general-x4v3": (
        "realesr-general-x4v3.pth",
        "RealESRGAN_General_x4_v3_fp16.safetensors",
    ),
    _RRDB: ("RealESRGAN_x4plus.pth",),
}
MODELS = ("waifu4x-clean", *PUBLISHED)
# RRDB-23 takes 25 times as long for a pixel as the others: minutes for a megapixel.
_MEGAPIXELS = {_RRDB: 0.16}
# `--tile` as Real-ESRGAN's README gives it, for what does not fit into memory in one piece.
_BASELINE_TILE_PX = 400
# Measured on this project's networks: activations of one layer, what lives beside them, workspace.
_BYTES_PER_VALUE = 4 * 2.5
# Threads that wait for more work by spinning give up within milliseconds.
_PAUSE_S = 0.3
_CPU = torch.device("cpu")
_PICTURE, _RESULT = "picture.png", "result.png"
_ARRAY, _ARRAY_RESULT = "picture.npy", "result.npy"
# In commands: where the names of the two files belong.
_SOURCE, _TARGET = "SOURCE", "TARGET"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    key: str
    label: str
    spec: dict[str, Any]
    """For `engines_serve`, and where it is no waifu4x also for `engines_plain`."""
    command: tuple[str, ...]
    """The whole process, with `_SOURCE` and `_TARGET` in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--runs", type=int, default=5, help="rounds of a model")
    parser.add_argument(
        "--megapixels", type=float, help=f"of the picture; 1, and for {_RRDB} {_MEGAPIXELS[_RRDB]}"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="start no round beyond")
    parser.add_argument("--json", type=Path, help="keep rounds here, and add to those in it")
    parser.add_argument("--write-readme", action="store_true", help="put the table into it")
    asked = parser.parse_args()
    began = time.perf_counter()
    records = engines_table.load(asked.json)
    # What has a certain sha256 is converted once: a folder of its own keeps the user's clean.
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("WAIFU4X_HOME", f"{place}/home")
        os.environ.pop(devices.ENGINE_VARIABLE, None)
        for name in _order(records, asked.only, asked.runs):
            spent_s = time.perf_counter() - began
            # Beginning costs a round that does not count.
            if spent_s > asked.minutes * 60 / 2:
                print(f"{name} is left for another invocation")
                continue
            folder = Path(place) / name
            folder.mkdir()
            megapixels = asked.megapixels or _MEGAPIXELS.get(name, 1.0)
            record = _begin(name, folder, megapixels=megapixels, before=records.get(name))
            until = began + asked.minutes * 60
            _measure(record, folder, runs=asked.runs, until=until)
            records[name] = record
            if asked.json is not None:
                engines_table.save(records, asked.json)
    shown = {name: records[name] for name in MODELS if name in records}
    print(engines_table.markdown(shown))
    for name, record in shown.items():
        print(name, *engines_table.goals(record), sep="\n  ")
    if asked.write_readme:
        engines_table.write_readme(ROOT / "README.md", engines_table.markdown(shown))


def _order(records: dict[str, Record], only: str | None, runs: int) -> list[str]:
    """The models to measure: one that was asked for, else those that lack rounds."""
    if only is not None:
        return [only]
    had = {name: len(records[name].rounds) if name in records else 0 for name in MODELS}
    return sorted((name for name in MODELS if had[name] < runs), key=lambda name: had[name])


def _begin(name: str, folder: Path, *, megapixels: float, before: Record | None) -> Record:
    """A record to add to; `folder` gets the picture, the weights, and what ncnn reads."""
    side_px = round(math.sqrt(megapixels * 1e6))
    pixels = photo(side_px, side_px)
    np.save(folder / _ARRAY, pixels)
    Image.fromarray(pixels).save(folder / _PICTURE)
    weights, about = _weights(name, folder, crop=pixels[:64, :64])
    network = checkpoints.load(weights).network
    record = Record(
        model=name,
        about=about,
        weights=str(weights),
        side_px=side_px,
        conditions=_conditions(),
        baseline_tile_px=_baseline_tile_px(network, side_px),
    )
    if before is not None:
        for fact in ("about", "side_px", "conditions"):
            was, now = getattr(before, fact), getattr(record, fact)
            if was != now:
                sys.exit(f"{name} was measured with {was} before, not {now}: name another file")
        record = replace(before, weights=str(weights))
    if _installed("ncnn") and engines_ncnn.write(network, folder / "ncnn"):
        record.ncnn_settings = record.ncnn_settings or _fastest_ncnn(folder)
    return record


def _weights(name: str, folder: Path, *, crop: np.ndarray) -> tuple[Path, str]:
    """A file of weights, and whose they are."""
    if name == MODELS[0]:
        return _SHIPPED, "shipped weights"
    shared = Path(os.environ.get("WAIFU4X_SHARED", ROOT.parent / "shared"))
    for file in PUBLISHED[name]:
        if (path := shared / "weights" / "realesrgan" / file).is_file():
            return path, "published weights"
    torch.manual_seed(0)
    if name == _RRDB:
        network = _picturelike(RRDBNet(RRDBNET_SIZES[name]).eval(), crop)
    else:
        network = SRVGGNetCompact(SRVGGNET_SIZES[name])
    path = folder / f"{name}.safetensors"
    checkpoints.save(network, path, metadata={})
    return path, engines_table.RANDOM


def _picturelike(network: RRDBNet, crop: np.ndarray) -> RRDBNet:
    """Shift and scale the last layer, so that values do not all leave [0, 1] and get equal."""
    with torch.inference_mode():
        values = network(torch.from_numpy(crop / np.float32(255)).permute(2, 0, 1)[None])
        gain = 0.2 / values.std()
        network.conv_last.weight.mul_(gain)
        bias = network.conv_last.bias
        assert bias is not None
        bias.mul_(gain).add_(0.5 - gain * values.mean())
    return network


def _conditions() -> dict[str, str]:
    """What ratios depend on; it is also what the table says of the machine."""
    packages = [name for name in ("torch", "openvino", "onnxruntime", "ncnn") if _installed(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return {"processor": devices.describe(_CPU), "versions": ", ".join(versions)}


def _baseline_tile_px(network: nn.Module, side_px: int) -> int | None:
    """None is the whole picture at once, which is what Real-ESRGAN's script does by default."""
    need_bytes = _BYTES_PER_VALUE * peak_values_per_px(network, _CPU) * side_px**2
    return None if need_bytes < devices.free_bytes(_CPU) / 2 else _BASELINE_TILE_PX


def _fastest_ncnn(folder: Path) -> dict[str, Any]:
    """Of what ncnn can be told, that which takes the least time here and agrees with its fp32."""
    best_s, best, results = math.inf, engines_ncnn.CANDIDATES[0], []
    for settings in engines_ncnn.CANDIDATES:
        results.append(folder / "candidate.npy" if results else folder / "first.npy")
        with serving(_ncnn_spec(folder, settings), folder / _ARRAY) as server:
            spent_s = min(server.run(results[-1]), server.run())
        db = psnr(np.load(results[-1]), np.load(results[0]))
        print(f"ncnn, {settings['name']}: {spent_s:.2f} s, {db:.1f} dB", file=sys.stderr)
        if db >= GOAL_DB and spent_s < best_s:
            best_s, best = spent_s, settings
    return best


def _ncnn_spec(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "by": "ncnn",
        "stem": str(folder / "ncnn"),
        "threads": torch.get_num_threads(),
        "options": settings["options"],
        "tile_px": settings["tile_px"],
    }


def _contestants(record: Record, folder: Path) -> list[Contestant]:
    """Everybody who could take part, the baseline first."""
    tile_px = record.baseline_tile_px
    spec = {"by": "torch", "weights": record.weights, "tile_px": tile_px}
    tiles = "" if tile_px is None else f", tiles of {tile_px} px"
    found = [_plain(BASELINE, f"plain PyTorch (fp32{tiles})", spec)]
    engines = {"torch": "PyTorch", OPENVINO: "OpenVINO", "onnxruntime": "ONNX Runtime"}
    for engine, title in engines.items():
        if engine in devices.ENGINES and _installed(engine):
            found.append(_waifu4x(record, engine, title, precision="auto"))
    if "int8" in devices.PRECISIONS and _installed(OPENVINO) and _installed("nncf"):
        found.append(_waifu4x(record, OPENVINO, engines[OPENVINO], precision="int8"))
    if record.ncnn_settings is not None:
        settings = record.ncnn_settings
        label = f"ncnn ({settings['name']})"
        found.append(_plain(NCNN, label, _ncnn_spec(folder, settings)))
    return found


def _plain(key: str, label: str, spec: dict[str, Any]) -> Contestant:
    command = (sys.executable, str(_PLAIN), json.dumps(spec), _SOURCE, _TARGET)
    return Contestant(key=key, label=label, spec=spec, command=command)


def _waifu4x(record: Record, engine: str, title: str, *, precision: str) -> Contestant:
    command = (
        *(sys.executable, "-m", "waifu4x", "upscale", _SOURCE, "-o", _TARGET, "--overwrite"),
        *("-s", str(engines_plain.SCALE), "-m", record.weights, "--device", "cpu", "--json"),
        *("--engine", engine, "--precision", precision, "--quiet", "--offline"),
    )
    spec = {"by": "waifu4x", "weights": record.weights, "engine": engine, "precision": precision}
    key = engine if precision == "auto" else f"{engine} {precision}"
    return Contestant(key=key, label=f"waifu4x ({title})", spec=spec, command=command)


def _measure(record: Record, folder: Path, *, runs: int, until: float) -> None:
    """Add up to `runs` rounds, at least one, and no more once the next would end after `until`."""
    with contextlib.ExitStack() as stack:
        able: list[tuple[Contestant, Server]] = []
        for contestant in _contestants(record, folder):
            try:
                # In this order: what the first converts and keeps, the second finds.
                facts = _run_command(contestant, folder)[1]
                server = stack.enter_context(serving(contestant.spec, folder / _ARRAY))
                server.run(folder / _ARRAY_RESULT)
            except ContestantError as error:
                if contestant.key == BASELINE:
                    sys.exit(f"{record.model}: {contestant.label} failed: {error}")
                print(f"{record.model}: {contestant.label} is left out: {error}", file=sys.stderr)
                continue
            _note(record, contestant, facts, folder)
            able.append((contestant, server))
        longest_s = 0.0
        for number in range(runs):
            began = time.perf_counter()
            if number > 0 and began + longest_s > until:
                print(f"{record.model}: {number} of {runs} rounds in the time", file=sys.stderr)
                break
            # Nobody always comes after the same one.
            turn = len(record.rounds) % len(able)
            times: dict[str, tuple[float, float]] = {}
            for contestant, server in able[turn:] + able[:turn]:
                time.sleep(_PAUSE_S)
                whole_s = _run_command(contestant, folder)[0]
                time.sleep(_PAUSE_S)
                times[contestant.key] = whole_s, server.run()
            record.rounds.append(times)
            longest_s = max(longest_s, time.perf_counter() - began)
            print(f"{record.model}: round {number + 1} of {runs}", file=sys.stderr)


def _note(record: Record, contestant: Contestant, facts: dict[str, Any], folder: Path) -> None:
    """What a contestant is called, and how well its two results agree with the baseline's."""
    label = contestant.label
    if facts:  # waifu4x's own, which says what `auto` became
        label = f"{label.removesuffix(')')}, {facts['precision']})"
    with Image.open(folder / _RESULT) as image:
        given = np.asarray(image.convert("RGB")), np.load(folder / _ARRAY_RESULT)
    reference = folder / "reference.npy"
    if contestant.key == BASELINE:
        np.save(reference, given[1])
    db = min(psnr(pixels, np.load(reference)) for pixels in given)
    record.labels[contestant.key] = label
    record.agreement_db[contestant.key] = None if math.isinf(db) else db


def _run_command(contestant: Contestant, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds from the command to its end, and what waifu4x says of the picture.

    Raises ContestantError.
    """
    names = {_SOURCE: str(folder / _PICTURE), _TARGET: str(folder / _RESULT)}
    command = [names.get(word, word) for word in contestant.command]
    began = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    spent_s = time.perf_counter() - began
    if done.returncode != 0:
        raise ContestantError(last_line(done.stderr))
    return spent_s, json.loads(done.stdout) if done.stdout else {}


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    main()
