"""What this project is measured against, as short as it can be written.

    python benchmarks/engines_plain.py SPEC SOURCE TARGET

enlarges a picture once, a whole process from file to file. SPEC is JSON: ``{"by": "torch",
"weights": PATH, "tile_px": null}`` is Real-ESRGAN's own script on a CPU
(https://github.com/xinntao/Real-ESRGAN, inference_realesrgan.py and realesrgan/utils.py): float32,
planes one after the other in memory, the whole picture at once or tiles with 10 px of context, and
its way from floats to bytes. ``{"by": "ncnn", "stem": PATH, "threads": N, "options": {…},
"tile_px": null}`` is ncnn with the files that `engines_ncnn` writes. Pillow stands for OpenCV, and
compresses PNG as OpenCV does by default, which takes a quarter of the time of its own default.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Uint8Array = npt.NDArray[np.uint8]
Enlarge = Callable[[Uint8Array], Uint8Array]
"""(h, w, 3) uint8 RGB -> (4h, 4w, 3) uint8 RGB."""

SCALE = 4
# `--tile_pad` of Real-ESRGAN's script, `prepadding` of realesrgan-ncnn-vulkan: both 10 by default.
_PAD_PX = 10
# What OpenCV's imwrite does when it is not told otherwise: deflate's level 1, runs alone.
_OPENCV_PNG = {"compress_level": 1, "compress_type": 3}


def main() -> None:
    spec, source, target = sys.argv[1:]
    enlarge = open_enlarger(json.loads(spec))
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("RGB"))
    Image.fromarray(enlarge(pixels)).save(target, "PNG", **_OPENCV_PNG)


def open_enlarger(spec: dict[str, Any]) -> Enlarge:
    """What enlarges a picture as `spec` says; see the head of the file."""
    if spec["by"] == "torch":
        once = _open_torch(Path(spec["weights"]))
    else:
        once = _open_ncnn(Path(spec["stem"]), threads=spec["threads"], options=spec["options"])
    tile_px: int | None = spec["tile_px"]
    return once if tile_px is None else lambda pixels: _in_tiles(pixels, once, tile_px)


def _open_torch(weights: Path) -> Enlarge:
    import torch

    from waifu4x.model_files.checkpoints import load

    network = load(weights).network

    @torch.no_grad()
    def enlarge(pixels: Uint8Array) -> Uint8Array:
        planes = np.ascontiguousarray((pixels.astype(np.float32) / 255).transpose(2, 0, 1))
        larger = network(torch.from_numpy(planes)[None])[0].clamp_(0, 1).numpy()
        return (larger.transpose(1, 2, 0) * 255.0).round().astype(np.uint8)

    return enlarge


def _open_ncnn(stem: Path, *, threads: int, options: dict[str, bool]) -> Enlarge:
    ncnn: Any = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name, value in options.items():
        setattr(net.opt, name, value)
    for read, ending in ((net.load_param, ".param"), (net.load_model, ".bin")):
        if read(f"{stem}{ending}") != 0:
            sys.exit(f"ncnn cannot read {stem}{ending}")

    def enlarge(pixels: Uint8Array) -> Uint8Array:
        height, width, _ = pixels.shape
        mat = ncnn.Mat.from_pixels(
            np.ascontiguousarray(pixels), ncnn.Mat.PixelType.PIXEL_RGB, width, height
        )
        mat.substract_mean_normalize([], [1 / 255] * 3)
        extractor = net.create_extractor()
        extractor.input("x", mat)
        code, result = extractor.extract("y")
        if code != 0:
            sys.exit(f"ncnn failed with code {code}")
        # In place: the blob is ncnn's own, and nobody reads it again.
        larger = np.asarray(result)
        np.multiply(larger, 255.0, out=larger)
        np.add(larger, 0.5, out=larger)
        np.clip(larger, 0.0, 255.0, out=larger)
        return np.ascontiguousarray(larger.astype(np.uint8).transpose(1, 2, 0))

    return enlarge


def _in_tiles(pixels: Uint8Array, once: Enlarge, tile_px: int) -> Uint8Array:
    """Squares of `tile_px`, each seen with 10 px of its neighbours."""
    height, width, _ = pixels.shape
    larger = np.empty((height * SCALE, width * SCALE, 3), np.uint8)
    for top in range(0, height, tile_px):
        for left in range(0, width, tile_px):
            bottom, right = min(top + tile_px, height), min(left + tile_px, width)
            first_row, first_column = max(top - _PAD_PX, 0), max(left - _PAD_PX, 0)
            window = pixels[first_row : bottom + _PAD_PX, first_column : right + _PAD_PX]
            result = once(window)
            y, x = (top - first_row) * SCALE, (left - first_column) * SCALE
            rows, columns = (bottom - top) * SCALE, (right - left) * SCALE
            larger[top * SCALE : bottom * SCALE, left * SCALE : right * SCALE] = result[
                y : y + rows, x : x + columns
            ]
    return larger


if __name__ == "__main__":
    main()
